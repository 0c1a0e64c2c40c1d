//! Applies migrations and partitions to every shard behind a proxy, or to one plain PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{Datelike, Utc};
use serde::Serialize;
use tokio_postgres::{Client, Config, NoTls};

use crate::migrations::{MIGRATIONS, Migration};
use crate::partitions::{self, Month, PARTITIONED};

/// Serialises concurrent runs on one shard; transaction-scoped, so it cannot be left behind.
const LOCK: i64 = 0x7368_6172_6471;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do beside applying what is missing.
#[derive(Debug, Clone)]
pub struct Options {
    /// Partitions are made for this many months after the current one.
    pub months_ahead: u16,
    /// Partitions older than this many months are detached (their rows stay in a table of their own).
    pub retain_months: Option<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self { months_ahead: 6, retain_months: None }
    }
}

/// What was done, and where it failed. `shard` is 0 for a plain PostgreSQL.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub shards: Vec<u16>,
    pub applied: Vec<String>,
    pub failed: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Url(String),
    #[error("{what}: {}", describe(.cause))]
    Database { what: String, cause: tokio_postgres::Error },
}

fn describe(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |db| format!("{} ({})", db.message(), db.code().code()))
}

fn at(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
    let what = what.into();
    move |cause| Error::Database { what, cause }
}

/// Brings every shard behind `url` up to date. A shard that fails does not stop the others: the report names it, and
/// the next run resumes there.
///
/// # Errors
/// When `url` cannot be read or reached at all; failures of single shards are in [`Report::failed`].
pub async fn apply(url: &str, options: &Options) -> Result<Report, Error> {
    let config: Config = url.parse().map_err(|error| Error::Url(format!("{url}: {error}")))?;
    let shards = shards(&config).await?;
    let mut report = Report { shards: shards.iter().copied().flatten().collect(), ..Report::default() };
    for shard in shards {
        let name = shard.map_or_else(|| "the database".to_owned(), |id| format!("shard {id}"));
        if let Err(error) = apply_to(&config, shard, options, &name, &mut report.applied).await {
            report.failed.push(format!("{name}: {error}"));
        }
    }
    Ok(report)
}

/// The shards behind a proxy; one `None` when the server is no proxy and does not know `shard.map`.
async fn shards(config: &Config) -> Result<Vec<Option<u16>>, Error> {
    let client = connect(config, None).await?;
    let rows = match client.simple_query("SHOW shard.map").await {
        Ok(rows) => rows,
        Err(error) if error.code().is_some_and(|code| code.code() == "42704") => return Ok(vec![None]),
        Err(error) => return Err(at("SHOW shard.map")(error)),
    };
    let mut ids = BTreeSet::new();
    for message in rows {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            ids.extend(row.get("shard").and_then(|text| text.parse::<u16>().ok()));
        }
    }
    Ok(ids.into_iter().map(Some).collect())
}

async fn connect(config: &Config, shard: Option<u16>) -> Result<Client, Error> {
    let mut config = config.clone();
    config.connect_timeout(CONNECT_TIMEOUT).application_name("migrate");
    if let Some(id) = shard {
        config.options(format!("-c shard.target={id}"));
    }
    let (client, connection) = config.connect(NoTls).await.map_err(at("connect"))?;
    tokio::spawn(async move {
        // The statement that was waiting reports the loss; there is nobody else to tell.
        let _ = connection.await;
    });
    Ok(client)
}

async fn apply_to(
    config: &Config,
    shard: Option<u16>,
    options: &Options,
    name: &str,
    done: &mut Vec<String>,
) -> Result<(), Error> {
    let mut client = connect(config, shard).await?;
    create_version_table(&client).await?;
    for migration in MIGRATIONS {
        if apply_one(&mut client, migration).await? {
            done.push(format!("{name}: {}", migration.name));
        }
    }
    let ahead = i32::from(options.months_ahead);
    for row in client.query("SELECT make_partitions($1)", &[&ahead]).await.map_err(at("partitions"))? {
        done.push(format!("{name}: {}", row.get::<_, &str>(0)));
    }
    if let Some(keep) = options.retain_months {
        let now = Utc::now();
        let this =
            Month::new(now.year(), now.month()).ok_or_else(|| Error::Url("the clock has no month".into()))?;
        for table in PARTITIONED {
            retire(&client, table, this, keep, name, done).await?;
        }
    }
    Ok(())
}

async fn create_version_table(client: &Client) -> Result<(), Error> {
    let exists =
        "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'public' AND tablename = 'schema_migrations'";
    let rows = client.query(exists, &[]).await.map_err(at("schema_migrations"))?;
    if !rows.is_empty() {
        return Ok(());
    }
    let create = "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, name text NOT NULL, \
                  checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())";
    client.batch_execute(create).await.map_err(at("schema_migrations"))
}

/// True when the migration was missing here and has been applied.
async fn apply_one(client: &mut Client, migration: &Migration) -> Result<bool, Error> {
    let what = || migration.name.to_owned();
    let transaction = client.transaction().await.map_err(at(what()))?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(at(what()))?;
    let row = transaction
        .query_opt("SELECT checksum FROM schema_migrations WHERE version = $1", &[&migration.version])
        .await
        .map_err(at(what()))?;
    if let Some(row) = row {
        let recorded: String = row.get(0);
        if recorded != migration.checksum() {
            return Err(Error::Url(format!(
                "{} was applied with another content (checksum {recorded}); write a new migration instead",
                migration.name
            )));
        }
        return Ok(false);
    }
    transaction.batch_execute(migration.sql).await.map_err(at(what()))?;
    transaction
        .execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            &[&migration.version, &migration.name, &migration.checksum()],
        )
        .await
        .map_err(at(what()))?;
    transaction.commit().await.map_err(at(what()))?;
    Ok(true)
}

async fn retire(
    client: &Client,
    table: &str,
    now: Month,
    keep: u16,
    name: &str,
    done: &mut Vec<String>,
) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT c.relname::text FROM pg_catalog.pg_inherits i \
             JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
             JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
             JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace \
             WHERE n.nspname = 'public' AND p.relname = $1",
            &[&table],
        )
        .await
        .map_err(at(table))?;
    let attached: BTreeMap<Month, String> = rows
        .iter()
        .map(|row| row.get::<_, String>(0))
        .filter_map(|child| Some((Month::from_suffix(child.strip_prefix(table)?.strip_prefix('_')?)?, child)))
        .collect();
    let months: Vec<Month> = attached.keys().copied().collect();
    for month in partitions::retired(&months, now, keep) {
        // CONCURRENTLY: does not wait for, nor stop, running payments.
        let child = &attached[&month];
        let statement = format!("ALTER TABLE {table} DETACH PARTITION {child} CONCURRENTLY");
        client.batch_execute(&statement).await.map_err(at(statement.clone()))?;
        done.push(format!("{name}: detached {child}"));
    }
    Ok(())
}
