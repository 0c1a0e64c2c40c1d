//! What a verb would do from the phase that a move is in. PURE.
//!
//! Whether it is granted is not decided here, but by `Phase::granted`, as for the verb itself.

use shard_config::ShardId;

use crate::aim::Aim;
use crate::mover::job::Job;
use crate::mover::machine::{Phase, Wish};

/// The shard whose rows of the scope the verb deletes in the end, if there may be any. Nothing is deleted before a copy began.
pub(super) const fn loser(job: &Job, wish: Wish) -> Option<ShardId> {
    match (wish, job.phase) {
        (Wish::Cutover, _) => None,
        (Wish::Finish, _) => Some(job.source),
        (Wish::Abort, Phase::Preflight | Phase::Announcing | Phase::Arming) => None,
        (Wish::Abort | Wish::Rollback, _) => Some(job.target),
    }
}

/// Phases on the way that `wish` leads to, and that the move is in already.
const fn is_under_way(phase: Phase, wish: Wish) -> bool {
    match wish {
        Wish::Cutover => matches!(phase, Phase::Fencing),
        Wish::Abort => matches!(phase, Phase::Aborting | Phase::Clearing),
        Wish::Rollback => matches!(
            phase,
            Phase::BackVerifying
                | Phase::BackFencing
                | Phase::BackReleasing
                | Phase::Returning
                | Phase::Emptying
        ),
        Wish::Finish => matches!(phase, Phase::Closing | Phase::Cleaning),
    }
}

/// What is done, in order. `next`: as `Phase::granted` says. `epoch`: of the map in use.
pub(super) fn steps(job: &Job, wish: Wish, next: Option<Phase>, epoch: u64) -> Vec<String> {
    let Job { id, scope, source, target, phase, .. } = job;
    let mut steps = Vec::new();
    if is_under_way(*phase, wish) {
        steps.push(format!("it is under way already, in phase {}: the rest of it", phase.name()));
    } else if next.is_none() {
        let until = if wish == Wish::Cutover { Phase::Ready } else { Phase::Window };
        steps.push(match (wish, phase) {
            (Wish::Abort, _) => {
                "the attempt to cut over that is under way ends first; if it has come about by then, \
                                 the move is not aborted"
                    .to_owned()
            }
            _ => format!("it is kept until the move is in phase {}", until.name()),
        });
    }
    let held = |from: &ShardId, to: &ShardId| {
        format!(
            "writes of {scope} are held and refused on shard {from}, what changed is compared once more, and epoch {} of the map \
             gives them to shard {to}",
            epoch + 1
        )
    };
    match (wish, phase) {
        (Wish::Cutover, _) => {
            steps.push(held(source, target));
            steps.push(format!(
                "what is written then flows back to shard {source}, which keeps its rows: shardctl rollback {id} or finish {id}"
            ));
        }
        (Wish::Abort, Phase::Preflight) => {
            steps.push("the move ends as refused: nothing was changed on any server".to_owned());
        }
        (Wish::Abort, _) => steps.push(format!("shard {source} goes on owning {scope}")),
        (Wish::Rollback, Phase::Returning | Phase::Emptying) => {
            steps.push(format!("shard {source} owns {scope} again already"));
        }
        (Wish::Rollback, _) => {
            steps.push(format!(
                "what was written on shard {target} since the cut-over flows back to shard {source}, and both are compared"
            ));
            steps.push(held(target, source));
        }
        (Wish::Finish, Phase::BackVerifying) => {
            steps.push(format!(
                "the roll-back that is under way is given up: shard {target} goes on owning {scope}"
            ));
        }
        (Wish::Finish, _) => {
            steps.push(format!("shard {target} goes on owning {scope}; there is no roll-back any more"));
        }
    }
    steps
}

/// What `resume` does.
pub(super) fn resumed(job: &Job, aim: Aim, attended: bool) -> Vec<String> {
    let mut steps = Vec::new();
    if job.paused() {
        steps.push("the pause ends".to_owned());
    }
    if attended {
        steps.push("another shardctl runs the move, and this one looks on while it does".to_owned());
    } else if job.phase.resumed() != job.phase {
        steps.push(format!("what {} left is undone first: the fence is taken off", job.phase.name()));
    } else if !job.phase.waits() {
        steps.push(format!(
            "phase {} is gone on with; what of it was done is not done twice",
            job.phase.name()
        ));
    }
    steps.push(match aim.is_met(job.phase) {
        true => format!("the move stays in phase {}: an operator decides what comes next", job.phase.name()),
        false => format!("it goes on until the move is {}", aim.word()),
    });
    steps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mover::scope::Scope;

    const WISHES: [Wish; 4] = [Wish::Cutover, Wish::Abort, Wish::Rollback, Wish::Finish];

    fn job(phase: Phase) -> Job {
        let now = chrono::Utc::now();
        Job {
            id: 7,
            scope: Scope::of_range(0, 15),
            source: ShardId(1),
            target: ShardId(2),
            phase,
            planned_epoch: 1,
            detail: json!({}),
            created_at: now,
            updated_at: now,
        }
    }

    /// What is said is what `Phase::after` makes of the phases that come: the same shard is emptied, and it does not own.
    #[test]
    fn rows_are_deleted_where_the_machine_deletes_them() {
        use crate::mover::machine::Event;
        for phase in Phase::ALL {
            for wish in WISHES.into_iter().filter(|wish| *wish != Wish::Cutover) {
                let Ok(next) = phase.resumed().granted(wish) else { continue };
                let mut at = next.unwrap_or(phase);
                let mut emptied = None;
                for _ in 0..12 {
                    emptied = match at {
                        Phase::Emptying | Phase::Clearing => Some(ShardId(2)),
                        Phase::Cleaning => Some(ShardId(1)),
                        _ => emptied,
                    };
                    at = match (at, wish) {
                        (Phase::BackFencing, _) => at.after(Event::Flipped),
                        (Phase::Releasing | Phase::Fencing, Wish::Abort) => Phase::Aborting,
                        (Phase::Window, _) => at.granted(wish).unwrap().unwrap_or(at),
                        _ => at.after(Event::Finished),
                    };
                }
                let said = loser(&job(phase), wish);
                let early = matches!(phase, Phase::Announcing | Phase::Arming);
                assert!(
                    said == emptied || (early && said.is_none()) || phase.is_over(),
                    "{phase:?} {wish:?} {emptied:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_under_way_or_kept_is_said_so() {
        let first = |phase: Phase, wish| {
            let next = phase.resumed().granted(wish).unwrap();
            steps(&job(phase), wish, next, 4).remove(0)
        };
        assert!(first(Phase::Ready, Wish::Cutover).contains("and epoch 5 of the map gives them to shard 2"));
        assert!(
            first(Phase::Copying, Wish::Cutover).starts_with("it is kept until the move is in phase ready")
        );
        assert!(
            first(Phase::Reversing, Wish::Finish).starts_with("it is kept until the move is in phase window")
        );
        assert!(
            first(Phase::Cleaning, Wish::Finish).starts_with("it is under way already, in phase cleaning")
        );
        assert!(
            first(Phase::BackVerifying, Wish::Finish)
                .starts_with("the roll-back that is under way is given up")
        );
        assert!(first(Phase::Preflight, Wish::Abort).starts_with("the move ends as refused"));
    }
}
