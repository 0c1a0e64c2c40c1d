//! How far a worker has followed the catalog: what it serves by, and whether what it had routed before has ended.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

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
    /// Who keeps `drained` back.
    pub waits_for: Mutex<Option<String>>,
}

impl Worker {
    /// Serves by the newest state, and says so; returns whether something of an older one must still end.
    pub(crate) fn note_progress(&self) -> bool {
        let state = self.state().clone();
        let following = &state.following;
        let version = following.version;
        self.progress.serving.store(version, Ordering::Release);
        if self.progress.drained.load(Ordering::Relaxed) >= version {
            return false;
        }
        let waits_for = following.motions.as_deref().and_then(|motions| {
            self.clients.borrow().values().find_map(|info| {
                let touch = info.touch.borrow();
                let motion = touch.blocks(motions)?;
                let age = info.since.get().elapsed().as_millis();
                Some(format!(
                    "move {} waits for client {} of {} ({}, {} for {age} ms)",
                    motion.move_id, info.id, info.user, info.address, info.activity.get().name()
                ))
            })
        });
        let undrained = waits_for.is_some();
        *self.progress.waits_for.lock() = waits_for;
        if !undrained {
            self.progress.drained.store(version, Ordering::Release);
        }
        undrained
    }
}
