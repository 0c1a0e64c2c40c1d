use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

#[test]
fn replies_come_in_the_order_of_the_messages() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 10_000).to_string(), cluster.key_on(1, 10_000).to_string());
    let mut raw = Raw::login();
    let insert = "INSERT INTO t VALUES ($1, $2, 'pipelined')";
    // Twice, so that the second round finds everything known and prepared.
    for round in ["1", "2"] {
        let answers = Batch::default()
            .parse("ins", insert)
            .parse("", "SELECT v, 1 FROM t WHERE k = $1 AND id = $2")
            .bind("ins", &[&a, round])
            .describe(b'P', "")
            .execute()
            .bind("", &[&a, round])
            .describe(b'P', "")
            .execute()
            .sync()
            .bind("ins", &[&b, round])
            .execute()
            .close(b'S', "ins")
            .sync()
            .sync()
            .run(&mut raw);
        let expected = [
            "1",
            "1",
            "2",
            "n",
            "CINSERT 0 1",
            "2",
            "T",
            "Dpipelined",
            "CSELECT 1",
            "ZI",
            "2",
            "CINSERT 0 1",
            "3",
            "ZI",
            "ZI",
        ];
        assert_eq!(answers, expected, "round {round}");
    }
}

#[test]
fn an_error_skips_to_sync() {
    let key = cluster().key_on(0, 11_000).to_string();
    let mut raw = Raw::login();
    let insert = "INSERT INTO t VALUES ($1, $2, 'x')";
    let answers = Batch::default()
        .parse("", insert)
        .bind("", &[&key, "1"])
        .execute()
        .bind("", &[&key, "1"])
        .execute()
        .parse("later", "SELECT 1")
        .bind("later", &[])
        .execute()
        .sync()
        .bind("later", &[])
        .sync()
        .run(&mut raw);
    assert_eq!(answers, ["1", "2", "CINSERT 0 1", "2", "E23505", "ZI", "E26000", "ZI"]);
    assert_eq!(
        raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")),
        "0",
        "one implicit transaction"
    );
    // The name was never taken.
    assert_eq!(Batch::default().parse("later", "SELECT 1").sync().run(&mut raw), ["1", "ZI"]);
    assert_eq!(Batch::default().parse("later", "SELECT 1").sync().run(&mut raw), ["E42P05", "ZI"]);
    assert_eq!(Batch::default().parse("", "SELEC 1").sync().run(&mut raw), ["E42601", "ZI"]);
    assert_eq!(
        Batch::default().parse("", "SELECT nothing FROM plain").sync().run(&mut raw),
        ["E42703", "ZI"]
    );
    assert_eq!(
        Batch::default().parse("", "").bind("", &[]).execute().sync().run(&mut raw),
        ["1", "2", "I", "ZI"]
    );
    assert_eq!(Batch::default().execute_portal("none", 0).sync().run(&mut raw), ["E34000", "ZI"]);
}

/// H20: a refusal in the middle of a pipeline takes back what came before it.
#[test]
fn h20_a_refused_statement_aborts_its_pipeline() {
    let key = cluster().key_on(0, 12_000);
    let text = key.to_string();
    let mut raw = Raw::login();
    let answers = Batch::default()
        .parse("", "INSERT INTO t VALUES ($1, 1, 'x')")
        .bind("", &[&text])
        .execute()
        .parse("", "SELECT 1 FROM t ORDER BY 1 FOR UPDATE")
        .bind("", &[])
        .execute()
        .sync()
        .run(&mut raw);
    assert_eq!(answers, ["1", "2", "CINSERT 0 1", "E0A000", "ZI"]);
    assert_eq!(cluster().on_shard(0, &format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
}

/// H20: a JDBC batch over two shards whose last row is wrong leaves no row.
#[test]
fn h20_a_batch_over_two_shards_is_all_or_nothing() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 13_000), cluster.key_on(1, 13_000));
    let (x, y) = (a.to_string(), b.to_string());
    let mut raw = Raw::login();
    let batch = Batch::default().parse("", "INSERT INTO t VALUES ($1, 1, 'x')");
    let batch = batch.bind("", &[&x]).execute().bind("", &[&y]).execute().bind("", &[&x]).execute().sync();
    let answers = batch.run(&mut raw);
    assert!(answers.iter().any(|a| a.starts_with('E')), "{answers:?}");
    assert_eq!(answers.last().map(String::as_str), Some("ZI"));
    for (shard, key) in [(0, a), (1, b)] {
        assert_eq!(cluster.on_shard(shard, &format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
    }
    assert_eq!(raw.value("SELECT 3"), "3");
}

#[test]
fn prepared_statements_survive_pooling() {
    let cluster = cluster();
    let keys: Vec<String> = (0..2).map(|shard| cluster.key_on(shard, 14_000).to_string()).collect();
    let mut clients: Vec<Raw> = (0..8).map(|_| Raw::login()).collect();
    for (n, raw) in clients.iter_mut().enumerate() {
        // The same name means another statement for each client.
        let text = format!("SELECT $1::bigint + {} WHERE $1 = $1", n % 4);
        assert_eq!(
            Batch::default().parse("s", &text).describe(b'S', "s").sync().run(raw),
            ["1", "t", "T", "ZI"]
        );
    }
    for _ in 0..5 {
        for (n, raw) in clients.iter_mut().enumerate() {
            for key in &keys {
                let expected = key.parse::<i64>().expect("a number") + (n % 4) as i64;
                let answers = Batch::default().bind("s", &[key]).execute().sync().run(raw);
                assert_eq!(
                    answers,
                    ["2".to_owned(), format!("D{expected}"), "CSELECT 1".into(), "ZI".into()]
                );
            }
        }
    }
    assert_eq!(clients[0].query("DEALLOCATE s"), ["CDEALLOCATE", "ZI"]);
    assert_eq!(Batch::default().bind("s", &["1"]).sync().run(&mut clients[0]), ["E26000", "ZI"]);
    assert_eq!(Batch::default().bind("s", &["1"]).sync().run(&mut clients[1]), ["2", "ZI"]);
}

#[test]
fn more_statements_than_a_server_keeps() {
    let mut raw = Raw::login();
    raw.query("SET shard.target = 1");
    for n in 0..shard_proxy::limits::SERVER_STATEMENTS + 50 {
        let text = format!("SELECT {n} + $1::int");
        let answers = Batch::default().parse("", &text).bind("", &["0"]).execute().sync().run(&mut raw);
        assert_eq!(answers[2], format!("D{n}"));
    }
    let held: u64 = raw.value("SELECT count(*) FROM pg_prepared_statements").parse().expect("a number");
    assert!(held <= shard_proxy::limits::SERVER_STATEMENTS as u64, "{held}");
    let answers =
        Batch::default().parse("", "SELECT 0 + $1::int").bind("", &["0"]).execute().sync().run(&mut raw);
    assert_eq!(answers, ["1", "2", "D0", "CSELECT 1", "ZI"]);
}

#[test]
fn now_is_not_frozen_by_sharing() {
    let mut raw = Raw::login();
    raw.query("SET shard.target = 1");
    let mut ask = || {
        Batch::default()
            .parse("", "SELECT 'now'::timestamptz::text")
            .bind("", &[])
            .execute()
            .sync()
            .run(&mut raw)[2]
            .clone()
    };
    let first = ask();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_ne!(first, ask());
}

#[test]
fn portals_with_row_limits() {
    let mut raw = Raw::login();
    assert_eq!(raw.query("BEGIN"), ["CBEGIN", "ZT"]);
    let answers = Batch::default()
        .parse("", "SELECT generate_series(1, 5)")
        .bind_portal("p", "", &[])
        .execute_portal("p", 2)
        .flush()
        .execute_portal("p", 2)
        .sync()
        .run(&mut raw);
    assert_eq!(answers, ["1", "2", "D1", "D2", "s", "D3", "D4", "s", "ZT"]);
    let answers = Batch::default().execute_portal("p", 0).close(b'P', "p").sync().run(&mut raw);
    assert_eq!(answers, ["D5", "CSELECT 1", "3", "ZT"]);
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    assert_eq!(Batch::default().execute_portal("p", 0).sync().run(&mut raw), ["E34000", "ZI"]);
}

#[test]
fn flush_is_answered_without_sync() {
    let mut raw = Raw::login();
    raw.send(&Batch::default().parse("f", "SELECT $1::int").describe(b'S', "f").flush().0);
    let tags: Vec<u8> = (0..3).map(|_| raw.message().expect("flushed").0).collect();
    assert_eq!(tags, b"1tT");
    raw.send(&Batch::default().bind("f", &["8"]).execute().flush().0);
    let tags: Vec<u8> = (0..3).map(|_| raw.message().expect("flushed").0).collect();
    assert_eq!(tags, b"2DC");
    assert_eq!(Batch::default().sync().run(&mut raw), ["ZI"]);
}

#[test]
fn a_changed_result_is_told_as_postgres_does() {
    let mut raw = Raw::login();
    raw.query("CREATE TABLE IF NOT EXISTS changing (a int)");
    assert_eq!(
        Batch::default().parse("c", "SELECT * FROM changing").describe(b'S', "c").sync().run(&mut raw),
        ["1", "t", "T", "ZI"]
    );
    assert_eq!(Batch::default().bind("c", &[]).execute().sync().run(&mut raw), ["2", "CSELECT 0", "ZI"]);
    raw.query("ALTER TABLE changing ADD COLUMN b int");
    let answers = Batch::default().bind("c", &[]).execute().sync().run(&mut raw);
    assert_eq!(answers, ["E0A000", "ZI"]);
    raw.query("DROP TABLE changing");
}

#[tokio::test]
async fn tokio_postgres_with_pipelining_and_transactions() {
    let config = format!("host=127.0.0.1 port={} user=app password=app dbname=db", cluster().proxy_port);
    let (mut client, connection) =
        tokio_postgres::connect(&config, tokio_postgres::NoTls).await.expect("connected");
    let task = tokio::spawn(connection);
    let key = cluster().key_on(1, 15_000);
    let insert = client.prepare("INSERT INTO t VALUES ($1, $2, $3)").await.expect("prepared");
    let select = client.prepare("SELECT v FROM t WHERE k = $1 AND id = $2").await.expect("prepared");
    let values: Vec<String> = (0..50).map(|n| format!("v{n}")).collect();
    let ids: Vec<i32> = (0..50).collect();
    let inserted = futures_util::future::join_all(ids.iter().map(|n| {
        let (client, insert, value) = (&client, &insert, &values[*n as usize]);
        async move { client.execute(insert, &[&key, n, value]).await }
    }))
    .await;
    assert!(inserted.into_iter().all(|result| result.expect("inserted") == 1));
    for n in &ids {
        let row = client.query_one(&select, &[&key, n]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), values[*n as usize]);
    }
    let transaction = client.transaction().await.expect("begun");
    transaction.execute("DELETE FROM t WHERE k = $1", &[&key]).await.expect("deleted");
    transaction.rollback().await.expect("rolled back");
    let row = client.query_one("SELECT count(*) FROM t WHERE k = $1", &[&key]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 50);
    let map = client.query("SHOW shard.map", &[]).await.expect("the map");
    assert_eq!((map.len(), map[1].get::<_, i32>(0), map[1].get::<_, i32>(2)), (2, 2048, 2));
    drop(client);
    task.await.expect("no panic").expect("a clean end");
}
