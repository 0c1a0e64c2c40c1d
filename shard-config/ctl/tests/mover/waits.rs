//! What waits for whom: a window that is paused, and transactions that only read.

use std::time::{Duration, Instant};

use serde_json::json;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;

const ALL: Options = Options { auto: true, finish: true, stay: false };

async fn pause(bed: &Bed, id: i64, paused: bool) {
    bed.load(id).await.set(&bed.control, json!({ "paused": paused })).await.unwrap();
}

/// `apply --auto --finish` and a pause: nothing is deleted before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_keeps_the_window_open() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 15);
    let job = bed.plan(&scope, 1, 2).await;
    let auto = Options { auto: true, ..Options::default() };
    assert_eq!(bed.run(job.id, auto).await, End::Waiting);
    let before = bed.rows(1, &scope).await;
    pause(&bed, job.id, true).await;
    let runner = bed.spawn(job.id, ALL);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    assert!(!runner.is_finished(), "it goes on when the pause ends");
    assert_eq!(bed.rows(1, &scope).await, before);
    pause(&bed, job.id, false).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The fence's lock waits for old snapshots, and is let go when they are gone, in a pause, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_does_not_keep_the_lock_of_the_fence() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let old = bed.direct(1).await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let runner = bed.spawn(job.id, Options { auto: true, finish: false, stay: true });
    bed.until(job.id, Phase::Window).await;
    let locks = "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'shard_move:%'";
    let one = bed.shard(1).await;
    let begun = Instant::now();
    while bed.load(job.id).await.text("old_snapshots").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pause(&bed, job.id, true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(one.value::<i64>(locks, &[]).await.unwrap(), 1);
    old.batch_execute("COMMIT").await.unwrap();
    let begun = Instant::now();
    while one.value::<i64>(locks, &[]).await.unwrap() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the lock stays: {}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pause(&bed, job.id, false).await;
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A report of minutes has only read the rows: no guard knows of it, and proxies wait for it. Nobody is held for an attempt
/// that could not succeed, either way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_is_waited_for_without_holding_anybody() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    bed.until(job.id, Phase::Ready).await;
    for (wish, ready, fences, next) in [
        (Wish::Cutover, Phase::Ready, None, Phase::Window),
        (Wish::Rollback, Phase::BackVerifying, Some(1), Phase::RolledBack),
    ] {
        bed.control
            .run("INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, note, shards) \
                  SELECT 'x', 'p9', '', '1009', clock_timestamp() + interval '10 minutes', 1000000, version, 2, \
                  'client 7 of app (127.0.0.1:4711, which touched what move 1 moves, idle in transaction for 5300 ms)', '{1,2}' FROM shard_catalog.control")
            .await
            .unwrap();
        bed.ask(job.id, wish).await;
        let wanted = "a transaction that began before: proxy p9: client 7 of app (127.0.0.1:4711, which touched what move 1 moves, idle in transaction)";
        let begun = Instant::now();
        while !bed.load(job.id).await.text("waits_for").is_some_and(|text| text.ends_with(wanted)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{wish:?}: {}", bed.story(job.id).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let version = "SELECT version FROM shard_catalog.control";
        let before: i64 = bed.control.value(version, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = bed.load(job.id).await;
        assert_eq!((now.phase, now.number("fences")), (ready, fences), "{}", bed.story(job.id).await);
        assert_eq!(bed.control.value::<i64>(version, &[]).await.unwrap(), before, "proxies are told once");
        bed.control.run("DELETE FROM shard_catalog.proxy").await.unwrap();
        if wish == Wish::Cutover {
            bed.until(job.id, next).await;
        }
    }
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack, "{}", bed.story(job.id).await);
    bed.check_rows(0).await;
    bed.check_clean().await;
}
