//! `bench compare`: side by side, in one run.
pub mod memory;
pub mod posting;
pub mod proxy;
pub mod rebalance;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Subcommand, Clone, Debug)]
pub enum What {
    /// pgbench select-by-key through PostgreSQL directly, HAProxy, PgBouncer and our proxy over four shards.
    Proxy(proxy::ProxyArgs),
    /// The proxy's resident memory while a client reads ten million rows of four shards, plainly, in order, aggregated,
    /// and slowly.
    Memory(memory::MemoryArgs),
    /// A payment as a JPA application posts it, row by row, beside the set-based statement of the core; directly to
    /// one PostgreSQL and through our proxy over four shards.
    Posting(posting::PostingArgs),
    /// Buckets move between the running stack's shards under payments: what clients lose, wait for and see.
    Rebalance(rebalance::RebalanceArgs),
}

pub async fn run(args: CompareArgs) -> Result<bool> {
    match args.what {
        What::Proxy(args) => proxy::run(args).await,
        What::Memory(args) => memory::run(args).await,
        What::Posting(args) => posting::run(args).await,
        What::Rebalance(args) => rebalance::run(args).await,
    }
}
