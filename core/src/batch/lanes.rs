//! The lanes of this instance: made when the map names a shard, refilled by requests, closed at shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::Histogram;
use rustc_hash::FxHashMap;
use shard_config::{ShardId, ShardMap};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::breaker::Breaker;
use super::map::{self, MapError, Routing};
use super::poison::Poisoners;
use super::queue::{Queue, Refused};
use super::signal::CommitSignal;
use super::slot::Slot;
use super::{Answer, Job, NotPosted};
use crate::cache::Caches;
use crate::config::Config;
use crate::domain::ids::TenantId;
use crate::domain::payment::NewPayment;
use crate::idempotency::inflight::InFlight;
use crate::ledger::connect::{self, Link};
use crate::ledger::reads::DbError;
use crate::metrics::Metrics;

/// One shard has at most one part in this many of a pool.
const SHARES: usize = 4;

/// Which of the two pools.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    Reads,
    Primary,
}

/// What waits for one shard.
pub struct Lane {
    pub shard: ShardId,
    pub(super) queue: Queue<Job>,
    /// Payments of tenants that poison batches; posted a tenant at a time.
    pub(super) solo: Queue<Job>,
    pub(super) breaker: Breaker,
    pub(super) post_duration: Histogram,
    /// This shard's share of each pool that all shards use: one that hangs leaves connections to the others.
    shares: [Arc<Semaphore>; 2],
    patience: Duration,
}

impl Lane {
    fn new(shard: ShardId, config: &Config, metrics: &Metrics) -> Self {
        Self {
            shard,
            queue: Queue::new(config.lane_queue),
            solo: Queue::new(config.lane_queue),
            breaker: Breaker::default(),
            post_duration: metrics.post_duration.with_label_values(&[&shard.0.to_string()]),
            shares: [(); 2].map(|()| Arc::new(Semaphore::new((config.database_pool_size / SHARES).max(1)))),
            patience: Duration::from_millis(config.database_connect_timeout_ms),
        }
    }

    /// Leave to take a connection from a pool. At once while the breaker is open: there would be no answer. Otherwise it
    /// waits as long as the pool would let it, but without a connection.
    pub async fn pass(&self, pool: Share) -> Result<OwnedSemaphorePermit, DbError> {
        if self.breaker.refuses() {
            return Err(DbError::Unavailable("the shard's breaker is open".into()));
        }
        match tokio::time::timeout(self.patience, self.shares[pool as usize].clone().acquire_owned()).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_)) | Err(_) => {
                Err(DbError::Unavailable("the shard's share of the pool is in use".into()))
            }
        }
    }

    pub(super) fn queue(&self, solo: bool) -> &Queue<Job> {
        if solo { &self.solo } else { &self.queue }
    }

    pub(super) fn drain(&self) -> Vec<Job> {
        let mut jobs = self.queue.drain();
        jobs.extend(self.solo.drain());
        jobs
    }
}

pub struct Lanes {
    pub(super) config: Config,
    pub(super) settings: tokio_postgres::Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) committed: Arc<CommitSignal>,
    pub(super) caches: Arc<Caches>,
    pub(super) poisoners: Poisoners,
    in_flight: Arc<InFlight>,
    routing: ArcSwap<Routing>,
    slots: Mutex<JoinSet<()>>,
    map_reader: tokio::sync::Mutex<MapReader>,
}

#[derive(Default)]
struct MapReader {
    link: Option<Link>,
    read_at: Option<Instant>,
}

impl Lanes {
    /// Starts with the lanes of a database without a map, and with the proxy's map as soon as it can be read. Lanes are
    /// known by shard, so those of the first map go on with the second.
    pub async fn start(
        config: Config,
        metrics: Arc<Metrics>,
        committed: Arc<CommitSignal>,
        caches: Arc<Caches>,
    ) -> Result<Arc<Self>, tokio_postgres::Error> {
        let settings = connect::settings(&config, "lane")?;
        metrics.batch_queue_limit.set(i64::try_from(config.lane_queue).unwrap_or(i64::MAX));
        let groups = map::without_map(config.lanes_without_map);
        let lanes: FxHashMap<_, _> = groups
            .shards()
            .into_iter()
            .map(|shard| (shard, Arc::new(Lane::new(shard, &config, &metrics))))
            .collect();
        let this = Arc::new(Self {
            config,
            settings,
            metrics,
            committed,
            caches,
            poisoners: Poisoners::default(),
            in_flight: Arc::default(),
            routing: ArcSwap::from_pointee(Routing::new(groups, false, lanes.clone())),
            slots: Mutex::default(),
            map_reader: tokio::sync::Mutex::default(),
        });
        for lane in lanes.values() {
            this.staff(lane);
        }
        if let Err(error) = this.refresh().await {
            tracing::warn!(%error, "no shard map yet");
        }
        Ok(this)
    }

    /// Puts a payment into its lane. The receiver gets the answer; dropping it changes nothing for the payment.
    pub fn submit(
        &self,
        payment: NewPayment,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, NotPosted> {
        let Some(guard) = self.in_flight.claim(payment.tenant, &payment.key) else {
            self.metrics.idempotency.with_label_values(&["in_flight"]).inc();
            return Err(NotPosted::InFlight);
        };
        let now = Instant::now();
        let routing = self.routing.load();
        let lane = routing.lane_of(payment.tenant);
        if !lane.breaker.admits() {
            return Err(NotPosted::ShardUnavailable);
        }
        let queue = lane.queue(self.poisoners.is_solo(payment.tenant, now));
        let (reply, receiver) = oneshot::channel();
        self.metrics.payments_active.inc();
        match queue.push(Job {
            payment,
            guard,
            reply,
            queued_at: now,
            deadline,
            sent_unknown: false,
            moves: 0,
        }) {
            Ok(()) => Ok(receiver),
            Err((_, refused)) => {
                self.metrics.payments_active.dec();
                Err(match refused {
                    Refused::Full => NotPosted::QueueFull,
                    Refused::Closed => NotPosted::ShuttingDown,
                })
            }
        }
    }

    /// Posts one payment and waits for the answer, at most until `deadline`.
    pub async fn post(&self, payment: NewPayment, deadline: Instant) -> Answer {
        let receiver = self.submit(payment, deadline)?;
        Self::wait(receiver, deadline).await
    }

    pub async fn wait(receiver: oneshot::Receiver<Answer>, deadline: Instant) -> Answer {
        match tokio::time::timeout_at(deadline.into(), receiver).await {
            Ok(Ok(answer)) => answer,
            // The slot has gone without an answer (aborted at the end of draining), or it still tries.
            Ok(Err(_)) | Err(_) => Err(NotPosted::OutcomeUnknown),
        }
    }

    pub fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    pub fn lane_of(&self, tenant: TenantId) -> Arc<Lane> {
        self.routing.load().lane_of(tenant).clone()
    }

    /// Reads the map again and again until `stopped`.
    pub async fn follow_map(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let pause = Duration::from_millis(self.config.map_poll_ms.max(50));
        while !*stopped.borrow() {
            tokio::select! {
                _ = tokio::time::sleep(pause) => {}
                _ = stopped.changed() => return,
            }
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "keeping the last shard map");
            }
        }
    }

    /// Installs a map that was read after this call began. Callers that come together share one reading.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<(), RefreshError> {
        let asked_at = Instant::now();
        let mut reader = self.map_reader.lock().await;
        if reader.read_at.is_some_and(|at| at > asked_at) {
            return Ok(());
        }
        let link = match reader.link.take().filter(|link| !link.client.is_closed()) {
            Some(link) => link,
            None => connect::open(&self.settings).await?,
        };
        let started = Instant::now();
        let patience = Duration::from_millis(self.config.database_connect_timeout_ms);
        match tokio::time::timeout(patience, map::read(&link)).await?? {
            Some(map) => self.install(map, true),
            None => self.install(map::without_map(self.config.lanes_without_map), false),
        }
        *reader = MapReader { link: Some(link), read_at: Some(started) };
        Ok(())
    }

    /// Makes lanes for shards that have none. Lanes of shards that own nothing any more stay, idle.
    fn install(self: &Arc<Self>, map: ShardMap, sharded: bool) {
        let current = self.routing.load_full();
        if current.is_for(&map, sharded) || (sharded && current.sharded && map.epoch() < current.map.epoch())
        {
            return;
        }
        let mut lanes = current.lanes.clone();
        for shard in map.shards() {
            lanes.entry(shard).or_insert_with(|| {
                let lane = Arc::new(Lane::new(shard, &self.config, &self.metrics));
                self.staff(&lane);
                lane
            });
        }
        tracing::info!(epoch = map.epoch(), sharded, lanes = lanes.len(), "shard map");
        self.routing.store(Arc::new(Routing::new(map, sharded, lanes)));
    }

    fn staff(self: &Arc<Self>, lane: &Arc<Lane>) {
        let mut slots = self.slots.lock();
        for _ in 0..self.config.lane_in_flight.max(1) {
            slots.spawn(Slot::new(self.clone(), lane.clone(), false).run());
        }
        slots.spawn(Slot::new(self.clone(), lane.clone(), true).run());
    }

    /// Refuses new payments, posts what waits, and answers whatever is left at `until`.
    pub async fn drain(&self, until: Instant) {
        let lanes: Vec<_> = self.routing.load().lanes.values().cloned().collect();
        for lane in &lanes {
            lane.queue.close();
            lane.solo.close();
        }
        let mut slots = std::mem::take(&mut *self.slots.lock());
        let posted = async { while slots.join_next().await.is_some() {} };
        if tokio::time::timeout_at(until.into(), posted).await.is_err() {
            tracing::warn!("payments were still being posted at the end of draining");
            slots.shutdown().await;
        }
        for job in lanes.iter().flat_map(|lane| lane.drain()) {
            self.metrics.payments_active.dec();
            job.answer(Err(NotPosted::ShuttingDown));
        }
    }

    /// Sets the gauges that only a scrape needs.
    pub fn observe(&self) {
        for (shard, lane) in &self.routing.load().lanes {
            let label = shard.0.to_string();
            let waiting = lane.queue.len() + lane.solo.len();
            self.metrics.batch_queue_transfers.with_label_values(&[&label]).set(waiting as i64);
            self.metrics.breaker_open.with_label_values(&[&label]).set(i64::from(lane.breaker.is_open()));
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error(transparent)]
    Open(#[from] connect::OpenError),
    #[error("reading the shard map took too long")]
    TimedOut(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Map(#[from] MapError),
}
