//! Which server runs a statement, and what that server must hear first.

use std::rc::Rc;

use shard_config::{Bucket, KeyHash, ShardId};

use super::running::Name;
use super::settings;
use super::simple::is_control;
use super::{Expect, Flow, Next, Pending, ReadSetting, Session, Want};
use crate::error::ProxyError;
use crate::pool::{Role, Server};
use crate::route::plan::{Access, Effect, How, Plan, Route};
use crate::route::{Params, Resolved, RoutedStatement, resolve};
use crate::shared::State;
use crate::wire::build;

pub(super) const DISCARD_SEQUENCES: &[u8] = b"DISCARD SEQUENCES";

/// Where one execution goes.
pub enum Destination {
    Shard(Place),
    Multi(Resolved),
    Refused(ProxyError),
}

#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub shard: usize,
    /// `None`: several keys, or none.
    pub key: Option<KeyHash>,
    /// The key says so; else any server of the shard, or any shard, would do.
    pub keyed: bool,
}

impl Place {
    #[inline]
    pub fn bucket(&self, state: &State) -> Option<Bucket> {
        self.key.map(|hash| hash.bucket(state.map.buckets()))
    }
}

impl Session {
    /// `sql` is the message's text, `statement.text` the statement within it.
    #[inline]
    pub(super) fn destination<P: Params>(
        &self,
        statement: &RoutedStatement,
        sql: &[u8],
        params: &P,
    ) -> Destination {
        let state = self.worker.state();
        // Transaction control is for the server that is in the transaction, wherever `shard.target` points now.
        if is_control(&statement.plan.effect)
            && let Some(server) = self.servers.iter().find(|s| s.enlisted)
        {
            return Destination::Shard(Place { shard: server.shard, key: None, keyed: false });
        }
        if let Effect::Cursor(Some(name)) = &statement.plan.effect
            && self.running.has(&Name::Cursor(name.clone()))
        {
            return Destination::Multi(Resolved::Cursor);
        }
        if let Some(shard) = self.cursor_shard(&statement.plan.effect) {
            return Destination::Shard(Place { shard, key: None, keyed: false });
        }
        if statement.plan.effect == Effect::ReadsSequence
            && self.target.is_none()
            && matches!(statement.plan.route, Route::Default)
        {
            return Destination::Multi(Resolved::Drawn);
        }
        if let Some(error) = self.in_use(&statement.plan, sql.get(statement.text.clone()).unwrap_or_default())
        {
            return Destination::Refused(error);
        }
        if let Some(error) = self.value_of_another(&statement.plan.effect, &state) {
            return Destination::Refused(error);
        }
        if let Some(shard) = self.target {
            if let Some(error) = self.has_left(shard, &state) {
                return Destination::Refused(error);
            }
            return Destination::Shard(Place { shard, key: None, keyed: false });
        }
        if let Some(error) = self.changed_before(&statement.plan) {
            return Destination::Refused(error);
        }
        let text = sql.get(statement.text.clone()).unwrap_or_default();
        let keyed = |shard: ShardId, key| match state.position(shard) {
            Some(shard) => Destination::Shard(Place { shard, key, keyed: true }),
            None => Destination::Refused(ProxyError::no_primary(
                shard.0,
                "the map names it but the configuration does not",
            )),
        };
        let unkeyed = |shard| Destination::Shard(Place { shard, key: None, keyed: false });
        let destination = match resolve(&statement.plan, &statement.literals, text, params, &state.map) {
            Resolved::One { shard, key } => keyed(shard, key),
            Resolved::Any | Resolved::Session => unkeyed(self.any_shard(&state)),
            Resolved::Default => unkeyed(state.position(state.config.proxy.default_shard).unwrap_or(0)),
            Resolved::Refuse(refusal) => Destination::Refused((&refusal).into()),
            several => Destination::Multi(several),
        };
        match self.declared_elsewhere(&statement.plan.effect, &destination) {
            Some(error) => Destination::Refused(error),
            None => destination,
        }
    }

    /// Cursors of one session have one name each, on whichever servers they are; those of one server it knows itself.
    fn declared_elsewhere(&self, effect: &Effect, destination: &Destination) -> Option<ProxyError> {
        let Effect::Declare(name) = effect else { return None };
        let shard = self.transaction.as_ref().and_then(|transaction| transaction.cursor(name));
        let elsewhere = match destination {
            Destination::Refused(_) => return None,
            Destination::Shard(place) => shard.is_some_and(|shard| shard != place.shard),
            Destination::Multi(_) => shard.is_some(),
        };
        (elsewhere || self.running.has(&Name::Cursor(name.clone())))
            .then(|| ProxyError::new("42P03", format!("cursor \"{name}\" already exists")))
    }

    /// The shard of an open cursor.
    pub(super) fn cursor_shard(&self, effect: &Effect) -> Option<usize> {
        match effect {
            Effect::Cursor(Some(name)) => self.transaction.as_ref()?.cursor(name),
            _ => None,
        }
    }

    /// May a server draw from a sequence for this statement? Those that run on shards by their key never call
    /// nextval(): numbers for their rows are drawn here (and what a declared function does is its owner's word).
    pub(super) fn may_draw(&self, plan: &Plan) -> bool {
        let elsewhere = matches!(
            plan.route,
            Route::Key(_)
                | Route::SplitInsert(_)
                | Route::Scatter(How::Each | How::Gather | How::Apply)
                | Route::Session
        );
        plan.access == Access::Write && !is_control(&plan.effect) && (!elsewhere || self.target.is_some())
    }

    /// currval() outside of a block would be what another client has drawn from the server that happens to be free.
    fn value_of_another(&self, effect: &Effect, state: &State) -> Option<ProxyError> {
        if *effect != Effect::ReadsSequence {
            return None;
        }
        if let Some(transaction) = &self.transaction {
            return transaction.drew_elsewhere.then(|| {
                ProxyError::not_supported(
                    "currval() and lastval() after a write over several shards that drew from a sequence",
                    "Use INSERT ... RETURNING.",
                )
            });
        }
        let shard = self.target.or_else(|| state.position(state.config.proxy.default_shard));
        let own = |server: &Server| {
            Some(server.shard) == shard && !server.drawn_by_others && !self.current.is_mixed()
        };
        if self.pinned_server().is_some_and(own) {
            return None;
        }
        Some(ProxyError::not_supported(
            "currval() and lastval() outside of a transaction block",
            "Use INSERT ... RETURNING, or nextval() and currval() in one transaction block.",
        ))
    }

    /// `shard.target` may name a shard that a reload has taken out since: nothing begins there any more.
    fn has_left(&self, shard: usize, state: &State) -> Option<ProxyError> {
        let left = state.shards.get(shard).filter(|known| !known.is_member())?;
        let is_in_use = self.servers.iter().any(|server| server.enlisted && server.shard == shard);
        (!is_in_use).then(|| {
            ProxyError::new("55000", format!("shard {} was taken out of the configuration", left.id))
                .hint("SET shard.target to another shard, or to '' for none.")
        })
    }

    /// A shard for what every shard can answer: the one that has the session's own objects, else one already in use,
    /// else one that differs by client. One that owns nothing is not asked, as it may lack rows of reference tables. But what
    /// a transaction has locked and seen, it sees again: it stays where it is on the default shard and on the first one, which
    /// are neither new nor leave.
    pub(super) fn any_shard(&self, state: &State) -> usize {
        if let Some(server) = self.pinned_server() {
            return server.shard;
        }
        let owns = |shard: &usize| state.shards.get(*shard).is_some_and(|s| s.owns);
        let stays = |shard: usize| {
            owns(&shard)
                || state.position(state.config.proxy.default_shard) == Some(shard)
                || state.members().next() == Some(shard)
        };
        let in_use = || self.servers.iter().filter(|server| stays(server.shard));
        if let Some(server) = in_use().find(|s| s.enlisted).or_else(|| in_use().next()) {
            return server.shard;
        }
        let count = state.shards.len().max(1);
        let first = self.info.id as usize % count;
        let all = || (0..count).map(|n| (first + n) % count);
        let up = |shard: &usize| state.shards.get(*shard).is_some_and(|s| s.owns && s.primary.is_some());
        all().find(up).or_else(|| all().find(owns)).unwrap_or(first)
    }

    /// The replica that may serve this read, if one may. `alone`: nothing else is in the same implicit transaction.
    pub(super) fn replica_for(&self, plan: &Plan, place: Place, alone: bool) -> Option<u16> {
        if plan.access != Access::Read
            || self.force_primary
            || self.pinned.is_some()
            || self.servers.iter().any(|s| s.enlisted)
        {
            return None;
        }
        let state = self.worker.state();
        let shard = state.shards.get(place.shard)?;
        if shard.replicas.is_empty() {
            return None;
        }
        let read_only = self.transaction.as_ref().map(|t| t.read_only);
        let start = self.info.id as usize;
        let replicas = (0..shard.replicas.len()).map(|n| &shard.replicas[(start + n) % shard.replicas.len()]);
        // Nothing has moved before the second map.
        let freshness = &self.worker.control.freshness;
        let shows_moved = |slot: u16| state.map.epoch() <= 1 || freshness.shows_moved(place.shard, slot);
        match (self.read, state.config.reads.policy) {
            // A write may follow in a block, and must find what was read on the same server.
            (ReadSetting::Replica, _) if read_only.unwrap_or(alone) => replicas
                .map(|r| r.slot)
                .find(|slot| self.space.replica(place.shard, *slot).is_some() && shows_moved(*slot)),
            // A later statement of a transaction may read another bucket, so there the whole shard must be fresh.
            (ReadSetting::Policy, shard_config::ReadPolicy::Fresh)
                if place.keyed && read_only != Some(false) =>
            {
                let bucket = if read_only.is_some() { None } else { place.bucket(&state) };
                let alone = alone || read_only.is_some();
                let fresh = |slot: &u16| freshness.replica_ok(place.shard, bucket, *slot);
                replicas.map(|r| r.slot).filter(|_| alone).find(fresh)
            }
            _ => None,
        }
    }

    /// The index in `servers` of one for this shard, ready to be spoken to.
    pub(super) fn server_for(&mut self, shard: usize, replica: Option<u16>) -> Result<usize, Flow> {
        let read_only = self.transaction.as_ref().is_some_and(|t| t.read_only);
        let fits = |s: &Box<Server>| {
            s.shard == shard && (s.role == Role::Primary || replica.is_some() || (read_only && s.enlisted))
        };
        let found = match self.servers.iter().position(fits) {
            Some(at) if self.is_demoted(at) => return Err(self.leave_demoted(at)),
            Some(at) => at,
            None => {
                if self.servers.iter().any(|s| s.enlisted) {
                    if !self.queue.is_empty() {
                        return Err(self.wait_for_replies());
                    }
                }
                self.take_now(shard, replica)?
            }
        };
        if found != self.active && !self.queue.is_empty() {
            return Err(self.wait_for_replies());
        }
        self.active = found;
        if !self.servers[found].enlisted {
            self.enlist(found);
        }
        Ok(found)
    }

    /// Is this a primary's connection whose server is not the primary any more (H5)? Its pool is also retired when
    /// only limits or passwords changed: then the transaction may go on.
    #[inline]
    pub(super) fn is_demoted(&self, at: usize) -> bool {
        let server = &self.servers[at];
        if server.role != Role::Primary || !server.pool.is_retired() {
            return false;
        }
        let state = self.worker.state();
        let primary = state.shards.get(server.shard).and_then(|s| s.primary.as_ref());
        primary.is_none_or(|primary| primary.address != server.key.address)
    }

    /// Nothing more is sent to a demoted primary: a write there would be lost with it (H5).
    #[cold]
    fn leave_demoted(&mut self, at: usize) -> Flow {
        if !self.queue.is_empty() {
            return self.wait_for_replies();
        }
        let shard = self.servers[at].pool.shard_id;
        match self.server_lost(at, "the server lost its role") {
            Some(next) => Flow::After(next),
            None if self.skip => Flow::Done,
            None => {
                let why = "the server that this transaction runs on has lost its role";
                self.failure = Some(Box::new(ProxyError::no_primary(shard, why)));
                Flow::Later
            }
        }
    }

    /// An idle connection, or what to wait for.
    #[inline]
    fn take_now(&mut self, shard: usize, replica: Option<u16>) -> Result<usize, Flow> {
        let pool = match replica.and_then(|slot| self.space.replica(shard, slot)) {
            Some(pool) => Some(pool),
            None => self.space.primary(shard),
        };
        match pool.as_ref().and_then(|pool| pool.try_take()) {
            Some(server) => Ok(self.add_server(server)),
            None => {
                let want = match pool {
                    Some(pool) if pool.role == Role::Replica => Want::Pool(pool),
                    _ => Want::Primary(shard),
                };
                Err(Flow::After(Next::Checkout(want)))
            }
        }
    }

    /// A server that only checks a statement: it hears the settings, but is not made part of the transaction.
    pub(super) fn unlisted_server(&mut self, shard: usize) -> Result<usize, Flow> {
        if !self.queue.is_empty() {
            return Err(self.wait_for_replies());
        }
        let at = match self.servers.iter().position(|s| s.shard == shard) {
            Some(at) => at,
            None => self.take_now(shard, None)?,
        };
        self.active = at;
        self.say_settings(at);
        Ok(at)
    }

    fn say_settings(&mut self, at: usize) {
        let wanted = self.transaction.as_ref().map_or(&self.settings, |t| &t.settings_before);
        let server = &mut self.servers[at];
        if !Rc::ptr_eq(&server.settings, wanted) {
            let sql = settings::replay(&server.settings, wanted);
            if !sql.is_empty() {
                build::query(&mut server.out, sql.as_bytes());
                self.queue.push_back(Expect::Hidden);
            }
            server.settings = wanted.clone();
        }
        if self.forget_others_draws(at) {
            build::query(&mut self.servers[at].out, DISCARD_SEQUENCES);
            self.queue.push_back(Expect::Hidden);
        }
    }

    /// Must this server forget what others have drawn, so that currval() and lastval() in a block are the session's? Before
    /// BEGIN: behind it there would be a snapshot, for which it is too early.
    pub(super) fn forget_others_draws(&mut self, at: usize) -> bool {
        let server = &mut self.servers[at];
        let strange = server.drawn_by_others && self.transaction.is_some() && server.role == Role::Primary;
        if strange {
            (server.drawn, server.drawn_by_others) = (false, false);
        }
        strange
    }

    pub(super) fn add_server(&mut self, mut server: Box<Server>) -> usize {
        server.drawn_by_others |= server.drawn;
        if !self.servers.iter().any(|s| s.enlisted) {
            self.info.deadlocked.set(false);
        }
        self.info.serving.borrow_mut().push(server.key.clone());
        self.servers.push(server);
        self.servers.len() - 1
    }

    /// Everything outstanding must be answered before another server is spoken to.
    pub(super) fn wait_for_replies(&mut self) -> Flow {
        if let Some(server) = self.servers.get_mut(self.active).filter(|s| s.unsynced) {
            server.out.extend_from_slice(build::FLUSH);
        }
        self.drain = true;
        Flow::Later
    }

    /// Says what comes before the first statement: settings that differ, then BEGIN and what followed it. All in
    /// the same packet as the statement: no extra round trip.
    fn enlist(&mut self, at: usize) {
        let others = self.servers.iter().any(|s| s.enlisted);
        self.say_settings(at);
        let server = &mut self.servers[at];
        match &self.transaction {
            Some(transaction) => {
                build::query(&mut server.out, transaction.prologue().as_bytes());
                self.queue.push_back(Expect::Prologue);
            }
            // A later participant of an implicit transaction must not commit by itself (H20).
            None if others => {
                build::query(&mut server.out, b"BEGIN");
                self.queue.push_back(Expect::Hidden);
            }
            None => {}
        }
        server.enlisted = true;
    }

    /// A write is about to be sent: reads of its bucket stay on the primary until a replica shows it.
    #[inline]
    pub(super) fn mark_write(&mut self, plan: &Plan, place: Place) {
        if plan.access == Access::Read && self.target.is_none() {
            return;
        }
        if matches!(plan.effect, Effect::Commit { .. } | Effect::Rollback { .. })
            || plan.effect.setting().is_some()
        {
            return;
        }
        let bucket = if place.keyed { place.bucket(&self.worker.current()) } else { None };
        self.mark(place.shard, bucket);
    }

    pub(crate) fn mark(&mut self, shard: usize, bucket: Option<Bucket>) {
        // Each mark is looked through for the next: a transaction over many buckets marks the shard as a whole.
        let bucket = bucket.filter(|_| self.marks.len() < 64);
        if !self.marks.iter().any(|m| usize::from(m.shard) == shard && m.bucket == bucket) {
            self.marks.push(self.worker.control.freshness.begin_write(shard, bucket));
        }
    }

    /// Aborts what servers have done in this transaction, after an error of ours. `extended`: in the middle of an
    /// extended batch, where a simple query cannot be said.
    pub(super) fn abort_transaction(&mut self, extended: bool) {
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
            transaction.untold = None;
        }
        let at = self.active;
        let Some(server) = self.servers.get_mut(at).filter(|s| s.enlisted) else { return };
        if extended {
            if server.unsynced {
                // No simple query may be said here, but a Parse that fails aborts the transaction as well.
                build::parse(&mut server.out, b"", b"aborted by shard_proxy", b"");
                server.unnamed = 0;
                self.queue.push_back(Expect::Poison);
            }
        } else if server.status == b'T' {
            // No such savepoint: the transaction fails.
            build::query(&mut server.out, b"ROLLBACK TO SAVEPOINT shard_proxy_abort");
            self.queue.push_back(Expect::Abort);
        }
    }

    /// What must happen once the server has said that the statement succeeded.
    pub(super) fn pending(plan: &std::sync::Arc<Plan>, sql: &[u8]) -> Option<Box<Pending>> {
        let copies = is_copy(sql);
        match plan.effect {
            Effect::None if !copies => None,
            _ => {
                let text = String::from_utf8_lossy(sql).into_owned();
                Some(Box::new(Pending { copies, ..Pending::of(plan, text) }))
            }
        }
    }
}

/// Does the text begin with COPY? What it copies where shows when the server asks for data.
fn is_copy(sql: &[u8]) -> bool {
    let mut rest = sql.trim_ascii_start();
    loop {
        let behind = if rest.starts_with(b"--") {
            rest.iter().position(|byte| *byte == b'\n')
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|pair| pair == b"*/").map(|at| at + 1)
        } else {
            return rest.get(..4).is_some_and(|word| word.eq_ignore_ascii_case(b"copy"));
        };
        let Some(at) = behind else { return false };
        rest = rest[at + 1..].trim_ascii_start();
    }
}
