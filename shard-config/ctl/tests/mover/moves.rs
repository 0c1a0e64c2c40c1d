//! Moves that come about: there, back, of one tenant, while clients write.

use std::sync::atomic::Ordering;

use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, Writers, bucket, tenant};
use crate::proxy::{Proxy, hash};

const AUTO: Options = Options { auto: true, finish: false, stay: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_move_there_while_clients_write_and_stay() {
    let bed = Bed::start(3).await;
    let scope = Scope::of_range(8, 23);
    let before = bed.rows(1, &scope).await;
    let proxy = Proxy::start(&bed.servers).await;
    let writers = Writers::start(&proxy, 6);
    let job = bed.plan(&scope, 1, 3).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Ready);
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    let longest = writers.longest_ms.clone();
    let posted = writers.stop().await;
    assert!(posted > 100, "{posted} payments");
    bed.check_rows(posted).await;
    bed.check_clean().await;
    let after = bed.rows(3, &scope).await;
    assert_eq!(after["accounts"], (before["accounts"].0, 0));
    assert_eq!(
        bed.rows(1, &scope).await["accounts"],
        (0, before["accounts"].1),
        "rows outside the scope stay"
    );
    assert!(proxy.held.load(Ordering::Relaxed) > 0, "the cut-over held somebody");
    println!(
        "{posted} payments, the longest took {} ms\n{}",
        longest.load(Ordering::Relaxed),
        bed.story(job.id).await
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h29_rows_come_back_by_rollback_and_may_leave_again() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 9);
    let proxy = Proxy::start(&bed.servers).await;
    let writers = Writers::start(&proxy, 4);
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    // Payments of the window exist on the target only, until they flow back.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    bed.ask(job.id, Wish::Rollback).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack, "{}", bed.story(job.id).await);
    bed.check_clean().await;
    // A quick move of the same buckets does not meet leftovers.
    let again = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(again.id, Options { auto: true, finish: true, stay: false }).await, End::Over);
    let posted = writers.stop().await;
    assert_eq!(bed.load(again.id).await.phase, Phase::Done, "{}", bed.story(again.id).await);
    bed.check_rows(posted).await;
    bed.check_clean().await;
}

/// H1: the lock goes when the old snapshots have gone. New ones, of which there is always one on a busy shard, are not old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_short_statements_without_a_pause_do_not_keep_the_lock() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 9);
    let _proxy = Proxy::start(&bed.servers).await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let reader = bed.direct(1).await;
        readers.spawn(async move { while reader.batch_execute("SELECT pg_sleep(0.05)").await.is_ok() {} });
    }
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    bed.ask(job.id, Wish::Rollback).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over, "{}", bed.story(job.id).await);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack, "{story}");
    assert!(!story.contains("snapshots from before"), "{story}");
    readers.abort_all();
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_moves_and_its_bucket_stays() {
    let bed = Bed::start(3).await;
    let hot = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let scope = Scope::new(&[], &[hash(&hot)]).unwrap();
    let proxy = Proxy::start(&bed.servers).await;
    let writers = Writers::start(&proxy, 3);
    let job = bed.plan(&scope, 1, 3).await;
    assert_eq!(bed.run(job.id, Options { auto: true, finish: true, stay: false }).await, End::Over);
    assert_eq!(bed.rows(3, &scope).await["accounts"], (3, 0));
    // And home again: the override goes, since the tenant is where its bucket is.
    let home = bed.plan(&scope, 3, 1).await;
    assert_eq!(bed.run(home.id, Options { auto: true, finish: true, stay: false }).await, End::Over);
    let posted = writers.stop().await;
    let overrides: String = bed
        .control
        .value("SELECT overrides::text FROM shard_catalog.map ORDER BY epoch DESC LIMIT 1", &[])
        .await
        .unwrap();
    assert_eq!(overrides, "[]");
    bed.check_rows(posted).await;
    bed.check_clean().await;
}
