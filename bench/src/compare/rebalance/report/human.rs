//! The report as tables.
use super::{CALM, COPY, Report};
use crate::compare::rebalance::clients::Noticed;
use crate::compare::rebalance::phases::Phase;
use crate::output::{Table, thousands};

impl Report {
    pub fn human(&self) -> String {
        let mut table = Table::new(&[
            "step",
            "seconds",
            "moves",
            "longest write at cut-overs ms",
            "mover's ms",
            "beside ms",
            "payments/s",
            "p50 ms",
            "p99 ms",
            "errors",
            "counts",
            "writes",
            "busy %",
        ]);
        let none = || String::from("-");
        let calm = |noticed: &Noticed| format!("{:.0}", noticed.seen.longest_write_ms);
        let without = |seconds, noticed| [seconds, none(), none(), none(), calm(noticed)];
        for noticed in &self.calms {
            table.row(row(CALM, without(none(), noticed), noticed));
        }
        for step in &self.steps {
            let moving = [
                format!("{:.1}", step.seconds),
                step.moves.len().to_string(),
                step.seen_text(),
                step.mover_text(),
                format!("{:.0}", step.pauses.beside_ms),
            ];
            table.row(row(step.kind.name(), moving, &step.noticed));
        }
        for copy in &self.copies {
            table.row(row(COPY, without(format!("{:.1}", copy.seconds), &copy.noticed), &copy.noticed));
        }
        let mut text = format!("\n{}\n{}", table.render(), self.phases().render());
        let unseen = self.steps.iter().map(|step| step.pauses.gap_ms()).fold(0.0, f64::max);
        text.push_str(&format!(
            "\na write that was held first may have waited up to {unseen:.0} ms longer than those seen\n"
        ));
        if let Some(ratio) = self.step_ratio() {
            text.push_str(&format!(
                "\nover the whole of the worst step: {ratio:.2} times that without a move\n"
            ));
        }
        if let Some(ratio) = self.copying_ratio_worst() {
            text.push_str(&format!(
                "while the rows of the worst single step were copied: {ratio:.2} times\n"
            ));
        }
        for copy in &self.copies {
            text.push_str(&format!(
                "\nCOPY: {} rows, {:.1} MiB ({:.0} % of the source's rows) to shard {} in {:.1} s, {} rows/s",
                thousands(copy.rows),
                copy.mib,
                copy.share * 100.0,
                copy.onto,
                copy.seconds,
                thousands(copy.rows_per_s() as u64)
            ));
        }
        if let Some(copy) = self.copied() {
            text.push_str(&format!(
                "\nthe mover: {} rows in {:.1} s, {} rows/s\n",
                thousands(copy.mover_rows.unsigned_abs()),
                copy.mover_seconds,
                thousands(copy.mover_rows_per_s() as u64)
            ));
        }
        for (what, noticed) in self.noticed() {
            for error in &noticed.seen.texts {
                text.push_str(&format!("{what}: {error}\n"));
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

    fn phases(&self) -> Table {
        let mut titles = vec!["payments' p99 ms (payments)"];
        titles.extend(Phase::ALL.map(Phase::name));
        let mut table = Table::new(&titles);
        for step in &self.steps {
            let cells = Phase::ALL.map(|phase| step.by_phase.of(phase).cell());
            table.row(std::iter::once(step.kind.name().to_owned()).chain(cells).collect());
        }
        table
    }
}

/// One row of the table.
fn row(what: &str, moving: [String; 5], noticed: &Noticed) -> Vec<String> {
    let Noticed { load, seen, busy, .. } = noticed;
    let what = std::iter::once(what.to_owned());
    let rest = [
        format!("{:.1}", load.rate),
        format!("{:.1}", load.p50_ms),
        format!("{:.1}", load.p99_ms),
        thousands(noticed.errors()),
        thousands(seen.counts),
        thousands(seen.writes),
        busy.map_or_else(|| "-".to_owned(), |busy| format!("{busy:.0}")),
    ];
    what.chain(moving).chain(rest).collect()
}
