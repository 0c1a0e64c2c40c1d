//! A shard that is lost when it only has rows to delete, or is never coming back.

use shardctl::mover::lost;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;
use crate::commands::Tool;
use crate::places::Places;

const ALL: Options = Options { auto: true, finish: true, stay: false };
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
    + (SELECT count(*) FROM pg_subscription) + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zzz%') \
    + (SELECT count(*) FROM shard_catalog.guarded) + (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM shard_catalog.fence)";

/// Whoever runs the move is killed at `place`.
async fn killed_at(bed: &Bed, words: &str, place: &str) {
    let places = Places::new(bed);
    places.stop_at(place);
    let mut runner = places.start(words);
    places.reached(place).await;
    runner.kill().unwrap();
    runner.wait().unwrap();
}

async fn motions(bed: &Bed) -> i64 {
    bed.control.value("SELECT count(*) FROM shard_catalog.motion", &[]).await.unwrap()
}

/// Guards are taken off last, so a shard that dies while its rows are deleted leaves them on the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_lost_while_its_copies_are_deleted_does_not_keep_the_other_one() {
    let bed = Bed::start(2).await;
    for (verb, place, ends) in [
        ("abort", "clearing-deleted", Phase::Aborted),
        ("rollback", "returning-unsubscribed", Phase::RolledBack),
        ("rollback", "emptying-deleted", Phase::RolledBack),
        ("finish", "cleaning-deleted", Phase::Done),
    ] {
        // The catalog is on shard 1, so the other one is lost.
        let (scope, source, target, wish) = match verb {
            "finish" => (Scope::of_range(32, 47), 2, 1, Wish::Finish),
            _ => (Scope::of_range(0, 15), 1, 2, Wish::Abort),
        };
        let job = bed.plan(&scope, source, target).await;
        assert_eq!(
            bed.run(job.id, Options { auto: verb != "abort", ..Options::default() }).await,
            End::Waiting
        );
        killed_at(&bed, &format!("{verb} {}", job.id), place).await;
        let one = bed.shard(1).await;
        assert!(one.value::<i64>(LEFT, &[]).await.unwrap() > 0, "{place}: the test shows nothing");
        bed.pg[1].crash();
        lost::free(&bed.servers, job.id, wish).await.unwrap();
        assert_eq!(one.value::<i64>(LEFT, &[]).await.unwrap(), 0, "{place}: left on shard 1");
        one.run("ALTER TABLE public.plain ADD COLUMN n int; ALTER TABLE public.plain DROP COLUMN n")
            .await
            .unwrap();
        assert_eq!(motions(&bed).await, 1, "{place}: copies stay hidden until they are gone");
        bed.pg[1].resume();
        assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
        assert_eq!(bed.load(job.id).await.phase, ends, "{place}: {}", bed.story(job.id).await);
        bed.check_clean().await;
    }
    bed.check_rows(0).await;
}

/// The move is ended with it, and its buckets can be moved to another shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_never_returns_does_not_keep_its_buckets_from_moving() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let scope = Scope::of_range(0, 15);
    let [copied, flipped] = [bed.plan(&scope, 1, 2).await, bed.plan(&Scope::of_range(32, 47), 2, 1).await];
    assert_eq!(bed.run(copied.id, Options::default()).await, End::Waiting);
    assert_eq!(bed.run(flipped.id, Options { auto: true, ..Options::default() }).await, End::Waiting);
    bed.pg[1].crash();
    tool.run(&format!("abort {} --never-returns", copied.id)).check(shardctl::exit::USAGE, "--target-lost");
    tool.run(&format!("abort {} --target-lost --never-returns", copied.id))
        .check(0, "Shard 2 must never be started again with what it had");
    tool.run(&format!("finish {} --source-lost --never-returns", flipped.id))
        .check(0, "done: shard 1 owns buckets 32-47");
    assert_eq!(bed.load(copied.id).await.phase, Phase::Aborted);
    assert_eq!(motions(&bed).await, 0);
    assert_eq!(bed.shard(1).await.value::<i64>(LEFT, &[]).await.unwrap(), 0);
    let before = bed.rows(1, &scope).await;
    let again = bed.plan(&scope, 1, 3).await;
    assert_eq!(bed.run(again.id, ALL).await, End::Over);
    assert_eq!(bed.load(again.id).await.phase, Phase::Done, "{}", bed.story(again.id).await);
    assert_eq!(bed.rows(3, &scope).await["entries"].0, before["entries"].0);
}

/// H6: nobody had written down yet that the flip was one. The shard that is left must say so, should the catalog forget it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_a_source_that_is_lost_right_after_the_flip_leaves_the_word_of_it() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(32, 47), 2, 1).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    killed_at(&bed, &format!("resume {} --auto", job.id), "fencing-flipped").await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Reversing);
    bed.pg[1].crash();
    lost::free(&bed.servers, job.id, Wish::Finish).await.unwrap();
    let known = "SELECT count(*) FROM shard_catalog.ownership WHERE flipped AND owner = 1 AND epoch = 2";
    assert_eq!(bed.shard(1).await.value::<i64>(known, &[]).await.unwrap(), 1);
    bed.pg[1].resume();
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}
