//! Clients of the proxies that never pause: one counts rows that nobody changes over all shards, others write single rows
//! of what moves ([`super::probe`]).
use super::pauses::Write;
use super::probe::{Now, Probe, TABLE};
use super::scope::Scope;
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Who counts rests so many times as long as it took, and this besides. Without rests it would be the machine's heaviest load,
/// whatever is measured beside it.
const REST: u32 = 2;
const REST_LEAST: Duration = Duration::from_millis(500);
/// And so long at a cut-over.
const REST_CUT_OVER: Duration = Duration::from_millis(20);
/// Whether one is there is looked at so often.
const REST_PART: Duration = Duration::from_millis(50);
/// Error texts that are kept.
const TEXTS: usize = 5;

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
    /// Every write, in the order in which they were begun.
    pub trace: Vec<Write>,
}

pub struct Watch {
    stop: Arc<AtomicBool>,
    counter: JoinHandle<Result<Counts>>,
    probe: Probe,
}

impl Watch {
    pub async fn start(stack: &Stack, scopes: &[Scope]) -> Result<Watch> {
        let counting = connect(&url(stack, stack.proxies.len() - 1)?).await?;
        let stop = Arc::new(AtomicBool::new(false));
        // Its rows are there before the first count.
        let probe = Probe::start(stack, scopes, stop.clone()).await?;
        let counter = tokio::spawn(count(counting, probe.now(), stop.clone()));
        Ok(Watch { stop, counter, probe })
    }

    pub async fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let (counted, probed) = (self.counter.await?, self.probe.stop().await);
        let mut all = probed?;
        all.add(counted?);
        Ok(all)
    }
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.counts += other.counts;
        self.duplicate_rows += other.duplicate_rows;
        self.missing_rows += other.missing_rows;
        self.writes += other.writes;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.errors += other.errors;
        self.texts.extend(other.texts);
        self.longest_write_ms = self.longest_write_ms.max(other.longest_write_ms);
        self.trace.extend(other.trace);
    }

    pub fn error(&mut self, error: &tokio_postgres::Error) {
        self.errors += 1;
        if self.texts.len() < TEXTS {
            let text = error
                .as_db_error()
                .map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message()));
            self.texts.insert(text);
        }
    }
}

/// The table that only this tool uses, also one that an earlier release made. Made while nothing moves: then it could not be.
pub async fn prepare(stack: &Stack) -> Result<()> {
    let client = connect(&url(stack, 0)?).await?;
    let create = format!(
        "CREATE TABLE {TABLE} (tenant_id uuid, slot int, n int NOT NULL, PRIMARY KEY (tenant_id, slot))"
    );
    for statement in [format!("DROP TABLE IF EXISTS {TABLE}"), create] {
        client.batch_execute(&statement).await.context("cannot make the probe's table")?;
    }
    Ok(())
}

/// Its rows are of tenants that do not exist, which the check of the ledger would say.
pub async fn clear(stack: &Stack) -> Result<()> {
    let client = connect(&url(stack, 0)?).await?;
    client.batch_execute(&format!("DELETE FROM {TABLE}")).await.context("cannot empty the probe's table")
}

/// Of the proxies in turn.
pub fn url(stack: &Stack, n: usize) -> Result<String> {
    let proxy = stack.proxies.iter().cycle().nth(n).context("no proxy")?;
    Ok(format!("postgresql://app:app@{proxy}/payments"))
}

/// Tenants, accounts and the probe's rows: nobody adds or removes one meanwhile. Shards count, or name what is to be counted, and
/// no whole rows come together.
async fn count(client: Client, now: Arc<Now>, stop: Arc<AtomicBool>) -> Result<Counts> {
    let counted = [
        "count(*) FROM tenants".to_owned(),
        "count(*) FROM accounts".to_owned(),
        format!("count(*) FROM {TABLE}"),
        "count(DISTINCT account_id) FROM accounts".to_owned(),
    ]
    .map(|what| format!("SELECT {what}"));
    let one = async |sql: &str| -> Result<i64, tokio_postgres::Error> {
        client.query_one(sql, &[]).await.and_then(|row| row.try_get(0))
    };
    let mut expected = Vec::new();
    for sql in &counted {
        expected.push(one(sql).await?);
    }
    let mut seen = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for (sql, should) in counted.iter().zip(&expected) {
            match one(sql).await {
                Ok(is) => {
                    seen.counts += 1;
                    seen.duplicate_rows += (is - should).max(0).unsigned_abs();
                    seen.missing_rows += (should - is).max(0).unsigned_abs();
                }
                Err(error) if error.is_closed() => {
                    return Err(error).context("the counting client's connection");
                }
                Err(error) => seen.error(&error),
            }
        }
        let rested = Instant::now() + begun.elapsed() * REST + REST_LEAST;
        while Instant::now() < rested && !now.is_cut_over() && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(REST_PART).await;
        }
        tokio::time::sleep(REST_CUT_OVER).await;
    }
    Ok(seen)
}
