//! `--dry-run` of the verbs on one move: what it says, the status that the verb would have, and that nothing is written.

use std::time::{Duration, Instant};

use serde_json::Value;
use shardctl::exit;
use shardctl::mover::machine::Phase;
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::{Said, Tool};

struct Desk {
    bed: Bed,
    tool: Tool,
}

impl Desk {
    /// All that the catalog has of moves. A row that is written again, as it was, is another version of it.
    async fn catalog(&self) -> String {
        let sql = "SELECT concat_ws(E'\n',
            (SELECT string_agg(m.xmin || ' ' || m::text, E'\n' ORDER BY id) FROM shard_catalog.move m),
            (SELECT count(*) FROM shard_catalog.move_event), (SELECT string_agg(c.xmin || ' ' || c::text, ' ') FROM shard_catalog.control c),
            (SELECT string_agg(m.xmin || ' ' || m::text, E'\n' ORDER BY move_id) FROM shard_catalog.motion m),
            (SELECT count(*) FROM shard_catalog.map), (SELECT count(*) FROM shard_catalog.request))";
        self.bed.control.value(sql, &[]).await.unwrap()
    }

    async fn dry(&self, words: &str) -> Said {
        let before = self.catalog().await;
        let said = self.tool.run(&format!("{words} --dry-run"));
        assert_eq!(self.catalog().await, before, "{words}: {}", said.text);
        assert!(said.text.contains("nothing was changed"), "{words}: {}", said.text);
        said
    }

    async fn json(&self, words: &str) -> (u8, Value) {
        let before = self.catalog().await;
        let said = self.tool.run(&format!("{words} --dry-run --json"));
        assert_eq!(self.catalog().await, before, "{words}: {}", said.text);
        (said.status, serde_json::from_str(&said.text).unwrap())
    }

    async fn rows(&self, shard: u16, scope: &Scope) -> i64 {
        self.bed.rows(shard, scope).await.values().map(|(inside, _)| inside).sum()
    }
}

fn list(json: &Value) -> String {
    json.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verb_says_beforehand_what_it_would_do_and_writes_nothing() {
    let bed = Bed::start(3).await;
    let desk = Desk { tool: Tool::new(&bed), bed };
    let (bed, tool, scope) = (&desk.bed, &desk.tool, Scope::of_range(32, 39));
    let plan = tool.file("one.json");
    tool.run(&format!("plan move --buckets 32-39 --to 3 --save {plan}")).check(0, "Next");
    tool.run(&format!("apply {plan}")).check(0, "ready");
    let (two, three) = (bed.shard(2).await, bed.shard(3).await);
    let moving = desk.rows(2, &scope).await;
    assert!(moving > 50 && moving == desk.rows(3, &scope).await);

    // Before the cut-over.
    let said = desk.dry("cutover 1").await;
    said.check(0, "cutover of move 1 (buckets 32-39, shard 2 to 3, phase ready) would be granted\n");
    said.check(0, "and epoch 2 of the map gives them to shard 3\n");
    assert!(!said.text.contains("in the way now"), "{}", said.text);
    desk.dry("rollback 1")
        .await
        .check(exit::REFUSED, "would be refused: move 1 is in phase ready: nothing has flipped yet");
    desk.dry("finish 1")
        .await
        .check(exit::REFUSED, "would be refused: move 1 is in phase ready: only a move whose window");
    let said = desk.dry("abort 1").await;
    said.check(0, &format!("about {moving} rows of buckets 32-39 are deleted from shard 3, in small transactions (public.accounts "));
    said.check(0, "of shard 3 is taken down: slot shard_back_1, subscription shard_move_1, publication shard_back_1, guards of");
    desk.dry("resume 1").await.check(0, "it would: the move stays in phase ready");
    desk.dry("resume 1 --auto --finish").await.check(0, "it would: it goes on until the move is done");
    let (status, json) = desk.json("abort 1").await;
    assert_eq!(
        (status, &json["granted"], &json["why"], &json["status"]),
        (0, &true.into(), &Value::Null, &0.into())
    );
    assert_eq!((&json["rows_deleted"]["shard"], &json["rows_deleted"]["about"]), (&3.into(), &moving.into()));
    assert_eq!(json["taken_down"][0]["shard"], 2, "{json}");
    let (status, json) = desk.json("finish 1").await;
    assert_eq!(
        (status, &json["granted"], &json["rows_deleted"]),
        (exit::REFUSED, &false.into(), &Value::Null)
    );

    // What is in the way of it.
    let inside = (0..200).map(tenant).find(|t| (32..40).contains(&bucket(t))).unwrap();
    let writer = bed.direct(2).await;
    writer.batch_execute("BEGIN").await.unwrap();
    writer.execute("UPDATE public.accounts SET note = NULL WHERE tenant_id = $1", &[&inside]).await.unwrap();
    bed.control
        .run("INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, note, shards) \
              SELECT 'x', 'p9', '', '1009', clock_timestamp() + interval '10 minutes', version, version - 1, 1, 'client 7 of app', '{1,2,3}' \
              FROM shard_catalog.control")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let (status, json) = desk.json("cutover 1").await;
    let way = list(&json["in_the_way"]);
    assert!(way.contains("a transaction that wrote rows of the scope: pid "), "{way}");
    assert!(way.contains("proxy p9 waits for statements under way: client 7 of app"), "{way}");
    assert_eq!((status, &json["granted"]), (0, &true.into()), "it would wait for them");
    let way = list(&desk.json("abort 1").await.1["in_the_way"]);
    assert!(way.contains("proxy p9") && !way.contains("wrote rows"), "{way}");
    writer.batch_execute("ROLLBACK").await.unwrap();
    bed.control.run("DELETE FROM shard_catalog.proxy").await.unwrap();

    three.run("ALTER SUBSCRIPTION shard_move_1 DISABLE").await.unwrap();
    two.run("SELECT pg_logical_emit_message(false, '', repeat('x', 3000000))").await.unwrap();
    let said = desk.dry("cutover 1 --max-lag 1000000").await;
    said.check(exit::REFUSED, "would be refused: the target is up to ");
    said.check(exit::REFUSED, "behind, limit 976.6 KiB: wait, or raise --max-lag\n");
    said.check(exit::REFUSED, "in the way now: the flow to the target has stopped at an error");
    assert_eq!(tool.run("cutover 1 --max-lag 1000000").status, exit::REFUSED, "as the verb itself");
    three.run("ALTER SUBSCRIPTION shard_move_1 ENABLE").await.unwrap();

    // In the window.
    tool.run("cutover 1").check(0, "shard 3 owns buckets 32-39");
    desk.dry("cutover 1")
        .await
        .check(exit::REFUSED, "would be refused: move 1 is in phase window: the move has flipped already");
    desk.dry("abort 1").await.check(
        exit::REFUSED,
        "would be refused: move 1 is in phase window: the target owns the scope already",
    );
    let said = desk.dry("rollback 1").await;
    said.check(0, "what was written on shard 3 since the cut-over flows back to shard 2");
    said.check(0, "epoch 3 of the map gives them to shard 2");
    said.check(0, &format!("about {moving} rows of buckets 32-39 are deleted from shard 3"));
    let said = desk.dry("finish 1").await;
    said.check(0, &format!("about {moving} rows of buckets 32-39 are deleted from shard 2"));
    said.check(0, "of shard 2 is taken down: subscription shard_back_1");
    said.check(0, "of shard 3 is taken down: slot shard_back_1");
    desk.dry("finish 1 --source-lost").await.check(exit::FAILED, "answers: shardctl finish 1 is enough");

    // A shard is away, and comes back without a way to it.
    bed.pg[1].crash();
    desk.dry("finish 1").await.check(exit::FAILED, "in the way now: shard 2 does not answer");
    desk.dry("resume 1").await.check(exit::FAILED, "for long: shardctl finish 1 --source-lost");
    let said = desk.dry("finish 1 --source-lost").await;
    said.check(0, "it would: of shard 3 is taken down: slot shard_back_1");
    said.check(0, "what shard 2 has of buckets 32-39 stays hidden");
    desk.dry("finish 1 --source-lost --never-returns")
        .await
        .check(0, "it must never be started again with it");
    desk.dry("abort 1 --target-lost").await.check(exit::FAILED, "shard 3 owns the rows by now");
    let begun = Instant::now();
    while three.rows("SELECT pg_drop_replication_slot('shard_back_1')", &[]).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "its reader is gone");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bed.pg[1].resume();
    desk.dry("rollback 1").await.check(exit::GIVEN_UP, "in the way now: the way back is gone");
    tool.run("rollback 1").check(exit::GIVEN_UP, "only finish is left");

    tool.run("finish 1").check(0, "done");
    desk.dry("finish 1").await.check(0, "it would: change nothing: move 1 is over: done");
    for verb in ["rollback", "cutover", "abort", "resume"] {
        desk.dry(&format!("{verb} 1")).await.check(exit::REFUSED, "would be refused: move 1 is over: done");
    }
    assert_eq!(bed.load(1).await.phase, Phase::Done);
    for verb in ["cutover", "rollback", "finish", "abort", "resume", "reload"] {
        tool.run(&format!("{verb} --help")).check(0, "--dry-run");
    }
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A move that nobody has begun: its servers are asked nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_has_not_begun_has_nothing_to_take_down() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 7), 1, 2).await;
    let desk = Desk { tool: Tool::new(&bed), bed };
    desk.bed.pg[1].crash();
    let (status, json) = desk.json(&format!("abort {}", job.id)).await;
    assert_eq!((status, &json["granted"]), (0, &true.into()), "{json}");
    assert_eq!(list(&json["would"]), "the move ends as refused: nothing was changed on any server");
    // The verb would write that down before anything else, and could not.
    let away = async |statement: &str, is: bool| {
        for statement in [statement, "SELECT pg_reload_conf()"] {
            desk.bed.control.run(statement).await.unwrap();
        }
        let begun = Instant::now();
        let sql = "SELECT (current_setting('synchronous_standby_names') <> '') = $1";
        while !desk.bed.control.holds(sql, &[&is]).await.unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{statement}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    away("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", true).await;
    let (status, json) = desk.json(&format!("abort {}", job.id)).await;
    assert_eq!((status, &json["granted"]), (exit::FAILED, &true.into()), "{json}");
    assert!(
        list(&json["in_the_way"]).starts_with("the shard of the catalog: writes wait for a standby"),
        "{json}"
    );
    away("ALTER SYSTEM RESET synchronous_standby_names", false).await;
    desk.dry(&format!("cutover {}", job.id)).await.check(exit::FAILED, "shard 2 does not answer");
    desk.bed.pg[1].resume();
    desk.dry(&format!("cutover {}", job.id))
        .await
        .check(0, "it would: it is kept until the move is in phase ready\n");
}
