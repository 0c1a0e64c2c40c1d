//! Plans: made from the map in use, saved, refused when the map is another one by now, applied step by step.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::plan::{self, Placed, Step};
use shard_config::{KeyType, ShardId};

use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::mover::catalog::{self, StoredMap};
use crate::mover::preflight::human;
use crate::mover::scope::{KeyHash, Scope, checked, hash_of_key, hash_sql, ident};
use crate::mover::tables::sharded;
use crate::output::{Report, table};

/// What the operator wants.
#[derive(Debug, Clone)]
pub enum Goal {
    Buckets { from: u16, to: u16, target: ShardId },
    Drain(ShardId),
    Rebalance { by: Measure, tolerance: u32 },
    Isolate { tenant: String, target: ShardId },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Number of buckets.
    Buckets,
    /// Rows of the sharded tables. Reads them.
    Rows,
    /// Bytes of their rows. Reads them.
    Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub epoch: u64,
    pub epoch_id: String,
    pub steps: Vec<Step>,
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
        Ok(Report { json: self.json()?, text, well: true })
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
    let steps = match goal {
        Goal::Buckets { from, to, target } => {
            configured(*target)?;
            plan::buckets(placed, *from, *to, *target).map_err(|error| Failure::usage(error.to_string()))?
        }
        Goal::Drain(shard) => {
            configured(*shard)?;
            plan::drain(placed, *shard, weights)?
        }
        Goal::Rebalance { by: Measure::Buckets, .. } => plan::rebalance(placed, weights)?,
        Goal::Rebalance { by, tolerance } => {
            let load = load(servers, &map, *by).await?;
            plan::by_load(placed, weights, &load, *tolerance)?
        }
        Goal::Isolate { tenant, target } => {
            configured(*target)?;
            let key: KeyType = servers.config.key.key_type;
            let wrong = || Failure::usage(format!("\"{tenant}\" is not a {key}"));
            let hash = hash_of_key(key, tenant).ok_or_else(wrong)?;
            plan::isolate(placed, hash, *target)?
        }
    };
    let steps = match most {
        Some(most) => plan::split(steps, most),
        None => steps,
    };
    Ok(Plan { epoch: map.map.epoch(), epoch_id: map.id, steps })
}

/// What each bucket has on the shard that owns it.
async fn load(servers: &Servers, map: &StoredMap, by: Measure) -> anyhow::Result<Vec<u64>> {
    let buckets = map.map.buckets();
    let mut load = vec![0; usize::from(buckets)];
    for shard in map.map.shards() {
        let mut db = servers.primary(shard, "shardctl plan").await?;
        db.patience = std::time::Duration::from_secs(3600);
        for table in sharded(&db, &servers.config).await? {
            let hash = hash_sql(&ident(&table.key_column), table.key_type);
            let figure =
                if by == Measure::Rows { "count(*)" } else { "coalesce(sum(pg_column_size(t.*)), 0)" };
            let sql = format!(
                "SELECT ({hash} & {})::int4, ({figure})::int8 FROM {} t GROUP BY 1",
                buckets - 1,
                table.sql()
            );
            for row in db.rows(&sql, &[]).await? {
                let bucket = usize::try_from(row.try_get::<_, i32>(0)?)?;
                if map.map.owners().get(bucket) == Some(&shard) {
                    load[bucket] += u64::try_from(row.try_get::<_, i64>(1)?)?;
                }
            }
        }
    }
    Ok(load)
}

/// The tenants with most bytes, over all shards.
pub async fn tenants(servers: &Servers, top: usize) -> anyhow::Result<Report> {
    let control = servers.control("shardctl tenants").await?;
    let map = catalog::map(&control).await?;
    let mut all: Vec<(i64, i64, String, u16)> = Vec::new();
    for shard in map.map.shards() {
        let mut db = servers.primary(shard, "shardctl tenants").await?;
        db.patience = std::time::Duration::from_secs(3600);
        let parts: Vec<_> = sharded(&db, &servers.config)
            .await?
            .iter()
            .map(|table| {
                let key = ident(&table.key_column);
                format!(
                    "SELECT {key}::text AS tenant, {} AS hash, count(*) AS n, sum(pg_column_size(t.*)) AS bytes FROM {} t GROUP BY 1, 2",
                    hash_sql(&key, table.key_type),
                    table.sql()
                )
            })
            .collect();
        if parts.is_empty() {
            continue;
        }
        let sql = format!(
            "SELECT tenant, hash, sum(n)::int8, sum(bytes)::int8 FROM ({}) a GROUP BY 1, 2 ORDER BY 4 DESC LIMIT $1",
            parts.join(" UNION ALL ")
        );
        // Twice as many: rows that only wait to be deleted from a shard are not its own.
        for row in db.rows(&sql, &[&i64::try_from(top * 2)?]).await? {
            if map.owner_of_hash(KeyHash::new(row.try_get(1)?)) == shard {
                all.push((row.try_get(3)?, row.try_get(2)?, row.try_get(0)?, shard.0));
            }
        }
    }
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.truncate(top);
    let rows: Vec<_> = all
        .iter()
        .map(|(bytes, rows, tenant, shard)| {
            vec![tenant.clone(), shard.to_string(), rows.to_string(), human(*bytes)]
        })
        .collect();
    let json = all
        .iter()
        .map(|(bytes, rows, tenant, shard)| json!({ "tenant": tenant, "shard": shard, "rows": rows, "bytes": bytes }))
        .collect::<Vec<_>>();
    Ok(Report { json: json!(json), text: table(&["tenant", "shard", "rows", "size"], &rows), well: true })
}

#[cfg(test)]
mod tests {
    use shard_config::ShardMap;

    use super::*;

    #[test]
    fn a_plan_round_trips_and_is_refused_for_another_map() {
        let step = Step {
            source: ShardId(1),
            target: ShardId(2),
            ranges: vec![(0, 3)],
            hashes: vec![KeyHash::new(-5)],
        };
        let plan = Plan { epoch: 3, epoch_id: "a".into(), steps: vec![step] };
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
