//! Where a move is wanted, and whether it has come there. PURE.

use crate::exit;
use crate::mover::job::Job;
use crate::mover::machine::{Phase, Wish};
use crate::mover::run::Options;

/// The phase in which whoever asked is content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    Ready,
    Window,
    Done,
    Aborted,
    RolledBack,
}

impl From<Wish> for Aim {
    fn from(wish: Wish) -> Self {
        match wish {
            Wish::Cutover => Self::Window,
            Wish::Finish => Self::Done,
            Wish::Abort => Self::Aborted,
            Wish::Rollback => Self::RolledBack,
        }
    }
}

impl Aim {
    /// Where the move is on its way to.
    pub fn of(job: &Job, options: Options) -> Self {
        Self::from_here(job.phase, job.wish(), options)
    }

    fn from_here(phase: Phase, wish: Option<Wish>, options: Options) -> Self {
        match phase {
            Phase::Aborting | Phase::Clearing | Phase::Aborted | Phase::Refused => Self::Aborted,
            Phase::Returning | Phase::Emptying | Phase::RolledBack => Self::RolledBack,
            Phase::Closing | Phase::Cleaning | Phase::Done => Self::Done,
            phase => match wish {
                Some(wish) if wish != Wish::Cutover => wish.into(),
                _ if options.finish && (options.auto || phase.target_owns()) => Self::Done,
                Some(_) => Self::Window,
                None if options.auto || phase.target_owns() => Self::Window,
                None => Self::Ready,
            },
        }
    }

    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Window => "cut over",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled back",
        }
    }

    /// Also when somebody else has gone further the same way.
    pub const fn is_met(self, phase: Phase) -> bool {
        match self {
            Self::Ready => matches!(phase, Phase::Ready | Phase::Window | Phase::Done),
            Self::Window => matches!(phase, Phase::Window | Phase::Done),
            Self::Done => matches!(phase, Phase::Done),
            // A move that had not begun anything is refused.
            Self::Aborted => matches!(phase, Phase::Aborted | Phase::Refused),
            Self::RolledBack => matches!(phase, Phase::RolledBack),
        }
    }

    /// The exit status of who asked and finds the move in `phase`, where nobody goes on.
    pub const fn status(self, phase: Phase) -> u8 {
        match (self, phase) {
            _ if self.is_met(phase) => 0,
            (_, Phase::Refused) => exit::REFUSED,
            (Self::Window | Self::Done, Phase::Ready) | (Self::RolledBack, Phase::Window) => exit::GIVEN_UP,
            _ => exit::FAILED,
        }
    }
}

/// Whether the move goes on only when an operator says so, and so needs no runner.
pub fn is_idle(job: &Job, options: Options) -> bool {
    let by_itself = match job.phase {
        Phase::Ready => options.auto,
        Phase::Window => options.finish,
        _ => true,
    };
    job.phase.is_over() || (job.wish().is_none() && !by_itself)
}

/// What was said of the whole move when it began: by `apply`, by `resume`, by a request.
pub fn stored(job: &Job) -> Options {
    Options { auto: job.flag("auto"), finish: job.flag("finish"), stay: false }
}

/// The phase with whose beginning the way to `phase` was taken: its note says why.
pub const fn turn(phase: Phase) -> Phase {
    match phase {
        Phase::Aborted => Phase::Aborting,
        Phase::RolledBack => Phase::BackVerifying,
        Phase::Done => Phase::Closing,
        Phase::Window => Phase::Reversing,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_HAND: Options = Options { auto: false, finish: false, stay: false };
    const AUTO: Options = Options { auto: true, finish: false, stay: false };
    const FINISH: Options = Options { auto: true, finish: true, stay: false };

    #[test]
    fn a_move_that_ends_elsewhere_than_it_was_wanted_is_a_failure() {
        for (aim, phase, status) in [
            (Aim::Ready, Phase::Ready, 0),
            (Aim::Ready, Phase::Window, 0),
            (Aim::Ready, Phase::Aborted, exit::FAILED),
            (Aim::Window, Phase::Ready, exit::GIVEN_UP),
            (Aim::Window, Phase::Aborted, exit::FAILED),
            (Aim::Window, Phase::Refused, exit::REFUSED),
            (Aim::Done, Phase::RolledBack, exit::FAILED),
            (Aim::Done, Phase::Window, exit::FAILED),
            (Aim::Aborted, Phase::Refused, 0),
            (Aim::Aborted, Phase::Window, exit::FAILED),
            (Aim::RolledBack, Phase::Window, exit::GIVEN_UP),
            (Aim::RolledBack, Phase::Done, exit::FAILED),
        ] {
            assert_eq!(aim.status(phase), status, "{aim:?} {phase:?}");
        }
    }

    #[test]
    fn a_move_that_is_taken_up_is_wanted_where_it_was_going() {
        for (phase, wish, options, aim) in [
            (Phase::Copying, None, BY_HAND, Aim::Ready),
            (Phase::Copying, None, AUTO, Aim::Window),
            (Phase::Copying, None, FINISH, Aim::Done),
            (Phase::Copying, Some(Wish::Cutover), BY_HAND, Aim::Window),
            (Phase::Copying, Some(Wish::Abort), FINISH, Aim::Aborted),
            (Phase::Clearing, None, FINISH, Aim::Aborted),
            (Phase::Reversing, None, BY_HAND, Aim::Window),
            (Phase::BackFencing, Some(Wish::Rollback), FINISH, Aim::RolledBack),
            (Phase::BackReleasing, None, BY_HAND, Aim::Window),
            (Phase::Emptying, None, AUTO, Aim::RolledBack),
            (Phase::Cleaning, None, BY_HAND, Aim::Done),
        ] {
            assert_eq!(Aim::from_here(phase, wish, options), aim, "{phase:?} {wish:?} {options:?}");
        }
    }
}
