//! Writes that no shard can do by itself, against one PostgreSQL with the same rows: rows, tags, SQLSTATEs and what is in
//! the tables afterwards are the same, in the simple protocol and in the extended one.

use tokio_postgres::Client;

use crate::cluster::Cluster;
use crate::copies::Raw;
use crate::proxy::{Proxy, World, key, keys};
use crate::scatter::{extended, simple};

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE o (k int8 NOT NULL, id int NOT NULL, amount numeric(12, 2), at timestamptz, tags text[], doc jsonb, feeling mood,
        short varchar(6), half numeric GENERATED ALWAYS AS (amount / 2) STORED, ratio float8, PRIMARY KEY (k, id));
    CREATE TABLE s (k int8 NOT NULL, id serial, note text, made timestamptz DEFAULT now(), PRIMARY KEY (k, id));
    CREATE TABLE i (k int8 NOT NULL, id int8 GENERATED ALWAYS AS IDENTITY, note text, PRIMARY KEY (k, id));
    CREATE TABLE head (k int8 NOT NULL, id int NOT NULL, PRIMARY KEY (k, id));
    CREATE TABLE child (k int8 NOT NULL, id int NOT NULL, parent int, PRIMARY KEY (k, id), FOREIGN KEY (k, parent) REFERENCES head);
    CREATE TABLE plain (id int PRIMARY KEY, name text)";

async fn pair(name: &str) -> (World, Cluster, Client, Client) {
    let world = World::start(name).await;
    let single = Cluster::start(&format!("{name}-one"), 1, false);
    let one = single.primaries[0].client("app").await;
    one.batch_execute(
        "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id));
         CREATE TABLE rates (code text PRIMARY KEY, rate int NOT NULL)",
    )
    .await
    .unwrap();
    let four = world.proxy.client().await;
    (world, single, one, four)
}

async fn fill(client: &Client) {
    let mut script = vec![
        "DELETE FROM child".to_owned(),
        "DELETE FROM head".to_owned(),
        "DELETE FROM s".to_owned(),
        "DELETE FROM i".to_owned(),
        "DELETE FROM o".to_owned(),
        "DELETE FROM t".to_owned(),
        "DELETE FROM rates".to_owned(),
        "DELETE FROM plain".to_owned(),
        "INSERT INTO rates VALUES ('n1', 1), ('n2', 2), ('zz', 3)".to_owned(),
        "INSERT INTO plain VALUES (1, 'one'), (2, 'two'), (3, 'three')".to_owned(),
    ];
    for k in 1..=8 {
        for id in 1..=(k % 4 + 1) {
            script.push(format!("INSERT INTO t VALUES ({k}, {id}, 'n{}')", (k * id) % 4));
            let doc = format!("{{\"a\": {id}, \"b\": [\"x\\\"y\"]}}");
            script.push(format!(
                "INSERT INTO o VALUES ({k}, {id}, {k}.{id}5, '2026-0{k}-01 12:00+00', '{{x,\"y,{id}\",NULL}}', '{doc}', 'glad', 's{id}', \
                 DEFAULT, 0.1 * {k})"
            ));
        }
    }
    for statement in script {
        client.batch_execute(&statement).await.unwrap();
    }
}

/// Every table's rows, except clocks.
const ALL: [&str; 6] = [
    "SELECT * FROM t ORDER BY k, id",
    "SELECT *, ratio::text FROM o ORDER BY k, id",
    "SELECT * FROM rates ORDER BY code",
    "SELECT k, id, note FROM s ORDER BY k, id",
    "SELECT * FROM i ORDER BY k, id",
    "SELECT * FROM plain ORDER BY id",
];

/// One statement a line; those with ORDER BY in their source return rows in order.
const WRITES: &str = "
INSERT INTO t (k, id, note) SELECT k + 1, id + 100, note FROM t
INSERT INTO t (k, id, note) SELECT id, k::int + 500, 'turned' FROM o RETURNING k, id, note
INSERT INTO t SELECT k, id + 300, NULL FROM o ORDER BY amount DESC LIMIT 3 RETURNING *
INSERT INTO t (note, k, id) SELECT 'x', 3, max(id) + 1 FROM t RETURNING id
INSERT INTO t (k, id, note) VALUES ((SELECT max(k) FROM t), 700, (SELECT min(note) FROM t)), (2, 701, DEFAULT) RETURNING *
WITH w AS (SELECT k, max(id) AS id FROM t GROUP BY k) INSERT INTO t (k, id, note) SELECT k % 3 + 1, id + k::int * 10 + 1000, '2026-01-01' FROM w
INSERT INTO o (k, id, at, tags, doc, feeling, short, ratio) SELECT k + 3, id + 50, at, tags, doc, feeling, short, ratio / 3 FROM o
INSERT INTO o (k, id, at, feeling) SELECT k + 2, id + 70, '2026-05-05 05:05+00', 'sad' FROM t WHERE note = 'n1' RETURNING k, id, at, feeling, half
INSERT INTO o (k, id, short) SELECT k + 1, id + 900, 'much too long' FROM t
INSERT INTO o (k, id, feeling) SELECT k + 1, id + 900, note::mood FROM t
INSERT INTO t (k, id) SELECT k + 1, id FROM t
INSERT INTO t (k, id, note) SELECT k + 1, id, 'again' FROM t ON CONFLICT (k, id) DO NOTHING
INSERT INTO t (k, id, note) SELECT DISTINCT k + 1, id, 'set' FROM t WHERE k > 4 ON CONFLICT (k, id) DO UPDATE SET note = excluded.note || '!' RETURNING k, id, note
INSERT INTO t AS x (k, id, note) SELECT k, id, 'alias' FROM (SELECT k + 2 AS k, id FROM t WHERE k < 3) q ON CONFLICT (k, id) DO UPDATE SET note = x.note || '?' RETURNING x.k, x.id, x.note
INSERT INTO t (k, id) SELECT NULL, 1 FROM o
INSERT INTO t (k, id) SELECT k, NULL FROM o WHERE k + 1 = 3
INSERT INTO t (k, id) SELECT k + 1, 1 / (id - id) FROM o
INSERT INTO t (k, id) SELECT k + 1, id FROM o WHERE false
INSERT INTO t (k, id) SELECT k + 1, id FROM missing
INSERT INTO t (k, id, note) SELECT p.id, 900 + p.id, p.name FROM plain p RETURNING *
INSERT INTO t (k, id, note) SELECT 5, 950 + p.id, r.code FROM plain p, rates r WHERE r.rate = p.id
INSERT INTO plain SELECT k::int + 10, max(note) FROM t GROUP BY k RETURNING id, name
UPDATE plain SET name = (SELECT max(note) FROM t WHERE t.id = plain.id)
DELETE FROM plain USING o WHERE o.k = plain.id - 10 AND o.id = 1
INSERT INTO rates SELECT 'k' || k, count(*) FROM t GROUP BY k
UPDATE rates SET rate = rate + (SELECT count(*) FROM t WHERE note = code)
UPDATE rates SET rate = m.n FROM (SELECT note, max(id) AS n FROM t GROUP BY note) m WHERE m.note = code RETURNING code, rate
DELETE FROM rates WHERE code IN (SELECT 'k' || k FROM o WHERE amount > 5) RETURNING *
UPDATE t SET k = 7 WHERE k = 2 AND id = 1
UPDATE t SET k = k + 20 WHERE id = 2 RETURNING k, id, note
UPDATE t SET k = CASE WHEN id > 100 THEN k ELSE k + 40 END, note = note || '-' WHERE k < 5
UPDATE t SET k = 1
UPDATE t SET k = NULL WHERE id = 1
UPDATE o SET k = k + 100, amount = amount + 1 WHERE k IN (3, 4) AND id = 1 RETURNING k, id, amount, half
UPDATE o SET (k, short) = (SELECT max(k) + 200, 'max' FROM t) WHERE k = 5 AND id = 2 RETURNING *
UPDATE t SET note = o.short FROM o WHERE o.id = t.id AND o.k = t.k + 1 RETURNING t.*, o.k
UPDATE t SET note = 'above' WHERE id > (SELECT avg(id) FROM t)
UPDATE t SET id = id + 10000, note = a.note FROM (SELECT id AS i, max(note) AS note FROM t GROUP BY id) a WHERE a.i = t.id AND t.k = 6
UPDATE t SET note = (SELECT string_agg(id::text, ',' ORDER BY k, id) FROM o WHERE o.k <> t.k)
UPDATE t SET id = 1 / (SELECT count(*) - count(*) FROM o)
UPDATE t SET note = 'x' FROM o WHERE false
DELETE FROM t USING o WHERE o.id = t.id AND o.k = t.k + 1 AND o.amount > 4 RETURNING t.k, t.id, o.amount
DELETE FROM t WHERE id IN (SELECT id FROM o GROUP BY id HAVING count(*) > 5)
DELETE FROM t WHERE id = (SELECT max(id) FROM t) RETURNING *
MERGE INTO t USING (SELECT 3::int8 AS k, 1 AS id UNION ALL SELECT 77, 1) s ON t.k = s.k AND t.id = s.id WHEN MATCHED THEN UPDATE SET note = 'merged' WHEN NOT MATCHED THEN INSERT (k, id, note) VALUES (s.k, s.id, 'new')
MERGE INTO t USING o ON t.k = o.k + 1 AND t.id = o.id WHEN MATCHED AND o.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET note = o.short WHEN NOT MATCHED THEN INSERT VALUES (o.k + 1, o.id + 40, 'merged')
MERGE INTO t USING plain p ON t.id = p.id WHEN MATCHED THEN UPDATE SET k = t.k + 300
INSERT INTO s (k, note) VALUES (1, 'a')
INSERT INTO s (k, note) VALUES (1, 'b'), (2, 'c'), (3, 'd'), (4, 'e') RETURNING k, id, note
INSERT INTO s (k, note) SELECT k, note FROM t WHERE k = 1 AND id < 400 ORDER BY id RETURNING id
INSERT INTO s (k, note) SELECT k + 1, note FROM t ORDER BY k, id RETURNING id, k, note
INSERT INTO s VALUES (9, DEFAULT, 'f'), (8, 5000, 'g') RETURNING id
INSERT INTO s (k, id, note) VALUES (9, nextval('s_id_seq'), 'drawn') RETURNING id
UPDATE s SET id = DEFAULT WHERE k = 9 AND note = 'f' RETURNING id
INSERT INTO i (k, note) VALUES (1, 'a'), (2, 'b'), (3, 'c') RETURNING id
INSERT INTO i (k, note) SELECT k, note FROM t WHERE id < 3 ORDER BY k, id
INSERT INTO i (k, id, note) VALUES (1, 10, 'no')
INSERT INTO i (k, id, note) OVERRIDING SYSTEM VALUE VALUES (1, 1000, 'yes') RETURNING id
MERGE INTO s USING o ON s.k = o.k + 500 WHEN NOT MATCHED AND o.id = 1 AND o.k = 3 THEN INSERT (k, note) VALUES (o.k + 500, 'm')
INSERT INTO head SELECT DISTINCT k % 9, id FROM o
INSERT INTO child SELECT k, id, id FROM o WHERE id = 1 AND k < 9
DELETE FROM head WHERE (k, id) NOT IN (SELECT k + 1, parent FROM child)
DELETE FROM head WHERE (k, id) NOT IN (SELECT k, parent FROM child)
INSERT INTO child SELECT k + 1000, id, id FROM o WHERE id = 1
DELETE FROM o WHERE id = (SELECT min(id) FROM o)";

fn lines() -> Vec<&'static str> {
    WRITES.lines().filter(|line| !line.is_empty()).collect()
}

async fn compare(one: &Client, four: &Client, sql: &str, by_extended: bool) -> Option<String> {
    let (mut expected, mut found) = match by_extended {
        true => (extended(one, sql).await, extended(four, sql).await),
        false => (simple(one, sql).await, simple(four, sql).await),
    };
    if !sql.contains("ORDER BY") {
        expected.sort();
        found.sort();
    }
    if expected != found {
        return Some(format!("{sql}\n  one:  {expected:?}\n  four: {found:?}"));
    }
    for all in ALL {
        let (expected, found) = (simple(one, all).await, simple(four, all).await);
        if expected != found {
            let only = |these: &[String], those: &[String]| -> Vec<String> {
                these.iter().filter(|row| !those.contains(row)).take(5).cloned().collect()
            };
            let (expected, found) = (only(&expected, &found), only(&found, &expected));
            return Some(format!("after {sql}, {all}\n  one:  {expected:?}\n  four: {found:?}"));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_over_several_shards_are_those_of_one_database() {
    let (world, _single, one, four) = pair("writes").await;
    for client in [&one, &four] {
        for statement in SCHEMA.split(';') {
            client.batch_execute(statement).await.unwrap();
        }
    }
    let mut different: Vec<String> = Vec::new();
    for by_extended in [false, true] {
        for client in [&one, &four] {
            fill(client).await;
        }
        for sql in lines() {
            if let Some(difference) = compare(&one, &four, sql, by_extended).await {
                different.push(difference);
                for client in [&one, &four] {
                    fill(client).await;
                }
            }
        }
        assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
        let moves = "UPDATE head SET k = k + 1";
        assert_eq!(simple(&four, moves).await, ["0A000"], "foreign keys refer to it");
        assert_eq!(simple(&four, "UPDATE head SET k = k").await.len(), 1);
        for shard in &world.cluster.primaries {
            let rates = shard.client("postgres").await;
            let here: Vec<(String, i32)> = rates
                .query("SELECT code, rate FROM rates ORDER BY code", &[])
                .await
                .unwrap()
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            let expected: Vec<(String, i32)> = one
                .query("SELECT code, rate FROM rates ORDER BY code", &[])
                .await
                .unwrap()
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            assert_eq!(here, expected, "a reference table is the same everywhere");
        }
    }
    parameters_and_blocks(&one, &four).await;
    every_row_is_where_its_key_belongs(&world).await;
    world.settled().await;
    world.eventually("SELECT count(*) FROM pg_class WHERE relname LIKE 'shard\\_rows%'", &[0; 4]).await;
}

async fn parameters_and_blocks(one: &Client, four: &Client) {
    for client in [one, four] {
        fill(client).await;
        let sql = "INSERT INTO t (k, id, note) SELECT k + $1, id + $2, $3 FROM o WHERE amount > $4::int8 \
                   ON CONFLICT (k, id) DO UPDATE SET note = $3 || excluded.note RETURNING k, id, note || $5";
        let rows = client.query(sql, &[&1i64, &0i32, &"p", &5i64, &"-"]).await.unwrap();
        let mut found: Vec<(i64, i32, String)> =
            rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
        found.sort();
        assert_eq!(found.first(), Some(&(6, 1, "pp-".to_owned())), "{found:?}");
        assert_eq!(found.len(), 10);
        let moved =
            client.execute("UPDATE t SET k = $1 WHERE k = $2 AND id = $3", &[&30i64, &7i64, &4i32]).await;
        assert_eq!(moved.unwrap(), 1);
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (90, 1, 'mine')").await.unwrap();
        client.batch_execute("INSERT INTO plain VALUES (90, 'mine')").await.unwrap();
        client.batch_execute("SAVEPOINT a").await.unwrap();
        let sql =
            "INSERT INTO t SELECT t.k + 1, plain.id, plain.name FROM t JOIN plain ON plain.name = t.note";
        assert_eq!(client.execute(sql, &[]).await.unwrap(), 1);
        let sql = "UPDATE t SET k = k + 1, note = plain.name FROM plain WHERE plain.name = t.note";
        assert_eq!(client.execute(sql, &[]).await.unwrap(), 2);
        let rows = client.query("SELECT k, id FROM t WHERE note = 'mine' ORDER BY k", &[]).await.unwrap();
        let found: Vec<(i64, i32)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        assert_eq!(found, [(91, 1), (92, 90)]);
        client.batch_execute("ROLLBACK TO a").await.unwrap();
        assert_eq!(client.query("SELECT FROM t WHERE note = 'mine'", &[]).await.unwrap().len(), 1);
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(client.query("SELECT FROM t WHERE note = 'mine'", &[]).await.unwrap().len(), 0);
    }
}

async fn every_row_is_where_its_key_belongs(world: &World) {
    for shard in 1..=4u16 {
        let here: Vec<i64> = keys(shard, 2000);
        let client = world.cluster.primaries[usize::from(shard) - 1].client("postgres").await;
        for table in ["t", "o", "s", "i"] {
            let sql = format!("SELECT count(*) FROM {table} WHERE k <> ALL ($1)");
            assert_eq!(client.query_one(&sql, &[&here]).await.unwrap().get::<_, i64>(0), 0, "{table}");
        }
    }
}

/// What computes something else on every shard is computed once (H22).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h22_reference_rows_are_the_same_bytes_everywhere() {
    let world = World::start("h22").await;
    let client = world.proxy.client().await;
    for sql in [
        "DROP TABLE rates",
        "CREATE TABLE rates (code serial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), r double precision DEFAULT random(), \
         u uuid DEFAULT gen_random_uuid(), n int)",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let digest = "SELECT coalesce(sum(hashtext(rates::text)), 0)::int8 FROM rates";
    let same = async |what: &str| {
        let values = world.each(digest).await;
        assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{what}: {values:?}");
        values[0]
    };
    let mut before = 0;
    for (sql, count) in [
        ("INSERT INTO rates DEFAULT VALUES", 1),
        ("INSERT INTO rates (n) SELECT generate_series(1, 20)", 20),
        (
            "INSERT INTO rates (code, n) VALUES (1, 5), (400, 6) ON CONFLICT (code) DO UPDATE SET n = excluded.n",
            2,
        ),
        ("UPDATE rates SET r = random(), at = clock_timestamp() WHERE n > 3", 19),
        ("DELETE FROM rates WHERE n > 12 + random()", 8),
        ("INSERT INTO rates (n) VALUES (1)", 1),
    ] {
        assert_eq!(client.execute(sql, &[]).await.unwrap(), count, "{sql}");
        let after = same(sql).await;
        assert_ne!(after, before, "{sql}");
        before = after;
    }
    let row = client.query_one("INSERT INTO rates (n) VALUES (77) RETURNING code, r", &[]).await.unwrap();
    let (code, r): (i32, f64) = (row.get(0), row.get(1));
    same("RETURNING").await;
    let deleted = client
        .query("DELETE FROM rates WHERE code = $1 AND random() < 2 RETURNING r", &[&code])
        .await
        .unwrap();
    assert_eq!(deleted.iter().map(|row| row.get::<_, f64>(0)).collect::<Vec<_>>(), [r]);
    same("DELETE").await;
    // Two writers at once: neither is given up, and the copies agree.
    let other = world.proxy.client().await;
    let (a, b) = tokio::join!(
        client.execute("UPDATE rates SET r = random()", &[]),
        other.execute("UPDATE rates SET r = random(), n = n + 1", &[])
    );
    assert_eq!(a.unwrap(), b.unwrap());
    same("two at once").await;
    world.settled().await;
}

/// Numbers are drawn once for all shards, whoever draws (H26).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_fails_leaves_no_answer_of_another_unread() {
    let world = World::start("writes-unread").await;
    let client = world.proxy.client().await;
    for shard in 1..=4 {
        let id = if shard == 1 { 7 } else { i32::from(shard) };
        client
            .execute("INSERT INTO t VALUES ($1, $2, 'n')", &[&crate::proxy::key(shard), &id])
            .await
            .unwrap();
    }
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("SAVEPOINT s").await.unwrap();
    // Divides by zero on shard 1 only, while rows are locked to be moved to other shards.
    let error = client.batch_execute("UPDATE t SET k = k + 1 WHERE 10 / (id - 7) < 100").await.unwrap_err();
    assert_eq!(crate::proxy::code(&error), "22012");
    client.batch_execute("ROLLBACK TO s").await.unwrap();
    for shard in 2..=4 {
        let row =
            client.query_one("SELECT id FROM t WHERE k = $1", &[&crate::proxy::key(shard)]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), i32::from(shard), "the answer to this question");
    }
    client.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h26_two_proxies_never_draw_the_same_number() {
    let world = World::start("h26").await;
    let second = Proxy::start(&world.cluster);
    let clients = [world.proxy.client().await, second.client().await];
    for sql in [
        "CREATE TABLE s (k int8 NOT NULL, id serial, n int, PRIMARY KEY (k, id))",
        "CREATE TABLE i (k int8 NOT NULL, id int8 GENERATED BY DEFAULT AS IDENTITY (INCREMENT 5), PRIMARY KEY (k, id))",
        "CREATE SEQUENCE pooled INCREMENT 50",
        "INSERT INTO t SELECT k, 1, 'seed' FROM generate_series(1, 40) k",
    ] {
        clients[0].batch_execute(sql).await.unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let draw = async |client: &Client| {
        for n in 0..15i32 {
            client.execute("INSERT INTO s (k, n) VALUES ($1, $2)", &[&i64::from(n), &n]).await.unwrap();
            let sql = format!("INSERT INTO s (k, n) VALUES ({n}, 1), ({}, 2), ({}, 3)", n + 1, n + 2);
            assert_eq!(client.execute(&sql, &[]).await.unwrap(), 3);
            client.batch_execute("BEGIN").await.unwrap();
            client.execute("INSERT INTO i (k) VALUES ($1)", &[&i64::from(n)]).await.unwrap();
            client
                .execute("INSERT INTO s (k, n) SELECT k, id FROM t WHERE k = 3 OR k = 4", &[])
                .await
                .unwrap();
            client.batch_execute(if n % 3 == 0 { "ROLLBACK" } else { "COMMIT" }).await.unwrap();
        }
    };
    tokio::join!(draw(&clients[0]), draw(&clients[1]));
    let client = &clients[1];
    for (table, rows) in [("s", 160), ("i", 20)] {
        let sql = format!("SELECT count(*), count(DISTINCT id) FROM {table}");
        let row = client.query_one(&sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (rows, rows), "{table}");
    }
    // x-49..x belongs to whoever drew x.
    let mut drawn = Vec::new();
    for client in clients.iter().cycle().take(20) {
        drawn.push(client.query_one("SELECT nextval('pooled')", &[]).await.unwrap().get::<_, i64>(0));
    }
    assert_eq!(drawn, (0..20).map(|n| n * 50 + 1).collect::<Vec<_>>());
    clients[0].batch_execute("ALTER SEQUENCE pooled RESTART WITH 5000").await.unwrap();
    assert_eq!(clients[1].query_one("SELECT nextval('pooled')", &[]).await.unwrap().get::<_, i64>(0), 5000);
    // Within a block the session's own numbers are known, as in PostgreSQL.
    let client = &clients[0];
    client.batch_execute("BEGIN").await.unwrap();
    let row = client.query_one("INSERT INTO s (k, n) VALUES (12345, 1) RETURNING id", &[]).await.unwrap();
    let id: i32 = row.get(0);
    let row = client.query_one("SELECT currval('s_id_seq'), lastval()", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (id.into(), id.into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    let version = client
        .query_one("SELECT substr(shard_catalog.uuidv7()::text, 15, 1), shard_catalog.uuidv7() < shard_catalog.uuidv7()", &[])
        .await
        .unwrap();
    assert_eq!(version.get::<_, &str>(0), "7");
}

/// What was read stays as it was until it is written: two that move the same row do not both move it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_moved_are_locked_first() {
    let world = World::start("moves").await;
    let (a, b) = (world.proxy.client().await, world.proxy.client().await);
    let (from, to) = (key(1), key(2));
    a.execute("INSERT INTO t VALUES ($1, 1, 'x')", &[&from]).await.unwrap();
    a.batch_execute("BEGIN").await.unwrap();
    assert_eq!(a.execute("UPDATE t SET note = 'y' WHERE k = $1", &[&from]).await.unwrap(), 1);
    let moving = tokio::spawn(async move {
        let moved = b.execute("UPDATE t SET k = $1, note = note || '!' WHERE k = $2", &[&to, &from]).await;
        (b, moved.unwrap())
    });
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!moving.is_finished(), "it waits for the row");
    a.batch_execute("COMMIT").await.unwrap();
    let (b, moved) = moving.await.unwrap();
    assert_eq!(moved, 1);
    let row = b.query_one("SELECT k, note FROM t", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (to, "y!"));
    // An error half way leaves everything as it was.
    let mut raw = Raw::connect(world.proxy.port).await;
    raw.query(&format!("INSERT INTO t VALUES ({}, 1, 'other')", key(3))).await;
    assert_eq!(raw.query(&format!("UPDATE t SET k = {}", key(4))).await, ["E23505", "ZI"]);
    assert_eq!(world.counts().await, [0, 1, 1, 0]);
    world.settled().await;
}
