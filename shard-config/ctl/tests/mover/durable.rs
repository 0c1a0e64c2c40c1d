//! H15: what a flip rests on is on the disk and on the standbys, whatever the servers' own settings make of a commit.

use std::time::{Duration, Instant};

use serde_json::json;
use shard_config::ShardId;
use shardctl::mover::catalog;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::ended;
use crate::dba::commits_wait;
use crate::places::Places;
use crate::refusals::{refused, untouched};

/// What sessions begin with from now on.
async fn by_default(bed: &Bed, shard: u16, value: &str) {
    let sql = format!("ALTER DATABASE postgres SET synchronous_commit = {value}");
    bed.shard(shard).await.run(&sql).await.unwrap();
}

/// Nothing of the drained rows has waited for anything, so the target's own commit before the flip must. Its standby goes
/// away between the lock and the flip: nobody waits for it longer than the attempt does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_the_flip_waits_for_the_targets_standby() {
    let bed = Bed::start(2).await;
    for shard in [1, 2] {
        by_default(&bed, shard, "off").await;
    }
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let story = bed.story(job.id).await;
    for note in ["shard 1: fsync is off", "shard 2: synchronous_commit is off: clients are told of commits"] {
        assert!(story.contains(note), "{note}: {story}");
    }
    // Longer than the stop takes.
    bed.load(job.id).await.set(&bed.control, json!({ "fence_limit_ms": 6_000 })).await.unwrap();
    let places = Places::new(&bed);
    places.stop_at("fencing-shut");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-shut").await;
    commits_wait(&bed, 2, true).await;
    places.go_on("fencing-shut");
    let begun = Instant::now();
    while bed.load(job.id).await.detail["pauses"][0].is_null() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (first, story) = (bed.load(job.id).await.detail["pauses"][0].clone(), bed.story(job.id).await);
    assert!(first["flipped"] == false && first["ms"].as_i64().unwrap() < 10_000, "{story}");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1, "{story}");
    // It is still away.
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let writer = bed.direct(1).await;
    let insert = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
    let written = tokio::time::timeout(Duration::from_secs(2), writer.execute(insert, &[&inside])).await;
    written.expect("writes wait").expect("writes go on");
    let refusal = bed.direct(2).await.execute(insert, &[&inside]).await.expect_err("the target is open");
    assert_eq!(refusal.code().map(|code| code.code()), Some("40001"), "{refusal}");

    commits_wait(&bed, 2, false).await;
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert_eq!((said.status, bed.load(job.id).await.phase), (0, Phase::Window), "{}\n{story}", said.text);
    let moved = "SELECT count(*) FROM public.accounts WHERE tenant_id = $1 AND id = 77";
    assert_eq!(bed.shard(2).await.value::<i64>(moved, &[&inside]).await.unwrap(), 1);
    bed.direct(2)
        .await
        .execute("DELETE FROM public.accounts WHERE tenant_id = $1 AND id = 77", &[&inside])
        .await
        .unwrap();
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The same of the source's: the attempt comes to nothing, and the fence goes without a standby for which no client waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_fence_is_taken_away_without_a_standby_that_clients_do_not_wait_for() {
    let bed = Bed::start(3).await;
    for shard in [2, 3] {
        by_default(&bed, shard, "local").await;
    }
    let job = bed.plan(&Scope::of_range(32, 63), 2, 3).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    bed.load(job.id).await.set(&bed.control, json!({ "fence_limit_ms": 6_000 })).await.unwrap();
    let places = Places::new(&bed);
    places.stop_at("fencing-shut");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-shut").await;
    let inside = (0..400).map(tenant).find(|t| (32..64).contains(&bucket(t))).unwrap();
    let writer = bed.direct(2).await;
    let insert = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
    commits_wait(&bed, 2, true).await;
    places.go_on("fencing-shut");
    let begun = Instant::now();
    let written = loop {
        let answer = tokio::time::timeout(Duration::from_secs(15), writer.execute(insert, &[&inside])).await;
        match answer.expect("writes wait") {
            Ok(rows) => break rows,
            Err(error) => assert_eq!(error.code().map(|code| code.code()), Some("40001"), "{error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((written, sync_waits(&bed, 2).await), (1, true), "it is away still");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1);

    commits_wait(&bed, 2, false).await;
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert_eq!((said.status, bed.load(job.id).await.phase), (0, Phase::Window), "{}\n{story}", said.text);
    let delete = "DELETE FROM public.accounts WHERE tenant_id = $1 AND id = 77";
    assert_eq!(bed.direct(3).await.execute(delete, &[&inside]).await.unwrap(), 1);
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

async fn sync_waits(bed: &Bed, shard: u16) -> bool {
    let sql = "SELECT current_setting('synchronous_standby_names') <> ''";
    bed.shard(shard).await.holds(sql, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_commits_of_the_mover_do_not_go_by_the_servers_default() {
    let bed = Bed::start(2).await;
    for (default, ours) in [
        ("off", "on"),
        ("local", "on"),
        ("remote_write", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ] {
        by_default(&bed, 1, default).await;
        let primary = bed.servers.primary(ShardId(1), "test").await.unwrap();
        let beside = bed.servers.beside(&primary, "test").await.unwrap();
        for db in [primary, beside, bed.servers.control("test").await.unwrap()] {
            let now: String = db.value("SELECT current_setting('synchronous_commit')", &[]).await.unwrap();
            assert_eq!(now, ours, "by default {default}");
        }
    }
}

/// A failover may have lost the row that keeps the target shut, and not the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_target_that_has_lost_its_fence_is_shut_and_compared_again() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let places = Places::new(&bed);
    places.stop_at("fencing");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing").await;
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let target = bed.direct(2).await;
    bed.shard(2).await.run("DELETE FROM shard_catalog.fence").await.unwrap();
    let insert = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
    target.execute(insert, &[&inside]).await.expect("nothing keeps it from being written");
    places.go_on("fencing");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert!(story.contains("shard 2 had lost its fence since both sides were compared"), "{story}");
    said.check(shardctl::exit::DIFFERENT, "public.accounts");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1, "{story}");
    assert!(target.execute(insert, &[&inside]).await.is_err(), "it is open still: {story}");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_do_not_move_to_where_a_crash_loses_them() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let one = bed.shard(1).await;
    one.run("ALTER SYSTEM SET fsync = on").await.unwrap();
    one.rows("SELECT pg_reload_conf()", &[]).await.unwrap();
    let begun = Instant::now();
    while !one.holds("SELECT current_setting('fsync') = 'on'", &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(10), "fsync is off still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = "shard 2: fsync is off, and it is on on shard 1 -> rows would move from where a crash does not lose them";
    refused(&bed, &scope, 1, 2, why).await;
    untouched(&bed).await;
    // The other way they come to be safer.
    let job = bed.plan(&Scope::of_range(32, 40), 2, 1).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting, "{}", bed.story(job.id).await);
}
