//! Payments under way while things break: careful clients that repeat an unanswered request under the same key, and a
//! log of what they were promised.

use crate::http::{Connection, Request};
use crate::stack::Stack;
use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const TENANTS_A_SHARD: usize = 2;
const WALLETS: usize = 6;
const WORKERS_A_SHARD: usize = 6;
/// A payment without an outcome for so long is a finding of its own.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);
const SLICE_MS: u64 = 250;
/// Half an hour; a run is far shorter.
const SLICES: usize = 7200;

#[derive(Clone, Debug)]
pub struct Tenant {
    pub id: String,
    pub token: String,
    pub accounts: Vec<String>,
}

/// Tenants by shard; `tenants[0]` is shard 1.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    pub tenants: Vec<Vec<Tenant>>,
}

/// One acknowledged payment.
#[derive(Clone, Debug)]
pub struct Ack {
    pub shard: usize,
    pub tenant: usize,
    pub key: String,
    pub body: String,
    pub payment: String,
    pub status: String,
}

pub struct Load {
    pub seed: Seed,
    pub prefix: String,
    pub log: PathBuf,
    file: Mutex<File>,
    acks: Mutex<Vec<Ack>>,
    pub violations: Mutex<Vec<String>>,
    begun: Instant,
    /// Acknowledgements of each shard in slices of 250 ms.
    slices: Vec<Vec<AtomicU32>>,
    pub retries: AtomicU64,
    stop: AtomicBool,
    gap: Duration,
}

async fn call(core: &mut Connection, request: Request<'_>, expected: u16) -> Result<Value> {
    let reply = core.send(&request).await.map_err(anyhow::Error::msg).context("seeding")?;
    if reply.status != expected {
        bail!("seeding: {} {} answered {} {}", request.method, request.path, reply.status, reply.body);
    }
    Ok(reply.body)
}

/// Creates tenants until every shard has enough of them; which shard got one is asked of the shards.
pub async fn seed(stack: &Stack) -> Result<Seed> {
    let cores = stack.cores()?;
    let admin = stack.var("CORE_ADMIN_TOKEN")?;
    let mut core = Connection::new(&cores[0]);
    let mut shards = Vec::new();
    for shard in 1..=stack.shards() {
        shards.push(stack.shard(shard).await?);
    }
    let mut seed = Seed { tenants: vec![Vec::new(); shards.len()] };
    for attempt in 0..200 {
        if seed.tenants.iter().all(|tenants| tenants.len() >= TENANTS_A_SHARD) {
            break;
        }
        let body = json!({"name": format!("chaos {attempt}")}).to_string();
        let request = Request { method: "POST", path: "/v1/tenants", token: admin, key: None, body: &body };
        let made = call(&mut core, request, 201).await?;
        let id = made["tenant_id"].as_str().context("tenant_id")?.to_owned();
        let token = made["api_key"].as_str().context("api_key")?.to_owned();
        let uuid: uuid::Uuid = id.parse()?;
        let mut home = None;
        for (index, shard) in shards.iter().enumerate() {
            if shard
                .query_opt("SELECT 1 FROM tenants WHERE tenant_id = $1", &[&uuid])
                .await
                .is_ok_and(|row| row.is_some())
            {
                home = Some(index);
            }
        }
        let home = home.with_context(|| format!("tenant {id} is on no shard"))?;
        if seed.tenants[home].len() < TENANTS_A_SHARD {
            seed.tenants[home].push(accounts(&mut core, id, token).await?);
        }
    }
    if seed.tenants.iter().any(Vec::is_empty) {
        bail!("200 tenants, and a shard has none of them");
    }
    Ok(seed)
}

async fn accounts(core: &mut Connection, id: String, token: String) -> Result<Tenant> {
    let mut tenant = Tenant { id, token, accounts: Vec::new() };
    for n in 0..=WALLETS {
        let kind = if n == 0 { "settlement" } else { "wallet" };
        let body =
            json!({"account_number": format!("chaos-{n}"), "currency": "USD", "type": kind}).to_string();
        let request =
            Request { method: "POST", path: "/v1/accounts", token: &tenant.token, key: None, body: &body };
        let made = call(core, request, 201).await?;
        tenant.accounts.push(made["account_id"].as_str().context("account_id")?.to_owned());
    }
    for n in 1..=WALLETS {
        let body = json!({"debit_account_id": tenant.accounts[0], "credit_account_id": tenant.accounts[n],
                          "amount": "500.00", "currency": "USD"})
        .to_string();
        let key = format!("first-{n}");
        let request = Request {
            method: "POST",
            path: "/v1/payments",
            token: &tenant.token,
            key: Some(&key),
            body: &body,
        };
        call(core, request, 201).await?;
    }
    Ok(tenant)
}

impl Load {
    /// `rate` payments a second over all shards.
    pub fn new(stack: &Stack, seed: Seed, prefix: String, rate: u32) -> Result<Load> {
        let directory = stack.dir()?.join("chaos");
        std::fs::create_dir_all(&directory)?;
        let log = directory.join(format!("{prefix}.acks"));
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(&log)
            .context("the log of acknowledgements")?;
        let workers = seed.tenants.len() * WORKERS_A_SHARD;
        let slices = seed.tenants.iter().map(|_| (0..SLICES).map(|_| AtomicU32::new(0)).collect()).collect();
        Ok(Load {
            gap: Duration::from_secs_f64(workers as f64 / f64::from(rate.max(1))),
            seed,
            prefix,
            log,
            file: Mutex::new(file),
            acks: Mutex::default(),
            violations: Mutex::default(),
            begun: Instant::now(),
            slices,
            retries: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().map(|acks| acks.clone()).unwrap_or_default()
    }

    pub fn violation(&self, text: String) {
        if let Ok(mut violations) = self.violations.lock() {
            violations.push(text);
        }
    }

    /// Acknowledgements a second of some shards (all when `None`) between two points of the run.
    pub fn rate(&self, from: Duration, to: Duration, only: impl Fn(usize) -> bool) -> f64 {
        let slice = |at: Duration| (at.as_millis() as u64 / SLICE_MS).min(SLICES as u64 - 1) as usize;
        let (first, last) = (slice(from), slice(to).max(slice(from) + 1));
        let shards = self.slices.iter().enumerate().filter(|(shard, _)| only(*shard));
        let count: u32 = shards.flat_map(|(_, all)| &all[first..last]).map(|slice| slice.load(Relaxed)).sum();
        f64::from(count) * 1000.0 / (SLICE_MS * (last - first) as u64) as f64
    }

    /// Workers have a shard each, so that one dead shard stops nobody but its own tenants.
    pub async fn run(self: Arc<Load>, cores: Vec<String>, random_seed: u64) {
        let cores = Arc::new(cores);
        let mut workers = JoinSet::new();
        for shard in 0..self.seed.tenants.len() {
            for worker in 0..WORKERS_A_SHARD {
                let (load, cores) = (self.clone(), cores.clone());
                workers.spawn(async move { load.worker(&cores, shard, worker, random_seed).await });
            }
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                self.violation(format!("a client of the load failed: {error}"));
            }
        }
    }

    async fn worker(&self, cores: &[String], shard: usize, worker: usize, random_seed: u64) {
        let lane = shard * WORKERS_A_SHARD + worker;
        let mut random = StdRng::seed_from_u64(random_seed.wrapping_mul(1000).wrapping_add(lane as u64));
        let mut core = lane % cores.len();
        let mut connection = Connection::new(&cores[core]);
        let mut due = Instant::now() + self.gap.mul_f64(random.random::<f64>());
        let mut number = 0u64;
        while !self.stop.load(Relaxed) {
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
            due = (due + self.gap).max(Instant::now());
            let tenant_index = random.random_range(0..self.seed.tenants[shard].len());
            let tenant = &self.seed.tenants[shard][tenant_index];
            let from = random.random_range(1..=WALLETS);
            let to = (from + random.random_range(1..WALLETS) - 1) % WALLETS + 1;
            number += 1;
            let key = format!("{}-{lane}-{number}", self.prefix);
            let body = json!({
                "debit_account_id": tenant.accounts[from], "credit_account_id": tenant.accounts[to],
                "amount": format!("{}.{:02}", random.random_range(0..40), random.random_range(1..100)),
                "currency": "USD", "reference": key,
            })
            .to_string();
            let begun = Instant::now();
            loop {
                let request = Request {
                    method: "POST",
                    path: "/v1/payments",
                    token: &tenant.token,
                    key: Some(&key),
                    body: &body,
                };
                let problem = match connection.send(&request).await {
                    Ok(reply) if matches!(reply.status, 201 | 402) => {
                        self.acknowledged(shard, tenant_index, &key, &body, &reply.body);
                        break;
                    }
                    // Not now, or not known: the same request again is safe and will tell.
                    Ok(reply) if matches!(reply.status, 409 | 425 | 429 | 500..=599) => {
                        let wait = reply.retry_after.unwrap_or(Duration::from_millis(100));
                        tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
                        format!("{} {}", reply.status, reply.body)
                    }
                    Ok(reply) => {
                        self.violation(format!("{key}: unexpected answer {} {}", reply.status, reply.body));
                        break;
                    }
                    Err(error) => {
                        // Another core knows the same key.
                        core = (core + 1) % cores.len();
                        connection = Connection::new(&cores[core]);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        error
                    }
                };
                self.retries.fetch_add(1, Relaxed);
                if begun.elapsed() > STUCK_AFTER {
                    self.violation(format!(
                        "{key}: no outcome within {} s; last: {problem}",
                        STUCK_AFTER.as_secs()
                    ));
                    break;
                }
            }
        }
    }

    fn acknowledged(&self, shard: usize, tenant: usize, key: &str, body: &str, answer: &Value) {
        let id = &self.seed.tenants[shard][tenant].id;
        let (Some(payment), Some(status)) = (answer["payment_id"].as_str(), answer["status"].as_str()) else {
            // A decline is a problem document; it names the payment all the same.
            match answer["payment_id"].as_str() {
                Some(payment) => return self.record(shard, tenant, key, body, payment, "declined", id),
                None => return self.violation(format!("{key}: an outcome without payment_id: {answer}")),
            }
        };
        // A problem document's own `status` member is a number, so text here is the payment's.
        self.record(shard, tenant, key, body, payment, status, id);
    }

    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        shard: usize,
        tenant: usize,
        key: &str,
        body: &str,
        payment: &str,
        status: &str,
        id: &str,
    ) {
        let written = self.file.lock().map_err(|_| ()).and_then(|mut file| {
            // Unbuffered: it is with the kernel before this client's next request.
            file.write_all(format!("{id} {key} {payment} {status}\n").as_bytes()).map_err(|_| ())
        });
        if written.is_err() {
            self.violation("the log of acknowledgements cannot be written".into());
        }
        let slice = (self.now().as_millis() as u64 / SLICE_MS).min(SLICES as u64 - 1) as usize;
        self.slices[shard][slice].fetch_add(1, Relaxed);
        if let Ok(mut acks) = self.acks.lock() {
            acks.push(Ack {
                shard,
                tenant,
                key: key.to_owned(),
                body: body.to_owned(),
                payment: payment.to_owned(),
                status: status.to_owned(),
            });
        }
    }
}
