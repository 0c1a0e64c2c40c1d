//! The client's messages, one after the other.

use super::multi_hook::MultiWork;
use super::{Expect, Flow, Next, Session};
use crate::error::ProxyError;
use crate::wire::{build, frame};

impl Session {
    /// Looks at what the client sent; returns how much was processed and what must be done first, if anything.
    pub(super) fn client_bytes(&mut self, bytes: &[u8]) -> (usize, Option<Next>) {
        let mut at = 0;
        while at < bytes.len() && !self.closing {
            let rest = &bytes[at..];
            let size = match frame::client_frame(rest) {
                Ok(Some(size)) if size <= rest.len() => size,
                Ok(_) => break,
                Err(error) => {
                    return (
                        bytes.len(),
                        Some(Next::Close(Some(Box::new(ProxyError::protocol(error.to_string()))))),
                    );
                }
            };
            if self.drain && self.queue.is_empty() {
                self.drain = false;
            }
            if !self.may_look() {
                break;
            }
            match self.message(&rest[..size], &rest[size..]) {
                Flow::Done => at += size,
                Flow::Later => break,
                Flow::After(next) => return (at, Some(next)),
                Flow::DoneThen(next) => return (at + size, Some(next)),
            }
        }
        (at, None)
    }

    #[inline]
    fn may_look(&self) -> bool {
        if self.drain {
            return false;
        }
        // While COPY data is awaited nothing may wait behind it: `message` refuses what is not part of it.
        !self.gate || self.copy_in
    }

    #[inline]
    fn message(&mut self, message: &[u8], behind: &[u8]) -> Flow {
        let tag = message[0];
        // As PostgreSQL: after an error everything but Sync is ignored.
        if self.skip && !matches!(tag, b'S' | b'X') {
            return Flow::Done;
        }
        if self.copy_in {
            return match tag {
                b'd' | b'c' | b'f' => self.on_copy_data(message),
                b'S' | b'H' => Flow::Done, // As PostgreSQL: those that were sent before the data.
                b'X' => Flow::DoneThen(Next::Close(None)),
                _ => {
                    let tag = char::from(tag).escape_default();
                    let text = format!("unexpected message type '{tag}' from client during COPY from stdin");
                    Flow::DoneThen(Next::Close(Some(Box::new(ProxyError::protocol(text)))))
                }
            };
        }
        match tag {
            b'Q' => self.on_query(message),
            b'P' => self.on_parse(message),
            b'B' => self.on_bind(message, behind),
            b'D' => self.on_describe(message),
            b'E' => self.on_execute(message),
            b'C' => self.on_close(message),
            b'S' => self.on_sync(),
            b'H' => self.on_flush(),
            b'd' | b'c' | b'f' => self.on_copy_data(message),
            b'X' => Flow::DoneThen(Next::Close(None)),
            b'F' => {
                let error = ProxyError::not_supported(
                    "the function call sub-protocol is not supported",
                    "Call the function with SELECT.",
                );
                self.refuse_query(&error);
                Flow::Done
            }
            _ => Flow::DoneThen(Next::Close(Some(Box::new(ProxyError::protocol(format!(
                "unexpected message type '{}' from client",
                char::from(tag).escape_default()
            )))))),
        }
    }

    pub(super) fn on_flush(&mut self) -> Flow {
        if !self.extended().held.is_empty()
            && let Err(flow) = self.place_held()
        {
            return flow;
        }
        if let Some(server) = self.servers.get_mut(self.active).filter(|s| s.unsynced) {
            server.out.extend_from_slice(build::FLUSH);
        }
        self.answered = true; // Nothing of ours is kept back any more.
        Flow::Done
    }

    pub(super) fn on_sync(&mut self) -> Flow {
        if !self.skip
            && self.extended.as_ref().is_some_and(|e| !e.held.is_empty())
            && let Err(flow) = self.place_held()
        {
            return flow;
        }
        if self.skip
            && let Some(extended) = &mut self.extended
        {
            extended.held.clear();
        }
        if self.needs_multi_end() {
            if !self.queue.is_empty() {
                return self.wait_for_replies();
            }
            let work = if self.skip || self.participant_lost {
                MultiWork::Rollback { tag: false, chain: false, ready: true }
            } else {
                MultiWork::Commit { tag: false, chain: false, ready: true }
            };
            self.skip = false;
            return Flow::DoneThen(Next::Multi(Box::new(work)));
        }
        self.skip = false;
        self.participant_lost = false; // Nobody is left.
        match self.servers.get_mut(self.active).filter(|s| s.unsynced) {
            Some(server) => {
                if self.queue.iter().any(|e| matches!(e, Expect::Execute(Some(p)) if p.copies)) {
                    server.out.extend_from_slice(build::FLUSH);
                    self.sync_owed = true;
                } else {
                    server.out.extend_from_slice(build::SYNC);
                    self.queue.push_back(Expect::Sync);
                }
                self.gate = true;
            }
            None => {
                if self.transaction.is_none()
                    && let Some(extended) = &mut self.extended
                {
                    // The implicit transaction is over, though no server was a part of it.
                    extended.portals.clear();
                }
                let mut bytes = Vec::new();
                build::ready(&mut bytes, self.status());
                self.say(bytes);
            }
        }
        self.set_activity();
        Flow::Done
    }

    /// The statement that the client's Sync waited for is over.
    pub(super) fn send_owed_sync(&mut self, at: usize) {
        let more = self.queue.iter().any(|e| matches!(e, Expect::Execute(Some(p)) if p.copies));
        if self.sync_owed && !more {
            self.sync_owed = false;
            self.servers[at].out.extend_from_slice(build::SYNC);
            self.queue.push_back(Expect::Sync);
        }
    }

    fn on_copy_data(&mut self, message: &[u8]) -> Flow {
        // Outside COPY these are ignored, as PostgreSQL does: the client had not yet seen the error that ended it.
        if self.copy_in && self.active < self.servers.len() {
            self.servers[self.active].out.extend_from_slice(message);
            if message[0] != b'd' {
                self.copy_in = false;
            }
        }
        Flow::Done
    }

    /// Says an error in answer to a Query, and that we are ready for the next.
    pub(super) fn refuse_query(&mut self, error: &ProxyError) {
        self.worker.stats.refusals.add(1);
        let mut bytes = Vec::new();
        error.write(&mut bytes);
        self.abort_transaction(false);
        build::ready(&mut bytes, self.status());
        self.say(bytes);
        self.settle_touch();
    }

    /// Bytes of our own, behind everything that is outstanding.
    pub(super) fn say(&mut self, bytes: Vec<u8>) {
        if self.queue.is_empty() {
            self.client_output().extend_from_slice(&bytes);
        } else {
            self.queue.push_back(Expect::Ours(bytes.into()));
        }
    }

    pub(super) fn say_static(&mut self, bytes: &'static [u8]) {
        if self.queue.is_empty() {
            self.client_output().extend_from_slice(bytes);
        } else {
            self.queue.push_back(Expect::OursStatic(bytes));
        }
    }

    /// The transaction status byte of ReadyForQuery.
    pub(super) fn status(&self) -> u8 {
        match &self.transaction {
            None => b'I',
            Some(transaction) if transaction.failed => b'E',
            Some(_) => b'T',
        }
    }
}
