//! `bench load | check | compare`: usually started by `cargo load` and `cargo compare`.
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "bench", about = "Load, checks and comparisons for the running stack")]
enum Command {
    /// Send payments to the running stack and report rate, latency, errors and cost.
    Load(bench::load::options::LoadArgs),
    /// Prove the ledger's invariants from the shards and Kafka.
    Check(bench::check::CheckArgs),
    /// Measure our proxy or posting path beside its peers.
    Compare(bench::compare::CompareArgs),
}

fn main() -> ExitCode {
    let command = Command::parse();
    // One thread: the generator shares a small machine with what it measures, and one thread is enough for more
    // than 15,000 requests a second.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bench: cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let local = tokio::task::LocalSet::new();
    let outcome = local.block_on(&runtime, async {
        match command {
            Command::Load(args) => bench::load::run(args).await,
            Command::Check(args) => bench::check::run(args).await,
            Command::Compare(args) => bench::compare::run(args).await,
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
