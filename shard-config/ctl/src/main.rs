//! The command line. What the verbs do is in the library.

mod goals;
mod options;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use shard_config::ShardId;
use shardctl::direct::Servers;
use shardctl::exit::{self, Failure};
use shardctl::look::{self, Screen};
use shardctl::mover::machine::Wish;
use shardctl::moves::{self, Ended};
use shardctl::plans;
use shardctl::{
    Unreachable, apply, connect, doctor, dry_run, epochs, explain, map, migrate, reload, relocate, repair,
    status, tenants,
};

use crate::goals::{PlanGoal, goal};
use crate::options::{DryRun, How, Limits};

/// See, check, migrate and rebalance the shards behind a shard-proxy.
///
/// Exit status: 0 all is well, 1 a problem was found, something failed, or a move came to another end than was asked for, 2 wrong usage, 3 the proxy could not be reached,
/// 4 the plan is stale, 5 refused before anything was changed, 6 both sides of a move differ, 7 a cut-over was given up and
/// everything is as before it, 130 detached from a move that can be resumed.
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
    /// The proxy's configuration file: the servers, and the superuser that moves rows. Needed by every verb that plans, moves
    /// or reads past the proxy.
    #[arg(
        long,
        global = true,
        env = "SHARD_PROXY_CONFIG",
        // One of paths takes an empty variable for a mistake in the command.
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    config: Option<PathBuf>,
    /// Print one JSON value instead of text (a line for each change while a move runs).
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
    Map {
        /// What changed between two epochs.
        #[arg(long, num_args = 2, value_names = ["EPOCH", "EPOCH"])]
        diff: Option<Vec<i64>>,
        /// The epochs, and why each came to be.
        #[arg(long, conflicts_with = "diff")]
        history: bool,
    },
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
    /// Check the servers' settings, the schemas and the map against each other, and the file of --config.
    Doctor {
        /// Also count rows that are on a shard that does not own their bucket. Reads every sharded table.
        #[arg(long)]
        sweep: bool,
    },
    /// The servers of the file of --config beside those that each running proxy serves: what a reload would change, and whether it can.
    Servers,
    /// Have every running proxy read its configuration file again, and wait until all serve what the file of --config says.
    Reload {
        #[command(flatten)]
        dry: DryRun,
    },
    /// Print every setting of the proxy's configuration with its default, or check a file.
    Config { file: Option<PathBuf> },
    /// What would have to be moved. Changes nothing.
    Plan {
        #[command(subcommand)]
        goal: PlanGoal,
        /// Write the plan to this file, for `apply`.
        #[arg(long, global = true)]
        save: Option<PathBuf>,
        /// At most so many buckets in one step.
        #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..))]
        max_buckets: Option<u16>,
        /// What if a shard had another weight: SHARD=WEIGHT, for this plan only. Others have that of the configuration file,
        /// which is where weights are kept. Repeatable.
        #[arg(long = "weight", global = true)]
        weights: Vec<String>,
    },
    /// Carry out a saved plan, if the map is still the one it was made for.
    Apply {
        plan: PathBuf,
        /// Only check whether it could be carried out.
        #[arg(long)]
        dry_run: bool,
        /// Make so many steps of the plan at the same time.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
        concurrent: u8,
        #[command(flatten)]
        how: How,
        #[command(flatten)]
        limits: Limits,
    },
    /// The moves, newest first.
    Moves,
    /// What happened to a move.
    History { id: i64 },
    /// Look on while a move runs.
    Watch { id: i64 },
    /// Begin nothing new until resume; what is under way ends: a piece of the copy, or a step.
    Pause { id: i64 },
    /// Go on with a move that was paused, or whose shardctl ended, as `apply` was told to (--auto, --finish).
    Resume {
        id: i64,
        #[command(flatten)]
        how: How,
        #[command(flatten)]
        dry: DryRun,
    },
    /// Change the limits that are named, of a move while it runs; others stay. Without any: show them.
    Throttle {
        id: i64,
        #[command(flatten)]
        limits: Limits,
    },
    /// Let the target own what was copied. Refused while the target is far behind.
    Cutover {
        id: i64,
        /// Bytes of WAL that the target may be behind.
        #[arg(long, default_value_t = moves::LAG_MOST)]
        max_lag: i64,
        #[command(flatten)]
        dry: DryRun,
    },
    /// Undo a move that has not cut over.
    Abort {
        id: i64,
        /// The target is gone: free the source of everything that the move keeps there.
        #[arg(long)]
        target_lost: bool,
        /// It will never come back with what it has: end the move, and hide nothing of it any more.
        #[arg(long, requires = "target_lost")]
        never_returns: bool,
        #[command(flatten)]
        dry: DryRun,
    },
    /// Give everything back to the source, with what was written since the cut-over.
    Rollback {
        id: i64,
        #[command(flatten)]
        dry: DryRun,
    },
    /// Close the window of a move and delete the rows on the source. No roll-back after it.
    Finish {
        id: i64,
        /// The source is gone: free the target of everything that the move keeps there.
        #[arg(long)]
        source_lost: bool,
        /// It will never come back with what it has: end the move, and hide nothing of it any more.
        #[arg(long, requires = "source_lost")]
        never_returns: bool,
        #[command(flatten)]
        dry: DryRun,
    },
    /// Compare both sides of a live move, row by row where digests differ. Repairs nothing.
    #[command(alias = "verify")]
    Diff { id: i64 },
    /// Where the shard catalog is (the map, the moves). With --to: move it there, while no move is under way.
    Catalog {
        /// The shard that is to keep it.
        #[arg(long)]
        to: Option<u16>,
        /// Only check whether it could be moved.
        #[arg(long, requires = "to")]
        dry_run: bool,
    },
    /// Tell a catalog that has lost its end (a failover, a restored backup) from the shards what is missing.
    Repair {
        /// Only show it.
        #[arg(long)]
        dry_run: bool,
    },
    /// Do what is asked for by the SQL functions of shard_catalog, and go on with moves whose shardctl is gone, until ended.
    Serve,
    /// The largest tenants of all shards, or those that write most. Reads every sharded table.
    Tenants {
        #[arg(long, default_value_t = 20)]
        top: usize,
        #[arg(long, value_enum, default_value = "size")]
        by: tenants::Order,
        /// Also count for so long the rows that each writes; with --by rate 10 if it is not said.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
        seconds: Option<u32>,
    },
    /// Completions for a shell, to standard output.
    Completions { shell: clap_complete::Shell },
    /// The manual page, to standard output.
    Man,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok((report, code)) => {
            // A reader that went away (`shardctl map | head -1`) is no failure.
            _ = match arguments.json && is_shown(&arguments.verb) {
                true => writeln!(std::io::stdout(), "{}", report.json),
                false => report.print(arguments.json),
            };
            ExitCode::from(if code == 0 && !report.well { exit::FAILED } else { code })
        }
        Err(error) => {
            if arguments.json {
                eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") }));
            } else {
                eprintln!("shardctl: {error:#}");
            }
            ExitCode::from(match () {
                () if error.is::<Unreachable>() => exit::UNREACHABLE,
                () => error.downcast_ref::<Failure>().map_or(exit::FAILED, |failure| failure.status),
            })
        }
    }
}

/// An empty variable names no file.
fn config(arguments: &Arguments) -> Option<&Path> {
    arguments.config.as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// Whether it shows a move while it runs, with --json a line at a time.
fn is_shown(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Apply { .. }
            | Verb::Watch { .. }
            | Verb::Resume { .. }
            | Verb::Cutover { .. }
            | Verb::Abort { .. }
            | Verb::Rollback { .. }
            | Verb::Finish { .. }
    )
}

fn servers(arguments: &Arguments) -> anyhow::Result<Servers> {
    Servers::read(
        config(arguments)
            .context("name the proxy's configuration file: --config FILE, or SHARD_PROXY_CONFIG")?,
    )
}

/// The manual page of a verb, and those of the verbs below it.
fn pages(verb: &clap::Command, above: &str, out: &mut Vec<u8>) -> std::io::Result<()> {
    let name = format!("{above}-{}", verb.get_name());
    clap_mangen::Man::new(verb.clone()).title(&name).render(out)?;
    for below in verb.get_subcommands().filter(|below| below.get_name() != "help") {
        pages(below, &name, out)?;
    }
    Ok(())
}

const fn screen(arguments: &Arguments) -> Screen {
    Screen { json: arguments.json, bar: true }
}

async fn wish(
    arguments: &Arguments,
    id: i64,
    wish: Wish,
    max_lag: i64,
    dry: DryRun,
) -> anyhow::Result<Ended> {
    let servers = servers(arguments)?;
    match dry.dry_run {
        true => dry_run::wish(&servers, id, wish, max_lag).await,
        false => moves::wish(&servers, id, wish, max_lag, screen(arguments)).await,
    }
}

async fn lost(arguments: &Arguments, id: i64, wish: Wish, never: bool, dry: DryRun) -> anyhow::Result<Ended> {
    let servers = servers(arguments)?;
    match dry.dry_run {
        true => dry_run::lost(&servers, id, wish, never).await,
        false => moves::lost(&servers, id, wish, never).await,
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let screen = screen(arguments);
    match &arguments.verb {
        Verb::Config { file } => return Ok((doctor::config_file(file.as_deref())?, 0)),
        Verb::Completions { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "shardctl", &mut std::io::stdout());
            std::process::exit(0);
        }
        Verb::Man => {
            let mut page = Vec::new();
            let mut all = Arguments::command();
            all.build();
            clap_mangen::Man::new(all.clone()).render(&mut page)?;
            // Those that it refers to, one after the other.
            for verb in all.get_subcommands().filter(|verb| verb.get_name() != "help") {
                pages(verb, "shardctl", &mut page)?;
            }
            std::io::stdout().write_all(&page)?;
            std::process::exit(0);
        }
        Verb::Map { diff: Some(epochs), .. } => {
            let [from, to] = epochs[..] else { anyhow::bail!("--diff takes two epochs") };
            return epochs::diff(&servers(arguments)?, from, to).await;
        }
        Verb::Map { history: true, .. } => return epochs::history(&servers(arguments)?).await,
        Verb::Plan { goal: wanted, save, max_buckets, weights } => {
            let wanted = goal(wanted)?;
            let servers = servers(arguments)?;
            let weights = plans::weights(&servers, weights)?;
            let control = servers.control("shardctl plan").await?;
            let plan = plans::make(&servers, &control, &wanted, &weights, *max_buckets).await?;
            if let Some(path) = save {
                plan.save(path)?;
            }
            return Ok((plan.report(save.as_deref())?, 0));
        }
        Verb::Apply { plan, dry_run, concurrent, how, limits } => {
            let at_once = usize::from(*concurrent);
            let servers = servers(arguments)?;
            return apply::apply(&servers, plan, how.options(), &limits.named(), at_once, *dry_run, screen)
                .await;
        }
        Verb::Servers => return reload::servers(&servers(arguments)?).await,
        Verb::Reload { dry } => return reload::reload(&servers(arguments)?, dry.dry_run).await,
        Verb::Moves => return look::list(&servers(arguments)?).await,
        Verb::History { id } => return look::history(&servers(arguments)?, *id).await,
        Verb::Watch { id } => return look::watch(&servers(arguments)?, *id, screen).await,
        Verb::Pause { id } => return moves::pause(&servers(arguments)?, *id).await,
        Verb::Resume { id, how, dry: DryRun { dry_run: true } } => {
            return dry_run::resume(&servers(arguments)?, *id, how.options()).await;
        }
        Verb::Resume { id, how, .. } => {
            return moves::resume(&servers(arguments)?, *id, how.options(), screen).await;
        }
        Verb::Throttle { id, limits } => {
            return moves::throttle(&servers(arguments)?, *id, &limits.named()).await;
        }
        Verb::Cutover { id, max_lag, dry } => {
            return wish(arguments, *id, Wish::Cutover, *max_lag, *dry).await;
        }
        Verb::Abort { id, target_lost: true, never_returns, dry } => {
            return lost(arguments, *id, Wish::Abort, *never_returns, *dry).await;
        }
        Verb::Finish { id, source_lost: true, never_returns, dry } => {
            return lost(arguments, *id, Wish::Finish, *never_returns, *dry).await;
        }
        Verb::Abort { id, dry, .. } => return wish(arguments, *id, Wish::Abort, 0, *dry).await,
        Verb::Rollback { id, dry } => return wish(arguments, *id, Wish::Rollback, 0, *dry).await,
        Verb::Finish { id, dry, .. } => return wish(arguments, *id, Wish::Finish, 0, *dry).await,
        Verb::Diff { id } => return moves::diff(&servers(arguments)?, *id).await,
        Verb::Catalog { to: None, .. } => return relocate::show(&servers(arguments)?).await,
        Verb::Catalog { to: Some(to), dry_run } => {
            return relocate::move_to(&servers(arguments)?, ShardId(*to), *dry_run).await;
        }
        Verb::Repair { dry_run } => return repair::repair(&servers(arguments)?, *dry_run).await,
        Verb::Serve => {
            servers(arguments)?; // A mistake in the file ends it now, and is tried again later.
            let json = arguments.json;
            let say = |text: String| match json {
                true => println!("{}", serde_json::json!({ "said": text })),
                false => eprintln!("{}  {text}", chrono::Utc::now().format("%F %T")),
            };
            tokio::select! {
                ended = shardctl::serve::serve(|| servers(arguments), say) => ended?,
                _ = tokio::signal::ctrl_c() => {}
            }
            let text = "ended; moves under way stay as they are\n".to_owned();
            return Ok((shardctl::output::Report { json: serde_json::json!({}), text, well: true }, 0));
        }
        Verb::Tenants { top, by, seconds } => {
            return Ok((tenants::tenants(&servers(arguments)?, *top, *by, *seconds).await?, 0));
        }
        Verb::Status
        | Verb::Map { .. }
        | Verb::Route { .. }
        | Verb::Explain { .. }
        | Verb::Migrate { .. }
        | Verb::Doctor { .. } => {}
    }
    let proxy = connect::Proxy::new(&arguments.url).map_err(|error| Failure::usage(format!("{error:#}")))?;
    let report = match &arguments.verb {
        Verb::Status => status::status(&proxy, config(arguments)).await?,
        Verb::Map { .. } => map::map(&proxy).await?,
        Verb::Route { tenant, key_type } => map::route(&proxy, tenant, key_type).await?,
        Verb::Explain { sql } => explain::explain(&proxy, sql).await?,
        Verb::Migrate { months_ahead, retain_months } => {
            migrate::migrate(&proxy, *months_ahead, *retain_months).await?
        }
        Verb::Doctor { sweep } => doctor::doctor(&proxy, config(arguments), *sweep).await?,
        _ => unreachable!("answered above"),
    };
    Ok((report, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_empty_name_of_a_file_is_none() {
        let named = |file: &str| {
            let words = ["shardctl", "--config", file, "status"];
            let arguments = Arguments::try_parse_from(words).map_err(|error| error.exit_code())?;
            Ok::<_, i32>(config(&arguments).map(Path::to_owned))
        };
        assert_eq!(named(""), Ok(None));
        assert_eq!(named("a.toml"), Ok(Some(PathBuf::from("a.toml"))));
    }

    #[test]
    fn only_limits_that_are_given_are_named() {
        let named = |words: &[&str]| {
            let words = ["shardctl", "throttle", "9"].iter().chain(words);
            match Arguments::try_parse_from(words).map_err(|error| error.exit_code())?.verb {
                Verb::Throttle { limits, .. } => Ok(limits.named()),
                _ => unreachable!("another verb"),
            }
        };
        assert_eq!(named(&[]), Ok(serde_json::json!({})));
        let given = named(&["--parallel", "3", "--bytes-per-second", "none"]);
        assert_eq!(given, Ok(serde_json::json!({ "parallel": 3, "bytes_per_second": null })));
        for wrong in
            [["--parallel", "0"], ["--parallel", "9"], ["--latency-ms", "-1"], ["--bytes-per-second", "much"]]
        {
            assert_eq!(named(&wrong), Err(i32::from(exit::USAGE)), "{wrong:?}");
        }
    }
}
