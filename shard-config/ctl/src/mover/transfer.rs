//! The first copy of a scope's rows: piece by piece in one snapshot, each piece one transaction on the target, by workers that
//! take a table each, as `pace` lets them. Between two pieces nothing is locked, however long somebody lets it wait.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{SinkExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::Statement;

use super::pace::{PART_BYTES, Pace};
use super::preflight::human;
use super::scope::{Scope, ident, literal};
use super::snapshot::{Snapshot, endless, enter};
use super::tables::{Table, leaves};
use super::throttle::{Commits, Throttle};
use crate::direct::{Db, Servers};

/// No server says nothing for so long unless it is gone. Somebody may hold a lock for a while.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a binary COPY of no rows consists of: signature, flags, length of the extension, and the end.
const BINARY_EMPTY: usize = 11 + 4 + 4 + 2;

/// Copying under way. It ends when this is dropped: what was committed stays on the target.
pub(super) struct Transfer {
    snapshot: Snapshot,
    work: Arc<Work>,
    workers: JoinSet<anyhow::Result<()>>,
    session_name: String,
    /// What payments wait for meanwhile.
    pub(super) commits: Commits,
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
    as_text: bool,
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
            ..*done
        };
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfer {
    pub(super) fn new(
        snapshot: Snapshot,
        mut tables: Vec<Table>,
        scope: &Scope,
        buckets: u16,
        session_name: String,
    ) -> Self {
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
        let (workers, commits) = (JoinSet::new(), Commits::default());
        Self { snapshot, work: Arc::new(work), workers, session_name, commits, trouble: None }
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
        limit
            .map(|limit| format!("it has copied what {}/s allow", human(limit)))
            .or_else(|| self.trouble.clone())
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
            "tables": done.len(), "as_text": names(|done| done.as_text),
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
    (giver.patience, taker.patience) = (PATIENCE, PATIENCE);
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
    let portable =
        futures_util::try_join!(is_portable(giver, table), is_portable(taker, table), leaves(giver, table));
    let (ours, theirs, leaves) = portable?;
    let binary = ours && theirs;
    locked(&work.done)[at].as_text = !binary;
    let into = taker.prepare(&in_sql(table, binary)).await?;
    for (n, leaf) in leaves.iter().enumerate() {
        let mut page_bytes = Place::read(giver.command(&Place::sql(leaf)).await?)?.page_bytes();
        let (mut from, mut last) = (0, None);
        loop {
            while let Some(wait) = work.pace.wait(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
            let to = from + work.pace.pages(page_bytes);
            let piece = Piece { leaf, out: out_sql(table, leaf, from, to, work, binary), binary };
            let copied = piece.copy(giver, snapshot, taker, &into, &work.pace).await?;
            // Rows that are written later are on later pages, too, and not in the snapshot.
            let last = *last.get_or_insert(copied.place.pages);
            let to = to.min(last);
            page_bytes = copied.place.page_bytes();
            let part = (n as f64 + to as f64 / last.max(1) as f64) / leaves.len() as f64;
            work.count(at, part, copied.rows, copied.bytes);
            tokio::time::sleep(work.pace.spent(to - from, copied.took)).await;
            from = to;
            if from >= last {
                break;
            }
        }
    }
    locked(&work.done)[at].part = 1.0;
    Ok(())
}

/// Where a table's rows are.
#[derive(Debug)]
struct Place {
    pages: i64,
    /// With all that is stored beside them.
    bytes: i64,
}

impl Place {
    /// The catalog is read in the snapshot, and what the functions say is true now.
    fn sql(leaf: &str) -> String {
        format!(
            "SELECT c.relfilenode = pg_relation_filenode(c.oid) AS there, pg_table_size(c.oid) AS bytes, \
             pg_relation_size(c.oid) / current_setting('block_size')::int8 AS pages FROM pg_class c WHERE c.oid = {}::regclass",
            literal(leaf)
        )
    }

    fn page_bytes(&self) -> i64 {
        self.bytes / self.pages.max(1)
    }

    fn read(mut row: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let mut value = |name: &str| row.remove(name).with_context(|| format!("no {name}"));
        // Not every way to do that keeps the rows for those who came before.
        anyhow::ensure!(value("there")? == "t", "it was rewritten meanwhile (VACUUM FULL, CLUSTER)");
        Ok(Self { pages: value("pages")?.parse()?, bytes: value("bytes")?.parse()? })
    }
}

/// One transaction on either side. Every round trip is a wait for a processor on both sides, so what can is sent at once.
struct Piece<'a> {
    leaf: &'a str,
    out: String,
    binary: bool,
}

struct Copied {
    place: Place,
    rows: u64,
    bytes: u64,
    /// Without the time that it waited for the limit.
    took: Duration,
}

impl Piece<'_> {
    async fn copy(
        &self,
        giver: &Db,
        snapshot: &str,
        taker: &Db,
        into: &Statement,
        pace: &Pace,
    ) -> anyhow::Result<Copied> {
        let Self { leaf, out, .. } = self;
        // The lock keeps the rows where they are (VACUUM FULL), and with the snapshot none of them is removed.
        let begin =
            format!("{} LOCK TABLE ONLY {leaf} IN ACCESS SHARE MODE; {}", enter(snapshot), Place::sql(leaf));
        let (begun, out) = futures_util::join!(giver.command(&begin), giver.prepare(out));
        // Without its code: that the snapshot is gone is nothing that repetition does not mend.
        let place = begun.map_err(|error| anyhow::anyhow!("the snapshot: {error:#}"))?;
        let (place, out) = (Place::read(place).with_context(|| (*leaf).to_owned())?, out?);
        let begun = Instant::now();
        let (rows, bytes, waited) = self.rows(giver, &out, taker, into, pace).await?;
        Ok(Copied { place, rows, bytes, took: begun.elapsed().saturating_sub(waited) })
    }

    /// Rows, bytes, and how long it waited for the limit. What has no rows costs the target nothing.
    async fn rows(
        &self,
        giver: &Db,
        out: &Statement,
        taker: &Db,
        into: &Statement,
        pace: &Pace,
    ) -> anyhow::Result<(u64, u64, Duration)> {
        let begun = Instant::now();
        let mut out = pin!(giver.copy_out(out).await?);
        let mut next = giver.answered(out.try_next()).await?;
        if self.binary && next.as_ref().is_some_and(|first| first.len() <= BINARY_EMPTY) {
            // The end of the statement.
            let mut bytes = 0;
            while let Some(end) = next {
                bytes += end.len();
                anyhow::ensure!(bytes <= BINARY_EMPTY, "a COPY whose first message has no row");
                next = giver.answered(out.try_next()).await?;
            }
        }
        if next.is_none() {
            giver.run("COMMIT").await?;
            return Ok((0, 0, Duration::ZERO));
        }
        // COPY by itself is answered before it commits, and an error of that commit would be nobody's.
        let begin = taker.run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
        let (begin, sink) = futures_util::join!(begin, taker.copy_in(into));
        begin?;
        let mut sink = pin!(sink?);
        let (mut bytes, mut counted, mut waited) = (0, 0, Duration::ZERO);
        while let Some(chunk) = next {
            bytes += chunk.len() as u64;
            taker.answered(sink.feed(chunk)).await?;
            if bytes - counted >= PART_BYTES {
                pace.copied(begun, bytes - counted);
                counted = bytes;
                while let Some(wait) = pace.owed(Instant::now()) {
                    tokio::time::sleep(wait).await;
                    waited += wait;
                }
            }
            next = giver.answered(out.try_next()).await?;
        }
        pace.copied(begun, bytes - counted);
        // Sent after the end of the rows. Of a transaction that has failed it is a ROLLBACK, so what counts is that all are well.
        let end = taker.answered(sink.as_mut().finish());
        let (rows, taken, given) = futures_util::join!(end, taker.run("COMMIT"), giver.run("COMMIT"));
        let rows = rows?;
        taken.and(given).map(|()| (rows, bytes, waited))
    }
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
