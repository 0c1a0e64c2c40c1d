//! How long this proxy may rely on what it knows (H8).
//!
//! A lease is renewed every second for five. As long as it runs, everybody who changes the map waits for this proxy. When it
//! has run out, others may have gone on without it. Time is `CLOCK_BOOTTIME`: it also passes while the machine sleeps, and,
//! like any clock, while the process is stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long a lease is, from the moment at which its renewal was sent.
pub const LEASE: Duration = Duration::from_millis(5000);
pub const RENEW: Duration = Duration::from_millis(1000);
/// The follower tries at least so often, whether it succeeds or not. When it has not, the process was stopped.
pub const SUSPENDED: Duration = Duration::from_millis(3000);

const _: () = assert!(RENEW.as_millis() * 3 < LEASE.as_millis());
const _: () = assert!(SUSPENDED.as_millis() < LEASE.as_millis());

/// Milliseconds since the machine started.
pub fn boottime_ms() -> u64 {
    // It can only fail for a clock that the kernel does not have.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let (seconds, nanoseconds) = (time.tv_sec() as u64, time.tv_nsec() as u64);
        seconds * 1000 + nanoseconds / 1_000_000
    })
}

/// Written by the follower, read by all workers.
#[derive(Debug)]
pub struct Gate {
    until_ms: AtomicU64,
    tried_ms: AtomicU64,
}

/// What may be sent, or passed on to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    All,
    /// The catalog cannot be reached: all but what is known to move.
    Resting,
    /// The process was stopped, and has not looked at the catalog since: nothing that depends on the map.
    Nothing,
}

impl Gate {
    /// Nothing is leased yet.
    pub fn new(now_ms: u64) -> Self {
        Self { until_ms: AtomicU64::new(0), tried_ms: AtomicU64::new(now_ms) }
    }

    /// `sent_ms`: when the renewal was sent that has succeeded, and after which the catalog was read.
    pub fn renewed(&self, sent_ms: u64) {
        self.until_ms.store(sent_ms + LEASE.as_millis() as u64, Ordering::Release);
    }

    /// The follower has asked the catalog something at `began_ms`, and in vain.
    pub fn tried(&self, began_ms: u64) {
        self.tried_ms.fetch_max(began_ms, Ordering::AcqRel);
    }

    pub fn is_leased(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Ordering::Acquire)
    }

    #[inline]
    pub fn pass(&self, now_ms: u64) -> Pass {
        if now_ms < self.until_ms.load(Ordering::Acquire) {
            return Pass::All;
        }
        let silent = now_ms.saturating_sub(self.tried_ms.load(Ordering::Acquire));
        if silent > SUSPENDED.as_millis() as u64 { Pass::Nothing } else { Pass::Resting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h8_a_process_that_was_stopped_looks_before_it_goes_on() {
        let gate = Gate::new(1000);
        assert_eq!(gate.pass(1000), Pass::Resting, "started while the catalog is down");
        gate.renewed(1100);
        gate.tried(1100);
        assert_eq!((gate.pass(6099), gate.is_leased(6099)), (Pass::All, true), "stopped for less than its lease");
        assert_eq!((gate.pass(6100), gate.is_leased(6100)), (Pass::Nothing, false));
        gate.tried(6110);
        assert_eq!(gate.pass(6120), Pass::Resting, "it has tried, and the catalog does not answer");
        gate.renewed(6200);
        assert_eq!(gate.pass(6201), Pass::All);
    }

    #[test]
    fn the_clock_goes_on() {
        let before = boottime_ms();
        std::thread::sleep(Duration::from_millis(3));
        assert!(before > 0 && boottime_ms() >= before + 2);
    }
}
