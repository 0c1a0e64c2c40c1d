//! H27: what a move keeps on its shards' disks ends the move, never the shard: a disk that gets full, a slot past its limit.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;
use shardctl::direct::Db;
use shardctl::exit;
use shardctl::mover::job::Way;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, Writers, bucket, tenant};
use crate::commands::{Tool, ended};
use crate::places::Places;
use crate::proxy::Proxy;

const AUTO: Options = Options { auto: true, finish: false, stay: false };
const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// `shardctl serve` is the runner, so that it stays.
struct Serving {
    child: Child,
    places: Places,
}

impl Serving {
    fn start(bed: &Bed) -> Self {
        let places = Places::new(bed);
        Self { child: places.start("serve"), places }
    }

    fn end(self) {
        drop(self);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Also when a test fails: nobody else would end it.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

async fn until(bed: &Bed, id: i64, within: u64, what: &str, is: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is().await {
        let story = bed.story(id).await;
        assert!(begun.elapsed() < Duration::from_secs(within), "{what}: not within {within} s\n{story}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// So many MiB of WAL, which no slot of a move has anything to do with.
async fn write(db: &Db, mib: usize) {
    for _ in 0..mib {
        db.rows("SELECT pg_logical_emit_message(false, '', repeat('x', 1 << 20))", &[]).await.unwrap();
    }
}

/// A slot that nobody reads keeps more than the server's limit.
async fn lose(db: &Db, slot: &str) {
    for statement in ["ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()"] {
        db.run(statement).await.unwrap();
    }
    let begun = Instant::now();
    let state = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
    while db.value::<Option<String>>(state, &[&slot]).await.unwrap().is_none_or(|state| state != "lost") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{slot} keeps all that it needs");
        write(db, 1).await;
        db.run("SELECT pg_switch_wal()").await.unwrap();
        db.run("CHECKPOINT").await.unwrap();
    }
    for statement in ["ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()"] {
        db.run(statement).await.unwrap();
    }
}

async fn stop(db: &Db, subscription: &str) {
    db.run(&format!("ALTER SUBSCRIPTION {subscription} DISABLE")).await.unwrap();
    let sql = "SELECT NOT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL)";
    let begun = Instant::now();
    while !db.holds(sql, &[&subscription]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{subscription} goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_full_disk_ends_the_move_not_the_shard() {
    let bed = Bed::start(2).await;
    let proxy = Proxy::start(&bed.servers).await;
    let writers = Writers::start(&proxy, 2);
    let scope = Scope::of_range(0, 31);
    let accounts = bed.rows(1, &scope).await["accounts"];
    let serving = Serving::start(&bed);
    let said = |shard: u16| format!("shard {shard} has 1000 B of its disk free, and ");

    // Rows are copied; then it is paused in that, and the other disk is full.
    for (shard, paused) in [(1, false), (2, true)] {
        let mut job = bed.plan(&scope, 1, 2).await;
        job.set(&bed.control, json!({ "throttle": { "bytes_per_second": 1000 } })).await.unwrap();
        until(&bed, job.id, 30, "copying", async || {
            bed.load(job.id).await.detail["progress"]["rows"].as_u64().is_some_and(|rows| rows > 0)
        })
        .await;
        job.set(&bed.control, json!({ "paused": paused })).await.unwrap();
        serving.places.say(&format!("free-{shard}"), Some("1000"));
        // The source is to keep WAL for the move: else it is not what fills it.
        if shard == 1 {
            write(&bed.shard(1).await, 80).await;
        }
        let over = async || !matches!(bed.load(job.id).await.phase, Phase::Copying | Phase::Aborting);
        until(&bed, job.id, 20, "the end of the copy", over).await;
        job.set(&bed.control, json!({ "paused": false })).await.unwrap();
        until(&bed, job.id, 20, "aborted", async || bed.load(job.id).await.phase == Phase::Aborted).await;
        assert!(bed.story(job.id).await.contains(&said(shard)), "{}", bed.story(job.id).await);
        serving.places.say(&format!("free-{shard}"), None);
        assert_eq!(
            (bed.rows(1, &scope).await["accounts"], bed.rows(2, &scope).await["accounts"].0),
            (accounts, 0)
        );
        bed.check_clean().await;
    }

    // The runner waits for a target that applies nothing, for a minute: it is looked at beside that.
    let job = bed.plan(&scope, 1, 2).await;
    bed.until(job.id, Phase::Ready).await;
    // Something else fills the source, from which the move takes rows.
    serving.places.say("free-1", Some("1000"));
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Ready, "{}", bed.story(job.id).await);
    let locked = bed.shard(2).await;
    locked.run("BEGIN; SELECT FROM shard_catalog.mark FOR UPDATE").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    write(&bed.shard(1).await, 80).await;
    until(&bed, job.id, 25, "given up", async || bed.load(job.id).await.phase != Phase::Ready).await;
    locked.run("ROLLBACK").await.unwrap();
    until(&bed, job.id, 30, "aborted", async || bed.load(job.id).await.phase == Phase::Aborted).await;
    assert!(bed.story(job.id).await.contains(&said(1)), "{}", bed.story(job.id).await);
    assert_eq!(bed.rows(1, &scope).await["accounts"], accounts);

    serving.end();
    let posted = writers.stop().await;
    assert!(posted > 100);
    bed.check_rows(posted).await;
    bed.check_clean().await;
}

/// The other one is away, and nothing can be taken down there: what fills the disk of this one goes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_full_source_is_freed_although_the_target_is_away() {
    freed_alone(1, 2, Scope::of_range(0, 31)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_full_target_is_freed_although_the_source_is_away() {
    freed_alone(2, 1, Scope::of_range(32, 47)).await;
}

/// Shard 1 is full, which keeps the catalog, too; shard 2 is away.
async fn freed_alone(source: u16, target: u16, scope: Scope) {
    let bed = Bed::start(2).await;
    let job = bed.plan(&scope, source, target).await;
    let serving = Serving::start(&bed);
    bed.until(job.id, Phase::Ready).await;
    bed.pg[1].crash();
    let full = bed.shard(1).await;
    assert!(full.value::<i64>(SLOTS, &[]).await.unwrap() > 0);
    write(&full, 80).await;
    serving.places.say("free-1", Some("1000"));
    until(&bed, job.id, 60, "no slot", async || full.value::<i64>(SLOTS, &[]).await.unwrap() == 0).await;
    bed.pg[1].resume();
    until(&bed, job.id, 60, "aborted", async || bed.load(job.id).await.phase == Phase::Aborted).await;
    serving.end();
    bed.check_rows(0).await;
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_full_disk_ends_the_way_back_not_the_window() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    let proxy = Proxy::start(&bed.servers).await;
    let writers = Writers::start(&proxy, 2);
    let ways = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_subscription)";
    let left = async || {
        let [one, two] = [bed.shard(1).await, bed.shard(2).await];
        one.value::<i64>(ways, &[]).await.unwrap() + two.value::<i64>(ways, &[]).await.unwrap()
    };

    // What flows back fills the source.
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    let serving = Serving::start(&bed);
    serving.places.say("free-1", Some("1000"));
    until(&bed, job.id, 25, "no way back", async || left().await == 0).await;
    let said = |shard: u16| format!("shard {shard} has 1000 B of its disk free, and ");
    let gone = format!("gone: {}", said(1));
    until(&bed, job.id, 5, "said", async || {
        bed.load(job.id).await.text("way_back").is_some_and(|text| text.starts_with(&gone))
    })
    .await;
    let before = writers.posted();
    until(&bed, job.id, 10, "payments", async || writers.posted() > before + 50).await;
    tool.run("moves").check(0, &format!("the way back is gone (it was given up: {}", said(1)));
    tool.run("moves").check(0, &format!("only finish is left: shardctl finish {}", job.id));
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    bed.ask(job.id, Wish::Rollback).await;
    until(&bed, job.id, 20, "no roll-back", async || {
        bed.story(job.id).await.contains("the way back was given up: shard 1")
    })
    .await;
    until(&bed, job.id, 20, "open", async || bed.load(job.id).await.phase == Phase::Window).await;
    serving.places.say("free-1", None);
    serving.end();
    let tool = Tool::new(&bed);
    tool.run(&format!("finish {}", job.id)).check(0, "done: shard 2 owns buckets 0-31");
    let posted = writers.stop().await;
    bed.check_rows(posted).await;
    bed.check_clean().await;

    // The source is away, so its way back fills the target: not at once.
    let job = bed.plan(&Scope::of_range(32, 47), 2, 1).await;
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    let serving = Serving::start(&bed);
    serving.places.say("free-1", Some("1000"));
    tokio::time::sleep(Duration::from_secs(12)).await;
    let kept = bed.load(job.id).await;
    assert_eq!(
        (kept.phase, kept.text("way_back")),
        (Phase::Window, Some("open")),
        "{}",
        bed.story(job.id).await
    );
    bed.pg[1].crash();
    let target = bed.shard(1).await;
    assert_eq!(target.value::<i64>(SLOTS, &[]).await.unwrap(), 1);
    write(&target, 80).await;
    until(&bed, job.id, 60, "no slot", async || target.value::<i64>(SLOTS, &[]).await.unwrap() == 0).await;
    // Nor does anything else of the move wait for the source's part of it.
    bed.ask(job.id, Wish::Rollback).await;
    until(&bed, job.id, 40, "no roll-back", async || {
        bed.story(job.id).await.contains("the way back was given up: shard 1")
    })
    .await;
    bed.pg[1].resume();
    // Which has paused it: somebody is to look.
    bed.load(job.id).await.set(&bed.control, json!({ "paused": false })).await.unwrap();
    until(&bed, job.id, 90, "no way back", async || left().await == 0).await;
    serving.end();
    let tool = Tool::new(&bed);
    tool.run(&format!("finish {}", job.id)).check(0, "done: shard 1 owns buckets 32-47");
    bed.check_rows(posted).await;
    bed.check_clean().await;
}

/// A flip whose way back has gone with the target's slot, before it was begun, comes to its window all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_way_back_that_never_began_leaves_a_window() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let places = Places::new(&bed);
    places.stop_at("reversing");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("reversing").await;
    let drop = "SELECT pg_drop_replication_slot($1)";
    bed.shard(2).await.rows(drop, &[&job.publication(Way::Back)]).await.unwrap();
    places.go_on("reversing");
    bed.until(job.id, Phase::Window).await;
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let now = bed.load(job.id).await;
    assert_eq!((said.status, now.phase), (0, Phase::Window), "{}\n{}", said.text, bed.story(job.id).await);
    let tool = Tool::new(&bed);
    tool.run("moves").check(0, &format!("only finish is left: shardctl finish {}", job.id));
    tool.run(&format!("finish {}", job.id)).check(0, "done: shard 2 owns buckets 0-15");
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Nobody can say how much is free: the move goes on, and says so once. Who can say it refuses what would end soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_disk_that_cannot_be_asked_is_said_to_be() {
    let bed = Bed::start(2).await;
    let refused = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let places = Places::new(&bed);
    // Enough for its rows, and less than is to stay free of any disk.
    places.say("free-2", Some("209715200"));
    let runner = places.start(&format!("resume {}", refused.id));
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    said.check(exit::REFUSED, "shard 2 has 200.0 MiB free, the move wants ");

    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let two = bed.shard(2).await;
    two.run("CREATE ROLE boss SUPERUSER LOGIN; ALTER ROLE postgres NOSUPERUSER").await.unwrap();
    let said = "how much is free on the disk of shard 2 cannot be asked";
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    until(&bed, job.id, 20, "said", async || bed.story(job.id).await.contains(said)).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    runner.abort();
    _ = runner.await;
    let url = format!("postgresql://boss@127.0.0.1:{}/postgres", bed.pg[1].port());
    let (boss, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    boss.batch_execute("ALTER ROLE postgres SUPERUSER").await.unwrap();
    let story = bed.story(job.id).await;
    assert!(!bed.load(job.id).await.phase.is_over() && story.matches(said).count() == 1, "{story}");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h27_a_slot_past_its_limit_ends_the_move() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    let scope = Scope::of_range(0, 15);
    let [source, target] = [bed.shard(1).await, bed.shard(2).await];
    let before = bed.rows(1, &scope).await;
    let limit = "kept more WAL than max_slot_wal_keep_size allows";
    let insert =
        "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, gen_random_uuid(), 1, 0)";
    let moving = (0..200).map(tenant).find(|tenant| bucket(tenant) < 16).unwrap();

    // While rows are copied nobody reads it.
    let mut job = bed.plan(&scope, 1, 2).await;
    job.set(&bed.control, json!({ "throttle": { "bytes_per_second": 1000 } })).await.unwrap();
    let runner = bed.spawn(job.id, Options::default());
    until(&bed, job.id, 30, "copying", async || bed.load(job.id).await.flag("copy_begun")).await;
    lose(&source, &job.publication(Way::Out)).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert!(story.contains(&format!("{limit} and is lost: move less at a time")), "{story}");
    assert_eq!(bed.rows(1, &scope).await, before, "the source is whole");
    bed.check_clean().await;

    // When it is ready: of the flow to the target, and of the way back.
    for (way, why) in [
        (Way::Out, format!("the replication slot {limit} and is lost")),
        (Way::Back, "the slot for the way back kept more WAL on the target than".to_owned()),
    ] {
        let job = bed.plan(&scope, 1, 2).await;
        assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
        let slot = job.publication(way);
        match way {
            Way::Out => {
                stop(&target, &slot).await;
                lose(&source, &slot).await;
            }
            Way::Back => lose(&target, &slot).await,
        }
        // The source takes writes, and whoever looks is told.
        bed.direct(1).await.execute(insert, &[&moving]).await.unwrap();
        tool.run("moves").check(0, &format!("(slot {slot} {limit}): the move cannot come to its end"));
        assert_eq!(bed.run(job.id, AUTO).await, End::Over);
        let story = bed.story(job.id).await;
        assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
        assert!(story.contains(&why), "{story}");
        bed.check_rows(0).await;
        bed.check_clean().await;
    }
    let added = bed.rows(1, &scope).await["entries"].0 - before["entries"].0;
    assert_eq!(added, 2, "the source is whole");

    // In the window the rows stay where they are.
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, AUTO).await, End::Waiting);
    let slot = job.publication(Way::Back);
    stop(&source, &slot).await;
    lose(&target, &slot).await;
    bed.direct(2).await.execute(insert, &[&moving]).await.unwrap();
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    assert_eq!(
        bed.load(job.id).await.text("way_back"),
        Some("gone: the slot on the target kept too much WAL; only finish is left")
    );
    tool.run("moves")
        .check(0, &format!("(slot {slot} {limit}): only finish is left: shardctl finish {}", job.id));
    bed.ask(job.id, Wish::Rollback).await;
    let ended = bed.run(job.id, Options::default()).await;
    assert!(matches!(&ended, End::GivenUp(why) if why.contains(limit)), "{ended:?}");
    tool.run(&format!("finish {}", job.id)).check(0, "done: shard 2 owns buckets 0-15");
    assert_eq!(bed.rows(2, &scope).await["entries"].0, before["entries"].0 + 3);
    bed.check_rows(0).await;
    bed.check_clean().await;
}
