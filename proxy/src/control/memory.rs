//! What the proxy must not forget over a restart: each shard's system identifier and highest timeline (H5), and the
//! last shard map it served with what moved then, so that it starts while the map's home is down.
//!
//! One small JSON file, replaced whole: written beside, synced, renamed, and the directory synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use shard_config::{KeyHash, Scope, ShardId, ShardMap};

use super::home::Home;
use super::roles::Remembered;
use crate::motion::{Motion, Stage};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// By shard number.
    pub(super) shards: BTreeMap<u16, Remembered>,
    pub(super) map: Option<StoredMap>,
    /// `shard_catalog.control.version` that came with the map.
    #[serde(default)]
    pub(super) version: u64,
    #[serde(default)]
    pub(super) motions: Vec<StoredMotion>,
    /// Where the catalog was found, if it has been moved.
    #[serde(default)]
    pub(super) home: Option<Home>,
}

/// A shard map as it is stored, here and in `shard_catalog.map`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMap {
    pub(super) epoch: u64,
    pub(super) buckets: u16,
    /// (first bucket, last bucket, shard)
    pub(super) ranges: Vec<(u16, u16, u16)>,
    /// (hash of a tenant, shard)
    #[serde(default)]
    pub(super) overrides: Vec<(i64, u16)>,
    /// Random, so that two maps of one epoch are told apart (H6). None: of a map that was never stored.
    #[serde(default)]
    pub(super) id: Option<String>,
}

/// A row of `shard_catalog.motion`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMotion {
    pub(super) move_id: i64,
    pub(super) scope: serde_json::Value,
    pub(super) source: u16,
    pub(super) target: u16,
    pub(super) stage: String,
}

impl StoredMap {
    pub(super) fn from_map(map: &ShardMap) -> Self {
        let ranges = map.ranges().into_iter().map(|(from, to, shard)| (from, to, shard.0)).collect();
        let overrides = map.overrides().iter().map(|(hash, shard)| (hash.get(), shard.0)).collect();
        Self { epoch: map.epoch(), buckets: map.buckets(), ranges, overrides, id: None }
    }

    /// `None` for ranges and overrides that are no map.
    pub(super) fn to_map(&self) -> Option<ShardMap> {
        let ranges: Vec<_> =
            self.ranges.iter().map(|&(from, to, shard)| (from, to, ShardId(shard))).collect();
        let overrides: Vec<_> =
            self.overrides.iter().map(|&(hash, shard)| (KeyHash::new(hash), ShardId(shard))).collect();
        ShardMap::from_ranges(self.epoch, self.buckets, &ranges).ok()?.with_overrides(&overrides).ok()
    }
}

impl StoredMotion {
    /// The error says what is wrong with it.
    pub(super) fn to_motion(&self) -> anyhow::Result<Motion> {
        let what = || format!("move {}", self.move_id);
        let scope = Scope::parse(&self.scope.to_string()).with_context(what)?;
        let stage = Stage::from_name(&self.stage).with_context(what)?;
        let (source, target) = (ShardId(self.source), ShardId(self.target));
        Ok(Motion {
            move_id: self.move_id,
            scope,
            source,
            target,
            stage,
            since: 0,
            owner_since: 0,
            by_target: false,
            apart: Vec::new(),
        })
    }
}

#[derive(Debug)]
pub(super) struct MemoryFile {
    path: PathBuf,
    now: Memory,
}

impl MemoryFile {
    /// Creates the directory when it is missing. A file that cannot be read is an error, not an empty memory: what
    /// it said may be what keeps an old primary out.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("state_dir {}", directory.display()))?;
        let path = directory.join("proxy-state.json");
        let now = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged; move it away only if no shard was ever promoted", path.display())
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Memory::default(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let file = Self { path, now };
        file.write().context("state_dir must be writable")?;
        Ok(file)
    }

    pub(super) fn get(&self) -> &Memory {
        &self.now
    }

    /// Returns when the change is on disk. On an error nothing is changed, here or there.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Memory)) -> anyhow::Result<()> {
        let before = self.now.clone();
        change(&mut self.now);
        if self.now == before {
            return Ok(());
        }
        self.write().inspect_err(|_| self.now = before)
    }

    fn write(&self) -> anyhow::Result<()> {
        let directory = self.path.parent().context("a file in a directory")?;
        let beside = self.path.with_extension("json.new");
        let mut file = File::create(&beside).with_context(|| beside.display().to_string())?;
        file.write_all(&serde_json::to_vec_pretty(&self.now)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_read_back_and_damage_is_not_forgetting() {
        let directory = std::env::temp_dir().join(format!("shard-proxy-memory-{}", std::process::id()));
        let remembered = Remembered { system_identifier: Some(-5), timeline: 3 };
        let mut file = MemoryFile::open(&directory).expect("opens");
        file.change(|m| _ = m.shards.insert(2, remembered)).expect("written");
        drop(file);
        let file = MemoryFile::open(&directory).expect("opens again");
        assert_eq!(file.get().shards.get(&2), Some(&remembered));
        std::fs::write(directory.join("proxy-state.json"), b"{").expect("damages");
        assert!(MemoryFile::open(&directory).is_err());
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
