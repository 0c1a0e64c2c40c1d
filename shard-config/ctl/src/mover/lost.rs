//! One of a move's two shards is gone, and nobody knows for how long. The other one is freed of everything that the move
//! keeps on it: the fence, the guards, slots that keep WAL. The motion stays, because copies on the lost shard must not be seen
//! should it come back; whoever resumes the move then deletes them. Of a shard that never comes back the move is ended, so that
//! its buckets can be moved again.

use serde_json::json;
use shard_config::ShardId;

use super::attach::{end_others, lock_runner};
use super::copy::{self, drop_slot};
use super::job::{Job, Way};
use super::machine::{Phase, Wish};
use super::scope::ident;
use super::{arm, catalog, fence};
use crate::direct::{Db, Servers};

/// Frees the shard that owns the scope, after the other one was lost. `wish`: abort, or finish when the target owns.
pub async fn free(servers: &Servers, id: i64, wish: Wish) -> anyhow::Result<(Job, ShardId)> {
    let control = servers.control("shardctl").await?;
    freed(servers, &control, id, wish).await
}

/// The same, and the move is over: the operator says that what the lost shard has is never going to be reached again. Nothing
/// hides its copies from then on.
pub async fn end(servers: &Servers, id: i64, wish: Wish) -> anyhow::Result<(Job, ShardId)> {
    let control = servers.control("shardctl").await?;
    let (mut job, lost) = freed(servers, &control, id, wish).await?;
    let over = match job.phase {
        Phase::Returning | Phase::Emptying => Phase::RolledBack,
        phase if phase.target_owns() => Phase::Done,
        _ => Phase::Aborted,
    };
    control.run("BEGIN").await?;
    catalog::end_motion(&control, &job).await?;
    let why = format!("shard {lost} never comes back: what it has of {} is left there", job.scope);
    let ended = job.go(&control, over, &why).await?;
    control.run(if ended { "COMMIT" } else { "ROLLBACK" }).await?;
    anyhow::ensure!(ended, "the move went on meanwhile: look at shardctl history {id}");
    Ok((job, lost))
}

/// The shard that is freed, the one that is lost, and the phase that comes; or why not. PURE.
pub(crate) fn decide(job: &Job, wish: Wish) -> anyhow::Result<(ShardId, ShardId, Phase)> {
    let phase = job.phase.resumed();
    let (kept, lost, next) = match (phase.target_owns(), wish) {
        (false, Wish::Abort) => (job.source, job.target, Phase::Aborting),
        (true, Wish::Finish) => (job.target, job.source, Phase::Closing),
        (true, _) => anyhow::bail!(
            "shard {} owns the rows by now: finish --source-lost if the source is lost",
            job.target
        ),
        (false, _) => {
            anyhow::bail!("shard {} owns the rows: abort --target-lost if the target is lost", job.source)
        }
    };
    anyhow::ensure!(!phase.is_over(), "move {} is over: {}", job.id, phase.name());
    let next = match phase {
        // What is left to do is done when the other one is back. The guards are taken off last, so they are still here.
        Phase::Returning | Phase::Emptying | Phase::Cleaning | Phase::Clearing => phase,
        _ => next,
    };
    Ok((kept, lost, next))
}

/// An error when the shard that is called lost answers.
pub(crate) async fn is_gone(servers: &Servers, id: i64, lost: ShardId, wish: Wish) -> anyhow::Result<()> {
    match servers.primary(lost, "shardctl").await {
        Ok(db) => anyhow::bail!("{} answers: shardctl {} {id} is enough", db.place(), wish.name()),
        Err(_) => Ok(()),
    }
}

async fn freed(servers: &Servers, control: &Db, id: i64, wish: Wish) -> anyhow::Result<(Job, ShardId)> {
    let mut job = Job::load(control, id).await?;
    lock_runner(control, id).await?;
    let name = job.session_name();
    control.execute("SELECT set_config('application_name', $1, false)", &[&name]).await?;
    let (kept, lost, next) = decide(&job, wish)?;
    is_gone(servers, id, lost, wish).await?;
    let db = servers.primary(kept, &name).await?;
    end_others(&[control, &db], &name).await?;
    let why = format!("shard {lost} is lost; {} was asked for", wish.name());
    anyhow::ensure!(
        job.go(control, next, &why).await?,
        "the move went on meanwhile: look at shardctl history {id}"
    );
    job.refresh(control).await?;

    // The flip may be the last thing that came about: then this shard's word of it is the only one beside the catalog's (H6).
    fence::settle_ownership(control, &db, &job).await?;
    db.execute("DELETE FROM shard_catalog.fence WHERE move_id = $1", &[&job.id]).await?;
    fence::unlock(&db, &job).await?;
    // Of a move that was never announced nothing is anywhere, and what the target has of the scope may be another's.
    if catalog::motions(control).await?.iter().any(|motion| motion.move_id == id) {
        let stage = if next.target_owns() { "flipped" } else { "copying" };
        catalog::set_stage(control, &job, Way::Out, stage).await?;
    }
    for way in [Way::Out, Way::Back] {
        copy::forget(&db, &job, way).await?;
        for slot in [job.publication(way), job.verify_slot(way)] {
            drop_slot(&db, &slot).await?;
        }
        db.run(&format!("DROP PUBLICATION IF EXISTS {}", ident(&job.publication(way)))).await?;
    }
    arm::disarm(&db, &job).await?;
    job.set(control, json!({ "wish": null })).await?;
    Ok((job, lost))
}
