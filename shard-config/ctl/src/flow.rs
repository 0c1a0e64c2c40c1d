//! Whether rows of a move still flow, as its slots and subscriptions say: also of a move that nobody runs.

use crate::direct::{Db, Servers};
use crate::mover::copy::{is_enabled, slot_state};
use crate::mover::disk;
use crate::mover::job::{Job, Way};
use crate::mover::machine::Phase;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// For good.
    Gone(String),
    /// Whoever runs the move begins it again.
    Stopped(String),
}

impl Broken {
    pub fn text(&self) -> &str {
        match self {
            Self::Gone(text) | Self::Stopped(text) => text,
        }
    }
}

/// Slots that the phase needs, and whether they are being read by now. PURE.
const fn needed(phase: Phase) -> &'static [(Way, bool)] {
    match phase {
        Phase::CatchingUp => &[(Way::Out, true)],
        Phase::Verifying | Phase::Ready => &[(Way::Out, true), (Way::Back, false)],
        Phase::Window | Phase::BackVerifying => &[(Way::Back, true)],
        _ => &[],
    }
}

pub async fn broken(job: &Job, source: &Db, target: &Db) -> anyhow::Result<Option<Broken>> {
    let side = |shard| if shard == job.source { source } else { target };
    for &(way, read) in needed(job.phase) {
        let (giver, taker, slot) = (job.giver(way), job.taker(way), job.publication(way));
        let what = if way == Way::Out { "the flow to the target" } else { "the way back" };
        let left = match (way, job.phase.target_owns()) {
            (Way::Back, true) => format!("only finish is left: shardctl finish {}", job.id),
            _ => format!("the move cannot come to its end: shardctl abort {}", job.id),
        };
        match slot_state(side(giver), &slot).await? {
            None => {
                let why = match disk::dropped(job).filter(|_| way == Way::Back) {
                    Some(why) => format!("it was given up: {why}"),
                    None => format!("slot {slot} is no more on shard {giver}, which has failed over perhaps"),
                };
                return Ok(Some(Broken::Gone(format!("{what} is gone ({why}): {left}"))));
            }
            Some((state, _)) if state == "lost" => {
                let why = format!("slot {slot} kept more WAL than max_slot_wal_keep_size allows");
                return Ok(Some(Broken::Gone(format!("{what} is gone ({why}): {left}"))));
            }
            Some(_) => {}
        }
        if read && !is_enabled(side(taker), job, way).await? {
            return Ok(Some(Broken::Stopped(format!(
                "{what} has stopped at an error, which the log of shard {taker} has, and shard {giver} keeps its WAL meanwhile"
            ))));
        }
    }
    Ok(None)
}

/// The same, of servers that have to be asked first.
pub async fn of_job(servers: &Servers, job: &Job) -> anyhow::Result<Option<Broken>> {
    if needed(job.phase).is_empty() {
        return Ok(None);
    }
    let (source, target) =
        tokio::try_join!(servers.primary(job.source, "shardctl"), servers.primary(job.target, "shardctl"))?;
    broken(job, &source, &target).await
}
