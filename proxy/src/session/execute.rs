//! The extended protocol's Execute: where a portal's rows come from, and what is said when there are none any more.

use std::rc::Rc;

use super::dispatch::Destination;
use super::extended::no_portal;
use super::local::By;
use super::motion::Denied;
use super::multi_hook::{MultiStatement, MultiWork, Protocol};
use super::portals::{BindParams, Portal};
use super::prepared::Entry;
use super::running::Name;
use super::{Expect, Flow, Next, Session};
use crate::error::ProxyError;
use crate::route::plan::Effect;
use crate::wire::{build, read};

impl Session {
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
                // Behind its end is another transaction, of which it must be known alone what it has touched.
                let ends = matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. });
                self.unsettled |= ends || self.may_rename(effect) || matches!(effect, Effect::Declare(_));
                let text = entry.sql.get(entry.routed.text.clone()).unwrap_or_default();
                self.queue.push_back(Expect::Execute(Self::pending(&entry.routed.plan, text)));
                Flow::Done
            }
            Some(Portal::Local { entry, binary }) => self.execute_local(name, &entry, binary),
            Some(Portal::Sql { entry, results }) => {
                self.execute_sql_prepared(name, &entry, results, max_rows)
            }
            Some(Portal::Multi { entry, bind, describe }) => {
                self.execute_multi(message, (name, max_rows), (entry, bind, describe))
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
            let error = self.refusal_in_failed();
            return self.refused(error);
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
        message: &[u8],
        (name, max_rows): (&[u8], i32),
        (entry, bind, describe): (Rc<Entry>, Rc<[u8]>, bool),
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
            Destination::Shard(place) => {
                let bound = match self.with_value(&entry, &params) {
                    Ok(bound) => bound,
                    Err(error) => return self.refused(error),
                };
                if self.is_refused_in_failed(&entry.routed.plan.effect) {
                    let error = self.refusal_in_failed();
                    return self.refused(error);
                }
                if let Some(error) = self.pins_elsewhere(&entry.routed.plan, place.shard) {
                    return self.refused(error);
                }
                let at = match self.server_for(place.shard, None) {
                    Ok(at) => at,
                    Err(Flow::Later) if self.failure.is_some() => return self.on_execute(message),
                    Err(flow) => return flow,
                };
                self.mark_write(&entry.routed.plan, place);
                self.bind_late(at, &params.bind, (&entry, bound), describe);
                self.on_execute(message)
            }
        }
    }

    /// The map has changed since the client's Bind, and all that the statement is for is on one shard now: it is bound there as if
    /// that had been so at once.
    fn bind_late(
        &mut self,
        at: usize,
        bind: &read::Bind<'_>,
        (entry, bound): (&Rc<Entry>, Rc<Entry>),
        describe: bool,
    ) {
        self.worker.stats.statements.add(1);
        self.answered = false;
        self.hidden_bind = true;
        self.bind_on(at, bind, entry, bound);
        if describe {
            build::named(&mut self.servers[at].out, b'D', b'P', bind.portal);
            self.queue.push_back(Expect::DescribePortal(entry.clone()));
        }
    }
}
