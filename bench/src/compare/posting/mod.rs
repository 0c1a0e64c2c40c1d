//! `bench compare posting`: what a durable payment costs, row by row and set-based, with and without our proxy.
//!
//! [`bed`] starts one plain PostgreSQL and four shards behind shard-proxy, with the migrations and the same accounts;
//! [`variants`] are the ways to post; each is measured for some seconds, interleaved over rounds.
pub mod bed;
pub mod variants;

use crate::measure::processes::{Cpu, trees};
use crate::measure::wal;
use crate::output::{Table, load_average, median, optional, rounded, thousands};
use anyhow::Result;
use bed::{Bed, Target};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use variants::Variant;

#[derive(Args, Clone, Debug)]
pub struct PostingArgs {
    /// One JSON object on standard output instead of a table.
    #[arg(long)]
    pub json: bool,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds a variant and round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=10_000))]
    pub tenants: u32,
    /// Accounts a tenant.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub accounts: u32,
    #[arg(long, value_name = "FILE")]
    pub proxy_binary: Option<PathBuf>,
    #[arg(long)]
    pub port_base: Option<u16>,
    /// Leave our proxy and the shards out.
    #[arg(long)]
    pub direct_only: bool,
}

#[derive(Serialize, Clone, Debug)]
pub struct Run {
    pub payments: u64,
    pub per_second: f64,
    pub postgres_us: f64,
    pub proxy_us: f64,
    pub client_us: f64,
    pub wal_bytes: f64,
}

#[derive(Serialize, Clone, Debug)]
pub struct Row {
    pub target: &'static str,
    pub variant: String,
    pub median: Run,
    pub runs: Vec<Run>,
}

#[derive(Serialize, Clone, Debug)]
pub struct PostingReport {
    pub rows: Vec<Row>,
    pub rounds: u32,
    pub seconds: u32,
    pub load_average: Option<f64>,
}

pub async fn run(args: PostingArgs) -> Result<bool> {
    let note = |text: &str| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    note("starting one plain PostgreSQL and four shards behind the proxy ...");
    let bed = Bed::start(&args).await?;
    let mut rows: Vec<Row> = Vec::new();
    for round in 1..=args.rounds {
        for variant in Variant::ALL {
            for target in bed.targets() {
                let run = measure(&bed, target, variant, args.seconds).await?;
                note(&format!(
                    "round {round}/{}: {}, {variant}: {:.0} payments/s, PostgreSQL {:.0} us, proxy {:.1} us",
                    args.rounds,
                    target.name(),
                    run.per_second,
                    run.postgres_us,
                    run.proxy_us
                ));
                let name = variant.to_string();
                match rows.iter_mut().find(|row| row.target == target.name() && row.variant == name) {
                    Some(row) => row.runs.push(run),
                    None => rows.push(Row {
                        target: target.name(),
                        variant: name,
                        median: run.clone(),
                        runs: vec![run],
                    }),
                }
            }
        }
    }
    for row in &mut rows {
        let middle = |value: fn(&Run) -> f64| {
            rounded(median(&mut row.runs.iter().map(value).collect::<Vec<f64>>()).unwrap_or(f64::NAN))
        };
        row.median = Run {
            payments: row.runs.iter().map(|run| run.payments).sum(),
            per_second: middle(|run| run.per_second),
            postgres_us: middle(|run| run.postgres_us),
            proxy_us: middle(|run| run.proxy_us),
            client_us: middle(|run| run.client_us),
            wal_bytes: middle(|run| run.wal_bytes),
        };
    }
    let report =
        PostingReport { rows, rounds: args.rounds, seconds: args.seconds, load_average: load_average() };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.human());
    }
    Ok(true)
}

async fn measure(bed: &Bed, target: Target, variant: Variant, seconds: u32) -> Result<Run> {
    let servers = bed.servers(target);
    let proxy = bed.proxy_pid(target);
    let own = std::process::id();
    let roots: Vec<u32> = servers.iter().map(|s| s.server.pid()).chain(proxy).chain([own]).collect();
    let connections = variants::connect(bed, target, variant).await?;
    let wal_before = wal::sample(&bed.shards_of(target)).await;
    let before = trees(&roots);
    let start = std::time::Instant::now();
    let payments = variants::post(bed, connections, variant, seconds).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let after = trees(&roots);
    let wal_after = wal::sample(&bed.shards_of(target)).await;
    let spent = |pid: u32| {
        let at = |sample: &std::collections::HashMap<u32, Cpu>| sample.get(&pid).copied().unwrap_or_default();
        at(&after).since(at(&before)).total_us()
    };
    let each = |total: u64| rounded(total as f64 / payments.max(1) as f64);
    let wal = wal::growth(&wal_before, &wal_after).map_or(f64::NAN, |wal| wal.bytes as f64);
    Ok(Run {
        payments,
        per_second: rounded(payments as f64 / elapsed),
        postgres_us: each(servers.iter().map(|s| spent(s.server.pid())).sum()),
        proxy_us: each(proxy.map_or(0, spent)),
        client_us: each(spent(own)),
        wal_bytes: rounded(wal / payments.max(1) as f64),
    })
}

impl PostingReport {
    pub fn human(&self) -> String {
        let mut table = Table::new(&[
            "",
            "payments/s",
            "PostgreSQL us",
            "proxy us",
            "client us",
            "WAL bytes",
            "CPU against row by row",
        ]);
        for row in &self.rows {
            let total = |run: &Run| run.postgres_us + run.proxy_us;
            let base =
                self.rows.iter().find(|other| other.target == row.target).map(|base| total(&base.median));
            table.row(vec![
                format!("{}, {}", row.target, row.variant),
                thousands(row.median.per_second as u64),
                format!("{:.0}", row.median.postgres_us),
                format!("{:.1}", row.median.proxy_us),
                format!("{:.1}", row.median.client_us),
                format!("{:.0}", row.median.wal_bytes),
                optional(base.map(|base| total(&row.median) / base), 2),
            ]);
        }
        format!(
            "\nposting durable payments, {} round(s) of {} s, medians a payment; load average {}\n\n{}",
            self.rounds,
            self.seconds,
            optional(self.load_average, 1),
            table.render()
        )
    }
}
