//! The catalog as proxies see it: the map, the motions, and what the proxies acknowledge.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::{ShardId, ShardMap};

use super::job::{Job, Way};
use super::limit::MOTIONS;
use super::machine::Phase;
use super::preflight::{placement, told};
use super::scope::{KeyHash, Scope};
use crate::direct::Db;

/// What proxies take while they make theirs (`proxy/src/control/schema.rs`): two that make a function at once fail.
const INSTALL_LOCK: (i32, i32) = (PROXY_CLASS, 1);
/// The class of the locks of proxies. Numbers below are not of backends.
const PROXY_CLASS: i32 = 1_936_224_868;
const BACKEND_TAG_LEAST: i64 = 1000;

/// The map in use, with what makes two of one epoch different.
#[derive(Debug, Clone)]
pub struct StoredMap {
    pub map: ShardMap,
    pub overrides: Vec<(KeyHash, ShardId)>,
    pub id: String,
}

impl StoredMap {
    pub fn owner_of_hash(&self, hash: KeyHash) -> ShardId {
        let pinned = self.overrides.iter().find(|(key, _)| *key == hash).map(|(_, shard)| *shard);
        pinned.unwrap_or_else(|| self.map.owners()[usize::from(hash.bucket(self.map.buckets()).get())])
    }

    /// The one shard that owns all of `scope`, if there is one.
    pub fn owner_of(&self, scope: &Scope) -> Option<ShardId> {
        let mut owners = scope
            .ranges()
            .iter()
            .flat_map(|&(from, to)| from..=to)
            .map(|bucket| self.map.owners().get(usize::from(bucket)).copied())
            .chain(scope.hashes().iter().map(|&hash| Some(self.owner_of_hash(hash))));
        let first = owners.next()??;
        owners.all(|owner| owner == Some(first)).then_some(first)
    }

    /// Whether what `shard` has of `scope` are copies: `owner` owns all of it, and no tenant of its buckets is pinned to `shard`.
    /// An error otherwise: nothing of it is to be deleted there.
    pub fn only_copies(&self, scope: &Scope, shard: ShardId, owner: ShardId) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.owner_of(scope) == Some(owner),
            "shard {owner} does not own {scope}: rows of shard {shard} are not deleted"
        );
        let within = |hash: KeyHash| {
            let bucket = hash.bucket(self.map.buckets()).get();
            scope.ranges().iter().any(|(from, to)| (*from..=*to).contains(&bucket))
        };
        let pinned = self.overrides.iter().find(|(hash, pinned_to)| *pinned_to == shard && within(*hash));
        if let Some((hash, _)) = pinned {
            anyhow::bail!(
                "the tenant with hash {hash} of {scope} is pinned to shard {shard}: rows of shard {shard} are not deleted"
            );
        }
        Ok(())
    }

    fn from_row(row: &tokio_postgres::Row) -> anyhow::Result<Self> {
        let buckets = u16::try_from(row.try_get::<_, i32>(1)?)?;
        Self::stored(row.try_get(0)?, buckets, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)
    }

    /// Of what `shard_catalog.map` has.
    pub(crate) fn stored(
        epoch: i64,
        buckets: u16,
        ranges: Value,
        overrides: Value,
        id: String,
    ) -> anyhow::Result<Self> {
        let ranges: Vec<(u16, u16, u16)> =
            serde_json::from_value(ranges).context("shard_catalog.map: ranges")?;
        let ranges: Vec<_> = ranges.into_iter().map(|(a, b, shard)| (a, b, ShardId(shard))).collect();
        let overrides: Vec<(i64, u16)> =
            serde_json::from_value(overrides).context("shard_catalog.map: overrides")?;
        let map = ShardMap::from_ranges(u64::try_from(epoch)?, buckets, &ranges)?;
        let overrides =
            overrides.into_iter().map(|(hash, shard)| (KeyHash::new(hash), ShardId(shard))).collect();
        Ok(Self { map, overrides, id })
    }

    /// Ranges and overrides after `scope` has gone to `to`, as they are stored.
    pub fn after(&self, scope: &Scope, to: ShardId) -> (Value, Value) {
        let mut owners = self.map.owners().to_vec();
        for &(from, last) in scope.ranges() {
            for bucket in from..=last {
                if let Some(owner) = owners.get_mut(usize::from(bucket)) {
                    *owner = to;
                }
            }
        }
        let mut overrides = self.overrides.clone();
        overrides.retain(|(hash, _)| !scope.hashes().contains(hash));
        // A tenant that is where its bucket is needs no override.
        let home = |hash: KeyHash| owners[usize::from(hash.bucket(self.map.buckets()).get())];
        overrides.extend(scope.hashes().iter().filter(|hash| home(**hash) != to).map(|&hash| (hash, to)));
        overrides.sort_unstable();
        let mut ranges: Vec<(u16, u16, u16)> = Vec::new();
        for (bucket, owner) in owners.iter().enumerate() {
            let bucket = bucket as u16;
            match ranges.last_mut() {
                Some((_, last, shard)) if *shard == owner.0 => *last = bucket,
                _ => ranges.push((bucket, bucket, owner.0)),
            }
        }
        let overrides: Vec<_> = overrides.iter().map(|(hash, shard)| (hash.get(), shard.0)).collect();
        (json!(ranges), json!(overrides))
    }
}

const MAP: &str = "SELECT epoch, buckets, ranges, overrides, id::text FROM shard_catalog.map";

pub async fn map(db: &Db) -> anyhow::Result<StoredMap> {
    let row = db.first(&format!("{MAP} ORDER BY epoch DESC LIMIT 1"), &[]).await?;
    StoredMap::from_row(
        &row.context("shard_catalog.map is empty: start a proxy first, it writes the first map")?,
    )
}

pub async fn map_at(db: &Db, epoch: i64) -> anyhow::Result<StoredMap> {
    let row = db.first(&format!("{MAP} WHERE epoch = $1"), &[&epoch]).await?;
    StoredMap::from_row(&row.with_context(|| format!("there is no epoch {epoch} in the map's history"))?)
}

/// Makes what is missing of the catalog: a proxy that has not been started yet would have made it.
pub async fn install(db: &Db) -> anyhow::Result<()> {
    let there = "SELECT to_regprocedure('shard_catalog.cutover(bigint, bigint)') IS NOT NULL
        AND to_regprocedure('shard_catalog.moves_at_once(int)') IS NOT NULL AND EXISTS (SELECT FROM pg_trigger
        WHERE tgrelid = to_regclass('shard_catalog.proxy') AND tgname = 'shard_catalog_moved')";
    if db.holds(there, &[]).await? {
        return Ok(());
    }
    make(db, &[shard_config::CATALOG_SQL]).await
}

pub(super) async fn make(db: &Db, parts: &[&str]) -> anyhow::Result<()> {
    let (class, id) = INSTALL_LOCK;
    db.run(&format!(
        // It is made again when it is lost; a commit that waits for a standby would keep its locks.
        "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL synchronous_commit = local; SELECT pg_advisory_xact_lock({class}, {id}); {} COMMIT",
        parts.concat()
    ))
    .await
}

#[derive(Debug, Clone)]
pub struct Motion {
    pub move_id: i64,
    pub scope: Scope,
    pub stage: String,
}

pub async fn motions(db: &Db) -> anyhow::Result<Vec<Motion>> {
    let rows =
        db.rows("SELECT move_id, scope, stage FROM shard_catalog.motion ORDER BY move_id", &[]).await?;
    let motion = |row: &tokio_postgres::Row| {
        Ok(Motion {
            move_id: row.try_get(0)?,
            scope: Scope::from_json(&row.try_get::<_, Value>(1)?)?,
            stage: row.try_get(2)?,
        })
    };
    rows.iter().map(motion).collect()
}

/// Writes the job's motion with `stage`, and returns the version that says so. The same stage again changes nothing, so
/// that a step done twice costs proxies nothing.
///
/// Of a motion that is `copying` or `holding` the source owns the scope. While a roll-back is fenced that is the shard
/// that the move called its target, so the two are written the other way round.
pub async fn set_stage(db: &Db, job: &Job, way: Way, stage: &str) -> anyhow::Result<i64> {
    let current = "SELECT stage, (SELECT version FROM shard_catalog.control) FROM shard_catalog.motion WHERE move_id = $1";
    if let Some(row) = db.first(current, &[&job.id]).await?
        && row.try_get::<_, String>(0)? == stage
        && stage != "holding"
    {
        return Ok(row.try_get(1)?);
    }
    let sql = "WITH written AS (
                   INSERT INTO shard_catalog.motion (move_id, scope, source, target, stage) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (move_id) DO UPDATE SET stage = excluded.stage, source = excluded.source,
                       target = excluded.target, since = clock_timestamp()),
               bumped AS (UPDATE shard_catalog.control SET version = version + 1 RETURNING version)
               SELECT version, pg_notify('shard_catalog', '') IS NULL FROM bumped";
    let (source, target) = (i32::from(job.giver(way).0), i32::from(job.taker(way).0));
    db.value(sql, &[&job.id, &job.scope.json(), &source, &target, &stage]).await
}

/// Takes the job's motion away; `None` when it was gone.
pub async fn end_motion(db: &Db, job: &Job) -> anyhow::Result<Option<i64>> {
    let sql = "WITH gone AS (DELETE FROM shard_catalog.motion WHERE move_id = $1 RETURNING move_id),
               bumped AS (UPDATE shard_catalog.control SET version = version + 1 WHERE EXISTS (SELECT FROM gone) RETURNING version)
               SELECT version, pg_notify('shard_catalog', '') IS NULL FROM bumped";
    Ok(match db.first(sql, &[&job.id]).await? {
        Some(row) => Some(row.try_get(0)?),
        None => None,
    })
}

/// Makes the job's motion known, if nobody else moves rows of its scope, the source still owns all of it, and no tenant of it
/// is pinned to either shard. All of it is asked for in the transaction that says so: what preflight has seen may be long ago.
/// Returns the version that says it.
pub async fn announce(db: &Db, job: &Job) -> anyhow::Result<Result<i64, String>> {
    // Behind every flip and every other announcement.
    db.run("BEGIN; LOCK TABLE shard_catalog.motion IN SHARE ROW EXCLUSIVE MODE").await?;
    let said = async {
        let now = map(db).await?;
        // Tenants that were pinned meanwhile, too: their rows would be taken for copies.
        let problems = placement(&now, &job.scope, job.source, job.target);
        if !problems.is_empty() {
            return Ok(Err(told(&problems)));
        }
        if let Some(other) = others_in_motion(db, job.id, &job.scope, now.map.buckets()).await? {
            return Ok(Err(format!("move {} has {} under way", other.move_id, other.scope)));
        }
        // Proxies would not follow a catalog with more.
        let open: i64 =
            db.value("SELECT count(*) FROM shard_catalog.motion WHERE move_id <> $1", &[&job.id]).await?;
        if open >= MOTIONS {
            return Ok(Err(format!("{open} moves are open, and no more may be: finish some of them")));
        }
        anyhow::Ok(Ok(set_stage(db, job, Way::Out, "copying").await?))
    };
    let said = said.await;
    let end = if matches!(said, Ok(Ok(_))) { "COMMIT" } else { "ROLLBACK" };
    db.run(end).await?;
    said
}

/// The newest epoch with which rows are known to have come to a shard or left it; 0 if none ever did.
pub async fn known_epoch(db: &Db) -> anyhow::Result<i64> {
    // Both ask for a name that may not be there yet: `query_to_xml` looks it up when it runs.
    let sql = "SELECT coalesce((SELECT (xpath('/row/e/text()', query_to_xml(
               'SELECT max(epoch) AS e FROM shard_catalog.ownership WHERE flipped', false, true, '')))[1]::text::int8
               WHERE EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('shard_catalog.ownership') AND attname = 'flipped')), 0)";
    db.value(sql, &[]).await
}

/// Scopes meet no motion of another move.
pub async fn others_in_motion(
    db: &Db,
    id: i64,
    scope: &Scope,
    buckets: u16,
) -> anyhow::Result<Option<Motion>> {
    Ok(motions(db)
        .await?
        .into_iter()
        .find(|other| other.move_id != id && other.scope.intersects(scope, buckets)))
}

/// The flip may wait for others in the catalog so long: everybody is held meanwhile.
const FLIP: Duration = Duration::from_millis(300);

/// The flip: ONE transaction changes the map (if it is still the one that was read), the motion, the version and the
/// move's own phase. `Ok(false)`: the map or the phase was another one, and nothing has changed. An error may mean
/// either; whoever comes next reads the phase, behind this transaction's row lock.
pub async fn flip(db: &Db, job: &Job, seen: &StoredMap, next: &Flip<'_>) -> anyhow::Result<bool> {
    let (ranges, overrides) = seen.after(&job.scope, next.owner);
    let epoch = i64::try_from(seen.map.epoch())? + 1;
    let reason = format!("move {}: {} to shard {}", job.id, job.scope, next.owner);
    let sql = "WITH phase AS (
                   UPDATE shard_catalog.move SET phase = $1::text, updated_at = clock_timestamp() WHERE id = $2::bigint AND phase = $3::text RETURNING id),
               flipped AS (
                   INSERT INTO shard_catalog.map (epoch, buckets, ranges, overrides, id, reason)
                   SELECT $4::bigint, $5::int, $6::jsonb, $7::jsonb, $8::text::uuid, $9::text FROM phase
                    WHERE EXISTS (SELECT FROM shard_catalog.map WHERE epoch = $4::bigint - 1 AND id = $10::text::uuid)
                      AND NOT EXISTS (SELECT FROM shard_catalog.map WHERE epoch >= $4::bigint)
                   RETURNING epoch),
               motion AS (UPDATE shard_catalog.motion SET stage = $11::text, source = $12::int, target = $13::int, since = clock_timestamp()
                           WHERE move_id = $2::bigint AND EXISTS (SELECT FROM flipped) RETURNING move_id),
               event AS (INSERT INTO shard_catalog.move_event (move_id, phase, text)
                         SELECT $2::bigint, $1::text, 'epoch ' || epoch || ': ' || $9::text FROM flipped),
               bumped AS (UPDATE shard_catalog.control SET version = version + 1 WHERE EXISTS (SELECT FROM motion) RETURNING version)
               SELECT version, pg_notify('shard_catalog', '') IS NULL FROM bumped";
    db.run(&format!("BEGIN; SET LOCAL statement_timeout = {}", FLIP.as_millis())).await?;
    let flipped = db
        .first(
            sql,
            &[
                &next.phase.name(),
                &job.id,
                &job.phase.name(),
                &epoch,
                &i32::from(seen.map.buckets()),
                &ranges,
                &overrides,
                &next.id,
                &reason,
                &seen.id,
                &next.stage,
                &i32::from(job.source.0),
                &i32::from(job.target.0),
            ],
        )
        .await?;
    if flipped.is_none() {
        db.run("ROLLBACK").await?;
        return Ok(false);
    }
    db.run("COMMIT").await?;
    Ok(true)
}

/// What a flip writes.
#[derive(Debug)]
pub struct Flip<'a> {
    pub owner: ShardId,
    pub phase: Phase,
    pub stage: &'a str,
    /// The new epoch's random id.
    pub id: &'a str,
}

/// One proxy process as it says itself.
#[derive(Debug, Clone)]
pub struct ProxyRow {
    pub name: String,
    pub address: String,
    pub backend_tag: String,
    pub leased: bool,
    pub version: i64,
    pub drained: i64,
    pub epoch: i64,
    pub held: i32,
    pub note: String,
    /// The numbers of those that it knows; `None`: it is too old to say so.
    pub shards: Option<Vec<i32>>,
}

impl ProxyRow {
    /// Of one that has not drained `version`: what is waited for.
    pub fn awaited(&self, version: i64) -> String {
        match self.version < version {
            true => format!("proxy {} has not taken up version {version}", self.name),
            false => format!("proxy {} waits for statements under way: {}", self.name, self.note),
        }
    }
}

pub async fn proxies(db: &Db) -> anyhow::Result<Vec<ProxyRow>> {
    let sql = "SELECT name, address, backend_tag, lease_until > clock_timestamp(), version, drained, epoch, held, \
               coalesce(note, ''), shards FROM shard_catalog.proxy ORDER BY name, id";
    let rows = db.rows(sql, &[]).await?;
    let proxy = |row: &tokio_postgres::Row| {
        Ok(ProxyRow {
            name: row.try_get(0)?,
            address: row.try_get(1)?,
            backend_tag: row.try_get(2)?,
            leased: row.try_get(3)?,
            version: row.try_get(4)?,
            drained: row.try_get(5)?,
            epoch: row.try_get(6)?,
            held: row.try_get(7)?,
            note: row.try_get(8)?,
            shards: row.try_get(9)?,
        })
    };
    rows.iter().map(proxy).collect()
}

/// The proxies with a lease that have not drained `version`.
pub async fn late(db: &Db, version: i64) -> anyhow::Result<Vec<ProxyRow>> {
    Ok(proxies(db).await?.into_iter().filter(|proxy| proxy.leased && proxy.drained < version).collect())
}

/// Waits until every proxy with a lease has drained `version`. The error names who has not, and whom it waits for.
pub async fn drained(db: &Db, version: i64, within: Duration, poll: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let late = late(db, version).await?;
        if late.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= within {
            let late: Vec<_> = late.iter().map(|proxy| proxy.awaited(version)).collect();
            anyhow::bail!("{} after {:?}", late.join("; "), within);
        }
        tokio::time::sleep(poll).await;
    }
}

/// Ends the server sessions on `db` of every proxy that cannot be trusted to obey version `version`: its lease has run out, it
/// has not taken it up, or its row is gone, as that of one that was stopped for long (H8). Returns how many.
pub async fn end_sessions(catalog: &Db, db: &Db, version: i64) -> anyhow::Result<i64> {
    let trusted =
        proxies(catalog).await?.into_iter().filter(|proxy| proxy.leased && proxy.version >= version);
    let trusted =
        trusted.map(|proxy| Ok(proxy.backend_tag.parse()?)).collect::<anyhow::Result<Vec<i64>>>()?;
    // Each of their backends holds such a lock as long as it lives (`proxy/src/pool/connect.rs`).
    let sql = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_locks \
               WHERE locktype = 'advisory' AND classid::int8 = $1 AND objid::int8 >= $2 AND objid::int8 <> ALL ($3) AND objsubid = 2 \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND granted AND pid <> pg_backend_pid()";
    db.value(sql, &[&i64::from(PROXY_CLASS), &BACKEND_TAG_LEAST, &trusted]).await
}
