//! A PostgreSQL of one's own for a test: real binaries, a temporary data directory, a free loopback port.
//!
//! Invariants: only the server that a value started is ever stopped, and it is stopped when the value is dropped;
//! fsync is off (nothing here measures durability) unless asked for. Runs the server as user `postgres` when the
//! test runs as root, because PostgreSQL refuses to run as root.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A running server. Superuser `postgres`, database `postgres`, trust authentication on loopback.
pub struct TempPostgres {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
}

impl TempPostgres {
    /// Starts a server with extra `name = value` lines for postgresql.conf.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (the message names the package) or does not start (with its log).
    pub fn start(settings: &[&str]) -> Self {
        let bin = find_binaries();
        let data = directory();
        let cluster = data.join("pg");
        let options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"];
        run(as_postgres(&bin.join("initdb")).args(options).arg(&cluster));
        let port = free_port();
        let mut text = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
        );
        text.push_str("shared_buffers = 32MB\nmax_prepared_transactions = 50\n");
        for line in settings {
            text.push_str(line);
            text.push('\n');
        }
        configure(&cluster, &text);
        let server = Self { bin, data, port };
        server.boot();
        server
    }

    /// Starts a streaming standby of this server, with the same settings.
    ///
    /// # Panics
    /// When it cannot be copied or does not start (with its log).
    pub fn standby(&self) -> Self {
        let (bin, data, port) = (self.bin.clone(), directory(), free_port());
        let cluster = data.join("pg");
        let copy = ["-R", "--no-sync", "-c", "fast", "-d"];
        run(as_postgres(&bin.join("pg_basebackup"))
            .args(copy)
            .arg(self.url("postgres"))
            .arg("-D")
            .arg(&cluster));
        configure(&cluster, &format!("port = {port}\n"));
        let server = Self { bin, data, port };
        server.boot();
        server
    }

    /// Makes a standby a primary, of another timeline.
    ///
    /// # Panics
    /// When it does not become one.
    pub fn promote(&self) {
        let cluster = self.data.join("pg");
        run(as_postgres(&self.bin.join("pg_ctl")).args(["promote", "-w", "-D"]).arg(cluster));
    }

    /// Ends the server as a crash does, and lets a standby take over that has all of it: slots, too.
    ///
    /// # Panics
    /// When it does not end, start or become a primary.
    pub fn fail_over(&self) {
        self.crash();
        std::fs::write(self.data.join("pg/standby.signal"), "").expect("write standby.signal");
        self.boot();
        self.promote();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A libpq URL for `database`.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends the server at once, as a crash does; `resume` starts it again on its data.
    ///
    /// # Panics
    /// When it does not end.
    pub fn crash(&self) {
        assert!(self.end(), "PostgreSQL did not end");
    }

    /// Starts a server that was ended by `crash`.
    ///
    /// # Panics
    /// When it does not start (with its log).
    pub fn resume(&self) {
        self.boot();
    }

    fn end(&self) -> bool {
        let stopped = as_postgres(&self.bin.join("pg_ctl"))
            .args(["-m", "immediate", "-w", "-D"])
            .arg(self.data.join("pg"))
            .arg("stop")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        stopped.is_ok_and(|status| status.success())
    }

    fn boot(&self) {
        let log = self.data.join("log");
        let status = as_postgres(&self.bin.join("pg_ctl"))
            .args(["-w", "-t", "60", "-D"])
            .arg(self.data.join("pg"))
            .arg("-l")
            .arg(&log)
            .arg("start")
            .stdout(Stdio::null())
            .status()
            .expect("run pg_ctl");
        let tail = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(status.success(), "PostgreSQL did not start:\n{tail}");
    }
}

impl Drop for TempPostgres {
    fn drop(&mut self) {
        if self.end() {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

/// A new directory of the server's user.
fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let data = std::env::temp_dir().join(format!("testpg-{}-{number}", std::process::id()));
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data).expect("create the data directory");
    if is_root() {
        run(Command::new("chown").arg("postgres").arg(&data));
    }
    data
}

/// Adds lines to postgresql.conf; the last one of a setting holds.
fn configure(cluster: &Path, lines: &str) {
    let conf = cluster.join("postgresql.conf");
    let mut all = std::fs::read_to_string(&conf).expect("read postgresql.conf");
    all.push_str(lines);
    std::fs::write(&conf, all).expect("write postgresql.conf");
}

/// The newest installed PostgreSQL 15 or later.
fn find_binaries() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(version, bin)| *version >= 15 && bin.join("initdb").exists())
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, bin)| bin);
    newest.expect("PostgreSQL 15 or later is needed: apt-get install postgresql")
}

fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("its address").port()
}
