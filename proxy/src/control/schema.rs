//! Follows the schema: installs `shard_catalog` on every primary, notices DDL by the rows its event triggers write,
//! reads the catalogs again and publishes what `build` makes of them (H39).

use std::sync::Arc;

use anyhow::Context;
use futures_util::future::join_all;
use shard_config::{Config, ShardId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Client;

use super::join::Join;
use super::limits::{
    CATALOG_READ, CONTROL_QUEUE, DRIFT_SETTLE, PRIMARY_EXPECTED, PROBE_QUERY, REFRESH_TRIES, SCHEMA_POLL,
};
use super::raw::{self, Part, RawCatalog};
use super::roles::Placed;
use super::servers::{Server, Servers};
use super::world::World;
use crate::catalog::Catalog;
use crate::pool::connect::LOCK_CLASS;

const BOOTSTRAP: &str = include_str!("bootstrap.sql");
/// The version that `bootstrap.sql` writes; raise both together, for a change of the common part, too.
const BOOTSTRAP_VERSION: i32 = 9;
const LOCK_BOOTSTRAP: i32 = 1;

/// Tells the other proxies to look now: a DDL of ours on all shards is prepared, and so could not say so itself.
const ANNOUNCE: &str = "NOTIFY shard_catalog";

pub(super) const SIGNATURE: &str =
    "SELECT count(*), coalesce(sum(id), 0)::int8 FROM shard_catalog.schema_change";

/// What is asked of the task.
#[derive(Debug)]
pub(super) enum Ask {
    /// To look at the schema now; the answer comes when the published state shows every DDL that was committed before the
    /// request.
    Refresh(oneshot::Sender<()>),
    Join(Join),
}

/// From what a catalog was built: the configuration, and each shard's catalog.
pub(super) type Built = (Arc<Config>, Vec<Option<RawCatalog>>);

#[derive(Debug)]
pub(super) struct SchemaWatch {
    pub(super) servers: Arc<Servers>,
    pub(super) world: Arc<World>,
    system: Option<RawCatalog>,
    /// By position: as many as `servers` has.
    pub(super) shards: Vec<Seen>,
    pub(super) published: Option<Built>,
    /// Position and slot of servers that need a prober.
    pub(super) arrivals: mpsc::Sender<(usize, u16)>,
    /// The follower has read the map.
    map_known: watch::Receiver<bool>,
    /// A map is remembered from before.
    map_remembered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The primary on which `shard_catalog` was last found or installed.
    installed: Option<Placed>,
    signature: Option<(i64, i64)>,
    pub(super) raw: Option<RawCatalog>,
    complaint: Option<String>,
}

impl Seen {
    /// Nothing has changed since the catalog was read.
    pub(super) fn is_of(&self, signature: (i64, i64)) -> bool {
        self.signature == Some(signature)
    }
}

impl SchemaWatch {
    pub(super) fn new(
        servers: Arc<Servers>,
        world: Arc<World>,
        arrivals: mpsc::Sender<(usize, u16)>,
        map_known: watch::Receiver<bool>,
        map_remembered: bool,
    ) -> Self {
        let shards = servers.shards.iter().map(|_| Seen::default()).collect();
        Self { servers, world, system: None, shards, published: None, arrivals, map_known, map_remembered }
    }

    /// `ready` turns true once a catalog is published and the map is known.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Ask>,
        nudge: Arc<Notify>,
        ready: watch::Sender<bool>,
    ) {
        let begun = Instant::now();
        let mut tick = interval(SCHEMA_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Vec::with_capacity(CONTROL_QUEUE);
        let mut waiting = Vec::with_capacity(CONTROL_QUEUE);
        loop {
            tokio::select! {
                n = requests.recv_many(&mut asked, CONTROL_QUEUE) => if n == 0 { return },
                () = nudge.notified() => {}
                _ = tick.tick() => {}
            }
            for ask in asked.drain(..) {
                match ask {
                    Ask::Refresh(answer) => waiting.push(answer),
                    Ask::Join(Join { config, changes, handle, answer }) => {
                        // Whoever asked may be gone.
                        let _ = answer.send(self.join(config, &changes, &handle).await);
                    }
                }
            }
            self.look().await;
            // Whoever waits did a DDL and relies on being shown it: a shard that gave no answer is asked again.
            for _ in 0..REFRESH_TRIES {
                if waiting.is_empty() || self.all_answered() {
                    break;
                }
                sleep(DRIFT_SETTLE).await;
                self.look().await;
            }
            if !waiting.is_empty() {
                self.announce().await;
            }
            if self.published.is_some() && self.is_map_known(begun) && self.all_installed(begun) {
                ready.send_replace(true);
            }
            for answer in waiting.drain(..) {
                let _ = answer.send(()); // Whoever asked may be gone.
            }
        }
    }

    /// A shard that cannot be told is seen by the others' polling, so nothing is tried again.
    async fn announce(&self) {
        let tells = self.servers.shards.iter().enumerate().map(|(index, shard)| async move {
            let Some(primary) = self.world.primary_of_member(index) else { return };
            let tell = async {
                self.servers.server(index, primary.slot).client().await?.batch_execute(ANNOUNCE).await?;
                anyhow::Ok(())
            };
            match timeout(PROBE_QUERY, tell).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(shard = shard.id.0, ?error, "a schema change is not announced")
                }
                Err(_) => tracing::debug!(shard = shard.id.0, "a schema change is not announced: no answer"),
            }
        });
        join_all(tells).await;
    }

    /// Every shard has `shard_catalog`, which the first DDL needs. A shard that shows no primary for a while does not hold
    /// the others up.
    fn all_installed(&self, begun: Instant) -> bool {
        let patient = begun.elapsed() < PRIMARY_EXPECTED;
        let mut shards = self.shards.iter().enumerate().filter(|(index, _)| self.world.is_member(*index));
        shards.all(|(index, seen)| match self.world.primary(index) {
            Some(_) => seen.installed.is_some(),
            None => !patient,
        })
    }

    /// A remembered map may be an old one: it is served only when the newest cannot be read.
    fn is_map_known(&self, begun: Instant) -> bool {
        *self.map_known.borrow() || (self.map_remembered && begun.elapsed() >= PRIMARY_EXPECTED)
    }

    /// False when the last look at a shard failed, or it had no primary to look at.
    fn all_answered(&self) -> bool {
        let silent =
            |(index, seen): (usize, &Seen)| seen.complaint.is_some() || self.world.primary(index).is_none();
        !self.shards.iter().enumerate().filter(|(index, _)| self.world.is_member(*index)).any(silent)
    }

    pub(super) async fn look(&mut self) {
        self.look_at_shards().await;
        let Some((catalog, built)) = self.build() else { return };
        if self.new_drift(&catalog) {
            // Most likely a DDL whose commits have not reached every shard. If it is still so later, it is real.
            sleep(DRIFT_SETTLE).await;
            self.look_at_shards().await;
            if let Some((catalog, built)) = self.build() {
                self.publish(catalog, built);
            }
        } else {
            self.publish(catalog, built);
        }
    }

    async fn look_at_shards(&mut self) {
        let (servers, world) = (&self.servers, &self.world);
        let looks = self.shards.iter_mut().enumerate().map(|(index, seen)| async move {
            if world.is_gone(index) {
                seen.raw = None;
            }
            let Some(primary) = world.primary_of_member(index) else { return };
            match timeout(CATALOG_READ, look_at(servers.server(index, primary.slot), primary, seen)).await {
                Ok(Ok(())) => seen.complaint = None,
                Ok(Err(error)) => complain(servers, index, seen, format!("{error:#}")),
                Err(_) => complain(servers, index, seen, "no answer".to_owned()),
            }
        });
        join_all(looks).await;
        if self.system.is_none() {
            self.read_system().await;
        }
    }

    async fn read_system(&mut self) {
        for index in self.by_preference() {
            let Some(primary) = self.world.primary(index) else { continue };
            let read = async {
                let mut client = self.servers.server(index, primary.slot).client().await?;
                raw::read(&mut client, Part::System).await
            };
            match timeout(CATALOG_READ, read).await {
                Ok(Ok(raw)) => {
                    self.system = Some(raw);
                    return;
                }
                Ok(Err(error)) => tracing::warn!(?error, "reading the system catalog"),
                Err(_) => tracing::warn!("reading the system catalog: no answer"),
            }
        }
    }

    fn default_position(&self) -> usize {
        self.servers.position(self.world.config().proxy.default_shard).unwrap_or(0)
    }

    /// Those that are members, the default shard first.
    pub(super) fn by_preference(&self) -> Vec<usize> {
        let default = self.default_position();
        std::iter::once(default)
            .chain((0..self.shards.len()).filter(move |i| *i != default && self.world.is_member(*i)))
            .collect()
    }

    /// `None` when nothing changed, or nothing was read yet.
    fn build(&self) -> Option<(Catalog, Built)> {
        let config = self.world.config();
        let is_same = |raws: &[Option<RawCatalog>]| raws.iter().eq(self.shards.iter().map(|seen| &seen.raw));
        if self.published.as_ref().is_some_and(|(of, before)| Arc::ptr_eq(of, &config) && is_same(before)) {
            return None;
        }
        self.build_with(&config, &[])
    }

    /// With `new` shards beside those that are known. `None` when nothing was read yet.
    pub(super) fn build_with(
        &self,
        config: &Arc<Config>,
        new: &[(ShardId, &RawCatalog)],
    ) -> Option<(Catalog, Built)> {
        let system = self.system.as_ref()?;
        let order = self.by_preference();
        let base = order.iter().copied().find(|i| self.shards[*i].raw.is_some())?;
        let known = self.servers.shards.iter().zip(&self.shards).enumerate().filter(|(i, _)| *i != base);
        let known = known.filter_map(|(i, (shard, seen))| seen.raw.as_ref().map(|raw| (i, shard.id, raw)));
        let (known, left): (Vec<_>, Vec<_>) = known.partition(|(i, ..)| self.world.is_member(*i));
        let others: Vec<_> =
            known.into_iter().map(|(_, id, raw)| (id, raw)).chain(new.iter().copied()).collect();
        let base = self.shards[base].raw.as_ref()?;
        let mut catalog = super::build::build(config, system, base, &others);
        // Nothing is compared with a shard that leaves; what is still there goes on reading its rows.
        for (i, id, raw) in left {
            if !self.world.is_gone(i) {
                catalog.oids.insert(id.0, super::build::oid_map(base, raw));
            }
        }
        Some((catalog, (config.clone(), self.shards.iter().map(|seen| seen.raw.clone()).collect())))
    }

    fn new_drift(&self, catalog: &Catalog) -> bool {
        let known = self.world.catalog();
        catalog.tables.iter().any(|(name, table)| {
            table.drift.is_some() && known.tables.get(name).is_none_or(|before| before.drift != table.drift)
        })
    }

    fn publish(&mut self, catalog: Catalog, built: Built) {
        for ((schema, name), table) in catalog.tables.iter().filter(|(_, t)| t.drift.is_some()) {
            tracing::warn!(table = %format!("{schema}.{name}"), why = table.drift.as_deref(), "table cannot be routed");
        }
        tracing::info!(
            tables = catalog.tables.len(),
            version = self.world.catalog_version() + 1,
            "schema read"
        );
        self.published = Some(built);
        self.world.set_catalog(catalog);
    }
}

fn complain(servers: &Servers, index: usize, seen: &mut Seen, why: String) {
    if seen.complaint.as_ref() != Some(&why) {
        tracing::warn!(shard = servers.shards[index].id.0, %why, "the shard's catalog cannot be read");
        seen.complaint = Some(why);
    }
}

pub(super) async fn look_at(server: &Server, primary: Placed, seen: &mut Seen) -> anyhow::Result<()> {
    let mut client = server.client().await?;
    if seen.installed != Some(primary) {
        install(&mut client).await.context("installing shard_catalog")?;
        seen.installed = Some(primary);
        seen.signature = None;
    }
    let row = timeout(PROBE_QUERY, client.query_one(SIGNATURE, &[])).await.context("no answer")??;
    let signature = (row.try_get(0)?, row.try_get(1)?);
    if seen.signature != Some(signature) {
        // The signature was taken before the read: a DDL in between is read now and once more at the next look.
        let raw = raw::read(&mut client, Part::User).await?;
        seen.raw = Some(raw);
        seen.signature = Some(signature);
        if signature.0 > 1000 {
            client
                .execute(
                    "DELETE FROM shard_catalog.schema_change WHERE changed_at < now() - interval '1 day'",
                    &[],
                )
                .await?;
        }
    }
    Ok(())
}

async fn install(client: &mut Client) -> anyhow::Result<()> {
    let installed = "SELECT (xpath('/row/v/text()', query_to_xml(
        'SELECT max(version) AS v FROM shard_catalog.installed', false, true, '')))[1]::text::int
        WHERE to_regclass('shard_catalog.installed') IS NOT NULL";
    let transaction = client.transaction().await?;
    // The standby need not have it: after a promotion it is looked for again.
    transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
    transaction.query_one("SELECT pg_advisory_xact_lock($1, $2)", &[&LOCK_CLASS, &LOCK_BOOTSTRAP]).await?;
    let version: Option<i32> = match transaction.query_opt(installed, &[]).await? {
        Some(row) => row.try_get(0)?,
        None => None,
    };
    if version.is_none_or(|v| v < BOOTSTRAP_VERSION) {
        transaction.batch_execute(shard_config::CATALOG_SQL).await?;
        transaction.batch_execute(BOOTSTRAP).await?;
    }
    transaction.commit().await?;
    Ok(())
}
