//! `bench compare rebalance`: buckets move between running shards under payments, and clients measure what they notice.
//!
//! [`plan`] says what is moved; [`shardctl`] moves it, as a DBA would, and reads the moves' own records. Meanwhile there
//! are [`clients`]: payments run at a fixed rate ([`foreground`]), [`watch`] counts rows over all shards, and [`probe`]
//! writes single rows of what moves ([`scope`]) without a pause. A JDBC application is at work all the time ([`application`]).
//! [`copy`] is the yardstick for the copy's speed, under the same load. [`phases`] tells what a move was doing when a
//! payment was slow, [`pauses`] how long a write waited at a cut-over, [`maps`] how long a change of the map took to the
//! proxies. [`report`] judges.
//!
//! Everything counted here is seen from outside, by SQL and HTTP: no code is shared with what moves the rows.
pub mod application;
pub mod clients;
pub mod copy;
pub mod foreground;
pub mod maps;
pub mod pauses;
pub mod phases;
pub mod plan;
pub mod probe;
pub mod report;
pub mod scope;
pub mod shardctl;
pub mod watch;

use crate::check;
use crate::measure::wal_files;
use crate::stack::Stack;
use anyhow::{Context, Result};
use clap::Args;
use clients::{Clients, Noticed};
use pauses::Pauses;
use phases::Phase;
use plan::{Kind, Step};
use report::{Report, StepResult};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Args, Clone, Debug)]
pub struct RebalanceArgs {
    /// Payments a second meanwhile.
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// Payments made before anything moves, so that there is something to copy.
    #[arg(long, default_value_t = 400_000)]
    pub payments: u64,
    /// Buckets that the first step moves.
    #[arg(long, default_value_t = 512)]
    pub buckets: u16,
    /// Seconds of payments without a move, before each step that copies and after the last one, which the latencies of
    /// the others are compared with.
    #[arg(long, default_value_t = 15)]
    pub baseline: u64,
    /// What is done: move, rollback, drain, add, isolate (default: all, in this order).
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',')]
    pub steps: Vec<Kind>,
    /// Leave out the copy that the mover's is compared with.
    #[arg(long)]
    pub no_copy: bool,
    /// Leave out the JDBC application (it needs Java).
    #[arg(long)]
    pub no_jdbc: bool,
    /// One JSON object on standard output instead of tables.
    #[arg(long)]
    pub json: bool,
}

impl RebalanceArgs {
    /// The buckets that the first step moves: first and last.
    fn range(&self) -> (u16, u16) {
        (0, self.buckets - 1)
    }

    /// Four times what those payments write on one server: a step writes its copies and its own payments.
    fn wal_files(&self) -> u64 {
        self.payments.div_ceil(6_250)
    }
}

/// The stack's own.
fn directory() -> Result<PathBuf> {
    let directory = std::env::var_os("STACK_DIR").map(PathBuf::from);
    directory.context("STACK_DIR is not set: run `cargo compare -- rebalance`")
}

/// True when nothing was lost, doubled, missing or failed, and every bar is held.
pub async fn run(args: RebalanceArgs) -> Result<bool> {
    let stack = Stack::from_env()?;
    stack.need_cores(None)?;
    let steps = if args.steps.is_empty() { Kind::ALL.to_vec() } else { args.steps.clone() };
    let tool = shardctl::Shardctl::new(&stack).await?;
    let say = |text: &str| {
        if !args.json {
            eprintln!("rebalance: {text}");
        }
    };

    say("WAL files to write into");
    wal_files::ahead(&stack.shards, args.wal_files()).await?;
    say("payments to move");
    foreground::prepare(args.payments).await?;
    watch::prepare(&stack).await?;
    wal_files::checkpoint(&stack.shards).await?;
    // Before the payments without a move, so that those are beside it, too.
    let application = match args.no_jdbc {
        true => None,
        false => Some(application::Application::start(stack.proxies.last().context("no proxy")?).await?),
    };
    let mut report = Report::new(&args);
    for kind in steps {
        if kind.copies() || report.calms.is_empty() {
            say("payments without a move");
            report.calms.push(calm(&args, &stack).await?);
        }
        if kind == Kind::Move && !args.no_copy {
            for onto in copy::others(&stack) {
                say("the same rows by COPY");
                wal_files::checkpoint(&stack.shards).await?;
                report.copies.push(copy::measure(&args, &stack, onto).await?);
            }
        }
        say(kind.name());
        // The steps before have written over the files that were there.
        wal_files::checkpoint(&shardctl::stack_now(&stack).await?.shards).await?;
        let step = Step::of(kind, &args, &stack, &tool).await?;
        let result = one(&args, &stack, &tool, step).await.with_context(|| kind.name().to_owned())?;
        say(&result.line());
        report.steps.push(result);
    }
    let is_back = report.steps.iter().any(|step| step.kind == Kind::Rollback);
    if let Some(moved) = report.first_move().filter(|_| !is_back) {
        // An open window keeps the rows on both shards, and the check of the ledger looks at the shards themselves.
        tool.run(&["finish".to_owned(), moved.id.to_string()]).await?;
    }
    // Beside the last step, too: with a shard more, payments cost more than before.
    say("payments without a move");
    report.calms.push(calm(&args, &stack).await?);
    if let Some(application) = application {
        report.application = Some(application.stop().await?);
    }
    say("the ledger");
    watch::clear(&stack).await?;
    // The last step may have added a shard.
    let stack = shardctl::stack_now(&stack).await?;
    let options =
        check::Options { ack_directory: check::current_seed_directory(&stack), ..check::Options::default() };
    report.checked = Some(check::check(&stack, &options, false).await?);
    if args.json {
        println!("{}", serde_json::to_string(&report.json())?);
    } else {
        print!("{}", report.human());
    }
    Ok(report.well())
}

/// Payments without a move, with the same clients as beside one: what they cost is not the move's.
async fn calm(args: &RebalanceArgs, stack: &Stack) -> Result<Noticed> {
    let stack = shardctl::stack_now(stack).await?;
    // As before each step.
    wal_files::checkpoint(&stack.shards).await?;
    let clients = Clients::start(args.rate, &stack, &[]).await?;
    tokio::time::sleep(Duration::from_secs(args.baseline)).await;
    clients.stop().await
}

/// One step under load: the clients begin before it and end after it.
async fn one(
    args: &RebalanceArgs,
    stack: &Stack,
    tool: &shardctl::Shardctl,
    step: Step,
) -> Result<StepResult> {
    let before = tool.last_move().await?;
    let clients = Clients::start(args.rate, stack, &step.scopes).await?;
    let begun = Instant::now();
    let begun_us = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    let done = step.run(tool).await;
    let seconds = begun.elapsed().as_secs_f64();
    // What was released at the very end is still measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let noticed = clients.stop().await;
    done?;
    let (mut noticed, moves) = (noticed?, tool.moves_after(before).await?);
    // What they add up to is kept, and of those while rows were copied each: there may be millions.
    let requests = std::mem::take(&mut noticed.load.requests);
    let writes = std::mem::take(&mut noticed.seen.trace);
    let histories = || moves.iter().map(|one| one.history.as_slice());
    let by_phase = phases::ByPhase::new(&requests, histories());
    let copying_ms = phases::within(Phase::Copying, &requests, histories());
    let pauses = Pauses::new(&writes, moves.iter().map(|one| one.since(begun_us)));
    let followed_ms = maps::followed_ms(&tool.maps().await?, &noticed.sights);
    Ok(StepResult { kind: step.kind, seconds, moves, noticed, by_phase, copying_ms, pauses, followed_ms })
}
