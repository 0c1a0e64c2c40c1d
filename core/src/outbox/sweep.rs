//! Removes what a shard need not keep any longer: published rows after their retention (until then events can be compared
//! with the ledger and sent again should a broker lose them, H36), expired idempotency keys, use of rules whose window has
//! ended, and old notes of what consumers have done. Makes the partitions of the months to come, so that a system that just
//! runs does not run out of them.
//!
//! It depends on nothing but the shard: rows expire whether Kafka is there or not. A round goes on until little is left, so
//! that it removes rows as fast as they come, and rests after every statement as long as that took, so that at most half
//! of one backend is spent on it. Every instance sweeps every shard; rounds begin at random times, and one that meets
//! another's finds its rows gone and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

use super::OutboxConfig;
use super::owned;
use super::shards::{self, StatementError, in_time};
use crate::metrics::Metrics;

/// Rows of one statement: its locks and its WAL stay small beside the payments'.
const CHUNK: i64 = 1_000;
/// The same where every statement reads the table from its start.
const CHUNK_OF_SCAN: i64 = 10_000;
/// Rest between two statements, at least and at most.
const REST_LEAST: Duration = Duration::from_millis(2);
const REST_MOST: Duration = Duration::from_secs(1);
/// The first round of an instance: an instance that is restarted again and again must sweep too.
const FIRST_ROUND: Duration = Duration::from_secs(5);
/// Longest statement: a table without an index on time is read whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// `{owned}` stands for the condition that a row is this shard's: copies of rows that are on their way here are left alone.
///
/// Rows that occurred and were published long ago. The BRIN index on `occurred_at` makes the look-up cheap: rows are
/// stored nearly in that order.
const PUBLISHED: &str = "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox o \
    WHERE occurred_at < clock_timestamp() - $1 * interval '1 second' \
    AND published_at < clock_timestamp() - $1 * interval '1 second'{owned} LIMIT $2))";

/// Keys that expired `$1` seconds ago, by BRIN on `expires_at`.
const KEYS: &str = "DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency_keys o \
    WHERE expires_at < clock_timestamp() - $1 * interval '1 second'{owned} LIMIT $2)) \
    AND expires_at < clock_timestamp() - $1 * interval '1 second'";

/// Use of windows that ended `$1` seconds ago, and of rules that are gone. A row is locked before it is judged: a payment
/// may be starting the next window in it.
const USAGE: &str = "DELETE FROM rule_usage WHERE ctid = ANY (ARRAY(SELECT o.ctid FROM rule_usage o \
    LEFT JOIN fraud_rules f ON f.tenant_id = o.tenant_id AND f.rule_id = o.rule_id \
    WHERE o.window_start < clock_timestamp() - ($1::float8 + CASE WHEN f.rule_id IS NULL THEN 0 \
        WHEN f.rule_type = 'daily_amount' THEN 86400 ELSE coalesce(f.window_seconds, 86400) END) * interval '1 second'{owned} \
    LIMIT $2 FOR UPDATE OF o SKIP LOCKED))";

const INBOX: &str = "DELETE FROM inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM inbox o \
    WHERE processed_at < clock_timestamp() - $1 * interval '1 second'{owned} LIMIT $2))";

/// Partitions are made for this many months after the current one, as `migrate` does: half a year to notice that they are
/// not made any more.
const MONTHS_AHEAD: i32 = 6;

/// A replica's clock, a paused backend: nothing is removed at the very moment at which it expires.
const GRACE: Duration = Duration::from_secs(60);

/// The running sweepers; [`Sweeper::stop`] ends them.
pub struct Sweeper {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Sweeper {
    /// Starts a sweeper for every shard that the database shows, now and later. The database need not be there yet.
    pub fn start(config: OutboxConfig, metrics: Arc<Metrics>) -> Sweeper {
        let (stop, stopped) = watch::channel(false);
        let config = Arc::new(config);
        let task = tokio::spawn(async move {
            let start = |shard, stopped| sweep(config.clone(), shard, metrics.clone(), stopped);
            shards::follow(&config, stopped, start).await;
        });
        Sweeper { stop, task }
    }

    /// Ends the rounds where they are: what they have not removed, the next ones will.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}

/// One shard, until stopped.
async fn sweep(
    config: Arc<OutboxConfig>,
    shard: Option<u16>,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut tidied = Instant::now();
    let mut parted: Option<Instant> = None;
    let mut pause = config.sweep_every.min(FIRST_ROUND);
    loop {
        pause = pause.mul_f64(rand::rng().random_range(0.75..1.25));
        if tokio::time::timeout(pause, stopped.wait_for(|s| *s)).await.is_ok() {
            return;
        }
        pause = config.sweep_every;
        if parted.is_none_or(|at| at.elapsed() >= config.tidy_every) {
            let made = tokio::select! {
                made = partitions(&config, shard) => made,
                _ = stopped.wait_for(|s| *s) => return,
            };
            parted = Some(Instant::now());
            match made {
                Ok(days) => {
                    let shard = shard.unwrap_or(1).to_string();
                    metrics.partition_days_ahead.with_label_values(&[&shard]).set(days);
                }
                Err(error) => {
                    metrics.outbox_errors.with_label_values(&["partitions"]).inc();
                    tracing::warn!(shard, error, "partitions for the months to come were not made");
                }
            }
        }
        let tidy = tidied.elapsed() >= config.tidy_every;
        let swept = tokio::select! {
            swept = round(&config, shard, tidy, &metrics) => swept,
            _ = stopped.wait_for(|s| *s) => return,
        };
        match swept {
            Ok(()) if tidy => tidied = Instant::now(),
            Ok(()) => {}
            Err(error) => {
                metrics.outbox_errors.with_label_values(&["sweep"]).inc();
                tracing::info!(shard, error, "a round of the sweeper ended early");
            }
        }
    }
}

/// Makes the partitions that payments will need, and says for how many days there are any.
async fn partitions(config: &OutboxConfig, shard: Option<u16>) -> Result<f64, String> {
    let link = shards::open(config, shard, "sweeper").await.map_err(|e| e.to_string())?;
    let client = &link.client;
    in_time(PATIENCE, client.query("SELECT make_partitions($1)", &[&MONTHS_AHEAD]))
        .await
        .map_err(|e| e.to_string())?;
    let sql = "SELECT (extract(epoch FROM partitions_until() - now()) / 86400)::float8";
    let row = in_time(PATIENCE, client.query_one(sql, &[])).await.map_err(|e| e.to_string())?;
    row.try_get(0).map_err(|e| e.to_string())
}

/// Removes what has expired until little is left.
async fn round(
    config: &OutboxConfig,
    shard: Option<u16>,
    tidy: bool,
    metrics: &Metrics,
) -> Result<(), String> {
    let say = |error: StatementError| error.to_string();
    let link = shards::open(config, shard, "sweeper").await.map_err(|e| e.to_string())?;
    let client = &link.client;
    // Rows of a lost commit are removed again; a flush and a wait for the standby for every chunk would be its cost
    // otherwise. BRIN is used by bitmap scans only, and the planner prefers reading a table just made.
    set(client, &["synchronous_commit", "jit", "enable_seqscan", "enable_indexscan"], "off")
        .await
        .map_err(say)?;
    let mut expired = [
        Table::new(client, PUBLISHED, config.retention, CHUNK).await.map_err(say)?,
        Table::new(client, KEYS, GRACE, CHUNK).await.map_err(say)?,
    ];
    exhaust(client, &mut expired, |n, deleted| {
        if n == 0 {
            metrics.outbox_deleted.inc_by(deleted);
        }
    })
    .await
    .map_err(say)?;
    if tidy {
        set(client, &["enable_seqscan", "enable_indexscan"], "on").await.map_err(say)?;
        // The tables without an index on time; reading them whole is for a longer beat. An event may come again as long
        // as Kafka keeps it, which is no longer than the outbox does.
        let mut read_whole = [
            Table::new(client, USAGE, GRACE, CHUNK_OF_SCAN).await.map_err(say)?,
            Table::new(client, INBOX, config.retention * 2, CHUNK_OF_SCAN).await.map_err(say)?,
        ];
        exhaust(client, &mut read_whole, |_, _| {}).await.map_err(say)?;
    }
    Ok(())
}

async fn set(client: &Client, settings: &[&str], value: &str) -> Result<(), StatementError> {
    for setting in settings {
        in_time(PATIENCE, client.batch_execute(&format!("SET {setting} = {value}"))).await?;
    }
    Ok(())
}

/// One table's part of a round.
struct Table {
    delete: Statement,
    age_s: f64,
    chunk: i64,
    done: bool,
}

impl Table {
    async fn new(client: &Client, delete: &str, age: Duration, chunk: i64) -> Result<Table, StatementError> {
        let owned = in_time(PATIENCE, owned::condition(client, "o")).await?;
        let delete = in_time(PATIENCE, client.prepare(&delete.replace("{owned}", &owned))).await?;
        Ok(Table { delete, age_s: age.as_secs_f64(), chunk, done: false })
    }
}

/// A chunk of each table in turn, until each has had one that was not full; so none waits for a backlog of another.
async fn exhaust(
    client: &Client,
    tables: &mut [Table],
    mut deleted: impl FnMut(usize, u64),
) -> Result<(), StatementError> {
    while tables.iter().any(|table| !table.done) {
        for (n, table) in tables.iter_mut().enumerate().filter(|(_, table)| !table.done) {
            let began = Instant::now();
            let rows =
                in_time(PATIENCE, client.execute(&table.delete, &[&table.age_s, &table.chunk])).await?;
            deleted(n, rows);
            table.done = rows < table.chunk as u64;
            tokio::time::sleep(began.elapsed().clamp(REST_LEAST, REST_MOST)).await;
        }
    }
    Ok(())
}
