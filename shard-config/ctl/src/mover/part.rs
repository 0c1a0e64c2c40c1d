//! How far a step is that goes through tables page by page, for who looks on.

use std::time::{Duration, Instant};

use serde_json::json;

use super::job::Job;
use super::tables::{Table, leaves, pages};
use crate::direct::Db;

/// It is written down so often at most.
const SHOWN: Duration = Duration::from_secs(1);

pub struct Part<'a> {
    job: &'a Job,
    control: &'a Db,
    pages: i64,
    of: i64,
    rows: u64,
    shown: Instant,
}

impl<'a> Part<'a> {
    /// Of the phase that the job is in, nothing is done yet; all pages of `tables` on each of the servers are to be.
    pub async fn begin(
        job: &'a Job,
        control: &'a Db,
        servers: &[&Db],
        tables: &[Table],
    ) -> anyhow::Result<Self> {
        let mut of = 0;
        for db in servers {
            for table in tables {
                for leaf in leaves(db, table).await? {
                    of += pages(db, &leaf).await?;
                }
            }
        }
        let mut part = Self { job, control, pages: 0, of, rows: 0, shown: Instant::now() };
        // What an earlier time has left is not true of this one.
        part.show().await?;
        Ok(part)
    }

    /// So many are to be gone through once more.
    pub fn again(&mut self, pages: i64) {
        self.of += pages;
    }

    /// So many pages are done, and rows of theirs.
    pub async fn done(&mut self, pages: i64, rows: u64) -> anyhow::Result<()> {
        self.pages += pages;
        self.rows += rows;
        if self.shown.elapsed() >= SHOWN { self.show().await } else { Ok(()) }
    }

    pub async fn end(mut self) -> anyhow::Result<()> {
        self.show().await
    }

    async fn show(&mut self) -> anyhow::Result<()> {
        self.shown = Instant::now();
        let part =
            json!({ "phase": self.job.phase.name(), "pages": self.pages, "of": self.of, "rows": self.rows });
        self.job.clone().set(self.control, json!({ "part": part })).await
    }
}

/// What was written down of the phase that the job is in: per cent, and one line. `None`: it has nothing of the kind, or has not
/// begun. PURE.
pub fn of(job: &Job) -> Option<(u64, String)> {
    let part = &job.detail["part"];
    let (pages, of) = (part["pages"].as_u64()?, part["of"].as_u64()?);
    if part["phase"].as_str() != Some(job.phase.name()) {
        return None;
    }
    // Tables grow meanwhile; and what is empty is done.
    let pages = pages.min(of);
    let percent = (pages * 100).checked_div(of).unwrap_or(100);
    let rows =
        part["rows"].as_u64().filter(|rows| *rows > 0).map_or(String::new(), |rows| format!(", {rows} rows"));
    Some((percent, format!("{percent} %, {pages} of {of} pages{rows}")))
}
