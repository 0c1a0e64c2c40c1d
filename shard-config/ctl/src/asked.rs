//! What a request of `shard_catalog.request` asks for (`shard-config/sql/verbs.sql`): rows to be somewhere, or a look.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::ShardId;

use crate::direct::Servers;
use crate::mover::run::Options;
use crate::plans::{self, Goal, Measure};
use crate::tenants::{self, Order};
use crate::{moves, reload};

/// A request as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: i64,
    pub(crate) goal: Value,
}

#[derive(Debug)]
pub(crate) enum Asked {
    Moves(Wanted),
    Look(Look),
}

/// What is to be where, and how.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) goal: Goal,
    pub(crate) weights: Vec<(ShardId, u32)>,
    pub(crate) options: Options,
    pub(crate) dry_run: bool,
}

/// Answered at once, as `shardctl --json` does.
#[derive(Debug)]
pub(crate) enum Look {
    Diff(i64),
    Tenants { top: usize, by: Order, seconds: Option<u32> },
    Servers,
    Reload { dry_run: bool },
}

impl Look {
    /// And whether its exit status is 0.
    pub(crate) async fn answer(self, servers: &Servers) -> anyhow::Result<(Value, bool)> {
        let (report, status) = match self {
            Self::Diff(id) => moves::diff(servers, id).await?,
            Self::Tenants { top, by, seconds } => (tenants::tenants(servers, top, by, seconds).await?, 0),
            Self::Servers => reload::servers(servers).await?,
            Self::Reload { dry_run } => reload::reload(servers, dry_run).await?,
        };
        let mut answer = json!({ "status": status, "report": report.json });
        if status != 0 {
            answer["error"] = report.text.trim_end().into();
        }
        Ok((answer, status == 0))
    }
}

impl Request {
    pub(crate) fn wanted(&self, servers: &Servers) -> anyhow::Result<Asked> {
        if let Some(look) = self.look()? {
            return Ok(Asked::Look(look));
        }
        let goal = &self.goal;
        let number = |name: &str| goal[name].as_u64().with_context(|| format!("{name} is to be a number"));
        let small = |name: &str| -> anyhow::Result<u16> {
            number(name)?.try_into().with_context(|| format!("{name} is too large"))
        };
        let flag = |name: &str| goal[name].as_bool().unwrap_or(false);
        let mut weights = plans::weights(servers, &[])?;
        let what = match goal["verb"].as_str() {
            Some("move") => {
                let ranges = match goal["buckets"].as_str() {
                    Some(text) => shard_config::ranges::parse(text)?,
                    None => vec![(small("first")?, small("last")?)],
                };
                Goal::Buckets { ranges, target: ShardId(small("target")?) }
            }
            Some("drain") => Goal::Drain(ShardId(small("shard")?)),
            Some("rebalance") => {
                let given: BTreeMap<String, u32> = serde_json::from_value(goal["weights"].clone())
                    .context("weights are {\"SHARD\": WEIGHT}")?;
                let given: Vec<String> = given.iter().map(|(id, weight)| format!("{id}={weight}")).collect();
                weights = plans::weights(servers, &given)?;
                let by = match goal["measure"].as_str() {
                    Some("buckets") => Measure::Buckets,
                    Some("rows") => Measure::Rows,
                    Some("bytes") => Measure::Bytes,
                    // A request plans again before each step, and no two seconds have the same load.
                    Some("load") if flag("dry_run") => Measure::Load,
                    Some("load") => anyhow::bail!(
                        "by load only with dry_run => true: shardctl plan rebalance --by load --save FILE, then shardctl apply FILE"
                    ),
                    other => anyhow::bail!("measure is {other:?}: buckets, rows, bytes or load"),
                };
                let tolerance = number("tolerance")?.try_into().context("tolerance")?;
                Goal::Rebalance { by, tolerance, seconds: crate::figures::SECONDS }
            }
            Some("isolate") => {
                let tenant = goal["tenant"].as_str().context("tenant is to be a text")?.to_owned();
                Goal::Isolate { tenant, target: ShardId(small("target")?) }
            }
            other => anyhow::bail!("{other:?} is no verb of this version of shardctl"),
        };
        let options = Options { auto: flag("auto"), finish: flag("finish"), stay: false };
        Ok(Asked::Moves(Wanted { goal: what, weights, options, dry_run: flag("dry_run") }))
    }

    fn look(&self) -> anyhow::Result<Option<Look>> {
        let goal = &self.goal;
        let number = |name: &str| goal[name].as_i64().with_context(|| format!("{name} is to be a number"));
        Ok(Some(match goal["verb"].as_str() {
            Some("diff") => Look::Diff(number("move")?),
            Some("tenants") => {
                let by = match goal["measure"].as_str() {
                    Some("size") => Order::Size,
                    Some("rate") => Order::Rate,
                    other => anyhow::bail!("measure is {other:?}: size or rate"),
                };
                let seconds = match goal["seconds"].is_null() {
                    true => None,
                    false => Some(
                        u32::try_from(number("seconds")?)
                            .ok()
                            .filter(|n| (1..=3600).contains(n))
                            .context("seconds are a number from 1 to 3600")?,
                    ),
                };
                Look::Tenants { top: number("top")?.try_into().context("top")?, by, seconds }
            }
            Some("servers") => Look::Servers,
            Some("reload") => Look::Reload { dry_run: goal["dry_run"].as_bool().unwrap_or(false) },
            _ => return Ok(None),
        }))
    }
}
