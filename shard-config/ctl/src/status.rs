//! `status`: one line a shard.

use serde_json::{Value, json};
use shard_config::ShardId;
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, Proxy, ask, cell};
use crate::output::{Report, table};

/// What a shard's primary says of itself. Roles without pg_monitor see that replicas are there, not how far.
const ASK: &str = "SELECT current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    pg_size_pretty(pg_database_size(current_database())) AS size,
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections,
    (SELECT count(*) FROM pg_stat_replication) AS replicas,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS synchronous,
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared";

pub async fn status(proxy: &Proxy) -> anyhow::Result<Report> {
    let map = proxy.map().await?;
    let mut rows = Vec::new();
    let mut shards = Vec::new();
    let mut well = true;
    for shard in map.shards() {
        let buckets = map.count(shard).to_string();
        match of_shard(proxy, shard).await {
            Ok(answer) => {
                let value = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
                let up = if answer["in_recovery"] == "t" { "in recovery" } else { "up" };
                well &= up == "up";
                let mut row = vec![shard.to_string(), up.into(), buckets];
                row.extend(["version", "size", "connections", "replicas", "prepared"].map(value));
                rows.push(row);
                shards.push(
                    json!({"shard": shard.0, "up": true, "buckets": map.count(shard), "server": answer}),
                );
            }
            Err(error) => {
                well = false;
                rows.push(vec![shard.to_string(), format!("DOWN: {error:#}"), buckets]);
                let error = format!("{error:#}");
                shards.push(
                    json!({"shard": shard.0, "up": false, "buckets": map.count(shard), "error": error}),
                );
            }
        }
    }
    let header = ["shard", "state", "buckets", "version", "size", "connections", "replicas", "prepared"];
    Ok(Report {
        json: json!({"epoch": map.epoch(), "shards": shards}),
        text: format!("epoch {}\n{}", map.epoch(), table(&header, &rows)),
        well,
    })
}

async fn of_shard(proxy: &Proxy, shard: ShardId) -> anyhow::Result<Value> {
    of_primary(&proxy.shard(shard).await?).await
}

pub async fn of_primary(client: &Client) -> anyhow::Result<Value> {
    let rows = ask(client, ASK, ANSWER_TIMEOUT).await?;
    let row = rows.first().ok_or_else(|| anyhow::anyhow!("no row"))?;
    let names = ["version", "in_recovery", "size", "connections", "replicas", "synchronous", "prepared"];
    Ok(names.iter().map(|name| ((*name).to_owned(), Value::from(cell(row, name)))).collect())
}
