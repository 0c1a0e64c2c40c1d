//! Where the shard catalog is, and moving it to another shard, so that the shard that it began on can go.
//!
//! One shard keeps it at every moment, however this breaks off: the copy on the new one points back to the old one until the
//! old one, in one transaction that locks all others out, points to the new one. Whoever comes there next ends the pointer back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shard_config::ShardId;

use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::home::{self, Keeper};
use crate::mover::{catalog, preflight};
use crate::moves::Ended;
use crate::output::{Report, table};

const NAME: &str = "shardctl catalog";
/// A proxy's lease, and what clocks may differ by: as long as proxies may go on without having heard.
const LEASE_S: f64 = 5.5;
/// Waited for proxies: their leases have run out by then.
const FOLLOWED: Duration = Duration::from_secs(8);
/// What is copied, those that refer to others behind them.
const TABLES: [&str; 4] = ["map", "move", "move_event", "request"];

/// Where it is, and who follows it.
pub async fn show(servers: &Servers) -> anyhow::Result<Ended> {
    let keeper = home::find(servers, NAME).await?;
    let json = described(&keeper).await?;
    let mut text = format!(
        "The shard catalog is on shard {} ({}): epoch {}, version {}, generation {}.\n",
        keeper.shard,
        keeper.db.place(),
        json["epoch"],
        json["version"],
        keeper.generation
    );
    text += &proxies_table(&json["proxies"]);
    Ok((Report { json, text, well: true }, 0))
}

/// Moves it to `to`. Refused while moves are under way.
pub async fn move_to(servers: &Servers, to: ShardId, dry_run: bool) -> anyhow::Result<Ended> {
    if !servers.has(to) {
        return Err(Failure::usage(format!("--to {to}: there is no such shard in the configuration")).into());
    }
    let old = home::find(servers, NAME).await?;
    let new = servers.primary(to, NAME).await?;
    if old.shard == to {
        return show(servers).await;
    }
    // While one of them waits for a standby, proxies could not renew their leases.
    let waits = preflight::unreachable(servers, [old.shard, to]).await;
    if !waits.is_empty() {
        return Err(Failure::refused(preflight::told(&waits)).into());
    }
    catalog::install(&old.db).await?;
    let problems = obstacles(&old.db, to).await?;
    if !problems.is_empty() {
        return Err(Failure::refused(format!(
            "the catalog stays on shard {}:\n  {}",
            old.shard,
            problems.join("\n  ")
        ))
        .into());
    }
    if dry_run {
        let json = json!({ "from": old.shard.0, "to": to.0, "generation": old.generation + 1 });
        let text = format!(
            "The shard catalog can be moved from shard {} to shard {to}. Nothing was changed.\n",
            old.shard
        );
        return Ok((Report { json, text, well: true }, 0));
    }
    catalog::install(&new).await?;
    home::insist_on_one(servers, NAME).await?;
    // Those that were left before point to the one that is left now.
    let mut others = Vec::new();
    for shard in servers.shards().into_iter().filter(|shard| *shard != to && *shard != old.shard) {
        let db = servers.primary(shard, NAME).await;
        others.push(db.map_err(|error| {
            Failure::refused(format!(
                "shard {shard} cannot be told, and may lead to a shard that is gone later: {error:#}"
            ))
        })?);
    }
    let version = hand_over(&old, &new, to).await?;
    for db in &others {
        lead(db, to, old.generation + 1).await?;
    }
    let keeper = home::find(servers, NAME).await?;
    let late = followed(&keeper.db, version).await?;
    let mut json = described(&keeper).await?;
    json["from"] = json!(old.shard.0);
    json["late"] = json!(late);
    let mut text = format!(
        "The shard catalog is on shard {to} now; shard {} says so to whoever asks there. Before shard {} is taken away, name \
         another one as default_shard.\n",
        old.shard, old.shard
    );
    for name in &late {
        text += &format!("proxy {name} has not followed it: look at its log\n");
    }
    text += &proxies_table(&json["proxies"]);
    Ok((Report { json, text, well: late.is_empty() }, 0))
}

/// Why it cannot be moved now.
async fn obstacles(old: &Db, to: ShardId) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let moves = "SELECT id, phase FROM shard_catalog.move WHERE phase NOT IN ('done', 'rolled_back', 'aborted', 'refused') ORDER BY id";
    for row in old.rows(moves, &[]).await? {
        let (id, phase): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        found.push(format!("move {id} is in phase {phase}: finish it, or shardctl abort {id}"));
    }
    let asked = "SELECT id FROM shard_catalog.request WHERE state IN ('asked', 'running') ORDER BY id";
    for row in old.rows(asked, &[]).await? {
        let id: i64 = row.try_get(0)?;
        found.push(format!(
            "request {id} is to be done: let shardctl serve do it, or delete it from shard_catalog.request"
        ));
    }
    for proxy in catalog::proxies(old).await?.iter().filter(|proxy| proxy.leased) {
        if proxy.shards.as_ref().is_none_or(|known| !known.contains(&i32::from(to.0))) {
            found.push(format!(
                "proxy {} ({}) does not know shard {to}: RELOAD it first",
                proxy.name, proxy.address
            ));
        }
    }
    Ok(found)
}

/// Returns the version that proxies find on the new shard.
async fn hand_over(old: &Keeper, new: &Db, to: ShardId) -> anyhow::Result<i64> {
    let from = &old.db;
    from.run(
        "BEGIN; SET LOCAL lock_timeout = '2s'; \
         LOCK TABLE shard_catalog.map, shard_catalog.motion, shard_catalog.move, shard_catalog.request, shard_catalog.proxy \
         IN SHARE ROW EXCLUSIVE MODE",
    )
    .await?;
    // Whatever was begun before the lock is seen now; that somebody else has moved it, first of all.
    let ours =
        "SELECT version FROM shard_catalog.control WHERE moved_to IS NULL AND generation = $1 FOR UPDATE";
    if from.first(ours, &[&old.generation]).await?.is_none() {
        from.run("ROLLBACK").await?;
        return Err(
            Failure::refused("somebody else has just moved it: shardctl catalog shows where it is").into()
        );
    }
    let problems = obstacles(from, to).await?;
    if !problems.is_empty() {
        from.run("ROLLBACK").await?;
        return Err(Failure::refused(format!("it has just begun:\n  {}", problems.join("\n  "))).into());
    }
    let version = copy(old, new).await?;
    from.execute(
        "UPDATE shard_catalog.control SET moved_to = $1, moved_generation = $2",
        &[&i32::from(to.0), &(old.generation + 1)],
    )
    .await?;
    from.run("SELECT pg_notify('shard_catalog', ''); COMMIT").await?;
    Ok(version)
}

/// A copy that nobody believes yet. Whatever an earlier attempt has left is replaced.
async fn copy(old: &Keeper, new: &Db) -> anyhow::Result<i64> {
    // The catalog's own triggers say no on a shard that does not keep it.
    new.run("BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM shard_catalog.motion").await?;
    for name in TABLES.iter().rev() {
        new.run(&format!("DELETE FROM shard_catalog.{name}")).await?;
    }
    for name in TABLES {
        let read = format!("SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM shard_catalog.{name} t");
        let rows: Value = old.db.value(&read, &[]).await?;
        let write = format!(
            "INSERT INTO shard_catalog.{name} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_recordset(NULL::shard_catalog.{name}, $1)"
        );
        new.execute(&write, &[&rows]).await?;
    }
    for name in &TABLES[1..] {
        // Numbers are not given twice, also those of rows that are gone: what moves keep on shards is named by them.
        let last: i64 =
            old.db.value(&format!("SELECT last_value FROM shard_catalog.{name}_id_seq"), &[]).await?;
        let set = format!(
            "SELECT setval('shard_catalog.{name}_id_seq', greatest($1, (SELECT last_value FROM shard_catalog.{name}_id_seq)))"
        );
        new.value::<i64>(&set, &[&last]).await?;
    }
    // Those that have not heard of it are waited for as long as their leases run.
    let read = "SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM shard_catalog.proxy p WHERE lease_until > clock_timestamp()";
    let proxies: Value = old.db.value(read, &[]).await?;
    new.run("DELETE FROM shard_catalog.proxy").await?;
    new.execute(
        "INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, shards) \
         SELECT id, name, address, backend_tag, clock_timestamp() + make_interval(secs => $2), 0, 0, epoch, shards \
         FROM jsonb_populate_recordset(NULL::shard_catalog.proxy, $1)",
        &[&proxies, &LEASE_S],
    )
    .await?;
    let row = old.db.one("SELECT version, moves_at_once FROM shard_catalog.control", &[]).await?;
    let (version, at_once): (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
    let (next, back) = (version + 1, i32::from(old.shard.0));
    new.execute(
        "UPDATE shard_catalog.control SET version = $1, generation = $2, moved_to = $3, moved_generation = $4, moves_at_once = $5",
        &[&next, &(old.generation + 1), &back, &old.generation, &at_once],
    )
    .await?;
    new.run("COMMIT").await?;
    Ok(next)
}

/// A shard that the catalog has left earlier leads to where it is.
async fn lead(db: &Db, to: ShardId, generation: i64) -> anyhow::Result<()> {
    let there = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('shard_catalog.control') AND attname = 'moved_to')";
    if db.holds(there, &[]).await? {
        let sql = "UPDATE shard_catalog.control SET moved_to = $1, moved_generation = $2 WHERE moved_to IS NOT NULL AND moved_generation < $2";
        db.execute(sql, &[&i32::from(to.0), &generation]).await?;
    }
    Ok(())
}

/// Waits for the proxies; the names of those that hold a lease and have not come.
async fn followed(new: &Db, version: i64) -> anyhow::Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let proxies = catalog::proxies(new).await?;
        let late: Vec<_> = proxies.iter().filter(|proxy| proxy.version < version).collect();
        // One whose lease has run out serves nothing that moves, and joins when it can.
        if late.is_empty() || begun.elapsed() >= FOLLOWED {
            return Ok(late.iter().map(|proxy| format!("{} ({})", proxy.name, proxy.address)).collect());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn described(keeper: &Keeper) -> anyhow::Result<Value> {
    let sql =
        "SELECT (SELECT max(epoch) FROM shard_catalog.map), (SELECT version FROM shard_catalog.control)";
    let row = keeper.db.one(sql, &[]).await?;
    let (epoch, version): (Option<i64>, i64) = (row.try_get(0)?, row.try_get(1)?);
    let proxies: Vec<Value> = catalog::proxies(&keeper.db)
        .await?
        .iter()
        .map(|proxy| {
            json!({ "name": proxy.name, "address": proxy.address, "leased": proxy.leased, "version": proxy.version,
                    "epoch": proxy.epoch })
        })
        .collect();
    Ok(json!({
        "shard": keeper.shard.0, "server": keeper.db.place().to_string(), "generation": keeper.generation, "epoch": epoch,
        "version": version, "proxies": proxies,
    }))
}

fn proxies_table(proxies: &Value) -> String {
    let rows: Vec<Vec<String>> = proxies
        .as_array()
        .into_iter()
        .flatten()
        .map(|proxy| {
            let text = |key: &str| proxy[key].as_str().unwrap_or_default().to_owned();
            let lease = if proxy["leased"] == true { "runs" } else { "has run out" };
            vec![
                text("name"),
                text("address"),
                lease.to_owned(),
                proxy["epoch"].to_string(),
                proxy["version"].to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        String::new()
    } else {
        table(&["proxy", "address", "lease", "epoch", "version"], &rows)
    }
}
