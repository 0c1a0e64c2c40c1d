//! One move, one blow, at most one command of the operator, and the judgement.

use super::asleep::{self, Way};
use super::cell::{self, Cell, Component, Phase};
use super::field::{CATALOG, Field, SIDES, in_sync, map};
use super::shardctl::{Driver, Ended};
use super::watch::{Counts, Watch};
use crate::load::{Load, Seed};
use crate::stack::Stack;
use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;

/// Payments before the move begins.
const BEFORE: Duration = Duration::from_millis(1500);
/// A mover that gets no further than this has hung: the longest wait that it may make is 60 s, for a slot.
pub const DRIVER_LIMIT: Duration = Duration::from_secs(180);
const REACHED_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);
/// A loose bar for one attempt at a cut-over, as the mover has it, where nothing was struck that it needs: the machine is
/// busy, and `cargo compare` judges by a client's clock.
const PAUSE_LIMIT_MS: f64 = 2000.0;
/// Payments go through again within this time after everything is over.
const SERVED_LIMIT: Duration = Duration::from_secs(20);

pub struct Verdict {
    pub hit: bool,
    pub violations: Vec<String>,
    pub told: Value,
    pub acknowledged: u64,
    pub retries: u64,
    pub counts: Counts,
}

/// What is done while a move goes on.
#[derive(Clone, Copy)]
pub enum Act<'a> {
    Strike(&'a Cell),
    /// The first proxy sleeps from before the fence until after the flip.
    Asleep(Way),
}

/// What became of the move.
pub struct Outcome {
    pub hit: bool,
    pub id: Option<i64>,
    pub ended: String,
    pub command: Option<String>,
    /// What clients of a proxy that slept were told.
    pub clients: Value,
}

impl Act<'_> {
    pub fn name(self) -> String {
        match self {
            Act::Strike(cell) => cell.name(),
            Act::Asleep(way) => format!("{}, {}", super::ASLEEP, way.phase()),
        }
    }

    fn told(self) -> Value {
        match self {
            Act::Strike(cell) => json!({
                "component": cell.component.name(), "phase": cell.phase.name(), "place": cell.place, "blow": cell.blow.name(),
            }),
            Act::Asleep(way) => json!({ "component": "proxy", "phase": way.phase(), "blow": super::ASLEEP }),
        }
    }

    /// No server is struck, and the mover stands nowhere while it holds the fence (but where it is killed, and has no figure).
    fn has_bar(self) -> bool {
        match self {
            Act::Strike(cell) => {
                matches!(cell.component, Component::Shardctl | Component::Proxy)
                    && !matches!(cell.phase, Phase::Fencing | Phase::BackFencing)
            }
            Act::Asleep(_) => true,
        }
    }
}

pub async fn one(
    stack: &Stack,
    field: &Field,
    seed: &Seed,
    act: Act<'_>,
    run_seed: u64,
    rate: u32,
) -> Result<Verdict> {
    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(run_seed);
    for shard in 1..=stack.shards() {
        in_sync(stack, shard).await?;
    }
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let load = Arc::new(Load::new(stack, seed.clone(), format!("move-{run_seed}-{stamp:x}"), rate)?);
    let clients = tokio::spawn(load.clone().run(stack.cores()?, run_seed));
    let watch = Watch::start(&stack.proxies()?).await?;
    sleep(BEFORE).await;
    let mut violations = Vec::new();
    let outcome = match act {
        Act::Strike(cell) => carry(stack, field, cell, &mut random, &mut violations).await,
        Act::Asleep(way) => asleep::carry(stack, field, seed, way, &mut violations).await,
    };
    if outcome.is_ok() {
        served(stack, seed, &load, &mut violations).await;
    }
    load.stop();
    clients.await?;
    let counts = watch.stop().await?;
    // Only now: what the load said would be lost with an early return.
    let outcome = outcome?;
    let moved_s = begun.elapsed().as_secs_f64();
    violations.extend(counts.wrong.iter().cloned());
    let phase = match outcome.id {
        Some(id) => recorded(stack, id).await?,
        None => "none".into(),
    };
    if outcome.id.is_some() && !["done", "rolled_back", "aborted"].contains(&phase.as_str()) {
        violations
            .push(format!("the move is {phase} after {}", outcome.command.as_deref().unwrap_or("its end")));
    }
    let pauses_ms = match outcome.id {
        Some(id) => pauses_ms(stack, id).await?,
        None => Vec::new(),
    };
    for ms in pauses_ms.iter().filter(|ms| act.has_bar() && **ms > PAUSE_LIMIT_MS) {
        violations.push(format!("an attempt at a cut-over took {ms:.0} ms, more than {PAUSE_LIMIT_MS:.0}"));
    }
    violations.extend(super::judge::judge(stack).await?);
    crate::judge::moved(stack, &load).await?;
    violations.extend(load.violations.lock().map(|all| all.clone()).unwrap_or_default());
    let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
    let (acknowledged, retries) = (load.acks().len() as u64, load.retries.load(Relaxed));
    let mut told = json!({
        "seed": run_seed, "hit": outcome.hit, "move": outcome.id, "outcome": phase, "ended": outcome.ended,
        "command": outcome.command, "seconds": rounded(begun.elapsed().as_secs_f64()), "judged_s": rounded(begun.elapsed().as_secs_f64() - moved_s),
        "acknowledged": acknowledged, "retries": retries, "counts": counts.right, "count_errors": counts.errors,
        "pauses_ms": pauses_ms, "violations": violations.len(),
    });
    if let (Some(told), Value::Object(of_act)) = (told.as_object_mut(), act.told()) {
        told.extend(of_act);
        if !outcome.clients.is_null() {
            told.insert("clients".into(), outcome.clients.clone());
        }
    }
    Ok(Verdict { hit: outcome.hit, violations, told, acknowledged, retries, counts })
}

async fn carry(
    stack: &Stack,
    field: &Field,
    cell: &Cell,
    random: &mut StdRng,
    violations: &mut Vec<String>,
) -> Result<Outcome> {
    let (from, last) = field.zones[random.random_range(0..field.zones.len())];
    let map = map(&stack.shard(CATALOG).await?).await?;
    let source = map.iter().find(|(first, end, _)| (*first..=*end).contains(&from)).context("an owner")?.2;
    let target = if source == SIDES[0] { SIDES[1] } else { SIDES[0] };
    let (buckets, to) = (format!("{from}-{last}"), target.to_string());
    let plan = field.tool.plan.display().to_string();
    field.tool.ask("nowhere")?;
    field
        .tool
        .run(&["plan", "move", "--buckets", &buckets, "--to", &to, "--save", &plan], DRIVER_LIMIT)
        .await?;
    let mut words = vec!["apply", plan.as_str(), "--auto"];
    let mut driver = if cell.by_rollback() {
        field.tool.run(&words, DRIVER_LIMIT).await?;
        let id = last_move(stack).await?.context("no move was made")?.to_string();
        field.tool.ask(cell.place)?;
        field.tool.start(&["rollback", &id])?
    } else {
        // In the window it is the operator who goes on, one way or the other.
        if cell.phase != Phase::Reversing {
            words.push("--finish");
        }
        field.tool.ask(cell.place)?;
        field.tool.start(&words)?
    };
    let Some(id) = reached(field, cell.place, &mut driver).await? else {
        let ended = driver.ended(DRIVER_LIMIT).await?;
        let id = last_move(stack).await?;
        return conclude(stack, field, random, violations, false, id, ended, &driver.words).await;
    };
    let phase = recorded(stack, id).await?;
    let hit = phase == cell.recorded();
    if !hit {
        bail!("{}: the mover stands there, and its move is {phase}", cell.name());
    }
    field.strike(stack, cell, source, target, &mut driver, random).await?;
    let ended = driver.ended(DRIVER_LIMIT).await?;
    if ended.is_none() {
        violations.push(format!("shardctl {} did not end within {} s", driver.words, DRIVER_LIMIT.as_secs()));
        driver.kill().await?;
    }
    conclude(stack, field, random, violations, hit, Some(id), ended, &driver.words).await
}

/// The number of the move when its mover stands where it is to be struck; `None` when it ended without.
pub async fn reached(field: &Field, place: &str, driver: &mut Driver) -> Result<Option<i64>> {
    let begun = Instant::now();
    loop {
        if let Some(id) = field.tool.stands(place) {
            return Ok(Some(id));
        }
        if !driver.running()? || begun.elapsed() > REACHED_LIMIT {
            return Ok(None);
        }
        sleep(POLL).await;
    }
}

/// The one command, if the move is not over.
#[allow(clippy::too_many_arguments)]
async fn conclude(
    stack: &Stack,
    field: &Field,
    random: &mut StdRng,
    violations: &mut Vec<String>,
    hit: bool,
    id: Option<i64>,
    ended: Option<Ended>,
    words: &str,
) -> Result<Outcome> {
    let ended = match ended {
        Some(ended) => format!("{:?}: {}", ended.code, ended.text),
        None => "hung".into(),
    };
    let mut outcome = Outcome { hit, id, ended, command: None, clients: Value::Null };
    let Some(number) = id else {
        violations.push(format!("shardctl {words} made no move: {}", outcome.ended));
        return Ok(outcome);
    };
    let phase = recorded(stack, number).await?;
    if is_over(&phase) {
        return Ok(outcome);
    }
    let choices = cell::remedies(&phase);
    let remedy = choices[random.random_range(0..choices.len())];
    let words = number.to_string();
    let mut command = vec![remedy[0], words.as_str()];
    command.extend(&remedy[1..]);
    field.tool.ask("nowhere")?;
    outcome.command = Some(format!("{} in {phase}", command.join(" ")));
    let mut driver = field.tool.start(&command)?;
    match driver.ended(DRIVER_LIMIT).await? {
        Some(Ended { code: Some(0), .. }) => {}
        // Another end than the one that was asked for is an end: nothing is left to be done.
        Some(Ended { code: Some(1 | 5), .. }) if is_over(&recorded(stack, number).await?) => {}
        Some(ended) => {
            violations.push(format!("{} ended with {:?}: {}", driver.words, ended.code, ended.text))
        }
        None => {
            violations.push(format!("{} did not end within {} s", driver.words, DRIVER_LIMIT.as_secs()));
            driver.kill().await?;
        }
    }
    Ok(outcome)
}

fn is_over(phase: &str) -> bool {
    ["done", "rolled_back", "aborted", "refused"].contains(&phase)
}

pub async fn recorded(stack: &Stack, id: i64) -> Result<String> {
    let sql = "SELECT phase FROM shard_catalog.move WHERE id = $1";
    let row = stack.shard(CATALOG).await?.query_one(sql, &[&id]).await;
    Ok(row.with_context(|| format!("move {id}"))?.try_get(0)?)
}

pub async fn last_move(stack: &Stack) -> Result<Option<i64>> {
    let catalog = stack.shard(CATALOG).await?;
    Ok(catalog.query_one("SELECT max(id) FROM shard_catalog.move", &[]).await?.try_get(0)?)
}

/// Of every attempt at a cut-over, as the mover wrote it down.
async fn pauses_ms(stack: &Stack, id: i64) -> Result<Vec<f64>> {
    let sql = "SELECT coalesce(detail -> 'pauses', '[]') FROM shard_catalog.move WHERE id = $1";
    let pauses: Value = stack.shard(CATALOG).await?.query_one(sql, &[&id]).await?.try_get(0)?;
    let pauses = pauses.as_array().context("the move's pauses")?;
    pauses.iter().map(|one| one["ms"].as_f64().context("a pause has ms")).collect()
}

/// Every shard's tenants pay again.
async fn served(stack: &Stack, seed: &Seed, load: &Load, violations: &mut Vec<String>) {
    let (from, begun) = (load.now(), Instant::now());
    loop {
        let silent: Vec<usize> = (0..seed.tenants.len())
            .filter(|shard| load.rate(from, load.now(), |one| one == *shard) == 0.0)
            .collect();
        if silent.is_empty() {
            return;
        }
        if begun.elapsed() > SERVED_LIMIT {
            let who: Vec<String> = silent.iter().map(|shard| (shard + 1).to_string()).collect();
            let text = format!(
                "tenants seeded on shards {} of {} get no payment through",
                who.join(", "),
                stack.shards()
            );
            return violations.push(text);
        }
        sleep(Duration::from_millis(100)).await;
    }
}
