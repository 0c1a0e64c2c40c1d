//! What a move does next. PURE: phases, what may happen in them, what an operator may ask of them.
//!
//! A phase is the step that is being done. It is written down before the step begins, and every step may be done again,
//! so a mover that is killed anywhere goes on with `resume`. The one thing that is never done again is the flip: it is
//! one transaction in which the map's next epoch and the phase after `fencing` commit together.

/// Names are those of `shard_catalog.move.phase`, of `--json` and of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing has been changed anywhere yet.
    Preflight,
    /// Proxies learn that rows of the scope are going to be on two shards; those that did not know have ended.
    Announcing,
    /// Guards on the source: its writes of the scope take the move's lock, TRUNCATE and DDL are refused. And the publication.
    Arming,
    Copying,
    CatchingUp,
    Verifying,
    /// Both sides are equal and stay so. Waits for the cut-over.
    Ready,
    /// Proxies hold, the source refuses, the target catches up, what changed is compared, the map flips.
    Fencing,
    /// A fence that came to nothing is undone.
    Releasing,
    /// The target owns the scope. Changes begin to flow back.
    Reversing,
    /// Rollback is possible.
    Window,
    BackVerifying,
    BackFencing,
    BackReleasing,
    /// The source owns the scope again; replication is taken down.
    Returning,
    /// Copies on the target are deleted after a roll-back.
    Emptying,
    /// The window is closed, replication is taken down.
    Closing,
    /// Rows on the source are deleted.
    Cleaning,
    /// Replication is taken down before anything flipped.
    Aborting,
    /// Copies on the target are deleted after an abort.
    Clearing,
    Done,
    RolledBack,
    Aborted,
    /// The preflight found a reason not to begin.
    Refused,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It did all that it has to do.
    Finished,
    /// The fence attempt committed the map's next epoch.
    Flipped,
    /// It did not come about, for a reason that may pass. Nothing is lost by trying again.
    Failed,
    /// It cannot come about as things are: the source's slot is lost, the target is not what it was.
    Hopeless,
    /// Both sides differ. Nobody goes on before an operator has looked.
    Different,
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Cutover,
    Abort,
    Rollback,
    Finish,
}

impl Phase {
    pub const ALL: [Self; 24] = [
        Self::Preflight,
        Self::Announcing,
        Self::Arming,
        Self::Copying,
        Self::CatchingUp,
        Self::Verifying,
        Self::Ready,
        Self::Fencing,
        Self::Releasing,
        Self::Reversing,
        Self::Window,
        Self::BackVerifying,
        Self::BackFencing,
        Self::BackReleasing,
        Self::Returning,
        Self::Emptying,
        Self::Closing,
        Self::Cleaning,
        Self::Aborting,
        Self::Clearing,
        Self::Done,
        Self::RolledBack,
        Self::Aborted,
        Self::Refused,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Announcing => "announcing",
            Self::Arming => "arming",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Verifying => "verifying",
            Self::Ready => "ready",
            Self::Fencing => "fencing",
            Self::Releasing => "releasing",
            Self::Reversing => "reversing",
            Self::Window => "window",
            Self::BackVerifying => "back_verifying",
            Self::BackFencing => "back_fencing",
            Self::BackReleasing => "back_releasing",
            Self::Returning => "returning",
            Self::Emptying => "emptying",
            Self::Closing => "closing",
            Self::Cleaning => "cleaning",
            Self::Aborting => "aborting",
            Self::Clearing => "clearing",
            Self::Done => "done",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// Nothing of the move is left to do.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Aborted | Self::Refused)
    }

    /// Nothing happens by itself: an operator decides.
    pub const fn waits(self) -> bool {
        matches!(self, Self::Ready | Self::Window)
    }

    /// A pause holds back work that costs the shards something; it never holds a fence, or proxies. The window goes on: a lock
    /// that waits for old snapshots keeps VACUUM and new slots waiting.
    pub const fn may_pause(self) -> bool {
        matches!(
            self,
            Self::Announcing
                | Self::Arming
                | Self::Copying
                | Self::CatchingUp
                | Self::Verifying
                | Self::BackVerifying
                | Self::Emptying
                | Self::Cleaning
                | Self::Clearing
        )
    }

    /// The map says that the target owns the scope.
    pub const fn target_owns(self) -> bool {
        matches!(
            self,
            Self::Reversing
                | Self::Window
                | Self::BackVerifying
                | Self::BackFencing
                | Self::BackReleasing
                | Self::Closing
                | Self::Cleaning
                | Self::Done
        )
    }

    /// Where a mover begins that finds this phase written down. A fence that a dead mover left is undone first: the
    /// deadline of its hold has long passed, and a deadline never means to proceed.
    pub const fn resumed(self) -> Self {
        match self {
            Self::Fencing => Self::Releasing,
            Self::BackFencing => Self::BackReleasing,
            other => other,
        }
    }

    /// The phase after `event`. The same phase means: try again later.
    pub fn after(self, event: Event) -> Self {
        use Event::{Different, Failed, Finished, Flipped, Hopeless};
        match (self, event) {
            (Self::Preflight, Finished) => Self::Announcing,
            (Self::Preflight, Hopeless | Different) => Self::Refused,
            (Self::Announcing, Finished) => Self::Arming,
            (Self::Arming, Finished) => Self::Copying,
            (Self::Copying, Finished) => Self::CatchingUp,
            (Self::CatchingUp, Finished) => Self::Verifying,
            (Self::Verifying, Finished) => Self::Ready,
            // Before the flip everything can be undone and the source has every row: what has no hope is undone.
            (
                Self::Announcing
                | Self::Arming
                | Self::Copying
                | Self::CatchingUp
                | Self::Verifying
                | Self::Ready,
                Hopeless,
            ) => Self::Aborting,
            // What was compared is compared again before the next attempt.
            (Self::Ready, Different) => Self::Verifying,
            (Self::Fencing, Flipped) => Self::Reversing,
            (Self::Fencing, Finished | Failed | Hopeless | Different) => Self::Releasing,
            (Self::Releasing, Finished) => Self::Verifying,
            (Self::Reversing, Finished) => Self::Window,
            (Self::BackVerifying, Finished) => Self::BackFencing,
            // The way back is gone (say, the target failed over and lost the slot). The target owns the scope and has
            // every row, so the window is as good as closed; only an operator may say so.
            (Self::BackVerifying, Hopeless) => Self::Window,
            (Self::BackFencing, Flipped) => Self::Returning,
            (Self::BackFencing, Finished | Failed | Hopeless | Different) => Self::BackReleasing,
            (Self::BackReleasing, Finished) => Self::Window,
            (Self::Returning, Finished) => Self::Emptying,
            (Self::Emptying, Finished) => Self::RolledBack,
            (Self::Closing, Finished) => Self::Cleaning,
            (Self::Cleaning, Finished) => Self::Done,
            (Self::Aborting, Finished) => Self::Clearing,
            (Self::Clearing, Finished) => Self::Aborted,
            // Everything else changes nothing: a step that failed is tried again, one that found a difference waits for
            // the operator where it is, and a flip is reported by a fence only.
            (phase, Failed | Hopeless | Different | Finished | Flipped) => phase,
        }
    }

    /// Whether a wish is forgotten when the step ends so: one that has no hope would be granted again at once, and again.
    pub const fn gives_up(self, event: Event) -> bool {
        matches!((self, event), (Self::BackVerifying, Event::Hopeless))
    }

    /// Where a wish leads now: `Some(phase)` to change at once, `None` when it is kept until the phase is over. The
    /// error says what to do instead.
    pub fn granted(self, wish: Wish) -> Result<Option<Self>, &'static str> {
        use Wish::{Abort, Cutover, Finish, Rollback};
        match (self, wish) {
            (Self::Ready, Cutover) => Ok(Some(Self::Fencing)),
            (
                Self::Preflight
                | Self::Announcing
                | Self::Arming
                | Self::Copying
                | Self::CatchingUp
                | Self::Verifying
                | Self::Fencing
                | Self::Releasing,
                Cutover,
            ) => Ok(None),
            (Self::Preflight, Abort) => Ok(Some(Self::Refused)),
            (
                Self::Announcing
                | Self::Arming
                | Self::Copying
                | Self::CatchingUp
                | Self::Verifying
                | Self::Ready,
                Abort,
            ) => Ok(Some(Self::Aborting)),
            // The fence is on: it ends one way or the other within half a second.
            (Self::Fencing | Self::Releasing, Abort) => Ok(None),
            (Self::Aborting | Self::Clearing | Self::Aborted, Abort) => Ok(None),
            (Self::Window, Rollback) => Ok(Some(Self::BackVerifying)),
            (
                Self::Reversing
                | Self::BackVerifying
                | Self::BackFencing
                | Self::BackReleasing
                | Self::Returning
                | Self::Emptying
                | Self::RolledBack,
                Rollback,
            ) => Ok(None),
            (Self::Window, Finish) => Ok(Some(Self::Closing)),
            // Asked for while a roll-back is on its way: that roll-back is given up where nothing is fenced.
            (Self::BackVerifying, Finish) => Ok(Some(Self::Closing)),
            (Self::Reversing | Self::Closing | Self::Cleaning | Self::Done, Finish) => Ok(None),
            (Self::Closing | Self::Cleaning, Abort) => {
                Err("the window is closed, and it goes on to its end: plan a move in the other direction")
            }
            (Self::Returning | Self::Emptying, Abort) => {
                Err("it has been rolled back, and goes on to its end")
            }
            (phase, Abort) if phase.target_owns() => {
                Err("the target owns the scope already: use rollback (until finish), or finish")
            }
            (Self::Closing | Self::Cleaning | Self::Done, Rollback) => {
                Err("the window is closed: plan a move in the other direction")
            }
            (phase, Rollback) if !phase.is_over() => Err("nothing has flipped yet: use abort"),
            (phase, Finish) if !phase.is_over() => {
                Err("only a move whose window is open can be finished: cut over first")
            }
            (phase, Cutover) if !phase.is_over() => Err("the move has flipped already, or is being undone"),
            _ => Err("the move is over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 5] =
        [Event::Finished, Event::Flipped, Event::Failed, Event::Hopeless, Event::Different];
    const WISHES: [Wish; 4] = [Wish::Cutover, Wish::Abort, Wish::Rollback, Wish::Finish];

    fn walk(mut phase: Phase, events: &[Event]) -> Phase {
        for event in events {
            phase = phase.after(*event);
        }
        phase
    }

    #[test]
    fn names_are_one_a_phase() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.name()), Some(phase));
        }
        assert_eq!(Phase::from_name("copied"), None);
    }

    #[test]
    fn the_happy_path() {
        let ready = walk(Phase::Preflight, &[Event::Finished; 6]);
        assert_eq!(ready, Phase::Ready);
        let fencing = ready.granted(Wish::Cutover).unwrap().unwrap();
        let window = walk(fencing, &[Event::Flipped, Event::Finished]);
        assert_eq!(window, Phase::Window);
        let finished = window.granted(Wish::Finish).unwrap().unwrap();
        assert_eq!(walk(finished, &[Event::Finished; 2]), Phase::Done);
        let back = window.granted(Wish::Rollback).unwrap().unwrap();
        let events = [Event::Finished, Event::Flipped, Event::Finished, Event::Finished];
        assert_eq!(walk(back, &events), Phase::RolledBack);
        let aborted = ready.granted(Wish::Abort).unwrap().unwrap();
        assert_eq!(walk(aborted, &[Event::Finished; 2]), Phase::Aborted);
    }

    /// Every phase with every event: who owns the scope changes by a flip and by nothing else.
    #[test]
    fn h6_only_a_flip_changes_the_owner() {
        for phase in Phase::ALL {
            for event in EVENTS {
                let next = phase.after(event);
                let changed = phase.target_owns() != next.target_owns();
                assert_eq!(
                    changed,
                    event == Event::Flipped && matches!(phase, Phase::Fencing | Phase::BackFencing),
                    "{phase:?} {event:?} -> {next:?}"
                );
            }
            assert_eq!(phase.target_owns(), phase.resumed().target_owns());
            for wish in WISHES {
                if let Ok(Some(next)) = phase.granted(wish) {
                    assert_eq!(phase.target_owns(), next.target_owns(), "{phase:?} {wish:?}");
                }
            }
        }
    }

    /// Every phase with every failure: nothing after the flip is aborted, nothing that is over starts again, and a
    /// failure never goes forward.
    #[test]
    fn every_failure_stays_or_goes_back() {
        for phase in Phase::ALL {
            for event in [Event::Failed, Event::Hopeless, Event::Different] {
                let next = phase.after(event);
                let back = match phase {
                    Phase::Fencing => next == Phase::Releasing,
                    Phase::BackFencing => next == Phase::BackReleasing,
                    Phase::Preflight => matches!(next, Phase::Preflight | Phase::Refused),
                    Phase::Ready if event == Event::Different => next == Phase::Verifying,
                    Phase::BackVerifying if event == Event::Hopeless => next == Phase::Window,
                    _ if event == Event::Hopeless && next == Phase::Aborting => !phase.target_owns(),
                    _ => next == phase,
                };
                assert!(back, "{phase:?} {event:?} -> {next:?}");
            }
            if phase.is_over() {
                assert!(EVENTS.iter().all(|event| phase.after(*event) == phase));
            }
        }
    }

    /// From every phase, whatever happened, an end can be reached with at most one command of the operator.
    #[test]
    fn every_phase_ends_by_one_command() {
        for phase in Phase::ALL {
            let mut ends = false;
            for wish in [None, Some(Wish::Abort), Some(Wish::Rollback), Some(Wish::Finish)] {
                let (mut at, mut asked) = (phase.resumed(), wish);
                for _ in 0..20 {
                    if let Some(wish) = asked
                        && let Ok(Some(next)) = at.granted(wish)
                    {
                        (at, asked) = (next, None);
                        continue;
                    }
                    at = match at {
                        Phase::BackFencing => at.after(Event::Flipped),
                        Phase::Ready | Phase::Window => at,
                        _ => at.after(Event::Finished),
                    };
                }
                ends |= at.is_over();
            }
            assert!(ends, "{phase:?} never ends");
        }
    }

    /// Whatever an operator asked for: a step that has no hope never leads back to itself by the same wish.
    #[test]
    fn a_wish_without_hope_is_not_granted_for_ever() {
        for phase in Phase::ALL {
            let next = phase.after(Event::Hopeless);
            for wish in WISHES.into_iter().filter(|_| next != phase) {
                let again = next.granted(wish) == Ok(Some(phase));
                assert!(!again || phase.gives_up(Event::Hopeless), "{phase:?} {wish:?}");
            }
        }
        assert!(Phase::BackVerifying.gives_up(Event::Hopeless));
        assert!(!Phase::BackVerifying.gives_up(Event::Failed));
    }

    #[test]
    fn a_fence_of_a_dead_mover_is_undone() {
        assert_eq!(Phase::Fencing.resumed(), Phase::Releasing);
        assert_eq!(Phase::BackFencing.resumed(), Phase::BackReleasing);
        for phase in Phase::ALL.into_iter().filter(|p| !matches!(p, Phase::Fencing | Phase::BackFencing)) {
            assert_eq!(phase.resumed(), phase);
        }
    }

    #[test]
    fn wishes_that_make_no_sense_say_what_does() {
        assert!(Phase::Window.granted(Wish::Abort).unwrap_err().contains("rollback"));
        assert!(Phase::Copying.granted(Wish::Rollback).unwrap_err().contains("abort"));
        assert!(Phase::Copying.granted(Wish::Finish).is_err());
        assert!(Phase::Cleaning.granted(Wish::Rollback).unwrap_err().contains("other direction"));
        assert!(Phase::Done.granted(Wish::Cutover).is_err());
        assert_eq!(Phase::Fencing.granted(Wish::Abort), Ok(None));
    }
}
