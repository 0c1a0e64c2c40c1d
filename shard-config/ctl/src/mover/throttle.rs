//! The operator's limits of a copy, which may be changed while it runs, and what holds it for a while: a standby of either shard
//! that is behind, or commits on either shard that take long. The reason for waiting is always shown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::ShardId;
use tokio::task::JoinSet;

use super::job::Job;
use super::preflight::human;
use crate::direct::{Db, Servers};

/// Tables copied at the same time unless the operator says otherwise: each keeps a processor of either server busy, which the
/// application wants, too.
const PARALLEL: usize = 1;
/// Each takes a connection on either shard.
pub const PARALLEL_MOST: usize = 8;

/// Between two commits that are only made to see how long they take.
const EVERY: Duration = Duration::from_millis(500);
/// One of them waits as payments do, for a standby that is away, too; the copy is held meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);
/// With a number of its own, and so a commit that waits. Nobody reads it: subscriptions ask for no messages.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'shardctl', '')";

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Throttle {
    /// Bytes a second, of all tables together.
    pub bytes_per_second: Option<i64>,
    /// Nothing is copied while a standby of either shard is so far behind: the copy writes WAL on the target.
    pub standby_lag_bytes: Option<i64>,
    /// Nothing is copied while a small commit on either shard takes longer, milliseconds.
    pub latency_ms: Option<i64>,
    pub parallel: Option<usize>,
}

/// One shard of the copy.
pub(super) type Side<'a> = (ShardId, &'a Db);

impl Throttle {
    pub fn of(job: &Job) -> Self {
        let entry = |name: &str| job.detail.get("throttle").and_then(|t| t.get(name)).and_then(Value::as_i64);
        Self {
            bytes_per_second: entry("bytes_per_second"),
            standby_lag_bytes: entry("standby_lag_bytes"),
            latency_ms: entry("latency_ms"),
            parallel: entry("parallel").and_then(|n| usize::try_from(n).ok()),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "bytes_per_second": self.bytes_per_second, "standby_lag_bytes": self.standby_lag_bytes,
            "latency_ms": self.latency_ms, "parallel": self.parallel,
        })
    }

    pub fn parallel(&self) -> usize {
        self.parallel.unwrap_or(PARALLEL).clamp(1, PARALLEL_MOST)
    }

    /// Why nothing may be copied just now; `None` when it may. `name` is that of the move's sessions.
    pub(super) async fn holds(
        &self,
        servers: &Servers,
        sides: [Side<'_>; 2],
        commits: &mut Commits,
        name: &str,
    ) -> anyhow::Result<Option<String>> {
        // Looked at first, so that a figure is not older than it must be.
        let slow = match self.latency_ms {
            Some(most) => commits.slow(servers, sides, name, most).await,
            None => {
                *commits = Commits::default();
                None
            }
        };
        if let Some(most) = self.standby_lag_bytes {
            let lags = futures_util::future::try_join_all(sides.map(|(_, db)| standby_lag(db))).await?;
            for ((shard, _), lag) in sides.into_iter().zip(lags) {
                if lag > most {
                    let (lag, most) = (human(lag), human(most));
                    return Ok(Some(format!("a standby of shard {shard} is {lag} behind, limit {most}")));
                }
            }
        }
        Ok(slow)
    }
}

/// Bytes of WAL that the standby which is furthest behind has not replayed.
async fn standby_lag(db: &Db) -> anyhow::Result<i64> {
    let sql = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::int8 \
               FROM pg_stat_replication r WHERE NOT EXISTS (SELECT FROM pg_replication_slots s \
               WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";
    db.value(sql, &[]).await
}

/// How long commits take, of the source and of the target.
#[derive(Default)]
pub(super) struct Commits([Gauge; 2]);

impl Commits {
    async fn slow(
        &mut self,
        servers: &Servers,
        sides: [Side<'_>; 2],
        name: &str,
        most: i64,
    ) -> Option<String> {
        let [one, two] = &mut self.0;
        let [source, target] = sides;
        let seen = futures_util::join!(one.look(servers, source.1, name), two.look(servers, target.1, name));
        for ((shard, _), took) in [(source, seen.0), (target, seen.1)] {
            match took.map(|took| i64::try_from(took.as_millis()).unwrap_or(i64::MAX)) {
                Ok(ms) if ms > most => {
                    return Some(format!("a commit on shard {shard} takes {ms} ms, limit {most} ms"));
                }
                Ok(_) => {}
                // What is not known is not within the limit. A server that has gone is for the copy itself to find out.
                Err(why) => return Some(format!("commits of shard {shard} cannot be measured: {why}")),
            }
        }
        None
    }
}

/// Measures one server, beside the copy: a commit that waits must not keep it from being told to wait.
#[derive(Default)]
struct Gauge {
    session: Option<Arc<Db>>,
    begun: Option<Instant>,
    under_way: JoinSet<anyhow::Result<Duration>>,
    last: Duration,
    /// Why the last one could not be made.
    trouble: Option<String>,
}

impl Gauge {
    /// How long the last commit took, or the one that is under way, if that has taken longer by now.
    async fn look(&mut self, servers: &Servers, db: &Db, name: &str) -> Result<Duration, String> {
        while let Some(ended) = self.under_way.try_join_next() {
            match ended.context("a measurement").and_then(|ended| ended) {
                Ok(took) => (self.last, self.trouble) = (took, None),
                Err(error) => (self.session, self.trouble) = (None, Some(format!("{error:#}"))),
            }
        }
        if self.under_way.is_empty() && self.begun.is_none_or(|begun| begun.elapsed() >= EVERY) {
            self.begun = Some(Instant::now());
            if let Err(error) = self.begin(servers, db, name).await {
                self.trouble = Some(format!("{error:#}"));
            }
        }
        let under_way = self.begun.filter(|_| !self.under_way.is_empty());
        let waiting = under_way.map_or(Duration::ZERO, |begun| begun.elapsed());
        match &self.trouble {
            Some(why) => Err(why.clone()),
            None => Ok(self.last.max(waiting)),
        }
    }

    async fn begin(&mut self, servers: &Servers, db: &Db, name: &str) -> anyhow::Result<()> {
        let session = match &self.session {
            Some(session) => session.clone(),
            None => self.session.insert(Arc::new(open(servers, db, name).await?)).clone(),
        };
        let begun = Instant::now();
        self.begun = Some(begun);
        self.under_way.spawn(async move {
            session.run(COMMIT).await?;
            Ok(begun.elapsed())
        });
        Ok(())
    }
}

/// A session whose commits wait for what is the default there, as payments do, and not for what the mover wants. Its first
/// statement, which is slower than others, waits for nothing.
async fn open(servers: &Servers, db: &Db, name: &str) -> anyhow::Result<Db> {
    let mut session = servers.beside(db, name).await?;
    session.run(&format!("RESET synchronous_commit; {}", COMMIT.replace("true", "false"))).await?;
    session.patience = PATIENCE;
    Ok(session)
}
