//! What the comparison found, judged; as JSON in `json`, and for people in `human`.
mod human;
mod json;

use super::RebalanceArgs;
use super::application;
use super::clients::Noticed;
use super::copy::{Copied, Yardstick};
use super::pauses::Pauses;
use super::phases::{ByPhase, Phase, p99};
use super::plan::Kind;
use super::shardctl::Move;
use crate::check::report::CheckReport;
use crate::load::trace::Request;
use crate::output::optional;

/// Milliseconds that a write to what moves waits at most for an attempt at a cut-over.
const PAUSE_BAR_MS: f64 = 500.0;
/// The 99th percentile of payments while rows are copied, as a multiple of that without a move.
const P99_BAR: f64 = 2.0;
const COPY_BAR: f64 = 0.7;
/// Payments a second, of those that were to be begun: who is slower waits less than who is not.
const RATE_BAR: f64 = 0.95;
/// Milliseconds until every proxy serves by a new map.
const MAP_BAR_MS: f64 = 250.0;

/// What the rows of the table are called that are no steps.
const CALM: &str = "no move";
const COPY: &str = "COPY | COPY";

pub struct StepResult {
    pub kind: Kind,
    pub seconds: f64,
    pub moves: Vec<Move>,
    pub noticed: Noticed,
    pub by_phase: ByPhase,
    /// Of every payment that began while its rows were copied.
    pub copying_ms: Vec<f64>,
    pub pauses: Pauses,
    /// Of every change of the map; `None`: some proxy never served by it.
    pub followed_ms: Vec<Option<f64>>,
}

pub struct Report {
    rate: f64,
    /// Without a move, before every step that copies.
    pub calms: Vec<Noticed>,
    /// Each to another shard.
    pub copies: Vec<Yardstick>,
    pub steps: Vec<StepResult>,
    pub application: Option<application::Seen>,
    pub checked: Option<CheckReport>,
}

impl StepResult {
    pub fn line(&self) -> String {
        format!(
            "{}: {:.0} s, {} move(s), longest writes at cut-overs {} ms (the mover: {}), beside them {:.0} ms, payments p99 {:.0} ms (copying: {}), {} errors",
            self.kind.name(),
            self.seconds,
            self.moves.len(),
            self.seen_text(),
            self.mover_text(),
            self.pauses.beside_ms,
            self.noticed.load.p99_ms,
            optional(self.by_phase.of(Phase::Copying).p99_ms, 0),
            self.noticed.errors()
        )
    }

    /// What a client waited for at each attempt.
    fn seen_text(&self) -> String {
        list(self.pauses.attempts.iter().map(|attempt| attempt.seen_ms))
    }

    fn mover_text(&self) -> String {
        list(self.pauses.mover_ms.iter().copied().map(Some))
    }
}

fn longest(all_ms: Vec<f64>) -> Option<f64> {
    all_ms.into_iter().max_by(f64::total_cmp)
}

fn list(all_ms: impl Iterator<Item = Option<f64>>) -> String {
    let texts: Vec<String> = all_ms.map(|ms| optional(ms, 0)).collect();
    texts.join(" ")
}

impl Report {
    pub fn new(args: &RebalanceArgs) -> Report {
        let (calms, copies, steps) = (Vec::new(), Vec::new(), Vec::new());
        Report { rate: args.rate, calms, copies, steps, application: None, checked: None }
    }

    fn copied(&self) -> Option<Copied> {
        Copied::new(&self.copies, self.first_move()?)
    }

    /// Of the step that moves whole buckets.
    pub fn first_move(&self) -> Option<&Move> {
        self.steps.iter().find(|step| step.kind == Kind::Move)?.moves.first()
    }

    /// What clients noticed, beside a move and without.
    fn noticed(&self) -> impl Iterator<Item = (&'static str, &Noticed)> {
        let steps = self.steps.iter().map(|step| (step.kind.name(), &step.noticed));
        let copies = self.copies.iter().map(|copy| (COPY, &copy.noticed));
        self.calms.iter().map(|calm| (CALM, calm)).chain(steps).chain(copies)
    }

    fn sum(&self, of: impl Fn(&Noticed) -> u64) -> u64 {
        self.noticed().map(|(_, noticed)| of(noticed)).sum()
    }

    /// Every failed payment, statement and transaction of whatever client.
    fn errors(&self) -> u64 {
        self.sum(Noticed::errors) + self.application.as_ref().map_or(0, |app| app.errors)
    }

    /// Of every attempt, what a client waited for.
    fn seen_ms(&self) -> Vec<f64> {
        self.steps.iter().flat_map(|step| step.pauses.seen_ms()).collect()
    }

    fn mover_ms(&self) -> Vec<f64> {
        self.steps.iter().flat_map(|step| step.pauses.mover_ms.iter().copied()).collect()
    }

    /// The larger one of what clients and the mover say.
    fn pause_ms(&self, of: impl Fn(Vec<f64>) -> Option<f64>) -> Option<f64> {
        [of(self.seen_ms()), of(self.mover_ms())].into_iter().flatten().max_by(f64::total_cmp)
    }

    /// Of the slowest change of the map; `None`: some proxy did not follow one, or a step changed nothing.
    fn followed_ms(&self) -> Option<f64> {
        let all = self.steps.iter().map(|step| {
            let all: Option<Vec<f64>> = step.followed_ms.iter().copied().collect();
            longest(all?)
        });
        longest(all.collect::<Option<Vec<f64>>>()?)
    }

    /// Of all payments without a move.
    fn calm_p99_ms(&self) -> Option<f64> {
        let requests = self.calms.iter().flat_map(|calm| &calm.load.requests);
        p99(requests.map(Request::latency_ms).collect())
    }

    /// Of all payments that began while rows were copied, in whatever step. A roll-back copies none.
    fn copying_p99_ms(&self) -> Option<f64> {
        p99(self.steps.iter().flat_map(|step| step.copying_ms.iter().copied()).collect())
    }

    /// Both were measured in turns. A step copies for seconds: one stall of the machine would decide over it.
    fn copying_ratio(&self) -> Option<f64> {
        Some(self.copying_p99_ms()? / self.calm_p99_ms()?)
    }

    /// The worst single step's.
    fn copying_ratio_worst(&self) -> Option<f64> {
        self.worst_ratio(self.steps.iter().filter_map(|step| step.by_phase.of(Phase::Copying).p99_ms))
    }

    /// The worst step's, of all its payments.
    fn step_ratio(&self) -> Option<f64> {
        self.worst_ratio(self.steps.iter().map(|step| step.noticed.load.p99_ms))
    }

    fn worst_ratio(&self, p99s_ms: impl Iterator<Item = f64>) -> Option<f64> {
        let calm_ms = self.calm_p99_ms()?;
        p99s_ms.map(|p99_ms| p99_ms / calm_ms).max_by(f64::total_cmp)
    }

    fn bars(&self) -> Vec<(bool, String)> {
        let mut bars = Vec::new();
        for (what, count) in [
            ("failed payments and statements", self.errors()),
            ("lost writes", self.sum(|n| n.seen.lost)),
            ("doubled writes", self.sum(|n| n.seen.doubled)),
            ("rows seen twice", self.sum(|n| n.seen.duplicate_rows)),
            ("rows not seen", self.sum(|n| n.seen.missing_rows)),
        ] {
            bars.push((count == 0, format!("{what}: {count}")));
        }
        if let Some(app) = &self.application {
            let text = format!(
                "JDBC application: {} transactions, {} failed, {} wrong answers",
                app.ok, app.errors, app.wrong
            );
            bars.push((app.ok > 0 && app.errors == 0 && app.wrong == 0, text));
        }
        for step in self.steps.iter().filter(|step| !step.pauses.is_whole()) {
            let text =
                format!("{}: no cut-over in which a write to what moved was under way", step.kind.name());
            bars.push((false, text));
        }
        if let Some(worst) = self.pause_ms(longest) {
            let figures = [self.seen_ms(), self.mover_ms()].map(|all| optional(longest(all), 0));
            let text = format!(
                "longest wait at an attempt at a cut-over: {} ms as a client saw it, {} as the mover did (bar {PAUSE_BAR_MS:.0})",
                figures[0], figures[1]
            );
            bars.push((worst <= PAUSE_BAR_MS, text));
        } else {
            bars.push((false, "no cut-over was attempted".to_owned()));
        }
        let rates = || self.noticed().map(|(_, noticed)| noticed.load.rate / self.rate);
        let least = rates().fold(f64::INFINITY, f64::min);
        let text = format!(
            "payments made of {:.0}/s, without a move and in the slowest step: {least:.2} (bar {RATE_BAR})",
            self.rate
        );
        // Not by the least one: what is no number is left out of it.
        bars.push((rates().all(|rate| rate >= RATE_BAR), text));
        let maps: usize = self.steps.iter().map(|step| step.followed_ms.len()).sum();
        let followed = self.followed_ms();
        let text = format!(
            "every proxy served by each of {maps} changed maps after {} ms at most (bar {MAP_BAR_MS:.0})",
            optional(followed, 0)
        );
        bars.push((followed.is_some_and(|ms| ms <= MAP_BAR_MS), text));
        if let Some(ratio) = self.copying_ratio() {
            let text = format!(
                "payments' p99 while rows are copied, {} ms, against {} ms without a move: {ratio:.2} (bar {P99_BAR})",
                optional(self.copying_p99_ms(), 1),
                optional(self.calm_p99_ms(), 1)
            );
            bars.push((ratio <= P99_BAR, text));
        } else if self.steps.iter().any(|step| step.kind.copies()) {
            bars.push((false, "payments' p99 while rows are copied: none began then".to_owned()));
        }
        if let Some(copy) = self.copied() {
            bars.push((
                copy.ratio() >= COPY_BAR,
                format!(
                    "the mover's copy against {COPY}: {:.0} of {:.0} rows/s, {:.2} (bar {COPY_BAR})",
                    copy.mover_rows_per_s(),
                    copy.copy_rows_per_s(),
                    copy.ratio()
                ),
            ));
        } else if !self.copies.is_empty() {
            bars.push((false, format!("nothing to compare with {COPY}")));
        }
        if let Some(checked) = &self.checked {
            bars.push((checked.ok(), "the ledger's invariants".to_owned()));
        }
        bars
    }

    pub fn well(&self) -> bool {
        self.bars().iter().all(|(ok, _)| *ok)
    }
}

#[cfg(test)]
mod tests {
    use super::super::foreground::Seen;
    use super::super::pauses::Attempt;
    use super::super::phases::Event;
    use super::super::scope::Scope;
    use super::super::watch::Counts;
    use super::*;
    use serde_json::{Value, json};

    fn request(ms: u64) -> Request {
        Request { begin_us: 0, latency_us: ms * 1000 }
    }

    fn noticed(p99_ms: u64, lost: u64) -> Noticed {
        Noticed {
            load: Seen {
                p99_ms: p99_ms as f64,
                rate: 1.0,
                requests: vec![request(p99_ms)],
                ..Seen::default()
            },
            seen: Counts { lost, ..Counts::default() },
            ..Noticed::default()
        }
    }

    /// Payments took so long while rows were copied.
    fn step(kind: Kind, copying_ms: Option<u64>, lost: u64, pause: f64) -> StepResult {
        let history = [Event { at_us: 0, phase: "copying".into() }];
        let requests: Vec<Request> = copying_ms.map(request).into_iter().collect();
        StepResult {
            kind,
            seconds: 1.0,
            moves: vec![Move {
                id: 1,
                source: 1,
                target: 3,
                phase: "window".into(),
                scope: Scope::default(),
                detail: json!({"progress": {"rows": 700}, "verify": {"rows": 900}}),
                copy_s: Some(0.5),
                history: history.to_vec(),
            }],
            noticed: noticed(30, lost),
            by_phase: ByPhase::new(&requests, std::iter::once(history.as_slice())),
            copying_ms: requests.iter().map(Request::latency_ms).collect(),
            pauses: paused(pause, pause),
            followed_ms: vec![Some(40.0)],
        }
    }

    fn paused(seen: f64, mover: f64) -> Pauses {
        let attempt = Attempt { seen_ms: Some(seen), gap_ms: 8.0 };
        Pauses { mover_ms: vec![mover], attempts: vec![attempt], writes: 1, beside_ms: 700.0 }
    }

    fn report(steps: Vec<StepResult>) -> Report {
        let (calms, copies) = (vec![noticed(10, 0)], Vec::new());
        Report { rate: 1.0, calms, copies, steps, application: None, checked: None }
    }

    fn moved(lost: u64, pause: f64) -> Report {
        report(vec![step(Kind::Move, Some(20), lost, pause)])
    }

    #[test]
    fn one_lost_row_is_not_well() {
        assert!(moved(0, 300.0).well());
        assert!(!moved(1, 300.0).well());
        let with = |app| Report { application: Some(app), ..moved(0, 300.0) };
        let app = application::Seen { ok: 9, ..application::Seen::default() };
        assert!(with(app.clone()).well());
        assert!(!with(application::Seen { wrong: 1, ..app.clone() }).well());
        let failed = with(application::Seen { errors: 2, ..app });
        assert!(!failed.well());
        assert_eq!(failed.json()["errors"], 2);
    }

    #[test]
    fn a_pause_is_what_a_client_waits_for() {
        let with = |pauses| {
            let mut report = moved(0, 1.0);
            report.steps[0].pauses = pauses;
            report
        };
        let judged = |seen, mover| {
            let report = with(paused(seen, mover));
            let json = report.json();
            (
                report.well(),
                [&json["pause_p99_ms"], &json["pause_p99_ms_seen"]].map(|ms| ms.as_f64().unwrap()),
            )
        };
        assert_eq!(judged(400.0, 90.0), (true, [400.0, 400.0]));
        assert_eq!(judged(501.0, 90.0), (false, [501.0, 501.0]));
        assert_eq!(judged(90.0, 501.0), (false, [501.0, 90.0]));
        // What nobody waited in was not seen, however long the mover says that it was.
        let unseen = Pauses { attempts: vec![Attempt::default()], ..paused(1.0, 90.0) };
        assert!(!with(unseen).well());
        assert!(!with(Pauses { attempts: Vec::new(), ..paused(1.0, 90.0) }).well());
    }

    #[test]
    fn fewer_payments_are_another_load() {
        let with = |rate| {
            let mut report = moved(0, 1.0);
            report.steps[0].noticed.load.rate = rate;
            report.well()
        };
        assert_eq!((with(0.95), with(0.94), with(f64::NAN)), (true, false, false));
        let mut report = moved(0, 1.0);
        report.calms[0].load.rate = 0.94;
        assert!(!report.well());
    }

    #[test]
    fn every_proxy_follows_every_map() {
        let with = |followed_ms: &[Option<f64>]| {
            let mut report =
                report(vec![step(Kind::Move, Some(20), 0, 1.0), step(Kind::Rollback, None, 0, 1.0)]);
            report.steps[1].followed_ms = followed_ms.to_vec();
            (report.well(), report.json()["map_change_max_ms"].as_f64())
        };
        assert_eq!(with(&[Some(250.0), Some(10.0)]), (true, Some(250.0)));
        assert_eq!(with(&[Some(10.0), Some(250.1)]), (false, Some(250.1)));
        assert_eq!(with(&[Some(10.0), None]), (false, None));
        assert_eq!(with(&[]), (false, None));
    }

    #[test]
    fn the_copy_is_as_fast_as_the_rows_that_it_copied() {
        let by_copy = |seconds| Yardstick { rows: 4000, seconds, ..Yardstick::default() };
        let copied = |copies| Report { copies, ..moved(0, 1.0) }.copied();
        let both = copied(vec![by_copy(1.0), by_copy(3.0)]).unwrap();
        // 700 rows in half a second; 900 were there when they were compared.
        assert_eq!((both.mover_rows_per_s(), both.copy_rows_per_s()), (1400.0, 2000.0));
        assert!(copied(Vec::new()).is_none());
        let nothing = Report { copies: vec![Yardstick::default()], ..moved(0, 1.0) };
        assert!(nothing.copied().is_none() && !nothing.well());
    }

    #[test]
    fn payments_are_judged_while_rows_are_copied() {
        let both = |copying_ms| {
            report(vec![
                step(Kind::Move, Some(15), 0, 1.0),
                step(Kind::Drain, copying_ms, 0, 1.0),
                step(Kind::Rollback, None, 0, 1.0),
            ])
        };
        let held = both(Some(20));
        assert!(held.well());
        let json = held.json();
        assert_eq!(
            (&json["foreground_p99_ratio"], &json["foreground_p99_ratio_step"]),
            (&json!(2.0), &json!(3.0))
        );
        let by_phase = |step: usize, what: &str| json["steps"][step][what]["copying"].clone();
        assert_eq!(
            (by_phase(1, "p99_ms_by_phase"), by_phase(1, "payments_by_phase")),
            (json!(20.0), json!(1))
        );
        assert_eq!(
            (by_phase(2, "p99_ms_by_phase"), by_phase(2, "payments_by_phase")),
            (Value::Null, json!(0))
        );
        assert_eq!(json["foreground_p99_ratio_worst_copy"], 2.0);
        assert!(!both(Some(21)).well());
        assert!(both(None).well());
        // A move during which nobody was looked at says nothing; a roll-back copies nothing.
        assert!(!report(vec![step(Kind::Move, None, 0, 1.0)]).well());
        assert!(report(vec![step(Kind::Rollback, None, 0, 1.0)]).well());
    }

    /// One slow step among long ones is not what payments had while rows were copied.
    #[test]
    fn all_payments_beside_a_copy_are_judged_together() {
        let mut steps = vec![step(Kind::Move, Some(15), 0, 1.0), step(Kind::Drain, Some(90), 0, 1.0)];
        steps[0].copying_ms = vec![15.0; 99];
        let mut all = report(steps);
        assert!(all.well());
        let json = all.json();
        assert_eq!((&json["foreground_p99_ratio"], &json["copying_p99_ms"]), (&json!(1.5), &json!(15.0)));
        assert_eq!(json["foreground_p99_ratio_worst_copy"], 9.0);
        // So are those without a move.
        all.calms.push(noticed(5, 0));
        assert_eq!(all.json()["baseline_p99_ms"], 10.0);
        all.steps[0].copying_ms = vec![20.1; 99];
        assert!(!all.well());
    }

    #[test]
    fn what_clients_notice_without_a_move_counts_too() {
        let copied = |rows, noticed| {
            let by_copy = Yardstick { rows, seconds: 2.0, noticed, ..Yardstick::default() };
            Report { copies: vec![by_copy], ..moved(0, 1.0) }
        };
        let well = copied(4000, noticed(10, 0));
        assert!(well.well());
        let json = well.json();
        let rows = (&json["copy"]["rows_per_s"], &json["copy"]["mover_rows_per_s"]);
        assert_eq!((rows, &json["copy_ratio"]), ((&json!(2000.0), &json!(1400.0)), &json!(0.7)));
        assert!(!copied(4004, noticed(10, 0)).well());
        assert!(!copied(4000, noticed(10, 1)).well());
        let failed = Noticed {
            load: Seen { errors: 2, rate: 1.0, ..Seen::default() },
            seen: Counts { errors: 3, texts: ["XX000: oops".to_owned()].into(), ..Counts::default() },
            ..Noticed::default()
        };
        let failed = copied(4000, failed);
        assert!(!failed.well());
        assert_eq!(failed.json()["errors"], 5);
        assert!(failed.human().contains("COPY | COPY: XX000: oops"), "{}", failed.human());
        assert!(!Report { calms: vec![noticed(10, 1)], ..moved(0, 1.0) }.well());
    }
}
