//! Tenants and funded accounts to load, created over the HTTP API once and reused by later runs.
use super::acks::AckLog;
use super::http::Connection;
use super::options::LoadArgs;
use super::workload::http_post;
use crate::stack::Stack;
use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "seed.json";
/// What the batch endpoints accept.
const BATCH: usize = 1000;
const CONCURRENCY: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Every wallet starts with this many major units: enough for months of payments below one unit.
const FUNDING_MAJOR: &str = "1000000";

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Tenant {
    pub tenant_id: String,
    pub api_key: String,
    pub currency: String,
    pub exponent: u8,
    pub settlement: String,
    pub wallets: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Seed {
    pub id: String,
    pub tenants: Vec<Tenant>,
    /// This seed's own directory, with the logs of what was acknowledged for its tenants.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Most tenants use a currency with two decimals; every tenth one with none or three, so that those are exercised too.
fn currency(index: usize) -> (&'static str, u8) {
    match index % 10 {
        8 => ("JPY", 0),
        9 => ("KWD", 3),
        _ => ("USD", 2),
    }
}

/// Loads the seed of earlier runs, or makes what is missing.
pub async fn ensure(args: &LoadArgs, stack: &Stack, cores: &[String], directory: &Path) -> Result<Seed> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let file = directory.join(FILE);
    let mut seed =
        match std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Seed>(&bytes).ok()) {
            Some(seed) if still_known(&seed, cores).await? => seed,
            // The stack was wiped: acknowledgements of the old data are not promises of the new one, so the new seed has
            // another directory.
            _ => Seed { id: format!("{:08x}", rand::random::<u32>()), ..Seed::default() },
        };
    seed.directory = directory.join(&seed.id);
    let (tenants, accounts) = (args.tenants as usize, args.accounts as usize);
    let complete = |tenant: &Tenant| tenant.wallets.len() >= accounts;
    if seed.tenants.len() >= tenants && seed.tenants.iter().take(tenants).all(complete) {
        return Ok(seed);
    }
    if stack.admin_token.is_empty() {
        bail!("CORE_ADMIN_TOKEN is not set: tenants cannot be created");
    }
    if !args.json {
        eprintln!("seeding {tenants} tenants x {accounts} wallets ...");
    }
    let acks = RefCell::new(AckLog::create(&seed.directory)?);
    let api = Api { cores, admin_token: &stack.admin_token, seed: &seed.id, acks: &acks };
    let work = (0..tenants).map(|index| {
        let existing = seed.tenants.get(index).cloned();
        let api = &api;
        async move { api.tenant(index, existing, accounts).await.map(|tenant| (index, tenant)) }
    });
    let made: Vec<(usize, Tenant)> = stream::iter(work).buffer_unordered(CONCURRENCY).try_collect().await?;
    for (index, tenant) in made {
        while seed.tenants.len() <= index {
            seed.tenants.push(tenant.clone());
        }
        seed.tenants[index] = tenant;
    }
    acks.borrow_mut().flush()?;
    std::fs::write(&file, serde_json::to_vec(&seed)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(seed)
}

/// Does the running stack know the seed's first and last wallet? An unreachable core is an error, not a "no".
async fn still_known(seed: &Seed, cores: &[String]) -> Result<bool> {
    let (Some(first), Some(last)) = (seed.tenants.first(), seed.tenants.last()) else { return Ok(false) };
    for tenant in [first, last] {
        let Some(wallet) = tenant.wallets.last() else { return Ok(false) };
        let path = format!("/v1/accounts/{wallet}");
        let (status, body) = get(&cores[0], &path, Some(&tenant.api_key)).await?;
        match status {
            200 => {}
            401 | 403 | 404 => return Ok(false),
            other => bail!("GET {path} answered {other}: {}", excerpt(&body)),
        }
    }
    Ok(true)
}

pub async fn get(address: &str, path: &str, bearer: Option<&str>) -> Result<(u16, Vec<u8>)> {
    let authorization = bearer.map(|b| format!("Authorization: Bearer {b}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}\r\n");
    let failed = |kind: String| anyhow::anyhow!("GET http://{address}{path}: {kind}");
    let mut connection = Connection::open(address).await.map_err(|e| failed(e.kind()))?;
    let reply =
        connection.exchange(request.as_bytes(), REQUEST_TIMEOUT).await.map_err(|e| failed(e.kind()))?;
    Ok((reply.status, reply.body.to_vec()))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(300).collect()
}

struct Api<'a> {
    cores: &'a [String],
    admin_token: &'a str,
    seed: &'a str,
    acks: &'a RefCell<AckLog>,
}

impl Api<'_> {
    /// POST until it is answered with `expected`; overload and lost connections are waited out.
    async fn post(
        &self,
        core: usize,
        path: &str,
        bearer: &str,
        body: &Value,
        expected: u16,
    ) -> Result<Value> {
        let body = serde_json::to_vec(body)?;
        let give_up = Instant::now() + PATIENCE;
        let mut turn = core;
        loop {
            let address = &self.cores[turn % self.cores.len()];
            let mut request = Vec::new();
            http_post(&mut request, path, address, bearer, None, &body);
            let tried = async {
                let mut connection = Connection::open(address).await?;
                let reply = connection.exchange(&request, REQUEST_TIMEOUT).await?;
                Ok::<_, super::http::HttpError>((reply.status, reply.body.to_vec(), reply.retry_after))
            };
            let problem = match tried.await {
                Ok((status, body, _)) if status == expected => return Ok(serde_json::from_slice(&body)?),
                Ok((status, body, _)) if !matches!(status, 409 | 429 | 500..=599) => {
                    bail!("POST {path} answered {status}: {}", excerpt(&body))
                }
                Ok((status, body, _)) => format!("{status}: {}", excerpt(&body)),
                Err(error) => error.kind(),
            };
            if Instant::now() > give_up {
                bail!("POST http://{address}{path} did not succeed in {PATIENCE:?}: {problem}");
            }
            turn += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn tenant(&self, index: usize, existing: Option<Tenant>, accounts: usize) -> Result<Tenant> {
        let mut tenant = match existing {
            Some(tenant) => tenant,
            None => self.new_tenant(index).await?,
        };
        while tenant.wallets.len() < accounts {
            let from = tenant.wallets.len();
            let count = (accounts - from).min(BATCH);
            let numbers: Vec<String> =
                (from..from + count).map(|n| format!("W-{}-{index}-{n}", self.seed)).collect();
            let mut wallets = self.accounts(index, &tenant, &numbers, "wallet").await?;
            self.fund(index, &tenant, &wallets, from).await?;
            tenant.wallets.append(&mut wallets);
        }
        Ok(tenant)
    }

    async fn new_tenant(&self, index: usize) -> Result<Tenant> {
        let name = format!("Load {} {index}", self.seed);
        let answer = self.post(index, "/v1/tenants", self.admin_token, &json!({ "name": name }), 201).await?;
        let text = |key: &str| {
            answer[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("POST /v1/tenants: no {key} in {answer}"))
        };
        let (currency, exponent) = currency(index);
        let mut tenant = Tenant {
            tenant_id: text("tenant_id")?,
            api_key: text("api_key")?,
            currency: currency.to_owned(),
            exponent,
            settlement: String::new(),
            wallets: Vec::new(),
        };
        let number = [format!("S-{}-{index}", self.seed)];
        tenant.settlement = self.accounts(index, &tenant, &number, "settlement").await?.remove(0);
        Ok(tenant)
    }

    async fn accounts(
        &self,
        core: usize,
        tenant: &Tenant,
        numbers: &[String],
        kind: &str,
    ) -> Result<Vec<String>> {
        let accounts: Vec<Value> = numbers
            .iter()
            .map(|number| json!({ "account_number": number, "currency": tenant.currency, "type": kind }))
            .collect();
        let answer = self
            .post(core, "/v1/accounts/batch", &tenant.api_key, &json!({ "accounts": accounts }), 200)
            .await?;
        let results = answer["results"].as_array().context("POST /v1/accounts/batch: no results")?;
        let ids: Vec<String> = results.iter().filter_map(account_id).collect();
        if ids.len() != numbers.len() {
            let problem = results.iter().find(|result| account_id(result).is_none());
            bail!("POST /v1/accounts/batch made {} of {} accounts: {problem:?}", ids.len(), numbers.len());
        }
        Ok(ids)
    }

    async fn fund(&self, index: usize, tenant: &Tenant, wallets: &[String], from: usize) -> Result<()> {
        let keys: Vec<String> =
            (0..wallets.len()).map(|n| format!("fund-{}-{index}-{}", self.seed, from + n)).collect();
        let payments: Vec<Value> = wallets
            .iter()
            .zip(&keys)
            .map(|(wallet, key)| {
                json!({ "idempotency_key": key, "debit_account_id": tenant.settlement, "credit_account_id": wallet,
                        "amount": FUNDING_MAJOR, "currency": tenant.currency, "reference": key })
            })
            .collect();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let body = json!({ "payments": payments });
            let answer = self.post(index, "/v1/payments/batch", &tenant.api_key, &body, 200).await?;
            let results = answer["results"].as_array().context("POST /v1/payments/batch: no results")?;
            let funded: Vec<&str> = results
                .iter()
                .filter(|result| result["payment"]["status"] == "succeeded")
                .filter_map(|result| result["payment"]["payment_id"].as_str())
                .collect();
            if funded.len() == wallets.len() {
                let mut acks = self.acks.borrow_mut();
                for (key, payment) in keys.iter().zip(funded) {
                    acks.push(&tenant.tenant_id, key, payment, "succeeded");
                }
                return acks.flush();
            }
            if Instant::now() > give_up {
                let problem = results.iter().find(|result| result["payment"]["status"] != "succeeded");
                bail!("funding: {} of {} payments succeeded: {problem:?}", funded.len(), wallets.len());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// `{status, account: {account_id}}` or the account itself.
fn account_id(result: &Value) -> Option<String> {
    let id = result["account"]["account_id"].as_str().or_else(|| result["account_id"].as_str());
    id.map(str::to_owned)
}
