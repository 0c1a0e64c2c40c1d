//! Queries cut into the shards' parts and what is made of them.

use super::with_router;
use crate::route::{Last, SplitPlan};

fn split(sql: &str) -> Option<SplitPlan> {
    with_router(|router, context| router.gather(context, sql.as_bytes()).ok()?.split)
}

/// What a shard runs, and what makes the answer of it: with one column, or with probed columns of these types.
fn cut(sql: &str, types: &[(u32, i32)]) -> Option<(String, String)> {
    let plan = split(sql)?;
    let last = match &plan.last {
        Last::Rows(rows) => rows.last("parts", 1),
        Last::Groups(groups) => groups.last("parts", types)?,
    };
    Some((plan.shard.trim().to_owned(), last))
}

fn check(sql: &str, types: &[(u32, i32)], shard: &str, last: &str) {
    assert_eq!(cut(sql, types), Some((shard.to_owned(), last.to_owned())), "{sql}");
}

const INT4: (u32, i32) = (23, -1);
const INT8: (u32, i32) = (20, -1);
const FLOAT8: (u32, i32) = (701, -1);

#[test]
fn aggregates_are_cut_in_two() {
    check(
        "SELECT count(*) FROM t WHERE x > 1",
        &[],
        "SELECT pg_catalog.count(*) AS p1 FROM t WHERE x > 1",
        "SELECT (coalesce(pg_catalog.sum(p1), 0)::pg_catalog.int8) FROM parts",
    );
    check(
        "SELECT x, sum(x) FROM t GROUP BY x HAVING max(x) > 2 ORDER BY 2 DESC LIMIT 3",
        &[INT4, INT4, INT4],
        "SELECT \"x\" AS g1, pg_catalog.sum(\"x\") AS p1, pg_catalog.max(\"x\") AS p2 FROM t \nGROUP BY 1",
        "SELECT g1, (pg_catalog.sum(p1)::pg_catalog.int8) FROM parts GROUP BY g1 HAVING (pg_catalog.max(p2) > 2) \
         ORDER BY 2 DESC NULLS FIRST LIMIT (3)",
    );
    check(
        "SELECT count(DISTINCT x) FROM t",
        &[INT4],
        "SELECT \"x\" AS g1 FROM t\nGROUP BY 1",
        "SELECT pg_catalog.count(DISTINCT g1) FROM parts",
    );
    let sum = "SELECT sum(x) FROM t";
    assert!(cut(sum, &[INT8]).is_some_and(|(_, last)| last == "SELECT (pg_catalog.sum(p1)) FROM parts"));
    assert_eq!(cut(sum, &[FLOAT8]), None, "the sum of floats depends on their order");
    assert_eq!(cut("SELECT max(x) FROM t", &[(1700, -1)]), None, "1.0 and 1.00 are equal");
    assert!(cut("SELECT max(x) FROM t", &[(1700, 786_438)]).is_some());
    assert_eq!(cut("SELECT x, count(*) FROM t GROUP BY x", &[FLOAT8]), None, "0 and -0 are equal");
}

#[test]
fn ordered_rows_are_cut_in_two() {
    check(
        "SELECT x FROM t ORDER BY x + 1 DESC LIMIT 5",
        &[],
        "SELECT x , (\"x\" + 1) AS s1 FROM t ORDER BY x + 1 DESC \nLIMIT (5)",
        "SELECT c1 FROM parts ORDER BY s1 DESC NULLS FIRST LIMIT (5)",
    );
    check(
        "SELECT DISTINCT x AS y FROM t ORDER BY y FETCH FIRST 2 ROWS WITH TIES -- end",
        &[],
        "SELECT DISTINCT x AS y FROM t ORDER BY y \nFETCH FIRST (2) ROWS WITH TIES",
        "SELECT DISTINCT c1 FROM parts ORDER BY c1 NULLS LAST FETCH FIRST (2) ROWS WITH TIES",
    );
}

#[test]
fn what_is_not_proved_is_not_cut() {
    for sql in [
        "SELECT rank() OVER (ORDER BY x) FROM t ORDER BY 1",
        "SELECT string_agg(x::text, ',') FROM t",
        "SELECT sum(x ORDER BY x) FROM t",
        "SELECT a.x FROM t a JOIN t2 b USING (x) ORDER BY 1",
        "SELECT count(*) FROM t a JOIN t2 b USING (x)",
        "SELECT count(*) FROM currencies c LEFT JOIN t ON t.x = 1",
        "SELECT count(*) FROM t WHERE x > (SELECT avg(x) FROM t2)",
        "SELECT x, count(*) FROM t GROUP BY ROLLUP (x)",
        "SELECT k FROM t UNION SELECT k FROM t2 ORDER BY 1",
        "SELECT random() FROM t ORDER BY x",
        "SELECT max(x) + (SELECT 1) FROM t",
        "SELECT DISTINCT ON (x) k FROM t ORDER BY x",
        "SELECT DISTINCT x, k FROM t ORDER BY x USING >",
        "SELECT x FROM t ORDER BY x LIMIT (SELECT 1)",
    ] {
        assert_eq!(split(sql), None, "{sql}");
    }
}
