//! Rows that a move must not delete, give away or send back: a pinned tenant's, those of an attempt that was undone, and those
//! that a server forgets to have passed.

use std::time::{Duration, Instant};

use serde_json::json;
use shardctl::exit;
use shardctl::mover::catalog;
use shardctl::mover::job::Way;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;
use uuid::Uuid;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::ended;
use crate::places::{Places, unhurried};
use crate::proxy::hash;

const ALL: Options = Options { auto: true, finish: true, stay: false };

fn inside(last: u16) -> Uuid {
    (0..200).map(tenant).find(|t| bucket(t) <= last).unwrap()
}

/// A tenant of bucket 15 or below lives on shard 2, although shard 1 owns its bucket.
async fn pinned(bed: &Bed) -> (Uuid, Scope) {
    let pinned = inside(15);
    let scope = Scope::new(&[], &[hash(&pinned)]).unwrap();
    let isolated = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(isolated.id, ALL).await, End::Over);
    assert_eq!(bed.load(isolated.id).await.phase, Phase::Done, "{}", bed.story(isolated.id).await);
    (pinned, scope)
}

/// The move was paused, or in line, when its preflight had passed; then a tenant of its buckets was moved to its target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_was_pinned_to_the_target_meanwhile_stays_whole() {
    let bed = Bed::start(2).await;
    let mut late = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    late.go(&bed.control, Phase::Announcing, "a test").await.unwrap();
    let (_, scope) = pinned(&bed).await;
    let before = bed.rows(2, &scope).await;
    assert!(before["entries"].0 > 0);
    let refused = catalog::announce(&bed.control, &bed.load(late.id).await).await.unwrap().unwrap_err();
    assert!(refused.contains("is pinned to shard 2"), "{refused}");
    assert_eq!(bed.run(late.id, ALL).await, End::Over);
    let story = bed.story(late.id).await;
    assert_eq!(bed.load(late.id).await.phase, Phase::Aborted, "{story}");
    assert!(story.contains("is pinned to shard 2"), "{story}");
    assert_eq!(bed.rows(2, &scope).await, before);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Whatever else went wrong before: what is deleted from a shard are copies, also before a copy that begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_a_pinned_tenant_are_not_deleted_as_copies() {
    let bed = Bed::start(2).await;
    let (_, scope) = pinned(&bed).await;
    let before = bed.rows(2, &scope).await;
    for phase in [Phase::Clearing, Phase::Arming] {
        let mut job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
        catalog::set_stage(&bed.control, &job, Way::Out, "copying").await.unwrap();
        job.set(&bed.control, json!({ "copy_begun": true })).await.unwrap();
        job.go(&bed.control, phase, "a test").await.unwrap();
        let runner = bed.spawn(job.id, Options::default());
        let begun = Instant::now();
        while !bed.story(job.id).await.contains("is pinned to shard 2: rows of shard 2 are not deleted") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{phase:?}: {}", bed.story(job.id).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        runner.abort();
        _ = runner.await;
        assert_eq!(bed.rows(2, &scope).await, before, "{phase:?}");
        catalog::end_motion(&bed.control, &job).await.unwrap();
    }
}

/// The target was open for a moment, and somebody who knows its address wrote there; the flip did not come about, because
/// somebody sat on the map. Nobody is held for long by that, and what was written is found before anything flips.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_opened_for_an_attempt_that_was_undone_is_compared_again() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    unhurried(&bed, job.id).await;
    let places = Places::new(&bed);
    places.stop_at("fencing-owned");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-owned").await;
    let insert =
        "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, gen_random_uuid(), 1, 0)";
    bed.direct(2).await.execute(insert, &[&inside(15)]).await.expect("the target is open");
    let sits = bed.shard(1).await;
    sits.run("BEGIN; LOCK TABLE shard_catalog.map IN EXCLUSIVE MODE").await.unwrap();
    places.go_on("fencing-owned");
    let begun = Instant::now();
    let held = "SELECT EXISTS (SELECT FROM shard_catalog.motion WHERE stage = 'holding')";
    while bed.control.holds(held, &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(3), "everybody is held: {}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sits.run("COMMIT").await.unwrap();
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert!(story.contains("not cut over") && story.contains("the flip: "), "{story}");
    said.check(exit::DIFFERENT, "public.entries");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1, "{story}");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The target forgets in a crash how far the slot for the way back had been advanced: what came from the source does not go
/// back there, where it would stop at its own rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h29_a_target_that_restarts_right_after_the_flip_keeps_the_way_back() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    unhurried(&bed, job.id).await;
    let places = Places::new(&bed);
    places.stop_at("fencing-compared");
    places.stop_at("reversing");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-compared").await;
    let insert =
        "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, gen_random_uuid(), 1, 0)";
    let count = "SELECT count(*) FROM public.entries WHERE tenant_id = $1";
    let client = bed.direct(1).await;
    for _ in 0..5 {
        client.execute(insert, &[&inside(15)]).await.unwrap();
    }
    places.go_on("fencing-compared");
    places.reached("reversing").await;
    bed.pg[1].crash();
    bed.pg[1].resume();
    places.go_on("reversing");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert_eq!((said.status, bed.load(job.id).await.phase), (0, Phase::Window), "{}\n{story}", said.text);
    bed.direct(2).await.execute(insert, &[&inside(15)]).await.unwrap();
    let begun = Instant::now();
    while bed.shard(1).await.value::<i64>(count, &[&inside(15)]).await.unwrap() < 16 {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing flows back: {story}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bed.ask(job.id, Wish::Rollback).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack, "{}", bed.story(job.id).await);
    assert_eq!(bed.shard(1).await.value::<i64>(count, &[&inside(15)]).await.unwrap(), 16);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The flip's answer is lost and its commit is not: the record says one thing, and not that it came to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_whose_answer_is_lost_is_told_as_one() {
    let bed = Bed::start(3).await;
    // The catalog is on neither of both.
    let job = bed.plan(&Scope::of_range(32, 47), 2, 3).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    unhurried(&bed, job.id).await;
    let places = Places::new(&bed);
    places.stop_at("fencing-owned");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-owned").await;
    // Its commits wait for a standby that is not there.
    for statement in ["ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"] {
        bed.control.client.batch_execute(statement).await.unwrap();
    }
    places.go_on("fencing-owned");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = $1";
    let begun = Instant::now();
    while bed.control.rows(end, &[&job.session_name()]).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for statement in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
        bed.control.client.batch_execute(statement).await.unwrap();
    }
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let (now, story) = (bed.load(job.id).await, bed.story(job.id).await);
    assert_eq!((said.status, now.phase), (0, Phase::Window), "{}\n{story}", said.text);
    let first = &now.detail["pauses"][0];
    assert!(
        first["flipped"] == true && first["why"].as_str().unwrap().starts_with("cut over, although"),
        "{first}"
    );
    assert!(!story.contains("not cut over"), "{story}");
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}
