//! The cut-over: proxies hold, the giver refuses, the taker catches up, what changed is compared, the map flips.
//!
//! All of it has `LIMIT` from the first statement held. Whatever does not come about in time is undone, and tried again
//! later: a deadline never means to proceed. Nothing here is written down step by step, because every step but the last
//! is undone by one and the same `release`, however far it came.
//!
//! The exclusive lock is taken first and left to a prepared transaction, so that it outlives this process; then the fence
//! row is committed. From then on READ COMMITTED writers see the row, and older snapshots meet the lock (H1).

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use shard_config::ShardId;
use tokio_postgres::error::SqlState;

use super::arm;
use super::catalog::{self, Flip, StoredMap};
use super::copy;
use super::fault::reach;
use super::job::{Job, LOCK_CLASS, Way};
use super::machine::Phase;
use super::scope::literal;
use super::tables::Table;
use super::verify::{self, Suspects};
use crate::direct::{Db, is_code};

/// From the first statement held to the decision.
pub const LIMIT: Duration = Duration::from_millis(400);
/// How long the exclusive request may wait: shared ones queue behind it.
const LOCK_WAIT: Duration = Duration::from_millis(200);
/// Rows compared inside the pause.
pub(super) const DELTA_MAX: usize = 5_000;
/// Between two looks at what proxies acknowledge.
const POLL: Duration = Duration::from_millis(3);

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    Flipped(Times),
    /// Not in time, or somebody was in the way. Try again.
    Missed(String, Times),
    /// Rows differ although nothing writes them.
    Different(String),
}

/// What each part took, in milliseconds, in order.
#[derive(Debug, Clone, Default)]
pub struct Times {
    pub parts: Vec<(&'static str, u128)>,
    pub rows_compared: usize,
}

impl Times {
    pub fn json(&self) -> serde_json::Value {
        let mut parts: serde_json::Map<_, _> =
            self.parts.iter().map(|(what, ms)| ((*what).to_owned(), json!(ms))).collect();
        parts.insert("rows_compared".into(), json!(self.rows_compared));
        parts.into()
    }

    fn total(&self) -> u128 {
        self.parts.iter().map(|(_, ms)| ms).sum()
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<_> = self.parts.iter().map(|(what, ms)| format!("{what} {ms}")).collect();
        write!(f, "{} ms ({}; {} rows compared)", self.total(), parts.join(", "), self.rows_compared)
    }
}

/// For a step to say itself what it was waiting for.
const GRACE: Duration = Duration::from_millis(20);
/// Transactions that end within this time are waited for on the spot.
const SHORT_STATEMENTS: Duration = Duration::from_secs(1);

/// Sessions opened before anybody is held.
pub struct Seats {
    pub catalog: Db,
    pub giver: Db,
    /// For the lock, which waits while the other one is used.
    pub locker: Db,
    pub taker: Db,
}

/// What the attempt works on.
pub struct Plan<'a> {
    pub job: &'a Job,
    pub way: Way,
    pub tables: &'a [Table],
    pub map: &'a StoredMap,
    pub suspects: Suspects,
    /// The slot on the taker from which rows will flow back, to be advanced past everything that flowed here.
    pub back_slot: Option<String>,
    pub epoch_id: &'a str,
    pub attempt: i64,
    /// The phase and the stage after the flip.
    pub next: (Phase, &'a str),
    pub limit: Duration,
}

struct Clock {
    begun: Instant,
    last: Instant,
    limit: Duration,
    times: Times,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, limit, times: Times::default() }
    }

    fn lap(&mut self, what: &'static str) {
        self.times.parts.push((what, self.last.elapsed().as_millis()));
        self.last = Instant::now();
    }

    /// What is left, or the reason to give up.
    fn left(&self, before: &str) -> anyhow::Result<Duration> {
        let left = self.limit.saturating_sub(self.begun.elapsed());
        anyhow::ensure!(!left.is_zero(), "no time is left of {:?} before {before}", self.limit);
        Ok(left)
    }
}

/// Somebody sits on rows of the scope: better not to begin. `None`: nobody does.
pub async fn in_the_way(giver: &Db, job: &Job) -> anyhow::Result<Option<String>> {
    let sql = "SELECT string_agg(coalesce(
                   (SELECT format('pid %s (%s, %s), %s, in a transaction for %s s', a.pid, a.usename, a.application_name, a.state,
                           round(extract(epoch FROM clock_timestamp() - a.xact_start))) FROM pg_stat_activity a WHERE a.pid = l.pid),
                   'a prepared transaction: see pg_prepared_xacts'), '; ')
          FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND l.classid::int8 = $1 AND l.objid::int8 = $2 AND l.objsubid = 2 AND l.granted
           AND (l.pid IS NULL OR a.xact_start < clock_timestamp() - interval '1 second')";
    giver.value(sql, &[&i64::from(LOCK_CLASS), &job.id]).await
}

/// One attempt. The caller has written down that it is fencing, and releases unless it flipped. Statements may still run on
/// the seats when it has come to nothing: they are to be closed, and their sessions ended, before anything is undone.
pub async fn attempt(seats: &Seats, plan: Plan<'_>) -> Outcome {
    let mut clock = Clock::new(plan.limit);
    let (job, map) = (plan.job, plan.map);
    let next = Flip { owner: job.taker(plan.way), phase: plan.next.0, stage: plan.next.1, id: plan.epoch_id };
    // One limit for all of it, and not only between two steps: a server that does not answer holds everybody.
    let limit = plan.limit;
    let ready = match tokio::time::timeout(limit + GRACE, steps(seats, plan, &mut clock)).await {
        Ok(ready) => ready,
        Err(_) => Err(anyhow::anyhow!("no answer within {limit:?}")),
    };
    match ready {
        Ok(None) => {}
        Ok(Some(different)) => return Outcome::Different(different),
        Err(error) => return Outcome::Missed(format!("{error:#}"), clock.times),
    }
    // From here on nobody but the catalog can say what happened.
    match catalog::flip(&seats.catalog, job, map, &next).await {
        Ok(true) => {
            clock.lap("flip");
            reach(job, "flipped");
            Outcome::Flipped(clock.times)
        }
        Ok(false) => {
            Outcome::Missed("the map is not the one that this attempt began with".into(), clock.times)
        }
        Err(error) => Outcome::Missed(format!("the flip: {error:#}"), clock.times),
    }
}

/// Everything before the flip; the text says which rows differ.
async fn steps(seats: &Seats, plan: Plan<'_>, clock: &mut Clock) -> anyhow::Result<Option<String>> {
    let Seats { catalog, giver, locker, taker } = seats;
    let Plan { job, way, tables, map, .. } = plan;
    let buckets = map.map.buckets();

    let version = catalog::set_stage(catalog, job, way, "holding").await?;
    catalog::drained(catalog, version, clock.left("the proxies have drained")?, POLL).await?;
    clock.lap("hold");
    reach(job, "held");

    lock(locker, job, plan.attempt, clock.left("the lock")?).await?;
    clock.lap("lock");
    reach(job, "locked");
    let n = shut(giver, job, way, buckets).await?;
    clock.lap("fence");
    reach(job, "shut");

    // What changed is decoded here while the taker applies it.
    let left = clock.left("the target has caught up")?;
    let mut suspects = plan.suspects;
    let most = DELTA_MAX.saturating_sub(verify::count(&suspects));
    let (_, changed) = tokio::try_join!(
        copy::caught_up(taker, job, way, n, left),
        verify::peek(giver, job, way, tables, most)
    )?;
    clock.lap("drain");
    verify::add(&mut suspects, changed);
    clock.times.rows_compared = verify::count(&suspects);
    // Written down before the taker is opened: an attempt that has not come so far is undone without it. What is in the taker's
    // WAL by now has come from the giver, and is not to flow back.
    let back_from: String = taker.value("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    let opening = json!({ "opening": plan.attempt, "epoch_id": plan.epoch_id, "back_from": back_from });
    let mut noted = job.clone();
    let (unequal, ()) = tokio::try_join!(
        verify::compare(giver, taker, job, tables, buckets, &suspects),
        noted.set(catalog, opening)
    )?;
    if !unequal.is_empty() {
        return Ok(Some(verify::show(&unequal)));
    }
    clock.lap("compare");
    clock.left("the ownership is written")?;

    // The taker's commit waits for its disk and its standby (`direct` sees to that), and with it all that was applied before,
    // of which no commit has waited for anything (`copy::subscribe`).
    let epoch = i64::try_from(map.map.epoch())? + 1;
    let owner = job.taker(way);
    tokio::try_join!(
        own(giver, job, epoch, plan.epoch_id, owner.0, false),
        own(taker, job, epoch, plan.epoch_id, owner.0, true)
    )?;
    if let Some(slot) = &plan.back_slot {
        advance(taker, slot).await?;
    }
    clock.lap("own");
    reach(job, "owned");
    clock.left("the flip")?;
    Ok(None)
}

/// Takes the move's lock exclusively, behind everybody who wrote rows of the scope, and leaves it to a prepared transaction.
pub async fn lock(locker: &Db, job: &Job, attempt: i64, left: Duration) -> anyhow::Result<()> {
    let wait = left.min(LOCK_WAIT).as_millis().max(1);
    let taken = locker
        .run(&format!(
            "BEGIN; SET LOCAL lock_timeout = {wait}; SELECT pg_advisory_xact_lock({LOCK_CLASS}, {}); PREPARE TRANSACTION {}",
            i32::try_from(job.id)?,
            literal(&format!("{}{attempt}", job.gid_prefix()))
        ))
        .await;
    if let Err(error) = taken {
        let _ = locker.run("ROLLBACK").await;
        return Err(match is_code(&error, &SqlState::LOCK_NOT_AVAILABLE) {
            true => {
                anyhow::anyhow!("a transaction that wrote rows of the scope did not end within {wait} ms")
            }
            false => error,
        });
    }
    Ok(())
}

/// Commits the fence row, and the mark behind the last change of the scope.
pub async fn shut(giver: &Db, job: &Job, way: Way, buckets: u16) -> anyhow::Result<i64> {
    let sql = "WITH fence AS (INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES ($1, $2, $3) ON CONFLICT (move_id) DO NOTHING)
               UPDATE shard_catalog.mark SET n = n + 1, at = clock_timestamp() WHERE id = $4 RETURNING n";
    let row =
        giver.first(sql, &[&job.id, &job.scope.json(), &i64::from(buckets - 1), &job.mark_id(way)]).await?;
    Ok(row.context("the mark is gone from the giver")?.try_get(0)?)
}

/// Writes who owns the scope (H6); the new owner takes writes from here on.
pub async fn own(
    db: &Db,
    job: &Job,
    epoch: i64,
    epoch_id: &str,
    owner: u16,
    open: bool,
) -> anyhow::Result<()> {
    let sql = "WITH owned AS (
                   INSERT INTO shard_catalog.ownership (move_id, scope, epoch, epoch_id, owner)
                   VALUES ($1, $2, $3, $4::text::uuid, $5)
                   ON CONFLICT (move_id, epoch) DO UPDATE SET epoch_id = excluded.epoch_id, owner = excluded.owner)
               DELETE FROM shard_catalog.fence WHERE move_id = $1 AND $6";
    db.execute(sql, &[&job.id, &job.scope.json(), &epoch, &epoch_id, &i32::from(owner), &open])
        .await
        .map(drop)
}

/// Moves a slot past everything that is flushed here, so that what flowed in does not flow back (H29).
pub async fn advance(db: &Db, slot: &str) -> anyhow::Result<()> {
    let sql = "SELECT end_lsn >= before FROM pg_current_wal_flush_lsn() before, \
               LATERAL (SELECT end_lsn FROM pg_replication_slot_advance($1, before)) a";
    match db.holds(sql, &[&slot]).await {
        Ok(true) => Ok(()),
        Ok(false) => anyhow::bail!("slot {slot} did not advance"),
        // It is there already: an idle server.
        Err(error) if format!("{error:#}").contains("minimum is") => Ok(()),
        Err(error) => Err(error),
    }
}

/// The ownership that was written before the flip has become true (H6).
pub async fn note_flipped(db: &Db, job: &Job) -> anyhow::Result<()> {
    let sql = "UPDATE shard_catalog.ownership SET flipped = true WHERE move_id = $1 AND epoch_id::text = $2 AND NOT flipped";
    db.execute(sql, &[&job.id, &job.text("epoch_id").unwrap_or_default()]).await.map(drop)
}

/// What a shard has written of owners before a flip: it has become true if the map says so, and otherwise is no more (H6).
pub async fn settle_ownership(control: &Db, db: &Db, job: &Job) -> anyhow::Result<()> {
    let said = "SELECT coalesce(array_agg(epoch_id::text), '{}') FROM shard_catalog.ownership WHERE move_id = $1 AND NOT flipped";
    let said: Vec<String> = db.value(said, &[&job.id]).await?;
    let flipped =
        "SELECT coalesce(array_agg(id::text), '{}') FROM shard_catalog.map WHERE id::text = ANY ($1)";
    let flipped: Vec<String> = control.value(flipped, &[&said]).await?;
    let sql = "UPDATE shard_catalog.ownership SET flipped = true WHERE move_id = $1 AND epoch_id::text = ANY ($2) AND NOT flipped";
    db.execute(sql, &[&job.id, &flipped]).await?;
    let sql = "DELETE FROM shard_catalog.ownership WHERE move_id = $1 AND NOT flipped";
    db.execute(sql, &[&job.id]).await.map(drop)
}

/// Whether the last attempt came so far that the taker may have been opened.
pub(super) fn has_opened(job: &Job) -> bool {
    job.number("opening").is_some() && job.number("opening") == job.number("fences")
}

/// Undoes an attempt that did not flip, however far it came: the giver takes writes, the taker does not, proxies go on.
/// `taker` may be missing if it was not opened, and has nothing to undo then. `job` is as the catalog has it.
pub async fn release(
    catalog: &Db,
    giver: &Db,
    taker: Option<&Db>,
    job: &Job,
    way: Way,
    buckets: u16,
) -> anyhow::Result<()> {
    // Ownership of an epoch that never was must not look like a map that was lost.
    let sql = format!("DELETE FROM shard_catalog.ownership WHERE move_id = {} AND NOT flipped", job.id);
    if has_opened(job) {
        let taker = taker.context("the target may take writes: it must be reached first")?;
        // Not for its standby, which may be what has gone, while everybody is held: writers meet the fence here and now. The next
        // attempt begins with a commit that the standby has, this one before it.
        let fence = arm::fence_sql(job, buckets);
        taker.run(&format!("SET LOCAL synchronous_commit = local; {sql}; {fence}")).await?;
    }
    let fenced = format!("WITH owned AS ({sql}) DELETE FROM shard_catalog.fence WHERE move_id = {}", job.id);
    giver.like_clients().await?;
    let opened = async {
        giver.run(&fenced).await?;
        unlock(giver, job).await
    };
    let opened = opened.await;
    giver.durable().await?;
    opened?;
    catalog::set_stage(catalog, job, Way::Out, if way == Way::Out { "copying" } else { "flipped" }).await?;
    Ok(())
}

/// Ends the prepared transactions that hold the move's lock.
pub async fn unlock(giver: &Db, job: &Job) -> anyhow::Result<()> {
    let sql =
        "SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, $1) AND database = current_database()";
    for row in giver.rows(sql, &[&job.gid_prefix()]).await? {
        let gid: String = row.try_get(0)?;
        match giver.run(&format!("ROLLBACK PREPARED {}", literal(&gid))).await {
            Err(error) if is_code(&error, &SqlState::UNDEFINED_OBJECT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A moment after the commit of the fence row, by the giver's clock; the same one whenever it is asked for, so that new
/// transactions cannot put off the end of the old ones for ever.
async fn barrier(giver: &Db, shard: ShardId, control: &Db, job: &Job) -> anyhow::Result<String> {
    // A fence of the way back is another shard's, and later.
    let key = format!("fence_{}_seen_{shard}", job.number("fences").unwrap_or(0));
    let known = "SELECT detail ->> $2 FROM shard_catalog.move WHERE id = $1";
    if let Some(known) = control.value::<Option<String>>(known, &[&job.id, &key]).await? {
        return Ok(known);
    }
    let now: String = giver.value("SELECT clock_timestamp()::text", &[]).await?;
    job.clone().set(control, json!({ key: &now })).await?;
    Ok(now)
}

/// Lets go of the lock once no snapshot is left that cannot see the fence row. `Err` within: there is one; the text says
/// whose. To be called after that row's commit.
pub async fn unlock_when_safe(
    giver: &Db,
    shard: ShardId,
    control: &Db,
    job: &Job,
) -> anyhow::Result<Result<(), String>> {
    let held = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE starts_with(gid, $1) AND database = current_database())
                AND EXISTS (SELECT FROM shard_catalog.fence WHERE move_id = $2)";
    if !giver.holds(held, &[&job.gid_prefix(), &job.id]).await? {
        unlock(giver, job).await?;
        return Ok(Ok(()));
    }
    let barrier = barrier(giver, shard, control, job).await?;
    // By time, not by xmin: the lock's own prepared transaction, which is older than the row, holds back the xmin of every
    // snapshot. Servers that only send WAL cannot write, and another move's digests do not.
    let sql = "SELECT string_agg(format('pid %s (%s, %s)', a.pid, a.usename, a.application_name), '; ') FROM pg_stat_activity a
         WHERE a.backend_xmin IS NOT NULL AND a.xact_start <= $1::text::timestamptz AND a.pid <> pg_backend_pid()
           AND a.backend_type IN ('client backend', 'parallel worker', 'background worker')
           AND NOT (a.usename = current_user AND a.application_name LIKE 'shardctl move %')";
    let begun = Instant::now();
    loop {
        let Some(old) = giver.value::<Option<String>>(sql, &[&barrier]).await? else { break };
        if begun.elapsed() > SHORT_STATEMENTS {
            return Ok(Err(old));
        }
        tokio::time::sleep(POLL).await;
    }
    unlock(giver, job).await?;
    Ok(Ok(()))
}
