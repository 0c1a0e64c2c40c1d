//! What is running and how it was asked for, in `state.json` of the data directory.
//!
//! The file is replaced whole (write, rename) under a lock, so that two commands at once cannot lose a process.

use crate::args::Profile;
use crate::process::Process;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub(crate) struct State {
    pub dir: PathBuf,
    pub port_base: u16,
    pub shards: u16,
    pub proxies: u16,
    pub cores: u16,
    pub profile: Profile,
    /// Bearer token of the core's administration, made once per data directory.
    pub admin_token: String,
    /// Name -> process, of everything that was started and not stopped on purpose.
    pub processes: BTreeMap<String, Process>,
    /// Shard number -> the server (by its name) that is the primary after a promotion.
    pub promoted: BTreeMap<u16, String>,
}

impl State {
    pub(crate) fn new(dir: &Path, port_base: u16) -> Result<State> {
        let mut bytes = [0u8; 16];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        let admin_token = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(State {
            dir: dir.to_path_buf(),
            port_base,
            shards: 4,
            proxies: 1,
            cores: 1,
            profile: Profile::Sync,
            admin_token,
            processes: BTreeMap::new(),
            promoted: BTreeMap::new(),
        })
    }

    pub(crate) fn load(dir: &Path) -> Result<Option<State>> {
        let path = dir.join("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let read = || -> Option<State> {
            let value: Value = serde_json::from_str(&text).ok()?;
            let small = |key: &str| value.get(key)?.as_u64()?.try_into().ok();
            let mut processes = BTreeMap::new();
            for (name, process) in value.get("processes")?.as_object()? {
                let process = Process {
                    pid: process.get("pid")?.as_i64()?.try_into().ok()?,
                    started: process.get("started")?.as_u64()?,
                    boot: process.get("boot")?.as_str()?.to_owned(),
                };
                processes.insert(name.clone(), process);
            }
            let mut promoted = BTreeMap::new();
            for (shard, name) in value.get("promoted")?.as_object()? {
                promoted.insert(shard.parse().ok()?, name.as_str()?.to_owned());
            }
            Some(State {
                dir: dir.to_path_buf(),
                port_base: small("port_base")?,
                shards: small("shards")?,
                proxies: small("proxies")?,
                cores: small("cores")?,
                profile: Profile::parse(value.get("profile")?.as_str()?).ok()?,
                admin_token: value.get("admin_token")?.as_str()?.to_owned(),
                processes,
                promoted,
            })
        };
        match read() {
            Some(state) => Ok(Some(state)),
            None => {
                bail!("{} is damaged; stop the servers it names and remove {}", path.display(), dir.display())
            }
        }
    }

    pub(crate) fn save(&self) -> Result<()> {
        let processes: Map<String, Value> = self
            .processes
            .iter()
            .map(|(name, p)| (name.clone(), json!({"pid": p.pid, "started": p.started, "boot": p.boot})))
            .collect();
        let promoted: Map<String, Value> =
            self.promoted.iter().map(|(shard, name)| (shard.to_string(), json!(name))).collect();
        let value = json!({
            "port_base": self.port_base, "shards": self.shards, "proxies": self.proxies, "cores": self.cores,
            "profile": self.profile.name(), "admin_token": self.admin_token,
            "processes": processes, "promoted": promoted,
        });
        let path = self.dir.join("state.json");
        let fresh = self.dir.join("state.json.new");
        fs::write(&fresh, format!("{value:#}\n")).with_context(|| fresh.display().to_string())?;
        // It holds a token.
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, &path).with_context(|| path.display().to_string())
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn running(&self, name: &str) -> Option<&Process> {
        self.processes.get(name).filter(|process| process.alive())
    }

    /// Every name this stack may run, in the order of starting.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for shard in 1..=self.shards {
            names.push(format!("shard{shard}-primary"));
            names.push(format!("shard{shard}-replica"));
        }
        names.extend(["oracle", "redis", "kafka"].map(str::to_owned));
        names.extend((1..=self.proxies).map(|n| format!("proxy{n}")));
        names.extend((1..=self.cores).map(|n| format!("core{n}")));
        names
    }

    pub(crate) fn primary_of(&self, shard: u16) -> String {
        self.promoted.get(&shard).cloned().unwrap_or_else(|| format!("shard{shard}-primary"))
    }

    pub(crate) fn standby_of(&self, shard: u16) -> String {
        let original = format!("shard{shard}-primary");
        if self.primary_of(shard) == original { format!("shard{shard}-replica") } else { original }
    }

    /// The port of a name; proxies and cores also have HTTP ports (`http_port`).
    pub(crate) fn port(&self, name: &str) -> Result<u16> {
        let base = self.port_base;
        let number = |prefix: &str, suffix: &str| -> Option<u16> {
            name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok().filter(|n| (1..=19).contains(n))
        };
        Ok(match name {
            "oracle" => base + 40,
            "redis" => base + 41,
            "kafka" => base + 42,
            _ => match (
                number("shard", "-primary"),
                number("shard", "-replica"),
                number("proxy", ""),
                number("core", ""),
            ) {
                (Some(n), ..) => base + n,
                (_, Some(n), ..) => base + 20 + n,
                (_, _, Some(n), _) => base + 50 + n,
                (_, _, _, Some(n)) => base + 70 + n,
                _ => bail!("no server is called {name}; there are {}", self.names().join(", ")),
            },
        })
    }

    pub(crate) fn proxy_http(&self, n: u16) -> u16 {
        self.port_base + 60 + n
    }

    /// All ports a name needs.
    pub(crate) fn ports(&self, name: &str) -> Result<Vec<u16>> {
        let port = self.port(name)?;
        Ok(match name {
            "kafka" => vec![port, port + 1],
            _ if name.starts_with("proxy") => vec![port, port + 10],
            _ => vec![port],
        })
    }
}

/// Held while a command changes what runs.
pub(crate) struct Lock {
    _file: Flock<File>,
}

pub(crate) fn lock(dir: &Path) -> Result<Lock> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join("lock");
    let open =
        || File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string());
    let file = match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err(_) => {
            eprintln!("waiting for another stack command on {}", dir.display());
            Flock::lock(open()?, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("lock")?
        }
    };
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_its_own_ports() {
        let mut state = State::new(Path::new("/nowhere"), 17000).unwrap();
        (state.shards, state.proxies, state.cores) = (19, 9, 9);
        let mut seen = std::collections::BTreeSet::new();
        for name in state.names() {
            for port in state.ports(&name).unwrap() {
                assert!(seen.insert(port), "{name}: {port} is taken twice");
            }
        }
        assert_eq!(state.port("shard1-replica").unwrap(), 17021);
        assert!(state.port("shard0-primary").is_err() && state.port("proxyx").is_err());
    }

    #[test]
    fn a_saved_state_is_read_back() {
        let dir = std::env::temp_dir().join(format!("stack-state-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut state = State::new(&dir, 18500).unwrap();
        state.processes.insert("redis".into(), Process { pid: 7, started: 8, boot: "b".into() });
        state.promoted.insert(2, "shard2-replica".into());
        state.save().unwrap();
        let back = State::load(&dir).unwrap().unwrap();
        assert_eq!(format!("{state:?}"), format!("{back:?}"));
        assert_eq!(
            (back.primary_of(2), back.standby_of(2)),
            ("shard2-replica".into(), "shard2-primary".into())
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
