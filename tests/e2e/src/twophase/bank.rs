//! Transfers over several shards, each one transaction, and what its client was told.

use crate::stack::{Stack, connect};
use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

const ACCOUNTS_A_SHARD: usize = 12;
pub const BALANCE: i64 = 1_000_000;
const WORKERS_A_PROXY: u64 = 4;
/// Longer than anything that a client should have to wait for.
const STATEMENT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Committed,
    /// An error that says so, or one before COMMIT was sent.
    RolledBack(String),
    /// 08007, or COMMIT was sent and no answer came.
    Unknown(String),
}

#[derive(Clone, Debug)]
pub struct Transfer {
    pub id: Uuid,
    /// (account, what is added to it): on a shard each.
    pub moves: Vec<(Uuid, i64)>,
    pub told: Told,
    pub at: Instant,
}

pub struct Bank {
    /// By shard; `[0]` is shard 1.
    pub accounts: Arc<Vec<Vec<Uuid>>>,
    /// What was moved and is surely there, of the cells before.
    pub settled: HashMap<Uuid, i64>,
}

impl Bank {
    /// Empty tables and accounts on every shard, made through the first proxy.
    pub async fn open(stack: &Stack) -> Result<Bank> {
        let client = connect(&stack.proxies()?[0]).await?;
        drop_tables(&client).await?;
        client
            .batch_execute(
                "CREATE TABLE chaos_accounts (tenant_id uuid PRIMARY KEY, balance bigint NOT NULL)",
            )
            .await
            .context("the accounts")?;
        client
            .batch_execute(
                "CREATE TABLE chaos_moves (tenant_id uuid NOT NULL, transfer_id uuid NOT NULL, amount bigint NOT NULL,
                 PRIMARY KEY (tenant_id, transfer_id))",
            )
            .await
            .context("the moves")?;
        let insert = "INSERT INTO chaos_accounts VALUES ($1, $2)";
        for _ in 0..ACCOUNTS_A_SHARD * 16 {
            client.execute(insert, &[&Uuid::new_v4(), &BALANCE]).await.context("an account")?;
        }
        let mut accounts = Vec::new();
        for shard in 1..=stack.shards() {
            let rows = stack.shard(shard).await?.query("SELECT tenant_id FROM chaos_accounts", &[]).await?;
            if rows.len() < ACCOUNTS_A_SHARD {
                bail!("only {} accounts are on shard {shard}", rows.len());
            }
            accounts.push(rows.iter().map(|row| row.get(0)).collect());
        }
        // The other proxy hears of the tables.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Bank { accounts: Arc::new(accounts), settled: HashMap::new() })
    }

    pub async fn close(&self, stack: &Stack) -> Result<()> {
        drop_tables(&connect(&stack.proxies()?[0]).await?).await
    }

    pub fn total(&self) -> i64 {
        self.accounts.iter().map(|shard| shard.len() as i64 * BALANCE).sum()
    }
}

async fn drop_tables(client: &Client) -> Result<()> {
    for table in ["chaos_moves", "chaos_accounts"] {
        client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await.context(table)?;
    }
    Ok(())
}

/// Clients of all proxies, until stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Transfer>>>,
    workers: JoinSet<()>,
}

impl Traffic {
    pub fn start(bank: &Bank, proxies: &[String], seed: u64) -> Traffic {
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut workers = JoinSet::new();
        for (number, url) in proxies.iter().enumerate() {
            for worker in 0..WORKERS_A_PROXY {
                let random = StdRng::seed_from_u64(seed ^ ((number as u64) << 32) ^ worker);
                let (accounts, stop, log, url) =
                    (bank.accounts.clone(), stop.clone(), log.clone(), url.clone());
                // Through the first proxy always three shards, so that every step is reached by any transaction.
                let least = if number == 0 { 3 } else { 2 };
                workers.spawn(async move { work(&accounts, &url, least, random, &stop, &log).await });
            }
        }
        Traffic { stop, log, workers }
    }

    /// Did any transfer commit since then?
    pub fn committed_since(&self, then: Instant) -> bool {
        let log = self.log.lock().map(|log| log.clone()).unwrap_or_default();
        log.iter().any(|transfer| transfer.told == Told::Committed && transfer.at > then)
    }

    /// Lets what is under way come to its end.
    pub async fn finish(mut self) -> Result<Vec<Transfer>> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.context("a client of the bank")?;
        }
        Ok(self.log.lock().map(|log| log.clone()).unwrap_or_default())
    }
}

async fn work(
    accounts: &[Vec<Uuid>],
    url: &str,
    least: usize,
    mut random: StdRng,
    stop: &AtomicBool,
    log: &Mutex<Vec<Transfer>>,
) {
    let mut client = None;
    while !stop.load(Relaxed) {
        let Some(connected) = &client else {
            client = timeout(STATEMENT, connect(url)).await.ok().and_then(Result::ok);
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut transfer = draw(accounts, least, &mut random);
        transfer.told = transact(connected, &transfer).await;
        transfer.at = Instant::now();
        // After an error the connection may be in a failed transaction, or gone.
        if transfer.told != Told::Committed {
            client = None;
        }
        if let Ok(mut log) = log.lock() {
            log.push(transfer);
        }
    }
}

fn draw(accounts: &[Vec<Uuid>], least: usize, random: &mut StdRng) -> Transfer {
    let count = random.random_range(least..=3);
    let mut shards: Vec<usize> = (0..accounts.len()).collect();
    while shards.len() > count {
        shards.remove(random.random_range(0..shards.len()));
    }
    let amount = random.random_range(1..100);
    // In one order of shards, so that transfers do not wait for each other in circles.
    let moves = shards
        .iter()
        .enumerate()
        .map(|(n, shard)| {
            let account = accounts[*shard][random.random_range(0..accounts[*shard].len())];
            (account, if n == 0 { -amount * (count as i64 - 1) } else { amount })
        })
        .collect();
    Transfer { id: Uuid::new_v4(), moves, told: Told::Committed, at: Instant::now() }
}

async fn transact(client: &Client, transfer: &Transfer) -> Told {
    let body = async {
        client.batch_execute("BEGIN").await?;
        for (account, amount) in &transfer.moves {
            let update = "UPDATE chaos_accounts SET balance = balance + $2 WHERE tenant_id = $1";
            client.execute(update, &[account, amount]).await?;
            let insert = "INSERT INTO chaos_moves VALUES ($1, $2, $3)";
            client.execute(insert, &[account, &transfer.id, amount]).await?;
        }
        Ok::<_, Error>(())
    };
    match timeout(STATEMENT, body).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Told::RolledBack(format!("before COMMIT: {}", shown(&error))),
        // The connection is dropped with its transaction.
        Err(_) => return Told::RolledBack("no answer before COMMIT".into()),
    }
    match timeout(STATEMENT, client.batch_execute("COMMIT")).await {
        Ok(Ok(())) => Told::Committed,
        Ok(Err(error)) => match error.as_db_error() {
            Some(told) if told.code().code() != "08007" => Told::RolledBack(shown(&error)),
            _ => Told::Unknown(shown(&error)),
        },
        Err(_) => Told::Unknown("no answer to COMMIT".into()),
    }
}

fn shown(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {}", error.code().code(), error.message()),
        None => error.to_string(),
    }
}
