//! Group commit: one lane a shard.
//!
//! [`queue`] holds what waits, [`slot`] posts batch after batch and settles every failure, [`breaker`] refuses early while
//! a shard is gone, [`poison`] knows the tenants whose payments spoil batches, [`map`] follows the shard map,
//! [`lanes`] ties them together, and [`signal`] wakes the relay of a shard after a commit.
//!
//! Invariants: every accepted job is answered exactly once; its key is released before its answer is sent; a job is only
//! answered "nothing was done" if no statement that held it has an unknown outcome.

pub mod breaker;
pub mod lanes;
pub mod map;
pub mod pace;
pub mod poison;
pub mod queue;
pub mod signal;
pub mod slot;

use std::time::Instant;

use tokio::sync::oneshot;

use crate::domain::code::Code;
use crate::domain::payment::{NewPayment, Verdict};
use crate::idempotency::inflight::KeyGuard;

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPosted {
    /// The lane's queue is full. Nothing was done.
    QueueFull,
    /// The shard does not answer, or its breaker is open. Nothing was done.
    ShardUnavailable,
    /// It waited in the queue longer than its request may take. Nothing was done.
    Overloaded,
    /// It was sent, and whether it was applied could not be found out in time.
    OutcomeUnknown,
    /// Another request of this instance is working on the key.
    InFlight,
    /// The database refuses the values. Nothing was done.
    Unprocessable,
    /// The schema or this program is wrong. Nothing was done.
    Broken,
    ShuttingDown,
}

impl NotPosted {
    pub fn code(self) -> Code {
        match self {
            Self::QueueFull => Code::QueueFull,
            Self::ShardUnavailable => Code::ShardUnavailable,
            Self::Overloaded => Code::Overloaded,
            Self::OutcomeUnknown => Code::OutcomeUnknown,
            Self::InFlight => Code::IdempotencyKeyInFlight,
            Self::Unprocessable => Code::Unprocessable,
            Self::Broken => Code::Internal,
            Self::ShuttingDown => Code::ShuttingDown,
        }
    }
}

pub type Answer = Result<Verdict, NotPosted>;

/// A payment on its way, with whoever waits for it.
pub struct Job {
    pub payment: NewPayment,
    guard: KeyGuard,
    reply: oneshot::Sender<Answer>,
    queued_at: Instant,
    /// Not sent after this.
    deadline: Instant,
    /// A statement that held it has an unknown outcome.
    sent_unknown: bool,
    /// How often it went to another lane because the map had changed.
    moves: u8,
}

impl Job {
    /// "Nothing was done" is no longer ours to say once an outcome was unknown, and a rejection says it too: it keeps no
    /// key, so the first try may still arrive and find what the second one missed. A stored verdict is final, and so is a
    /// mismatch: the key is somebody else's for both.
    fn honest(&self, answer: Answer) -> Answer {
        match answer {
            Err(_) | Ok(Verdict::Rejected(_)) if self.sent_unknown => Err(NotPosted::OutcomeUnknown),
            answer => answer,
        }
    }

    /// The receiver may have gone with its HTTP request; the payment is what it is all the same.
    fn answer(self, answer: Answer) {
        let answer = self.honest(answer);
        drop(self.guard);
        let _ = self.reply.send(answer);
    }
}
