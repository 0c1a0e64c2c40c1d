//! `cargo verify`: every test there is, from a clean clone, without a question. The last line is `N passed, N failed`.
//!
//! Runs beside a stack that somebody is using: its servers have a port base and a data directory of their own.

use crate::args::Options;
use crate::build::{binaries, build, cargo};
use crate::paths::{release, workspace};
use crate::process::tail;
use crate::server::Stack;
use crate::services::environment;
use crate::tools::{self, For};
use crate::up;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Away from the ports of a stack in use.
const PORTS_AWAY: u16 = 200;

/// Milliseconds that a write waits for a cut-over at most, on whatever machine.
const PAUSE_LIMIT_MS: f64 = 2000.0;
/// What is an order of magnitude off is wrong on whatever machine: of COPY's speed (0.2 with so few rows, of which each copy's
/// first half second is most), and milliseconds until all proxies serve by a new map.
const COPY_LEAST: f64 = 0.02;
const MAP_LIMIT_MS: f64 = 2000.0;
/// What is moved, and the phase that its moves have when the step is over.
const STEPS: [(&str, &str); 5] = [
    ("move", "window"),
    ("rollback", "rolled_back"),
    ("isolate a tenant", "done"),
    ("drain", "done"),
    ("add a shard", "done"),
];

/// What one step found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: u64,
    failures: Vec<String>,
}

struct Verify {
    passed: u64,
    failures: Vec<String>,
    skip: Vec<String>,
}

impl Verify {
    /// A step that cannot run is a failure, and the others still run.
    fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) -> bool {
        if self.skip.iter().any(|skipped| skipped == name) {
            out!("---- {name}: skipped on request");
            return true;
        }
        out!("---- {name}");
        let begun = Instant::now();
        let outcome =
            run().unwrap_or_else(|error| Outcome { passed: 0, failures: vec![format!("{error:#}")] });
        let ok = outcome.failures.is_empty();
        out!(
            "{} {name}: {} passed, {} failed, {:.1} s",
            if ok { "ok  " } else { "FAIL" },
            outcome.passed,
            outcome.failures.len(),
            begun.elapsed().as_secs_f64()
        );
        self.passed += outcome.passed;
        for failure in outcome.failures {
            out!("     {}", failure.replace('\n', "\n     "));
            let short: String = failure.lines().next().unwrap_or("").chars().take(200).collect();
            self.failures.push(format!("{name}: {short}"));
        }
        ok
    }
}

pub(crate) fn verify(options: &Options) -> Result<bool> {
    let begun = Instant::now();
    let mut verify = Verify { passed: 0, failures: Vec::new(), skip: options.skip.clone() };
    let options = Options {
        port_base: options.port_base.checked_add(PORTS_AWAY).context("--port-base is too high")?,
        no_build: true,
        ..options.clone()
    };
    let ready = verify.step("tools", || tools::ensure(For::Everything, true).map(|_| one()))
        && verify.step("build", || {
            binaries()?;
            build(&["e2e-tests", "oracle-tests"])?;
            Ok(one())
        });
    if ready {
        verify.step("tests", || cargo_test(&["--workspace", "--lib", "--bins", "--tests"], &[], &[]));
        with_stack(&mut verify, &options)?;
    }
    out!("\n{:.0} s", begun.elapsed().as_secs_f64());
    if !verify.failures.is_empty() {
        out!("failed:\n  {}", verify.failures.join("\n  "));
    }
    out!("{} passed, {} failed", verify.passed, verify.failures.len());
    Ok(verify.failures.is_empty())
}

fn one() -> Outcome {
    Outcome { passed: 1, failures: Vec::new() }
}

/// The tests that need the whole system, on fresh data.
fn with_stack(verify: &mut Verify, options: &Options) -> Result<()> {
    if let Err(error) = up::down(&Options { wipe: true, ..options.clone() }) {
        verify.step("clean up", || Err(error));
        return Ok(());
    }
    let mut started: Option<Stack> = None;
    verify.step("start the stack", || {
        started = Some(up::bring_up(options, true)?);
        Ok(one())
    });
    let Some(stack) = started else { return Ok(()) };
    let mut vars = environment(&stack.state())?;
    vars.push(("STACK_BIN".into(), std::env::current_exe()?.display().to_string()));
    vars.push(("STACK_WORKSPACE".into(), workspace()?.display().to_string()));
    verify.step("end to end", || {
        cargo_test(&["-p", "e2e-tests", "--tests"], &["--ignored", "--test-threads=1"], &vars)
    });
    verify.step("jdbc", || {
        let text = captured(Command::new(workspace()?.join("tests/jdbc/run")).envs(vars.clone()))?;
        let outcome =
            passed_failed(&text.0).with_context(|| format!("no result line:\n{}", tail(&text.0, 20)))?;
        Ok(outcome)
    });
    verify.step("oracle", || {
        let text = captured(Command::new(release("oracle")?).envs(vars.clone()).args([
            "--catalog",
            "--generate",
            "500",
            // The same every time: what a new seed finds is found by `cargo oracle`, not by somebody's unrelated change.
            "--seed",
            "1",
            "--json",
        ]))?;
        judge_oracle(&text.0)
    });
    verify.step("load with check", || {
        let text = captured(Command::new(release("bench")?).envs(vars.clone()).args([
            "load",
            "--rate",
            "300",
            "--duration",
            "10",
            "--warmup",
            "2",
            "--tenants",
            "20",
            "--accounts",
            "20",
            "--check",
            "--json",
        ]))?;
        judge_load(&text.0)
    });
    verify.step("chaos", || {
        let text = captured(
            Command::new(release("chaos")?)
                .envs(vars.clone())
                .args(["--suite", "lite", "--runs", "1", "--json"]),
        )?;
        judge_chaos(&text.0)
    });
    verify.step("two-phase commit", || {
        // The second proxy finishes what the first one leaves; before, one alone reads from replicas.
        let two = Options { proxies: Some(2), ..options.clone() };
        let mut vars = environment(&up::bring_up(&two, true)?.state())?;
        vars.push(("STACK_BIN".into(), std::env::current_exe()?.display().to_string()));
        let text = captured(Command::new(release("chaos")?).envs(vars).args([
            "--suite",
            "two-phase-lite",
            "--runs",
            "1",
            "--json",
        ]))?;
        judge_chaos(&text.0)
    });
    let well = verify.failures.is_empty();
    verify.step("moves", || {
        // The catalogue has left tables that cannot be moved, so this is a stack of its own.
        ensure!(well, "not run: what failed is left to be looked at");
        up::down(&Options { wipe: true, ..options.clone() })?;
        let two = Options { proxies: Some(2), cores: Some(2), ..options.clone() };
        let mut vars = environment(&up::bring_up(&two, true)?.state())?;
        vars.push(("STACK_BIN".into(), std::env::current_exe()?.display().to_string()));
        // Where the JDBC application is.
        vars.push(("STACK_WORKSPACE".into(), workspace()?.display().to_string()));
        // Another three each time would make somebody's unrelated change fail for what `cargo chaos` is there to find. Before the
        // steps: where a single tenant lives elsewhere than its bucket, zones of buckets do not go to and fro.
        let words = "--suite rebalance --runs 3 --seed 1 --json";
        let text = captured(Command::new(release("chaos")?).envs(vars.clone()).args(words.split(' ')))?;
        let mut outcome = judge_chaos(&text.0)?;
        let words = "compare rebalance --steps move,rollback,isolate,drain,add --buckets 512 --rate 100 --payments 30000 --baseline 2 --json";
        let text = captured(Command::new(release("bench")?).envs(vars).args(words.split(' ')))?;
        let moved = judge_moves(&text.0)?;
        outcome.passed += moved.passed;
        outcome.failures.extend(moved.failures);
        Ok(outcome)
    });
    drop(stack);
    // What failed is left to be looked at.
    let wipe = verify.failures.is_empty();
    verify.step("stop the stack", || up::down(&Options { wipe, ..options.clone() }).map(|_| one()));
    Ok(())
}

/// Runs a program to its end without stdin; its stderr is shown as it comes, its stdout returned.
fn captured(command: &mut Command) -> Result<(String, bool)> {
    let program = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success()))
}

fn cargo_test(selection: &[&str], arguments: &[&str], vars: &[(String, String)]) -> Result<Outcome> {
    let mut command = cargo()?;
    command.args(["test", "--release", "--no-fail-fast"]).args(selection).arg("--").args(arguments);
    let (text, success) = captured(command.envs(vars.iter().cloned()))?;
    Ok(judge_tests(&text, success))
}

fn judge_tests(text: &str, success: bool) -> Outcome {
    let mut outcome = Outcome::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = rest
                .split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(" passed")?.trim().parse::<u64>().ok());
            outcome.passed += count.unwrap_or(0);
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            // What it printed stands between its own heading and the next.
            let heading = format!("---- {name} stdout ----\n");
            let said = text.split_once(&heading).map_or("", |(_, rest)| rest);
            let said = said.split("\n---- ").next().unwrap_or("").split("\nfailures:").next().unwrap_or("");
            outcome
                .failures
                .push(format!("{name}\n{}", said.lines().take(15).collect::<Vec<_>>().join("\n")));
        }
    }
    if !success && outcome.failures.is_empty() {
        outcome.failures.push(format!("cargo test failed without naming a test\n{}", tail(text, 15)));
    }
    outcome
}

/// "12 passed, 1 failed" as the last line that looks like it; the lines that say FAIL are the details.
fn passed_failed(text: &str) -> Option<Outcome> {
    let (passed, failed) = text.lines().rev().find_map(|line| {
        let (passed, failed) = line.trim().split_once(" passed, ")?;
        Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse::<u64>().ok()?))
    })?;
    let mut failures: Vec<String> = text
        .lines()
        .filter(|line| line.to_lowercase().trim_start().starts_with("fail"))
        .map(str::to_owned)
        .collect();
    failures.truncate(usize::try_from(failed).unwrap_or(usize::MAX));
    while (failures.len() as u64) < failed {
        failures.push("a check failed; see above".into());
    }
    Some(Outcome { passed, failures })
}

/// The last JSON object of a program's output.
fn json(text: &str) -> Result<Value> {
    let start = text.rfind("\n{").map_or(0, |at| at + 1);
    serde_json::from_str(text[start..].trim()).with_context(|| format!("no JSON:\n{}", tail(text, 20)))
}

fn judge_load(text: &str) -> Result<Outcome> {
    let value = json(text)?;
    let mut outcome = Outcome::default();
    let mut expect = |what: &str, holds: bool| match holds {
        true => outcome.passed += 1,
        false => outcome.failures.push(format!("{what}\n{value:#}")),
    };
    let number =
        |key: &str| value[key].as_f64().or_else(|| value[key].as_object().map(|kinds| kinds.len() as f64));
    expect("payments went through", number("ok").is_some_and(|ok| ok > 0.0));
    expect("no errors", number("errors") == Some(0.0));
    expect("the invariants hold", value["invariants"] == "ok");
    expect("the rate was held", number("rate_achieved") >= number("rate_requested").map(|rate| rate * 0.9));
    Ok(outcome)
}

/// A refusal is no failure, but most statements must be answered.
fn judge_oracle(text: &str) -> Result<Outcome> {
    let value = json(text)?;
    let number = |key: &str| value[key].as_u64().with_context(|| format!("no {key}: {value:#}"));
    let (statements, equal, different) = (number("statements")?, number("equal")?, number("different")?);
    let mut outcome = Outcome { passed: equal, failures: Vec::new() };
    if different > 0 {
        outcome
            .failures
            .push(format!("{different} statements differ, first {:#}", value["first_difference"]));
    }
    if equal * 10 < statements * 9 {
        outcome.failures.push(format!("only {equal} of {statements} statements are answered"));
    }
    Ok(outcome)
}

fn judge_chaos(text: &str) -> Result<Outcome> {
    let value = json(text)?;
    let violations = value["violations"].as_array().context("no violations in the answer")?;
    let mut outcome = Outcome { passed: value["clean"].as_u64().unwrap_or(0), failures: Vec::new() };
    outcome.failures.extend(violations.iter().map(Value::to_string));
    if outcome.passed != value["runs"].as_u64().unwrap_or(u64::MAX) && violations.is_empty() {
        bail!("not every run was clean: {value:#}");
    }
    Ok(outcome)
}

/// Every step under payments. How long the pauses are depends on the machine, and is `cargo compare`'s to judge; but nobody
/// waits for seconds.
fn judge_moves(text: &str) -> Result<Outcome> {
    let value = json(text)?;
    let mut outcome = Outcome::default();
    let mut expect = |what: &str, holds: bool| match holds {
        true => outcome.passed += 1,
        false => outcome.failures.push(format!("{what}\n{value:#}")),
    };
    for key in ["errors", "lost", "doubled", "duplicate_rows", "missing_rows"] {
        expect(&format!("no {key} while buckets moved"), value[key] == 0);
    }
    expect("the invariants hold", value["invariants"] == true);
    let pause = value["pause_p99_ms_seen"].as_f64().zip(value["pause_p99_ms"].as_f64());
    expect("no write waits for seconds", pause.is_some_and(|(_, ms)| ms <= PAUSE_LIMIT_MS));
    let jdbc = &value["jdbc"];
    expect("the JDBC application went on", jdbc["ok"].as_u64() > Some(0) && jdbc["wrong"] == 0);
    let figure = |key: &str| value[key].as_f64();
    expect("the copy is no slower by orders", figure("copy_ratio").is_some_and(|ratio| ratio >= COPY_LEAST));
    expect("payments were made while rows were copied", figure("foreground_p99_ratio").is_some());
    let followed = figure("map_change_max_ms");
    expect("every proxy served by every new map", followed.is_some_and(|ms| ms <= MAP_LIMIT_MS));
    let steps = value["steps"].as_array().context("no steps in the answer")?;
    let went_on = ["payments", "writes", "counts", "writes_to_what_moves"];
    let counted = |step: &Value| went_on.iter().all(|key| step[key].as_u64() > Some(0));
    expect("payments, writes and counts went on", steps.iter().all(counted));
    for (name, phase) in STEPS {
        let step = steps.iter().find(|step| step["step"] == name);
        let moves = step.and_then(|step| step["moves"].as_array()).filter(|moves| !moves.is_empty());
        let over = moves.is_some_and(|moves| moves.iter().all(|one| one["phase"] == phase));
        expect(&format!("{name}: every move is {phase}"), over);
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_counted_and_named() {
        let text = "test a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n---- a::c stdout ----\nleft is not right\n\n\nfailures:\n    a::c\n\ntest result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured\n";
        let outcome = judge_tests(text, false);
        assert_eq!(outcome.passed, 7);
        assert_eq!(outcome.failures.len(), 1);
        assert!(outcome.failures[0].starts_with("a::c\nleft is not right"));
        assert_eq!(judge_tests("error: could not compile", false).failures.len(), 1);
    }

    #[test]
    fn a_load_that_lost_money_is_not_a_pass() {
        let good =
            r#"{"ok": 10, "errors": 0, "rate_requested": 300.0, "rate_achieved": 299.0, "invariants": "ok"}"#;
        assert_eq!(judge_load(good).unwrap(), Outcome { passed: 4, failures: vec![] });
        for bad in [
            good.replace("\"ok\"}", "[\"debits\"]}"),
            good.replace("\"errors\": 0", "\"errors\": {\"timeout\": 1}"),
            good.replace("299.0", "100.0"),
            good.replace("\"ok\": 10", "\"ok\": 0"),
        ] {
            assert_eq!(judge_load(&bad).unwrap().failures.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_difference_from_one_postgresql_is_not_a_pass() {
        let good =
            r#"{"statements": 100, "equal": 95, "refused": 5, "different": 0, "first_difference": null}"#;
        assert_eq!(judge_oracle(good).unwrap(), Outcome { passed: 95, failures: vec![] });
        let failures = |from: &str, to: &str| judge_oracle(&good.replace(from, to)).unwrap().failures.len();
        assert_eq!(failures("\"different\": 0", "\"different\": 1"), 1);
        assert_eq!(failures("95", "10"), 1);
        assert!(judge_oracle(r#"{"equal": 5}"#).is_err());
    }

    #[test]
    fn chaos_without_violations_is_clean_only_when_every_run_was() {
        assert_eq!(judge_chaos(r#"{"runs": 2, "clean": 2, "violations": []}"#).unwrap().passed, 2);
        assert!(judge_chaos(r#"{"runs": 2, "clean": 1, "violations": []}"#).is_err());
        assert_eq!(
            judge_chaos(r#"{"runs": 1, "clean": 0, "violations": ["lost"]}"#).unwrap().failures.len(),
            1
        );
    }

    #[test]
    fn a_move_that_lost_a_row_is_not_a_pass() {
        let steps = STEPS.map(|(name, phase)| {
            format!(
                r#"{{"step": "{name}", "payments": 1, "writes": 2, "counts": 3, "writes_to_what_moves": 4, "moves": [{{"phase": "{phase}"}}]}}"#
            )
        });
        let good = format!(
            r#"{{"errors": 0, "lost": 0, "doubled": 0, "duplicate_rows": 0, "missing_rows": 0, "invariants": true,
                "pause_p99_ms": 300.5, "pause_p99_ms_seen": 300.5, "jdbc": {{"ok": 5, "wrong": 0}}, "copy_ratio": 0.2,
                "foreground_p99_ratio": 2.5, "map_change_max_ms": 40.0, "steps": [{}]}}"#,
            steps.join(", ")
        );
        assert_eq!(judge_moves(&good).unwrap(), Outcome { passed: 17, failures: vec![] });
        for (from, to) in [
            ("\"lost\": 0", "\"lost\": 1"),
            ("\"missing_rows\": 0", "\"missing_rows\": 2"),
            ("\"invariants\": true", "\"invariants\": null"),
            ("\"counts\": 3", "\"counts\": 0"),
            ("\"writes_to_what_moves\": 4", "\"writes_to_what_moves\": 0"),
            ("\"pause_p99_ms\": 300.5", "\"pause_p99_ms\": 2001"),
            ("\"pause_p99_ms_seen\": 300.5", "\"pause_p99_ms_seen\": null"),
            ("\"ok\": 5", "\"ok\": 0"),
            ("\"wrong\": 0", "\"wrong\": 1"),
            ("{\"ok\": 5, \"wrong\": 0}", "null"),
            ("\"copy_ratio\": 0.2", "\"copy_ratio\": 0.01"),
            ("\"foreground_p99_ratio\": 2.5", "\"foreground_p99_ratio\": null"),
            ("\"map_change_max_ms\": 40.0", "\"map_change_max_ms\": 2001"),
            ("rolled_back", "window"),
            ("isolate a tenant", "isolate"),
        ] {
            assert_eq!(judge_moves(&good.replace(from, to)).unwrap().failures.len(), 1, "{to}");
        }
        let unfinished =
            good.replace("[{\"phase\": \"done\"}]", "[{\"phase\": \"done\"}, {\"phase\": \"window\"}]");
        assert_eq!(judge_moves(&unfinished).unwrap().failures.len(), 3);
    }

    #[test]
    fn the_line_with_counts_is_found() {
        let outcome = passed_failed("ok x\nFAIL y: no\n3 passed, 1 failed\n").unwrap();
        assert_eq!(outcome, Outcome { passed: 3, failures: vec!["FAIL y: no".into()] });
        assert!(passed_failed("nothing").is_none());
    }
}
