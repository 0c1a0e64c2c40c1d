//! What a move does not refuse, and its operator should know before it copies.

use super::job::Job;
use super::preflight::human;
use crate::direct::Db;

/// WAL files that a target should have ready, unless little is copied.
const WAL_READY: i64 = 128 << 20;

pub(super) async fn all(job: &Job, source: &Db, target: &Db) -> anyhow::Result<Vec<String>> {
    let mut warnings = super::durable::notes(job, source, target).await?;
    for (shard, db) in [(job.source, source), (job.target, target)] {
        // A slot that nobody reads keeps WAL until the disk is full.
        if db.holds("SELECT current_setting('max_slot_wal_keep_size') = '-1'", &[]).await? {
            warnings.push(format!(
                "shard {shard} has no max_slot_wal_keep_size: while the move waits for you, WAL is kept without a limit"
            ));
        }
    }
    // Without files to write over a server fills a new one with zeros for each 16 MiB, and its commits wait for that.
    let sql = "SELECT count(*) * pg_size_bytes(current_setting('wal_segment_size')) FROM pg_ls_waldir() \
               WHERE name > pg_walfile_name(pg_current_wal_lsn()) AND name ~ '^[0-9A-F]{24}$'";
    let ready: i64 = target.value(sql, &[]).await?;
    if ready < WAL_READY.min(job.number("source_bytes").unwrap_or(0)) {
        warnings.push(format!(
            "shard {} has {} of WAL files ready, and makes more while rows are copied, for which commits wait: raise min_wal_size there \
             and have a CHECKPOINT at a quiet moment (on a new server, after it has written as much WAL)",
            job.target,
            human(ready)
        ));
    }
    Ok(warnings)
}
