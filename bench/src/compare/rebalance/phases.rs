//! What moves were doing when a payment began, and how slow payments were then. PURE: histories and latencies in,
//! figures out.
use crate::load::trace::Request;
use crate::output::thousands;
use serde_json::Value;

/// What clients may notice of a move. Where several moves run beside each other, a payment counts for the phase of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Guards and publication are made on the source.
    Arming,
    Copying,
    /// Of both directions.
    Verifying,
    /// From the fence to the flip, or to its release; of both directions.
    Cutover,
    /// No move did any of these.
    Other,
}

/// One line of a move's history: from then on it was in this phase.
#[derive(Clone, Debug)]
pub struct Event {
    /// Since the UNIX epoch.
    pub at_us: i64,
    /// The mover's own name for it.
    pub phase: String,
}

/// The payments that began in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    pub requests: u64,
    pub p99_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByPhase([Part; Phase::ALL.len()]);

struct Span {
    phase: Phase,
    from_us: i64,
    to_us: i64,
}

impl Phase {
    pub const ALL: [Phase; 5] =
        [Phase::Arming, Phase::Copying, Phase::Verifying, Phase::Cutover, Phase::Other];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Arming => "arming",
            Phase::Copying => "copying",
            Phase::Verifying => "verifying",
            Phase::Cutover => "cutover",
            Phase::Other => "other",
        }
    }

    fn of(mover: &str) -> Phase {
        match mover {
            "arming" => Phase::Arming,
            "copying" => Phase::Copying,
            "verifying" | "back_verifying" => Phase::Verifying,
            "fencing" | "back_fencing" => Phase::Cutover,
            _ => Phase::Other,
        }
    }
}

impl Part {
    fn of(latencies_ms: Vec<f64>) -> Part {
        Part { requests: latencies_ms.len() as u64, p99_ms: p99(latencies_ms) }
    }

    pub fn cell(self) -> String {
        self.p99_ms.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.1} ({})", thousands(self.requests)))
    }
}

impl ByPhase {
    /// `histories`: of every move, oldest line first.
    pub fn new<'a>(requests: &[Request], histories: impl Iterator<Item = &'a [Event]>) -> ByPhase {
        let spans: Vec<Span> = histories.flat_map(spans).collect();
        let mut latencies_ms: [Vec<f64>; Phase::ALL.len()] = Default::default();
        for request in requests {
            let within = phases_of(request, &spans);
            for (latencies_ms, within) in latencies_ms.iter_mut().zip(within) {
                if within {
                    latencies_ms.push(request.latency_ms());
                }
            }
        }
        ByPhase(latencies_ms.map(Part::of))
    }

    pub fn of(&self, phase: Phase) -> Part {
        self.0[phase as usize]
    }

    /// One figure of every phase, by the phase's name.
    pub fn json(&self, figure: impl Fn(Part) -> Value) -> Value {
        Phase::ALL.iter().map(|phase| (phase.name(), figure(self.of(*phase)))).collect()
    }
}

/// Milliseconds of the payments that began in one phase.
pub fn within<'a>(
    phase: Phase,
    requests: &[Request],
    histories: impl Iterator<Item = &'a [Event]>,
) -> Vec<f64> {
    let spans: Vec<Span> = histories.flat_map(spans).collect();
    let of_phase = requests.iter().filter(|request| phases_of(request, &spans)[phase as usize]);
    of_phase.map(Request::latency_ms).collect()
}

/// Whether the moves were in each phase when a payment began.
fn phases_of(request: &Request, spans: &[Span]) -> [bool; Phase::ALL.len()] {
    let mut within = [false; Phase::ALL.len()];
    for span in spans {
        within[span.phase as usize] |= (span.from_us..span.to_us).contains(&request.begin_us);
    }
    within[Phase::Other as usize] = !within.contains(&true);
    within
}

/// When the move was in any phase but [`Phase::Other`]. The last line holds for ever.
fn spans(history: &[Event]) -> Vec<Span> {
    let ends = history.iter().skip(1).map(|event| event.at_us).chain(std::iter::once(i64::MAX));
    let spans = history.iter().zip(ends).map(|(event, to_us)| Span {
        phase: Phase::of(&event.phase),
        from_us: event.at_us,
        to_us,
    });
    spans.filter(|span| span.phase != Phase::Other).collect()
}

/// The value below which 99 of 100 lie; the highest of few.
pub fn p99(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * 99).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[(i64, &str)]) -> Vec<Event> {
        lines.iter().map(|(at_us, phase)| Event { at_us: *at_us, phase: (*phase).to_owned() }).collect()
    }

    /// One request a microsecond from 0 on, each of a millisecond.
    fn requests(count: i64) -> Vec<Request> {
        (0..count).map(|begin_us| Request { begin_us, latency_us: 1000 }).collect()
    }

    fn counts(requests: &[Request], histories: &[Vec<Event>]) -> [u64; 5] {
        let parts = ByPhase::new(requests, histories.iter().map(Vec::as_slice));
        Phase::ALL.map(|phase| parts.of(phase).requests)
    }

    #[test]
    fn the_rank_of_the_99th_percentile() {
        let to = |last: u32| p99((1..=last).rev().map(f64::from).collect());
        assert_eq!(to(0), None);
        assert_eq!((to(1), to(99), to(100), to(101)), (Some(1.0), Some(99.0), Some(99.0), Some(100.0)));
        assert_eq!(to(1000), Some(990.0));
    }

    #[test]
    fn a_phase_lasts_until_another_one_is_written_down() {
        let there = history(&[
            (2, "preflight"),
            (7, "arming"),
            (10, "copying"),
            // A remark in the same phase ends nothing.
            (15, "copying"),
            (30, "catching_up"),
            (40, "verifying"),
            (45, "ready"),
            (50, "verifying"),
            (52, "ready"),
            (60, "fencing"),
            (63, "reversing"),
            (70, "window"),
        ]);
        assert_eq!(counts(&requests(100), std::slice::from_ref(&there)), [3, 20, 7, 3, 67]);
        // What was before the first request and after the last one has none.
        assert_eq!(counts(&requests(5), std::slice::from_ref(&there)), [0, 0, 0, 0, 5]);
        let back = history(&[(1, "back_verifying"), (5, "back_fencing"), (6, "returning")]);
        assert_eq!(counts(&requests(10), &[back]), [0, 0, 4, 1, 5]);
        assert_eq!(counts(&requests(10), &[history(&[(4, "copying")])]), [0, 6, 0, 0, 4]);
        assert_eq!(counts(&requests(10), &[]), [0, 0, 0, 0, 10]);
    }

    #[test]
    fn moves_beside_each_other() {
        let one = history(&[(10, "copying"), (30, "catching_up")]);
        let other = history(&[(20, "copying"), (40, "verifying"), (50, "ready")]);
        let third = history(&[(25, "verifying"), (35, "ready")]);
        // 20 to 29 is copied by two and counts once; 25 to 34 is copied and verified.
        assert_eq!(counts(&requests(100), &[one, other, third]), [0, 30, 20, 0, 60]);
    }

    #[test]
    fn each_phase_has_its_own_percentile() {
        let mut requests = requests(400);
        // Of 100 while rows are copied two are slow, of 100 while they are compared one.
        for (begin, latency_us) in [(110, 70_000), (199, 50_500), (200, 90_000)] {
            requests[begin].latency_us = latency_us;
        }
        let history = history(&[(100, "copying"), (200, "verifying"), (300, "ready")]);
        let parts = ByPhase::new(&requests, std::iter::once(history.as_slice()));
        assert_eq!(parts.of(Phase::Copying), Part { requests: 100, p99_ms: Some(50.5) });
        assert_eq!(parts.of(Phase::Verifying), Part { requests: 100, p99_ms: Some(1.0) });
        assert_eq!(parts.of(Phase::Cutover), Part { requests: 0, p99_ms: None });
        assert_eq!(
            parts.json(|part| part.p99_ms.into()),
            serde_json::json!({ "arming": null, "copying": 50.5, "verifying": 1.0, "cutover": null, "other": 1.0 })
        );
        assert_eq!(parts.of(Phase::Copying).cell(), "50.5 (100)");
        assert_eq!(parts.of(Phase::Cutover).cell(), "-");
    }
}
