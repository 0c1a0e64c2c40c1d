//! What happened during one run.
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Slowest latency told apart; slower ones count as this.
const MAX_LATENCY_US: u64 = 3_600_000_000;

pub struct Stats {
    pub window: (Instant, Instant),
    /// Microseconds from the intended start to the answer, one value a request.
    pub latency_us: Histogram<u64>,
    /// Payments of requests that were due in the window.
    pub ok: u64,
    pub declined: u64,
    pub replayed: u64,
    pub retries: u64,
    pub errors: BTreeMap<String, u64>,
    /// Payments posted (succeeded or declined) by answers that arrived in the window: the achieved rate, and what CPU
    /// and WAL of the window are divided by.
    pub completed_in_window: u64,
    pub posted_total: u64,
    pub errors_total: u64,
}

impl Stats {
    pub fn new(start: Instant, warmup: Duration, duration: Duration) -> Stats {
        Stats {
            window: (start + warmup, start + warmup + duration),
            latency_us: Histogram::new_with_bounds(1, MAX_LATENCY_US, 3)
                .unwrap_or_else(|_| unreachable!("constant bounds")),
            ok: 0,
            declined: 0,
            replayed: 0,
            retries: 0,
            errors: BTreeMap::new(),
            completed_in_window: 0,
            posted_total: 0,
            errors_total: 0,
        }
    }

    /// The window ends now, earlier than planned.
    pub fn cut(&mut self, now: Instant) {
        self.window.1 = now.max(self.window.0);
    }

    pub fn due_in_window(&self, intended: Instant) -> bool {
        intended >= self.window.0 && intended < self.window.1
    }

    /// The latency in microseconds, when it is one of those that are reported.
    pub fn answered(&mut self, intended: Instant, now: Instant) -> Option<u64> {
        if !self.due_in_window(intended) {
            return None;
        }
        let latency = now.saturating_duration_since(intended).as_micros();
        let latency_us = u64::try_from(latency).unwrap_or(u64::MAX).max(1);
        self.latency_us.saturating_record(latency_us);
        Some(latency_us)
    }

    pub fn posted(&mut self, intended: Instant, now: Instant, succeeded: bool, replayed: bool) {
        self.posted_total += 1;
        if now >= self.window.0 && now < self.window.1 {
            self.completed_in_window += 1;
        }
        if self.due_in_window(intended) {
            if succeeded {
                self.ok += 1;
            } else {
                self.declined += 1;
            }
            self.replayed += u64::from(replayed);
        }
    }

    pub fn failed(&mut self, intended: Instant, kind: String, payments: u64) {
        self.errors_total += payments;
        if self.due_in_window(intended) {
            *self.errors.entry(kind).or_default() += payments;
        }
    }
}
