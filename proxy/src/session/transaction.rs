//! The state of a client's open transaction block. PURE.
//!
//! BEGIN costs nothing: it is held, with every SET LOCAL and SAVEPOINT said before a shard was needed, and said to
//! a server when a statement picks one. The same text is what a shard that joins later must hear first (H21).

use std::rc::Rc;

use super::settings::Settings;
use crate::limits;

#[derive(Debug)]
pub struct Transaction {
    /// What a server must hear before the first statement: BEGIN with its options, SET LOCAL, SAVEPOINT.
    prologue: Vec<String>,
    savepoints: Vec<Savepoint>,
    pub read_only: bool,
    /// An error happened: everything but ROLLBACK [TO] is refused with 25P02.
    pub failed: bool,
    /// Settings to return to if it does not commit (H21).
    pub settings_before: Rc<Settings>,
    /// The server that ran a part of it is gone: nothing but ROLLBACK is possible, not even ROLLBACK TO.
    pub lost: bool,
    /// A sequence was drawn from on another connection than the transaction's own: currval() would not tell.
    pub drew_elsewhere: bool,
    /// Cursors, and the shard that each is on. Some may be closed already.
    cursors: Vec<(String, usize)>,
}

#[derive(Debug)]
struct Savepoint {
    name: String,
    prologue: usize,
    settings: Snapshot,
}

/// Settings at one moment: the session's, and those that SET LOCAL put in their place.
pub type Snapshot = (Rc<Settings>, Option<Rc<Settings>>);

impl Transaction {
    pub fn new(begin: &str, read_only: bool, settings: Rc<Settings>) -> Self {
        Self {
            prologue: vec![begin.to_owned()],
            savepoints: Vec::new(),
            read_only,
            failed: false,
            settings_before: settings,
            lost: false,
            drew_elsewhere: false,
            cursors: Vec::new(),
        }
    }

    /// The oldest is forgotten when there are too many: it is looked for as one that was never declared.
    pub fn declared(&mut self, name: &str, shard: usize) {
        self.cursors.retain(|(known, _)| known != name);
        if self.cursors.len() >= limits::CURSORS {
            self.cursors.remove(0);
        }
        self.cursors.push((name.to_owned(), shard));
    }

    pub fn cursor(&self, name: &str) -> Option<usize> {
        self.cursors.iter().find(|(known, _)| known == name).map(|(_, shard)| *shard)
    }

    /// The one that AND CHAIN begins: with this one's characteristics, and nothing else of it. The caller knows the
    /// settings it begins with.
    pub fn next(&self) -> Self {
        let begin = self.prologue.first().map_or("BEGIN", String::as_str);
        Self::new(begin, self.read_only, self.settings_before.clone())
    }

    /// One simple query that brings a server to where the transaction is.
    pub fn prologue(&self) -> String {
        self.prologue.join(";")
    }

    /// What was set for this transaction only, in order.
    pub fn local_settings(&self) -> Vec<String> {
        let local = |sql: &&String| {
            let mut words = sql.split_ascii_whitespace();
            let mut is = |word: &str| words.next().is_some_and(|w| w.eq_ignore_ascii_case(word));
            is("set") && is("local")
        };
        self.prologue.iter().filter(local).cloned().collect()
    }

    /// Remembers a statement for servers that join later. `false` when there are too many.
    #[must_use]
    pub fn hold(&mut self, sql: &str) -> bool {
        if self.prologue.len() >= limits::TRANSACTION_PROLOGUE {
            return false;
        }
        // A statement's own comment must not swallow what follows.
        self.prologue.push(format!("{}\n", sql.trim().trim_end_matches(';')));
        true
    }

    pub fn savepoint(&mut self, name: &str, sql: &str, settings: Snapshot) -> bool {
        let savepoint = Savepoint { name: name.to_owned(), prologue: self.prologue.len(), settings };
        if !self.hold(sql) {
            return false;
        }
        self.savepoints.push(savepoint);
        true
    }

    /// RELEASE: the savepoint and those after it are gone, their effects stay. `false` if there is none.
    pub fn release(&mut self, name: &str, sql: &str) -> bool {
        match self.savepoints.iter().rposition(|savepoint| savepoint.name == name) {
            Some(at) => {
                self.savepoints.truncate(at);
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
        let savepoint = &self.savepoints[at];
        self.prologue.truncate(savepoint.prologue + 1);
        self.failed = false;
        Some(savepoint.settings.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::SettingsTable;
    use super::*;

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
}
