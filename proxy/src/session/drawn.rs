//! Numbers of sequences that the session's worker has drawn ahead: what `crate::multi::draws` asks of the session.

use std::time::Instant;

use super::current::Current;
use super::multi_hook::Participants;
use crate::route::plan::Draws;
use crate::sequences::Key;

/// When drawing began, and how often sequences had been set by then.
#[derive(Debug, Clone, Copy)]
pub struct Before(Instant, u64);

impl Participants<'_> {
    /// How many numbers are drawn at a time.
    pub fn sequence_block(&self) -> usize {
        self.session.worker.state().config.sequences.block as usize
    }

    /// At most `count` of those that this SQL has drawn for this role.
    pub fn take_drawn(&mut self, draws: &str, count: usize) -> Vec<String> {
        let worker = &self.session.worker;
        let key = self.key(draws);
        worker.sequences.borrow_mut().take(&key, count, Instant::now(), worker.sequence_resets())
    }

    /// These are the session's, for currval() and lastval().
    pub fn drew(&mut self, draws: &Draws, rows: &[String]) {
        self.session.current.drew(&draws.values, rows);
        // One by one they are drawn on the transaction's own connection.
        self.session.drew |= self.sequence_block() <= 1;
    }

    /// A server may have drawn for the session.
    pub fn may_have_drawn(&mut self) {
        self.session.current.forget();
        self.session.drew = true;
    }

    pub fn current(&self) -> &Current {
        &self.session.current
    }

    /// Is all that this server knows of numbers drawn the session's, and all of the session's that is not remembered? In a
    /// block it has forgotten what others have drawn (`Session::forget_others_draws`).
    pub fn knows_draws(&mut self, at: usize) -> bool {
        let pinned = self.is_pinned(at);
        let strange = self.server(at).drawn_by_others;
        let session = &*self.session;
        let own = match &session.transaction {
            Some(transaction) => !transaction.drew_elsewhere && !(pinned && session.current.is_mixed()),
            None => pinned && !session.current.is_mixed(),
        };
        own && !strange
    }

    pub fn before_drawing(&self) -> Before {
        Before(Instant::now(), self.session.worker.sequence_resets())
    }

    pub fn put_drawn(&mut self, draws: &str, values: Vec<String>, before: Before) {
        if !values.is_empty() {
            let key = self.key(draws);
            self.session.worker.sequences.borrow_mut().put(key, values.into_iter(), before.0, before.1);
        }
    }

    /// A sequence was set, or may have been.
    pub fn reset_sequences(&self) {
        self.session.worker.reset_sequences();
    }

    /// Rights on a sequence are the role's.
    fn key(&self, draws: &str) -> Key {
        Key { role: self.session.routing().user.clone(), draws: draws.to_owned() }
    }

    /// The client's Sync is here already: this statement is all there is of its implicit transaction. A later
    /// one is not waited for.
    pub fn sync_follows(&self) -> bool {
        self.session.input.starts_with(crate::wire::build::SYNC)
    }
}
