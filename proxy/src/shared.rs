//! What all workers share: an immutable snapshot of the world, swapped whole, and a few atomics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use shard_config::{Config, ShardId, ShardMap};
use tokio::sync::watch;

use crate::catalog::Catalog;
use crate::motion::{Following, Gate, boottime_ms};

/// One consistent view: a statement uses one `State` from routing to its last byte.
#[derive(Debug)]
pub struct State {
    pub config: Arc<Config>,
    pub map: Arc<ShardMap>,
    pub catalog: Arc<Catalog>,
    /// What moves, as of the same moment as the map.
    pub following: Following,
    /// Indexed by position; those that are members are sorted by `ShardId`.
    pub shards: Vec<ShardState>,
    /// Grows whenever shards come or go.
    pub lineup: u64,
}

impl State {
    /// A number that was taken out and has come back has two positions, and only the last of them is a member.
    pub fn position(&self, shard: ShardId) -> Option<usize> {
        self.shards.iter().rposition(|known| known.id == shard)
    }

    /// Positions of the shards that what is for all shards is for.
    pub fn members(&self) -> impl Iterator<Item = usize> {
        self.shards.iter().enumerate().filter(|(_, shard)| shard.is_member()).map(|(position, _)| position)
    }
}

#[derive(Debug, Clone)]
pub struct ShardState {
    pub id: ShardId,
    /// The map gives it something. One that owns nothing may lack rows of reference tables: it was added after they were
    /// copied to it, and before every proxy knew it.
    pub owns: bool,
    /// The lineup with which it came.
    pub since: u64,
    /// The lineup with which a reload has taken it out. What began before it may still be there, as long as there is a primary;
    /// nothing that begins now goes there.
    pub left: Option<u64>,
    /// `None` while no server has proved to be the primary (same system identifier, highest timeline: H5).
    pub primary: Option<Endpoint>,
    /// Reachable and streaming replicas only.
    pub replicas: Vec<Endpoint>,
}

impl ShardState {
    pub fn is_member(&self) -> bool {
        self.left.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Position among the shard's configured addresses (primary, then replicas): the server's name in `Freshness`,
    /// stable when roles change.
    pub slot: u16,
    /// Timeline the server reported when it was last probed.
    pub timeline: u32,
}

/// Shared by every worker thread and by the control thread.
#[derive(Debug)]
pub struct Shared {
    state: ArcSwap<State>,
    /// Grows at every `publish`, so that a worker sees with one relaxed load that its copy is still the newest.
    generation: AtomicU64,
    /// How often a client of this proxy has set a sequence, or may have.
    sequence_resets: AtomicU64,
    /// For those who wait for the next one.
    changes: watch::Sender<u64>,
    pub gate: Gate,
}

impl Shared {
    pub fn new(state: State) -> Self {
        Self {
            state: ArcSwap::from_pointee(state),
            generation: AtomicU64::new(1),
            sequence_resets: AtomicU64::new(0),
            changes: watch::Sender::new(1),
            gate: Gate::new(boottime_ms()),
        }
    }

    pub fn sequence_resets(&self) -> u64 {
        self.sequence_resets.load(Ordering::Acquire)
    }

    /// What was drawn ahead is worth nothing any more.
    pub fn reset_sequences(&self) {
        self.sequence_resets.fetch_add(1, Ordering::AcqRel);
    }

    /// Hears of every `publish` that follows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn load(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub fn publish(&self, state: State) {
        self.state.store(Arc::new(state));
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changes.send_replace(generation);
    }
}
