//! `bench compare proxy`: what a query costs in our proxy and in its peers.
//!
//! [`bed`] starts the servers; [`idle`] measures memory a client; [`pgbench`] runs one cell (peer, protocol, clients)
//! and takes the proxy's CPU from /proc; rounds interleave the peers, so that a busy moment of the machine does not
//! fall on one of them; [`report`] takes medians and holds them against the bars.
pub mod bed;
pub mod idle;
pub mod pgbench;
pub mod report;
pub mod routing;

use crate::output::load_average;
use anyhow::Result;
use bed::{Bed, Peer};
use clap::{Args, ValueEnum};
use report::{Cell, ProxyReport};
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// One JSON object on standard output instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Times that every cell is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds a cell.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 100])]
    pub clients: Vec<u32>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Protocol::Simple, Protocol::Extended, Protocol::Prepared])]
    pub modes: Vec<Protocol>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peer::Direct, Peer::Haproxy, Peer::Pgbouncer, Peer::ShardProxy])]
    pub peers: Vec<Peer>,
    /// Idle clients for the memory figure; 0 leaves it out.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub idle: u32,
    /// pgbench scale: 100,000 rows each.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub scale: u32,
    /// The proxy to measure (default: target/perf/shard-proxy, else target/release/shard-proxy).
    #[arg(long, value_name = "FILE")]
    pub proxy_binary: Option<PathBuf>,
    /// Take ports from here upwards (default: any free ones).
    #[arg(long)]
    pub port_base: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Protocol {
    Simple,
    Extended,
    Prepared,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Simple => "simple",
            Protocol::Extended => "extended",
            Protocol::Prepared => "prepared",
        })
    }
}

/// PgBouncer before 1.21 loses track of named statements in transaction pooling.
fn possible(peer: Peer, mode: Protocol) -> bool {
    !(peer == Peer::Pgbouncer && mode == Protocol::Prepared)
}

pub async fn run(args: ProxyArgs) -> Result<bool> {
    let note = |text: &str| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    note("starting four shards, one plain PostgreSQL and the peers ...");
    let bed = Bed::start(&args).await?;
    let mut idle = Vec::new();
    if args.idle > 0 {
        for &peer in args.peers.iter().filter(|peer| **peer != Peer::Direct) {
            note(&format!("memory of idle clients: {peer} ..."));
            idle.push(idle::measure(&bed, peer, args.idle).await?);
        }
    }
    let mut routed = None;
    if args.peers.contains(&Peer::ShardProxy) {
        note("routing ...");
        routed = Some(routing::measure(&bed).await?);
    }
    let mut cells: Vec<Cell> = Vec::new();
    for round in 1..=args.rounds {
        for &mode in &args.modes {
            for &clients in &args.clients {
                for &peer in args.peers.iter().filter(|peer| possible(**peer, mode)) {
                    let run = pgbench::run(&bed, peer, mode, clients, args.seconds).await?;
                    note(&format!(
                        "round {round}/{}: {mode} {clients} clients {peer}: {:.0}/s, proxy {:.1} + {:.1} us",
                        args.rounds, run.per_second, run.user_us, run.system_us
                    ));
                    match cells.iter_mut().find(|c| c.peer == peer && c.mode == mode && c.clients == clients)
                    {
                        Some(cell) => cell.runs.push(run),
                        None => cells.push(Cell { peer, mode, clients, runs: vec![run] }),
                    }
                }
            }
        }
    }
    let report = ProxyReport::new(&args, &bed, &cells, (idle, routed), load_average());
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.human());
    }
    Ok(report.passed())
}
