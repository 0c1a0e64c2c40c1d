//! Evictions between instances, and the state that the typed caches share.
//!
//! A change is dropped from this process at once and handed to one task, which tells Redis and, by publish/subscribe,
//! the other instances: everything that gathered while one exchange was under way goes with the next. Evictions that
//! could not be told stay and are told later; until then this process does not read those keys from Redis.
//!
//! Publish/subscribe forgets what nobody heard. So an instance that (re)subscribes flushes its own level, and while it
//! is not subscribed its entries are used for a second only.
//!
//! Keys carry a *generation*. It grows when evictions were lost: by overflow of the list of untold ones, or because an
//! instance died without telling its last ones, which its next start sees by the mark it had left. A new generation
//! makes every older entry invisible; its time to live removes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::config::{CacheConfig, EVICT_BATCH, PENDING_MAX, PING_EVERY, PING_TIMEOUT, PROBE_PAUSE};
use super::doubt::Doubts;
use super::l2::{Bury, Failed, L2};
use super::typed::Flag;
use crate::metrics::Metrics;

const CHANNEL: &str = "paycore1:evict";
const GENERATION: &str = "paycore1:generation";

/// One changed row. `version` i64::MAX: unknown, or deleted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Eviction {
    pub(super) tag: u8,
    pub(super) version: i64,
    pub(super) key: String,
}

/// What the bus needs of a typed cache.
pub(super) trait Level1: Send + Sync {
    fn evict_remote(&self, key: &str, version: i64);
    /// As if the row had just changed.
    fn evict_again(&self, key: &str);
    fn grave(&self, eviction: &Eviction) -> Bury;
    fn flush(&self);
    fn count(&self);
}

#[derive(Clone, Copy)]
struct Untold {
    version: i64,
    change: u64,
}

#[derive(Default)]
struct Pending {
    /// With the number of the last change that was merged in: two changes of unknown version look alike.
    untold: FxHashMap<(u8, String), Untold>,
    changes: u64,
    overflowed: bool,
}

pub(super) struct Hub {
    pub(super) config: CacheConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) l2: Option<L2>,
    pub(super) doubts: Doubts,
    /// This process, among those that publish.
    me: Uuid,
    subscribed: Flag,
    generation: AtomicI64,
    pending: Mutex<Pending>,
    told: Notify,
    news: Notify,
}

impl Hub {
    pub(super) fn new(config: CacheConfig, metrics: Arc<Metrics>) -> redis::RedisResult<Hub> {
        let l2 = if config.redis_url.is_empty() { None } else { Some(L2::new(&config)?) };
        Ok(Hub {
            config,
            metrics,
            l2,
            doubts: Doubts::default(),
            me: Uuid::new_v4(),
            subscribed: Flag::default(),
            generation: AtomicI64::new(0),
            pending: Mutex::default(),
            told: Notify::new(),
            news: Notify::new(),
        })
    }

    /// Other instances' changes reach this process.
    pub(super) fn is_told(&self) -> bool {
        self.subscribed.get()
    }

    pub(super) fn redis_key(&self, cache: &str, key: &str) -> String {
        format!("paycore1:{}:{cache}:{key}", self.generation.load(Ordering::Acquire))
    }

    pub(super) fn failed(&self, operation: &str, error: &Failed) {
        self.metrics.cache_redis_errors.with_label_values(&[operation]).inc();
        tracing::debug!(operation, error = error.0, "Redis did not answer");
    }

    pub(super) fn is_pending(&self, tag: u8, key: &str) -> bool {
        let pending = self.pending.lock();
        pending.overflowed
            || (!pending.untold.is_empty() && pending.untold.contains_key(&(tag, key.to_owned())))
    }

    pub(super) fn tell(&self, eviction: Eviction) {
        if self.l2.is_none() {
            return;
        }
        let mut pending = self.pending.lock();
        if pending.untold.len() >= PENDING_MAX {
            pending.untold.clear();
            pending.overflowed = true;
        }
        if !pending.overflowed {
            pending.changes += 1;
            let change = pending.changes;
            let untold = pending.untold.entry((eviction.tag, eviction.key));
            let untold = untold.or_insert(Untold { version: eviction.version, change });
            *untold = Untold { version: untold.version.max(eviction.version), change };
        }
        self.metrics.cache_evictions_pending.set(pending.untold.len() as i64);
        drop(pending);
        self.news.notify_one();
    }

    /// Makes every value of the second level invisible: more have changed than were remembered.
    pub(super) fn abandon(&self) {
        if self.l2.is_some() {
            let mut pending = self.pending.lock();
            pending.untold.clear();
            pending.overflowed = true;
            drop(pending);
            self.news.notify_one();
        }
    }

    fn some_pending(&self) -> (Vec<Eviction>, Vec<u64>) {
        let pending = self.pending.lock();
        let some = pending.untold.iter().take(EVICT_BATCH);
        some.map(|((tag, key), u)| (Eviction { tag: *tag, version: u.version, key: key.clone() }, u.change))
            .unzip()
    }

    fn forget(&self, told: Vec<Eviction>, changes: &[u64]) -> bool {
        let mut pending = self.pending.lock();
        for (eviction, change) in told.into_iter().zip(changes) {
            let key = (eviction.tag, eviction.key);
            // A newer change of the same row that came meanwhile is still untold.
            if pending.untold.get(&key).is_some_and(|untold| untold.change == *change) {
                pending.untold.remove(&key);
            }
        }
        self.metrics.cache_evictions_pending.set(pending.untold.len() as i64);
        pending.untold.is_empty()
    }

    /// Waits until everything changed so far is told. False after `limit`.
    pub(super) async fn settle(&self, limit: Duration) -> bool {
        let all = async {
            loop {
                let told = self.told.notified();
                {
                    let pending = self.pending.lock();
                    if pending.untold.is_empty() && !pending.overflowed {
                        return;
                    }
                }
                told.await;
            }
        };
        self.l2.is_none() || tokio::time::timeout(limit, all).await.is_ok()
    }
}

fn alive_key(instance: &str) -> String {
    format!("paycore1:alive:{instance}")
}

/// Message: 'E', sender (16 bytes), then per eviction: tag, version (8 bytes, little end first), length (2), key. Or
/// 'G', sender, generation (8).
fn message(me: Uuid, evictions: &[Eviction]) -> Vec<u8> {
    let mut out = Vec::with_capacity(17 + evictions.len() * 80);
    out.push(b'E');
    out.extend_from_slice(me.as_bytes());
    for eviction in evictions {
        // A key longer than this cannot be: codes are bounded far below. Such a one is left to its time to live.
        let Ok(length) = u16::try_from(eviction.key.len()) else { continue };
        out.push(eviction.tag);
        out.extend_from_slice(&eviction.version.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(eviction.key.as_bytes());
    }
    out
}

/// Calls `found` for each eviction in the rest of an 'E' message; stops at the first malformed one.
fn each(mut rest: &[u8], mut found: impl FnMut(u8, i64, &str)) {
    while let Some((head, tail)) = rest.split_first_chunk::<11>() {
        let [tag, v0, v1, v2, v3, v4, v5, v6, v7, l0, l1] = *head;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let Some((key, next)) = tail.split_at_checked(length) else { return };
        let Ok(key) = std::str::from_utf8(key) else { return };
        found(tag, i64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]), key);
        rest = next;
    }
}

/// Tells evictions until `stop`, then what is left.
pub(super) async fn teller(
    hub: Arc<Hub>,
    caches: Arc<Vec<Arc<dyn Level1>>>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(l2) = &hub.l2 else { return };
    loop {
        tokio::select! {
            () = hub.news.notified() => {}
            _ = stop.wait_for(|s| *s) => break,
        }
        while l2.is_up() && !tell_some(&hub, l2, &caches).await {}
    }
    let last = async {
        while l2.is_up() && !tell_some(&hub, l2, &caches).await {}
        if hub.settle(Duration::ZERO).await {
            let _: Result<(), Failed> =
                l2.command(redis::cmd("DEL").arg(alive_key(&hub.config.instance))).await;
        }
    };
    let _ = tokio::time::timeout(hub.config.timeout, last).await;
}

/// One exchange. True when nothing is left, or when Redis failed (the subscriber's prober calls again).
async fn tell_some(hub: &Hub, l2: &L2, caches: &[Arc<dyn Level1>]) -> bool {
    if hub.pending.lock().overflowed {
        if let Err(error) = new_generation(hub, l2).await {
            hub.failed("generation", &error);
            return true;
        }
        hub.pending.lock().overflowed = false;
        caches.iter().for_each(|cache| cache.flush());
    }
    let (some, changes) = hub.some_pending();
    if !some.is_empty() {
        let graves: Vec<Bury> =
            some.iter().filter_map(|e| caches.get(usize::from(e.tag)).map(|cache| cache.grave(e))).collect();
        if let Err(error) = l2.bury(&graves, CHANNEL, &message(hub.me, &some)).await {
            hub.failed("evict", &error);
            return true;
        }
    }
    let all = hub.forget(some, &changes);
    if all {
        hub.told.notify_waiters();
    }
    all
}

async fn new_generation(hub: &Hub, l2: &L2) -> Result<(), Failed> {
    let generation: i64 = l2.command(redis::cmd("INCR").arg(GENERATION)).await?;
    hub.generation.fetch_max(generation, Ordering::AcqRel);
    let mut out = vec![b'G'];
    out.extend_from_slice(hub.me.as_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    l2.command::<()>(redis::cmd("PUBLISH").arg(CHANNEL).arg(out)).await
}

/// Keeps the subscription, probes a Redis that was given up, and counts entries.
pub(super) async fn subscriber(
    hub: Arc<Hub>,
    caches: Arc<Vec<Arc<dyn Level1>>>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(l2) = &hub.l2 else { return };
    let mut first = true;
    loop {
        let session = async {
            match listen(&hub, l2, &caches, &mut first).await {
                Ok(()) => tracing::info!("lost the subscription to Redis"),
                Err(error) => hub.failed("subscribe", &error),
            }
        };
        tokio::select! {
            () = session => {}
            _ = stop.wait_for(|s| *s) => return,
        }
        hub.subscribed.set(false);
        l2.set_down();
        hub.metrics.cache_redis_up.set(0);
        tokio::select! {
            () = tokio::time::sleep(PROBE_PAUSE) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}

async fn listen(hub: &Hub, l2: &L2, caches: &[Arc<dyn Level1>], first: &mut bool) -> Result<(), Failed> {
    let (mut sink, mut messages) = l2.subscribe(CHANNEL).await?.split();
    if *first {
        // A mark still there says that this instance died: its last evictions may never have been told.
        let key = alive_key(&hub.config.instance);
        let died: Option<String> =
            l2.command(redis::cmd("SET").arg(&key).arg(hub.me.to_string()).arg("GET")).await?;
        if died.is_some() {
            new_generation(hub, l2).await?;
        }
        *first = false;
    }
    let generation: Option<i64> = l2.command(redis::cmd("GET").arg(GENERATION)).await?;
    let generation = generation.unwrap_or(0);
    // Redis that lost its data starts counting again below what this process knows: raised, so that all agree.
    if generation < hub.generation.load(Ordering::Acquire) {
        l2.command::<()>(redis::cmd("SET").arg(GENERATION).arg(hub.generation.load(Ordering::Acquire)))
            .await?;
    }
    hub.generation.fetch_max(generation, Ordering::AcqRel);
    // What was published since the last subscription was not heard.
    caches.iter().for_each(|cache| cache.flush());
    hub.subscribed.set(true);
    l2.set_up();
    hub.metrics.cache_redis_up.set(1);
    hub.news.notify_one();
    let mut tick = tokio::time::interval(PING_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => hear(hub, caches, message.get_payload_bytes()),
                None => return Ok(()),
            },
            _ = tick.tick() => {
                // The pong comes through the message stream's task, so waiting here holds nothing up for long.
                match tokio::time::timeout(PING_TIMEOUT, sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(Failed(error.to_string())),
                    Err(_) => return Err(Failed("no answer to a ping".into())),
                }
                if !l2.is_up() && l2.command::<()>(&redis::cmd("PING")).await.is_ok() {
                    l2.set_up();
                    hub.news.notify_one();
                }
                hub.metrics.cache_redis_up.set(i64::from(l2.is_up()));
                caches.iter().for_each(|cache| cache.count());
            }
        }
    }
}

fn hear(hub: &Hub, caches: &[Arc<dyn Level1>], message: &[u8]) {
    let Some((head, rest)) = message.split_first_chunk::<17>() else { return };
    if head[1..] == hub.me.as_bytes()[..] {
        return;
    }
    match head[0] {
        b'E' => each(rest, |tag, version, key| {
            if let Some(cache) = caches.get(usize::from(tag)) {
                cache.evict_remote(key, version);
            }
        }),
        b'G' => {
            if let Ok(generation) = rest.try_into() {
                hub.generation.fetch_max(i64::from_le_bytes(generation), Ordering::AcqRel);
                caches.iter().for_each(|cache| cache.flush());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_during_an_exchange_is_told_by_the_next_one() {
        let config = CacheConfig { redis_url: "redis://127.0.0.1:1".into(), ..CacheConfig::default() };
        let hub = Hub::new(config, Arc::new(Metrics::new("test").unwrap())).unwrap();
        let change = || hub.tell(Eviction { tag: 0, version: i64::MAX, key: "a".into() });
        change();
        let (told, changes) = hub.some_pending();
        change();
        assert!(!hub.forget(told, &changes), "the second change is still untold");
        let (told, changes) = hub.some_pending();
        assert!(hub.forget(told, &changes));
        assert!(!hub.is_pending(0, "a"));
    }

    #[test]
    fn evictions_survive_the_wire_and_a_cut_message_is_ignored() {
        let sent = vec![
            Eviction { tag: 0, version: 7, key: "a:b".into() },
            Eviction { tag: 3, version: i64::MAX, key: "ü".repeat(40) },
        ];
        let bytes = message(Uuid::nil(), &sent);
        let mut heard = Vec::new();
        each(&bytes[17..], |tag, version, key| heard.push(Eviction { tag, version, key: key.into() }));
        assert_eq!(heard, sent);
        for cut in 17..bytes.len() {
            let mut count = 0;
            each(&bytes[17..cut], |_, _, _| count += 1);
            assert!(count < 2, "a cut message gave all evictions");
        }
    }
}
