//! A server's error: what it means for the statement, the batch and the transaction that it is about, and which error the
//! client is told.

use super::replies::Verdict;
use super::{Expect, Next, Session};
use crate::control::deadlock::deadlock_detected;
use crate::error::ProxyError;
use crate::pool::Role;
use crate::wire::read;

impl Session {
    /// An ErrorResponse, which may be told as another one.
    pub(super) fn error(&mut self, at: usize, message: &[u8]) -> Verdict {
        match (self.failed(at, message), self.prologue_error.take()) {
            (Verdict::Pass, None) if self.is_deadlock(message) => Verdict::Instead(deadlock()),
            // Kept for the error that follows from it.
            (Verdict::Swallow, kept) => {
                self.prologue_error = kept;
                Verdict::Swallow
            }
            (Verdict::Pass, Some(cause)) => Verdict::Instead(cause),
            (verdict, _) => verdict,
        }
    }

    fn failed(&mut self, at: usize, message: &[u8]) -> Verdict {
        self.copy_in = false;
        let server = &mut self.servers[at];
        let sqlstate = read::error_field(message, b'C').unwrap_or_default();
        let fatal = read::error_field(message, b'V').is_some_and(|s| s != b"ERROR");
        if fatal {
            // The end of the connection follows, and with it the verdict on the statement.
            server.dirty = true;
        }
        // Standbys also cancel reads that are in the way of replay (40001 there, 25006 for what must write).
        let of_replica = server.role == Role::Replica && (sqlstate == b"25006" || sqlstate == b"40001");
        if of_replica && !self.retry.is_empty() && !self.answered {
            return Verdict::Retry;
        }
        match self.queue.front_mut() {
            Some(Expect::Abort) => return Verdict::Swallow,
            Some(Expect::Prologue) if !fatal => {
                self.prologue_error = Some(message.into());
                return Verdict::Swallow;
            }
            Some(Expect::Hidden | Expect::Prologue) => {
                let text =
                    String::from_utf8_lossy(read::error_field(message, b'M').unwrap_or(b"?")).into_owned();
                tracing::warn!(client = %self.info.address, text, "a server refused the session's settings");
                return Verdict::Broken("the server refused the session's settings");
            }
            Some(Expect::Query(pending)) => {
                if let Some(pending) = pending {
                    pending.failed = true;
                }
                self.worker.stats.server_errors.add(1);
                return Verdict::Pass;
            }
            None => return if fatal { Verdict::Swallow } else { Verdict::Pass },
            _ => {}
        }
        self.worker.stats.server_errors.add(1);
        if sqlstate == b"0A000" && matches!(self.queue.front(), Some(Expect::Bind | Expect::HiddenBind)) {
            // "cached plan must not change result type": DDL that we have not heard of yet. Whoever prepared by
            // name gets this error as from PostgreSQL; who parses anew must not get it again.
            self.worker.registry.borrow_mut().clear();
        }
        let poison = matches!(self.queue.front(), Some(Expect::Poison));
        // The server ignores everything up to Sync: no replies will come for it.
        let until = self.queue.iter().position(|e| matches!(e, Expect::Sync | Expect::HiddenSync));
        self.skip = !self.queue.iter().any(|e| matches!(e, Expect::Sync));
        self.drop_expected(until.unwrap_or(usize::MAX));
        if self.sync_owed {
            self.skip = false;
            self.send_owed_sync(at);
        }
        self.implicit_failed();
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
        }
        if poison { Verdict::Swallow } else { Verdict::Pass }
    }

    /// What the server was told to cancel because of a deadlock over several shards.
    pub(super) fn is_deadlock(&self, error: &[u8]) -> bool {
        self.info.deadlocked.get() && read::error_field(error, b'C') == Some(b"57014")
    }

    /// Forgets the first `count` expected replies, which will not come.
    pub(super) fn drop_expected(&mut self, count: usize) {
        for _ in 0..count {
            let Some(expect) = self.queue.pop_front() else { return };
            let name = match expect {
                Expect::HiddenParse(entry) => {
                    self.forget_on_server(entry.id);
                    None
                }
                Expect::Parse(entry, name) => {
                    self.forget_on_server(entry.id);
                    name
                }
                Expect::OursParse(name) => name,
                _ => None,
            };
            if let (Some(name), Some(extended)) = (name, &mut self.extended) {
                extended.statements.remove(&name);
            }
        }
    }

    fn forget_on_server(&mut self, id: u64) {
        if let Some(server) = self.servers.get_mut(self.active) {
            server.forget(id);
            server.unnamed = 0;
        }
    }

    /// An error on one server of a transaction block: the others still hold the locks that one server would have
    /// released with it.
    pub(super) fn others_hold_on(&self, at: usize) -> bool {
        self.servers.get(at).is_some_and(|s| s.status == b'E')
            && self.servers.iter().any(|s| s.enlisted && s.status == b'T')
    }

    pub(super) fn broken(&mut self, why: &'static str) -> Option<Next> {
        for server in &mut self.servers {
            server.dirty = true;
        }
        tracing::error!(client = %self.info.address, why, expected = ?self.queue.front(), "session closed");
        Some(Next::Close(Some(Box::new(ProxyError::new("08P01", why).fatal()))))
    }
}

pub(super) fn deadlock() -> Box<[u8]> {
    let mut bytes = Vec::new();
    deadlock_detected().write(&mut bytes);
    bytes.into()
}
