//! How fast rows are copied: in pieces, with a rest after each, as long as the runner lets them go on. PURE but for a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A piece should take about so long: its rows are locked against TRUNCATE and the like, and a pause or a limit holds from the
/// next one on.
const PIECE: Duration = Duration::from_millis(400);
/// Rows may have much beside their pages.
const PAGES_FIRST: i64 = 8;
const PAGES_LEAST: i64 = 4;
const PAGES_MOST: i64 = 1 << 15;
/// A piece of pages that are full of rows of the scope is over within so long by the limit of bytes.
const LIMITED_PIECE: Duration = Duration::from_secs(2);
const PAGE: i64 = 8192;
/// Nothing goes on for longer than that without a runner who looks after it.
const ALLOWANCE: Duration = Duration::from_secs(1);
/// Of the time of a piece, what is rested after it.
const REST: f64 = 0.35;
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
    pages: i64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                open_until: now,
                due: now,
                bytes_per_second: None,
                parallel: 1,
                workers: 0,
                pages: PAGES_FIRST,
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
        let state = self.state();
        if now >= state.open_until {
            return Some(LOOK);
        }
        // Not all at once: the limit may change meanwhile.
        (state.due > now).then(|| (state.due - now).min(LOOK))
    }

    /// Why it waits, if it waits for the limit of bytes.
    pub(super) fn limit(&self, now: Instant) -> Option<i64> {
        let state = self.state();
        state.bytes_per_second.filter(|_| state.due > now)
    }

    /// Pages of the next piece.
    pub(super) fn pages(&self) -> i64 {
        let state = self.state();
        let limited = state.bytes_per_second.map(|most| most.max(0).saturating_mul(LIMITED_PIECE.as_secs() as i64) / PAGE);
        state.pages.min(limited.unwrap_or(PAGES_MOST).max(PAGES_LEAST))
    }

    /// A piece of so many pages is over. Returns how long to rest.
    pub(super) fn spent(&self, now: Instant, pages: i64, bytes: u64, took: Duration) -> Duration {
        let mut state = self.state();
        state.pages = next_pages(state.pages, pages, took);
        if let Some(most) = state.bytes_per_second {
            let cost = Duration::from_secs_f64(bytes as f64 / most.max(1) as f64);
            state.due = state.due.max(now.checked_sub(took).unwrap_or(now)) + cost;
        }
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

/// Pages of the next piece, after one of `pages` that was to be of `most` and took so long.
fn next_pages(most: i64, pages: i64, took: Duration) -> i64 {
    let next = match took {
        took if took > PIECE * 2 => most / 2,
        // The last piece of a table says nothing of large ones.
        took if took < PIECE / 2 && pages >= most => most * 2,
        _ => most,
    };
    next.clamp(PAGES_LEAST, PAGES_MOST)
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
        pace.spent(now + second / 10, 1, 500, second / 10);
        let at = |ms: u64| {
            pace.allow(now + Duration::from_millis(ms), true, Some(1000), 1);
            pace.wait(now + Duration::from_millis(ms))
        };
        assert!(at(450).is_some());
        assert_eq!(at(500), None);
        // What was not copied in a long rest is not made up for.
        pace.spent(now + second * 60, 1, 1000, second / 10);
        assert!(at(60_500).is_some());
        assert_eq!(at(60_900), None);
        pace.spent(now + second * 61, 1, 1 << 40, second);
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
    fn pieces_fit_the_machine_and_the_limit() {
        assert_eq!(next_pages(128, 128, PIECE), 128);
        assert_eq!(next_pages(128, 128, PIECE * 3), 64);
        assert_eq!(next_pages(PAGES_LEAST, PAGES_LEAST, PIECE * 30), PAGES_LEAST);
        assert_eq!(next_pages(128, 128, Duration::ZERO), 256);
        assert_eq!(next_pages(128, 5, Duration::ZERO), 128);
        assert_eq!(next_pages(PAGES_MOST, PAGES_MOST, Duration::ZERO), PAGES_MOST);
        let now = Instant::now();
        let pace = Pace::new(now);
        assert_eq!(pace.pages(), PAGES_FIRST);
        pace.allow(now, true, Some(3 * PAGE), 1);
        assert_eq!(pace.pages(), 6);
        pace.allow(now, true, Some(0), 1);
        assert_eq!(pace.pages(), PAGES_LEAST);
        assert_eq!(pace.limit(now), None);
        pace.spent(now, 4, 1000, PIECE);
        assert_eq!(pace.limit(now), Some(0));
    }
}
