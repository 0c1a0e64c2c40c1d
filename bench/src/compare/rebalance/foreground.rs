//! Payments meanwhile: `bench load` in a process of its own, so that its latencies are not those of this one.
use crate::load::trace::{self, Request};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

pub const WARM_UP: Duration = Duration::from_secs(4);
/// Longer than any step; the run is ended by Ctrl-C.
const LONGEST: &str = "7200";
/// The slowest answers may take that long after the end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// In the stack's directory.
const TRACE: &str = "rebalance-payments.trace";

pub struct Foreground {
    child: Child,
    trace: TraceFile,
}

/// Removed when dropped.
struct TraceFile(PathBuf);

impl Drop for TraceFile {
    fn drop(&mut self) {
        // It may not be there yet, and the next one takes its place.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What clients of the payment API saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub rate: f64,
    pub ok: u64,
    pub errors: u64,
    pub errors_by_kind: Value,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Those that `p99_ms` is of.
    pub requests: Vec<Request>,
}

fn load(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("load").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true);
    Ok(command)
}

/// Makes `payments` payments, in batches.
pub async fn prepare(payments: u64) -> Result<()> {
    // Closed loop, a second at a time: how fast it goes is the machine's affair.
    let mut made = 0;
    while made < payments {
        let output =
            load(&["--clients", "16", "--batch", "100", "--warmup", "0", "--duration", "1", "--json"])?
                .output()
                .await?;
        let report = parse(&output.stdout)?;
        let ok = report["ok"].as_u64().unwrap_or(0);
        if ok == 0 {
            bail!("no payment goes through: {}", report["errors_by_kind"]);
        }
        made += ok;
    }
    Ok(())
}

fn parse(stdout: &[u8]) -> Result<Value> {
    serde_json::from_slice(stdout).context("the load generator's report")
}

impl Foreground {
    pub fn start(rate: f64) -> Result<Foreground> {
        let (rate, warm_up) = (rate.to_string(), (WARM_UP.as_secs() - 1).to_string());
        let trace = TraceFile(super::directory()?.join(TRACE));
        let child = load(&["--rate", &rate, "--warmup", &warm_up, "--duration", LONGEST, "--json"])?
            .arg("--trace")
            .arg(&trace.0)
            .spawn()
            .context("bench load")?;
        Ok(Foreground { child, trace })
    }

    pub async fn stop(self) -> Result<Seen> {
        let pid = self.child.id().context("the load generator has ended by itself")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT).context("cannot end the load")?;
        let output = tokio::time::timeout(END_LIMIT, self.child.wait_with_output())
            .await
            .context("the load generator does not end")??;
        let report = parse(&output.stdout)?;
        let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
        let count =
            |key: &str| report[key].as_u64().with_context(|| format!("the load's report has no {key}"));
        let (ok, answered) = (count("ok")?, count("ok")? + count("declined")?);
        let requests = trace::read(&self.trace.0)?;
        // One payment a request.
        ensure!(requests.len() as u64 == answered, "{} of {answered} payments were traced", requests.len());
        Ok(Seen {
            rate: number("rate_achieved"),
            ok,
            errors: count("errors")?,
            errors_by_kind: report["errors_by_kind"].clone(),
            p50_ms: number("p50_ms"),
            p99_ms: number("p99_ms"),
            max_ms: number("max_ms"),
            requests,
        })
    }
}
