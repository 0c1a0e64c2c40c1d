//! The kill matrix of the commit over several shards: every step of the protocol, with every component killed at it.
//!
//! `bank` is the workload with its log of what clients were told; `cell` stops one transaction at a step (the proxy's
//! SHARD_PROXY_FAULT_DIR), kills a component there and waits for recovery; `judge` reads the shards. Between its own
//! death and its restart proxy1 is replaced by nobody: what it left is finished by the second proxy, which is never
//! restarted.

mod bank;
mod cell;
mod judge;

use crate::stack::Stack;
use anyhow::{Result, bail};
use bank::Bank;
pub use cell::Cell;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::Value;

/// The whole matrix; `two-phase-lite` for its most telling cells; `two-phase:STEP/VICTIM` for one of it.
pub fn cells(suite: &str) -> Option<Vec<Cell>> {
    match suite.strip_prefix("two-phase")? {
        "" => Some(Cell::all()),
        "-lite" => Some(Cell::lite()),
        name => {
            let wanted = name.strip_prefix(':')?;
            Cell::all().into_iter().find(|cell| cell.name() == wanted).map(|cell| vec![cell])
        }
    }
}

/// What the runs of all cells found.
#[derive(Default)]
pub struct Verdict {
    pub runs: u64,
    pub clean: u64,
    pub transfers: usize,
    /// (name of the cell, what is wrong)
    pub violations: Vec<(String, String)>,
    pub effects: Vec<Value>,
}

/// `passes` times through the cells, in an order of the seed.
///
/// # Errors
/// When a cell itself could not be made; servers may then be down.
pub async fn run(stack: &mut Stack, cells: &[Cell], passes: u64, seed: u64) -> Result<Verdict> {
    if stack.proxies()?.len() < 2 {
        bail!(
            "a second proxy has to finish what the first one leaves: `cargo stack up --detach --proxies 2`"
        );
    }
    if stack.shards() < 4 {
        bail!("three shards take part and one looks on: four are needed");
    }
    let survivor = stack.pid("proxy2").await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut bank = Bank::open(stack).await?;
    cell::restart_proxy(stack, true).await?;
    let mut verdict = Verdict::default();
    for _ in 0..passes {
        let mut order = cells.to_vec();
        order.shuffle(&mut random);
        for cell in order {
            let (effect, violations) = cell.run(stack, &mut bank, &mut random).await?;
            eprintln!("  {effect}");
            violations.iter().for_each(|what| eprintln!("  VIOLATION {}: {what}", cell.name()));
            verdict.runs += 1;
            verdict.clean += u64::from(violations.is_empty());
            verdict.transfers += effect["transfers"].as_u64().unwrap_or(0) as usize;
            verdict.violations.extend(violations.into_iter().map(|what| (cell.name(), what)));
            verdict.effects.push(effect);
        }
    }
    if stack.pid("proxy2").await? != survivor {
        verdict.violations.push(("all".into(), "the second proxy was restarted".into()));
    }
    cell::restart_proxy(stack, false).await?;
    bank.close(stack).await?;
    Ok(verdict)
}
