//! Two clients of the proxy that never pause: one counts rows that nobody changes over all shards, one writes single
//! rows of the moving buckets and checks what it wrote before.
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

/// Rows of the probe in the moving buckets.
const ROWS: usize = 24;
const BETWEEN_WRITES: Duration = Duration::from_millis(2);
/// A count rests so many times as long as it took: the counts are of some 100,000 rows.
const REST: u32 = 2;
/// Error texts that are kept.
const TEXTS: usize = 5;
const TABLE: &str = "rebalance_probe";
/// As documented: the bucket of a tenant, in plain SQL.
const BUCKET: &str = "(uuid_hash_extended(u, 8816678312871386365) & 4095)";

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub counts: u64,
    pub duplicate_rows: u64,
    pub missing_rows: u64,
    pub writes: u64,
    /// Writes that were acknowledged and are not there, or are there twice.
    pub lost: u64,
    pub doubled: u64,
    pub errors: u64,
    pub texts: BTreeSet<String>,
    /// The longest that one write took.
    pub longest_write_ms: f64,
}

pub struct Watch {
    stop: Arc<AtomicBool>,
    counter: JoinHandle<Result<Counts>>,
    writer: JoinHandle<Result<Counts>>,
}

impl Watch {
    pub async fn start(stack: &Stack, scopes: &[(u16, u16)]) -> Result<Watch> {
        let url = url(stack)?;
        let (counting, writing) = (connect(&url).await?, connect(&url).await?);
        let rows = fill(&writing, scopes).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let counter = tokio::spawn(count(counting, stop.clone()));
        let writer = tokio::spawn(write(writing, rows, stop.clone()));
        Ok(Watch { stop, counter, writer })
    }

    pub async fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let (counted, mut all) = (self.counter.await??, self.writer.await??);
        all.counts = counted.counts;
        all.duplicate_rows = counted.duplicate_rows;
        all.missing_rows = counted.missing_rows;
        all.errors += counted.errors;
        all.texts.extend(counted.texts);
        Ok(all)
    }
}

impl Counts {
    fn error(&mut self, error: &tokio_postgres::Error) {
        self.errors += 1;
        if self.texts.len() < TEXTS {
            let text = error
                .as_db_error()
                .map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message()));
            self.texts.insert(text);
        }
    }
}

/// The table that only this tool uses. Made while nothing moves: then it could not be.
pub async fn prepare(stack: &Stack) -> Result<()> {
    let client = connect(&url(stack)?).await?;
    let create = format!("CREATE TABLE IF NOT EXISTS {TABLE} (tenant_id uuid PRIMARY KEY, n int NOT NULL)");
    client.batch_execute(&create).await.context("cannot make the probe's table")
}

/// Its rows are of tenants that do not exist, which the check of the ledger would say.
pub async fn clear(stack: &Stack) -> Result<()> {
    let client = connect(&url(stack)?).await?;
    client.batch_execute(&format!("DELETE FROM {TABLE}")).await.context("cannot empty the probe's table")
}

fn url(stack: &Stack) -> Result<String> {
    let proxy = stack.proxies.last().context("no proxy")?;
    Ok(format!("postgresql://app:app@{proxy}/payments"))
}

/// Fresh rows of the wanted buckets.
async fn fill(client: &Client, scopes: &[(u16, u16)]) -> Result<Vec<Uuid>> {
    let wanted = if scopes.is_empty() {
        "true".to_owned()
    } else {
        let ranges: Vec<String> =
            scopes.iter().map(|(a, b)| format!("{BUCKET} BETWEEN {a} AND {b}")).collect();
        ranges.join(" OR ")
    };
    let sql = format!(
        "SELECT u FROM (SELECT gen_random_uuid() AS u FROM generate_series(1, 20000)) g WHERE {wanted} LIMIT {ROWS}"
    );
    let rows: Vec<Uuid> = client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
    for tenant in &rows {
        client.execute(&format!("INSERT INTO {TABLE} VALUES ($1, 0)"), &[tenant]).await?;
    }
    Ok(rows)
}

/// Tenants, accounts and the probe's rows: nobody adds or removes one meanwhile.
async fn count(client: Client, stop: Arc<AtomicBool>) -> Result<Counts> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM tenants), (SELECT count(*) FROM accounts), (SELECT count(*) FROM {TABLE}), \
         (SELECT count(DISTINCT account_id) FROM accounts)"
    );
    let all =
        |row: &tokio_postgres::Row| -> Result<Vec<i64>> { (0..4).map(|n| Ok(row.try_get(n)?)).collect() };
    let expected = all(&client.query_one(&sql, &[]).await?)?;
    let mut seen = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = client.query_one(&sql, &[]).await;
        let took = begun.elapsed();
        match answer {
            Ok(row) => {
                seen.counts += 1;
                for (is, should) in all(&row)?.iter().zip(&expected) {
                    seen.duplicate_rows += (is - should).max(0).unsigned_abs();
                    seen.missing_rows += (should - is).max(0).unsigned_abs();
                }
            }
            Err(error) if error.is_closed() => return Err(error).context("the counting client's connection"),
            Err(error) => seen.error(&error),
        }
        // It looks on: without a rest it would be the machine's heaviest load, whatever is measured beside it.
        tokio::time::sleep(took * REST).await;
    }
    Ok(seen)
}

/// Each row counts its own updates. What an update returns says whether the ones before it are there, each once.
async fn write(client: Client, rows: Vec<Uuid>, stop: Arc<AtomicBool>) -> Result<Counts> {
    let update =
        client.prepare(&format!("UPDATE {TABLE} SET n = n + 1 WHERE tenant_id = $1 RETURNING n")).await?;
    let mut known: Vec<(i32, i32)> = vec![(0, 0); rows.len()];
    let mut seen = Counts::default();
    'all: loop {
        for (tenant, (least, most)) in rows.iter().zip(&mut known) {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            let begun = Instant::now();
            let answer = client.query(&update, &[tenant]).await;
            seen.longest_write_ms = seen.longest_write_ms.max(begun.elapsed().as_secs_f64() * 1e3);
            seen.writes += 1;
            match answer {
                Ok(answer) => {
                    // An update that failed may have been done or not.
                    let (low, high) = (*least + 1, *most + 1);
                    let now: i32 = match answer.as_slice() {
                        [row] => row.try_get(0)?,
                        [] => 0,
                        _ => high + 1,
                    };
                    seen.lost += u64::from(now < low);
                    seen.doubled += u64::from(now > high);
                    (*least, *most) = (now, now);
                }
                Err(error) if error.is_closed() => {
                    return Err(error).context("the writing client's connection");
                }
                Err(error) => {
                    seen.error(&error);
                    *most += 1;
                }
            }
            tokio::time::sleep(BETWEEN_WRITES).await;
        }
    }
    // All of it, once more, by a read over all shards.
    let sql = format!("SELECT tenant_id, n FROM {TABLE} WHERE tenant_id = ANY($1)");
    let found = client.query(&sql, &[&rows]).await?;
    seen.missing_rows += rows.len().saturating_sub(found.len()) as u64;
    seen.duplicate_rows += found.len().saturating_sub(rows.len()) as u64;
    for row in found {
        let (tenant, n): (Uuid, i32) = (row.try_get(0)?, row.try_get(1)?);
        let Some(at) = rows.iter().position(|r| *r == tenant) else { continue };
        seen.lost += u64::from(n < known[at].0);
        seen.doubled += u64::from(n > known[at].1);
    }
    Ok(seen)
}
