//! How a shard goes, by a reload of a file that does not have it any more, and what keeps it.
//!
//! In two steps. It leaves: from one `State` on, whatever is for all shards is for the others, and nothing begins there. What
//! began before ends there as it would have, in its own time. Then it is gone: when all workers have ended that, and recovery
//! finds nothing that is prepared or decided there, nobody connects to it any more. Its position stays, and is never used again:
//! should the number come back, it comes as any new shard does.
//!
//! Only what owns nothing may leave, so that no row and no answer is missing. Between the reloads of two proxies it misses what
//! one of them writes to reference tables, as a shard does that only one of them knows already; nobody reads such a table where
//! nothing is owned.

use anyhow::{Context, bail, ensure};
use shard_config::ShardId;
use tokio::time::{sleep, timeout};

use super::Handle;
use super::follow::home_client;
use super::limits::{DRIFT_SETTLE, FOLLOW_STEP, PROBE_QUERY, RECOVERY_AGE, REFRESH_TRIES};
use super::roles::Placed;
use super::schema::SchemaWatch;
use super::world::{Parts, World};
use crate::admin::workers;
use crate::motion::Motions;

/// The catalog's version, and the moves from or to a shard that are not over: of most stages of a move no motion tells.
const MOVES: &str = "
SELECT version, ARRAY(SELECT id FROM shard_catalog.move
    WHERE phase NOT IN ('done', 'rolled_back', 'aborted', 'refused') AND $1 IN (source, target) ORDER BY id)
FROM shard_catalog.control";

/// Those that are older than any live coordinator would leave them.
const IN_DOUBT: &str = "
SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'shardproxy:%'
    AND prepared < clock_timestamp() - make_interval(secs => $1)";

impl Parts {
    /// Identities of all shards but of this one, and of those that are gone: their servers may serve again.
    pub(super) fn taken(&self, but: Option<usize>) -> Vec<i64> {
        let others = self.shards.iter().enumerate().filter(|(at, known)| Some(*at) != but && !known.gone);
        others.filter_map(|(_, known)| known.roles.remembered.system_identifier).collect()
    }
}

impl World {
    /// Known, and not taken out.
    pub fn is_member(&self, position: usize) -> bool {
        self.parts.lock().shards.get(position).is_some_and(|known| known.left.is_none())
    }

    pub fn is_gone(&self, position: usize) -> bool {
        self.parts.lock().shards.get(position).is_some_and(|known| known.gone)
    }

    pub(super) fn primary_of_member(&self, position: usize) -> Option<Placed> {
        self.primary(position).filter(|_| self.is_member(position))
    }

    /// All workers have ended what began in an older lineup.
    pub(super) fn lineup_ended(&self, lineup: u64) {
        self.parts.lock().ended = lineup;
    }

    /// Shards that have left, and on which no worker has anything to end.
    pub fn leaving(&self) -> Vec<(usize, ShardId)> {
        let parts = self.parts.lock();
        let known = self.servers.shards.iter().zip(&parts.shards).enumerate();
        let ended =
            known.filter(|(_, (_, known))| !known.gone && known.left.is_some_and(|left| left <= parts.ended));
        ended.map(|(position, (shard, _))| (position, shard.id)).collect()
    }

    /// Nothing is there any more that needs it.
    pub fn let_go(&self, position: usize) {
        let mut parts = self.parts.lock();
        let shard = &self.servers.shards[position];
        // Should the number come back, it may be another server's. Until that is on disk the shard is not gone.
        if let Err(error) = parts.memory.change(|memory| _ = memory.shards.remove(&shard.id.0)) {
            tracing::error!(
                shard = shard.id.0,
                ?error,
                "state_dir cannot be written: the shard is not let go"
            );
            return;
        }
        let known = &mut parts.shards[position];
        known.gone = true;
        (known.roles.primary, known.roles.replicas) = (None, Vec::new());
        for server in shard.servers.iter() {
            server.close();
        }
        // It cannot say any more that it was mistaken.
        self.shared.gate.shard_knows_more(position, false);
        tracing::info!(shard = shard.id.0, "shard is gone");
        self.publish(&parts);
    }

    /// By what is known here. The error says what keeps it.
    pub(super) fn insist_it_may_leave(&self, parts: &Parts, id: ShardId) -> anyhow::Result<()> {
        let position = self.servers.position(id).with_context(|| format!("no shard {id}"))?;
        let drain = format!("put it back into the file, and first: shardctl plan drain {id}");
        let buckets = parts.map.count(id);
        ensure!(buckets == 0, "shard {id} is missing and owns {buckets} buckets: {drain}");
        let tenants = parts.map.overrides().iter().filter(|(_, owner)| *owner == id).count();
        ensure!(tenants == 0, "shard {id} is missing and owns {tenants} single tenants: {drain}");
        let motions = parts.following.motions.as_deref().map_or(&[][..], Motions::list);
        if let Some(motion) = motions.iter().find(|motion| [motion.source, motion.target].contains(&id)) {
            bail!(
                "shard {id} is missing, and move {} is from or to it: put it back until that is over",
                motion.move_id
            );
        }
        ensure!(
            parts.home().shard != id.0,
            "shard {id} is missing and keeps the catalog: put it back into the file, and first: shardctl catalog --to"
        );
        // Which all proxies must take for the same: else two of them write to one row at once (H22).
        let first = parts.shards.iter().position(|known| known.left.is_none());
        ensure!(
            first != Some(position),
            "shard {id} is missing and has the lowest number, so that rows of reference tables are locked there: \
             stop all proxies and start them without it"
        );
        Ok(())
    }
}

impl Handle {
    /// A session is pinned to a server for its life, which nobody waits for.
    pub(super) async fn nobody_is_pinned_to(&self, left: &[ShardId]) -> anyhow::Result<()> {
        for id in left {
            self.world.insist_it_may_leave(&self.world.parts.lock(), *id)?;
            let position = self.servers.position(*id).with_context(|| format!("no shard {id}"))?;
            let addresses: Vec<_> =
                self.servers.shards[position].servers.iter().map(|one| one.address).collect();
            let clients = workers::clients(self.workers.get().map_or(&[][..], Vec::as_slice)).await;
            let there = |(address, _): &(std::net::SocketAddr, i32)| addresses.contains(address);
            for client in clients.iter().filter(|client| client.servers.iter().any(there)) {
                if let Some(what) = client.pinned {
                    bail!(
                        "shard {id} is missing, and client {:x} of {} ({}) is pinned to a server of it ({what}): \
                         reload again when it has ended",
                        client.id,
                        client.user,
                        client.address
                    );
                }
            }
        }
        Ok(())
    }
}

impl SchemaWatch {
    /// By what others know: the catalog, and the shard itself.
    pub(super) async fn may_leave(&self, left: &[ShardId]) -> anyhow::Result<()> {
        self.nothing_moves(left).await?;
        for id in left {
            let doubts = timeout(PROBE_QUERY, self.doubts_on(*id)).await.context("no answer").flatten();
            let doubts = doubts.with_context(|| {
                format!("shard {id} is missing, and cannot be asked for prepared transactions: put it back, or restart the proxies")
            })?;
            ensure!(
                doubts == 0,
                "shard {id} is missing, and {doubts} transactions over several shards are prepared there and not finished: \
                 reload again when they are (SELECT gid FROM pg_prepared_xacts)"
            );
        }
        Ok(())
    }

    /// Again, directly before it leaves: meanwhile new shards were looked at, which takes its time, a move may have been planned,
    /// and a client been pinned.
    pub(super) async fn still_may_leave(&self, left: &[ShardId], handle: &Handle) -> anyhow::Result<()> {
        self.nothing_moves(left).await?;
        handle.nobody_is_pinned_to(left).await
    }

    /// From or to one of them.
    async fn nothing_moves(&self, left: &[ShardId]) -> anyhow::Result<()> {
        for id in left {
            let mut answer = None;
            for _ in 0..REFRESH_TRIES {
                let asked = timeout(FOLLOW_STEP, self.moves_of(*id)).await.context("no answer").flatten();
                answer = asked.context("asking the catalog for moves")?;
                if answer.is_some() {
                    break;
                }
                sleep(DRIFT_SETTLE).await;
            }
            let moves = answer.context("the catalog has just changed: reload again")?;
            ensure!(
                moves.is_empty(),
                "shard {id} is missing, and moves {moves:?} from or to it are not over: put it back until they are"
            );
        }
        Ok(())
    }

    /// `None`: the catalog is newer than what is served.
    async fn moves_of(&self, id: ShardId) -> anyhow::Result<Option<Vec<i64>>> {
        let client = home_client(&self.servers, &self.world).await?;
        let row = client.query_one(MOVES, &[&i32::from(id.0)]).await?;
        let served = self.world.shared.load().following.version;
        Ok(if row.try_get::<_, i64>(0)? as u64 <= served { Some(row.try_get(1)?) } else { None })
    }

    async fn doubts_on(&self, id: ShardId) -> anyhow::Result<i64> {
        let position = self.servers.position(id).context("it is not known")?;
        let primary = self.world.primary(position).context("it has no primary")?;
        let client = self.servers.server(position, primary.slot).client().await?;
        Ok(client.query_one(IN_DOUBT, &[&RECOVERY_AGE.as_secs_f64()]).await?.try_get(0)?)
    }
}
