//! The state of a client's open transaction block. PURE.
//!
//! BEGIN costs nothing: it is held, with every SET LOCAL and SAVEPOINT said before a shard was needed, and said to
//! a server when a statement picks one. The same text is what a shard that joins later must hear first (H21).

use std::rc::Rc;

use super::settings::Settings;
use crate::limits;
use crate::route::tokens::{TokenKind, tokens};

#[derive(Debug)]
pub struct Transaction {
    /// What a server must hear before the first statement: BEGIN with its options, SET LOCAL, SAVEPOINT.
    prologue: Vec<Held>,
    savepoints: Vec<Savepoint>,
    pub read_only: bool,
    /// An error happened: everything but ROLLBACK [TO] is refused with 25P02.
    pub failed: bool,
    /// Settings to return to if it does not commit (H21).
    pub settings_before: Rc<Settings>,
    /// The server that ran a part of it is gone: nothing but ROLLBACK is possible, not even ROLLBACK TO.
    pub lost: bool,
    /// The shard whose server was lost while nothing was asked of it: the client has heard of no error yet. A COMMIT
    /// answered by the tag ROLLBACK alone would look to most drivers as if it had committed.
    pub untold: Option<u16>,
    /// A sequence was drawn from on another connection than the transaction's own: currval() would not tell.
    pub drew_elsewhere: bool,
    cursors: Vec<Cursor>,
}

/// A cursor on one shard.
#[derive(Debug)]
struct Cursor {
    name: String,
    shard: usize,
    /// Savepoints when it was declared: rolled back to an earlier one, it is gone.
    depth: usize,
}

#[derive(Debug, Clone)]
struct Held {
    sql: String,
    /// Its savepoint has been released: modes that were set within it have ended with it.
    released: bool,
}

#[derive(Debug)]
struct Savepoint {
    name: String,
    prologue: usize,
    read_only: bool,
    settings: Snapshot,
}

/// Settings at one moment: the session's, and those that SET LOCAL put in their place.
pub type Snapshot = (Rc<Settings>, Option<Rc<Settings>>);

impl Transaction {
    pub fn new(begin: &str, read_only: bool, settings: Rc<Settings>) -> Self {
        Self {
            prologue: vec![Held { sql: begin.to_owned(), released: false }],
            savepoints: Vec::new(),
            read_only,
            failed: false,
            settings_before: settings,
            lost: false,
            untold: None,
            drew_elsewhere: false,
            cursors: Vec::new(),
        }
    }

    /// The oldest is forgotten when there are too many: it is looked for as one that was never declared.
    pub fn declared(&mut self, name: &str, shard: usize) {
        self.closed(name);
        if self.cursors.len() >= limits::CURSORS {
            self.cursors.remove(0);
        }
        self.cursors.push(Cursor { name: name.to_owned(), shard, depth: self.depth() });
    }

    pub fn closed(&mut self, name: &str) {
        self.cursors.retain(|cursor| cursor.name != name);
    }

    pub fn closed_all(&mut self) {
        self.cursors.clear();
    }

    pub fn cursor(&self, name: &str) -> Option<usize> {
        self.cursors.iter().find(|cursor| cursor.name == name).map(|cursor| cursor.shard)
    }

    /// The one that AND CHAIN begins: with this one's characteristics, and nothing else of it. The caller knows the
    /// settings it begins with. Modes set within a savepoint are handed on by COMMIT, and taken back by ROLLBACK
    /// (SaveTransactionCharacteristics in src/backend/access/transam/xact.c, which is asked once more when subtransactions have
    /// been aborted). An error has taken them all back.
    pub fn next(&self, committed: bool) -> Self {
        if self.failed && self.savepoints.is_empty() {
            let next = Self::new("BEGIN", false, self.settings_before.clone());
            return Self { drew_elsewhere: self.drew_elsewhere, ..next };
        }
        let begin = self.prologue.first().map_or("BEGIN", |held| held.sql.as_str());
        let (until, read_only) = match self.savepoints.first().filter(|_| !committed) {
            Some(first) => (first.prologue, first.read_only),
            None => (self.prologue.len(), self.read_only),
        };
        let next = Self::new(begin, read_only, self.settings_before.clone());
        let is_mode = |held: &&Held| !held.released && begins_with(&held.sql, ["set", "transaction"]);
        let modes = self.prologue.iter().take(until).skip(1).filter(is_mode).cloned();
        Self {
            drew_elsewhere: self.drew_elsewhere,
            prologue: next.prologue.into_iter().chain(modes).collect(),
            ..next
        }
    }

    /// One simple query that brings a server to where the transaction is.
    pub fn prologue(&self) -> String {
        self.prologue.iter().map(|held| held.sql.as_str()).collect::<Vec<_>>().join(";")
    }

    /// What was set for this transaction only, in order.
    pub fn local_settings(&self) -> Vec<String> {
        let all = self.prologue.iter().map(|held| &held.sql);
        all.filter(|sql| begins_with(sql, ["set", "local"])).cloned().collect()
    }

    /// Remembers a statement for servers that join later. `false` when there are too many.
    #[must_use]
    pub fn hold(&mut self, sql: &str) -> bool {
        if self.prologue.len() >= limits::TRANSACTION_PROLOGUE {
            return false;
        }
        // A statement's own comment must not swallow what follows.
        let sql = format!("{}\n", sql.trim().trim_end_matches(';'));
        self.prologue.push(Held { sql, released: false });
        true
    }

    pub fn savepoint(&mut self, name: &str, sql: &str, settings: Snapshot) -> bool {
        let (name, prologue, read_only) = (name.to_owned(), self.prologue.len(), self.read_only);
        let savepoint = Savepoint { name, prologue, read_only, settings };
        if !self.hold(sql) {
            return false;
        }
        self.savepoints.push(savepoint);
        true
    }

    /// RELEASE: the savepoint and those after it are gone, their effects stay, but for READ ONLY (CommitSubTransaction in
    /// src/backend/access/transam/xact.c). `false` if there is none.
    pub fn release(&mut self, name: &str, sql: &str) -> bool {
        match self.savepoints.iter().rposition(|savepoint| savepoint.name == name) {
            Some(at) => {
                let savepoint = &self.savepoints[at];
                self.read_only = savepoint.read_only;
                for held in self.prologue.iter_mut().skip(savepoint.prologue) {
                    held.released = true;
                }
                self.savepoints.truncate(at);
                for cursor in &mut self.cursors {
                    cursor.depth = cursor.depth.min(at);
                }
                self.hold(sql)
            }
            None => false,
        }
    }

    /// How many savepoints there are.
    pub fn depth(&self) -> usize {
        self.savepoints.len()
    }

    /// ROLLBACK TO: back to the state right after SAVEPOINT. Returns the settings of then; `None` if there is none.
    pub fn rollback_to(&mut self, name: &str) -> Option<Snapshot> {
        let at = self.savepoints.iter().rposition(|savepoint| savepoint.name == name)?;
        self.savepoints.truncate(at + 1);
        self.cursors.retain(|cursor| cursor.depth <= at);
        let savepoint = &self.savepoints[at];
        self.prologue.truncate(savepoint.prologue + 1);
        self.read_only = savepoint.read_only;
        self.failed = false;
        Some(savepoint.settings.clone())
    }
}

fn begins_with(sql: &str, words: [&str; 2]) -> bool {
    let mut found = sql.split_ascii_whitespace();
    words.iter().all(|word| found.next().is_some_and(|w| w.eq_ignore_ascii_case(word)))
}

/// The modes of a BEGIN or START TRANSACTION, if it has any, as SET TRANSACTION. Within a transaction that has begun they are
/// just that (standard_ProcessUtility in src/backend/tcop/utility.c).
pub fn set_modes(text: &str, standard_strings: bool) -> Option<String> {
    let all = tokens(text.as_bytes(), standard_strings)?;
    let is = |n: usize, word: &str| {
        let piece = all.get(n).and_then(|token| text.get(token.range.clone())).unwrap_or_default();
        piece.eq_ignore_ascii_case(word)
    };
    let first = if is(1, "work") || is(1, "transaction") { 2 } else { 1 };
    let last = all.iter().rposition(|token| token.kind != TokenKind::Semicolon)?;
    let modes =
        text.get(all.get(first)?.range.start..all[last].range.end).filter(|modes| !modes.is_empty())?;
    Some(format!("SET TRANSACTION {modes}"))
}

#[cfg(test)]
mod tests {
    use super::super::settings::SettingsTable;
    use super::*;

    #[test]
    fn a_cursor_is_known_until_it_is_closed_or_its_savepoint_is_rolled_back() {
        let none = SettingsTable::new("app", 0).none();
        let mut tx = Transaction::new("BEGIN", false, none.clone());
        tx.declared("a", 1);
        assert!(tx.savepoint("s", "SAVEPOINT s", (none.clone(), None)));
        tx.declared("b", 2);
        assert!(tx.savepoint("t", "SAVEPOINT t", (none, None)));
        tx.declared("c", 3);
        assert!(tx.release("t", "RELEASE t"));
        assert_eq!((tx.cursor("a"), tx.cursor("b"), tx.cursor("c")), (Some(1), Some(2), Some(3)));
        assert!(tx.rollback_to("s").is_some());
        assert_eq!((tx.cursor("a"), tx.cursor("b"), tx.cursor("c")), (Some(1), None, None));
        tx.closed("a");
        assert_eq!(tx.cursor("a"), None);
    }

    #[test]
    fn h21_rollback_to_takes_back_what_was_held_after_the_savepoint() {
        let none = SettingsTable::new("app", 0).none();
        let mut tx = Transaction::new("BEGIN ISOLATION LEVEL SERIALIZABLE", false, none.clone());
        assert!(tx.savepoint("a", "SAVEPOINT a;", (none.clone(), None)));
        assert!(tx.hold("SET LOCAL x = 1 -- why"));
        assert!(tx.savepoint("b", "SAVEPOINT b", (none, None)));
        tx.failed = true;
        assert!(tx.rollback_to("c").is_none());
        assert!(tx.failed);
        assert!(tx.rollback_to("a").is_some());
        assert!(!tx.failed);
        assert_eq!(tx.prologue(), "BEGIN ISOLATION LEVEL SERIALIZABLE;SAVEPOINT a\n");
        assert!(tx.rollback_to("b").is_none());
    }

    #[test]
    fn and_chain_keeps_what_was_set_of_the_transaction() {
        let none = SettingsTable::new("app", 0).none();
        let mut tx = Transaction::new("BEGIN", false, none.clone());
        assert!(tx.hold("SET LOCAL x = 1"));
        assert!(tx.hold("set transaction READ ONLY"));
        assert!(tx.savepoint("a", "SAVEPOINT a", (none.clone(), None)));
        assert!(tx.hold("SET TRANSACTION DEFERRABLE"));
        assert!(tx.rollback_to("a").is_some());
        assert_eq!(tx.next(true).prologue(), "BEGIN;set transaction READ ONLY\n");
    }

    #[test]
    fn a_savepoint_takes_read_only_with_it() {
        let none = SettingsTable::new("app", 0).none();
        let mut tx = Transaction::new("BEGIN", false, none.clone());
        let read_only = |tx: &mut Transaction| {
            assert!(tx.hold("SET TRANSACTION READ ONLY"));
            tx.read_only = true;
        };
        assert!(tx.savepoint("a", "SAVEPOINT a", (none.clone(), None)));
        read_only(&mut tx);
        assert!(tx.rollback_to("a").is_some());
        assert!(!tx.read_only);
        assert!(tx.savepoint("b", "SAVEPOINT b", (none, None)));
        read_only(&mut tx);
        assert!(tx.release("b", "RELEASE b"));
        assert!(!tx.read_only);
        // A server that joins hears it all the same, and forgets it as the others have.
        assert_eq!(
            tx.prologue(),
            "BEGIN;SAVEPOINT a\n;SAVEPOINT b\n;SET TRANSACTION READ ONLY\n;RELEASE b\n"
        );
        assert_eq!((tx.next(true).prologue().as_str(), tx.next(true).read_only), ("BEGIN", false));
        // Within a savepoint still.
        read_only(&mut tx);
        let next = tx.next(true);
        assert_eq!((next.prologue().as_str(), next.read_only), ("BEGIN;SET TRANSACTION READ ONLY\n", true));
        assert_eq!((tx.next(false).prologue().as_str(), tx.next(false).read_only), ("BEGIN", false));
    }

    #[test]
    fn the_modes_of_begin() {
        let modes = |text| set_modes(text, true);
        let set = |modes: &str| Some(format!("SET TRANSACTION {modes}"));
        assert_eq!(modes("BEGIN"), None);
        assert_eq!(modes("start /* READ ONLY */ transaction ;"), None);
        assert_eq!(modes("BEGIN work READ ONLY, deferrable -- not\n;"), set("READ ONLY, deferrable"));
        assert_eq!(modes("SET TRANSACTION READ ONLY"), set("READ ONLY"));
        assert_eq!(modes("Begin Isolation Level Serializable"), set("Isolation Level Serializable"));
    }
}
