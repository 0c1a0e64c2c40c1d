//! A changed configuration file, taken over without dropping a client.

use std::path::Path;

use anyhow::{Context, bail};
use shard_config::Config;

/// What may change while the proxy runs: (section, setting); a whole section when the setting is empty. Everything
/// else is fixed by what was started with it: sockets, threads, files, and the place of every row.
const CHANGEABLE: &[(&str, &str)] =
    &[("pool", ""), ("sequences", ""), ("reads", "policy"), ("user", ""), ("table", ""), ("function", "")];

pub fn is_changeable(section: &str, setting: &str) -> bool {
    CHANGEABLE.iter().any(|(s, name)| *s == section && (name.is_empty() || *name == setting))
}

/// Reads the file again. The error names every mistake, or what cannot change without a restart.
pub fn read(path: &Path, old: &Config) -> anyhow::Result<Config> {
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
    if new.shards != old.shards {
        fixed.push("[[shard]]");
    }
    if !fixed.is_empty() {
        bail!("{} can only change with a restart", fixed.join(", "));
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[[user]]\nname=\"a\"\npassword=\"b\"\n[[shard]]\nid=1\nprimary=\"127.0.0.1:1\"\n";

    #[test]
    fn pools_change_and_places_do_not() {
        let path = std::env::temp_dir().join(format!("shard-proxy-reload-{}.toml", std::process::id()));
        let old = Config::parse(BASE).expect("valid");
        let check = |text: String| {
            std::fs::write(&path, text).expect("written");
            read(&path, &old).map(|c| c.pool.primary_max).map_err(|e| e.to_string())
        };
        assert_eq!(check(format!("{BASE}[pool]\nprimary_max = 7\nprimary_min = 2\n")), Ok(7));
        assert!(check(format!("{BASE}[key]\nbuckets = 64\n")).expect_err("fixed").contains("[key]"));
        assert!(check(format!("{BASE}[pool]\nprimary_max = 0\n")).expect_err("mistake").contains("line"));
        std::fs::remove_file(&path).expect("removed");
    }
}
