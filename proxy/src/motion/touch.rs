//! What a transaction has touched: rows that it wrote, locked or only read. PURE.
//!
//! A few keys exactly, then "any". Of moves that were known when a statement was routed it is noted exactly whether the
//! statement was for their scope, whatever the number of its keys.

use shard_config::KeyHash;
use smallvec::SmallVec;

use super::motions::{Mask, Motion, Motions, Stage};

/// Keys that are told apart.
const FEW: usize = 4;

#[derive(Debug, Clone, Default)]
pub struct Touch {
    /// Of the catalog, and of the map, when the first statement was routed.
    version: u64,
    epoch: u64,
    begun: bool,
    /// Keys beyond those that are told apart were touched, first under this version.
    any: Option<u64>,
    count: u8,
    few: [Touched; FEW],
    /// Moves, and the version under which each was touched first.
    moves: SmallVec<[(i64, u64); 1]>,
}

/// One key, and what it was routed by first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Touched {
    pub hash: KeyHash,
    pub version: u64,
    pub epoch: u64,
}

impl Touch {
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.begun
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Were more keys touched than are told apart, before this version?
    pub fn any_before(&self, version: u64) -> bool {
        self.any.is_some_and(|any| any < version)
    }

    pub fn few(&self) -> &[Touched] {
        &self.few[..usize::from(self.count)]
    }

    #[inline]
    pub fn clear(&mut self) {
        if self.begun {
            *self = Self::default();
        }
    }

    /// A statement of any kind: from now on there may be a snapshot.
    #[inline]
    pub fn begin(&mut self, version: u64, epoch: u64) {
        if !self.begun {
            (self.begun, self.version, self.epoch) = (true, version, epoch);
        }
    }

    /// A statement for this one key.
    #[inline]
    pub fn key(&mut self, hash: KeyHash, version: u64, epoch: u64) {
        self.begin(version, epoch);
        if self.few().iter().any(|known| known.hash == hash) {
            return;
        }
        match self.few.get_mut(usize::from(self.count)) {
            Some(free) => {
                *free = Touched { hash, version, epoch };
                self.count += 1;
            }
            None => self.any = self.any.or(Some(version)),
        }
    }

    /// A statement for more keys than are told apart.
    #[inline]
    pub fn many(&mut self, version: u64, epoch: u64) {
        self.begin(version, epoch);
        self.any = self.any.or(Some(version));
    }

    /// Of the motions that were known to it, the statement was for these.
    pub fn moves(&mut self, motions: &Motions, mask: Mask) {
        for motion in motions.in_mask(mask) {
            if !self.moves.iter().any(|(move_id, _)| *move_id == motion.move_id) {
                self.moves.push((motion.move_id, motions.version));
            }
        }
    }

    /// May it have touched what moves?
    pub fn touches(&self, motion: &Motion, buckets: u16) -> bool {
        self.touches_before(motion, u64::MAX, buckets)
    }

    /// The same, by a statement that was routed under an older version than this.
    pub fn touches_before(&self, motion: &Motion, version: u64, buckets: u16) -> bool {
        // Before the move was known nothing is noted of it.
        let unknown = version.min(motion.since);
        let within = |known: &Touched| known.version < unknown && motion.moves(known.hash, buckets);
        self.begun
            && (self.moves.iter().any(|(id, first)| *id == motion.move_id && *first < version)
                || self.any_before(unknown)
                || self.few().iter().any(within))
    }

    /// The motion that cannot go on before this transaction has ended: it has touched what moves, under another version than
    /// that of `motions`.
    pub fn blocks<'m>(&self, motions: &'m Motions) -> Option<&'m Motion> {
        if !self.begun || self.version >= motions.version {
            return None;
        }
        let version = motions.version;
        let touched =
            motions.list().iter().filter(|motion| self.touches_before(motion, version, motions.buckets()));
        // Of several the one for which everybody else is held.
        touched.max_by_key(|motion| motion.stage == Stage::Holding)
    }
}

#[cfg(test)]
mod tests {
    use shard_config::{Scope, ShardId, ShardMap};

    use super::*;

    fn motions(version: u64, before: Option<&Motions>) -> Motions {
        let map = ShardMap::even(&[ShardId(1), ShardId(2)], 16);
        let scope = Scope::new(&[(0, 1)], &[]).expect("a scope");
        let (source, target, stage) = (ShardId(1), ShardId(2), Stage::Copying);
        let (since, owner_since, by_target, apart) = (0, 0, false, Vec::new());
        let motion =
            Motion { move_id: 7, scope, source, target, stage, since, owner_since, by_target, apart };
        Motions::new(version, &map, vec![motion], before).expect("well formed").expect("some")
    }

    const IN: KeyHash = KeyHash::new(16);
    const OUT: KeyHash = KeyHash::new(18);

    #[test]
    fn h2_who_touched_the_scope_before_is_waited_for() {
        let later = motions(5, None);
        let blocks = |touch: &Touch| touch.blocks(&later).is_some();
        let mut touch = Touch::default();
        assert!(!blocks(&touch));
        touch.key(OUT, 4, 1);
        assert!(!blocks(&touch));
        touch.key(IN, 4, 1);
        assert!(blocks(&touch));
        touch.clear();
        assert!(!blocks(&touch) && touch.is_empty());
        touch.many(4, 1);
        assert!(blocks(&touch), "of many keys nothing is known");
        let mut touch = Touch::default();
        for n in 0..5 {
            touch.key(KeyHash::new(2 + 16 * n), 4, 1);
        }
        assert!(touch.any_before(5) && blocks(&touch), "of more than a few keys, too");
    }

    #[test]
    fn h2_of_a_known_motion_it_is_exact_for_any_number_of_keys() {
        let first = motions(5, None);
        let next = motions(6, Some(&first));
        let mut touch = Touch::default();
        touch.many(5, 1);
        touch.moves(&first, Mask::NONE);
        assert!(touch.blocks(&next).is_none());
        touch.moves(&first, first.of(OUT));
        assert!(touch.blocks(&next).is_none());
        touch.moves(&first, first.of(IN));
        assert!(touch.blocks(&first).is_none(), "routed by the version itself");
        assert_eq!(touch.blocks(&next).map(|m| m.move_id), Some(7));
        // Begun before, it has touched the scope only under the new version.
        let mut touch = Touch::default();
        touch.key(OUT, 4, 1);
        touch.key(IN, 6, 1);
        touch.moves(&next, next.of(IN));
        assert!(touch.blocks(&next).is_none() && touch.touches(&next.list()[0], 16));
        assert!(
            !touch.touches_before(&next.list()[0], 6, 16) && touch.touches_before(&next.list()[0], 7, 16)
        );
    }
}
