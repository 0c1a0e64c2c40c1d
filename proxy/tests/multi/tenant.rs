//! `SET shard.key`: the session sees and changes the rows of one key, whatever its statements say.

use tokio_postgres::Client;

use crate::cluster::connect;
use crate::proxy::{World, code, key};

async fn rows(client: &Client, sql: &str) -> Vec<i64> {
    let mut found: Vec<i64> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    found.sort_unstable();
    found
}

async fn refused(client: &Client, sql: &str) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(code(&error), "0A000", "{sql}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h11_a_session_with_a_key_sees_the_rows_of_that_key_only() {
    let world = World::start("shard-key").await;
    let all: Vec<i64> = (1..=4).map(key).collect();
    let operator = world.proxy.client().await;
    for k in &all {
        for id in 1..=3 {
            operator.execute("INSERT INTO t VALUES ($1, $2, 'n')", &[k, &id]).await.unwrap();
        }
    }
    let url = format!("{}?options=-c%20shard.key%3D{}", world.proxy.url(), all[2]);
    let client = connect(&url).await;
    assert_eq!(
        client.query_one("SHOW shard.key", &[]).await.unwrap().get::<_, String>(0),
        all[2].to_string()
    );
    let mut sorted = all.clone();
    sorted.sort_unstable();

    // Reads, in both protocols.
    assert_eq!(rows(&client, "SELECT k FROM t").await, [all[2]; 3]);
    assert_eq!(rows(&client, "SELECT count(*) FROM t a JOIN t b ON a.id = b.id").await, [3]);
    assert_eq!(rows(&client, &format!("SELECT k FROM t WHERE k = {}", all[0])).await, [0i64; 0]);
    assert_eq!(client.simple_query("SELECT * FROM t ORDER BY id").await.unwrap().len(), 5);
    let prepared = client.prepare("SELECT k FROM t WHERE id = $1").await.unwrap();
    assert_eq!(client.query_one(&prepared, &[&1i32]).await.unwrap().get::<_, i64>(0), all[2]);

    // Another key: what was prepared goes by it, and what is rolled back goes with its transaction.
    client.batch_execute(&format!("SET shard.key = '{}'", all[0])).await.unwrap();
    assert_eq!(client.query_one(&prepared, &[&1i32]).await.unwrap().get::<_, i64>(0), all[0]);
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(&format!("SET LOCAL shard.key = '{}'", all[1])).await.unwrap();
    assert_eq!(rows(&client, "SELECT k FROM t").await, [all[1]; 3]);
    assert_eq!(client.query_one(&prepared, &[&2i32]).await.unwrap().get::<_, i64>(0), all[1]);
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(rows(&client, "SELECT k FROM t").await, [all[0]; 3]);
    refused(&client, &format!("SET shard.key = '{}'; SELECT * FROM t", all[3])).await;

    // Writes.
    assert_eq!(client.execute("UPDATE t SET note = 'mine'", &[]).await.unwrap(), 3);
    assert_eq!(client.execute("DELETE FROM t WHERE id = 3 OR true", &[]).await.unwrap(), 3);
    assert_eq!(
        client.execute("INSERT INTO t (id, note) VALUES ($1, $2), (8, 'b')", &[&7i32, &"a"]).await.unwrap(),
        2
    );
    client.batch_execute(&format!("INSERT INTO t (k, id) VALUES ({}, 9)", all[0])).await.unwrap();
    client.batch_execute("INSERT INTO t (k, id) SELECT k, id + 100 FROM t").await.unwrap();
    for sql in [
        format!("INSERT INTO t (k, id) VALUES ({}, 1)", all[1]),
        format!("UPDATE t SET k = {}", all[1]),
        "TRUNCATE t".to_owned(),
        "TABLE t".to_owned(),
        "COPY t TO STDOUT".to_owned(),
    ] {
        refused(&client, &sql).await;
    }
    assert_eq!(rows(&client, "SELECT id::int8 FROM t").await, [7, 8, 9, 107, 108, 109]);

    // Others, on the same connections to the servers, see everything.
    assert_eq!(rows(&operator, "SELECT count(*) FROM t").await, [15]);
    assert_eq!(rows(&operator, &format!("SELECT count(*) FROM t WHERE k <> {}", all[0])).await, [9]);
    client.batch_execute("RESET shard.key").await.unwrap();
    assert_eq!(rows(&client, "SELECT k FROM t").await, [all[2]; 3], "back to what the session began with");
    client.batch_execute("SET shard.key = ''").await.unwrap();
    assert_eq!(rows(&client, "SELECT count(*) FROM t").await, [15]);
    assert_eq!(rows(&client, "SELECT DISTINCT k FROM t").await, sorted);
    world.settled().await;
}
