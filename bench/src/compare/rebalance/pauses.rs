//! How long a client waits at a cut-over: the longest wait of a write to what moves that was begun before or during the
//! attempt, from the statement sent to its answer. PURE: writes and histories in, figures out.
//!
//! The mover's own figure is beside it. It begins with the first statement held and ends with the mover's last step; what a
//! client sees begins with the first statement of that client, and ends when the proxy has heard of the end and the row
//! is written where it is now.
use super::phases::Event;
use super::scope::Scope;

/// Within this time after the last line of an attempt proxies have heard of it.
const HEARD_US: i64 = 250_000;

/// One write of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Sent, since the UNIX epoch.
    pub begin_us: i64,
    /// Until it was answered.
    pub took_us: u64,
    /// Of its row's key.
    pub hash: i64,
}

/// One attempt as the probe saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attempt {
    /// `None`: no write was under way, so that nothing is known.
    pub seen_ms: Option<f64>,
    /// A write that was held earlier than the one that waited longest, by so much at most, would have waited longer.
    pub gap_ms: f64,
}

/// What the probe saw of some moves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pauses {
    /// Of every attempt, as the mover has them.
    pub mover_ms: Vec<f64>,
    /// In the order of the moves' histories.
    pub attempts: Vec<Attempt>,
    /// Writes to what moved.
    pub writes: u64,
    /// The longest write beside every attempt, of whatever row: what the machine makes one wait for without a cut-over.
    pub beside_ms: f64,
}

/// One move, from the step on that is looked at.
pub struct Moved<'a> {
    pub scope: &'a Scope,
    pub history: &'a [Event],
    /// Of all of its attempts, the mover's own figures.
    pub mover_ms: Vec<f64>,
}

impl Write {
    fn end_us(&self) -> i64 {
        self.begin_us.saturating_add_unsigned(self.took_us)
    }

    fn is_within(&self, (from_us, to_us): (i64, i64)) -> bool {
        self.begin_us < to_us && self.end_us() >= from_us
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// When each attempt was under way: from the line that says so to the next one of another kind, its undoing included.
fn attempts(history: &[Event]) -> Vec<(i64, i64)> {
    let attempt = |event: &Event| match event.phase.as_str() {
        "fencing" | "back_fencing" => Some(true),
        "releasing" | "back_releasing" => Some(false),
        _ => None,
    };
    let mut spans: Vec<(i64, i64)> = Vec::new();
    let mut open = false;
    let mut undone = false;
    for event in history {
        let is = attempt(event);
        // The next attempt may follow the undoing of the one before at once.
        if open && (is.is_none() || undone && is == Some(true)) {
            if let Some(last) = spans.last_mut() {
                last.1 = event.at_us;
            }
            open = false;
        }
        if is == Some(true) && !open {
            // What became of the attempt is written down after its end, as a line of the same phase.
            match spans.last() {
                Some(last) if !undone && event.at_us <= last.1.saturating_add(HEARD_US) => {}
                _ => spans.push((event.at_us, i64::MAX)),
            }
            open = true;
        }
        undone = is == Some(false);
    }
    spans.into_iter().map(|(from, to)| (from, to.saturating_add(HEARD_US))).collect()
}

impl Pauses {
    /// `writes`: in the order in which they were begun.
    pub fn new<'a>(writes: &[Write], moves: impl Iterator<Item = Moved<'a>>) -> Pauses {
        let mut pauses = Pauses::default();
        let mut spans = Vec::new();
        let mut is_moved = vec![false; writes.len()];
        for Moved { scope, history, mover_ms } in moves {
            let to_it: Vec<&Write> = writes.iter().filter(|write| scope.has(write.hash)).collect();
            for (is_moved, write) in is_moved.iter_mut().zip(writes) {
                *is_moved |= scope.has(write.hash);
            }
            let of_move = attempts(history);
            pauses.attempts.extend(of_move.iter().map(|span| Attempt::of(&to_it, *span)));
            // A move that is rolled back has had others before.
            pauses.mover_ms.extend(&mover_ms[mover_ms.len().saturating_sub(of_move.len())..]);
            spans.extend(of_move);
        }
        pauses.writes = is_moved.iter().filter(|is| **is).count() as u64;
        let beside = writes.iter().filter(|write| !spans.iter().any(|span| write.is_within(*span)));
        pauses.beside_ms = ms(beside.map(|write| write.took_us).max().unwrap_or(0));
        pauses
    }

    pub fn seen_ms(&self) -> impl Iterator<Item = f64> + '_ {
        self.attempts.iter().filter_map(|attempt| attempt.seen_ms)
    }

    /// A client's, and the mover's.
    pub fn all_ms(&self) -> impl Iterator<Item = f64> + '_ {
        self.seen_ms().chain(self.mover_ms.iter().copied())
    }

    pub fn gap_ms(&self) -> f64 {
        self.attempts.iter().map(|attempt| attempt.gap_ms).fold(0.0, f64::max)
    }

    /// Somebody wrote to what moved in every attempt, and there was one.
    pub fn is_whole(&self) -> bool {
        !self.attempts.is_empty() && self.attempts.iter().all(|attempt| attempt.seen_ms.is_some())
    }
}

impl Attempt {
    fn of(writes: &[&Write], span: (i64, i64)) -> Attempt {
        let within = writes.iter().enumerate().filter(|(_, write)| write.is_within(span));
        let Some((at, longest)) = within.max_by_key(|(_, write)| write.took_us) else {
            return Attempt::default();
        };
        let before_us = at.checked_sub(1).map_or(longest.begin_us, |before| writes[before].begin_us);
        Attempt { seen_ms: Some(ms(longest.took_us)), gap_ms: ms(longest.begin_us.abs_diff(before_us)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1000;

    fn history(lines: &[(i64, &str)]) -> Vec<Event> {
        lines.iter().map(|(ms, phase)| Event { at_us: ms * MS, phase: (*phase).to_owned() }).collect()
    }

    /// Begun and answered, in milliseconds, of a bucket.
    fn write(begin: i64, end: i64, hash: i64) -> Write {
        Write { begin_us: begin * MS, took_us: ((end - begin) * MS).unsigned_abs(), hash }
    }

    fn pauses(writes: &[Write], lines: &[(i64, &str)]) -> Pauses {
        let (scope, history) = (Scope::buckets((10, 19)), history(lines));
        let moved = Moved { scope: &scope, history: &history, mover_ms: vec![77.0, 300.0] };
        Pauses::new(writes, std::iter::once(moved))
    }

    const ONE: [(i64, &str); 5] =
        [(0, "ready"), (1000, "fencing"), (1295, "reversing"), (1298, "fencing"), (1300, "window")];

    #[test]
    fn the_longest_wait_of_what_moves_counts_whole() {
        let writes = [
            write(0, 900, 10),    // Over before the attempt.
            write(980, 1005, 11), // Begun before.
            write(1005, 1010, 12),
            write(1012, 1420, 13), // Answered after the flip.
            write(1015, 1990, 20), // Of another bucket.
            write(1560, 2500, 14), // Begun when every proxy had heard of it.
        ];
        let seen = pauses(&writes, &ONE);
        assert_eq!(seen.attempts, [Attempt { seen_ms: Some(408.0), gap_ms: 7.0 }]);
        assert_eq!((seen.writes, seen.beside_ms, seen.is_whole()), (5, 940.0, true));
        assert_eq!(seen.mover_ms, [300.0]);
        let before = pauses(&[write(900, 1500, 10)], &ONE);
        assert_eq!(before.attempts, [Attempt { seen_ms: Some(600.0), gap_ms: 0.0 }]);
    }

    #[test]
    fn an_attempt_that_nobody_saw_is_not_a_short_one() {
        let seen = pauses(&[write(900, 950, 10), write(1010, 1400, 20)], &ONE);
        assert_eq!((seen.attempts.len(), seen.seen_ms().count(), seen.is_whole()), (1, 0, false));
        assert!(!pauses(&[write(900, 950, 10)], &[(0, "ready")]).is_whole());
    }

    #[test]
    fn failed_attempts_are_attempts_and_have_ended_when_they_are_undone() {
        let lines = [
            (1000, "fencing"),
            (1400, "releasing"),
            (2450, "fencing"),
            (2800, "releasing"),
            (2900, "ready"),
            (5000, "back_fencing"),
            (5100, "returning"),
        ];
        let writes =
            [write(1390, 2400, 10), write(2500, 2550, 10), write(2895, 2897, 10), write(5001, 5020, 10)];
        let seen: Vec<f64> = pauses(&writes, &lines).seen_ms().collect();
        assert_eq!(seen, [1010.0, 50.0, 19.0]);
        // A mover that was killed while it held the fence: nobody has undone it yet.
        assert_eq!(attempts(&history(&[(7, "fencing")])), [(7 * MS, i64::MAX)]);
    }
}
