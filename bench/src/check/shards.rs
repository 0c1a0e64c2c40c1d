//! Connections of the check: one snapshot a shard, so that all its questions are answered at one moment.
use super::report::{CheckReport, Invariant};
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

pub struct Session {
    pub shard: u16,
    pub client: Client,
}

/// Not read-only, because acknowledgements are joined through a temporary table. `session_replication_role` keeps
/// that table away from event triggers, which would tell the proxies that the schema has changed. Hash joins only: the
/// tables grew a moment ago, and without fresh statistics the planner joins millions of rows by the tenant alone.
const SETTINGS: &str = "SET session_replication_role = replica; SET statement_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET search_path = public, pg_catalog; SET work_mem = '64MB'; \
    SET TimeZone = 'UTC'; SET jit = off; SET enable_nestloop = off; SET enable_mergejoin = off; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1";

pub async fn open(stack: &Stack) -> Result<Vec<Session>> {
    let mut sessions = Vec::with_capacity(stack.shards.len());
    for shard in &stack.shards {
        let client = connect(&shard.primary).await?;
        client.batch_execute(SETTINGS).await.with_context(|| format!("shard {}", shard.id))?;
        sessions.push(Session { shard: shard.id, client });
    }
    Ok(sessions)
}

/// Waits until nothing is unpublished, or says what was left when the time was over.
pub async fn wait_for_outbox(stack: &Stack, patience: Duration, report: &mut CheckReport) -> Result<()> {
    let mut invariant = Invariant::new("outbox_drained", "shards whose outbox was published completely");
    let start = Instant::now();
    let give_up = start + patience;
    for shard in &stack.shards {
        let client = connect(&shard.primary).await?;
        loop {
            let row = client
                .query_one("SELECT count(*) FROM public.outbox WHERE published_at IS NULL", &[])
                .await?;
            let pending: i64 = row.get(0);
            if pending == 0 || Instant::now() >= give_up {
                invariant.expect(pending == 0, || {
                    format!("shard {}: {pending} events still unpublished after {patience:?}", shard.id)
                });
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    report.note(format!("waited {:.1} s for the outbox", start.elapsed().as_secs_f64()));
    report.push(invariant);
    Ok(())
}
