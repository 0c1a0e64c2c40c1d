//! What the map must be, from the last epoch that the catalog has and from what shards wrote down of later ones. PURE.
//!
//! Every flip is written on both shards of its move before anything goes on (H6), so as long as one of the two has its rows,
//! nothing is missing.

use std::collections::BTreeMap;

use shard_config::ShardId;

use crate::mover::catalog::StoredMap;
use crate::mover::scope::Scope;

/// A row of `shard_catalog.ownership` that is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    /// The shard that says so.
    pub(super) said_by: ShardId,
    pub(super) move_id: i64,
    pub(super) epoch: i64,
    pub(super) id: String,
    pub(super) scope: Scope,
    pub(super) owner: ShardId,
}

/// An epoch that the catalog has lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) flip: Owned,
    /// Of the move: all that have a row of it, of whichever epoch.
    pub(super) shards: Vec<ShardId>,
}

/// Those after `newest`, in their order. The error says what cannot be made out.
pub(super) fn lost(newest: &StoredMap, said: &[Owned]) -> Result<Vec<Lost>, String> {
    let newest_epoch = newest.map.epoch() as i64;
    for owned in said.iter().filter(|owned| owned.epoch == newest_epoch) {
        if owned.id != newest.id {
            return Err(format!(
                "shard {} knows epoch {newest_epoch} with id {}, and the catalog with id {}: two catalogs have each gone on; \
                 keep the one that the proxies follow",
                owned.said_by, owned.id, newest.id
            ));
        }
    }
    let mut epochs: BTreeMap<i64, &Owned> = BTreeMap::new();
    for owned in said.iter().filter(|owned| owned.epoch > newest_epoch) {
        let first = *epochs.entry(owned.epoch).or_insert(owned);
        let same = |a: &Owned, b: &Owned| {
            (a.move_id, &a.id, &a.scope, a.owner) == (b.move_id, &b.id, &b.scope, b.owner)
        };
        if !same(first, owned) {
            return Err(format!(
                "shards {} and {} do not say the same of epoch {}",
                first.said_by, owned.said_by, owned.epoch
            ));
        }
    }
    for (expected, epoch) in (newest_epoch + 1..).zip(epochs.keys()) {
        if expected != *epoch {
            return Err(format!("no shard knows of epoch {expected}, and {epoch} came after it"));
        }
    }
    let shards = |move_id: i64| {
        let mut shards: Vec<_> =
            said.iter().filter(|owned| owned.move_id == move_id).map(|owned| owned.said_by).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    };
    Ok(epochs.into_values().map(|flip| Lost { flip: flip.clone(), shards: shards(flip.move_id) }).collect())
}

#[cfg(test)]
mod tests {
    use shard_config::ShardMap;

    use super::*;

    fn newest(epoch: u64) -> StoredMap {
        let even = ShardMap::even(&[ShardId(1), ShardId(2)], 16);
        let map = ShardMap::from_ranges(epoch, 16, &even.ranges()).expect("a map");
        StoredMap { map, overrides: Vec::new(), id: "newest".into() }
    }

    fn owned(said_by: u16, move_id: i64, epoch: i64, owner: u16) -> Owned {
        Owned {
            said_by: ShardId(said_by),
            move_id,
            epoch,
            id: format!("id {epoch}"),
            scope: Scope::of_range(0, 3),
            owner: ShardId(owner),
        }
    }

    #[test]
    fn h6_epochs_are_found_on_either_shard_of_their_move() {
        let said = [owned(2, 7, 4, 1), owned(1, 7, 3, 2), owned(2, 7, 3, 2), owned(1, 6, 2, 2)];
        let found =
            lost(&newest(2), &[&said[..3], &[Owned { id: "newest".into(), ..said[3].clone() }]].concat());
        let found = found.expect("contiguous");
        assert_eq!(
            found.iter().map(|lost| (lost.flip.epoch, lost.flip.owner.0)).collect::<Vec<_>>(),
            [(3, 2), (4, 1)]
        );
        assert!(found.iter().all(|lost| lost.shards == [ShardId(1), ShardId(2)]));
        assert_eq!(lost(&newest(4), &said[1..3]), Ok(Vec::new()));
    }

    #[test]
    fn h6_what_cannot_be_made_out_is_not_guessed() {
        let gap = lost(&newest(2), &[owned(1, 7, 4, 2)]).unwrap_err();
        assert!(gap.contains("no shard knows of epoch 3"), "{gap}");
        let fork = lost(&newest(2), &[owned(1, 7, 3, 2), owned(2, 7, 3, 1)]).unwrap_err();
        assert!(fork.contains("shards 1 and 2 do not say the same of epoch 3"), "{fork}");
        let other = lost(&newest(3), &[owned(1, 7, 3, 2)]).unwrap_err();
        assert!(other.contains("two catalogs"), "{other}");
    }
}
