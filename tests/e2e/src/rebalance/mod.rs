//! Moves of buckets under payments, with every component struck in every phase.
//!
//! `cell` (PURE: what is struck, how and where, and the matrix), `field` (the servers, and the blows) over `wire` (connections
//! that can be cut) and `shardctl` (the mover, which SHARDCTL_FAULT_DIR stops at a place), `watch` (counts that must never be
//! wrong meanwhile), `run` (one move from plan to end), `asleep` with `sleeper` (a proxy that wakes when all is over), `judge`
//! (what must hold then).
//!
//! Runs follow each other on one stack: a zone of buckets goes from shard 2 to 3, or back, wherever the run before left it.

mod asleep;
mod cell;
mod field;
mod judge;
mod run;
mod shardctl;
mod sleeper;
mod watch;
mod wire;

use crate::load;
use crate::stack::Stack;
use anyhow::{Result, bail};
use asleep::Way;
pub use cell::Cell;
use run::Act;
use serde_json::{Value, json};

pub const RUNS: u64 = 40;
/// Payments a second, beside which a move still has the machine for most of its time.
pub const RATE: u32 = 40;
/// The two cells of the proxy that sleeps, which every run of the whole suite begins with.
pub const ASLEEP: &str = "asleep";
/// A cell whose place was not reached is tried so often.
const TRIES: u64 = 3;

/// `rebalance`, or `rebalance:WORD/WORD`: components, phases, places and blows by their names.
pub fn words(suite: &str) -> Option<Vec<String>> {
    match suite.strip_prefix("rebalance")? {
        "" => Some(Vec::new()),
        rest => Some(rest.strip_prefix(':')?.split('/').map(str::to_owned).collect()),
    }
}

#[derive(Default)]
pub struct Verdict {
    /// Runs that were asked for.
    pub wanted: u64,
    pub counted: u64,
    pub clean: u64,
    /// Runs whose phase was not hit.
    pub missed: u64,
    /// (run, what is wrong)
    pub violations: Vec<(String, String)>,
    pub results: Vec<(Cell, bool)>,
    pub told: Vec<Value>,
    pub acknowledged: u64,
    pub retries: u64,
    pub counts: u64,
}

impl Verdict {
    pub fn matrix(&self) -> String {
        cell::shown(&self.results)
    }

    pub fn json(&self, seed: u64) -> Value {
        let violations: Vec<_> =
            self.violations.iter().map(|(run, what)| json!({"run": run, "what": what})).collect();
        json!({
            "runs": self.wanted, "clean": self.clean, "counted": self.counted, "missed": self.missed, "violations": violations,
            "seed": seed, "acknowledged": self.acknowledged, "retries": self.retries, "counts": self.counts,
            "matrix": cell::json(&self.results), "cells": self.told,
        })
    }
}

/// # Errors
/// When a run itself could not be made; servers may then be down.
pub async fn run(stack: &Stack, words: &[String], runs: u64, seed: u64, rate: u32) -> Result<Verdict> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let cells = if words == [ASLEEP] { Vec::new() } else { cell::draw(runs, seed, &words) };
    let mut acts: Vec<Act> = cells.iter().map(Act::Strike).collect();
    if words.is_empty() || words == [ASLEEP] {
        acts.splice(0..0, [Way::There, Way::Back].map(Act::Asleep));
    }
    if acts.is_empty() || !cells.is_empty() && (cells.len() as u64) < runs {
        bail!("no component, phase, place or blow is called {}", words.join(" and "));
    }
    let tenants = load::seed(stack).await?;
    let field = field::Field::open(stack, &tenants).await?;
    let mut verdict = Verdict { wanted: acts.len() as u64, ..Verdict::default() };
    let mut failed = None;
    for (number, act) in acts.iter().enumerate() {
        if let Err(error) =
            tried(stack, &field, &tenants, *act, seed + number as u64, rate, &mut verdict).await
        {
            failed = Some(error.context(act.name()));
            break;
        }
    }
    // A run that broke off may have left proxy1 dead.
    let closed = field.close(stack).await;
    match failed {
        Some(error) => Err(error),
        None => closed.map(|()| verdict),
    }
}

async fn tried(
    stack: &Stack,
    field: &field::Field,
    tenants: &load::Seed,
    act: Act<'_>,
    seed: u64,
    rate: u32,
    verdict: &mut Verdict,
) -> Result<()> {
    for _ in 0..TRIES {
        let found = run::one(stack, field, tenants, act, seed, rate).await?;
        let clean = found.violations.is_empty();
        eprintln!("  {}{}", if found.hit { "" } else { "NOT HIT, does not count: " }, found.told);
        for what in &found.violations {
            eprintln!("  VIOLATION {}: {what}", act.name());
            verdict.violations.push((format!("{seed} {}", act.name()), what.clone()));
        }
        verdict.acknowledged += found.acknowledged;
        verdict.retries += found.retries;
        verdict.counts += found.counts.right;
        verdict.told.push(found.told);
        if found.hit {
            verdict.counted += 1;
            verdict.clean += u64::from(clean);
            if let Act::Strike(cell) = act {
                verdict.results.push((*cell, clean));
            }
            return Ok(());
        }
        verdict.missed += 1;
    }
    Ok(())
}
