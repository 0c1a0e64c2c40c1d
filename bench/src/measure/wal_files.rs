//! WAL files that are there before they are needed.
//!
//! A server that has none to write over fills each new one with zeros first, and so does its standby, while commits wait:
//! for 200 to 500 ms at every 16 MB on the machines where this was measured.
use super::wal::connect;
use crate::stack::Shard;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// A standby replays a checkpoint in seconds.
const REPLAY_PATIENCE: Duration = Duration::from_secs(60);

/// Makes `files` WAL files of 16 MB on every server, as those have that have been in service: checkpoints keep them to be
/// written over, up to the servers' `min_wal_size` at least.
pub async fn ahead(shards: &[Shard], files: u64) -> Result<()> {
    let mut making = tokio::task::JoinSet::new();
    for url in shards.iter().map(|shard| shard.primary.clone()) {
        making.spawn(async move {
            let client = connect(&url).await?;
            for _ in 0..files {
                client
                    .batch_execute(
                        "SELECT pg_logical_emit_message(false, 'ahead', ''); SELECT pg_switch_wal()",
                    )
                    .await
                    .with_context(|| crate::stack::authority(&url))?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    checkpoint(shards).await
}

/// A checkpoint of every server: from then on WAL goes into files that are there already. A standby has one of its own only
/// when it has replayed its primary's.
pub async fn checkpoint(shards: &[Shard]) -> Result<()> {
    for shard in shards {
        let primary = connect(&shard.primary).await?;
        let name = || crate::stack::authority(&shard.primary).to_string();
        primary.batch_execute("CHECKPOINT").await.with_context(name)?;
        let Some(replica) = &shard.replica else { continue };
        let at: String = primary
            .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
            .await
            .with_context(name)?
            .get(0);
        let standby = connect(replica).await?;
        replayed(&standby, &at).await.with_context(|| crate::stack::authority(replica))?;
        standby.batch_execute("CHECKPOINT").await.with_context(|| crate::stack::authority(replica))?;
    }
    Ok(())
}

/// Waits until a standby has replayed WAL up to `lsn`.
async fn replayed(standby: &Client, lsn: &str) -> Result<()> {
    let until = Instant::now() + REPLAY_PATIENCE;
    loop {
        let row = standby.query_one("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", &[&lsn]).await?;
        if row.get::<_, Option<bool>>(0) == Some(true) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "it has not replayed {lsn} after {REPLAY_PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
