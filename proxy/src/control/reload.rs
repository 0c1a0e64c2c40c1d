//! A changed configuration file, taken over without dropping a client: what in it may change, and what of the servers
//! does.

use std::path::Path;

use anyhow::{Context, bail};
use shard_config::{Config, HostPort, ShardId};

use super::servers::addresses;

/// What may change while the proxy runs: (section, setting); a whole section when the setting is empty. Everything
/// else is fixed by what was started with it: sockets, threads, files, and the place of every row.
const CHANGEABLE: &[(&str, &str)] = &[
    ("pool", ""),
    ("sequences", ""),
    ("reads", "policy"),
    ("user", ""),
    ("table", ""),
    ("function", ""),
    ("shard", "primary"),
    ("shard", "replicas"),
    ("shard", "weight"),
];

pub fn is_changeable(section: &str, setting: &str) -> bool {
    CHANGEABLE.iter().any(|(s, name)| *s == section && (name.is_empty() || *name == setting))
}

/// What the new file says of servers and the old one does not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In order of their numbers, which are above all others.
    pub shards: Vec<ShardId>,
    /// Shards that are not in the new file; whether they may go is not said by files (`leave`).
    pub left: Vec<ShardId>,
    /// Servers of shards that are known. Which one is the primary is asked of them, so it does not matter whether the file
    /// calls them that.
    pub added: Vec<(ShardId, HostPort)>,
    pub removed: Vec<(ShardId, HostPort)>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the file again. The error names every mistake, or what cannot change without a restart.
pub fn read(path: &Path, old: &Config) -> anyhow::Result<(Config, Changes)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let new = match Config::parse(&text) {
        Ok(config) => config,
        Err(mistakes) => {
            let lines: Vec<String> =
                mistakes.iter().map(|m| format!("line {}: {} ({})", m.line, m.message, m.remedy)).collect();
            bail!("{}", lines.join("; "));
        }
    };
    let mut fixed = Vec::new();
    if new.proxy != old.proxy {
        fixed.push("[proxy]");
    }
    if new.key != old.key {
        fixed.push("[key]");
    }
    if new.control != old.control {
        fixed.push("[control]");
    }
    if new.reads.poll_ms != old.reads.poll_ms {
        fixed.push("reads.poll_ms");
    }
    if !fixed.is_empty() {
        bail!("{} can only change with a restart", fixed.join(", "));
    }
    let changes = changes(old, &new)?;
    Ok((new, changes))
}

/// Shards keep their positions, and positions are in order of the numbers: whoever locks on several shards does it in that
/// order, in every proxy (H22). So a shard can only be added at the end; one that goes keeps its position, and nobody uses it.
fn changes(old: &Config, new: &Config) -> anyhow::Result<Changes> {
    let mut wrong = Vec::new();
    let highest = old.shards.iter().map(|shard| shard.id).max();
    let mut changes = Changes::default();
    for shard in &new.shards {
        let Some(before) = old.shard(shard.id) else {
            match highest {
                Some(highest) if shard.id < highest => wrong.push(format!(
                    "shard {} would come before shard {highest}: give it the number {}, or restart the proxies",
                    shard.id,
                    highest.0.saturating_add(1)
                )),
                _ => changes.shards.push(shard.id),
            }
            continue;
        };
        let (was, is): (Vec<_>, Vec<_>) = (addresses(before).collect(), addresses(shard).collect());
        let missing = |of: &[&HostPort], from: &[&HostPort]| {
            let missing = of.iter().filter(|place| !from.contains(place));
            missing.map(|place| (shard.id, (*place).clone())).collect::<Vec<_>>()
        };
        changes.added.extend(missing(&is, &was));
        changes.removed.extend(missing(&was, &is));
    }
    let missing = old.shards.iter().filter(|shard| new.shard(shard.id).is_none());
    changes.left = missing.map(|shard| shard.id).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    changes.shards.sort_unstable();
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[[user]]\nname=\"a\"\npassword=\"b\"\n[[shard]]\nid=1\nprimary=\"127.0.0.1:1\"\n";

    fn parsed(shards: &str) -> Config {
        let text = format!("[proxy]\ndefault_shard = 2\n[[user]]\nname=\"a\"\npassword=\"b\"\n{shards}");
        Config::parse(&text).expect("valid")
    }

    fn shard(id: u16, primary: &str, replicas: &str) -> String {
        format!("[[shard]]\nid={id}\nprimary=\"{primary}\"\nreplicas=[{replicas}]\n")
    }

    fn place(text: &str) -> HostPort {
        text.parse().expect("host:port")
    }

    #[test]
    fn pools_change_and_places_do_not() {
        let path = std::env::temp_dir().join(format!("shard-proxy-reload-{}.toml", std::process::id()));
        let old = Config::parse(BASE).expect("valid");
        let check = |text: String| {
            std::fs::write(&path, text).expect("written");
            read(&path, &old).map(|(config, _)| config.pool.primary_max).map_err(|e| e.to_string())
        };
        assert_eq!(check(format!("{BASE}[pool]\nprimary_max = 7\nprimary_min = 2\n")), Ok(7));
        assert!(check(format!("{BASE}[key]\nbuckets = 64\n")).expect_err("fixed").contains("[key]"));
        assert!(check(format!("{BASE}[pool]\nprimary_max = 0\n")).expect_err("mistake").contains("line"));
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn shards_come_at_the_end_only() {
        let old = parsed(&(shard(2, "h:2", "") + &shard(5, "h:5", "")));
        let with = |more: &str| changes(&old, &parsed(&(shard(2, "h:2", "") + &shard(5, "h:5", "") + more)));
        assert!(with("").expect("the same").is_empty());
        // The file's order does not matter, and numbers may be left out.
        let several = with(&(shard(9, "h:9", "") + &shard(6, "h:6", "\"r:6\""))).expect("added");
        assert_eq!(several, Changes { shards: vec![ShardId(6), ShardId(9)], ..Changes::default() });
        let before = with(&shard(3, "h:3", "")).expect_err("in between").to_string();
        assert!(before.contains("shard 3") && before.contains("the number 6"), "{before}");
    }

    #[test]
    fn a_shard_that_is_missing_leaves() {
        let old = parsed(&(shard(2, "h:2", "") + &shard(5, "h:5", "\"r:5\"")));
        let new = |more: &str| changes(&old, &parsed(&(shard(2, "h:2", "") + more)));
        let left = new("").expect("legal");
        assert_eq!(left, Changes { left: vec![ShardId(5)], ..Changes::default() }, "and its servers with it");
        let replaced = new(&shard(6, "h:6", "")).expect("legal");
        assert_eq!((replaced.shards, replaced.left), (vec![ShardId(6)], vec![ShardId(5)]));
        // Its place is still there, so no lower number comes behind it.
        assert!(new(&shard(4, "h:4", "")).expect_err("in between").to_string().contains("the number 6"));
    }

    #[test]
    fn servers_of_a_shard_come_and_go_and_change_places() {
        let old = parsed(&shard(2, "h:1", "\"h:2\", \"h:3\""));
        let new = |text: String| changes(&old, &parsed(&text)).expect("legal");
        assert!(new(shard(2, "h:3", "\"h:1\", \"h:2\"")).is_empty(), "roles are asked of the servers");
        assert_eq!(
            new(shard(2, "h:2", "\"h:4\", \"h:3\"")),
            Changes {
                added: vec![(ShardId(2), place("h:4"))],
                removed: vec![(ShardId(2), place("h:1"))],
                ..Changes::default()
            }
        );
        let heavier = shard(2, "h:1", "\"h:2\", \"h:3\"") + "weight = 7\n";
        assert!(new(heavier).is_empty(), "no server changes with a weight");
    }
}
