//! The simple protocol: one Query message, one statement or several.

use super::dispatch::Destination;
use super::local::By;
use super::motion::Denied;
use super::multi_hook::{MultiStatement, MultiWork, Protocol};
use super::sql_prepared::is_sql_prepared;
use super::{Expect, Flow, Next, Pending, Session};
use crate::error::ProxyError;
use crate::motion::Touch;
use crate::route::plan::{Access, Effect, SavepointVerb};
use crate::route::{NoParams, Routed, RoutedStatement};
use crate::wire::{build, read};

impl Session {
    pub(super) fn on_query(&mut self, whole: &[u8]) -> Flow {
        let message = whole;
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        let Some(sql) = read::query(message) else {
            return Flow::DoneThen(Next::Close(Some(Box::new(ProxyError::protocol(
                "invalid string in message",
            )))));
        };
        if let Some(error) = self.failure.take() {
            self.refuse_query(&error);
            self.after_failure();
            return Flow::Done;
        }
        let restricted = match self.restricted(sql) {
            Ok(restricted) => restricted,
            Err(error) => {
                self.refuse_query(&error);
                return Flow::Done;
            }
        };
        let mut replaced = Vec::new();
        let (message, sql) = match &restricted {
            Some(text) => {
                build::query(&mut replaced, text);
                (replaced.as_slice(), text.as_slice())
            }
            None => (message, sql),
        };
        let mut routed = self.with_router(|router, context, _| router.simple(context, sql));
        if routed.statements.len() > 1 && self.changes_key(&routed.statements) {
            return self.refuse_several("what changes shard.key, and statements that go by it");
        }
        if routed.statements.len() > 1
            && let Err(error) = self.route_behind_set(sql, &mut routed)
        {
            self.refuse_query(&error);
            return Flow::Done;
        }
        let flow = match routed.statements.as_slice() {
            [] => {
                let mut bytes = build::EMPTY_QUERY.to_vec();
                build::ready(&mut bytes, self.status());
                self.say(bytes);
                Flow::Done
            }
            [one] => self.one(message, sql, one),
            several => self.several(message, sql, &routed, several),
        };
        match flow {
            // Reasons found while a server was looked for.
            Flow::Later if self.failure.is_some() => self.on_query(whole),
            other => other,
        }
    }

    /// An error before anything was sent ends an implicit transaction that other servers may be part of.
    fn after_failure(&mut self) {
        if self.transaction.is_none() && self.queue.is_empty() {
            self.end_transaction(false);
        }
    }

    fn one(&mut self, message: &[u8], sql: &[u8], statement: &RoutedStatement) -> Flow {
        let plan = &statement.plan;
        self.worker.stats.statements.add(1);
        if self.is_refused_in_failed(&plan.effect) {
            let error = self.refusal_in_failed();
            self.refuse_query(&error);
            return Flow::Done;
        }
        let text = &sql[statement.text.clone()];
        if is_sql_prepared(&plan.effect) {
            let text = String::from_utf8_lossy(text).into_owned();
            return Flow::DoneThen(Next::Multi(Box::new(MultiWork::Prepared {
                plan: plan.clone(),
                text,
                portal: None,
            })));
        }
        if plan.effect != Effect::None {
            match self.local(statement, text, By::Simple) {
                Ok(Some(mut bytes)) => {
                    build::ready(&mut bytes, self.status());
                    self.say(bytes);
                    self.set_activity();
                    return Flow::Done;
                }
                Ok(None) => {}
                Err(error) => {
                    self.refuse_query(&error);
                    return Flow::Done;
                }
            }
            if let Some(flow) = self.for_all_participants(plan, text, true) {
                return flow;
            }
        }
        let params = NoParams { client_encoding_is_utf8: self.routing().client_encoding_is_utf8 };
        let destination = self.destination(statement, sql, &params);
        match self.admit(statement, sql, &params, &destination) {
            Ok(()) => {}
            Err(Denied::Hold) => return self.hold_message(),
            Err(Denied::Never(error)) => {
                self.refuse_query(&error);
                return Flow::Done;
            }
        }
        let place = match destination {
            Destination::Shard(place) => place,
            Destination::Refused(error) => {
                self.refuse_query(&error);
                return Flow::Done;
            }
            Destination::Multi(resolved) => {
                let statement = MultiStatement {
                    resolved,
                    sql: sql.into(),
                    routed: statement.clone(),
                    protocol: Protocol::Simple,
                };
                return Flow::DoneThen(Next::Multi(Box::new(MultiWork::Statement(statement))));
            }
        };
        if let Some(error) = self.pins_elsewhere(plan, place.shard) {
            self.refuse_query(&error);
            return Flow::Done;
        }
        let replica = if plan.access == Access::Read { self.replica_for(plan, place, true) } else { None };
        let at = match self.server_for(place.shard, replica) {
            Ok(at) => at,
            Err(flow) => return flow,
        };
        self.force_primary = false;
        self.answered = false;
        if replica.is_some() {
            self.worker.stats.replica_reads.add(1);
            self.retry.clear();
            self.retry_mark = self.output.len();
            if self.transaction.is_none() {
                self.retry.extend_from_slice(message);
            }
        } else {
            self.mark_write(plan, place);
        }
        self.servers[at].out.extend_from_slice(message);
        self.queue.push_back(Expect::Query(Self::pending(plan, text)));
        self.gate = true;
        self.set_activity();
        Flow::Done
    }

    /// Several statements in one message are one implicit transaction (H20). All on one shard: the text goes there
    /// as it is.
    fn several(
        &mut self,
        message: &[u8],
        sql: &[u8],
        routed: &Routed,
        statements: &[RoutedStatement],
    ) -> Flow {
        self.worker.stats.statements.add(statements.len() as u64);
        let failed = self.transaction.as_ref().is_some_and(|t| t.failed);
        // Where all of it goes, and whether a statement insists on that (its key, or a plain table, says so).
        let mut place: Option<(super::dispatch::Place, bool)> = None;
        let mut spread = false;
        let mut marks = Vec::new();
        let control = statements.iter().any(|s| is_control(&s.plan.effect));
        if self.is_refused_in_failed(&statements[0].plan.effect) {
            // As PostgreSQL: nothing behind it is looked at.
            let error = self.refusal_in_failed();
            self.refuse_query(&error);
            return Flow::Done;
        }
        if control && self.has_several() && !failed {
            spread = true; // One server cannot end what several have joined.
        } else if control && self.has_several() {
            return self
                .refuse_several("transaction control while a failed transaction spans several shards");
        }
        let held_since = self.held_since;
        self.behind = None;
        for (number, statement) in statements.iter().enumerate() {
            let params = NoParams { client_encoding_is_utf8: self.routing().client_encoding_is_utf8 };
            let only_proxy = matches!(
                statement.plan.effect,
                Effect::ShowProxy(_) | Effect::ExplainRoute(_) | Effect::Discard(_)
            ) || statement.plan.effect.setting().is_some_and(crate::route::is_own_setting);
            if only_proxy && number + 1 == statements.len() && place.is_none() && number == 0 {
                return self.one(message, sql, statement);
            }
            if only_proxy {
                return self.refuse_several("a statement that the proxy answers itself");
            }
            if is_prepared(&statement.plan.effect) {
                // What EXECUTE runs is known when its turn comes.
                spread = true;
                continue;
            }
            let destination = self.destination(statement, sql, &params);
            if is_control(&statement.plan.effect) {
                if matches!(statement.plan.effect, Effect::Commit { .. } | Effect::Rollback { .. }) {
                    // All is admitted before any of it runs; what is over then must not take along what is not.
                    self.behind = Some(Touch::default());
                }
                continue;
            }
            // The message waits as one: those before the statement that waits begin nothing anew.
            self.held_since = held_since;
            match self.admit(statement, sql, &params, &destination) {
                Ok(()) => {}
                Err(Denied::Hold) => return self.hold_message(),
                Err(Denied::Never(error)) => {
                    self.refuse_query(&error);
                    return Flow::Done;
                }
            }
            let found = match destination {
                Destination::Shard(found) => found,
                Destination::Refused(error) => {
                    self.refuse_query(&error);
                    return Flow::Done;
                }
                Destination::Multi(_) => {
                    spread = true;
                    continue;
                }
            };
            marks.push((statement.plan.clone(), found));
            let insists = !matches!(statement.plan.route, crate::route::plan::Route::Any)
                || self.cursor_shard(&statement.plan.effect).is_some();
            match &mut place {
                None => place = Some((found, insists)),
                Some((known, fixed)) if known.shard == found.shard => {
                    known.keyed |= found.keyed;
                    *fixed |= insists;
                }
                // What any shard can answer follows what only one can.
                Some(known) if !known.1 => *known = (found, insists),
                Some(_) if !insists => {}
                Some(_) => spread = true,
            }
        }
        if spread {
            self.behind = None;
            if failed {
                let error = self.refusal_in_failed();
                self.refuse_query(&error);
                return Flow::Done;
            }
            let work = MultiWork::Several { sql: sql.into(), routed: routed.clone() };
            return Flow::DoneThen(Next::Multi(Box::new(work)));
        }
        let Some((place, _)) = place else {
            return self.several_control(message, sql, statements);
        };
        match self.servers.iter().find(|s| s.enlisted) {
            // Its end concerns a shard that the other statements are not for.
            Some(server) if control && server.shard != place.shard && !failed => {
                let work = MultiWork::Several { sql: sql.into(), routed: routed.clone() };
                return Flow::DoneThen(Next::Multi(Box::new(work)));
            }
            Some(server) if server.shard == place.shard => {}
            // A server that has heard nothing of the failure would call its end a COMMIT.
            _ if failed => return self.refuse_several("the end of a failed transaction and what follows it"),
            _ => {}
        }
        if let Some(error) = statements.iter().find_map(|s| self.pins_elsewhere(&s.plan, place.shard)) {
            self.refuse_query(&error);
            return Flow::Done;
        }
        let at = match self.server_for(place.shard, None) {
            Ok(at) => at,
            Err(flow) => return flow,
        };
        self.answered = false;
        for (plan, found) in &marks {
            self.mark_write(plan, super::dispatch::Place { shard: place.shard, ..*found });
        }
        self.servers[at].out.extend_from_slice(message);
        let mut pending = several_pending(routed, sql);
        if let Some(pending) = &mut pending {
            pending.behind = self.behind.take().map(Box::new);
        }
        self.queue.push_back(Expect::Query(pending));
        self.gate = true;
        self.set_activity();
        Flow::Done
    }

    /// Nothing but BEGIN, SET, SAVEPOINT ...: held or forwarded like one statement each.
    fn several_control(&mut self, message: &[u8], sql: &[u8], statements: &[RoutedStatement]) -> Flow {
        if self.servers.iter().any(|s| s.enlisted) {
            let shard = self.servers.iter().find(|s| s.enlisted).map_or(0, |s| s.shard);
            let at = match self.server_for(shard, None) {
                Ok(at) => at,
                Err(flow) => return flow,
            };
            self.servers[at].out.extend_from_slice(message);
            self.queue.push_back(Expect::Query(several_pending(
                &Routed { statements: statements.iter().cloned().collect() },
                sql,
            )));
            self.gate = true;
            return Flow::Done;
        }
        let mut bytes = Vec::new();
        for statement in statements {
            if self.is_refused_in_failed(&statement.plan.effect) {
                self.say(bytes);
                let error = self.refusal_in_failed();
                self.refuse_query(&error);
                return Flow::Done;
            }
            match self.local(statement, &sql[statement.text.clone()], By::Simple) {
                Ok(Some(reply)) => bytes.extend_from_slice(&reply),
                Ok(None) if bytes.is_empty() && self.transaction.is_none() => {
                    // SET outside of a transaction: any server, which checks it.
                    let shard = self.any_shard(&self.worker.state());
                    let at = match self.server_for(shard, None) {
                        Ok(at) => at,
                        Err(flow) => return flow,
                    };
                    self.servers[at].out.extend_from_slice(message);
                    let routed = Routed { statements: statements.iter().cloned().collect() };
                    self.queue.push_back(Expect::Query(several_pending(&routed, sql)));
                    self.gate = true;
                    return Flow::Done;
                }
                Ok(None) => {
                    return self.refuse_several("this combination of transaction control and settings");
                }
                Err(error) => {
                    self.say(bytes);
                    self.refuse_query(&error);
                    return Flow::Done;
                }
            }
        }
        build::ready(&mut bytes, self.status());
        self.say(bytes);
        Flow::Done
    }

    fn refuse_several(&mut self, what: &str) -> Flow {
        let error = ProxyError::not_supported(
            format!("one message with several statements holds {what}"),
            "Send the statements one by one.",
        );
        self.refuse_query(&error);
        Flow::Done
    }

    /// What it is refused with. A loss of which the client has not heard is told first: 25P02 does not say that the transaction
    /// may be tried again.
    pub(super) fn refusal_in_failed(&mut self) -> ProxyError {
        match self.transaction.as_mut().and_then(|transaction| transaction.untold.take()) {
            Some(shard) => ProxyError::participant_lost(shard),
            None => ProxyError::failed_transaction(),
        }
    }

    pub(super) fn is_refused_in_failed(&self, effect: &Effect) -> bool {
        let Some(transaction) = self.transaction.as_ref().filter(|t| t.failed) else { return false };
        match effect {
            Effect::Commit { .. } | Effect::Rollback { .. } => false,
            Effect::Savepoint(SavepointVerb::RollbackTo, _) => transaction.lost,
            _ => true,
        }
    }
}

pub(super) fn is_control(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Begin { .. }
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::Savepoint(..)
            | Effect::Set { .. }
            | Effect::SetConfig { .. }
            | Effect::ResetAll
            | Effect::SetTransaction { .. }
    )
}

/// Statements about what the session, and no server, has prepared.
fn is_prepared(effect: &Effect) -> bool {
    matches!(effect, Effect::Deallocate(_)) || is_sql_prepared(effect)
}

fn several_pending(routed: &Routed, sql: &[u8]) -> Option<Box<Pending>> {
    let text = |s: &RoutedStatement| String::from_utf8_lossy(&sql[s.text.clone()]).into_owned();
    let plans: smallvec::SmallVec<_> = routed
        .statements
        .iter()
        .filter(|s| s.plan.effect != Effect::None)
        .map(|s| (s.plan.clone(), text(s)))
        .collect();
    (!plans.is_empty()).then(|| Box::new(Pending { plans, ..Pending::default() }))
}
