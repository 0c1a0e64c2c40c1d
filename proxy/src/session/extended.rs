//! The extended protocol: Parse, Bind and Close. `describe` and `execute` have the messages in between.
//!
//! A client's statement is an entry of the worker's registry; which server has it is that server's matter. So Parse
//! sends nothing when the text is known: ParseComplete is ours, and the Bind that follows names the entry. A shard
//! is chosen at Bind, when the key's value is there.

use std::rc::Rc;

use super::config::is_custom;
use super::dispatch::Destination;
use super::motion::Denied;
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

    pub(super) fn malformed(what: &str) -> Flow {
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
            let error = self.refusal_in_failed();
            return self.refused(error);
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
            let error = self.refusal_in_failed();
            return self.refused(error);
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
        self.bind_on(at, &bind, &entry, bound);
        Flow::Done
    }

    /// Behind what is held for the server. `bound`: what the portal is of, with the values that the session looks at.
    pub(super) fn bind_on(&mut self, at: usize, bind: &read::Bind<'_>, entry: &Rc<Entry>, bound: Rc<Entry>) {
        self.send_held(at);
        self.prepare_on(at, entry);
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
    pub(super) fn server_of(&self, key: &Rc<ServerKey>) -> Option<usize> {
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

    pub(super) fn portal(&mut self, name: &[u8]) -> Option<Portal> {
        self.extended().portals.get(name)
    }

    /// A portal that has ended with its server's transaction is none.
    pub(super) fn is_open(&mut self, name: &[u8]) -> bool {
        match self.portal(name) {
            Some(Portal::Server { key, .. }) => self.server_of(&key).is_some(),
            portal => portal.is_some(),
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

pub(super) fn no_portal(name: &[u8]) -> ProxyError {
    ProxyError::new("34000", format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)))
}
