//! Verbs that only look, and what an operator sees of moves.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use shardctl::exit;
use shardctl::mover::job::Job;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::Tool;
use crate::verifying::wide_table;

fn json(tool: &Tool, words: &str) -> Value {
    let said = tool.run(&format!("--json {words}"));
    assert_eq!(said.status, 0, "{words}: {}", said.text);
    serde_json::from_str(&said.text).unwrap_or_else(|error| panic!("{words}: {error}: {}", said.text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diff_tenants_and_the_histories_say_what_is() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let (plan, two) = (tool.file("one.json"), tool.file("two.json"));
    let moving = (0..200).map(tenant).find(|t| bucket(t) < 8).unwrap();
    let pinned = (0..200).map(tenant).find(|t| bucket(t) > 40).unwrap();
    let (one, three) = (bed.shard(1).await, bed.shard(3).await);
    let sql = "INSERT INTO public.accounts (tenant_id, id, note) SELECT $1, n, to_jsonb(repeat('x', 500)) FROM generate_series(11, 510) n";
    one.execute(sql, &[&moving]).await.unwrap();

    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {plan}")).check(0, "Next");
    tool.run(&format!("apply {plan}")).check(0, "move 1 ready");
    for verb in ["diff", "verify"] {
        tool.run(&format!("{verb} 1")).check(0, "rows in 2 tables are equal on both shards");
    }
    // One row that both sides have is another one on the target.
    let origin = "SELECT pg_replication_origin_create('t'), pg_replication_origin_session_setup('t')";
    let end = "SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('t')";
    let change = "UPDATE public.accounts SET balance = balance + $2 WHERE tenant_id = $1 AND id = 77";
    three.run(origin).await.unwrap();
    // Without the application's trigger, which would change more.
    three.run("SET session_replication_role = replica").await.unwrap();
    assert_eq!(three.execute(change, &[&moving, &1_i64]).await.unwrap(), 1);
    let said = tool.run("diff 1");
    said.check(exit::DIFFERENT, &format!("move 1: rows differ: public.accounts: ({moving}, ab   , 77)"));
    let said = tool.run("--json diff 1");
    assert_eq!(said.status, exit::DIFFERENT, "{}", said.text);
    let found: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!((&found["equal"], &found["different"]), (&false.into(), &1.into()), "{found}");
    assert_eq!(three.execute(change, &[&moving, &-1_i64]).await.unwrap(), 1);
    three.run(end).await.unwrap();
    tool.run("diff 1").check(0, "are equal on both shards");

    tool.run("cutover 1").check(0, "shard 3 owns buckets 0-7");
    tool.run("diff 1").check(0, "are equal on both shards");
    // Its rows are on two shards, and count on the one that owns them.
    let largest = &json(&tool, "tenants --top 2")[0];
    assert_eq!((&largest["tenant"], &largest["shard"]), (&moving.to_string().into(), &3.into()));
    assert_eq!(largest["rows"], 513, "{largest}");
    assert_eq!(json(&tool, "tenants --top 2").as_array().unwrap().len(), 2);
    tool.run("tenants --top 1").check(0, &moving.to_string());
    tool.run("finish 1").check(0, "done");
    tool.run("diff 1").check(exit::REFUSED, "move 1 is in phase done: both sides are complete from");
    tool.run("diff 9").check(exit::FAILED, "there is no move 9");

    tool.run(&format!("plan isolate {pinned} --to 1 --save {two}")).check(0, "Next");
    tool.run(&format!("apply {two} --auto --finish")).check(0, "done: shard 1 owns");
    let epochs = json(&tool, "map --history");
    let epochs: Vec<_> = epochs.as_array().unwrap().iter().map(|epoch| epoch["epoch"].as_i64()).collect();
    assert_eq!(epochs, [Some(3), Some(2), Some(1)]);
    tool.run("map --history").check(0, "move 1: buckets 0-7 to shard 3");
    let changed = |from: i64, to: i64| json(&tool, &format!("map --diff {from} {to}"));
    let buckets = |from: i64, to: i64| serde_json::json!({ "what": "buckets 0-7", "from": from, "to": to });
    assert_eq!(changed(1, 2), serde_json::json!([buckets(1, 3)]));
    assert_eq!(changed(2, 1), serde_json::json!([buckets(3, 1)]));
    assert_eq!(changed(2, 2), serde_json::json!([]));
    let hash = crate::proxy::hash(&pinned).get();
    let tenant = serde_json::json!({ "what": format!("tenant hash {hash}"), "from": 2, "to": 1 });
    assert_eq!(changed(1, 3), serde_json::json!([buckets(1, 3), tenant]));
    tool.run("map --diff 1 9").check(exit::FAILED, "there is no epoch 9 in the map's history");

    let history = json(&tool, "history 1");
    assert_eq!(history["move"]["phase"], "done");
    let phases: Vec<_> =
        history["events"].as_array().unwrap().iter().filter_map(|event| event["phase"].as_str()).collect();
    let mut seen = phases.clone();
    seen.dedup();
    for phase in ["preflight", "copying", "ready", "fencing", "reversing", "window", "cleaning", "done"] {
        assert!(seen.contains(&phase), "{phase}: {seen:?}");
    }
    tool.run("history 1").check(0, "move 1: buckets 0-7 from shard 1 to shard 3\n");
    tool.run("history 1").check(0, "epoch 2: move 1: buckets 0-7 to shard 3");
    tool.run("history 9").check(exit::FAILED, "there is no move 9");
    bed.check_clean().await;
}

/// They need no server and no configuration.
#[test]
fn completions_and_the_manual_page_know_the_verbs() {
    let said = |words: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_shardctl")).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (shell, begins) in
        [("bash", "_shardctl()"), ("zsh", "#compdef shardctl"), ("fish", "complete -c shardctl")]
    {
        let text = said(&format!("completions {shell}"));
        assert!(text.contains(begins), "{shell}: {text}");
        for verb in ["rebalance", "cutover", "tenants", "target-lost"] {
            assert!(text.contains(verb), "{shell} does not know {verb}");
        }
    }
    let page = said("man");
    assert!(page.contains(".TH shardctl 1"), "{page}");
    for text in ["Exit status: 0 all is well", "shardctl\\-cutover(1)"] {
        assert!(page.contains(text), "{text} is not in {page}");
    }
}

/// Per cent are of what is still to be done in the phase.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_and_a_deletion_say_how_far_they_are() {
    let bed = Bed::start(2).await;
    wide_table(&bed, 1_000_000).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let part = |job: &Job| {
        let part = &job.detail["part"];
        let number = |name: &str| part[name].as_i64().unwrap_or(-1);
        (part["phase"].as_str().unwrap_or("").to_owned(), number("pages"), number("of"), number("rows"))
    };
    // In the middle of each, not only at its ends.
    let on_its_way = async |phase: Phase| {
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            let now = bed.load(job.id).await;
            let (of_phase, pages, of, rows) = part(&now);
            if now.phase == phase && of_phase == phase.name() && 0 < pages && pages < of {
                return (of, rows);
            }
            seen.push((now.phase, of_phase, pages, of));
            seen.dedup();
            assert!(begun.elapsed() < Duration::from_secs(120), "{phase:?}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let runner = bed.spawn(job.id, Options::default());
    let (of, _) = on_its_way(Phase::Verifying).await;
    assert!(of > 20_000, "{of} pages of both sides");
    let sql = "SELECT (progress ->> 'of')::int8 FROM shard_catalog.moves";
    assert_eq!(bed.control.value::<i64>(sql, &[]).await.unwrap(), of, "as SQL shows it");
    bed.ask(job.id, Wish::Abort).await;
    on_its_way(Phase::Clearing).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    let (phase, pages, of, rows) = part(&bed.load(job.id).await);
    assert_eq!((phase.as_str(), pages), ("clearing", of));
    assert!(rows > 1_000_000, "{rows} rows");
    bed.check_clean().await;
}
