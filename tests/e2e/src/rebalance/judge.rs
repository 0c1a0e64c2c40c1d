//! What must hold when a move is over: every row where the map says, once, and nothing of the mover's on any server.

use super::field::{CATALOG, map};
use crate::stack::Stack;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_postgres::Client;

const KEY_HASH: &str = "uuid_hash_extended(tenant_id, 8816678312871386365)";
const BUCKETS: i64 = 4096;
/// Workers and sessions end a moment after they were told to.
const SETTLE: Duration = Duration::from_secs(5);

const TABLES: &str = "
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = 'public'
   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)
 ORDER BY 1";

/// Everything that a move makes on a server, by name.
const LEFT: &str = r"
SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE slot_type = 'logical'
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
UNION ALL SELECT 'publication ' || pubname FROM pg_publication
UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
UNION ALL SELECT 'trigger ' || tgname || ' of ' || tgrelid::regclass FROM pg_trigger WHERE tgname LIKE 'zzz\_shard\_move\_%'
UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
UNION ALL SELECT 'session ' || application_name || ': ' || pid FROM pg_stat_activity
           WHERE application_name LIKE 'shardctl%' AND backend_type = 'client backend'
UNION ALL SELECT 'advisory lock ' || classid || ',' || objid FROM pg_locks
           WHERE locktype = 'advisory' AND classid::int8 IN (1936224870, 1936224871)";

/// Rows of these tables belong to a move under way; the mover makes them on the shards that it has to do with.
const ROWS: [&str; 4] = ["fence", "guarded", "mark", "motion"];

/// What is wrong, in words.
pub async fn judge(stack: &Stack) -> Result<Vec<String>> {
    let mut wrong = placement(stack).await?;
    let begun = Instant::now();
    loop {
        let left = left(stack).await?;
        if left.is_empty() {
            return Ok(wrong);
        }
        if begun.elapsed() > SETTLE {
            wrong.extend(left);
            return Ok(wrong);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Rows on a shard that the map does not name. A row that is on two shards is on one of those.
async fn placement(stack: &Stack) -> Result<Vec<String>> {
    let map = map(&stack.shard(CATALOG).await?).await?;
    let mut wrong = Vec::new();
    for shard in 1..=stack.shards() {
        let owned: Vec<String> = map
            .iter()
            .filter(|(_, _, owner)| *owner == shard)
            .map(|(from, last, _)| format!("({KEY_HASH} & {}) BETWEEN {from} AND {last}", BUCKETS - 1))
            .collect();
        let owned = if owned.is_empty() { "false".to_owned() } else { owned.join(" OR ") };
        let client = stack.shard(shard).await?;
        for table in client.query(TABLES, &[]).await?.iter().map(|row| row.get::<_, String>(0)) {
            let sql = format!("SELECT count(*) FROM {table} WHERE NOT ({owned})");
            let rows: i64 = client.query_one(&sql, &[]).await.with_context(|| table.clone())?.try_get(0)?;
            if rows > 0 {
                wrong.push(format!("{rows} rows of {table} are on shard {shard}, which does not own them"));
            }
        }
    }
    Ok(wrong)
}

async fn left(stack: &Stack) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for shard in 1..=stack.shards() {
        let client = stack.shard(shard).await?;
        let mut found: Vec<String> = client.query(LEFT, &[]).await?.iter().map(|row| row.get(0)).collect();
        for table in ROWS {
            found.extend(rows(&client, table).await?);
        }
        left.extend(found.into_iter().map(|what| format!("left on shard {shard}: {what}")));
    }
    Ok(left)
}

async fn rows(client: &Client, table: &str) -> Result<Option<String>> {
    let name = format!("shard_catalog.{table}");
    if !client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let count: i64 = client.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await?.try_get(0)?;
    Ok((count > 0).then(|| format!("{count} rows of {name}")))
}
