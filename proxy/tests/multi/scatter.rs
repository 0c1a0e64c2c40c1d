//! Reads and writes over all shards, against one PostgreSQL with the same rows: rows, their types and names, row counts
//! and SQLSTATEs are the same, in the simple protocol and in the extended one.

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::Cluster;
use crate::cluster::take_port;
use crate::copies::Raw;
use crate::proxy::{CONFIGURATION, Proxy, World, code, key};
use crate::scatter_portals::*;

const SCHEMA: &str = "
    CREATE TABLE o (k int8 NOT NULL, id int NOT NULL, amount numeric(12, 2), at timestamptz, tags text[], doc jsonb,
        PRIMARY KEY (k, id));
    CREATE TABLE v (k int8 NOT NULL, s int2, b int8, n numeric, f float8, w varchar(10), y bool, d date);
    CREATE TABLE plain (id int PRIMARY KEY, name text);
    CREATE VIEW big AS SELECT k, id, amount FROM o WHERE amount > 5;
    CREATE VIEW totals AS SELECT k, count(*) AS n FROM t GROUP BY k";

/// Both have the same rows: 12 keys, on every shard some.
async fn fill(client: &Client) {
    let mut script = String::from("INSERT INTO rates VALUES ('n1', 1), ('n2', 2), ('zz', 3);");
    script += "INSERT INTO plain VALUES (1, 'one'), (2, 'two'), (3, 'three');";
    for k in 1..=12 {
        for id in 1..=(k % 4 + 1) {
            let note = if (k + id) % 5 == 0 { "NULL".to_owned() } else { format!("'n{}'", (k * id) % 4) };
            script += &format!("INSERT INTO t VALUES ({k}, {id}, {note});");
            if (k + id) % 3 != 0 {
                let number = ["1.0", "1.00", "2.5", "7"][(k + id) as usize % 4];
                script += &format!(
                    "INSERT INTO v VALUES ({k}, {}, {}, {number}, {k}.25, 'w{}', {}, '2026-01-0{id}');",
                    k - 7,
                    k * 1000 + id,
                    k % 3,
                    ["true", "false", "NULL"][k as usize % 3]
                );
                let amount = if id == 4 { "NULL".to_owned() } else { format!("{}.{id}5", k * 3 - id) };
                script += &format!(
                    "INSERT INTO o VALUES ({k}, {id}, {amount}, '2026-0{}-01 12:00+00', '{{x,y{id}}}', '{{\"a\": {id}}}');",
                    k % 9 + 1
                );
            }
        }
    }
    for statement in script.split_terminator(';') {
        client.batch_execute(statement).await.unwrap();
    }
}

/// A value as it was sent.
struct Bytes(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Bytes {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

pub async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let mut answer = Vec::new();
    match client.simple_query(sql).await {
        Ok(messages) => {
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(row) => answer.push(format!(
                        "{:?}",
                        (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect::<Vec<_>>()
                    )),
                    SimpleQueryMessage::CommandComplete(count) => answer.push(format!("rows {count}")),
                    SimpleQueryMessage::RowDescription(columns) => answer.push(format!(
                        "columns {:?}",
                        columns.iter().map(|c| c.name().to_owned()).collect::<Vec<_>>()
                    )),
                    _ => {}
                }
            }
        }
        Err(error) => answer = vec![code(&error)],
    }
    answer
}

pub async fn extended(client: &Client, sql: &str) -> Vec<String> {
    let statement = match client.prepare(sql).await {
        Ok(statement) => statement,
        Err(error) => return vec![code(&error)],
    };
    // A row type's OID is the server's own.
    let columns: Vec<_> = statement.columns().iter().map(|c| (c.name(), c.type_().name())).collect();
    let mut answer = vec![format!("columns {columns:?}")];
    match client.query(&statement, &[]).await {
        Ok(rows) => answer.extend(rows.iter().map(|row| {
            format!("{:?}", (0..row.len()).map(|i| row.get::<_, Bytes>(i).0).collect::<Vec<_>>())
        })),
        Err(error) => return vec![code(&error)],
    }
    answer
}

fn in_order(sql: &str, mut answer: Vec<String>) -> Vec<String> {
    let ordered =
        sql.contains("ORDER BY") && !sql.contains("ORDER BY k, id) FROM") && !sql.contains("OVER (PARTITION");
    // The first is the description, and an error is alone.
    if !ordered && answer.len() > 1 {
        answer[1..].sort();
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_shards_answer_as_one_database() {
    let world = World::start("scatter").await;
    let single = Cluster::start("scatter-one", 1, false);
    let one = single.primaries[0].client("app").await;
    one.batch_execute(
        "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id));
         CREATE TABLE rates (code text PRIMARY KEY, rate int NOT NULL)",
    )
    .await
    .unwrap();
    let mut one_more = single.primaries[0].client("app").await;
    let (four, mut four_more) = (world.proxy.client().await, world.proxy.client().await);
    for client in [&one, &four] {
        for statement in SCHEMA.split(';') {
            client.batch_execute(statement).await.unwrap();
        }
        fill(client).await;
    }
    assert!(world.counts().await.iter().all(|n| *n > 0), "every shard has rows");

    reads_are_equal(&one, &four).await;
    portals_give_as_many_rows_as_asked_for(&mut one_more, &mut four_more).await;
    cursors_are_equal(&one, &four).await;
    copies_out_are_equal(&one, &four).await;
    explain_shows_a_plan(&four).await;
    row_locks_are_taken_on_every_shard(&world, &four).await;
    the_clock_is_the_transactions(&four).await;
    parameters_are_passed_on(&one, &four).await;
    a_block_sees_its_own_writes(&one, &four).await;
    writes_are_equal(&one, &four).await;
    what_a_copy_cannot_know_is_refused(&four).await;
    nothing_is_left_behind(&world, &four).await;
    h17_an_error_half_way_leaves_nothing(&world).await;
}

async fn reads_are_equal(one: &Client, four: &Client) {
    let mut different = Vec::new();
    // A statement goes on in the next line when that begins with a blank.
    let text = include_str!("scatter_reads.sql").replace("\n ", "\u{1}");
    let statements: Vec<String> = text.lines().map(|line| line.replace('\u{1}', "\n ")).collect();
    assert!(statements.len() > 100);
    for sql in &statements {
        let (expected, found) = (simple(one, sql).await, simple(four, sql).await);
        let (expected, found) = (in_order(sql, expected), in_order(sql, found));
        if expected != found {
            different.push(format!("simple: {sql}\n  one:  {expected:?}\n  four: {found:?}"));
        }
        let (expected, found) = (extended(one, sql).await, extended(four, sql).await);
        let (expected, found) = (in_order(sql, expected), in_order(sql, found));
        if expected != found {
            different.push(format!("extended: {sql}\n  one:  {expected:?}\n  four: {found:?}"));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

async fn parameters_are_passed_on(one: &Client, four: &Client) {
    for client in [one, four] {
        let row = client
            .query_one("SELECT count(*), max(note) FROM t WHERE id >= $1 AND note <> $2", &[&2i32, &"n3"])
            .await
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<&str>>(1)), (14, Some("n2")));
        let keys = vec![1i64, 2, 3, 4, 5];
        let rows = client
            .query(
                "SELECT k, sum(id) FROM t WHERE k = ANY ($1) GROUP BY k ORDER BY sum(id), k LIMIT $2",
                &[&keys, &3i64],
            )
            .await
            .unwrap();
        let found: Vec<(i64, i64)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        assert_eq!(found, [(4, 1), (1, 3), (5, 3)]);
        let rows = client.query("SELECT k FROM t WHERE k = ANY ($1) AND id = 1", &[&keys]).await.unwrap();
        assert_eq!(rows.len(), 5);
        let none = client.query_one("SELECT max(id) FROM t WHERE note = $1", &[&None::<&str>]).await.unwrap();
        assert_eq!(none.get::<_, Option<i32>>(0), None);
    }
}

async fn a_block_sees_its_own_writes(one: &Client, four: &Client) {
    for client in [one, four] {
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1, 90, 'mine')").await.unwrap();
        client.batch_execute("INSERT INTO plain VALUES (90, 'mine')").await.unwrap();
        client.batch_execute("SET LOCAL TimeZone = 'Asia/Tokyo'").await.unwrap();
        let count = "SELECT count(*) FROM t WHERE id = 90";
        assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 1);
        let joined = "SELECT plain.name, t.note FROM t JOIN plain USING (id) WHERE id = 90 ORDER BY 1";
        assert_eq!(client.query(joined, &[]).await.unwrap().len(), 1);
        let zone = simple(client, "SELECT current_setting('TimeZone'), max(at) FROM o").await;
        assert!(zone[1].contains("Asia/Tokyo") && zone[1].contains("21:00:00+09"), "{zone:?}");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 30);
        client.batch_execute("COMMIT").await.unwrap();
    }
}

async fn writes_are_equal(one: &Client, four: &Client) {
    let statements = [
        "UPDATE t SET note = note || '!' WHERE id = 2",
        "UPDATE t SET note = 'r' WHERE id = 3 RETURNING k, id, note",
        "UPDATE t SET note = r.rate::text FROM rates r WHERE r.code = t.note",
        "UPDATE o SET amount = amount + t.id FROM t WHERE t.k = o.k AND t.id = o.id",
        "INSERT INTO t (k, id, note) SELECT k, id + 100, 'copied' FROM o",
        "INSERT INTO t (k, id, note) SELECT k, 200, 'grouped' FROM o GROUP BY k RETURNING k",
        "INSERT INTO t (k, id) SELECT k, id FROM o",
        "DELETE FROM t WHERE id > 100 AND id < 103",
        "DELETE FROM t USING o WHERE o.k = t.k AND o.id = t.id AND o.amount > 30 RETURNING t.*",
        "UPDATE t SET note = (SELECT max(amount)::text FROM o WHERE o.k = t.k)",
        "DELETE FROM t WHERE k IN (1, 2, 3, 4) AND id = 1",
        "UPDATE t SET id = 1 / (id - id)",
        "DELETE FROM t",
    ];
    for sql in statements {
        let (mut expected, mut found) = (simple(one, sql).await, simple(four, sql).await);
        expected.sort();
        found.sort();
        assert_eq!(expected, found, "{sql}");
        let all = "SELECT * FROM t ORDER BY k, id";
        assert_eq!(simple(one, all).await, simple(four, all).await, "after {sql}");
    }
}

/// Locks and the clock of the session's own transaction, and rows that a view's owner sees and the session does not.
async fn what_a_copy_cannot_know_is_refused(four: &Client) {
    for (before, query) in [
        ("LOCK TABLE t", "SELECT count(*) FROM t"),
        ("SELECT 1", "SELECT count(*) FROM o WHERE at::time < CURRENT_TIME::time"),
    ] {
        four.batch_execute("BEGIN").await.unwrap();
        four.batch_execute(before).await.unwrap();
        assert_eq!(simple(four, query).await, ["0A000"], "{before}; {query}");
        four.batch_execute("ROLLBACK").await.unwrap();
    }
    assert_eq!(simple(four, "SELECT count(*) > 0 FROM o WHERE at < now()").await[1], "[Some(\"t\")]");
    four.batch_execute("ALTER TABLE o ENABLE ROW LEVEL SECURITY").await.unwrap();
    assert_eq!(simple(four, "SELECT count(*) FROM big").await, ["0A000"]);
    four.batch_execute("ALTER TABLE o DISABLE ROW LEVEL SECURITY").await.unwrap();
    assert_eq!(simple(four, "SELECT count(*) > 0 FROM big").await[1], "[Some(\"t\")]");
}

/// Many at once with few connections wait for each other's end, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_gathers_share_few_connections() {
    let world = World::start("scatter-many").await;
    let (port, http) = (take_port(), take_port());
    let configuration = world.cluster.configuration(port, http, CONFIGURATION);
    let configuration = configuration.replace("primary_min = 1", "primary_min = 1\nprimary_max = 2");
    let proxy = Proxy::run(&world.cluster, (port, http), &configuration);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(proxy.client().await);
    }
    let work = clients.iter().map(|client| async move {
        for _ in 0..3 {
            client.batch_execute("BEGIN").await.unwrap();
            client.query("SELECT a.k FROM t a JOIN t b ON a.id = b.id", &[]).await.unwrap();
            client.query("SELECT count(*) FROM t", &[]).await.unwrap();
            client.batch_execute("COMMIT").await.unwrap();
            client.query("SELECT id, count(*) FROM t GROUP BY id", &[]).await.unwrap();
        }
    });
    futures_util::future::join_all(work).await;
    a_slow_client_costs_no_memory(&world).await;
}

/// No temporary table, no open transaction, no prepared one.
async fn nothing_is_left_behind(world: &World, four: &Client) {
    simple(four, "SELECT count(*) FROM t ORDER BY 1").await;
    world.settled().await;
    world.eventually("SELECT count(*) FROM pg_class WHERE relname LIKE 'shard\\_gather%'", &[0; 4]).await;
    world
        .eventually(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in%'",
            &[0; 4],
        )
        .await;
}

/// An error on one shard takes back what the others did, and the session goes on.
async fn h17_an_error_half_way_leaves_nothing(world: &World) {
    let mut raw = Raw::connect(world.proxy.port).await;
    for shard in 1..=4 {
        raw.query(&format!("INSERT INTO t VALUES ({}, {shard}, 'x')", key(shard))).await;
    }
    assert_eq!(raw.query("UPDATE t SET id = 1 / (id - 3)").await, ["E22012", "ZI"]);
    assert_eq!(world.each("SELECT sum(id) FROM t").await, [1, 2, 3, 4]);
    assert_eq!(raw.query("COPY (SELECT 1 / (id - 3) FROM t) TO STDOUT").await, ["E22012", "ZI"]);
    assert_eq!(raw.query("COPY (SELECT nosuch FROM t ORDER BY k) TO STDOUT").await, ["E42703", "ZI"]);
    assert_eq!(raw.query("BEGIN").await, ["CBEGIN", "ZT"]);
    assert_eq!(raw.query("SELECT 1 / (id - 3) FROM t ORDER BY id").await, ["E22012", "ZE"]);
    assert_eq!(raw.query("SELECT count(*) FROM t").await, ["E25P02", "ZE"]);
    assert_eq!(raw.query("ROLLBACK").await, ["CROLLBACK", "ZI"]);
    assert_eq!(raw.query("DELETE FROM t").await, ["CDELETE 4", "ZI"]);
    world.settled().await;
}
