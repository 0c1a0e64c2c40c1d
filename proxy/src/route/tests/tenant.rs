//! `SET shard.key`: what becomes of statements, and what is refused.

use super::with_router;

const KEY: &str = "550e8400-e29b-41d4-a716-446655440000";

/// `Err`: the refusal's SQLSTATE.
fn restricted(sql: &str, key: &str) -> Result<String, String> {
    with_router(|router, context| match router.restrict(context, sql.as_bytes(), key) {
        Ok(Some(text)) => Ok(String::from_utf8(text).unwrap()),
        Ok(None) => Ok("as it is".to_owned()),
        Err(refusal) => Err(refusal.sqlstate.to_owned()),
    })
}

#[test]
fn every_sharded_table_is_restricted() {
    let cases = [
        ("SELECT * FROM t", "SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\""),
        (
            "SELECT a.x FROM public.t AS a, currencies c WHERE x = 1 -- y",
            "SELECT a.x FROM (SELECT * FROM public.t WHERE \"k\" = '5') AS a, currencies c WHERE x = 1 -- y",
        ),
        (
            "SELECT * FROM t LEFT JOIN t2 b ON b.x = t.x WHERE t.x IN (SELECT x FROM t2)",
            "SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\" LEFT JOIN (SELECT * FROM t2 WHERE \"k\" = '5') b \
             ON b.x = t.x WHERE t.x IN (SELECT x FROM (SELECT * FROM t2 WHERE \"k\" = '5') AS \"t2\")",
        ),
        (
            "WITH c AS (SELECT * FROM t) SELECT * FROM c JOIN currencies ON v = code",
            "WITH c AS (SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\") SELECT * FROM c JOIN currencies ON v = code",
        ),
        ("EXPLAIN SELECT * FROM t", "EXPLAIN SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\""),
        (
            "COPY (SELECT * FROM t) TO STDOUT",
            "COPY (SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\") TO STDOUT",
        ),
        ("UPDATE t SET x = 1", "UPDATE t SET x = 1\nWHERE \"t\".\"k\" = '5' "),
        (
            "UPDATE t AS a SET x = t2.x FROM t2 WHERE t2.x = 1 OR true -- all\n RETURNING a.x",
            "UPDATE t AS a SET x = t2.x FROM (SELECT * FROM t2 WHERE \"k\" = '5') AS \"t2\" WHERE ( t2.x = 1 OR true -- all\n \
             \n) AND \"a\".\"k\" = '5' RETURNING a.x",
        ),
        ("DELETE FROM t RETURNING x", "DELETE FROM t \nWHERE \"t\".\"k\" = '5' RETURNING x"),
        ("INSERT INTO t (x, v) VALUES (1, 'a')", "INSERT INTO t (\"k\", x, v) VALUES ('5', 1, 'a')"),
        (
            "INSERT INTO t (x) VALUES ((1)), ($1) ON CONFLICT DO NOTHING",
            "INSERT INTO t (\"k\", x) VALUES ('5', (1)), ('5', $1) ON CONFLICT DO NOTHING",
        ),
        ("INSERT INTO t VALUES (5, 1)", "INSERT INTO t VALUES (5, 1)"),
        (
            "INSERT INTO t (k, x) SELECT k, x + 1 FROM t2",
            "INSERT INTO t (k, x) SELECT k, x + 1 FROM (SELECT * FROM t2 WHERE \"k\" = '5') AS \"t2\"",
        ),
        ("SELECT * FROM currencies", "as it is"),
        ("SELECT * FROM settings", "as it is"),
        ("UPDATE currencies SET name = 'x'", "as it is"),
        ("CREATE TABLE a (n int)", "as it is"),
        ("PREPARE p AS SELECT * FROM t", "as it is"),
        ("BEGIN", "as it is"),
        ("SELECT set_config('a.b', 'c', false)", "as it is"),
        (
            "SELECT 1; SELECT * FROM t; SELECT 2",
            "SELECT 1; SELECT * FROM (SELECT * FROM t WHERE \"k\" = '5') AS \"t\"; SELECT 2",
        ),
        ("this is no statement", "as it is"),
    ];
    for (sql, expected) in cases {
        assert_eq!(restricted(sql, "5").as_deref(), Ok(expected), "{sql}");
    }
    let quoted = restricted("SELECT * FROM docs", "a'b\\c").unwrap();
    assert_eq!(quoted, "SELECT * FROM (SELECT * FROM docs WHERE \"k\" = E'a''b\\\\c') AS \"docs\"");
}

#[test]
fn what_cannot_be_restricted_is_refused() {
    let cases = [
        "TABLE t",
        "SELECT * FROM ONLY t",
        "COPY t FROM STDIN",
        "COPY t TO STDOUT",
        "TRUNCATE t",
        "LOCK TABLE t",
        "UPDATE t SET k = 6",
        "UPDATE t SET x = 1 WHERE CURRENT OF c",
        "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
        "WITH i AS (INSERT INTO t (k, x) VALUES (5, 1) RETURNING *) SELECT * FROM i",
        "MERGE INTO t USING t2 ON t.k = t2.k WHEN MATCHED THEN DELETE",
        "INSERT INTO t DEFAULT VALUES",
        "INSERT INTO t (x) SELECT x FROM t2",
        "INSERT INTO t (k, x) VALUES (6, 1)",
        "INSERT INTO t (k, x) VALUES ($1, 1)",
        "INSERT INTO t VALUES (5, 1), (6, 1)",
        "INSERT INTO t (k, x) SELECT $1, x FROM t2",
        "INSERT INTO t (k, x) SELECT x, x FROM t2",
        "INSERT INTO t (x) OVERRIDING USER VALUE VALUES (1)",
    ];
    for sql in cases {
        assert_eq!(restricted(sql, "5"), Err("0A000".to_owned()), "{sql}");
    }
    for sql in ["SELECT * FROM tenant_totals", "SELECT * FROM account_entries"] {
        assert!(restricted(sql, KEY).unwrap().contains(KEY), "{sql}");
    }
    for sql in [
        "SELECT * FROM latest_payment",
        "SELECT balance_of(tenant_id, 1) FROM accounts",
        "SELECT balance_of($1, 1)",
        "CALL close_month($1, 1)",
    ] {
        assert_eq!(restricted(sql, KEY), Err("0A000".to_owned()), "{sql}");
    }
    assert_eq!(restricted("SELECT * FROM nosuch", "5"), Err("42P01".to_owned()));
}
