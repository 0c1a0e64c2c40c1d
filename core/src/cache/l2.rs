//! The second level: Redis, shared by all instances.
//!
//! A key holds one of three things, told apart by the first byte:
//!
//! - `V<version>:<json>` - a value;
//! - `L<token>` - a *lease*: a reader found nothing and went to the database. Only the holder of that token may fill,
//!   and an eviction takes the lease away. So a reader that was paused between its read and its fill finds its lease
//!   gone, and cannot put back what a writer has replaced meanwhile (H33). A lease costs nothing for keys that nobody
//!   reads, which matters for balances: every payment changes two. (Nishtala et al., Scaling Memcache at Facebook.)
//! - `T<version>` - a *tombstone* left by an eviction that knows the new row version: only that version or a newer one
//!   may be filled. It also refuses a reader that took its lease after the change but read a lagging replica.
//!
//! Both live three times as long as the longest load. Losing either (Redis restarted) refuses a fill, never allows one.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bb8_redis::bb8;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisError, RedisFuture, RedisResult};

use super::config::{BREAKER_FAILURES, CacheConfig};

const READ: &str = "local v = redis.call('GET', KEYS[1]) \
    if v then return v end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false";
const FILL: &str = "local v = redis.call('GET', KEYS[1]) \
    if not v then return 0 end \
    local kind = string.sub(v, 1, 1) \
    if kind == 'L' then if v ~= ARGV[1] then return 0 end \
    else local have, new = tonumber(string.match(v, '^%a(%d+)')), tonumber(ARGV[2]) \
      if not have or have > new or (kind == 'V' and have == new) then return 0 end end \
    redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) return 1";
const BURY: &str = "local v = redis.call('GET', KEYS[1]) \
    if v then local have = tonumber(string.match(v, '^[VT](%d+)')) \
      if have and have >= tonumber(ARGV[1]) then return 0 end end \
    redis.call('SET', KEYS[1], 'T' .. ARGV[1], 'PX', ARGV[2]) return 1";

/// What a read found.
#[derive(Debug, PartialEq)]
pub(super) enum Read {
    Value(Vec<u8>),
    /// Nothing usable; the reader may offer what it loads, and [`L2::fill`] decides.
    MayFill,
    /// Redis did not answer, or is not asked at present.
    Unavailable,
}

/// How an eviction is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bury {
    Remove(String),
    Tombstone(String, i64),
}

/// One connection, to a single server or to a cluster.
pub(super) enum Conn {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, redis::Value> {
        match self {
            Conn::Single(c) => c.req_packed_command(cmd),
            Conn::Cluster(c) => c.req_packed_command(cmd),
        }
    }
    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<redis::Value>> {
        match self {
            Conn::Single(c) => c.req_packed_commands(pipeline, offset, count),
            Conn::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }
    fn get_db(&self) -> i64 {
        0
    }
}

enum Client {
    Single(redis::Client),
    Cluster(ClusterClient),
}

/// A pooled connection with the mark that bb8-redis's own manager lacks: without it a connection whose server went away
/// would be handed out for ever, or every checkout would cost a PING.
pub(super) struct Pooled {
    conn: Conn,
    broken: bool,
}

struct Manager(Client);

impl bb8::ManageConnection for Manager {
    type Connection = Pooled;
    type Error = RedisError;
    async fn connect(&self) -> Result<Pooled, RedisError> {
        let conn = match &self.0 {
            Client::Single(c) => Conn::Single(c.get_multiplexed_async_connection().await?),
            Client::Cluster(c) => Conn::Cluster(c.get_async_connection().await?),
        };
        Ok(Pooled { conn, broken: false })
    }
    async fn is_valid(&self, pooled: &mut Pooled) -> Result<(), RedisError> {
        redis::cmd("PING").query_async(&mut pooled.conn).await
    }
    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.broken
    }
}

pub(super) struct L2 {
    pool: bb8::Pool<Manager>,
    /// For the subscription, which needs a connection of its own.
    nodes: Vec<redis::Client>,
    cluster: bool,
    timeout: Duration,
    read_budget: Duration,
    ttl_ms: u64,
    lease_ms: u64,
    failures: AtomicU32,
    open: AtomicBool,
}

/// Why an operation gave nothing.
#[derive(Debug)]
pub(super) struct Failed(pub(super) String);

enum Job<'a> {
    One(&'a Cmd),
    Bury(&'a [Bury], &'a Cmd),
}

fn parse<T: redis::FromRedisValue>(value: redis::Value) -> Result<T, Failed> {
    redis::from_redis_value(value).map_err(|e| Failed(e.to_string()))
}

impl L2 {
    /// Connects to nothing yet: a core starts without Redis.
    pub(super) fn new(config: &CacheConfig) -> RedisResult<L2> {
        let urls: Vec<&str> = config.redis_url.split(',').map(str::trim).filter(|u| !u.is_empty()).collect();
        let nodes = urls.iter().map(|u| redis::Client::open(*u)).collect::<RedisResult<Vec<_>>>()?;
        let (client, max) = if config.redis_cluster {
            let client = ClusterClient::builder(urls)
                .retries(3)
                .connection_timeout(config.timeout)
                .response_timeout(config.timeout)
                .build()?;
            // A cluster connection holds one to every node and multiplexes, so a tenth of them carries as much.
            (Client::Cluster(client), config.pool_max.div_ceil(10))
        } else {
            let first =
                nodes.first().cloned().ok_or((redis::ErrorKind::InvalidClientConfig, "no Redis address"))?;
            (Client::Single(first), config.pool_max)
        };
        let pool = bb8::Pool::builder()
            .max_size(max.max(1))
            .min_idle(config.pool_min_idle.min(max))
            .connection_timeout(config.timeout)
            .test_on_check_out(false)
            .retry_connection(false)
            .build_unchecked(Manager(client));
        Ok(L2 {
            pool,
            nodes,
            cluster: config.redis_cluster,
            timeout: config.timeout,
            read_budget: config.read_budget,
            ttl_ms: config.ttl.as_millis() as u64,
            lease_ms: config.lease().as_millis() as u64,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(true),
        })
    }

    /// True once the prober has reached Redis and no row of failures followed.
    pub(super) fn is_up(&self) -> bool {
        !self.open.load(Ordering::Relaxed)
    }

    pub(super) fn set_up(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.open.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_down(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Runs one exchange within `budget` and keeps count of failures. A connection that failed or timed out is not used
    /// again: an answer could still be on its way.
    async fn run(&self, budget: Duration, job: Job<'_>) -> Result<redis::Value, Failed> {
        let attempt = async {
            let mut pooled = self.pool.get().await.map_err(|e| Failed(format!("no connection: {e}")))?;
            pooled.broken = true;
            let done = match job {
                Job::One(cmd) => cmd.query_async(&mut pooled.conn).await,
                Job::Bury(graves, publish) => self.bury_on(&mut pooled.conn, graves, publish).await,
            };
            pooled.broken =
                matches!(&done, Err(e) if e.is_io_error() || e.is_unrecoverable_error() || e.is_timeout());
            done.map_err(|e| Failed(e.to_string()))
        };
        let done =
            tokio::time::timeout(budget, attempt).await.unwrap_or_else(|_| Err(Failed("timed out".into())));
        match &done {
            Ok(_) => self.failures.store(0, Ordering::Relaxed),
            Err(_) => {
                if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= BREAKER_FAILURES {
                    self.set_down();
                }
            }
        }
        done
    }

    /// The value under `key`, or a lease on it for `token`.
    pub(super) async fn read(&self, key: &str, token: &str) -> Result<Read, Failed> {
        if !self.is_up() {
            return Ok(Read::Unavailable);
        }
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(READ).arg(1).arg(key).arg(token).arg(self.lease_ms);
        let found: Option<Vec<u8>> = parse(self.run(self.read_budget, Job::One(&cmd)).await?)?;
        Ok(match found {
            Some(bytes) if bytes.first() == Some(&b'V') => {
                let start = bytes.iter().position(|b| *b == b':').map_or(bytes.len(), |at| at + 1);
                Read::Value(bytes[start..].to_vec())
            }
            _ => Read::MayFill,
        })
    }

    /// Offers what was loaded; true if it was taken.
    pub(super) async fn fill(
        &self,
        key: &str,
        token: &str,
        version: i64,
        json: &[u8],
    ) -> Result<bool, Failed> {
        if !self.is_up() {
            return Err(Failed("given up for now".into()));
        }
        let mut value = format!("V{version}:").into_bytes();
        value.extend_from_slice(json);
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(FILL).arg(1).arg(key).arg(token).arg(version).arg(value).arg(self.ttl_ms);
        parse(self.run(self.read_budget, Job::One(&cmd)).await?)
    }

    /// Takes values and leases away, then tells the other instances.
    pub(super) async fn bury(&self, graves: &[Bury], channel: &str, message: &[u8]) -> Result<(), Failed> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel).arg(message);
        self.run(self.timeout, Job::Bury(graves, &publish)).await.map(|_| ())
    }

    fn tombstone(&self, key: &str, version: i64) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(BURY).arg(1).arg(key).arg(version).arg(self.lease_ms);
        cmd
    }

    async fn bury_on(&self, conn: &mut Conn, graves: &[Bury], publish: &Cmd) -> RedisResult<redis::Value> {
        match conn {
            Conn::Single(single) => {
                let mut pipeline = redis::pipe();
                let mut unlink = redis::cmd("UNLINK");
                let mut removed = 0;
                for grave in graves {
                    match grave {
                        Bury::Remove(key) => {
                            unlink.arg(key);
                            removed += 1;
                        }
                        Bury::Tombstone(key, version) => {
                            pipeline.add_command(self.tombstone(key, *version)).ignore();
                        }
                    }
                }
                if removed > 0 {
                    pipeline.add_command(unlink).ignore();
                }
                pipeline.add_command(publish.clone()).ignore();
                pipeline.query_async(single).await
            }
            Conn::Cluster(cluster) => {
                // Keys live in different slots, so each goes by itself, some at a time.
                for some in graves.chunks(64) {
                    let sent = some.iter().map(|grave| {
                        let mut conn = cluster.clone();
                        let cmd = match grave {
                            Bury::Remove(key) => redis::cmd("UNLINK").arg(key).to_owned(),
                            Bury::Tombstone(key, version) => self.tombstone(key, *version),
                        };
                        async move { cmd.query_async::<redis::Value>(&mut conn).await }
                    });
                    futures_util::future::try_join_all(sent.collect::<Vec<_>>()).await?;
                }
                publish.query_async(cluster).await
            }
        }
    }

    pub(super) async fn command<T: redis::FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Failed> {
        parse(self.run(self.timeout, Job::One(cmd)).await?)
    }

    /// A connection for the subscription, to any server that answers (a cluster carries messages to all its nodes).
    pub(super) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSub, Failed> {
        let mut last = Failed("no Redis address".into());
        for node in self.nodes.iter().take(if self.cluster { usize::MAX } else { 1 }) {
            let attempt = async {
                let mut pubsub = node.get_async_pubsub().await?;
                pubsub.subscribe(channel).await?;
                Ok::<_, RedisError>(pubsub)
            };
            match tokio::time::timeout(self.timeout, attempt).await {
                Ok(Ok(pubsub)) => return Ok(pubsub),
                Ok(Err(e)) => last = Failed(e.to_string()),
                Err(_) => last = Failed("timed out".into()),
            }
        }
        Err(last)
    }
}
