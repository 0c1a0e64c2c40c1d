//! Rows of several shards a few at a time (portals and cursors), as a COPY, and explained; and what reading them costs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::copies::Raw;
use crate::proxy::{World, code, key};

async fn text(client: &Client, sql: &str) -> Vec<String> {
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_owned()).collect::<Vec<_>>().join("|"),
        ),
        SimpleQueryMessage::CommandComplete(count) => Some(format!("rows {count}")),
        SimpleQueryMessage::RowDescription(columns) if sql.starts_with("FETCH") => {
            Some(columns.iter().map(|column| column.name().to_owned()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    match client.simple_query(sql).await {
        Ok(messages) => messages.into_iter().filter_map(row).collect(),
        Err(error) => vec![code(&error)],
    }
}

/// `setFetchSize`: the same rows in the same portions, in a block and out of it.
pub async fn portals_give_as_many_rows_as_asked_for(one: &mut Client, four: &mut Client) {
    for sql in [
        "SELECT k, id::int8 FROM t ORDER BY k, id",
        "SELECT id::int8, count(*) FROM t GROUP BY id ORDER BY id",
    ] {
        let mut portions = Vec::new();
        for client in [&mut *one, &mut *four] {
            let transaction = client.transaction().await.unwrap();
            let portal = transaction.bind(sql, &[]).await.unwrap();
            let mut found: Vec<Vec<(i64, i64)>> = Vec::new();
            loop {
                let rows = transaction.query_portal(&portal, 3).await.unwrap();
                // Another statement between two portions.
                transaction.query_one("SELECT count(*) FROM rates", &[]).await.unwrap();
                let count = rows.len();
                found.push(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
                if count < 3 {
                    break;
                }
            }
            transaction.commit().await.unwrap();
            portions.push(found);
        }
        assert_eq!(portions[0], portions[1], "{sql}");
    }
    // Each shard by itself: no order, but every row once, in portions of that size.
    let transaction = four.transaction().await.unwrap();
    let portal = transaction.bind("SELECT k, id FROM t", &[]).await.unwrap();
    let other = transaction.bind("SELECT k FROM t WHERE id = $1", &[&1i32]).await.unwrap();
    let mut found: Vec<(i64, i32)> = Vec::new();
    let mut others = 0;
    loop {
        let rows = transaction.query_portal(&portal, 4).await.unwrap();
        others += transaction.query_portal(&other, 1).await.unwrap_or_default().len();
        found.extend(rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i32>(1))));
        if rows.len() < 4 {
            break;
        }
    }
    drop(transaction);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 30);
    assert!(others > 3, "both portals went on: {others}");
}

/// DECLARE, FETCH in all directions, MOVE, CLOSE, and their end with a savepoint or the transaction.
pub async fn cursors_are_equal(one: &Client, four: &Client) {
    let script = [
        "BEGIN",
        "DECLARE c SCROLL CURSOR FOR SELECT k, id, note FROM t ORDER BY k, id",
        "FETCH 3 FROM c",
        "INSERT INTO t VALUES (0, 0, 'not seen by c')",
        "FETCH PRIOR FROM c",
        "MOVE 5 IN c",
        "FETCH NEXT FROM c",
        "FETCH ABSOLUTE 2 FROM c",
        "DECLARE g NO SCROLL CURSOR FOR SELECT id, count(*), sum(k) FROM t WHERE id > 0 GROUP BY id ORDER BY id",
        "FETCH 2 FROM g",
        "SAVEPOINT twice",
        "DECLARE g CURSOR FOR SELECT k FROM t ORDER BY k",
        "ROLLBACK TO twice",
        "FETCH LAST FROM c",
        "FETCH ALL FROM g",
        "FETCH BACKWARD 1 FROM g",
        "ROLLBACK",
        "BEGIN",
        "DECLARE c CURSOR FOR SELECT k FROM t WHERE id = 1 ORDER BY k",
        "SAVEPOINT a",
        "DECLARE d CURSOR FOR SELECT k FROM t WHERE id = 2 ORDER BY k",
        "FETCH 1 FROM d",
        "ROLLBACK TO a",
        "FETCH 1 FROM c",
        "CLOSE c",
        "FETCH 1 FROM c",
        "ROLLBACK",
        "FETCH 1 FROM c",
        "DECLARE c CURSOR FOR SELECT k FROM t ORDER BY k",
        "SELECT count(*) FROM t",
    ];
    for sql in script {
        assert_eq!(text(one, sql).await, text(four, sql).await, "{sql}");
    }
    // The rows are computed when the cursor is declared, and so is their error.
    four.batch_execute("BEGIN").await.unwrap();
    assert_eq!(text(four, "DECLARE c CURSOR FOR SELECT 1 / (k - 3) FROM t ORDER BY k").await, ["22012"]);
    assert_eq!(text(four, "FETCH ALL FROM c").await, ["25P02"]);
    four.batch_execute("ROLLBACK").await.unwrap();
    four.batch_execute("BEGIN").await.unwrap();
    assert_eq!(text(four, "DECLARE h CURSOR WITH HOLD FOR SELECT k FROM t ORDER BY k").await, ["0A000"]);
    four.batch_execute("ROLLBACK").await.unwrap();
}

async fn copied(client: &Client, sql: &str) -> Vec<u8> {
    let stream = client.copy_out(sql).await.unwrap();
    let mut stream = std::pin::pin!(stream);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk: Bytes = chunk.unwrap();
        all.extend_from_slice(&chunk);
    }
    all
}

pub async fn copies_out_are_equal(one: &Client, four: &Client) {
    for sql in [
        "COPY (SELECT k, id, note FROM t ORDER BY k, id) TO STDOUT",
        "COPY (SELECT id, count(*) FROM t GROUP BY id ORDER BY id) TO STDOUT (FORMAT csv, HEADER)",
        "COPY (SELECT k, amount FROM o ORDER BY k, id) TO STDOUT WITH (FORMAT binary)",
        "COPY t TO STDOUT",
        "COPY t (id, note) TO STDOUT (FORMAT csv, HEADER, DELIMITER ';')",
        "COPY t TO STDOUT (HEADER)",
        "COPY (SELECT k, note FROM t WHERE id = 1) TO STDOUT CSV HEADER",
    ] {
        let (mut expected, mut found) = (copied(one, sql).await, copied(four, sql).await);
        if !sql.contains("ORDER BY") {
            let sorted = |bytes: &[u8]| {
                let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
                // The header stays the first.
                let from = usize::from(sql.contains("HEADER"));
                lines[from..].sort_unstable();
                lines.concat()
            };
            (expected, found) = (sorted(&expected), sorted(&found));
        }
        assert_eq!(String::from_utf8_lossy(&expected), String::from_utf8_lossy(&found), "{sql}");
    }
    // A binary stream is good when a server takes it.
    let binary = copied(four, "COPY t TO STDOUT (FORMAT binary)").await;
    one.batch_execute("CREATE TEMP TABLE taken (LIKE t)").await.unwrap();
    {
        use futures_util::SinkExt;
        let sink = one.copy_in("COPY taken FROM STDIN (FORMAT binary)").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        sink.send(Bytes::from(binary)).await.unwrap();
        assert_eq!(sink.finish().await.unwrap(), 30);
    }
    let same = "SELECT count(*) FROM taken JOIN t USING (k, id) WHERE taken.note IS NOT DISTINCT FROM t.note";
    assert_eq!(text(one, same).await[0], "30");
    one.batch_execute("DROP TABLE taken").await.unwrap();
}

pub async fn explain_shows_a_plan(four: &Client) {
    let lines = text(four, "EXPLAIN SELECT k FROM t").await;
    assert!(lines[0].starts_with("Shards 1, 2, 3, 4: each") && lines[1].contains("Scan"), "{lines:?}");
    let lines = text(four, "EXPLAIN (COSTS off) SELECT count(*) FROM t").await;
    assert!(lines[0].contains("gathered") && lines[1].contains("Aggregate"), "{lines:?}");
    let lines = text(four, "EXPLAIN (FORMAT json) SELECT count(*) FROM t").await;
    assert!(lines[0].starts_with('['), "{lines:?}");
    let lines = text(four, "EXPLAIN ANALYZE SELECT k FROM t").await;
    assert_eq!(lines.iter().filter(|line| line.starts_with("Shard ")).count(), 4, "{lines:?}");
    let lines = text(four, "EXPLAIN ANALYZE SELECT count(*) FROM t").await;
    assert!(lines.iter().any(|line| line.contains("shard_gather_0") && line.contains("actual")), "{lines:?}");
    let route =
        |sql: &'static str| async move { text(four, &format!("EXPLAIN ROUTE {sql}")).await.join("\n") };
    assert!(route("SELECT count(*) FROM t").await.contains("partial aggregates"));
    assert!(route("SELECT k FROM t ORDER BY note LIMIT 3").await.contains("sorts and limits"));
    assert!(route("SELECT rank() OVER (ORDER BY k) FROM t").await.contains("because of a window function"));
    assert!(route("SELECT count(*) FROM t WHERE note < now()::text").await.contains("partial aggregates"));
    assert!(route("SELECT a.k FROM t a JOIN t b USING (id)").await.contains("brought to one server"));
}

/// Locks of several shards hold until the transaction ends, on every one of them.
pub async fn row_locks_are_taken_on_every_shard(world: &World, four: &Client) {
    let other = world.proxy.client().await;
    four.batch_execute("BEGIN").await.unwrap();
    let locked = four.query("SELECT k FROM t WHERE id = 1 FOR UPDATE", &[]).await.unwrap().len();
    assert_eq!(locked, 12);
    assert_eq!(text(&other, "SELECT k FROM t WHERE id = 1 FOR UPDATE NOWAIT").await, ["55P03"]);
    assert_eq!(text(&other, "SELECT k FROM t WHERE id = 1 FOR UPDATE SKIP LOCKED").await, ["rows 0"]);
    four.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(other.query("SELECT k FROM t WHERE id = 1 FOR UPDATE NOWAIT", &[]).await.unwrap().len(), 12);
    assert_eq!(text(four, "SELECT k FROM t ORDER BY k LIMIT 1 FOR UPDATE").await, ["0A000"]);
}

/// `now()` does not move within a transaction, whichever way a query takes.
pub async fn the_clock_is_the_transactions(four: &Client) {
    four.batch_execute("BEGIN; SELECT count(*) FROM plain").await.unwrap();
    let now = text(four, "SELECT now() FROM plain LIMIT 1").await[0].clone();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for sql in [
        "SELECT max(now()) FROM t",
        "SELECT now() FROM t ORDER BY k LIMIT 1",
        "SELECT now() FROM t, plain LIMIT 1",
    ] {
        assert_eq!(text(four, sql).await[0], now, "{sql}");
    }
    four.batch_execute("COMMIT").await.unwrap();
}

/// A client that does not read holds the shards up, and not the proxy's memory.
pub async fn a_slow_client_costs_no_memory(world: &World) {
    let client = world.proxy.client().await;
    client.batch_execute("CREATE TABLE m (k int8 NOT NULL, id int NOT NULL, pad text)").await.unwrap();
    for (shard, server) in (1u16..).zip(&world.cluster.primaries) {
        let fill = format!(
            "INSERT INTO m SELECT {}, i, repeat('x', 200) FROM generate_series(1, 75000) i",
            key(shard)
        );
        server.client("postgres").await.batch_execute(&fill).await.unwrap();
    }
    for (sql, rows) in [("SELECT * FROM m", 300_000), ("SELECT k, id, pad FROM m ORDER BY pad, id", 300_000)]
    {
        let mut raw = Raw::connect(world.proxy.port).await;
        let before = world.proxy.resident();
        raw.ask(sql).await;
        let mut most = 0;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(world.proxy.resident().saturating_sub(before));
        }
        assert_eq!(raw.answers(1).await, [format!("CSELECT {rows}"), "ZI".to_owned()], "{sql}");
        most = most.max(world.proxy.resident().saturating_sub(before));
        assert!(most < 64 << 20, "{sql}: {most} bytes more");
    }
    client.batch_execute("DROP TABLE m").await.unwrap();
}
