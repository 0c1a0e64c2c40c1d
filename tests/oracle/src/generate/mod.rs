//! Random statements over the suite's schema, and the smallest one that still differs.
//!
//! `query` is what a statement is made of, how it is written and how it becomes smaller; `grammar` makes them, with `terms`
//! (expressions) and `writes`.

mod grammar;
mod query;
mod terms;
mod writes;

use anyhow::Result;
use std::sync::Mutex;

use crate::answer::{Rows, Verdict};
use crate::catalog::{Case, Statement, What};
use crate::random::Random;
use crate::run::{Record, several_shards};
use crate::sides::{MODES, Mode, Sides};
use grammar::Grammar;
pub(crate) use query::Generated;

/// Smaller statements that are tried for one that differs.
const MOST_TRIES: usize = 600;

/// No random statement is worth more; one that takes longer on either side is an error that is not compared.
const SLOW: &str = "SET statement_timeout = '3s'";

/// Runs `count` statements of this seed. Writes of one worker at a time: they are rolled back, but they lock rows.
pub(crate) fn run(sides: &mut Sides, seed: u64, count: usize, writing: &Mutex<()>) -> Result<Vec<Record>> {
    let mut random = Random::new(seed);
    let mut records = Vec::new();
    sides.both(SLOW)?;
    for number in 0..count {
        if sides.lost {
            sides.both(SLOW)?;
            sides.lost = false;
        }
        let mode = MODES[random.below(MODES.len())];
        let generated = Grammar::new(&mut random).statement();
        let (mut verdict, failed, slow) = judge(sides, &generated, mode, writing)?;
        let mut smallest = generated;
        if matches!(verdict, Verdict::Different(_)) {
            (smallest, verdict) = shrink(sides, smallest, verdict, mode, writing)?;
        }
        let sql = smallest.sql();
        let several = several_shards(sides, &sql)?;
        let mut record = Record::of(format!("seed {seed}"), number, sql);
        record.several_shards = several;
        record.failed = failed;
        record.skipped = slow;
        record.modes.push((mode, verdict));
        records.push(record);
    }
    Ok(records)
}

fn judge(
    sides: &mut Sides,
    generated: &Generated,
    mode: Mode,
    writing: &Mutex<()>,
) -> Result<(Verdict, bool, bool)> {
    let sql = generated.sql();
    let rows = if crate::text::is_ordered(&sql) { Rows::InOrder } else { Rows::AnyOrder };
    let statement = Statement { sql, rows, copy: None, simple_only: false, text_only: false, deviates: None };
    let Some(table) = generated.writes() else {
        let outcome = sides.ask(&statement, mode)?;
        let verdict = if outcome.slow { Verdict::Equal } else { outcome.verdict };
        return Ok((verdict, outcome.failed, outcome.slow));
    };
    let _alone = writing.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
    sides.both("BEGIN")?;
    let outcome = sides.ask(&statement, mode)?;
    let mut verdict = outcome.verdict;
    if verdict == Verdict::Equal && !outcome.failed {
        verdict = sides.tables_are_equal(&[table.to_owned()])?;
    }
    sides.both("ROLLBACK")?;
    if outcome.slow {
        verdict = Verdict::Equal;
    }
    Ok((verdict, outcome.failed, outcome.slow))
}

/// Leaves out what can be left out while it still differs.
fn shrink(
    sides: &mut Sides,
    from: Generated,
    verdict: Verdict,
    mode: Mode,
    writing: &Mutex<()>,
) -> Result<(Generated, Verdict)> {
    let (mut smallest, mut verdict, mut tries) = (from, verdict, 0);
    'again: loop {
        for smaller in smallest.smaller() {
            tries += 1;
            if tries > MOST_TRIES {
                return Ok((smallest, verdict));
            }
            let (judged, ..) = judge(sides, &smaller, mode, writing)?;
            if matches!(judged, Verdict::Different(_)) {
                (smallest, verdict) = (smaller, judged);
                continue 'again;
            }
        }
        return Ok((smallest, verdict));
    }
}

/// As a case of the catalogue, for those who list statements without running them.
pub(crate) fn cases(seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let statement = |sql: String| Statement {
        rows: Rows::AnyOrder,
        copy: None,
        simple_only: false,
        text_only: false,
        deviates: None,
        sql,
    };
    (0..count)
        .map(|line| {
            random.below(MODES.len());
            let sql = Grammar::new(&mut random).statement().sql();
            Case { theme: format!("seed {seed}"), line, what: What::Read(statement(sql)) }
        })
        .collect()
}
