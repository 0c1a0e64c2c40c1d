//! Digests of tables by chunks of their rows, and the rows of the chunks that differ.
//!
//! Both sides are read page by page, each page as it is in that moment, one side after the other. A row that changes meanwhile may
//! be missed, or seen twice: it is looked at again anyway, by whoever knows what changed ([`Rounds`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::changes::Key;
use super::job::Job;
use super::part::Part;
use super::rounds::Rounds;
use super::run::Different;
use super::scope::hash_sql;
use super::tables::{Table, leaves, pages};
use super::verify::{Rows, Suspects, add, count, key_array};
use crate::direct::Db;

/// Groups of rows, by bits of the hash that no bucket uses, whose digests are compared: so many rows each, if the number of
/// groups is then between these. Every group that a changed row is in is read row by row.
const CHUNK_ROWS: u64 = 16;
const CHUNKS_LEAST: u64 = 256;
const CHUNKS_MOST: u64 = 1 << 20;
/// A row takes more than this, for tables whose rows nobody has counted.
const ROW_BYTES: i64 = 256;
/// Pages of one statement.
const PAGES: i64 = 256;
/// One statement may be of rows with megabytes beside them.
const PATIENCE: Duration = Duration::from_secs(300);
/// Rows of unequal chunks that are read at a time, of either side: each time is another pass over the table.
const ROWS_READ: i64 = 500_000;
/// So many rows that differ are no coincidence of a busy system.
const DIFFERING_MOST: usize = 1_000_000;

/// One table's outcome.
#[derive(Debug, Clone)]
pub struct Digest {
    pub table: String,
    pub rows: i64,
    /// Chunks that were unequal, which is normal while rows change.
    pub unequal: usize,
}

/// Digests every table on both sides. Returns what each table has, and the rows that differ in this moment, or may.
pub async fn digests(
    giver: &mut Db,
    taker: &mut Db,
    job: &Job,
    tables: &[Table],
    buckets: u16,
    rounds: Option<Rounds<'_>>,
) -> anyhow::Result<(Vec<Digest>, Suspects)> {
    let patience = giver.patience;
    (giver.patience, taker.patience) = (PATIENCE, PATIENCE);
    // Workers would take the processors that the application wants; and a plan for any list of chunks searches it for each row.
    let alone = "SET max_parallel_workers_per_gather = 0; SET plan_cache_mode = force_custom_plan";
    tokio::try_join!(giver.run(alone), taker.run(alone))?;
    let part = match &rounds {
        Some(rounds) => Some(Part::begin(job, rounds.control(), &[&*giver, &*taker], tables).await?),
        None => None,
    };
    let mut sides = Sides { giver, taker, job, tables, buckets, rounds, part, suspects: Suspects::new() };
    let outcome = sides.digests().await;
    let suspects = sides.suspects;
    (giver.patience, taker.patience) = (patience, patience);
    Ok((outcome?, suspects))
}

struct Sides<'a> {
    giver: &'a Db,
    taker: &'a Db,
    job: &'a Job,
    tables: &'a [Table],
    buckets: u16,
    rounds: Option<Rounds<'a>>,
    part: Option<Part<'a>>,
    suspects: Suspects,
}

#[derive(Clone, Copy)]
enum Side {
    Giver,
    Taker,
}

impl Sides<'_> {
    async fn digests(&mut self) -> anyhow::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for table in self.tables {
            // Not both at once: each keeps a processor busy, and the application wants them, too.
            let chunk = chunk_sql(table);
            let ours = self.chunks(Side::Giver, table, &chunk).await?;
            let theirs = self.chunks(Side::Taker, table, &chunk).await?;
            let unequal = unequal(&ours, &theirs);
            let rows = ours.values().map(|(rows, _)| rows).sum();
            drop((ours, theirs));
            for chunks in batches(&unequal, ROWS_READ) {
                let ours = self.rows_of_chunks(Side::Giver, table, &chunk, &chunks).await?;
                let theirs = self.rows_of_chunks(Side::Taker, table, &chunk, &chunks).await?;
                let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
                let differing = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key));
                let differing: BTreeSet<Key> = differing.cloned().collect();
                if !differing.is_empty() {
                    add(&mut self.suspects, BTreeMap::from([(table.full_name(), differing)]));
                }
                self.few_differ(table).await?;
            }
            digests.push(Digest { table: table.full_name(), rows, unequal: unequal.len() });
        }
        if let Some(part) = self.part.take() {
            part.end().await?;
        }
        Ok(digests)
    }

    /// Of very many, those that have only changed meanwhile are done with first.
    async fn few_differ(&mut self, table: &Table) -> anyhow::Result<()> {
        if count(&self.suspects) <= DIFFERING_MOST {
            return Ok(());
        }
        let Some(rounds) = &mut self.rounds else {
            anyhow::bail!(
                "more than {DIFFERING_MOST} rows of {} and tables before it differ",
                table.full_name()
            );
        };
        let (giver, taker) = (self.giver, self.taker);
        let round =
            rounds.round(giver, taker, self.job, self.tables, self.buckets, &mut self.suspects).await?;
        let (real, left) = (count(&round.real), count(&self.suspects));
        if real > DIFFERING_MOST {
            return Err(Different(format!(
                "{real} rows of {} and tables before it differ",
                table.full_name()
            ))
            .into());
        }
        anyhow::ensure!(
            left <= 3 * DIFFERING_MOST,
            "{left} rows are in doubt: they change faster than they are compared"
        );
        Ok(())
    }

    /// What is done between two pieces: the rows that changed are looked at, and the processors rest.
    async fn between(&mut self, took: Duration) -> anyhow::Result<()> {
        tokio::time::sleep(took).await;
        if let Some(rounds) = &mut self.rounds {
            rounds
                .look(self.giver, self.taker, self.job, self.tables, self.buckets, &mut self.suspects)
                .await?;
        }
        Ok(())
    }

    /// Every piece of a table of one side, as `sql` reads it with a range of pages. `$1` and `$2` are the range.
    async fn pieces(
        &mut self,
        side: Side,
        table: &Table,
        select: &str,
        rest_of_where: &str,
        chunks: Option<&[i32]>,
        mut each: impl FnMut(&Row) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let db = match side {
            Side::Giver => self.giver,
            Side::Taker => self.taker,
        };
        for leaf in leaves(db, table).await? {
            let sql = format!(
                "SELECT {select} FROM ONLY {leaf} WHERE ctid >= $1::text::tid AND ctid < $2::text::tid AND {} {rest_of_where}",
                table.predicate("", &self.job.scope, self.buckets)
            );
            let statement = db.prepare(&sql).await?;
            let (file, pages) = (file_of(db, &leaf).await?, pages(db, &leaf).await?);
            if let Some(part) = self.part.as_mut().filter(|_| chunks.is_some()) {
                part.again(pages);
            }
            let mut from = 0;
            while from < pages {
                let begun = Instant::now();
                let to = (from + PAGES).min(pages);
                let range = [from, to].map(|page| format!("({page},0)"));
                let mut params: Vec<&(dyn ToSql + Sync)> = vec![&range[0], &range[1]];
                if let Some(chunks) = &chunks {
                    params.push(chunks);
                }
                let rows = db.answered(db.client.query(&statement, &params)).await;
                for row in rows.with_context(|| format!("the digest of {}", table.full_name()))? {
                    each(&row)?;
                }
                if let Some(part) = &mut self.part {
                    part.done(to - from, 0).await?;
                }
                from = to;
                self.between(begun.elapsed()).await?;
            }
            // Its rows may have been where nobody looked any more.
            anyhow::ensure!(
                file == file_of(db, &leaf).await?,
                "{leaf} was rewritten meanwhile (VACUUM FULL, CLUSTER)"
            );
        }
        Ok(())
    }

    /// Rows and the sum of their digests, by chunk.
    async fn chunks(&mut self, side: Side, table: &Table, chunk: &str) -> anyhow::Result<Chunks> {
        let mut chunks = Chunks::new();
        let select = format!("{chunk}, count(*), sum(hashtextextended({}, 0))::text", table.row_text(""));
        let count = |row: &Row| {
            let sum: i128 = row.try_get::<_, String>(2)?.parse()?;
            let chunk: &mut (i64, i128) = chunks.entry(row.try_get(0)?).or_default();
            *chunk = (chunk.0 + row.try_get::<_, i64>(1)?, chunk.1 + sum);
            Ok(())
        };
        self.pieces(side, table, &select, "GROUP BY 1", None, count).await?;
        Ok(chunks)
    }

    async fn rows_of_chunks(
        &mut self,
        side: Side,
        table: &Table,
        chunk: &str,
        chunks: &[i32],
    ) -> anyhow::Result<Rows> {
        let mut found = Rows::new();
        let select = format!("{}, hashtextextended({}, 0)", key_array(table), table.row_text(""));
        let keep = |row: &Row| {
            found.insert(row.try_get(0)?, row.try_get(1)?);
            Ok(())
        };
        self.pieces(side, table, &select, &format!("AND {chunk} = ANY ($3)"), Some(chunks), keep).await?;
        Ok(found)
    }
}

/// By chunk: rows, and the sum of their digests.
type Chunks = BTreeMap<i32, (i64, i128)>;

async fn file_of(db: &Db, leaf: &str) -> anyhow::Result<i64> {
    db.value("SELECT pg_relation_filenode($1::text::regclass)::int8", &[&leaf]).await
}

/// Chunks that differ, with the rows that the larger one has. PURE.
fn unequal(ours: &Chunks, theirs: &Chunks) -> Vec<(i32, i64)> {
    let numbers: BTreeSet<_> = ours.keys().chain(theirs.keys()).copied().collect();
    let differing = numbers.into_iter().filter(|chunk| ours.get(chunk) != theirs.get(chunk));
    let rows = |chunk: i32| {
        [ours, theirs].map(|side| side.get(&chunk).map_or(0, |(rows, _)| *rows)).into_iter().max()
    };
    differing.map(|chunk| (chunk, rows(chunk).unwrap_or(0))).collect()
}

/// The chunks in groups of at most so many rows, or of one chunk. PURE.
fn batches(chunks: &[(i32, i64)], most: i64) -> Vec<Vec<i32>> {
    let mut batches: Vec<Vec<i32>> = Vec::new();
    let mut room = 0;
    for &(chunk, rows) in chunks {
        match batches.last_mut() {
            Some(batch) if rows <= room => {
                batch.push(chunk);
                room -= rows;
            }
            _ => {
                batches.push(vec![chunk]);
                room = most - rows;
            }
        }
    }
    batches
}

/// Buckets are the low bits of the hash, so a chunk takes higher ones and every range of buckets has all chunks.
fn chunk_sql(table: &Table) -> String {
    let hash = hash_sql(&super::scope::ident(&table.key_column), table.key_type);
    // The key alone would put a whole tenant into one chunk.
    format!(
        "((({hash} >> 20) # hashtextextended({}, 1)) & {})::int4",
        table.key_text(),
        chunk_count(table.rows.max(table.bytes / ROW_BYTES)) - 1
    )
}

/// A power of two.
fn chunk_count(rows: i64) -> u64 {
    (rows.max(0).unsigned_abs() / CHUNK_ROWS).next_power_of_two().clamp(CHUNKS_LEAST, CHUNKS_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tables_have_more_chunks() {
        assert_eq!([-1, 0, 1_000, 100_000, 1_000_000_000].map(chunk_count), [256, 256, 256, 8192, 1 << 20]);
    }

    #[test]
    fn what_is_unequal_is_read_in_parts() {
        let sides = [vec![(1, 5), (2, 3), (4, 7)], vec![(1, 5), (2, 4), (3, 1)]]
            .map(|side| side.into_iter().map(|(chunk, rows)| (chunk, (rows, i128::from(rows)))).collect());
        assert_eq!(unequal(&sides[0], &sides[1]), [(2, 4), (3, 1), (4, 7)]);
        assert_eq!(
            batches(&[(2, 4), (3, 1), (4, 7), (5, 100), (6, 1)], 10),
            [vec![2, 3], vec![4], vec![5], vec![6]]
        );
        assert!(batches(&[], 10).is_empty());
        assert_eq!(batches(&[(1, 0), (2, 0), (3, 10), (4, 0), (5, 1)], 10), [vec![1, 2, 3, 4], vec![5]]);
    }
}
