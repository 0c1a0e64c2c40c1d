//! What buckets and tenants have on the shards that own them: rows, bytes, and rows written a second.
//!
//! A shard is asked for all of it by reading the sharded tables, so it is the same for every schema. What was written is seen by
//! `xmin`, the transaction that made a row's newest version: one that had not begun at the first look has written it since. So
//! a row that was written several times meanwhile counts once, and what was deleted, or only read, does not count. Nothing is
//! made on the servers for it. The option that lost is to decode the WAL: it sees every change, but only with a publication,
//! which keeps UPDATEs of tables without replica identity from working.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use shard_config::ShardId;

use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::mover::catalog::StoredMap;
use crate::mover::scope::{KeyHash, hash_sql, ident};
use crate::mover::tables::{Table, sharded};

/// Seconds for which writes are counted, unless they are named.
pub const SECONDS: u32 = 10;
/// Reading a shard's tables takes what it takes.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Number of buckets.
    Buckets,
    /// Rows of the sharded tables. Reads them.
    Rows,
    /// Bytes of their rows. Reads them.
    Bytes,
    /// Rows of theirs that are written in a second, counted for --seconds. Reads them.
    Load,
}

/// A shard's primary, and since when its writes count.
pub struct Shard {
    pub id: ShardId,
    pub db: Db,
    tables: Vec<Table>,
    /// The first transaction that had not begun then.
    since: Option<(String, Instant)>,
}

/// One transaction in which the shard is read.
pub struct Look {
    /// SQL of a row `t`: it was written since.
    pub written: String,
    pub elapsed: Option<Duration>,
}

/// Sessions on all shards that own something; with `seconds` so long after they took note of what was written before.
pub async fn shards(
    servers: &Servers,
    map: &StoredMap,
    name: &str,
    seconds: Option<u32>,
) -> anyhow::Result<Vec<Shard>> {
    // A shard that owns nothing but a tenant is one of them.
    let mut owners = map.map.shards();
    owners.extend(map.overrides.iter().map(|(_, shard)| *shard));
    owners.sort_unstable();
    owners.dedup();
    let found = try_join_all(owners.into_iter().map(|id| async move {
        let mut db = servers.primary(id, name).await?;
        db.patience = PATIENCE;
        let tables = sharded(&db, &servers.config).await?;
        let since = match seconds {
            None => None,
            Some(_) => {
                let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text";
                Some((db.value(sql, &[]).await?, Instant::now()))
            }
        };
        anyhow::Ok(Shard { id, db, tables, since })
    }));
    let found = found.await?;
    if let Some(seconds) = seconds {
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    }
    Ok(found)
}

impl Shard {
    async fn look(&self) -> anyhow::Result<Look> {
        self.db.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        // Of an age only differences mean something, and within a transaction (GetStableLatestTransactionId in varsup.c) none
        // grows. The oldest rows, which were frozen, have any age. This is the first statement: its snapshot is that of all.
        let Some((xid, begun)) = &self.since else {
            return Ok(Look { written: "false".to_owned(), elapsed: None });
        };
        let age: i32 = self.db.value("SELECT age($1::text::xid)", &[xid]).await?;
        let written = format!("age(t.xmin) BETWEEN 1 AND {age}");
        Ok(Look { written, elapsed: Some(begun.elapsed()) })
    }

    /// Rows of one statement over all tables, and for how long writes had been counted. `part` is asked of each table.
    pub async fn ask(
        &self,
        part: impl Fn(&Table, &Look) -> String,
        whole: impl Fn(&str) -> String,
    ) -> anyhow::Result<(Vec<tokio_postgres::Row>, Option<Duration>)> {
        let look = self.look().await?;
        let parts: Vec<_> = self.tables.iter().map(|table| part(table, &look)).collect();
        let rows = match parts.is_empty() {
            true => Vec::new(),
            false => self.db.rows(&whole(&parts.join(" UNION ALL ")), &[]).await?,
        };
        self.db.run("COMMIT").await?;
        Ok((rows, look.elapsed))
    }
}

/// What each bucket has on the shard that owns it; of `Load` thousandths of a row a second.
pub async fn of_buckets(
    servers: &Servers,
    map: &StoredMap,
    by: Measure,
    seconds: u32,
) -> anyhow::Result<Vec<u64>> {
    let mask = map.map.buckets() - 1;
    let shards = shards(servers, map, "shardctl plan", (by == Measure::Load).then_some(seconds)).await?;
    let part = |table: &Table, look: &Look| {
        let hash = hash_sql(&ident(&table.key_column), table.key_type);
        let (figure, which) = match by {
            Measure::Bytes => ("sum(pg_column_size(t.*))", "true"),
            Measure::Buckets | Measure::Rows => ("count(*)", "true"),
            Measure::Load => ("count(*)", look.written.as_str()),
        };
        format!(
            "SELECT {hash} & {mask} AS bucket, {figure} AS figure FROM {} t WHERE {which} GROUP BY 1",
            table.sql()
        )
    };
    let whole = |parts: &str| format!("SELECT bucket::int4, sum(figure)::int8 FROM ({parts}) a GROUP BY 1");
    let asked = try_join_all(shards.iter().map(|shard| shard.ask(part, whole))).await?;
    let mut load = vec![0; usize::from(map.map.buckets())];
    for (shard, (rows, elapsed)) in shards.iter().zip(asked) {
        for row in rows {
            let bucket = usize::try_from(row.try_get::<_, i32>(0)?)?;
            // Copies that a move makes, and what only waits to be deleted, are not the shard's own.
            if map.map.owners().get(bucket) == Some(&shard.id) {
                let figure = u64::try_from(row.try_get::<_, i64>(1)?)?;
                load[bucket] += elapsed.map_or(figure, |elapsed| thousandths(figure, elapsed));
            }
        }
    }
    if by == Measure::Load && load.iter().all(|figure| *figure == 0) {
        let text = format!("no row was written within {seconds} s: there is no load to plan by (--seconds)");
        return Err(Failure::refused(text).into());
    }
    Ok(load)
}

fn thousandths(rows: u64, elapsed: Duration) -> u64 {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    rows.saturating_mul(1_000_000) / ms
}

/// As `thousandths` has it, for people.
pub fn per_second(thousandths: u64) -> String {
    format!("{}.{}", thousandths / 1000, thousandths % 1000 / 100)
}

/// Rows a second for people and programs.
pub fn rate(rows: i64, elapsed: Duration) -> f64 {
    let exact = rows as f64 / elapsed.as_secs_f64().max(0.001);
    (exact * 10.0).round() / 10.0
}

/// What the shards have, by what their buckets have.
pub fn of_shards(load: &[u64], owners: &[ShardId]) -> BTreeMap<ShardId, u64> {
    let mut sums = BTreeMap::new();
    for (figure, owner) in load.iter().zip(owners) {
        *sums.entry(*owner).or_default() += figure;
    }
    sums
}

/// One tenant on the shard that owns it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    pub name: String,
    pub shard: ShardId,
    pub rows: i64,
    pub bytes: i64,
    /// Rows written a second, if that was counted.
    pub rate: Option<f64>,
}

/// The `top` tenants of each shard, by rate or else by bytes.
pub async fn of_tenants(
    shards: &[Shard],
    map: &StoredMap,
    by_rate: bool,
    top: usize,
) -> anyhow::Result<Vec<Tenant>> {
    let part = |table: &Table, look: &Look| {
        let key = ident(&table.key_column);
        format!(
            "SELECT {key}::text AS tenant, {} AS hash, count(*) AS n, sum(pg_column_size(t.*)) AS bytes, \
             count(*) FILTER (WHERE {}) AS written FROM {} t GROUP BY 1, 2",
            hash_sql(&key, table.key_type),
            look.written,
            table.sql()
        )
    };
    let order = if by_rate { "5 DESC, 4 DESC" } else { "4 DESC" };
    // Twice as many: rows that only wait to be deleted from a shard are not its own.
    let whole = |parts: &str| {
        format!(
            "SELECT tenant, hash, sum(n)::int8, sum(bytes)::int8, sum(written)::int8 FROM ({parts}) a \
             WHERE tenant IS NOT NULL GROUP BY 1, 2 ORDER BY {order} LIMIT {}",
            top.saturating_mul(2)
        )
    };
    let asked = try_join_all(shards.iter().map(|shard| shard.ask(part, whole))).await?;
    let mut all = Vec::new();
    for (shard, (rows, elapsed)) in shards.iter().zip(asked) {
        for row in rows {
            if map.owner_of_hash(KeyHash::new(row.try_get(1)?)) == shard.id {
                let written: i64 = row.try_get(4)?;
                all.push(Tenant {
                    name: row.try_get(0)?,
                    shard: shard.id,
                    rows: row.try_get(2)?,
                    bytes: row.try_get(3)?,
                    rate: elapsed.map(|elapsed| rate(written, elapsed)),
                });
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_the_second() {
        assert_eq!(thousandths(30, Duration::from_secs(10)), 3000);
        assert_eq!(thousandths(1, Duration::from_millis(10_500)), 95, "what is rare is not lost");
        assert_eq!(thousandths(5, Duration::ZERO), 5_000_000);
        assert_eq!(per_second(1_234_567), "1234.5");
        assert_eq!(rate(25, Duration::from_secs(10)), 2.5);
    }

    #[test]
    fn shards_have_what_their_buckets_have() {
        let owners = [1, 1, 2, 3].map(ShardId);
        assert_eq!(
            of_shards(&[5, 6, 0, 7], &owners),
            BTreeMap::from([(ShardId(1), 11), (ShardId(2), 0), (ShardId(3), 7)])
        );
    }
}
