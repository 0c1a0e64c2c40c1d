//! Guards: the triggers that make a shard refuse writes of a scope once it is fenced, and keep TRUNCATE and DDL away
//! while rows are in motion.
//!
//! CREATE TRIGGER waits for every transaction that wrote the table, prepared ones too, and everybody who comes later
//! waits behind it. So it asks only `briefly`. Once it is there, no writer that did not meet it is left (H14).

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio_postgres::error::SqlState;

use super::brief::{PATIENCE, briefly};
use super::copy::oldest;
use super::job::Job;
use super::scope::{ident, literal};
use super::tables::{TREE, Table, tree};
use crate::direct::{Db, is_code};

/// Longest rest between two tables.
const APART: Duration = Duration::from_millis(500);
/// Definitions that are under way may take longer than this; it is said whose they are, and asked again.
const DEFINITIONS: Duration = Duration::from_secs(5);

const SHARD: &str = include_str!("sql/shard.sql");

/// Makes the mover's tables and functions on a shard.
pub async fn install(db: &Db) -> anyhow::Result<()> {
    super::catalog::make(db, &[shard_config::CATALOG_SQL, SHARD])
        .await
        .context("making the mover's tables and functions")
}

/// Writes that the shard does not own the scope.
pub async fn fence_row(db: &Db, job: &Job, buckets: u16) -> anyhow::Result<()> {
    db.run(&fence_sql(job, buckets)).await
}

/// See `fence_row`.
pub(super) fn fence_sql(job: &Job, buckets: u16) -> String {
    format!(
        "INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES ({}, {}, {}) ON CONFLICT (move_id) DO NOTHING",
        job.id,
        literal(&job.scope.json().to_string()),
        buckets - 1
    )
}

/// The names of all guards of the move begin with that of `what` nothing.
pub(super) fn trigger(job: &Job, what: &str) -> String {
    // BEFORE triggers run by name: after the application's, which may still change the key.
    format!("zzz_shard_move_{}_{what}", job.id)
}

/// From now on the tables keep their shape on this shard. Definitions that are under way are waited for: what they make is not
/// among `tables`.
pub async fn register(db: &Db, job: &Job, tables: &[Table]) -> anyhow::Result<()> {
    let mut sql = String::from("UPDATE shard_catalog.guards SET n = n + 1; ");
    for table in tables {
        sql += &format!(
            "INSERT INTO shard_catalog.guarded (move_id, relation, key_column) \
             SELECT {}, t.relid, {} FROM {} t ON CONFLICT DO NOTHING; ",
            job.id,
            literal(&table.key_column),
            TREE.replace("$1", &literal(&table.sql()))
        );
    }
    let Err(error) = briefly(db, &sql, DEFINITIONS).await else { return Ok(()) };
    let text = match is_code(&error, &SqlState::LOCK_NOT_AVAILABLE) {
        true => format!("a transaction that changes definitions does not end; {}", oldest(db).await?),
        false => "registering the tables".to_owned(),
    };
    Err(error.context(text))
}

/// Guards every table on one shard.
pub async fn arm(db: &Db, job: &Job, tables: &[Table], buckets: u16) -> anyhow::Result<()> {
    db.run("SET shard_catalog.mover = on").await?;
    for table in tables {
        let begun = Instant::now();
        let relations = tree(db, table).await?;
        let mut sql = String::new();
        let name = table.sql();
        let old = table.predicate("OLD.", &job.scope, buckets);
        let new = table.predicate("NEW.", &job.scope, buckets);
        for (what, event, condition) in [
            ("insert", "INSERT", new.clone()),
            ("update", "UPDATE", format!("({old} OR {new})")),
            ("delete", "DELETE", old),
        ] {
            let trigger = trigger(job, what);
            if !has_trigger(db, &name, &trigger).await? {
                sql += &format!(
                    "CREATE TRIGGER {trigger} BEFORE {event} ON {name} FOR EACH ROW WHEN ({condition}) \
                     EXECUTE FUNCTION shard_catalog.guard({id}); ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}; ",
                    trigger = ident(&trigger),
                    id = literal(&job.id.to_string()),
                );
            }
        }
        let truncate = trigger(job, "truncate");
        for relation in &relations {
            if !has_trigger(db, relation, &truncate).await? {
                sql += &format!(
                    "CREATE TRIGGER {0} BEFORE TRUNCATE ON {relation} EXECUTE FUNCTION shard_catalog.refuse_truncate({1}); \
                     ALTER TABLE ONLY {relation} ENABLE ALWAYS TRIGGER {0}; ",
                    ident(&truncate),
                    literal(&job.id.to_string()),
                );
            }
        }
        briefly(db, &sql, PATIENCE).await.with_context(|| format!("guarding {}", table.full_name()))?;
        check(db, job, &relations).await?;
        // Every session plans anew what it does with the table. Not with all tables at once.
        tokio::time::sleep((begun.elapsed() * 2).min(APART)).await;
    }
    Ok(())
}

/// A guard that is not ENABLE ALWAYS on every partition would let some sessions pass.
async fn check(db: &Db, job: &Job, relations: &[String]) -> anyhow::Result<()> {
    let sql = "SELECT count(*) FROM unnest($1::text[]) r (name) WHERE 4 <> (SELECT count(*) FROM pg_trigger t \
               WHERE t.tgrelid = r.name::regclass AND t.tgenabled = 'A' AND starts_with(t.tgname::text, $2))";
    let unguarded: i64 = db.value(sql, &[&relations, &trigger(job, "")]).await?;
    anyhow::ensure!(unguarded == 0, "{unguarded} tables or partitions could not be guarded");
    Ok(())
}

async fn has_trigger(db: &Db, relation: &str, trigger: &str) -> anyhow::Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgname = $2)";
    db.holds(sql, &[&relation, &trigger]).await
}

/// Takes everything of the move off the tables of one shard, and its fence.
pub async fn disarm(db: &Db, job: &Job) -> anyhow::Result<()> {
    if !db.holds("SELECT to_regclass('shard_catalog.guarded') IS NOT NULL", &[]).await? {
        return Ok(());
    }
    db.run("SET shard_catalog.mover = on").await?;
    let sql = "SELECT format('%I.%I', n.nspname, c.relname), t.tgname::text FROM pg_trigger t \
               JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE t.tgparentid = 0 AND starts_with(t.tgname::text, $1) ORDER BY 1";
    for row in db.rows(sql, &[&trigger(job, "")]).await? {
        let (table, trigger): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let drop = format!("DROP TRIGGER IF EXISTS {} ON {table}; ", ident(&trigger));
        briefly(db, &drop, PATIENCE).await.with_context(|| format!("taking the guards off {table}"))?;
    }
    let id = job.id;
    db.run(&format!(
        "DELETE FROM shard_catalog.guarded WHERE move_id = {id}; DELETE FROM shard_catalog.fence WHERE move_id = {id}; \
         DELETE FROM shard_catalog.mark WHERE id IN ({}, {})",
        id * 2,
        id * 2 + 1
    ))
    .await
}
