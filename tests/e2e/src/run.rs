//! One seeded run: load, faults, recovery, judgement.

use crate::faults::{self, Fault};
use crate::judge;
use crate::load::{Load, Seed};
use crate::stack::Stack;
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Load before a fault, from which the usual throughput is measured.
const BEFORE: Duration = Duration::from_secs(3);

pub struct Plan {
    pub seed: u64,
    pub rate: u32,
    pub suite: Suite,
    /// Tell on stderr what happens.
    pub tell: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// The six faults of the product's promise, one after the other.
    Lite,
    /// One to three faults of all kinds, drawn from the seed.
    Full,
    One(Fault),
}

impl Suite {
    pub fn named(name: &str) -> Option<Suite> {
        match name {
            "lite" => Some(Suite::Lite),
            "full" => Some(Suite::Full),
            other => Fault::named(other).map(Suite::One),
        }
    }

    fn faults(self, random: &mut StdRng) -> Vec<Fault> {
        match self {
            Suite::Lite => faults::ALL[..faults::LITE].to_vec(),
            Suite::One(fault) => vec![fault],
            Suite::Full => {
                let count = random.random_range(1..=3);
                (0..count).map(|_| faults::ALL[random.random_range(0..faults::ALL.len())]).collect()
            }
        }
    }
}

/// What one run found.
pub struct Verdict {
    pub violations: Vec<String>,
    pub acknowledged: usize,
    pub retries: u64,
    pub effects: Vec<Value>,
}

/// # Errors
/// When the run itself could not be made. Then too, `stack` may be left with servers down.
pub async fn one(stack: &mut Stack, seed: &Seed, plan: &Plan) -> Result<Verdict> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let load = Arc::new(Load::new(stack, seed.clone(), format!("chaos-{}-{stamp:x}", plan.seed), plan.rate)?);
    let clients = tokio::spawn(load.clone().run(stack.cores()?, plan.seed));
    let mut effects = Vec::new();
    let mut failed = None;
    for fault in plan.suite.faults(&mut random) {
        tokio::time::sleep(BEFORE).await;
        let now = load.now();
        let before = load.rate(now.saturating_sub(Duration::from_secs(2)), now, |_| true);
        if before == 0.0 {
            failed = Some(anyhow::anyhow!("no payment goes through before {}", fault.name()));
            break;
        }
        match faults::inflict(stack, &load, fault, &mut random).await {
            Ok(wound) => {
                let effect = judge::recovery(&load, &wound, before).await;
                let seconds = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
                let told = json!({
                    "fault": fault.name(),
                    "shard": wound.shard.map(|shard| shard + 1),
                    "down_s": seconds(wound.healed - wound.from),
                    "recovered_after_s": effect.recovered_after.map(seconds),
                    "others_served_percent": effect.others.map(|share| (share * 100.0).round()),
                });
                if plan.tell {
                    eprintln!("  {told}");
                }
                effects.push(told);
            }
            Err(error) => {
                failed = Some(error.context(fault.name()));
                break;
            }
        }
    }
    load.stop();
    clients.await?;
    match failed {
        Some(error) => load.violation(format!("the run broke off: {error:#}")),
        None => judge::state(stack, &load).await?,
    }
    let violations = load.violations.lock().map(|all| all.clone()).unwrap_or_default();
    Ok(Verdict {
        violations,
        acknowledged: load.acks().len(),
        retries: load.retries.load(std::sync::atomic::Ordering::Relaxed),
        effects,
    })
}
