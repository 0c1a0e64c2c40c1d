//! `doctor`: every check is run, each problem has a remedy.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use shard_config::{Config, ShardId, ShardMap};
use tokio_postgres::Client;

use crate::constraints;
use crate::connect::{ANSWER_TIMEOUT, Proxy, ask, cell};
use crate::output::Report;

/// Settings without which an acknowledged payment may be lost, or shards cannot be changed.
const SETTINGS: [(&str, &[&str], &str); 6] = [
    ("fsync", &["on"], "without it a crash of the machine corrupts the shard"),
    ("full_page_writes", &["on"], "without it a crash of the machine corrupts the shard"),
    ("synchronous_commit", &["on", "remote_apply"], "below it an acknowledged payment may be lost"),
    ("wal_level", &["logical"], "moving tenants needs it; set it and restart"),
    ("server_encoding", &["UTF8"], "buckets are hashes of UTF-8"),
    ("standard_conforming_strings", &["on"], "otherwise backslashes change what a statement means"),
];

/// `migrate` makes six months; below two it is time to run it again.
const PARTITION_DAYS: u32 = 60;

/// A sweep reads whole tables.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) all: Vec<(String, Result<String, String>)>,
}

impl Findings {
    pub(crate) fn well(&mut self, check: impl Into<String>, what: impl Into<String>) {
        self.all.push((check.into(), Ok(what.into())));
    }

    pub(crate) fn problem(&mut self, check: impl Into<String>, remedy: impl Into<String>) {
        self.all.push((check.into(), Err(remedy.into())));
    }

    fn report(self) -> Report {
        let well = self.all.iter().all(|(_, outcome)| outcome.is_ok());
        let mut text = String::new();
        let mut checks = Vec::new();
        for (check, outcome) in self.all {
            let (mark, detail) = match &outcome {
                Ok(what) => ("ok     ", what),
                Err(remedy) => ("PROBLEM", remedy),
            };
            text += &format!("{mark}  {check}: {detail}\n");
            checks.push(json!({"check": check, "ok": outcome.is_ok(), "detail": detail}));
        }
        Report { json: json!({"ok": well, "checks": checks}), text, well }
    }
}

/// `config`: the reference, or a file's mistakes.
pub fn config_file(file: Option<&Path>) -> anyhow::Result<Report> {
    let Some(file) = file else {
        let text = Config::reference();
        return Ok(Report { json: json!({ "reference": text }), text, well: true });
    };
    let mut findings = Findings::default();
    check_config(file, &mut findings)?;
    Ok(findings.report())
}

fn check_config(file: &Path, findings: &mut Findings) -> anyhow::Result<Option<Config>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
    match Config::parse(&text) {
        Ok(config) => {
            findings.well(name, format!("{} shards, {} users", config.shards.len(), config.users.len()));
            Ok(Some(config))
        }
        Err(mistakes) => {
            for mistake in mistakes {
                findings.problem(format!("{name}:{}: {}", mistake.line, mistake.message), mistake.remedy);
            }
            Ok(None)
        }
    }
}

pub async fn doctor(proxy: &Proxy, config: Option<&Path>, sweep: bool) -> anyhow::Result<Report> {
    let mut findings = Findings::default();
    let config = config.map(|file| check_config(file, &mut findings)).transpose()?.flatten();
    let map = proxy.map().await?;
    findings.well(
        "map",
        format!("epoch {}, {} buckets on {} shards", map.epoch(), map.buckets(), map.shards().len()),
    );
    if let Some(config) = &config {
        against_config(&map, config, &mut findings);
    }
    let mut schemas = BTreeMap::new();
    let mut constraints_seen = false;
    for shard in map.shards() {
        let client = match proxy.shard(shard).await {
            Ok(client) => client,
            Err(error) => {
                findings.problem(format!("shard {shard}"), format!("{error:#}"));
                continue;
            }
        };
        let name = format!("shard {shard}");
        if let Err(error) = of_shard(&client, &name, &mut findings).await {
            findings.problem(name.clone(), format!("{error:#}"));
        }
        if let Err(error) = partitions(&client, &name, &mut findings).await {
            findings.problem(format!("{name}: partitions"), format!("{error:#}"));
        }
        if !constraints_seen {
            // They are the same on every shard, or that is a finding of its own.
            match constraints::unenforced(&client, config.as_ref(), &mut findings).await {
                Ok(()) => constraints_seen = true,
                Err(error) => findings.problem(format!("{name}: constraints"), format!("{error:#}")),
            }
        }
        match schema(&client).await {
            Ok(schema) => _ = schemas.insert(shard, schema),
            Err(error) => findings.problem(name.clone(), format!("{error:#}")),
        }
        if sweep && let Err(error) = foreign_rows(&client, shard, &map, config.as_ref(), &mut findings).await
        {
            findings.problem(format!("{name}: sweep"), format!("{error:#}"));
        }
    }
    drift(&schemas, &mut findings);
    if let Some(config) = config {
        movable(config, &map, &mut findings).await;
    }
    Ok(findings.report())
}

/// Whether buckets could be moved: asked of the servers themselves, with the role of `[control]`.
async fn movable(config: Config, map: &ShardMap, findings: &mut Findings) {
    let servers = crate::direct::Servers::new(config);
    for shard in map.shards() {
        match crate::mover::preflight::shard(&servers, shard).await {
            Ok(problems) if problems.is_empty() => {
                findings
                    .well(format!("shard {shard}: moving buckets"), "settings, rights and tables allow it");
            }
            Ok(problems) => {
                for problem in problems {
                    findings.problem(format!("moving buckets: {}", problem.what), problem.remedy);
                }
            }
            Err(error) => findings.problem(format!("shard {shard}: moving buckets"), format!("{error:#}")),
        }
    }
}

fn against_config(map: &ShardMap, config: &Config, findings: &mut Findings) {
    if map.buckets() != config.key.buckets {
        let remedy = format!("write buckets = {}; it cannot change once rows exist", map.buckets());
        findings.problem(format!("the file says {} buckets", config.key.buckets), remedy);
    }
    for shard in map.shards().into_iter().filter(|&shard| config.shard(shard).is_none()) {
        let remedy = format!("add [[shard]] with id = {shard}");
        findings.problem(
            format!("shard {shard} owns {} buckets and is not in the file", map.count(shard)),
            remedy,
        );
    }
}

async fn of_shard(client: &Client, name: &str, findings: &mut Findings) -> anyhow::Result<()> {
    let before = findings.all.len();
    for (setting, wanted, why) in SETTINGS {
        let rows =
            ask(client, &format!("SELECT current_setting('{setting}') AS value"), ANSWER_TIMEOUT).await?;
        let value = rows.first().map(|row| cell(row, "value")).unwrap_or_default();
        if !wanted.contains(&value.as_str()) {
            findings
                .problem(format!("{name}: {setting} is {value}"), format!("set it to {}: {why}", wanted[0]));
        }
    }
    let sql = "SELECT current_setting('max_prepared_transactions')::int > 0 AS two_phase,
        current_setting('synchronous_standby_names') AS standbys,
        (SELECT count(*) FROM pg_stat_replication) AS replicas,
        (SELECT string_agg(gid, ', ') FROM pg_prepared_xacts
          WHERE database = current_database() AND prepared < now() - interval '1 minute') AS in_doubt";
    for row in ask(client, sql, ANSWER_TIMEOUT).await? {
        if cell(&row, "two_phase") != "t" {
            let remedy = "set it to at least the number of clients and restart: transactions over several shards need it";
            findings.problem(format!("{name}: max_prepared_transactions is 0"), remedy);
        }
        if !cell(&row, "standbys").is_empty() && cell(&row, "replicas") == "0" {
            let remedy =
                "writes wait until one connects: start a replica, or empty synchronous_standby_names";
            findings.problem(format!("{name}: no replica is connected, one is required"), remedy);
        }
        let in_doubt = cell(&row, "in_doubt");
        if !in_doubt.is_empty() {
            let remedy =
                "a running proxy finishes it within seconds; look at its log, it holds locks meanwhile";
            findings.problem(format!("{name}: in doubt for over a minute: {in_doubt}"), remedy);
        }
    }
    if findings.all.len() == before {
        findings.well(name, "settings, replicas and prepared transactions");
    }
    Ok(())
}

/// Payments have somewhere to go for the next weeks. Nothing is said of a shard without the payment schema.
async fn partitions(client: &Client, name: &str, findings: &mut Findings) -> anyhow::Result<()> {
    let known = "SELECT to_regprocedure('public.partitions_until()') IS NOT NULL AS known";
    if ask(client, known, ANSWER_TIMEOUT).await?.first().map(|row| cell(row, "known")).as_deref() != Some("t")
    {
        return Ok(());
    }
    let sql = format!(
        "SELECT coalesce(until::date::text, 'none') AS until, coalesce(until > now() + interval '{PARTITION_DAYS} days', false) AS enough
           FROM public.partitions_until() AS until"
    );
    for row in ask(client, &sql, ANSWER_TIMEOUT).await? {
        let until = cell(&row, "until");
        if cell(&row, "enough") == "t" {
            findings.well(format!("{name}: partitions"), format!("payments have partitions until {until}"));
        } else {
            let remedy =
                "run shardctl migrate, or SELECT make_partitions(6) on the shard: without one, payments fail";
            findings.problem(format!("{name}: payments have partitions only until {until}"), remedy);
        }
    }
    Ok(())
}

/// Everything that routing relies on: tables, columns, types and keys, one text a table.
async fn schema(client: &Client) -> anyhow::Result<BTreeMap<String, String>> {
    let constraint = shard_config::CONSTRAINT_SQL;
    let sql = format!(
        "SELECT c.oid::regclass::text AS name, c.relkind::text || ' '
            || string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
                          ', ' ORDER BY a.attnum) || coalesce((SELECT ' | ' || string_agg({constraint}, '; ' ORDER BY k.conname)
                 FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid), '') AS definition
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog')
          AND c.relkind IN ('r', 'p', 'v', 'm')
        GROUP BY c.oid, c.relkind"
    );
    let rows = ask(client, &sql, ANSWER_TIMEOUT).await?;
    Ok(rows.iter().map(|row| (cell(row, "name"), cell(row, "definition"))).collect())
}

fn drift(schemas: &BTreeMap<ShardId, BTreeMap<String, String>>, findings: &mut Findings) {
    let Some((first, wanted)) = schemas.iter().next() else { return };
    let before = findings.all.len();
    for (shard, schema) in schemas.iter().skip(1) {
        let mut tables: Vec<_> = wanted.keys().chain(schema.keys()).collect();
        tables.sort();
        tables.dedup();
        for table in tables.into_iter().filter(|table| wanted.get(*table) != schema.get(*table)) {
            let how = match (wanted.get(table), schema.get(table)) {
                (Some(_), None) => format!("{table} is on shard {first} and not on shard {shard}"),
                (None, Some(_)) => format!("{table} is on shard {shard} and not on shard {first}"),
                _ => format!("{table} differs between shard {first} and shard {shard}"),
            };
            findings.problem(how, "run shardctl migrate, or repair it by hand with SET shard.target");
        }
    }
    if findings.all.len() == before {
        findings
            .well("schema", format!("{} tables and views, equal on {} shards", wanted.len(), schemas.len()));
    }
}

/// Rows on a shard that does not own their bucket: nobody would find them (H24).
async fn foreign_rows(
    client: &Client,
    shard: ShardId,
    map: &ShardMap,
    config: Option<&Config>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let (column, key_type) = config
        .map_or(("tenant_id", shard_config::KeyType::Uuid), |c| (c.key.column.as_str(), c.key.key_type));
    let quoted = format!("\"{}\"", column.replace('"', "\"\""));
    let bucket = key_type.sql(&quoted, map.buckets());
    let owned: Vec<_> = map.ranges().into_iter().filter(|range| range.2 == shard).collect();
    let owned: Vec<_> =
        owned.iter().map(|(from, to, _)| format!("{bucket} BETWEEN {from} AND {to}")).collect();
    // Partitions are read through their root.
    let tables = format!(
        "SELECT c.oid::regclass::text AS name FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = '{}' AND a.atttypid = {}
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_'
           AND n.nspname <> 'shard_catalog' ORDER BY 1",
        column.replace('\'', "''"),
        key_type.oid()
    );
    let mut total = 0;
    for table in ask(client, &tables, ANSWER_TIMEOUT).await? {
        let table = cell(&table, "name");
        let sql = format!("SELECT count(*) AS foreign_rows FROM {table} WHERE NOT ({})", owned.join(" OR "));
        let rows = ask(client, &sql, SWEEP_TIMEOUT).await?;
        let foreign = rows.first().map(|row| cell(row, "foreign_rows")).unwrap_or_default();
        if foreign != "0" {
            let remedy =
                format!("they were not written through the proxy: move them to the shard of {bucket}");
            findings.problem(format!("shard {shard}: {foreign} rows of {table} belong elsewhere"), remedy);
        }
        total += 1;
    }
    findings.well(format!("shard {shard}: sweep"), format!("{total} sharded tables read"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_named_by_table_and_shard() {
        let table = |name: &str, columns: &str| (name.to_owned(), columns.to_owned());
        let schemas = BTreeMap::from([
            (ShardId(1), BTreeMap::from([table("a", "r id uuid"), table("b", "r id uuid")])),
            (ShardId(2), BTreeMap::from([table("a", "r id text"), table("c", "r id uuid")])),
        ]);
        let mut findings = Findings::default();
        drift(&schemas, &mut findings);
        let problems: Vec<_> = findings.all.iter().map(|(check, _)| check.as_str()).collect();
        assert_eq!(
            problems,
            [
                "a differs between shard 1 and shard 2",
                "b is on shard 1 and not on shard 2",
                "c is on shard 2 and not on shard 1"
            ]
        );
        assert!(!findings.report().well);
    }

    /// A plain PostgreSQL stands for shard 1, so every statement of `doctor` is run by a real server.
    #[tokio::test]
    async fn h24_a_sweep_finds_rows_that_nobody_would_find() {
        let server = testpg::TempPostgres::start(&["wal_level = replica", "synchronous_commit = off"]);
        let (client, connection) =
            tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(
                "CREATE TABLE a (tenant_id uuid NOT NULL, PRIMARY KEY (tenant_id));
                 CREATE TABLE parted (tenant_id uuid NOT NULL) PARTITION BY HASH (tenant_id);
                 CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
                 CREATE TABLE other (tenant_id text);
                 -- Buckets 529 (shard 1 of 4) and 3302 (shard 4).
                 INSERT INTO a VALUES ('018f3c1e-7b2a-7c3d-8e4f-5a6b7c8d9e0f'), ('550e8400-e29b-41d4-a716-446655440000');
                 INSERT INTO parted SELECT tenant_id FROM a",
            )
            .await
            .unwrap();
        let map = ShardMap::even(&[1, 2, 3, 4].map(ShardId), 4096);
        let mut findings = Findings::default();
        foreign_rows(&client, ShardId(1), &map, None, &mut findings).await.unwrap();
        of_shard(&client, "shard 1", &mut findings).await.unwrap();
        let problems: Vec<_> = findings
            .all
            .iter()
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(check, _)| check.as_str())
            .collect();
        assert_eq!(
            problems,
            [
                "shard 1: 1 rows of a belong elsewhere",
                "shard 1: 1 rows of parted belong elsewhere",
                "shard 1: fsync is off",
                "shard 1: synchronous_commit is off",
                "shard 1: wal_level is replica",
            ]
        );
        let schema = schema(&client).await.unwrap();
        assert_eq!(schema["a"], "r tenant_id uuid not null | PRIMARY KEY (tenant_id)");
        let status = crate::status::of_primary(&client).await.unwrap();
        assert_eq!((&status["in_recovery"], &status["prepared"]), (&json!("f"), &json!("0")));
    }

    #[tokio::test]
    async fn partitions_that_end_soon_are_a_problem() {
        let server = testpg::TempPostgres::start(&[]);
        let url = server.url("postgres");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let check = async || {
            let mut findings = Findings::default();
            partitions(&client, "shard 1", &mut findings).await.unwrap();
            findings.all.iter().map(|(_, outcome)| outcome.is_ok()).collect::<Vec<_>>()
        };
        assert!(check().await.is_empty(), "no payments here");
        let options = |months_ahead| sql_assets::Options { months_ahead, retain_months: None };
        assert!(sql_assets::apply(&url, &options(0)).await.unwrap().failed.is_empty());
        assert_eq!(check().await, [false]);
        assert!(sql_assets::apply(&url, &options(6)).await.unwrap().failed.is_empty());
        assert_eq!(check().await, [true]);
    }

    #[test]
    fn a_file_that_does_not_fit_the_map_is_a_problem() {
        let map = ShardMap::even(&[ShardId(1), ShardId(2)], 16);
        let config = Config::parse("[[shard]]\nid = 1\nprimary = \"h:1\"\n").unwrap();
        let mut findings = Findings::default();
        against_config(&map, &config, &mut findings);
        let problems: Vec<_> = findings.all.iter().map(|(check, _)| check.as_str()).collect();
        assert_eq!(problems, ["the file says 4096 buckets", "shard 2 owns 8 buckets and is not in the file"]);
    }
}
