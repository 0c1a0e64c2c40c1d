//! Rounds over the rows that change while digests are made: the slot that collects them keeps WAL, and what it has collected in
//! hours is more than anybody holds at once. Rows that are equal are done with at once, and again when they change again.

use std::time::{Duration, Instant};

use super::copy;
use super::fence;
use super::job::{Job, Way};
use super::tables::Table;
use super::verify::{self, Lost, Round, Suspects};
use crate::direct::Db;

const EVERY: Duration = Duration::from_secs(5);
/// A target that is behind is not waited for.
const BEHIND: Duration = Duration::from_secs(2);

/// The digests are not wanted any more.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the operator asked for something else")
    }
}

impl std::error::Error for Interrupted {}

pub struct Rounds<'a> {
    way: Way,
    /// Where the operator's wishes are.
    control: &'a Db,
    next: Instant,
}

impl<'a> Rounds<'a> {
    pub fn new(way: Way, control: &'a Db) -> Self {
        Self { way, control, next: Instant::now() + EVERY }
    }

    pub fn control(&self) -> &'a Db {
        self.control
    }

    /// A round if it is time for one. [`Interrupted`] if the operator wants the move to go elsewhere.
    pub async fn look(
        &mut self,
        giver: &Db,
        taker: &Db,
        job: &Job,
        tables: &[Table],
        buckets: u16,
        suspects: &mut Suspects,
    ) -> anyhow::Result<()> {
        if self.next > Instant::now() {
            return Ok(());
        }
        let now = Job::load(self.control, job.id).await?;
        if now.wish().is_some_and(|wish| matches!(now.phase.granted(wish), Ok(Some(_)))) {
            return Err(Interrupted.into());
        }
        // Nothing is read from the slot for a target that is behind: it is kept there, and not here.
        let n = copy::mark(giver, job, self.way).await?;
        if copy::caught_up(taker, job, self.way, n, BEHIND).await.is_err() {
            self.next = Instant::now() + EVERY;
            return self.goes_on(giver, taker, job).await;
        }
        match self.round(giver, taker, job, tables, buckets, suspects).await {
            // What it did not come to is compared by the next one. If that is why there is no next one (a target that is too far
            // behind, a server that is gone), the last one of all says so: the step's own.
            Err(error) if !error.is::<Lost>() => self.goes_on(giver, taker, job).await,
            ended => ended.map(drop),
        }
    }

    /// A subscription stops at an error, and digests of hours are not to be for nothing.
    async fn goes_on(&self, giver: &Db, taker: &Db, job: &Job) -> anyhow::Result<()> {
        let state = copy::slot_state(giver, &job.publication(self.way)).await?;
        anyhow::ensure!(
            state.is_some_and(|(state, _)| state != "lost"),
            "the replication slot is gone or lost"
        );
        if !copy::is_enabled(taker, job, self.way).await? {
            copy::enable(taker, job, self.way).await?;
        }
        Ok(())
    }

    /// What is unequal may only have changed: it stays among the suspects, and the rounds after the digests judge.
    pub async fn round(
        &mut self,
        giver: &Db,
        taker: &Db,
        job: &Job,
        tables: &[Table],
        buckets: u16,
        suspects: &mut Suspects,
    ) -> anyhow::Result<Round> {
        self.next = Instant::now() + EVERY;
        // First of all: an error of the slot that was read is none of those that may be passed over.
        let ended = verify::round(giver, taker, job, self.way, tables, buckets, suspects).await?;
        if self.way == Way::Out {
            // Nor is that for the way back to keep WAL for as long.
            let back = job.publication(Way::Back);
            copy::near(taker, &back).await?;
            fence::advance(taker, &back).await?;
        }
        Ok(ended)
    }
}
