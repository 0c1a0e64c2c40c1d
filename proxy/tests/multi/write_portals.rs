//! Portals of writes over several shards, and of EXECUTE, message by message: what one PostgreSQL answers.

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use crate::copies::Raw;
use crate::proxy::{World, key};

#[derive(Default)]
struct Messages(BytesMut);

impl Messages {
    fn parse(mut self, name: &str, sql: &str) -> Self {
        frontend::parse(name, sql, [], &mut self.0).unwrap();
        self
    }

    fn bind(mut self, portal: &str, statement: &str) -> Self {
        let none = |_: &str, _: &mut BytesMut| Ok(IsNull::Yes);
        assert!(
            frontend::bind(portal, statement, [], std::iter::empty::<&str>(), none, [], &mut self.0).is_ok()
        );
        self
    }

    fn execute(mut self, portal: &str, rows: i32) -> Self {
        frontend::execute(portal, rows, &mut self.0).unwrap();
        self
    }

    fn describe(mut self, statement: &str) -> Self {
        frontend::describe(b'S', statement, &mut self.0).unwrap();
        self
    }

    fn sync(mut self) -> Vec<u8> {
        frontend::sync(&mut self.0);
        self.0.to_vec()
    }
}

fn messages() -> Messages {
    Messages::default()
}

/// Executed again when they have ended, portals answer as those of the first shard's own server, which is one PostgreSQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_that_have_ended_are_executed_again() {
    let world = World::start("multi-ended-portals").await;
    let mut raw = Raw::connect(world.proxy.port).await;
    let mut one = Raw::connect(world.cluster.primaries[0].port).await;
    let [a, b, c] = [key(1), key(2), key(3)];
    let several = format!("INSERT INTO t VALUES ({a}, 1, 'x'), ({b}, 1, 'x'), ({c}, 1, 'x')");
    let mut statements = vec![
        several.clone(),
        format!("{several} RETURNING id"),
        format!("WITH w AS ({several} RETURNING id) INSERT INTO t SELECT {a}, 9, 'returning' FROM w LIMIT 1"),
        format!("INSERT INTO t VALUES ({a}, 1, 'x')"),
        format!("INSERT INTO t VALUES ({a}, 1, 'x') RETURNING id"),
        "EXECUTE prepared".to_owned(),
        "COPY (SELECT id FROM t ORDER BY k) TO STDOUT".to_owned(),
    ];
    let others = [
        "UPDATE t SET note = 'y'",
        "UPDATE t SET note = 'y' RETURNING k",
        "UPDATE t SET note = 'y' WHERE id = 99 RETURNING k",
        "UPDATE t SET id = id + (SELECT count(*) FROM t)",
        "DELETE FROM t",
        "DELETE FROM t RETURNING note AS returning",
        "SELECT k FROM t",
        "SELECT count(*) FROM t",
        "SELECT k FROM t WHERE id = 99",
        "INSERT INTO rates VALUES ('EUR', 1)",
        "INSERT INTO rates VALUES ('EUR', 1) RETURNING rate",
        "CREATE TABLE new (k int8)",
        "CREATE TABLE new AS EXECUTE prepared WITH NO DATA",
        "SAVEPOINT s",
        "SET work_mem = '4MB'",
        "BEGIN READ WRITE",
        "PREPARE another AS SELECT 1",
        "DEALLOCATE prepared",
        "LOCK t",
        "SHOW work_mem",
        "",
    ];
    statements.extend(others.map(str::to_owned));
    for sql in &statements {
        for (portal, rows) in [("", 0), ("p", 0), ("", 1), ("p", 2), ("p", 3), ("p", 4)] {
            let batch = || {
                let bound = messages().parse("", sql).bind(portal, "");
                bound.execute(portal, rows).execute(portal, rows).execute(portal, rows).sync()
            };
            let mut answers = Vec::new();
            for session in [&mut raw, &mut one] {
                session.query("PREPARE prepared AS SELECT id FROM t").await;
                let mut said = session.query("BEGIN").await;
                said.extend(
                    session.query(&format!("INSERT INTO t VALUES ({a}, 5), ({b}, 5), ({c}, 5)")).await,
                );
                said.extend(session.exchange(&batch()).await);
                // In a block that has failed nothing runs, whatever has ended.
                said.extend(session.exchange(&messages().execute(portal, rows).sync()).await);
                said.extend(session.query("ROLLBACK").await);
                session.query("DEALLOCATE ALL").await;
                answers.push(said);
            }
            assert_eq!(answers[0], answers[1], "{sql} as {portal:?}, {rows} rows at a time");
        }
    }
}

/// BEGIN within a block sets its modes, whoever takes part in it, and who joins later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begin_within_a_block() {
    let world = World::start("multi-begin-again").await;
    let mut raw = Raw::connect(world.proxy.port).await;
    let mut one = Raw::connect(world.cluster.primaries[0].port).await;
    let insert = |shard: u16| format!("INSERT INTO t VALUES ({}, 1)", key(shard));
    let (first, second, all) = (insert(1), insert(2), "SELECT count(*) FROM t".to_owned());
    let show = "SHOW transaction_read_only".to_owned();
    let level = "SHOW transaction_isolation";
    let read = format!("SELECT count(*) FROM t WHERE k = {}", key(1));
    let rows: Vec<String> = (1..=4).map(|shard| format!("({}, 1)", key(shard))).collect();
    let several = format!("INSERT INTO t VALUES {}", rows.join(", "));
    let own = |list: &[&str]| list.iter().map(|sql| (*sql).to_owned()).collect::<Vec<_>>();
    let scripts = [
        own(&["BEGIN", "BEGIN READ ONLY", &show, &first]),
        own(&[
            "BEGIN",
            "START TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
            "SHOW transaction_isolation",
            &all,
            &second,
        ]),
        own(&["BEGIN READ ONLY", "BEGIN", &show, "BEGIN READ WRITE", &first]),
        own(&["BEGIN; BEGIN READ ONLY", &first]),
        own(&["BEGIN", "SAVEPOINT s", "BEGIN READ ONLY", "ROLLBACK TO s", &first]),
        own(&["BEGIN", "BEGIN READ ONLY", "COMMIT AND CHAIN", &show, &first]),
        // One takes part, and another joins.
        own(&["BEGIN", &first, "BEGIN READ ONLY", &show, &second]),
        own(&["BEGIN", &first, "BEGIN", &second]),
        // Several take part.
        own(&["BEGIN", &all, "BEGIN", "BEGIN READ ONLY", &show, &first]),
        own(&["BEGIN", &all, "BEGIN READ ONLY", &second]),
        own(&["BEGIN", &all, "START TRANSACTION ISOLATION LEVEL SERIALIZABLE", "BEGIN"]),
        own(&["BEGIN", "nonsense", "BEGIN READ ONLY"]),
        // READ ONLY ends with the savepoint within which it was said.
        own(&["BEGIN", "SAVEPOINT s", "BEGIN READ ONLY", "ROLLBACK TO s", &read, &first]),
        own(&["BEGIN", "SAVEPOINT s", "BEGIN READ ONLY", "RELEASE s", &read, &first]),
        own(&[
            "BEGIN",
            &all,
            "SAVEPOINT s",
            "BEGIN READ ONLY",
            "RELEASE s",
            &show,
            "COMMIT AND CHAIN",
            &show,
            &first,
        ]),
        own(&["BEGIN", &all, "SAVEPOINT s", "BEGIN READ ONLY", "COMMIT AND CHAIN", &show, &first]),
        own(&["BEGIN", &all, "SAVEPOINT s", "BEGIN READ ONLY", "ROLLBACK AND CHAIN", &show, &first]),
        own(&["BEGIN", &first, "SAVEPOINT s", "BEGIN READ ONLY", "ROLLBACK AND CHAIN", &show, &first]),
        // What follows several has their modes.
        own(&[
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            &several,
            "COMMIT AND CHAIN",
            level,
            "DELETE FROM t",
            "COMMIT",
        ]),
        own(&["BEGIN ISOLATION LEVEL SERIALIZABLE", &several, "ROLLBACK AND CHAIN", level, &second]),
        own(&[
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            &several,
            "nonsense",
            "COMMIT AND CHAIN",
            level,
            &second,
        ]),
        own(&["BEGIN READ ONLY", &all, "COMMIT AND CHAIN", &show, &first]),
        own(&[
            "BEGIN",
            "SET TRANSACTION READ ONLY",
            &all,
            "ROLLBACK AND CHAIN",
            &show,
            &all,
            "COMMIT AND CHAIN",
            &show,
        ]),
    ];
    for script in &scripts {
        let mut answers = Vec::new();
        for session in [&mut raw, &mut one] {
            let mut said = Vec::new();
            for sql in script {
                said.extend(session.said(sql).await);
            }
            said.extend(session.query("ROLLBACK").await);
            answers.push(said);
        }
        assert_eq!(answers[0], answers[1], "{script:?}");
    }
    // By the other protocol.
    let batch = |sql: &str| messages().parse("", sql).bind("", "").execute("", 0).sync();
    for before in [None, Some(&first), Some(&all)] {
        let mut answers = Vec::new();
        for session in [&mut raw, &mut one] {
            let mut said = session.query("BEGIN").await;
            if let Some(before) = before {
                said.extend(session.query(before).await);
            }
            said.extend(session.exchange(&batch("BEGIN")).await);
            said.extend(session.exchange(&batch("BEGIN READ ONLY")).await);
            said.extend(session.said(&show).await);
            said.extend(session.query(&second).await);
            said.extend(session.query("ROLLBACK").await);
            answers.push(said);
        }
        assert_eq!(answers[0], answers[1], "after {before:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_of_writes_and_of_execute() {
    let world = World::start("multi-write-portals").await;
    let mut raw = Raw::connect(world.proxy.port).await;
    let [a, b, c, d] = [key(1), key(2), key(3), key(4)];
    let insert =
        |id: i32| format!("INSERT INTO t VALUES ({a}, {id}, 'x'), ({b}, {id}, 'x'), ({c}, {id}, 'x')");
    let returning = |id: i32| format!("{} RETURNING id", insert(id));

    // As many rows as asked for, and the rest of them; the last portion is counted in the tag.
    let both = messages().parse("", &returning(1)).bind("", "").execute("", 2).execute("", 2).sync();
    assert_eq!(raw.exchange(&both).await, ["1", "2", "D", "D", "s", "D", "CINSERT 0 1", "ZI"]);
    // Exactly as many: there might be more.
    let exactly = messages().parse("", &returning(2)).bind("", "").execute("", 3).execute("", 0).sync();
    assert_eq!(raw.exchange(&exactly).await, ["1", "2", "D", "D", "D", "s", "CINSERT 0 0", "ZI"]);
    // What is not asked for is written all the same.
    let one = messages().parse("", &returning(3)).bind("", "").execute("", 1).sync();
    assert_eq!(raw.exchange(&one).await, ["1", "2", "D", "s", "ZI"]);
    // Without rows the limit means nothing; drivers send one.
    let none = messages().parse("", &insert(4)).bind("", "").execute("", 1).sync();
    assert_eq!(raw.exchange(&none).await, ["1", "2", "CINSERT 0 3", "ZI"]);
    // All rows for one shard.
    let here = format!("INSERT INTO t VALUES ({d}, 5, 'x'), ({d}, 6, 'x') RETURNING id");
    let here = messages().parse("", &here).bind("", "").execute("", 1).sync();
    assert_eq!(raw.exchange(&here).await, ["1", "2", "D", "s", "ZI"]);
    let client = world.proxy.client().await;
    let count = client.query_one("SELECT count(*) FROM t WHERE note = 'x'", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 14);

    // In a block a portal outlives its Sync; a failing statement behind it takes everything back.
    assert_eq!(raw.query("BEGIN").await, ["CBEGIN", "ZT"]);
    let update = "UPDATE t SET note = 'u' WHERE id < 5 RETURNING k";
    let first = messages().parse("", update).bind("p", "").execute("p", 5).sync();
    assert_eq!(raw.exchange(&first).await, ["1", "2", "D", "D", "D", "D", "D", "s", "ZT"]);
    let more = messages().execute("p", 6).execute("p", 6).sync();
    assert_eq!(raw.exchange(&more).await, ["D", "D", "D", "D", "D", "D", "s", "D", "CUPDATE 1", "ZT"]);
    let moved = format!(
        "WITH d AS (DELETE FROM t WHERE id < 5 RETURNING *) INSERT INTO t SELECT {d}, id + 10 * k, note FROM d RETURNING id"
    );
    let parts = messages().parse("", &moved).bind("w", "").execute("w", 10).execute("w", 10).sync();
    let answer = raw.exchange(&parts).await;
    assert_eq!(answer.iter().filter(|one| *one == "D").count(), 12);
    assert_eq!(answer[12..], ["s", "D", "D", "CINSERT 0 2", "ZT"]);
    assert_eq!(raw.query("ROLLBACK").await, ["CROLLBACK", "ZI"]);

    // A name that is taken.
    assert_eq!(raw.query("PREPARE one AS SELECT 1").await, ["CPREPARE", "ZI"]);
    let twice = messages().parse("e", "EXECUTE one").bind("q", "e").bind("q", "e").sync();
    assert_eq!(raw.exchange(&twice).await, ["1", "2", "E42P03", "ZI"]);
    let again = messages().bind("q", "e").execute("q", 0).sync();
    assert_eq!(raw.exchange(&again).await, ["2", "D", "CSELECT 1", "ZI"]);
    assert_eq!(raw.exchange(&again).await, ["2", "D", "CSELECT 1", "ZI"]);

    // What is said of a statement comes where it was asked for.
    let between = messages().parse("s", "SELECT 41").bind("", "s").describe("s").execute("", 0).sync();
    assert_eq!(raw.exchange(&between).await, ["1", "2", "t", "T", "D", "CSELECT 1", "ZI"]);
}
