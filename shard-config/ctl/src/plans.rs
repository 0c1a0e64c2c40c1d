//! Plans: made from the map in use, saved, refused when the map is another one by now, applied step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::plan::{self, Placed, PlanError, Step};
use shard_config::{KeyType, ShardId};

use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::figures;
pub use crate::figures::Measure;
use crate::mover::catalog::{self, StoredMap};
use crate::mover::scope::{Scope, checked, hash_of_key};
use crate::output::{Report, table};

/// What the operator wants.
#[derive(Debug, Clone)]
pub enum Goal {
    /// Ranges of buckets, both ends included.
    Buckets {
        ranges: Vec<(u16, u16)>,
        target: ShardId,
    },
    Drain(ShardId),
    /// `seconds`: for which writes are counted, by load.
    Rebalance {
        by: Measure,
        tolerance: u32,
        seconds: u32,
    },
    Isolate {
        tenant: String,
        target: ShardId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub epoch: u64,
    pub epoch_id: String,
    pub steps: Vec<Step>,
    /// What whoever reads the plan should know of it; not saved.
    pub notes: Vec<String>,
}

impl Plan {
    pub fn json(&self) -> anyhow::Result<Value> {
        let step = |step: &Step| {
            let scope = scope_of(step)?.json();
            anyhow::Ok(json!({ "source": step.source.0, "target": step.target.0, "scope": scope }))
        };
        let steps = self.steps.iter().map(step).collect::<Result<Vec<_>, _>>()?;
        Ok(json!({ "format": 1, "epoch": self.epoch, "epoch_id": self.epoch_id, "steps": steps }))
    }

    pub fn from_json(value: &Value) -> anyhow::Result<Self> {
        anyhow::ensure!(value["format"] == 1, "this is no plan of this version of shardctl");
        let step = |value: &Value| {
            let shard = |name: &str| {
                let number = value[name].as_u64().and_then(|n| u16::try_from(n).ok());
                number.map(ShardId).with_context(|| format!("a step has no {name}"))
            };
            let scope = Scope::from_json(&value["scope"])?;
            anyhow::Ok(Step {
                source: shard("source")?,
                target: shard("target")?,
                ranges: scope.ranges().to_vec(),
                hashes: scope.hashes().to_vec(),
            })
        };
        let steps = value["steps"].as_array().context("a plan has steps")?;
        Ok(Self {
            epoch: value["epoch"].as_u64().context("a plan has an epoch")?,
            epoch_id: value["epoch_id"].as_str().context("a plan has an epoch_id")?.to_owned(),
            steps: steps.iter().map(step).collect::<Result<_, _>>()?,
            notes: Vec::new(),
        })
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Self::from_json(&value).with_context(|| path.display().to_string())
    }

    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = format!("{:#}\n", self.json()?);
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// The plan is for this very map.
    pub fn check(&self, map: &StoredMap) -> Result<(), Failure> {
        if self.epoch == map.map.epoch() && self.epoch_id == map.id {
            return Ok(());
        }
        Err(Failure::stale(format!(
            "the plan was made for epoch {} of the map, which is at epoch {} now: plan again",
            self.epoch,
            map.map.epoch()
        )))
    }

    pub fn report(&self, saved: Option<&Path>) -> anyhow::Result<Report> {
        let mut rows = Vec::new();
        for (n, step) in self.steps.iter().enumerate() {
            rows.push(vec![
                (n + 1).to_string(),
                scope_of(step)?.to_string(),
                step.buckets().to_string(),
                step.source.to_string(),
                step.target.to_string(),
            ]);
        }
        let mut text = format!("for epoch {} of the map\n", self.epoch);
        match rows.is_empty() {
            true => text += "nothing is to be moved\n",
            false => text += &table(&["step", "what", "buckets", "source", "target"], &rows),
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        // Several steps are not carried out with an operator in between.
        let auto = if rows.len() > 1 { " --auto" } else { "" };
        if !rows.is_empty() {
            text += "Writes to what moves pause once a step, for less than half a second; other rows do not notice.\n";
            text += &match saved {
                Some(path) => {
                    format!(
                        "Next: shardctl apply {0} --dry-run, then shardctl apply {0}{auto}\n",
                        path.display()
                    )
                }
                None => {
                    format!("Next: the same with --save plan.json, then shardctl apply plan.json{auto}\n")
                }
            };
        }
        let mut json = self.json()?;
        if !self.notes.is_empty() {
            json["notes"] = json!(self.notes);
        }
        Ok(Report { json, text, well: true })
    }
}

pub fn scope_of(step: &Step) -> anyhow::Result<Scope> {
    checked(&step.ranges, &step.hashes)
}

/// `3=2` gives shard 3 the weight 2; shards not named have that of the configuration.
pub fn weights(servers: &Servers, given: &[String]) -> anyhow::Result<Vec<(ShardId, u32)>> {
    let mut weights: Vec<_> = servers.config.shards.iter().map(|shard| (shard.id, shard.weight)).collect();
    for text in given {
        let parsed =
            text.split_once('=').and_then(|(id, weight)| Some((id.parse().ok()?, weight.parse().ok()?)));
        let (id, weight): (u16, u32) =
            parsed.ok_or_else(|| Failure::usage(format!("--weight {text}: write SHARD=WEIGHT, e.g. 3=2")))?;
        let entry = weights.iter_mut().find(|(shard, _)| shard.0 == id);
        let unknown =
            || Failure::usage(format!("--weight {text}: there is no shard {id} in the configuration"));
        entry.ok_or_else(unknown)?.1 = weight;
    }
    Ok(weights)
}

/// Of weights that are tried out: that they are no more than that, and how to keep them.
fn tried_out(servers: &Servers, weights: &[(ShardId, u32)]) -> Option<String> {
    let other = |(shard, weight): &(ShardId, u32)| {
        let kept = servers.config.shard(*shard)?.weight;
        (kept != *weight).then(|| format!("shard {shard} has {weight} instead of {kept}"))
    };
    let all: Vec<_> = weights.iter().filter_map(other).collect();
    (!all.is_empty()).then(|| {
        format!(
            "These weights hold for this plan only, the next one without --weight would undo it: {}. \
             To keep them write weight = N into [[shard]] of the configuration file, then shardctl reload.",
            all.join(", ")
        )
    })
}

pub async fn make(
    servers: &Servers,
    control: &Db,
    goal: &Goal,
    weights: &[(ShardId, u32)],
    most: Option<u16>,
) -> anyhow::Result<Plan> {
    let map = catalog::map(control).await?;
    let placed = Placed { map: &map.map, pinned: &map.overrides };
    let configured = |shard: ShardId| {
        let text = format!("there is no shard {shard} in the configuration: add [[shard]] with id = {shard}");
        if servers.has(shard) { Ok(()) } else { Err(Failure::usage(text)) }
    };
    let mut notes = Vec::new();
    if matches!(goal, Goal::Drain(_) | Goal::Rebalance { .. }) {
        notes.extend(tried_out(servers, weights));
    }
    let steps = match goal {
        Goal::Buckets { ranges, target } => {
            configured(*target)?;
            plan::buckets(placed, ranges, *target).map_err(|error| Failure::usage(error.to_string()))?
        }
        Goal::Drain(shard) => {
            configured(*shard)?;
            plan::drain(placed, *shard, weights)?
        }
        Goal::Rebalance { by: Measure::Buckets, .. } => plan::rebalance(placed, weights)?,
        Goal::Rebalance { by, tolerance, seconds } => {
            let load = figures::of_buckets(servers, &map, *by, *seconds).await?;
            let steps = plan::by_load(placed, weights, &load, *tolerance)?;
            if *by == Measure::Load {
                notes.push(shown(&load, &map, &steps, *seconds));
            }
            steps
        }
        Goal::Isolate { tenant, target } => {
            configured(*target)?;
            let key: KeyType = servers.config.key.key_type;
            let wrong = || Failure::usage(format!("\"{tenant}\" is not a {key}"));
            let hash = hash_of_key(key, tenant).ok_or_else(wrong)?;
            match plan::isolate(placed, hash, *target) {
                // As with buckets that are where they are wanted.
                Err(PlanError::There(_)) => Vec::new(),
                steps => steps?,
            }
        }
    };
    let steps = match most {
        Some(most) => plan::split(steps, most),
        None => steps,
    };
    Ok(Plan { epoch: map.map.epoch(), epoch_id: map.id, steps, notes })
}

/// Rows written a second by shard, before and after.
fn shown(load: &[u64], map: &StoredMap, steps: &[Step], seconds: u32) -> String {
    let before = map.map.owners();
    let mut after = before.to_vec();
    for step in steps {
        for bucket in step.ranges.iter().flat_map(|&(from, to)| from..=to) {
            after[usize::from(bucket)] = step.target;
        }
    }
    let (had, has) = (figures::of_shards(load, before), figures::of_shards(load, &after));
    let shards: BTreeSet<_> = had.keys().chain(has.keys()).collect();
    let figure =
        |of: &BTreeMap<ShardId, u64>, shard| figures::per_second(of.get(shard).copied().unwrap_or(0));
    let all: Vec<_> = shards
        .into_iter()
        .map(|shard| format!("shard {shard} {} -> {}", figure(&had, shard), figure(&has, shard)))
        .collect();
    format!("rows written a second, counted for {seconds} s: {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use shard_config::{KeyHash, ShardMap};

    use super::*;

    #[test]
    fn a_plan_round_trips_and_is_refused_for_another_map() {
        let step = Step {
            source: ShardId(1),
            target: ShardId(2),
            ranges: vec![(0, 3)],
            hashes: vec![KeyHash::new(-5)],
        };
        let plan = Plan { epoch: 3, epoch_id: "a".into(), steps: vec![step], notes: Vec::new() };
        assert_eq!(Plan::from_json(&plan.json().unwrap()).unwrap(), plan);
        assert!(Plan::from_json(&json!({ "steps": [] })).is_err());
        let ranges = [(0, 15, ShardId(1))];
        let map = |epoch, id: &str| StoredMap {
            map: ShardMap::from_ranges(epoch, 16, &ranges).unwrap(),
            overrides: Vec::new(),
            id: id.into(),
        };
        assert!(plan.check(&map(3, "a")).is_ok());
        assert!(plan.check(&map(4, "a")).is_err());
        assert!(plan.check(&map(3, "b")).is_err(), "another map of the same epoch");
    }
}
