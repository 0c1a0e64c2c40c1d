//! What a shard runs that must not show rows on their way.

use shard_config::{Scope, ShardId, ShardMap};

use super::with_router;
use crate::motion::{Hidden, Motion, Motions, Stage};

/// Buckets 0 and 1, on shard 2 by name of a move from shard 1.
fn hidden() -> Hidden {
    let map = ShardMap::even(&[ShardId(1), ShardId(2)], 4096);
    let scope = Scope::new(&[(0, 1)], &[]).expect("a scope");
    let (source, target, stage) = (ShardId(1), ShardId(2), Stage::Copying);
    let motion = Motion {
        move_id: 1,
        scope,
        source,
        target,
        stage,
        since: 0,
        owner_since: 0,
        by_target: false,
        apart: vec![],
    };
    let motions = Motions::new(1, &map, vec![motion], None).expect("well formed").expect("some");
    motions.hidden_on(target).expect("hides").clone()
}

fn text(sql: &str, generated: bool) -> Result<String, String> {
    with_router(|router, context| {
        let text = router.hidden_text(context, sql.as_bytes(), &hidden(), generated);
        text.map_err(|refusal| format!("{} {}", refusal.sqlstate, refusal.message))
    })
}

/// `{k}` stands for the condition on a key of this name.
fn check(sql: &str, expected: &str) {
    let hash = |key: &str| {
        format!("(((hashint8extended({key}, 8816678312871386365) & 4095) BETWEEN 0 AND 1)) IS NOT TRUE")
    };
    let mut expected = expected.to_owned();
    for (mark, key) in [("{k}", "\"k\""), ("{t.k}", "\"t\".\"k\""), ("{x.k}", "\"x\".\"k\"")] {
        expected = expected.replace(mark, &hash(key));
    }
    assert_eq!(text(sql, false), Ok(expected), "{sql}");
}

fn refused(sql: &str, why: &str) {
    let error = text(sql, false).expect_err(sql);
    assert!(
        error.starts_with("0A000") && error.contains(why) && error.contains("move is under way"),
        "{sql}: {error}"
    );
}

#[test]
fn h30_tables_become_queries_of_the_rows_that_may_be_seen() {
    check("SELECT x FROM t", "SELECT x FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\"");
    check(
        "SELECT a.x FROM public.t AS a, ONLY t b WHERE a.x = 1 -- why",
        "SELECT a.x FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS a, \
         (SELECT * FROM ONLY \"public\".\"t\" WHERE {k}) b WHERE a.x = 1 -- why",
    );
    check(
        "WITH c AS (SELECT k FROM t) SELECT * FROM c WHERE EXISTS (SELECT FROM t WHERE t.k = c.k)",
        "WITH c AS (SELECT k FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\") SELECT * FROM c WHERE EXISTS \
         (SELECT FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\" WHERE t.k = c.k)",
    );
    check(
        "EXPLAIN ANALYZE SELECT 1 FROM t",
        "EXPLAIN ANALYZE SELECT 1 FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\"",
    );
    check(
        "SELECT k, count(*) FROM t GROUP BY k",
        "SELECT k, count(*) FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\" GROUP BY k",
    );
}

#[test]
fn h30_targets_get_a_condition() {
    check("UPDATE t SET x = 1", "UPDATE t SET x = 1\nWHERE {t.k} ");
    check(
        "DELETE FROM t x WHERE x.x = 1 OR true -- all",
        "DELETE FROM t x WHERE ( x.x = 1 OR true -- all\n) AND {x.k} ",
    );
    check("UPDATE t SET x = 2 RETURNING x", "UPDATE t SET x = 2 \nWHERE {t.k} RETURNING x");
    check("DELETE FROM t WHERE x = 1 RETURNING k", "DELETE FROM t WHERE ( x = 1 \n) AND {t.k} RETURNING k");
    check(
        "UPDATE t SET x = o.x FROM t o WHERE o.k = t.k",
        "UPDATE t SET x = o.x FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) o WHERE ( o.k = t.k\n) AND {t.k} ",
    );
}

#[test]
fn h30_copies_become_queries() {
    check(
        "COPY public.t (x, k) TO STDOUT WITH (FORMAT csv)",
        "COPY (SELECT \"x\", \"k\" FROM ONLY \"public\".\"t\" WHERE {k}) TO STDOUT WITH (FORMAT csv)",
    );
    check(
        "COPY (SELECT x FROM t) TO STDOUT",
        "COPY (SELECT x FROM (SELECT * FROM \"public\".\"t\" WHERE {k}) AS \"t\") TO STDOUT",
    );
}

#[test]
fn what_would_not_be_the_same_is_not_written() {
    refused("SELECT t FROM t", "the whole row t");
    refused("SELECT row_to_json(x) FROM t x", "the whole row x");
    refused("SELECT ctid FROM t", "ctid");
    refused("TABLE t", "TABLE");
    refused("SELECT k, x FROM t GROUP BY k", "not grouped");
    refused("SELECT k, upper(x::text) FROM t GROUP BY 1", "not grouped");
    refused("WITH d AS (DELETE FROM t RETURNING k) SELECT * FROM d", "a part of WITH that writes");
    assert!(text("SELECT k, x FROM t GROUP BY k", true).is_ok(), "of our own texts it is known");
}
