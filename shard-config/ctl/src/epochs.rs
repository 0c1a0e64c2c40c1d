//! The map's epochs: which there were, and what changed between two of them.

use serde_json::json;
use shard_config::{KeyHash, ShardId};

use crate::direct::Servers;
use crate::mover::catalog;
use crate::moves::Ended;
use crate::output::{Report, table};

/// Which buckets and tenants changed owner between two epochs.
pub async fn diff(servers: &Servers, from: i64, to: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let (before, after) = (catalog::map_at(&control, from).await?, catalog::map_at(&control, to).await?);
    let mut changes: Vec<(String, ShardId, ShardId)> = Vec::new();
    let mut run: Option<(u16, u16, ShardId, ShardId)> = None;
    for (bucket, (old, new)) in before.map.owners().iter().zip(after.map.owners()).enumerate() {
        let bucket = bucket as u16;
        match &mut run {
            Some((_, last, a, b)) if *a == *old && *b == *new && *last + 1 == bucket => *last = bucket,
            _ if old != new => {
                changes.extend(run.take().map(|(a, b, old, new)| (format!("buckets {a}-{b}"), old, new)));
                run = Some((bucket, bucket, *old, *new));
            }
            _ => {}
        }
    }
    changes.extend(run.map(|(a, b, old, new)| (format!("buckets {a}-{b}"), old, new)));
    let mut hashes: Vec<KeyHash> =
        before.overrides.iter().chain(&after.overrides).map(|(hash, _)| *hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    for hash in hashes {
        let (old, new) = (before.owner_of_hash(hash), after.owner_of_hash(hash));
        if old != new {
            changes.push((format!("tenant hash {hash}"), old, new));
        }
    }
    let rows: Vec<_> =
        changes.iter().map(|(what, old, new)| vec![what.clone(), old.to_string(), new.to_string()]).collect();
    let json: Vec<_> =
        changes.iter().map(|(what, old, new)| json!({ "what": what, "from": old.0, "to": new.0 })).collect();
    Ok((Report { json: json!(json), text: table(&["what", "from shard", "to shard"], &rows), well: true }, 0))
}

/// The map's epochs, newest first.
pub async fn history(servers: &Servers) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let sql = "SELECT epoch, created_at, coalesce(reason, ''), id::text FROM shard_catalog.map ORDER BY epoch DESC LIMIT 100";
    let mut rows = Vec::new();
    let mut list = Vec::new();
    for row in control.rows(sql, &[]).await? {
        let at: chrono::DateTime<chrono::Utc> = row.try_get(1)?;
        let (epoch, reason, id): (i64, String, String) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
        list.push(json!({ "epoch": epoch, "at": at, "reason": reason, "id": id }));
        rows.push(vec![epoch.to_string(), at.format("%F %T").to_string(), reason]);
    }
    Ok((Report { json: json!(list), text: table(&["epoch", "since", "why"], &rows), well: true }, 0))
}
