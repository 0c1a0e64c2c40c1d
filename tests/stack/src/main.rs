//! `stack`: starts the real servers that everything else runs against, and the workspace's commands.
//!
//! Rooms, in reading order: `args` and `main` (the command line), `up` (start, stop, single servers), `server` (what
//! all servers have in common), `postgres` with `settings`, `kafka`, `services` (Redis, proxy, core), `status`, `build` (cargo, and
//! running other tools), `demo`, `verify`; below them `tools` (programs that must be installed), `process` (pids that
//! are surely ours), `state` (what is written down), `paths`.
//!
//! Invariants: only processes that this program started are ever signalled (pid, start time and boot match); a start
//! that fails leaves nothing behind; what looks like a data directory is complete; fsync is on unless the profile
//! says `fast-unsafe`.
//!
//! Deliberately absent: async, a command-line crate, a Postgres driver. This crate builds in seconds on a bare machine,
//! because it installs what the others need to build.

/// `println!` without its panic when the reader (`| head`) has gone.
macro_rules! out {
    () => { out!("") };
    ($($format:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($format)*);
    }};
}

/// `print!`, likewise, and flushed.
macro_rules! out_part {
    ($($format:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stdout(), $($format)*).and_then(|()| std::io::stdout().flush());
    }};
}

mod args;
mod build;
mod demo;
mod grow;
mod http;
mod kafka;
mod paths;
mod postgres;
mod process;
mod server;
mod services;
mod settings;
mod state;
mod status;
mod tools;
mod up;
mod verify;

use anyhow::{Result, bail};
use std::process::ExitCode;

const HELP: &str = "\
cargo stack COMMAND        the servers: 4 PostgreSQL shards with a replica each, Redis, Kafka, proxies, cores, the oracle
  up                       start what is not running; Ctrl-C stops it
     --detach              ... and leave it running
     --proxies N --cores N how many (up to 9 each)
     --profile P           sync (default) | async | fast-unsafe
     --only infra          without proxies and cores
     --shards N            for a new data directory (default 4)
     --install             install missing programs with apt-get
     --no-build            use the programs as they were built last
  down [--wipe]            stop everything; --wipe removes the data
  status [--json]          exit status 1 unless all runs
  env                      URLs of everything, for `export $(cargo stack env)`
  logs NAME [-f] [-n N]    NAME: shard1-primary, shard1-replica, oracle, redis, kafka, proxy1, core1, ...
  start NAME               start one server on its data as it is
  kill NAME [-9]           stop one server; -9 kills it and its children at once
  pause NAME, cont NAME    SIGSTOP, SIGCONT
  add-shard                one more shard, empty of tenants, made known to the running proxies
  promote shardN           its replica becomes the primary; the old primary stays down
  rejoin shardN            the server that is not the primary comes back as its synchronous standby
  everywhere               --dir D (STACK_DIR), --port-base P (STACK_PORT_BASE, default 17000)
cargo demo [--seconds N] [--rate R] [--keep]   install, build, start, seed, stream payments, show
cargo verify [--skip STEP,...]          every test; ends with `N passed, N failed`
cargo load|compare|chaos|oracle -- ...  the tools, with the stack's environment (`-- --help`)
";

fn run() -> Result<bool> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        out_part!("{HELP}");
        return Ok(false);
    }
    if matches!(arguments[0].as_str(), "load" | "compare" | "chaos" | "oracle") {
        let verb = arguments.remove(0);
        return build::tool(&verb, &arguments);
    }
    let mut options = args::parse(&arguments)?;
    let Some(verb) = (!options.words.is_empty()).then(|| options.words.remove(0)) else {
        bail!("no command; see `cargo stack help`");
    };
    match verb.as_str() {
        "help" => {
            out_part!("{HELP}");
            Ok(true)
        }
        "up" => up::up(&options),
        "down" => up::down(&options),
        "status" => status::status(&options),
        "logs" => status::logs(&options),
        "env" => {
            for (name, value) in services::environment(&up::open(&options)?.state())? {
                out!("{name}={value}");
            }
            Ok(true)
        }
        "add-shard" => grow::add_shard(&options),
        "start" | "kill" | "pause" | "cont" | "promote" | "rejoin" => up::one(&options, &verb),
        "demo" => demo::demo(&options),
        "verify" => verify::verify(&options),
        other => bail!("unknown command {other}; see `cargo stack help`"),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
