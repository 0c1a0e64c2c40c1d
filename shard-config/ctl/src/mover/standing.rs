//! How one shard stands for moves, whichever they are: what keeps buckets from being moved from or to it, and how much is free
//! there of what a move takes. `doctor` asks it of every shard, and a move of its two.

use shard_config::ShardId;

use super::disk;
use super::objects;
use super::preflight::{Findings, Problem, foreign_keys, human, of_tables, replicated_into, server};
use super::tables::sharded;
use crate::direct::{Db, Servers, is_for_good};

/// What a move takes of each shard: two slots (of the move, and of what changed) and one sender (of the snapshot, then of the
/// move) on the one that gives, and a worker on the one that takes; of both all of it, since the way back has the roles
/// exchanged.
const NEEDED: [(i64, &str); 3] = [
    (2, "max_replication_slots"),
    (1, "max_wal_senders"),
    (1, "max_logical_replication_workers (and max_worker_processes)"),
];

/// Of a server's slots, senders and workers, in the order of `NEEDED`: how many are free, and of how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places([(i64, i64); 3]);

pub(super) async fn places(db: &Db) -> anyhow::Result<Places> {
    let sql = "SELECT most, most - used FROM (VALUES
            (1, current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots)),
            (2, current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_stat_replication)),
            (3, least(current_setting('max_logical_replication_workers')::int8, current_setting('max_worker_processes')::int8),
             (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL))) all_of (n, most, used) ORDER BY n";
    let mut places = [(0, 0); 3];
    for (place, row) in places.iter_mut().zip(db.rows(sql, &[]).await?) {
        *place = (row.try_get(1)?, row.try_get(0)?);
    }
    Ok(Places(places))
}

impl Places {
    /// What is less than a move takes.
    pub(super) fn lacking(self, shard: ShardId) -> Vec<Problem> {
        let short = NEEDED.into_iter().zip(self.0).filter(|((need, _), (left, _))| left < need);
        short
            .map(|((need, setting), (left, _))| Problem {
                what: format!("shard {shard}: {left} free of {setting}, {need} are needed"),
                remedy: format!("raise {setting} and restart the server, or wait for other moves"),
            })
            .collect()
    }

    fn shown(self) -> String {
        let [slots, senders, workers] = self.0.map(|(left, most)| format!("{left} of {most}"));
        format!("{slots} replication slots, {senders} WAL senders, {workers} workers of subscriptions")
    }
}

/// Why a subscription, not of a move, keeps this shard from a part in moves.
pub(super) async fn subscribed(db: &Db, shard: ShardId) -> anyhow::Result<Option<Problem>> {
    Ok(replicated_into(db).await?.map(|who| Problem {
        what: format!(
            "shard {shard} receives rows by subscription {who}: the fence lets replicated rows through"
        ),
        remedy: format!("ALTER SUBSCRIPTION {who} DISABLE until the move is over"),
    }))
}

/// What was found of one shard.
#[derive(Debug)]
pub struct Standing {
    pub problems: Vec<Problem>,
    /// How much is free of what moves take.
    pub free: String,
    /// What is no reason not to move, and must be known.
    pub notes: Vec<String>,
}

pub async fn shard(servers: &Servers, shard: ShardId) -> anyhow::Result<Standing> {
    let mut found = Findings::default();
    let db = servers.primary(shard, "shardctl doctor").await?;
    server(&db, &format!("shard {shard}"), servers.in_doubt, &mut found).await?;
    let places = places(&db).await?;
    found.0.extend(places.lacking(shard));
    found.0.extend(subscribed(&db, shard).await?);
    let disk = match disk::of(&db, shard).await {
        Ok(Some(disks)) => {
            let mut shown = Vec::new();
            for (what, disk) in [("data", disks.data), ("WAL", disks.wal)] {
                if disk.free < disk.reserve() {
                    found.0.push(Problem {
                        what: format!(
                            "shard {shard}: {} are free where its {what} is, and {} are to stay so",
                            human(disk.free),
                            human(disk.reserve())
                        ),
                        remedy: "make room, or move buckets away: none come here before".to_owned(),
                    });
                }
                let text = format!(
                    "{} of {} where its {what} is, of which {} are to stay free",
                    human(disk.free),
                    human(disk.size),
                    human(disk.reserve())
                );
                // Most servers have both on one disk.
                if disks.data != disks.wal || shown.is_empty() {
                    shown.push(text);
                }
            }
            shown.join(", ")
        }
        Ok(None) => "its machine has no df, which tells the room on its disk".to_owned(),
        // Of a role without the right, which is a finding of its own.
        Err(error) if is_for_good(&error) => {
            "the role of [control] may not ask for the room on its disk".to_owned()
        }
        Err(error) => return Err(error),
    };
    let tables = sharded(&db, &servers.config).await?;
    of_tables(&db, &servers.config, &tables, &mut found).await?;
    foreign_keys(&db, &tables, &mut found).await?;
    let notes = objects::sequences(&db, shard, servers.config.proxy.default_shard, &tables).await?;
    Ok(Standing { problems: found.0, free: format!("{}; {disk}", places.shown()), notes })
}
