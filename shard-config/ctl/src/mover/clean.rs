//! Deleting the rows of a scope from a shard that does not own it, in small transactions.

use std::time::{Duration, Instant};

use super::job::Job;
use super::part::Part;
use super::scope::literal;
use super::tables::{Table, leaves, pages};
use crate::direct::Db;

/// Pages of one statement: few enough that its locks and its WAL stay small beside the payments'.
const PAGES: i64 = 64;
const PAGES_READ: i64 = 1024;
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
