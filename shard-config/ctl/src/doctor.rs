//! `doctor`: every check is run, each problem has a remedy.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use futures_util::future::join_all;
use serde_json::json;
use shard_config::{Config, ShardMap};
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, Proxy, ask, cell};
use crate::constraints;
use crate::direct::Servers;
use crate::drift::{drift, schema};
use crate::movable::movable;
use crate::mover::definition::Parts;
use crate::output::Report;
use crate::status::{STANDBYS, shards};
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
    /// What is no problem as it is, and must be known.
    notes: Vec<(String, String)>,
}

impl Findings {
    pub(crate) fn well(&mut self, check: impl Into<String>, what: impl Into<String>) {
        self.all.push((check.into(), Ok(what.into())));
    }

    pub(crate) fn problem(&mut self, check: impl Into<String>, remedy: impl Into<String>) {
        self.all.push((check.into(), Err(remedy.into())));
    }

    pub(crate) fn note(&mut self, about: impl Into<String>, text: impl Into<String>) {
        self.notes.push((about.into(), text.into()));
    }

    pub(crate) fn report(self) -> Report {
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
        let mut notes = Vec::new();
        for (about, note) in self.notes {
            text += &format!("note     {about}: {note}\n");
            notes.push(json!({"about": about, "note": note}));
        }
        Report { json: json!({"ok": well, "checks": checks, "notes": notes}), text, well }
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
    let shards = shards(&map, config.as_ref());
    // All at once: each may take seconds to say nothing. One that says nothing at first is asked nothing more.
    let looks = join_all(shards.iter().map(async |&shard| {
        let mut found = Findings::default();
        let looked = match proxy.answering(shard).await {
            Ok(client) => {
                let schema = look(&client, &format!("shard {shard}"), &mut found).await;
                Some((client, schema))
            }
            Err(error) => {
                found.problem(format!("shard {shard}"), format!("{error:#}"));
                None
            }
        };
        if sweep && let Some((client, _)) = &looked {
            let swept = sweep::of_shard(proxy, client, shard, servers.as_ref(), &mut found).await;
            if let Err(error) = swept {
                found.problem(format!("shard {shard}: sweep"), format!("{error:#}"));
            }
        }
        (shard, found, looked)
    }))
    .await;
    let mut schemas = BTreeMap::new();
    let mut constraints_seen = false;
    for (shard, found, looked) in looks {
        findings.all.extend(found.all);
        let Some((client, schema)) = looked else { continue };
        if !constraints_seen {
            // They are the same on every shard, or that is a finding of its own.
            match constraints::unenforced(&client, config.as_ref(), &mut findings).await {
                Ok(()) => constraints_seen = true,
                Err(error) => findings.problem(format!("shard {shard}: constraints"), format!("{error:#}")),
            }
        }
        schemas.extend(schema.map(|schema| (shard, schema)));
    }
    drift(&schemas, &mut findings);
    if let Some(servers) = &servers {
        movable(servers, &shards, &mut findings).await;
    }
    Ok(findings.report())
}

/// Everything that one shard is asked, with its schema.
async fn look(client: &Client, name: &str, findings: &mut Findings) -> Option<BTreeMap<String, Parts>> {
    if let Err(error) = of_shard(client, name, findings).await {
        findings.problem(name, format!("{error:#}"));
    }
    if let Err(error) = partitions(client, name, findings).await {
        findings.problem(format!("{name}: partitions"), format!("{error:#}"));
    }
    match schema(client).await {
        Ok(schema) => Some(schema),
        Err(error) => {
            findings.problem(format!("{name}: schema"), format!("{error:#}"));
            None
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
    let sql = format!(
        "SELECT current_setting('max_prepared_transactions')::int > 0 AS two_phase,
        current_setting('synchronous_standby_names') AS standbys, (SELECT count(*) FROM {STANDBYS}) AS replicas,
        (SELECT count(*) FROM {STANDBYS} AND coalesce(r.sync_state, 'sync') IN ('sync', 'quorum')) AS waited_for,
        (SELECT string_agg(gid, ', ') FROM pg_prepared_xacts
          WHERE database = current_database() AND prepared < now() - interval '1 minute') AS in_doubt"
    );
    for row in ask(client, &sql, ANSWER_TIMEOUT).await? {
        if cell(&row, "two_phase") != "t" {
            let remedy = "set it to at least the number of clients and restart: transactions over several shards need it";
            findings.problem(format!("{name}: max_prepared_transactions is 0"), remedy);
        }
        let (standbys, replicas) = (cell(&row, "standbys"), cell(&row, "replicas"));
        if !standbys.is_empty() && cell(&row, "waited_for") == "0" {
            let which = match replicas.as_str() {
                "0" => "no replica is connected, one is required".to_owned(),
                some => format!("none of {some} replicas acknowledges writes, {standbys} is required"),
            };
            let remedy = "writes wait until one does: start it, or empty synchronous_standby_names";
            findings.problem(format!("{name}: {which}"), remedy);
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

#[cfg(test)]
mod tests {
    use shard_config::ShardId;

    use super::*;

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
                 CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE b (moods mood[]);
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
        assert!(schema["b"].contains("type public.mood: label 'glad' after 'sad'"), "{:?}", schema["b"]);
        assert!(schema["v"].iter().any(|part| part.starts_with("defined as ")), "{:?}", schema["v"]);
        let figures = crate::status::Figures::of(&client).await.unwrap();
        assert_eq!((figures.in_recovery, figures.replicas, figures.prepared), (false, 0, 0));
    }

    /// A subscription's worker counts as nobody's standby: the writes that wait for one do so as before.
    #[tokio::test]
    async fn a_subscription_is_no_replica() {
        async fn connect(server: &testpg::TempPostgres) -> Client {
            let url = server.url("postgres");
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        }
        let (server, taker) =
            (testpg::TempPostgres::start(&["wal_level = logical"]), testpg::TempPostgres::start(&[]));
        let client = connect(&server).await;
        client.batch_execute("CREATE TABLE a (n int); CREATE PUBLICATION p FOR TABLE a").await.unwrap();
        let subscribe = format!(
            "CREATE TABLE a (n int); CREATE SUBSCRIPTION s CONNECTION '{}' PUBLICATION p WITH (copy_data = false)",
            server.url("postgres")
        );
        for statement in subscribe.split("; ") {
            connect(&taker).await.batch_execute(statement).await.unwrap();
        }
        let until = async |sql: &str| {
            let begun = std::time::Instant::now();
            while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
                assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{sql}");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let require = async |who: &str| {
            client
                .batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = {who}"))
                .await
                .unwrap();
            client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
            until(&format!("SELECT current_setting('synchronous_standby_names') = '{who}'")).await;
        };
        let waiting = async || {
            let mut findings = Findings::default();
            of_shard(&client, "shard 1", &mut findings).await.unwrap();
            let all = findings.all.into_iter().map(|(check, _)| check);
            all.filter(|check| check.contains("require")).collect::<Vec<_>>()
        };
        until("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'").await;
        require("walreceiver").await;
        assert_eq!(crate::status::Figures::of(&client).await.unwrap().replicas, 0);
        assert_eq!(waiting().await, ["shard 1: no replica is connected, one is required"]);

        let _standby = server.standby();
        until("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'").await;
        assert_eq!(crate::status::Figures::of(&client).await.unwrap().replicas, 1);
        assert!(waiting().await.is_empty());
        require("another").await;
        until("SELECT NOT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')").await;
        assert_eq!(waiting().await, ["shard 1: none of 1 replicas acknowledges writes, another is required"]);
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
