//! Waiting for a server, giving it back, and losing it.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::client::Activity;
use super::hang_up::{cancel, poll_gone};
use super::{Expect, Next, Session, Want};
use crate::error::{ProxyError, Retry};
use crate::limits;
use crate::pool::connect::ConnectError;
use crate::pool::{AcquireError, Role, Server};
use crate::route::plan::Effect;
use crate::wire::build;
use crate::worker::{UserSpace, Worker};

impl Session {
    /// Waits for a server and adds it to `servers`, or leaves the reason why not in `failure`.
    pub(super) async fn checkout(&mut self, want: Want) {
        self.worker.stats.pool_waits.add(1);
        self.info.set_activity(Activity::WaitingForServer, Instant::now());
        let (worker, space, info) = (&self.worker, &self.space, &self.info);
        let (stream, input, hang_up) = (&mut self.stream, &mut self.input, self.hang_up);
        let mut gone = false;
        let taken = async {
            match want {
                Want::Pool(pool) => match pool.take().await {
                    Ok(server) => Ok(server),
                    // A replica that cannot be had: the primary serves every read, too.
                    Err(_) => take_primary(worker, space, pool.shard, false).await,
                },
                Want::Primary(shard) => take_primary(worker, space, shard, false).await,
                Want::Scratch(shard) => take_primary(worker, space, shard, true).await,
            }
        };
        let result = tokio::select! {
            biased;
            result = taken => result,
            // Nothing has reached a server: the proxy says what the server would have said (H38).
            () = info.cancelled.notified() => {
                Err(ProxyError::new("57014", "canceling statement due to user request").retry(Retry::Safe))
            }
            () = poll_fn(|cx| poll_gone(stream, input, hang_up, cx)) => {
                gone = true;
                Err(ProxyError::client_gone())
            }
        };
        if gone {
            self.hung_up();
        }
        match result {
            Ok(server) => {
                self.add_server(server);
            }
            Err(error) => {
                self.worker.stats.pool_timeouts.add(1);
                self.failure = Some(Box::new(error));
            }
        }
    }

    /// The transaction is over: settles settings and read-your-writes, gives servers back.
    pub(crate) fn end_transaction(&mut self, committed: bool) {
        let implicit = self.implicit_before.take();
        self.local_settings = None;
        self.changed = None;
        let before = self.transaction.take().map(|transaction| transaction.settings_before).or(implicit);
        if let Some(before) = before.filter(|_| !committed) {
            self.settings = before;
        }
        self.participant_lost = false;
        self.info.touch.borrow_mut().clear();
        for mark in self.marks.drain(..) {
            self.worker.control.freshness.end_write(mark);
        }
        self.running.end();
        if let Some(extended) = &mut self.extended {
            extended.portals.clear();
        }
        self.release_servers();
    }

    /// Gives back what only checked a statement.
    pub(super) fn release_checker(&mut self) {
        if self.servers.iter().any(|s| s.enlisted) {
            return; // It became part of the transaction meanwhile.
        }
        let transaction = self.transaction.take();
        self.release_servers();
        self.transaction = transaction;
    }

    pub(super) fn take_server(&mut self, at: usize) -> Box<Server> {
        let mut server = self.servers.remove(at);
        server.drawn |= self.drew;
        self.note_serving();
        self.active = 0;
        server
    }

    pub(super) fn give_back(&mut self, at: usize) {
        let mut server = self.servers.remove(at);
        server.drawn |= self.drew;
        let pool = server.pool.clone();
        pool.put(server, self.worker.now.get());
        self.note_serving();
        self.active = 0;
    }

    /// Gives back servers that have read outside of a transaction. Portals stay: other messages of the batch may use them.
    pub(super) fn release_readers(&mut self) {
        self.release_servers();
    }

    /// Back to the pools, all but the one that the session is pinned to.
    fn release_servers(&mut self) {
        let now = self.worker.now.get();
        self.settle_pin();
        let keep = usize::from(self.pinned.is_some() && !self.servers.is_empty());
        for server in &mut self.servers {
            server.drawn |= self.drew;
            if server.enlisted {
                server.settings = self.settings.clone();
                server.enlisted = false;
            }
        }
        self.drew = false;
        for server in self.servers.drain(keep..) {
            let pool = server.pool.clone();
            pool.put(server, now);
        }
        self.note_serving();
        self.active = 0;
    }

    /// The client is gone: nothing it started may go on in its name, and no half-read reply may reach another (H38).
    pub(super) fn abandon_servers(&mut self) {
        self.pinned = None;
        for server in &mut self.servers {
            // A transaction in progress rolls back when its connection closes.
            server.dirty |= !self.queue.is_empty() || server.status != b'I' || server.enlisted;
        }
        let in_flight = !self.queue.is_empty();
        let wrote = !self.marks.is_empty();
        let pids: SmallVec<[(usize, i32); 1]> = self.servers.iter().map(|s| (s.shard, s.key.pid)).collect();
        for mark in self.marks.drain(..) {
            match pids.iter().find(|(shard, _)| *shard == usize::from(mark.shard)) {
                Some((_, pid)) if in_flight => self.worker.control.freshness.abandon_write(mark, *pid),
                _ => self.worker.control.freshness.end_write(mark),
            }
        }
        // An open session of ours that nobody listens to may still be busy: cancel it rather than let it run on. Not what may
        // commit: while it waits for its synchronous standby it would become visible before the standby has it.
        if in_flight && (!wrote || !self.may_commit()) {
            for server in self.servers.iter().filter(|s| s.dirty) {
                cancel(server.key.clone());
            }
        }
        let now = self.worker.now.get();
        for mut server in self.servers.drain(..) {
            // Temporary tables, LISTEN and locks of a pinned session must not reach the next client.
            server.drawn |= self.drew;
            server.dirty |= self.has_temp || self.info.pinned.get().is_some();
            let pool = server.pool.clone();
            pool.put(server, now);
        }
        self.info.serving.borrow_mut().clear();
    }

    /// May what is outstanding commit? COMMIT does, and so does what follows ROLLBACK in one message, by itself.
    fn may_commit(&self) -> bool {
        let ends = |effect: &Effect| matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. });
        let commits = |expect: &Expect| match expect {
            Expect::Query(Some(pending)) | Expect::Execute(Some(pending)) => {
                pending.plans.iter().any(|(plan, _)| ends(&plan.effect))
            }
            _ => false,
        };
        self.transaction.is_none() || self.queue.iter().any(commits)
    }

    /// A paused server of another role than it had: its statement is given up.
    pub(super) fn give_up_retired(&mut self) {
        while let Some(at) = self.servers.iter().position(|s| s.pool.is_retired()) {
            if self.server_lost(at, "the server lost its role").is_some() {
                self.closing = true;
            }
        }
        self.info.give_up_retired.set(false);
    }

    /// A server's connection broke. Tells the client what that means for its statement.
    pub(super) fn server_lost(&mut self, at: usize, why: &str) -> Option<Next> {
        let mut server = self.servers.remove(at);
        server.dirty = true;
        self.info
            .serving
            .borrow_mut()
            .retain(|key| key.pid != server.key.pid || key.address != server.key.address);
        self.worker.stats.servers_lost.add(1);
        let shard = server.pool.shard_id;
        tracing::info!(shard, server = %server.key.address, client = %self.info.address, why, "server connection lost in use");
        let outstanding = !self.queue.is_empty() && at == self.active;
        let had_work = server.enlisted;
        let wrote = self.settle_marks(&server, outstanding);

        if server.pass > 0 {
            // Half a row was passed on: the client cannot be told anything any more.
            self.servers_forget(at);
            return Some(Next::Close(None));
        }
        if outstanding && server.role == Role::Replica && !self.retry.is_empty() && !self.answered {
            let mark = self.retry_mark;
            self.output.truncate(mark);
            self.servers_forget(at);
            return self.retry_on_primary(server.shard);
        }
        let pinned_here = match &self.pinned_to {
            Some(key) => std::rc::Rc::ptr_eq(key, &server.key),
            None => at == 0,
        };
        if self.pinned.is_some() && pinned_here {
            // What the session was pinned for is gone with the server; as with one PostgreSQL, so is the session.
            let error = ProxyError::new(
                "57P01",
                format!("the server of shard {shard} that this session is pinned to was lost"),
            );
            self.servers_forget(at);
            return Some(Next::Close(Some(Box::new(error.fatal()))));
        }
        self.servers_forget(at);
        if let Some(transaction) = self.transaction.as_deref_mut().filter(|_| had_work) {
            transaction.untold =
                (!outstanding && !transaction.failed).then_some(shard).or(transaction.untold);
            transaction.failed = true;
            transaction.lost = true;
            // Nothing is left that it has locked or could go on from: nobody need wait for the client to end it.
            if !self.servers.iter().any(|server| server.enlisted) && self.running.is_empty() {
                self.info.touch.borrow_mut().clear();
            }
        }
        self.participant_lost |= had_work && self.transaction.is_none();
        if !outstanding {
            // Idle in a transaction: nothing was asked, so nothing is said until the next statement.
            if had_work && self.transaction.is_none() && !self.skip {
                ProxyError::outcome_unknown(shard).write(self.client_output());
                self.skip = true;
            }
            return None;
        }
        let error = if wrote || self.transaction.is_some() {
            ProxyError::outcome_unknown(shard)
        } else {
            ProxyError::new(
                "08006",
                format!("connection to shard {shard} was lost while a statement was running"),
            )
            .hint("The statement only read; run it again.")
            .retry(Retry::Safe)
        };
        self.answer_lost(&error);
        None
    }

    fn servers_forget(&mut self, at: usize) {
        if self.active >= at {
            self.active = self.active.saturating_sub(1);
        }
    }

    /// Ends the marks of the lost server's writes; returns whether there were any.
    fn settle_marks(&mut self, server: &Server, outstanding: bool) -> bool {
        let freshness = &self.worker.control.freshness;
        let mut wrote = false;
        self.marks.retain(|mark| {
            if usize::from(mark.shard) != server.shard {
                return true;
            }
            wrote = true;
            if outstanding {
                freshness.abandon_write(*mark, server.key.pid);
            } else {
                freshness.end_write(*mark);
            }
            false
        });
        wrote
    }

    /// Says the error in place of all outstanding replies, and ReadyForQuery if it was due.
    fn answer_lost(&mut self, error: &ProxyError) {
        let due = self.sync_owed || self.queue.iter().any(|e| matches!(e, Expect::Query(_) | Expect::Sync));
        let simple = self.queue.iter().any(|e| matches!(e, Expect::Query(_)));
        self.drop_expected(usize::MAX);
        self.queue.clear();
        self.copy_in = false;
        self.sync_owed = false;
        let status_in_block = self.transaction.is_some();
        error.write(self.client_output());
        if due {
            if !status_in_block {
                self.end_transaction(false);
            }
            let status = self.status();
            build::ready(self.client_output(), status);
            self.gate = false;
        } else if !simple {
            self.skip = true;
        }
        self.set_activity();
    }

    /// The replica could not answer and the client has seen nothing yet: ask the primary.
    pub(super) fn retry_on_primary(&mut self, shard: usize) -> Option<Next> {
        self.worker.stats.replica_retries.add(1);
        let request = std::mem::take(&mut self.retry);
        self.drop_expected(usize::MAX);
        self.queue.clear();
        self.gate = false;
        self.skip = false;
        self.drain = false;
        // Looked at again as if it had just arrived, with the primary already at hand.
        let behind = std::mem::replace(&mut self.input, request);
        self.input.extend_from_slice(&behind);
        self.force_primary = true;
        Some(Next::Checkout(Want::Primary(shard)))
    }
}

/// The primary may be changing: every round asks the newest state which server it is. `scratch`: from the pool for
/// queries over several shards.
pub(super) async fn take_primary(
    worker: &Worker,
    space: &UserSpace,
    shard: usize,
    scratch: bool,
) -> Result<Box<Server>, ProxyError> {
    let started = Instant::now();
    let mut why = "no server has proved to be the primary".to_owned();
    loop {
        let (id, draining) = {
            let state = worker.state();
            (state.shards.get(shard).map_or(0, |s| s.id.0), worker.draining.get())
        };
        let mut pause = Duration::from_millis(20);
        let pool = if scratch { space.scratch(shard) } else { space.primary(shard) };
        if let Some(pool) = pool {
            match pool.take().await {
                Ok(server) => return Ok(server),
                Err(AcquireError::Timeout { waited, size }) if size > 0 => {
                    return Err(ProxyError::pool_timeout(id, waited.as_millis(), size));
                }
                Err(AcquireError::TooManyWaiters) => {
                    return Err(ProxyError::new("53300", format!("too many statements wait for shard {id}"))
                        .hint("Shorten transactions, or raise primary_max in [pool].")
                        .retry(Retry::Safe));
                }
                Err(AcquireError::Connect(ConnectError::Refused { sqlstate, message }))
                    if !matches!(sqlstate.as_str(), "57P01" | "57P02" | "57P03" | "53300") =>
                {
                    return Err(ProxyError::new(
                        "08006",
                        format!("shard {id} refused the connection: {message}"),
                    )
                    .detail(format!("SQLSTATE {sqlstate}"))
                    .hint("Check [[user]] and database in the proxy's configuration against the shard."));
                }
                Err(AcquireError::Connect(error)) => {
                    why = error.to_string();
                    pause = pool.retry_after().unwrap_or(pause).clamp(pause, limits::CONNECT_BACKOFF_MAX);
                }
                Err(AcquireError::Timeout { .. } | AcquireError::Retired) => {}
            }
        }
        let left = limits::PRIMARY_WAIT.saturating_sub(started.elapsed());
        if left.is_zero() || draining {
            return Err(ProxyError::no_primary(id, &why));
        }
        tokio::time::sleep(pause.min(left)).await;
    }
}
