//! Several runs of one load: a single run on a busy machine proves little (H36).
use super::report::StepReport;
use crate::output::{Table, median, rounded};
use serde::Serialize;
use std::collections::BTreeMap;

/// One figure over all runs.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        let median = rounded(median(&mut values)?);
        // They are sorted now.
        Some(Spread { median, min: *values.first()?, max: *values.last()? })
    }
}

/// The figures that a bar is set for.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Spreads {
    pub rate_achieved: Option<Spread>,
    pub p95_ms: Option<Spread>,
    pub p99_ms: Option<Spread>,
    /// By group of processes; a group is left out when a run has no figure for it.
    pub cpu_us_per_payment: BTreeMap<&'static str, Spread>,
}

impl Spreads {
    pub fn of(runs: &[StepReport]) -> Spreads {
        let of = |figure: fn(&StepReport) -> f64| Spread::of(runs.iter().map(figure).collect());
        let groups = runs.first().map(|run| run.cpu_us_per_payment.keys()).into_iter().flatten();
        let cpu = groups.filter_map(|group| {
            let values = runs.iter().map(|run| run.cpu_us_per_payment.get(group).copied().flatten());
            Some((*group, Spread::of(values.collect::<Option<_>>()?)?))
        });
        Spreads {
            rate_achieved: of(|run| run.rate_achieved),
            p95_ms: of(|run| run.p95_ms),
            p99_ms: of(|run| run.p99_ms),
            cpu_us_per_payment: cpu.collect(),
        }
    }

    pub fn human(&self, runs: usize) -> String {
        let runs = format!("{runs} runs");
        let mut table = Table::new(&[&runs, "median", "min", "max"]);
        let figures = [("payments/s", self.rate_achieved), ("p95 ms", self.p95_ms), ("p99 ms", self.p99_ms)];
        let figures = figures.into_iter().map(|(name, spread)| (name.to_owned(), spread));
        let cpu = self.cpu_us_per_payment.iter();
        let cpu = cpu.map(|(group, spread)| (format!("CPU us/payment, {group}"), Some(*spread)));
        for (name, spread) in figures.chain(cpu) {
            if let Some(Spread { median, min, max }) = spread {
                table.row(vec![name, format!("{median:.1}"), format!("{min:.1}"), format!("{max:.1}")]);
            }
        }
        format!("\n{}", table.render())
    }
}

/// The run in the middle: by its rate in a closed loop, by its p99 in an open one, where the rate is given. Of an even
/// number of runs the one before the middle.
pub fn middle(runs: &[StepReport]) -> Option<&StepReport> {
    let figure = |run: &StepReport| if run.rate_requested.is_some() { run.p99_ms } else { run.rate_achieved };
    let mut sorted: Vec<&StepReport> = runs.iter().collect();
    sorted.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}
