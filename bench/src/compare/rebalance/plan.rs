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

const FROM: u16 = 1;
const TO: u16 = 3;
const DRAINED: u16 = 2;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Step {
    pub async fn of(kind: Kind, args: &RebalanceArgs, stack: &Stack, tool: &Shardctl) -> Result<Step> {
        let range = (0, args.buckets - 1);
        let mut scopes = Vec::new();
        let commands = match kind {
            Kind::Move => {
                scopes.push(range);
                vec![words(&format!("move --buckets {}-{} --from {FROM} --to {TO} --auto", range.0, range.1))]
            }
            Kind::Rollback => {
                scopes.push(range);
                let id = tool.last_move().await?.context("there is no move to roll back")?;
                vec![words(&format!("rollback {id}"))]
            }
            Kind::Drain => vec![words(&format!("drain {DRAINED} --auto --finish"))],
            Kind::Add => {
                super::shardctl::add_shard().await?;
                let now = stack_now(stack).await?;
                if now.shards.len() <= stack.shards.len() {
                    bail!("no shard was added");
                }
                vec![words("rebalance --auto --finish")]
            }
            Kind::Isolate => {
                let tenant = tool.busiest_tenant().await?;
                let to = tool.other_shard(&tenant).await?;
                vec![words(&format!("isolate {tenant} --to {to} --auto --finish"))]
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
