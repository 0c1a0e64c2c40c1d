//! The catalog goes to another shard and back, and is told from the shards what it has lost (H6).

use std::time::{Duration, Instant};

use serde_json::Value;
use shard_config::ShardId;
use shardctl::direct::Db;
use shardctl::exit::{self, Failure};
use shardctl::mover::catalog;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options, run};
use shardctl::mover::scope::Scope;
use shardctl::moves::Ended;
use shardctl::{relocate, repair};

use crate::bed::Bed;

const AUTO: Options = Options { auto: true, finish: false, stay: false };

fn refused(ended: anyhow::Result<Ended>) -> String {
    let error = ended.err().expect("refused");
    assert_eq!(
        error.downcast_ref::<Failure>().map(|failure| failure.status),
        Some(exit::REFUSED),
        "{error:#}"
    );
    format!("{error:#}")
}

async fn said(ended: anyhow::Result<Ended>) -> (Value, String) {
    let (report, code) = ended.unwrap();
    assert_eq!((code, report.well), (0, true), "{}", report.text);
    (report.json, report.text)
}

/// Waits until the last request was served.
async fn answered(db: &Db) {
    let begun = Instant::now();
    let sql = "SELECT state = 'done' FROM shard_catalog.request ORDER BY id DESC LIMIT 1";
    while !db.holds(sql, &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody serves this request");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_the_catalog_goes_to_another_shard() {
    let mut bed = Bed::start(3).await;
    let first = bed.plan(&Scope::of_range(0, 7), 1, 2).await;
    assert_eq!(bed.run(first.id, AUTO).await, End::Waiting);
    let why = refused(relocate::move_to(&bed.servers, ShardId(3), false).await);
    assert!(why.contains(&format!("move {} is in phase window", first.id)), "{why}");
    bed.ask(first.id, Wish::Finish).await;
    assert_eq!(bed.run(first.id, Options::default()).await, End::Over);

    let (json, text) = said(relocate::move_to(&bed.servers, ShardId(3), true).await).await;
    assert!(text.contains("Nothing was changed"), "{json} {text}");
    let (json, _) = said(relocate::show(&bed.servers).await).await;
    assert_eq!((&json["shard"], &json["generation"]), (&Value::from(1), &Value::from(1)));
    let (json, _) = said(relocate::move_to(&bed.servers, ShardId(3), false).await).await;
    assert_eq!(
        (&json["shard"], &json["epoch"], &json["generation"]),
        (&Value::from(3), &Value::from(2), &Value::from(2))
    );

    // The old one refuses whoever has not heard.
    for sql in ["SELECT shard_catalog.drain(1)", "UPDATE shard_catalog.move SET phase = 'ready'"] {
        let error = format!("{:#}", bed.control.run(sql).await.unwrap_err());
        assert!(error.contains("the shard catalog is on shard 3 now"), "{sql}: {error}");
    }
    bed.control = bed.servers.control("test").await.unwrap();
    let second = bed.plan(&Scope::of_range(40, 43), 2, 1).await;
    assert!(second.id > first.id, "numbers go on");
    assert_eq!(bed.run(second.id, AUTO).await, End::Waiting);
    bed.ask(second.id, Wish::Finish).await;
    assert_eq!(bed.run(second.id, Options::default()).await, End::Over);

    // Whoever was left before leads to where it is now.
    let (json, _) = said(relocate::move_to(&bed.servers, ShardId(2), false).await).await;
    assert_eq!(json["shard"], Value::from(2));
    let leads = "SELECT moved_to = 2 FROM shard_catalog.control";
    assert!(bed.shard(1).await.holds(leads, &[]).await.unwrap(), "left before the last time");
    assert!(bed.shard(3).await.holds(leads, &[]).await.unwrap());
    let (json, _) = said(relocate::move_to(&bed.servers, ShardId(3), false).await).await;
    assert_eq!((&json["shard"], &json["generation"]), (&Value::from(3), &Value::from(4)));

    // Who serves requests follows it.
    let servers = bed.servers.clone();
    let serving = tokio::spawn(async move { shardctl::serve::serve(|| Ok(servers.clone()), |_| {}).await });
    let ask = "SELECT shard_catalog.move_buckets(0, 0, 1, dry_run => true)";
    bed.control.run(ask).await.unwrap();
    answered(&bed.control).await;

    // It breaks off behind the decision: the pointer back is still there. Whoever comes ends it.
    let (json, _) = said(relocate::move_to(&bed.servers, ShardId(1), false).await).await;
    assert_eq!((&json["shard"], &json["epoch"]), (&Value::from(1), &Value::from(3)));
    let one = bed.shard(1).await;
    one.run(ask).await.unwrap();
    answered(&one).await;
    serving.abort();
    one.run("UPDATE shard_catalog.control SET moved_to = 3, moved_generation = 4").await.unwrap();
    let (json, _) = said(relocate::show(&bed.servers).await).await;
    assert_eq!(json["shard"], Value::from(1));
    assert!(one.holds("SELECT moved_to IS NULL FROM shard_catalog.control", &[]).await.unwrap());
    // One that was left has lost that it was.
    let three = bed.shard(3).await;
    three.run("UPDATE shard_catalog.control SET moved_to = NULL, moved_generation = NULL").await.unwrap();
    bed.control = bed.shard(1).await;
    let late = bed.plan(&Scope::of_range(20, 20), 1, 2).await;
    let error = format!("{:#}", run(&bed.servers, late.id, Options::default()).await.unwrap_err());
    assert!(error.contains("both say that they keep the shard catalog"), "{error}");
    said(repair::repair(&bed.servers, false).await).await;
    assert!(three.holds("SELECT moved_to = 1 FROM shard_catalog.control", &[]).await.unwrap());
    bed.ask(late.id, Wish::Abort).await;
    bed.run(late.id, Options::default()).await;
    // And before it: the copy is not believed, also by who cannot reach the one that keeps it.
    three
        .run("UPDATE shard_catalog.control SET generation = 6, moved_to = 1, moved_generation = 5")
        .await
        .unwrap();
    let (json, _) = said(relocate::show(&bed.servers).await).await;
    assert_eq!(json["shard"], Value::from(1));
    bed.pg[0].crash();
    let error = format!("{:#}", relocate::show(&bed.servers).await.err().unwrap());
    assert!(error.contains("no primary of shard 1 can be reached"), "{error}");
    bed.pg[0].resume();
    bed.control = bed.servers.control("test").await.unwrap();
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The catalog forgets a flip and the move, in part or whole, and goes on with what the shards know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_a_catalog_is_told_what_it_has_lost() {
    let bed = Bed::start(2).await;
    let (json, text) = said(repair::repair(&bed.servers, false).await).await;
    assert!(text.contains("whole"), "{json}");

    // A flip, and what came with it.
    let one = bed.plan(&Scope::of_range(0, 7), 1, 2).await;
    assert_eq!(bed.run(one.id, AUTO).await, End::Waiting);
    let id: String =
        bed.control.value("SELECT id::text FROM shard_catalog.map WHERE epoch = 2", &[]).await.unwrap();
    bed.control
        .run(
            "DELETE FROM shard_catalog.map WHERE epoch = 2; UPDATE shard_catalog.move SET phase = 'fencing'; \
             UPDATE shard_catalog.motion SET stage = 'holding'",
        )
        .await
        .unwrap();
    let error = format!("{:#}", run(&bed.servers, one.id, Options::default()).await.unwrap_err());
    assert!(error.contains("shardctl repair"), "{error}");
    let (json, text) = said(repair::repair(&bed.servers, true).await).await;
    assert!(text.contains("Nothing was changed") && json["epochs"][0]["id"] == id, "{json}");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1);
    said(repair::repair(&bed.servers, false).await).await;
    let map = catalog::map(&bed.control).await.unwrap();
    assert_eq!((map.map.epoch(), map.id), (2, id));
    assert_eq!(bed.load(one.id).await.phase, Phase::Reversing);
    assert_eq!(bed.run(one.id, Options::default()).await, End::Waiting);
    bed.ask(one.id, Wish::Rollback).await;
    assert_eq!(bed.run(one.id, Options::default()).await, End::Over);
    assert_eq!(bed.load(one.id).await.phase, Phase::RolledBack, "{}", bed.story(one.id).await);

    // Moves of which it knows nothing any more: one over, one that has flipped, one that copies.
    let over = bed.plan(&Scope::of_range(0, 3), 1, 2).await;
    assert_eq!(bed.run(over.id, Options { finish: true, ..AUTO }).await, End::Over);
    // The same buckets have gone on since.
    let flipped = bed.plan(&Scope::of_range(2, 3), 2, 1).await;
    assert_eq!(bed.run(flipped.id, AUTO).await, End::Waiting);
    let copied = bed.plan(&Scope::of_range(12, 13), 1, 2).await;
    assert_eq!(bed.run(copied.id, Options::default()).await, End::Waiting);
    assert_eq!(bed.load(copied.id).await.phase, Phase::Ready);
    let before = catalog::map(&bed.control).await.unwrap();
    bed.control
        .run(&format!(
            "DELETE FROM shard_catalog.map WHERE epoch > 3; DELETE FROM shard_catalog.motion; \
             DELETE FROM shard_catalog.move WHERE id > {}; SELECT setval('shard_catalog.move_id_seq', {0})",
            one.id
        ))
        .await
        .unwrap();
    let (json, text) = said(repair::repair(&bed.servers, false).await).await;
    let phases: Vec<_> = json["moves"].as_array().unwrap().iter().map(|put| put["phase"].clone()).collect();
    assert_eq!(phases, ["done", "reversing", "aborting"], "{text}");
    let after = catalog::map(&bed.control).await.unwrap();
    assert_eq!((after.map, after.id), (before.map, before.id));
    assert_eq!(bed.run(copied.id, Options::default()).await, End::Over);
    assert_eq!(bed.load(copied.id).await.phase, Phase::Aborted, "{}", bed.story(copied.id).await);
    assert_eq!(bed.run(flipped.id, Options::default()).await, End::Waiting);
    bed.ask(flipped.id, Wish::Finish).await;
    assert_eq!(bed.run(flipped.id, Options::default()).await, End::Over);
    let next = bed.plan(&Scope::of_range(20, 20), 1, 2).await;
    assert!(next.id > copied.id, "no number is given twice");
    bed.ask(next.id, Wish::Abort).await;
    bed.run(next.id, Options::default()).await;
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// What the shards contradict each other in is not decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_what_shards_do_not_agree_on_is_not_repaired() {
    let bed = Bed::start(2).await;
    let own = |epoch: i64, owner: u16| {
        format!(
            "INSERT INTO shard_catalog.ownership (move_id, epoch, epoch_id, scope, owner, flipped) \
             VALUES (9, {epoch}, '00000000-0000-4000-8000-00000000000{epoch}', '{{\"ranges\": [[0, 1]]}}', {owner}, true)"
        )
    };
    bed.shard(1).await.run(&own(3, 2)).await.unwrap();
    let why = refused(repair::repair(&bed.servers, false).await);
    assert!(why.contains("no shard knows of epoch 2"), "{why}");
    bed.shard(1).await.run(&own(2, 2)).await.unwrap();
    bed.shard(2).await.run(&own(2, 1)).await.unwrap();
    let why = refused(repair::repair(&bed.servers, false).await);
    assert!(why.contains("do not say the same of epoch 2"), "{why}");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1);
}
