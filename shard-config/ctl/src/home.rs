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

/// Beginning at the default shard; at the others if it is gone, or was made anew and knows nothing.
pub(crate) async fn find(servers: &Servers, name: &str) -> anyhow::Result<Keeper> {
    let default = servers.config.proxy.default_shard;
    let first = servers.primary(default, name).await;
    let first = match first {
        Ok(db) => match ask(&db).await? {
            Some(said) if said.has_map || said.pointer.is_some() => {
                return follow(servers, name, default, db, said).await;
            }
            _ => Ok(db),
        },
        Err(error) => Err(error),
    };
    for shard in servers.shards().into_iter().filter(|shard| *shard != default) {
        let Ok(db) = servers.primary(shard, name).await else { continue };
        if let Some(said) = ask(&db).await?.filter(|said| said.has_map) {
            return follow(servers, name, shard, db, said).await;
        }
    }
    // No proxy has written a map yet.
    Ok(Keeper { shard: default, db: first?, generation: 1 })
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
