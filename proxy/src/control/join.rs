//! Before a reload's new shards are known to anybody, they must be fit to be used: their primaries answer, they are nobody
//! else's servers, every client's role can log in, and they have the schema. Whatever is missing leaves the proxy as it was.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use shard_config::digest::{PRINT_ALIKE, quoted_table, rows_digest};
use shard_config::{Config, ShardId};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::Handle;
use super::admit::{Addition, Newcomer};
use super::health;
use super::limits::{CATALOG_READ, JOIN_STEP, PROBE_QUERY};
use super::raw::{self, Part, RawCatalog};
use super::reload::Changes;
use super::schema::{Built, SIGNATURE, SchemaWatch, Seen, look_at};
use super::servers::{Server, ShardAddresses};
use crate::catalog::{Catalog, Table, TableKind};

/// Tables and functions that an error names.
const NAMED: usize = 5;

/// Whose definitions are not committed yet: the event trigger has noted them (`bootstrap.sql`), and until the end of its
/// transaction, prepared or not, it keeps the lock that every INSERT takes.
const DEFINING: &str = "
SELECT string_agg(DISTINCT coalesce('of process ' || pid, 'that is prepared'), ', ') FROM pg_locks
 WHERE locktype = 'relation' AND relation = 'shard_catalog.schema_change'::regclass AND mode = 'RowExclusiveLock'
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// A changed configuration that concerns servers.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) config: Arc<Config>,
    pub(super) changes: Changes,
    /// Of whoever asks: it reaches the workers.
    pub(super) handle: Handle,
    pub(super) answer: oneshot::Sender<anyhow::Result<()>>,
}

impl SchemaWatch {
    /// Returns when everybody knows what is new. With an error nothing has changed.
    pub(super) async fn join(
        &mut self,
        config: Arc<Config>,
        changes: &Changes,
        handle: &Handle,
    ) -> anyhow::Result<()> {
        self.may_leave(&changes.left).await?;
        let additions = self.additions(&config, changes).await?;
        if changes.shards.is_empty() {
            self.still_may_leave(&changes.left, handle).await?;
            return self.begin(config, changes, Vec::new(), additions, None).await;
        }
        let mut newcomers = Vec::new();
        let mut looked = Vec::new();
        for id in &changes.shards {
            let (newcomer, seen) = self.meet(&config, *id).await.with_context(|| format!("shard {id}"))?;
            newcomers.push(newcomer);
            looked.push((*id, seen));
        }
        // What the shards that serve have by now.
        self.look().await;
        let catalogs: Vec<(ShardId, &RawCatalog)> =
            looked.iter().filter_map(|(id, seen)| Some((*id, seen.raw.as_ref()?))).collect();
        let (catalog, mut built) = self.judge(&config, &catalogs)?;
        built.1.extend(looked.iter().map(|(_, seen)| seen.raw.clone()));
        self.still_may_leave(&changes.left, handle).await?;
        self.nobody_defines().await?;
        self.begin(config, changes, newcomers, additions, Some(catalog)).await?;
        self.shards.extend(looked.into_iter().map(|(_, seen)| seen));
        self.published = Some(built);
        Ok(())
    }

    /// A definition whose transaction began before the new shards are known would be committed on the others only. So there
    /// must be none, and none since these were looked at.
    async fn nobody_defines(&self) -> anyhow::Result<()> {
        let asked = (0..self.shards.len()).map(|position| async move {
            // What was open on a server that is lost is lost, and a shard that comes back is looked at again.
            let Some(primary) = self.world.primary_of_member(position) else { return anyhow::Ok(()) };
            let id = self.servers.shards[position].id;
            let ask = async {
                let client = self.servers.server(position, primary.slot).client().await?;
                // In this order: who has let go of the lock between the two is seen by the second.
                let open: Option<String> = client.query_one(DEFINING, &[]).await?.try_get(0)?;
                let row = client.query_one(SIGNATURE, &[]).await?;
                anyhow::Ok((open, (row.try_get::<_, i64>(0)?, row.try_get::<_, i64>(1)?)))
            };
            let (open, signature) = timeout(PROBE_QUERY, ask)
                .await
                .context("no answer")
                .flatten()
                .with_context(|| format!("asking shard {id} for open transactions"))?;
            if let Some(open) = open {
                bail!(
                    "a transaction on shard {id} has changed the schema and is still open ({open}): reload again when it has ended"
                );
            }
            ensure!(self.shards[position].is_of(signature), "the schema of shard {id} has just changed: reload again");
            Ok(())
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn begin(
        &self,
        config: Arc<Config>,
        changes: &Changes,
        newcomers: Vec<Newcomer>,
        additions: Vec<Addition>,
        catalog: Option<Catalog>,
    ) -> anyhow::Result<()> {
        let before: Vec<usize> = self.servers.shards.iter().map(|shard| shard.servers.len()).collect();
        self.world.admit(config, changes, newcomers, additions, catalog)?;
        for (position, shard) in self.servers.shards.iter().enumerate() {
            for slot in before.get(position).copied().unwrap_or(0)..shard.servers.len() {
                // A receiver that is gone is a proxy that ends.
                let _ = self.arrivals.send((position, slot as u16)).await;
            }
        }
        Ok(())
    }

    /// Servers of known shards that are new; one that comes back has its slot already.
    async fn additions(&self, config: &Config, changes: &Changes) -> anyhow::Result<Vec<Addition>> {
        let mut additions = Vec::new();
        for (shard, place) in &changes.added {
            let position = self.servers.position(*shard).with_context(|| format!("no shard {shard}"))?;
            if self.servers.shards[position].slot_of(place).is_none() {
                additions.push(Addition { shard: *shard, server: Server::look_up(config, place).await? });
            }
        }
        Ok(additions)
    }

    /// Asks a new shard's servers who they are, and its primary for the schema. Nothing is written there before it was found
    /// to have ours.
    async fn meet(&self, config: &Arc<Config>, id: ShardId) -> anyhow::Result<(Newcomer, Seen)> {
        let shard = config.shard(id).context("it is not configured")?;
        let addresses = ShardAddresses::look_up(config, shard).await?;
        let asked = join_all(addresses.servers.iter().map(|server| async {
            match timeout(JOIN_STEP, health::observe(server)).await {
                Ok(answer) => answer,
                Err(_) => Err("no answer".to_owned()),
            }
        }));
        let (seen, why_down) =
            asked.await.into_iter().map(|answer| (answer.as_ref().ok().copied(), answer.err())).unzip();
        let newcomer = Newcomer { addresses, seen, why_down };
        let (remembered, taken) = self.world.identities(id)?;
        let roles = newcomer.roles(remembered, &taken)?;
        let primary = roles.primary.context("it has no primary")?;
        let server = newcomer.addresses.servers.get(usize::from(primary.slot)).context("a slot")?;
        let raw = timeout(CATALOG_READ, schema_of(server)).await.context("its schema: no answer")??;
        let (catalog, _) = self.judge(config, &[(id, &raw)])?;
        timeout(CATALOG_READ, self.compare(&catalog, server))
            .await
            .context("its reference tables: no answer")??;
        for user in &config.users {
            let mut login = server.connect.clone();
            login.user(&user.name).password(user.password.expose());
            match timeout(JOIN_STEP, login.connect(NoTls)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => bail!(
                    "user {} cannot log in to {}: {}",
                    user.name,
                    server.address,
                    health::describe(&error)
                ),
                Err(_) => bail!("user {} cannot log in to {}: no answer", user.name, server.address),
            }
        }
        let mut looked = Seen::default();
        let look = look_at(server, primary, &mut looked);
        timeout(CATALOG_READ, look).await.context("installing shard_catalog: no answer")??;
        Ok((newcomer, looked))
    }

    /// A row of a reference table that the new shard lacks would be missed by the first UPDATE of it. (One that is written
    /// meanwhile is found later: nothing moves to a shard before every proxy knows it and these rows are the same.)
    async fn compare(&self, catalog: &Catalog, new: &Server) -> anyhow::Result<()> {
        let is_reference = |table: &&Table| table.kind == TableKind::Reference && table.drift.is_none();
        let tables: Vec<String> = catalog
            .tables
            .values()
            .filter(is_reference)
            .map(|table| quoted_table(&format!("{}.{}", table.schema, table.name)))
            .collect();
        if tables.is_empty() {
            return Ok(());
        }
        let known = self.by_preference().into_iter().find_map(|at| Some((at, self.world.primary(at)?)));
        let (position, primary) = known.context("no other shard has a primary")?;
        let known = self.servers.server(position, primary.slot);
        let (theirs, ours) = tokio::try_join!(digests(new, &tables), digests(known, &tables))?;
        let differing =
            tables.iter().zip(theirs.iter().zip(&ours)).filter(|(_, (theirs, ours))| theirs != ours);
        let differing: Vec<&str> = differing.map(|(table, _)| table.as_str()).collect();
        ensure!(
            differing.is_empty(),
            "rows of reference tables are not those of shard {}: copy them again ({})",
            self.servers.shards[position].id,
            differing.join(", ")
        );
        Ok(())
    }

    /// The catalog with the new shards in it; an error names what of the schema they lack, for such a table could not be
    /// used on any shard.
    fn judge(
        &self,
        config: &Arc<Config>,
        new: &[(ShardId, &RawCatalog)],
    ) -> anyhow::Result<(Catalog, Built)> {
        let known = self.world.catalog();
        let (catalog, built) =
            self.build_with(config, new).context("the schema of the other shards is not known yet")?;
        let mut lacking: Vec<String> = Vec::new();
        for (name, table) in &catalog.tables {
            let before = known.tables.get(name).and_then(|before| before.drift.as_ref());
            if let Some(why) = table.drift.as_ref().filter(|why| before != Some(why)) {
                lacking.push(format!("{}.{}: {why}", name.0, name.1));
            }
        }
        for (id, theirs) in new {
            let theirs = functions(theirs);
            // One that not every shard has, as of an extension for the default shard, nobody misses.
            let mut all: Vec<_> = self
                .by_preference()
                .into_iter()
                .filter_map(|i| self.shards[i].raw.as_ref())
                .map(functions)
                .collect();
            let ours = all.pop().unwrap_or_default();
            for function in
                ours.difference(&theirs).filter(|name| all.iter().all(|other| other.contains(*name)))
            {
                lacking
                    .push(format!("function {}.{}: it does not exist on shard {id}", function.0, function.1));
            }
        }
        lacking.sort();
        lacking.dedup();
        let more = lacking.len().saturating_sub(NAMED);
        lacking.truncate(NAMED);
        if more > 0 {
            lacking.push(format!("and {more} more"));
        }
        ensure!(lacking.is_empty(), "its schema is not that of the other shards ({})", lacking.join("; "));
        Ok((catalog, built))
    }
}

/// (schema, name, arguments) of each.
fn functions(of: &RawCatalog) -> HashSet<(&str, &str, Option<usize>)> {
    let named = |function: &'_ raw::RawFunction| function.schema != "shard_catalog";
    of.functions.iter().filter(|f| named(f)).map(|f| (&*f.schema, &*f.name, f.arguments)).collect()
}

async fn digests(server: &Server, tables: &[String]) -> anyhow::Result<Vec<String>> {
    let mut client = server.client().await?;
    let transaction = client.build_transaction().read_only(true).start().await?;
    transaction.batch_execute(PRINT_ALIKE).await?;
    // A scan that nobody waits for any more would keep one of the few connections of the control plane.
    let limit = format!("SET LOCAL statement_timeout = {}", CATALOG_READ.as_millis());
    transaction.batch_execute(&limit).await?;
    let mut digests = Vec::new();
    for table in tables {
        digests.push(transaction.query_one(&rows_digest(table), &[]).await?.try_get(0)?);
    }
    transaction.commit().await?;
    Ok(digests)
}

async fn schema_of(server: &Server) -> anyhow::Result<RawCatalog> {
    let mut client = server.client().await?;
    raw::read(&mut client, Part::User).await
}
