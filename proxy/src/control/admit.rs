//! Shards and servers that a reload has added are known to everybody from one moment on: the `State` that is published
//! here. All that is kept by position grows at its end, so whatever began before goes on undisturbed. From the same moment on
//! nothing begins on a shard that the reload has taken out (`leave`).

use std::sync::Arc;

use anyhow::{Context, ensure};
use shard_config::{Config, HostPort, ShardId};

use super::limits::{SERVERS_PER_SHARD_MAX, SHARDS_ADDED_MAX};
use super::reload::Changes;
use super::roles::{self, Observation, Remembered, Roles};
use super::servers::{Server, ShardAddresses};
use super::world::{Known, World};
use crate::catalog::Catalog;

/// A shard that was asked who it is, and that nobody knows yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) addresses: ShardAddresses,
    /// By slot.
    pub(super) seen: Vec<Option<Observation>>,
    pub(super) why_down: Vec<Option<String>>,
}

/// A server of a known shard that has had no slot yet.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) shard: ShardId,
    pub(super) server: Server,
}

impl Newcomer {
    /// Who its servers are to each other. The error says why none is its primary.
    pub(super) fn roles(&self, remembered: Remembered, taken: &[i64]) -> anyhow::Result<Roles> {
        let before = Roles { remembered, ..Roles::default() };
        let roles = roles::decide(&before, &self.seen, taken);
        if roles.primary.is_some() {
            return Ok(roles);
        }
        let servers = self.addresses.servers.iter().enumerate().map(|(slot, server)| {
            let rejected =
                roles.rejected.iter().find(|(at, _)| usize::from(*at) == slot).map(|(_, why)| why.name());
            let down = self.why_down.get(slot).and_then(Option::as_deref);
            format!("{}: {}", server.address, down.or(rejected).unwrap_or("not writable"))
        });
        anyhow::bail!("it has no primary ({})", servers.collect::<Vec<_>>().join("; "))
    }
}

impl World {
    /// What is remembered of a shard that is to come, and the identities of all others.
    pub(super) fn identities(&self, id: ShardId) -> anyhow::Result<(Remembered, Vec<i64>)> {
        let parts = self.parts.lock();
        let leaves = |(shard, known): (&ShardAddresses, &Known)| shard.id == id && !known.gone;
        ensure!(
            !self.servers.shards.iter().zip(&parts.shards).any(leaves),
            "what began there before it was taken out has not ended yet (SHOW SHARDS: leaving): reload again when it has"
        );
        Ok((parts.memory.get().shards.get(&id.0).copied().unwrap_or_default(), parts.taken(None)))
    }

    /// All of it or, with an error, nothing.
    pub(super) fn admit(
        &self,
        config: Arc<Config>,
        changes: &Changes,
        newcomers: Vec<Newcomer>,
        additions: Vec<Addition>,
        catalog: Option<Catalog>,
    ) -> anyhow::Result<()> {
        let mut parts = self.parts.lock();
        ensure!(
            self.servers.shards.room() >= newcomers.len(),
            "{SHARDS_ADDED_MAX} shards were added since the proxy was started: for more, restart it"
        );
        for id in &changes.left {
            self.insist_it_may_leave(&parts, *id)?;
        }
        for (id, place) in &changes.removed {
            let (position, slot) = self.place(*id, place)?;
            ensure!(
                parts.shards[position].roles.primary.is_none_or(|primary| primary.slot != slot),
                "{place} is the primary of shard {id}: promote another server before it goes"
            );
        }
        for (position, shard) in self.servers.shards.iter().enumerate() {
            let more = additions.iter().filter(|addition| addition.shard == shard.id).count();
            ensure!(
                self.servers.shards[position].servers.room() >= more,
                "shard {} has had {SERVERS_PER_SHARD_MAX} servers since the proxy was started: for another one, restart it",
                shard.id
            );
        }
        let mut taken = parts.taken(None);
        let mut shards = Vec::new();
        for newcomer in &newcomers {
            let id = newcomer.addresses.id;
            let remembered = parts.memory.get().shards.get(&id.0).copied().unwrap_or_default();
            let roles = newcomer.roles(remembered, &taken).with_context(|| format!("shard {id}"))?;
            taken.extend(roles.remembered.system_identifier);
            let (seen, why_down) = (newcomer.seen.clone(), newcomer.why_down.clone());
            shards.push(Known { seen, why_down, roles, since: parts.lineup + 1, ..Known::default() });
        }
        // On disk before anybody writes to it, as with every primary (`accept`).
        parts.memory.change(|memory| {
            for (newcomer, known) in newcomers.iter().zip(&shards) {
                memory.shards.insert(newcomer.addresses.id.0, known.roles.remembered);
            }
        })?;

        // Nothing fails from here on.
        if !shards.is_empty() || !changes.left.is_empty() {
            parts.lineup += 1;
        }
        for id in &changes.left {
            let Some(position) = self.servers.position(*id) else { continue };
            tracing::info!(shard = id.0, "shard taken out");
            parts.shards[position].left = Some(parts.lineup);
        }
        for newcomer in newcomers {
            let shard = newcomer.addresses.id;
            self.freshness.add_shard();
            let added = self.servers.shards.push(newcomer.addresses);
            debug_assert!(added.is_ok(), "there was room");
            tracing::info!(shard = shard.0, "shard added");
        }
        parts.shards.extend(shards);
        for Addition { shard, server } in additions {
            let Some(position) = self.servers.position(shard) else { continue };
            tracing::info!(shard = shard.0, server = %server.address, "server added");
            let added = self.servers.shards[position].servers.push(server);
            debug_assert!(added.is_ok(), "there was room");
            parts.shards[position].seen.push(None);
            parts.shards[position].why_down.push(None);
        }
        for (changed, wanted) in [(&changes.added, true), (&changes.removed, false)] {
            for (id, place) in changed {
                if let Ok((position, slot)) = self.place(*id, place) {
                    self.servers.server(position, slot).want(wanted);
                }
            }
        }
        if let Some(mut catalog) = catalog {
            catalog.version = parts.catalog.version + 1;
            parts.catalog = Arc::new(catalog);
        }
        parts.config = config;
        self.publish(&parts);
        Ok(())
    }

    fn place(&self, id: ShardId, place: &HostPort) -> anyhow::Result<(usize, u16)> {
        let position = self.servers.position(id).with_context(|| format!("no shard {id}"))?;
        let slot = self.servers.shards[position].slot_of(place);
        Ok((position, slot.with_context(|| format!("no server {place} of shard {id}"))?))
    }
}
