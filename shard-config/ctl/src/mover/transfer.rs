//! The first copy of a scope's rows: piece by piece in one snapshot, each piece one transaction on the target, by workers that
//! take a table each, as `pace` lets them. The source's statements go on from one piece to the next: between two of them they
//! wait for somebody to read their rows.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::CopyOutStream;

use super::copy_format::Rows;
use super::pace::Pace;
use super::scope::{Scope, ident};
use super::snapshot::{Snapshot, enter};
use super::tables::{Table, leaves, pages};
use super::throttle::Throttle;
use crate::direct::{Db, Servers};

/// No piece takes so long unless a server is gone.
const PIECE_LIMIT: Duration = Duration::from_secs(300);
/// Pages of one statement of the source: what is known of a table's progress.
const RANGE: i64 = 4096;

/// Copying under way. It ends when this is dropped: what was committed stays on the target.
pub(super) struct Transfer {
    snapshot: Snapshot,
    work: Arc<Work>,
    workers: JoinSet<anyhow::Result<()>>,
    session_name: String,
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
}

impl Work {
    fn count(&self, table: usize, part: f64, piece: &Piece) {
        let done = &mut locked(&self.done)[table];
        // The end is said when it is known to be the end.
        let part = part.min(0.999);
        *done = Done { begun: true, part, rows: done.rows + piece.rows, bytes: done.bytes + piece.bytes };
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
        Self { snapshot, work: Arc::new(work), workers: JoinSet::new(), session_name }
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
        work.pace.allow(Instant::now(), !held, throttle.bytes_per_second, throttle.parallel());
        while !locked(&work.queue).is_empty() && work.pace.join() {
            let giver = servers.beside(source, &self.session_name).await?;
            let taker = servers.beside(target, &self.session_name).await?;
            self.workers.spawn(worker(work.clone(), giver, taker, self.snapshot.name().to_owned()));
        }
        Ok(self.workers.is_empty() && locked(&work.queue).is_empty())
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
async fn worker(work: Arc<Work>, giver: Db, taker: Db, snapshot: String) -> anyhow::Result<()> {
    giver.run("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0").await?;
    // As for replicated rows: the source has checked them, and the target's triggers have fired there. A loss of the last
    // commits is a loss of this session, and then everything is copied anew; who ends the copy waits for the disk.
    taker.run("SET statement_timeout = 0; SET session_replication_role = replica; SET synchronous_commit = off").await?;
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
    // A transaction a table: it keeps nobody from the others.
    enter(giver, snapshot).await?;
    let binary = is_portable(giver, table).await? && is_portable(taker, table).await?;
    let into = in_sql(table, binary);
    let leaves = leaves(giver, table).await?;
    let mut part = 0.0;
    for (n, leaf) in leaves.iter().enumerate() {
        // The lock keeps the rows where they are (VACUUM FULL), and with the snapshot none of them is removed.
        giver.run(&format!("LOCK TABLE ONLY {leaf} IN ACCESS SHARE MODE")).await?;
        let all = pages(giver, leaf).await?;
        let mut from = 0;
        while from < all {
            let to = (from + RANGE).min(all);
            let mut out = pin!(giver.copy_out(&out_sql(table, leaf, from, to, work, binary)).await?);
            let mut rows = Rows::new(binary);
            loop {
                while let Some(wait) = work.pace.wait(Instant::now()) {
                    tokio::time::sleep(wait).await;
                }
                let begun = Instant::now();
                let piece = copy_piece(giver, out.as_mut(), &mut rows, taker, &into, work.pace.piece_bytes());
                let copied = tokio::time::timeout(PIECE_LIMIT, piece).await;
                let piece = copied.with_context(|| format!("no end of one piece within {PIECE_LIMIT:?}"))??;
                let rest = work.pace.spent(Instant::now(), piece.bytes, begun.elapsed());
                if piece.is_last {
                    part = (n as f64 + to as f64 / all as f64) / leaves.len() as f64;
                }
                work.count(at, part, &piece);
                tokio::time::sleep(rest).await;
                if piece.is_last {
                    break;
                }
            }
            from = to;
        }
    }
    giver.run("COMMIT").await?;
    locked(&work.done)[at].part = 1.0;
    Ok(())
}

/// One transaction of the target.
struct Piece {
    rows: u64,
    bytes: u64,
    /// The source's statement has ended.
    is_last: bool,
}

/// Copies rows until they are `most` bytes, or there are no more. What has no rows costs the target nothing.
async fn copy_piece(
    giver: &Db,
    mut out: Pin<&mut CopyOutStream>,
    rows: &mut Rows,
    taker: &Db,
    into: &str,
    most: u64,
) -> anyhow::Result<Piece> {
    let mut piece = Piece { rows: 0, bytes: 0, is_last: true };
    let mut sink = None;
    while let Some(message) = out.next().await.transpose().map_err(|error| giver.refused(&error))? {
        let Some(row) = rows.of(message) else { continue };
        let sink = match &mut sink {
            Some(sink) => sink,
            none => {
                let mut begun = Box::pin(taker.copy_in(into).await?);
                begun.feed(rows.header()).await.map_err(|error| taker.refused(&error))?;
                none.insert(begun)
            }
        };
        piece.bytes += row.len() as u64;
        sink.feed(row).await.map_err(|error| taker.refused(&error))?;
        if piece.bytes >= most {
            piece.is_last = false;
            break;
        }
    }
    if let Some(mut sink) = sink {
        sink.feed(rows.trailer()).await.map_err(|error| taker.refused(&error))?;
        piece.rows = sink.as_mut().finish().await.map_err(|error| taker.refused(&error))?;
    }
    Ok(piece)
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
