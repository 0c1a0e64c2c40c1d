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

/// With less of its lease left, a proxy asks the shards themselves what they know of moves.
pub const DOUBT: Duration = Duration::from_millis(2500);

const _: () = assert!(RENEW.as_millis() * 3 < LEASE.as_millis());
const _: () = assert!(RENEW.as_millis() * 2 < (LEASE.as_millis() - DOUBT.as_millis()) + RENEW.as_millis());
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
    /// Shards, by position, that know of a move that this proxy does not know; the last bit stands for all that follow.
    behind: AtomicU64,
    /// How often a lease began anew: others may have gone on without this proxy in between.
    terms: AtomicU64,
}

/// What may be sent, or passed on to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    All,
    /// The catalog cannot be reached: all but what is known to move.
    Resting,
    /// The process was stopped, and has not looked at the catalog since, or a shard knows more than the catalog has told:
    /// nothing that depends on the map.
    Nothing,
}

impl Gate {
    /// Nothing is leased yet.
    pub fn new(now_ms: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self { until_ms: zero(), tried_ms: AtomicU64::new(now_ms), behind: zero(), terms: zero() }
    }

    /// As `renewed`, after there was no lease.
    pub fn joined(&self, sent_ms: u64) {
        self.terms.fetch_add(1, Ordering::AcqRel);
        self.renewed(sent_ms);
    }

    /// What was routed in another term than this was routed by what may be long over. To be read before anything is judged, and
    /// after the lease was looked at when it is judged again.
    #[inline]
    pub fn term(&self) -> u64 {
        self.terms.load(Ordering::Acquire)
    }

    /// `sent_ms`: when the renewal was sent that has succeeded, and after which the catalog was read.
    pub fn renewed(&self, sent_ms: u64) {
        self.behind.store(0, Ordering::Release);
        self.until_ms.store(sent_ms + LEASE.as_millis() as u64, Ordering::Release);
    }

    /// Are the shards to be asked? In time for their answers to be there when the lease runs out.
    pub fn is_in_doubt(&self, now_ms: u64) -> bool {
        now_ms + DOUBT.as_millis() as u64 >= self.until_ms.load(Ordering::Acquire)
    }

    /// Whether a shard knows of a move that this proxy does not know.
    pub fn shard_knows_more(&self, position: usize, more: bool) {
        let shared = position >= 63;
        let bit = 1u64 << position.min(63);
        if more {
            self.behind.fetch_or(bit, Ordering::AcqRel);
        } else if !shared {
            self.behind.fetch_and(!bit, Ordering::AcqRel);
        }
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
        if self.behind.load(Ordering::Acquire) != 0 || silent > SUSPENDED.as_millis() as u64 {
            Pass::Nothing
        } else {
            Pass::Resting
        }
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
        assert_eq!(
            (gate.pass(6099), gate.is_leased(6099)),
            (Pass::All, true),
            "stopped for less than its lease"
        );
        assert_eq!((gate.pass(6100), gate.is_leased(6100)), (Pass::Nothing, false));
        gate.tried(6110);
        assert_eq!(gate.pass(6120), Pass::Resting, "it has tried, and the catalog does not answer");
        let term = gate.term();
        gate.joined(6200);
        assert_eq!(gate.pass(6201), Pass::All);
        assert_ne!(gate.term(), term, "what was routed before is told from what is routed now");
        let term = gate.term();
        gate.renewed(6300);
        assert_eq!(gate.term(), term);
    }

    #[test]
    fn h6_a_shard_that_knows_more_than_the_catalog_has_told_is_believed() {
        let gate = Gate::new(1000);
        gate.renewed(1000);
        assert!(!gate.is_in_doubt(3499) && gate.is_in_doubt(3500));
        gate.shard_knows_more(2, true);
        gate.shard_knows_more(70, true);
        assert_eq!(gate.pass(5999), Pass::All, "who is leased is waited for");
        gate.tried(5999);
        assert_eq!(gate.pass(6000), Pass::Nothing);
        gate.shard_knows_more(2, false);
        gate.shard_knows_more(70, false);
        assert_eq!(gate.pass(6000), Pass::Nothing, "one bit for many shards");
        gate.renewed(6000);
        gate.tried(11_000);
        assert_eq!((gate.pass(6001), gate.pass(11_000)), (Pass::All, Pass::Resting));
    }

    #[test]
    fn the_clock_goes_on() {
        let before = boottime_ms();
        std::thread::sleep(Duration::from_millis(3));
        assert!(before > 0 && boottime_ms() >= before + 2);
    }
}
