//! Tells the relay of a shard that a batch was committed, so that it does not need to poll fast.

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// One [`Notify`] a shard, made on first use. Shards are few and never forgotten.
#[derive(Default)]
pub struct CommitSignal {
    shards: RwLock<FxHashMap<u16, Arc<Notify>>>,
}

impl CommitSignal {
    /// The relay of `shard` waits on this: `signal.of(3).notified().await`.
    pub fn of(&self, shard: u16) -> Arc<Notify> {
        if let Some(found) = self.shards.read().get(&shard) {
            return found.clone();
        }
        self.shards.write().entry(shard).or_default().clone()
    }

    /// A batch was committed on `shard`. A relay that is busy now finds a permit when it next waits.
    pub fn committed(&self, shard: u16) {
        if let Some(found) = self.shards.read().get(&shard) {
            found.notify_one();
        }
    }
}
