//! SQL PREPARE and EXECUTE, compared with one PostgreSQL.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::Cluster;
use crate::proxy::{World, code, key};

/// Everything that the simple protocol tells of one message: columns, rows, tags, or the error with its position.
async fn answer(client: &Client, sql: &str) -> Vec<String> {
    let answered = tokio::time::timeout(std::time::Duration::from_secs(20), client.simple_query(sql)).await;
    match answered.unwrap_or_else(|_| panic!("no answer to {sql}")) {
        Ok(messages) => messages
            .iter()
            .map(|message| match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    format!("columns {:?}", columns.iter().map(|c| c.name().to_owned()).collect::<Vec<_>>())
                }
                SimpleQueryMessage::Row(row) => {
                    format!("row {:?}", (0..row.len()).map(|i| row.get(i)).collect::<Vec<_>>())
                }
                SimpleQueryMessage::CommandComplete(count) => format!("done {count}"),
                other => format!("{other:?}"),
            })
            .collect(),
        Err(error) => {
            let db = error.as_db_error();
            let position = db.and_then(|e| e.position()).map(|p| format!("{p:?}")).unwrap_or_default();
            let detail = db.and_then(|e| e.detail()).unwrap_or_default();
            let message = db.map_or("", |e| e.message());
            vec![format!("error {} {message:?} {detail:?} {position}", code(&error))]
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepare_and_execute_as_in_one_database() {
    let world = World::start("multi-prepare").await;
    let single = Cluster::start("multi-prepare-one", 1, false);
    let four = world.proxy.client().await;
    let one = single.primaries[0].client("app").await;
    one.batch_execute("CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id))")
        .await
        .unwrap();
    one.batch_execute("CREATE TABLE rates (code text PRIMARY KEY, rate int NOT NULL)").await.unwrap();
    let [a, b, c, d] = [key(1), key(2), key(3), key(4)];
    let statements = [
        "PREPARE put (int8, int, text) AS INSERT INTO t VALUES ($1, $2, $3)".to_owned(),
        format!("EXECUTE put ({a}, 1, 'a''s')"),
        format!("EXECUTE put ({b}, 1 + 1, upper('b') || E'\\t\\\\')"),
        format!("EXECUTE put ({c}, 2.6, NULL)"), // Rounded: an assignment.
        format!("EXECUTE put ('{d}', '4', 4)"),
        "SELECT * FROM t ORDER BY k, id".to_owned(),
        "PREPARE get AS SELECT id, note FROM t WHERE k = $1".to_owned(),
        format!("EXECUTE get ({a})"),
        format!("EXECUTE get({c}::numeric)"),
        "EXECUTE get (-1)".to_owned(),
        "EXECUTE get (NULL)".to_owned(),
        "PREPARE everything AS SELECT count(*), sum(id) FROM t".to_owned(),
        "EXECUTE everything".to_owned(),
        "PREPARE some (int) AS SELECT k, id FROM t WHERE id >= $1 ORDER BY k DESC LIMIT 2".to_owned(),
        "EXECUTE some (2)".to_owned(),
        "PREPARE change (text, unknown) AS UPDATE t SET note = $1 WHERE k = $2 RETURNING id, note".to_owned(),
        format!("EXECUTE change ('changed', {b})"),
        "PREPARE rate (text, int) AS INSERT INTO rates VALUES ($1, $2)".to_owned(),
        "EXECUTE rate ('EUR', 1)".to_owned(),
        "EXECUTE rate ('EUR', 2)".to_owned(),
        "PREPARE \"odd (name\" (varchar(3), timestamptz[]) AS VALUES ($1, $2)".to_owned(),
        "EXECUTE \"odd (name\" ('abcdef', '{2026-01-01 00:00+00,NULL}')".to_owned(),
        // What goes wrong, and with which words.
        "PREPARE get AS SELECT 1".to_owned(),
        "EXECUTE missing (1)".to_owned(),
        "EXECUTE get".to_owned(),
        "EXECUTE get (1, 2)".to_owned(),
        "EXECUTE put (true, 1, 'x')".to_owned(),
        "EXECUTE put ('x', 1, 'x')".to_owned(),
        format!("EXECUTE put ({a}, 1, 'again')"),
        "PREPARE bad (int) AS SELECT nothing FROM t WHERE k = $1".to_owned(),
        "PREPARE bad (no_such_type) AS SELECT $1".to_owned(),
        "PREPARE bad AS SELECT $1 + ".to_owned(),
        "EXECUTE get (1/0)".to_owned(),
        format!("EXECUTE get ({d})"),
        // In a block, over several shards, and after an error in it.
        "BEGIN".to_owned(),
        format!("EXECUTE put ({a}, 10, 'block')"),
        format!("EXECUTE put ({b}, 10, 'block')"),
        "EXECUTE everything".to_owned(),
        "SAVEPOINT s".to_owned(),
        "EXECUTE get ('no number')".to_owned(),
        "EXECUTE everything".to_owned(),
        "ROLLBACK TO s".to_owned(),
        "PREPARE within AS SELECT max(id) FROM t WHERE k = $1".to_owned(),
        format!("EXECUTE within ({b})"),
        "COMMIT".to_owned(),
        format!("EXECUTE within ({a})"),
        "DEALLOCATE within".to_owned(),
        format!("EXECUTE within ({a})"),
        "PREPARE within (int8) AS DELETE FROM t WHERE k = $1".to_owned(),
        format!("EXECUTE within ({a})"),
        // Among others in one message.
        "SELECT 1; EXECUTE everything; SELECT 2".to_owned(),
        format!(
            "EXECUTE put ({a}, 20, 'x'); EXECUTE put ({b}, 20, 'x'); EXECUTE get ({a}); PREPARE now AS SELECT 1; EXECUTE now"
        ),
        format!("EXECUTE put ({a}, 21, 'x'); EXECUTE get (1/0); EXECUTE everything"),
        "EXECUTE everything; DEALLOCATE now; EXECUTE now".to_owned(),
        "DISCARD ALL".to_owned(),
        "EXECUTE get (1)".to_owned(),
        "SELECT * FROM t ORDER BY k, id".to_owned(),
    ];
    for sql in &statements {
        assert_eq!(answer(&four, sql).await, answer(&one, sql).await, "{sql}");
    }

    // What the protocol has prepared has the same name space; as with one server, a transaction may come between.
    let mut raw = crate::copies::Raw::connect(world.proxy.port).await;
    assert_eq!(
        raw.query("PREPARE p (int8) AS INSERT INTO t VALUES ($1, 77, 'raw')").await,
        ["CPREPARE", "ZI"]
    );
    for shard in 1..=4 {
        let execute = format!("EXECUTE p ({})", key(shard));
        assert_eq!(raw.query(&execute).await, ["CINSERT 0 1", "ZI"]);
        assert_eq!(raw.query(&execute).await, ["E23505", "ZI"]);
    }
    // Nothing of ours stays behind on servers, not after errors either.
    let left = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'shard_proxy%'";
    for _ in 0..8 {
        assert_eq!(four.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    }
}
