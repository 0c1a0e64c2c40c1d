//! What the comparison found, judged; as JSON, and for people in `human`.
mod human;

use super::RebalanceArgs;
use super::application;
use super::clients::Noticed;
use super::copy::Copied;
use super::pauses::Pauses;
use super::phases::{ByPhase, Phase, p99};
use super::plan::Kind;
use super::shardctl::Move;
use crate::check::report::CheckReport;
use crate::output::{load_average, optional, rounded};
use serde_json::{Value, json};

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
    pub pauses: Pauses,
    /// Of every change of the map; `None`: some proxy never served by it.
    pub followed_ms: Vec<Option<f64>>,
}

pub struct Report {
    rate: f64,
    baseline: Noticed,
    pub steps: Vec<StepResult>,
    pub copy: Option<Copied>,
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
    pub fn new(args: &RebalanceArgs, baseline: Noticed) -> Report {
        Report { rate: args.rate, baseline, steps: Vec::new(), copy: None, application: None, checked: None }
    }

    /// Of the step that moves whole buckets.
    pub fn first_move(&self) -> Option<&Move> {
        self.steps.iter().find(|step| step.kind == Kind::Move)?.moves.first()
    }

    /// What clients noticed, beside a move and without.
    fn noticed(&self) -> impl Iterator<Item = (&'static str, &Noticed)> {
        let steps = self.steps.iter().map(|step| (step.kind.name(), &step.noticed));
        let copy = self.copy.as_ref().map(|copy| (COPY, &copy.by_copy.noticed));
        std::iter::once((CALM, &self.baseline)).chain(steps).chain(copy)
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

    /// The worst step's, of the payments that began while its rows were copied. A roll-back copies none.
    fn copying_ratio(&self) -> Option<f64> {
        self.worst_ratio(self.steps.iter().filter_map(|step| step.by_phase.of(Phase::Copying).p99_ms))
    }

    /// The worst step's, of all its payments.
    fn step_ratio(&self) -> Option<f64> {
        self.worst_ratio(self.steps.iter().map(|step| step.noticed.load.p99_ms))
    }

    fn worst_ratio(&self, p99s_ms: impl Iterator<Item = f64>) -> Option<f64> {
        p99s_ms.map(|p99_ms| p99_ms / self.baseline.load.p99_ms).max_by(f64::total_cmp)
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
            bars.push((
                ratio <= P99_BAR,
                format!(
                    "payments' p99 while rows are copied against {:.1} ms without a move: {ratio:.2} (bar {P99_BAR})",
                    self.baseline.load.p99_ms
                ),
            ));
        } else if self.steps.iter().any(|step| step.kind != Kind::Rollback) {
            bars.push((false, "payments' p99 while rows are copied: none began then".to_owned()));
        }
        if let Some(copy) = &self.copy {
            bars.push((
                copy.ratio() >= COPY_BAR,
                format!(
                    "the mover's copy against {COPY}: {:.0} of {:.0} rows/s, {:.2} (bar {COPY_BAR})",
                    copy.mover_rows_per_s(),
                    copy.by_copy.rows_per_s(),
                    copy.ratio()
                ),
            ));
        }
        if let Some(checked) = &self.checked {
            bars.push((checked.ok(), "the ledger's invariants".to_owned()));
        }
        bars
    }

    pub fn well(&self) -> bool {
        self.bars().iter().all(|(ok, _)| *ok)
    }

    pub fn json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                let Noticed { load, seen, busy, .. } = &step.noticed;
                json!({
                    "step": step.kind.name(), "seconds": rounded(step.seconds),
                    "pauses_ms": &step.pauses.mover_ms, "pauses_seen_ms": step.pauses.seen_ms().collect::<Vec<_>>(),
                    "unseen_ms": rounded(step.pauses.gap_ms()), "longest_write_beside_ms": rounded(step.pauses.beside_ms),
                    "longest_write_ms": rounded(seen.longest_write_ms), "writes": seen.writes,
                    "writes_to_what_moves": step.pauses.writes,
                    "map_change_ms": &step.followed_ms,
                    "counts": seen.counts, "payments": load.ok, "payments_per_second": load.rate,
                    "p99_ms": load.p99_ms, "max_ms": load.max_ms, "errors": load.errors_by_kind,
                    "p99_ms_by_phase": step.by_phase.json(|part| part.p99_ms.into()),
                    "payments_by_phase": step.by_phase.json(|part| part.requests.into()),
                    "sql_errors": seen.texts, "busy_percent": busy.map(rounded),
                    "moves": step.moves.iter().map(|m| json!({
                        "id": m.id, "source": m.source, "target": m.target, "phase": m.phase, "rows": m.rows(), "copied_rows": m.copied_rows(), "copy_s": m.copy_s,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "rate_requested": self.rate,
            "errors": self.errors(),
            "jdbc": self.application.as_ref().map(|app| &app.report),
            "lost": self.sum(|n| n.seen.lost),
            "doubled": self.sum(|n| n.seen.doubled),
            "duplicate_rows": self.sum(|n| n.seen.duplicate_rows),
            "missing_rows": self.sum(|n| n.seen.missing_rows),
            "pause_p99_ms": self.pause_ms(p99),
            "pause_p99_ms_seen": p99(self.seen_ms()),
            "pause_p99_ms_mover": p99(self.mover_ms()),
            "pause_max_ms": self.pause_ms(longest),
            "map_change_max_ms": self.followed_ms(),
            "baseline_longest_write_ms": rounded(self.baseline.seen.longest_write_ms),
            "foreground_p99_ratio": self.copying_ratio().map(rounded),
            "foreground_p99_ratio_step": self.step_ratio().map(rounded),
            "baseline_p99_ms": self.baseline.load.p99_ms,
            "baseline_busy_percent": self.baseline.busy.map(rounded),
            "copy_ratio": self.copy.as_ref().map(|copy| rounded(copy.ratio())),
            "copy": self.copy.as_ref().map(|copy| json!({
                "rows": copy.by_copy.rows, "mib": rounded(copy.by_copy.mib), "seconds": rounded(copy.by_copy.seconds), "share_of_source": rounded(copy.by_copy.share),
                "rows_per_s": rounded(copy.by_copy.rows_per_s()),
                "mover_rows": copy.mover_rows, "mover_seconds": rounded(copy.mover_seconds),
                "mover_rows_per_s": rounded(copy.mover_rows_per_s()),
                "payments": copy.by_copy.noticed.load.ok, "p99_ms": copy.by_copy.noticed.load.p99_ms,
                "errors": copy.by_copy.noticed.load.errors_by_kind, "sql_errors": copy.by_copy.noticed.seen.texts,
                "writes": copy.by_copy.noticed.seen.writes, "counts": copy.by_copy.noticed.seen.counts,
            })),
            "invariants": self.checked.as_ref().map(CheckReport::ok),
            "check": self.checked,
            "load_average": load_average(),
            "steps": steps,
        })
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
    use crate::compare::rebalance::copy::Yardstick;
    use crate::load::trace::Request;

    fn noticed(p99_ms: f64, lost: u64) -> Noticed {
        Noticed {
            load: Seen { p99_ms, rate: 1.0, ..Seen::default() },
            seen: Counts { lost, ..Counts::default() },
            ..Noticed::default()
        }
    }

    /// Payments took so long while rows were copied.
    fn step(kind: Kind, copying_ms: Option<u64>, lost: u64, pause: f64) -> StepResult {
        let history = [Event { at_us: 0, phase: "copying".into() }];
        let requests: Vec<Request> =
            copying_ms.map(|ms| Request { begin_us: 0, latency_us: ms * 1000 }).into_iter().collect();
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
            noticed: noticed(30.0, lost),
            by_phase: ByPhase::new(&requests, std::iter::once(history.as_slice())),
            pauses: paused(pause, pause),
            followed_ms: vec![Some(40.0)],
        }
    }

    fn paused(seen: f64, mover: f64) -> Pauses {
        let attempt = Attempt { seen_ms: Some(seen), gap_ms: 8.0 };
        Pauses { mover_ms: vec![mover], attempts: vec![attempt], writes: 1, beside_ms: 700.0 }
    }

    fn report(steps: Vec<StepResult>) -> Report {
        Report { rate: 1.0, baseline: noticed(10.0, 0), steps, copy: None, application: None, checked: None }
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
        report.baseline.load.rate = 0.94;
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
        let by_copy = Yardstick { rows: 4000, seconds: 2.0, ..Yardstick::default() };
        let copied = Copied::new(by_copy, moved(0, 1.0).first_move().unwrap()).unwrap();
        // 700 rows in half a second; 900 were there when they were compared.
        assert_eq!(copied.mover_rows_per_s(), 1400.0);
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
        // The worst step counts.
        assert!(!both(Some(21)).well());
        assert!(both(None).well());
        // A move during which nobody was looked at says nothing; a roll-back copies nothing.
        assert!(!report(vec![step(Kind::Move, None, 0, 1.0)]).well());
        assert!(report(vec![step(Kind::Rollback, None, 0, 1.0)]).well());
    }

    #[test]
    fn what_clients_notice_without_a_move_counts_too() {
        let copied = |mover_rows, noticed| {
            let by_copy = Yardstick { rows: 4000, seconds: 2.0, noticed, ..Yardstick::default() };
            let copy = Copied { by_copy, mover_rows, mover_seconds: 1.0 };
            Report { copy: Some(copy), ..moved(0, 1.0) }
        };
        let well = copied(1400, noticed(10.0, 0));
        assert!(well.well());
        let json = well.json();
        let rows = (&json["copy"]["rows_per_s"], &json["copy"]["mover_rows_per_s"]);
        assert_eq!((rows, &json["copy_ratio"]), ((&json!(2000.0), &json!(1400.0)), &json!(0.7)));
        assert!(!copied(1399, noticed(10.0, 0)).well());
        assert!(!copied(1400, noticed(10.0, 1)).well());
        let failed = Noticed {
            load: Seen { errors: 2, rate: 1.0, ..Seen::default() },
            seen: Counts { errors: 3, texts: ["XX000: oops".to_owned()].into(), ..Counts::default() },
            ..Noticed::default()
        };
        let failed = copied(1400, failed);
        assert!(!failed.well());
        assert_eq!(failed.json()["errors"], 5);
        assert!(failed.human().contains("COPY | COPY: XX000: oops"), "{}", failed.human());
        assert!(!Report { baseline: noticed(10.0, 1), ..moved(0, 1.0) }.well());
    }
}
