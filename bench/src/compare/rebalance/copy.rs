//! The yardstick for the mover's copy: the same rows by `COPY (SELECT ...) | COPY` into equally populated, indexed tables, under
//! the same load, right before. They go to other shards than the move's, once to each: what they leave behind there (pages that
//! are split and free, files that are long enough) would make a second copy the faster one. The target's transaction is rolled
//! back, so that nobody ever sees the rows there.
use super::RebalanceArgs;
use super::clients::{Clients, Noticed};
use super::plan::{FROM, TO};
use super::scope::Scope;
use super::shardctl::Move;
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use std::time::Instant;

/// The rows by COPY.
#[derive(Clone, Debug, Default)]
pub struct Yardstick {
    /// The shard.
    pub onto: u16,
    pub rows: u64,
    pub mib: f64,
    pub seconds: f64,
    /// Of all rows of the source, those that were copied.
    pub share: f64,
    /// Meanwhile.
    pub noticed: Noticed,
}

impl Yardstick {
    pub fn rows_per_s(&self) -> f64 {
        self.rows as f64 / self.seconds
    }
}

/// And by the mover.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    pub copy_rows: u64,
    pub copy_seconds: f64,
    pub mover_rows: i64,
    pub mover_seconds: f64,
}

impl Copied {
    /// `None` when the move, or nobody else, copied anything.
    pub fn new(by_copy: &[Yardstick], moved: &Move) -> Option<Copied> {
        let (mover_seconds, mover_rows) = (moved.copy_s?, moved.copied_rows()?);
        let (copy_rows, copy_seconds) =
            by_copy.iter().fold((0, 0.0), |(rows, seconds), one| (rows + one.rows, seconds + one.seconds));
        (copy_rows > 0).then_some(Copied { copy_rows, copy_seconds, mover_rows, mover_seconds })
    }

    pub fn copy_rows_per_s(&self) -> f64 {
        self.copy_rows as f64 / self.copy_seconds
    }

    pub fn mover_rows_per_s(&self) -> f64 {
        self.mover_rows as f64 / self.mover_seconds
    }

    /// Rows a second of the mover, as a part of those of COPY.
    pub fn ratio(&self) -> f64 {
        self.mover_rows_per_s() / self.copy_rows_per_s()
    }
}

const TABLES: &str = "
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = 'public'
   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)
 ORDER BY 1";

/// Shards that have nothing to do with the first step.
pub fn others(stack: &Stack) -> Vec<u16> {
    stack.shards.iter().map(|shard| shard.id).filter(|id| ![FROM, TO].contains(id)).collect()
}

/// Copies what the first step will move, to one of the `others`.
pub async fn measure(args: &RebalanceArgs, stack: &Stack, onto: u16) -> Result<Yardstick> {
    // As beside that step.
    let clients = Clients::start(args.rate, stack, &[Scope::buckets(args.range())]).await?;
    let copied = copy(args.range(), stack, onto).await;
    let noticed = clients.stop().await;
    let (rows, bytes, all, seconds) = copied?;
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok(Yardstick { onto, rows, mib, seconds, share: rows as f64 / all as f64, noticed: noticed? })
}

async fn copy((first, last): (u16, u16), stack: &Stack, onto: u16) -> Result<(u64, u64, i64, f64)> {
    let shard =
        |id: u16| stack.shards.iter().find(|shard| shard.id == id).with_context(|| format!("shard {id}"));
    let source = connect(&shard(FROM)?.primary).await?;
    let target = connect(&shard(onto)?.primary).await?;
    let tables: Vec<String> = source.query(TABLES, &[]).await?.iter().map(|row| row.get(0)).collect();
    let mut all = 0i64;
    for table in &tables {
        all += source.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get::<_, i64>(0);
    }
    let (mut rows, mut bytes) = (0, 0);
    // As for replicated rows: foreign keys were checked where the rows come from.
    target.batch_execute("BEGIN; SET LOCAL session_replication_role = replica").await?;
    let begun = Instant::now();
    for table in &tables {
        let out = source
            .copy_out(&format!(
                "COPY (SELECT * FROM {table} WHERE (uuid_hash_extended(tenant_id, 8816678312871386365) & 4095) \
                 BETWEEN {first} AND {last}) TO STDOUT (FORMAT binary)"
            ))
            .await?;
        let sink = target.copy_in(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
        let (mut out, mut sink) = (std::pin::pin!(out), std::pin::pin!(sink));
        while let Some(chunk) = out.next().await {
            let chunk: bytes::Bytes = chunk?;
            bytes += chunk.len() as u64;
            sink.send(chunk).await?;
        }
        rows += sink.finish().await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    target.batch_execute("ROLLBACK").await?;
    Ok((rows, bytes, all, seconds))
}
