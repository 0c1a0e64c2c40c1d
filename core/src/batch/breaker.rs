//! Circuit breaker of one shard.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::limits::{BREAKER_FAILURES, BREAKER_OPEN_MS};

/// Closed: everything passes. Open after [`BREAKER_FAILURES`] failures in a row: nothing passes, and every
/// [`BREAKER_OPEN_MS`] one request does, whose success closes it. A batch that is being retried keeps trying too.
pub struct Breaker {
    born: Instant,
    failures: AtomicU32,
    open_until_ms: AtomicU64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { born: Instant::now(), failures: AtomicU32::new(0), open_until_ms: AtomicU64::new(0) }
    }
}

impl Breaker {
    pub fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= BREAKER_FAILURES
    }

    /// Whether a request may pass now.
    pub fn admits(&self) -> bool {
        if !self.is_open() {
            return true;
        }
        let now = self.now_ms();
        let until = self.open_until_ms.load(Ordering::Relaxed);
        now >= until
            && self
                .open_until_ms
                .compare_exchange(until, now + BREAKER_OPEN_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Open, and nobody is due to try. Unlike [`Breaker::admits`] it does not take the turn of who tries.
    pub fn refuses(&self) -> bool {
        self.is_open() && self.now_ms() < self.open_until_ms.load(Ordering::Relaxed)
    }

    /// Any answer of the shard, even a refusal, shows that it is there.
    pub fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.open_until_ms.store(self.now_ms() + BREAKER_OPEN_MS, Ordering::Relaxed);
    }

    /// A statement without an answer for its whole time-out counts as a row of failures: waiting for more of them would
    /// fill the queue with requests that cannot be served.
    pub fn hung(&self) {
        self.failures.fetch_add(BREAKER_FAILURES, Ordering::Relaxed);
        self.open_until_ms.store(self.now_ms() + BREAKER_OPEN_MS, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_try() {
        let breaker = Breaker::default();
        for _ in 1..BREAKER_FAILURES {
            breaker.failed();
        }
        assert!(breaker.admits());
        breaker.failed();
        assert!(breaker.is_open() && !breaker.admits() && breaker.refuses());
        std::thread::sleep(Duration::from_millis(BREAKER_OPEN_MS + 20));
        assert!(!breaker.refuses());
        assert!(breaker.admits(), "one may try");
        assert!(!breaker.admits(), "only one");
        breaker.answered();
        assert!(breaker.admits() && !breaker.is_open());
        breaker.failed();
        assert!(breaker.admits(), "failures that are not in a row do not add up");
        breaker.hung();
        assert!(!breaker.admits());
    }
}
