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

/// Rows compared one by one; more than this is no coincidence of a busy system.
pub const ROWS_MAX: usize = 200_000;
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
        .map(|(column, _)| format!("{}::text", super::scope::ident(column)))
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

/// Whether what was read from the verify slot is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Take,
    /// It stays, for who comes after an attempt that fails.
    Peek,
}

/// The rows that the verify slot saw changing since it was last taken from. `most` bounds what is kept.
pub async fn changes(
    giver: &Db,
    job: &Job,
    way: Way,
    tables: &[Table],
    read: Read,
    most: usize,
) -> anyhow::Result<Changed> {
    let keys = tables
        .iter()
        .map(|table| {
            (table.full_name(), table.primary_key.iter().map(|(column, _)| column.clone()).collect())
        })
        .collect();
    let mut collector = Collector::new(keys);
    let verb = if read == Read::Take { "get" } else { "peek" };
    let sql = format!(
        "SELECT data FROM pg_logical_slot_{verb}_binary_changes($1, NULL, $2, 'proto_version', '1', 'publication_names', $3)"
    );
    // Messages of one call. A peek begins at the same place each time, so it is one call for all.
    let part = if read == Read::Take { 20_000 } else { i32::try_from(most.saturating_mul(8))? };
    loop {
        let rows = giver
            .rows(&sql, &[&job.verify_slot(way), &part, &job.publication(way)])
            .await
            .context("reading what changed")?;
        for row in &rows {
            collector.message(row.try_get(0)?)?;
        }
        let full = rows.len() >= usize::try_from(part)?;
        anyhow::ensure!(
            collector.rows() <= most && !(full && read == Read::Peek),
            "more than {most} rows changed since both sides were compared"
        );
        if !full {
            return Ok(collector.changed);
        }
    }
}

pub fn add(suspects: &mut Suspects, more: Changed) {
    for (table, keys) in more {
        suspects.entry(table).or_default().extend(keys);
    }
}

/// One round: what changed and what was suspect is compared once both sides have the same mark. Returns the rows that
/// are still unequal, and the rows that were unequal before and have not changed since: those are real differences.
pub async fn round(
    giver: &Db,
    taker: &Db,
    job: &Job,
    way: Way,
    tables: &[Table],
    buckets: u16,
    suspects: &Suspects,
) -> anyhow::Result<(Suspects, Suspects)> {
    let changed = changes(giver, job, way, tables, Read::Take, ROWS_MAX).await?;
    let mut all = suspects.clone();
    add(&mut all, changed);
    let n = copy::mark(giver, job, way).await?;
    copy::caught_up(taker, job, way, n, Duration::from_secs(60)).await?;
    let unequal = compare(giver, taker, job, tables, buckets, &all).await?;
    if unequal.is_empty() {
        return Ok((unequal, Suspects::new()));
    }
    // Unequal although the target has applied all up to the mark: either the row changed after it, which the slot knows
    // once it is flushed (the commit of another mark sees to that), or it is different.
    copy::mark(giver, job, way).await?;
    let since = changes(giver, job, way, tables, Read::Take, ROWS_MAX).await?;
    let still = |(table, keys): (&String, &BTreeSet<Key>)| {
        let moving = since.get(table);
        let left: BTreeSet<Key> =
            keys.iter().filter(|key| moving.is_none_or(|moving| !moving.contains(*key))).cloned().collect();
        (!left.is_empty()).then(|| (table.clone(), left))
    };
    let real: Suspects = unequal.iter().filter_map(still).collect();
    let mut next = unequal;
    add(&mut next, since);
    Ok((next, real))
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
