//! What must hold afterwards. Reads the shards directly; the ledger's arithmetic is judged by `bench check`, which is
//! independent of the product as well.

use crate::faults::Wound;
use crate::http::{Connection, Request};
use crate::load::Load;
use crate::stack::Stack;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How much of the throughput before a fault must be there again, and after how long at the latest.
const RECOVERED_SHARE: f64 = 0.7;
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// What other shards' tenants must still get while one shard is down, and its own when it is back.
const OTHERS_SHARE: f64 = 0.5;
const WINDOW: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(250);
const REPLAYED: usize = 60;

/// What a fault did to the service.
#[derive(Clone, Debug)]
pub struct Effect {
    pub recovered_after: Option<Duration>,
    /// Share of the usual throughput that shards which were not hurt kept, when that can be said.
    pub others: Option<f64>,
}

/// Waits until throughput is back and says how long it took.
pub async fn recovery(load: &Load, wound: &Wound, before: f64) -> Effect {
    let mut recovered_after = None;
    let limit = wound.done + RECOVERY_LIMIT;
    // From the moment that everybody could be served again, in steps of the recording.
    let mut from = wound.healed;
    while from <= limit {
        let to = from + WINDOW;
        if load.now() < to {
            tokio::time::sleep(to.saturating_sub(load.now())).await;
        }
        // The hurt shard itself must be back, not only the sum.
        let usual = before / load.seed.tenants.len() as f64;
        let own = wound
            .shard
            .is_none_or(|shard| load.rate(from, to, |other| other == shard) >= usual * OTHERS_SHARE);
        if own && load.rate(from, to, |_| true) >= before * RECOVERED_SHARE {
            recovered_after = Some(from - wound.healed);
            break;
        }
        from += STEP;
    }
    let others = wound.shard.map(|hurt| {
        let shards = load.seed.tenants.len() as f64;
        let usual = before * (shards - 1.0) / shards;
        load.rate(wound.from, wound.healed, |shard| shard != hurt) / usual.max(0.001)
    });
    let name = wound.fault.name();
    if recovered_after.is_none() {
        load.violation(format!(
            "{name}: throughput was not back to 70 % of {before:.0}/s within {} s",
            RECOVERY_LIMIT.as_secs()
        ));
    }
    if others.is_some_and(|share| share < OTHERS_SHARE) {
        load.violation(format!(
            "{name}: other shards' tenants got {:.0} % of their throughput",
            others.unwrap_or(0.0) * 100.0
        ));
    }
    if wound.fault.payments_go_on() {
        let during = load.rate(wound.from, wound.healed, |_| true);
        if during < before * OTHERS_SHARE {
            load.violation(format!("{name}: payments fell to {during:.0}/s of {before:.0}/s without need"));
        }
    }
    Effect { recovered_after, others }
}

/// Everything about the state after a run. Violations go to the load's list.
pub async fn state(stack: &Stack, load: &Load) -> Result<()> {
    all(stack, load, true).await
}

/// The same when tenants may have moved to another shard meanwhile.
pub async fn moved(stack: &Stack, load: &Load) -> Result<()> {
    all(stack, load, false).await
}

async fn all(stack: &Stack, load: &Load, at_home: bool) -> Result<()> {
    for name in stack.not_running().await? {
        load.violation(format!("{name} is not running after the run"));
    }
    payments(stack, load, at_home).await?;
    replays(stack, load).await?;
    ledger(stack, load).await
}

/// Every acknowledgement has its payment, and no key has two, on whichever shard.
async fn payments(stack: &Stack, load: &Load, at_home: bool) -> Result<()> {
    let mut found: HashMap<String, Vec<(String, String, u16)>> = HashMap::new();
    for shard in 1..=stack.shards() {
        let client = stack.shard(shard).await?;
        let sql = "SELECT reference, payment_id::text, status FROM payments WHERE reference LIKE $1 || '-%'";
        for row in client.query(sql, &[&load.prefix]).await.context("reading payments")? {
            found.entry(row.get(0)).or_default().push((row.get(1), row.get(2), shard));
        }
    }
    for (key, payments) in &found {
        if payments.len() > 1 {
            load.violation(format!("{key}: {} payments: {payments:?}", payments.len()));
        }
    }
    for ack in load.acks() {
        match found.get(&ack.key).and_then(|payments| payments.first()) {
            None => load.violation(format!("{}: acknowledged payment {} is lost", ack.key, ack.payment)),
            Some((payment, status, shard)) => {
                let elsewhere = at_home && usize::from(*shard) != ack.shard + 1;
                if *payment != ack.payment || *status != ack.status || elsewhere {
                    load.violation(format!(
                        "{}: acknowledged {} {} of shard {}, stored {payment} {status} on shard {shard}",
                        ack.key,
                        ack.payment,
                        ack.status,
                        ack.shard + 1
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The same key again gives the same payment.
async fn replays(stack: &Stack, load: &Load) -> Result<()> {
    let acks = load.acks();
    let mut core = Connection::new(&stack.cores()?[0]);
    let step = (acks.len() / REPLAYED).max(1);
    for ack in acks.iter().step_by(step) {
        let token = &load.seed.tenants[ack.shard][ack.tenant].token;
        let request =
            Request { method: "POST", path: "/v1/payments", token, key: Some(&ack.key), body: &ack.body };
        let reply = core.send(&request).await.map_err(anyhow::Error::msg).context("sending a key again")?;
        if reply.body["payment_id"].as_str() != Some(&ack.payment) || !reply.replayed {
            load.violation(format!(
                "{}: sent again, answered {} {} instead of payment {}",
                ack.key, reply.status, reply.body, ack.payment
            ));
        }
    }
    Ok(())
}

/// `bench check`: debits = credits, balances = folds, outbox = Kafka, durability settings, acknowledgements.
async fn ledger(stack: &Stack, load: &Load) -> Result<()> {
    let bench = std::env::current_exe()?.with_file_name("bench");
    let output = Command::new(&bench)
        .args(["check", "--json", "--acks"])
        .arg(&load.log)
        .envs(stack.vars())
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| bench.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim())
        .with_context(|| format!("bench check: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let broken =
        report["invariants"].as_array().context("invariants")?.iter().filter(|one| one["violations"] != 0);
    for invariant in broken {
        load.violation(format!(
            "{}: {} violations: {}",
            invariant["name"], invariant["violations"], invariant["examples"]
        ));
    }
    Ok(())
}
