//! The first copy of a scope's rows: piece by piece in one snapshot, each piece one transaction on the target, by workers that
//! take a table each, as `pace` lets them. Between two pieces nothing is locked, however long somebody lets it wait.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::pace::Pace;
use super::preflight::human;
use super::scope::{Scope, ident, literal};
use super::snapshot::{Snapshot, endless, enter};
use super::tables::{Table, leaves};
use super::throttle::Throttle;
use crate::direct::{Db, Servers};

/// No piece takes so long unless a server is gone.
const PIECE_LIMIT: Duration = Duration::from_secs(300);
/// What a binary COPY of no rows consists of: signature, flags, length of the extension, and the end.
const BINARY_EMPTY: usize = 11 + 4 + 4 + 2;

/// Copying under way. It ends when this is dropped: what was committed stays on the target.
pub(super) struct Transfer {
    snapshot: Snapshot,
    work: Arc<Work>,
    workers: JoinSet<anyhow::Result<()>>,
    session_name: String,
    /// Why there are fewer workers than may be.
    trouble: Option<String>,
}

struct Work {
    tables: Vec<Table>,
    scope: Scope,
    buckets: u16,
    pace: Pace,
    queue: Mutex<VecDeque<usize>>,
    done: Mutex<Vec<Done>>,
}

/// How far one table is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Done {
    begun: bool,
    /// From 0 to 1.
    part: f64,
    rows: u64,
    bytes: u64,
    pieces: u64,
}

impl Work {
    fn count(&self, table: usize, part: f64, rows: u64, bytes: u64) {
        let done = &mut locked(&self.done)[table];
        // The end is said when it is known to be the end.
        *done = Done {
            begun: true,
            part: part.min(0.999),
            rows: done.rows + rows,
            bytes: done.bytes + bytes,
            pieces: done.pieces + 1,
        };
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfer {
    pub(super) fn new(snapshot: Snapshot, mut tables: Vec<Table>, scope: &Scope, buckets: u16, session_name: String) -> Self {
        // The largest first: they are what the copy waits for in the end.
        tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
        let work = Work {
            scope: scope.clone(),
            buckets,
            pace: Pace::new(Instant::now()),
            queue: Mutex::new((0..tables.len()).collect()),
            done: Mutex::new(vec![Done::default(); tables.len()]),
            tables,
        };
        Self { snapshot, work: Arc::new(work), workers: JoinSet::new(), session_name, trouble: None }
    }

    /// Lets it go on for a moment, unless it is held, with as many workers as may be. True when every row is copied.
    pub(super) async fn look(
        &mut self,
        servers: &Servers,
        source: &Db,
        target: &Db,
        throttle: &Throttle,
        held: bool,
    ) -> anyhow::Result<bool> {
        while let Some(ended) = self.workers.try_join_next() {
            ended.context("a worker of the copy")??;
        }
        let work = &self.work;
        self.trouble = None;
        work.pace.allow(Instant::now(), !held, throttle.bytes_per_second, throttle.parallel());
        // Each new one takes a table off the queue, a moment later.
        let waiting = locked(&work.queue).len();
        for _ in 0..waiting {
            if !work.pace.join() {
                break;
            }
            let name = &self.session_name;
            match futures_util::try_join!(servers.beside(source, name), servers.beside(target, name)) {
                Ok((giver, taker)) => {
                    self.workers.spawn(worker(work.clone(), giver, taker, self.snapshot.name().to_owned()));
                }
                Err(error) => {
                    work.pace.leave();
                    if self.workers.is_empty() {
                        return Err(error);
                    }
                    // The others go on.
                    self.trouble = Some(format!("no further table at a time: {error:#}"));
                    break;
                }
            }
        }
        Ok(self.workers.is_empty() && locked(&work.queue).is_empty())
    }

    /// Lets the snapshot go, and returns where the slot begins.
    pub(super) fn end(self) -> String {
        self.snapshot.at
    }

    /// Why it waits, if it is not held and waits all the same.
    pub(super) fn waits_for(&self) -> Option<String> {
        let limit = self.work.pace.limit(Instant::now());
        limit.map(|limit| format!("it has copied what {}/s allow", human(limit))).or_else(|| self.trouble.clone())
    }

    /// For the screen.
    pub(super) fn progress(&self) -> Value {
        let done = locked(&self.work.done).clone();
        let names = |which: fn(&Done) -> bool| -> Vec<String> {
            let which = self.work.tables.iter().zip(&done).filter(|(_, done)| which(done));
            which.map(|(table, _)| table.full_name()).collect()
        };
        json!({
            "ready": names(|done| done.part >= 1.0), "copying": names(|done| done.begun && done.part < 1.0),
            "tables": done.len(),
            "rows": done.iter().map(|done| done.rows).sum::<u64>(), "bytes": done.iter().map(|done| done.bytes).sum::<u64>(),
            "pieces": done.iter().map(|done| done.pieces).sum::<u64>(),
            "percent": percent(self.work.tables.iter().map(|table| table.bytes).zip(done.iter().map(|done| done.part))),
        })
    }
}

/// Of tables of so many bytes, each of which is copied to a part. PURE.
fn percent(tables: impl Iterator<Item = (i64, f64)>) -> u64 {
    // An empty table is something to be done, too.
    let (all, done) = tables.fold((0.0, 0.0), |(all, done), (bytes, part)| {
        let weight = bytes.max(8192) as f64;
        (all + weight, done + weight * part)
    });
    if all > 0.0 { (100.0 * done / all) as u64 } else { 100 }
}

/// Copies one table after the other until none is left, or there are too many workers.
async fn worker(work: Arc<Work>, mut giver: Db, mut taker: Db, snapshot: String) -> anyhow::Result<()> {
    // Somebody may hold a lock for a while.
    (giver.patience, taker.patience) = (PIECE_LIMIT, PIECE_LIMIT);
    endless(&giver).await?;
    endless(&taker).await?;
    // As for replicated rows: the source has checked them, and the target's triggers have fired there. A loss of the last
    // commits is a loss of this session, and then everything is copied anew; who ends the copy waits for the disk.
    taker.run("SET session_replication_role = replica; SET synchronous_commit = off").await?;
    loop {
        let Some(at) = locked(&work.queue).pop_front() else { break };
        let table = &work.tables[at];
        copy_table(&work, &giver, &taker, &snapshot, at)
            .await
            .with_context(|| format!("copying {}", table.full_name()))?;
        if work.pace.is_surplus() {
            return Ok(());
        }
    }
    work.pace.leave();
    Ok(())
}

async fn copy_table(work: &Work, giver: &Db, taker: &Db, snapshot: &str, at: usize) -> anyhow::Result<()> {
    let table = &work.tables[at];
    let binary = is_portable(giver, table).await? && is_portable(taker, table).await?;
    let into = in_sql(table, binary);
    let leaves = leaves(giver, table).await?;
    for (n, leaf) in leaves.iter().enumerate() {
        let (mut from, mut first) = (0, None);
        loop {
            while let Some(wait) = work.pace.wait(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
            let begun = Instant::now();
            // The lock keeps the rows where they are (VACUUM FULL), and with the snapshot none of them is removed.
            let lock = format!("LOCK TABLE ONLY {leaf} IN ACCESS SHARE MODE");
            // Without its code: that the snapshot is gone is nothing that repetition does not mend.
            enter(giver, snapshot, &lock).await.map_err(|error| anyhow::anyhow!("the snapshot: {error:#}"))?;
            let now = place_of(giver, leaf).await?;
            // Rows that are written later are on later pages, too, and not in the snapshot.
            let place = first.get_or_insert_with(|| now.clone());
            anyhow::ensure!(place.file == now.file, "{leaf} was rewritten meanwhile (VACUUM FULL, CLUSTER)");
            let to = (from + work.pace.pages()).min(place.pages);
            let out = out_sql(table, leaf, from, to, work, binary);
            let copied = tokio::time::timeout(PIECE_LIMIT, copy_piece(giver, taker, &out, &into, binary)).await;
            let (rows, bytes) = copied.with_context(|| format!("no end of one piece within {PIECE_LIMIT:?}"))??;
            giver.run("COMMIT").await?;
            let rest = work.pace.spent(Instant::now(), to - from, bytes, begun.elapsed());
            let part = (n as f64 + to as f64 / place.pages.max(1) as f64) / leaves.len() as f64;
            work.count(at, part, rows, bytes);
            from = to;
            if from >= place.pages {
                break;
            }
            tokio::time::sleep(rest).await;
        }
    }
    locked(&work.done)[at].part = 1.0;
    Ok(())
}

/// Where a table's rows are.
#[derive(Debug, Clone)]
struct Place {
    file: String,
    pages: i64,
}

async fn place_of(db: &Db, leaf: &str) -> anyhow::Result<Place> {
    let sql = format!(
        "SELECT pg_relation_filenode({0}::regclass) AS file, \
         pg_relation_size({0}::regclass) / current_setting('block_size')::int8 AS pages",
        literal(leaf)
    );
    let mut row = db.command(&sql).await?;
    let mut value = |name: &str| row.remove(name).with_context(|| format!("{leaf} has no {name}"));
    Ok(Place { file: value("file")?, pages: value("pages")?.parse()? })
}

/// Rows and bytes of one piece, in one transaction of the target. What has no rows costs the target nothing.
async fn copy_piece(giver: &Db, taker: &Db, out: &str, into: &str, binary: bool) -> anyhow::Result<(u64, u64)> {
    let mut out = pin!(giver.copy_out(out).await?);
    let mut next = out.next().await.transpose().map_err(|error| giver.refused(&error))?;
    if binary && next.as_ref().is_some_and(|first| first.len() <= BINARY_EMPTY) {
        // The end of the statement.
        let mut bytes = 0;
        while let Some(end) = next {
            bytes += end.len();
            anyhow::ensure!(bytes <= BINARY_EMPTY, "a COPY whose first message has no row");
            next = out.next().await.transpose().map_err(|error| giver.refused(&error))?;
        }
    }
    if next.is_none() {
        return Ok((0, 0));
    }
    // COPY by itself is answered before it commits, and an error of that commit would be nobody's.
    taker.run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
    let mut sink = pin!(taker.copy_in(into).await?);
    let mut bytes = 0;
    while let Some(chunk) = next {
        bytes += chunk.len() as u64;
        sink.feed(chunk).await.map_err(|error| taker.refused(&error))?;
        next = out.next().await.transpose().map_err(|error| giver.refused(&error))?;
    }
    let rows = sink.as_mut().finish().await.map_err(|error| taker.refused(&error))?;
    taker.run("COMMIT").await?;
    Ok((rows, bytes))
}

/// Whether values of the table's columns mean the same on every server in binary form: those of types with numbers that
/// initdb gives (below `FirstGenbkiObjectId`, access/transam.h), and not numbers of objects that stand for names.
async fn is_portable(db: &Db, table: &Table) -> anyhow::Result<bool> {
    let sql = "SELECT coalesce(bool_and(t.oid < 10000 AND t.typsend <> 0 AND t.typreceive <> 0 AND t.typname !~ '^_?reg'), false) \
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
               WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";
    db.holds(sql, &[&table.sql()]).await
}

fn columns(table: &Table) -> String {
    table.columns.iter().map(|column| ident(column)).collect::<Vec<_>>().join(", ")
}

fn format_of(binary: bool) -> &'static str {
    if binary { "binary" } else { "text" }
}

fn out_sql(table: &Table, leaf: &str, from: i64, to: i64, work: &Work, binary: bool) -> String {
    format!(
        "COPY (SELECT {} FROM ONLY {leaf} WHERE ctid >= '({from},0)' AND ctid < '({to},0)' AND {}) TO STDOUT (FORMAT {})",
        columns(table),
        table.predicate("", &work.scope, work.buckets),
        format_of(binary)
    )
}

fn in_sql(table: &Table, binary: bool) -> String {
    // Into the root: partitions may have other names there.
    format!("COPY {} ({}) FROM STDIN (FORMAT {})", table.sql(), columns(table), format_of(binary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tables_count_for_more() {
        assert_eq!(percent([(1 << 20, 1.0), (3 << 20, 0.0)].into_iter()), 25);
        assert_eq!(percent([(0, 1.0), (0, 0.0)].into_iter()), 50);
        assert_eq!(percent(std::iter::empty()), 100);
    }
}
