//! Rows that nobody adds or removes, counted over all shards through every proxy, again and again while they move.

use crate::stack::connect;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

const COUNT: &str = "SELECT (SELECT count(*) FROM tenants), (SELECT count(*) FROM accounts), \
                     (SELECT count(DISTINCT account_id) FROM accounts)";
/// Longer than a statement may be held; a server that is struck answers nobody.
const PATIENCE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_millis(20);
const WRONG_MOST: usize = 5;

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub right: u64,
    /// No answer is no wrong answer: something is struck.
    pub errors: u64,
    pub wrong: Vec<String>,
}

pub struct Watch {
    stop: Arc<AtomicBool>,
    counters: JoinSet<Counts>,
}

impl Watch {
    pub async fn start(proxies: &[String]) -> Result<Watch> {
        let first = connect(proxies.last().context("no proxy")?).await?;
        let expected = count(&first).await.context("the first count")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut counters = JoinSet::new();
        for url in proxies {
            let (url, stop) = (url.clone(), stop.clone());
            counters.spawn(async move { watch(&url, expected, &stop).await });
        }
        Ok(Watch { stop, counters })
    }

    pub async fn stop(mut self) -> Result<Counts> {
        self.stop.store(true, Relaxed);
        let mut all = Counts::default();
        while let Some(counts) = self.counters.join_next().await {
            let counts = counts.context("a counting client")?;
            all.right += counts.right;
            all.errors += counts.errors;
            all.wrong.extend(counts.wrong);
        }
        Ok(all)
    }
}

async fn count(client: &Client) -> Result<[i64; 3]> {
    let row = client.query_one(COUNT, &[]).await?;
    Ok([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?])
}

async fn watch(url: &str, expected: [i64; 3], stop: &AtomicBool) -> Counts {
    let mut seen = Counts::default();
    let mut client = None;
    while !stop.load(Relaxed) {
        let Some(connected) = &client else {
            client = timeout(PATIENCE, connect(url)).await.ok().and_then(Result::ok);
            sleep(REST).await;
            continue;
        };
        match timeout(PATIENCE, count(connected)).await {
            Ok(Ok(counts)) if counts == expected => seen.right += 1,
            Ok(Ok(counts)) if seen.wrong.len() < WRONG_MOST => {
                seen.wrong.push(format!(
                    "counted {counts:?} tenants, accounts and account numbers instead of {expected:?}"
                ));
            }
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                seen.errors += 1;
                client = None;
            }
        }
        sleep(REST).await;
    }
    if seen.right == 0 {
        // Then nothing was looked at, and nothing can be said to be right.
        seen.wrong.push(format!("no count through {url} was the right one, of {} that failed", seen.errors));
    }
    seen
}
