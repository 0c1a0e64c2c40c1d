//! What must hold before a move begins. Nothing is changed here; every reason not to begin is reported at once, with what
//! to do about it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use shard_config::{Config, ShardId};

use super::catalog::{self, StoredMap};
use super::definition::{definitions, difference};
use super::disk;
use super::job::Job;
use super::objects;
use super::room::Lack;
use super::scope::{Scope, literal};
use super::standing;
use super::tables::{TREE, Table, deferrable_key, misfits, obscure, sharded};
use crate::direct::{Db, Servers};

/// Why not, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub remedy: String,
}

/// All of them in one line.
pub fn told(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{}: {}", p.what, p.remedy)).collect::<Vec<_>>().join("; ")
}

#[derive(Debug, Default)]
pub struct Findings(pub Vec<Problem>);

impl Findings {
    pub(super) fn add(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Problem { what: what.into(), remedy: remedy.into() });
    }
}

/// Checks everything that a map alone can say.
pub fn placement(map: &StoredMap, scope: &Scope, source: ShardId, target: ShardId) -> Vec<Problem> {
    let mut found = Findings::default();
    let buckets = map.map.buckets();
    if source == target {
        found.add(format!("shard {source} is both source and target"), "name another target");
    }
    for &(from, to) in scope.ranges() {
        if to >= buckets {
            found.add(
                format!("there is no bucket {to}"),
                format!("buckets are numbered from 0 to {}", buckets - 1),
            );
            continue;
        }
        for bucket in from..=to {
            let owner = map.map.owners()[usize::from(bucket)];
            if owner != source {
                found.add(
                    format!("bucket {bucket} is on shard {owner}, not on shard {source}"),
                    "plan again: shardctl map shows who owns what",
                );
                break;
            }
        }
        // Rows of a pinned tenant would be taken for rows of its bucket.
        for (hash, shard) in &map.overrides {
            let inside = (from..=to).contains(&hash.bucket(buckets).get());
            if inside && (*shard == source || *shard == target) {
                found.add(
                    format!("the tenant with hash {hash} of these buckets is pinned to shard {shard}"),
                    "move it first (plan isolate), or move the other buckets only",
                );
            }
        }
    }
    for &hash in scope.hashes() {
        let owner = map.owner_of_hash(hash);
        if owner != source {
            found.add(
                format!("the tenant with hash {hash} is on shard {owner}, not on shard {source}"),
                "plan again",
            );
        }
    }
    found.0
}

/// Shards whose primary cannot be asked, or on which nothing could be committed.
pub async fn unreachable(servers: &Servers, shards: impl IntoIterator<Item = ShardId>) -> Vec<Problem> {
    let shards: BTreeSet<ShardId> = shards.into_iter().collect();
    // All at once: each may take seconds to say nothing.
    let asked = join_all(shards.iter().map(|shard| servers.primary(*shard, "shardctl"))).await;
    let mut found = Findings::default();
    for (shard, asked) in shards.iter().zip(asked) {
        let waits = match asked {
            Ok(db) => commits_wait(&db).await,
            Err(error) => Err(error),
        };
        match waits {
            Ok(None) => {}
            Ok(Some(why)) => found.add(format!("shard {shard}: {why}"), WAIT_REMEDY),
            Err(error) => found.add(
                format!("{error:#}"),
                "start it, or mend its address in the configuration, then say the same again",
            ),
        }
    }
    found.0
}

/// What keeps the catalog's shard from writing anything down.
pub async fn unwritable(control: &Db) -> anyhow::Result<Vec<Problem>> {
    let mut found = Findings::default();
    if let Some(why) = commits_wait(control).await? {
        found.add(format!("the shard of the catalog: {why}"), WAIT_REMEDY);
    }
    Ok(found.0)
}

/// Everything that the servers must say.
pub async fn servers(
    servers: &Servers,
    control: &Db,
    source: &Db,
    target: &Db,
    job: &Job,
    map: &StoredMap,
) -> anyhow::Result<(Vec<Problem>, Vec<Table>)> {
    let mut found = Findings::default();
    let buckets = map.map.buckets();
    if let Some(other) = catalog::others_in_motion(control, job.id, &job.scope, buckets).await? {
        found.add(
            format!("move {} has {} under way", other.move_id, other.scope),
            format!("wait for it (shardctl watch {0}), or end it: shardctl abort {0}", other.move_id),
        );
    }
    for (shard, db) in [(job.source, source), (job.target, target)] {
        server(db, &format!("shard {shard}"), servers.in_doubt, &mut found).await?;
        found.0.extend(standing::subscribed(db, shard).await?);
    }
    for (shard, db) in [(job.source, source), (job.target, target)] {
        found.0.extend(standing::places(db).await?.lacking(shard));
    }
    found.0.extend(super::durable::problems(job, source, target).await?);
    found.0.extend(super::newcomer::problems(servers, control, job, map).await?);

    let tables = sharded(source, &servers.config).await?;
    if tables.is_empty() {
        found.add(
            format!("shard {} has no sharded table", job.source),
            "there is nothing to move but the buckets' place in the map",
        );
    }
    of_tables(source, &servers.config, &tables, &mut found).await?;
    foreign_keys(source, &tables, &mut found).await?;
    let (ours, theirs) = tokio::try_join!(definitions(source, &tables), definitions(target, &tables))?;
    for (table, parts) in &ours {
        let problem = match theirs.get(table) {
            None => format!("{table} is on shard {} and not on shard {}", job.source, job.target),
            Some(there) => match difference((job.source, parts), (job.target, there)) {
                None => continue,
                Some(what) => format!(
                    "{table} is not defined alike on shards {} and {}: {what}",
                    job.source, job.target
                ),
            },
        };
        found.add(problem, DRIFT_REMEDY);
    }
    // A table that only the target has may hold rows of the scope.
    let there = sharded(target, &servers.config).await?;
    for table in there.iter().filter(|table| !tables.iter().any(|known| known.sql() == table.sql())) {
        found.add(
            format!("{} is on shard {} and not on shard {}", table.full_name(), job.target, job.source),
            DRIFT_REMEDY,
        );
    }
    let known = obscure(source, &servers.config).await?;
    for (name, why) in
        obscure(target, &servers.config).await?.into_iter().filter(|other| !known.contains(other))
    {
        found.add(format!("on shard {} only: {name} {OBSCURE}: {why}", job.target), OBSCURE_REMEDY);
    }
    if found.0.is_empty() {
        if let Some(table) = super::clean::any_row(target, job, &there, buckets).await? {
            found.add(
                format!("shard {} has rows of {} in {table} already", job.target, job.scope),
                "they are leftovers or were written past the proxy: look at them (shardctl doctor --sweep), then delete them",
            );
        }
        room(source, target, job, &tables, map, &mut found).await?;
    }
    Ok((found.0, tables))
}

pub(super) async fn server(
    db: &Db,
    name: &str,
    in_doubt: Duration,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let sql = "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), current_setting('wal_level'),
            current_setting('max_prepared_transactions')::int, current_setting('synchronous_standby_names'),
            (SELECT string_agg(gid, ', ') FROM pg_prepared_xacts WHERE database = current_database()
              AND prepared < clock_timestamp() - $1::float8 * interval '1 s' AND NOT starts_with(gid, 'shard_move:')),
            current_user::text, (SELECT string_agg(DISTINCT split_part(gid, ':', 2), ', ') FROM pg_prepared_xacts
              WHERE database = current_database() AND starts_with(gid, 'shard_move:'))";
    let row = db.one(sql, &[&in_doubt.as_secs_f64()]).await?;
    if !row.try_get::<_, bool>(0)? {
        let user: String = row.try_get(5)?;
        found.add(
            format!("{name}: role {user} is no superuser"),
            "the mover makes subscriptions, triggers and prepared transactions with the role of [control]: ALTER ROLE ... SUPERUSER",
        );
    }
    let level: String = row.try_get(1)?;
    if level != "logical" {
        found.add(format!("{name}: wal_level is {level}"), "set wal_level = logical and restart the server");
    }
    if row.try_get::<_, i32>(2)? == 0 {
        found.add(
            format!("{name}: max_prepared_transactions is 0"),
            "the fence is a prepared transaction: set it to at least the number of clients and restart the server",
        );
    }
    // A subscription's worker would count as the synchronous standby, and acknowledge what no standby has.
    let standbys: String = row.try_get(3)?;
    if standbys.contains('*') {
        found.add(
            format!("{name}: synchronous_standby_names is {standbys}"),
            "name the standbys: * would take a subscription for one",
        );
    }
    if let Some(why) = commits_wait(db).await? {
        found.add(format!("{name}: {why}"), WAIT_REMEDY);
    }
    if let Some(gids) = row.try_get::<_, Option<String>>(4)? {
        found.add(
            format!("{name}: in doubt for over {in_doubt:?}: {gids}"),
            "a running proxy finishes its own; look at its log, or end it by hand: no slot can begin before",
        );
    }
    if let Some(moves) = row.try_get::<_, Option<String>>(6)? {
        found.add(
            format!("{name}: the fence of move {moves} waits for the end of older transactions"),
            "not to be ended by hand: shardctl resume that move, and end what it says it waits for; no slot can begin before",
        );
    }
    Ok(())
}

const DRIFT_REMEDY: &str = "make it alike by hand (SET shard.target = 'n' reaches one shard); shardctl migrate does it for the payment schema's own tables";
const OBSCURE: &str = "seems to be placed by the sharding key, and cannot be moved";
const OBSCURE_REMEDY: &str = "declare it ([[table]] kind = \"plain\"), change the column's type, or drop it";

pub(super) async fn of_tables(
    db: &Db,
    config: &Config,
    tables: &[Table],
    found: &mut Findings,
) -> anyhow::Result<()> {
    for (name, why) in obscure(db, config).await? {
        found.add(format!("{name} {OBSCURE}: {why}"), OBSCURE_REMEDY);
    }
    for table in tables {
        let name = table.full_name();
        if let Some((relation, key)) = deferrable_key(db, table).await? {
            found.add(
                format!("the primary key of {relation} ({key}) is DEFERRABLE, so replication cannot tell rows by it"),
                format!(
                    "UPDATE and DELETE would fail as soon as it is published: make the key anew without DEFERRABLE (ALTER TABLE \
                     {relation} DROP CONSTRAINT {key}, ADD PRIMARY KEY ...)"
                ),
            );
        } else if table.primary_key.is_empty() {
            found.add(
                format!("{name} has no primary key"),
                format!("add one that contains {}: rows are compared and replicated by it", table.key_column),
            );
        } else if !table.primary_key.iter().any(|(column, _)| *column == table.key_column) {
            found.add(
                format!("the primary key of {name} does not contain {}", table.key_column),
                "UPDATE and DELETE would fail as soon as it is published: add the column to the key",
            );
        }
        for (what, remedy) in misfits(db, table).await?.into_iter().chain(objects::large(db, table).await?) {
            found.add(what, remedy);
        }
    }
    Ok(())
}

/// A plain or reference table may refer to rows that are going to leave.
pub(super) async fn foreign_keys(source: &Db, tables: &[Table], found: &mut Findings) -> anyhow::Result<()> {
    let names: Vec<_> = tables.iter().map(|table| format!("{}::regclass", literal(&table.sql()))).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    let sql = format!(
        "SELECT conname::text, conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint \
         WHERE contype = 'f' AND conparentid = 0 AND confrelid IN ({names}) AND conrelid NOT IN ({names}) \
         AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = conrelid AND i.inhparent IN ({names}))"
    );
    for row in source.rows(&sql, &[]).await? {
        let (constraint, from, to): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        found.add(
            format!("{from}, which is not sharded, refers to {to} ({constraint})"),
            "its rows would refer to rows of another shard: drop the constraint, or shard the table by the same key",
        );
    }
    Ok(())
}

/// Why every commit of the mover on this server waits, if it does: standbys that it is told to wait for are away, whatever others
/// wait for. A subscription's worker is none.
pub async fn commits_wait(db: &Db) -> anyhow::Result<Option<String>> {
    let sql = "SELECT names, wanted, there FROM (SELECT current_setting('synchronous_standby_names') AS names,
            coalesce(substring(current_setting('synchronous_standby_names') FROM '(?i)^\\s*(?:FIRST|ANY)?\\s*(\\d+)\\s*\\(')::int8, 1) AS wanted,
            (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND pid NOT IN (
                SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL)) AS there) s
        WHERE names <> '' AND there < wanted";
    let Some(row) = db.first(sql, &[]).await? else { return Ok(None) };
    let (names, wanted, there): (String, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(Some(format!(
        "writes wait for a standby: synchronous_standby_names is {names}, and {there} of {wanted} stream"
    )))
}

/// See `commits_wait`.
const WAIT_REMEDY: &str = "start the standby, or empty synchronous_standby_names, then say the same again";

async fn room(
    source: &Db,
    target: &Db,
    job: &Job,
    tables: &[Table],
    map: &StoredMap,
    found: &mut Findings,
) -> anyhow::Result<()> {
    // With indexes, which the rows get on the target, too.
    let sql = format!(
        "SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::int8 FROM {TREE} t WHERE t.isleaf"
    );
    let mut bytes = 0;
    for table in tables {
        bytes += source.value::<i64>(&sql, &[&table.sql()]).await?;
    }
    // All tenants hash alike, so a scope's part of the tables is its part of the source's buckets; a single tenant may be all.
    let moving: u64 = job.scope.ranges().iter().map(|(from, to)| u64::from(to - from) + 1).sum();
    let owned = f64::from(map.map.count(job.source).max(1));
    let share = if job.scope.hashes().is_empty() { moving as f64 / owned } else { 1.0 };
    let estimate = (bytes as f64 * share.min(1.0)) as i64;
    for (shard, db) in [(job.target, target), (job.source, source)] {
        let Some(disks) = disk::of(db, shard).await? else { continue };
        let lack = match shard == job.target {
            true => disks.lack_as_target(estimate),
            false => disks.lack_as_source(estimate),
        };
        if let Some(Lack { place, free, need, remedy }) = lack {
            let (free, need) = (human(free), human(need));
            found.add(format!("shard {shard} has {free} free{place}, the move wants {need}"), remedy);
        }
    }
    Ok(())
}

/// A subscription, not of a move, that writes rows here past the guards.
pub async fn replicated_into(db: &Db) -> anyhow::Result<Option<String>> {
    let sql = "SELECT quote_ident(subname) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
               WHERE d.datname = current_database() AND subenabled AND subname !~ '^shard_(move|back)_[0-9]+$' ORDER BY 1";
    db.first(sql, &[]).await?.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Bytes for people.
pub fn human(bytes: i64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use shard_config::{KeyHash, ShardMap};

    use super::*;

    fn map(overrides: &[(i64, u16)]) -> StoredMap {
        StoredMap {
            map: ShardMap::even(&[ShardId(1), ShardId(2)], 16),
            overrides: overrides.iter().map(|&(hash, shard)| (KeyHash::new(hash), ShardId(shard))).collect(),
            id: String::new(),
        }
    }

    fn check(map: &StoredMap, scope: &Scope, source: u16, target: u16) -> Vec<String> {
        placement(map, scope, ShardId(source), ShardId(target))
            .into_iter()
            .map(|problem| problem.what)
            .collect()
    }

    #[test]
    fn a_scope_must_be_where_the_plan_says() {
        let scope = Scope::of_range(0, 3);
        assert!(check(&map(&[]), &scope, 1, 2).is_empty());
        assert_eq!(check(&map(&[]), &scope, 2, 1), ["bucket 0 is on shard 1, not on shard 2"]);
        assert_eq!(check(&map(&[]), &scope, 1, 1), ["shard 1 is both source and target"]);
        assert_eq!(check(&map(&[]), &Scope::of_range(7, 16), 1, 2), ["there is no bucket 16"]);
        let tenant = Scope::new(&[], &[KeyHash::new(17)]).unwrap();
        assert!(check(&map(&[]), &tenant, 1, 2).is_empty());
        assert_eq!(
            check(&map(&[(17, 2)]), &tenant, 1, 2),
            ["the tenant with hash 17 is on shard 2, not on shard 1"]
        );
    }

    #[test]
    fn buckets_with_a_pinned_tenant_of_either_shard_stay() {
        let scope = Scope::of_range(0, 3);
        let pinned = check(&map(&[(17, 2)]), &scope, 1, 2);
        assert_eq!(pinned, ["the tenant with hash 17 of these buckets is pinned to shard 2"]);
        assert!(check(&map(&[(17, 3)]), &scope, 1, 2).is_empty(), "its rows are on neither");
        assert!(check(&map(&[(20, 2)]), &scope, 1, 2).is_empty(), "20 & 15 = 4");
    }
}
