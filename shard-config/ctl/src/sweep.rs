//! `doctor --sweep`: rows on a shard that does not own their key. Nobody would find them (H24).
//!
//! Who owns is what the map says, with its single tenants; and while a move is under way, rows of its scope may be on both of its
//! shards.

use shard_config::{Config, KeyType, Scope, ShardId, ShardMap, TableKind};
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, Proxy, ask, cell};
use crate::direct::Servers;
use crate::doctor::Findings;
use crate::mover::job::Job;
use crate::mover::machine::Phase;
use crate::mover::scope::{ident, literal};

/// A sweep reads whole tables.
const SWEEP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);
/// Of the newest moves, those that are under way are looked at.
const MOVES: i64 = 1000;
/// A shard is read again so often when map or moves have changed meanwhile.
const LOOKS: usize = 3;

/// What says which rows may be on a shard.
struct Known {
    map: ShardMap,
    /// Those under way; `None`: nobody was asked.
    moves: Option<Vec<Job>>,
}

impl Known {
    /// The map first: a move that has changed it is under way for longer.
    async fn ask(proxy: &Proxy, servers: Option<&Servers>) -> anyhow::Result<Self> {
        let map = proxy.map().await?;
        let moves = match servers {
            None => None,
            Some(servers) => {
                let control = servers.control("shardctl doctor").await?;
                let all = Job::list(&control, MOVES).await?;
                Some(all.into_iter().filter(|job| !job.phase.is_over()).collect())
            }
        };
        Ok(Self { map, moves })
    }

    fn is_like(&self, other: &Self) -> bool {
        let phases = |known: &Self| -> Vec<_> {
            known.moves.iter().flatten().map(|job| (job.id, job.phase)).collect()
        };
        self.map == other.map && phases(self) == phases(other)
    }

    /// Whether a row is on its own shard, by its key column.
    fn owned(&self, shard: ShardId, column: &str, key_type: KeyType) -> anyhow::Result<String> {
        let ranges: Vec<_> = self
            .map
            .ranges()
            .into_iter()
            .filter(|range| range.2 == shard)
            .map(|(from, to, _)| (from, to))
            .collect();
        let pinned = |here: bool| -> Vec<_> {
            self.map
                .overrides()
                .iter()
                .filter(|(_, at)| !here || *at == shard)
                .map(|(hash, _)| *hash)
                .collect()
        };
        let sql = |scope: Scope| scope.sql(column, key_type, self.map.buckets());
        let (own, all, here) =
            (Scope::new(&ranges, &[])?, Scope::new(&[], &pinned(false))?, Scope::new(&[], &pinned(true))?);
        Ok(format!("CASE WHEN {} THEN {} ELSE {} END", sql(all), sql(here), sql(own)))
    }
}

/// Rows of one table that its shard does not own.
#[derive(Debug, PartialEq, Eq)]
struct Foreign {
    table: String,
    /// SQL for the bucket of a row.
    bucket: String,
    rows: u64,
    /// (move, its phase, rows)
    copies: Vec<(i64, &'static str, u64)>,
}

pub(crate) async fn of_shard(
    proxy: &Proxy,
    client: &Client,
    shard: ShardId,
    servers: Option<&Servers>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut known = Known::ask(proxy, servers).await?;
    let config = servers.map(|servers| &servers.config);
    for look in 1.. {
        let found = count(client, shard, &known, config).await?;
        let now = Known::ask(proxy, servers).await?;
        // A move that ended meanwhile has deleted its copies, and one that began has made some.
        if now.is_like(&known) || look == LOOKS || found.iter().all(|foreign| foreign.rows == 0) {
            report(shard, &found, known.moves.is_some(), findings);
            break;
        }
        known = now;
    }
    Ok(())
}

fn report(shard: ShardId, found: &[Foreign], moves_known: bool, findings: &mut Findings) {
    for Foreign { table, bucket, rows, copies } in found {
        for (id, phase, rows) in copies.iter().filter(|copy| copy.2 > 0) {
            findings.well(
                format!("shard {shard}: {rows} rows of {table}"),
                format!(
                    "they are copies of move {id} ({phase}), which deletes what is not needed when it ends"
                ),
            );
        }
        if *rows > 0 {
            let remedy = match moves_known {
                true => format!(
                    "they were not written through the proxy: move them to the shard of {bucket}, or to where shardctl map \
                     says that their tenant is pinned"
                ),
                false => "they are copies of a move under way, or were not written through the proxy: name its file by \
                          --config, then moves are looked at"
                    .to_owned(),
            };
            findings.problem(format!("shard {shard}: {rows} rows of {table} belong elsewhere"), remedy);
        }
    }
    findings.well(format!("shard {shard}: sweep"), format!("{} sharded tables read", found.len()));
}

/// Before it copies, what is there is not its own.
fn has_copies(job: &Job) -> bool {
    !matches!(job.phase, Phase::Preflight | Phase::Announcing | Phase::Arming)
}

async fn count(
    client: &Client,
    shard: ShardId,
    known: &Known,
    config: Option<&Config>,
) -> anyhow::Result<Vec<Foreign>> {
    let mut found = Vec::new();
    for (table, column, key_type) in tables(client, config).await? {
        let column = ident(&column);
        let buckets = known.map.buckets();
        let here: Vec<&Job> = known
            .moves
            .iter()
            .flatten()
            .filter(|job| (job.source == shard || job.target == shard) && has_copies(job))
            .collect();
        let scopes: Vec<String> = here.iter().map(|job| job.scope.sql(&column, key_type, buckets)).collect();
        let any = if scopes.is_empty() { "false".to_owned() } else { scopes.join(" OR ") };
        let mut wanted = vec![format!("count(*) FILTER (WHERE NOT ({any})) AS foreign_rows")];
        wanted.extend(
            scopes
                .iter()
                .enumerate()
                .map(|(n, scope)| format!("count(*) FILTER (WHERE {scope}) AS copies_{n}")),
        );
        let owned = known.owned(shard, &column, key_type)?;
        let sql = format!("SELECT {} FROM {table} WHERE NOT ({owned})", wanted.join(", "));
        for row in ask(client, &sql, SWEEP_TIMEOUT).await? {
            let number = |column: &str| anyhow::Ok(cell(&row, column).parse::<u64>()?);
            let mut copies = Vec::new();
            for (n, job) in here.iter().enumerate() {
                copies.push((job.id, job.phase.name(), number(&format!("copies_{n}"))?));
            }
            found.push(Foreign {
                table: table.clone(),
                bucket: key_type.sql(&column, buckets),
                rows: number("foreign_rows")?,
                copies,
            });
        }
    }
    Ok(found)
}

/// Tables that are placed by the key, with the key's column and its type. Partitions are read through their root.
async fn tables(client: &Client, config: Option<&Config>) -> anyhow::Result<Vec<(String, String, KeyType)>> {
    let default = config.map_or(("tenant_id", KeyType::Uuid), |c| (c.key.column.as_str(), c.key.key_type));
    let mut columns: Vec<String> = vec![literal(default.0)];
    columns.extend(config.iter().flat_map(|c| &c.tables).filter_map(|rule| rule.key.as_deref()).map(literal));
    let sql = format!(
        "SELECT c.oid::regclass::text AS name, n.nspname || '.' || c.relname AS full_name, a.attname AS attribute,
             a.atttypid::int8 AS type FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname IN ({}) AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_'
           AND n.nspname NOT IN ('information_schema', 'shard_catalog') ORDER BY 1",
        columns.join(", ")
    );
    let mut found = Vec::new();
    for row in ask(client, &sql, ANSWER_TIMEOUT).await? {
        let full_name = cell(&row, "full_name");
        let rule = config.and_then(|c| c.tables.iter().find(|rule| rule.name == full_name));
        let column = rule.and_then(|rule| rule.key.as_deref()).unwrap_or(default.0);
        let wanted = rule.and_then(|rule| rule.key_type).unwrap_or(default.1);
        let own = KeyType::from_oid(cell(&row, "type").parse()?).filter(|own| own.hashes_like(wanted));
        let sharded = rule.is_none_or(|rule| rule.kind == TableKind::Sharded);
        if let Some(own) = own.filter(|_| sharded && cell(&row, "attribute") == column) {
            found.push((cell(&row, "name"), column.to_owned(), own));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use shard_config::KeyHash;

    use super::*;
    use crate::mover::machine::Phase;

    const FIRST: &str = "018f3c1e-7b2a-7c3d-8e4f-5a6b7c8d9e0f"; // Bucket 529, of shard 1 of 4.
    const SECOND: &str = "550e8400-e29b-41d4-a716-446655440000"; // Bucket 3302, of shard 4.

    fn hash(tenant: &str) -> KeyHash {
        KeyType::Uuid.hash_of_text_value(tenant.as_bytes()).unwrap()
    }

    fn a_move(id: i64, scope: Scope, source: u16, target: u16) -> Job {
        Job {
            id,
            scope,
            source: ShardId(source),
            target: ShardId(target),
            phase: Phase::Window,
            planned_epoch: 1,
            detail: serde_json::json!({}),
            created_at: chrono::Utc::now(),
            updated_at: chrono::Utc::now(),
        }
    }

    /// A plain PostgreSQL stands for each shard, so every statement is run by a real server.
    #[tokio::test]
    async fn h24_a_sweep_finds_rows_that_nobody_would_find() {
        let server = testpg::TempPostgres::start(&[]);
        let (client, connection) =
            tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(&format!(
                "CREATE TABLE a (tenant_id uuid NOT NULL, PRIMARY KEY (tenant_id));
                 CREATE TABLE parted (tenant_id uuid NOT NULL) PARTITION BY HASH (tenant_id);
                 CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
                 CREATE TABLE other (tenant_id text);
                 CREATE TABLE plain (tenant_id uuid);
                 CREATE TABLE by_number (n int);
                 INSERT INTO a VALUES ('{FIRST}'), ('{SECOND}');
                 INSERT INTO parted SELECT tenant_id FROM a; INSERT INTO plain SELECT tenant_id FROM a;
                 INSERT INTO by_number SELECT generate_series(1, 100)"
            ))
            .await
            .unwrap();
        let even = ShardMap::even(&[1, 2, 3, 4].map(ShardId), 4096);
        let foreign = async |shard: u16, known: &Known, config: Option<&Config>| {
            let all = count(&client, ShardId(shard), known, config).await.unwrap();
            all.into_iter().map(|found| (found.table, found.rows, found.copies)).collect::<Vec<_>>()
        };
        let found =
            |rows: [(&str, u64); 3]| rows.map(|(table, rows)| (table.to_owned(), rows, vec![])).to_vec();

        let known = Known { map: even.clone(), moves: None };
        assert_eq!(foreign(1, &known, None).await, found([("a", 1), ("parted", 1), ("plain", 1)]));
        assert_eq!(foreign(2, &known, None).await, found([("a", 2), ("parted", 2), ("plain", 2)]));

        // What is pinned is at home where it is pinned to, there only, and so it is on a shard without any bucket.
        let map =
            even.clone().with_overrides(&[(hash(SECOND), ShardId(1)), (hash(FIRST), ShardId(5))]).unwrap();
        let known = Known { map, moves: None };
        for (shard, rows) in [(1, 1), (4, 2), (5, 1)] {
            assert_eq!(foreign(shard, &known, None).await[0].1, rows, "shard {shard}");
        }

        // Copies of a move under way are on both of its shards, and on no other one.
        let moves =
            vec![a_move(13, Scope::of_range(3302, 3302), 4, 1), a_move(14, Scope::of_range(0, 9), 1, 2)];
        let known = Known { map: even, moves: Some(moves) };
        let copies = vec![(13, "window", 1), (14, "window", 0)];
        assert_eq!(foreign(1, &known, None).await[0], ("a".to_owned(), 0, copies));
        assert_eq!(foreign(3, &known, None).await[0], ("a".to_owned(), 2, vec![]));
        let mut findings = Findings::default();
        report(ShardId(1), &count(&client, ShardId(1), &known, None).await.unwrap(), true, &mut findings);
        assert!(findings.all.iter().all(|(_, outcome)| outcome.is_ok()), "{:?}", findings.all);
        assert_eq!(findings.all[0].0, "shard 1: 1 rows of a");
        assert!(findings.all[0].1.as_ref().unwrap().contains("copies of move 13 (window)"));
        // Nobody is told to move rows of which it is not known whether they are copies.
        let known = Known { moves: None, ..known };
        let all = count(&client, ShardId(1), &known, None).await.unwrap();
        for (moves_known, told) in [(true, true), (false, false)] {
            let mut findings = Findings::default();
            report(ShardId(1), &all, moves_known, &mut findings);
            assert_eq!(findings.all[0].1.as_ref().unwrap_err().contains("move them to"), told);
        }

        let config = Config::parse(
            "[[shard]]\nid = 1\nprimary = \"h:1\"\n[[table]]\nname = \"public.plain\"\nkind = \"plain\"\n\
             [[table]]\nname = \"public.by_number\"\nkind = \"sharded\"\nkey = \"n\"\ntype = \"int8\"\n",
        );
        let tables: Vec<String> =
            foreign(1, &known, Some(&config.unwrap())).await.into_iter().map(|found| found.0).collect();
        assert_eq!(tables, ["a", "by_number", "parted"]);
    }
}
