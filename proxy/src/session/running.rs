//! Portals and cursors over several shards that have rows left. They end with their transaction.
//!
//! The rows of a portal that every shard answers for itself wait on the shards, in portals of the transaction's own
//! connections; those of a gathered query on a connection of its own, which is nobody's while nothing is fetched. A write
//! is done with its first row, as in PostgreSQL, and its other rows wait in the session.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::limits;
use crate::pool::Server;
use crate::pool::pool::round_trip;
use crate::pool::server::ServerKey;
use crate::route::plan::Plan;

/// What the client calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Portal(Box<[u8]>),
    Cursor(String),
}

pub enum Running {
    /// A portal of this name on each server; those before `next` have no rows left.
    Each { servers: Vec<Rc<ServerKey>>, portal: String, next: usize },
    /// The unnamed portal, or the cursor, of this connection.
    Gathered(Gathered),
    /// What a write has returned and the client has not asked for yet; the tag that is said behind the last row.
    Told { rows: std::vec::IntoIter<Vec<u8>>, tag: Vec<u8> },
}

pub struct Gathered {
    pub server: Box<Server>,
    pub plan: Arc<Plan>,
    /// A cursor's columns as the client's own query has them: the connection's cursor is one over temporary tables.
    pub described: Option<Vec<u8>>,
}

struct Kept {
    name: Name,
    running: Running,
    /// Savepoints of the transaction when it began: rolled back to an earlier one, it is gone.
    depth: usize,
}

#[derive(Default)]
pub struct All {
    kept: Vec<Kept>,
    opened: u64,
    /// The connections that are nobody's, for the control plane.
    keys: Keys,
}

pub type Keys = Rc<RefCell<Vec<Rc<ServerKey>>>>;

impl All {
    pub fn told(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Does a connection of its own keep rows?
    #[inline]
    pub fn has_gathered(&self) -> bool {
        !self.kept.is_empty() && self.gathered().next().is_some()
    }

    /// What the connections of their own have read.
    pub fn gathered(&self) -> impl Iterator<Item = &Plan> {
        self.kept.iter().filter_map(|kept| match &kept.running {
            Running::Gathered(gathered) => Some(&*gathered.plan),
            Running::Each { .. } | Running::Told { .. } => None,
        })
    }

    fn note_keys(&self) {
        let keys = self.kept.iter().filter_map(|kept| match &kept.running {
            Running::Gathered(gathered) => Some(gathered.server.key.clone()),
            Running::Each { .. } | Running::Told { .. } => None,
        });
        *self.keys.borrow_mut() = keys.collect();
    }

    pub fn has_room(&self) -> bool {
        self.kept.len() < limits::RUNNING
    }

    pub fn keep(&mut self, name: Name, running: Running, depth: usize) {
        self.close(&name);
        self.kept.push(Kept { name, running, depth });
        self.note_keys();
    }

    /// Takes it out, to be kept again when rows are left.
    pub fn take(&mut self, name: &Name) -> Option<(Running, usize)> {
        let at = self.kept.iter().position(|kept| kept.name == *name)?;
        let kept = self.kept.remove(at);
        self.note_keys();
        Some((kept.running, kept.depth))
    }

    pub fn has(&self, name: &Name) -> bool {
        self.kept.iter().any(|kept| kept.name == *name)
    }

    pub fn close(&mut self, name: &Name) {
        if let Some((running, _)) = self.take(name) {
            finish(running);
        }
    }

    pub fn close_cursors(&mut self) {
        self.retain(|kept| !matches!(kept.name, Name::Cursor(_)));
    }

    /// The transaction is over.
    #[inline]
    pub fn end(&mut self) {
        if !self.kept.is_empty() {
            self.retain(|_| false);
        }
    }

    pub fn rolled_back_to(&mut self, depth: usize) {
        self.retain(|kept| kept.depth < depth);
    }

    pub fn released_to(&mut self, depth: usize) {
        for kept in &mut self.kept {
            kept.depth = kept.depth.min(depth);
        }
    }

    /// A name for a portal that no other of this session has.
    pub fn new_portal(&mut self) -> String {
        self.opened += 1;
        format!("shard_portal_{}", self.opened)
    }

    fn retain(&mut self, keep: impl Fn(&Kept) -> bool) {
        for kept in std::mem::take(&mut self.kept) {
            if keep(&kept) {
                self.kept.push(kept);
            } else {
                finish(kept.running);
            }
        }
        self.note_keys();
    }
}

/// Its connection goes back to its pool when the server has forgotten the rows. Others' portals end with their
/// transaction.
fn finish(running: Running) {
    let Running::Gathered(Gathered { mut server, .. }) = running else { return };
    tokio::task::spawn_local(async move {
        let ended = tokio::time::timeout(limits::CANCEL_TIMEOUT, round_trip(&mut server, b"ROLLBACK")).await;
        if matches!(ended, Ok(Ok(()))) {
            let pool = server.pool.clone();
            pool.put(server, Instant::now());
        }
    });
}
