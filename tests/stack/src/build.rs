//! Building the workspace's programs and running them with the stack's environment.

use crate::args::{self, Options, Profile};
use crate::paths::{release, workspace};
use crate::services::environment;
use crate::{status, up};
use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a running stack needs; the same profile as the tests, so that dependencies are built once.
const PACKAGES: [&str; 5] = ["shard-proxy", "payment-core", "shardctl", "sql-assets", "bench"];

/// `cargo verify` has the 200 above.
const OWN_STACK_PORTS_AWAY: u16 = 400;

pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    Ok(command)
}

pub(crate) fn binaries() -> Result<()> {
    build(&PACKAGES)
}

pub(crate) fn build(packages: &[&str]) -> Result<()> {
    let mut command = cargo()?;
    command.args(["build", "--release", "--bins"]);
    if !release(if packages.contains(&"e2e-tests") { "chaos" } else { "shard-proxy" })?.exists() {
        out!("building {} (the first time takes some minutes)", packages.join(", "));
    } else {
        command.arg("--quiet");
    }
    for package in packages {
        command.args(["-p", package]);
    }
    if !command.status().context("cargo")?.success() {
        bail!("the build failed");
    }
    Ok(())
}

/// `cargo load -- --rate 100` arrives as `load -- --rate 100`. Options of the stack itself come from the environment
/// here (STACK_DIR, STACK_PORT_BASE): everything on the line belongs to the tool.
pub(crate) fn tool(verb: &str, arguments: &[String]) -> Result<bool> {
    let mut arguments = arguments.to_vec();
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    let options: Options = args::parse(&[])?;
    let (package, program, leading): (&str, &str, &[&str]) = match verb {
        "load" => ("bench", "bench", &["load"]),
        "compare" => ("bench", "bench", &["compare"]),
        "chaos" => ("e2e-tests", "chaos", &[]),
        "oracle" => ("oracle-tests", "oracle", &[]),
        other => bail!("unknown tool {other}"),
    };
    if !options.no_build {
        // The fault runs leave the ledger's arithmetic to `bench check`, and moves to `shardctl`.
        build(if package == "e2e-tests" {
            &["e2e-tests", "bench", "shardctl"]
        } else {
            std::slice::from_ref(&package)
        })?;
    }
    let mut command = Command::new(release(program)?);
    command.args(leading).args(&arguments);
    // Help needs no stack; nor do comparisons that start their own servers.
    let help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    command.env("STACK_BIN", std::env::current_exe()?).env("STACK_WORKSPACE", workspace()?);
    if verb == "oracle" && !help && !runs(&options)? {
        return with_own_stack(&options, command);
    }
    match up::open(&options) {
        Ok(stack) => {
            let down = status::rows(&stack)?.iter().all(|row| row.state != "running");
            if down && !help && verb == "load" {
                bail!("the stack is not running: `cargo stack up --detach` first");
            }
            command.envs(environment(&stack.state())?);
        }
        Err(error) if verb != "compare" && !help => return Err(error),
        Err(_) => {}
    }
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}

fn runs(options: &Options) -> Result<bool> {
    let Ok(stack) = up::open(options) else { return Ok(false) };
    let rows = status::rows(&stack)?;
    Ok(["proxy1", "oracle"]
        .iter()
        .all(|name| rows.iter().any(|row| row.name == *name && row.state == "running")))
}

/// For the time of one command, away from the ports of a stack in use. What failed is left to be looked at.
fn with_own_stack(options: &Options, mut command: Command) -> Result<bool> {
    let port_base =
        options.port_base.checked_add(OWN_STACK_PORTS_AWAY).context("STACK_PORT_BASE is too high")?;
    let options = Options { port_base, profile: Some(Profile::FastUnsafe), ..options.clone() };
    eprintln!("no stack is running: starting one on ports from {port_base} for this command");
    up::down(&Options { wipe: true, ..options.clone() })?;
    let stack = up::bring_up(&options, true)?;
    let status = command.envs(environment(&stack.state())?).status().context("cannot run the suite")?;
    drop(stack);
    up::down(&Options { wipe: status.success(), ..options })?;
    Ok(status.success())
}
