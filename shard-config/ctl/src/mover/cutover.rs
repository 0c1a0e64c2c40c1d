//! The steps around the cut-over: the attempt, what undoes it, and what has to be true before anything else after it.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use shard_config::ShardId;

use super::arm;
use super::catalog;
use super::copy;
use super::fault::reach;
use super::fence::{self, Outcome, Plan, Seats};
use super::job::Way;
use super::machine::{Event, Phase};
use super::preflight::replicated_into;
use super::run::{Different, Identities, Runner, Step};
use super::verify;

/// From the first statement held to the last released, of an attempt that comes to nothing.
const WHOLE: Duration = Duration::from_millis(480);
/// No attempt gets less than this.
const LEAST: Duration = Duration::from_millis(300);
/// How long proxies may take to acknowledge a flip before their sessions on the old owner are ended.
const ACKNOWLEDGE: Duration = Duration::from_secs(2);
/// How long the target may take to commit, before anybody is held.
const COMMITS: Duration = Duration::from_secs(1);

/// Of the source and of the target.
fn identities(seats: &Seats, way: Way) -> Identities {
    match way {
        Way::Out => (seats.giver.identity, seats.taker.identity),
        Way::Back => (seats.taker.identity, seats.giver.identity),
    }
}

/// How long the next attempt may take, if undoing the one before took that long: servers that are slow to undo are so the next time.
fn limit_after(undone_in: Option<Duration>) -> Duration {
    undone_in.map_or(fence::LIMIT, |undo| WHOLE.saturating_sub(undo).clamp(LEAST, fence::LIMIT))
}

impl Runner<'_> {
    pub(super) async fn fence(&mut self) -> Step {
        let way = self.way();
        reach(&self.job, "");
        let attempt = self.job.number("attempts").unwrap_or(0) + 1;
        // Never the number of an earlier one: that prepared transaction may still be there.
        let serial = self.job.number("fences").unwrap_or(0) + 1;
        self.job.set(&self.control, json!({ "attempts": attempt, "fences": serial })).await?;
        if !self.compared {
            // A step that was broken off on its way to here. After the release both sides are compared once more, all of them.
            return Err(
                Different("the step before was broken off: both sides are compared again".into()).into()
            );
        }
        if way == Way::Back
            && let Err(who) =
                fence::unlock_when_safe(&self.source, self.job.source, &self.control, &self.job).await?
        {
            anyhow::bail!("the source still has snapshots from before the cut-over: {who}");
        }
        let name = self.job.session_name();
        let (giver, taker) = (self.job.giver(way), self.job.taker(way));
        let seats = Seats {
            catalog: self.servers.control(&name).await?,
            giver: self.servers.primary(giver, &name).await?,
            locker: self.servers.primary(giver, &name).await?,
            taker: self.servers.primary(taker, &name).await?,
        };
        if self.compared_on != identities(&seats, way) {
            self.compared = false;
            return Err(Different("a server has failed over since both sides were compared".into()).into());
        }
        // Its standby, too: what is opened is not to wait for one that is away.
        let beat = "UPDATE shard_catalog.fence SET since = since WHERE move_id = $1";
        let answered = tokio::time::timeout(COMMITS, seats.taker.execute(beat, &[&self.job.id])).await;
        let fenced =
            answered.ok().with_context(|| format!("shard {taker} did not commit within {COMMITS:?}"))??;
        if fenced == 0 {
            // A failover has lost it: whoever knows the address may have written there since.
            arm::fence_row(&seats.taker, &self.job, self.buckets()).await?;
            self.compared = false;
            return Err(Different(format!(
                "shard {taker} had lost its fence since both sides were compared"
            ))
            .into());
        }
        let map = catalog::map(&self.control).await?;
        anyhow::ensure!(
            map.owner_of(&self.job.scope) == Some(giver),
            "shard {giver} does not own all of {}",
            self.job.scope
        );
        for (shard, db) in [(giver, &seats.giver), (taker, &seats.taker)] {
            if let Some(who) = replicated_into(db).await? {
                anyhow::bail!(
                    "shard {shard} receives rows by subscription {who}, which the fence lets through: disable it"
                );
            }
        }
        let epoch_id: String = self.control.value("SELECT gen_random_uuid()::text", &[]).await?;
        let tables = self.published().await?;
        let job = self.job.clone();
        anyhow::ensure!(self.compare_again(way).await?, "rows change faster than they are compared");
        // Nobody is held for an attempt that cannot succeed.
        let left = verify::count(&self.suspects);
        anyhow::ensure!(
            left <= fence::DELTA_MAX / 2,
            "{left} rows are in doubt, more than fit into the pause"
        );
        let back = self.job.publication(Way::Back);
        if way == Way::Out {
            copy::near(&self.target, &back).await?;
            fence::advance(&self.target, &back).await?;
        }
        reach(&self.job, "compared");
        let begun = std::time::Instant::now();
        let number = |name: &str| job.number(name).map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let limit = number("fence_limit_ms").unwrap_or_else(|| limit_after(number("undone_in_ms")));
        let plan = Plan {
            job: &job,
            way,
            tables: &tables,
            map: &map,
            suspects: self.suspects.clone(),
            back_slot: (way == Way::Out).then_some(back),
            epoch_id: &epoch_id,
            attempt: serial,
            next: if way == Way::Out { (Phase::Reversing, "flipped") } else { (Phase::Returning, "copying") },
            limit,
        };
        let outcome = fence::attempt(&seats, plan).await;
        drop(seats);
        let ms = begun.elapsed().as_millis();
        let (mut ended, times, mut event) = match outcome {
            Outcome::Flipped(times) => (format!("cut over: {times}"), times, Ok(Some(Event::Flipped))),
            Outcome::Missed(why, times) => {
                let text = format!("not cut over after {ms} ms: {why} [{times}]");
                (text.clone(), times, Err(anyhow::anyhow!(text)))
            }
            Outcome::Different(what) => {
                self.compared = false;
                let text = format!("not cut over: rows differ: {what}");
                (text.clone(), fence::Times::default(), Err(Different(text).into()))
            }
        };
        let decided = std::time::Instant::now();
        if event.is_err() {
            // First everybody goes on, then it is written down.
            if !self.undo(way).await? {
                ended = format!("cut over, although no answer said so: {times}");
                event = Ok(Some(Event::Flipped));
            }
        }
        let (undone, pause_ms) = (decided.elapsed(), begun.elapsed().as_millis());
        self.job.note(&self.control, &format!("{ended}; {pause_ms} ms in all")).await?;
        let entry = json!({ "ms": pause_ms, "flipped": event.is_ok(), "parts": times.json(), "why": ended });
        let mut log = self.job.detail.get("pauses").and_then(|p| p.as_array()).cloned().unwrap_or_default();
        if log.len() >= 50 {
            log.remove(0);
        }
        log.push(entry);
        let missed = event.is_err().then_some(&ended);
        let undone_in = missed.map(|_| undone.as_millis());
        self.job
            .set(&self.control, json!({ "pauses": log, "missed": missed, "undone_in_ms": undone_in }))
            .await?;
        event
    }

    /// False: it has flipped after all.
    async fn undo(&mut self, way: Way) -> anyhow::Result<bool> {
        // Behind the flip's row lock: a COMMIT of which nothing is known is over then, one way or the other.
        let next = if way == Way::Out { Phase::Releasing } else { Phase::BackReleasing };
        if !self.job.go(&self.control, next, "it is undone").await? {
            return Ok(false);
        }
        self.job.refresh(&self.control).await?;
        self.end_strays(way).await?;
        let (giver, taker) = (self.side(self.job.giver(way)), self.side(self.job.taker(way)));
        fence::release(&self.control, giver, Some(taker), &self.job, way, self.buckets()).await?;
        Ok(true)
    }

    pub(super) async fn release(&mut self) -> Step {
        let way = self.way();
        if fence::has_opened(&self.job) {
            // Whoever knows the taker's address may have written there, and no slot tells of it: all of it is compared again.
            self.compared = false;
        }
        reach(&self.job, "");
        self.end_strays(way).await?;
        let (giver, taker) = (self.side(self.job.giver(way)), self.side(self.job.taker(way)));
        fence::release(&self.control, giver, Some(taker), &self.job, way, self.buckets()).await?;
        Ok(Some(Event::Finished))
    }

    /// Both shards write down that the flip was one, before anything else: a catalog that loses it is told from them (H6).
    pub(super) async fn note_flipped(&self) -> anyhow::Result<()> {
        tokio::try_join!(
            fence::note_flipped(&self.source, &self.job),
            fence::note_flipped(&self.target, &self.job)
        )?;
        Ok(())
    }

    /// Ends what proxies that have not heard of the flip have open on the old owner and its replicas (H8).
    pub(super) async fn settle(&mut self, old_owner: ShardId) -> anyhow::Result<()> {
        let version: i64 = self.control.value("SELECT version FROM shard_catalog.control", &[]).await?;
        let begun = std::time::Instant::now();
        while begun.elapsed() < ACKNOWLEDGE {
            let late = catalog::proxies(&self.control).await?;
            if late.iter().all(|proxy| !proxy.leased || proxy.version >= version) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut ended = catalog::end_sessions(&self.control, self.side(old_owner), version).await?;
        for replica in self.servers.replicas(old_owner, &self.job.session_name()).await {
            ended += catalog::end_sessions(&self.control, &replica, version).await?;
        }
        if ended > 0 {
            let text = format!("ended {ended} sessions of proxies that do not know the new map");
            self.job.note(&self.control, &text).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_leaves_time_to_be_undone() {
        let limit = |undo| limit_after(Some(Duration::from_millis(undo))).as_millis();
        assert_eq!(limit_after(None), fence::LIMIT);
        assert_eq!([limit(20), limit(120), limit(10_000)], [400, 360, 300]);
    }
}
