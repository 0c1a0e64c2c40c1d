//! The report as one JSON value.
use super::Report;
use super::longest;
use crate::check::report::CheckReport;
use crate::compare::rebalance::clients::Noticed;
use crate::compare::rebalance::phases::p99;
use crate::output::{load_average, rounded};
use serde_json::{Value, json};

impl Report {
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
            "foreground_p99_ratio": self.copying_ratio().map(rounded),
            "foreground_p99_ratio_worst_copy": self.copying_ratio_worst().map(rounded),
            "foreground_p99_ratio_step": self.step_ratio().map(rounded),
            "copying_p99_ms": self.copying_p99_ms(),
            "baseline_p99_ms": self.calm_p99_ms(),
            "baseline": self.calms.iter().map(|calm| json!({
                "payments": calm.load.ok, "p50_ms": calm.load.p50_ms, "p99_ms": calm.load.p99_ms, "busy_percent": calm.busy.map(rounded),
                "longest_write_ms": rounded(calm.seen.longest_write_ms),
            })).collect::<Vec<_>>(),
            "copy_ratio": self.copied().map(|copy| rounded(copy.ratio())),
            "copy": self.copied().map(|copy| json!({
                "rows_per_s": rounded(copy.copy_rows_per_s()),
                "mover_rows": copy.mover_rows, "mover_seconds": rounded(copy.mover_seconds),
                "mover_rows_per_s": rounded(copy.mover_rows_per_s()),
                "by_copy": self.copies.iter().map(|copy| json!({
                    "onto": copy.onto, "rows": copy.rows, "mib": rounded(copy.mib), "seconds": rounded(copy.seconds),
                    "share_of_source": rounded(copy.share), "rows_per_s": rounded(copy.rows_per_s()),
                    "payments": copy.noticed.load.ok, "p99_ms": copy.noticed.load.p99_ms,
                    "errors": copy.noticed.load.errors_by_kind, "sql_errors": copy.noticed.seen.texts,
                    "writes": copy.noticed.seen.writes, "counts": copy.noticed.seen.counts,
                })).collect::<Vec<_>>(),
            })),
            "invariants": self.checked.as_ref().map(CheckReport::ok),
            "check": self.checked,
            "load_average": load_average(),
            "steps": steps,
        })
    }
}
