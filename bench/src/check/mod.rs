//! `bench check`: proves the ledger's invariants from the shards and from Kafka.
//!
//! [`shards`] opens one snapshot a shard and waits for the outbox; then [`placement`] (who lives where), [`ledger`]
//! (entries folded into balances), [`joins`] (payments, entries, outbox, idempotency keys 1:1), [`events`] (outbox
//! against Kafka; [`due`] says which of them are still kept), [`acks`] (what was promised to clients), [`durability`] (settings and WAL syncs); [`report`]
//! collects the verdicts.
//!
//! Memory is bounded by accounts and tenants, never by payments: what is large is joined on the shards, or streamed
//! in order and folded. The check needs quiescence: stop the load first (`cargo load --check` does).
pub mod acks;
pub mod due;
pub mod durability;
pub mod events;
pub mod joins;
pub mod ledger;
pub mod placement;
pub mod report;
pub mod shards;

use crate::stack::Stack;
use anyhow::{Context, Result};
use clap::Args;
use report::CheckReport;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// One JSON object on standard output instead of the list.
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait for the outbox to be published.
    #[arg(long, default_value = "60", value_parser = crate::load::options::seconds)]
    pub drain_timeout: Duration,
    /// A log of acknowledgements, or a directory of such logs (default: those of the current seed).
    #[arg(long, value_name = "PATH")]
    pub acks: Option<PathBuf>,
    /// Overdraft limits were changed: only the balances of now are held against them, not the running ones.
    #[arg(long)]
    pub limits_changed: bool,
    #[arg(long, default_value = DEFAULT_TOPIC)]
    pub topic: String,
    /// Leave Kafka out (the report says so).
    #[arg(long)]
    pub no_kafka: bool,
    /// Commits are not meant to wait for a standby (default: what the stack's profile says).
    #[arg(long = "async")]
    pub asynchronous: bool,
}

pub const DEFAULT_TOPIC: &str = "payments.payment.v1";

#[derive(Clone, Debug)]
pub struct Options {
    pub drain_timeout: Duration,
    pub ack_directory: Option<PathBuf>,
    /// Acknowledgements that the logs must hold at least; below that, they are not the logs that were meant.
    pub acks_expected: u64,
    pub limits_changed: bool,
    pub topic: String,
    pub kafka: bool,
    /// Commits are not meant to wait for a standby.
    pub asynchronous: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            drain_timeout: Duration::from_secs(60),
            ack_directory: None,
            acks_expected: 0,
            limits_changed: false,
            topic: DEFAULT_TOPIC.to_owned(),
            kafka: true,
            asynchronous: false,
        }
    }
}

pub async fn run(args: CheckArgs) -> Result<bool> {
    let stack = Stack::from_env()?;
    let ack_directory = args.acks.clone().or_else(|| current_seed_directory(&stack));
    let options = Options {
        drain_timeout: args.drain_timeout,
        ack_directory,
        // Logs that were named are there for a reason.
        acks_expected: u64::from(args.acks.is_some()),
        asynchronous: args.asynchronous || stack.asynchronous,
        limits_changed: args.limits_changed,
        topic: args.topic.clone(),
        kafka: !args.no_kafka,
    };
    let report = check(&stack, &options, !args.json).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.human());
    }
    Ok(report.ok())
}

pub fn current_seed_directory(stack: &Stack) -> Option<PathBuf> {
    let seed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(stack.load_dir.join("seed.json")).ok()?).ok()?;
    Some(stack.load_dir.join(seed["id"].as_str()?))
}

/// An error means that the check could not be made; broken invariants are in the report.
pub async fn check(stack: &Stack, options: &Options, progress: bool) -> Result<CheckReport> {
    let start = Instant::now();
    let note = |what: &str| {
        if progress {
            eprintln!("check: {what} ...");
        }
    };
    let mut report = CheckReport::default();
    note("durability settings");
    durability::check(stack, options.asynchronous, &mut report).await?;
    note("waiting for the outbox");
    shards::wait_for_outbox(stack, options.drain_timeout, &mut report).await?;
    let sessions = shards::open(stack).await?;
    note("tenants and shards");
    let homes = placement::check(&sessions, &mut report).await?;
    note("entries and balances");
    ledger::check(&sessions, options, &mut report).await?;
    note("payments, entries, outbox, keys");
    joins::check(&sessions, &mut report).await?;
    match options.ack_directory.as_ref() {
        Some(path) => {
            note("acknowledgements");
            acks::check(&sessions, &homes, path, options.acks_expected, &mut report)
                .await
                .context("acknowledgements")?;
        }
        None if options.acks_expected > 0 => anyhow::bail!("no log of acknowledgements was named"),
        None => report.note("no log of acknowledgements: nothing was sent by `cargo load` yet"),
    }
    if options.kafka {
        note("events in Kafka");
        events::check(&sessions, &stack.need_kafka()?, &options.topic, &mut report).await?;
    } else {
        report.note("Kafka was left out by --no-kafka");
    }
    report.expect_examined();
    report.seconds = crate::output::rounded(start.elapsed().as_secs_f64());
    Ok(report)
}
