//! What the comparison found, for people and as JSON.
use super::RebalanceArgs;
use super::application;
use super::copy::Copied;
use super::foreground::Seen;
use super::plan::Kind;
use super::shardctl::Move;
use super::watch::Counts;
use crate::check::report::CheckReport;
use crate::output::{Table, load_average, rounded, thousands};
use serde_json::{Value, json};

/// Milliseconds without writes of a moving bucket, a cut-over attempt.
const PAUSE_BAR_MS: f64 = 500.0;
/// The 99th percentile of payments while rows are copied, as a multiple of that without a move.
const P99_BAR: f64 = 2.0;
const COPY_BAR: f64 = 0.7;

pub struct StepResult {
    pub kind: Kind,
    pub seconds: f64,
    pub moves: Vec<Move>,
    pub seen: Counts,
    pub load: Seen,
}

pub struct Report {
    rate: f64,
    baseline: Seen,
    pub steps: Vec<StepResult>,
    pub copy: Option<Copied>,
    pub application: Option<application::Seen>,
    pub checked: Option<CheckReport>,
}

impl StepResult {
    fn pauses(&self) -> impl Iterator<Item = f64> + '_ {
        self.moves.iter().flat_map(Move::pauses_ms)
    }

    pub fn line(&self) -> String {
        let pauses: Vec<String> = self.pauses().map(|ms| format!("{ms:.0}")).collect();
        format!(
            "{}: {:.0} s, {} move(s), pauses {} ms, longest write {:.0} ms, payments p99 {:.0} ms, {} errors",
            self.kind.name(),
            self.seconds,
            self.moves.len(),
            pauses.join(" "),
            self.seen.longest_write_ms,
            self.load.p99_ms,
            self.load.errors + self.seen.errors
        )
    }
}

/// The value below which 99 of 100 lie; the highest of few.
fn p99(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * 0.99).ceil() as usize;
    values.get(rank.checked_sub(1)?).copied()
}

impl Report {
    pub fn new(args: &RebalanceArgs, baseline: Seen) -> Report {
        Report { rate: args.rate, baseline, steps: Vec::new(), copy: None, application: None, checked: None }
    }

    /// Of the step that moves whole buckets.
    pub fn first_move(&self) -> Option<&Move> {
        self.steps.iter().find(|step| step.kind == Kind::Move)?.moves.first()
    }

    fn sum(&self, of: impl Fn(&StepResult) -> u64) -> u64 {
        self.steps.iter().map(of).sum()
    }

    /// Every failed payment, statement and transaction of whatever client.
    fn errors(&self) -> u64 {
        self.sum(|s| s.load.errors + s.seen.errors) + self.application.as_ref().map_or(0, |app| app.errors)
    }

    fn pauses(&self) -> Vec<f64> {
        self.steps.iter().flat_map(StepResult::pauses).collect()
    }

    /// The worst step's.
    fn p99_ratio(&self) -> Option<f64> {
        self.steps.iter().map(|step| step.load.p99_ms / self.baseline.p99_ms).max_by(f64::total_cmp)
    }

    fn bars(&self) -> Vec<(bool, String)> {
        let mut bars = Vec::new();
        for (what, count) in [
            ("failed payments and statements", self.errors()),
            ("lost writes", self.sum(|s| s.seen.lost)),
            ("doubled writes", self.sum(|s| s.seen.doubled)),
            ("rows seen twice", self.sum(|s| s.seen.duplicate_rows)),
            ("rows not seen", self.sum(|s| s.seen.missing_rows)),
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
        if let Some(worst) = self.pauses().into_iter().max_by(f64::total_cmp) {
            let text = format!("longest pause of a cut-over attempt: {worst:.0} ms (bar {PAUSE_BAR_MS:.0})");
            bars.push((worst <= PAUSE_BAR_MS, text));
        } else {
            bars.push((false, "no cut-over was attempted".to_owned()));
        }
        if let Some(ratio) = self.p99_ratio() {
            bars.push((
                ratio <= P99_BAR,
                format!(
                    "payments' p99 against {:.1} ms without a move: {ratio:.2} (bar {P99_BAR})",
                    self.baseline.p99_ms
                ),
            ));
        }
        if let Some(copy) = &self.copy {
            bars.push((
                copy.ratio() >= COPY_BAR,
                format!("the mover's copy against COPY | COPY: {:.2} (bar {COPY_BAR})", copy.ratio()),
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
                json!({
                    "step": step.kind.name(), "seconds": rounded(step.seconds),
                    "pauses_ms": step.pauses().collect::<Vec<_>>(),
                    "longest_write_ms": rounded(step.seen.longest_write_ms), "writes": step.seen.writes,
                    "counts": step.seen.counts, "payments": step.load.ok, "payments_per_second": step.load.rate,
                    "p99_ms": step.load.p99_ms, "max_ms": step.load.max_ms, "errors": step.load.errors_by_kind,
                    "sql_errors": step.seen.texts,
                    "moves": step.moves.iter().map(|m| json!({
                        "id": m.id, "source": m.source, "target": m.target, "phase": m.phase, "rows": m.rows(), "copy_s": m.copy_s,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "rate_requested": self.rate,
            "errors": self.errors(),
            "jdbc": self.application.as_ref().map(|app| &app.report),
            "lost": self.sum(|s| s.seen.lost),
            "doubled": self.sum(|s| s.seen.doubled),
            "duplicate_rows": self.sum(|s| s.seen.duplicate_rows),
            "missing_rows": self.sum(|s| s.seen.missing_rows),
            "pause_p99_ms": p99(self.pauses()),
            "pause_max_ms": self.pauses().into_iter().max_by(f64::total_cmp),
            "foreground_p99_ratio": self.p99_ratio().map(rounded),
            "baseline_p99_ms": self.baseline.p99_ms,
            "copy_ratio": self.copy.as_ref().map(|copy| rounded(copy.ratio())),
            "copy": self.copy.as_ref().map(|copy| json!({
                "rows": copy.rows, "mib": rounded(copy.mib), "seconds": rounded(copy.seconds), "share_of_source": rounded(copy.share),
                "mover_rows": copy.mover_rows, "mover_seconds": rounded(copy.mover_seconds),
            })),
            "invariants": self.checked.as_ref().map(CheckReport::ok),
            "check": self.checked,
            "load_average": load_average(),
            "steps": steps,
        })
    }

    pub fn human(&self) -> String {
        let mut table = Table::new(&[
            "step",
            "seconds",
            "moves",
            "pauses ms",
            "longest write ms",
            "payments/s",
            "p50 ms",
            "p99 ms",
            "errors",
            "counts",
            "writes",
        ]);
        let load = |load: &Seen| [load.rate, load.p50_ms, load.p99_ms].map(|value| format!("{value:.1}"));
        let [rate, p50, p99] = load(&self.baseline);
        let none = || String::from("-");
        table.row(vec![
            "no move".into(),
            none(),
            none(),
            none(),
            none(),
            rate,
            p50,
            p99,
            thousands(self.baseline.errors),
            none(),
            none(),
        ]);
        for step in &self.steps {
            let [rate, p50, p99] = load(&step.load);
            let pauses: Vec<String> = step.pauses().map(|ms| format!("{ms:.0}")).collect();
            table.row(vec![
                step.kind.name().into(),
                format!("{:.1}", step.seconds),
                step.moves.len().to_string(),
                pauses.join(" "),
                format!("{:.1}", step.seen.longest_write_ms),
                rate,
                p50,
                p99,
                thousands(step.load.errors + step.seen.errors),
                thousands(step.seen.counts),
                thousands(step.seen.writes),
            ]);
        }
        let mut text = format!("\n{}", table.render());
        if let Some(copy) = &self.copy {
            text.push_str(&format!(
                "\ncopy: {} rows, {:.1} MiB ({:.0} % of the source's rows) by COPY in {:.1} s; the mover {} rows in {:.1} s\n",
                thousands(copy.rows), copy.mib, copy.share * 100.0, copy.seconds, thousands(copy.mover_rows.unsigned_abs()), copy.mover_seconds
            ));
        }
        for step in &self.steps {
            for error in &step.seen.texts {
                text.push_str(&format!("{}: {error}\n", step.kind.name()));
            }
        }
        text.push_str("\nbars\n");
        for (ok, bar) in self.bars() {
            text.push_str(&format!("  {}  {bar}\n", if ok { "ok    " } else { "MISSED" }));
        }
        if let Some(checked) = self.checked.as_ref().filter(|checked| !checked.ok()) {
            text.push_str(&checked.human());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_row_is_not_well() {
        let step = |lost, pause: f64| StepResult {
            kind: Kind::Move,
            seconds: 1.0,
            moves: vec![Move {
                id: 1,
                source: 1,
                target: 3,
                phase: "window".into(),
                detail: json!({"pauses": [{"ms": pause}]}),
                copy_s: None,
            }],
            seen: Counts { lost, ..Counts::default() },
            load: Seen { p99_ms: 10.0, ..Seen::default() },
        };
        let report = |step| Report {
            rate: 1.0,
            baseline: Seen { p99_ms: 9.0, ..Seen::default() },
            steps: vec![step],
            copy: None,
            application: None,
            checked: None,
        };
        assert!(report(step(0, 300.0)).well());
        assert!(!report(step(1, 300.0)).well());
        let with = |app| Report { application: Some(app), ..report(step(0, 300.0)) };
        let app = application::Seen { ok: 9, ..application::Seen::default() };
        assert!(with(app.clone()).well());
        assert!(!with(application::Seen { wrong: 1, ..app.clone() }).well());
        let failed = with(application::Seen { errors: 2, ..app });
        assert!(!failed.well());
        assert_eq!(failed.json()["errors"], 2);
        assert!(!report(step(0, 501.0)).well());
        assert_eq!(report(step(0, 300.0)).json()["pause_p99_ms"], 300.0);
    }
}
