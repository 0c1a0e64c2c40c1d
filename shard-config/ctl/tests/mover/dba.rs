//! What whoever looks after the servers meets: a standby that is away, a flow that has stopped and is mended, a way back that is
//! gone, and verbs that are asked for in the wrong moment.

use std::time::{Duration, Instant};

use serde_json::Value;
use shard_config::ShardId;
use shardctl::exit;
use shardctl::mover::disk;
use shardctl::mover::job::Way;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::Tool;

/// The server's commits wait for a standby that is not there, or no more.
pub async fn commits_wait(bed: &Bed, shard: u16, wait: bool) {
    let db = bed.shard(shard).await;
    let word =
        if wait { "SET synchronous_standby_names = 'nobody'" } else { "RESET synchronous_standby_names" };
    db.run(&format!("ALTER SYSTEM {word}")).await.unwrap();
    db.rows("SELECT pg_reload_conf()", &[]).await.unwrap();
    let sql = "SELECT current_setting('synchronous_standby_names') <> ''";
    let begun = Instant::now();
    while bed.shard(shard).await.holds(sql, &[]).await.unwrap() != wait {
        assert!(begun.elapsed() < Duration::from_secs(10), "{word}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn sync_waiters(bed: &Bed, shard: u16) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    bed.shard(shard).await.value(sql, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_commits_wait_for_a_standby_is_refused_at_once() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("one.json");
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {plan}")).check(0, "Next");
    commits_wait(&bed, 3, true).await;
    let begun = Instant::now();
    let disks = disk::of(&bed.shard(3).await, ShardId(3)).await.unwrap();
    assert!(disks.is_some_and(|disks| disks.data.free > 0), "{disks:?}");
    for words in [format!("apply {plan} --dry-run"), format!("apply {plan}")] {
        tool.run(&words).check(
            exit::REFUSED,
            "PROBLEM  shard 3: writes wait for a standby: synchronous_standby_names is nobody, and 0 of 1 stream: start the standby",
        );
    }
    let moves = "SELECT count(*) FROM shard_catalog.move";
    assert_eq!(bed.control.value::<i64>(moves, &[]).await.unwrap(), 0);
    // One that is in the catalog already: refused by its runner, or ended before anybody has begun it.
    let (first, second) =
        (bed.plan(&Scope::of_range(0, 7), 1, 3).await, bed.plan(&Scope::of_range(0, 7), 1, 3).await);
    tool.run(&format!("abort {}", first.id)).check(0, "refused: nothing was changed");
    tool.run(&format!("resume {}", second.id)).check(exit::REFUSED, "shard 3: writes wait for a standby");
    assert_eq!(
        (bed.load(first.id).await.phase, bed.load(second.id).await.phase),
        (Phase::Refused, Phase::Refused)
    );
    assert_eq!(sync_waiters(&bed, 3).await, 0);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    commits_wait(&bed, 3, false).await;

    // The catalog's own shard: nothing could be written down.
    commits_wait(&bed, 1, true).await;
    tool.run(&format!("apply {plan}"))
        .check(exit::REFUSED, "the shard of the catalog: writes wait for a standby");
    assert_eq!(sync_waiters(&bed, 1).await, 0);
    commits_wait(&bed, 1, false).await;
    tool.run(&format!("apply {plan} --auto --finish")).check(0, "done");
    bed.check_clean().await;
}

/// A move in its window, without a runner, and a tenant that has moved.
async fn window(bed: &Bed) -> (i64, uuid::Uuid) {
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let auto = Options { auto: true, ..Options::default() };
    assert_eq!(bed.run(job.id, auto).await, End::Waiting, "{}", bed.story(job.id).await);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    (job.id, (0..200).map(tenant).find(|t| bucket(t) < 16).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_that_has_stopped_is_shown_and_goes_on_when_it_is_mended() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    let (id, moved) = window(&bed).await;
    assert!(!tool.run("moves").text.contains("the way back"));
    // A row that the source has already, past the guards: the target's cannot come.
    let one = bed.shard(1).await;
    let past_the_guards = async |sql: &str| {
        let db = bed.shard(1).await;
        let origin =
            "SELECT pg_replication_origin_create('past'), pg_replication_origin_session_setup('past')";
        db.run(origin).await.unwrap();
        db.execute(sql, &[&moved]).await.unwrap();
        db.run("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('past')")
            .await
            .unwrap();
    };
    past_the_guards("INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 900)").await;
    let sql = "INSERT INTO public.accounts (tenant_id, id, balance) VALUES ($1, 900, 77)";
    assert_eq!(bed.shard(2).await.execute(sql, &[&moved]).await.unwrap(), 1);
    let wanted = format!("move {id}: the way back has stopped at an error, which the log of shard 1 has");
    let begun = Instant::now();
    while !tool.run("moves").text.contains(&wanted) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", tool.run("moves").text);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let alone =
        format!("no shardctl runs it: mend what that log says, then shardctl resume {id} begins it again");
    tool.run("moves").check(0, &alone);
    let listed = tool.run("--json moves");
    let listed: Value = serde_json::from_str(&listed.text).unwrap();
    assert!(listed[0]["away"].as_str().unwrap_or_default().contains("has stopped"), "{listed}");
    tool.until_it_says(&format!("watch {id}"), "the way back has stopped at an error");
    tool.run(&format!("diff {id}")).check(exit::REFUSED, "the way back has stopped at an error");

    let said = tool.run(&format!("rollback {id}"));
    said.check(exit::GIVEN_UP, "it did so 5 times");
    said.check(exit::GIVEN_UP, &format!("then try again: shardctl rollback {id}"));
    // Its cause is gone, and the same is asked for again at once.
    past_the_guards("DELETE FROM public.accounts WHERE tenant_id = $1 AND id = 900").await;
    let said = tool.run(&format!("--json rollback {id}"));
    assert_eq!(said.status, 0, "{}", said.text);
    let lines: Vec<Value> = said
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.len() > 1, "{lines:?}");
    for line in &lines {
        assert!(line.get("away").is_some() && line.get("orphaned").is_some(), "{line}");
    }
    assert_eq!(bed.load(id).await.phase, Phase::RolledBack, "{}", bed.story(id).await);
    let sql = "SELECT balance FROM public.accounts WHERE tenant_id = $1 AND id = 900";
    assert_eq!(one.value::<i64>(sql, &[&moved]).await.unwrap(), 77);
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_that_is_gone_is_shown_without_a_runner() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    let (id, _) = window(&bed).await;
    let two = bed.shard(2).await;
    let slot = bed.load(id).await.publication(Way::Back);
    let begun = Instant::now();
    let end =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    while two.rows("SELECT pg_drop_replication_slot($1)", &[&slot]).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{slot} is always in use");
        two.rows(end, &[&slot]).await.unwrap();
    }
    let left = format!("only finish is left: shardctl finish {id}");
    tool.run("moves").check(0, &left);
    tool.until_it_says(&format!("watch {id}"), &left);
    let begun = Instant::now();
    tool.run(&format!("diff {id}")).check(exit::REFUSED, &left);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let said = tool.run(&format!("rollback {id}"));
    said.check(exit::GIVEN_UP, &left);
    assert!(!said.text.contains("shardctl rollback"), "{}", said.text);
    tool.run(&format!("finish {id}")).check(0, "done");
    bed.check_clean().await;
}

/// Each verb in each phase: SQL refuses what the program refuses, and in the same words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_refuses_what_the_verbs_refuse() {
    let bed = Bed::start(2).await;
    let id = bed.plan(&Scope::of_range(0, 15), 1, 2).await.id;
    for phase in Phase::ALL.into_iter().filter(|phase| !phase.is_over()) {
        for (wish, function) in [
            (Wish::Cutover, "cutover"),
            (Wish::Abort, "abort"),
            (Wish::Rollback, "roll_back"),
            (Wish::Finish, "finish"),
        ] {
            let before = "UPDATE shard_catalog.move SET phase = $2, detail = '{}' WHERE id = $1";
            bed.control.execute(before, &[&id, &phase.name()]).await.unwrap();
            let asked =
                bed.control.value::<String>(&format!("SELECT shard_catalog.{function}($1)"), &[&id]).await;
            let what = format!("{function} in {}", phase.name());
            match phase.resumed().granted(wish) {
                Ok(_) => {
                    asked.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                    assert_eq!(bed.load(id).await.wish(), Some(wish), "{what}");
                }
                Err(instead) => {
                    let error = format!("{:#}", asked.expect_err(&what));
                    let wanted = format!("move {id} is in phase {}: {instead}", phase.name());
                    assert!(error.contains(&wanted), "{what}: {error}");
                    assert_eq!(bed.load(id).await.wish(), None, "{what}");
                }
            }
        }
    }
}
