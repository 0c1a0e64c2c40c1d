//! The only ways in which a map becomes another one: moves of buckets or of single tenants from their owner, one epoch later. Whoever
//! stores or receives a map asks here, so that an old map, or one of another cluster, is never followed.

use crate::bucket::KeyHash;
use crate::map::{MapError, ShardId, ShardMap};
use crate::scope::Scope;

/// A contiguous range of buckets, both ends inclusive, all owned by `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub from: u16,
    pub to: u16,
    pub source: ShardId,
    pub target: ShardId,
}

impl Move {
    /// How many buckets move.
    pub fn len(&self) -> u16 {
        self.to - self.from + 1
    }

    /// Never true of a legal move; here because clippy wants it beside `len`.
    pub fn is_empty(&self) -> bool {
        self.from > self.to
    }
}

impl std::fmt::Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "buckets {} to {} from shard {} to shard {}", self.from, self.to, self.source, self.target)
    }
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("the map is at epoch {actual}, the change was planned at epoch {planned}: plan again")]
    Stale { planned: u64, actual: u64 },
    #[error("there is nothing to move")]
    Nothing,
    #[error("buckets {0} to {1} are not a range of this map")]
    Range(u16, u16),
    #[error("bucket {bucket} is on shard {owner}, not on shard {source_shard}")]
    NotTheOwner { bucket: u16, owner: ShardId, source_shard: ShardId },
    #[error("shard {0} is both source and target")]
    SameShard(ShardId),
    #[error("shard {0} is not configured")]
    UnknownShard(ShardId),
    #[error("two maps claim epoch {0}")]
    Fork(u64),
    #[error("the map has {offered} buckets, this cluster has {ours}: it is another cluster's")]
    Buckets { ours: u16, offered: u16 },
    #[error("there is no epoch after {0}")]
    LastEpoch(u64),
    #[error("the tenant with hash {hash} is on shard {owner}, not on shard {source_shard}")]
    NotTheTenantsOwner { hash: KeyHash, owner: ShardId, source_shard: ShardId },
    #[error(
        "the tenant with hash {hash} of bucket {bucket} is kept on shard {shard}: move it by itself first"
    )]
    Pinned { hash: KeyHash, bucket: u16, shard: ShardId },
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What to do with a map that somebody offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is the one in use.
    Same,
    /// Use it from now on.
    Newer,
    /// It is history; keep the one in use.
    Older,
}

impl ShardMap {
    /// The map after `moves`, at the next epoch. `planned` is the epoch that the plan was made for; `shards` are
    /// the configured ones.
    pub fn apply(&self, planned: u64, moves: &[Move], shards: &[ShardId]) -> Result<Self, ChangeError> {
        if planned != self.epoch() {
            return Err(ChangeError::Stale { planned, actual: self.epoch() });
        }
        if moves.is_empty() {
            return Err(ChangeError::Nothing);
        }
        let mut owners: Box<[ShardId]> = self.owners().into();
        for one in moves {
            if one.source == one.target {
                return Err(ChangeError::SameShard(one.source));
            }
            if !shards.contains(&one.target) {
                return Err(ChangeError::UnknownShard(one.target));
            }
            let range = usize::from(one.from)..usize::from(one.to) + 1;
            let Some(part) = owners.get_mut(range).filter(|part| !part.is_empty()) else {
                return Err(ChangeError::Range(one.from, one.to));
            };
            for (bucket, owner) in (one.from..).zip(part) {
                // Also refuses a bucket that two moves name, since the first has changed its owner.
                if *owner != one.source {
                    return Err(ChangeError::NotTheOwner { bucket, owner: *owner, source_shard: one.source });
                }
                *owner = one.target;
            }
        }
        let epoch = planned.checked_add(1).ok_or(ChangeError::LastEpoch(planned))?;
        // Tenants that live elsewhere stay where they are.
        Ok(Self::with_owners(epoch, owners).with_overrides(self.overrides())?)
    }

    /// The map after everything in `scope` has moved from `source` to `target`, at the next epoch.
    ///
    /// A tenant that is kept on one of the two shards while its bucket moves between them is refused: its rows are among
    /// those that the scope's predicate names, and must neither be copied nor removed with them.
    pub fn apply_scope(
        &self,
        planned: u64,
        scope: &Scope,
        source: ShardId,
        target: ShardId,
        shards: &[ShardId],
    ) -> Result<Self, ChangeError> {
        if planned != self.epoch() {
            return Err(ChangeError::Stale { planned, actual: self.epoch() });
        }
        if source == target {
            return Err(ChangeError::SameShard(source));
        }
        if !shards.contains(&target) {
            return Err(ChangeError::UnknownShard(target));
        }
        let moves: Vec<Move> =
            scope.ranges().iter().map(|&(from, to)| Move { from, to, source, target }).collect();
        let buckets = self.buckets();
        for &(hash, shard) in self.overrides() {
            let bucket = hash.bucket(buckets);
            if scope.has_range_of(bucket) && (shard == source || shard == target) {
                return Err(ChangeError::Pinned { hash, bucket: bucket.get(), shard });
            }
        }
        let mut after = match moves.as_slice() {
            [] if scope.hashes().is_empty() => return Err(ChangeError::Nothing),
            [] => {
                let epoch = planned.checked_add(1).ok_or(ChangeError::LastEpoch(planned))?;
                Self::with_owners(epoch, self.owners().into()).with_overrides(self.overrides())?
            }
            moves => self.apply(planned, moves, shards)?,
        };
        let mut overrides = self.overrides().to_vec();
        for &hash in scope.hashes() {
            let owner = self.shard_of_hash(hash);
            if owner != source {
                return Err(ChangeError::NotTheTenantsOwner { hash, owner, source_shard: source });
            }
            overrides.retain(|(known, _)| *known != hash);
            // Back where its bucket is, it is a tenant like any other.
            if after.shard_of(hash.bucket(buckets)) != target {
                overrides.push((hash, target));
            }
        }
        after = after.with_overrides(&overrides)?;
        Ok(after)
    }

    /// Whether to follow `offered`, which came from the catalog or from another proxy. The epoch decides, and two
    /// different maps of one epoch are an alarm, never a choice.
    pub fn consider(&self, offered: &Self) -> Result<Offer, ChangeError> {
        if offered.buckets() != self.buckets() {
            return Err(ChangeError::Buckets { ours: self.buckets(), offered: offered.buckets() });
        }
        match offered.epoch().cmp(&self.epoch()) {
            std::cmp::Ordering::Less => Ok(Offer::Older),
            std::cmp::Ordering::Greater => Ok(Offer::Newer),
            std::cmp::Ordering::Equal if offered == self => Ok(Offer::Same),
            std::cmp::Ordering::Equal => Err(ChangeError::Fork(self.epoch())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: [ShardId; 4] = [ShardId(1), ShardId(2), ShardId(3), ShardId(4)];

    fn map() -> ShardMap {
        ShardMap::even(&SHARDS[..2], 16)
    }

    fn one(from: u16, to: u16, source: u16, target: u16) -> Move {
        Move { from, to, source: ShardId(source), target: ShardId(target) }
    }

    #[test]
    fn a_move_changes_the_owner_and_the_epoch() {
        let after = map().apply(1, &[one(6, 7, 1, 3), one(8, 8, 2, 3)], &SHARDS).unwrap();
        assert_eq!(after.epoch(), 2);
        assert_eq!(after.ranges(), [(0, 5, ShardId(1)), (6, 8, ShardId(3)), (9, 15, ShardId(2))]);
        assert_eq!(map().consider(&after), Ok(Offer::Newer));
        assert_eq!(after.consider(&map()), Ok(Offer::Older));
        assert_eq!(after.consider(&after.clone()), Ok(Offer::Same));
    }

    #[test]
    fn illegal_changes_are_refused() {
        let check =
            |planned, moves: &[Move], error| assert_eq!(map().apply(planned, moves, &SHARDS), Err(error));
        check(2, &[one(0, 1, 1, 2)], ChangeError::Stale { planned: 2, actual: 1 });
        check(1, &[], ChangeError::Nothing);
        check(1, &[one(0, 1, 1, 1)], ChangeError::SameShard(ShardId(1)));
        check(1, &[one(0, 1, 1, 9)], ChangeError::UnknownShard(ShardId(9)));
        check(1, &[one(0, 16, 1, 2)], ChangeError::Range(0, 16));
        check(1, &[one(3, 2, 1, 2)], ChangeError::Range(3, 2));
        check(1, &[one(5, 2, 1, 2)], ChangeError::Range(5, 2));
        let twice = ChangeError::NotTheOwner { bucket: 1, owner: ShardId(3), source_shard: ShardId(1) };
        check(1, &[one(0, 1, 1, 3), one(1, 2, 1, 3)], twice);
        let foreign = ChangeError::NotTheOwner { bucket: 8, owner: ShardId(2), source_shard: ShardId(1) };
        check(1, &[one(7, 8, 1, 3)], foreign);
    }

    #[test]
    fn a_tenant_moves_alone_and_back() {
        let scope = |ranges: &[(u16, u16)], hashes: &[i64]| {
            Scope::new(ranges, &hashes.iter().copied().map(KeyHash::new).collect::<Vec<_>>()).unwrap()
        };
        let (one, two, three) = (ShardId(1), ShardId(2), ShardId(3));
        // Of 16 buckets: hash 35 is in bucket 3 of shard 1.
        let alone = scope(&[], &[35]);
        let after = map().apply_scope(1, &alone, one, three, &SHARDS).unwrap();
        assert_eq!((after.epoch(), after.overrides()), (2, &[(KeyHash::new(35), three)][..]));
        assert_eq!(after.ranges(), map().ranges());
        assert_eq!(map().consider(&after), Ok(Offer::Newer));
        // Its bucket moves between other shards, and it stays.
        let moved = after.apply_scope(2, &scope(&[(2, 4)], &[]), one, two, &SHARDS).unwrap();
        assert_eq!(
            (moved.shard_of_hash(KeyHash::new(35)), moved.shard_of_hash(KeyHash::new(19))),
            (three, two)
        );
        let pinned = ChangeError::Pinned { hash: KeyHash::new(35), bucket: 3, shard: three };
        assert_eq!(after.apply_scope(2, &scope(&[(2, 4)], &[]), one, three, &SHARDS), Err(pinned));
        let back = moved.apply_scope(3, &alone, three, two, &SHARDS).unwrap();
        assert_eq!(back.overrides(), []);
        let foreign =
            ChangeError::NotTheTenantsOwner { hash: KeyHash::new(35), owner: three, source_shard: one };
        assert_eq!(moved.apply_scope(3, &alone, one, two, &SHARDS), Err(foreign));
        // As `apply`, for ranges.
        let ranges = map().apply_scope(1, &scope(&[(6, 7)], &[]), one, three, &SHARDS).unwrap();
        assert_eq!(
            ranges,
            map().apply(1, &[Move { from: 6, to: 7, source: one, target: three }], &SHARDS).unwrap()
        );
        assert_eq!(map().apply_scope(1, &scope(&[], &[]), one, three, &SHARDS), Err(ChangeError::Nothing));
    }

    #[test]
    fn two_maps_of_one_epoch_are_an_alarm() {
        let other = ShardMap::even(&SHARDS, 16);
        assert_eq!(map().consider(&other), Err(ChangeError::Fork(1)));
        let elsewhere = ShardMap::even(&SHARDS, 32);
        assert_eq!(map().consider(&elsewhere), Err(ChangeError::Buckets { ours: 16, offered: 32 }));
    }
}
