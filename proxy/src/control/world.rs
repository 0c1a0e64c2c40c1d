//! The one place that turns what the control plane learned into a published `State`.

use std::sync::Arc;

use parking_lot::Mutex;
use shard_config::{Config, ShardId, ShardMap};

use super::health::{News, Report, ShardMoves};
use super::memory::MemoryFile;
use super::roles::{self, Observation, Placed, Roles};
use super::servers::Servers;
use crate::catalog::Catalog;
use crate::motion::{Following, Motions};
use crate::replica::Freshness;
use crate::shared::{Endpoint, ShardState, Shared, State};

/// Of the shards that the proxy starts with.
const FIRST_LINEUP: u64 = 1;

/// Of a shard that leaves, and whose primary was lost or stopped too early.
const NO_ANSWER: &str = "its primary does not answer: start it, or restart the proxies";

#[derive(Debug)]
pub struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) servers: Arc<Servers>,
    pub(super) freshness: Arc<Freshness>,
    pub(super) parts: Mutex<Parts>,
}

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    pub(super) map: Arc<ShardMap>,
    pub(super) following: Following,
    pub(super) catalog: Arc<Catalog>,
    /// By position, as in `Servers`.
    pub(super) shards: Vec<Known>,
    /// Of `State`.
    pub(super) lineup: u64,
    /// All workers have ended what began before this lineup.
    pub(super) ended: u64,
    pub(super) memory: MemoryFile,
}

/// By slot.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) seen: Vec<Option<Observation>>,
    pub(super) why_down: Vec<Option<String>>,
    pub(super) roles: Roles,
    /// As in `ShardState`.
    pub(super) since: u64,
    pub(super) left: Option<u64>,
    /// It has left, and nothing is there any more that this proxy began or would have to finish.
    pub(super) gone: bool,
}

/// One server as `SHOW SHARDS` prints it.
#[derive(Debug, Clone)]
pub struct ServerStatus {
    pub shard: ShardId,
    pub address: std::net::SocketAddr,
    /// primary, replica, down, leaving, or why it is not used.
    pub role: &'static str,
    pub timeline: Option<u32>,
    pub reason: Option<String>,
}

impl World {
    pub(super) fn new(
        config: Arc<Config>,
        shared: Arc<Shared>,
        servers: Arc<Servers>,
        freshness: Arc<Freshness>,
        memory: MemoryFile,
    ) -> Self {
        let state = shared.load();
        let known = |addresses: &super::servers::ShardAddresses| {
            let slots = addresses.servers.len();
            let remembered = memory.get().shards.get(&addresses.id.0).copied().unwrap_or_default();
            Known {
                seen: vec![None; slots],
                why_down: vec![None; slots],
                roles: Roles { remembered, ..Roles::default() },
                since: FIRST_LINEUP,
                ..Known::default()
            }
        };
        let shards = servers.shards.iter().map(known).collect();
        let map =
            memory.get().map.as_ref().and_then(|m| m.to_map()).map_or_else(|| state.map.clone(), Arc::new);
        let following = super::accept::remembered(&map, memory.get());
        let (lineup, ended) = (FIRST_LINEUP, 0);
        let catalog = state.catalog.clone();
        let parts = Parts { config, map, following, catalog, shards, lineup, ended, memory };
        let world = Self { shared, servers, freshness, parts: Mutex::new(parts) };
        world.publish(&world.parts.lock());
        world
    }

    /// Takes in one report. Returns true when the shard got another primary.
    pub(super) fn report(&self, report: Report) -> bool {
        let mut parts = self.parts.lock();
        let Report { shard, slot, news } = report;
        if parts.shards[shard].gone {
            return false;
        }
        let id = self.servers.shards[shard].id;
        let taken = parts.taken(Some(shard));
        let known = &mut parts.shards[shard];
        let (seen, probe) = match news {
            News::Up(probe) => (Some(probe.observation), Some(probe)),
            News::Down(why) => {
                if known.why_down[slot as usize].as_ref() != Some(&why) {
                    tracing::warn!(shard = id.0, server = %self.servers.server(shard, slot).address, %why, "server is down");
                }
                known.why_down[slot as usize] = Some(why);
                (None, None)
            }
        };
        if seen.is_some() && known.why_down[slot as usize].take().is_some() {
            tracing::info!(shard = id.0, server = %self.servers.server(shard, slot).address, "server is up");
        }
        let mut new_primary = false;
        if known.seen[slot as usize] != seen {
            known.seen[slot as usize] = seen;
            let decided = roles::decide(&known.roles, &known.seen, &taken);
            new_primary = self.accept(&mut parts, shard, decided);
        }
        if let Some(probe) = probe {
            let roles = &parts.shards[shard].roles;
            if roles.primary.is_some_and(|p| p.slot == slot && p.timeline == probe.observation.timeline) {
                self.freshness.primary_at(shard, probe.sequence, probe.observation.timeline, probe.lsn);
                self.freshness.are_gone(shard, &probe.gone, &probe.finished);
                if let Some(known) = &probe.moves {
                    let more = knows_more(known, &parts.map, parts.following.motions.as_deref());
                    self.shared.gate.shard_knows_more(shard, more);
                }
            } else if let Some(replica) = roles.replicas.iter().find(|p| p.slot == slot) {
                self.freshness.replica_at(shard, slot, replica.timeline, probe.lsn);
            }
        }
        new_primary
    }

    fn accept(&self, parts: &mut Parts, shard: usize, decided: Roles) -> bool {
        let id = self.servers.shards[shard].id;
        let before = &parts.shards[shard].roles;
        if *before == decided {
            return false;
        }
        if before.remembered != decided.remembered {
            // On disk before anybody writes to the new primary: else a restart could go back to the old one.
            let remembered = decided.remembered;
            if let Err(error) = parts.memory.change(|m| _ = m.shards.insert(id.0, remembered)) {
                tracing::error!(
                    shard = id.0,
                    ?error,
                    "state_dir cannot be written: the promotion is not followed"
                );
                // Seen again with the next report.
                parts.shards[shard].seen.iter_mut().for_each(|s| *s = None);
                return false;
            }
        }
        let before = &parts.shards[shard].roles;
        for (slot, rejection) in &decided.rejected {
            if !before.rejected.contains(&(*slot, *rejection)) {
                let address = self.servers.server(shard, *slot).address;
                tracing::warn!(shard = id.0, server = %address, reason = rejection.name(), "server is not used");
            }
        }
        let new_primary = decided.primary.is_some() && before.primary != decided.primary;
        if before.primary != decided.primary {
            let address = decided.primary.map(|p| self.servers.server(shard, p.slot).address.to_string());
            let timeline = decided.remembered.timeline;
            tracing::info!(
                shard = id.0,
                primary = address.as_deref().unwrap_or("none"),
                timeline,
                "primary changed"
            );
        }
        for replica in &before.replicas {
            if !decided.replicas.iter().any(|r| r.slot == replica.slot) {
                self.freshness.replica_gone(shard, replica.slot);
            }
        }
        parts.shards[shard].roles = decided;
        self.publish(parts);
        new_primary
    }

    pub fn config(&self) -> Arc<Config> {
        self.parts.lock().config.clone()
    }

    pub fn set_config(&self, config: Arc<Config>) {
        let mut parts = self.parts.lock();
        parts.config = config;
        self.publish(&parts);
    }

    pub fn set_catalog(&self, mut catalog: Catalog) {
        let mut parts = self.parts.lock();
        catalog.version = parts.catalog.version + 1;
        parts.catalog = Arc::new(catalog);
        self.publish(&parts);
    }

    pub fn primary(&self, shard: usize) -> Option<Placed> {
        self.parts.lock().shards[shard].roles.primary
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.parts.lock().catalog.clone()
    }

    pub fn catalog_version(&self) -> u64 {
        self.parts.lock().catalog.version
    }

    pub fn map(&self) -> Arc<ShardMap> {
        self.parts.lock().map.clone()
    }

    pub fn status(&self) -> Vec<ServerStatus> {
        let parts = self.parts.lock();
        let mut rows = Vec::new();
        for (addresses, known) in
            self.servers.shards.iter().zip(&parts.shards).filter(|(_, known)| !known.gone)
        {
            for (slot, server) in
                addresses.servers.iter().enumerate().filter(|(_, server)| server.is_wanted())
            {
                let slot16 = slot as u16;
                let role = if known.left.is_some() {
                    "leaving"
                } else if known.roles.primary.is_some_and(|p| p.slot == slot16) {
                    "primary"
                } else if known.roles.replicas.iter().any(|r| r.slot == slot16) {
                    "replica"
                } else if let Some((_, why)) = known.roles.rejected.iter().find(|(s, _)| *s == slot16) {
                    why.name()
                } else {
                    "down"
                };
                rows.push(ServerStatus {
                    shard: addresses.id,
                    address: server.address,
                    role,
                    timeline: known.seen[slot].map(|o| o.timeline),
                    reason: match known.left {
                        // Nobody can say that nothing is left there, so it does not go.
                        Some(_) if known.roles.primary.is_none() => Some(NO_ANSWER.to_owned()),
                        _ => known.why_down[slot].clone(),
                    },
                });
            }
        }
        rows
    }

    pub(super) fn publish(&self, parts: &Parts) {
        let endpoint = |shard: usize, placed: &Placed| Endpoint {
            address: self.servers.server(shard, placed.slot).address,
            slot: placed.slot,
            timeline: placed.timeline,
        };
        let owners = parts.map.shards();
        let shard = |(index, known): (usize, &Known)| ShardState {
            id: self.servers.shards[index].id,
            owns: known.left.is_none() && owners.contains(&self.servers.shards[index].id),
            since: known.since,
            left: known.left,
            primary: known.roles.primary.as_ref().map(|p| endpoint(index, p)),
            replicas: known.roles.replicas.iter().map(|p| endpoint(index, p)).collect(),
        };
        self.shared.publish(State {
            config: parts.config.clone(),
            map: parts.map.clone(),
            catalog: parts.catalog.clone(),
            following: parts.following.clone(),
            shards: parts.shards.iter().enumerate().map(shard).collect(),
            lineup: parts.lineup,
        });
    }
}

/// Does the shard know of rows that came or went otherwise than by what this proxy knows (H6)?
fn knows_more(known: &ShardMoves, map: &ShardMap, motions: Option<&Motions>) -> bool {
    let told =
        |id: &i64| motions.is_some_and(|motions| motions.list().iter().any(|motion| motion.move_id == *id));
    u64::try_from(known.epoch).is_ok_and(|epoch| epoch > map.epoch()) || !known.fenced.iter().all(told)
}
