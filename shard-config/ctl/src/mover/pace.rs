//! How fast rows are copied: in pieces, with a rest after each, as long as the runner lets them go on. PURE but for a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A piece should take about so long: its rows are locked against TRUNCATE and the like, and a pause or a limit holds from the
/// next one on.
const PIECE: Duration = Duration::from_millis(400);
/// The first ones, before anything is known of the machine.
const PAGES_FIRST: i64 = 32;
const PAGES_LEAST: i64 = 4;
const PAGES_MOST: i64 = 1 << 15;
/// A piece has no more bytes than this, if its rows are like the others of its table.
const PIECE_BYTES: i64 = 64 << 20;
/// One that has more waits for the limit of bytes each time, in the middle of itself.
pub(super) const PART_BYTES: u64 = 4 << 20;
/// A piece of pages that are full of rows of the scope is over within so long by the limit of bytes.
const LIMITED_PIECE: Duration = Duration::from_secs(2);
/// A page's bytes in most installations.
const PAGE: i64 = 8192;
/// Nothing goes on for longer than that without a runner who looks after it.
const ALLOWANCE: Duration = Duration::from_secs(1);
/// Of the time of a piece, what is rested after it.
const REST: f64 = 0.1;
/// Between two looks of one who must wait for the runner.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Pace {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open_until: Instant,
    /// When the bytes copied so far have had their time.
    due: Instant,
    bytes_per_second: Option<i64>,
    parallel: usize,
    workers: usize,
    wanted: Pages,
}

/// How many pages the next piece should have, by what the ones before took: of other tables, too, since it is the machine that it
/// depends on first of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pages(i64);

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                open_until: now,
                due: now,
                bytes_per_second: None,
                parallel: 1,
                workers: 0,
                wanted: Pages::FIRST,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of it is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runner's word, for a moment.
    pub(super) fn allow(&self, now: Instant, go: bool, bytes_per_second: Option<i64>, parallel: usize) {
        let mut state = self.state();
        state.open_until = if go { now + ALLOWANCE } else { now };
        state.parallel = parallel.max(1);
        if state.bytes_per_second != bytes_per_second {
            // A limit that was mended does not make up for the one before.
            (state.bytes_per_second, state.due) = (bytes_per_second, now);
        }
    }

    /// How long the next piece must wait at least before it asks again; `None` when it may begin.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        if now >= self.state().open_until { Some(LOOK) } else { self.owed(now) }
    }

    /// How long to wait at least for the limit of bytes before it is asked again. Not all at once: the limit may change.
    pub(super) fn owed(&self, now: Instant) -> Option<Duration> {
        let due = self.state().due;
        (due > now).then(|| (due - now).min(LOOK))
    }

    /// Why it waits, if it waits for the limit of bytes.
    pub(super) fn limit(&self, now: Instant) -> Option<i64> {
        let state = self.state();
        state.bytes_per_second.filter(|_| state.due > now)
    }

    /// Pages of the next piece, of `page_bytes` each with all that is stored beside them.
    pub(super) fn pages(&self, page_bytes: i64) -> i64 {
        let state = self.state();
        let limited =
            state.bytes_per_second.map(|most| most.max(0).saturating_mul(LIMITED_PIECE.as_secs() as i64));
        let most = PIECE_BYTES.min(limited.unwrap_or(PIECE_BYTES)) / page_bytes.max(PAGE);
        state.wanted.0.min(most.max(PAGES_LEAST))
    }

    /// So many bytes more were copied, by a piece that began then.
    pub(super) fn copied(&self, begun: Instant, bytes: u64) {
        let mut state = self.state();
        if let Some(most) = state.bytes_per_second {
            let cost = Duration::from_secs_f64(bytes as f64 / most.max(1) as f64);
            state.due = state.due.max(begun) + cost;
        }
    }

    /// A piece of so many pages is over.
    pub(super) fn spent(&self, pages: i64, took: Duration) {
        let mut state = self.state();
        state.wanted = state.wanted.after(pages, took);
    }

    /// How long a side rests that was busy with a piece for so long, and gives way to nobody meanwhile.
    pub(super) fn rest(&self, took: Duration) -> Duration {
        took.mul_f64(REST)
    }

    /// One worker more; false when there are enough.
    pub(super) fn join(&self) -> bool {
        let mut state = self.state();
        let room = state.workers < state.parallel;
        state.workers += usize::from(room);
        room
    }

    /// A worker that has ended a table: true when it is one too many now, and no longer counted.
    pub(super) fn is_surplus(&self) -> bool {
        let mut state = self.state();
        let surplus = state.workers > state.parallel;
        state.workers -= usize::from(surplus);
        surplus
    }

    pub(super) fn leave(&self) {
        self.state().workers -= 1;
    }
}

impl Pages {
    pub(super) const FIRST: Self = Self(PAGES_FIRST);

    /// After a piece of `pages` that took so long. No round trips but its own count, or a busy machine would keep them small.
    #[must_use]
    pub(super) fn after(self, pages: i64, took: Duration) -> Self {
        let next = match took {
            took if took > PIECE * 4 => (pages as f64 * PIECE.as_secs_f64() / took.as_secs_f64()) as i64,
            // It may have met a stall, and small ones are mostly round trips.
            took if took > PIECE * 2 => pages / 2,
            // At once: the next ones may be as large. The last piece of a table says nothing of large ones.
            took if took < PIECE / 8 && pages >= self.0 => self.0 * 4,
            took if took < PIECE / 2 && pages >= self.0 => self.0 * 2,
            _ => self.0,
        };
        Self(next.clamp(PAGES_LEAST, PAGES_MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_on_without_the_runner() {
        let now = Instant::now();
        let pace = Pace::new(now);
        assert!(pace.wait(now).is_some(), "it was not allowed yet");
        pace.allow(now, true, None, 1);
        assert_eq!(pace.wait(now + ALLOWANCE / 2), None);
        assert!(pace.wait(now + ALLOWANCE).is_some(), "the runner is gone, or pauses");
        pace.allow(now, false, None, 1);
        assert!(pace.wait(now).is_some());
    }

    #[test]
    fn bytes_have_their_time() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let pace = Pace::new(now);
        pace.allow(now, true, Some(1000), 1);
        assert_eq!(pace.wait(now), None);
        // Half a second's worth, in a tenth of one.
        pace.copied(now, 500);
        let at = |ms: u64| {
            pace.allow(now + Duration::from_millis(ms), true, Some(1000), 1);
            pace.wait(now + Duration::from_millis(ms))
        };
        assert!(at(450).is_some());
        assert_eq!(at(500), None);
        // What was not copied in a long rest is not made up for.
        pace.copied(now + second * 599 / 10, 1000);
        assert!(at(60_500).is_some());
        assert_eq!(at(60_900), None);
        pace.copied(now + second * 60, 1 << 30);
        pace.copied(now + second * 60, 1 << 40);
        pace.allow(now + second * 62, true, None, 1);
        assert_eq!(pace.wait(now + second * 62), None, "the limit was taken off");
    }

    #[test]
    fn workers_come_and_go_with_the_limit() {
        let now = Instant::now();
        let pace = Pace::new(now);
        pace.allow(now, true, None, 2);
        assert_eq!([pace.join(), pace.join(), pace.join()], [true, true, false]);
        assert!(!pace.is_surplus());
        pace.allow(now, true, None, 0);
        assert_eq!([pace.is_surplus(), pace.is_surplus()], [true, false], "one stays, whatever is asked for");
        pace.leave();
        assert!(pace.join());
    }

    #[test]
    fn a_piece_waits_for_the_bytes_of_its_first_part() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let pace = Pace::new(now);
        assert_eq!(pace.owed(now), None);
        pace.allow(now, true, Some(1000), 1);
        pace.copied(now, 1000);
        pace.copied(now, 1000);
        assert!(pace.owed(now + second * 19 / 10).is_some());
        assert_eq!(pace.owed(now + second * 2), None);
        pace.allow(now, true, None, 1);
        pace.copied(now, 1000);
        assert_eq!(pace.owed(now), None, "there is no limit");
    }

    #[test]
    fn pieces_fit_the_machine() {
        let after = |wanted: i64, pages: i64, took: Duration| Pages(wanted).after(pages, took).0;
        assert_eq!(after(128, 128, PIECE), 128);
        assert_eq!(after(128, 128, PIECE * 3), 64);
        assert_eq!(after(128, 128, PIECE * 8), 16);
        assert_eq!(after(128, 32, PIECE * 8), PAGES_LEAST, "it had fewer, for a reason of its own");
        assert_eq!(after(PAGES_LEAST, PAGES_LEAST, PIECE * 30), PAGES_LEAST);
        assert_eq!(after(128, 128, PIECE / 4), 256);
        assert_eq!(after(128, 128, Duration::ZERO), 512);
        assert_eq!(after(128, 5, Duration::ZERO), 128);
        assert_eq!(after(PAGES_MOST, PAGES_MOST, Duration::ZERO), PAGES_MOST);
    }

    #[test]
    fn pieces_fit_the_limit_and_the_rows() {
        let now = Instant::now();
        let pace = Pace::new(now);
        assert_eq!(pace.pages(PAGE), PAGES_FIRST);
        pace.allow(now, true, Some(3 * PAGE), 1);
        assert_eq!(pace.pages(PAGE), 6);
        pace.allow(now, true, Some(0), 1);
        assert_eq!(pace.pages(PAGE), PAGES_LEAST);
        pace.allow(now, true, Some(i64::MAX), 1);
        for _ in 0..20 {
            pace.spent(1 << 20, Duration::ZERO);
        }
        assert_eq!(pace.pages(PAGE), PIECE_BYTES / PAGE);
        // Rows of megabytes, most of them beside the pages.
        assert_eq!(pace.pages(4 << 20), 16);
        assert_eq!(pace.pages(1 << 30), PAGES_LEAST);
        assert_eq!(pace.pages(0), PIECE_BYTES / PAGE, "an empty table");
        for _ in 0..20 {
            pace.spent(1, PIECE * 10);
        }
        assert_eq!(pace.rest(PIECE * 10), (PIECE * 10).mul_f64(REST));
        assert_eq!(pace.pages(PAGE), PAGES_LEAST);
        pace.allow(now, true, Some(0), 1);
        assert_eq!(pace.limit(now), None);
        pace.copied(now, 1000);
        assert_eq!(pace.limit(now), Some(0));
    }
}
