//! Split INSERTs.

use shard_config::{ShardId, ShardMap};

use super::super::plan::{How, Route};
use super::super::{Command, NoParams, Resolved, resolve};
use super::with_router;

fn rows(sql: &str) -> (String, Vec<String>, String) {
    with_router(|router, context| {
        let routed = router.simple(context, sql.as_bytes());
        let statement = &routed.statements[0];
        let text = &sql[statement.text.clone()];
        let Route::SplitInsert(split) = &statement.plan.route else { panic!("{:?}", statement.plan.route) };
        let span = |r: &std::ops::Range<u32>| text[r.start as usize..r.end as usize].to_owned();
        for row in &split.rows {
            for (n, r) in &row.parameters {
                assert_eq!(span(r), format!("${}", n + 1));
            }
        }
        (span(&split.head), split.rows.iter().map(|r| span(&r.text)).collect(), span(&split.tail))
    })
}

#[test]
fn rows_are_cut_at_their_parentheses() {
    let (head, rows, tail) = rows(
        " INSERT INTO \"t\" (k, v) /* values (9) */ VALUES (1, 'a),(b') , (2, format('%s', $$) , ($$)), -- (3)\n ($1, $2) RETURNING (k)",
    );
    assert_eq!(head, "INSERT INTO \"t\" (k, v) /* values (9) */ VALUES ");
    assert_eq!(rows, ["(1, 'a),(b')", "(2, format('%s', $$) , ($$))", "($1, $2)"]);
    assert_eq!(tail, " RETURNING (k)");
}

#[test]
fn a_column_may_be_called_values() {
    let (head, rows, tail) =
        rows("INSERT INTO t (k, \"values\") VALUES (1, 2), (2, 3) ON CONFLICT DO NOTHING");
    assert_eq!(head, "INSERT INTO t (k, \"values\") VALUES ");
    assert_eq!(rows.len(), 2);
    assert_eq!(tail, " ON CONFLICT DO NOTHING");
}

#[test]
fn rows_go_to_their_shards() {
    let map = ShardMap::even(&[ShardId(1), ShardId(2), ShardId(3), ShardId(4)], 4096);
    let route = |sql: &str| {
        with_router(|router, context| {
            let routed = router.simple(context, sql.as_bytes());
            let s = &routed.statements[0];
            let text = &sql.as_bytes()[s.text.clone()];
            resolve(&s.plan, &s.literals, text, &NoParams { client_encoding_is_utf8: true }, &map)
        })
    };
    // Buckets 205, 1749, 1730, 383 (the vectors of shard-config): shards 1, 2, 2, 1.
    let Resolved::SplitInsert(split) = route("INSERT INTO t (k) VALUES (0), (1), (-1), ('42')") else {
        panic!()
    };
    assert_eq!(split.shards.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 2, 1]);
    // All on one shard: not split at all.
    assert!(matches!(
        route("INSERT INTO t (k) VALUES (0), (42)"),
        Resolved::One { shard: ShardId(1), key: None }
    ));
    assert!(
        matches!(route("INSERT INTO t (k) VALUES (0), (NULL)"), Resolved::Refuse(r) if r.sqlstate == "23502")
    );
    // UPDATE to a key of another shard.
    assert!(matches!(
        route("UPDATE t SET k = 1 WHERE k = 0"),
        Resolved::Scatter { how: How::Apply, shards: Some(shards) } if shards[..] == [ShardId(1), ShardId(2)]
    ));
    assert!(matches!(route("UPDATE t SET k = 42 WHERE k = 0"), Resolved::One { .. }));
}

/// Each part of WITH that writes has a copy of its own, of the rows that its own condition finds.
#[test]
fn parts_of_with_are_written_to_copies() {
    with_router(|router, context| {
        let sql = "WITH d AS (DELETE FROM t AS o WHERE o.x > $1 RETURNING k, x), u AS (UPDATE t2 SET x = 1 WHERE k IN (SELECT k FROM d)) \
            INSERT INTO t (k, x) SELECT x, k FROM d ON CONFLICT DO NOTHING";
        assert!(
            router.apply(context, sql.as_bytes()).is_err(),
            "what conflicts is known to the shards alone"
        );
        let sql = sql.replace("ON CONFLICT DO NOTHING", "RETURNING x");
        let plan = router.apply(context, sql.as_bytes()).unwrap();
        let writes: Vec<_> =
            plan.writes.iter().map(|w| (w.command, w.name.as_str(), w.filter.as_ref())).collect();
        let filter = writes[0].2.map(|filter| (filter.alias.as_str(), filter.condition.trim()));
        assert_eq!((writes[0].0, writes[0].1, filter), (Command::Delete, "t", Some(("o", "o.x > $1"))));
        assert_eq!(writes[1], (Command::Update, "t2", None));
        assert_eq!(writes[2], (Command::Insert, "t", None));
        assert_eq!((plan.with_tail, plan.tail.as_str()), (Some(2), "RETURNING x"));
        assert_eq!(
            plan.text,
            "WITH d AS (DELETE FROM pg_temp.shard_target_0 AS o WHERE o.x > $1 RETURNING k, x), \
                u AS (UPDATE pg_temp.shard_target_1 AS \"t2\" SET x = 1 WHERE k IN (SELECT k FROM d)) \
            INSERT INTO pg_temp.shard_target_2 AS \"t\" (k, x) SELECT x, k FROM d "
        );
    });
}
