//! What is moved, step by step.
use super::RebalanceArgs;
use super::scope::Scope;
use super::shardctl::{Shardctl, stack_now};
use crate::stack::Stack;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Buckets from shard 1 to shard 3, the window left open.
    Move,
    /// The same buckets back, within the window.
    Rollback,
    /// Everything from shard 2 to the others.
    Drain,
    /// A fifth shard, and its share of the buckets to it.
    Add,
    /// The tenant with the most payments to a shard of its own choice.
    Isolate,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Move, Kind::Rollback, Kind::Drain, Kind::Add, Kind::Isolate];

    /// A roll-back goes back to rows that are there.
    pub fn copies(self) -> bool {
        self != Kind::Rollback
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Move => "move",
            Kind::Rollback => "rollback",
            Kind::Drain => "drain",
            Kind::Add => "add a shard",
            Kind::Isolate => "isolate a tenant",
        }
    }
}

/// A step, and what moves while it runs.
pub struct Step {
    pub kind: Kind,
    pub scopes: Vec<Scope>,
    command: Vec<String>,
}

/// Of the first step.
pub const FROM: u16 = 1;
pub const TO: u16 = 3;
const DRAINED: u16 = 2;

const FOR_GOOD: &str = "--auto --finish";

/// Makes a plan for the goal; what is left is to carry it out.
async fn planned(tool: &Shardctl, goal: &str, how: &str) -> Result<(Vec<Scope>, Vec<String>)> {
    let file = tool.plan_file().display().to_string();
    let mut plan = words(&format!("plan {goal} --save"));
    plan.push(file.clone());
    tool.run(&plan).await?;
    let mut apply = vec!["apply".to_owned(), file];
    apply.extend(words(how));
    Ok((tool.planned()?, apply))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Step {
    pub async fn of(kind: Kind, args: &RebalanceArgs, stack: &Stack, tool: &Shardctl) -> Result<Step> {
        let (scopes, command) = match kind {
            Kind::Move => {
                let (first, last) = args.range();
                planned(tool, &format!("move --buckets {first}-{last} --to {TO}"), "--auto").await?
            }
            Kind::Rollback => {
                let id = tool.last_move().await?.context("there is no move to roll back")?;
                let moved = tool.moves_after(Some(id)).await?.pop().context("the move to roll back")?;
                (vec![moved.scope], words(&format!("rollback {id}")))
            }
            Kind::Drain => planned(tool, &format!("drain {DRAINED}"), FOR_GOOD).await?,
            Kind::Add => {
                super::shardctl::add_shard().await?;
                let now = stack_now(stack).await?;
                if now.shards.len() <= stack.shards.len() {
                    bail!("no shard was added");
                }
                planned(tool, "rebalance", FOR_GOOD).await?
            }
            Kind::Isolate => {
                let tenant = tool.busiest_tenant().await?;
                let to = tool.other_shard(&tenant).await?;
                planned(tool, &format!("isolate {tenant} --to {to}"), FOR_GOOD).await?
            }
        };
        ensure!(!scopes.is_empty(), "{}: nothing is to be moved", kind.name());
        Ok(Step { kind, scopes, command })
    }

    pub async fn run(&self, tool: &Shardctl) -> Result<()> {
        tool.run(&self.command).await
    }
}
