//! `chaos`: seeded fault runs against the running stack, usually started by `cargo chaos`.

use anyhow::{Context, Result, bail};
use e2e_tests::faults::ALL;
use e2e_tests::load;
use e2e_tests::rebalance;
use e2e_tests::run::{Plan, Suite, one};
use e2e_tests::stack::Stack;
use e2e_tests::twophase;
use serde_json::json;
use std::process::ExitCode;

/// Violations spelled out; all are counted.
const SHOWN: usize = 50;
/// Payments a second unless a suite has its own.
const RATE: u32 = 150;

struct Arguments {
    runs: Option<u64>,
    seed: u64,
    rate: Option<u32>,
    wanted: Wanted,
    json: bool,
}

/// Which part of the system is put under load.
enum Wanted {
    Payments(Suite),
    TwoPhase(Vec<twophase::Cell>),
    /// Names that leave only some of the cells.
    Rebalance(Vec<String>),
}

fn help() -> String {
    let names: Vec<&str> = ALL.iter().map(|fault| fault.name()).collect();
    format!(
        "cargo chaos -- [--runs N] [--seed S] [--rate R] [--suite SUITE] [--json]

Runs payments against the running stack, breaks things, and proves that no acknowledged payment is lost, none is
doubled, the ledger's invariants hold, throughput recovers and other shards' tenants are served meanwhile.

  --runs N      seeded runs (default 3); run i uses seed S + i
  --seed S      default: from the clock, and printed
  --rate R      payments a second (default 150)
  --suite SUITE lite (six faults one after the other), full (one to three drawn from all; the default), or one of
                {}
  --json        one object: runs, clean, violations, seed, acknowledged, retries, faults

Commits over several shards: transfers between shards go through two proxies (`cargo stack up --detach --proxies 2`),
and at every step of the two phases the first proxy and each shard's primary is killed. What clients were told is true
then, no money is lost, nothing stays prepared, and the second proxy finishes a dead one's orphans within 5 s.

  --suite two-phase              the whole matrix, --runs times (default 1); the seed orders it
  --suite two-phase-lite         two cells of it
  --suite two-phase:STEP/VICTIM  one: {}

Moves of buckets: between two shards, under payments through two proxies (`cargo stack up --detach --proxies 2 --cores 2`).
Each run strikes shardctl, a proxy, the source, the target, the source's standby or the server of the catalog in one phase
of a move: kill -9, SIGSTOP for 8 s, or a cut of the network for 8 s. At most one command of the operator later the move is
over, every row is on one shard, nothing is left on any server, no payment is lost or doubled, and no count over all shards
was wrong meanwhile. A run whose phase was not hit says so and does not count. Before them, in two more runs, one of a
cut-over and one of a roll-back, the first proxy sleeps from before the fence until after the flip, with clients of every isolation
level on it, and the mover is killed while it holds the fence: what they send then fails as one that may be tried again, or is
done by the new owner.

  --suite rebalance              --runs of them (default {}) at --rate payments a second (default {})
  --suite rebalance:WORD/...     only those of a component, phase or blow, e.g. rebalance:source/fencing/kill
  --suite rebalance:asleep       only the proxy that sleeps
",
        names.join(", "),
        twophase::cells("two-phase").unwrap_or_default().iter().map(|cell| cell.name()).collect::<Vec<_>>().join(", "),
        rebalance::RUNS,
        rebalance::RATE
    )
}

fn parse() -> Result<Option<Arguments>> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() % 1_000_000;
    let mut parsed =
        Arguments { runs: None, seed: clock, rate: None, wanted: Wanted::Payments(Suite::Full), json: false };
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--runs" => parsed.runs = Some(value()?.parse().context("--runs")?),
            "--seed" => parsed.seed = value()?.parse().context("--seed")?,
            "--rate" => parsed.rate = Some(value()?.parse().context("--rate")?),
            "--suite" => {
                let name = value()?;
                parsed.wanted = match (twophase::cells(&name), rebalance::words(&name)) {
                    (Some(cells), _) => Wanted::TwoPhase(cells),
                    (_, Some(words)) => Wanted::Rebalance(words),
                    _ => Wanted::Payments(
                        Suite::named(&name).with_context(|| format!("--suite {name}: see --help"))?,
                    ),
                };
            }
            "--json" => parsed.json = true,
            "-h" | "--help" => return Ok(None),
            other => bail!("unknown option {other}; see --help"),
        }
    }
    Ok(Some(parsed))
}

async fn chaos(arguments: &Arguments) -> Result<bool> {
    let mut stack = Stack::from_env()?;
    let down = stack.not_running().await?;
    if !down.is_empty() {
        bail!("not running: {}; `cargo stack up --detach` first", down.join(", "));
    }
    let suite = match &arguments.wanted {
        Wanted::Payments(suite) => *suite,
        Wanted::TwoPhase(cells) => return two_phase(&mut stack, cells, arguments).await,
        Wanted::Rebalance(words) => return moves(&stack, words, arguments).await,
    };
    let runs = arguments.runs.unwrap_or(3);
    let seed = load::seed(&stack).await?;
    let (mut clean, mut acknowledged, mut retries) = (0, 0, 0);
    let (mut violations, mut faults) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let plan =
            Plan { seed: arguments.seed + run, rate: arguments.rate.unwrap_or(RATE), suite, tell: true };
        eprintln!("run {} of {}, seed {}", run + 1, runs, plan.seed);
        let verdict = one(&mut stack, &seed, &plan).await?;
        eprintln!(
            "  {} acknowledged, {} retries, {} violations",
            verdict.acknowledged,
            verdict.retries,
            verdict.violations.len()
        );
        clean += u64::from(verdict.violations.is_empty());
        acknowledged += verdict.acknowledged;
        retries += verdict.retries;
        faults.extend(verdict.effects);
        let hidden = verdict.violations.len().saturating_sub(SHOWN);
        for what in verdict.violations.into_iter().take(SHOWN) {
            eprintln!("  VIOLATION {what}");
            violations.push(json!({"run": run + 1, "seed": plan.seed, "what": what}));
        }
        if hidden > 0 {
            violations.push(json!({"run": run + 1, "seed": plan.seed, "what": format!("and {hidden} more")}));
        }
    }
    let ok = violations.is_empty() && clean == runs;
    if arguments.json {
        println!(
            "{:#}",
            json!({
                "runs": runs, "clean": clean, "violations": violations, "seed": arguments.seed,
                "acknowledged": acknowledged, "retries": retries, "faults": faults,
            })
        );
    } else {
        println!(
            "{} runs, {clean} clean, {} violations; {acknowledged} payments acknowledged, {retries} retries",
            runs,
            violations.len()
        );
    }
    Ok(ok)
}

async fn two_phase(stack: &mut Stack, cells: &[twophase::Cell], arguments: &Arguments) -> Result<bool> {
    let passes = arguments.runs.unwrap_or(1);
    eprintln!("{} cells, seed {}", cells.len() as u64 * passes, arguments.seed);
    let verdict = twophase::run(stack, cells, passes, arguments.seed).await?;
    let ok = verdict.violations.is_empty() && verdict.clean == verdict.runs && verdict.runs > 0;
    if arguments.json {
        let violations: Vec<_> =
            verdict.violations.iter().map(|(cell, what)| json!({"cell": cell, "what": what})).collect();
        println!(
            "{:#}",
            json!({
                "runs": verdict.runs, "clean": verdict.clean, "violations": violations, "seed": arguments.seed,
                "transfers": verdict.transfers, "cells": verdict.effects,
            })
        );
    } else {
        println!(
            "{} cells, {} clean, {} violations; {} transfers",
            verdict.runs,
            verdict.clean,
            verdict.violations.len(),
            verdict.transfers
        );
    }
    Ok(ok)
}

async fn moves(stack: &Stack, words: &[String], arguments: &Arguments) -> Result<bool> {
    let runs = arguments.runs.unwrap_or(rebalance::RUNS);
    eprintln!("{runs} runs, seed {}", arguments.seed);
    let rate = arguments.rate.unwrap_or(rebalance::RATE);
    let verdict = rebalance::run(stack, words, runs, arguments.seed, rate).await?;
    let ok = verdict.violations.is_empty() && verdict.clean == verdict.wanted && runs > 0;
    if arguments.json {
        println!("{:#}", verdict.json(arguments.seed));
    } else {
        println!(
            "{}\n{} runs counted, {} clean, {} violations, {} not hit; {} payments acknowledged, {} retries, {} counts over all shards",
            verdict.matrix(),
            verdict.counted,
            verdict.clean,
            verdict.violations.len(),
            verdict.missed,
            verdict.acknowledged,
            verdict.retries,
            verdict.counts
        );
    }
    Ok(ok)
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{}", help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("chaos: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("chaos: cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(chaos(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}
