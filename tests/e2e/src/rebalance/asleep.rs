//! A proxy that is stopped before the fence and wakes after the flip, while clients have transactions open on it.
//!
//! The move goes as far as its comparison; clients begin transactions at every isolation level through the first proxy, which is
//! stopped then. When its lease has run out the fence shuts; the mover is killed with it in its hands, and another one
//! flips. Then the proxy wakes and finds what its clients have sent: each statement fails as one that may be tried
//! again, or is done by the new owner.

use super::field::{CATALOG, Field, Range, SIDES, map};
use super::run::{DRIVER_LIMIT, Outcome, last_move, reached, recorded};
use super::shardctl::Driver;
use super::sleeper::{Sleeper, Told, sleepers, wrong};
use crate::load::{Seed, Tenant};
use crate::stack::{Stack, connect};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// Written by nobody but these clients.
const TABLE: &str = "chaos_sleepers";
/// What the new owner adds to the rows that are read: who reads the old one's does not see it.
const SINCE: i64 = 100;
/// Longer than a statement may be held.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until what is sent is in the stopped proxy's sockets.
const SENT: Duration = Duration::from_millis(300);
/// Rows flow back to the old owner within this time.
const BACK: Duration = Duration::from_secs(15);

struct Place {
    tenant: String,
    zone: Range,
    source: u16,
    target: u16,
}

impl Place {
    /// Around a tenant who pays.
    async fn find(stack: &Stack, field: &Field, seed: &Seed) -> Result<Place> {
        let catalog = stack.shard(CATALOG).await?;
        let Tenant { id, .. } = &seed.tenants[usize::from(SIDES[0]) - 1][0];
        let bucket = super::field::bucket(&catalog, id).await?;
        let within = |(first, last): &&Range| (*first..=*last).contains(&bucket);
        let zone = *field.zones.iter().find(within).context("the tenant's zone")?;
        let map = map(&catalog).await?;
        let owner = map.iter().find(|(first, last, _)| (*first..=*last).contains(&bucket));
        let source = owner.context("an owner")?.2;
        let target = if source == SIDES[0] { SIDES[1] } else { SIDES[0] };
        Ok(Place { tenant: id.clone(), zone, source, target })
    }

    fn row(&self, slot: usize) -> String {
        format!("tenant_id = '{}' AND slot = {slot}", self.tenant)
    }

    /// By slot.
    async fn rows(&self, shard: &Client) -> Result<BTreeMap<usize, i64>> {
        let sql = format!("SELECT slot, n FROM {TABLE} WHERE tenant_id::text = $1");
        let mut rows = BTreeMap::new();
        for row in shard.query(&sql, &[&self.tenant]).await? {
            rows.insert(usize::try_from(row.try_get::<_, i32>(0)?)?, row.try_get(1)?);
        }
        Ok(rows)
    }
}

pub async fn carry(
    stack: &Stack,
    field: &Field,
    seed: &Seed,
    violations: &mut Vec<String>,
) -> Result<Outcome> {
    let place = Place::find(stack, field, seed).await?;
    let proxies = stack.proxies()?;
    let awake = connect(proxies.last().context("no proxy")?).await?;
    let sleepers = sleepers();
    prepare(&awake, &place, sleepers.len()).await?;
    let done = through(stack, field, &place, &awake, &sleepers, violations).await;
    // Whatever happened: a load that waits for a stopped proxy does not end. It is not stopped when it was woken.
    stack.command(&["cont", "proxy1"]).await?;
    done
}

async fn prepare(awake: &Client, place: &Place, slots: usize) -> Result<()> {
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (tenant_id uuid, slot int, n bigint NOT NULL, PRIMARY KEY (tenant_id, slot))"
    );
    awake.batch_execute(&create).await.context("the sleepers' table")?;
    // One more, which nobody is to write.
    for slot in 0..=slots {
        let insert = format!(
            "INSERT INTO {TABLE} VALUES ('{}', {slot}, 0) ON CONFLICT (tenant_id, slot) DO UPDATE SET n = 0",
            place.tenant
        );
        awake.batch_execute(&insert).await.context("the sleepers' rows")?;
    }
    Ok(())
}

async fn through(
    stack: &Stack,
    field: &Field,
    place: &Place,
    awake: &Client,
    sleepers: &[Sleeper],
    violations: &mut Vec<String>,
) -> Result<Outcome> {
    let tool = &field.tool;
    let (buckets, to) = (format!("{}-{}", place.zone.0, place.zone.1), place.target.to_string());
    let plan = tool.plan.display().to_string();
    tool.ask("nowhere")?;
    tool.run(&["plan", "move", "--buckets", &buckets, "--to", &to, "--save", &plan], DRIVER_LIMIT).await?;
    tool.ask("verifying")?;
    let mut first = tool.start(&["apply", &plan, "--auto"])?;
    let Some(id) = reached(field, "verifying", &mut first).await? else {
        return missed(stack, field, first, "verifying").await;
    };
    let mut clients = Vec::new();
    for (slot, sleeper) in sleepers.iter().enumerate() {
        let client = connect(&stack.proxies()?[0]).await?;
        sleeper.begin(&client, TABLE, &place.row(slot)).await.with_context(|| sleeper.name())?;
        clients.push(client);
    }
    stack.command(&["pause", "proxy1"]).await?;
    // Of those who do not wait for anything it lies in the proxy's socket all the time.
    let mut tasks: Vec<Option<JoinHandle<Told>>> = Vec::new();
    let mut waiting: Vec<Option<Client>> = Vec::new();
    for (slot, client) in clients.into_iter().enumerate() {
        let send = sleepers[slot].is_early();
        let (now, later) = if send { (Some(client), None) } else { (None, Some(client)) };
        tasks.push(now.map(|client| sleepers[slot].send(client, TABLE, &place.row(slot))));
        waiting.push(later);
    }
    tool.ask("fencing-shut")?;
    if reached(field, "fencing-shut", &mut first).await?.is_none() {
        return missed(stack, field, first, "fencing-shut").await;
    }
    let phase = recorded(stack, id).await?;
    first.kill().await?;
    let (source, target) = (stack.shard(place.source).await?, stack.shard(place.target).await?);
    refused(&source, place, sleepers.len(), "the fence of a killed mover", violations).await;
    tool.ask("nowhere")?;
    let number = id.to_string();
    let command = ["resume", number.as_str(), "--auto"];
    tool.run(&command, DRIVER_LIMIT).await?;
    refused(&source, place, sleepers.len(), "the old owner", violations).await;
    for (slot, _) in sleepers.iter().enumerate().filter(|(_, sleeper)| sleeper.reads()) {
        let sql = format!("UPDATE {TABLE} SET n = n + {SINCE} WHERE {}", place.row(slot));
        awake.batch_execute(&sql).await.context("a write by the other proxy after the flip")?;
    }
    for (slot, client) in waiting.into_iter().enumerate() {
        if let Some(client) = client {
            tasks[slot] = Some(sleepers[slot].send(client, TABLE, &place.row(slot)));
        }
    }
    sleep(SENT).await;
    stack.command(&["cont", "proxy1"]).await?;
    let mut told = Vec::new();
    for task in tasks.into_iter().flatten() {
        told.push(timeout(PATIENCE, task).await.map_or(Ok(Told::Nothing), |joined| joined)?);
    }
    judge(place, &source, &target, sleepers, &told, violations).await?;
    let mut last = tool.start(&["finish", &number])?;
    let ended = match last.ended(DRIVER_LIMIT).await? {
        Some(ended) => format!("{:?}: {}", ended.code, ended.text),
        None => {
            violations.push(format!("{} did not end within {} s", last.words, DRIVER_LIMIT.as_secs()));
            last.kill().await?;
            "hung".into()
        }
    };
    let clients: Value =
        sleepers.iter().zip(&told).map(|(sleeper, told)| (sleeper.name(), json!(told.text()))).collect();
    Ok(Outcome { hit: phase == "fencing", id: Some(id), ended, command: Some(command.join(" ")), clients })
}

/// It did not get there: this says nothing about clients. The move is finished, so that it can be tried again.
async fn missed(stack: &Stack, field: &Field, mut driver: Driver, place: &str) -> Result<Outcome> {
    field.tool.ask("nowhere")?;
    stack.command(&["cont", "proxy1"]).await?;
    let Some(ended) = driver.ended(DRIVER_LIMIT).await? else {
        driver.kill().await?;
        bail!("{} neither came to {place} nor ended", driver.words);
    };
    if let (Some(0), Some(id)) = (ended.code, last_move(stack).await?) {
        field.tool.run(&["finish", &id.to_string()], DRIVER_LIMIT).await?;
    }
    let ended = format!("did not come to {place}; {:?}: {}", ended.code, ended.text);
    Ok(Outcome { hit: false, id: last_move(stack).await?, ended, command: None, clients: Value::Null })
}

/// Nobody writes to the source any more, the proxy's own way around the proxy included.
async fn refused(source: &Client, place: &Place, slot: usize, who: &str, violations: &mut Vec<String>) {
    let sql = format!("UPDATE {TABLE} SET n = n + 1 WHERE {}", place.row(slot));
    let answer = timeout(PATIENCE, source.batch_execute(&sql)).await;
    match answer.map(|answer| answer.map_err(|error| error.code().map(|code| code.code().to_owned()))) {
        Ok(Err(Some(code))) if code == "40001" => {}
        other => violations.push(format!("{who} answered a direct write with {other:?} instead of 40001")),
    }
}

/// The new owner has what clients were told and nothing else, and the old one what has flowed back from there.
async fn judge(
    place: &Place,
    source: &Client,
    target: &Client,
    sleepers: &[Sleeper],
    told: &[Told],
    violations: &mut Vec<String>,
) -> Result<()> {
    let owned = place.rows(target).await.context("the new owner's rows")?;
    if owned.len() != sleepers.len() + 1 || owned.get(&sleepers.len()) != Some(&0) {
        violations.push(format!("the new owner's rows are {owned:?}"));
    }
    for (slot, (sleeper, told)) in sleepers.iter().zip(told).enumerate() {
        violations.extend(wrong(sleeper, told, owned.get(&slot).copied(), SINCE));
    }
    let begun = Instant::now();
    loop {
        let old = place.rows(source).await.context("the old owner's rows")?;
        if old == owned {
            return Ok(());
        }
        if begun.elapsed() > BACK {
            violations.push(format!("the old owner's rows are {old:?}, the new one's {owned:?}"));
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
