//! Bucket -> shard, and the few tenants that live elsewhere than their bucket. Looking up an owner is one array index
//! (and a search of the overrides, when there are any); everything else here is for building, printing and storing maps.

use std::collections::BTreeSet;

use crate::bucket::{Bucket, KeyHash};

/// Tenants that may live elsewhere than their bucket. More are better moved with their buckets.
pub const OVERRIDES_MAX: usize = 4096;

/// A shard's number as in the configuration file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Every bucket's owner at one epoch. Immutable: a change makes a new map with a higher epoch (`change`).
#[derive(Clone, PartialEq, Eq)]
pub struct ShardMap {
    epoch: u64,
    owners: Box<[ShardId]>,
    /// By hash; beats the bucket's owner.
    overrides: Box<[(KeyHash, ShardId)]>,
}

/// Why a list of ranges is not a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("the number of buckets is {0}, and must be a power of two from 2 to 32768")]
    Buckets(u16),
    #[error("buckets {0} to {1} are not a range within 0 to {last}", last = .2 - 1)]
    Range(u16, u16, u16),
    #[error("bucket {0} has two owners")]
    Twice(u16),
    #[error("bucket {0} has no owner")]
    Unowned(u16),
    #[error("shard 0 does not exist: shards are numbered from 1")]
    ShardZero,
    #[error("the tenant with hash {0} has two owners")]
    OverrideTwice(KeyHash),
    #[error("there are {0} overrides of single tenants, and may be {OVERRIDES_MAX}")]
    TooManyOverrides(usize),
}

/// The number of buckets a cluster may have: a power of two, since buckets are taken by mask.
pub const fn valid_bucket_count(buckets: u16) -> bool {
    buckets >= 2 && buckets.is_power_of_two()
}

impl ShardMap {
    /// The map of a new cluster, at epoch 1: shards own equal contiguous parts of the hash space in the order
    /// given, so that of four shards the first has the first quarter. Contiguous, because a predicate over a range
    /// of buckets is 30 times cheaper than one over a list.
    ///
    /// `shards` is not empty and `buckets` is valid: the configuration was validated.
    pub fn even(shards: &[ShardId], buckets: u16) -> Self {
        let weighted: Vec<_> = shards.iter().map(|&shard| (shard, 1)).collect();
        Self::weighted(&weighted, buckets)
    }

    /// As `even`, with parts in proportion to the weights. A shard of weight 0 owns nothing.
    pub fn weighted(shards: &[(ShardId, u32)], buckets: u16) -> Self {
        assert!(valid_bucket_count(buckets), "the number of buckets was validated");
        let total: u64 = shards.iter().map(|&(_, weight)| u64::from(weight)).sum();
        assert!(total > 0, "some shard has a weight");
        let mut owners = Vec::with_capacity(buckets.into());
        let mut passed = 0;
        for &(shard, weight) in shards {
            passed += u64::from(weight);
            // The border is where the weights so far would end in exact arithmetic, rounded down; so no shard is
            // off its share by a whole bucket.
            let border = u64::from(buckets) * passed / total;
            owners.resize(border as usize, shard);
        }
        Self { epoch: 1, owners: owners.into(), overrides: Box::default() }
    }

    /// A stored map. Ranges are inclusive and in any order; every bucket has exactly one owner.
    pub fn from_ranges(epoch: u64, buckets: u16, ranges: &[(u16, u16, ShardId)]) -> Result<Self, MapError> {
        if !valid_bucket_count(buckets) {
            return Err(MapError::Buckets(buckets));
        }
        let mut owners = vec![ShardId(0); buckets.into()];
        for &(from, to, shard) in ranges {
            if shard.0 == 0 {
                return Err(MapError::ShardZero);
            }
            if from > to || to >= buckets {
                return Err(MapError::Range(from, to, buckets));
            }
            for bucket in from..=to {
                let owner = &mut owners[usize::from(bucket)];
                if owner.0 != 0 {
                    return Err(MapError::Twice(bucket));
                }
                *owner = shard;
            }
        }
        match owners.iter().position(|owner| owner.0 == 0) {
            Some(bucket) => Err(MapError::Unowned(bucket as u16)),
            None => Ok(Self { epoch, owners: owners.into(), overrides: Box::default() }),
        }
    }

    /// The same map with these overrides, in any order, in place of its own.
    pub fn with_overrides(mut self, overrides: &[(KeyHash, ShardId)]) -> Result<Self, MapError> {
        if overrides.len() > OVERRIDES_MAX {
            return Err(MapError::TooManyOverrides(overrides.len()));
        }
        let mut overrides = overrides.to_vec();
        overrides.sort_unstable();
        if let Some(pair) = overrides.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(MapError::OverrideTwice(pair[0].0));
        }
        if overrides.iter().any(|(_, shard)| shard.0 == 0) {
            return Err(MapError::ShardZero);
        }
        self.overrides = overrides.into();
        Ok(self)
    }

    pub(crate) fn with_owners(epoch: u64, owners: Box<[ShardId]>) -> Self {
        Self { epoch, owners, overrides: Box::default() }
    }

    /// Where the key with this hash lives.
    #[inline]
    pub fn shard_of_hash(&self, hash: KeyHash) -> ShardId {
        if !self.overrides.is_empty()
            && let Ok(at) = self.overrides.binary_search_by_key(&hash, |(known, _)| *known)
        {
            return self.overrides[at].1;
        }
        self.shard_of(hash.bucket(self.buckets()))
    }

    /// Tenants that live elsewhere than their bucket, by hash.
    pub fn overrides(&self) -> &[(KeyHash, ShardId)] {
        &self.overrides
    }

    /// The owner of the bucket, whatever single tenants of it live elsewhere. `bucket` comes from this map's number of
    /// buckets.
    #[inline]
    pub fn shard_of(&self, bucket: Bucket) -> ShardId {
        self.owners[usize::from(bucket.get())]
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn buckets(&self) -> u16 {
        self.owners.len() as u16
    }

    /// Owner of each bucket, by bucket.
    pub fn owners(&self) -> &[ShardId] {
        &self.owners
    }

    /// Contiguous ranges, both ends inclusive, ascending, as few as possible.
    pub fn ranges(&self) -> Vec<(u16, u16, ShardId)> {
        let mut ranges: Vec<(u16, u16, ShardId)> = Vec::new();
        for (bucket, &shard) in self.owners.iter().enumerate() {
            let bucket = bucket as u16;
            match ranges.last_mut() {
                Some((_, to, owner)) if *owner == shard => *to = bucket,
                _ => ranges.push((bucket, bucket, shard)),
            }
        }
        ranges
    }

    /// Shards that own at least one bucket or a single tenant, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        let single = self.overrides.iter().map(|(_, shard)| *shard);
        self.owners.iter().copied().chain(single).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many buckets `shard` owns.
    pub fn count(&self, shard: ShardId) -> u16 {
        self.owners.iter().filter(|&&owner| owner == shard).count() as u16
    }
}

/// By ranges: 4096 owners in a log line help nobody.
impl std::fmt::Debug for ShardMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardMap(epoch {}", self.epoch)?;
        for (from, to, shard) in self.ranges() {
            write!(f, ", {from}..={to} -> {shard}")?;
        }
        for (hash, shard) in &self.overrides {
            write!(f, ", tenant {hash} -> {shard}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(n: u16) -> Vec<ShardId> {
        (1..=n).map(ShardId).collect()
    }

    #[test]
    fn four_shards_own_a_quarter_each() {
        let map = ShardMap::even(&ids(4), 4096);
        assert_eq!(
            map.ranges(),
            [
                (0, 1023, ShardId(1)),
                (1024, 2047, ShardId(2)),
                (2048, 3071, ShardId(3)),
                (3072, 4095, ShardId(4))
            ]
        );
        assert_eq!(map.epoch(), 1);
    }

    #[test]
    fn a_list_of_ranges_with_a_gap_or_an_overlap_is_no_map() {
        let check = |ranges: &[(u16, u16, ShardId)], error| {
            assert_eq!(ShardMap::from_ranges(1, 16, ranges), Err(error));
        };
        check(&[(0, 14, ShardId(1))], MapError::Unowned(15));
        check(&[(0, 8, ShardId(1)), (8, 15, ShardId(2))], MapError::Twice(8));
        check(&[(0, 16, ShardId(1))], MapError::Range(0, 16, 16));
        check(&[(3, 2, ShardId(1))], MapError::Range(3, 2, 16));
        check(&[(0, 15, ShardId(0))], MapError::ShardZero);
        assert_eq!(ShardMap::from_ranges(1, 12, &[]), Err(MapError::Buckets(12)));
    }

    #[test]
    fn an_override_beats_the_bucket_and_nothing_else() {
        let hash = KeyHash::new(-3467891652331307802);
        let map = ShardMap::even(&ids(4), 4096);
        assert_eq!((hash.bucket(4096).get(), map.shard_of_hash(hash)), (3302, ShardId(4)));
        let map = map.with_overrides(&[(KeyHash::new(7), ShardId(1)), (hash, ShardId(5))]).unwrap();
        assert_eq!(map.shard_of_hash(hash), ShardId(5));
        assert_eq!(
            map.shard_of_hash(KeyHash::new(hash.get() ^ (1 << 40))),
            ShardId(4),
            "its neighbour stays"
        );
        assert_eq!(map.shards(), ids(5));
        let twice = [(hash, ShardId(1)), (hash, ShardId(2))];
        assert_eq!(map.clone().with_overrides(&twice), Err(MapError::OverrideTwice(hash)));
        assert_eq!(map.with_overrides(&[(hash, ShardId(0))]), Err(MapError::ShardZero));
    }

    proptest! {
        #[test]
        fn without_overrides_a_hash_is_where_its_bucket_is(hash: i64, owners in prop::collection::vec(1u16..6, 64)) {
            let map = ShardMap::with_owners(1, owners.into_iter().map(ShardId).collect());
            let hash = KeyHash::new(hash);
            prop_assert_eq!(map.shard_of_hash(hash), map.shard_of(hash.bucket(64)));
            let map = map.with_overrides(&[(hash, ShardId(9))]).unwrap();
            prop_assert_eq!(map.shard_of_hash(hash), ShardId(9));
        }

        #[test]
        fn ranges_round_trip(owners in prop::collection::vec(1u16..6, 64), epoch in 1u64..) {
            let owners: Box<[ShardId]> = owners.into_iter().map(ShardId).collect();
            let map = ShardMap::with_owners(epoch, owners);
            let ranges = map.ranges();
            prop_assert!(ranges.windows(2).all(|w| w[0].1 + 1 == w[1].0 && w[0].2 != w[1].2));
            prop_assert_eq!(ShardMap::from_ranges(epoch, 64, &ranges), Ok(map));
        }

        #[test]
        fn weighted_parts_are_within_one_bucket_of_their_share(
            weights in prop::collection::vec(0u32..9, 1..9).prop_filter("some weight", |w| w.iter().any(|&w| w > 0)),
        ) {
            let shards: Vec<_> = (1..).map(ShardId).zip(weights.iter().copied()).collect();
            let total: u32 = weights.iter().sum();
            let map = ShardMap::weighted(&shards, 4096);
            prop_assert_eq!(map.buckets(), 4096);
            for (shard, weight) in shards {
                let share = 4096.0 * f64::from(weight) / f64::from(total);
                prop_assert!((f64::from(map.count(shard)) - share).abs() < 1.0);
            }
        }
    }
}
