//! What holds a copy: of both shards, since the copy reads the one and writes the other's WAL.

use std::time::{Duration, Instant};

use serde_json::json;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;
use crate::dba::commits_wait;

async fn until_held(bed: &Bed, id: i64, what: &str, wanted: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    while !bed.load(id).await.text("throttled").is_some_and(&wanted) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {}", bed.story(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A standby that is behind holds the copy, until it is not.
async fn waits_for_a_standby_of(shard: u16) {
    let mut bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let standby = bed.standby_of(shard);
    let (client, connection) =
        tokio_postgres::connect(&standby.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let primary = bed.shard(shard).await;
    let until = async |sql: &str| {
        let begun = Instant::now();
        while !primary.holds(sql, &[]).await.unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{sql}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until("SELECT coalesce(bool_or(replay_lsn IS NOT NULL), false) FROM pg_stat_replication").await;
    client.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    primary.run("SELECT pg_logical_emit_message(true, '', repeat('x', 3000000))").await.unwrap();
    until("SELECT bool_or(pg_wal_lsn_diff(flush_lsn, replay_lsn) > 2000000) FROM pg_stat_replication").await;

    let mut job = bed.plan(&scope, 1, 2).await;
    job.set(&bed.control, json!({ "throttle": { "standby_lag_bytes": 1_000_000 } })).await.unwrap();
    let runner = bed.spawn(job.id, Options::default());
    bed.until(job.id, Phase::Copying).await;
    let named = format!("a standby of shard {shard} is ");
    until_held(&bed, job.id, &named, |why| why.starts_with(&named) && why.ends_with("limit 976.6 KiB")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.rows(2, &scope).await["accounts"].0, 0, "copied while the standby was behind");
    client.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Waiting, "{}", bed.story(job.id).await);
    assert_eq!(bed.load(job.id).await.text("throttled"), None);
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_for_a_standby_that_is_behind() {
    waits_for_a_standby_of(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_for_a_standby_of_the_target_that_is_behind() {
    waits_for_a_standby_of(2).await;
}

/// Sessions that commit to see how long it takes.
async fn gauges(bed: &Bed, shard: u16) -> i64 {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%''shardctl''%' AND pid <> pg_backend_pid()";
    bed.shard(shard).await.value(sql, &[]).await.unwrap()
}

/// Commits on either shard wait for a standby that is away. So the copy waits, which needs no commit itself, and says where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_while_commits_take_long_on_either_shard() {
    const LIMIT: i64 = 500;
    let bed = Bed::start(3).await;
    // The catalog is on neither of both.
    let scope = Scope::of_range(32, 47);
    let rows = "INSERT INTO public.entries (tenant_id, at, id, account, amount)
                SELECT tenant_id, clock_timestamp() - n * interval '1 ms', gen_random_uuid(), 1, 0
                FROM (SELECT DISTINCT tenant_id FROM public.accounts) a, generate_series(1, 600) n";
    bed.shard(2).await.run(rows).await.unwrap();
    let inside =
        async |shard: u16| bed.rows(shard, &scope).await.values().map(|(inside, _)| inside).sum::<i64>();
    let all = inside(2).await;
    let job = bed.plan(&scope, 2, 3).await;
    let limits =
        async |limits| bed.load(job.id).await.set(&bed.control, json!({ "throttle": limits })).await.unwrap();
    // One piece, and the next one in hours.
    let (stands, both) =
        (json!({ "bytes_per_second": 10 }), json!({ "bytes_per_second": 10, "latency_ms": LIMIT }));
    limits(stands.clone()).await;
    let runner = bed.spawn(job.id, Options { auto: true, finish: true, stay: false });
    until_held(&bed, job.id, "nothing is copied", |why| why.contains("10 B/s")).await;
    assert_eq!((gauges(&bed, 2).await, gauges(&bed, 3).await), (0, 0), "there is no limit");
    for shard in [2, 3] {
        limits(both.clone()).await;
        commits_wait(&bed, shard, true).await;
        let named = format!("a commit on shard {shard} takes ");
        until_held(&bed, job.id, &named, |why| why.starts_with(&named) && why.ends_with("limit 500 ms"))
            .await;
        limits(json!({ "latency_ms": LIMIT })).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let before = inside(3).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((inside(3).await, before < all), (before, true), "{}", bed.story(job.id).await);
        assert_eq!((gauges(&bed, 2).await, gauges(&bed, 3).await), (1, 1), "one on each");
        limits(both.clone()).await;
        commits_wait(&bed, shard, false).await;
        until_held(&bed, job.id, "it does not go on", |why| why.contains("10 B/s")).await;
    }
    limits(stands).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((gauges(&bed, 2).await, gauges(&bed, 3).await), (0, 0), "there is no limit any more");
    // Payments that wait for no standby are not slow when it is away.
    bed.shard(3).await.run("ALTER DATABASE postgres SET synchronous_commit = local").await.unwrap();
    commits_wait(&bed, 3, true).await;
    limits(both).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(gauges(&bed, 3).await, 1);
    until_held(&bed, job.id, "held by what nobody waits for", |why| why.contains("10 B/s")).await;
    commits_wait(&bed, 3, false).await;
    limits(json!({ "latency_ms": 10_000 })).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    assert_eq!((bed.load(job.id).await.phase, inside(3).await), (Phase::Done, all));
    bed.check_rows(0).await;
    bed.check_clean().await;
}
