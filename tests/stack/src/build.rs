//! Building the workspace's programs and running them with the stack's environment.

use crate::args::{self, Options};
use crate::paths::{release, workspace};
use crate::services::environment;
use crate::{status, up};
use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a running stack needs; the same profile as the tests, so that dependencies are built once.
const PACKAGES: [&str; 5] = ["shard-proxy", "payment-core", "shardctl", "sql-assets", "bench"];

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
        "oracle" => bail!(
            "`cargo oracle`, the differential suite against one PostgreSQL, does not exist yet; \
             the stack already runs the PostgreSQL it will compare with (SINGLE_URL in `cargo stack env`)"
        ),
        other => bail!("unknown tool {other}"),
    };
    if !options.no_build {
        // The fault runs leave the ledger's arithmetic to `bench check`.
        build(if package == "e2e-tests" { &["e2e-tests", "bench"] } else { &["bench"] })?;
    }
    let mut command = Command::new(release(program)?);
    command.args(leading).args(&arguments);
    // Help needs no stack; nor do comparisons that start their own servers.
    let help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
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
    command.env("STACK_BIN", std::env::current_exe()?).env("STACK_WORKSPACE", workspace()?);
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}
