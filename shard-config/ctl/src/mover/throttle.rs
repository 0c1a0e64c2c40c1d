//! When the next table may begin to be copied. The reason for waiting is always shown.
//!
//! PostgreSQL copies a table in one go: a copy that has begun is not slowed. So the unit is a table, and the limits are
//! looked at between two of them; they may be changed while the move runs.

use std::time::Instant;

use serde_json::{Value, json};

use super::job::Job;
use super::preflight::human;
use super::tables::Table;
use crate::direct::Db;

/// Large tables copied at the same time unless the operator says otherwise: each keeps a processor of either server busy, which
/// the application wants, too.
/// PostgreSQL's own limit (max_sync_workers_per_subscription) holds besides.
const PARALLEL: usize = 1;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Throttle {
    /// Bytes a second, on average since the copy began.
    pub bytes_per_second: Option<i64>,
    /// No table begins while a standby of the source is so far behind.
    pub standby_lag_bytes: Option<i64>,
    /// No table begins while `SELECT 1` on the source takes longer, milliseconds.
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

    /// Why the next table must wait; `None` when it need not.
    pub async fn holds(
        &self,
        job: &Job,
        source: &Db,
        large: usize,
        table: &Table,
        begun_bytes: i64,
    ) -> anyhow::Result<Option<String>> {
        let parallel = self.parallel.unwrap_or(PARALLEL).max(1);
        if large >= parallel && !table.is_small() {
            return Ok(Some(format!("{large} large tables are being copied, {parallel} may be")));
        }
        let seconds = (chrono::Utc::now() - job.created_at).num_seconds().max(1);
        if let Some(reason) = self.too_fast(seconds, begun_bytes) {
            return Ok(Some(reason));
        }
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

    fn too_fast(&self, seconds: i64, begun_bytes: i64) -> Option<String> {
        let most = self.bytes_per_second?;
        (begun_bytes / seconds > most)
            .then(|| format!("{} begun in {seconds} s, limit {}/s", human(begun_bytes), human(most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_bytes_is_an_average() {
        let throttle = Throttle { bytes_per_second: Some(1 << 20), ..Throttle::default() };
        assert_eq!(throttle.too_fast(10, 10 << 20), None);
        let reason = throttle.too_fast(10, 30 << 20).unwrap();
        assert_eq!(reason, "30.0 MiB begun in 10 s, limit 1.0 MiB/s");
        assert_eq!(Throttle::default().too_fast(1, i64::MAX), None);
    }
}
