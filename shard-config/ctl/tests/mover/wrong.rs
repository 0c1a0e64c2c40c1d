//! Wrong use of the program: refused before anything is changed, with a status of its own and what to do next.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardctl::exit;
use shardctl::mover::machine::Phase;
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::{Said, Tool, ended};

async fn moves(bed: &Bed) -> i64 {
    bed.control.value("SELECT count(*) FROM shard_catalog.move", &[]).await.unwrap()
}

/// Ends one that does not end by itself.
async fn ended_within(mut child: Child, within: Duration) -> Said {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > within {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("it does not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ended(child)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_shard_is_refused_before_there_is_a_move() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let (one, two) = (tool.file("one.json"), tool.file("two.json"));
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {one}")).check(0, "Next");
    // To shard 2 first, and to shard 3 then.
    tool.run(&format!("plan drain 1 --weight 2=2 --save {two}")).check(0, "--auto");
    bed.pg[2].crash();
    for words in [
        format!("apply {one}"),
        format!("apply {one} --dry-run"),
        format!("apply {two} --auto --finish"),
        format!("apply {two} --dry-run"),
    ] {
        let said = tool.run(&words);
        said.check(exit::REFUSED, "PROBLEM  no primary of shard 3 can be reached");
        said.check(
            exit::REFUSED,
            "start it, or mend its address in the configuration, then say the same again",
        );
        said.check(exit::REFUSED, "nothing was changed");
    }
    // What is in the catalog would be begun by whoever serves, as soon as the shard is back.
    assert_eq!(moves(&bed).await, 0);
    tool.run(&format!("apply {two} --auto")).check(
        exit::REFUSED,
        &format!("steps not begun: 2\ngo on: the map is as it was: shardctl apply {two} --auto\n"),
    );
    bed.pg[2].resume();
    tool.run(&format!("apply {two} --auto --finish")).check(0, "2 moves are made: [1, 2]");
    assert_eq!(moves(&bed).await, 2);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_plan_and_a_second_move_are_refused() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let (one, two) = (tool.file("one.json"), tool.file("two.json"));
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {one}")).check(0, "Next");
    tool.run(&format!("plan move --buckets 7-9 --to 2 --save {two}")).check(0, "Next");
    tool.run(&format!("apply {one}")).check(0, "move 1 ready");
    for words in [format!("apply {two}"), format!("apply {two} --dry-run")] {
        tool.run(&words).check(
            exit::REFUSED,
            "move 1 has buckets 0-7 under way: wait for it (shardctl watch 1), or end it: shardctl abort 1",
        );
    }
    tool.run("cutover 1").check(0, "shard 3 owns buckets 0-7");
    tool.run("finish 1").check(0, "done");
    let before = moves(&bed).await;
    for words in [format!("apply {one}"), format!("apply {two} --auto"), format!("apply {one} --dry-run")] {
        let stale = "the plan was made for epoch 1 of the map, which is at epoch 2 now: plan again";
        tool.run(&words).check(exit::STALE, stale);
    }
    assert_eq!(moves(&bed).await, before);
    tool.run("apply /nowhere/plan.json").check(exit::FAILED, "/nowhere/plan.json");
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Of every step of a plan, in one answer, and each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_is_wrong_with_any_step() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("plan.json");
    tool.run(&format!("plan drain 1 --weight 2=2 --max-buckets 8 --save {plan}")).check(0, "--auto");
    let steps: Value = serde_json::from_str(&std::fs::read_to_string(&plan).unwrap()).unwrap();
    let to_three = steps["steps"].as_array().unwrap().iter().filter(|step| step["target"] == 3).count();
    tool.run(&format!("apply {plan} --dry-run")).check(0, "everything that was checked is well");
    let rows = (0..200).map(tenant).filter(|t| bucket(t) < 32);
    for (shard, sql) in [
        (
            1,
            "CREATE TABLE public.child (t uuid, c char(5), a int, FOREIGN KEY (t, c, a) REFERENCES public.accounts)",
        ),
        (2, "ALTER TABLE public.accounts ADD COLUMN more int"),
        (3, "ALTER TABLE public.entries ALTER amount SET DEFAULT 7"),
    ] {
        bed.shard(shard).await.run(sql).await.unwrap();
    }
    let said = tool.run(&format!("apply {plan} --dry-run"));
    for text in [
        "child, which is not sharded, refers to public.accounts",
        "\"public\".\"accounts\" is not defined alike on shards 1 and 2",
        "\"public\".\"entries\" is not defined alike on shards 1 and 3",
    ] {
        said.check(exit::REFUSED, text);
        assert_eq!(said.text.matches(text).count(), 1, "{}", said.text);
    }
    assert_eq!(moves(&bed).await, 0);
    for (shard, sql) in [
        (1, "DROP TABLE public.child"),
        (2, "ALTER TABLE public.accounts DROP COLUMN more"),
        (3, "ALTER TABLE public.entries ALTER amount DROP DEFAULT"),
    ] {
        bed.shard(shard).await.run(sql).await.unwrap();
    }
    // What is in the way of some steps is said of each of them.
    let three = bed.shard(3).await;
    for tenant in rows {
        three
            .execute("INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 1)", &[&tenant])
            .await
            .unwrap();
    }
    let said = tool.run(&format!("apply {plan} --dry-run"));
    said.check(exit::REFUSED, "shard 3 has rows of buckets");
    assert!(to_three >= 2, "{steps}");
    assert_eq!(said.text.matches("PROBLEM").count(), to_three, "{}", said.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_over_to_a_target_that_is_far_behind_is_refused() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("one.json");
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {plan}")).check(0, "Next");
    tool.run(&format!("apply {plan}")).check(0, "move 1 ready");
    let (one, three) = (bed.shard(1).await, bed.shard(3).await);
    three.run("ALTER SUBSCRIPTION shard_move_1 DISABLE").await.unwrap();
    one.run("INSERT INTO public.plain SELECT generate_series(1, 50000)").await.unwrap();
    let before = bed.load(1).await;
    let said = tool.run("cutover 1 --max-lag 1000000");
    said.check(exit::REFUSED, "MiB behind, limit 976.6 KiB: wait, or raise --max-lag; nothing was changed");
    let after = bed.load(1).await;
    assert_eq!((after.phase, &after.detail), (Phase::Ready, &before.detail), "nothing is asked for");

    // By whoever asks and at any time, no attempt is made while it is so. First by a limit that no lag keeps.
    bed.load(1).await.set(&bed.control, json!({ "wish": "cutover", "max_lag": -1 })).await.unwrap();
    let runner = bed.spawn(1, Options::default());
    let waits_for = async |limit: &str| {
        let begun = Instant::now();
        let text = format!("the cut-over waits for the target, which is more than {limit} of WAL behind");
        while bed.load(1).await.text("waits_for") != Some(&text) {
            let waits = begun.elapsed() < Duration::from_secs(90) && !bed.load(1).await.phase.target_owns();
            assert!(waits, "{}", bed.story(1).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    waits_for("-1 B").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bed.load(1).await.phase, Phase::Ready, "{}", bed.story(1).await);
    // Then by one that a target does not keep which cannot write.
    let lock = bed.shard(3).await;
    // A comparison that is under way waits for a minute before the limit is looked at again.
    lock.run("SET idle_in_transaction_session_timeout = 0").await.unwrap();
    lock.run("BEGIN; LOCK TABLE public.accounts IN SHARE MODE").await.unwrap();
    let moving = (0..200).map(tenant).find(|t| bucket(t) < 8).unwrap();
    one.run(&format!(
        "BEGIN; UPDATE public.accounts SET note = NULL WHERE tenant_id = '{moving}';
         SELECT pg_logical_emit_message(true, '', repeat('x', 3000000));
         UPDATE shard_catalog.move SET detail = detail || '{{\"max_lag\": 200000}}' WHERE id = 1; COMMIT"
    ))
    .await
    .unwrap();
    waits_for("195.3 KiB").await;
    assert!(!bed.story(1).await.contains("attempt 1"), "{}", bed.story(1).await);
    lock.run("ROLLBACK").await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Waiting, "{}", bed.story(1).await);
    assert_eq!(bed.load(1).await.phase, Phase::Window, "{}", bed.story(1).await);
    tool.run("finish 1").check(0, "done");
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_over_whose_attempts_are_used_up_is_given_up() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let scope = Scope::of_range(0, 7);
    let plan = tool.file("one.json");
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {plan}")).check(0, "Next");
    tool.run(&format!("apply {plan}")).check(0, "move 1 ready");
    // A proxy that follows as long as nobody is held: what is seen before an attempt is well, and every attempt fails.
    bed.control
        .run("INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, shards, note) \
              VALUES ('a', 'slow', '10.0.0.1:7', '8000', clock_timestamp() + interval '10 minutes', 1, 1, 1, '{1,2,3}', 'client 12')")
        .await
        .unwrap();
    let follower = bed.servers.control("test").await.unwrap();
    let follower = tokio::spawn(async move {
        let sql = "UPDATE shard_catalog.proxy p SET version = c.version, drained = c.version FROM shard_catalog.control c \
                   WHERE p.drained <> c.version AND NOT EXISTS (SELECT FROM shard_catalog.motion WHERE stage = 'holding')";
        loop {
            follower.execute(sql, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    bed.load(1).await.set(&bed.control, json!({ "wish": "cutover", "attempts": 18 })).await.unwrap();
    let said = ended_within(tool.start("resume 1"), Duration::from_secs(60)).await;
    said.check(exit::GIVEN_UP, "move 1: 20 attempts failed; the last one: not cut over after");
    said.check(exit::GIVEN_UP, "proxy slow");
    said.check(exit::GIVEN_UP, "everything is as before the cut-over; try again: shardctl cutover 1");
    let job = bed.load(1).await;
    assert_eq!((job.wish(), job.number("attempts")), (None, Some(0)), "{}", bed.story(1).await);
    for pause in job.detail["pauses"].as_array().unwrap() {
        // 500 is measured (`cargo compare -- rebalance`), where nothing else keeps the processors.
        assert!(pause["ms"].as_i64().unwrap() <= 1000, "{pause}");
    }
    assert!(bed.rows(1, &scope).await["accounts"].0 > 0);
    follower.abort();
    bed.control.run("DELETE FROM shard_catalog.proxy").await.unwrap();
    tool.run("cutover 1").check(0, "shard 3 owns buckets 0-7");
    tool.run("finish 1").check(0, "done");
    bed.check_rows(0).await;
    bed.check_clean().await;
}
