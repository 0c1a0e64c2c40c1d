//! Deleting the rows of a scope from a shard that does not own it, in small transactions.

use std::time::{Duration, Instant};

use shard_config::Config;

use super::job::{Job, Way};
use super::part::Part;
use super::published;
use super::scope::literal;
use super::tables::{Table, leaves, pages};
use crate::direct::Db;

/// Pages of one statement: few enough that its locks and its WAL stay small beside the payments'.
const PAGES: i64 = 64;
const PAGES_READ: i64 = 1024;
/// Of each table or partition, to tell about how many rows there are.
const PAGES_PICKED: i64 = 512;
/// At most half of one backend's time is spent here.
const REST_LEAST: Duration = Duration::from_millis(1);
/// One page may be of rows with megabytes beside it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A table of which a shard still has rows of the scope; stops at the first. Read page by page, since there is no index to
/// find them by and the tables may be of any size.
pub async fn any_row(db: &Db, job: &Job, tables: &[Table], buckets: u16) -> anyhow::Result<Option<String>> {
    for table in tables {
        let scope = table.predicate("", &job.scope, buckets);
        for leaf in leaves(db, table).await? {
            let pages = pages(db, &leaf).await?;
            let mut from = 0;
            while from < pages {
                let begun = Instant::now();
                let to = (from + PAGES_READ).min(pages);
                let sql = format!(
                    "SELECT EXISTS (SELECT FROM ONLY {leaf} WHERE ctid >= '({from},0)' AND ctid < '({to},0)' AND {scope})"
                );
                if db.holds(&sql, &[]).await? {
                    return Ok(Some(table.full_name()));
                }
                from = to;
                tokio::time::sleep(begun.elapsed()).await;
            }
        }
    }
    Ok(None)
}

/// About so many rows of the scope there are, of each table that the move is about: all of them counted where a table is small,
/// else those of pages picked at random.
pub async fn about(db: &Db, job: &Job, config: &Config, buckets: u16) -> anyhow::Result<Vec<(String, i64)>> {
    let (tables, _) = published::of_move(db, job, config).await?;
    let mut all = Vec::new();
    for table in tables {
        let scope = table.predicate("", &job.scope, buckets);
        let mut rows = 0.0;
        for leaf in leaves(db, &table).await? {
            let part = (PAGES_PICKED as f64 / pages(db, &leaf).await?.max(1) as f64).min(1.0);
            let picked =
                if part < 1.0 { format!("TABLESAMPLE SYSTEM ({})", part * 100.0) } else { String::new() };
            let sql = format!("SELECT count(*) FROM ONLY {leaf} {picked} WHERE {scope}");
            rows += db.value::<i64>(&sql, &[]).await? as f64 / part;
        }
        all.push((table.full_name(), rows.round() as i64));
    }
    Ok(all)
}

/// What the move keeps on a server and takes down in the end, but for rows.
pub async fn kept(db: &Db, job: &Job) -> anyhow::Result<Vec<String>> {
    let names: Vec<String> =
        [Way::Out, Way::Back].iter().flat_map(|way| [job.publication(*way), job.verify_slot(*way)]).collect();
    let sql = "SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE slot_name::text = ANY ($1)
        UNION ALL SELECT 'subscription ' || subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
            WHERE subname::text = ANY ($1) AND d.datname = current_database()
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication WHERE pubname::text = ANY ($1)
        UNION ALL SELECT format('guards of %s tables', count(DISTINCT tgrelid)) FROM pg_trigger
            WHERE starts_with(tgname::text, $2) HAVING count(*) > 0
        UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
            WHERE starts_with(gid, $3) AND database = current_database()";
    let guards = super::arm::trigger(job, "");
    let rows = db.rows(sql, &[&names, &guards, &job.gid_prefix()]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Deletes every row of the scope. The session says that it is replication, by an origin that only a superuser can set:
/// the guards let it pass, and no foreign key or trigger of the application acts on it. `control` is shown how far it is.
pub async fn delete(db: &Db, job: &Job, tables: &[Table], buckets: u16, control: &Db) -> anyhow::Result<u64> {
    let mut part = Part::begin(job, control, &[db], tables).await?;
    let origin = literal(&job.origin());
    db.run(&format!(
        "SELECT pg_replication_origin_create({origin}) WHERE pg_replication_origin_oid({origin}) IS NULL; \
         SET session_replication_role = replica; SET synchronous_commit = off; \
         SELECT pg_replication_origin_session_setup({origin}) WHERE NOT pg_replication_origin_session_is_setup()"
    ))
    .await?;
    let mut total = 0;
    for table in tables {
        let scope = table.predicate("", &job.scope, buckets);
        for leaf in leaves(db, table).await? {
            // Page by page: a LIMIT would read all the dead rows again for each batch.
            let pages = pages(db, &leaf).await?;
            let mut from = 0;
            while from < pages {
                let begun = Instant::now();
                let to = (from + PAGES).min(pages);
                // The shard itself says that it does not own them: a process that was stopped and wakes up believes what was
                // true before.
                let sql = format!(
                    "DELETE FROM ONLY {leaf} WHERE ctid >= '({from},0)' AND ctid < '({to},0)' AND {scope} \
                     AND EXISTS (SELECT FROM shard_catalog.fence WHERE move_id = {})",
                    job.id
                );
                let rows = db.execute(&sql, &[]).await?;
                total += rows;
                part.done(to - from, rows).await?;
                from = to;
                if rows > 0 {
                    tokio::time::sleep(begun.elapsed().max(REST_LEAST)).await;
                }
            }
        }
    }
    db.run(&format!(
        "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop({origin}); \
         RESET session_replication_role; RESET synchronous_commit"
    ))
    .await?;
    part.end().await?;
    Ok(total)
}
