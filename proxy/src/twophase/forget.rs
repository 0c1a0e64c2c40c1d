//! Drops decisions that every participant has carried out, and tombstones of transactions that are over.
//!
//! Beside recovery and not a part of its rounds: a cluster that commits much has thousands of them, and orphans do not
//! wait for that. A shard is asked once for all decisions that it took part in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shard_config::ShardId;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::recovery::client;
use crate::control::limits::{RECOVERY_BATCH, RECOVERY_FORGET, RECOVERY_STEP};
use crate::control::{Servers, World};

/// A decision, and who has to carry it out.
type Decision = (String, Vec<i32>);

#[derive(Debug)]
pub(super) struct Forget {
    servers: Arc<Servers>,
    world: Arc<World>,
    /// Told once each: a participant's part was lost with a failover (H4).
    in_doubt: HashSet<String>,
}

impl Forget {
    pub(super) fn new(servers: Arc<Servers>, world: Arc<World>) -> Self {
        Self { servers, world, in_doubt: HashSet::new() }
    }

    pub(super) async fn run(mut self) {
        let mut tick = interval(RECOVERY_FORGET);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await; // The first is at once.
        loop {
            tick.tick().await;
            for index in 0..self.servers.shards.len() {
                if self.world.is_gone(index) {
                    continue;
                }
                let shard = self.servers.shards[index].id;
                match timeout(RECOVERY_STEP, self.forget_on(shard)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(shard = shard.0, ?error, "old decisions stay"),
                    Err(_) => tracing::debug!(shard = shard.0, "old decisions stay: no answer"),
                }
            }
        }
    }

    async fn forget_on(&mut self, shard: ShardId) -> anyhow::Result<()> {
        let Some(own) = client(&self.servers, &self.world, shard).await? else { return Ok(()) };
        // Below xmin no such transaction can commit any more, so nobody needs the tombstone to stop it.
        own.execute(
            "DELETE FROM shard_catalog.decision
             WHERE outcome = 'abort' AND xid < pg_snapshot_xmin(pg_current_snapshot())",
            &[],
        )
        .await?;
        let sql = "SELECT gid, participants FROM shard_catalog.decision
            WHERE outcome = 'commit' AND decided_at < now() - interval '1 minute' AND participants <@ $2
            ORDER BY decided_at LIMIT $1";
        // A shard that only other proxies know is theirs to ask. What one had a part in that is gone here stays: another proxy
        // may have prepared more there since, and needs the decision when it goes on, however late. They are few: of the last
        // minute before the shard went.
        let shards = self.servers.shards.iter().enumerate();
        let known = shards.filter(|(position, shard)| {
            self.servers.position(shard.id) == Some(*position) && !self.world.is_gone(*position)
        });
        let known: Vec<i32> = known.map(|(_, shard)| i32::from(shard.id.0)).collect();
        let mut decisions: Vec<Decision> = Vec::new();
        for row in own.query(sql, &[&RECOVERY_BATCH, &known]).await? {
            decisions.push((row.try_get(0)?, row.try_get(1)?));
        }
        let mut open: HashSet<String> = HashSet::new();
        for (participant, gids) in by_participant(&decisions) {
            open.extend(self.not_carried_out(ShardId(participant as u16), gids).await?);
        }
        let done: Vec<&str> =
            decisions.iter().map(|(gid, _)| gid.as_str()).filter(|gid| !open.contains(*gid)).collect();
        if !done.is_empty() {
            own.execute("DELETE FROM shard_catalog.decision WHERE gid = ANY($1)", &[&done]).await?;
        }
        own.execute("DELETE FROM shard_catalog.applied WHERE applied_at < now() - interval '7 days'", &[])
            .await?;
        Ok(())
    }

    /// Which of these are not done on the shard. 'Does not exist' is 'done' only where the transaction's own row says so
    /// (H4).
    async fn not_carried_out(&mut self, shard: ShardId, gids: Vec<&str>) -> anyhow::Result<Vec<String>> {
        let Some(client) = client(&self.servers, &self.world, shard).await? else {
            return Ok(gids.into_iter().map(str::to_owned).collect());
        };
        let sql = "SELECT gid, EXISTS (SELECT FROM pg_prepared_xacts p WHERE p.gid = g.gid),
                EXISTS (SELECT FROM shard_catalog.applied a WHERE a.gid = g.gid)
            FROM unnest($1::text[]) AS g (gid)";
        let mut open = Vec::new();
        for row in client.query(sql, &[&gids]).await? {
            let (gid, waiting, applied): (String, bool, bool) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if !waiting
                && !applied
                && self.in_doubt.len() < RECOVERY_BATCH as usize
                && self.in_doubt.insert(gid.clone())
            {
                tracing::error!(
                    gid,
                    shard = shard.0,
                    "IN DOUBT: the transaction was committed, and this shard's part of it is lost; \
                    an asynchronous standby was promoted. The decision row on its first shard is kept."
                );
            }
            if waiting || !applied {
                open.push(gid);
            }
        }
        Ok(open)
    }
}

fn by_participant(decisions: &[Decision]) -> HashMap<i32, Vec<&str>> {
    let mut all: HashMap<i32, Vec<&str>> = HashMap::new();
    for (gid, participants) in decisions {
        for participant in participants {
            all.entry(*participant).or_default().push(gid);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_participant_is_asked_for_its_own() {
        let decisions = [("a".to_owned(), vec![2, 3]), ("b".to_owned(), vec![3])];
        let all = by_participant(&decisions);
        assert_eq!((all.len(), &all[&2], &all[&3]), (2, &vec!["a"], &vec!["a", "b"]));
    }
}
