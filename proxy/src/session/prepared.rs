//! Statements that clients prepared, shared by all clients of a worker.
//!
//! An entry is a text with its parameter types, as seen under one set of settings and one version of the schema. It
//! has one name on all servers, so a server that has it serves every client that prepared the same text; the
//! unnamed statement too, which halves PostgreSQL's own work per query (evidence: it plans once, not each time).

use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use crate::limits;
use crate::route::RoutedStatement;
use crate::session::settings::Settings;
use crate::wire::read;

/// Stands in a CREATE TABLE AS where EXECUTE stood: it tells whose tag is due.
pub const OF_EXECUTE: &str = "/* shard_proxy: EXECUTE */";

/// The tag of CREATE TABLE AS EXECUTE ... WITH NO DATA, when this is the server's tag of what it became. PostgreSQL runs the
/// prepared statement, for no rows (ExecuteQuery in src/backend/commands/prepare.c), but only if there is no such table yet.
pub fn tag_of_execute(text: &str, tag: &[u8], exists: bool) -> Option<&'static str> {
    (tag == b"CREATE TABLE AS" && !exists && text.contains(OF_EXECUTE)).then_some("SELECT 0")
}

/// Is it the NOTICE that IF NOT EXISTS has found such a table?
pub fn says_it_exists(notice: &[u8]) -> bool {
    read::error_field(notice, b'C') == Some(b"42P07")
}

#[derive(Debug)]
pub struct Entry {
    pub id: u64,
    /// Its name on servers; empty when it must be parsed anew each time.
    pub name: Box<[u8]>,
    pub sql: Box<[u8]>,
    /// What the client sent, if `shard.key` has put another text in its place.
    pub original: Option<Box<[u8]>>,
    /// Declared parameter types, 4 bytes each.
    pub oids: Box<[u8]>,
    pub routed: RoutedStatement,
    pub settings: Rc<Settings>,
    pub version: u64,
    /// A server has accepted it: the next ParseComplete can be ours.
    pub validated: Cell<bool>,
    /// What servers answered to Describe: ParameterDescription and RowDescription or NoData.
    pub description: RefCell<Option<Rc<[u8]>>>,
    /// What its result looks like (see [`shape`]), once a server described the statement or a portal of it.
    pub shape: RefCell<Option<Box<[u8]>>>,
    used: Cell<u32>,
}

/// Names and types of the columns of a RowDescription or NoData message: what PostgreSQL compares (equalTupleDescs in
/// plancache.c) before it says that a cached plan must not change its result type. Formats, which belong to a portal,
/// and the columns' origins are left out.
pub fn shape(message: &[u8]) -> Box<[u8]> {
    // Type oid, length and modifier lie between the origin (6 bytes) and the format (2 bytes).
    const ORIGIN: usize = 6;
    const TYPE: usize = 10;
    const FORMAT: usize = 2;
    let mut out = Vec::with_capacity(message.len());
    let mut rest = match message.first() {
        Some(b'T') => message.get(7..).unwrap_or_default(),
        _ => &[],
    };
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let Some(fields) = rest.get(end + 1..end + 1 + ORIGIN + TYPE + FORMAT) else { break };
        out.extend_from_slice(&rest[..=end]);
        out.extend_from_slice(&fields[ORIGIN..ORIGIN + TYPE]);
        rest = &rest[end + 1 + ORIGIN + TYPE + FORMAT..];
    }
    out.into()
}

impl Entry {
    /// Of what a client decides; the plan, which is shared, grows with the text, too.
    fn size(&self) -> usize {
        self.sql.len()
            + self.original.as_ref().map_or(0, |text| text.len())
            + self.oids.len()
            + size_of::<Self>()
    }

    /// The text to analyse when the schema or the settings have changed.
    pub fn source(&self) -> &[u8] {
        self.original.as_deref().unwrap_or(&self.sql)
    }

    /// May servers keep it under a name?
    #[inline]
    pub fn is_shared(&self) -> bool {
        !self.name.is_empty()
    }
}

#[derive(Debug, Default)]
pub struct Registry {
    hasher: std::hash::RandomState,
    entries: FxHashMap<u64, Vec<Rc<Entry>>>,
    count: usize,
    bytes: usize,
    next: u64,
    tick: u32,
}

impl Registry {
    #[inline]
    fn hash(&self, sql: &[u8], oids: &[u8]) -> u64 {
        // Keyed SipHash, not Fx: the text is a client's, and chains must stay short whatever it sends.
        self.hasher.hash_one((sql, oids))
    }

    #[inline]
    pub fn find(&mut self, sql: &[u8], oids: &[u8], settings: u64, version: u64) -> Option<Rc<Entry>> {
        let chain = self.entries.get(&self.hash(sql, oids))?;
        let same = |e: &&Rc<Entry>| {
            e.settings.id == settings && e.version == version && *e.sql == *sql && *e.oids == *oids
        };
        let entry = chain.iter().find(same)?;
        self.tick = self.tick.wrapping_add(1);
        entry.used.set(self.tick);
        Some(entry.clone())
    }

    /// Adds a statement. `private`: it depends on what only this session has, so it is not shared.
    pub fn add(
        &mut self,
        (sql, oids): (&[u8], &[u8]),
        original: Option<&[u8]>,
        (settings, version): (Rc<Settings>, u64),
        routed: RoutedStatement,
        private: bool,
    ) -> Rc<Entry> {
        self.next += 1;
        let shared = !private && sql.len() <= limits::PREPARED_TEXT && !has_moving_literal(sql);
        let entry = Rc::new(Entry {
            id: self.next,
            name: if shared { format!("sp_{:x}", self.next).into_bytes().into() } else { Box::default() },
            sql: sql.into(),
            original: original.map(Into::into),
            oids: oids.into(),
            routed,
            settings,
            version,
            validated: Cell::new(false),
            description: RefCell::new(None),
            shape: RefCell::new(None),
            used: Cell::new(self.tick),
        });
        if private || sql.len() > limits::PREPARED_TEXT {
            return entry;
        }
        let is_full = |this: &Self| this.count >= limits::REGISTRY || this.bytes >= limits::REGISTRY_BYTES;
        if is_full(self) {
            self.evict();
        }
        // Full of what clients hold: theirs is the memory, and this one is not remembered for others.
        if !is_full(self) {
            let hash = self.hash(sql, oids);
            self.bytes += entry.size();
            self.count += 1;
            self.entries.entry(hash).or_default().push(entry.clone());
        }
        entry
    }

    /// Drops the older half of what no client holds. Servers' copies are closed by their own limits.
    fn evict(&mut self) {
        let now = self.tick;
        let mut ages: Vec<u32> =
            self.entries.values().flatten().map(|e| now.wrapping_sub(e.used.get())).collect();
        ages.sort_unstable();
        let cut = ages.get(ages.len() / 2).copied().unwrap_or(0);
        self.entries.retain(|_, chain| {
            chain.retain(|e| Rc::strong_count(e) > 1 || now.wrapping_sub(e.used.get()) < cut);
            !chain.is_empty()
        });
        self.count = self.entries.values().map(Vec::len).sum();
        self.bytes = self.entries.values().flatten().map(|e| e.size()).sum();
    }

    /// Nothing known is found any more; clients keep what they hold.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.count = 0;
        self.bytes = 0;
    }
}

/// 'now', 'today', 'tomorrow' and 'yesterday' become a constant when a statement is parsed. A client that parses
/// anew expects a new time, so such a text must not be kept prepared behind its back.
fn has_moving_literal(sql: &[u8]) -> bool {
    let words: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    sql.iter().enumerate().filter(|(_, byte)| matches!(byte, b'\'' | b'$')).any(|(at, _)| {
        let rest = sql[at + 1..].trim_ascii_start();
        words.iter().any(|word| rest.len() >= word.len() && rest[..word.len()].eq_ignore_ascii_case(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_bounded_in_bytes() {
        let settings = super::super::settings::SettingsTable::new("app", 0).none();
        let mut registry = Registry::default();
        let routed = || RoutedStatement {
            text: 0..0,
            plan: std::sync::Arc::new(crate::route::plan::Plan {
                route: crate::route::plan::Route::Any,
                access: crate::route::plan::Access::Read,
                effect: crate::route::plan::Effect::None,
                evidence: Vec::new(),
                straddle: None,
                parameters: 0,
                tables: Default::default(),
                changes: None,
                around: crate::route::plan::Around::Nothing,
            }),
            literals: Default::default(),
        };
        for number in 0..3000 {
            let mut sql = format!("select {number} ").into_bytes();
            sql.resize(limits::PREPARED_TEXT, b' ');
            registry.add((&sql, b""), None, (settings.clone(), 1), routed(), false);
            assert!(registry.bytes <= limits::REGISTRY_BYTES + 2 * limits::PREPARED_TEXT);
        }
        assert!(registry.count > 100 && registry.count < 3000);
        let long = vec![b' '; limits::PREPARED_TEXT + 1];
        let before = registry.count;
        registry.add((&long, b""), None, (settings.clone(), 1), routed(), false);
        assert_eq!(registry.count, before, "a long text is not kept");
        assert!(registry.find(&long, b"", settings.id, 1).is_none());
    }

    #[test]
    fn a_moving_literal_is_seen() {
        assert!(has_moving_literal(b"insert into t values ('now')"));
        assert!(has_moving_literal(b"select ' Today'::date"));
        assert!(has_moving_literal(b"select $$tomorrow$$::date"));
        assert!(!has_moving_literal(b"select now(), $1, 'noon'"));
    }
}
