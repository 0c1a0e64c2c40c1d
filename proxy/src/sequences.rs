//! Numbers drawn from sequences ahead of their use, so that not every INSERT asks the default shard (H26). PURE: it is
//! told the time.
//!
//! Each number is one that nextval() gave on the default shard, so whatever the sequence says of INCREMENT, MAXVALUE and
//! CYCLE holds, and what belongs to a number (x-INCREMENT+1..x) is its owner's alone. What is not used is a gap, as with
//! PostgreSQL's own CACHE; unlike there, a block is forgotten when this proxy lets a sequence be set, and when it is old.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

/// So long may numbers be given after another proxy's clients have set the sequence.
pub const BLOCK_AGE: Duration = Duration::from_secs(1);
/// Sequences (and roles) of which there are blocks.
const BLOCKS: usize = 1024;
/// Numbers kept of one: two sessions that find nothing draw a block each.
const KEPT: usize = 20_000;

/// One worker's.
#[derive(Debug, Default)]
pub struct Blocks {
    known: FxHashMap<Key, Block>,
}

/// Who draws, and the SQL that draws.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub role: String,
    pub draws: String,
}

#[derive(Debug)]
struct Block {
    /// As SQL text.
    values: VecDeque<String>,
    drawn: Instant,
    /// How often sequences had been set when it was drawn.
    resets: u64,
}

impl Blocks {
    /// At most `count` of what there is.
    pub fn take(&mut self, key: &Key, count: usize, now: Instant, resets: u64) -> Vec<String> {
        let Some(block) = self.known.get_mut(key) else { return Vec::new() };
        if block.is_stale(now, resets) {
            self.known.remove(key);
            return Vec::new();
        }
        let count = count.min(block.values.len());
        block.values.drain(..count).collect()
    }

    /// `now` and `resets`: from before they were drawn.
    pub fn put(&mut self, key: Key, values: impl Iterator<Item = String>, now: Instant, resets: u64) {
        if self.known.len() >= BLOCKS {
            self.known.retain(|_, block| !block.is_stale(now, resets) && !block.values.is_empty());
        }
        if self.known.len() >= BLOCKS {
            return; // They are gaps.
        }
        let fresh = || Block { values: VecDeque::new(), drawn: now, resets };
        let block = self.known.entry(key).or_insert_with(fresh);
        if block.values.is_empty() || block.is_stale(now, resets) {
            *block = fresh();
        }
        // Drawn before a reset that the others have seen: they are gaps.
        if block.resets == resets {
            let room = KEPT.saturating_sub(block.values.len());
            block.values.extend(values.take(room));
        }
    }
}

impl Block {
    fn is_stale(&self, now: Instant, resets: u64) -> bool {
        self.resets < resets || now.saturating_duration_since(self.drawn) > BLOCK_AGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(draws: &str) -> Key {
        Key { role: "app".to_owned(), draws: draws.to_owned() }
    }

    fn some(from: u32, count: u32) -> impl Iterator<Item = String> {
        (from..from + count).map(|n| n.to_string())
    }

    #[test]
    fn h26_every_number_is_given_once() {
        let (mut blocks, now) = (Blocks::default(), Instant::now());
        assert!(blocks.take(&key("s"), 1, now, 0).is_empty());
        blocks.put(key("s"), some(1, 3), now, 0);
        blocks.put(key("s"), some(10, 2), now, 0);
        assert_eq!(blocks.take(&key("s"), 4, now, 0), ["1", "2", "3", "10"]);
        assert!(blocks.take(&key("other"), 1, now, 0).is_empty());
        assert_eq!(blocks.take(&key("s"), 4, now, 0), ["11"]);
        assert!(blocks.take(&key("s"), 4, now, 0).is_empty());
    }

    #[test]
    fn h26_a_block_is_forgotten_when_its_sequence_was_set_or_when_it_is_old() {
        let (mut blocks, now) = (Blocks::default(), Instant::now());
        blocks.put(key("s"), some(1, 3), now, 7);
        assert!(blocks.take(&key("s"), 1, now, 8).is_empty(), "set meanwhile");
        blocks.put(key("s"), some(100, 3), now, 8);
        blocks.put(key("s"), some(4, 3), now, 7);
        assert_eq!(blocks.take(&key("s"), 9, now, 8), ["100", "101", "102"], "drawn before it was set");
        blocks.put(key("s"), some(200, 3), now, 8);
        assert!(blocks.take(&key("s"), 1, now + BLOCK_AGE * 2, 8).is_empty());
    }
}
