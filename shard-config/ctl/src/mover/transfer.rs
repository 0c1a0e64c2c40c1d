//! The first copy of a scope's rows: piece by piece in one snapshot, each piece one transaction on the target, by lanes that
//! take a table (or a partition) each, as `pace` lets them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::lane::Lane;
use super::leaves::Leaf;
use super::pace::Pace;
use super::piece::{Piece, Rest};
use super::preflight::human;
use super::scope::Scope;
use super::snapshot::Snapshot;
use super::tables::Table;
use super::throttle::{Commits, Throttle};
use crate::direct::{Db, Servers};

/// Copying under way. It ends when this is dropped: what was committed stays on the target.
pub(super) struct Transfer {
    snapshot: Snapshot,
    work: Arc<Work>,
    lanes: JoinSet<anyhow::Result<()>>,
    /// One that was opened before there was anything to do.
    spare: Option<Lane>,
    session_name: String,
    /// What payments wait for meanwhile.
    pub(super) commits: Commits,
    /// Why there are fewer lanes than may be.
    trouble: Option<String>,
}

/// What is to be copied.
pub(super) struct Rows {
    pub(super) tables: Vec<Table>,
    /// Of these tables, in their order.
    pub(super) leaves: Vec<Leaf>,
    /// The form that each table's rows are copied in.
    pub(super) binary: Vec<bool>,
    pub(super) scope: Scope,
    pub(super) buckets: u16,
}

pub(super) struct Work {
    pub(super) tables: Vec<Table>,
    pub(super) scope: Scope,
    pub(super) buckets: u16,
    pub(super) binary: Vec<bool>,
    pub(super) pace: Pace,
    /// A lane has ended.
    pub(super) ended: Notify,
    queue: Mutex<VecDeque<Rest>>,
    done: Mutex<Done>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Done {
    tables: Vec<Part>,
    pieces: u64,
}

/// How far one table is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Part {
    begun: bool,
    pages: i64,
    copied: i64,
    rows: u64,
    bytes: u64,
}

impl Part {
    /// From 0 to 1.
    fn part(&self) -> f64 {
        if self.pages > 0 { self.copied as f64 / self.pages as f64 } else { 1.0 }
    }

    fn is_done(&self) -> bool {
        self.copied >= self.pages
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    fn new(rows: Rows) -> Self {
        let Rows { tables, leaves, binary, scope, buckets } = rows;
        let mut parts = vec![Part::default(); tables.len()];
        let mut leaves: Vec<Leaf> = leaves.into_iter().filter(|leaf| leaf.pages > 0).collect();
        for leaf in &leaves {
            parts[leaf.table].pages += leaf.pages;
        }
        // The largest first: they are what the copy waits for in the end.
        leaves.sort_by_key(|leaf| std::cmp::Reverse(leaf.pages.saturating_mul(leaf.page_bytes)));
        Self {
            queue: Mutex::new(leaves.into_iter().map(Rest::new).collect()),
            done: Mutex::new(Done { tables: parts, pieces: 0 }),
            pace: Pace::new(Instant::now()),
            ended: Notify::new(),
            tables,
            scope,
            buckets,
            binary,
        }
    }

    /// What a lane is to copy next, which has this left of a leaf. `None` when it is to end: nobody counts it any more.
    pub(super) fn next_piece(&self, current: &mut Option<Rest>) -> Option<Piece> {
        if current.is_none() && self.pace.is_surplus() {
            return None;
        }
        let Some(rest) = current.take().or_else(|| locked(&self.queue).pop_front()) else {
            self.pace.leave();
            return None;
        };
        let most = self.pace.pages(rest.page_bytes());
        let (piece, left) = rest.next(most);
        *current = left;
        locked(&self.done).tables[piece.leaf.table].begun = true;
        Some(piece)
    }

    /// A piece is committed.
    pub(super) fn count(&self, piece: &Piece, rows: u64, bytes: u64) {
        let mut done = locked(&self.done);
        let part = &mut done.tables[piece.leaf.table];
        part.copied += piece.pages();
        part.rows += rows;
        part.bytes += bytes;
        done.pieces += 1;
    }
}

impl Transfer {
    pub(super) fn new(snapshot: Snapshot, rows: Rows, spare: Lane, session_name: String) -> Self {
        Self {
            snapshot,
            work: Arc::new(Work::new(rows)),
            lanes: JoinSet::new(),
            spare: Some(spare),
            session_name,
            commits: Commits::default(),
            trouble: None,
        }
    }

    /// Lets it go on for a moment, unless it is held, with as many lanes as may be. True when every row is copied.
    pub(super) async fn look(
        &mut self,
        servers: &Servers,
        source: &Db,
        target: &Db,
        throttle: &Throttle,
        held: bool,
    ) -> anyhow::Result<bool> {
        while let Some(ended) = self.lanes.try_join_next() {
            ended.context("a lane of the copy")??;
        }
        let work = &self.work;
        self.trouble = None;
        work.pace.allow(Instant::now(), !held, throttle.bytes_per_second, throttle.parallel());
        // Each new one takes a leaf off the queue, a moment later.
        let waiting = locked(&work.queue).len();
        for _ in 0..waiting {
            if !work.pace.join() {
                break;
            }
            let lane = match self.spare.take() {
                Some(lane) => Ok(lane),
                None => Lane::open(servers, source, target, &self.session_name).await,
            };
            match lane {
                Ok(lane) => {
                    self.lanes.spawn(lane.run(work.clone(), self.snapshot.name().to_owned()));
                }
                Err(error) => {
                    work.pace.leave();
                    if self.lanes.is_empty() {
                        return Err(error);
                    }
                    // The others go on.
                    self.trouble = Some(format!("no further table at a time: {error:#}"));
                    break;
                }
            }
        }
        Ok(self.lanes.is_empty() && locked(&work.queue).is_empty())
    }

    /// Waits so long, or until a lane has ended, and there may be something to look at.
    pub(super) async fn rest(&self, most: Duration) {
        // Either is well.
        let _ = tokio::time::timeout(most, self.work.ended.notified()).await;
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
        let Work { tables, binary, done, .. } = &*self.work;
        let done = locked(done).clone();
        let names = |which: &dyn Fn(usize, &Part) -> bool| -> Vec<String> {
            let parts = done.tables.iter().enumerate().filter(|(at, part)| which(*at, part));
            parts.map(|(at, _)| tables[at].full_name()).collect()
        };
        json!({
            "ready": names(&|_, part| part.is_done()), "copying": names(&|_, part| part.begun && !part.is_done()),
            "tables": tables.len(), "as_text": names(&|at, _| !binary[at]),
            "rows": done.tables.iter().map(|part| part.rows).sum::<u64>(),
            "bytes": done.tables.iter().map(|part| part.bytes).sum::<u64>(), "pieces": done.pieces,
            "percent": percent(tables.iter().map(|table| table.bytes).zip(done.tables.iter().map(Part::part))),
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
