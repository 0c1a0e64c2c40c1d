//! Deadlocks over several shards: looked for where waits are old, ended with 40P01 for one of the transactions.
//!
//! Every proxy asks each primary for waits that are older than `DEADLOCK_AGE`. When there are any, it writes down on
//! the default shard which backends work for which of its clients, and reads what the other proxies have written, so
//! that a cycle through clients of several proxies is seen by all of them (`waits`, PURE). The proxy that serves the
//! victim ends it, when two looks in a row have found the same waits: the shards are not asked at one moment, so a
//! single look may put together waits that never were at the same time.
//!
//! Costs a transaction nothing: no lock, no row and no message of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::Context as _;
use futures_util::future::join_all;
use shard_config::ShardId;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::limits::{DEADLOCK_AGE, DEADLOCK_POLL, DEADLOCK_STEP, DEADLOCK_WAITS};
use super::waits::{Backend, Owner, Victim, Wait, may_hide, victims};
use crate::admin::{Context, workers};
use crate::worker::Mail;

const WAITS: &str = "
SELECT DISTINCT l.pid, (extract(epoch FROM l.waitstart) * 1000000)::int8, pg_blocking_pids(l.pid)
FROM pg_locks l
WHERE NOT l.granted AND l.waitstart < clock_timestamp() - $1 * interval '1 millisecond' LIMIT $2";

/// Rows of a proxy that died go with the next one's.
const FORGET: &str = "
DELETE FROM shard_catalog.open_transaction WHERE proxy = $1 OR noted_at < clock_timestamp() - interval '1 minute'";
const NOTE: &str = "
INSERT INTO shard_catalog.open_transaction (proxy, client, shard, pid)
SELECT $1, c, s, p FROM unnest($2::int8[], $3::int4[], $4::int4[]) AS u (c, s, p) ON CONFLICT DO NOTHING";
const OTHERS: &str = "
SELECT proxy, client, shard, pid FROM shard_catalog.open_transaction
WHERE proxy <> $1 AND noted_at > clock_timestamp() - interval '10 seconds'";

/// Only a backend that is still in the very same wait.
const CANCEL: &str = "
SELECT pg_cancel_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks
WHERE pid = $1 AND NOT granted AND (extract(epoch FROM waitstart) * 1000000)::int8 = $2) w";

/// Runs for ever.
pub(super) async fn watch(context: Context) {
    let name = context.shared.load().config.proxy.name.clone();
    let mut watch = Watch {
        proxy: format!("{name}/{:08x}", rand::random::<u32>()),
        context,
        noted: false,
        before: BTreeSet::new(),
    };
    loop {
        sleep(DEADLOCK_POLL).await;
        if let Err(error) = watch.look().await {
            tracing::warn!(error = format!("{error:#}"), "deadlocks over several shards were not looked for");
        }
    }
}

struct Watch {
    context: Context,
    proxy: String,
    /// Rows of ours may be on the default shard.
    noted: bool,
    /// What the last look has found.
    before: BTreeSet<Victim>,
}

impl Watch {
    async fn look(&mut self) -> anyhow::Result<()> {
        let before = std::mem::take(&mut self.before);
        let waits = self.waits().await;
        let shards: BTreeSet<usize> = waits.iter().map(|wait| wait.backend.0).collect();
        let ours = if waits.is_empty() { Vec::new() } else { self.ours().await };
        let mut owners: BTreeMap<Backend, Owner> = ours.iter().cloned().collect();
        if shards.len() < 2 && !may_hide(&waits, &owners) {
            // A cycle that its server does not see has a wait on two shards, or two backends of one client.
            return if self.noted { self.exchange(&[]).await.map(|_| ()) } else { Ok(()) };
        }
        match self.exchange(&ours).await {
            Ok(others) => owners.extend(others),
            // Cycles among our own clients are found without the default shard.
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), "other proxies' transactions are not known")
            }
        }
        self.before = victims(&waits, &owners);
        for victim in self.before.intersection(&before).filter(|victim| victim.owner.proxy == self.proxy) {
            self.end(victim).await?;
        }
        Ok(())
    }

    /// Of all primaries that answer.
    async fn waits(&self) -> Vec<Wait> {
        let state = self.context.shared.load();
        let asks = state.shards.iter().enumerate().map(async |(shard, at)| {
            let slot = at.primary.as_ref()?.slot;
            let ask = async {
                let client = self.context.control.servers.server(shard, slot).client().await?;
                let age = DEADLOCK_AGE.as_millis() as f64;
                let rows = client.query(WAITS, &[&age, &(DEADLOCK_WAITS as i64)]).await?;
                let wait = |row: tokio_postgres::Row| {
                    Ok(Wait {
                        backend: (shard, row.try_get(0)?),
                        since_us: row.try_get(1)?,
                        blockers: row.try_get(2)?,
                    })
                };
                rows.into_iter()
                    .map(wait)
                    .collect::<Result<Vec<_>, tokio_postgres::Error>>()
                    .context("waits for locks")
            };
            match timeout(DEADLOCK_STEP, ask).await {
                Ok(Ok(waits)) => Some(waits),
                // Its prober says what is wrong with it.
                Ok(Err(_)) | Err(_) => None,
            }
        });
        join_all(asks).await.into_iter().flatten().flatten().collect()
    }

    /// Our clients that have several servers.
    async fn ours(&self) -> Vec<(Backend, Owner)> {
        let state = self.context.shared.load();
        let shard_of = |address: &SocketAddr| {
            state.shards.iter().position(|s| s.primary.as_ref().is_some_and(|p| p.address == *address))
        };
        let mut backends = Vec::new();
        for client in workers::clients(&self.context.workers).await {
            let at: Vec<Backend> =
                client.servers.iter().filter_map(|(address, pid)| Some((shard_of(address)?, *pid))).collect();
            let owner = Owner { proxy: self.proxy.clone(), client: client.id };
            if at.len() > 1 {
                backends.extend(at.into_iter().map(|backend| (backend, owner.clone())));
            }
        }
        backends
    }

    /// Says what we know and learns what the other proxies know.
    async fn exchange(&mut self, ours: &[(Backend, Owner)]) -> anyhow::Result<Vec<(Backend, Owner)>> {
        let state = self.context.shared.load();
        let home = state.config.proxy.default_shard;
        let position = state.position(home).context("no default shard")?;
        let slot = state.shards[position].primary.as_ref().context("the default shard has no primary")?.slot;
        let step = async {
            let mut client = self.context.control.servers.server(position, slot).client().await?;
            let transaction = client.transaction().await?;
            // Nobody needs it after a crash.
            transaction.batch_execute("SET LOCAL synchronous_commit = off").await?;
            transaction.execute(FORGET, &[&self.proxy]).await?;
            if !ours.is_empty() {
                let clients: Vec<i64> = ours.iter().map(|(_, owner)| owner.client.into()).collect();
                let shards: Vec<i32> =
                    ours.iter().map(|((shard, _), _)| i32::from(state.shards[*shard].id.0)).collect();
                let pids: Vec<i32> = ours.iter().map(|((_, pid), _)| *pid).collect();
                transaction.execute(NOTE, &[&self.proxy, &clients, &shards, &pids]).await?;
            }
            let rows = transaction.query(OTHERS, &[&self.proxy]).await?;
            transaction.commit().await?;
            anyhow::Ok(rows)
        };
        self.noted = true;
        let rows = timeout(DEADLOCK_STEP, step).await.context("no answer from the default shard")??;
        self.noted = !ours.is_empty();
        let mut others = Vec::new();
        for row in rows {
            let shard: i32 = row.try_get(2)?;
            // A proxy of another configuration may know shards that we do not.
            let Some(at) = u16::try_from(shard).ok().and_then(|id| state.position(ShardId(id))) else {
                continue;
            };
            let client = u32::try_from(row.try_get::<_, i64>(1)?).context("a client's id")?;
            others.push(((at, row.try_get(3)?), Owner { proxy: row.try_get(0)?, client }));
        }
        Ok(others)
    }

    /// The worker marks the session, and keeps the server from anybody else until the signal was sent (H38).
    async fn end(&self, victim: &Victim) -> anyhow::Result<()> {
        let state = self.context.shared.load();
        let (shard, pid) = victim.backend;
        let Some(primary) = state.shards.get(shard).and_then(|s| s.primary.clone()) else { return Ok(()) };
        let worker =
            self.context.workers.get((victim.owner.client >> 24) as usize).context("no such worker")?;
        let (held, holding) = oneshot::channel();
        let mail = Mail::Deadlock { client: victim.owner.client, server: (primary.address, pid), held };
        worker.mail.send(mail).await.context("the worker has ended")?;
        let Ok(Ok(_release)) = timeout(DEADLOCK_STEP, holding).await else {
            return Ok(()); // It works for that client no more.
        };
        let step = async {
            let client = self.context.control.servers.server(shard, primary.slot).client().await?;
            anyhow::Ok(client.query(CANCEL, &[&pid, &victim.since_us]).await?)
        };
        let cancelled = timeout(DEADLOCK_STEP, step).await.context("no answer to a cancel")??;
        if !cancelled.is_empty() {
            let shard = state.shards[shard].id.0;
            tracing::info!(
                client = victim.owner.client,
                shard,
                pid,
                "deadlock over several shards: transaction given up"
            );
        }
        Ok(())
    }
}

/// What PostgreSQL says (deadlock.c), of a deadlock that only all shards together show.
pub fn deadlock_detected() -> crate::error::ProxyError {
    crate::error::ProxyError::new("40P01", "deadlock detected")
        .detail("Transactions on several shards wait for each other; this one was given up so that the others can go on.")
        .hint("Run the transaction again. Transactions that touch shards and rows in the same order do not deadlock.")
        .retry(crate::error::Retry::Safe)
}
