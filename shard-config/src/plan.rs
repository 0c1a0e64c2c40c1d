//! What to move to get from one map to a better one. PURE: given a map and figures, returns steps; who executes them one by
//! one asks again before each whether the map is still the one that was planned for.
//!
//! A step is everything that goes from one shard to another, as few ranges as possible. Nobody both gives and receives.

use std::collections::{BTreeMap, BTreeSet};

use crate::assign;
use crate::bucket::KeyHash;
use crate::map::{ShardId, ShardMap};
use crate::ranges;

/// Rows of one pair of shards that move together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub source: ShardId,
    pub target: ShardId,
    /// Inclusive, ascending, apart from each other.
    pub ranges: Vec<(u16, u16)>,
    /// Single tenants, by the full hash of their key.
    pub hashes: Vec<KeyHash>,
}

impl Step {
    /// How many whole buckets it moves.
    pub fn buckets(&self) -> u32 {
        self.ranges.iter().map(|(from, to)| u32::from(to - from) + 1).sum()
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("there is no shard {0} in the configuration")]
    UnknownShard(ShardId),
    #[error("buckets {0} to {1} are not a range of this map's {2} buckets")]
    Range(u16, u16, u16),
    #[error("no other shard has a weight, so nobody can take what shard {0} has")]
    Nobody(ShardId),
    #[error("{given} figures for {buckets} buckets")]
    Figures { given: usize, buckets: u16 },
    #[error("the tenant is on shard {0} already")]
    There(ShardId),
}

/// The map with the tenants that live elsewhere than their bucket.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    pub map: &'a ShardMap,
    pub pinned: &'a [(KeyHash, ShardId)],
}

impl Placed<'_> {
    fn bucket_of(&self, hash: KeyHash) -> u16 {
        hash.bucket(self.map.buckets()).get()
    }

    /// A bucket stays where it is if one of its tenants is pinned to the shard that gives or the one that takes: rows of
    /// that tenant would be taken for rows of the bucket.
    fn stays(&self, bucket: u16, source: ShardId, target: ShardId) -> bool {
        self.pinned
            .iter()
            .any(|&(hash, shard)| self.bucket_of(hash) == bucket && (shard == source || shard == target))
    }

    fn owner(&self, bucket: u16) -> ShardId {
        self.map.owners()[usize::from(bucket)]
    }

    /// One step a pair of shards.
    fn steps(&self, moves: impl IntoIterator<Item = (u16, ShardId)>) -> Vec<Step> {
        let mut pairs: BTreeMap<(ShardId, ShardId), BTreeSet<u16>> = BTreeMap::new();
        for (bucket, target) in moves {
            let source = self.owner(bucket);
            if source != target && !self.stays(bucket, source, target) {
                pairs.entry((source, target)).or_default().insert(bucket);
            }
        }
        let step = |((source, target), buckets)| Step {
            source,
            target,
            ranges: ranges::of(buckets),
            hashes: Vec::new(),
        };
        pairs.into_iter().map(step).collect()
    }
}

/// These buckets to that shard, from wherever they are. Ranges may be given in any order, and overlap.
pub fn buckets(placed: Placed<'_>, wanted: &[(u16, u16)], target: ShardId) -> Result<Vec<Step>, PlanError> {
    let all = placed.map.buckets();
    if let Some(&(from, to)) = wanted.iter().find(|(from, to)| from > to || *to >= all) {
        return Err(PlanError::Range(from, to, all));
    }
    Ok(placed.steps(wanted.iter().flat_map(|&(from, to)| from..=to).map(|bucket| (bucket, target))))
}

/// Numbers of buckets in proportion to the weights, moving as few as possible. A shard of weight 0 is emptied.
pub fn rebalance(placed: Placed<'_>, weights: &[(ShardId, u32)]) -> Result<Vec<Step>, PlanError> {
    known(placed.map, weights)?;
    if weights.iter().all(|(_, weight)| *weight == 0) {
        return Err(PlanError::Nobody(weights.first().map_or(ShardId(0), |(shard, _)| *shard)));
    }
    let moves = assign::rebalance(placed.map, weights);
    Ok(placed.steps(moves.iter().flat_map(|one| (one.from..=one.to).map(|bucket| (bucket, one.target)))))
}

fn known(map: &ShardMap, weights: &[(ShardId, u32)]) -> Result<(), PlanError> {
    let unknown = map.shards().into_iter().find(|shard| !weights.iter().any(|(known, _)| known == shard));
    unknown.map_or(Ok(()), |shard| Err(PlanError::UnknownShard(shard)))
}

/// Everything of one shard to the others, in proportion to what they lack of their weighted share; nothing else moves.
pub fn drain(placed: Placed<'_>, shard: ShardId, weights: &[(ShardId, u32)]) -> Result<Vec<Step>, PlanError> {
    known(placed.map, weights)?;
    let load = vec![1; usize::from(placed.map.buckets())];
    let weights: Vec<_> =
        weights.iter().map(|&(id, weight)| (id, if id == shard { 0 } else { weight })).collect();
    if weights.iter().all(|(_, weight)| *weight == 0) {
        return Err(PlanError::Nobody(shard));
    }
    let mut moved = give(placed, &weights, &load, &[shard], 0);
    // Pinned tenants of other buckets live here, too.
    let mut hashes: BTreeMap<ShardId, Vec<KeyHash>> = BTreeMap::new();
    for &(hash, owner) in placed.pinned.iter().filter(|(_, owner)| *owner == shard) {
        let bucket = placed.bucket_of(hash);
        let home = moved.get(&bucket).copied().unwrap_or_else(|| placed.owner(bucket));
        if home != owner {
            hashes.entry(home).or_default().push(hash);
        }
    }
    moved.retain(|bucket, target| placed.owner(*bucket) != *target);
    let mut steps: Vec<Step> = hashes
        .into_iter()
        .map(|(target, hashes)| Step { source: shard, target, ranges: Vec::new(), hashes })
        .collect();
    steps.extend(placed.steps(moved));
    Ok(steps)
}

/// Load in proportion to the weights. `load` has one figure a bucket (rows, bytes, statements a second). Shards within
/// `tolerance` per cent of their share keep what they have, so that a plan of a balanced system is empty.
pub fn by_load(
    placed: Placed<'_>,
    weights: &[(ShardId, u32)],
    load: &[u64],
    tolerance: u32,
) -> Result<Vec<Step>, PlanError> {
    known(placed.map, weights)?;
    if load.len() != usize::from(placed.map.buckets()) {
        return Err(PlanError::Figures { given: load.len(), buckets: placed.map.buckets() });
    }
    if weights.iter().all(|(_, weight)| *weight == 0) {
        return Err(PlanError::Nobody(weights.first().map_or(ShardId(0), |(shard, _)| *shard)));
    }
    let givers = placed.map.shards();
    Ok(placed.steps(give(placed, weights, load, &givers, tolerance)))
}

/// A tenant to a shard of its choice; its bucket stays.
pub fn isolate(placed: Placed<'_>, hash: KeyHash, target: ShardId) -> Result<Vec<Step>, PlanError> {
    let pinned = placed.pinned.iter().find(|(known, _)| *known == hash).map(|(_, shard)| *shard);
    let source = pinned.unwrap_or_else(|| placed.owner(placed.bucket_of(hash)));
    if source == target {
        return Err(PlanError::There(target));
    }
    Ok(vec![Step { source, target, ranges: Vec::new(), hashes: vec![hash] }])
}

/// Steps of at most so many buckets each: a smaller step copies, fences and can be undone by itself.
pub fn split(steps: Vec<Step>, most: u16) -> Vec<Step> {
    let most = most.max(1);
    let mut parts = Vec::new();
    for step in steps {
        let all: Vec<u16> = step.ranges.iter().flat_map(|&(from, to)| from..=to).collect();
        for part in all.chunks(usize::from(most)) {
            parts.push(Step { ranges: ranges::of(part.iter().copied()), hashes: Vec::new(), ..step.clone() });
        }
        if !step.hashes.is_empty() {
            parts.push(Step { ranges: Vec::new(), ..step });
        }
    }
    parts
}

/// Buckets that `givers` give, and to whom: from the ends of their ranges, each to the shard that lacks most, and the same
/// one as the bucket before it as long as it lacks anything.
fn give(
    placed: Placed<'_>,
    weights: &[(ShardId, u32)],
    load: &[u64],
    givers: &[ShardId],
    tolerance: u32,
) -> BTreeMap<u16, ShardId> {
    let map = placed.map;
    let total: u128 = load.iter().map(|figure| u128::from(*figure)).sum();
    let weight_sum: u128 = weights.iter().map(|(_, weight)| u128::from(*weight)).sum::<u128>().max(1);
    let has = |shard: ShardId| -> u128 {
        map.owners()
            .iter()
            .zip(load)
            .filter(|(owner, _)| **owner == shard)
            .map(|(_, figure)| u128::from(*figure))
            .sum()
    };
    // Above its share, and below: signed, in units of load.
    let mut balance: BTreeMap<ShardId, i128> = weights
        .iter()
        .map(|&(shard, weight)| {
            (shard, has(shard) as i128 - (total * u128::from(weight) / weight_sum) as i128)
        })
        .collect();
    let share = |shard: ShardId| {
        let weight = weights.iter().find(|(id, _)| *id == shard).map_or(0, |(_, weight)| *weight);
        (total * u128::from(weight) / weight_sum) as i128
    };
    let mut moved = BTreeMap::new();
    let mut gave: BTreeSet<ShardId> = BTreeSet::new();
    for &giver in givers {
        // Who took something keeps it: to pass other buckets on would move more for less.
        if moved.values().any(|target| *target == giver) {
            continue;
        }
        let emptied = weights.iter().any(|&(id, weight)| id == giver && weight == 0);
        let slack = share(giver) * i128::from(tolerance) / 100;
        if !emptied && balance.get(&giver).is_none_or(|over| *over <= slack) {
            continue;
        }
        let mut last: Option<ShardId> = None;
        for (low, high, _) in map.ranges().into_iter().rev().filter(|(_, _, owner)| *owner == giver) {
            for bucket in (low..=high).rev() {
                let figure = i128::from(load[usize::from(bucket)]);
                let over = balance.get(&giver).copied().unwrap_or(0);
                // To move what weighs nothing brings nobody closer to a share; only who is emptied gives it, too.
                if !emptied && figure == 0 {
                    continue;
                }
                // Half a bucket too much is closer to the share than half a bucket too little.
                if !emptied && over * 2 < figure {
                    break;
                }
                let lacks = |shard: &ShardId| balance.get(shard).copied().unwrap_or(0);
                let may = |shard: &ShardId| {
                    *shard != giver
                        && !gave.contains(shard)
                        && weights.iter().any(|(id, weight)| id == shard && *weight > 0)
                        && !placed.stays(bucket, giver, *shard)
                };
                let neediest = balance.keys().copied().filter(may).min_by_key(|shard| (lacks(shard), *shard));
                let same = last.filter(|shard| may(shard) && lacks(shard) + figure <= 0);
                let Some(target) = same.or(neediest) else { continue };
                // A bucket that would leave the taker worse off than the giver is helps nobody.
                if !emptied && lacks(&target) + figure > over {
                    continue;
                }
                last = Some(target);
                gave.insert(giver);
                moved.insert(bucket, target);
                *balance.entry(target).or_default() += figure;
                *balance.entry(giver).or_default() -= figure;
            }
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(n: u16) -> Vec<ShardId> {
        (1..=n).map(ShardId).collect()
    }

    fn even(n: u16) -> Vec<(ShardId, u32)> {
        ids(n).into_iter().map(|id| (id, 1)).collect()
    }

    fn placed(map: &ShardMap) -> Placed<'_> {
        Placed { map, pinned: &[] }
    }

    fn step(source: u16, target: u16, ranges: &[(u16, u16)]) -> Step {
        Step { source: ShardId(source), target: ShardId(target), ranges: ranges.to_vec(), hashes: Vec::new() }
    }

    fn owners(map: &ShardMap, steps: &[Step]) -> Vec<ShardId> {
        let mut owners = map.owners().to_vec();
        for step in steps {
            for bucket in step.ranges.iter().flat_map(|&(from, to)| from..=to) {
                let owner = &mut owners[usize::from(bucket)];
                assert_eq!(*owner, step.source, "bucket {bucket} moves from its owner, once");
                *owner = step.target;
            }
        }
        owners
    }

    #[test]
    fn buckets_come_from_wherever_they_are() {
        let map = ShardMap::even(&ids(2), 16);
        assert_eq!(
            buckets(placed(&map), &[(6, 9)], ShardId(3)).unwrap(),
            [step(1, 3, &[(6, 7)]), step(2, 3, &[(8, 9)])]
        );
        assert_eq!(buckets(placed(&map), &[(6, 9)], ShardId(1)).unwrap(), [step(2, 1, &[(8, 9)])]);
        // Any set of them, in any order.
        assert_eq!(
            buckets(placed(&map), &[(12, 15), (2, 3), (13, 14), (0, 1), (6, 6)], ShardId(3)).unwrap(),
            [step(1, 3, &[(0, 3), (6, 6)]), step(2, 3, &[(12, 15)])]
        );
        for wrong in [(9, 16), (4, 3)] {
            let error = PlanError::Range(wrong.0, wrong.1, 16);
            assert_eq!(buckets(placed(&map), &[(0, 1), wrong], ShardId(1)), Err(error));
        }
    }

    #[test]
    fn a_drained_shard_is_empty_and_nothing_else_moves() {
        let map = ShardMap::even(&ids(4), 16);
        let steps = drain(placed(&map), ShardId(2), &even(4)).unwrap();
        assert!(steps.iter().all(|step| step.source == ShardId(2)), "{steps:?}");
        let after = owners(&map, &steps);
        assert!(!after.contains(&ShardId(2)));
        for shard in [1, 3, 4] {
            let count = after.iter().filter(|owner| **owner == ShardId(shard)).count();
            assert!((5..=6).contains(&count), "{steps:?}");
        }
        assert_eq!(
            drain(placed(&map), ShardId(2), &[(ShardId(2), 1)]),
            Err(PlanError::UnknownShard(ShardId(1)))
        );
        let only: Vec<_> = ids(4).into_iter().map(|id| (id, u32::from(id.0 == 2))).collect();
        assert_eq!(drain(placed(&map), ShardId(2), &only), Err(PlanError::Nobody(ShardId(2))));
    }

    #[test]
    fn a_fifth_shard_gets_its_fifth() {
        let map = ShardMap::even(&ids(4), 4096);
        let steps = rebalance(placed(&map), &even(5)).unwrap();
        assert_eq!(steps.len(), 4);
        assert!(steps.iter().all(|step| step.target == ShardId(5) && step.ranges.len() == 1));
        assert_eq!(steps.iter().map(Step::buckets).sum::<u32>(), 819);
        let parts = split(steps, 100);
        assert!(parts.iter().all(|step| step.buckets() <= 100));
        assert_eq!(parts.iter().map(Step::buckets).sum::<u32>(), 819);
    }

    #[test]
    fn a_tenant_is_isolated_and_pinned_buckets_stay() {
        let map = ShardMap::even(&ids(2), 16);
        let steps = isolate(placed(&map), KeyHash::new(18), ShardId(2)).unwrap();
        assert_eq!(steps, [Step { hashes: vec![KeyHash::new(18)], ..step(1, 2, &[]) }]);
        assert_eq!(isolate(placed(&map), KeyHash::new(18), ShardId(1)), Err(PlanError::There(ShardId(1))));
        let pinned = [(KeyHash::new(18), ShardId(2))];
        let placed = Placed { map: &map, pinned: &pinned };
        assert_eq!(isolate(placed, KeyHash::new(18), ShardId(1)).unwrap()[0].source, ShardId(2));
        let steps = buckets(placed, &[(0, 7)], ShardId(2)).unwrap();
        assert_eq!(steps, [step(1, 2, &[(0, 1), (3, 7)])], "bucket 2 has rows on shard 2 already");
        assert_eq!(buckets(placed, &[(0, 7)], ShardId(3)).unwrap(), [step(1, 3, &[(0, 7)])]);
        // The shard of a pinned tenant is drained of the tenant, too.
        let drained = drain(placed, ShardId(2), &even(2)).unwrap();
        assert_eq!(drained[0], Step { hashes: vec![KeyHash::new(18)], ..step(2, 1, &[]) });
    }

    #[test]
    fn one_hot_bucket_moves_alone() {
        let map = ShardMap::even(&ids(2), 16);
        let mut load = vec![10; 16];
        (load[7], load[6]) = (60, 50);
        let steps = by_load(placed(&map), &even(2), &load, 5).unwrap();
        assert_eq!(steps, [step(1, 2, &[(7, 7)])]);
        assert_eq!(by_load(placed(&map), &even(2), &[1; 16], 0).unwrap(), []);
        // What has no load stays, whatever lies between the busy ones.
        let mut load = vec![0; 16];
        (load[1], load[4], load[6]) = (30, 30, 1);
        assert_eq!(by_load(placed(&map), &even(2), &load, 5).unwrap(), [step(1, 2, &[(4, 4), (6, 6)])]);
        assert_eq!(
            by_load(placed(&map), &[(ShardId(1), 0), (ShardId(2), 1)], &load, 5).unwrap(),
            [step(1, 2, &[(0, 7)])]
        );
        assert_eq!(
            by_load(placed(&map), &even(2), &[1; 8], 0),
            Err(PlanError::Figures { given: 8, buckets: 16 })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn load_is_never_worse_after_and_nobody_gives_and_takes(
            owned in prop::collection::vec(1u16..5, 64),
            load in prop::collection::vec(0u64..1000, 64),
            weights in prop::collection::vec(1u32..4, 5),
        ) {
            let ranges: Vec<_> = owned.iter().enumerate().map(|(b, &s)| (b as u16, b as u16, ShardId(s))).collect();
            let map = ShardMap::from_ranges(7, 64, &ranges).unwrap();
            let weights: Vec<_> = ids(5).into_iter().zip(weights).collect();
            let steps = by_load(placed(&map), &weights, &load, 0).unwrap();
            let after = owners(&map, &steps);
            let total: u64 = load.iter().sum();
            let sum: u64 = weights.iter().map(|(_, w)| u64::from(*w)).sum();
            let worst = |owners: &[ShardId]| weights.iter().map(|&(shard, weight)| {
                let has: u64 = owners.iter().zip(&load).filter(|(o, _)| **o == shard).map(|(_, l)| l).sum();
                has as f64 - (total * u64::from(weight)) as f64 / sum as f64
            }).fold(0.0, f64::max);
            prop_assert!(worst(&after) <= worst(map.owners()) + 1.0, "{} -> {}", worst(map.owners()), worst(&after));
            for step in &steps {
                prop_assert!(!steps.iter().any(|other| other.target == step.source), "{steps:?}");
                prop_assert!(step.source != step.target && step.ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            }
        }

        #[test]
        fn a_drain_leaves_the_others_what_they_have(owned in prop::collection::vec(1u16..5, 64)) {
            let ranges: Vec<_> = owned.iter().enumerate().map(|(b, &s)| (b as u16, b as u16, ShardId(s))).collect();
            let map = ShardMap::from_ranges(7, 64, &ranges).unwrap();
            for shard in map.shards() {
                let steps = drain(placed(&map), shard, &even(4)).unwrap();
                let after = owners(&map, &steps);
                for (before, after) in map.owners().iter().zip(&after) {
                    prop_assert!(*after != shard && (before == after || *before == shard));
                }
            }
        }
    }
}
