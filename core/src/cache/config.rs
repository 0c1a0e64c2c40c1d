//! Settings of the caches, with the meanings of R11 and R12.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// `redis://host:port`; several, comma-separated, in cluster mode. Empty: the in-process level alone.
    pub redis_url: String,
    /// The servers form a Redis Cluster. MOVED and ASK are followed up to 3 times.
    pub redis_cluster: bool,
    /// Name of this instance: who is told to have crashed when it starts again.
    pub instance: String,
    /// R11: 50 -> 100 connections at most.
    pub pool_max: u32,
    /// R11: 10 -> 20 connections kept ready.
    pub pool_min_idle: u32,
    /// Longest wait for a connection (R11: 1-2 s). Evictions wait that long; reads have `read_budget`.
    pub timeout: Duration,
    /// Longest time a read may spend on Redis before it turns to the database. Far below R11's time-out, because the
    /// database answers in a few milliseconds and a cache must not cost more than it saves.
    pub read_budget: Duration,
    /// R12: 10 minutes.
    pub ttl: Duration,
    /// Entries of each in-process cache.
    pub l1_capacity: u64,
    /// How old an in-process entry may be while nobody tells this instance about changes (Redis down or absent).
    pub l1_blind_age: Duration,
    /// Longest load from the database. Leases and tombstones live three times as long.
    pub load_timeout: Duration,
    /// Rows of each kind loaded at start, a shard.
    pub warm_rows: i64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            redis_url: String::new(),
            redis_cluster: false,
            instance: "core".into(),
            pool_max: 100,
            pool_min_idle: 10,
            timeout: Duration::from_millis(1_000),
            read_budget: Duration::from_millis(100),
            ttl: Duration::from_secs(600),
            l1_capacity: 100_000,
            l1_blind_age: Duration::from_secs(1),
            load_timeout: Duration::from_secs(5),
            warm_rows: 1_000,
        }
    }
}

impl CacheConfig {
    pub(super) fn lease(&self) -> Duration {
        self.load_timeout * 3
    }
}

/// Evictions that may wait for Redis to come back. More are not remembered one by one: the whole second level is
/// abandoned instead (a new generation of keys).
pub(super) const PENDING_MAX: usize = 100_000;
/// Evictions told to Redis in one round trip.
pub(super) const EVICT_BATCH: usize = 1_000;
/// Failures in a row after which Redis is left alone until the prober reaches it.
pub(super) const BREAKER_FAILURES: u32 = 3;
/// Pause between two tries to reach Redis.
pub(super) const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// A subscription that stays silent to a ping for this long is dead (a host that vanished sends no reset).
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
