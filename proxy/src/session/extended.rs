//! The extended protocol: Parse, Bind, Describe, Execute, Close, Flush, Sync.
//!
//! A client's statement is an entry of the worker's registry; which server has it is that server's matter. So Parse
//! sends nothing when the text is known: ParseComplete is ours, and the Bind that follows names the entry. A shard
//! is chosen at Bind, when the key's value is there.

use std::rc::Rc;

use super::config::is_custom;
use super::dispatch::Destination;
use super::local::By;
use super::motion::Denied;
use super::multi_hook::{Described, MultiStatement, MultiWork, Protocol};
use super::portals::{BindParams, Portal};
use super::prepared::Entry;
use super::running::Name;
use super::sql_prepared::is_sql_prepared;
use super::statements::{alone_length, is_alone, needs_no_server};
use super::{Expect, Extended, Flow, Held, Next, Session};
use crate::error::ProxyError;
use crate::limits;
use crate::pool::server::ServerKey;
use crate::route::plan::{Access, Effect};
use crate::wire::{build, read};

impl Session {
    #[inline]
    pub(super) fn extended(&mut self) -> &mut Extended {
        self.extended.get_or_insert_default()
    }

    fn malformed(what: &str) -> Flow {
        Flow::DoneThen(Next::Close(Some(Box::new(ProxyError::protocol(format!("invalid {what} message"))))))
    }

    /// An error of ours within an extended batch: said in its turn; the rest up to Sync is ignored.
    pub(super) fn refuse_extended(&mut self, error: ProxyError) {
        self.worker.stats.refusals.add(1);
        self.hidden_bind = false;
        // Statements whose Parse was not sent count as accepted: the error behind them is all the client can see.
        for held in std::mem::take(&mut self.extended().held) {
            match held {
                Held::Parse(..) => self.say_static(build::PARSE_COMPLETE),
                Held::Ours(bytes) => self.say(bytes.into()),
                Held::Describe(_) => break,
            }
        }
        let mut bytes = Vec::new();
        error.write(&mut bytes);
        self.say(bytes);
        self.abort_transaction(true);
        self.skip = true;
    }

    pub(super) fn refused(&mut self, error: ProxyError) -> Flow {
        self.refuse_extended(error);
        Flow::Done
    }

    /// A reply of ours, in its turn also behind what is held.
    pub(super) fn answer(&mut self, bytes: &'static [u8]) {
        if self.extended().held.is_empty() {
            self.say_static(bytes);
        } else {
            self.extended().held.push(Held::Ours(bytes.into()));
        }
    }

    pub(super) fn bound(&mut self) {
        if !std::mem::take(&mut self.hidden_bind) {
            self.answer(build::BIND_COMPLETE);
        }
    }

    pub(super) fn on_parse(&mut self, message: &[u8]) -> Flow {
        let Some(parse) = read::parse(message) else { return Self::malformed("Parse") };
        if let Some(flow) = self.await_names() {
            return flow;
        }
        let entry = match self.entry(parse.sql, parse.oids) {
            Ok(entry) => entry,
            Err(error) => return self.refused(error),
        };
        if self.is_refused_in_failed(&entry.routed.plan.effect) {
            return self.refused(ProxyError::failed_transaction());
        }
        let extended = self.extended.get_or_insert_default();
        let mut name = None;
        if parse.name.is_empty() {
            extended.unnamed = Some(entry.clone());
        } else {
            if let Err(error) = extended.add(parse.name, &entry) {
                return self.refused(error);
            }
            name = Some(Box::from(parse.name));
        }
        let held = self.held_bytes() + entry.sql.len();
        let extended = self.extended.get_or_insert_default();
        let too_long = !extended.held.is_empty() && held > limits::CLIENT_BYTES;
        if extended.held.len() >= limits::HELD_MESSAGES || too_long {
            return self.refused(ProxyError::new("54000", "too many messages without Sync"));
        }
        if entry.validated.get() || needs_no_server(&entry) {
            entry.validated.set(true);
            if !extended.held.is_empty() {
                extended.held.push(Held::Ours(build::PARSE_COMPLETE.into()));
            } else if self.queue.is_empty() {
                self.client_output().extend_from_slice(build::PARSE_COMPLETE);
            } else {
                self.queue.push_back(Expect::OursParse(name));
            }
        } else {
            extended.held.push(Held::Parse(entry, name));
        }
        Flow::Done
    }

    pub(super) fn on_bind(&mut self, message: &[u8], behind: &[u8]) -> Flow {
        let Some(bind) = read::bind(message) else { return Self::malformed("Bind") };
        if let Some(flow) = self.await_names() {
            return flow;
        }
        if let Some(flow) = self.recheck(bind.statement) {
            return flow;
        }
        if let Some(error) = self.failure.take() {
            return self.refused(*error);
        }
        let entry = match self.statement(bind.statement) {
            Ok(entry) => entry,
            Err(error) => return self.refused(error),
        };
        let plan = &entry.routed.plan;
        if self.is_refused_in_failed(&plan.effect) {
            return self.refused(ProxyError::failed_transaction());
        }
        if let Some(error) = self.extended().portals.too_many(bind.portal, 0) {
            return self.refused(error);
        }
        if is_sql_prepared(&plan.effect) {
            return self.bind_sql_prepared(&bind, entry);
        }
        let utf8 = self.routing().client_encoding_is_utf8;
        let params = BindParams { bind, oids: &entry.oids, utf8 };
        let bound = match self.with_value(&entry, &params) {
            Ok(bound) => bound,
            Err(error) => return self.refused(error),
        };
        if is_ours(&entry) || self.is_local_now(&plan.effect) {
            let binary = bind.tail.ends_with(&[0, 1, 0, 1]);
            self.set_portal(bind.portal, Portal::Local { entry: bound, binary });
            self.bound();
            return Flow::Done;
        }
        let destination = self.destination(&entry.routed, &entry.sql, &params);
        if matches!(destination, Destination::Shard(_)) {
            match self.admit(&entry.routed, &entry.sql, &params, &destination) {
                Ok(()) => {}
                Err(Denied::Hold) => return self.hold_message(),
                Err(Denied::Never(error)) => return self.refused(error),
            }
        }
        let place = match destination {
            Destination::Shard(place) => place,
            Destination::Refused(error) => return self.refused(error),
            Destination::Multi(_) => {
                if let Some(error) = self.extended().portals.too_many(bind.portal, message.len()) {
                    return self.refused(error);
                }
                let portal = Portal::Multi { entry, bind: message.into(), describe: false };
                self.set_portal(bind.portal, portal);
                self.bound();
                return Flow::Done;
            }
        };
        if let Some(error) = self.pins_elsewhere(plan, place.shard) {
            return self.refused(error);
        }
        let replica = if plan.access == Access::Read {
            // What is held would have to be said again to the primary if the replica cannot answer.
            let alone = self.extended().held.is_empty() && (self.transaction.is_some() || is_alone(behind));
            self.replica_for(plan, place, alone)
        } else {
            None
        };
        let at = match self.server_for(place.shard, replica) {
            Ok(at) => at,
            Err(Flow::Later) if self.failure.is_some() => return self.on_bind(message, behind),
            Err(flow) => return flow,
        };
        self.force_primary = false;
        self.worker.stats.statements.add(1);
        if self.queue.is_empty() {
            self.answered = false;
        }
        if replica.is_some() {
            self.worker.stats.replica_reads.add(1);
            self.retry.clear();
            self.retry_mark = self.output.len();
            if self.transaction.is_none() {
                self.retry.extend_from_slice(message);
                self.retry.extend_from_slice(&behind[..alone_length(behind)]);
            }
        } else {
            self.mark_write(plan, place);
        }
        self.send_held(at);
        self.prepare_on(at, &entry);
        let server = &mut self.servers[at];
        let start = build::begin(&mut server.out, b'B');
        build::cstr(&mut server.out, bind.portal);
        build::cstr(&mut server.out, &entry.name);
        server.out.extend_from_slice(bind.tail);
        build::end(&mut server.out, start);
        server.unsynced = true;
        let hidden = std::mem::take(&mut self.hidden_bind);
        self.queue.push_back(if hidden { Expect::HiddenBind } else { Expect::Bind });
        let key = self.servers[at].key.clone();
        self.set_portal(bind.portal, Portal::Server { key, entry: bound });
        Flow::Done
    }

    /// Would the session answer this effect itself, as things stand?
    fn is_local_now(&self, effect: &Effect) -> bool {
        let enlisted = self.servers.iter().filter(|s| s.enlisted).count();
        match effect {
            Effect::Begin { .. } => enlisted == 0 || (self.transaction.is_some() && self.has_several()),
            // Several participants: the end is not one server's to say.
            Effect::Commit { .. } | Effect::Rollback { .. } => enlisted != 1 || self.has_several(),
            Effect::Savepoint(..)
            | Effect::SetTransaction { .. }
            | Effect::Set { .. }
            | Effect::SetConfig { .. }
            | Effect::ResetAll
            | Effect::Cursor(None)
                if self.has_several() =>
            {
                true
            }
            Effect::Savepoint(..) | Effect::SetTransaction { .. } => {
                enlisted == 0 && self.transaction.is_some()
            }
            Effect::Set { value: None, local: false, name } => {
                enlisted == 0
                    && (self.settings.get(name).is_some() || self.startup_settings.get(name).is_some())
            }
            Effect::Set { .. } => enlisted == 0 && self.transaction.is_some(),
            Effect::SetConfig { name, .. } => enlisted == 0 && self.transaction.is_some() && is_custom(name),
            Effect::ResetAll => enlisted == 0,
            Effect::Discard(what) => what.eq_ignore_ascii_case("all") || self.pinned.is_none(),
            Effect::Deallocate(_) => true,
            _ => false,
        }
    }

    /// The index of a portal's server; `None`: its transaction is over, and the portal with it.
    fn server_of(&self, key: &Rc<ServerKey>) -> Option<usize> {
        self.servers.iter().position(|server| server.enlisted && Rc::ptr_eq(&server.key, key))
    }

    pub(super) fn set_portal(&mut self, name: &[u8], portal: Portal) {
        self.extended().portals.set(name, portal);
    }

    pub(super) fn suspend_portal(&mut self, name: &[u8]) {
        self.set_portal(name, Portal::Running);
    }

    /// `again`: CommandComplete without rows, if it is a portal that gives rows.
    pub(super) fn end_portal(&mut self, name: &[u8], again: Option<Rc<[u8]>>) {
        self.set_portal(name, Portal::Ended { again });
    }

    fn portal(&mut self, name: &[u8]) -> Option<Portal> {
        self.extended().portals.get(name)
    }

    /// A portal that has ended with its server's transaction is none.
    pub(super) fn is_open(&mut self, name: &[u8]) -> bool {
        match self.portal(name) {
            Some(Portal::Server { key, .. }) => self.server_of(&key).is_some(),
            portal => portal.is_some(),
        }
    }

    pub(super) fn on_describe(&mut self, message: &[u8]) -> Flow {
        let Some((kind, name)) = read::named(message) else { return Self::malformed("Describe") };
        if kind == b'S' {
            return self.describe_statement(name);
        }
        match self.portal(name) {
            Some(Portal::Server { key, entry }) => {
                let Some(at) = self.server_of(&key) else {
                    return self.refused(no_portal(name));
                };
                if at != self.active && !self.queue.is_empty() {
                    return self.wait_for_replies();
                }
                self.active = at;
                self.servers[at].out.extend_from_slice(message);
                self.queue.push_back(Expect::DescribePortal(entry));
            }
            Some(Portal::Local { entry, binary }) => {
                match self.local_description(&entry.routed.plan.effect, binary) {
                    Some(bytes) if self.extended().held.is_empty() => self.say(bytes),
                    Some(bytes) => self.extended().held.push(Held::Ours(bytes.into())),
                    None => self.answer(build::NO_DATA),
                }
            }
            Some(Portal::Sql { entry, results }) => {
                return self.describe_sql_prepared(&entry, Described::Portal(results));
            }
            Some(Portal::Multi { entry, bind, .. }) => {
                self.set_portal(name, Portal::Multi { entry, bind, describe: true });
            }
            Some(Portal::Running | Portal::Ended { .. }) => {
                return self.refused(ProxyError::not_supported(
                    "a portal over several shards is described before it is executed first",
                    "Describe it after Bind.",
                ));
            }
            None => return self.refused(no_portal(name)),
        }
        Flow::Done
    }

    fn describe_statement(&mut self, name: &[u8]) -> Flow {
        if let Some(flow) = self.await_names() {
            return flow;
        }
        let entry = match self.statement(name) {
            Ok(entry) => entry,
            Err(error) => return self.refused(error),
        };
        if let Effect::SqlExecute { .. } = entry.routed.plan.effect {
            return self.describe_sql_prepared(&entry, Described::Statement);
        }
        if let Effect::Cursor(Some(cursor)) = &entry.routed.plan.effect
            && self.running.has(&Name::Cursor(cursor.clone()))
        {
            // Its rows are on a server of their own, which a Parse does not reach.
            return self.refused(ProxyError::not_supported(
                "a description of FETCH from a cursor over several shards before it is bound",
                "Describe the portal instead of the statement, or use the simple protocol.",
            ));
        }
        if needs_no_server(&entry) {
            let mut bytes = b"t\0\0\0\x06\0\0".to_vec();
            match self.local_description(&entry.routed.plan.effect, false) {
                Some(row) => bytes.extend_from_slice(&row),
                None => bytes.extend_from_slice(build::NO_DATA),
            }
            if self.extended().held.is_empty() {
                self.say(bytes);
            } else {
                self.extended().held.push(Held::Ours(bytes.into()));
            }
            return Flow::Done;
        }
        let known = entry.description.borrow().clone();
        match known {
            Some(bytes) if self.extended().held.is_empty() => self.say(bytes.to_vec()),
            Some(bytes) => self.extended().held.push(Held::Ours(bytes[..].into())),
            None => self.extended().held.push(Held::Describe(entry)),
        }
        Flow::Done
    }

    pub(super) fn on_execute(&mut self, message: &[u8]) -> Flow {
        let Some((name, max_rows)) = read::execute(message) else { return Self::malformed("Execute") };
        match self.portal(name) {
            Some(Portal::Server { key, entry }) => {
                // What was asked behind the Bind is answered before the rows.
                if !self.extended().held.is_empty()
                    && let Err(flow) = self.place_held()
                {
                    return flow;
                }
                let Some(at) = self.server_of(&key) else {
                    return self.refused(no_portal(name));
                };
                if at != self.active && !self.queue.is_empty() {
                    return self.wait_for_replies();
                }
                self.active = at;
                self.servers[at].out.extend_from_slice(message);
                self.servers[at].unsynced = true;
                let effect = &entry.routed.plan.effect;
                self.unsettled |= self.may_rename(effect) || matches!(effect, Effect::Declare(_));
                let text = entry.sql.get(entry.routed.text.clone()).unwrap_or_default();
                self.queue.push_back(Expect::Execute(Self::pending(&entry.routed.plan, text)));
                Flow::Done
            }
            Some(Portal::Local { entry, binary }) => self.execute_local(name, &entry, binary),
            Some(Portal::Sql { entry, results }) => self.execute_sql_prepared(name, &entry, results, max_rows),
            Some(Portal::Multi { entry, bind, describe }) => {
                self.execute_multi(name, entry, bind, describe, max_rows)
            }
            Some(Portal::Running) => {
                if !self.running.has(&Name::Portal(name.into())) {
                    return self.refused(no_portal(name));
                }
                if !self.extended().held.is_empty()
                    && let Err(flow) = self.place_held()
                {
                    return flow;
                }
                if !self.queue.is_empty() {
                    return self.wait_for_replies();
                }
                let work = MultiWork::Resume { portal: name.into(), max_rows };
                Flow::DoneThen(Next::Multi(Box::new(work)))
            }
            Some(Portal::Ended { again }) => self.execute_ended(name, again),
            None => self.refused(no_portal(name)),
        }
    }

    /// As PostgreSQL: a portal that gives rows has none left, any other runs once (PortalRunMulti and its callers in
    /// src/backend/tcop/pquery.c).
    fn execute_ended(&mut self, name: &[u8], again: Option<Rc<[u8]>>) -> Flow {
        if !self.extended().held.is_empty()
            && let Err(flow) = self.place_held()
        {
            return flow;
        }
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return self.refused(ProxyError::failed_transaction());
        }
        match again {
            Some(complete) => {
                self.say(complete.to_vec());
                Flow::Done
            }
            None => {
                let text = format!("portal \"{}\" cannot be run", String::from_utf8_lossy(name));
                self.refused(ProxyError::new("55000", text))
            }
        }
    }

    fn execute_local(&mut self, name: &[u8], entry: &Rc<Entry>, binary: bool) -> Flow {
        if !self.extended().held.is_empty() {
            // A local answer changes the session, so what is before it must be known to be good.
            if let Err(flow) = self.place_held() {
                return flow;
            }
        }
        let text = entry.sql.get(entry.routed.text.clone()).unwrap_or_default();
        // What gives rows gives them again, and the end of a transaction is the end of its portals.
        let runs_once = matches!(
            entry.routed.plan.effect,
            Effect::Begin { .. }
                | Effect::Savepoint(..)
                | Effect::Set { .. }
                | Effect::SetTransaction { .. }
                | Effect::ResetAll
                | Effect::Deallocate(_)
        );
        if let Some(flow) = self.for_all_participants(&entry.routed.plan, text, false) {
            if runs_once && matches!(flow, Flow::DoneThen(_)) {
                self.end_portal(name, None);
            }
            return flow;
        }
        match self.local(&entry.routed, text, By::Extended { binary }) {
            Ok(Some(bytes)) => {
                if runs_once {
                    self.end_portal(name, None);
                }
                self.say(bytes);
                Flow::Done
            }
            Ok(None) => self.refused(ProxyError::not_supported(
                "this statement cannot be bound before and executed after another one of the same batch",
                "Send Sync between them.",
            )),
            Err(error) => self.refused(error),
        }
    }

    fn execute_multi(
        &mut self,
        name: &[u8],
        entry: Rc<Entry>,
        bind: Rc<[u8]>,
        describe: bool,
        max_rows: i32,
    ) -> Flow {
        if !self.extended().held.is_empty()
            && let Err(flow) = self.place_held()
        {
            return flow;
        }
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        if let Some(error) = self.failure.take() {
            return self.refused(*error);
        }
        if !entry.settings.routes_like(self.routing()) {
            let error = ProxyError::not_supported(
                "what names mean has changed between this statement's Bind and its Execute",
                "Bind it again.",
            );
            return self.refused(error);
        }
        let Some(parsed) = read::bind(&bind) else { return Self::malformed("Bind") };
        let params =
            BindParams { bind: parsed, oids: &entry.oids, utf8: self.routing().client_encoding_is_utf8 };
        let destination = self.destination(&entry.routed, &entry.sql, &params);
        match self.admit(&entry.routed, &entry.sql, &params, &destination) {
            Ok(()) => {}
            Err(Denied::Hold) => return self.hold_message(),
            Err(Denied::Never(error)) => return self.refused(error),
        }
        match destination {
            Destination::Multi(resolved) => {
                let statement = MultiStatement {
                    resolved,
                    sql: Rc::from(&*entry.sql),
                    routed: entry.routed.clone(),
                    protocol: Protocol::Extended {
                        entry: entry.clone(),
                        bind: bind.clone(),
                        describe,
                        max_rows,
                        portal: name.into(),
                    },
                };
                // A second Execute must not run it again; with rows, it is a portal of another kind. Rows of one that had
                // its name before are nobody's.
                self.running.close(&Name::Portal(name.into()));
                self.end_portal(name, None);
                Flow::DoneThen(Next::Multi(Box::new(MultiWork::Statement(statement))))
            }
            Destination::Refused(error) => self.refused(error),
            // The map changed between Bind and Execute.
            Destination::Shard(_) => {
                self.refused(ProxyError::new("40001", "the shard map changed while the statement was bound"))
            }
        }
    }

    pub(super) fn on_close(&mut self, message: &[u8]) -> Flow {
        let Some((kind, name)) = read::named(message) else { return Self::malformed("Close") };
        let extended = self.extended();
        if kind == b'S' {
            // Other clients may use the same text: servers keep it, under their own limit.
            if name.is_empty() {
                extended.unnamed = None;
            } else {
                extended.statements.remove(name);
            }
        } else {
            let portal = extended.portals.remove(name);
            if matches!(portal, Some(Portal::Running)) {
                self.running.close(&Name::Portal(name.into()));
            }
            if let Some(Portal::Server { key, entry }) = portal
                && let Some(at) = self.server_of(&key)
            {
                if at != self.active && !self.queue.is_empty() {
                    self.set_portal(name, Portal::Server { key, entry });
                    return self.wait_for_replies();
                }
                self.active = at;
                self.servers[at].out.extend_from_slice(message);
                self.servers[at].unsynced = true;
                self.queue.push_back(Expect::Close);
                return Flow::Done;
            }
        }
        self.answer(build::CLOSE_COMPLETE);
        Flow::Done
    }
}

/// Statements that no server ever sees, whatever the state.
pub(super) fn is_ours(entry: &Entry) -> bool {
    match &entry.routed.plan.effect {
        Effect::ShowProxy(_) | Effect::ExplainRoute(_) | Effect::Deallocate(_) => true,
        Effect::Set { name, .. } | Effect::SetConfig { name, .. } => crate::route::is_own_setting(name),
        Effect::Discard(what) => what.eq_ignore_ascii_case("all"),
        effect => is_sql_prepared(effect),
    }
}

fn no_portal(name: &[u8]) -> ProxyError {
    ProxyError::new("34000", format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)))
}
