//! The relay of one shard: hold the lease, claim, produce, wait for the acknowledgements, mark, again.
//!
//! Nothing is pipelined: a claim of 2,000 rows is acknowledged in some ten milliseconds, so one after the other gives
//! over 100,000 events a second and shard, and there is no state in which marked, sent and claimed rows overlap.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use tokio::sync::{Notify, watch};
use tokio_postgres::Client;

use super::Shared;
use super::claim::{Claims, Cursor};
use super::event::{Event, Scratch};
use super::lease::Lease;
use super::publisher::{Batch, SendError, Session};
use super::shards::{self, StatementError, in_time};

/// Pauses after failures: from a tenth of a second, doubled up to five.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// How long a stopping relay waits for the batch under way.
pub(super) const DRAIN: Duration = Duration::from_secs(3);
/// Between two counts of the waiting rows.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// Why a session on the shard ended.
enum Ended {
    Stopped,
    /// Another relay has the lease, or ours lapsed.
    LeaseLost,
    Failed {
        reason: &'static str,
        error: String,
    },
}

impl Ended {
    fn failed(reason: &'static str) -> impl FnOnce(StatementError) -> Ended {
        move |error| Ended::Failed { reason, error: error.to_string() }
    }
}

/// Runs until stopped, whatever the database and Kafka do.
pub(crate) async fn run(
    shared: Arc<Shared>,
    shard: Option<u16>,
    signals: Vec<Arc<Notify>>,
    stopped: watch::Receiver<bool>,
) {
    let mut relay = Relay { shared, shard, signals, stopped, backoff: BACKOFF_FIRST };
    loop {
        match relay.session().await {
            Ended::Stopped => return,
            Ended::LeaseLost => {
                relay.count_error("lease");
                tracing::info!(shard, "lost the relay's lease");
            }
            Ended::Failed { reason, error } => {
                relay.count_error(reason);
                tracing::info!(shard, reason, error, pause = ?relay.backoff, "the relay starts again");
            }
        }
        if relay.pause().await {
            return;
        }
    }
}

struct Relay {
    shared: Arc<Shared>,
    shard: Option<u16>,
    signals: Vec<Arc<Notify>>,
    stopped: watch::Receiver<bool>,
    backoff: Duration,
}

/// Counts the leases of this instance while it lives.
struct Holding<'a>(&'a Shared);

impl<'a> Holding<'a> {
    fn new(shared: &'a Shared) -> Holding<'a> {
        shared.held.fetch_add(1, Ordering::Relaxed);
        shared.metrics.outbox_leases.inc();
        Holding(shared)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.outbox_leases.dec();
    }
}

impl Relay {
    fn count_error(&self, reason: &str) {
        self.shared.metrics.outbox_errors.with_label_values(&[reason]).inc();
    }

    /// Waits for the back-off; true when stopped meanwhile.
    async fn pause(&mut self) -> bool {
        let pause = self.backoff;
        self.backoff = (pause * 2).min(BACKOFF_MOST);
        tokio::time::timeout(pause, self.stopped.wait_for(|s| *s)).await.is_ok()
    }

    async fn session(&mut self) -> Ended {
        let shared = self.shared.clone();
        let link = match shards::open(&shared.config, self.shard, "relay").await {
            Ok(link) => link,
            Err(error) => return Ended::Failed { reason: "connect", error: error.to_string() },
        };
        let lease = match self.wait_for_lease(&link.client).await {
            Ok(lease) => lease,
            Err(ended) => return ended,
        };
        tracing::info!(shard = self.shard, epoch = lease.epoch, "publishing the shard's outbox");
        let _holding = Holding::new(&shared);
        self.publish(&link.client, lease).await
    }

    async fn wait_for_lease(&mut self, client: &Client) -> Result<Lease, Ended> {
        let config = &self.shared.config;
        let shard = i32::from(self.shard.unwrap_or(1));
        loop {
            // An instance that has leases already asks later, so that instances started together share the shards.
            let held = self.shared.held.load(Ordering::Relaxed) as u32;
            let polite =
                Duration::from_millis(200) * held.min(10) + Duration::from_millis(rand::random_range(0..50));
            if tokio::time::timeout(polite, self.stopped.wait_for(|s| *s)).await.is_ok() {
                return Err(Ended::Stopped);
            }
            let lease = Lease::acquire(client, shard, &self.shared.owner, config.lease_ttl);
            let lease = in_time(config.statement_timeout, lease).await;
            if let Some(lease) = lease.map_err(Ended::failed("lease"))? {
                return Ok(lease);
            }
            if tokio::time::timeout(config.lease_ttl / 4, self.stopped.wait_for(|s| *s)).await.is_ok() {
                return Err(Ended::Stopped);
            }
        }
    }

    async fn publish(&mut self, client: &Client, mut lease: Lease) -> Ended {
        let shared = self.shared.clone();
        let limit = shared.config.batch.max(1);
        let patience = shared.config.statement_timeout;
        let claims = match in_time(patience, Claims::prepare(client, limit)).await {
            Ok(claims) => claims,
            Err(error) => return Ended::failed("claim")(error),
        };
        let mut scratch = Scratch::default();
        let mut cursor = Cursor::START;
        let mut counted: Option<Instant> = None;
        loop {
            if *self.stopped.borrow() {
                // If it cannot be released it lapses.
                let _ = in_time(patience, lease.release(client)).await;
                return Ended::Stopped;
            }
            if let Err(ended) = renew_if_due(&mut lease, client, patience).await {
                return ended;
            }
            let events = match in_time(patience, claims.next(client, cursor)).await {
                Ok(events) => events,
                Err(error) => return Ended::failed("claim")(error),
            };
            let went_round = cursor != Cursor::START;
            cursor = cursor.after(&events, limit);
            if !events.is_empty() {
                if let Err(ended) = self.deliver(client, &mut lease, &claims, &events, &mut scratch).await {
                    return ended;
                }
                self.backoff = BACKOFF_FIRST;
            }
            if counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
                counted = Some(Instant::now());
                if let Err(error) = self.count_pending(client, &claims).await {
                    return Ended::failed("claim")(error);
                }
            }
            if events.len() < limit && !went_round {
                self.wait_for_rows(events.is_empty(), lease.renew_at()).await;
            }
        }
    }

    /// Returns when there may be rows, when the lease wants renewing or when stopped.
    async fn wait_for_rows(&mut self, idle: bool, renew_at: Instant) {
        let mut stopped = self.stopped.clone();
        if !idle {
            // Let commits gather until the next tick, which all relays of the instance share: what they claim together
            // the producer sends together.
            let tick = self.shared.next_tick();
            let _ = tokio::time::timeout_at(tick.into(), stopped.wait_for(|s| *s)).await;
            return;
        }
        let until = renew_at.min(Instant::now() + self.shared.config.poll);
        let woken = select_all(self.signals.iter().map(|signal| Box::pin(signal.notified())));
        tokio::select! {
            _ = woken => {}
            () = tokio::time::sleep_until(until.into()) => {}
            _ = stopped.wait_for(|s| *s) => {}
        }
    }

    /// Produces `events` in order, waits for all of them and marks them.
    async fn deliver(
        &self,
        client: &Client,
        lease: &mut Lease,
        claims: &Claims,
        events: &[Event],
        scratch: &mut Scratch,
    ) -> Result<(), Ended> {
        let shared = &self.shared;
        let failed = |error: String| Ended::Failed { reason: "produce", error };
        let session = shared.publisher.session().map_err(|e| failed(e.to_string()))?;
        let produced = self.produce(&session, client, lease, events, scratch).await;
        if produced.is_err() {
            // Whatever the reason: what was handed over may be a part only, so the producer goes with it.
            shared.publisher.replace(&session);
        }
        produced?;
        match in_time(shared.config.statement_timeout, claims.mark(client, lease, events)).await {
            Ok(true) => {}
            Ok(false) => return Err(Ended::LeaseLost),
            Err(error) => return Err(Ended::failed("mark")(error)),
        }
        let topic = shared.publisher.topic();
        shared.metrics.outbox_published.with_label_values(&[topic]).inc_by(events.len() as u64);
        shared.metrics.outbox_batch_events.observe(events.len() as f64);
        Ok(())
    }

    async fn produce(
        &self,
        session: &Arc<Session>,
        client: &Client,
        lease: &mut Lease,
        events: &[Event],
        scratch: &mut Scratch,
    ) -> Result<(), Ended> {
        let failed = |reason, error: String| Ended::Failed { reason, error };
        let config = &self.shared.config;
        let batch = Batch::new();
        for (n, event) in events.iter().enumerate() {
            // A clock reading costs little, but not nothing.
            if n % 64 == 0 && !lease.is_valid() {
                return Err(Ended::LeaseLost);
            }
            event.write(scratch, self.shared.publisher.source(), lease.epoch);
            loop {
                match session.send(scratch, &batch) {
                    Ok(()) => break,
                    Err(SendError::QueueFull) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        renew_if_due(lease, client, config.statement_timeout).await?;
                    }
                    Err(error) => return Err(failed("produce", error.to_string())),
                }
            }
        }
        batch.seal();
        let give_up = tokio::time::sleep(config.stalled);
        let stopping = async {
            let _ = self.stopped.clone().wait_for(|s| *s).await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::pin!(give_up, stopping);
        loop {
            tokio::select! {
                done = batch.acknowledged() => return done.map_err(|error| failed("produce", error)),
                () = tokio::time::sleep_until(lease.renew_at().into()) => renew_if_due(lease, client, config.statement_timeout).await?,
                () = &mut give_up => return Err(failed("stalled", "Kafka acknowledges nothing".into())),
                () = &mut stopping => return Err(Ended::Stopped),
            }
        }
    }

    async fn count_pending(&self, client: &Client, claims: &Claims) -> Result<(), StatementError> {
        let (count, age) = in_time(self.shared.config.statement_timeout, claims.pending(client)).await?;
        let shard = self.shard.unwrap_or(1).to_string();
        self.shared.metrics.outbox_pending_events.with_label_values(&[&shard]).set(count);
        self.shared.metrics.outbox_oldest_event_age.with_label_values(&[&shard]).set(age);
        Ok(())
    }
}

/// A lease that lapsed is not renewed although nobody may have taken it: then the epoch says that nobody did.
async fn renew_if_due(lease: &mut Lease, client: &Client, patience: Duration) -> Result<(), Ended> {
    if Instant::now() < lease.renew_at() {
        return Ok(());
    }
    match in_time(patience, lease.renew(client)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Ended::LeaseLost),
        Err(error) => Err(Ended::failed("lease")(error)),
    }
}
