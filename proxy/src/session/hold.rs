//! Statements that wait until their buckets have moved, or the lease is back.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use super::client::Activity;
use super::hang_up::{HangUp, poll_gone};
use super::motion::Denied;
use super::{Flow, Next, Session};
use crate::error::{ProxyError, Retry};
use crate::limits;
use crate::motion::boottime_ms;
use crate::worker::Worker;

/// Why a statement waits as long as there is no lease.
pub(super) const UNKNOWN_OWNERS: &str =
    "its buckets may have been moved to another shard, and the catalog cannot be asked";
pub(super) const UNKNOWN_SHARDS: &str =
    "it is for every shard, there may be more of them by now, and the catalog cannot be followed";

impl Session {
    /// `unleased`: why a statement was held, when it was for want of a lease.
    pub(super) fn deny(&mut self, denied: Denied, unleased: &str) -> Denied {
        match denied {
            Denied::Hold => {
                let since = *self.held_since.get_or_insert_with(Instant::now);
                if since.elapsed() < limits::HOLD {
                    return Denied::Hold;
                }
                self.held_since = None;
                self.worker.stats.hold_timeouts.add(1);
                Denied::Never(held_too_long(&self.worker, unleased))
            }
            Denied::Never(error) => {
                self.held_since = None;
                if error.sqlstate == "40001" {
                    self.worker.stats.moved.add(1);
                }
                Denied::Never(error)
            }
        }
    }

    /// What to do with a message whose statement waits. Nothing may be outstanding meanwhile.
    pub(super) fn hold_message(&mut self) -> Flow {
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        // Nothing of the transaction was sent: the message is looked at again as a whole.
        if !self.servers.iter().any(|server| server.enlisted) {
            self.info.touch.borrow_mut().clear();
        }
        Flow::After(Next::Hold)
    }

    /// Waits for a change of what moves, or of the lease. The caller looks at its statement again.
    pub(crate) async fn wait_for_move(&mut self) {
        let worker = self.worker.clone();
        let progress = &worker.progress;
        use std::sync::atomic::Ordering;
        if progress.holding.load(Ordering::Relaxed) >= limits::HELD {
            self.held_since = None;
            self.failure = Some(Box::new(
                ProxyError::new("53300", "too many statements wait for their buckets to be moved")
                    .hint("Run it again; the move takes less than a second.")
                    .retry(Retry::Safe),
            ));
            return;
        }
        let first = self.held_since.is_none_or(|since| since.elapsed() < limits::HOLD_LOOK);
        if first {
            worker.stats.holds.add(1);
        }
        self.info.set_activity(Activity::WaitingForServer, Instant::now());
        progress.holding.fetch_add(1, Ordering::Relaxed);
        // Nothing was sent, and nobody waits any more: what the transaction has locked is let go.
        let outside = self.hang_up == HangUp::Ignored;
        if outside {
            self.hang_up = HangUp::Watched;
        }
        let mut gone = false;
        let mut changes = worker.changes();
        // What was published since the statement was looked at is not waited for.
        let judged_by = worker.current().clone();
        let newest = worker.state().clone();
        if Arc::ptr_eq(&judged_by, &newest) {
            let (stream, input, hang_up) = (&mut self.stream, &mut self.input, self.hang_up);
            tokio::select! {
                biased;
                () = self.info.cancelled.notified() => {
                    // The next one that waits waits for its own sake.
                    self.held_since = None;
                    let cancelled = ProxyError::new("57014", "canceling statement due to user request");
                    self.failure = Some(Box::new(cancelled.retry(Retry::Safe)));
                }
                () = poll_fn(|cx| poll_gone(stream, input, hang_up, cx)) => gone = true,
                _ = changes.changed() => {}
                () = tokio::time::sleep(limits::HOLD_LOOK) => {}
            }
        }
        progress.holding.fetch_sub(1, Ordering::Relaxed);
        if gone {
            self.hung_up();
            self.failure = Some(Box::new(ProxyError::client_gone()));
        } else if outside {
            self.hang_up = HangUp::Ignored;
        }
        self.set_activity();
    }
}

fn held_too_long(worker: &Worker, unleased: &str) -> ProxyError {
    let leased = worker.gate().is_leased(boottime_ms());
    let why = if leased { "its buckets are being moved to another shard" } else { unleased };
    ProxyError::new("57P03", format!("the statement waited for {} s: {why}", limits::HOLD.as_secs()))
        .hint("The statement was not sent; run it again. SHOW MOVES on the console, or shardctl status, tells how far the move is.")
        .retry(Retry::Safe)
}
