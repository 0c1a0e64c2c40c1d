SELECT * FROM t
SELECT count(*) FROM t
SELECT count(*), sum(id), min(id), max(id), avg(id) FROM t
SELECT count(DISTINCT id), sum(DISTINCT id) FROM t
SELECT count(*) FILTER (WHERE id > 2), string_agg(note, ',' ORDER BY k, id) FROM t
SELECT array_agg(id ORDER BY k, id) FROM t
SELECT json_agg(note ORDER BY k, id) FROM t
SELECT stddev(id), variance(id), bool_and(id > 0), bool_or(id > 100) FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM t
SELECT id, count(*) FROM t GROUP BY id ORDER BY id
SELECT id, count(*) FROM t GROUP BY id HAVING count(*) > 3 ORDER BY count(*) DESC, id
SELECT k, count(*), max(note) FROM t GROUP BY k
SELECT k, count(*) FROM t GROUP BY ROLLUP (k) ORDER BY k NULLS FIRST
SELECT id, note, count(*) FROM t GROUP BY CUBE (id, note) ORDER BY 1 NULLS LAST, 2 NULLS LAST, 3
SELECT DISTINCT note FROM t
SELECT DISTINCT ON (id) id, k, note FROM t ORDER BY id, k
SELECT * FROM t ORDER BY note DESC NULLS LAST, k, id
SELECT * FROM t ORDER BY note ASC NULLS FIRST, k DESC, id
SELECT k, id FROM t ORDER BY id % 3, k, id LIMIT 7
SELECT k, id FROM t ORDER BY k, id OFFSET 5 LIMIT 5
SELECT k, id FROM t ORDER BY k, id FETCH FIRST 3 ROWS ONLY
SELECT id FROM t ORDER BY id FETCH FIRST 3 ROWS WITH TIES
SELECT k, id FROM t ORDER BY k, id LIMIT 0
SELECT k, id, rank() OVER (PARTITION BY id ORDER BY k) FROM t ORDER BY id, k
SELECT k, id, sum(id) OVER (ORDER BY k, id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t ORDER BY k, id
SELECT k, row_number() OVER w, lag(id) OVER w FROM t WINDOW w AS (ORDER BY k, id) ORDER BY k, id
SELECT k, id FROM t WHERE id = 2
SELECT k, id FROM t WHERE note LIKE 'n%' AND id BETWEEN 1 AND 3
SELECT k, id FROM t WHERE note IS NULL OR id = 1 ORDER BY 1, 2
SELECT t.k, t.id, o.amount FROM t JOIN o USING (k, id)
SELECT t.k, t.id, o.amount FROM t LEFT JOIN o ON t.k = o.k AND t.id = o.id ORDER BY 1, 2
SELECT t.k, t.id, o.amount FROM t RIGHT JOIN o ON t.k = o.k AND t.id = o.id
SELECT t.k, o.k, t.id FROM t FULL JOIN o ON t.k = o.k AND t.id = o.id ORDER BY 1 NULLS FIRST, 2 NULLS FIRST, 3
SELECT a.k, b.k FROM t a JOIN o b ON a.id = b.id ORDER BY 1, 2
SELECT a.k, b.k FROM t a, t b WHERE a.id = b.id AND a.k < b.k ORDER BY 1, 2
SELECT t.k, r.rate FROM t JOIN rates r ON r.code = t.note ORDER BY 1, 2
SELECT r.code, count(t.k) FROM rates r LEFT JOIN t ON t.note = r.code GROUP BY r.code ORDER BY 1
SELECT r.code, t.k FROM rates r LEFT JOIN t ON t.note = r.code AND t.id = 1 ORDER BY 1, 2 NULLS LAST
SELECT p.name, count(*) FROM plain p JOIN t ON t.id = p.id GROUP BY p.name ORDER BY 1
SELECT * FROM t WHERE EXISTS (SELECT 1 FROM o WHERE o.k = t.k AND o.amount > 10)
SELECT * FROM t WHERE NOT EXISTS (SELECT 1 FROM o WHERE o.k = t.k AND o.id = t.id)
SELECT * FROM t WHERE id IN (SELECT id FROM o WHERE amount > 10)
SELECT * FROM t WHERE k IN (SELECT k FROM o)
SELECT * FROM t WHERE id NOT IN (SELECT id FROM o WHERE amount > 20)
SELECT * FROM t WHERE id > ALL (SELECT id FROM o WHERE amount < 3)
SELECT k, (SELECT sum(amount) FROM o WHERE o.k = t.k) FROM t ORDER BY 1, 2
SELECT k, (SELECT max(amount) FROM o) FROM t WHERE id = 1 ORDER BY 1
SELECT (SELECT max(t.id) FROM rates LIMIT 1) FROM t
SELECT * FROM (SELECT k, count(*) AS n FROM t GROUP BY k) s WHERE n > 1
SELECT * FROM (SELECT k, id FROM t ORDER BY k, id LIMIT 5) s ORDER BY id, k
SELECT s.k, l.amount FROM t s, LATERAL (SELECT amount FROM o WHERE o.k = s.k ORDER BY amount DESC LIMIT 1) l ORDER BY 1, s.id
SELECT k FROM t UNION SELECT k FROM o ORDER BY 1
SELECT k, id FROM t UNION ALL SELECT k, id FROM o ORDER BY 1, 2
SELECT k, id FROM t INTERSECT SELECT k, id FROM o ORDER BY 1, 2
SELECT k, id FROM t EXCEPT SELECT k, id FROM o ORDER BY 1, 2
(SELECT k FROM t ORDER BY k LIMIT 2) UNION ALL (SELECT k FROM o ORDER BY k DESC LIMIT 2)
WITH c AS (SELECT k, count(*) AS n FROM t GROUP BY k) SELECT sum(n), max(n) FROM c
WITH c AS MATERIALIZED (SELECT * FROM t WHERE id = 1) SELECT a.k FROM c a JOIN c b USING (note) ORDER BY 1
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n, count(*) FROM r JOIN t ON t.id = r.n GROUP BY n ORDER BY n
WITH RECURSIVE w AS (SELECT k, id FROM t WHERE id = 1 UNION SELECT t.k, t.id FROM t JOIN w ON t.id = w.id + 1) SELECT count(*) FROM w
SELECT * FROM big ORDER BY k, id
SELECT count(*) FROM big
SELECT b.k, t.note FROM big b JOIN t USING (k, id) ORDER BY 1, 2
SELECT * FROM totals ORDER BY k
SELECT id, sum(n) FROM totals JOIN plain ON plain.id = totals.n GROUP BY id ORDER BY 1
TABLE t
SELECT t FROM t ORDER BY k, id
SELECT row_to_json(t) FROM t ORDER BY k, id
SELECT t.* FROM public.t ORDER BY t.k, t.id
SELECT "t"."k" FROM "public"."t" ORDER BY 1, id
SELECT a.x FROM t AS a (x, y) ORDER BY x, y
SELECT k -- a comment
 FROM t /* another */ WHERE id = 1 ORDER BY k -- end
SELECT 'FROM t', k FROM t WHERE note = 'where' ORDER BY 2
SELECT CASE WHEN id > 2 THEN 'big' ELSE 'small' END AS size, count(*) FROM t GROUP BY 1 ORDER BY 1
SELECT coalesce(note, '-'), k FROM t ORDER BY 1, 2, id
SELECT date_trunc('day', at), sum(amount) FROM o GROUP BY 1 ORDER BY 1
SELECT extract(year FROM at)::int, count(*) FROM o GROUP BY 1 ORDER BY 1
SELECT sum(amount), avg(amount), min(at), max(at) FROM o
SELECT sum(amount) * 2, round(avg(amount), 3) FROM o WHERE amount IS NOT NULL
SELECT k, amount FROM o ORDER BY amount DESC NULLS LAST, k, id LIMIT 4
SELECT generate_series(1, 2), k FROM t WHERE id = 1 ORDER BY 2, 1
SELECT unnest(tags), count(*) FROM o GROUP BY 1 ORDER BY 1
SELECT k, tags[1], doc->>'a' FROM o ORDER BY k, id
SELECT k FROM o WHERE doc @> '{"a": 1}' ORDER BY 1, id
SELECT k FROM o WHERE 'x' = ANY (tags) ORDER BY 1, id
SELECT 1 / (id - 1) FROM t ORDER BY k
SELECT nosuch FROM t
SELECT nosuch(k) FROM t
SELECT k FROM t ORDER BY 5
SELECT k, count(*) FROM t
SELECT count(*) FROM t, o WHERE k = 1
SELECT sum(note) FROM t
SELECT * FROM t, nosuch
SELECT 'abc'::int FROM t ORDER BY k
SELECT * FROM t WHERE k IN (1, 2, 3, 4, 5, 6)
SELECT * FROM t WHERE k IN (1, 2, 3, 4, 5, 6) ORDER BY k DESC, id
SELECT count(*) FROM t WHERE k = ANY ('{1,2,3,4}')
SELECT * FROM t WHERE k = 1 OR k = 2 OR k = 3
SELECT k FROM t WHERE k = 1 UNION ALL SELECT k FROM t WHERE k = 2
SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id WHERE a.k = 1 AND b.k = 2 ORDER BY 1
SELECT sum(id) FROM t WHERE (k, id) IN ((1, 1), (2, 2), (3, 3))
SELECT k % 4 AS m, count(*) FROM t WHERE id > 1 GROUP BY k % 4 ORDER BY m
SELECT max(k) - min(k) FROM t
SELECT every(k > 0), bit_and(id), bit_or(id) FROM t
SELECT mode() WITHIN GROUP (ORDER BY note) FROM t
SELECT count(*) FROM t WHERE false
SELECT max(id) FROM t WHERE false
SELECT * FROM t WHERE false ORDER BY k
SELECT k FROM t WHERE id = (SELECT max(id) FROM t) ORDER BY 1
SELECT n.k FROM t n JOIN LATERAL (SELECT count(*) AS c FROM t m WHERE m.id = n.id) x ON x.c > 3 ORDER BY 1, n.id
SELECT bool(id) FROM t ORDER BY k, id LIMIT 2
SELECT k, id, note, count(*) FROM t JOIN o USING (k, id) GROUP BY t.k, t.id ORDER BY 1, 2
SELECT id AS where FROM t WHERE id > 1 ORDER BY 1, k
SELECT (SELECT count(1 ORDER BY t.id)) FROM t
SELECT (SELECT mode() WITHIN GROUP (ORDER BY t.id)) FROM t
SELECT k FROM t WHERE note IS NOT NULL AND id > 1 -- the end
 ORDER BY k, id
SELECT count(*), count(note), count(*) FILTER (WHERE note = 'n1') FROM t
SELECT sum(s), sum(b), sum(n), sum(y::int), avg(s), avg(b), avg(n) FROM v
SELECT sum(s), sum(b), sum(n), avg(s), avg(b), avg(n), min(s), max(w), count(*) FROM v WHERE k < 0
SELECT avg(b) * 3, sum(b) / 7, avg(s)::numeric(10, 3), pg_typeof(sum(s)), pg_typeof(avg(b)), pg_typeof(count(*)) FROM v
SELECT min(s), max(b), min(w), max(d), bool_and(y), bool_or(y), every(y), bit_and(s), bit_or(b), bit_xor(s) FROM v
SELECT max(n), min(n) FROM v WHERE n > 2
SELECT y, count(*), sum(n), max(d) FROM v GROUP BY y ORDER BY y NULLS FIRST
SELECT w, sum(b) AS total FROM v GROUP BY w HAVING sum(b) > 5 AND count(*) > 0 ORDER BY total DESC, w LIMIT 3
SELECT w, sum(b) AS total FROM v GROUP BY w ORDER BY total DESC, w OFFSET 1 LIMIT 2
SELECT upper(w) AS u, count(*) FROM v GROUP BY upper(w) ORDER BY u
SELECT upper(w) AS u, count(*) FROM v GROUP BY u ORDER BY 2 DESC, 1
SELECT upper(v.w) || '!', count(*) + 1, sum(s) * 2 - min(s) FROM v GROUP BY upper(w) ORDER BY 1
SELECT date_trunc('month', at), sum(amount), avg(amount) FROM o WHERE at > '2026-01-15' GROUP BY 1 ORDER BY 1
SELECT date_trunc('month', at) AS m, count(*) FROM o GROUP BY m HAVING count(*) > 1 ORDER BY m
SELECT d - 1, count(*) FROM v GROUP BY d - 1 ORDER BY d - 1
SELECT id % 2 = 0 AS even, CASE WHEN count(*) > 10 THEN 'many' ELSE 'few' END FROM t GROUP BY id % 2 = 0 ORDER BY even
SELECT amount, count(*) FROM o GROUP BY amount ORDER BY amount NULLS FIRST LIMIT 5
SELECT count(DISTINCT note), count(*), sum(DISTINCT id), max(id) FROM t
SELECT id, count(DISTINCT note), count(*), sum(id) FROM t GROUP BY id ORDER BY id
SELECT count(DISTINCT id % 3) FROM t WHERE k > 100
SELECT n, count(*) FROM v WHERE n > 2 GROUP BY n ORDER BY n
SELECT count(DISTINCT n) FROM v
SELECT max(f), count(f) FROM v
SELECT sum(f) FROM v WHERE k = 1
SELECT r.code, count(*), sum(t.id) FROM t JOIN rates r ON r.code = t.note GROUP BY r.code ORDER BY r.code
SELECT count(*), max(o.amount) FROM t JOIN o USING (k, id) WHERE t.note IS NOT NULL
SELECT t.id, sum(o.amount) FROM t LEFT JOIN o ON t.k = o.k AND t.id = o.id GROUP BY t.id ORDER BY id
SELECT count(*) FROM t WHERE EXISTS (SELECT 1 FROM o WHERE o.k = t.k AND o.amount > 10)
SELECT count(*) FROM (SELECT k, count(*) AS n FROM t GROUP BY k) s WHERE n > 2
WITH c AS (SELECT k, id FROM t WHERE id > 1) SELECT id, count(*) FROM c GROUP BY id ORDER BY id
SELECT count(*) FROM big WHERE amount < 20
SELECT sum(n) FROM totals
SELECT DISTINCT id FROM t ORDER BY id DESC
SELECT DISTINCT id, note FROM t ORDER BY note NULLS FIRST, id LIMIT 4
SELECT DISTINCT n FROM v WHERE n > 2 ORDER BY n
SELECT DISTINCT id % 2 AS p FROM t ORDER BY p
SELECT DISTINCT y, count(*) > 1 FROM v GROUP BY y, w ORDER BY 1, 2
SELECT DISTINCT count(*) FROM t GROUP BY id ORDER BY count(*)
SELECT t.*, id * 2 AS twice FROM t ORDER BY k DESC, id DESC LIMIT 3
SELECT * FROM t ORDER BY 3 NULLS FIRST, k, id LIMIT 6
SELECT id AS k, k AS id FROM t ORDER BY k, id LIMIT 5
SELECT k, id FROM t ORDER BY id + k DESC, k LIMIT 3 OFFSET 2
SELECT id, 1 FROM t ORDER BY id OFFSET 2 FETCH FIRST 2 ROWS WITH TIES
SELECT note FROM t ORDER BY note COLLATE "C" DESC NULLS LAST, k, id LIMIT 3
SELECT doc, tags, amount, at FROM o ORDER BY amount, k, id LIMIT 3
SELECT t.note, o.amount FROM t JOIN o USING (k, id) ORDER BY o.amount DESC NULLS LAST, k, id LIMIT 4
SELECT lower(note) FROM t ORDER BY lower, k, id LIMIT 3
SELECT tags[2] FROM o ORDER BY tags, k, id LIMIT 3
SELECT CASE WHEN id > 2 THEN -1 ELSE -k END, CASE WHEN id > 2 THEN 9 ELSE k END FROM t ORDER BY k, id LIMIT 4
SELECT note::varchar::text FROM t ORDER BY note DESC NULLS LAST, k, id LIMIT 3
SELECT (id + 1)::int8 FROM t ORDER BY int8 DESC, k LIMIT 3
SELECT -id AS id, k FROM t ORDER BY id, k LIMIT 4
SELECT CASE WHEN id > 2 THEN 'a' ELSE 'b' END FROM t ORDER BY 1, k, id LIMIT 3
SELECT 'x', NULL, k FROM t ORDER BY k, id LIMIT 2
SELECT k FROM t ORDER BY k, id LIMIT 2 + 1
SELECT k FROM t ORDER BY k LIMIT -1
SELECT k FROM t ORDER BY k OFFSET -1
SELECT k FROM t ORDER BY k, id LIMIT 9223372036854775807 OFFSET 28
SELECT k FROM t ORDER BY k, id LIMIT NULL
SELECT k FROM t ORDER BY k, id LIMIT ALL OFFSET 27
SELECT 1 / (id - 2) FROM t ORDER BY k, id LIMIT 1
SELECT sum(1 / (id - 2)) FROM t
SELECT row(k, id) FROM t ORDER BY k, id LIMIT 2
SELECT count(*) > 0 FROM o WHERE at < now()
SELECT count(*) FROM o WHERE at < CURRENT_DATE AND at < now() - interval '1 second' AND LOCALTIMESTAMP > at
SELECT count(*), now() > '2020-01-01' FROM t
SELECT k FROM t WHERE now() > '2020-01-01' ORDER BY k, id LIMIT 2
SELECT count(*) FROM t WHERE current_user = 'app'
SELECT count(*) IS DISTINCT FROM 3, min(id) BETWEEN 0 AND 5, max(id) IN (1, 4) FROM t
SELECT coalesce(max(note), '-'), greatest(min(id), 0), nullif(count(*), 0) FROM t
SELECT to_char(sum(amount), 'FM999999.00') FROM o
SELECT count(*) AS "select" FROM t AS "from" WHERE "from".id > 1
SELECT id IS DISTINCT FROM 1 AS other, count(*) FROM t GROUP BY 1 ORDER BY 1
SELECT count(*) FROM t GROUP BY ()
SELECT count(*) FROM t HAVING count(*) > 1000
SELECT 1 FROM t HAVING true
SELECT k, id FROM t WHERE id = 1 FOR SHARE
SELECT k, id FROM t WHERE k IN (1, 2, 3, 4) FOR UPDATE
SELECT k, note FROM t WHERE id < 3 FOR NO KEY UPDATE SKIP LOCKED
