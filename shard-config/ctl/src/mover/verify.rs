//! Are both shards equal? Digests of chunks first (`digest`), then row by row what may have changed since (H13).
//!
//! A digest of a table that changes proves nothing, so a second slot, made before the digests, collects every row that
//! changes from then on. A row that differs when both sides have seen the same marks, and that has not changed since, is a
//! real difference; one that changed is looked at again. What is left when writes are fenced is small enough to be
//! compared inside the pause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;

use super::changes::{Changed, Collector, Key};
use super::copy;
use super::job::{Job, Way};
use super::tables::Table;
use crate::direct::Db;

/// Changed rows that are read in one go: what is left in the slot is for the next round.
pub const ROWS_MOST: usize = 200_000;
/// A slot reads all WAL from the oldest transaction on that was open when it was last read.
const TAKING: Duration = Duration::from_secs(300);
/// Rows of one statement.
const BATCH: usize = 2_000;

/// Rows whose equality is not proved yet.
pub type Suspects = Changed;

pub fn count(suspects: &Suspects) -> usize {
    suspects.values().map(BTreeSet::len).sum()
}

/// A digest of each row, by primary key.
pub(super) type Rows = BTreeMap<Key, i64>;

pub(super) fn key_array(table: &Table) -> String {
    let columns: Vec<_> = table
        .primary_key
        .iter()
        // By the type's output function, as the slot writes them: a cast trims char(n), and knows other words for bool.
        .map(|(column, _)| format!("format('%s', {})", super::scope::ident(column)))
        .collect();
    format!("ARRAY[{}]::text[]", columns.join(", "))
}

/// The rows of `keys` as one side has them; those that it has not are missing from the answer.
async fn rows_of_keys(
    db: &Db,
    table: &Table,
    job: &Job,
    buckets: u16,
    keys: &[&Key],
) -> anyhow::Result<Rows> {
    let columns: Vec<Vec<&str>> = (0..table.primary_key.len())
        .map(|at| keys.iter().map(|key| key.get(at).map_or("", String::as_str)).collect())
        .collect();
    let names = (0..columns.len()).map(|n| format!("k{n}")).collect::<Vec<_>>().join(", ");
    let arrays = (1..=columns.len()).map(|n| format!("${n}::text[]")).collect::<Vec<_>>().join(", ");
    let join: Vec<_> = table
        .primary_key
        .iter()
        .enumerate()
        .map(|(n, (column, kind))| format!("t.{} = k.k{n}::{kind}", super::scope::ident(column)))
        .collect();
    // Answered under the key as it was asked for: texts of one value may differ (`char(n)` pads or not).
    let sql = format!(
        "SELECT ARRAY[{}]::text[], hashtextextended({}, 0) FROM unnest({arrays}) AS k ({names}) JOIN {} t ON {} WHERE {}",
        names.replace("k", "k.k"),
        table.row_text("t."),
        table.sql(),
        join.join(" AND "),
        table.predicate("t.", &job.scope, buckets)
    );
    let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        columns.iter().map(|column| column as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let rows = db.rows(&sql, &params).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Compares the rows of `suspects` on both sides and returns those that differ.
pub async fn compare(
    giver: &Db,
    taker: &Db,
    job: &Job,
    tables: &[Table],
    buckets: u16,
    suspects: &Suspects,
) -> anyhow::Result<Suspects> {
    let mut unequal = Suspects::new();
    for table in tables {
        let Some(keys) = suspects.get(&table.full_name()) else { continue };
        let keys: Vec<&Key> = keys.iter().collect();
        let mut differing = BTreeSet::new();
        for batch in keys.chunks(BATCH) {
            let (ours, theirs) = tokio::try_join!(
                rows_of_keys(giver, table, job, buckets, batch),
                rows_of_keys(taker, table, job, buckets, batch)
            )?;
            let differs = |key: &&&Key| ours.get(**key) != theirs.get(**key);
            differing.extend(batch.iter().filter(differs).map(|key| (*key).clone()));
        }
        if !differing.is_empty() {
            unequal.insert(table.full_name(), differing);
        }
    }
    Ok(unequal)
}

/// What an error leaves behind when the slot had been read: nobody will hear again of what it said.
#[derive(Debug)]
pub struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reading what changed")
    }
}

fn read_sql(verb: &str) -> String {
    format!(
        "SELECT data FROM pg_logical_slot_{verb}_binary_changes($1, NULL, $2, 'proto_version', '1', 'publication_names', $3)"
    )
}

fn collector(tables: &[Table]) -> Collector {
    let key = |table: &Table| table.primary_key.iter().map(|(column, _)| column.clone()).collect();
    Collector::new(tables.iter().map(|table| (table.full_name(), key(table))).collect())
}

/// The rows that the verify slot saw changing since it was last taken from. They stay in it, for who comes after an attempt
/// that fails; so it is one call for all of them, and more than `most` are an error.
pub async fn peek(giver: &Db, job: &Job, way: Way, tables: &[Table], most: usize) -> anyhow::Result<Changed> {
    let mut collector = collector(tables);
    let part = i32::try_from(most.saturating_mul(8))?;
    let rows = giver
        .rows(&read_sql("peek"), &[&job.verify_slot(way), &part, &job.publication(way)])
        .await
        .context("reading what changed")?;
    for row in &rows {
        collector.message(row.try_get(0)?)?;
    }
    anyhow::ensure!(
        collector.rows() <= most && rows.len() < usize::try_from(part)?,
        "more than {most} rows changed since both sides were compared"
    );
    Ok(collector.changed)
}

/// Takes them out of the slot, to `changed`. False when it may have more. An error with [`Lost`] has taken some, or not.
async fn take(
    giver: &Db,
    job: &Job,
    way: Way,
    tables: &[Table],
    changed: &mut Changed,
) -> anyhow::Result<bool> {
    /// Messages of one call.
    const PART: i32 = 20_000;
    let mut collector = collector(tables);
    let sql = read_sql("get");
    let all = loop {
        let rows = giver
            .rows_within(TAKING, &sql, &[&job.verify_slot(way), &PART, &job.publication(way)])
            .await
            .context(Lost)?;
        for row in &rows {
            collector.message(row.try_get(0)?).context(Lost)?;
        }
        let full = rows.len() >= usize::try_from(PART)?;
        if !full || collector.rows() >= ROWS_MOST {
            break !full;
        }
    };
    add(changed, collector.changed);
    Ok(all)
}

pub fn add(suspects: &mut Suspects, more: Changed) {
    for (table, keys) in more {
        suspects.entry(table).or_default().extend(keys);
    }
}

/// How a round ended.
#[derive(Debug, Default)]
pub struct Round {
    /// Rows that were unequal before and have not changed since: those are real differences, if another round finds them, too.
    pub real: Suspects,
    /// The slot has more to say.
    pub more: bool,
}

/// One round: what changed and what was suspect is compared once both sides have the same mark, and what is equal is no longer
/// suspect. After an error everything that was read is; but for one with [`Lost`].
pub async fn round(
    giver: &Db,
    taker: &Db,
    job: &Job,
    way: Way,
    tables: &[Table],
    buckets: u16,
    suspects: &mut Suspects,
) -> anyhow::Result<Round> {
    copy::near(giver, &job.verify_slot(way)).await?;
    let all = take(giver, job, way, tables, suspects).await?;
    let n = copy::mark(giver, job, way).await?;
    copy::caught_up(taker, job, way, n, Duration::from_secs(60)).await?;
    let unequal = compare(giver, taker, job, tables, buckets, suspects).await?;
    *suspects = unequal.clone();
    if unequal.is_empty() || !all {
        // Who is unequal may have changed already, as the slot would say later.
        return Ok(Round { real: Suspects::new(), more: !all });
    }
    // Unequal although the target has applied all up to the mark: either the row changed after it, which the slot knows
    // once it is flushed (the commit of another mark sees to that), or it is different.
    copy::mark(giver, job, way).await?;
    let mut since = Changed::new();
    let all = take(giver, job, way, tables, &mut since).await;
    let still = |(table, keys): (&String, &BTreeSet<Key>)| {
        let moving = since.get(table);
        let left: BTreeSet<Key> =
            keys.iter().filter(|key| moving.is_none_or(|moving| !moving.contains(*key))).cloned().collect();
        (!left.is_empty()).then(|| (table.clone(), left))
    };
    let all = all?;
    let real = if all { unequal.iter().filter_map(still).collect() } else { Suspects::new() };
    add(suspects, since);
    Ok(Round { real, more: !all })
}

/// Rows that are in both.
pub fn common(one: &Suspects, other: &Suspects) -> Suspects {
    let both = |(table, keys): (&String, &BTreeSet<Key>)| {
        let keys: BTreeSet<Key> = keys.intersection(other.get(table)?).cloned().collect();
        (!keys.is_empty()).then(|| (table.clone(), keys))
    };
    one.iter().filter_map(both).collect()
}

/// For people: the first few keys of each table.
pub fn show(suspects: &Suspects) -> String {
    let tables: Vec<_> = suspects
        .iter()
        .map(|(table, keys)| {
            let first: Vec<_> = keys.iter().take(3).map(|key| format!("({})", key.join(", "))).collect();
            let more = if keys.len() > 3 { format!(" and {} more", keys.len() - 3) } else { String::new() };
            format!("{table}: {}{more}", first.join(", "))
        })
        .collect();
    tables.join("; ")
}
