//! Digests of tables by chunks of their rows, and the rows of the chunks that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::changes::Key;
use super::job::Job;
use super::scope::hash_sql;
use super::tables::{Table, leaves, pages};
use super::verify::{ROWS_MAX, Rows, Suspects, key_array};
use crate::direct::Db;

/// Groups of rows, by bits of the hash that no bucket uses, whose digests are compared: so many rows each, if the number of
/// groups is then between these. Every group that a changed row is in is read row by row.
const CHUNK_ROWS: u64 = 16;
const CHUNKS_LEAST: u64 = 256;
const CHUNKS_MOST: u64 = 1 << 17;
/// A row takes more than this, for tables whose rows nobody has counted.
const ROW_BYTES: i64 = 256;
/// Pages of one statement.
const PAGES: i64 = 256;
/// A session that rests longer within its transaction would be ended.
const REST_MOST: Duration = Duration::from_secs(5);
/// Rows of unequal chunks are read in one statement.
const PATIENCE: Duration = Duration::from_secs(3600);

/// One table's outcome.
#[derive(Debug, Clone)]
pub struct Digest {
    pub table: String,
    pub rows: i64,
    /// Chunks that were unequal, which is normal while rows change.
    pub unequal: usize,
}

/// Digests every table on both sides. Returns what each table has, and the rows that differ in this moment.
pub async fn digests(
    giver: &mut Db,
    taker: &mut Db,
    job: &Job,
    tables: &[Table],
    buckets: u16,
) -> anyhow::Result<(Vec<Digest>, Suspects)> {
    let patience = giver.patience;
    (giver.patience, taker.patience) = (PATIENCE, PATIENCE);
    // Workers would take the processors that the application wants.
    let alone = "SET max_parallel_workers_per_gather = 0";
    tokio::try_join!(giver.run(alone), taker.run(alone))?;
    let outcome = all_digests(giver, taker, job, tables, buckets).await;
    (giver.patience, taker.patience) = (patience, patience);
    outcome
}

async fn all_digests(
    giver: &Db,
    taker: &Db,
    job: &Job,
    tables: &[Table],
    buckets: u16,
) -> anyhow::Result<(Vec<Digest>, Suspects)> {
    let (mut digests, mut suspects) = (Vec::new(), Suspects::new());
    for table in tables {
        // Not both at once: each keeps a processor busy, and the application wants them, too.
        let chunk = chunk_sql(table);
        let ours = chunks(giver, table, job, buckets, &chunk).await?;
        let theirs = chunks(taker, table, job, buckets, &chunk).await?;
        let numbers: BTreeSet<_> = ours.keys().chain(theirs.keys()).copied().collect();
        let unequal: Vec<i32> =
            numbers.into_iter().filter(|chunk| ours.get(chunk) != theirs.get(chunk)).collect();
        let rows = ours.values().map(|(rows, _)| rows).sum();
        if !unequal.is_empty() {
            let ours = rows_of_chunks(giver, table, job, buckets, &chunk, &unequal).await?;
            let theirs = rows_of_chunks(taker, table, job, buckets, &chunk, &unequal).await?;
            let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            let differing = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key));
            let differing: BTreeSet<Key> = differing.cloned().collect();
            anyhow::ensure!(
                differing.len() <= ROWS_MAX,
                "{} rows of {} differ",
                differing.len(),
                table.full_name()
            );
            if !differing.is_empty() {
                suspects.insert(table.full_name(), differing);
            }
        }
        digests.push(Digest { table: table.full_name(), rows, unequal: unequal.len() });
    }
    Ok((digests, suspects))
}

/// Buckets are the low bits of the hash, so a chunk takes higher ones and every range of buckets has all chunks.
fn chunk_sql(table: &Table) -> String {
    let hash = hash_sql(&super::scope::ident(&table.key_column), table.key_type);
    // The key alone would put a whole tenant into one chunk.
    format!("((({hash} >> 20) # hashtextextended({}, 1)) & {})::int4", table.key_text(), chunk_count(table.rows.max(table.bytes / ROW_BYTES)) - 1)
}

/// A power of two.
fn chunk_count(rows: i64) -> u64 {
    (rows.max(0).unsigned_abs() / CHUNK_ROWS).next_power_of_two().clamp(CHUNKS_LEAST, CHUNKS_MOST)
}

/// Rows and the sum of their digests, by chunk. In parts of a few pages with rests between them, in one snapshot: in it a
/// row stays where it is.
async fn chunks(
    db: &Db,
    table: &Table,
    job: &Job,
    buckets: u16,
    chunk: &str,
) -> anyhow::Result<BTreeMap<i32, (i64, i128)>> {
    db.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut chunks = BTreeMap::new();
    for leaf in leaves(db, table).await? {
        let sql = format!(
            "SELECT {chunk}, count(*), sum(hashtextextended({}, 0))::text FROM ONLY {leaf} \
             WHERE ctid >= $1::text::tid AND ctid < $2::text::tid AND {} GROUP BY 1",
            table.row_text(""),
            table.predicate("", &job.scope, buckets)
        );
        let pages = pages(db, &leaf).await?;
        let mut from = 0;
        while from < pages {
            let begun = Instant::now();
            let to = (from + PAGES).min(pages);
            let range = [from, to].map(|page| format!("({page},0)"));
            let rows = db.rows(&sql, &[&range[0], &range[1]]).await;
            for row in rows.with_context(|| format!("the digest of {}", table.full_name()))? {
                let sum: i128 = row.try_get::<_, String>(2)?.parse()?;
                let chunk: &mut (i64, i128) = chunks.entry(row.try_get(0)?).or_default();
                *chunk = (chunk.0 + row.try_get::<_, i64>(1)?, chunk.1 + sum);
            }
            from = to;
            if from < pages {
                tokio::time::sleep(begun.elapsed().min(REST_MOST)).await;
            }
        }
    }
    db.run("COMMIT").await?;
    Ok(chunks)
}

async fn rows_of_chunks(
    db: &Db,
    table: &Table,
    job: &Job,
    buckets: u16,
    chunk: &str,
    chunks: &[i32],
) -> anyhow::Result<Rows> {
    let sql = format!(
        "SELECT {}, hashtextextended({}, 0) FROM {} WHERE {} AND {chunk} = ANY ($1) LIMIT {}",
        key_array(table),
        table.row_text(""),
        table.sql(),
        table.predicate("", &job.scope, buckets),
        // Two chunks of a large table may be more than this process should hold: then it is not settled row by row.
        ROWS_MAX * 10
    );
    let rows = db.rows(&sql, &[&chunks]).await?;
    anyhow::ensure!(
        rows.len() < ROWS_MAX * 10,
        "too many rows of {} are in unequal chunks",
        table.full_name()
    );
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tables_have_more_chunks() {
        assert_eq!([-1, 0, 1_000, 100_000, 1_000_000_000].map(chunk_count), [256, 256, 256, 8192, 1 << 17]);
    }
}
