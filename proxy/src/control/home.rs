//! On which shard the catalog is: on the default shard, until `shardctl catalog --to` has moved it (H6). What was followed
//! once is remembered over a restart, so that the shard that it began on need not be there any more.

use anyhow::Context;
use shard_config::ShardId;
use tokio_postgres::{Client, Row};

use super::servers::Servers;
use super::world::{Parts, World};

/// Nobody is at a catalog that has been left with this generation or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Home {
    pub(super) shard: u16,
    /// Of the pointer that led there; 0: none did.
    pub(super) generation: i64,
}

/// With what `Home::after` needs.
pub(super) const VERSION: &str =
    "SELECT version, moved_to, moved_generation, generation FROM shard_catalog.control";

/// Ends the pointer back of a hand-over that broke off behind its decision: who has come here knows that it was one.
const CLEAR: &str =
    "UPDATE shard_catalog.control SET moved_to = NULL, moved_generation = NULL WHERE moved_generation <= $1";

impl Home {
    /// `row`: the answer to `VERSION` of who is at the right place.
    pub(super) async fn settle(self, client: &Client, row: &Row) -> anyhow::Result<()> {
        if row.try_get::<_, Option<i32>>(1)?.is_some() {
            client.execute(CLEAR, &[&self.generation]).await?;
        }
        Ok(())
    }

    /// Where the answer to `VERSION` points, if it is news to who came here.
    pub(super) fn after(self, row: &Row) -> anyhow::Result<Option<Self>> {
        let (to, generation): (Option<i32>, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
        self.follow(to, generation)
    }

    fn follow(self, to: Option<i32>, generation: Option<i64>) -> anyhow::Result<Option<Self>> {
        let Some(to) = to else { return Ok(None) };
        let shard = u16::try_from(to).context("shard_catalog.control.moved_to")?;
        let generation = generation.context("shard_catalog.control.moved_generation")?;
        Ok((generation > self.generation).then_some(Self { shard, generation }))
    }
}

impl Parts {
    pub(super) fn home(&self) -> Home {
        let remembered =
            self.memory.get().home.filter(|home| self.config.shard(ShardId(home.shard)).is_some());
        remembered.unwrap_or(Home { shard: self.config.proxy.default_shard.0, generation: 0 })
    }
}

impl World {
    pub(super) fn home(&self) -> Home {
        self.parts.lock().home()
    }

    /// Whether neither a catalog's place nor a map is known from before.
    pub(super) fn remembers_nothing(&self) -> bool {
        let parts = self.parts.lock();
        let memory = parts.memory.get();
        memory.home.is_none() && memory.map.is_none()
    }

    pub(super) fn go_home(&self, home: Home) -> anyhow::Result<()> {
        tracing::info!(shard = home.shard, generation = home.generation, "the shard catalog has moved");
        let mut parts = self.parts.lock();
        anyhow::ensure!(
            parts.config.shard(ShardId(home.shard)).is_some(),
            "the catalog is on shard {}, which this proxy does not know: add it to the configuration file and RELOAD",
            home.shard
        );
        parts.memory.change(|memory| memory.home = Some(home))
    }
}

/// What a shard says of the catalog, if it has a map.
struct Kept {
    generation: i64,
    moved_to: Option<i32>,
}

/// Asked before a first map is written: whether another shard keeps one. The default shard may have been named anew, or
/// its server made anew, after the catalog had moved. A shard that cannot be asked is an error: nothing is guessed.
pub(super) async fn elsewhere(servers: &Servers, world: &World, here: usize) -> anyhow::Result<Option<Home>> {
    let us = i32::from(servers.shards[here].id.0);
    for (position, shard) in servers.shards.iter().enumerate() {
        if position == here || !world.is_member(position) {
            continue;
        }
        let kept = kept(servers, world, position).await;
        match kept.with_context(|| format!("whether shard {} keeps a shard map", shard.id))? {
            // Of one that was left for this one, which has lost it.
            Some(kept) if kept.moved_to == Some(us) => {}
            // Its pointer, if it has one, is news to who begins there.
            Some(_) => return Ok(Some(Home { shard: shard.id.0, generation: 0 })),
            None => {}
        }
    }
    Ok(None)
}

/// Asked by who remembers nothing: whether a shard keeps a later catalog than the one that was found, which may have lost the
/// pointer to it with a failover or a restored backup. Shards that do not answer are passed over.
pub(super) async fn later(servers: &Servers, world: &World, here: usize, generation: i64) -> Option<Home> {
    let mut latest: Option<Home> = None;
    for (position, shard) in servers.shards.iter().enumerate() {
        if position == here || !world.is_member(position) {
            continue;
        }
        let Ok(Some(Kept { generation: theirs, moved_to: None })) = kept(servers, world, position).await
        else {
            continue;
        };
        if theirs > latest.map_or(generation, |home| home.generation) {
            latest = Some(Home { shard: shard.id.0, generation: theirs });
        }
    }
    latest
}

async fn kept(servers: &Servers, world: &World, position: usize) -> anyhow::Result<Option<Kept>> {
    let primary = world.primary(position).context("it has no primary")?;
    let client = servers.server(position, primary.slot).client().await?;
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('shard_catalog.control') \
                 AND attname = 'generation')";
    if !client.query_one(there, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let kept =
        "SELECT generation, moved_to FROM shard_catalog.control WHERE EXISTS (SELECT FROM shard_catalog.map)";
    Ok(match client.query_opt(kept, &[]).await? {
        Some(row) => Some(Kept { generation: row.try_get(0)?, moved_to: row.try_get(1)? }),
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At every moment of a move, and when it breaks off anywhere, all starts lead to one shard.
    #[test]
    fn h6_pointers_lead_to_one_catalog_from_everywhere() {
        // Of shards 1 and 2 what `control` says, after each step: to shard 2, and back to shard 1.
        type Pointer = Option<(i32, i64)>;
        let steps: [([Pointer; 2], u16); 7] = [
            ([None, None], 1),
            // The copy on shard 2 points back until shard 1 has let go.
            ([None, Some((1, 1))], 1),
            ([Some((2, 2)), Some((1, 1))], 2),
            ([Some((2, 2)), None], 2),
            ([Some((2, 2)), None], 2),
            ([Some((2, 2)), Some((1, 3))], 1),
            ([None, Some((1, 3))], 1),
        ];
        for (at, (pointers, keeper)) in steps.into_iter().enumerate() {
            for start in [1, 2] {
                if at == 0 && start == 2 {
                    continue; // There is no map there: see `elsewhere`.
                }
                let mut home = Home { shard: start, generation: 0 };
                for _ in 0..5 {
                    let pointer = pointers[usize::from(home.shard) - 1];
                    match home.follow(pointer.map(|p| p.0), pointer.map(|p| p.1)).unwrap() {
                        Some(next) => home = next,
                        None => break,
                    }
                }
                assert_eq!(home.shard, keeper, "step {at}, from shard {start}");
            }
        }
    }
}
