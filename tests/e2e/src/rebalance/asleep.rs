//! A proxy that is stopped before the fence and wakes after the flip, while clients have transactions open on it.
//!
//! The move goes as far as its comparison, or as its window when it is the way back that is looked at; clients begin transactions
//! at every isolation level through the first proxy, which is stopped then. When its lease has run out the fence shuts; the mover
//! is killed with it in its hands, and another one flips. Then the proxy wakes and finds what its clients have sent: each
//! statement fails as one that may be tried again, or is done by the new owner.

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
const LOOK: Duration = Duration::from_millis(20);
/// Rows flow back to the old owner within this time.
const BACK: Duration = Duration::from_secs(15);

/// Which of a move's two cut-overs the proxy sleeps through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    There,
    /// The roll-back.
    Back,
}

struct Place {
    way: Way,
    tenant: String,
    zone: Range,
    source: u16,
    target: u16,
}

impl Way {
    /// The phase, as the mover calls it.
    pub fn phase(self) -> &'static str {
        match self {
            Way::There => "fencing",
            Way::Back => "back_fencing",
        }
    }

    /// The fence is shut, and nothing has flipped.
    fn place(self) -> &'static str {
        match self {
            Way::There => "fencing-shut",
            Way::Back => "back_fencing-shut",
        }
    }
}

impl Place {
    /// Around a tenant who pays.
    async fn find(stack: &Stack, field: &Field, seed: &Seed, way: Way) -> Result<Place> {
        let catalog = stack.shard(CATALOG).await?;
        let Tenant { id, .. } = &seed.tenants[usize::from(SIDES[0]) - 1][0];
        let bucket = super::field::bucket(&catalog, id).await?;
        let within = |(first, last): &&Range| (*first..=*last).contains(&bucket);
        let zone = *field.zones.iter().find(within).context("the tenant's zone")?;
        let map = map(&catalog).await?;
        let owner = map.iter().find(|(first, last, _)| (*first..=*last).contains(&bucket));
        let source = owner.context("an owner")?.2;
        let target = if source == SIDES[0] { SIDES[1] } else { SIDES[0] };
        Ok(Place { way, tenant: id.clone(), zone, source, target })
    }

    /// Who owns the rows when the proxy falls asleep, and who when it wakes.
    fn owners(&self) -> (u16, u16) {
        match self.way {
            Way::There => (self.source, self.target),
            Way::Back => (self.target, self.source),
        }
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
    way: Way,
    violations: &mut Vec<String>,
) -> Result<Outcome> {
    let place = Place::find(stack, field, seed, way).await?;
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
    let apply = ["apply", plan.as_str(), "--auto"];
    // The mover that will be killed: at work already, or begun when the proxy is stopped.
    let mut at_work = None;
    let id = match place.way {
        Way::There => {
            tool.ask("verifying")?;
            let mut first = tool.start(&apply)?;
            let Some(id) = reached(field, "verifying", &mut first).await? else {
                return missed(stack, field, first, "verifying").await;
            };
            at_work = Some(first);
            id
        }
        Way::Back => {
            tool.run(&apply, DRIVER_LIMIT).await?;
            last_move(stack).await?.context("the move that was made")?
        }
    };
    let number = id.to_string();
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
    let shut = place.way.place();
    tool.ask(shut)?;
    let mut first = match at_work {
        Some(first) => first,
        None => tool.start(&["rollback", &number])?,
    };
    if reached(field, shut, &mut first).await?.is_none() {
        return missed(stack, field, first, shut).await;
    }
    let phase = recorded(stack, id).await?;
    first.kill().await?;
    let (before, after) = place.owners();
    let (before, after) = (stack.shard(before).await?, stack.shard(after).await?);
    refused(&before, place, sleepers.len(), "the fence of a killed mover", violations).await;
    tool.ask("nowhere")?;
    let command = match place.way {
        Way::There => vec!["resume", number.as_str(), "--auto"],
        Way::Back => vec!["resume", number.as_str()],
    };
    // Which ends with the flip, or when the proxy is awake: transactions that it has left open on the owner keep guards there.
    let mut second = tool.start(&command)?;
    flipped(stack, id, place.way, &mut second).await?;
    if place.way == Way::There {
        // A roll-back deletes there what could be written.
        refused(&before, place, sleepers.len(), "the old owner", violations).await;
    }
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
    judge(place, &before, &after, sleepers, &told, violations).await?;
    let ended = match place.way {
        Way::There => {
            finished(second, violations).await?;
            finished(tool.start(&["finish", &number])?, violations).await?
        }
        Way::Back => finished(second, violations).await?,
    };
    let clients: Value =
        sleepers.iter().zip(&told).map(|(sleeper, told)| (sleeper.name(), json!(told.text()))).collect();
    Ok(Outcome {
        hit: phase == place.way.phase(),
        id: Some(id),
        ended,
        command: Some(command.join(" ")),
        clients,
    })
}

/// The other one owns the rows, and who did so has heard of it.
async fn flipped(stack: &Stack, id: i64, way: Way, driver: &mut Driver) -> Result<()> {
    let there: &[&str] = match way {
        Way::There => &["window"],
        Way::Back => &["emptying", "rolled_back"],
    };
    let begun = Instant::now();
    while !there.contains(&recorded(stack, id).await?.as_str()) {
        if begun.elapsed() > DRIVER_LIMIT {
            bail!("{} is {} after {} s", driver.words, recorded(stack, id).await?, DRIVER_LIMIT.as_secs());
        }
        if !driver.running()? && !there.contains(&recorded(stack, id).await?.as_str()) {
            bail!("{} has ended in {}", driver.words, recorded(stack, id).await?);
        }
        sleep(LOOK).await;
    }
    Ok(())
}

async fn finished(mut last: Driver, violations: &mut Vec<String>) -> Result<String> {
    if let Some(ended) = last.ended(DRIVER_LIMIT).await? {
        return Ok(format!("{:?}: {}", ended.code, ended.text));
    }
    violations.push(format!("{} did not end within {} s", last.words, DRIVER_LIMIT.as_secs()));
    last.kill().await?;
    Ok("hung".into())
}

/// It did not get there: this says nothing about clients. The move is finished, so that it can be tried again.
async fn missed(stack: &Stack, field: &Field, mut driver: Driver, place: &str) -> Result<Outcome> {
    field.tool.ask("nowhere")?;
    stack.command(&["cont", "proxy1"]).await?;
    let Some(ended) = driver.ended(DRIVER_LIMIT).await? else {
        driver.kill().await?;
        bail!("{} neither came to {place} nor ended", driver.words);
    };
    if let (Some(0), Some(id)) = (ended.code, last_move(stack).await?)
        && recorded(stack, id).await? == "window"
    {
        field.tool.run(&["finish", &id.to_string()], DRIVER_LIMIT).await?;
    }
    let ended = format!("did not come to {place}; {:?}: {}", ended.code, ended.text);
    Ok(Outcome { hit: false, id: last_move(stack).await?, ended, command: None, clients: Value::Null })
}

/// Nobody writes there any more, with the proxy's own way around the proxy either.
async fn refused(shard: &Client, place: &Place, slot: usize, who: &str, violations: &mut Vec<String>) {
    let sql = format!("UPDATE {TABLE} SET n = n + 1 WHERE {}", place.row(slot));
    let answer = timeout(PATIENCE, shard.batch_execute(&sql)).await;
    match answer.map(|answer| answer.map_err(|error| error.code().map(|code| code.code().to_owned()))) {
        Ok(Err(Some(code))) if code == "40001" => {}
        other => violations.push(format!("{who} answered a direct write with {other:?} instead of 40001")),
    }
}

/// Who owns the rows has what clients were told and nothing else; the other one has what has flowed back from there, or nothing
/// after a roll-back.
async fn judge(
    place: &Place,
    before: &Client,
    after: &Client,
    sleepers: &[Sleeper],
    told: &[Told],
    violations: &mut Vec<String>,
) -> Result<()> {
    let owned = place.rows(after).await.context("the new owner's rows")?;
    if owned.len() != sleepers.len() + 1 || owned.get(&sleepers.len()) != Some(&0) {
        violations.push(format!("the new owner's rows are {owned:?}"));
    }
    for (slot, (sleeper, told)) in sleepers.iter().zip(told).enumerate() {
        violations.extend(wrong(sleeper, told, owned.get(&slot).copied(), SINCE));
    }
    let expected = if place.way == Way::There { owned.clone() } else { BTreeMap::new() };
    let begun = Instant::now();
    loop {
        let old = place.rows(before).await.context("the old owner's rows")?;
        if old == expected {
            return Ok(());
        }
        if begun.elapsed() > BACK {
            violations.push(format!("the old owner's rows are {old:?}, the new one's {owned:?}"));
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
