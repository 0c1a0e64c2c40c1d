//! Which buckets were written so recently that a replica may not show it.
//!
//! One word a bucket: how many writes are in flight, and the sample number that was current when the last of them
//! ended. A sample is a number drawn BEFORE the primary is asked for its WAL insert position, so a position with a
//! higher number than a write's was read after that write had been acknowledged, and a replica that replayed past
//! it shows the write. The insert position, not the flush position: it also covers `synchronous_commit = off`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shard_config::Bucket;

use super::samples::{Lsn, Samples};
use crate::control::limits::{ABANDONED_WRITES_MAX, SERVERS_PER_SHARD_MAX, SHARDS_ADDED_MAX};
use crate::grow::Grow;

/// High bits: writes in flight. Low bits: the sample number at the end of the last write.
const PENDING_ONE: u64 = 1 << SEQUENCE_BITS;
const SEQUENCE_BITS: u32 = 44;
const SEQUENCE_MASK: u64 = PENDING_ONE - 1;

#[derive(Debug, Default)]
struct Mark(AtomicU64);

impl Mark {
    fn begin(&self) {
        self.0.fetch_add(PENDING_ONE, Ordering::AcqRel);
    }

    fn end(&self, sequence: u64) {
        let update = |old: u64| {
            debug_assert!(old >= PENDING_ONE, "end of a write that never began");
            let pending = (old & !SEQUENCE_MASK).saturating_sub(PENDING_ONE);
            Some(pending | (old & SEQUENCE_MASK).max(sequence))
        };
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    fn touch(&self, sequence: u64) {
        let update = |old: u64| Some((old & !SEQUENCE_MASK) | (old & SEQUENCE_MASK).max(sequence));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    fn clean(&self, confirmed: u64) -> bool {
        let word = self.0.load(Ordering::Acquire);
        word < PENDING_ONE && word < confirmed
    }
}

#[derive(Debug)]
struct Shard {
    /// The last sample number drawn.
    sequence: AtomicU64,
    buckets: Box<[Mark]>,
    /// Writes whose bucket is not known: they dirty all buckets.
    whole: Mark,
    /// Every write, for reads whose bucket is not known.
    any: Mark,
    /// The last time at which buckets came here from another shard.
    moved: Mark,
    /// By server slot: the newest sample that this server has replayed; 0 = none.
    confirmed: [AtomicU64; SERVERS_PER_SHARD_MAX],
    cold: Mutex<Cold>,
}

/// Touched by the control thread, and by sessions only when a server was lost in the middle of a write.
#[derive(Debug, Default)]
struct Cold {
    timeline: u32,
    samples: Samples,
    abandoned: Vec<Abandoned>,
}

/// A write whose outcome is not known to whoever made it.
#[derive(Debug)]
struct Abandoned {
    bucket: Option<Bucket>,
    /// The backend that may still commit or prepare it; `None` once it was seen to be gone.
    backend_pid: Option<i32>,
    /// It may be a part of this prepared transaction, which outlives its backend.
    gid: Option<Arc<str>>,
}

/// Shared by all workers and the control thread. Shards are named by their position in `State::shards`.
#[derive(Debug)]
pub struct Freshness {
    shards: Grow<Shard>,
    buckets: u16,
}

/// A write in flight. Give it back by `Freshness::end_write` or `abandon_write`; it is a plain value, so that a
/// session can keep several of them in its transaction without a pointer each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a write that never ends keeps its bucket on the primary for ever"]
pub struct WriteMark {
    pub shard: u16,
    pub bucket: Option<Bucket>,
}

/// What a session wants of its reads (`shard.read`, `reads.policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadChoice {
    Primary,
    /// A replica that provably shows all writes made through this proxy.
    Fresh,
    /// Any streaming replica: the session said that stale answers are fine.
    Stale,
}

impl Freshness {
    pub fn new(shards: usize, buckets: u16) -> Self {
        let freshness = Self { shards: Grow::with_capacity(shards + SHARDS_ADDED_MAX), buckets };
        (0..shards).for_each(|_| freshness.add_shard());
        freshness
    }

    /// One more shard, of which nothing is known. (There is room for all that `Servers` has room for.)
    pub fn add_shard(&self) {
        let shard = Shard {
            sequence: AtomicU64::new(1),
            buckets: (0..self.buckets).map(|_| Mark::default()).collect(),
            whole: Mark(AtomicU64::new(1)), // What was written before this proxy knew it must be replayed, too.
            any: Mark(AtomicU64::new(1)),
            moved: Mark(AtomicU64::new(1)),
            confirmed: std::array::from_fn(|_| AtomicU64::new(0)),
            cold: Mutex::default(),
        };
        let added = self.shards.push(shard);
        debug_assert!(added.is_ok(), "room for the shards");
    }

    /// Before the first byte of a write is forwarded. `bucket` is `None` when it may touch any bucket of the shard.
    pub fn begin_write(&self, shard: usize, bucket: Option<Bucket>) -> WriteMark {
        let state = &self.shards[shard];
        state.any.begin();
        match bucket {
            Some(bucket) => state.buckets[bucket.get() as usize].begin(),
            None => state.whole.begin(),
        }
        WriteMark { shard: shard as u16, bucket }
    }

    /// When the server's ReadyForQuery with status `I` has arrived (committed or rolled back), BEFORE it is
    /// forwarded: a client must not be able to read between its answer and this call.
    pub fn end_write(&self, mark: WriteMark) {
        let state = &self.shards[mark.shard as usize];
        let sequence = state.sequence.load(Ordering::Acquire);
        match mark.bucket {
            Some(bucket) => state.buckets[bucket.get() as usize].end(sequence),
            None => state.whole.end(sequence),
        }
        state.any.end(sequence);
    }

    /// The server connection was given up with the write's outcome unknown: the backend may still commit. The mark
    /// stays until the control thread sees that the backend with this process id is gone from the primary.
    pub fn abandon_write(&self, mark: WriteMark, backend_pid: i32) {
        self.abandon(mark, backend_pid, None);
    }

    /// The same, and the backend may have prepared the write under `gid`: somebody may commit it long after the
    /// backend is gone. The mark stays until that prepared transaction is gone, too.
    pub fn abandon_prepared(&self, mark: WriteMark, backend_pid: i32, gid: Arc<str>) {
        self.abandon(mark, backend_pid, Some(gid));
    }

    fn abandon(&self, mark: WriteMark, backend_pid: i32, gid: Option<Arc<str>>) {
        let mut cold = self.shards[mark.shard as usize].cold.lock();
        if cold.abandoned.len() < ABANDONED_WRITES_MAX {
            cold.abandoned.push(Abandoned { bucket: mark.bucket, backend_pid: Some(backend_pid), gid });
        }
        // Else the mark is never taken back: reads of the bucket stay on the primary. Slow, never wrong.
    }

    /// True when server `slot` shows every write to `bucket` (`None`: to the whole shard) that was acknowledged
    /// through this proxy. Two or three atomic loads.
    pub fn replica_ok(&self, shard: usize, bucket: Option<Bucket>, slot: u16) -> bool {
        let state = &self.shards[shard];
        let Some(confirmed) = state.confirmed.get(slot as usize) else { return false };
        let confirmed = confirmed.load(Ordering::Acquire);
        match bucket {
            Some(bucket) => {
                state.whole.clean(confirmed) && state.buckets[bucket.get() as usize].clean(confirmed)
            }
            None => state.whole.clean(confirmed) && state.any.clean(confirmed),
        }
    }

    /// True when server `slot` shows the rows of every bucket that came to the shard. Who is content with old rows is not with
    /// none at all.
    pub fn shows_moved(&self, shard: usize, slot: u16) -> bool {
        let state = &self.shards[shard];
        let confirmed = state.confirmed.get(slot as usize);
        confirmed.is_some_and(|confirmed| state.moved.clean(confirmed.load(Ordering::Acquire)))
    }

    // What follows is called by the control thread.

    /// Rows came to the shard otherwise than by a statement: those of `bucket`, or of one tenant in it.
    pub fn moved_here(&self, shard: usize, bucket: Option<Bucket>) {
        self.end_write(self.begin_write(shard, bucket));
        let state = &self.shards[shard];
        state.moved.touch(state.sequence.load(Ordering::Acquire));
    }

    /// Draws a sample number. Call it before the query for the position is sent.
    pub fn sample_begins(&self, shard: usize) -> u64 {
        self.shards[shard].sequence.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The accepted primary on `timeline` answered with its insert position.
    pub fn primary_at(&self, shard: usize, sequence: u64, timeline: u32, lsn: Lsn) {
        let state = &self.shards[shard];
        let mut cold = state.cold.lock();
        if cold.timeline != timeline {
            self.discard(state, &mut cold, timeline);
            return; // This sample may have been drawn before the marks of the old timeline ended.
        }
        cold.samples.add(sequence, lsn);
    }

    /// Replica `slot` follows `timeline` and has replayed up to `lsn`.
    pub fn replica_at(&self, shard: usize, slot: u16, timeline: u32, lsn: Lsn) {
        let state = &self.shards[shard];
        let mut cold = state.cold.lock();
        let Some(confirmed) = state.confirmed.get(slot as usize) else { return };
        if cold.timeline != timeline {
            confirmed.store(0, Ordering::Release);
            return;
        }
        if let Some(sequence) = cold.samples.passed(lsn) {
            confirmed.store(sequence, Ordering::Release);
        }
        let slowest = state.confirmed.iter().map(|c| c.load(Ordering::Acquire)).filter(|c| *c > 0).min();
        cold.samples.forget_before(slowest.unwrap_or(0));
    }

    /// The server is down, or no replica any more.
    pub fn replica_gone(&self, shard: usize, slot: u16) {
        if let Some(confirmed) = self.shards[shard].confirmed.get(slot as usize) {
            let _cold = self.shards[shard].cold.lock();
            confirmed.store(0, Ordering::Release);
        }
    }

    /// Positions of different timelines cannot be compared: everything counts as unreplayed.
    fn discard(&self, state: &Shard, cold: &mut Cold, timeline: u32) {
        cold.timeline = timeline;
        cold.samples.clear();
        for confirmed in &state.confirmed {
            confirmed.store(0, Ordering::Release);
        }
        let sequence = state.sequence.load(Ordering::Acquire);
        state.whole.touch(sequence);
        state.any.touch(sequence);
        state.moved.touch(sequence);
    }

    /// What to ask the primary about: process ids of backends whose last write is in doubt, and names of prepared
    /// transactions whose backend was seen to be gone. In this order: a name that is missing while its backend
    /// lives may be prepared a moment later.
    pub fn abandoned(&self, shard: usize) -> (Vec<i32>, Vec<String>) {
        let cold = self.shards[shard].cold.lock();
        let pids = cold.abandoned.iter().filter_map(|a| a.backend_pid).collect();
        let prepared = cold.abandoned.iter().filter(|a| a.backend_pid.is_none());
        (pids, prepared.filter_map(|a| a.gid.as_deref().map(str::to_owned)).collect())
    }

    /// The buckets of writes of which nobody knows whether they are over; `None`: any.
    pub fn doubts(&self, shard: usize) -> Vec<Option<Bucket>> {
        let Some(shard) = self.shards.get(shard) else { return Vec::new() };
        shard.cold.lock().abandoned.iter().map(|write| write.bucket).collect()
    }

    /// Of those asked about, these backends and prepared transactions are gone: what they did is committed or never
    /// will be.
    pub fn are_gone(&self, shard: usize, pids: &[i32], gids: &[String]) {
        if pids.is_empty() && gids.is_empty() {
            return;
        }
        let mut over = Vec::new();
        self.shards[shard].cold.lock().abandoned.retain_mut(|write| {
            let is_over = match (write.backend_pid, &write.gid) {
                (Some(pid), None) => pids.contains(&pid),
                (Some(pid), Some(_)) => {
                    if pids.contains(&pid) {
                        write.backend_pid = None;
                    }
                    false
                }
                (None, Some(gid)) => gids.iter().any(|gone| **gone == **gid),
                (None, None) => true,
            };
            if is_over {
                over.push(WriteMark { shard: shard as u16, bucket: write.bucket });
            }
            !is_over
        });
        for mark in over {
            self.end_write(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(n: u16) -> Option<Bucket> {
        Some(Bucket::new(n, 8).expect("in range"))
    }

    /// One sample of the primary at `lsn`, replayed by slot 1 up to `replayed`.
    fn poll(f: &Freshness, lsn: u64, replayed: u64) {
        let sequence = f.sample_begins(0);
        f.primary_at(0, sequence, 1, Lsn(lsn));
        f.replica_at(0, 1, 1, Lsn(replayed));
    }

    fn fresh() -> Freshness {
        let f = Freshness::new(1, 8);
        poll(&f, 100, 100); // learns the timeline
        poll(&f, 100, 100);
        f
    }

    #[test]
    fn nothing_is_fresh_before_the_first_proof() {
        let f = Freshness::new(1, 8);
        assert!(!f.replica_ok(0, bucket(1), 1));
        poll(&f, 100, 100);
        assert!(!f.replica_ok(0, bucket(1), 1), "the sample that revealed the timeline proves nothing");
        poll(&f, 100, 99);
        assert!(!f.replica_ok(0, bucket(1), 1));
        poll(&f, 100, 100);
        assert!(f.replica_ok(0, bucket(1), 1));
        assert!(!f.replica_ok(0, bucket(1), 0), "slot 0 never replayed anything");
        assert!(!f.replica_ok(0, bucket(1), 99), "no such slot");
    }

    #[test]
    fn h7_a_bucket_stays_on_the_primary_until_a_later_sample_is_replayed() {
        let f = fresh();
        let mark = f.begin_write(0, bucket(3));
        poll(&f, 200, 200);
        assert!(!f.replica_ok(0, bucket(3), 1), "in flight");
        assert!(f.replica_ok(0, bucket(4), 1), "other buckets are not held back");
        assert!(!f.replica_ok(0, None, 1), "a read of any bucket waits for all");

        let early = f.sample_begins(0);
        f.end_write(mark);
        f.primary_at(0, early, 1, Lsn(250));
        f.replica_at(0, 1, 1, Lsn(1000));
        assert!(!f.replica_ok(0, bucket(3), 1), "the sample began before the write ended");

        poll(&f, 300, 299);
        assert!(!f.replica_ok(0, bucket(3), 1), "sampled, not replayed");
        poll(&f, 300, 300);
        assert!(f.replica_ok(0, bucket(3), 1));
        assert!(f.replica_ok(0, None, 1));
    }

    #[test]
    fn a_write_of_unknown_bucket_dirties_all() {
        let f = fresh();
        let mark = f.begin_write(0, None);
        assert!(!f.replica_ok(0, bucket(7), 1));
        f.end_write(mark);
        assert!(!f.replica_ok(0, bucket(7), 1));
        poll(&f, 300, 300);
        assert!(f.replica_ok(0, bucket(7), 1));
    }

    #[test]
    fn h8_what_has_moved_here_is_shown_when_a_later_sample_is_replayed() {
        let f = Freshness::new(1, 8);
        assert!(!f.shows_moved(0, 1), "nobody knows what it lacks");
        poll(&f, 100, 100);
        poll(&f, 100, 100);
        assert!(f.shows_moved(0, 1) && !f.shows_moved(0, 0));
        f.end_write(f.begin_write(0, bucket(1)));
        assert!(f.shows_moved(0, 1), "a write has moved nothing");
        f.moved_here(0, bucket(3));
        assert!(!f.shows_moved(0, 1) && !f.replica_ok(0, bucket(3), 1));
        poll(&f, 200, 199);
        assert!(!f.shows_moved(0, 1), "sampled, not replayed");
        poll(&f, 200, 200);
        assert!(f.shows_moved(0, 1) && f.replica_ok(0, bucket(3), 1));
    }

    #[test]
    fn overlapping_writes_all_have_to_end() {
        let f = fresh();
        let first = f.begin_write(0, bucket(1));
        let second = f.begin_write(0, bucket(1));
        f.end_write(first);
        poll(&f, 300, 300);
        assert!(!f.replica_ok(0, bucket(1), 1));
        f.end_write(second);
        poll(&f, 300, 300);
        assert!(f.replica_ok(0, bucket(1), 1));
    }

    #[test]
    fn h7_a_new_timeline_discards_everything() {
        let f = fresh();
        assert!(f.replica_ok(0, bucket(1), 1));
        let sequence = f.sample_begins(0);
        f.primary_at(0, sequence, 2, Lsn(50));
        assert!(!f.replica_ok(0, bucket(1), 1));
        f.replica_at(0, 1, 1, Lsn(1000));
        assert!(!f.replica_ok(0, bucket(1), 1), "still on the old timeline");
        let sequence = f.sample_begins(0);
        f.primary_at(0, sequence, 2, Lsn(60));
        f.replica_at(0, 1, 2, Lsn(60));
        assert!(f.replica_ok(0, bucket(1), 1));
    }

    #[test]
    fn an_abandoned_write_holds_until_its_backend_is_gone() {
        let f = fresh();
        let mark = f.begin_write(0, bucket(5));
        f.abandon_write(mark, 4711);
        poll(&f, 300, 300);
        assert!(!f.replica_ok(0, bucket(5), 1));
        assert_eq!(f.abandoned(0), (vec![4711], vec![]));
        f.are_gone(0, &[4711], &[]);
        assert!(!f.replica_ok(0, bucket(5), 1), "may have committed after the last sample");
        poll(&f, 300, 300);
        assert!(f.replica_ok(0, bucket(5), 1));
    }

    #[test]
    fn h19_a_prepared_write_holds_until_its_transaction_is_gone() {
        let f = fresh();
        let mark = f.begin_write(0, bucket(5));
        f.abandon_prepared(mark, 4711, "gid".into());
        f.are_gone(0, &[], &["gid".to_owned()]);
        assert_eq!(
            f.abandoned(0),
            (vec![4711], vec![]),
            "not asked for while the backend may still prepare it"
        );
        f.are_gone(0, &[4711], &["gid".to_owned()]);
        poll(&f, 300, 300);
        assert!(!f.replica_ok(0, bucket(5), 1), "prepared, and committed by somebody else later");
        assert_eq!(f.abandoned(0), (vec![], vec!["gid".to_owned()]));
        f.are_gone(0, &[], &["gid".to_owned()]);
        assert!(!f.replica_ok(0, bucket(5), 1), "may have committed after the last sample");
        poll(&f, 300, 300);
        assert!(f.replica_ok(0, bucket(5), 1));
    }
}
