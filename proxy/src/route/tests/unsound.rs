//! What a router that takes the first `key = value` it sees gets wrong, and what it could have proved.

use super::check;

/// Every construct for which first-match routers return a part of the answer.
#[test]
fn a_key_somewhere_in_the_text_proves_nothing() {
    check(&[
        ("SELECT * FROM t WHERE k = 1 UNION ALL SELECT * FROM t WHERE k = 2", "key #0, #1 r"),
        ("SELECT * FROM t WHERE k = 1 UNION ALL SELECT * FROM t", "gather r"),
        ("SELECT * FROM t UNION SELECT * FROM t WHERE k = 1", "gather r"),
        ("SELECT * FROM t WHERE k = 1 EXCEPT SELECT * FROM t2 WHERE x = 3", "gather r"),
        ("SELECT * FROM t WHERE k % 10 = 3", "each r"),
        ("SELECT * FROM t WHERE k = $1 + 1", "each r"),
        ("SELECT * FROM t WHERE k = - $1", "each r"),
        ("SELECT * FROM t WHERE k IN (5, fee(7))", "each r"),
        ("SELECT * FROM t WHERE k IN (5, x)", "each r"),
        ("SELECT * FROM t a WHERE EXISTS (SELECT 1 FROM t2 o WHERE o.k = 5)", "gather r"),
        ("SELECT count(*) FILTER (WHERE k = 1) FROM t", "gather r"),
        ("SELECT * FROM t a LEFT JOIN t2 b ON b.k = 5", "gather r"),
        ("SELECT * FROM t a LEFT JOIN t2 b ON a.k = 5 AND b.k = a.k", "each r"),
        ("SELECT * FROM t a RIGHT JOIN t2 b ON a.k = b.k WHERE a.x = 5", "each r"),
        ("SELECT * FROM t a FULL JOIN t2 b ON a.k = b.k AND a.k = 5", "gather r"),
        ("SELECT * FROM t a FULL JOIN t2 b USING (k) WHERE k = 5", "gather r"),
        ("SELECT * FROM t a, t2 b WHERE a.k = 1 AND b.k = 2", "key #0, #1 r"),
        ("SELECT * FROM t a, t2 b WHERE a.k = 1 AND b.x = 2", "gather r"),
        ("INSERT INTO t SELECT k, x, v FROM t2", "each w"),
        ("INSERT INTO t (x, v) VALUES (1, 'a')", "apply w"),
        ("INSERT INTO t DEFAULT VALUES", "apply w"),
        ("INSERT INTO t (k, x) VALUES (DEFAULT, 1)", "apply w"),
        ("SELECT * FROM t WHERE k = 1 OR x = 2", "each r"),
        ("SELECT * FROM t WHERE NOT (k = 1)", "each r"),
        ("SELECT * FROM t WHERE (k = 1) IS NOT TRUE", "each r"),
        ("SELECT * FROM t WHERE k <> 1", "each r"),
        ("SELECT * FROM t WHERE k NOT IN (1, 2)", "each r"),
        ("SELECT * FROM t WHERE k >= 1 AND k <= 1", "each r"),
        ("SELECT * FROM t WHERE k = ALL ($1)", "each r"),
        ("SELECT * FROM t WHERE k IS NOT DISTINCT FROM 1", "each r"),
        ("SELECT CASE WHEN k = 1 THEN x END FROM t", "each r"),
        ("SELECT k = 1 FROM t", "each r"),
        ("SELECT * FROM t ORDER BY k = 1", "gather r"),
        ("SELECT sum(x) FROM t GROUP BY k HAVING k = 1", "each r"),
        ("SELECT * FROM t WHERE coalesce(k, 1) = 1", "each r"),
        ("SELECT * FROM t WHERE (SELECT k) = 1", "each r"),
        ("DELETE FROM t WHERE EXISTS (SELECT 1 FROM t2 WHERE t2.k = 4)", "apply w"),
        ("UPDATE t SET x = 1 FROM t2 WHERE t2.k = 4", "apply w"),
        ("UPDATE t SET v = 'a' WHERE x IN (SELECT x FROM t2 WHERE k = 3)", "apply w"),
        ("WITH c AS (SELECT * FROM t WHERE k = 1) SELECT * FROM t2", "gather r"),
        ("WITH c AS (SELECT * FROM t) SELECT * FROM c a JOIN c b ON a.k = b.k WHERE a.k = 1", "gather r"),
        ("SELECT * FROM (SELECT * FROM t LIMIT 10) s WHERE s.k = 1", "gather r"),
        ("SELECT * FROM (SELECT * FROM t OFFSET 10) s WHERE s.k = 1", "gather r"),
        ("SELECT * FROM (SELECT DISTINCT ON (x) * FROM t) s WHERE s.k = 1", "gather r"),
        ("SELECT * FROM (SELECT k, rank() OVER (ORDER BY x) FROM t) s WHERE s.k = 1", "gather r"),
        ("SELECT * FROM (SELECT k + 0 AS k FROM t) s WHERE s.k = 1", "gather r"),
        ("SELECT * FROM latest_payment WHERE tenant_id = $1", "gather r"),
        ("SELECT * FROM t WHERE 1 NOT IN (SELECT k FROM t2)", "gather r"),
        ("SELECT * FROM t WHERE k = 1 AND x NOT IN (SELECT x FROM t2)", "gather r"),
        ("SELECT * FROM t WHERE k = 1 AND NOT (k IN (SELECT k FROM t2))", "gather r"),
        ("SELECT * FROM t WHERE k = 1 OR k IN (SELECT k FROM t2 WHERE x = 1)", "gather r"),
        ("SELECT x FROM t WHERE x = (SELECT max(x) FROM t2) AND k = 3", "gather r"),
        ("SELECT * FROM t, settings WHERE t.k = 1", "gather r"),
        ("SELECT * FROM t, pg_class WHERE t.k = 1", "gather r"),
        ("SELECT nextval('s'), x FROM t WHERE k = 1", "refuse 0A000"),
        (
            "WITH RECURSIVE c AS (SELECT * FROM t WHERE k = 1 UNION ALL SELECT t2.* FROM t2 JOIN c ON t2.x = c.x) SELECT * FROM c",
            "gather r",
        ),
        (
            "WITH RECURSIVE c(k, x) AS (SELECT k, x FROM t WHERE k = 1 UNION ALL SELECT t2.x, t2.x FROM t2 JOIN c ON t2.k = c.k) SELECT * FROM c",
            "gather r",
        ),
    ]);
}

/// Two columns that are each one of (1, 2) need not be equal: the set does not carry k = 2 into the LIMIT.
#[test]
fn sets_of_keys_do_not_make_columns_equal() {
    check(&[
        (
            "SELECT * FROM t WHERE k IN (SELECT z.k FROM (SELECT k FROM t2 WHERE k = 2 OR k = 1 ORDER BY 1 LIMIT 2) z) AND k = 2",
            "key #4, [#0 #1] r",
        ),
        ("SELECT * FROM (SELECT k FROM t2 WHERE k IN (1, 2) LIMIT 1) s JOIN t ON t.k = s.k", "key [#0 #1] r"),
    ]);
}

/// An output of a subquery may be NULL: naming it outside does not make its side of a LEFT JOIN present.
#[test]
fn an_output_is_not_a_comparison() {
    check(&[
        (
            "SELECT * FROM (SELECT a.k, b.x FROM t a LEFT JOIN (SELECT * FROM t2 WHERE k = 1) b ON a.k = b.k) s WHERE s.k = s.k",
            "each r",
        ),
        (
            "SELECT * FROM (SELECT a.k, b.x FROM t a LEFT JOIN (SELECT * FROM t2 WHERE k = 1) b ON a.k = b.k) s WHERE s.x = s.k",
            "key #0 r",
        ),
        (
            "SELECT * FROM (SELECT a.k, b.x FROM t a LEFT JOIN (SELECT * FROM t2 WHERE k = 1) b ON a.k = b.k) s WHERE s.x = 3",
            "key #0 r",
        ),
        (
            "SELECT * FROM t a LEFT JOIN t2 b ON a.k = b.k AND b.k = 1 CROSS JOIN LATERAL (SELECT b.x AS y) l",
            "each r",
        ),
    ]);
}

/// RETURNING shows rows as they became, WHERE selects them as they were.
#[test]
fn an_updated_column_is_not_what_it_was() {
    check(&[
        (
            "WITH u AS (UPDATE t SET x = 2 WHERE k = 1 AND x = 7 RETURNING x) SELECT * FROM t4 JOIN u ON t4.k = u.x",
            "apply w",
        ),
        (
            "WITH u AS (UPDATE t SET x = 2 WHERE k = 1 RETURNING *) SELECT * FROM t2 JOIN u ON t2.k = u.k",
            "key #1 w",
        ),
        (
            "WITH u AS (UPDATE t SET k = 42 WHERE k = 0 RETURNING k) SELECT * FROM t2 JOIN u ON t2.k = u.k",
            "apply w",
        ),
        (
            "UPDATE t4 SET x = 2 WHERE k = 1 AND x = 7 RETURNING (SELECT max(t.x) FROM t WHERE t.k = t4.x)",
            "apply w",
        ),
    ]);
}

/// A name within WITH RECURSIVE may be a CTE that is still to come; a CTE's own CTEs end with it.
#[test]
fn cte_names_end_where_they_should() {
    check(&[
        (
            "WITH RECURSIVE a AS (SELECT * FROM currencies), currencies AS (SELECT * FROM t WHERE k = 1) SELECT * FROM a",
            "refuse 0A000",
        ),
        (
            "WITH RECURSIVE a AS (WITH t AS (SELECT 1 AS k) SELECT k FROM t UNION ALL SELECT k FROM t) SELECT a.k FROM a, t",
            "each r",
        ),
        ("SELECT * FROM (WITH t AS (SELECT 1 AS k) SELECT * FROM t) s, t", "each r"),
        ("WITH t AS (SELECT * FROM t WHERE k = 1) SELECT * FROM t", "key #0 r"),
    ]);
}

/// A later column of the same name, a hidden name, an alias: the condition is about something else.
#[test]
fn names_are_resolved_as_postgres_does() {
    check(&[
        ("SELECT * FROM t AS a, t2 AS t WHERE t.k = 1", "gather r"),
        ("SELECT * FROM t, t2 WHERE k = 1", "gather r"),
        ("SELECT * FROM (SELECT x AS k FROM t) s WHERE k = 1", "gather r"),
        ("SELECT * FROM t AS a (x, k) WHERE k = 1", "each r"),
        ("SELECT * FROM t AS a (x, k) WHERE x = 1", "key #0 r"),
        ("SELECT * FROM t a WHERE EXISTS (SELECT 1 FROM t2 a WHERE a.k = 1)", "gather r"),
        (
            "SELECT * FROM t WHERE EXISTS (SELECT 1 FROM t2 WHERE t2.k = t.k AND t.k = 1) AND t.k = 1",
            "key #2 r",
        ),
        ("WITH t AS (SELECT 1 AS k) SELECT * FROM t WHERE k = 2", "any r"),
        ("WITH t2 AS (SELECT 5 AS k) SELECT * FROM t, t2 WHERE t2.k = 5", "each r"),
        ("SELECT * FROM public.t WHERE public.t.k = 1", "key #0 r"),
        ("SELECT * FROM t WHERE t.k = 1", "key #0 r"),
        ("SELECT * FROM \"T\" WHERE k = 1", "refuse 42P01"),
        ("SELECT * FROM T WHERE K = 1", "key #0 r"),
        ("SELECT * FROM \"Odd Schema\".\"Odd Table\" WHERE \"Tenant ID\" = $1", "key $1 r"),
        ("SELECT * FROM \"Odd Schema\".\"Odd Table\" o WHERE o.\"Tenant ID\" = $1", "key $1 r"),
        ("SELECT * FROM \"Odd Schema\".\"Odd Table\" WHERE \"tenant id\" = $1", "each r"),
        ("SELECT * FROM accounts_of_app WHERE tenant_id = $1", "key $1 r"),
        ("SELECT * FROM settings WHERE name = 'a'", "default r"),
        ("SELECT * FROM other.settings WHERE value = 'a'", "each r"),
        ("SELECT * FROM nosuch", "refuse 42P01"),
        ("SELECT * FROM nosuch.accounts", "refuse 42P01"),
        ("SELECT * FROM (t JOIN t2 USING (k)) AS j (a, b, c, d, e) WHERE a = 1", "key #0 r"),
        ("SELECT * FROM (t a JOIN t2 b USING (k)) AS j WHERE j.k = 1", "key #0 r"),
        ("SELECT * FROM (t a JOIN t2 b USING (k)) AS j WHERE a.k = 1", "each r"),
    ]);
}

/// What is provable must not be refused.
#[test]
fn proofs_follow_equality_through_blocks() {
    check(&[
        ("SELECT * FROM t WHERE k = 1", "key #0 r"),
        ("SELECT * FROM t WHERE 1 = k", "key #0 r"),
        ("SELECT * FROM t WHERE k = $1", "key $1 r"),
        ("SELECT * FROM t WHERE k = $1 AND k = 5", "key $1 r"),
        ("SELECT * FROM t WHERE ((k = 1)) AND (x = 2 OR v = 'a')", "key #0 r"),
        ("SELECT * FROM t WHERE k = -5", "key #0 r"),
        ("SELECT * FROM t WHERE k=-5", "key #0 r"),
        ("SELECT * FROM t WHERE k = '5'", "key #0 r"),
        ("SELECT * FROM t WHERE k = 5::bigint", "key #0 r"),
        ("SELECT * FROM t WHERE k = bigint '5'", "key #0 r"),
        ("SELECT * FROM t WHERE k = CAST($1 AS integer)", "key $1 r"),
        ("SELECT * FROM t WHERE k IN (1, 2, 3)", "key [#0 #1 #2] r"),
        ("SELECT * FROM t WHERE k IN ($1)", "key $1 r"),
        ("SELECT * FROM t WHERE k = ANY ($1)", "key any $1 r"),
        ("SELECT * FROM t WHERE k = ANY ('{1,2}')", "key any #0 r"),
        ("SELECT * FROM t WHERE k = ANY ('{1,2}'::bigint[])", "key any #0 r"),
        ("SELECT * FROM t WHERE k = ANY (ARRAY[1, $2])", "key [#0 $2] r"),
        ("SELECT * FROM t WHERE k = ANY ($1::int8[])", "key any $1 r"),
        ("SELECT * FROM t WHERE k = 1 OR k = 2", "key [#0 #1] r"),
        (
            "SELECT * FROM t WHERE (k = 1 AND x = 1) OR (k = 2 AND x = 7) OR k IN (3, 4)",
            "key [#0 #2 [#4 #5]] r",
        ),
        ("SELECT * FROM t WHERE k = NULL", "key null r"),
        ("SELECT * FROM t WHERE (k, x) = (1, 2)", "key #0 r"),
        ("SELECT * FROM t WHERE (k, x) IN ((1, 2), (3, 4))", "key [#0 #2] r"),
        ("SELECT * FROM t WHERE (x, k) IN (($1, $2))", "key $2 r"),
        ("SELECT * FROM t JOIN t2 ON t.k = t2.k WHERE t.k = 1", "key #0 r"),
        ("SELECT * FROM t JOIN t2 USING (k) WHERE k = 1", "key #0 r"),
        ("SELECT * FROM t NATURAL JOIN t2 WHERE k = 1", "key #0 r"),
        ("SELECT * FROM t, t2 WHERE t.k = t2.k AND t2.k = $1", "key $1 r"),
        ("SELECT * FROM t a, t2 b, t c WHERE a.k = b.k AND c.k = b.k AND c.k = 9", "key #0 r"),
        ("SELECT * FROM t JOIN t4 ON t.k = t4.k WHERE t4.k = 9", "key #0, #0 r"),
        ("SELECT * FROM t LEFT JOIN t2 ON t.k = t2.k AND t.x = t2.x WHERE t.k = 1", "key #0 r"),
        ("SELECT * FROM t LEFT JOIN t2 ON t2.k = 1 WHERE t.k = 1", "key #1, #0 r"),
        ("SELECT * FROM t LEFT JOIN t2 ON t.k = t2.k WHERE t2.k = 1", "key #0 r"),
        ("SELECT * FROM t RIGHT JOIN t2 ON t.k = t2.k WHERE t2.k = 1", "key #0 r"),
        (
            "SELECT * FROM t a LEFT JOIN t2 b ON a.k = b.k LEFT JOIN t c ON c.k = b.k WHERE a.k = 1",
            "key #0 r",
        ),
        ("SELECT * FROM t a LEFT JOIN (t2 b JOIN t c ON b.k = c.k) ON a.k = b.k WHERE a.k = 1", "key #0 r"),
        ("SELECT * FROM t a FULL JOIN t2 b ON a.k = b.k WHERE a.k = 5 AND b.k = 5", "key #0, #1 r"),
        ("SELECT * FROM t CROSS JOIN currencies WHERE t.k = 1", "key #0 r"),
        ("SELECT * FROM t WHERE k = 1 AND EXISTS (SELECT 1 FROM t2 WHERE t2.k = t.k)", "key #0 r"),
        (
            "SELECT * FROM t WHERE k = 1 AND NOT EXISTS (SELECT 1 FROM t2 WHERE t2.k = t.k AND x = 2)",
            "key #0 r",
        ),
        ("SELECT * FROM t WHERE k = 1 AND x NOT IN (SELECT x FROM t2 WHERE t2.k = t.k)", "key #0 r"),
        ("SELECT * FROM t WHERE k = 1 AND k IN (SELECT k FROM t2)", "key #0 r"),
        ("SELECT * FROM t WHERE k IN (SELECT k FROM t2 WHERE k = 1)", "key #0 r"),
        ("SELECT * FROM t WHERE (k, x) IN (SELECT k, x FROM t2 WHERE t2.k = 7)", "key #0 r"),
        ("SELECT (SELECT max(x) FROM t2 WHERE t2.k = t.k) FROM t WHERE k = 1", "key #0 r"),
        ("SELECT * FROM t WHERE k = 1 ORDER BY (SELECT count(*) FROM t2 WHERE t2.k = t.k)", "key #0 r"),
        (
            "SELECT x, count(*) FROM t WHERE k = 1 GROUP BY x HAVING count(*) > (SELECT min(x) FROM t2 WHERE k = 1)",
            "key #0, #1 r",
        ),
        ("SELECT * FROM (SELECT * FROM t) s WHERE s.k = 1", "key #0 r"),
        ("SELECT * FROM (SELECT * FROM t WHERE k = 1 LIMIT 3) s JOIN t2 ON t2.k = s.k", "key #0 r"),
        ("SELECT * FROM (SELECT DISTINCT k, x FROM t) s WHERE s.k = 1", "key #0 r"),
        ("SELECT * FROM (SELECT DISTINCT ON (k) k, x FROM t ORDER BY k, x) s WHERE s.k = 1", "key #0 r"),
        ("SELECT * FROM (SELECT k AS a, sum(x) FROM t GROUP BY k) s WHERE a = 1", "key #0 r"),
        ("SELECT * FROM (SELECT k FROM t UNION ALL SELECT k FROM t2) s WHERE k = 1", "key #0 r"),
        (
            "SELECT * FROM (SELECT k FROM t INTERSECT SELECT k FROM t2 EXCEPT SELECT k FROM t) s WHERE k = 1",
            "key #0 r",
        ),
        (
            "SELECT * FROM t, LATERAL (SELECT * FROM t2 WHERE t2.k = t.k ORDER BY x LIMIT 3) l WHERE t.k = 1",
            "key #1 r",
        ),
        (
            "SELECT * FROM t LEFT JOIN LATERAL (SELECT * FROM t2 WHERE t2.k = t.k LIMIT 1) l ON true WHERE t.k = 1",
            "key #1 r",
        ),
        ("WITH c AS (SELECT * FROM t WHERE k = 1) SELECT * FROM c JOIN t2 ON t2.k = c.k", "key #0 r"),
        (
            "WITH c AS (SELECT * FROM t WHERE k = $1), d AS (SELECT * FROM c) SELECT * FROM d a JOIN d b USING (x)",
            "key $1 r",
        ),
        ("WITH c AS (SELECT * FROM t) SELECT * FROM c WHERE k = 1", "key #0 r"),
        ("WITH c (a, b) AS (SELECT k, x FROM t) SELECT * FROM c WHERE a = 1", "key #0 r"),
        (
            "WITH RECURSIVE c AS (SELECT k, x FROM t WHERE k = 1 UNION ALL SELECT t2.k, t2.x FROM t2 JOIN c ON t2.k = c.k AND t2.x = c.x + 1) SELECT * FROM c",
            "key #0 r",
        ),
        ("SELECT * FROM account_entries WHERE tenant_id = $1 AND account_id = $2 LIMIT 20", "key $1 r"),
        (
            "SELECT * FROM account_entries a JOIN accounts b USING (tenant_id, account_id) WHERE b.tenant_id = $1",
            "key $1 r",
        ),
        ("SELECT total FROM tenant_totals WHERE tenant_id = $1", "key $1 r"),
        ("SELECT * FROM rates", "any r"),
        ("SELECT * FROM (VALUES (1, 2), (3, 4)) AS v (k, x) JOIN t ON t.k = v.k", "key [#0 #2] r"),
        (
            "SELECT * FROM unnest($1::bigint[], $2::int[]) AS u (k, x) JOIN t ON t.k = u.k AND t.x = u.x",
            "key any $1 r",
        ),
        ("SELECT t.* FROM t TABLESAMPLE bernoulli (10) WHERE k = 1", "key #1 r"),
        ("TABLE currencies", "any r"),
        ("TABLE t", "each r"),
        ("VALUES (1), (2)", "any r"),
        ("SELECT * FROM t WHERE k = 1 FOR UPDATE", "key #0 w"),
        ("SELECT * FROM t WHERE k = 1 FOR NO KEY UPDATE SKIP LOCKED", "key #0 w"),
        ("SELECT random() FROM t WHERE k = 1", "key #0 w"),
        ("SELECT k, row_number() OVER (PARTITION BY k ORDER BY x) FROM t WHERE k = 1", "key #0 r"),
        (
            "(SELECT * FROM t WHERE k = 1 LIMIT 1) UNION ALL (SELECT * FROM t2 WHERE k = 1 LIMIT 1) ORDER BY 1 LIMIT 1",
            "key #0, #2 r",
        ),
    ]);
}

/// What each shard may answer for its own rows, and what only looks like it.
#[test]
fn a_scatter_is_proved_key_by_key() {
    check(&[
        ("SELECT * FROM t", "each r"),
        ("SELECT x, count(*) FROM t GROUP BY x", "gather r"),
        ("SELECT k, count(*) FROM t GROUP BY k", "each r"),
        ("SELECT k, count(*) FROM t GROUP BY 1 HAVING count(*) > 1", "each r"),
        ("SELECT k, x, count(*) FROM t GROUP BY x, k", "each r"),
        ("SELECT k, count(*) FROM t GROUP BY ROLLUP (k)", "gather r"),
        ("SELECT k, count(*) FROM t GROUP BY GROUPING SETS ((k), ())", "gather r"),
        ("SELECT count(*) FROM t", "gather r"),
        ("SELECT 1 FROM t HAVING true", "gather r"),
        ("SELECT DISTINCT k FROM t", "gather r"),
        ("SELECT k, rank() OVER (PARTITION BY k ORDER BY x) FROM t", "gather r"),
        ("SELECT * FROM t LIMIT 1", "gather r"),
        ("SELECT * FROM t ORDER BY 1", "gather r"),
        ("SELECT * FROM t JOIN t2 USING (k)", "each r"),
        ("SELECT * FROM t JOIN t2 USING (x)", "gather r"),
        ("SELECT * FROM t LEFT JOIN t2 ON t.k = t2.k", "each r"),
        ("SELECT * FROM t FULL JOIN t2 ON t.k = t2.k", "gather r"),
        // A row that no shard has a partner for would come from every shard.
        ("SELECT * FROM currencies c LEFT JOIN t ON t.v = c.code", "gather r"),
        ("SELECT * FROM t RIGHT JOIN currencies c ON t.v = c.code", "gather r"),
        ("SELECT s.k FROM (SELECT t.k FROM currencies c LEFT JOIN t ON t.v = c.code) s", "gather r"),
        ("SELECT s.k FROM (SELECT k FROM t) s", "each r"),
        ("SELECT s.k FROM (SELECT k, count(*) FROM t GROUP BY ROLLUP (k)) s", "gather r"),
        ("SELECT s.k FROM (SELECT k FROM t UNION ALL SELECT k FROM t2) s", "gather r"),
        ("SELECT (SELECT count(*) FROM t2 WHERE t2.k = t.k) FROM t", "each r"),
        ("SELECT (SELECT count(*) FROM t2) FROM t", "gather r"),
        // The aggregate is the outer query's.
        ("SELECT (SELECT max(t.x) FROM currencies LIMIT 1) FROM t", "gather r"),
        ("SELECT * FROM t WHERE EXISTS (SELECT 1 FROM t2 WHERE t2.k = t.k)", "each r"),
        ("SELECT * FROM t WHERE k IN (SELECT k FROM t2)", "each r"),
        ("SELECT * FROM t WHERE x IN (SELECT x FROM t2)", "gather r"),
        ("SELECT (SELECT mode() WITHIN GROUP (ORDER BY t.x)) FROM t", "gather r"),
        ("SELECT (SELECT count(1 ORDER BY t.x)) FROM t", "gather r"),
        // Aggregates and windows with a grammar of their own.
        ("SELECT JSON_ARRAYAGG(x) FROM t", "gather r"),
        ("SELECT JSON_OBJECTAGG(k: x) FROM t", "gather r"),
        ("SELECT x, JSON_ARRAYAGG(k) OVER (ORDER BY k) FROM t", "gather r"),
        ("SELECT * FROM (SELECT k, JSON_ARRAYAGG(x) OVER () AS a FROM t) s WHERE k = 1", "gather r"),
        ("UPDATE t SET x = x + 1", "each w"),
        ("UPDATE t SET k = 5", "apply w"),
        ("UPDATE t SET x = (SELECT count(*) FROM t2)", "apply w"),
        ("UPDATE t SET x = t2.x FROM t2 WHERE t2.k = t.k", "each w"),
        ("UPDATE t SET x = t2.x FROM t2 WHERE t2.x = t.x", "apply w"),
        ("DELETE FROM t USING t2 WHERE t.k = t2.k", "each w"),
        ("INSERT INTO t (k, x) SELECT k, x FROM t2", "each w"),
        ("INSERT INTO t (k, x) SELECT x, k FROM t2", "apply w"),
        ("INSERT INTO t (k, x) SELECT k, x FROM t2 LIMIT 1", "apply w"),
        ("INSERT INTO t (k) SELECT generate_series(1, 10)", "apply w"),
        ("SELECT * FROM t FOR UPDATE", "each w"),
        ("SELECT * FROM t ORDER BY x FOR UPDATE", "refuse 0A000"),
        ("SELECT * FROM t LIMIT 1 FOR UPDATE SKIP LOCKED", "refuse 0A000"),
        ("SELECT ctid, * FROM t ORDER BY k", "refuse 0A000"),
        ("SELECT public.t.k FROM public.t ORDER BY 1", "refuse 0A000"),
        ("SELECT nextval('s'), k FROM t", "refuse 0A000"),
        ("SELECT * FROM t TABLESAMPLE SYSTEM (10) ORDER BY k", "refuse 0A000"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t", "refuse 0A000"),
        ("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE", "refuse 0A000"),
        ("EXPLAIN ANALYZE UPDATE t SET x = 1", "refuse 0A000"),
        ("EXPLAIN ANALYZE SELECT * FROM t ORDER BY x", "gather r"),
        ("COPY (SELECT * FROM t ORDER BY k) TO STDOUT", "gather r"),
        ("CREATE TEMP TABLE work AS SELECT * FROM t", "refuse 0A000"),
    ]);
}
