//! What is to be planned, as the command line says it.

use clap::Subcommand;
use shard_config::{ShardId, ranges};
use shardctl::exit::Failure;
use shardctl::figures;
use shardctl::plans::{Goal, Measure};

#[derive(Subcommand)]
pub enum PlanGoal {
    /// Any set of buckets to a shard, from wherever they are.
    Move {
        /// FROM-TO, both included, or several of them: 0-9,40-49,77.
        #[arg(long)]
        buckets: String,
        #[arg(long)]
        to: u16,
    },
    /// Everything of a shard to the others.
    Drain { shard: u16 },
    /// Every shard to its weighted share, moving as little as possible.
    Rebalance {
        #[arg(long, value_enum, default_value = "buckets")]
        by: Measure,
        /// Per cent by which a shard may be above its share (with --by rows, bytes or load).
        #[arg(long, default_value_t = 5)]
        tolerance: u32,
        /// Count for so long what is written (with --by load).
        #[arg(long, default_value_t = figures::SECONDS, value_parser = clap::value_parser!(u32).range(1..=3600))]
        seconds: u32,
    },
    /// One tenant to a shard; its bucket stays.
    Isolate {
        tenant: String,
        #[arg(long)]
        to: u16,
    },
}

pub fn goal(goal: &PlanGoal) -> Result<Goal, Failure> {
    Ok(match goal {
        PlanGoal::Move { buckets, to } => {
            let ranges =
                ranges::parse(buckets).map_err(|error| Failure::usage(format!("--buckets: {error}")))?;
            Goal::Buckets { ranges, target: ShardId(*to) }
        }
        PlanGoal::Drain { shard } => Goal::Drain(ShardId(*shard)),
        PlanGoal::Rebalance { by, tolerance, seconds } => {
            Goal::Rebalance { by: *by, tolerance: *tolerance, seconds: *seconds }
        }
        PlanGoal::Isolate { tenant, to } => Goal::Isolate { tenant: tenant.clone(), target: ShardId(*to) },
    })
}
