//! Split INSERTs.

use shard_config::{ShardId, ShardMap};

use super::super::plan::{How, Route};
use super::super::{NoParams, Resolved, resolve};
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
