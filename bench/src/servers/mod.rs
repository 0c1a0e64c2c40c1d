//! Servers that a measurement or a test starts for itself and stops again: in a directory of their own, on free
//! ports of loopback, ended when the guard is dropped.
pub mod peers;
pub mod postgres;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A directory that is removed when dropped.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(name: &str) -> Result<Directory> {
        let path = std::env::temp_dir().join(format!(
            "bench-{name}-{}-{:06x}",
            std::process::id(),
            rand::random::<u32>() & 0xff_ffff
        ));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        give_away(&path)?;
        Ok(Directory(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server; stopped with its signal when dropped.
pub struct Server {
    pub name: String,
    pub port: u16,
    child: Child,
    stop: Signal,
}

impl Server {
    /// Starts a program whose output goes to `<directory>/<name>.log`.
    pub fn start(
        mut command: Command,
        name: &str,
        port: u16,
        directory: &Path,
        stop: Signal,
    ) -> Result<Server> {
        let log = directory.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        let mut server = Server { name: name.to_owned(), port, child, stop };
        let give_up = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait()?;
            if ended.is_some() || Instant::now() > give_up {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(8).collect();
                bail!(
                    "{name} does not listen on port {port}:\n{}",
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), self.stop);
        let give_up = Instant::now() + STOP_PATIENCE;
        while Instant::now() < give_up {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free ports, all different: held together before any is released. From `base` upwards when one is given.
pub fn free_ports(count: usize, base: Option<u16>) -> Result<Vec<u16>> {
    let mut held = Vec::with_capacity(count);
    match base {
        None => {
            for _ in 0..count {
                held.push(TcpListener::bind("127.0.0.1:0")?);
            }
        }
        Some(base) => held.extend(
            (base..base.saturating_add(200))
                .filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
                .take(count),
        ),
    }
    if held.len() < count {
        bail!("only {} of {count} ports are free from {base:?} on", held.len());
    }
    Ok(held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<std::io::Result<_>>()?)
}

/// PostgreSQL and PgBouncer refuse to run as root: root runs them as `postgres`, else as `nobody`.
fn unprivileged() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("running as root needs a user `postgres` or `nobody` to run the servers as")
}

pub fn give_away(path: &Path) -> Result<()> {
    if let Some(user) = unprivileged()? {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// `command`, to be run as a user that servers accept.
pub fn unprivileged_command(program: &Path, directory: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(directory);
    if let Some(user) = unprivileged()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// From PATH or from where Debian puts server programs.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    places
        .iter()
        .map(|place| place.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: apt-get install {package}"))
}
