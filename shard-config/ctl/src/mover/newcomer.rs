//! What a move to a shard needs of others: every live proxy must know both shards, and a shard that owns nothing yet must have
//! the rows that every shard has, of which it was given a copy before the proxies knew it.

use std::time::Duration;

use shard_config::digest::{quoted_table, rows_digest};
use shard_config::{Config, ShardId, TableKind};
use tokio_postgres::error::SqlState;

use super::catalog::{self, ProxyRow, StoredMap};
use super::job::Job;
use super::preflight::Problem;
use crate::direct::{Db, Servers, is_code};

/// Writers of reference tables wait so long at most for the two shards to be compared: first for those before them.
const LOCK: Duration = Duration::from_millis(1000);
/// And then for its rows to be read.
const SCAN: Duration = Duration::from_secs(2);
/// Without locks, rows that differ are looked at again so often, with a pause between two looks.
const LOOKS: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// The number of a move that is only checked.
const DRY: i64 = 0;

pub async fn problems(
    servers: &Servers,
    control: &Db,
    job: &Job,
    map: &StoredMap,
) -> anyhow::Result<Vec<Problem>> {
    let proxies = catalog::proxies(control).await?;
    let mut found = unknown(&proxies, [job.source, job.target]);
    // Rows are compared only when everybody writes to both: else they differ again a moment later.
    if found.is_empty() && !map.map.shards().contains(&job.target) {
        found = reference_rows(servers, job).await?;
    }
    Ok(found)
}

/// Live proxies that do not know a shard of the move. PURE.
fn unknown(proxies: &[ProxyRow], shards: [ShardId; 2]) -> Vec<Problem> {
    let mut found = Vec::new();
    for proxy in proxies.iter().filter(|proxy| proxy.leased) {
        let Some(known) = &proxy.shards else {
            found.push(Problem {
                what: format!("proxy {} ({}) does not say which shards it knows", proxy.name, proxy.address),
                remedy: "it is older than this shardctl: restart it with the new version".to_owned(),
            });
            continue;
        };
        for shard in shards.iter().filter(|shard| !known.contains(&i32::from(shard.0))) {
            found.push(Problem {
                what: format!("proxy {} ({}) does not know shard {shard}", proxy.name, proxy.address),
                remedy: format!(
                    "add [[shard]] id = {shard} to its configuration file and RELOAD it on its console (or kill -HUP); \
                     after that it waits for the end of transactions that began before: SHOW CLIENTS"
                ),
            });
        }
    }
    found
}

/// First without locks, which finds what is missing at no one's cost. Then, when something is to be moved, under locks: only they
/// say for sure, and they keep writers waiting.
async fn reference_rows(servers: &Servers, job: &Job) -> anyhow::Result<Vec<Problem>> {
    let tables = reference_tables(&servers.config);
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    // In order of the shards' numbers, as proxies lock (H22).
    let (first, second) = (job.source.min(job.target), job.source.max(job.target));
    // Connections of their own: their ends let the locks go, whatever happens.
    let dbs = (servers.primary(first, "shardctl").await?, servers.primary(second, "shardctl").await?);
    let (one, other) = ((first, &dbs.0), (second, &dbs.1));
    for (_, db) in [one, other] {
        // A scan that nobody waits for any more does not go on.
        db.run(&format!("SET statement_timeout = {}", db.patience.as_millis())).await?;
    }
    let mut found = Vec::new();
    let mut there = Vec::new();
    for table in tables {
        let sql = quoted_table(table);
        let exists = "SELECT to_regclass($1) IS NOT NULL";
        match (one.1.holds(exists, &[&sql]).await?, other.1.holds(exists, &[&sql]).await?) {
            (true, true) => there.push(table),
            // The configuration may name what is not made yet.
            (false, false) => {}
            (here, _) => found.push(Problem {
                what: format!(
                    "the reference table {table} does not exist on shard {}",
                    if here { second } else { first }
                ),
                remedy: "run shardctl migrate, or repair it by hand".to_owned(),
            }),
        }
    }
    for table in &there {
        if !are_alike_soon(one.1, other.1, table).await? {
            found.push(differs(table, job));
        }
    }
    if !found.is_empty() || job.id == DRY {
        return Ok(found);
    }
    for table in &there {
        match under_locks(one, other, table).await? {
            Locked::Alike => {}
            Locked::Differing => found.push(differs(table, job)),
            // The connections end here, and with them the locks.
            Locked::Unknown(problem) => return Ok(vec![problem]),
        }
    }
    Ok(found)
}

fn differs(table: &str, job: &Job) -> Problem {
    Problem {
        what: format!(
            "the reference table {table} has other rows on shard {} than on shard {}",
            job.target, job.source
        ),
        remedy: format!(
            "copy them again from shard {} (every proxy writes to both by now, so keep writers out with LOCK TABLE meanwhile), \
             then apply again",
            job.source
        ),
    }
}

async fn are_alike(one: &Db, other: &Db, table: &str) -> anyhow::Result<bool> {
    let digest = rows_digest(&quoted_table(table));
    let (ours, theirs) =
        tokio::try_join!(one.value::<String>(&digest, &[]), other.value::<String>(&digest, &[]))?;
    Ok(ours == theirs)
}

/// A write that one of the shards has committed and the other has not yet is no difference.
async fn are_alike_soon(one: &Db, other: &Db, table: &str) -> anyhow::Result<bool> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        if are_alike(one, other, table).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

enum Locked {
    Alike,
    Differing,
    /// Why.
    Unknown(Problem),
}

/// Whoever writes to a reference table holds a lock on the source's, from before to the end of its transaction: so under a
/// lock that keeps writers out, what is on one shard is on the other, or is missing there for good.
async fn under_locks(one: (ShardId, &Db), other: (ShardId, &Db), table: &str) -> anyhow::Result<Locked> {
    let lock = format!(
        "BEGIN READ ONLY; SET LOCAL lock_timeout = '{}ms'; SET LOCAL statement_timeout = '{}ms'; LOCK TABLE {} IN SHARE MODE",
        LOCK.as_millis(),
        SCAN.as_millis(),
        quoted_table(table)
    );
    for (shard, db) in [one, other] {
        match db.run(&lock).await {
            Err(error) if is_code(&error, &SqlState::LOCK_NOT_AVAILABLE) => {
                return Ok(Locked::Unknown(Problem {
                    what: format!(
                        "the reference table {table} cannot be compared: somebody keeps it locked on shard {shard}"
                    ),
                    remedy: "wait for the end of the transactions that write to it, then apply again"
                        .to_owned(),
                }));
            }
            locked => locked?,
        }
    }
    let alike = match are_alike(one.1, other.1, table).await {
        Err(error) if is_code(&error, &SqlState::QUERY_CANCELED) => {
            return Ok(Locked::Unknown(Problem {
                what: format!(
                    "the reference table {table} cannot be compared: that takes longer than the {} s for which its writers may wait",
                    SCAN.as_secs()
                ),
                remedy: "apply again when the servers have less to do; of a table that is too large for that, keep fewer rows, or \
                         make it a sharded table"
                    .to_owned(),
            }));
        }
        alike => alike?,
    };
    one.1.run("COMMIT").await?;
    other.1.run("COMMIT").await?;
    Ok(if alike { Locked::Alike } else { Locked::Differing })
}

fn reference_tables(config: &Config) -> Vec<&str> {
    config
        .tables
        .iter()
        .filter(|rule| rule.kind == TableKind::Reference)
        .map(|rule| rule.name.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, leased: bool, shards: Option<Vec<i32>>) -> ProxyRow {
        ProxyRow {
            name: name.to_owned(),
            address: "127.0.0.1:1".to_owned(),
            backend_tag: "7".to_owned(),
            leased,
            version: 1,
            drained: 1,
            epoch: 1,
            held: 0,
            note: String::new(),
            shards,
        }
    }

    #[test]
    fn every_live_proxy_must_know_both_shards() {
        let both = [ShardId(2), ShardId(5)];
        let whats =
            |proxies: &[ProxyRow]| unknown(proxies, both).into_iter().map(|p| p.what).collect::<Vec<_>>();
        assert!(whats(&[]).is_empty());
        assert!(
            whats(&[proxy("new", true, Some(vec![1, 2, 5])), proxy("gone", false, Some(vec![1]))]).is_empty()
        );
        assert_eq!(
            whats(&[proxy("late", true, Some(vec![1, 2])), proxy("old", true, None)]),
            [
                "proxy late (127.0.0.1:1) does not know shard 5",
                "proxy old (127.0.0.1:1) does not say which shards it knows"
            ]
        );
    }
}
