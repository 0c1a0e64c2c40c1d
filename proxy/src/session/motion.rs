//! What moves, as a session sees it: may a statement go now, must it wait, or can its transaction not go on?
//!
//! Asked before anything is sent, with where the statement would go. A statement that waits is looked at again, and routed by
//! the map of then.

use super::Session;
use super::dispatch::Destination;
use super::hold::{UNKNOWN_OWNERS, UNKNOWN_SHARDS};
use super::motion_ddl::{changes_rows, leaves_rows};
use crate::error::{ProxyError, Retry};
use crate::motion::lease::Pass;
use crate::motion::{Mask, Motion, Motions, Stage, Touch, boottime_ms};
use crate::pool::Role;
use crate::route::plan::{Broadcast, CopyRows, How};
use crate::route::{Params, Resolved, RoutedStatement, visit_keys};
use crate::shared::State;
use shard_config::KeyHash;

/// Why a statement does not go now.
pub enum Denied {
    /// Looked at again when something has changed.
    Hold,
    Never(ProxyError),
}

/// Which keys a statement is for.
#[derive(Debug, Clone, Copy)]
enum Keys {
    /// It touches no bucket.
    None,
    One(KeyHash),
    Many,
}

impl Session {
    /// May what was just routed to `destination` go? If so, it counts as touched.
    pub(super) fn admit<P: Params>(
        &mut self,
        statement: &RoutedStatement,
        sql: &[u8],
        params: &P,
        destination: &Destination,
    ) -> Result<(), Denied> {
        let term = self.worker.gate().term();
        let text = sql.get(statement.text.clone()).unwrap_or_default();
        let keys = self.keys(statement, text, destination);
        if is_for_whatever_shards(destination) && !self.worker.gate().is_leased(boottime_ms()) {
            return Err(self.deny(Denied::Hold, UNKNOWN_SHARDS));
        }
        if !matches!(keys, Keys::None) {
            let admitted = {
                let state = self.worker.current();
                let admitted = self.judge(&state, (statement, text), params, destination, keys);
                admitted.map(|mask| {
                    note(&mut self.info.touch.borrow_mut(), &state, mask, keys);
                    if let Some(behind) = &mut self.behind {
                        note(behind, &state, mask, keys);
                    }
                })
            };
            if let Err(denied) = admitted {
                return Err(self.deny(denied, UNKNOWN_OWNERS));
            }
            self.term = Some(term);
        } else if !super::simple::is_control(&statement.plan.effect) && self.touched_what_moved() {
            // A cursor's rows, too.
            return Err(self.deny(Denied::Never(moved()), UNKNOWN_OWNERS));
        } else {
            // Its snapshot, if there is one from now on, may be that of statements that follow.
            let state = self.worker.current();
            let (version, epoch) = (state.following.version, state.map.epoch());
            self.info.touch.borrow_mut().begin(version, epoch);
            if let Some(behind) = &mut self.behind {
                behind.begin(version, epoch);
            }
            self.term = None;
        }
        self.held_since = None;
        let told = matches!(destination, Destination::Multi(Resolved::Drawn));
        if !told && self.may_draw(&statement.plan) {
            self.current.forget();
            self.drew = true;
        }
        if matches!(destination, Destination::Multi(_)) {
            // One epoch for all shards (H30).
            self.statement_state = Some(self.worker.current().clone());
        }
        Ok(())
    }

    #[inline]
    fn keys(&self, statement: &RoutedStatement, text: &[u8], destination: &Destination) -> Keys {
        match destination {
            Destination::Shard(place) if place.keyed => place.key.map_or(Keys::Many, Keys::One),
            // `shard.target` looks at one shard, whatever the statement is about.
            Destination::Shard(_)
                if self.target.is_some() && !super::simple::is_control(&statement.plan.effect) =>
            {
                Keys::Many
            }
            Destination::Shard(_) | Destination::Refused(_) => Keys::None,
            Destination::Multi(resolved) => match resolved {
                Resolved::Scatter { .. } | Resolved::SplitInsert(_) => Keys::Many,
                Resolved::CopyIn(copy) if matches!(copy.rows, CopyRows::ByKey { .. }) => Keys::Many,
                Resolved::All(Broadcast::Ddl | Broadcast::DdlAutocommit) if leaves_rows(text) => Keys::None,
                Resolved::All(Broadcast::Ddl | Broadcast::DdlAutocommit) => Keys::Many,
                _ => Keys::None,
            },
        }
    }

    /// Which of the moves the statement is for, when it may go.
    fn judge<P: Params>(
        &self,
        state: &State,
        (statement, text): (&RoutedStatement, &[u8]),
        params: &P,
        destination: &Destination,
        keys: Keys,
    ) -> Result<Mask, Denied> {
        let following = &state.following;
        let (version, epoch) = (following.version, state.map.epoch());
        let pass = self.worker.gate().pass(boottime_ms());
        if pass == Pass::Nothing {
            return Err(Denied::Hold);
        }
        let touch = self.info.touch.borrow();
        if !touch.is_empty() && touch.version() != version {
            if self.has_moved(state, &touch) {
                return Err(Denied::Never(moved()));
            }
            let other_owner = touch.epoch() != epoch && moves_since(state, touch.epoch(), keys);
            let left_over = matches!(keys, Keys::Many) && touch.version() < following.over;
            if (other_owner || left_over) && self.is_strict() {
                return Err(Denied::Never(moved()));
            }
            if other_owner && self.reads_a_replica_that_lags(state, destination) {
                return Err(Denied::Never(moved()));
            }
        }
        let mut mask = Mask::NONE;
        if let Some(motions) = &following.motions {
            if let Destination::Multi(Resolved::All(Broadcast::Ddl | Broadcast::DdlAutocommit)) = destination
                && changes_rows(&statement.plan, text, &state.catalog)
            {
                return Err(Denied::Never(under_way(motions)));
            }
            mask = self.concerned(state, motions, (statement, text), params, destination, keys);
            if !mask.is_empty() {
                if pass != Pass::All {
                    return Err(Denied::Hold);
                }
                let waits = |motion: &Motion| {
                    motion.stage == Stage::Holding && !touch.touches(motion, motions.buckets())
                };
                if motions.in_mask(mask).any(waits) {
                    return Err(Denied::Hold);
                }
            }
        }
        Ok(mask)
    }

    /// Which of the moves the statement is about.
    fn concerned<P: Params>(
        &self,
        state: &State,
        motions: &Motions,
        (statement, text): (&RoutedStatement, &[u8]),
        params: &P,
        destination: &Destination,
        keys: Keys,
    ) -> Mask {
        match keys {
            Keys::None => Mask::NONE,
            Keys::One(hash) => motions.of(hash),
            Keys::Many => {
                let mut mask = Mask::NONE;
                let mut found = |hash| mask.add(motions.of(hash));
                let few = !matches!(destination, Destination::Multi(Resolved::Scatter { shards: None, .. }))
                    && visit_keys(&statement.plan, &statement.literals, text, params, &state.map, &mut found);
                if few && self.target.is_none() { mask } else { motions.all() }
            }
        }
    }

    /// The same, for EXPLAIN ROUTE.
    pub(super) fn explain_moves<P: Params>(
        &self,
        statement: &RoutedStatement,
        sql: &[u8],
        params: &P,
        destination: &Destination,
    ) -> Vec<String> {
        let state = self.worker.current();
        let Some(motions) = state.following.motions.as_deref() else { return Vec::new() };
        let text = sql.get(statement.text.clone()).unwrap_or_default();
        let keys = self.keys(statement, text, destination);
        let mask = self.concerned(&state, motions, (statement, text), params, destination, keys);
        motions.in_mask(mask).map(Motion::line).collect()
    }

    /// Has anything that the transaction has touched another owner now? Then it was read, locked or written where it is no
    /// more, and must not be looked for elsewhere (H2).
    #[cold]
    fn has_moved(&self, state: &State, touch: &Touch) -> bool {
        let following = &state.following;
        let known = following.motions.as_deref().is_some_and(|motions| {
            let moved = |motion: &Motion| touch.touches_before(motion, motion.owner_since, motions.buckets());
            motions.list().iter().any(moved)
        });
        if known || touch.any_before(following.blind) {
            return true;
        }
        let epoch = state.map.epoch();
        touch.few().iter().filter(|key| key.epoch != epoch).any(|key| {
            let before = following.past_map(key.epoch);
            before.is_none_or(|before| before.shard_of_hash(key.hash) != state.map.shard_of_hash(key.hash))
        })
    }

    #[inline]
    fn touched_what_moved(&self) -> bool {
        let state = self.worker.current();
        let touch = self.info.touch.borrow();
        !touch.is_empty() && touch.version() != state.following.version && self.has_moved(&state, &touch)
    }

    /// A transaction that only reads keeps the replica that it has begun on, which may lack what has come to its shard since
    /// (H8).
    #[cold]
    fn reads_a_replica_that_lags(&self, state: &State, destination: &Destination) -> bool {
        let Destination::Shard(place) = destination else { return false };
        let replicas = state.shards.get(place.shard).map_or(&[][..], |shard| &shard.replicas);
        let freshness = &self.worker.control.freshness;
        self.servers.iter().filter(|s| s.enlisted && s.shard == place.shard && s.role == Role::Replica).any(
            |server| {
                let endpoint = replicas.iter().find(|endpoint| endpoint.address == server.key.address);
                endpoint.is_none_or(|endpoint| !freshness.shows_moved(place.shard, endpoint.slot))
            },
        )
    }

    /// REPEATABLE READ or SERIALIZABLE: one epoch for life (H30). Outside of a block, too: a batch without its Sync is a
    /// transaction.
    fn is_strict(&self) -> bool {
        let strict = |text: &str| {
            let text = text.to_ascii_lowercase();
            text.contains("repeatable") || text.contains("serializable")
        };
        let transaction = self.transaction.as_ref();
        // As they were when it began.
        let settings = transaction.map_or(&self.settings, |transaction| &transaction.settings_before);
        settings.get("default_transaction_isolation").is_some_and(|value| strict(&value.plain()))
            || transaction.is_some_and(|transaction| strict(&transaction.prologue()))
    }

    /// A statement over several shards is judged once and goes by the map of then to its end. May it go on to another shard?
    /// Asked when there is a connection to it: those that there are when the lease runs out are ended by whoever goes on without
    /// this proxy.
    pub(super) fn may_join(&self) -> Result<(), ProxyError> {
        let Some(term) = self.term else { return Ok(()) };
        let gate = self.worker.gate();
        let is_known = gate.pass(boottime_ms()) != Pass::Nothing && gate.term() == term;
        if is_known && self.may_pass_on() {
            return Ok(());
        }
        self.worker.stats.moved.add(1);
        Err(moved().detail(
            "This proxy could not follow the catalog while the statement ran, and its rows may have moved meanwhile.",
        ))
    }

    /// The transaction is over, and what it has touched is nobody's concern any more.
    #[inline]
    pub(super) fn settle_touch(&self) {
        let over = self.transaction.is_none()
            && self.queue.is_empty()
            && !self.gate
            && !self.servers.iter().any(|server| server.enlisted);
        if over {
            self.info.touch.borrow_mut().clear();
            self.info.ended.set(self.info.ended.get().wrapping_add(1));
        }
    }

    /// May what a server has answered be passed on? Not when somebody else may have moved meanwhile what it is about (H8).
    #[inline]
    pub(super) fn may_pass_on(&self) -> bool {
        let state = self.worker.current();
        let Some(motions) = &state.following.motions else { return true };
        self.worker.gate().pass(boottime_ms()) == Pass::All || {
            let touch = self.info.touch.borrow();
            !motions.list().iter().any(|motion| touch.touches(motion, motions.buckets()))
        }
    }
}

#[inline]
fn note(touch: &mut Touch, state: &State, mask: Mask, keys: Keys) {
    let (version, epoch) = (state.following.version, state.map.epoch());
    if let Some(motions) = state.following.motions.as_deref().filter(|_| !mask.is_empty()) {
        touch.moves(motions, mask);
    }
    match keys {
        Keys::None => {}
        Keys::One(hash) => touch.key(hash, version, epoch),
        Keys::Many => touch.many(version, epoch),
    }
}

/// Does it write the same rows to every shard? Who has no lease may not know all of them: those rows would be missing on the
/// others for good. All of this needs the default shard, as the lease does, so what waits could not be done anyway.
#[inline]
fn is_for_whatever_shards(destination: &Destination) -> bool {
    match destination {
        Destination::Multi(Resolved::All(Broadcast::ReferenceWrite)) => true,
        Destination::Multi(Resolved::CopyIn(copy)) => matches!(copy.rows, CopyRows::Everywhere),
        // Which tables it writes to is found out later.
        Destination::Multi(Resolved::Scatter { how: How::Apply, .. }) => true,
        _ => false,
    }
}

/// May a key of the statement have another owner than at this epoch?
fn moves_since(state: &State, epoch: u64, keys: Keys) -> bool {
    let Some(before) = state.following.past_map(epoch) else { return true };
    match keys {
        Keys::None => false,
        Keys::One(hash) => before.shard_of_hash(hash) != state.map.shard_of_hash(hash),
        Keys::Many => before.owners() != state.map.owners() || before.overrides() != state.map.overrides(),
    }
}

fn moved() -> ProxyError {
    ProxyError::new("40001", "could not serialize access due to rows that have moved to another shard")
        .detail("What this transaction has read, locked or written is on another shard now.")
        .hint("Run the transaction again.")
        .retry(Retry::Safe)
}

fn under_way(motions: &Motions) -> ProxyError {
    let moves: Vec<String> = motions.list().iter().map(|motion| motion.move_id.to_string()).collect();
    ProxyError::new(
        "55006",
        "tables with sharded rows cannot be changed or truncated while a move is under way",
    )
    .hint(format!(
        "Wait for the end of move {}, or abort it with shardctl abort; then run the statement again.",
        moves.join(", ")
    ))
    .retry(Retry::Safe)
}
