//! The comparison of both sides while a lot changes.

use std::time::{Duration, Instant};

use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};

/// A table with so many rows of the scope, and an index that their changes must keep.
pub async fn wide_table(bed: &Bed, rows: i64) {
    for shard in [1, 2] {
        let sql = "CREATE TABLE public.many (tenant_id uuid, id int, n int NOT NULL, PRIMARY KEY (tenant_id, id)) WITH (fillfactor = 50)";
        bed.shard(shard).await.run(sql).await.unwrap();
    }
    let moving = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let sql = "INSERT INTO public.many SELECT $1, n, 0 FROM generate_series(1, $2::int8) n";
    bed.shard(1).await.execute(sql, &[&moving, &rows]).await.unwrap();
}

/// More rows change while the digests are made than are read in one go, and than are kept: nothing begins anew for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_changes_all_over_meanwhile_is_compared_once() {
    const ROWS: i64 = 600_000;
    let bed = Bed::start(2).await;
    wide_table(&bed, ROWS).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let runner = bed.spawn(job.id, Options::default());
    let (source, target) = (bed.shard(1).await, bed.shard(2).await);
    let begun = Instant::now();
    while bed.load(job.id).await.phase != Phase::Verifying {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The slot is there, and the first pages are read.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The guards are slow for every row of one statement; replication passes them.
    source
        .run("SELECT pg_replication_origin_create('test'), pg_replication_origin_session_setup('test')")
        .await
        .unwrap();
    for part in 0..3 {
        let sql = "UPDATE public.many SET n = n + 1 WHERE id <= $1::int8 / 2 AND id % 3 = $2::int4";
        assert_eq!(source.execute(sql, &[&ROWS, &part]).await.unwrap(), ROWS.unsigned_abs() / 6);
    }
    source
        .run("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('test')")
        .await
        .unwrap();
    let during = bed.load(job.id).await.phase;
    assert_eq!(runner.await.unwrap().unwrap(), End::Waiting, "{}", bed.story(job.id).await);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Ready, "{story}");
    assert_eq!(during, Phase::Verifying, "too early for what this is about: {story}");
    assert!(!story.contains("tried again"), "{story}");
    assert_eq!(story.matches("tables compared").count(), 1, "{story}");
    let sum = "SELECT sum(n)::int8 FROM public.many";
    assert_eq!(target.value::<i64>(sum, &[]).await.unwrap(), ROWS / 2);
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_clean().await;
}

/// A row that only one side has changed is found, among many that both do, wherever the digests are just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_damaged_meanwhile_is_found() {
    let bed = Bed::start(2).await;
    wide_table(&bed, 100_000).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let runner = bed.spawn(job.id, Options { auto: true, finish: true, stay: false });
    let (source, target) = (bed.shard(1).await, bed.shard(2).await);
    let begun = Instant::now();
    while bed.load(job.id).await.phase != Phase::Verifying {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let origin = "SELECT pg_replication_origin_create('test'), pg_replication_origin_session_setup('test')";
    for db in [&source, &target] {
        db.run(origin).await.unwrap();
    }
    let damage = "UPDATE public.many SET n = -1 WHERE id = 99999";
    assert_eq!(target.execute(damage, &[]).await.unwrap(), 1);
    // Those beside it change on both sides.
    for _ in 0..20 {
        let sql = "UPDATE public.many SET n = n + 1 WHERE id > 99000 AND id <> 99999";
        assert_eq!(source.execute(sql, &[]).await.unwrap(), 999);
    }
    let end = "SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('test')";
    for db in [&source, &target] {
        db.run(end).await.unwrap();
    }
    let ended = runner.await.unwrap().unwrap();
    let story = bed.story(job.id).await;
    assert!(matches!(&ended, End::Different(what) if what.contains("99999")), "{ended:?} {story}");
    assert_eq!(
        bed.shard(1).await.value::<i32>("SELECT n FROM public.many WHERE id = 99999", &[]).await.unwrap(),
        0
    );
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_clean().await;
}

/// Digests of hours hear what the operator wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_heard_while_digests_are_made() {
    let bed = Bed::start(2).await;
    wide_table(&bed, 1_000_000).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let runner = bed.spawn(job.id, Options::default());
    let begun = Instant::now();
    while bed.load(job.id).await.phase != Phase::Verifying {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert!(!story.contains("tables compared"), "{story}");
    bed.check_clean().await;
}
