//! What moves. PURE.

use std::sync::Arc;

use shard_config::{Bucket, KeyHash, KeyType, Scope, ShardId, ShardMap};

/// Moves at one time: they are told apart by the bits of a word.
pub const MOTIONS_MAX: usize = 64;
/// Maps of earlier epochs that are remembered, for transactions that began under them.
pub const PAST_MAPS: usize = 16;

/// How far a move is, as far as proxies are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The source owns the scope; rows of it are on the target, too.
    Copying,
    /// As `Copying`, and whatever has not touched the scope yet waits before it does.
    Holding,
    /// The target owns the scope; rows of it are on the source, too.
    Flipped,
}

impl Stage {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Holding => "holding",
            Self::Flipped => "flipped",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Copying, Self::Holding, Self::Flipped].into_iter().find(|stage| stage.name() == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Motion {
    pub move_id: i64,
    pub scope: Scope,
    pub source: ShardId,
    pub target: ShardId,
    pub stage: Stage,
    /// The catalog's version with which this proxy learnt of it: what is routed from then on is noted exactly.
    pub since: u64,
    /// The version with which this proxy saw the owner change; 0: it has not.
    pub owner_since: u64,
    /// The map of the same moment says that the target owns it. It decides, and not the stage: before a move is taken back,
    /// statements are held while the target owns.
    pub by_target: bool,
    /// Tenants of its buckets that the map keeps on a third shard: none of their rows moves. In order.
    pub apart: Vec<KeyHash>,
}

impl Motion {
    pub fn owner(&self) -> ShardId {
        if self.by_target { self.target } else { self.source }
    }

    /// Where its rows are not to be seen.
    pub fn other(&self) -> ShardId {
        if self.by_target { self.source } else { self.target }
    }

    /// Does the key move?
    pub fn moves(&self, hash: KeyHash, buckets: u16) -> bool {
        self.scope.contains_hash(hash, buckets) && self.apart.binary_search(&hash).is_err()
    }

    /// As EXPLAIN ROUTE tells of it.
    pub fn line(&self) -> String {
        let ranges = self.scope.ranges().iter().map(|(from, to)| format!("buckets {from}-{to}"));
        let tenants = self.scope.hashes().len();
        let tenants = (tenants > 0).then(|| format!("{tenants} tenants"));
        let what: Vec<String> = ranges.chain(tenants).collect();
        format!(
            "move {} ({}) of {} from shard {} to shard {} may concern it; shard {} owns them",
            self.move_id,
            self.stage.name(),
            what.join(", "),
            self.source.0,
            self.target.0,
            self.owner().0
        )
    }

    fn is_by_target(&self, map: &ShardMap) -> bool {
        let of_range = self.scope.ranges().first().and_then(|(from, _)| Bucket::new(*from, map.buckets()));
        let of_hash = self.scope.hashes().first().map(|hash| map.shard_of_hash(*hash));
        of_range.map(|bucket| map.shard_of(bucket)).or(of_hash) == Some(self.target)
    }
}

/// Which of the motions: one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mask(u64);

impl Mask {
    pub const NONE: Self = Self(0);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// All moves of one version of the catalog. Never empty where it is used: `Following::motions` is `None` then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Motions {
    pub version: u64,
    buckets: u16,
    list: Vec<Motion>,
    hidden: Vec<(ShardId, Hidden)>,
}

impl Motions {
    /// `rows` as the catalog has them, with what is not in it not set; `before` is what was served until now.
    /// `None`: nothing moves.
    pub fn new(
        version: u64,
        map: &ShardMap,
        mut rows: Vec<Motion>,
        before: Option<&Self>,
    ) -> Result<Option<Self>, String> {
        if rows.len() > MOTIONS_MAX {
            return Err(format!("{} moves at once, and may be {MOTIONS_MAX}", rows.len()));
        }
        for row in &mut rows {
            row.scope.fits(map.buckets()).map_err(|error| format!("move {}: {error}", row.move_id))?;
            row.by_target = row.is_by_target(map);
            let overrides = map.overrides().iter();
            let elsewhere = overrides.filter(|(_, shard)| ![row.source, row.target].contains(shard));
            let apart = elsewhere.map(|(hash, _)| *hash);
            row.apart = apart.filter(|hash| row.scope.contains_hash(*hash, map.buckets())).collect();
            let known = before.and_then(|before| before.list.iter().find(|m| m.move_id == row.move_id));
            row.since = known.map_or(version, |known| known.since);
            row.owner_since = match known {
                Some(known) if known.owner() == row.owner() => known.owner_since,
                None if !row.by_target => 0,
                _ => version,
            };
        }
        rows.sort_by_key(|row| row.move_id);
        if rows.is_empty() {
            return Ok(None);
        }
        let mut hidden: Vec<(ShardId, Hidden)> = Vec::new();
        for motion in &rows {
            let other = motion.other();
            // A single tenant that the map keeps there is no copy.
            let kept = map
                .overrides()
                .iter()
                .filter(|(hash, shard)| *shard == other && motion.scope.contains_hash(*hash, map.buckets()));
            let kept: Vec<KeyHash> = kept.map(|(hash, _)| *hash).collect();
            let part = (motion.scope.clone(), kept);
            match hidden.iter_mut().find(|(shard, _)| *shard == other) {
                Some((_, known)) => known.parts.push(part),
                None => hidden.push((other, Hidden { parts: vec![part], buckets: map.buckets() })),
            }
        }
        Ok(Some(Self { version, buckets: map.buckets(), list: rows, hidden }))
    }

    pub fn list(&self) -> &[Motion] {
        &self.list
    }

    pub fn buckets(&self) -> u16 {
        self.buckets
    }

    /// The motions that the key is a part of.
    pub fn of(&self, hash: KeyHash) -> Mask {
        let mut mask = 0;
        for (bit, motion) in self.list.iter().enumerate() {
            mask |= u64::from(motion.moves(hash, self.buckets)) << bit;
        }
        Mask(mask)
    }

    pub fn all(&self) -> Mask {
        Mask(u64::MAX >> (MOTIONS_MAX - self.list.len().clamp(1, MOTIONS_MAX)))
    }

    pub fn in_mask(&self, mask: Mask) -> impl Iterator<Item = &Motion> {
        self.list.iter().enumerate().filter(move |(bit, _)| mask.0 >> bit & 1 == 1).map(|(_, motion)| motion)
    }

    /// What statements over several shards must not see on this one.
    pub fn hidden_on(&self, shard: ShardId) -> Option<&Hidden> {
        self.hidden.iter().find(|(of, _)| *of == shard).map(|(_, hidden)| hidden)
    }
}

/// Rows that a shard has and does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// Scopes, each with the hashes of tenants that the shard owns all the same.
    parts: Vec<(Scope, Vec<KeyHash>)>,
    buckets: u16,
}

impl Hidden {
    /// True for a row that may be seen, false for all others. `key`: SQL text.
    pub fn shown(&self, key: &str, key_type: KeyType) -> String {
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|(scope, kept)| {
                let within = scope.sql(key, key_type, self.buckets);
                match Scope::new(&[], kept) {
                    Ok(kept) if !kept.is_empty() => {
                        format!("{within} AND NOT {}", kept.sql(key, key_type, self.buckets))
                    }
                    _ => within,
                }
            })
            .map(|part| format!("({part})"))
            .collect();
        // A row without a key belongs to no scope.
        format!("({}) IS NOT TRUE", parts.join(" OR "))
    }

    pub fn hides(&self, hash: KeyHash) -> bool {
        self.parts
            .iter()
            .any(|(scope, kept)| scope.contains_hash(hash, self.buckets) && !kept.contains(&hash))
    }
}

/// What a proxy follows beside its map. A part of `shared::State`.
#[derive(Debug, Clone, Default)]
pub struct Following {
    /// `shard_catalog.control.version`; 0 until it was read.
    pub version: u64,
    /// Of the map's epoch: no two maps of one epoch are taken for each other.
    pub map_id: Option<Arc<str>>,
    pub motions: Option<Arc<Motions>>,
    /// Maps that were served before, newest first.
    pub past: Vec<Arc<ShardMap>>,
    /// The last version that came with a change of owners of which no motion told: transactions from before it that touched
    /// they no longer know what cannot go on.
    pub blind: u64,
    /// The last version with which a move was over. A snapshot from before it may show rows that were deleted since, and of
    /// which no motion tells any more.
    pub over: u64,
}

impl Following {
    pub fn past_map(&self, epoch: u64) -> Option<&Arc<ShardMap>> {
        self.past.iter().find(|map| map.epoch() == epoch)
    }
}

/// The keys' owners that differ, as (bucket or tenant) -> new owner, are all told of by `motions`?
pub fn explained(before: &ShardMap, after: &ShardMap, motions: Option<&Motions>) -> bool {
    let told = |hash: KeyHash, single: bool| {
        motions.is_some_and(|motions| {
            motions.list.iter().any(|motion| {
                let owner = after.shard_of_hash(hash);
                let within = if single {
                    motion.scope.contains_hash(hash, motions.buckets)
                } else {
                    motion.scope.has_range_of(hash.bucket(motions.buckets))
                };
                motion.owner_since == motions.version && motion.owner() == owner && within
            })
        })
    };
    let mut buckets = before.owners().iter().zip(after.owners()).enumerate();
    let by_buckets =
        buckets.all(|(bucket, (old, new))| old == new || told(KeyHash::new(bucket as i64), false));
    let overrides = before.overrides().iter().chain(after.overrides());
    by_buckets
        && overrides
            .into_iter()
            .all(|(hash, _)| before.shard_of_hash(*hash) == after.shard_of_hash(*hash) || told(*hash, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn map() -> ShardMap {
        ShardMap::even(&[1, 2, 3, 4].map(ShardId), 16)
    }

    fn scope(ranges: &[(u16, u16)], hashes: &[i64]) -> Scope {
        Scope::new(ranges, &hashes.iter().copied().map(KeyHash::new).collect::<Vec<_>>()).expect("a scope")
    }

    fn row(move_id: i64, scope: Scope, source: u16, target: u16, stage: Stage) -> Motion {
        let (source, target) = (ShardId(source), ShardId(target));
        let (since, owner_since, by_target, apart) = (0, 0, false, Vec::new());
        Motion { move_id, scope, source, target, stage, since, owner_since, by_target, apart }
    }

    /// With the map that belongs to the stages.
    fn motions(version: u64, rows: &[Motion], before: Option<&Motions>) -> Motions {
        let mut map = map();
        for row in rows.iter().filter(|row| row.stage == Stage::Flipped) {
            let ids = [1, 2, 3, 4].map(ShardId);
            map = map.apply_scope(map.epoch(), &row.scope, row.source, row.target, &ids).expect("legal");
        }
        Motions::new(version, &map, rows.to_vec(), before).expect("well formed").expect("some")
    }

    #[test]
    fn the_shard_that_does_not_own_hides() {
        let mut one = row(7, scope(&[(0, 1)], &[]), 1, 3, Stage::Copying);
        let before = motions(2, &[one.clone()], None);
        assert!(before.hidden_on(ShardId(1)).is_none());
        let hidden = before.hidden_on(ShardId(3)).expect("copies");
        assert!(hidden.hides(KeyHash::new(17)) && !hidden.hides(KeyHash::new(18)));
        assert_eq!(
            hidden.shown("k", KeyType::Int8),
            "(((hashint8extended(k, 8816678312871386365) & 15) BETWEEN 0 AND 1)) IS NOT TRUE"
        );
        one.stage = Stage::Flipped;
        let after = motions(5, &[one.clone()], Some(&before));
        assert!(after.hidden_on(ShardId(3)).is_none() && after.hidden_on(ShardId(1)).is_some());
        assert_eq!((after.list()[0].since, after.list()[0].owner_since), (2, 5));
        // Held before it is taken back: the target still owns.
        let after_map = map()
            .apply_scope(1, &one.scope, ShardId(1), ShardId(3), &[1, 2, 3, 4].map(ShardId))
            .expect("legal");
        one.stage = Stage::Holding;
        let held =
            Motions::new(7, &after_map, vec![one.clone()], Some(&after)).expect("well formed").expect("some");
        assert!(held.hidden_on(ShardId(1)).is_some() && held.list()[0].owner_since == 5);
        one.stage = Stage::Copying;
        let back = motions(9, &[one], Some(&after));
        assert_eq!((back.list()[0].since, back.list()[0].owner_since), (2, 9));
    }

    #[test]
    fn a_tenant_that_lives_there_anyway_is_seen() {
        let map = map().with_overrides(&[(KeyHash::new(16), ShardId(3))]).expect("a map");
        let rows = vec![row(7, scope(&[(0, 1)], &[]), 1, 3, Stage::Copying)];
        let motions = Motions::new(1, &map, rows, None).expect("well formed").expect("some");
        let hidden = motions.hidden_on(ShardId(3)).expect("copies");
        assert!(hidden.hides(KeyHash::new(0)) && !hidden.hides(KeyHash::new(16)));
        assert_eq!(
            hidden.shown("k", KeyType::Int8),
            "(((hashint8extended(k, 8816678312871386365) & 15) BETWEEN 0 AND 1 \
             AND NOT hashint8extended(k, 8816678312871386365) = (16))) IS NOT TRUE"
        );
    }

    #[test]
    fn a_tenant_on_a_third_shard_does_not_move_with_its_bucket() {
        let (apart, moves) = (KeyHash::new(16), KeyHash::new(32));
        let rows = [row(7, scope(&[(0, 1)], &[]), 1, 3, Stage::Holding)];
        let with = |shard| {
            let map = map().with_overrides(&[(apart, ShardId(shard))]).expect("a map");
            Motions::new(2, &map, rows.to_vec(), None).expect("well formed").expect("some")
        };
        let motions = with(4);
        assert!(motions.of(apart).is_empty() && !motions.of(moves).is_empty());
        let touched = |hash| {
            let mut touch = super::super::Touch::default();
            touch.key(hash, 1, 1);
            touch.blocks(&motions).is_some()
        };
        assert!(!touched(apart) && touched(moves));
        assert!([1, 3].iter().all(|shard| !with(*shard).of(apart).is_empty()), "in doubt, it does");
    }

    #[test]
    fn masks() {
        let rows = [
            row(7, scope(&[(0, 1)], &[]), 1, 3, Stage::Copying),
            row(9, scope(&[], &[17, 5]), 1, 4, Stage::Holding),
        ];
        let all = motions(2, &rows, None);
        let moves = |mask| all.in_mask(mask).map(|m| m.move_id).collect::<Vec<_>>();
        assert_eq!(moves(all.of(KeyHash::new(17))), [7, 9]);
        assert_eq!(moves(all.of(KeyHash::new(5))), [9]);
        assert!(all.of(KeyHash::new(21)).is_empty());
        assert_eq!(moves(all.all()), [7, 9]);
        assert_eq!(
            all.list().iter().map(Motion::line).collect::<Vec<_>>(),
            [
                "move 7 (copying) of buckets 0-1 from shard 1 to shard 3 may concern it; shard 1 owns them",
                "move 9 (holding) of 2 tenants from shard 1 to shard 4 may concern it; shard 1 owns them"
            ]
        );
        assert_eq!(Motions::new(3, &map(), Vec::new(), Some(&all)), Ok(None));
        let many: Vec<Motion> =
            (0..65).map(|n| row(n, scope(&[(0, 1)], &[]), 1, 3, Stage::Copying)).collect();
        assert!(Motions::new(3, &map(), many.clone(), None).is_err());
        let most = motions(3, &many[..64], None);
        assert_eq!(most.in_mask(most.all()).count(), 64);
        let outside = vec![row(7, scope(&[(0, 16)], &[]), 1, 3, Stage::Copying)];
        assert!(Motions::new(3, &map(), outside, None).is_err());
    }

    #[test]
    fn a_change_of_which_no_motion_tells() {
        let ids = [1, 2, 3, 4].map(ShardId);
        let (one, three) = (ShardId(1), ShardId(3));
        let moved = scope(&[(0, 1)], &[]);
        let after = map().apply_scope(1, &moved, one, three, &ids).expect("legal");
        let before = motions(1, &[row(7, moved.clone(), 1, 3, Stage::Holding)], None);
        let flipped = motions(2, &[row(7, moved, 1, 3, Stage::Flipped)], Some(&before));
        assert!(explained(&map(), &after, Some(&flipped)));
        assert!(!explained(&map(), &after, None));
        assert!(!explained(&map(), &after, Some(&before)));
        let tenant = map().apply_scope(1, &scope(&[], &[18]), one, three, &ids).expect("legal");
        assert!(!explained(&map(), &tenant, Some(&flipped)));
        assert!(explained(&map(), &map(), None));
    }
}
