//! How a runner takes up a move: alone, with nothing of an earlier one still under way, and with a catalog that can be
//! believed.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::json;

use super::catalog;
use super::job::{Job, LOCK_CLASS, Way};
use super::machine::Phase;
use super::run::Runner;
use crate::direct::{Db, Servers};

/// The class of the runners' own lock.
pub(crate) const RUN_CLASS: i32 = LOCK_CLASS + 1;
/// How long the lock of another runner is waited for.
const TAKE_OVER: Duration = Duration::from_secs(3);
/// A proxy's lease, and what clocks may differ by.
const LEASE: Duration = Duration::from_millis(5500);

/// Another runner has the move.
#[derive(Debug)]
pub struct Attached(String);

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Attached {}

pub(super) async fn attach<'a>(servers: &'a Servers, id: i64) -> anyhow::Result<Runner<'a>> {
    crate::home::insist_on_one(servers, "shardctl").await?;
    let control = servers.control("shardctl").await?;
    // An older shardctl may have begun the move.
    catalog::install(&control).await?;
    let job = Job::load(&control, id).await?;
    lock_runner(&control, id).await?;
    let name = job.session_name();
    control.execute("SELECT set_config('application_name', $1, false)", &[&name]).await?;
    end_others(&[&control], &name).await?;
    let mut job = settled(job, &control).await?;
    let map = catalog::map(&control).await?;
    free_giver(servers, &control, &mut job, map.map.buckets()).await?;
    let source = servers.primary(job.source, &name).await?;
    let target = servers.primary(job.target, &name).await?;
    end_others(&[&control, &source, &target], &name).await?;
    let epoch = i64::try_from(map.map.epoch())?;
    for (shard, db) in [(job.source, &source), (job.target, &target)] {
        let known = catalog::known_epoch(db).await?;
        anyhow::ensure!(
            known <= epoch,
            "shard {shard} knows of epoch {known} of the map, and the catalog of {epoch} only: the catalog has lost its end. \
             Nothing is decided by it: shardctl repair --dry-run shows what the shards say is missing"
        );
    }
    Ok(Runner::new(servers, control, source, target, job, map))
}

/// Makes this session the one that runs the move, until it ends.
pub(super) async fn lock_runner(control: &Db, id: i64) -> anyhow::Result<()> {
    let key = i32::try_from(id)?;
    let begun = std::time::Instant::now();
    let mut ours = false;
    // The session of a runner that has just died may need a moment to notice.
    while !ours && begun.elapsed() < TAKE_OVER {
        ours = control.holds("SELECT pg_try_advisory_lock($1, $2)", &[&RUN_CLASS, &key]).await?;
        if !ours {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    if !ours {
        let sql = "SELECT string_agg(format('pid %s from %s', a.pid, coalesce(a.client_addr::text, 'a socket')), ', ') \
                   FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' \
                   AND l.classid::int8 = $1 AND l.objid::int8 = $2 AND l.granted";
        let who: Option<String> = control.value(sql, &[&i64::from(RUN_CLASS), &id]).await?;
        return Err(Attached(format!(
            "move {id} has a runner already ({}): shardctl watch {id}; if it is stuck, end that session in the catalog",
            who.unwrap_or_default()
        ))
        .into());
    }
    Ok(())
}

/// Ends every session that an earlier runner, or an attempt that was given up, has left, and waits for their end: a statement
/// of theirs must not arrive after what undoes it.
pub(super) async fn end_others(sessions: &[&Db], name: &str) -> anyhow::Result<()> {
    let pids: Vec<i32> =
        try_join_all(sessions.iter().map(|db| db.value("SELECT pg_backend_pid()", &[]))).await?;
    // Of all servers at once: clients may be held back meanwhile.
    try_join_all(sessions.iter().map(|db| {
        // Two of them may be on one server; a number means nothing on another one.
        let on_it = sessions.iter().zip(&pids).filter(|(other, _)| other.place() == db.place());
        end_others_of(db, name, on_it.map(|(_, pid)| *pid).collect())
    }))
    .await
    .map(drop)
}

async fn end_others_of(db: &Db, name: &str, but: Vec<i32>) -> anyhow::Result<()> {
    // A walsender that makes a slot waits for transactions, and does not notice that nobody waits for it any more.
    // Of those that have gone by themselves the answer is false, too: so it is looked at once more.
    let sql = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity \
               WHERE application_name = $1 AND backend_type IN ('client backend', 'walsender') AND pid <> ALL ($2)";
    db.rows(sql, &[&name, &but]).await?;
    let sql = "SELECT coalesce(string_agg(pid::text, ', '), '') FROM pg_stat_activity \
               WHERE application_name = $1 AND backend_type IN ('client backend', 'walsender') AND pid <> ALL ($2)";
    let left: String = db.value(sql, &[&name, &but]).await?;
    anyhow::ensure!(left.is_empty(), "sessions of an earlier runner do not end: pid {left}");
    Ok(())
}

/// After a failover of the catalog's shard proxies may have leases that this server has lost: they are waited out, once.
async fn settled(mut job: Job, control: &Db) -> anyhow::Result<Job> {
    let server = control.identity.map(|(system, timeline)| format!("{system}:{timeline}"));
    let before = job.text("catalog_server").map(str::to_owned);
    if before.is_some() && before != server {
        job.note(control, "the catalog's shard has failed over: leases are waited out").await?;
        tokio::time::sleep(LEASE).await;
    }
    if before != server {
        job.set(control, json!({ "catalog_server": server })).await?;
    }
    Ok(job)
}

/// A fence that an earlier runner has left is undone first, and without the taker if that was not opened: it may be what has
/// died, and must not take the giver's rows with it.
async fn free_giver(servers: &Servers, control: &Db, job: &mut Job, buckets: u16) -> anyhow::Result<()> {
    let way = match job.phase.resumed() {
        Phase::Releasing => Way::Out,
        Phase::BackReleasing => Way::Back,
        _ => return Ok(()),
    };
    let name = job.session_name();
    let giver = servers.primary(job.giver(way), &name).await?;
    end_others(&[control, &giver], &name).await?;
    let resumed = job.phase.resumed();
    if resumed != job.phase && !job.go(control, resumed, "taken up again; what it left is undone").await? {
        return Ok(());
    }
    job.refresh(control).await?;
    // With the taker opened this fails, and is done when both can be reached.
    if super::fence::release(control, &giver, None, job, way, buckets).await.is_ok() {
        job.note(control, "the fence is gone").await?;
    }
    Ok(())
}
