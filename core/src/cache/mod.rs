//! Caches: a small in-process level over Redis, shared by all instances and evicted by events.
//!
//! - [`values`]: what is cached, under which keys.
//! - [`typed`]: one cache: both levels, single-flight loads, evictions.
//! - `l2`: Redis: leases, tombstones, pool, breaker.
//! - `bus`: evictions between instances. `doubt`: rows that may have changed are evicted again.
//! - [`warm`]: filling at start.
//!
//! Invariants:
//!
//! 1. Nothing here decides about money (H33): a posting reads locked rows.
//! 2. A value that was read before a change is never kept after it, in either level, however long the reader slept.
//! 3. Redis down, slow or empty makes reads slower; it never makes them fail, and it is not asked again and again.
//! 4. Missing rows are not cached.

mod bus;
mod config;
mod doubt;
mod l2;
mod typed;
pub mod values;
pub mod warm;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use config::CacheConfig;
pub use typed::{Cache, LoadError, LoadTimedOut, Ticket};

use crate::metrics::Metrics;
use values::{CachedAccount, CachedBalance, CachedFraudRules, CachedPaymentType, CachedTenantConfig};

/// The caches of R12. Share it in an `Arc`; [`Caches::stop`] ends its tasks.
pub struct Caches {
    pub accounts: Arc<Cache<(Uuid, Uuid), CachedAccount>>,
    pub balances: Arc<Cache<(Uuid, Uuid), CachedBalance>>,
    pub payment_types: Arc<Cache<(Uuid, String), CachedPaymentType>>,
    pub tenant_config: Arc<Cache<(Uuid, String), CachedTenantConfig>>,
    pub fraud_rules: Arc<Cache<Uuid, CachedFraudRules>>,
    all: Arc<Vec<Arc<dyn bus::Level1>>>,
    hub: Arc<bus::Hub>,
    stop: watch::Sender<bool>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl Caches {
    /// Starts the tasks that keep the levels in step; Redis need not be there yet. Fails only on an address that cannot
    /// be one. Must be called inside a tokio runtime.
    pub fn start(config: CacheConfig, metrics: Arc<Metrics>) -> Result<Caches, redis::RedisError> {
        let hub = Arc::new(bus::Hub::new(config, metrics)?);
        let accounts = Cache::new(0, "account-cache", false, hub.clone());
        let balances = Cache::new(1, "account-balance", false, hub.clone());
        let payment_types = Cache::new(2, "payment-type-cache", true, hub.clone());
        let tenant_config = Cache::new(3, "tenant-config-cache", true, hub.clone());
        let fraud_rules = Cache::new(4, "fraud-rules-cache", false, hub.clone());
        let all: Arc<Vec<Arc<dyn bus::Level1>>> = Arc::new(vec![
            accounts.clone(),
            balances.clone(),
            payment_types.clone(),
            tenant_config.clone(),
            fraud_rules.clone(),
        ]);
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(bus::teller(hub.clone(), all.clone(), stopped.clone())),
            tokio::spawn(doubt::follow(hub.clone(), all.clone(), stopped.clone())),
            tokio::spawn(bus::subscriber(hub.clone(), all.clone(), stopped)),
        ];
        let tasks = parking_lot::Mutex::new(tasks);
        Ok(Caches { accounts, balances, payment_types, tenant_config, fraud_rules, all, hub, stop, tasks })
    }

    /// The balances of these accounts changed; versions as the posting returned them. Cheap: for every payment.
    pub fn posted(&self, accounts: impl IntoIterator<Item = ((Uuid, Uuid), i64)>) {
        for (key, version) in accounts {
            self.balances.evict(&key, Some(version));
        }
    }

    /// Waits until every eviction so far reached Redis. False if it did not within `limit`.
    pub async fn settle(&self, limit: Duration) -> bool {
        self.hub.settle(limit).await
    }

    /// True while Redis answers and changes of other instances arrive.
    pub fn is_connected(&self) -> bool {
        self.hub.is_told()
    }

    /// Tells what is left to tell, for a second at most, and ends the tasks.
    pub async fn stop(&self) {
        doubt::evict(&self.all, self.hub.doubts.take());
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
    }
}
