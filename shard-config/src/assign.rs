//! Which buckets to move when shards come, go or change weight.
//!
//! Every shard gets a quota, its share of the buckets rounded down or up, so it is within one bucket of it. A
//! shard above its quota gives up the excess and no more, so the fewest buckets possible move (measured for a
//! plain hash ring: 7 to 15 % imbalance, at any number of virtual nodes, since 4096 buckets are too small a
//! sample; hence the quotas). A hash ring only says which receiver is preferred for what a shard gives up, which
//! makes the answer the same on every machine and spreads the load of the copies over receivers.
//!
//! Buckets are given up from the end of a shard's highest range, so ranges stay few: a filter by range is 30
//! times cheaper than one by list.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use hashring::HashRing;

use crate::change::Move;
use crate::map::{ShardId, ShardMap};

/// Points on the ring for each unit of weight.
const POINTS: u32 = 160;

/// The ring hashes through `Hash` impls of std, whose bytes are no stable contract (lengths, native integers). So
/// the bytes are written here: one call, fixed width, big-endian. A golden test pins the outcome.
struct RingKey([u8; 8]);

impl Hash for RingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

#[derive(Debug, Clone)]
struct Point {
    shard: ShardId,
    number: u32,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.shard.0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.number.to_be_bytes());
        state.write(&bytes);
    }
}

/// How many buckets each shard should have: its weighted share, rounded down or up. Where there is a choice of
/// whom to round up, it falls on shards that have more than the lower number now, since that saves a move.
///
/// `shards` names each shard once, and some weight is not 0.
pub fn quotas(map: &ShardMap, shards: &[(ShardId, u32)]) -> BTreeMap<ShardId, u16> {
    let buckets = u64::from(map.buckets());
    let total: u64 = shards.iter().map(|&(_, weight)| u64::from(weight)).sum();
    assert!(total > 0, "some shard has a weight");
    let share = |weight: u32| (buckets * u64::from(weight) / total, buckets * u64::from(weight) % total);
    let mut quotas: BTreeMap<_, _> =
        shards.iter().map(|&(shard, weight)| (shard, share(weight).0 as u16)).collect();
    let mut left = map.buckets() - quotas.values().sum::<u16>();
    let mut roundable: Vec<_> = shards.iter().filter(|&&(_, weight)| share(weight).1 > 0).collect();
    roundable.sort_by_key(|&&(shard, weight)| {
        let (floor, rest) = share(weight);
        (u64::from(map.count(shard)) <= floor, std::cmp::Reverse(rest), shard)
    });
    for &(shard, _) in roundable {
        if left == 0 {
            break;
        }
        if let Some(quota) = quotas.get_mut(&shard) {
            *quota += 1;
            left -= 1;
        }
    }
    quotas
}

/// The moves from `map` to a balanced map over `shards` (with weights; 0 empties a shard, and so does leaving it
/// out). Empty when the map is balanced.
pub fn rebalance(map: &ShardMap, shards: &[(ShardId, u32)]) -> Vec<Move> {
    let quotas = quotas(map, shards);
    let quota = |shard| quotas.get(&shard).copied().unwrap_or(0);
    let mut wanting: BTreeMap<ShardId, u16> = quotas
        .iter()
        .filter_map(|(&shard, &quota)| {
            quota.checked_sub(map.count(shard)).filter(|&n| n > 0).map(|n| (shard, n))
        })
        .collect();
    let ring = ring(shards);
    let mut moves = Vec::new();
    for source in map.shards() {
        let mut excess = map.count(source).saturating_sub(quota(source));
        let owned = map.ranges().into_iter().rev().filter(|&(_, _, owner)| owner == source);
        for (low, high, _) in owned {
            let mut end = high + 1;
            while excess > 0 && end > low {
                let preferred =
                    preference(&ring, end - 1).into_iter().find(|shard| wanting.contains_key(shard));
                // Quotas add up to all buckets, so while one shard has too many another has too few.
                let Some(target) = preferred.or_else(|| wanting.keys().next().copied()) else { return moves };
                let Some(want) = wanting.get_mut(&target) else { return moves };
                let taken = excess.min(*want).min(end - low);
                moves.push(Move { from: end - taken, to: end - 1, source, target });
                end -= taken;
                excess -= taken;
                *want -= taken;
                wanting.retain(|_, want| *want > 0);
            }
        }
    }
    moves
}

fn ring(shards: &[(ShardId, u32)]) -> HashRing<Point> {
    let mut ring = HashRing::new();
    let points = shards
        .iter()
        .flat_map(|&(shard, weight)| (0..POINTS * weight.min(16)).map(move |number| Point { shard, number }));
    ring.batch_add(points.collect());
    ring
}

/// Shards in the order in which the ring meets them from the bucket's point on.
fn preference(ring: &HashRing<Point>, bucket: u16) -> Vec<ShardId> {
    let mut key = [0; 8];
    key[6..].copy_from_slice(&bucket.to_be_bytes());
    let mut order = Vec::new();
    for point in ring.get_with_replicas(&RingKey(key), ring.len()).into_iter().flatten() {
        if !order.contains(&point.shard) {
            order.push(point.shard);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn even(n: u16) -> Vec<(ShardId, u32)> {
        (1..=n).map(|id| (ShardId(id), 1)).collect()
    }

    fn applied(map: &ShardMap, moves: &[Move], shards: &[(ShardId, u32)]) -> ShardMap {
        if moves.is_empty() {
            return map.clone();
        }
        let ids: Vec<_> = shards.iter().map(|&(shard, _)| shard).collect();
        map.apply(map.epoch(), moves, &ids).unwrap()
    }

    fn moved(moves: &[Move]) -> u16 {
        moves.iter().map(Move::len).sum()
    }

    /// Golden: another answer here means that two versions of this program would plan differently.
    #[test]
    fn the_ring_is_the_same_for_ever() {
        let order =
            |bucket| preference(&ring(&even(8)), bucket).iter().map(|shard| shard.0).collect::<Vec<_>>();
        assert_eq!(
            [0, 529, 4095].map(order),
            [[6, 3, 7, 8, 1, 5, 2, 4], [8, 3, 4, 1, 5, 2, 6, 7], [8, 7, 6, 5, 3, 4, 2, 1]]
        );
    }

    #[test]
    fn growing_and_shrinking_moves_the_ideal_minimum() {
        let check = |before: u16, after: u16, expected: u16, ranges: usize| {
            let ids: Vec<_> = (1..=before).map(ShardId).collect();
            let map = ShardMap::even(&ids, 4096);
            let moves = rebalance(&map, &even(after));
            assert_eq!(moved(&moves), expected, "{before} -> {after}");
            assert_eq!(
                applied(&map, &moves, &even(after)).ranges().len(),
                ranges,
                "{before} -> {after}: {moves:?}"
            );
        };
        check(4, 4, 0, 4);
        check(4, 5, 819, 8);
        check(4, 8, 2048, 8);
        check(4, 3, 1024, 6);
        check(8, 9, 455, 16);
        check(8, 7, 512, 14);
        check(1, 4, 3072, 4);
    }

    #[test]
    fn a_weight_of_zero_empties_a_shard() {
        let map = ShardMap::even(&[ShardId(1), ShardId(2)], 16);
        let shards = [(ShardId(1), 1), (ShardId(2), 0)];
        let moves = rebalance(&map, &shards);
        assert_eq!(moves, [Move { from: 8, to: 15, source: ShardId(2), target: ShardId(1) }]);
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..5, 1..10).prop_filter("some weight", |w| w.iter().any(|&w| w > 0))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_history_stays_balanced_at_the_least_cost(history in prop::collection::vec(weights(), 1..6)) {
            let mut map = ShardMap::even(&[ShardId(1)], 1024);
            for weights in history {
                let shards: Vec<_> = (1..).map(ShardId).zip(weights).collect();
                let total: u32 = shards.iter().map(|&(_, weight)| weight).sum();
                let moves = rebalance(&map, &shards);
                let after = applied(&map, &moves, &shards);
                let mut least = 0;
                for &(shard, weight) in &shards {
                    let share = 1024.0 * f64::from(weight) / f64::from(total);
                    prop_assert!((f64::from(after.count(shard)) - share).abs() < 1.0, "{shard}: {after:?}");
                    least += after.count(shard).saturating_sub(map.count(shard));
                }
                // Nobody both gives and receives, so what receivers gained is all that moved ...
                prop_assert_eq!(moved(&moves), least);
                // ... and no rounding of the shares would have moved less.
                let floor = |weight: u32| 1024 * weight / total;
                let must: u32 = shards.iter().map(|&(s, w)| floor(w).saturating_sub(map.count(s).into())).sum();
                let ceil = |weight: u32| (1024 * weight).div_ceil(total);
                let gone: u32 = map.shards().into_iter().map(|owner| {
                    let weight = shards.iter().find(|&&(s, _)| s == owner).map_or(0, |&(_, w)| w);
                    u32::from(map.count(owner)).saturating_sub(ceil(weight))
                }).sum();
                prop_assert!(u32::from(least) >= must.max(gone));
                prop_assert!(after.ranges().len() <= map.ranges().len() + moves.len());
                prop_assert_eq!(rebalance(&after, &shards), []);
                map = after;
            }
        }
    }
}
