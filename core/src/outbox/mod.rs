//! From the outbox rows of a shard to Kafka.
//!
//! - [`event`]: PURE. A row as a Kafka key, headers and JSON.
//! - [`publisher`]: the producer, shared by the relays of this instance.
//! - [`lease`]: who publishes a shard.
//! - [`claim`]: which rows come next, and marking them.
//! - [`relay`]: one shard's loop. `shards`: one such task a shard.
//! - [`sweep`]: removes rows that need not be kept, with or without Kafka.
//!
//! What a consumer may rely on, and why (H12, H34): **after dropping event ids already seen, the sequence of every account
//! rises without a gap.** Each relay session is a stream that starts, for every account, at its first unmarked row and
//! goes up by one; everything before that row is already in Kafka. A producer never leaves out a row: on any failure it is
//! given up whole and a new session starts at the first unmarked row. So whichever of several streams (an old relay that
//! was paused, its successor) brings a row first has brought the row before it first, and the rest are repetitions. The
//! lease keeps repetitions rare; the order does not depend on it. Readers that prefer to drop a paused relay's repetitions
//! early can compare `ce_relayepoch`.
//!
//! Order is per account by `event_seq`, given under the account's row lock: a visible row n proves that row n-1 is visible
//! (or published), so no xid, clock or serial number is needed and no late commit is skipped.
//!
//! Kafka down: rows stay in the table, one batch waits in memory a shard, payments go on.

pub mod claim;
pub mod event;
pub mod lease;
mod owned;
pub mod publisher;
pub mod relay;
mod shards;
pub mod sweep;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::batch::signal::CommitSignal;
use crate::events::topics;
use crate::metrics::Metrics;
use publisher::{Publisher, PublisherConfig};

#[derive(Clone, Debug)]
pub struct OutboxConfig {
    /// The database, with its time-outs; the relay adds the shard.
    pub database: tokio_postgres::Config,
    /// Name of this instance; the lease's owner is this name and a random part, so that a restart is another owner.
    pub instance: String,
    pub publisher: PublisherConfig,
    /// Rows of one claim.
    pub batch: usize,
    /// Longest wait for new rows when no commit of this instance wakes the relay.
    pub poll: Duration,
    /// Under load, claims that are not full come at multiples of this. Fewer, larger batches cost less: at 4,000 events/s
    /// and 100 ms, core and broker together spent a third less CPU on an event than at 50 ms. A relay that was idle
    /// publishes at once.
    pub coalesce: Duration,
    pub lease_ttl: Duration,
    /// A statement without an answer for this long ends its session: a server that is frozen keeps its connections. About
    /// the lease's life, after which there is nothing left to lose.
    pub statement_timeout: Duration,
    /// A batch that Kafka has not acknowledged after this long is given up and started again with a new producer.
    /// librdkafka retries by itself before, so this is for what it cannot leave by itself.
    pub stalled: Duration,
    /// Published rows are kept this long.
    pub retention: Duration,
    /// Between two runs of the sweeper.
    pub sweep_every: Duration,
    /// Between two runs of its part that reads whole tables.
    pub tidy_every: Duration,
    /// Between two looks at which shards there are.
    pub shards_every: Duration,
    /// Commit signals to wait on when the database has no shard map (the lanes of a plain PostgreSQL).
    pub lanes_without_map: u16,
}

impl OutboxConfig {
    pub fn new(database: tokio_postgres::Config, brokers: &str, instance: &str) -> OutboxConfig {
        OutboxConfig {
            database,
            instance: instance.to_owned(),
            publisher: PublisherConfig::new(brokers),
            batch: 2_000,
            poll: Duration::from_millis(200),
            coalesce: Duration::from_millis(100),
            lease_ttl: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            stalled: Duration::from_secs(60),
            retention: Duration::from_secs(7 * 24 * 3600),
            sweep_every: Duration::from_secs(60),
            tidy_every: Duration::from_secs(3600),
            shards_every: Duration::from_secs(10),
            lanes_without_map: 4,
        }
    }
}

/// What the relays of an instance share.
pub(crate) struct Shared {
    pub(crate) config: OutboxConfig,
    pub(crate) owner: String,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Arc<Metrics>,
    /// Leases held here. An instance that holds many lets others go first.
    pub(crate) held: AtomicUsize,
    started: Instant,
}

impl Shared {
    /// The next multiple of `coalesce` since the start.
    pub(crate) fn next_tick(&self) -> Instant {
        let step = self.config.coalesce.max(Duration::from_millis(1)).as_nanos();
        let ticks = self.started.elapsed().as_nanos() / step + 1;
        self.started + Duration::from_nanos((ticks * step) as u64)
    }
}

/// The running relays; [`Outbox::stop`] ends them.
pub struct Outbox {
    stop: watch::Sender<bool>,
    supervisor: JoinHandle<()>,
    shared: Arc<Shared>,
}

impl Outbox {
    /// Starts a relay for every shard that the database shows, now and later. Kafka and the database need not be there
    /// yet. Fails only on producer settings that librdkafka refuses.
    pub fn start(
        config: OutboxConfig,
        committed: Arc<CommitSignal>,
        metrics: Arc<Metrics>,
    ) -> Result<Outbox, rdkafka::error::KafkaError> {
        let publisher = Publisher::new(config.publisher.clone())?;
        let owner = format!("{}/{}", config.instance, uuid::Uuid::new_v4().simple());
        let shared = Arc::new(Shared {
            config,
            owner,
            publisher,
            metrics,
            held: AtomicUsize::new(0),
            started: Instant::now(),
        });
        let (stop, stopped) = watch::channel(false);
        let supervisor = tokio::spawn(supervise(shared.clone(), committed, stopped));
        Ok(Outbox { stop, supervisor, shared })
    }

    /// Finishes the batches under way (for a few seconds at most), releases the leases and closes the producer.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // A statement that was under way, the batch, its mark or the lease's release.
        let patience = relay::DRAIN + 2 * self.shared.config.statement_timeout;
        if tokio::time::timeout(patience, &mut self.supervisor).await.is_err() {
            tracing::warn!("relays did not end in time; their leases lapse");
            self.supervisor.abort();
            let _ = (&mut self.supervisor).await;
        }
        self.shared.publisher.close().await;
    }
}

/// Keeps one relay for each shard.
async fn supervise(shared: Arc<Shared>, committed: Arc<CommitSignal>, mut stopped: watch::Receiver<bool>) {
    let topics = [shared.config.publisher.topic.as_str()];
    tokio::select! {
        () = topics::ensure_patiently(&shared.config.publisher.brokers, &topics, None) => {}
        _ = stopped.wait_for(|s| *s) => return,
    }
    let start = |shard, stopped| {
        let signals: Vec<Arc<Notify>> = match shard {
            Some(shard) => vec![committed.of(shard)],
            None => (1..=shared.config.lanes_without_map.max(1)).map(|l| committed.of(l)).collect(),
        };
        relay::run(shared.clone(), shard, signals, stopped)
    };
    shards::follow(&shared.config, stopped, start).await;
}
