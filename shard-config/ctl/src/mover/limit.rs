//! How many moves copy and compare at the same time, over all runners: of each shard's moves so many as the catalog says
//! (`shard_catalog.control.moves_at_once`). Who has to wait has changed nothing yet.
//!
//! A place is a session lock in the catalog, one of the source's and one of the target's, so it is free again when its runner
//! dies. A move that waits for its operator has none, however long; nor does one that is cut over.

use serde_json::json;
use shard_config::ShardId;

use super::job::{Job, LOCK_CLASS};
use super::machine::Phase;
use super::run::Runner;
use crate::direct::Db;

/// The class of these locks, beside those of moves, runners and requests.
const PLACE_CLASS: i32 = LOCK_CLASS + 3;
/// Numbers that each shard has. The catalog allows no more.
const PLACES: i32 = 64;
/// Moves that a proxy can follow at once (`proxy/src/motion/motions.rs`), open windows among them.
pub(super) const MOTIONS: i64 = 64;

/// In which a move costs its shards something.
pub(super) const fn costs(phase: Phase) -> bool {
    matches!(phase, Phase::Announcing | Phase::Arming | Phase::Copying | Phase::CatchingUp | Phase::Verifying)
}

/// A place of the shard's, or `None` when there is none.
async fn take(control: &Db, shard: ShardId, most: i32) -> anyhow::Result<Option<i32>> {
    let first = i32::from(shard.0) * PLACES;
    // The limit ends the search at the first that is free.
    let sql =
        "SELECT n FROM generate_series($2::int, $2 + $3 - 1) n WHERE pg_try_advisory_lock($1, n) LIMIT 1";
    let row = control.first(sql, &[&PLACE_CLASS, &first, &most]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

async fn give_back(control: &Db, place: i32) -> anyhow::Result<()> {
    control.rows("SELECT pg_advisory_unlock($1, $2)", &[&PLACE_CLASS, &place]).await.map(drop)
}

/// Places on both shards, or the shard that has none.
async fn places(control: &Db, job: &Job) -> anyhow::Result<Result<[i32; 2], (ShardId, i32)>> {
    let most: i32 = control.value("SELECT moves_at_once FROM shard_catalog.control", &[]).await?;
    let Some(source) = take(control, job.source, most).await? else { return Ok(Err((job.source, most))) };
    match take(control, job.target, most).await? {
        Some(target) => Ok(Ok([source, target])),
        None => {
            // Who keeps one and waits for the other may wait for somebody who does the same.
            give_back(control, source).await?;
            Ok(Err((job.target, most)))
        }
    }
}

impl Runner<'_> {
    /// Whether the move may go on in its phase. One that has begun goes on in any case: to wait would keep its WAL.
    pub(super) async fn has_place(&mut self) -> anyhow::Result<bool> {
        let phase = self.job.phase;
        if !costs(phase) {
            for place in self.places.take().into_iter().flatten() {
                give_back(&self.control, place).await?;
            }
            // Who waited may have been told to end.
            self.begun().await?;
            return Ok(true);
        }
        if self.places.is_none() {
            match places(&self.control, &self.job).await? {
                Ok(taken) => {
                    self.places = Some(taken);
                    self.begun().await?;
                }
                Err((shard, most)) if phase == Phase::Announcing => {
                    let text = format!(
                        "{most} other moves from or to shard {shard} copy and compare; it begins when one of them is done \
                         (SELECT shard_catalog.moves_at_once(N) changes the limit)"
                    );
                    if self.job.text("waits_for") != Some(&text) {
                        self.job.note(&self.control, &format!("waits: {text}")).await?;
                        self.job.set(&self.control, json!({ "waits_for": text, "in_line": true })).await?;
                    }
                    return Ok(false);
                }
                Err(_) => {}
            }
        }
        Ok(true)
    }

    async fn begun(&mut self) -> anyhow::Result<()> {
        match self.job.flag("in_line") {
            true => self.job.set(&self.control, json!({ "waits_for": null, "in_line": false })).await,
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_two_shards_are_not_the_same() {
        let highest = |shard: u16| i32::from(shard) * PLACES + PLACES - 1;
        assert!(highest(1) < i32::from(2u16) * PLACES);
        assert!(highest(u16::MAX) > 0, "a number of a lock");
    }

    #[test]
    fn who_waits_for_an_operator_keeps_nobody_waiting() {
        for phase in [Phase::Preflight, Phase::Ready, Phase::Window, Phase::Cleaning, Phase::Fencing] {
            assert!(!costs(phase), "{phase:?}");
        }
        assert!(costs(Phase::Copying) && costs(Phase::Verifying));
    }
}
