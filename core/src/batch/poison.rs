//! Tenants whose payments poison batches. Bisecting finds the culprit, but a tenant that does it again and again would
//! make its neighbours pay for the search every time, so it gets a lane of its own for a while (H38).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::domain::ids::TenantId;
use crate::limits::{POISON_MEMORY_S, POISON_STRIKES, POISON_TENANTS_REMEMBERED};

#[derive(Default)]
pub struct Poisoners {
    /// Lets the usual case pass without the lock.
    any: AtomicBool,
    strikes: Mutex<FxHashMap<TenantId, Strikes>>,
}

struct Strikes {
    count: u32,
    last: Instant,
}

impl Poisoners {
    /// One payment of the tenant was found to have poisoned a batch.
    pub fn strike(&self, tenant: TenantId, now: Instant) {
        let mut strikes = self.strikes.lock();
        forget_old(&mut strikes, now);
        if strikes.len() >= POISON_TENANTS_REMEMBERED && !strikes.contains_key(&tenant) {
            // Full of recent poisoners: the one that has been quiet longest makes room.
            if let Some(oldest) = strikes.iter().min_by_key(|(_, s)| s.last).map(|(t, _)| *t) {
                strikes.remove(&oldest);
            }
        }
        let entry = strikes.entry(tenant).or_insert(Strikes { count: 0, last: now });
        entry.count += 1;
        entry.last = now;
        self.any.store(true, Ordering::Relaxed);
    }

    /// Whether the tenant's payments go to the solo lane.
    pub fn is_solo(&self, tenant: TenantId, now: Instant) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut strikes = self.strikes.lock();
        match strikes.get(&tenant) {
            Some(s) if now.duration_since(s.last) < MEMORY => s.count >= POISON_STRIKES,
            Some(_) => {
                forget_old(&mut strikes, now);
                self.any.store(!strikes.is_empty(), Ordering::Relaxed);
                false
            }
            None => false,
        }
    }
}

const MEMORY: Duration = Duration::from_secs(POISON_MEMORY_S);

fn forget_old(strikes: &mut FxHashMap<TenantId, Strikes>, now: Instant) {
    strikes.retain(|_, s| now.duration_since(s.last) < MEMORY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h38_repeated_poisoners_go_solo_and_come_back() {
        let (poisoners, tenant, start) =
            (Poisoners::default(), crate::clock::new_id::<TenantId>(), Instant::now());
        for _ in 0..POISON_STRIKES {
            assert!(!poisoners.is_solo(tenant, start));
            poisoners.strike(tenant, start);
        }
        assert!(poisoners.is_solo(tenant, start));
        assert!(!poisoners.is_solo(crate::clock::new_id::<TenantId>(), start));
        assert!(!poisoners.is_solo(tenant, start + MEMORY));
    }

    #[test]
    fn memory_is_bounded() {
        let (poisoners, start) = (Poisoners::default(), Instant::now());
        for i in 0..POISON_TENANTS_REMEMBERED + 10 {
            poisoners.strike(TenantId(uuid::Uuid::from_u128(i as u128)), start);
        }
        assert_eq!(poisoners.strikes.lock().len(), POISON_TENANTS_REMEMBERED);
    }
}
