//! The operator's limits of a copy, which may be changed while it runs, and what holds it for a while. The reason for waiting is
//! always shown.

use std::time::Instant;

use serde_json::{Value, json};

use super::job::Job;
use super::preflight::human;
use crate::direct::Db;

/// Tables copied at the same time unless the operator says otherwise: each keeps a processor of either server busy, which the
/// application wants, too.
const PARALLEL: usize = 1;
/// Each takes a connection on either shard.
pub const PARALLEL_MOST: usize = 8;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Throttle {
    /// Bytes a second, of all tables together.
    pub bytes_per_second: Option<i64>,
    /// Nothing is copied while a standby of the source is so far behind.
    pub standby_lag_bytes: Option<i64>,
    /// Nothing is copied while `SELECT 1` on the source takes longer, milliseconds.
    pub latency_ms: Option<i64>,
    pub parallel: Option<usize>,
}

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

    /// Why nothing may be copied just now; `None` when it may.
    pub async fn holds(&self, source: &Db) -> anyhow::Result<Option<String>> {
        if let Some(most) = self.standby_lag_bytes {
            let sql = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::int8 \
                       FROM pg_stat_replication r WHERE NOT EXISTS (SELECT FROM pg_replication_slots s \
                       WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";
            let lag: i64 = source.value(sql, &[]).await?;
            if lag > most {
                return Ok(Some(format!(
                    "a standby of the source is {} behind, limit {}",
                    human(lag),
                    human(most)
                )));
            }
        }
        if let Some(most) = self.latency_ms {
            let begun = Instant::now();
            source.rows("SELECT 1", &[]).await?;
            let took = i64::try_from(begun.elapsed().as_millis())?;
            if took > most {
                return Ok(Some(format!("the source took {took} ms to answer, limit {most} ms")));
            }
        }
        Ok(None)
    }
}
