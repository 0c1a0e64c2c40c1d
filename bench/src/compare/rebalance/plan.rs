//! What is moved, step by step.
use super::RebalanceArgs;
use super::shardctl::{Shardctl, stack_now};
use crate::stack::Stack;
use anyhow::{Context, Result, bail};
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

/// A step, and the buckets whose rows are watched while it runs (all when empty).
pub struct Step {
    pub kind: Kind,
    pub scopes: Vec<(u16, u16)>,
    commands: Vec<Vec<String>>,
}

/// Of the first step.
pub const FROM: u16 = 1;
pub const TO: u16 = 3;
const DRAINED: u16 = 2;

const FOR_GOOD: &str = "--auto --finish";

/// Makes a plan for the goal, and carries it out.
fn planned(tool: &Shardctl, goal: &str, how: &str) -> Vec<Vec<String>> {
    let file = tool.plan_file().display().to_string();
    let with_file = |line: &str| {
        let mut all = words(line);
        all.push(file.clone());
        all
    };
    let mut apply = with_file("apply");
    apply.extend(words(how));
    vec![with_file(&format!("plan {goal} --save")), apply]
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Step {
    pub async fn of(kind: Kind, args: &RebalanceArgs, stack: &Stack, tool: &Shardctl) -> Result<Step> {
        let range = args.range();
        let mut scopes = Vec::new();
        let commands = match kind {
            Kind::Move => {
                scopes.push(range);
                planned(tool, &format!("move --buckets {}-{} --to {TO}", range.0, range.1), "--auto")
            }
            Kind::Rollback => {
                scopes.push(range);
                let id = tool.last_move().await?.context("there is no move to roll back")?;
                vec![words(&format!("rollback {id}"))]
            }
            Kind::Drain => planned(tool, &format!("drain {DRAINED}"), FOR_GOOD),
            Kind::Add => {
                super::shardctl::add_shard().await?;
                let now = stack_now(stack).await?;
                if now.shards.len() <= stack.shards.len() {
                    bail!("no shard was added");
                }
                planned(tool, "rebalance", FOR_GOOD)
            }
            Kind::Isolate => {
                let tenant = tool.busiest_tenant().await?;
                let to = tool.other_shard(&tenant).await?;
                planned(tool, &format!("isolate {tenant} --to {to}"), FOR_GOOD)
            }
        };
        Ok(Step { kind, scopes, commands })
    }

    pub async fn run(&self, tool: &Shardctl) -> Result<()> {
        for command in &self.commands {
            tool.run(command).await?;
        }
        Ok(())
    }
}
