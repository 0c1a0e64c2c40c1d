//! When a lane posts again: no IO and no clock of its own.
//!
//! A posting statement costs what ten payments cost, so a lane that is never idle lets some gather.

use std::time::{Duration, Instant};

use crate::limits::{GATHER_ENOUGH, GATHER_INTERVALS, GATHER_LOOKS};

/// One slot's memory of its last batch.
pub struct Pace {
    interval: Duration,
    most: usize,
    last: Option<Last>,
}

/// A batch of several payments.
struct Last {
    began: Instant,
    payments: usize,
}

impl Pace {
    /// `interval`: the least time between the beginnings of two batches. `most`: payments of a full batch.
    pub fn new(interval: Duration, most: usize) -> Self {
        Self { interval, most, last: None }
    }

    /// A batch of `payments` begins. After one of a single payment the lane was idle, or has a single client that waits for
    /// each answer: nothing would gather.
    pub fn began(&mut self, payments: usize, now: Instant) {
        self.last = (payments > 1).then_some(Last { began: now, payments });
    }

    /// `None`: what waits is to be posted now. Otherwise the time at which to ask again.
    ///
    /// After one interval it goes if it is worth a statement, or if as many wait as were posted last time: clients that
    /// wait for their answers are all back then. After [`GATHER_INTERVALS`] it goes whatever there is.
    pub fn wait(&self, waiting: usize, now: Instant) -> Option<Instant> {
        let last = self.last.as_ref()?;
        let (earliest, latest) = (last.began + self.interval, last.began + self.interval * GATHER_INTERVALS);
        if waiting >= self.most || now >= latest {
            return None;
        }
        if now < earliest {
            return Some(earliest);
        }
        if waiting >= last.payments.min(GATHER_ENOUGH) {
            return None;
        }
        Some((now + self.interval / GATHER_LOOKS).min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(20);

    fn after(payments: usize) -> (Pace, Instant) {
        let began = Instant::now();
        let mut pace = Pace::new(INTERVAL, 100);
        pace.began(payments, began);
        (pace, began)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn an_idle_lane_and_a_single_client_do_not_wait() {
        assert_eq!(Pace::new(INTERVAL, 100).wait(1, Instant::now()), None);
        let (pace, began) = after(1);
        assert_eq!(pace.wait(1, began), None);
    }

    #[test]
    fn a_busy_lane_keeps_its_interval_unless_a_batch_is_full() {
        let (pace, began) = after(5);
        assert_eq!(pace.wait(99, began + ms(3)), Some(began + INTERVAL));
        assert_eq!(pace.wait(100, began + ms(3)), None);
    }

    #[test]
    fn enough_payments_or_as_many_as_last_time_go_after_one_interval() {
        let (pace, began) = after(50);
        assert_eq!(pace.wait(GATHER_ENOUGH, began + INTERVAL), None);
        assert!(pace.wait(GATHER_ENOUGH - 1, began + INTERVAL).is_some());
        let (pace, began) = after(3);
        assert_eq!(pace.wait(3, began + INTERVAL), None);
        assert!(pace.wait(2, began + INTERVAL).is_some());
    }

    #[test]
    fn few_payments_wait_to_the_last_interval_and_not_longer() {
        let (pace, began) = after(50);
        let (mut now, mut looks) = (began, 0);
        while let Some(at) = pace.wait(1, now) {
            assert!(at > now, "a look that does not move would spin");
            now = at;
            looks += 1;
            assert!(looks <= 1 + GATHER_LOOKS * GATHER_INTERVALS, "{looks} looks");
        }
        assert_eq!(now, began + INTERVAL * GATHER_INTERVALS);
    }

    #[test]
    fn without_an_interval_nothing_waits() {
        let mut pace = Pace::new(Duration::ZERO, 100);
        let now = Instant::now();
        pace.began(50, now);
        assert_eq!(pace.wait(1, now), None);
    }
}
