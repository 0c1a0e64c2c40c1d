//! The primary's recent WAL positions, numbered, and which of them a replica has passed. PURE.

use std::collections::VecDeque;

use crate::control::limits::FRESHNESS_SAMPLES_MAX;

/// A byte position in the WAL (`pg_lsn` as an integer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

/// XLOG_BLCKSZ and the sizes of the page headers, from access/xlog_internal.h.
const WAL_PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

impl Lsn {
    /// An insert position right behind a page header equals, for replay, the page's start: the last record ended
    /// there, and a replica reports that end. Without this an idle replica would look behind until the next
    /// record is written. No record can END at these offsets (a continued one has at least 8 bytes), so the
    /// correction never claims something that was not replayed.
    fn end_of_last_record(self) -> Lsn {
        match self.0 % WAL_PAGE {
            SHORT_HEADER => Lsn(self.0 - SHORT_HEADER),
            LONG_HEADER => Lsn(self.0 - LONG_HEADER),
            _ => self,
        }
    }
}

/// Samples of one shard's primary that some replica may not have replayed yet, oldest first.
#[derive(Debug, Default)]
pub struct Samples {
    waiting: VecDeque<(u64, Lsn)>,
}

impl Samples {
    /// The primary's insert position was read by a query that started after number `sequence` was drawn.
    pub fn add(&mut self, sequence: u64, lsn: Lsn) {
        let lsn = lsn.end_of_last_record();
        if let Some(last) = self.waiting.back_mut()
            && last.1 == lsn
        {
            // Nothing was written in between: the newer number is proved by the same position.
            last.0 = last.0.max(sequence);
            return;
        }
        if self.waiting.len() == FRESHNESS_SAMPLES_MAX {
            // A replica this far behind is useless meanwhile; keep the far ends so that it can catch up in steps.
            let mut keep = false;
            self.waiting.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.waiting.push_back((sequence, lsn));
    }

    /// The newest sample number that a replica at `replayed` has passed.
    pub fn passed(&self, replayed: Lsn) -> Option<u64> {
        self.waiting.iter().rev().find(|(_, lsn)| *lsn <= replayed).map(|(sequence, _)| *sequence)
    }

    /// Forgets what every replica has passed, all but the newest of them.
    pub fn forget_before(&mut self, sequence: u64) {
        while self.waiting.len() > 1 && self.waiting[1].0 <= sequence {
            self.waiting.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_passes_the_newest_sample_at_or_below_its_position() {
        let mut samples = Samples::default();
        samples.add(1, Lsn(100));
        samples.add(2, Lsn(200));
        samples.add(3, Lsn(300));
        assert_eq!(samples.passed(Lsn(99)), None);
        assert_eq!(samples.passed(Lsn(200)), Some(2));
        assert_eq!(samples.passed(Lsn(299)), Some(2));
        assert_eq!(samples.passed(Lsn(1000)), Some(3));
        samples.forget_before(2);
        assert_eq!(samples.passed(Lsn(150)), None);
        assert_eq!(samples.passed(Lsn(250)), Some(2));
    }

    #[test]
    fn an_idle_primary_proves_newer_numbers_by_the_same_position() {
        let mut samples = Samples::default();
        samples.add(1, Lsn(100));
        samples.add(9, Lsn(100));
        assert_eq!(samples.passed(Lsn(100)), Some(9));
    }

    #[test]
    fn a_position_behind_a_page_header_is_the_end_of_the_page_before() {
        let mut samples = Samples::default();
        samples.add(1, Lsn(3 * 8192 + 24));
        assert_eq!(samples.passed(Lsn(3 * 8192)), Some(1));
        samples.add(2, Lsn(3 * 8192 + 32));
        assert_eq!(samples.passed(Lsn(3 * 8192 + 24)), Some(1));
    }

    #[test]
    fn the_queue_is_bounded_and_still_lets_a_late_replica_catch_up() {
        let mut samples = Samples::default();
        for n in 0..10 * FRESHNESS_SAMPLES_MAX as u64 {
            samples.add(n + 1, Lsn(1000 + n * 1000));
        }
        assert!(samples.waiting.len() <= FRESHNESS_SAMPLES_MAX);
        assert!(samples.passed(Lsn(u64::MAX)).is_some());
    }
}
