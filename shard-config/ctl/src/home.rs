//! On which shard the catalog is: on the default shard, until it was moved (`shard_catalog.control` in
//! `shard-config/sql/catalog.sql` says how that is written down).

use anyhow::Context;
use serde_json::Value;
use shard_config::ShardId;

use crate::direct::{Db, Servers};

/// The one catalog that counts.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) shard: ShardId,
    pub(crate) db: Db,
    pub(crate) generation: i64,
}

/// What a shard says of the catalog.
struct Said {
    generation: i64,
    /// Where it is instead, and since which generation.
    pointer: Option<(ShardId, i64)>,
    has_map: bool,
}

/// Beginning at the default shard; at the others if it is gone, was made anew and knows nothing, or leads nowhere. Whatever has a
/// map and is not the one that counts has a pointer, so it does not matter where one begins.
pub(crate) async fn find(servers: &Servers, name: &str) -> anyhow::Result<Keeper> {
    let default = servers.config.proxy.default_shard;
    let others = servers.shards().into_iter().filter(|shard| *shard != default);
    let (mut fresh, mut wrong) = (None, None);
    for shard in std::iter::once(default).chain(others) {
        let found = async {
            let db = servers.primary(shard, name).await?;
            match ask(&db).await? {
                Some(said) if said.has_map || said.pointer.is_some() => {
                    follow(servers, name, shard, db, said).await.map(Ok)
                }
                _ => Ok(Err(db)),
            }
        };
        match found.await {
            Ok(Ok(keeper)) => return Ok(keeper),
            Ok(Err(db)) if shard == default => fresh = Some(db),
            Ok(Err(_)) => {}
            Err(error) => _ = wrong.get_or_insert(error),
        }
    }
    match (fresh, wrong) {
        // No proxy has written a map yet.
        (Some(db), None) => Ok(Keeper { shard: default, db, generation: 1 }),
        (_, Some(error)) => Err(error),
        (None, None) => anyhow::bail!("the configuration has no shard {default}"),
    }
}

/// Every shard that says that it keeps the catalog, with its generation: more than one when a shard that was left has lost the
/// pointer with a failover or a restored backup. Shards that do not answer are passed over.
pub(crate) async fn keepers(servers: &Servers, name: &str) -> anyhow::Result<Vec<Keeper>> {
    let asked = servers.shards().into_iter().map(async |shard| {
        let Ok(db) = servers.primary(shard, name).await else { return Ok(None) };
        let said = ask(&db).await?.filter(|said| said.has_map && said.pointer.is_none());
        anyhow::Ok(said.map(|said| Keeper { shard, db, generation: said.generation }))
    });
    let mut found: Vec<_> = futures_util::future::try_join_all(asked).await?.into_iter().flatten().collect();
    found.sort_by_key(|keeper| keeper.generation);
    Ok(found)
}

/// An error while there are two catalogs.
pub(crate) async fn insist_on_one(servers: &Servers, name: &str) -> anyhow::Result<()> {
    let found = keepers(servers, name).await?;
    let told: Vec<_> = found
        .iter()
        .map(|keeper| format!("shard {} (generation {})", keeper.shard, keeper.generation))
        .collect();
    anyhow::ensure!(
        told.len() <= 1,
        "{} both say that they keep the shard catalog: one has lost that it was moved. Nothing is decided by either; \
         shardctl repair leaves it to the later one",
        told.join(" and ")
    );
    Ok(())
}

async fn follow(
    servers: &Servers,
    name: &str,
    mut shard: ShardId,
    mut db: Db,
    mut said: Said,
) -> anyhow::Result<Keeper> {
    let mut behind = 0;
    // Each step has a higher number, and there are as many as shards.
    while let Some((next, generation)) = said.pointer.filter(|(_, generation)| *generation > behind) {
        let what = || format!("shard {shard} says that the shard catalog is on shard {next} now");
        db = servers.primary(next, name).await.with_context(what)?;
        said = ask(&db).await?.with_context(what)?;
        (shard, behind) = (next, generation);
    }
    if said.pointer.is_some() {
        // Of a hand-over that broke off behind its decision: who has come here knows that it was one.
        let clear = "UPDATE shard_catalog.control SET moved_to = NULL, moved_generation = NULL WHERE moved_generation <= $1";
        db.execute(clear, &[&behind]).await?;
    }
    Ok(Keeper { shard, db, generation: said.generation })
}

/// Whether the catalog that a session once found has been moved since.
pub(crate) async fn has_left(db: &Db) -> anyhow::Result<bool> {
    db.holds("SELECT EXISTS (SELECT FROM shard_catalog.control WHERE moved_to IS NOT NULL)", &[]).await
}

/// `None`: there is no catalog at all.
async fn ask(db: &Db) -> anyhow::Result<Option<Said>> {
    if !db.holds("SELECT to_regclass('shard_catalog.control') IS NOT NULL", &[]).await? {
        return Ok(None);
    }
    // Those that were made before it could be moved lack columns.
    let sql = "SELECT to_jsonb(c), EXISTS (SELECT FROM shard_catalog.map) FROM shard_catalog.control c";
    let Some(row) = db.first(sql, &[]).await? else { return Ok(None) };
    let (control, has_map): (Value, bool) = (row.try_get(0)?, row.try_get(1)?);
    let pointer = match (control["moved_to"].as_u64(), control["moved_generation"].as_i64()) {
        (Some(shard), Some(generation)) => Some((ShardId(u16::try_from(shard)?), generation)),
        _ => None,
    };
    Ok(Some(Said { generation: control["generation"].as_i64().unwrap_or(1), pointer, has_map }))
}
