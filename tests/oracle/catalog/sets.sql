-- Set operations, VALUES, CTEs.
--! list op: UNION | UNION ALL | INTERSECT | INTERSECT ALL | EXCEPT | EXCEPT ALL
SELECT id FROM customers {op} SELECT id FROM orders;
SELECT id FROM customers WHERE tenant_id = {k1} {op} SELECT id FROM orders WHERE tenant_id = {k1};
SELECT id FROM customers WHERE tenant_id = {k1} {op} SELECT id FROM orders WHERE tenant_id = {k2} ORDER BY 1;
SELECT tenant_id, id FROM customers {op} SELECT tenant_id, customer_id FROM orders;
SELECT tenant_id FROM customers {op} SELECT tenant_id FROM orders ORDER BY 1;
SELECT name FROM customers {op} SELECT name FROM countries;
SELECT n FROM numbers {op} SELECT id FROM customers ORDER BY 1 DESC;
SELECT n FROM numbers {op} SELECT n FROM settings;
SELECT id, status::text FROM orders {op} VALUES (1, 'new'), (2, 'paid'), (2, 'paid');
SELECT 1 {op} SELECT 1.5 {op} SELECT id FROM customers;
SELECT NULL {op} SELECT id FROM customers;
(SELECT id FROM customers {op} SELECT id FROM orders) {op} SELECT n FROM numbers;
SELECT id FROM customers {op} (SELECT id FROM orders {op} SELECT n FROM numbers) ORDER BY id LIMIT 7;
SELECT count(*) FROM (SELECT tenant_id, id FROM customers {op} SELECT tenant_id, id FROM orders) x;
SELECT tenant_id, count(*) FROM (SELECT tenant_id, id FROM customers {op} SELECT tenant_id, id FROM orders) x GROUP BY tenant_id;
SELECT count(*) FROM (SELECT tenant_id, id FROM customers {op} SELECT tenant_id, id FROM orders) x WHERE tenant_id = {k5};
SELECT status FROM orders WHERE status IN (SELECT status FROM orders WHERE id = 1 {op} SELECT 'new');
SELECT c.id FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = c.tenant_id {op} SELECT 1 FROM nothing);
WITH a AS (SELECT id FROM customers), b AS (SELECT id FROM orders) SELECT * FROM a {op} SELECT * FROM b ORDER BY 1;
SELECT id, name FROM customers {op} SELECT id FROM orders;
SELECT id FROM customers {op} SELECT status FROM orders;

VALUES (1), (2);
VALUES (1, 'x'), (2, NULL);
VALUES (1), (2, 3);
SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(n, t) JOIN customers c ON c.id = v.n WHERE c.tenant_id = {k1};
SELECT v.n, count(c.id) FROM (VALUES (1), (2), (50)) v(n) LEFT JOIN customers c ON c.id = v.n GROUP BY v.n ORDER BY v.n;
SELECT c.id FROM customers c WHERE (c.tenant_id, c.id) IN (VALUES ({k1}::uuid, 1), ({k2}::uuid, 2));
SELECT c.name FROM customers c JOIN (VALUES ({k1}::uuid, 1), ({k7}::uuid, 2)) v(t, i) ON c.tenant_id = v.t AND c.id = v.i;

-- CTEs
--! list kind:  | MATERIALIZED | NOT MATERIALIZED
WITH c AS {kind} (SELECT * FROM customers WHERE tenant_id = {k1}) SELECT id, name FROM c ORDER BY id;
WITH c AS {kind} (SELECT * FROM customers) SELECT count(*) FROM c;
WITH c AS {kind} (SELECT * FROM customers) SELECT id FROM c WHERE tenant_id = {k2};
WITH c AS {kind} (SELECT tenant_id, count(*) AS n FROM orders GROUP BY tenant_id) SELECT c.tenant_id, c.n, x.name FROM c JOIN customers x USING (tenant_id) WHERE x.id = 1;
WITH c AS {kind} (SELECT status, count(*) AS n FROM orders GROUP BY status) SELECT a.status, b.status FROM c a JOIN c b ON a.n < b.n;
WITH a AS {kind} (SELECT id, tenant_id FROM customers), b AS {kind} (SELECT a.id, a.tenant_id FROM a WHERE a.id < 3) SELECT b.id, count(*) FROM b GROUP BY b.id ORDER BY 1;
WITH c(t, n) AS {kind} (SELECT tenant_id, id FROM orders ORDER BY total DESC NULLS LAST, tenant_id, id LIMIT 3) SELECT c.n, i.line FROM c JOIN items i ON i.tenant_id = c.t AND i.order_id = c.n;
WITH c AS {kind} (SELECT * FROM countries) SELECT c.code, count(o.id) FROM c LEFT JOIN orders o ON o.country = c.code GROUP BY c.code ORDER BY 1;
SELECT id, (WITH m AS {kind} (SELECT max(o.id) AS m FROM orders o WHERE o.tenant_id = c.tenant_id) SELECT m FROM m) FROM customers c WHERE c.id = 1;
WITH customers AS {kind} (SELECT 1 AS id) SELECT * FROM customers;
WITH customers AS {kind} (SELECT * FROM oracle.customers WHERE tenant_id = {k1}) SELECT count(*) FROM customers;
WITH unused AS {kind} (SELECT * FROM orders) SELECT count(*) FROM customers;
--! list step: UNION | UNION ALL
WITH RECURSIVE r(n) AS (SELECT 1 {step} SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r;
WITH RECURSIVE r(n) AS (SELECT 1 {step} SELECT n + 1 FROM r WHERE n < 5) SELECT r.n, count(c.id) FROM r LEFT JOIN customers c ON c.id = r.n GROUP BY r.n ORDER BY 1;
WITH RECURSIVE r AS (SELECT id, tenant_id FROM customers WHERE id = 1 {step} SELECT c.id, c.tenant_id FROM customers c JOIN r ON c.tenant_id = r.tenant_id AND c.id = r.id + 1) SELECT tenant_id, count(*) FROM r GROUP BY tenant_id ORDER BY 1;
WITH RECURSIVE r AS (SELECT id, tenant_id FROM customers WHERE id = 1 AND tenant_id = {k1} {step} SELECT c.id, c.tenant_id FROM customers c JOIN r ON c.tenant_id = r.tenant_id AND c.id = r.id + 1) SELECT count(*) FROM r;
WITH RECURSIVE r AS (SELECT id, 0 AS depth FROM customers WHERE tenant_id = {k2} {step} SELECT c.id, r.depth + 1 FROM customers c JOIN r ON c.id = r.id + 1 WHERE r.depth < 2) SELECT depth, count(*) FROM r GROUP BY depth ORDER BY 1;
WITH RECURSIVE r(a, b) AS (VALUES (0, 1) {step} SELECT b, a + b FROM r WHERE b < 50) SELECT a FROM r ORDER BY a, b;
WITH RECURSIVE r(n) AS (SELECT 1 {step} SELECT n + 1 FROM r WHERE n < 20) SEARCH BREADTH FIRST BY n SET o SELECT n FROM r ORDER BY o LIMIT 3;
WITH RECURSIVE r(n) AS (SELECT 1 {step} SELECT n % 3 + 1 FROM r) CYCLE n SET looped USING path SELECT n, looped FROM r ORDER BY n, looped;
WITH RECURSIVE r(n) AS (SELECT n FROM r) SELECT * FROM r;
WITH c AS (SELECT 1), c AS (SELECT 2) SELECT * FROM c;
WITH c AS (SELECT * FROM nosuch) SELECT * FROM c;
WITH c AS (SELECT 1) SELECT * FROM d;
