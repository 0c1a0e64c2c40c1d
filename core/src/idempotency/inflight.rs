//! The keys whose requests this process is working on.

use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::{FxBuildHasher, FxHashSet};

use crate::domain::ids::TenantId;

const PARTS: usize = 16;

type Keys = FxHashSet<(TenantId, Arc<str>)>;

/// Bounded by what it follows: every entry belongs to a request or to a payment in a lane's bounded queue.
pub struct InFlight {
    parts: [Mutex<Keys>; PARTS],
}

/// Holds a key. It moves with the work, not with the HTTP request: a request that was cut off leaves its payment in a
/// lane, and until that is decided a second request with the key must not be told anything else.
pub struct KeyGuard {
    set: Arc<InFlight>,
    tenant: TenantId,
    key: Arc<str>,
    part: usize,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl InFlight {
    /// `None` when the key is in flight.
    pub fn claim(self: &Arc<Self>, tenant: TenantId, key: &str) -> Option<KeyGuard> {
        let part = FxBuildHasher.hash_one((tenant, key)) as usize % PARTS;
        let key: Arc<str> = key.into();
        if !self.parts[part].lock().insert((tenant, key.clone())) {
            return None;
        }
        Some(KeyGuard { set: self.clone(), tenant, key, part })
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.set.parts[self.part].lock().remove(&(self.tenant, self.key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_held_until_its_guard_goes() {
        let set = Arc::new(InFlight::default());
        let (a, b) = (crate::clock::new_id::<TenantId>(), crate::clock::new_id::<TenantId>());
        let guard = set.claim(a, "k").unwrap();
        assert!(set.claim(a, "k").is_none());
        let others = (set.claim(a, "l").unwrap(), set.claim(b, "k").unwrap());
        drop(guard);
        assert!(set.claim(a, "k").is_some());
        drop(others);
        assert!(set.is_empty());
    }
}
