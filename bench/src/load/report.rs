//! The result of a load run, as JSON and as tables.
use super::options::{LoadArgs, Pace};
use super::run::Edge;
use super::runs::{self, Spreads};
use super::stats::Stats;
use crate::check::report::CheckReport;
use crate::measure::processes::{self, Component, Cpu};
use crate::measure::wal;
use crate::output::{Table, load_average, optional, rounded, thousands};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Groups in the order of a payment's way.
const GROUPS: [&str; 5] = ["core", "proxy", "postgres", "kafka", "redis"];
/// A step is held when this share of what was due in the window was also answered in it. What was due, not the rate
/// asked for: independent arrivals vary, by 2 % in half a minute at 100 a second.
const HELD_SHARE: f64 = 0.98;

#[derive(Serialize, Clone, Debug)]
pub struct ComponentCost {
    pub group: &'static str,
    pub name: String,
    pub user_us_per_payment: Option<f64>,
    pub system_us_per_payment: Option<f64>,
    /// Of one core, in percent.
    pub busy_percent: f64,
}

#[derive(Serialize, Clone, Debug)]
pub struct StepReport {
    pub mode: &'static str,
    pub rate_requested: Option<f64>,
    pub clients: Option<u32>,
    pub batch: u32,
    pub rate_achieved: f64,
    pub duration_s: f64,
    pub ok: u64,
    pub declined: u64,
    pub replayed: u64,
    pub retries: u64,
    pub errors: u64,
    pub errors_by_kind: BTreeMap<String, u64>,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    pub mean_ms: f64,
    pub cpu_us_per_payment: BTreeMap<&'static str, Option<f64>>,
    pub components: Vec<ComponentCost>,
    pub wal_bytes_per_payment: Option<f64>,
    pub wal_syncs: Option<u64>,
    /// Every commit waited for a standby too.
    pub synchronous_standby: Option<bool>,
    pub payments_per_wal_sync: Option<f64>,
    pub batch_mean: Option<f64>,
    pub batch_histogram: Vec<(String, u64)>,
    /// Of one minute: before the warm-up, when it is the machine's other work, and at the end.
    pub load_average_at_start: Option<f64>,
    pub load_average: Option<f64>,
}

impl StepReport {
    pub fn new(
        pace: Pace,
        args: &LoadArgs,
        components: &[Component],
        stats: &Stats,
        before: &Edge,
        after: &Edge,
    ) -> StepReport {
        let seconds = stats.window.1.duration_since(stats.window.0).as_secs_f64();
        // The edges are sampled moments later than planned, so the payments between them are counted there.
        let payments = after.completed.saturating_sub(before.completed);
        let per_payment = |us: u64| (payments > 0).then(|| rounded(us as f64 / payments as f64));
        let span_us = after.at.duration_since(before.at).as_micros().max(1) as f64;
        let mut costs = Vec::new();
        let mut groups: BTreeMap<&'static str, Option<f64>> =
            GROUPS.iter().map(|group| (*group, None)).collect();
        let mut totals: BTreeMap<&'static str, u64> = BTreeMap::new();
        let own = after.cpu.own.since(before.cpu.own);
        let spent = components
            .iter()
            .filter_map(|c| {
                Some((c.group, c.name.clone(), processes::between(&before.cpu, &after.cpu, c.port)?))
            })
            .chain(std::iter::once(("load", "load generator".to_owned(), own)));
        for (group, name, cpu) in spent {
            let Cpu { user_us, system_us } = cpu;
            *totals.entry(group).or_default() += cpu.total_us();
            costs.push(ComponentCost {
                group,
                name,
                user_us_per_payment: per_payment(user_us),
                system_us_per_payment: per_payment(system_us),
                busy_percent: rounded(cpu.total_us() as f64 / span_us * 100.0),
            });
        }
        for (group, total) in totals {
            groups.insert(group, per_payment(total));
        }
        let wal = wal::growth(&before.wal, &after.wal);
        let batches = after.batches.since(&before.batches);
        let ms = |us: u64| rounded(us as f64 / 1000.0);
        let quantile = |q: f64| ms(stats.latency_us.value_at_quantile(q));
        StepReport {
            mode: if matches!(pace, Pace::Rate(_)) { "open" } else { "closed" },
            rate_requested: if let Pace::Rate(rate) = pace { Some(rate) } else { None },
            clients: if let Pace::Clients(clients) = pace { Some(clients) } else { None },
            batch: args.batch,
            rate_achieved: rounded(stats.completed_in_window as f64 / seconds),
            duration_s: seconds,
            ok: stats.ok,
            declined: stats.declined,
            replayed: stats.replayed,
            retries: stats.retries,
            errors: stats.errors.values().sum(),
            errors_by_kind: stats.errors.clone(),
            p50_ms: quantile(0.50),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            p999_ms: quantile(0.999),
            max_ms: ms(stats.latency_us.max()),
            mean_ms: rounded(stats.latency_us.mean() / 1000.0),
            cpu_us_per_payment: groups,
            components: costs,
            wal_bytes_per_payment: wal.and_then(|wal| per_payment(wal.bytes)),
            wal_syncs: wal.map(|wal| wal.syncs),
            synchronous_standby: wal.map(|wal| wal.standby),
            payments_per_wal_sync: wal
                .filter(|wal| wal.syncs > 0)
                .map(|wal| rounded(payments as f64 / wal.syncs as f64)),
            batch_mean: batches.mean().map(rounded),
            batch_histogram: batches.buckets(),
            load_average_at_start: None,
            load_average: load_average(),
        }
    }

    pub fn held(&self) -> bool {
        let due = (self.ok + self.declined + self.errors) as f64;
        self.errors == 0 && self.rate_achieved * self.duration_s >= due * HELD_SHARE
    }

    /// One line of a ladder.
    pub fn line(&self) -> String {
        format!(
            "{:>8} payments/s asked, {:>8} achieved, p50 {:.1} p95 {:.1} p99 {:.1} ms, errors {} {}",
            self.rate_requested.map_or_else(|| "-".into(), |rate| thousands(rate as u64)),
            thousands(self.rate_achieved as u64),
            self.p50_ms,
            self.p95_ms,
            self.p99_ms,
            self.errors,
            if self.held() { "" } else { "<- not held" }
        )
    }

    fn human(&self) -> String {
        let mut text = String::new();
        let pace = match (self.rate_requested, self.clients) {
            (Some(rate), _) => format!("open loop, {} payments/s", thousands(rate as u64)),
            (None, clients) => format!("closed loop, {} clients", clients.unwrap_or(0)),
        };
        let shape = if self.batch == 1 {
            "1 payment a request".to_owned()
        } else {
            format!("{} payments a request", self.batch)
        };
        let _ = writeln!(
            text,
            "\n{pace}, {shape}, {} s, load average {} before it, {} after\n",
            self.duration_s,
            optional(self.load_average_at_start, 1),
            optional(self.load_average, 1)
        );
        let _ = writeln!(
            text,
            "  achieved   {} payments/s   ok {}   declined {}   errors {}",
            thousands(self.rate_achieved as u64),
            thousands(self.ok),
            thousands(self.declined),
            thousands(self.errors)
        );
        if self.retries > 0 {
            let _ = writeln!(
                text,
                "  retries    {}   of them answered as replays {}",
                thousands(self.retries),
                thousands(self.replayed)
            );
        }
        for (kind, count) in &self.errors_by_kind {
            let _ = writeln!(text, "    {:>10}  {kind}", thousands(*count));
        }
        let _ = writeln!(
            text,
            "  latency    p50 {:.2}   p95 {:.2}   p99 {:.2}   p99.9 {:.2}   max {:.2} ms   (from the intended start)",
            self.p50_ms, self.p95_ms, self.p99_ms, self.p999_ms, self.max_ms
        );
        let _ = writeln!(
            text,
            "  WAL        {} bytes/payment, {} syncs, {} payments/sync, {}",
            optional(self.wal_bytes_per_payment, 0),
            self.wal_syncs.map_or_else(|| "-".into(), thousands),
            optional(self.payments_per_wal_sync, 1),
            match self.synchronous_standby {
                Some(true) => "commits wait for a standby",
                Some(false) => "commits wait for the primary's disk only",
                None => "shards not reachable",
            }
        );
        let buckets: Vec<String> = self
            .batch_histogram
            .iter()
            .map(|(label, count)| format!("{label}: {}", thousands(*count)))
            .collect();
        let _ =
            writeln!(text, "  batches    mean {}   {}\n", optional(self.batch_mean, 1), buckets.join("  "));
        text.push_str(&self.cost_table().render());
        text
    }

    fn cost_table(&self) -> Table {
        let mut table = Table::new(&["CPU", "us/payment", "user", "system", "% of a core"]);
        for group in GROUPS.iter().chain(&["load"]) {
            let members: Vec<&ComponentCost> = self.components.iter().filter(|c| c.group == *group).collect();
            let sum = |part: fn(&ComponentCost) -> Option<f64>| {
                let parts: Vec<f64> = members.iter().filter_map(|c| part(c)).collect();
                (!parts.is_empty()).then(|| parts.iter().sum::<f64>())
            };
            let busy = (!members.is_empty()).then(|| members.iter().map(|c| c.busy_percent).sum::<f64>());
            table.row(vec![
                (*group).to_owned(),
                optional(self.cpu_us_per_payment.get(group).copied().flatten(), 1),
                optional(sum(|c| c.user_us_per_payment), 1),
                optional(sum(|c| c.system_us_per_payment), 1),
                optional(busy, 1),
            ]);
            if members.len() > 1 {
                for c in members {
                    let total = c
                        .user_us_per_payment
                        .zip(c.system_us_per_payment)
                        .map(|(user, system)| user + system);
                    table.row(vec![
                        format!("  {}", c.name),
                        optional(total, 1),
                        optional(c.user_us_per_payment, 1),
                        optional(c.system_us_per_payment, 1),
                        format!("{:.1}", c.busy_percent),
                    ]);
                }
            }
        }
        table
    }
}

/// The run, the one in the middle of several, or the best step of a ladder, with its fields at the top level; all steps
/// or runs beside them.
#[derive(Serialize, Debug)]
pub struct LoadReport {
    #[serde(flatten)]
    pub main: Option<StepReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// How many runs there were of the load at the top level.
    pub runs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spreads>,
    /// "ok", the list of what is broken, or null when not checked.
    pub invariants: Value,
    pub check: Option<CheckReport>,
}

impl LoadReport {
    pub fn of_ladder(mut steps: Vec<StepReport>, check: Option<CheckReport>) -> LoadReport {
        let main = steps.iter().rev().find(|step| step.held()).or(steps.last()).cloned();
        if steps.len() == 1 {
            steps.clear();
        }
        LoadReport { main, steps, runs: 1, spread: None, invariants: invariants(check.as_ref()), check }
    }

    pub fn of_runs(mut steps: Vec<StepReport>, check: Option<CheckReport>) -> LoadReport {
        let main = runs::middle(&steps).cloned();
        let runs = steps.len();
        let spread = (runs > 1).then(|| Spreads::of(&steps));
        if runs == 1 {
            steps.clear();
        }
        LoadReport { main, steps, runs, spread, invariants: invariants(check.as_ref()), check }
    }

    pub fn checked_ok(&self) -> bool {
        self.check.as_ref().is_none_or(CheckReport::ok)
    }

    pub fn human(&self) -> String {
        let mut text = String::new();
        if self.spread.is_some() {
            text.push_str("\nthe run in the middle:\n");
        } else if !self.steps.is_empty() {
            text.push_str("\nthe highest step that was held:\n");
        }
        if let Some(main) = &self.main {
            text.push_str(&main.human());
        }
        match &self.spread {
            Some(spread) => text.push_str(&spread.human(self.runs)),
            None => text.push_str("\n  1 run: not a figure to compare with (--runs)\n"),
        }
        if let Some(check) = &self.check {
            text.push('\n');
            text.push_str(&check.human());
        }
        text
    }
}

fn invariants(check: Option<&CheckReport>) -> Value {
    match check {
        None => Value::Null,
        Some(report) if report.ok() => json!("ok"),
        Some(report) => json!(report.broken()),
    }
}
