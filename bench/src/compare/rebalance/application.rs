//! A JDBC application at work meanwhile (`tests/jdbc/run --loop`), from before the first step to after the last
//! measurement.
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Maven may have to build it.
const START_LIMIT: Duration = Duration::from_secs(240);
/// A statement that waits for its socket has 30 s.
const END_LIMIT: Duration = Duration::from_secs(60);

pub struct Application {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What its code saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub ok: u64,
    pub errors: u64,
    pub wrong: u64,
    /// Its whole report.
    pub report: Value,
}

impl Application {
    pub async fn start(proxy: &str) -> Result<Application> {
        let workspace = std::env::var_os("STACK_WORKSPACE").map(PathBuf::from);
        let program = workspace
            .context("STACK_WORKSPACE is not set: run `cargo compare -- rebalance`")?
            .join("tests/jdbc/run");
        let mut child = Command::new(&program)
            .args(["--loop", &format!("postgresql://app:app@{proxy}/payments")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let stdin = child.stdin.take().context("the JDBC application's stdin")?;
        let mut lines = BufReader::new(child.stdout.take().context("the JDBC application's stdout")?).lines();
        match timeout(START_LIMIT, lines.next_line())
            .await
            .context("the JDBC application does not begin")??
        {
            Some(line) if line == "ready" => Ok(Application { child, stdin, lines }),
            other => bail!("the JDBC application does not begin: {other:?}"),
        }
    }

    pub async fn stop(mut self) -> Result<Seen> {
        drop(self.stdin);
        let line = timeout(END_LIMIT, self.lines.next_line())
            .await
            .context("the JDBC application does not end")??;
        timeout(END_LIMIT, self.child.wait()).await.context("the JDBC application does not end")??;
        Seen::read(&line.context("the JDBC application ended without a report")?)
    }
}

impl Seen {
    fn read(line: &str) -> Result<Seen> {
        let report: Value =
            serde_json::from_str(line).with_context(|| format!("the JDBC application's report: {line}"))?;
        let count = |key: &str| {
            report[key].as_u64().with_context(|| format!("the JDBC application's report has no {key}"))
        };
        let errors = report["errors"].as_object().context("the JDBC application's report has no errors")?;
        let errors = errors.values().filter_map(Value::as_u64).sum();
        Ok(Seen { ok: count("ok")?, errors, wrong: count("wrong")?, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_every_kind_count() {
        let line = r#"{"ok":3,"errors":{"57P03":2,"08006":1},"retries_40001":4,"wrong":1}"#;
        let seen = Seen::read(line).unwrap();
        assert_eq!((seen.ok, seen.errors, seen.wrong), (3, 3, 1));
        assert!(Seen::read(r#"{"ok":3}"#).is_err());
    }
}
