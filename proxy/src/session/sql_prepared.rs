//! SQL PREPARE and EXECUTE: what `crate::multi::prepared` asks of the session.

use std::rc::Rc;

use super::multi_hook::{Described, MultiWork, OfPortal, Participants};
use super::portals::Portal;
use super::prepared::Entry;
use super::{Flow, Next, Session};
use crate::error::ProxyError;
use crate::limits;
use crate::route::plan::Effect;
use crate::wire::{build, read};

/// The statement that an EXECUTE within EXPLAIN or CREATE TABLE AS becomes, until the next one.
const WITHIN: &[u8] = b"shard_proxy_execute";

/// Nothing is known of what EXECUTE runs, and PREPARE is not looked at, before its turn comes: as in PostgreSQL, where
/// Parse and Bind accept any.
pub(super) fn is_sql_prepared(effect: &Effect) -> bool {
    matches!(effect, Effect::SqlPrepare(_) | Effect::SqlExecute { .. })
}

impl Session {
    pub(super) fn bind_sql_prepared(&mut self, bind: &read::Bind<'_>, entry: Rc<Entry>) -> Flow {
        if bind.count > 0 {
            // As PostgreSQL says it (exec_bind_message in src/backend/tcop/postgres.c).
            let (name, count) = (String::from_utf8_lossy(bind.statement), bind.count);
            let text = format!(
                "bind message supplies {count} parameters, but prepared statement \"{name}\" requires 0"
            );
            return self.refused(ProxyError::new("08P01", text));
        }
        if !bind.portal.is_empty() && self.is_open(bind.portal) {
            // A server says it of its own (CreatePortal in src/backend/utils/mmgr/portalmem.c).
            let text = format!("cursor \"{}\" already exists", String::from_utf8_lossy(bind.portal));
            return self.refused(ProxyError::new("42P03", text));
        }
        self.set_portal(bind.portal, Portal::Sql { entry, results: bind.results.into() });
        self.bound();
        Flow::Done
    }

    pub(super) fn describe_sql_prepared(&mut self, entry: &Rc<Entry>, of: Described) -> Flow {
        if matches!(entry.routed.plan.effect, Effect::SqlPrepare(_)) {
            self.answer(build::NO_DATA);
            return Flow::Done;
        }
        let (plan, text) = (entry.routed.plan.clone(), text_of(entry));
        self.in_turn(MultiWork::DescribeExecute { plan, text, of })
    }

    pub(super) fn execute_sql_prepared(
        &mut self,
        name: &[u8],
        entry: &Rc<Entry>,
        results: Box<[u8]>,
        max_rows: i32,
    ) -> Flow {
        let portal = Some(OfPortal { name: name.into(), results, max_rows });
        let (plan, text) = (entry.routed.plan.clone(), text_of(entry));
        let flow = self.in_turn(MultiWork::Prepared { plan, text, portal });
        if matches!(entry.routed.plan.effect, Effect::SqlPrepare(_)) && matches!(flow, Flow::DoneThen(_)) {
            self.end_portal(name, None);
        }
        flow
    }

    /// When everything before it in the batch was answered.
    fn in_turn(&mut self, work: MultiWork) -> Flow {
        if !self.extended().held.is_empty()
            && let Err(flow) = self.place_held()
        {
            return flow;
        }
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        match self.failure.take() {
            Some(error) => self.refused(*error),
            None => Flow::DoneThen(Next::Multi(Box::new(work))),
        }
    }
}

fn text_of(entry: &Entry) -> String {
    String::from_utf8_lossy(entry.sql.get(entry.routed.text.clone()).unwrap_or_default()).into_owned()
}

impl Participants<'_> {
    pub fn standard_strings(&self) -> bool {
        self.session.routing().standard_conforming_strings
    }

    /// A text's entry, analysed if it is new.
    pub fn prepared_entry(&mut self, sql: &[u8], oids: &[u8]) -> Result<Rc<Entry>, ProxyError> {
        self.session.entry(sql, oids)
    }

    pub fn add_prepared(&mut self, name: &str, entry: &Rc<Entry>) -> Result<(), ProxyError> {
        self.session.extended().add(name.as_bytes(), entry)
    }

    /// What was prepared under this name, by SQL or by the protocol.
    pub fn prepared(&mut self, name: &str) -> Result<Rc<Entry>, ProxyError> {
        self.session.statement(name.as_bytes())
    }

    pub fn parameter_type_names(&mut self, name: &str, entry: &Entry) -> Option<Rc<[String]>> {
        let (id, names) = self.session.extended().parameter_types.get(name.as_bytes())?;
        (*id == entry.id).then(|| names.clone())
    }

    pub fn remember_parameter_types(&mut self, name: &str, entry: &Entry, names: &Rc<[String]>) {
        let known = &mut self.session.extended().parameter_types;
        if known.len() >= limits::CLIENT_STATEMENTS {
            known.clear();
        }
        known.insert(name.as_bytes().into(), (entry.id, names.clone()));
    }

    /// For the time of one EXECUTE; its name.
    pub fn add_within(&mut self, entry: &Rc<Entry>) -> &'static [u8] {
        self.session.extended().statements.insert(WITHIN.into(), entry.clone());
        WITHIN
    }

    /// The session goes on as if the client had sent this Bind and Execute (and between them a Describe of the unnamed
    /// portal, when `rows` are to come), and says no BindComplete. Without `portal` a Sync follows.
    pub fn bind_in_place(&mut self, bind: Vec<u8>, rows: bool, portal: Option<&OfPortal>) {
        let session = &mut *self.session;
        let mut messages = bind;
        if rows && portal.is_none() {
            build::named(&mut messages, b'D', b'P', b"");
        }
        let start = build::begin(&mut messages, b'E');
        build::cstr(&mut messages, portal.map_or(b"", |portal| &portal.name));
        messages.extend_from_slice(&portal.map_or(0, |portal| portal.max_rows).to_be_bytes());
        build::end(&mut messages, start);
        if portal.is_none() {
            messages.extend_from_slice(build::SYNC);
        }
        messages.extend_from_slice(&session.input);
        session.input = messages;
        session.hidden_bind = true;
        // A replica that cannot answer has the messages said again, as the client's own.
        session.force_primary = true;
    }
}
