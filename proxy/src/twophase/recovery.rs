//! Finishes transactions over several shards that nobody else finishes.
//!
//! Every proxy does this for every transaction of the cluster; that two do it at once is harmless, because both do
//! what the decision row says and the second finds nothing left to do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context;
use deadpool_postgres::Object;
use parking_lot::Mutex;
use shard_config::ShardId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::error::SqlState;

use super::Gid;
use super::confirm::Confirmations;
use super::forget::Forget;
use crate::control::limits::{
    RECOVERY_AGE, RECOVERY_BATCH, RECOVERY_LOCK, RECOVERY_POLL, RECOVERY_STEP, RECOVERY_TERMINATE,
};
use crate::control::{Servers, World};

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    /// Its first shard cannot be asked now, or its decision is not on the standby yet; it stays prepared and will be
    /// finished.
    Unknown,
}

/// A coordinator gave up: find out, or decide, what became of the transaction, and finish it on `participants`.
#[derive(Debug)]
pub struct Resolve {
    pub gid: Gid,
    pub participants: Vec<ShardId>,
    /// The outcome, and the participants that could not be finished yet.
    pub answer: oneshot::Sender<(Outcome, Vec<ShardId>)>,
}

/// Shards without which a prepared transaction could not be finished: where it is, and where it is decided.
#[derive(Debug, Default)]
struct Needed {
    shards: HashSet<ShardId>,
    /// Shards whose transactions are not known.
    silent: usize,
}

impl Needed {
    fn note<'a>(&mut self, shard: ShardId, prepared: impl Iterator<Item = &'a Gid>) {
        self.shards.extend(prepared.flat_map(|gid| [shard, gid.first]));
    }

    fn lets_go(&self, shard: ShardId) -> bool {
        self.silent == 0 && !self.shards.contains(&shard)
    }
}

#[derive(Debug)]
pub struct Recovery {
    servers: Arc<Servers>,
    world: Arc<World>,
    /// For the metrics.
    prepared: Arc<Mutex<Vec<(ShardId, u64)>>>,
    confirmations: Confirmations,
}

impl Recovery {
    pub fn new(servers: Arc<Servers>, world: Arc<World>, prepared: Arc<Mutex<Vec<(ShardId, u64)>>>) -> Self {
        Self { servers, world, prepared, confirmations: Confirmations::default() }
    }

    pub async fn run(self, requests: mpsc::Receiver<Resolve>) {
        let forgetting = Forget::new(self.servers.clone(), self.world.clone()).run();
        tokio::select! {
            () = self.recover(requests) => {}
            () = forgetting => {}
        }
    }

    async fn recover(mut self, mut requests: mpsc::Receiver<Resolve>) {
        let mut tick = interval(RECOVERY_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.resolve(request).await,
                    None => return,
                },
                _ = tick.tick() => self.sweep().await,
            }
        }
    }

    async fn resolve(&mut self, request: Resolve) {
        let outcome = match self.outcome(&request.gid, true).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(gid = %request.gid, ?error, "the outcome of a transaction cannot be asked");
                Outcome::Unknown
            }
        };
        let mut waiting = Vec::new();
        for shard in request.participants {
            let finished = match outcome {
                Outcome::Unknown => Ok(false),
                outcome => self.finish(shard, &request.gid, outcome).await.map(|()| true),
            };
            if let Err(error) = &finished {
                tracing::warn!(gid = %request.gid, shard = shard.0, ?error, "a prepared transaction is not finished yet");
            }
            if !finished.unwrap_or(false) {
                waiting.push(shard);
            }
        }
        let _ = request.answer.send((outcome, waiting)); // The session may be gone.
    }

    /// Finishes every prepared transaction of ours that is older than any live coordinator would leave it.
    async fn sweep(&mut self) {
        let database = self.world.config().proxy.database.clone();
        let mut counts = Vec::new();
        let mut outcomes: HashMap<Gid, Outcome> = HashMap::new();
        // First shards that gave no answer in this round. Each question to one of them would take as long again, and
        // the clients that ask for an outcome wait behind it.
        let mut silent: HashSet<ShardId> = HashSet::new();
        // Before the lists are read: what ends meanwhile may have left something that they do not show.
        let leaving = self.world.leaving();
        let mut needed = Needed::default();
        for index in 0..self.servers.shards.len() {
            if self.world.is_gone(index) {
                continue;
            }
            let shard = self.servers.shards[index].id;
            needed.silent += 1;
            let orphans = match timeout(RECOVERY_STEP, self.orphans(index)).await {
                Ok(Ok(Some(orphans))) => orphans,
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => {
                    tracing::debug!(shard = shard.0, ?error, "prepared transactions cannot be listed");
                    continue;
                }
                Err(_) => continue,
            };
            let is_whole = orphans.len() < RECOVERY_BATCH as usize;
            let ours: Vec<_> = orphans
                .into_iter()
                .filter_map(|(gid, age)| Gid::parse(&gid).map(|gid| (gid, age)))
                .filter(|(gid, _)| gid.is_of(&database))
                .collect();
            // What a list that was cut does not show may need any shard.
            if is_whole {
                needed.silent -= 1;
            }
            needed.note(shard, ours.iter().map(|(gid, _)| gid));
            counts.push((shard, ours.len() as u64));
            for (gid, age) in ours.into_iter().filter(|(_, age)| *age >= RECOVERY_AGE.as_secs_f64()) {
                let outcome = match outcomes.get(&gid) {
                    Some(outcome) => *outcome,
                    None if silent.contains(&gid.first) => Outcome::Unknown,
                    None => {
                        let terminate = age >= RECOVERY_TERMINATE.as_secs_f64();
                        let outcome = self.outcome(&gid, terminate).await.unwrap_or_else(|error| {
                            tracing::warn!(%gid, ?error, "the outcome of an orphan cannot be asked");
                            silent.insert(gid.first);
                            Outcome::Unknown
                        });
                        outcomes.insert(gid.clone(), outcome);
                        outcome
                    }
                };
                if outcome == Outcome::Unknown {
                    continue;
                }
                match self.finish(shard, &gid, outcome).await {
                    Ok(()) => {
                        tracing::warn!(%gid, shard = shard.0, ?outcome, age_s = age, "finished an orphan")
                    }
                    Err(error) => {
                        tracing::warn!(%gid, shard = shard.0, ?error, "an orphan is not finished yet")
                    }
                }
            }
        }
        *self.prepared.lock() = counts;
        for (position, shard) in leaving {
            if needed.lets_go(shard) {
                self.world.let_go(position);
            }
        }
    }

    /// (gid, age in seconds); `None` while the shard has no primary.
    async fn orphans(&self, index: usize) -> anyhow::Result<Option<Vec<(String, f64)>>> {
        let Some(client) = self.client(self.servers.shards[index].id).await? else { return Ok(None) };
        let sql =
            "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts
            WHERE database = current_database() AND gid LIKE 'shardproxy:%' ORDER BY prepared LIMIT $1";
        let rows = client.query(sql, &[&RECOVERY_BATCH]).await?;
        Ok(Some(
            rows.iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                .collect::<Result<_, tokio_postgres::Error>>()?,
        ))
    }

    /// Reads the decision, or makes it 'abort'. `terminate`: a backend that holds an uncommitted decision is in the
    /// way for too long (its proxy was stopped): it is ended, which decides the matter one way or the other. A
    /// 'commit' counts only once the standby has it.
    async fn outcome(&mut self, gid: &Gid, terminate: bool) -> anyhow::Result<Outcome> {
        let ask = async {
            let outcome = self.decision(gid, terminate).await?;
            if outcome == Outcome::Committed {
                let client = self.client(gid.first).await?.context("the first shard has no primary")?;
                self.confirmations.wait(gid.first, client).await.context("waiting for the standby")?;
            }
            Ok(outcome)
        };
        timeout(RECOVERY_STEP, ask).await.context("no answer")?
    }

    async fn decision(&self, gid: &Gid, terminate: bool) -> anyhow::Result<Outcome> {
        let Some(mut client) = self.client(gid.first).await? else { return Ok(Outcome::Unknown) };
        if let Some(outcome) = read(&client, gid).await? {
            return Ok(outcome);
        }
        let mut buried = bury(&mut client, gid).await;
        if terminate && is_locked(&buried) {
            // One that waits for its standby has decided already: to end it would end that wait, and show a commit
            // that a promotion takes back.
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE backend_xid = $1::text::xid AND wait_event IS DISTINCT FROM 'SyncRep'";
            client.query(end, &[&(gid.xid & 0xffff_ffff).to_string()]).await?;
            buried = bury(&mut client, gid).await;
        }
        if is_locked(&buried) {
            return Ok(Outcome::Unknown);
        }
        buried?;
        read(&client, gid).await?.context("the tombstone that was just written is missing")
    }

    async fn finish(&self, shard: ShardId, gid: &Gid, outcome: Outcome) -> anyhow::Result<()> {
        let work = async {
            let client =
                self.client(shard).await?.with_context(|| format!("shard {shard} has no primary"))?;
            let verb = if outcome == Outcome::Committed { "COMMIT" } else { "ROLLBACK" };
            // A gid holds nothing that would need quoting (`gid::clean`).
            match client.batch_execute(&format!("{verb} PREPARED '{gid}'")).await {
                // Somebody else was faster, or there is nothing: `forget` finds out which.
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(()),
                result => Ok(result?),
            }
        };
        timeout(RECOVERY_STEP, work).await.context("no answer")?
    }

    async fn client(&self, shard: ShardId) -> anyhow::Result<Option<Object>> {
        client(&self.servers, &self.world, shard).await
    }
}

/// A connection to the shard's primary; `None` while it has none.
pub(super) async fn client(
    servers: &Servers,
    world: &World,
    shard: ShardId,
) -> anyhow::Result<Option<Object>> {
    let index = servers.position(shard).with_context(|| format!("no shard {shard}"))?;
    match world.primary(index) {
        Some(primary) => Ok(Some(servers.server(index, primary.slot).client().await?)),
        None => Ok(None),
    }
}

async fn read(client: &Object, gid: &Gid) -> Result<Option<Outcome>, tokio_postgres::Error> {
    let sql = "SELECT outcome = 'commit' FROM shard_catalog.decision WHERE gid = $1";
    let row = client.query_opt(sql, &[&gid.to_string()]).await?;
    let commit = row.map(|row| row.try_get::<_, bool>(0)).transpose()?;
    Ok(commit.map(|commit| if commit { Outcome::Committed } else { Outcome::Aborted }))
}

/// The decision is there and neither committed nor rolled back.
fn is_locked(buried: &Result<(), tokio_postgres::Error>) -> bool {
    buried.as_ref().is_err_and(|error| error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
}

/// Waits for an uncommitted decision of the same gid, but not for long.
async fn bury(client: &mut Object, gid: &Gid) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = '{}ms'", RECOVERY_LOCK.as_millis())).await?;
    let sql = "INSERT INTO shard_catalog.decision (gid, xid, outcome, participants)
        VALUES ($1, $2::text::xid8, 'abort', '{}') ON CONFLICT DO NOTHING";
    transaction.execute(sql, &[&gid.to_string(), &gid.xid.to_string()]).await?;
    transaction.commit().await
}
