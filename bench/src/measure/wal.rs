//! WAL written and WAL syncs of each shard's primary.
use crate::stack::Shard;
use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

#[derive(Clone, Copy, Debug, Default)]
pub struct WalSample {
    pub bytes: u64,
    pub syncs: u64,
    /// Commits wait for a standby.
    pub standby: bool,
}

/// Opens one connection; its driver task ends when the client is dropped.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .with_context(|| format!("cannot connect to {}", crate::stack::authority(url)))?;
    tokio::spawn(async move {
        // The error also reaches the statement that was running.
        let _ = connection.await;
    });
    Ok(client)
}

async fn one(client: &Client) -> Result<WalSample> {
    let row = client
        .query_one(
            "SELECT (pg_current_wal_lsn() - '0/0')::bigint, (SELECT wal_sync FROM pg_stat_wal), \
             current_setting('synchronous_standby_names') <> '' \
             AND current_setting('synchronous_commit') NOT IN ('off', 'local')",
            &[],
        )
        .await?;
    Ok(WalSample {
        bytes: row.get::<_, i64>(0) as u64,
        syncs: row.get::<_, i64>(1) as u64,
        standby: row.get(2),
    })
}

/// `None` for a shard that cannot be asked now (it may be down on purpose).
pub async fn sample(shards: &[Shard]) -> Vec<Option<WalSample>> {
    let mut samples = Vec::with_capacity(shards.len());
    for shard in shards {
        let taken = async { one(&connect(&shard.primary).await?).await };
        let taken = tokio::time::timeout(std::time::Duration::from_secs(3), taken).await;
        samples.push(taken.ok().and_then(Result::ok));
    }
    samples
}

/// Sums over the shards that could be asked both times.
pub fn growth(before: &[Option<WalSample>], after: &[Option<WalSample>]) -> Option<WalSample> {
    let mut sum = None::<WalSample>;
    for (before, after) in before.iter().zip(after) {
        let (Some(before), Some(after)) = (before, after) else { continue };
        let sum = sum.get_or_insert(WalSample { standby: true, ..WalSample::default() });
        sum.standby &= after.standby;
        sum.bytes += after.bytes.saturating_sub(before.bytes);
        // pg_stat_wal starts again after a crash.
        sum.syncs += if after.syncs >= before.syncs { after.syncs - before.syncs } else { after.syncs };
    }
    sum
}
