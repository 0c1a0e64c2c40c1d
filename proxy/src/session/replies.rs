//! A server's messages: which the client sees, and what they mean for the session.
//!
//! Messages are found, not read: all that matters is their tag, and for a few of them (ReadyForQuery, errors,
//! parameter reports, descriptions) their body. Rows stay in the read buffer and leave from there.

use super::multi_hook::MultiWork;
use super::prepared::{says_it_exists, shape, tag_of_execute};
use super::{Expect, Next, Session};
use crate::limits;
use crate::route::plan::Effect;
use crate::wire::frame::{HEADER, server_frame};
use crate::wire::{build, read};

/// What to do with a message.
pub(super) enum Verdict {
    Pass,
    Swallow,
    /// Pass, perhaps another in its place, unless the statement is asked of another server after all.
    Keep(Option<Box<[u8]>>),
    /// The session cannot go on.
    Broken(&'static str),
    /// Ask the primary instead.
    Retry,
    /// Pass this in its place.
    Instead(Box<[u8]>),
}

impl Session {
    /// Looks at what a server sent. Everything up to the end of `bytes` is passed on, swallowed or kept.
    pub(super) fn server_bytes(&mut self, at: usize, bytes: &[u8]) -> Option<Next> {
        if !self.may_pass_on() {
            return self.server_lost(at, "the lease has run out while its buckets move");
        }
        if self.servers[at].partial.is_empty() {
            return self.walk(at, bytes);
        }
        let mut whole = std::mem::take(&mut self.servers[at].partial);
        whole.extend_from_slice(bytes);
        self.walk(at, &whole)
    }

    fn walk(&mut self, at: usize, bytes: &[u8]) -> Option<Next> {
        let mut pos = 0;
        // Start of what is to be passed on as it is.
        let mut start = 0;
        let mut finished = false;
        while pos < bytes.len() {
            let server = &mut self.servers[at];
            if server.pass > 0 {
                let size = server.pass.min(bytes.len() - pos);
                server.pass -= size;
                pos += size;
                continue;
            }
            if server.swallow > 0 {
                let size = server.swallow.min(bytes.len() - pos);
                server.swallow -= size;
                self.compose(&bytes[start..pos]);
                pos += size;
                start = pos;
                continue;
            }
            let size = match server_frame(&bytes[pos..]) {
                Ok(Some(size)) => size,
                Ok(None) => break,
                Err(_) => return self.broken("the server sent a malformed message"),
            };
            let available = bytes.len() - pos;
            let tag = bytes[pos];
            if size > available && !is_streamed(tag) {
                if size > limits::SERVER_MESSAGE {
                    return self.broken("the server sent an oversized message");
                }
                break;
            }
            let message = &bytes[pos..pos + size.min(available)];
            let keep = !self.retry.is_empty() && !self.answered && matches!(tag, b'T' | b'2' | b'n' | b'1');
            let described = if matches!(tag, b'T' | b't') { self.described(at, message) } else { None };
            let seen = described.as_deref().unwrap_or(message);
            let verdict = match (self.reply(at, tag, seen, &mut finished), described) {
                (Verdict::Pass, None) if keep => Verdict::Keep(None),
                (Verdict::Pass, Some(other)) if keep => Verdict::Keep(Some(other.into())),
                (Verdict::Pass, Some(other)) => Verdict::Instead(other.into()),
                (verdict, _) => verdict,
            };
            match verdict {
                Verdict::Pass => {
                    pos += message.len();
                    self.servers[at].pass = size - message.len();
                    self.answered |= tag != b'S';
                    if self.queue.front().is_some_and(Expect::is_ours) {
                        self.compose(&bytes[start..pos]);
                        start = pos;
                        self.say_ours();
                    }
                }
                Verdict::Keep(other) => {
                    self.compose(&bytes[start..pos]);
                    self.compose(other.as_deref().unwrap_or(message));
                    pos += message.len();
                    start = pos;
                    self.servers[at].pass = size - message.len();
                }
                Verdict::Swallow => {
                    self.compose(&bytes[start..pos]);
                    pos += message.len();
                    start = pos;
                    self.servers[at].swallow = size - message.len();
                    self.say_ours();
                }
                Verdict::Instead(other) => {
                    self.compose(&bytes[start..pos]);
                    self.compose(&other);
                    pos += message.len();
                    start = pos;
                    self.answered = true;
                    self.say_ours();
                }
                Verdict::Broken(why) => return self.broken(why),
                Verdict::Retry => {
                    let mut server = self.servers.remove(at);
                    self.note_serving();
                    let shard = server.shard;
                    server.dirty = true;
                    drop(server);
                    self.active = 0;
                    let mark = self.retry_mark;
                    self.output.truncate(mark);
                    return self.retry_on_primary(shard);
                }
            }
        }
        if pos < bytes.len() {
            self.servers[at].partial = bytes[pos..].to_vec();
        }
        if finished {
            self.ready(at);
        } else if self.checked && self.queue.is_empty() {
            self.checked = false;
            self.release_checker();
        }
        if finished && self.servers.len() > 1 && self.others_hold_on(at) {
            self.compose(&bytes[start..pos]);
            return Some(Next::Multi(Box::new(MultiWork::FailOthers)));
        }
        if finished && self.schema_changed && self.transaction.is_none() {
            self.schema_changed = false;
            self.compose(&bytes[start..pos]);
            return Some(Next::Refresh);
        }
        self.pass_on(&bytes[start..pos]);
        None
    }

    #[inline]
    fn compose(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.client_output().extend_from_slice(bytes);
        }
    }

    /// Says what is ours and due.
    pub(super) fn say_ours(&mut self) {
        while self.queue.front().is_some_and(Expect::is_ours) {
            match self.queue.pop_front() {
                Some(Expect::Ours(bytes)) => self.client_output().extend_from_slice(&bytes),
                Some(Expect::OursStatic(bytes)) => self.client_output().extend_from_slice(bytes),
                Some(Expect::OursParse(_)) => {
                    self.client_output().extend_from_slice(crate::wire::build::PARSE_COMPLETE);
                }
                _ => {}
            }
        }
    }

    fn reply(&mut self, at: usize, tag: u8, message: &[u8], finished: &mut bool) -> Verdict {
        match tag {
            b'D' | b'd' => match self.queue.front() {
                Some(Expect::Hidden | Expect::Prologue | Expect::Abort) => Verdict::Swallow,
                _ => Verdict::Pass,
            },
            b'C' => self.command_complete(at, message),
            b'Z' => self.ready_for_query(at, message, finished),
            b'T' | b'n' | b't' => self.description(tag, message),
            b'1' => match self.queue.pop_front() {
                Some(Expect::HiddenParse(entry)) => {
                    entry.validated.set(true);
                    Verdict::Swallow
                }
                Some(Expect::Parse(entry, _)) => {
                    entry.validated.set(true);
                    Verdict::Pass
                }
                _ => Verdict::Broken("unexpected ParseComplete"),
            },
            b'2' => match self.queue.pop_front() {
                Some(Expect::Bind) => Verdict::Pass,
                Some(Expect::HiddenBind) => Verdict::Swallow,
                _ => Verdict::Broken("unexpected BindComplete"),
            },
            b'3' => match self.queue.pop_front() {
                Some(Expect::Close) => Verdict::Pass,
                Some(Expect::HiddenClose) => Verdict::Swallow,
                _ => Verdict::Broken("unexpected CloseComplete"),
            },
            b'I' | b's' => match self.queue.front() {
                Some(Expect::Execute(_)) => {
                    self.queue.pop_front();
                    self.send_owed_sync(at);
                    Verdict::Pass
                }
                Some(Expect::Hidden | Expect::Prologue | Expect::Abort) => Verdict::Swallow,
                _ => Verdict::Pass,
            },
            b'E' => self.error(at, message),
            b'S' => {
                let mut reader = read::body(message);
                if let (Some(name), Some(value)) = (reader.cstr(), reader.cstr()) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    self.servers[at].set_parameter(&text(name), &text(value));
                }
                // Also of a hidden SET: what the client hears is what its own settings are.
                Verdict::Pass
            }
            b'N' => match self.queue.front_mut() {
                Some(Expect::Hidden | Expect::Prologue | Expect::Abort | Expect::Poison) => Verdict::Swallow,
                Some(Expect::Execute(Some(pending))) => {
                    pending.exists |= says_it_exists(message);
                    Verdict::Pass
                }
                _ => Verdict::Pass,
            },
            b'G' => {
                self.copy_in = true;
                if self.sync_owed {
                    // The client's Sync is ignored as PostgreSQL would: another one follows the data.
                    self.sync_owed = false;
                    self.gate = false;
                }
                Verdict::Pass
            }
            b'H' | b'c' | b'A' => Verdict::Pass,
            // CopyBoth (walsender) and whatever else cannot be the answer to what clients may say.
            _ => Verdict::Broken("unexpected message from the server"),
        }
    }

    #[inline]
    fn command_complete(&mut self, at: usize, message: &[u8]) -> Verdict {
        self.copy_in = false;
        match self.queue.front_mut() {
            Some(Expect::Hidden | Expect::Prologue | Expect::Abort) => Verdict::Swallow,
            Some(Expect::Execute(pending)) => {
                let pending = pending.take();
                self.queue.pop_front();
                self.send_owed_sync(at);
                let Some(mut pending) = pending else { return Verdict::Pass };
                note_rollback(&mut pending, message);
                self.finish_effect(at, &pending);
                other_tag(&pending, message).map_or(Verdict::Pass, Verdict::Instead)
            }
            Some(Expect::Query(pending)) => {
                if let Some(pending) = pending {
                    note_rollback(pending, message);
                }
                Verdict::Pass
            }
            _ => Verdict::Broken("unexpected CommandComplete"),
        }
    }

    /// Of an Execute; ReadyForQuery, which would tell where the server's transaction is, comes with Sync only.
    fn finish_effect(&mut self, at: usize, pending: &super::Pending) {
        let status = pending.plans.iter().find_map(|(plan, _)| match plan.effect {
            Effect::Begin { .. } => Some(b'T'),
            Effect::Commit { chain } | Effect::Rollback { chain } => Some(if chain { b'T' } else { b'I' }),
            _ => None,
        });
        if let Some(status) = status {
            self.servers[at].status = status;
        }
        if pending.failed {
            // COMMIT of a failed transaction is a ROLLBACK.
            return self.transaction_ended(false, status == Some(b'T'));
        }
        self.apply(pending);
    }

    fn description(&mut self, tag: u8, message: &[u8]) -> Verdict {
        match self.queue.front_mut() {
            Some(Expect::DescribeStatement { entry, seen, hidden }) => {
                let verdict = if *hidden { Verdict::Swallow } else { Verdict::Pass };
                // Small, and asked for again and again: kept, so that the next client's Describe needs no server.
                let entry = entry.clone();
                let known = entry.description.borrow().is_some();
                if !known {
                    seen.extend_from_slice(message);
                }
                if tag != b't' {
                    let seen = std::mem::take(seen);
                    self.queue.pop_front();
                    entry.shape.borrow_mut().get_or_insert_with(|| shape(message));
                    if !known && entry.is_shared() && seen.len() <= limits::SMALL_MESSAGE {
                        *entry.description.borrow_mut() = Some(seen.into());
                    }
                }
                verdict
            }
            Some(Expect::DescribePortal(entry)) => {
                entry.shape.borrow_mut().get_or_insert_with(|| shape(message));
                self.queue.pop_front();
                Verdict::Pass
            }
            Some(Expect::Hidden | Expect::Prologue | Expect::Abort) => Verdict::Swallow,
            _ => Verdict::Pass,
        }
    }

    /// With the default shard's numbers for types and tables (H23); `None`: as it is.
    pub(super) fn described(&self, at: usize, message: &[u8]) -> Option<Vec<u8>> {
        let state = self.worker.state();
        let oids = &state.catalog.oids;
        if oids.is_empty() {
            return None;
        }
        oids.get(&self.servers[at].pool.shard_id)?.described(message)
    }

    fn ready_for_query(&mut self, at: usize, message: &[u8], finished: &mut bool) -> Verdict {
        let status = message.get(HEADER).copied().unwrap_or(b'?');
        let server = &mut self.servers[at];
        server.status = status;
        match self.queue.pop_front() {
            Some(Expect::Hidden | Expect::Prologue | Expect::Abort) => Verdict::Swallow,
            Some(Expect::HiddenSync) => {
                server.unsynced = false;
                self.checked = true;
                Verdict::Swallow
            }
            Some(Expect::Sync) => {
                server.unsynced = false;
                *finished = true;
                Verdict::Pass
            }
            Some(Expect::Query(pending)) => {
                server.unsynced = false;
                *finished = true;
                if let Some(pending) = pending {
                    if pending.rolled_back && status == b'T' {
                        self.transaction_ended(false, true); // COMMIT AND CHAIN of a failed transaction.
                    } else if pending.failed {
                        self.failed_within(&pending);
                        if let Some(transaction) = self.transaction.as_mut().filter(|_| status != b'T') {
                            transaction.failed = true;
                        }
                    } else {
                        self.apply(&pending);
                    }
                    if let Some(behind) = pending.behind.filter(|_| !pending.failed || pending.rolled_back) {
                        *self.info.touch.borrow_mut() = *behind;
                    }
                }
                Verdict::Pass
            }
            _ => Verdict::Broken("unexpected ReadyForQuery"),
        }
    }

    /// The server is ready, and so is the session.
    fn ready(&mut self, at: usize) {
        self.gate = false;
        self.copy_in = false;
        self.prologue_error = None;
        self.retry.clear();
        match self.servers[at].status {
            b'I' => {
                self.worker.stats.transactions.add(1);
                let committed = self.transaction.as_ref().is_none_or(|t| !t.failed);
                if self.servers.iter().any(|s| s.enlisted && s.status != b'I') {
                    // Others of this transaction are not done yet: the end is for `multi` to say.
                    return;
                }
                self.end_transaction(committed);
            }
            status => {
                let settings = &self.settings;
                let transaction = self.transaction.get_or_insert_with(|| {
                    // Begun within a text of several statements.
                    Box::new(super::transaction::Transaction::new("BEGIN", false, settings.clone()))
                });
                // With a participant gone the others can only roll back.
                transaction.failed = status == b'E' || transaction.lost;
            }
        }
        self.set_activity();
    }
}

impl Expect {
    #[inline]
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_) | Self::OursStatic(_) | Self::OursParse(_))
    }
}

/// Messages that may be passed on before they have arrived whole.
#[inline]
fn is_streamed(tag: u8) -> bool {
    matches!(tag, b'D' | b'd')
}

/// COMMIT of a failed transaction answers ROLLBACK.
fn note_rollback(pending: &mut super::Pending, message: &[u8]) {
    let commits = pending.plans.iter().any(|(plan, _)| matches!(plan.effect, Effect::Commit { .. }));
    if commits && message.get(HEADER..).is_some_and(|tag| tag.starts_with(b"ROLLBACK")) {
        pending.failed = true;
        pending.rolled_back = pending.plans.len() == 1;
    }
}

fn other_tag(pending: &super::Pending, message: &[u8]) -> Option<Box<[u8]>> {
    let [(plan, text)] = pending.plans.as_slice() else { return None };
    if !matches!(plan.effect, Effect::Pin(_) | Effect::CreatesObject) {
        return None;
    }
    let tag = tag_of_execute(text, read::body(message).cstr()?, pending.exists)?;
    let mut bytes = Vec::new();
    build::command_complete(&mut bytes, tag);
    Some(bytes.into())
}
