//! `bench load`: payments over HTTP, from the options to the report.
//!
//! [`options`] -> [`seed`] (tenants and funded accounts) -> [`workload`] (who pays whom) -> [`schedule`] (when) ->
//! [`worker`] (one kept-alive [`http`] connection each, acknowledgements to [`acks`], outcomes to [`stats`], every single
//! latency to [`trace`]) -> [`run`] (one measured run, which [`interrupt`] may end) -> [`report`]; [`runs`] compares several
//! of them.
pub mod acks;
pub mod http;
pub mod interrupt;
pub mod options;
pub mod report;
pub mod run;
pub mod runs;
pub mod schedule;
pub mod seed;
pub mod stats;
pub mod trace;
pub mod worker;
pub mod workload;

use crate::{check, stack::Stack};
use anyhow::Result;
use options::LoadArgs;
use report::LoadReport;

/// True when there were no errors and, with `--check`, no broken invariant.
pub async fn run(args: LoadArgs) -> Result<bool> {
    let stack = Stack::from_env()?;
    let cores = stack.need_cores(args.cores)?;
    let directory = args.load_dir.clone().unwrap_or_else(|| stack.load_dir.clone());
    let seed = seed::ensure(&args, &stack, &cores, &directory).await?;
    let acks = acks::AckLog::create(&seed.directory)?;
    let trace = args.trace.as_deref().map(trace::Trace::create).transpose()?;
    let interrupt = interrupt::Interrupt::listen();
    let runner = run::Runner::new(&args, &stack, cores, &seed, acks, trace, interrupt.clone());

    let mut steps = Vec::new();
    match args.steps() {
        None => {
            for _ in 0..args.runs {
                let report = runner.run(args.pace()).await?;
                if args.runs > 1 && !args.json {
                    println!("{}", report.line());
                }
                steps.push(report);
                if interrupt.seen() {
                    break;
                }
            }
        }
        Some(rates) => {
            for rate in rates {
                let report = runner.run(options::Pace::Rate(f64::from(rate))).await?;
                let held = report.held();
                if !args.json {
                    println!("{}", report.line());
                }
                steps.push(report);
                if !held || interrupt.seen() {
                    break;
                }
            }
        }
    }
    runner.close()?;

    let checked = if args.check {
        let options = check::Options {
            ack_directory: Some(seed.directory.clone()),
            // Each was logged before it was counted; those of warm-ups and of earlier runs are there too.
            acks_expected: steps.iter().map(|step| step.ok + step.declined).sum(),
            asynchronous: args.asynchronous || stack.asynchronous,
            ..args.check_options()
        };
        Some(check::check(&stack, &options, !args.json).await?)
    } else {
        None
    };
    let clean =
        steps.iter().all(|step| step.errors == 0) && checked.as_ref().is_none_or(|report| report.ok());
    let ladder = args.steps.is_some();
    let report =
        if ladder { LoadReport::of_ladder(steps, checked) } else { LoadReport::of_runs(steps, checked) };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.human());
    }
    // The highest step of a ladder is expected to fail: it is how the ladder finds its end.
    Ok(if ladder { report.checked_ok() } else { clean })
}
