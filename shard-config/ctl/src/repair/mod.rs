//! A catalog that has lost its end (a failover to a standby that lacked it, a restored backup) is told from the shards (H6):
//! the map's epochs, and what moves keep on shards of which it knows nothing any more. Nothing is guessed: what the shards
//! cannot say is refused.

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::ShardId;

use self::rebuild::{Lost, Owned};
use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::home;
use crate::mover::catalog::{self, StoredMap};
use crate::mover::copy;
use crate::mover::job::{Job, Way};
use crate::mover::machine::Phase;
use crate::mover::scope::Scope;
use crate::moves::Ended;
use crate::output::Report;

const NAME: &str = "shardctl repair";
/// Proxies refuse a version below one that they have seen. Nobody knows how many were lost; there are not so many.
const VERSIONS: i64 = 1_000_000;

/// What one move keeps on shards.
#[derive(Debug, Default)]
struct Traces {
    shards: BTreeSet<ShardId>,
    scope: Option<Scope>,
}

/// A move as it is to be in the catalog.
#[derive(Debug)]
struct Put {
    id: i64,
    scope: Scope,
    source: ShardId,
    target: ShardId,
    phase: Phase,
    why: String,
}

/// The next epoch, as it is stored.
struct Epoch {
    map: StoredMap,
    ranges: Value,
    overrides: Value,
    reason: String,
}

pub async fn repair(servers: &Servers, dry_run: bool) -> anyhow::Result<Ended> {
    let mut shards = BTreeMap::new();
    for shard in servers.shards() {
        let db = servers.primary(shard, NAME).await;
        let db = db.map_err(|error| {
            Failure::refused(format!(
                "shard {shard} cannot be asked, and may be the only one that knows: {error:#}"
            ))
        })?;
        shards.insert(shard, db);
    }
    let control = one_catalog(servers, dry_run).await?;
    catalog::install(&control).await?;
    // Nobody moves anything meanwhile, nor between what is read and what is written.
    control.run("BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE shard_catalog.map, shard_catalog.motion, shard_catalog.move IN SHARE ROW EXCLUSIVE MODE").await?;
    let newest = catalog::map(&control).await?;
    let said = owned(&shards).await?;
    let lost = rebuild::lost(&newest, &said).map_err(Failure::refused)?;
    let epochs = epochs(&newest, &lost)?;
    let rebuilt = epochs.last().map_or(&newest, |epoch| &epoch.map);
    let (puts, unclear) = moves(&control, &shards, &lost, &said, rebuilt).await?;
    if !unclear.is_empty() {
        return Err(Failure::refused(unclear.join("\n")).into());
    }
    let most = said.iter().map(|owned| owned.move_id).chain(puts.iter().map(|put| put.id)).max().unwrap_or(0);
    let report = report(&newest, &epochs, &puts, dry_run);
    if dry_run {
        control.run("ROLLBACK").await?;
        return Ok((report, 0));
    }
    for epoch in &epochs {
        let sql = "INSERT INTO shard_catalog.map (epoch, buckets, ranges, overrides, id, reason) VALUES ($1, $2, $3, $4, $5::text::uuid, $6)";
        let (number, buckets) = (epoch.map.map.epoch() as i64, i32::from(epoch.map.map.buckets()));
        control
            .execute(sql, &[&number, &buckets, &epoch.ranges, &epoch.overrides, &epoch.map.id, &epoch.reason])
            .await?;
    }
    for put in &puts {
        write(&control, put, i64::try_from(rebuilt.map.epoch())?).await?;
    }
    let sql = "SELECT setval('shard_catalog.move_id_seq', greatest($1, (SELECT last_value FROM shard_catalog.move_id_seq)))";
    control.value::<i64>(sql, &[&most.max(1)]).await?;
    // Also if nothing else is missing: versions alone may be.
    control
        .run(&format!(
            "UPDATE shard_catalog.control SET version = version + {VERSIONS}; SELECT pg_notify('shard_catalog', ''); COMMIT"
        ))
        .await?;
    Ok((report, 0))
}

/// The catalog that counts. Of two the later one does, and the other is told so.
async fn one_catalog(servers: &Servers, dry_run: bool) -> anyhow::Result<Db> {
    let mut keepers = home::keepers(servers, NAME).await?;
    let Some(last) = keepers.pop().filter(|_| !keepers.is_empty()) else {
        return Ok(home::find(servers, NAME).await?.db);
    };
    for keeper in &keepers {
        let what =
            format!("shards {} and {} both say that they keep the shard catalog", keeper.shard, last.shard);
        if keeper.generation == last.generation {
            return Err(Failure::refused(format!(
                "{what}, of the same generation: keep the one that the proxies follow"
            ))
            .into());
        }
        if dry_run {
            let text =
                format!("{what}; without --dry-run it is left to shard {}, and then repaired", last.shard);
            return Err(Failure::refused(text).into());
        }
        let sql =
            "UPDATE shard_catalog.control SET moved_to = $1, moved_generation = $2 WHERE moved_to IS NULL";
        keeper.db.execute(sql, &[&i32::from(last.shard.0), &last.generation]).await?;
    }
    Ok(last.db)
}

/// What each shard says of flips that became true.
async fn owned(shards: &BTreeMap<ShardId, Db>) -> anyhow::Result<Vec<Owned>> {
    let mut said = Vec::new();
    for (shard, db) in shards {
        if !db.holds("SELECT to_regclass('shard_catalog.ownership') IS NOT NULL", &[]).await? {
            continue;
        }
        let sql =
            "SELECT move_id, epoch, epoch_id::text, scope, owner FROM shard_catalog.ownership WHERE flipped";
        for row in db.rows(sql, &[]).await? {
            said.push(Owned {
                said_by: *shard,
                move_id: row.try_get(0)?,
                epoch: row.try_get(1)?,
                id: row.try_get(2)?,
                scope: Scope::from_json(&row.try_get::<_, Value>(3)?)?,
                owner: ShardId(u16::try_from(row.try_get::<_, i32>(4)?)?),
            });
        }
    }
    Ok(said)
}

fn epochs(newest: &StoredMap, lost: &[Lost]) -> anyhow::Result<Vec<Epoch>> {
    let mut epochs: Vec<Epoch> = Vec::new();
    for Lost { flip, .. } in lost {
        let before = epochs.last().map_or(newest, |epoch| &epoch.map);
        let (ranges, overrides) = before.after(&flip.scope, flip.owner);
        let reason = format!(
            "move {}: {} to shard {} (told by shard {})",
            flip.move_id, flip.scope, flip.owner, flip.said_by
        );
        let map = StoredMap::stored(
            flip.epoch,
            before.map.buckets(),
            ranges.clone(),
            overrides.clone(),
            flip.id.clone(),
        )?;
        epochs.push(Epoch { map, ranges, overrides, reason });
    }
    Ok(epochs)
}

/// Moves whose flip the catalog has lost, and those that it does not know at all; and what cannot be made out of them.
async fn moves(
    control: &Db,
    shards: &BTreeMap<ShardId, Db>,
    lost: &[Lost],
    said: &[Owned],
    rebuilt: &StoredMap,
) -> anyhow::Result<(Vec<Put>, Vec<String>)> {
    let (mut puts, mut unclear) = (Vec::new(), Vec::new());
    let known: BTreeMap<i64, Job> =
        Job::list(control, i64::MAX).await?.into_iter().map(|job| (job.id, job)).collect();
    let last: BTreeMap<i64, &Lost> = lost.iter().map(|lost| (lost.flip.move_id, lost)).collect();
    let traces = traces(shards).await?;
    for (id, Lost { flip, shards: both }) in &last {
        let first = said.iter().filter(|owned| owned.move_id == *id).min_by_key(|owned| owned.epoch);
        let target = known.get(id).map(|job| job.target).or(first.map(|owned| owned.owner));
        let target = target.context("a flip is said by somebody")?;
        let source = known.get(id).map(|job| job.source);
        let source = source.or_else(|| both.iter().copied().find(|shard| *shard != target));
        let Some(source) = source else {
            unclear.push(format!("move {id} came to shard {target}, and no shard says from where"));
            continue;
        };
        let went_back = flip.owner != target;
        let phase = match went_back {
            // What the move keeps on its shards goes last of all.
            true if !traces.contains_key(id) => Phase::RolledBack,
            true => Phase::Returning,
            false if !traces.contains_key(id) => Phase::Done,
            false => match shards.get(&target) {
                Some(target) if has_way_back(target, *id).await? => Phase::Reversing,
                _ => Phase::Closing,
            },
        };
        let why =
            format!("epoch {} was lost by the catalog, and is told by shard {}", flip.epoch, flip.said_by);
        puts.push(Put { id: *id, scope: flip.scope.clone(), source, target, phase, why });
    }
    for (id, traces) in traces {
        if known.contains_key(&id) || last.contains_key(&id) {
            continue;
        }
        let Some(scope) = traces.scope else {
            unclear.push(format!(
                "shards {:?} keep guards of move {id}, of which nobody says what it moves",
                traces.shards.iter().map(|shard| shard.0).collect::<Vec<_>>()
            ));
            continue;
        };
        let owner = rebuilt.owner_of(&scope).filter(|owner| traces.shards.contains(owner));
        let others: Vec<_> = traces.shards.iter().filter(|shard| Some(**shard) != owner).collect();
        match (owner, others.as_slice()) {
            (Some(source), [target]) => puts.push(Put {
                id,
                scope,
                source,
                target: **target,
                phase: Phase::Aborting,
                why: "the catalog has lost this move, and shards keep things of it".into(),
            }),
            _ => unclear.push(format!(
                "move {id} of {scope} left things on shards {:?}, and by the map its owner is {:?}",
                traces.shards.iter().map(|shard| shard.0).collect::<Vec<_>>(),
                rebuilt.owner_of(&scope).map(|shard| shard.0)
            )),
        }
    }
    let open: Vec<_> = puts.iter().filter(|put| !put.phase.is_over()).collect();
    for (n, put) in open.iter().enumerate() {
        if let Some(other) =
            open[n + 1..].iter().find(|other| other.scope.intersects(&put.scope, rebuilt.map.buckets()))
        {
            unclear.push(format!("moves {} and {} both left things of {}", put.id, other.id, put.scope));
        }
        if let Some(other) =
            catalog::others_in_motion(control, put.id, &put.scope, rebuilt.map.buckets()).await?
        {
            unclear.push(format!(
                "move {} and move {} both have {} under way",
                put.id, other.move_id, put.scope
            ));
        }
    }
    Ok((puts, unclear))
}

async fn has_way_back(target: &Db, id: i64) -> anyhow::Result<bool> {
    let state = copy::slot_state(target, &Job::publication_of(id, Way::Back)).await?;
    Ok(state.is_some_and(|(state, _)| state != "lost"))
}

/// What shards keep for moves that are not over.
async fn traces(shards: &BTreeMap<ShardId, Db>) -> anyhow::Result<BTreeMap<i64, Traces>> {
    let mut found: BTreeMap<i64, Traces> = BTreeMap::new();
    for (shard, db) in shards {
        for (table, scope) in [("guarded", "NULL::jsonb"), ("fence", "scope")] {
            if !db.holds("SELECT to_regclass('shard_catalog.' || $1) IS NOT NULL", &[&table]).await? {
                continue;
            }
            for row in
                db.rows(&format!("SELECT DISTINCT move_id, {scope} FROM shard_catalog.{table}"), &[]).await?
            {
                let traces = found.entry(row.try_get(0)?).or_default();
                traces.shards.insert(*shard);
                if let Some(scope) = row.try_get::<_, Option<Value>>(1)? {
                    traces.scope = Some(Scope::from_json(&scope)?);
                }
            }
        }
    }
    Ok(found)
}

/// Nothing goes on by itself, whatever the move was told to do.
async fn write(control: &Db, put: &Put, epoch: i64) -> anyhow::Result<()> {
    let (source, target) = (i32::from(put.source.0), i32::from(put.target.0));
    let sql = "INSERT INTO shard_catalog.move (id, scope, source, target, phase, planned_epoch) OVERRIDING SYSTEM VALUE \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, updated_at = clock_timestamp(), \
               detail = move.detail || '{\"wish\": null, \"auto\": null, \"finish\": null}'";
    control.execute(sql, &[&put.id, &put.scope.json(), &source, &target, &put.phase.name(), &epoch]).await?;
    let sql = "INSERT INTO shard_catalog.move_event (move_id, phase, text) VALUES ($1, $2, $3)";
    control.execute(sql, &[&put.id, &put.phase.name(), &put.why]).await?;
    if put.phase.is_over() {
        return control
            .execute("DELETE FROM shard_catalog.motion WHERE move_id = $1", &[&put.id])
            .await
            .map(drop);
    }
    let stage = if put.phase.target_owns() { "flipped" } else { "copying" };
    let sql = "INSERT INTO shard_catalog.motion (move_id, scope, source, target, stage) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (move_id) DO UPDATE SET source = excluded.source, target = excluded.target, stage = excluded.stage, \
               since = clock_timestamp()";
    control.execute(sql, &[&put.id, &put.scope.json(), &source, &target, &stage]).await.map(drop)
}

fn report(newest: &StoredMap, epochs: &[Epoch], puts: &[Put], dry_run: bool) -> Report {
    let mut text = match (epochs.is_empty() && puts.is_empty(), dry_run) {
        (true, _) => format!("The catalog is whole: epoch {}.\n", newest.map.epoch()),
        (false, true) => "Nothing was changed. To be repaired:\n".to_owned(),
        (false, false) => "Repaired:\n".to_owned(),
    };
    for epoch in epochs {
        text += &format!("  epoch {}: {}\n", epoch.map.map.epoch(), epoch.reason);
    }
    for put in puts {
        text +=
            &format!("  move {} of {}, {} -> {}: {}; ", put.id, put.scope, put.source, put.target, put.why);
        text += &match put.phase.is_over() {
            true => format!("it is over: {}\n", put.phase.name()),
            false => format!("goes on in phase {} with shardctl resume {}\n", put.phase.name(), put.id),
        };
    }
    let list: Vec<Value> = epochs
        .iter()
        .map(|epoch| json!({ "epoch": epoch.map.map.epoch(), "id": epoch.map.id, "reason": epoch.reason }))
        .collect();
    let moves: Vec<Value> = puts
        .iter()
        .map(|put| {
            json!({ "id": put.id, "scope": put.scope.json(), "source": put.source.0, "target": put.target.0,
                    "phase": put.phase.name(), "why": put.why })
        })
        .collect();
    let json = json!({ "epoch": newest.map.epoch(), "epochs": list, "moves": moves, "dry_run": dry_run });
    Report { json, text, well: true }
}
