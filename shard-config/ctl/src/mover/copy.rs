//! Native logical replication of a scope: a publication with row filters and a slot on the giver, a subscription on the
//! taker that copies nothing: it continues what `transfer` has copied, or, during the window, what is there already.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio_postgres::error::SqlState;

use super::brief::{PATIENCE, briefly};
use super::fault::reach;
use super::job::{Job, Way};
use super::scope::{ident, literal};
use super::tables::Table;
use crate::direct::{Db, is_code};

/// A slot cannot begin before every transaction that writes now has ended. After that long it is said who it is.
pub(super) const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of WAL that the target may be behind when a cut-over begins, unless its operator says otherwise.
pub const LAG_MOST: i64 = 64 << 20;

/// A slot that keeps no more WAL is read at once.
const NEAR: i64 = 16 << 20;

/// Publication of the mark and of `tables`, unless there is one.
pub async fn publish(giver: &Db, job: &Job, way: Way, tables: &[Table], buckets: u16) -> anyhow::Result<()> {
    let name = job.publication(way);
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    if giver.holds(sql, &[&name]).await? {
        return Ok(());
    }
    let mut parts = vec![format!("shard_catalog.mark WHERE (id = {})", job.mark_id(way))];
    parts.extend(tables.iter().map(|table| published(table, job, buckets)));
    // A TRUNCATE knows no row filter (H3).
    let sql = format!(
        "INSERT INTO shard_catalog.mark VALUES ({}, 0, clock_timestamp()) ON CONFLICT DO NOTHING; \
         CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert,update,delete', publish_via_partition_root = true);",
        job.mark_id(way),
        ident(&name),
        parts.join(", ")
    );
    // Nobody who writes waits behind it. It waits for VACUUM and the like.
    briefly(giver, &sql, PATIENCE).await.context("the publication")
}

fn published(table: &Table, job: &Job, buckets: u16) -> String {
    format!("{} WHERE ({})", table.sql(), table.predicate("", &job.scope, buckets))
}

pub(super) async fn unpublish(giver: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    giver.run(&format!("DROP PUBLICATION IF EXISTS {}", ident(&job.publication(way)))).await
}

/// Makes a logical slot. The error names who keeps it from beginning for so long.
pub async fn slot(db: &mut Db, name: &str, patience: Duration) -> anyhow::Result<()> {
    let there = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
    if db.holds(there, &[&name]).await? {
        return Ok(());
    }
    let before = std::mem::replace(&mut db.patience, patience + Duration::from_secs(5));
    db.run(&format!("SET statement_timeout = {}", patience.as_millis())).await?;
    let made = db.rows("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&name]).await;
    db.patience = before;
    db.run("RESET statement_timeout").await?;
    match made {
        Ok(_) => Ok(()),
        Err(error) if is_code(&error, &SqlState::DUPLICATE_OBJECT) => Ok(()),
        Err(error) => Err(error.context(format!("slot {name}; {}", oldest(db).await?))),
    }
}

/// Who has run longest, for a person who wonders what a step waits for.
pub async fn oldest(db: &Db) -> anyhow::Result<String> {
    let sql = "SELECT string_agg(what, '; ') FROM (
          (SELECT format('pid %s (%s, %s) in a transaction for %s s', pid, usename, application_name,
                  round(extract(epoch FROM clock_timestamp() - xact_start))) AS what
             FROM pg_stat_activity WHERE xact_start < clock_timestamp() - interval '1 second' AND pid <> pg_backend_pid()
              AND backend_type = 'client backend' ORDER BY xact_start LIMIT 3)
          UNION ALL
          (SELECT format('prepared transaction %s for %s s', gid, round(extract(epoch FROM clock_timestamp() - prepared)))
             FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - interval '1 second' ORDER BY prepared LIMIT 3)) old";
    let who: Option<String> = db.value(sql, &[]).await?;
    Ok(who
        .map_or_else(|| "no transaction is older than a second".into(), |who| format!("it waits for {who}")))
}

pub async fn subscribed(taker: &Db, job: &Job, way: Way) -> anyhow::Result<bool> {
    let there = "SELECT EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
                 WHERE s.subname = $1 AND d.datname = current_database())";
    taker.holds(there, &[&job.publication(way)]).await
}

/// Begins with what the giver's slot has not passed yet; of the way back, with nothing that the giver had when it was opened. From
/// where is told to the subscription, too: a slot that was advanced is on the giver's disk with its next checkpoint only, and
/// after a crash before that it would send once more what had come from here.
pub async fn begin(giver: &Db, taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    let name = job.publication(way);
    let opened = job.text("back_from").filter(|_| way == Way::Back);
    let sql = "SELECT greatest(confirmed_flush_lsn, $2::text::pg_lsn)::text FROM pg_replication_slots WHERE slot_name = $1";
    let Some(row) = giver.first(sql, &[&name, &opened]).await? else { anyhow::bail!("slot {name} is gone") };
    let position: String = row.try_get(0)?;
    let sql = "SELECT pg_replication_origin_advance(o.roname, $2::text::pg_lsn) FROM pg_subscription s \
               JOIN pg_replication_origin o ON o.roname = 'pg_' || s.oid WHERE s.subname = $1 AND NOT s.subenabled \
               AND pg_replication_origin_progress(o.roname, false) IS NULL";
    taker.rows(sql, &[&name, &position]).await?;
    taker.run(&format!("ALTER SUBSCRIPTION {} ENABLE", ident(&name))).await
}

/// The row that marks are written to, on the taker, committed so that no crash takes it back, or anything before it.
pub async fn ground(taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    let sql = "INSERT INTO shard_catalog.mark VALUES ($1, 0, clock_timestamp()) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    taker.execute(sql, &[&job.mark_id(way)]).await.map(drop)
}

/// Makes the subscription on the taker. It does nothing before `begin`.
pub async fn subscribe(taker: &Db, job: &Job, way: Way, conninfo: &str) -> anyhow::Result<()> {
    let name = job.publication(way);
    // An error would put the statement into the server's log, and the password with it.
    let quiet = "SET log_min_error_statement = panic";
    if subscribed(taker, job, way).await? {
        // The giver's primary may be another server than before.
        return taker
            .run(&format!("{quiet}; ALTER SUBSCRIPTION {} CONNECTION {}", ident(&name), literal(conninfo)))
            .await;
    }
    ground(taker, job, way).await?;
    // Commits of the worker need not wait for the disk and the standby one by one: nothing is taken for applied before a
    // later commit has waited for both, and WAL is written in order.
    let sql = format!(
        "{quiet}; CREATE SUBSCRIPTION {0} CONNECTION {1} PUBLICATION {0} WITH (create_slot = false, slot_name = {2}, \
         copy_data = false, synchronous_commit = 'off', disable_on_error = true, enabled = false)",
        ident(&name),
        literal(conninfo),
        literal(&name),
    );
    taker.run(&sql).await.context("the subscription")
}

/// Lets a subscription go on that stopped.
pub async fn enable(taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    taker.run(&format!("ALTER SUBSCRIPTION {} ENABLE", ident(&job.publication(way)))).await
}

/// Whether a subscription has not stopped.
pub async fn is_enabled(taker: &Db, job: &Job, way: Way) -> anyhow::Result<bool> {
    let sql = "SELECT coalesce(bool_or(subenabled), false) FROM pg_subscription WHERE subname = $1";
    taker.holds(sql, &[&job.publication(way)]).await
}

/// State of the giver's slot: (what PostgreSQL says of its WAL, bytes that it keeps). `None`: it is gone.
pub async fn slot_state(giver: &Db, name: &str) -> anyhow::Result<Option<(String, i64)>> {
    let sql = "SELECT coalesce(wal_status, 'lost'), \
               coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8 \
               FROM pg_replication_slots WHERE slot_name = $1";
    let row = giver.first(sql, &[&name]).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// Reading a slot begins where the transactions began that were under way when PostgreSQL last wrote down which were, which it
/// does every 15 s: by then hundreds of megabytes may be read again each time (0.6 s for 334 MB, measured). It does so, too,
/// when a slot begins; what has been read by then is not read again after the next time. An old transaction is always read
/// again.
pub async fn near(db: &Db, name: &str) -> anyhow::Result<()> {
    if slot_state(db, name).await?.is_none_or(|(_, kept)| kept <= NEAR) {
        return Ok(());
    }
    let other = literal(&format!("{name}_near"));
    let sql = format!(
        "BEGIN; SET LOCAL statement_timeout = 100; SELECT pg_create_logical_replication_slot({other}, 'pgoutput', true); COMMIT; \
         SELECT pg_drop_replication_slot({other})"
    );
    if db.run(&sql).await.is_err() {
        // Transactions under way keep it from beginning, or there is no room for it: it is gone, and was only to be made.
        db.run("ROLLBACK").await?;
    }
    Ok(())
}

/// Bytes of the giver's WAL that the taker has not said it has.
pub async fn lag(giver: &Db, name: &str) -> anyhow::Result<Option<i64>> {
    let sql = "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::int8 \
               FROM pg_replication_slots WHERE slot_name = $1";
    giver.first(sql, &[&name]).await?.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Writes the next mark on the giver and returns its number.
pub async fn mark(giver: &Db, job: &Job, way: Way) -> anyhow::Result<i64> {
    let sql = "UPDATE shard_catalog.mark SET n = n + 1, at = clock_timestamp() WHERE id = $1 RETURNING n";
    let row = giver.first(sql, &[&job.mark_id(way)]).await?;
    Ok(row.context("the mark is gone from the giver")?.try_get(0)?)
}

/// The mark that the taker has applied.
pub async fn marked(taker: &Db, job: &Job, way: Way) -> anyhow::Result<i64> {
    let sql = "SELECT coalesce(max(n), -1) FROM shard_catalog.mark WHERE id = $1";
    taker.value(sql, &[&job.mark_id(way)]).await
}

/// Waits until the taker has applied everything that the giver committed before mark `n`.
pub async fn caught_up(
    taker: &Db,
    job: &Job,
    way: Way,
    n: i64,
    within: Duration,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    while marked(taker, job, way).await? < n {
        anyhow::ensure!(begun.elapsed() < within, "the target has not caught up after {within:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(begun.elapsed())
}

/// Takes away a subscription whose giver does not answer.
pub async fn forget(taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    if !subscribed(taker, job, way).await? {
        return Ok(());
    }
    let name = ident(&job.publication(way));
    taker.run(&format!("ALTER SUBSCRIPTION {name} DISABLE")).await?;
    taker.run(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await?;
    taker.run(&format!("DROP SUBSCRIPTION {name}")).await.context("dropping the subscription")
}

/// Takes down one direction: subscription, slots, publication. Every part may be gone already, and a server that cannot
/// be reached is an error, so that it is tried again and nothing keeps WAL for ever.
pub async fn take_down(giver: &Db, taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    cut(giver, taker, job, way).await?;
    unpublish(giver, job, way).await
}

/// All of it but the publication.
pub(super) async fn cut(giver: &Db, taker: &Db, job: &Job, way: Way) -> anyhow::Result<()> {
    let name = job.publication(way);
    let quoted = ident(&name);
    if subscribed(taker, job, way).await? {
        // Without its slot the subscription goes without asking the giver; the slots are dropped each by itself, so that an
        // interruption anywhere leaves names that are found again.
        taker.run(&format!("ALTER SUBSCRIPTION {quoted} DISABLE")).await?;
        workers_gone(taker, &name).await?;
        taker.run(&format!("ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)")).await?;
        taker.run(&format!("DROP SUBSCRIPTION {quoted}")).await.context("dropping the subscription")?;
    }
    reach(job, "unsubscribed");
    for slot in [name.clone(), job.verify_slot(way)] {
        drop_slot(giver, &slot).await?;
    }
    Ok(())
}

/// A worker on its way out may still apply what it has read.
async fn workers_gone(taker: &Db, subscription: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL)";
    while taker.holds(sql, &[&subscription]).await? {
        if begun.elapsed() > Duration::from_secs(2) {
            let end = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL";
            taker.rows(end, &[&subscription]).await?;
        }
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(20), "workers of {subscription} do not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

pub async fn drop_slot(db: &Db, name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        match db.rows(sql, &[&name]).await {
            Ok(_) => return Ok(()),
            // Its worker is on its way out; one that is not is ended.
            Err(error)
                if is_code(&error, &SqlState::OBJECT_IN_USE) && begun.elapsed() < Duration::from_secs(10) =>
            {
                if begun.elapsed() > Duration::from_secs(2) {
                    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
                    db.rows(end, &[&name]).await?;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) if is_code(&error, &SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
