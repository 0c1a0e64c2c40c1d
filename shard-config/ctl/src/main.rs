//! What a DBA asks of the shards: where is a tenant, how does a statement run, is everything well.
//!
//! Rooms: [`connect`] (the proxy, and one shard through it), [`map`] and [`explain`] (what the proxy knows),
//! [`status`] and [`doctor`] (what the shards say), [`output`] (a table for people, one JSON value for programs).
//!
//! Everything is asked through the proxy, with the role of the URL, so this needs no access that an application
//! has not; the proxy's configuration file, where it is given, is only read and checked.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod connect;
mod constraints;
mod doctor;
mod explain;
mod map;
mod migrate;
mod output;
mod status;

use output::Report;

/// See, check and migrate the shards behind a shard-proxy.
///
/// Exit status: 0 all is well, 1 a problem was found or something failed, 2 wrong usage, 3 the proxy could not be
/// reached.
#[derive(Parser)]
#[command(name = "shardctl", version, arg_required_else_help = true)]
struct Arguments {
    /// The proxy, as a libpq or JDBC URL.
    #[arg(
        long,
        global = true,
        env = "PROXY_URL",
        hide_env_values = true,
        default_value = "postgresql://app:app@127.0.0.1:17051/payments"
    )]
    url: String,
    /// Print one JSON value instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Each shard: reachable, its size, its replicas, its transactions in doubt.
    Status,
    /// The shard map: ranges of buckets, their shard, the epoch.
    Map,
    /// The bucket and the shard of a tenant.
    Route {
        /// Value of the sharding key.
        tenant: String,
        /// Type of the sharding key: uuid, int8, int4, int2 or text.
        #[arg(long, default_value = "uuid")]
        key_type: String,
    },
    /// How the proxy would run a statement, and why, without running it.
    Explain { sql: String },
    /// Bring the payment schema of every shard up to date. Safe to repeat; resumes where it failed.
    Migrate {
        /// Make monthly partitions for this many months after the current one.
        #[arg(long, default_value_t = 6)]
        months_ahead: u16,
        /// Detach partitions older than this many months (their rows stay in a table).
        #[arg(long)]
        retain_months: Option<u16>,
    },
    /// Check the servers' settings, the schemas and the map against each other.
    Doctor {
        /// Also check this configuration file of the proxy.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Also count rows that are on a shard that does not own their bucket. Reads every sharded table.
        #[arg(long)]
        sweep: bool,
    },
    /// Print every setting of the proxy's configuration with its default, or check a file.
    Config { file: Option<PathBuf> },
}

/// The proxy could not be reached: exit status 3.
#[derive(Debug)]
struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(report) => {
            // A reader that went away (`shardctl map | head -1`) is no failure.
            _ = report.print(arguments.json);
            if report.well { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            let unreachable = error.is::<Unreachable>();
            if arguments.json {
                eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") }));
            } else {
                eprintln!("shardctl: {error:#}");
            }
            ExitCode::from(if unreachable { 3 } else { 1 })
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    if let Verb::Config { file } = &arguments.verb {
        return doctor::config_file(file.as_deref());
    }
    let proxy = connect::Proxy::new(&arguments.url)?;
    match &arguments.verb {
        Verb::Status => status::status(&proxy).await,
        Verb::Map => map::map(&proxy).await,
        Verb::Route { tenant, key_type } => map::route(&proxy, tenant, key_type).await,
        Verb::Explain { sql } => explain::explain(&proxy, sql).await,
        Verb::Migrate { months_ahead, retain_months } => {
            migrate::migrate(&proxy, *months_ahead, *retain_months).await
        }
        Verb::Doctor { config, sweep } => doctor::doctor(&proxy, config.as_deref(), *sweep).await,
        Verb::Config { .. } => unreachable!("answered above"),
    }
}
