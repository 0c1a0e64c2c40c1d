//! Wires the rooms together, starts them in order, and stops them in the reverse one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::batch::lanes::{Lanes, Share};
use crate::batch::signal::CommitSignal;
use crate::cache::{CacheConfig, Caches};
use crate::config::Config;
use crate::domain::ids::TenantId;
use crate::events::notify::LogSink;
use crate::events::{Events, EventsConfig};
use crate::http::auth::KeyCache;
use crate::http::{change, routes, serve};
use crate::ledger::connect;
use crate::ledger::reads::{Database, DbError, Lease};
use crate::limits;
use crate::metrics::Metrics;
use crate::outbox::sweep::Sweeper;
use crate::outbox::{Outbox, OutboxConfig};

/// What every handler and worker shares.
pub struct App {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    pub caches: Arc<Caches>,
    pub keys: KeyCache,
    pub db: Database,
    pub lanes: Arc<Lanes>,
    pub committed: Arc<CommitSignal>,
    pub draining: AtomicBool,
    /// One permit for each change of a cached row under way.
    pub changes: Arc<Semaphore>,
}

/// A setting that cannot be used. Servers that are not there yet are no reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("two metrics have one name: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("REDIS_URL: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("DATABASE_URL: {0}")]
    Database(#[from] tokio_postgres::Error),
}

impl App {
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let metrics = Arc::new(Metrics::new(&config.instance)?);
        let cache_config = CacheConfig {
            redis_url: config.redis_url.clone(),
            redis_cluster: config.redis_cluster,
            instance: config.instance.clone(),
            pool_max: config.redis_pool_size,
            ..CacheConfig::default()
        };
        let caches = Arc::new(Caches::start(cache_config, metrics.clone())?);
        let db = Database::new(&config)?;
        let committed = Arc::new(CommitSignal::default());
        let lanes = Lanes::start(config.clone(), metrics.clone(), committed.clone(), caches.clone()).await?;
        Ok(Arc::new(Self {
            config,
            metrics,
            caches,
            keys: KeyCache::default(),
            db,
            lanes,
            committed,
            draining: AtomicBool::new(false),
            changes: Arc::new(Semaphore::new(limits::CHANGES_MAX as usize)),
        }))
    }

    /// A connection for reading the tenant's rows; its shard's share of the pool bounds how many.
    pub async fn reads(&self, tenant: TenantId) -> Result<Lease, DbError> {
        let pass = self.lanes.lane_of(tenant).pass(Share::Reads).await?;
        Ok(self.db.reads().await?.with(pass))
    }

    /// The same to the tenant's primary.
    pub async fn primary(&self, tenant: TenantId) -> Result<Lease, DbError> {
        let pass = self.lanes.lane_of(tenant).pass(Share::Primary).await?;
        Ok(self.db.primary().await?.with(pass))
    }

    /// Serves until `stopped`, then drains: requests first, then the lanes they filled, then what follows the lanes.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stopped: watch::Receiver<bool>) {
        let drain = Duration::from_millis(self.config.drain_timeout_ms);
        let sweeper = self.start_sweeper();
        let outbox = self.start_outbox();
        let events = self.start_events();
        let (stop_workers, workers_stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        workers.spawn(self.lanes.clone().follow_map(workers_stopped.clone()));
        workers.spawn(self.db.clone().sweep(workers_stopped.clone()));
        workers.spawn(self.clone().warm(workers_stopped));

        let router = routes::router(self.clone());
        let leaving = {
            let (app, mut stopped) = (self.clone(), stopped.clone());
            async move {
                let _ = stopped.wait_for(|stop| *stop).await;
                app.draining.store(true, Ordering::Relaxed);
            }
        };
        workers.spawn(leaving);
        serve::run(self.clone(), listener, router, stopped, drain).await;
        change::finish(&self).await;
        // Commands join the lanes too, so they end before the lanes; the relay ends after them and publishes the last.
        if let Some(events) = events {
            events.stop().await;
        }
        self.lanes.drain(Instant::now() + drain).await;
        if let Some(outbox) = outbox {
            outbox.stop().await;
        }
        if let Some(sweeper) = sweeper {
            sweeper.stop().await;
        }
        stop_workers.send_replace(true);
        while workers.join_next().await.is_some() {}
        self.caches.stop().await;
        self.db.close();
    }

    /// Fills the caches (R12), shard by shard. A cold cache is slower, not wrong, so whatever fails is left.
    async fn warm(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let routing = self.lanes.routing();
        let targets: Vec<Option<u16>> = if routing.sharded {
            routing.map.shards().iter().map(|s| Some(s.0)).collect()
        } else {
            vec![None]
        };
        let all = async {
            for target in targets {
                match self.warm_from(target).await {
                    Ok(entries) => tracing::info!(shard = target, entries, "caches warmed"),
                    Err(error) => tracing::warn!(shard = target, %error, "caches stay cold"),
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(Duration::from_secs(30), all) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }

    async fn warm_from(&self, target: Option<u16>) -> Result<usize, connect::OpenError> {
        let mut settings = connect::settings(&self.config, "warming")?;
        if let Some(shard) = target {
            settings.options(format!("-c shard.target={shard} -c shard.read=primary"));
        }
        let link = connect::open(&settings).await?;
        Ok(self.caches.warm(&link.client).await?)
    }

    fn start_outbox(&self) -> Option<Outbox> {
        let mut config = OutboxConfig {
            lanes_without_map: self.config.lanes_without_map,
            ..OutboxConfig::new(self.kafka_database()?, &self.config.kafka_brokers, &self.config.instance)
        };
        config.publisher.profile = self.config.kafka_profile;
        Outbox::start(config, self.committed.clone(), self.metrics.clone())
            .inspect_err(|error| tracing::error!(%error, "the relay does not start"))
            .ok()
    }

    /// Also without Kafka: keys and use of rules expire all the same.
    fn start_sweeper(&self) -> Option<Sweeper> {
        let database = connect::settings(&self.config, "sweeper")
            .inspect_err(|error| tracing::error!(%error, "the sweeper does not start"))
            .ok()?;
        let config = OutboxConfig::new(database, &self.config.kafka_brokers, &self.config.instance);
        Some(Sweeper::start(config, self.metrics.clone()))
    }

    fn start_events(&self) -> Option<Events> {
        let config = EventsConfig::new(self.kafka_database()?, &self.config.kafka_brokers);
        Some(Events::start(config, self.lanes.clone(), Arc::new(LogSink), self.metrics.clone()))
    }

    /// The database as the Kafka side uses it; `None`: no Kafka.
    fn kafka_database(&self) -> Option<tokio_postgres::Config> {
        if self.config.kafka_brokers.is_empty() {
            return None;
        }
        connect::settings(&self.config, "events").ok()
    }
}
