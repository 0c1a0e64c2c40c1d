//! `doctor`: every check is run, each problem has a remedy.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use shard_config::{Config, ShardId, ShardMap};
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, Proxy, ask, cell};
use crate::constraints;
use crate::direct::Servers;
use crate::mover::definition::{Parts, difference, parts_sql};
use crate::output::Report;
use crate::sweep;

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
    let servers = config.clone().map(Servers::new);
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
        if sweep
            && let Err(error) = sweep::of_shard(proxy, &client, shard, servers.as_ref(), &mut findings).await
        {
            findings.problem(format!("{name}: sweep"), format!("{error:#}"));
        }
    }
    drift(&schemas, &mut findings);
    if let Some(servers) = &servers {
        movable(servers, &map, &mut findings).await;
    }
    Ok(findings.report())
}

/// Whether buckets could be moved: asked of the servers themselves, with the role of `[control]`.
async fn movable(servers: &Servers, map: &ShardMap, findings: &mut Findings) {
    for shard in map.shards() {
        match crate::mover::preflight::shard(servers, shard).await {
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

/// Everything that routing and moves rely on, by relation. Unlike a move, routing takes columns by their order.
async fn schema(client: &Client) -> anyhow::Result<BTreeMap<String, Parts>> {
    const RELATIONS: &str = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog')
          AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't'";
    let parts = parts_sql(&format!("SELECT c.oid::regclass::text, c.oid, ''::text FROM {RELATIONS}"));
    let sql = format!(
        "{parts} UNION ALL SELECT c.oid::regclass::text, 'columns in the order ' || coalesce((
             SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '') FROM {RELATIONS}"
    );
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for row in ask(client, &sql, ANSWER_TIMEOUT).await? {
        found.entry(cell(&row, "name")).or_default().insert(cell(&row, "part"));
    }
    Ok(found)
}

fn drift(schemas: &BTreeMap<ShardId, BTreeMap<String, Parts>>, findings: &mut Findings) {
    let Some((first, wanted)) = schemas.iter().next() else { return };
    let before = findings.all.len();
    for (shard, schema) in schemas.iter().skip(1) {
        let mut tables: Vec<_> = wanted.keys().chain(schema.keys()).collect();
        tables.sort();
        tables.dedup();
        for table in tables {
            let how = match (wanted.get(table), schema.get(table)) {
                (Some(ours), Some(theirs)) => match difference((*first, ours), (*shard, theirs)) {
                    Some(what) => format!("{table} differs between shard {first} and shard {shard} ({what})"),
                    None => continue,
                },
                (Some(_), None) => format!("{table} is on shard {first} and not on shard {shard}"),
                _ => format!("{table} is on shard {shard} and not on shard {first}"),
            };
            findings.problem(how, "run shardctl migrate, or repair it by hand with SET shard.target");
        }
    }
    if findings.all.len() == before {
        findings
            .well("schema", format!("{} tables and views, equal on {} shards", wanted.len(), schemas.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_named_by_table_and_shard() {
        let table = |name: &str, part: &str| (name.to_owned(), Parts::from([part.to_owned()]));
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
                "a differs between shard 1 and shard 2 (only on shard 1: r id uuid; only on shard 2: r id text)",
                "b is on shard 1 and not on shard 2",
                "c is on shard 2 and not on shard 1"
            ]
        );
        assert!(!findings.report().well);
    }

    /// A plain PostgreSQL stands for shard 1, so every statement of `doctor` is run by a real server.
    #[tokio::test]
    async fn settings_and_schemas_are_read() {
        let server = testpg::TempPostgres::start(&["wal_level = replica", "synchronous_commit = off"]);
        let (client, connection) =
            tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(
                "CREATE TABLE a (tenant_id uuid NOT NULL, n int DEFAULT 7, PRIMARY KEY (tenant_id));
                 CREATE VIEW v AS SELECT n FROM a; GRANT SELECT ON a TO PUBLIC",
            )
            .await
            .unwrap();
        let mut findings = Findings::default();
        of_shard(&client, "shard 1", &mut findings).await.unwrap();
        let problems: Vec<_> = findings
            .all
            .iter()
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(check, _)| check.as_str())
            .collect();
        assert_eq!(
            problems,
            ["shard 1: fsync is off", "shard 1: synchronous_commit is off", "shard 1: wal_level is replica",]
        );
        let schema = schema(&client).await.unwrap();
        for part in [
            "table",
            "column tenant_id uuid not null",
            "column n integer default 7",
            "columns in the order tenant_id, n",
            "PRIMARY KEY (tenant_id)",
            "owner postgres",
            "grant SELECT to PUBLIC",
        ] {
            assert!(schema["a"].contains(part), "{part}: {:?}", schema["a"]);
        }
        assert!(schema["v"].iter().any(|part| part.starts_with("defined as ")), "{:?}", schema["v"]);
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
