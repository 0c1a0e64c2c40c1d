//! While rows of moving buckets are on two shards, statements over several shards see each of them once, on the shard that
//! owns it, and change nothing on the other (H30).

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::mover::{Mover, buckets_of};
use crate::proxy::{World, code, keys};

const SCHEMA: &str = "CREATE TABLE u (k int8 NOT NULL, id int NOT NULL, amount int, PRIMARY KEY (k, id));
    CREATE VIEW notes AS SELECT k, id, note FROM t WHERE note IS NOT NULL;
    CREATE VIEW totals AS SELECT k, count(*) AS n FROM t GROUP BY k";

/// `{a}` moves, `{b}` is on the target, `{c}` stays on the source.
const READS: &[&str] = &[
    "SELECT k, id, note FROM t",
    "SELECT * FROM t x WHERE id > 1 -- a comment",
    "SELECT x.* FROM public.t AS x",
    "SELECT * FROM ONLY t",
    "TABLE t",
    "SELECT t.k, u.amount FROM t JOIN u USING (k, id)",
    "SELECT t.k, u.amount FROM t LEFT JOIN u ON u.k = t.k AND u.id = t.id WHERE t.id < 3",
    "SELECT count(*), sum(id), min(note), count(DISTINCT note) FROM t",
    "SELECT count(*) FROM t, rates",
    "SELECT k, count(*), sum(id) FROM t GROUP BY k",
    "SELECT k, id, note FROM t GROUP BY k, id",
    "SELECT note, count(*) FROM t GROUP BY note HAVING count(*) > 1",
    "SELECT id % 2, avg(k), count(*) FROM t GROUP BY id % 2",
    "SELECT k, id FROM t ORDER BY k, id LIMIT 7 OFFSET 2",
    "SELECT DISTINCT note FROM t",
    "SELECT a.k, b.k FROM t a JOIN t b ON a.id = b.id AND a.k < b.k",
    "SELECT k, id, row_number() OVER (ORDER BY k, id) FROM t",
    "SELECT k FROM t UNION ALL SELECT k FROM u",
    "SELECT k FROM t EXCEPT SELECT k FROM u",
    "SELECT k, (SELECT count(*) FROM u WHERE u.k = t.k) FROM t",
    "SELECT k FROM t WHERE EXISTS (SELECT FROM u WHERE u.k = t.k AND amount > 20)",
    "WITH c AS (SELECT k, id FROM t WHERE id = 1) SELECT count(*) FROM c JOIN u USING (k)",
    "SELECT count(*) FROM (SELECT * FROM t) AS t",
    "SELECT t FROM t",
    "SELECT row_to_json(t) FROM t",
    "SELECT * FROM notes",
    "SELECT count(*) FROM notes",
    "SELECT * FROM totals",
    "SELECT * FROM t WHERE k IN ({a}, {b})",
    "SELECT count(*) FROM t WHERE k IN ({a}, {b}, {c})",
    "SELECT * FROM t WHERE k = {a}",
    "SELECT * FROM t WHERE k = {b}",
    "SELECT k, id FROM t WHERE k = ANY ('{{a}, {b}, {c}}')",
];

/// Each is rolled back.
const WRITES: &[&str] = &[
    "UPDATE t SET note = 'w' WHERE id = 1",
    "UPDATE t SET note = 'w' -- all",
    "UPDATE t AS x SET note = 'w' WHERE x.id > 1 OR x.note IS NULL RETURNING k, id",
    "UPDATE t SET note = u.amount::text FROM u WHERE u.k = t.k AND u.id = t.id RETURNING t.k, t.note",
    "UPDATE t SET note = 'w' WHERE k IN ({a}, {b})",
    "UPDATE t SET note = (SELECT count(*) FROM u)::text RETURNING k, note",
    "DELETE FROM t",
    "DELETE FROM t WHERE id = 2 RETURNING *",
    "DELETE FROM t USING u WHERE u.k = t.k AND u.id = t.id AND amount > 20",
    "DELETE FROM t WHERE id < (SELECT max(id) FROM u) RETURNING k",
    "INSERT INTO u SELECT k, id + 100, 1 FROM t RETURNING k, id",
    "INSERT INTO u SELECT k, 100, count(*) FROM t GROUP BY k",
    "INSERT INTO u SELECT k + 1000000, id, 1 FROM t",
    "MERGE INTO t USING (SELECT k, id FROM u) AS s ON t.k = s.k AND t.id = s.id WHEN MATCHED THEN UPDATE SET note = 'm'",
];

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let mut answer = Vec::new();
    match client.simple_query(sql).await {
        Ok(messages) => {
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(row) => {
                        answer.push(format!("{:?}", (0..row.len()).map(|i| row.get(i)).collect::<Vec<_>>()));
                    }
                    SimpleQueryMessage::CommandComplete(count) => answer.push(format!("rows {count}")),
                    _ => {}
                }
            }
        }
        Err(error) => answer = vec![format!("{} {error:?}", code(&error))],
    }
    answer.sort();
    answer
}

async fn extended(client: &Client, sql: &str) -> Vec<String> {
    let statement = match client.prepare(sql).await {
        Ok(statement) => statement,
        Err(error) => return vec![format!("{} {error:?}", code(&error))],
    };
    match client.query(&statement, &[]).await {
        Ok(rows) => vec![format!("{} rows", rows.len())],
        Err(error) => vec![format!("{} {error:?}", code(&error))],
    }
}

async fn copied(client: &Client, sql: &str) -> Vec<String> {
    let stream = client.copy_out(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let chunks: Vec<Bytes> = stream.map(|chunk| chunk.unwrap()).collect().await;
    if sql.contains("binary") {
        return vec![chunks.iter().map(Bytes::len).sum::<usize>().to_string()];
    }
    let mut lines: Vec<String> =
        chunks.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    lines.sort();
    lines
}

async fn fetched(client: &mut Client) -> Vec<String> {
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("DECLARE c CURSOR FOR SELECT k, id, note FROM t").await.unwrap();
    let mut answer = Vec::new();
    loop {
        let rows = transaction.simple_query("FETCH 5 FROM c").await.unwrap();
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                Some(format!("{:?} {:?} {:?}", row.get(0), row.get(1), row.get(2)))
            }
            _ => None,
        };
        let before = answer.len();
        answer.extend(rows.iter().filter_map(row));
        if answer.len() < before + 5 {
            break;
        }
    }
    for sql in ["SELECT k, id FROM t", "SELECT k, id FROM t ORDER BY k DESC"] {
        let portal = transaction.bind(sql, &[]).await.unwrap();
        loop {
            let rows = transaction.query_portal(&portal, 4).await.unwrap();
            answer.extend(rows.iter().map(|row| format!("{sql} {:?}", row.get::<_, i64>(0))));
            if rows.len() < 4 {
                break;
            }
        }
    }
    let locked = transaction.query("SELECT k, id FROM t WHERE id = 1 FOR UPDATE", &[]).await.unwrap();
    answer.push(format!("locked {}", locked.len()));
    answer.sort();
    answer
}

/// What every statement answers.
async fn answers(client: &mut Client, with: &dyn Fn(&str) -> String) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for sql in READS {
        let sql = with(sql);
        let (by_simple, by_extended) = (simple(client, &sql).await, extended(client, &sql).await);
        all.push((sql, [by_simple, by_extended].concat()));
    }
    for sql in WRITES {
        let sql = with(sql);
        for way in ["simple", "extended"] {
            client.batch_execute("BEGIN").await.unwrap();
            let mut answer =
                if way == "simple" { simple(client, &sql).await } else { extended(client, &sql).await };
            // What it did to whom.
            answer.extend(simple(client, "SELECT k, id, note FROM t").await);
            answer.extend(simple(client, "SELECT k, id, amount FROM u").await);
            client.batch_execute("ROLLBACK").await.unwrap();
            all.push((format!("{way}: {sql}"), answer));
        }
    }
    for sql in [
        "COPY t TO STDOUT",
        "COPY public.t (note, k) TO STDOUT (FORMAT csv, HEADER)",
        "COPY (SELECT k, count(*) FROM t GROUP BY k) TO STDOUT",
        "COPY (SELECT k FROM t ORDER BY k) TO STDOUT",
        "COPY t TO STDOUT (FORMAT binary)",
    ] {
        all.push((sql.to_owned(), copied(client, sql).await));
    }
    all.push(("cursors and portals".to_owned(), fetched(client).await));
    all
}

fn compare(stage: &str, before: &[(String, Vec<String>)], now: &[(String, Vec<String>)]) {
    for ((sql, expected), (_, found)) in before.iter().zip(now) {
        assert_eq!(found, expected, "{stage}: {sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h30_no_row_is_seen_twice_or_not_at_all() {
    let world = World::start("hidden").await;
    let mut client = world.proxy.client().await;
    for statement in SCHEMA.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
    client.batch_execute("INSERT INTO rates VALUES ('n1', 1), ('n2', 2)").await.unwrap();
    let on: Vec<Vec<i64>> = (1..=4).map(|shard| keys(shard, 3)).collect();
    for key in on.iter().flatten() {
        for id in 1..=3 {
            let note = if (key + id) % 5 == 0 { "NULL".to_owned() } else { format!("'n{}'", (key * id) % 4) };
            client.batch_execute(&format!("INSERT INTO t VALUES ({key}, {id}, {note})")).await.unwrap();
            if (key + id) % 3 != 0 {
                client
                    .batch_execute(&format!("INSERT INTO u VALUES ({key}, {id}, {})", id * 10))
                    .await
                    .unwrap();
            }
        }
    }
    let (a, b, c) = (on[0][0], on[2][0], on[0][2]);
    let with = |sql: &str| {
        sql.replace("{a}", &a.to_string()).replace("{b}", &b.to_string()).replace("{c}", &c.to_string())
    };
    let truth = answers(&mut client, &with).await;
    for (sql, answer) in &truth {
        assert!(!answer.iter().any(|line| line.contains("Error {")), "{sql}: {answer:?}");
    }

    // Two keys of shard 1 move to shard 3. The copies differ from the rows, so that one that is seen shows.
    let moving = [on[0][0], on[0][1]];
    let scope = buckets_of(&moving);
    let mut mover = Mover::new(&world).await;
    let version = mover.begin(1, &scope, 1, 3).await;
    mover.drained(version).await;
    let list = format!("{}, {}", moving[0], moving[1]);
    let (source, target) = (
        world.cluster.primaries[0].client("postgres").await,
        world.cluster.primaries[2].client("postgres").await,
    );
    let rows = |table: &'static str| {
        format!(
            "SELECT string_agg(format('(%s, %s, %L)', k, id, {}), ', ') FROM {table} WHERE k IN ({list})",
            if table == "t" { "note" } else { "amount" }
        )
    };
    let (of_t, of_u): (String, String) = (
        source.query_one(&rows("t"), &[]).await.unwrap().get(0),
        source.query_one(&rows("u"), &[]).await.unwrap().get(0),
    );
    target.batch_execute(&format!("INSERT INTO t VALUES {of_t}; INSERT INTO u VALUES {of_u}")).await.unwrap();
    target.batch_execute(&format!("UPDATE t SET note = 'copy' WHERE k IN ({list})")).await.unwrap();
    compare("copying", &truth, &answers(&mut client, &with).await);
    let state = "SELECT string_agg(k || ' ' || id || ' ' || coalesce(note, ''), ',' ORDER BY k, id) FROM t WHERE note = 'copy'";
    let copies: Option<String> = target.query_one(state, &[]).await.unwrap().get(0);

    // What is committed leaves the copies alone, too.
    let same = "UPDATE t SET note = note";
    let changed = client.execute(same, &[]).await.unwrap();
    assert_eq!(changed, 36);
    let removed = client.execute("DELETE FROM t WHERE id = 3", &[]).await.unwrap();
    assert_eq!(removed, 12);
    assert_eq!(target.query_one(state, &[]).await.unwrap().get::<_, Option<String>>(0), copies);
    for key in on.iter().flatten() {
        let note = if (key + 3) % 5 == 0 { "NULL".to_owned() } else { format!("'n{}'", (key * 3) % 4) };
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 3, {note})")).await.unwrap();
    }
    let plan = client.simple_query("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT k FROM t").await.unwrap();
    assert_eq!(format!("{plan:?}").matches("IS NOT TRUE").count(), 1, "only on the target: {plan:?}");
    for sql in ["SELECT ctid FROM t", "SELECT tableoid::regclass, k FROM t"] {
        let error = client.simple_query(sql).await.unwrap_err();
        assert_eq!(code(&error), "0A000", "{sql}");
        assert!(format!("{error:?}").contains("while a move is under way"), "{sql}: {error:?}");
    }

    // The other way round: the target's are the rows, the source's are left over.
    target
        .batch_execute(&format!("DELETE FROM t WHERE k IN ({list}); INSERT INTO t VALUES {of_t}"))
        .await
        .unwrap();
    let version = mover.flip(1, &scope, 1, 3, "flipped").await;
    mover.drained(version).await;
    source.batch_execute(&format!("UPDATE t SET note = 'left over' WHERE k IN ({list})")).await.unwrap();
    compare("flipped", &truth, &answers(&mut client, &with).await);

    // Rolled back: the source owns again, and what the target has is left over.
    source
        .batch_execute(&format!("DELETE FROM t WHERE k IN ({list}); INSERT INTO t VALUES {of_t}"))
        .await
        .unwrap();
    let version = mover.flip(1, &scope, 3, 1, "copying").await;
    mover.drained(version).await;
    target.batch_execute(&format!("UPDATE t SET note = 'left over' WHERE k IN ({list})")).await.unwrap();
    compare("rolled back", &truth, &answers(&mut client, &with).await);
    target
        .batch_execute(&format!("DELETE FROM t WHERE k IN ({list}); DELETE FROM u WHERE k IN ({list})"))
        .await
        .unwrap();
    let version = mover.end(1).await;
    mover.drained(version).await;
    compare("ended", &truth, &answers(&mut client, &with).await);
}
