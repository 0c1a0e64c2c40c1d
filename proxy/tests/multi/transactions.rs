//! One transaction over several shards, and statements for all of them.

use crate::proxy::{World, code, key, keys};

/// One world for all of it: four servers are dear. Each part cleans up behind itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_four_shards() {
    let world = World::start("multi-tx").await;
    ddl_runs_on_all_shards_or_on_none(&world).await;
    h20_an_implicit_transaction_over_four_shards_is_atomic(&world).await;
    a_block_over_shards_commits_and_rolls_back(&world).await;
    h21_an_error_on_one_shard_fails_the_block_on_all(&world).await;
    h21_savepoints_reach_shards_that_join_later(&world).await;
    a_split_insert_keeps_order_types_and_tags(&world).await;
    reference_writes_reach_all_shards(&world).await;
    several_statements_in_one_message(&world).await;
    two_phases_leave_nothing_behind(&world).await;
    world.empty().await;
    what_joins_later_does_not_repeat_a_message(&world).await;
    a_target_does_not_redirect_the_end_of_a_block(&world).await;
    h16_a_lost_participant_takes_the_others_back(&world).await;
}

async fn what_joins_later_does_not_repeat_a_message(world: &World) {
    let (a, b, c) = (key(1), key(2), key(3));
    let mut raw = crate::copies::Raw::connect(world.proxy.port).await;
    raw.query("BEGIN").await;
    let text = format!(
        "SET LOCAL statement_timeout = 5000; SET LOCAL lock_timeout = 4000; INSERT INTO t VALUES ({a}, 1)"
    );
    assert_eq!(raw.query(&text).await, ["CSET", "CSET", "CINSERT 0 1", "ZT"]);
    // Fails unless both settings have reached shard 2.
    let settings = "current_setting('statement_timeout') || current_setting('lock_timeout')";
    let text = format!("INSERT INTO t VALUES ({b}, CASE WHEN {settings} = '5s4s' THEN 1 END)");
    assert_eq!(raw.query(&text).await, ["CINSERT 0 1", "ZT"]);
    assert_eq!(raw.query("COMMIT").await, ["CCOMMIT", "ZI"]);
    assert_eq!(world.counts().await, [1, 1, 0, 0]);
    raw.query("BEGIN").await;
    raw.query(&format!("INSERT INTO t VALUES ({a}, 2)")).await;
    let text = format!("SAVEPOINT s; INSERT INTO t VALUES ({a}, 3)");
    assert_eq!(raw.query(&text).await, ["CSAVEPOINT", "CINSERT 0 1", "ZT"]);
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({c}, 1)")).await, ["CINSERT 0 1", "ZT"]);
    assert_eq!(
        world
            .each(
                "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'RowExclusiveLock'"
            )
            .await,
        [1, 0, 1, 0]
    );
    assert_eq!(raw.query("ROLLBACK TO s").await, ["CROLLBACK", "ZT"]);
    assert_eq!(raw.query("COMMIT").await, ["CCOMMIT", "ZI"]);
    assert_eq!(world.counts().await, [2, 1, 0, 0]);
    world.empty().await;
}

async fn a_target_does_not_redirect_the_end_of_a_block(world: &World) {
    let mut raw = crate::copies::Raw::connect(world.proxy.port).await;
    raw.query("BEGIN").await;
    raw.query(&format!("INSERT INTO t VALUES ({}, 1)", key(1))).await;
    raw.query("SET shard.target = '2'").await;
    assert_eq!(raw.query("COMMIT").await, ["CCOMMIT", "ZI"]);
    assert_eq!(world.counts().await, [1, 0, 0, 0]);
    // A COMMIT behind a statement for another shard ends both parts.
    raw.query("SET shard.target = ''").await;
    raw.query("BEGIN").await;
    raw.query(&format!("INSERT INTO t VALUES ({}, 2)", key(1))).await;
    let both = raw.query(&format!("INSERT INTO t VALUES ({}, 2); COMMIT", key(2))).await;
    assert_eq!(both, ["CINSERT 0 1", "CCOMMIT", "ZI"]);
    assert_eq!(world.counts().await, [2, 1, 0, 0]);
    world.empty().await;
}

async fn h16_a_lost_participant_takes_the_others_back(world: &World) {
    let lose = async |shard: usize| {
        let kill =
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'app'";
        world.cluster.primaries[shard].client("postgres").await.query_one(kill, &[]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    let mut raw = crate::copies::Raw::connect(world.proxy.port).await;
    for (ending, answer) in [("COMMIT", "E08006"), ("ROLLBACK", "CROLLBACK")] {
        raw.query("BEGIN").await;
        raw.query(&format!("INSERT INTO t VALUES ({}, 1)", key(1))).await;
        raw.query(&format!("INSERT INTO t VALUES ({}, 1)", key(2))).await;
        lose(1).await;
        if ending == "ROLLBACK" {
            let more = format!("INSERT INTO t VALUES ({}, 1); SELECT 1", key(3));
            // First of all why, and once: from 25P02 nobody can tell that it may be tried again.
            assert_eq!(raw.query(&more).await, ["E08006", "ZE"]);
            assert_eq!(raw.query(&more).await, ["E25P02", "ZE"]);
        }
        assert_eq!(raw.query(ending).await, [answer, "ZI"]);
        assert_eq!(world.counts().await, [0; 4]);
    }
    // The same within one extended batch.
    raw.send("INSERT INTO t VALUES ($1, $2, 'lost')", &[(key(1), 1), (key(2), 1)], false).await;
    assert_eq!(raw.answers(2).await, ["CINSERT 0 1"; 2]);
    lose(1).await;
    assert_eq!(raw.sync().await, ["E08007", "ZI"]);
    assert_eq!(world.counts().await, [0; 4]);
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({}, 1)", key(2))).await, ["CINSERT 0 1", "ZI"]);
    world.empty().await;
}

async fn ddl_runs_on_all_shards_or_on_none(world: &World) {
    let client = world.proxy.client().await;
    let exists = "SELECT count(*) FROM pg_class WHERE relname = 'made'";
    client.batch_execute("CREATE TABLE made (k int8 PRIMARY KEY)").await.unwrap();
    assert_eq!(world.each(exists).await, [1; 4]);
    // The next statement of the same client knows the table.
    client.execute("INSERT INTO made VALUES ($1)", &[&key(3)]).await.unwrap();
    client.batch_execute("DROP TABLE made").await.unwrap();
    assert_eq!(world.each(exists).await, [0; 4]);

    // Shard 3 has a table of that name already.
    let third = world.cluster.primaries[2].client("app").await;
    third.batch_execute("CREATE VIEW made AS SELECT 1 AS one").await.unwrap();
    let error = client.batch_execute("CREATE TABLE made (k int8 PRIMARY KEY)").await.unwrap_err();
    assert_eq!(code(&error), "42P07");
    assert_eq!(world.each(exists).await, [0, 0, 1, 0], "no shard kept its part");
    third.batch_execute("DROP VIEW made").await.unwrap();

    client.batch_execute("BEGIN; CREATE TABLE made (k int8 PRIMARY KEY)").await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(world.each(exists).await, [0; 4]);
}

async fn h20_an_implicit_transaction_over_four_shards_is_atomic(world: &World) {
    let client = world.proxy.client().await;
    let insert = client.prepare("INSERT INTO t VALUES ($1, $2, $3)").await.unwrap();
    let rows: Vec<(i64, i32)> = (1..=4).map(|shard| (key(shard), 1)).chain([(key(1), 1)]).collect();
    // As pgjdbc sends a batch in autocommit: all messages, then one Sync. tokio-postgres has no such call, so the
    // raw protocol does it.
    let mut raw = crate::copies::Raw::connect(world.proxy.port).await;
    let error = raw.batch("INSERT INTO t VALUES ($1, $2, 'batch')", &rows).await;
    assert_eq!(error.as_deref(), Some("23505"), "the last row is there already");
    assert_eq!(world.counts().await, [0; 4]);
    let error = raw.batch("INSERT INTO t VALUES ($1, $2, 'batch')", &rows[..4]).await;
    assert_eq!(error, None);
    assert_eq!(world.counts().await, [1; 4]);
    // The connection is as good as before.
    client.execute(&insert, &[&key(2), &9i32, &"one"]).await.unwrap();
    world.empty().await;
    world.settled().await;
}

async fn a_block_over_shards_commits_and_rolls_back(world: &World) {
    let mut client = world.proxy.client().await;
    for (commit, expected) in [(false, [0; 4]), (true, [1, 1, 1, 0])] {
        let transaction = client.transaction().await.unwrap();
        for shard in [3, 1, 2] {
            let inserted =
                transaction.execute("INSERT INTO t VALUES ($1, 1, 'block')", &[&key(shard)]).await.unwrap();
            assert_eq!(inserted, 1);
        }
        let seen = transaction.query_one("SELECT note FROM t WHERE k = $1", &[&key(1)]).await.unwrap();
        assert_eq!(seen.get::<_, String>(0), "block");
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        assert_eq!(world.counts().await, expected);
    }
    for shard in 1..=3 {
        client.execute("DELETE FROM t WHERE k = $1", &[&key(shard)]).await.unwrap();
    }
}

async fn h21_an_error_on_one_shard_fails_the_block_on_all(world: &World) {
    let client = world.proxy.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 1)", &[&key(1)]).await.unwrap();
    let error = client.execute("INSERT INTO t VALUES ($1, NULL)", &[&key(2)]).await.unwrap_err();
    assert_eq!(code(&error), "23502");
    let error = client.execute("INSERT INTO t VALUES ($1, 2)", &[&key(1)]).await.unwrap_err();
    assert_eq!(code(&error), "25P02", "the healthy shard refuses, too");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.counts().await, [0; 4], "COMMIT of a failed block rolls back everywhere");
}

async fn h21_savepoints_reach_shards_that_join_later(world: &World) {
    let client = world.proxy.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 1)", &[&key(1)]).await.unwrap();
    client.batch_execute("SAVEPOINT a").await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 1)", &[&key(2)]).await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 2)", &[&key(1)]).await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 2)", &[&key(1)]).await.unwrap_err();
    client.batch_execute("ROLLBACK TO a").await.unwrap();
    client.execute("INSERT INTO t VALUES ($1, 3)", &[&key(2)]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.each("SELECT coalesce(sum(id), 0) FROM t").await, [1, 3, 0, 0]);
    for shard in 1..=2 {
        client.execute("DELETE FROM t WHERE k = $1", &[&key(shard)]).await.unwrap();
    }
}

async fn a_split_insert_keeps_order_types_and_tags(world: &World) {
    let client = world.proxy.client().await;
    let (a, b, c) = (key(4), key(1), key(2));
    // Types of the parameters are inferred by the server: none is declared.
    let sql = "INSERT INTO t VALUES ($1, 1, $4), ($2, 2, $4), ($3, 3, 'z') RETURNING k, id, note";
    let rows = client.query(sql, &[&a, &b, &c, &"y"]).await.unwrap();
    let rows: Vec<(i64, i32, String)> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    assert_eq!(rows, [(a, 1, "y".to_owned()), (b, 2, "y".to_owned()), (c, 3, "z".to_owned())]);
    assert_eq!(world.counts().await, [1, 1, 0, 1]);

    // Simple protocol, tag summed; and the row that is there already takes all of it back.
    let text = format!("INSERT INTO t VALUES ({a}, 10), ({b}, 11), ({c}, 12)");
    let done = client.simple_query(&text).await.unwrap();
    assert!(done.iter().any(|m| matches!(m, tokio_postgres::SimpleQueryMessage::CommandComplete(3))));
    let text = format!("INSERT INTO t VALUES ({a}, 20), ({b}, 11)");
    assert_eq!(code(&client.simple_query(&text).await.unwrap_err()), "23505");
    assert_eq!(world.counts().await, [2, 2, 0, 2]);
    let skipped = client.execute(&format!("{text} ON CONFLICT DO NOTHING"), &[]).await.unwrap();
    assert_eq!(skipped, 1);

    // In a block it is a part of it.
    client.batch_execute("BEGIN").await.unwrap();
    client.simple_query(&format!("INSERT INTO t VALUES ({a}, 30), ({b}, 31)")).await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    world.empty().await;
}

async fn reference_writes_reach_all_shards(world: &World) {
    let client = world.proxy.client().await;
    let written = client.execute("INSERT INTO rates VALUES ('EUR', 1), ('USD', 2)", &[]).await.unwrap();
    assert_eq!(written, 2, "counted once");
    assert_eq!(world.each("SELECT count(*) FROM rates").await, [2; 4]);
    let changed = client.execute("UPDATE rates SET rate = $1 WHERE code = 'USD'", &[&7i32]).await.unwrap();
    assert_eq!(changed, 1);
    assert_eq!(world.each("SELECT sum(rate) FROM rates").await, [8; 4]);

    // A shard that has another row makes the write fail on all.
    let second = world.cluster.primaries[1].client("postgres").await;
    second.batch_execute("DELETE FROM rates WHERE code = 'EUR'").await.unwrap();
    let error = client.execute("UPDATE rates SET rate = 0", &[]).await.unwrap_err();
    assert_eq!(code(&error), "XX001");
    assert_eq!(world.each("SELECT sum(rate) FROM rates").await, [8, 7, 8, 8]);
    second.batch_execute("INSERT INTO rates VALUES ('EUR', 1)").await.unwrap();
}

async fn several_statements_in_one_message(world: &World) {
    let client = world.proxy.client().await;
    let (a, b) = (key(1), key(4));
    client
        .batch_execute(&format!("INSERT INTO t VALUES ({a}, 50); INSERT INTO t VALUES ({b}, 50)"))
        .await
        .unwrap();
    let twice = format!("INSERT INTO t VALUES ({a}, 51); INSERT INTO t VALUES ({b}, 50)");
    assert_eq!(code(&client.batch_execute(&twice).await.unwrap_err()), "23505");
    let of = "SELECT count(*) FROM t WHERE id >= 50";
    assert_eq!(world.each(of).await, [1, 0, 0, 1], "one implicit transaction");
    client.batch_execute(&format!("DELETE FROM t WHERE k = {a}; DELETE FROM t WHERE k = {b}")).await.unwrap();
    assert_eq!(world.each(of).await, [0; 4]);
}

async fn two_phases_leave_nothing_behind(world: &World) {
    let client = world.proxy.client().await;
    for id in 0..5 {
        let rows: Vec<String> = (1..=4).flat_map(|s| keys(s, 3)).map(|k| format!("({k}, {id})")).collect();
        client.simple_query(&format!("INSERT INTO t VALUES {}", rows.join(","))).await.unwrap();
    }
    assert_eq!(
        world.each("SELECT count(*) FROM t WHERE id < 5 AND note IS NULL").await.iter().sum::<i64>() % 12,
        0
    );
    world.settled().await;
    // Every participant but the first has its own row (H4), the first the decision.
    assert!(world.each("SELECT count(*) FROM shard_catalog.decision").await[0] > 0);
    assert!(world.each("SELECT count(*) FROM shard_catalog.applied").await[3] > 0);
}
