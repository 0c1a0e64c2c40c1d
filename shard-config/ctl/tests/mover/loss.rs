//! H15: servers that fail over in the middle of a move, and slots that are gone.

use std::time::Duration;

use shardctl::direct::Db;
use shardctl::exit;
use shardctl::mover::catalog;
use shardctl::mover::job::Way;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;
use crate::commands::ended;
use crate::places::Places;

const STAY: Options = Options { auto: false, finish: false, stay: true };

/// Drops a slot as a failover would: whoever reads it loses it.
async fn drop_slot(db: &Db, name: &str) {
    let end =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    for _ in 0..200 {
        db.rows(end, &[&name]).await.unwrap();
        if db.rows("SELECT pg_drop_replication_slot($1)", &[&name]).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("slot {name} is always in use");
}

/// A row that the target has applied, and that its failover has lost.
async fn lose_a_row(bed: &Bed) {
    let sql = "SELECT pg_replication_origin_create('loss'), pg_replication_origin_session_setup('loss'); \
        DELETE FROM public.entries WHERE id = (SELECT id FROM public.entries e JOIN shard_catalog.fence f \
            ON uuid_hash_extended(e.tenant_id, 8816678312871386365) & f.mask < 16 LIMIT 1); \
        SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('loss')";
    let scope = Scope::of_range(0, 15);
    let before = bed.rows(2, &scope).await["entries"].0;
    bed.shard(2).await.run(sql).await.unwrap();
    assert_eq!(bed.rows(2, &scope).await["entries"].0, before - 1);
}

/// Ends what was found to differ, and nothing of it is left.
async fn abort(bed: &Bed, id: i64) {
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1, "{}", bed.story(id).await);
    bed.ask(id, Wish::Abort).await;
    assert_eq!(bed.run(id, Options::default()).await, End::Over);
    assert_eq!(bed.load(id).await.phase, Phase::Aborted, "{}", bed.story(id).await);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The source's slot is gone: rows that changed meanwhile would never come. The target's is gone: nothing would come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_slot_that_is_gone_before_the_flip_ends_the_move() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 15);
    let before = (bed.rows(1, &scope).await, bed.rows(2, &scope).await);
    for (way, shard, why) in [
        (Way::Out, 1, "the replication slot is gone: did its server fail over?"),
        (Way::Back, 2, "the slot for the way back is gone from the target"),
    ] {
        let job = bed.plan(&scope, 1, 2).await;
        let runner = bed.spawn(job.id, STAY);
        bed.until(job.id, Phase::Ready).await;
        // Between two looks: a comparison that has begun waits for the slot's rows for a minute.
        tokio::time::sleep(Duration::from_millis(250)).await;
        drop_slot(&bed.shard(shard).await, &job.publication(way)).await;
        let ended = tokio::time::timeout(Duration::from_secs(90), runner).await;
        let story = bed.story(job.id).await;
        assert_eq!(ended.expect(&story).unwrap().unwrap(), End::Over);
        assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
        assert!(story.contains(why), "{story}");
        assert_eq!((bed.rows(1, &scope).await, bed.rows(2, &scope).await), before, "the source is whole");
        bed.check_clean().await;
    }
    bed.check_rows(0).await;
}

/// A standby takes over that has no slots. The move ends by itself, and what the new primary has of it is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_target_that_fails_over_to_a_standby_ends_the_move() {
    let mut bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 15);
    let standby = bed.standby_of(2);
    let before = bed.rows(1, &scope).await;
    let job = bed.plan(&scope, 1, 2).await;
    let runner = bed.spawn(job.id, Options { auto: true, finish: true, stay: false });
    bed.until(job.id, Phase::Verifying).await;
    bed.ask(job.id, Wish::Cutover).await;
    bed.pg[1].crash();
    standby.promote();
    let ended = tokio::time::timeout(Duration::from_secs(90), runner).await;
    let story = bed.story(job.id).await;
    assert_eq!(ended.expect(&story).unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1, "{story}");
    assert_eq!(bed.rows(1, &scope).await, before);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A primary of another timeline, slots and all: what the one before it had applied may be gone, so it is compared again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_target_that_fails_over_when_it_is_ready_is_compared_again() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, STAY);
    bed.until(job.id, Phase::Ready).await;
    lose_a_row(&bed).await;
    bed.pg[1].fail_over();
    let ended = tokio::time::timeout(Duration::from_secs(60), runner).await;
    let story = bed.story(job.id).await;
    let ended = ended.expect(&story).unwrap().unwrap();
    assert!(matches!(&ended, End::Different(what) if what.contains("public.entries")), "{ended:?} {story}");
    abort(&bed, job.id).await;
}

/// The last moment at which it matters: sessions of the cut-over are opened on another server than was compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h15_a_target_that_fails_over_before_the_fence_is_not_cut_over_to() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let places = Places::new(&bed);
    places.stop_at("fencing");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing").await;
    lose_a_row(&bed).await;
    bed.pg[1].fail_over();
    places.go_on("fencing");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert!(story.contains("a server has failed over since both sides were compared"), "{story}");
    said.check(exit::DIFFERENT, "public.entries");
    abort(&bed, job.id).await;
}
