//! Settings. One table entry a setting: clap reads flags and environment from it, and prints the help.

use std::net::SocketAddr;

use clap::Parser;

/// Settings of one instance. Every one has a flag and an environment variable.
#[derive(Parser, Clone, Debug)]
#[command(name = "payment-core", version, about = "HTTP service that moves money")]
pub struct Config {
    /// Address the HTTP API listens on.
    #[arg(long, env = "CORE_LISTEN", default_value = "127.0.0.1:17071")]
    pub listen: SocketAddr,
    /// The database: the shard proxy, or one plain PostgreSQL.
    #[arg(long, env = "DATABASE_URL", default_value = "postgresql://app:app@127.0.0.1:17051/payments")]
    pub database_url: String,
    /// Connections for everything but posting (R4: 50 for a primary).
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value_t = 50)]
    pub database_pool_size: usize,
    /// How long a request waits for a pooled connection, and for a connection to open (R4).
    #[arg(long, env = "DATABASE_CONNECT_TIMEOUT_MS", default_value_t = 3_000)]
    pub database_connect_timeout_ms: u64,
    /// A pooled connection unused for this long is closed (R4).
    #[arg(long, env = "DATABASE_IDLE_TIMEOUT_S", default_value_t = 300)]
    pub database_idle_timeout_s: u64,
    /// A pooled connection older than this is closed (R4).
    #[arg(long, env = "DATABASE_MAX_LIFETIME_S", default_value_t = 600)]
    pub database_max_lifetime_s: u64,
    /// Redis, for the second level of the caches. Empty: in-process caches only.
    #[arg(long, env = "REDIS_URL", default_value = "")]
    pub redis_url: String,
    /// Connections to Redis (R11).
    #[arg(long, env = "REDIS_POOL_SIZE", default_value_t = 100)]
    pub redis_pool_size: u32,
    /// The servers of REDIS_URL, comma-separated, form a Redis Cluster (R11).
    #[arg(long, env = "REDIS_CLUSTER", default_value_t = false, action = clap::ArgAction::Set)]
    pub redis_cluster: bool,
    /// How events are produced: durable (acks=all, idempotent) or fast-unsafe (R13's settings, which can lose events).
    #[arg(long, env = "KAFKA_PROFILE", default_value = "durable")]
    pub kafka_profile: crate::outbox::publisher::Profile,
    /// Kafka bootstrap servers, comma-separated. Empty: no relay and no consumers in this instance.
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    pub kafka_brokers: String,
    /// Bearer token of the admin endpoints. Empty: they answer 403.
    #[arg(long, env = "CORE_ADMIN_TOKEN", default_value = "", hide_env_values = true)]
    pub admin_token: String,
    /// Name of this instance in logs, metrics and leases.
    #[arg(long, env = "CORE_INSTANCE", default_value = "core1")]
    pub instance: String,
    /// Threads of the runtime. 0: one a core.
    #[arg(long, env = "CORE_WORKERS", default_value_t = 0)]
    pub workers: usize,
    /// Batches a lane keeps in flight. More than one overlaps the commit of a batch with the next one's arithmetic, and
    /// makes batches smaller.
    #[arg(long, env = "CORE_LANE_IN_FLIGHT", default_value_t = 1)]
    pub lane_in_flight: usize,
    /// Least time between the beginnings of two batches of a lane, after one of several payments; twice that while few
    /// wait. A posting statement costs as much as several payments: without this, a lane that is never idle spends the
    /// machine on batches of two.
    #[arg(long, env = "CORE_LANE_INTERVAL_MS", default_value_t = crate::limits::LANE_INTERVAL_MS)]
    pub lane_interval_ms: u64,
    /// Payments in one batch, at most.
    #[arg(long, env = "CORE_BATCH_MAX", default_value_t = crate::limits::BATCH_MAX)]
    pub batch_max: usize,
    /// Payments that may wait in one lane; the next one is answered 429.
    #[arg(long, env = "CORE_LANE_QUEUE", default_value_t = crate::limits::LANE_QUEUE)]
    pub lane_queue: usize,
    /// Lanes used when the database does not answer SHOW shard.map (a plain PostgreSQL).
    #[arg(long, env = "CORE_LANES_WITHOUT_MAP", default_value_t = 4)]
    pub lanes_without_map: u16,
    /// How long a payment request waits for its outcome before the answer is 503 outcome_unknown.
    #[arg(long, env = "CORE_REQUEST_TIMEOUT_MS", default_value_t = 10_000)]
    pub request_timeout_ms: u64,
    /// How long one posting statement may take before its connection is given up and it is posted again.
    #[arg(long, env = "CORE_POST_TIMEOUT_MS", default_value_t = 5_000)]
    pub post_timeout_ms: u64,
    /// How long a lane keeps retrying one batch.
    #[arg(long, env = "CORE_RETRY_BUDGET_MS", default_value_t = 9_000)]
    pub retry_budget_ms: u64,
    /// Seconds between two readings of the shard map.
    #[arg(long, env = "CORE_MAP_POLL_MS", default_value_t = 2_000)]
    pub map_poll_ms: u64,
    /// Client connections, at most; the next one waits in the kernel's backlog.
    #[arg(long, env = "CORE_MAX_CONNECTIONS", default_value_t = crate::limits::CONNECTIONS_MAX)]
    pub max_connections: usize,
    /// On SIGTERM: how long requests and lanes may take to drain.
    #[arg(long, env = "CORE_DRAIN_TIMEOUT_MS", default_value_t = 15_000)]
    pub drain_timeout_ms: u64,
}
