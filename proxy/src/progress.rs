//! How far a worker has followed the catalog and the configuration: what it serves by, and whether what it had routed
//! before has ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::motion::motions::Stage;
use crate::session::client::{Activity, ClientInfo};
use crate::shared::State;
use crate::worker::Worker;

/// How far a worker has followed the catalog (`motion`). Written by the worker only.
#[derive(Debug, Default)]
pub struct Progress {
    /// The version that it serves by.
    pub serving: AtomicU64,
    /// Whatever it had routed under an older version than this has ended, but for what touches nothing that moves.
    pub drained: AtomicU64,
    /// Statements that wait because their buckets move.
    pub holding: AtomicU64,
    /// What is for all shards is for those of this lineup; what began in an older one has ended.
    pub lineup: AtomicU64,
    /// Who keeps `drained` back.
    pub waits_for: Mutex<Option<String>>,
}

/// Transactions that began before shards came or went: a reference table's row that one of them has written is not on the new
/// shards, and it may still be on those that are leaving.
#[derive(Debug, Default)]
pub(crate) struct Changing {
    lineup: u64,
    /// Clients, and how many of their transactions had ended.
    before: Vec<(u32, u32)>,
}

/// Between Execute and Sync a client is idle, and the servers of its implicit transaction are its own; else it keeps none, or
/// the one that it is pinned to.
fn is_between_transactions(info: &ClientInfo) -> bool {
    let kept = usize::from(info.pinned.get().is_some());
    info.activity.get() == Activity::Idle && info.serving.borrow().len() <= kept
}

/// A session keeps the server that it is pinned to beyond its transactions.
fn uses_one_that_left(info: &ClientInfo, state: &State) -> bool {
    let left = |address: SocketAddr| {
        let shards = state.shards.iter().filter(|shard| !shard.is_member());
        shards.flat_map(|shard| shard.primary.iter().chain(&shard.replicas)).any(|one| one.address == address)
    };
    info.serving.borrow().iter().chain(info.kept.borrow().iter()).any(|server| left(server.address))
}

impl Worker {
    /// Notes by which lineup everything goes; returns whether something is under way that began in an older one.
    fn note_lineup(&self, state: &State) -> bool {
        let lineup = state.lineup;
        if self.progress.lineup.load(Ordering::Relaxed) >= lineup {
            return false;
        }
        let mut changing = self.changing.borrow_mut();
        let clients = self.clients.borrow();
        if changing.lineup != lineup {
            changing.lineup = lineup;
            changing.before = clients.values().map(|info| (info.id, info.ended.get())).collect();
        }
        changing.before.retain(|(id, ended)| {
            clients.get(id).is_some_and(|info| info.ended.get() == *ended && !is_between_transactions(info))
        });
        let is_over =
            changing.before.is_empty() && !clients.values().any(|info| uses_one_that_left(info, state));
        if is_over {
            self.progress.lineup.store(lineup, Ordering::Release);
        }
        !is_over
    }

    /// Serves by the newest state, and says so; returns whether something of an older one must still end.
    pub(crate) fn note_progress(&self) -> bool {
        let state = self.state().clone();
        let following = &state.following;
        let version = following.version;
        self.progress.serving.store(version, Ordering::Release);
        let changing = self.note_lineup(&state);
        if self.progress.drained.load(Ordering::Relaxed) >= version {
            return changing;
        }
        let waits_for = following.motions.as_deref().and_then(|motions| {
            let clients = self.clients.borrow();
            let late = clients.values().filter_map(|info| {
                let held = info.touch.borrow().blocks(motions)?;
                Some((held.stage == Stage::Holding, info.since.get().elapsed(), held.move_id, info))
            });
            // Whoever keeps a version back keeps back all that wait for it, whatever he has touched: so the note is of him and
            // that, and not of who waits. First of a move for which everybody else is held, then by age.
            let (_, age, moved, info) = late.max_by_key(|&(holding, age, ..)| (holding, age))?;
            Some(format!(
                "client {} of {} ({}, which touched what move {moved} moves, {} for {} ms)",
                info.id,
                info.user,
                info.address,
                info.activity.get().name(),
                age.as_millis()
            ))
        });
        let undrained = waits_for.is_some();
        *self.progress.waits_for.lock() = waits_for;
        if !undrained {
            self.progress.drained.store(version, Ordering::Release);
        }
        undrained || changing
    }
}
