//! What is made of the catalog's map and motions, read in one snapshot: accepted and published, or an alarm.

use std::sync::Arc;

use anyhow::{Context, ensure};
use shard_config::change::Offer;
use shard_config::{ShardId, ShardMap};

use super::memory::{Memory, StoredMap, StoredMotion};
use super::world::{Parts, World};
use crate::motion::motions::{PAST_MAPS, explained};
use crate::motion::{Following, Motion, Motions};

/// Map, motions and version as of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) map: StoredMap,
    pub(super) motions: Vec<StoredMotion>,
}

/// What was followed before a restart. Motions that cannot be read any more are none: the catalog tells of them again.
pub(super) fn remembered(map: &ShardMap, memory: &Memory) -> Following {
    let rows: Vec<Motion> = memory.motions.iter().filter_map(|stored| stored.to_motion().ok()).collect();
    let motions = Motions::new(memory.version, map, rows, None).ok().flatten().map(Arc::new);
    let map_id = memory.map.as_ref().and_then(|stored| stored.id.as_deref()).map(Arc::from);
    Following { version: memory.version, map_id, motions, ..Following::default() }
}

impl World {
    /// Serves by `snapshot` from now on. The error says why not; then the last one goes on being served, and nothing newer
    /// is acknowledged.
    pub(super) fn follow(&self, snapshot: Snapshot) -> anyhow::Result<()> {
        let mut parts = self.parts.lock();
        let known = parts.memory.get().map.is_some();
        let before = &parts.following;
        ensure!(
            !known || snapshot.version >= before.version,
            "the catalog is at version {}, and this proxy has seen version {}: was it restored, or is it another one?",
            snapshot.version,
            before.version
        );
        let map = snapshot.map.to_map().context("shard_catalog.map: the ranges or overrides are no map")?;
        self.check(&parts, &map, &snapshot, known)?;
        let rows =
            snapshot.motions.iter().map(StoredMotion::to_motion).collect::<anyhow::Result<Vec<_>>>()?;
        let shards = rows.iter().flat_map(|motion| [motion.source, motion.target]);
        for shard in map.shards().into_iter().chain(shards) {
            ensure!(
                parts.config.shard(shard).is_some(),
                "the catalog names shard {shard}, which this proxy does not know: add it to the configuration file and RELOAD"
            );
        }
        let old_motions = before.motions.as_deref().filter(|_| known);
        let motions = Motions::new(snapshot.version, &map, rows, old_motions).map_err(anyhow::Error::msg)?;
        let motions = motions.map(Arc::new);
        let changed = *parts.map != map;
        let mut following = Following {
            version: snapshot.version,
            map_id: snapshot.map.id.as_deref().map(Arc::from),
            motions,
            past: before.past.clone(),
            blind: before.blind,
            over: before.over,
        };
        let moves = |motion: &Motion| snapshot.motions.iter().any(|stored| stored.move_id == motion.move_id);
        if !before.motions.as_deref().map_or(&[][..], Motions::list).iter().all(moves) {
            following.over = snapshot.version;
        }
        if changed {
            if known && !explained(&parts.map, &map, following.motions.as_deref()) {
                following.blind = snapshot.version;
            }
            following.past.insert(0, parts.map.clone());
            following.past.truncate(PAST_MAPS);
            tracing::info!(?map, version = snapshot.version, "shard map");
        }
        // What is remembered of a move keeps its scope from being served without a lease, whichever of its stages is read
        // after a restart. So only a new move must be on disk before it is served; a flip is not held up by a disk.
        let is_remembered = |stored: &StoredMotion| {
            parts
                .memory
                .get()
                .motions
                .iter()
                .any(|old| (old.move_id, &old.scope) == (stored.move_id, &stored.scope))
        };
        let first = !known
            || !snapshot.motions.iter().all(is_remembered)
            || (changed && following.blind == snapshot.version);
        let Snapshot { version, map: stored, motions: stored_motions } = snapshot;
        let remember = |memory: &mut Memory| {
            (memory.map, memory.version, memory.motions) = (Some(stored), version, stored_motions);
        };
        if first {
            parts.memory.change(remember)?;
            self.serve(&mut parts, map, following);
            return Ok(());
        }
        self.serve(&mut parts, map, following);
        parts.memory.change(remember)
    }

    /// Two maps of one epoch, another cluster's map, or an older one are never followed.
    fn check(&self, parts: &Parts, map: &ShardMap, snapshot: &Snapshot, known: bool) -> anyhow::Result<()> {
        ensure!(
            map.buckets() == parts.config.key.buckets,
            "the stored map has {} buckets and the configuration {}; the number is fixed once rows exist",
            map.buckets(),
            parts.config.key.buckets
        );
        if !known {
            return Ok(());
        }
        match parts.map.consider(map)? {
            Offer::Newer => Ok(()),
            Offer::Older => anyhow::bail!(
                "the stored map has epoch {}, and epoch {} was served already: the catalog has lost its end",
                map.epoch(),
                parts.map.epoch()
            ),
            Offer::Same => {
                let (ours, theirs) = (parts.following.map_id.as_deref(), snapshot.map.id.as_deref());
                ensure!(
                    ours.is_none() || ours == theirs,
                    "two different shard maps have epoch {}: one of them was lost with a failover, and is served here",
                    map.epoch()
                );
                Ok(())
            }
        }
    }

    fn serve(&self, parts: &mut Parts, map: ShardMap, following: Following) {
        self.mark_moved(&parts.map, &map);
        if parts.following.version != following.version {
            let motions = following.motions.as_deref().map_or(&[][..], Motions::list);
            for motion in motions {
                tracing::info!(
                    version = following.version, move_id = motion.move_id, scope = %motion.scope, source = motion.source.0,
                    target = motion.target.0, stage = motion.stage.name(), "motion"
                );
            }
        }
        if *parts.map != map {
            parts.map = Arc::new(map);
        }
        parts.following = following;
        self.publish(parts);
    }

    /// Replicas of a new owner may not have replayed what was copied: its buckets are read from the primary until they have.
    fn mark_moved(&self, before: &ShardMap, after: &ShardMap) {
        if before == after {
            return;
        }
        let mark = |shard: ShardId, bucket| {
            if let Some(position) = self.servers.position(shard) {
                self.freshness.moved_here(position, bucket);
            }
        };
        let buckets = after.buckets();
        for (n, (old, new)) in before.owners().iter().zip(after.owners()).enumerate() {
            if old != new {
                mark(*new, shard_config::Bucket::new(n as u16, buckets));
            }
        }
        for (hash, _) in before.overrides().iter().chain(after.overrides()) {
            let new = after.shard_of_hash(*hash);
            if before.shard_of_hash(*hash) != new {
                mark(new, Some(hash.bucket(buckets)));
            }
        }
    }
}
