//! Every bound of the control plane in one place.

use std::time::Duration;

/// Addresses of one shard: a primary and its replicas.
pub const SERVERS_PER_SHARD_MAX: usize = 8;
/// Shards that a reload may add before the next restart; their places are made when the proxy starts.
pub const SHARDS_ADDED_MAX: usize = 64;
/// Positions of the primary kept while a replica catches up; at 100 ms a sample, 12 s before thinning starts.
pub const FRESHNESS_SAMPLES_MAX: usize = 128;
/// Writes of unknown outcome watched per shard.
pub const ABANDONED_WRITES_MAX: usize = 4096;

/// One connection attempt of a prober, and one question to a server. Longer = the server counts as down.
pub const PROBE_CONNECT: Duration = Duration::from_millis(1000);
pub const PROBE_QUERY: Duration = Duration::from_millis(2000);
/// Pause after a refused connection: doubled from the first to the second.
pub const PROBE_BACKOFF_FIRST: Duration = Duration::from_millis(50);
pub const PROBE_BACKOFF_LAST: Duration = Duration::from_millis(500);

/// How often each shard's schema version is compared.
pub const SCHEMA_POLL: Duration = Duration::from_millis(500);
/// A difference between shards that is gone after this long was a DDL in the middle of its commits.
pub const DRIFT_SETTLE: Duration = Duration::from_millis(300);
/// How long a starting proxy waits for every shard's primary before it serves the others.
pub const PRIMARY_EXPECTED: Duration = Duration::from_secs(3);
/// How often a shard that did not answer is asked again while a session waits to see its own DDL.
pub const REFRESH_TRIES: u8 = 3;
/// One question to the servers of a shard that is to be added.
pub const JOIN_STEP: Duration = Duration::from_secs(5);
/// Reading one shard's catalog.
pub const CATALOG_READ: Duration = Duration::from_secs(20);
/// Relations and functions of one database that are read; more is refused, not truncated.
pub const CATALOG_RELATIONS_MAX: usize = 100_000;

/// How often the catalog's version is asked for beside being told, and the workers are looked at while something is to be
/// acknowledged.
pub const FOLLOW_POLL: Duration = Duration::from_millis(150);
pub const FOLLOW_LOOK: Duration = Duration::from_millis(4);
/// One question to the catalog.
pub const FOLLOW_STEP: Duration = Duration::from_millis(1000);
/// How often rows of proxies that are gone are removed.
pub const FOLLOW_TIDY: Duration = Duration::from_secs(30);

/// Requests to the control thread that may wait (catalog refreshes after DDL).
pub const CONTROL_QUEUE: usize = 1024;
/// Pooled control connections to one server, beside its prober.
pub const CONTROL_POOL: usize = 4;

/// How often prepared transactions are looked for, and how old one is before another proxy finishes it.
/// Together less than the 5 s that the keys of a dead proxy's transaction may be locked.
pub const RECOVERY_POLL: Duration = Duration::from_millis(500);
pub const RECOVERY_AGE: Duration = Duration::from_secs(3);
/// Waiting for a lock while finishing somebody's transaction.
pub const RECOVERY_LOCK: Duration = Duration::from_millis(1000);

/// A coordinator's backend that is in the way for so long is ended.
pub const RECOVERY_TERMINATE: Duration = Duration::from_secs(30);
/// One step of it on one shard; a commit may wait for a synchronous standby.
pub const RECOVERY_STEP: Duration = Duration::from_secs(5);
/// Transactions looked at in one round, and the time between two clean-ups.
pub const RECOVERY_BATCH: i64 = 1000;
pub const RECOVERY_FORGET: Duration = Duration::from_secs(30);

/// A wait for a lock is looked at when it is this old: PostgreSQL's own `deadlock_timeout`, which goes first.
pub const DEADLOCK_AGE: Duration = Duration::from_secs(1);
/// How often; two looks in a row must agree.
pub const DEADLOCK_POLL: Duration = Duration::from_millis(500);
pub const DEADLOCK_STEP: Duration = Duration::from_secs(2);
/// Waits of one shard that are looked at.
pub const DEADLOCK_WAITS: usize = 1000;

/// The HTTP door: connections at once, and how long a request's head may take.
pub const HTTP_CONNECTIONS: usize = 64;
pub const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

// Four changes a second at least are followed, and a try that fails counts as one in time (`motion::lease`).
const _: () = assert!(FOLLOW_POLL.as_millis() <= 200);
const _: () = assert!(
    2 * FOLLOW_STEP.as_millis() + FOLLOW_POLL.as_millis() < crate::motion::lease::SUSPENDED.as_millis()
);
const _: () = assert!(SERVERS_PER_SHARD_MAX <= u16::MAX as usize);
const _: () = assert!(PROBE_BACKOFF_FIRST.as_millis() < PROBE_BACKOFF_LAST.as_millis());
// An orphan is older than any answer its own coordinator may still be waiting for from a healthy server.
const _: () = assert!(RECOVERY_AGE.as_millis() > PROBE_QUERY.as_millis());
