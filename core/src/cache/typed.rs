//! One typed cache over both levels, with single-flight loads.

use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::bus::{Eviction, Hub, Level1};
use super::l2::{Bury, Read};
use super::values::{Key, Value};

/// What a loader failed with, shared by everyone who waited for that load.
#[derive(Clone, Debug)]
pub struct LoadError(Arc<dyn std::error::Error + Send + Sync>);

impl LoadError {
    /// The loader's own error, for whoever maps it to an answer.
    pub fn get<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for LoadError {
    fn from(error: E) -> LoadError {
        LoadError(Arc::new(error))
    }
}

/// The load did not come back within the cache's load time-out.
#[derive(Debug, thiserror::Error)]
#[error("loading a cached value took longer than {0:?}")]
pub struct LoadTimedOut(pub std::time::Duration);

type Outcome<V> = Result<Option<Arc<V>>, LoadError>;

enum Loaded<V> {
    Absent,
    /// May be kept.
    Value(Arc<V>),
    /// The second level refused it: something newer is known, or another instance is loading. To be handed out once.
    Passing(Arc<V>),
}

impl<V> Loaded<V> {
    fn into_value(self) -> Option<Arc<V>> {
        match self {
            Loaded::Absent => None,
            Loaded::Value(value) | Loaded::Passing(value) => Some(value),
        }
    }
}

struct Held<V> {
    value: Arc<V>,
    at: Instant,
}

impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Held { value: self.value.clone(), at: self.at }
    }
}

/// A load under way. An eviction takes it off the table, so that later callers load again, and raises `floor`, so that
/// what it loaded is handed to those who already waited but not kept.
struct Flight<V> {
    floor: Mutex<i64>,
    result: watch::Sender<Option<Outcome<V>>>,
}

struct Counters {
    l1_hit: IntCounter,
    l2_hit: IntCounter,
    miss: IntCounter,
    coalesced: IntCounter,
    changed: IntCounter,
    remote: IntCounter,
    flush: IntCounter,
    entries: IntGauge,
}

/// Where an eviction came from.
#[derive(Clone, Copy)]
enum Cause {
    Changed,
    Remote,
}

/// How many evictions a cache had seen.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

pub struct Cache<K: Key, V: Value> {
    /// Index in the hub's list and tag in eviction messages.
    tag: u8,
    name: &'static str,
    l1: moka::sync::Cache<K, Held<V>>,
    /// Every change of `l1` happens under this lock, so that an eviction meets either the load or its result.
    flights: Mutex<FxHashMap<K, Arc<Flight<V>>>>,
    /// Evictions and flushes so far; changed under the same lock.
    changes: AtomicU64,
    hub: Arc<Hub>,
    /// Evictions that know the version leave a tombstone. Off where changes are too many for the second level to
    /// remember each (balances): there the lease alone protects, and loads must read the primary.
    tombstones: bool,
    counters: Counters,
}

impl<K: Key, V: Value> Cache<K, V> {
    pub(super) fn new(tag: u8, name: &'static str, tombstones: bool, hub: Arc<Hub>) -> Arc<Cache<K, V>> {
        let metrics = &hub.metrics;
        let request = |result: &str| metrics.cache_requests.with_label_values(&[name, result]);
        let eviction = |cause: &str| metrics.cache_evictions.with_label_values(&[name, cause]);
        let counters = Counters {
            l1_hit: request("l1_hit"),
            l2_hit: request("l2_hit"),
            miss: request("miss"),
            coalesced: request("coalesced"),
            changed: eviction("changed"),
            remote: eviction("remote"),
            flush: eviction("flush"),
            entries: metrics.cache_entries.with_label_values(&[name]),
        };
        let l1 = moka::sync::Cache::builder()
            .max_capacity(hub.config.l1_capacity)
            .time_to_live(hub.config.ttl)
            .build();
        Arc::new(Cache {
            tag,
            name,
            l1,
            flights: Mutex::default(),
            changes: AtomicU64::new(0),
            hub,
            tombstones,
            counters,
        })
    }

    /// The cached value, or what `load` brings; `None` from `load` means that there is no such row, and is not kept.
    /// Concurrent callers for one key share one load. A Redis that does not answer is a slower read, never an error.
    ///
    /// `load` must read the primary. It may answer something older than an [`Cache::evict`] that happens meanwhile: that
    /// answer is returned, and not kept.
    pub async fn get<F, Fut>(&self, key: &K, load: F) -> Result<Option<Arc<V>>, LoadError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, LoadError>>,
    {
        loop {
            if let Some(held) = self.l1.get(key)
                && (self.hub.is_told() || held.at.elapsed() < self.hub.config.l1_blind_age)
            {
                self.counters.l1_hit.inc();
                return Ok(Some(held.value));
            }
            let (flight, leads) = match self.flights.lock().entry(key.clone()) {
                Entry::Occupied(under_way) => (under_way.get().clone(), false),
                Entry::Vacant(free) => {
                    let flight =
                        Arc::new(Flight { floor: Mutex::new(i64::MIN), result: watch::Sender::new(None) });
                    free.insert(flight.clone());
                    (flight, true)
                }
            };
            if leads {
                let mut landing = Landing { cache: self, key, flight, landed: false };
                let loaded = self.load_through(key, load).await;
                landing.land(&loaded);
                return loaded.map(Loaded::into_value);
            }
            self.counters.coalesced.inc();
            let mut result = flight.result.subscribe();
            // The sender lives in the flight: holding it here would hide that the leader was cancelled.
            drop(flight);
            if let Ok(loaded) = result.wait_for(Option::is_some).await
                && let Some(loaded) = loaded.clone()
            {
                return loaded;
            }
        }
    }

    async fn load_through<F, Fut>(&self, key: &K, load: F) -> Result<Loaded<V>, LoadError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, LoadError>>,
    {
        let hub = &self.hub;
        let mut offer = None;
        let mut text = String::with_capacity(80);
        key.write(&mut text);
        if let Some(l2) = &hub.l2
            && !hub.is_pending(self.tag, &text)
        {
            let token = format!("L{:032x}", rand::random::<u128>());
            let redis_key = hub.redis_key(self.name, &text);
            match l2.read(&redis_key, &token).await {
                Ok(Read::Value(json)) => match serde_json::from_slice::<V>(&json) {
                    Ok(value) => {
                        self.counters.l2_hit.inc();
                        return Ok(Loaded::Value(Arc::new(value)));
                    }
                    Err(error) => tracing::warn!(cache = self.name, %error, "a cached value is not readable"),
                },
                Ok(Read::MayFill) => offer = Some((l2, redis_key, token)),
                Ok(Read::Unavailable) => {}
                Err(error) => hub.failed("read", &error),
            }
        }
        self.counters.miss.inc();
        let limit = hub.config.load_timeout;
        let loaded =
            tokio::time::timeout(limit, load()).await.unwrap_or_else(|_| Err(LoadTimedOut(limit).into()))?;
        let Some(value) = loaded else { return Ok(Loaded::Absent) };
        let mut taken = true;
        if let Some((l2, redis_key, token)) = offer
            && let Ok(json) = serde_json::to_vec(&value)
        {
            match l2.fill(&redis_key, &token, value.version(), &json).await {
                Ok(filled) => taken = filled,
                Err(error) => hub.failed("fill", &error),
            }
        }
        let value = Arc::new(value);
        Ok(if taken { Loaded::Value(value) } else { Loaded::Passing(value) })
    }

    /// To be taken before reading rows for [`Cache::warm`].
    pub fn ticket(&self) -> Ticket {
        Ticket(self.changes.load(Ordering::Acquire))
    }

    /// Puts a row that was read from the primary after `ticket` into this process's level, unless anything was evicted
    /// since: then the row may be older than the eviction (H33). True if it was put.
    pub fn warm(&self, ticket: Ticket, key: K, value: V) -> bool {
        let flights = self.flights.lock();
        let may = self.changes.load(Ordering::Acquire) == ticket.0 && !flights.contains_key(&key);
        if may {
            self.l1.insert(key, Held { value: Arc::new(value), at: Instant::now() });
        }
        may
    }

    /// The row changed: call it after the commit. `version` is the row's new version where the change knows it; a value
    /// with at least that version stays. Returns at once; Redis and the other instances learn it within milliseconds.
    pub fn evict(&self, key: &K, version: Option<i64>) {
        self.drop_local(key, version, Cause::Changed);
        let mut text = String::with_capacity(80);
        key.write(&mut text);
        self.hub.tell(Eviction { tag: self.tag, version: version.unwrap_or(i64::MAX), key: text });
    }

    /// The row may have changed, or may still change: it is evicted now and again a few times later.
    pub fn doubt(&self, key: &K) {
        self.evict(key, None);
        let mut text = String::with_capacity(80);
        key.write(&mut text);
        self.hub.doubts.note(self.tag, text);
    }

    fn drop_local(&self, key: &K, version: Option<i64>, cause: Cause) {
        let version = version.unwrap_or(i64::MAX);
        let mut flights = self.flights.lock();
        self.changes.fetch_add(1, Ordering::AcqRel);
        if let Some(flight) = flights.remove(key) {
            let mut floor = flight.floor.lock();
            *floor = (*floor).max(version);
        }
        if self.l1.get(key).is_some_and(|held| held.value.version() < version) {
            self.l1.invalidate(key);
            match cause {
                Cause::Changed => self.counters.changed.inc(),
                Cause::Remote => self.counters.remote.inc(),
            }
        }
    }
}

impl<K: Key, V: Value> Level1 for Cache<K, V> {
    fn evict_remote(&self, key: &str, version: i64) {
        if let Some(key) = K::parse(key) {
            self.drop_local(&key, Some(version), Cause::Remote);
        }
    }

    fn evict_again(&self, key: &str) {
        if let Some(key) = K::parse(key) {
            self.evict(&key, None);
        }
    }

    fn grave(&self, eviction: &Eviction) -> Bury {
        let key = self.hub.redis_key(self.name, &eviction.key);
        if self.tombstones && eviction.version != i64::MAX {
            Bury::Tombstone(key, eviction.version)
        } else {
            Bury::Remove(key)
        }
    }

    fn flush(&self) {
        let mut flights = self.flights.lock();
        self.changes.fetch_add(1, Ordering::AcqRel);
        for (_, flight) in flights.drain() {
            *flight.floor.lock() = i64::MAX;
        }
        self.counters.flush.inc_by(self.l1.entry_count());
        self.l1.invalidate_all();
    }

    fn count(&self) {
        self.l1.run_pending_tasks();
        self.counters.entries.set(self.l1.entry_count() as i64);
    }
}

/// Ends a flight, also when the leading caller is cancelled: then nobody gets a result and one of the waiting loads.
struct Landing<'a, K: Key, V: Value> {
    cache: &'a Cache<K, V>,
    key: &'a K,
    flight: Arc<Flight<V>>,
    landed: bool,
}

impl<K: Key, V: Value> Landing<'_, K, V> {
    fn land(&mut self, loaded: &Result<Loaded<V>, LoadError>) {
        self.landed = true;
        let outcome = match loaded {
            Ok(Loaded::Absent) => Ok(None),
            Ok(Loaded::Value(value) | Loaded::Passing(value)) => Ok(Some(value.clone())),
            Err(error) => Err(error.clone()),
        };
        let mut flights = self.cache.flights.lock();
        if flights.get(self.key).is_some_and(|current| Arc::ptr_eq(current, &self.flight)) {
            flights.remove(self.key);
        }
        if let Ok(Loaded::Value(value)) = loaded
            && value.version() >= *self.flight.floor.lock()
        {
            self.cache.l1.insert(self.key.clone(), Held { value: value.clone(), at: Instant::now() });
        }
        drop(flights);
        self.flight.result.send_replace(Some(outcome));
    }
}

impl<K: Key, V: Value> Drop for Landing<'_, K, V> {
    fn drop(&mut self) {
        if !self.landed {
            let mut flights = self.cache.flights.lock();
            if flights.get(self.key).is_some_and(|current| Arc::ptr_eq(current, &self.flight)) {
                flights.remove(self.key);
            }
        }
    }
}

/// A flag that several tasks look at.
#[derive(Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
