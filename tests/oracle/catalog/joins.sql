-- Joins on the key and not, of sharded, reference and plain tables.
--! list kind: JOIN | LEFT JOIN | RIGHT JOIN | FULL JOIN
--! list cond: c.tenant_id = o.tenant_id AND c.id = o.customer_id | c.tenant_id = o.tenant_id AND c.id = o.id AND o.total > 50 | c.id = o.customer_id AND c.tenant_id = o.tenant_id AND c.active
SELECT c.tenant_id, c.id, c.name, o.id, o.total FROM customers c {kind} orders o ON {cond};
SELECT count(*), count(c.id), count(o.id), sum(o.total) FROM customers c {kind} orders o ON {cond};
SELECT c.name, o.id FROM customers c {kind} orders o ON {cond} WHERE c.tenant_id = {k1};
SELECT c.name, o.id FROM customers c {kind} orders o ON {cond} WHERE o.tenant_id = {k7} ORDER BY c.name COLLATE "C", o.id, c.id;
SELECT c.tenant_id, c.id, o.id FROM customers c {kind} orders o ON {cond} WHERE o.id IS NULL OR c.id IS NULL;
SELECT tenant_id, count(*) FROM customers c {kind} orders o USING (tenant_id) GROUP BY tenant_id;
SELECT c.id, o.tenant_id FROM customers c {kind} orders o ON c.id = o.id AND c.name = 'Bob';
SELECT o.id, n.name FROM orders o {kind} countries n ON n.code = o.country;
SELECT n.code, o.tenant_id, o.id FROM countries n {kind} orders o ON n.code = o.country AND o.status = 'new';
SELECT p.name, sum(i.quantity) FROM products p {kind} items i ON i.product_id = p.id GROUP BY p.name ORDER BY p.name COLLATE "C";
SELECT s.key, c.id FROM settings s {kind} customers c ON c.id = s.n;
SELECT n.word, o.id, o.tenant_id FROM numbers n {kind} orders o ON n.n = o.id WHERE n.n < 4;
SELECT n.code, p.name FROM countries n {kind} products p ON p.id = length(n.name);
SELECT s.key, n.word FROM settings s {kind} numbers n ON n.n = s.n;
SELECT x.a, c.tenant_id, c.id FROM (VALUES (1, 'a'), (2, 'b'), (99, 'c')) x(a, b) {kind} customers c ON c.id = x.a;
SELECT a.tenant_id, a.id, b.id FROM customers a {kind} customers b ON a.tenant_id = b.tenant_id AND b.id = a.id + 1;
SELECT a.tenant_id, b.tenant_id, a.name FROM customers a {kind} customers b ON a.name = b.name AND a.tenant_id < b.tenant_id AND a.id = 1;
SELECT o.tenant_id, o.id, i.line, p.name FROM orders o {kind} items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id {kind} products p ON p.id = i.product_id WHERE o.id < 4 OR p.id = 12;
SELECT c.tenant_id, c.id, o.id, i.line FROM customers c {kind} (orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id) ON c.tenant_id = o.tenant_id AND c.id = o.customer_id;
SELECT c.tenant_id, c.id, e.kind FROM customers c {kind} events e ON e.tenant_id = c.tenant_id AND e.seq = c.id;
SELECT c.tenant_id, x.id FROM customers c {kind} nothing x USING (tenant_id, id);
SELECT c.name, o.n FROM customers c {kind} (SELECT tenant_id, customer_id, count(*) AS n FROM orders GROUP BY tenant_id, customer_id) o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id;
SELECT c.name, o.n FROM customers c {kind} (SELECT status, count(*) AS n FROM orders GROUP BY status) o ON o.n = c.id;

SELECT count(*) FROM customers CROSS JOIN countries;
SELECT count(*) FROM customers CROSS JOIN settings;
SELECT count(*) FROM customers a CROSS JOIN customers b WHERE a.tenant_id = b.tenant_id;
SELECT count(*) FROM customers NATURAL JOIN nothing;
SELECT count(*) FROM customers NATURAL LEFT JOIN filled;
SELECT tenant_id, id, a, name FROM customers NATURAL JOIN filled ORDER BY 1, 2;
SELECT * FROM filled JOIN "Odd Names" USING (tenant_id);
SELECT * FROM filled f FULL JOIN nothing n USING (tenant_id, id) ORDER BY f.tenant_id, f.id;
SELECT c.*, o.* FROM customers c JOIN orders o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id WHERE c.id = 1;
SELECT c, o.id FROM customers c JOIN orders o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id WHERE c.id = 2;
SELECT count(*) FROM customers c JOIN orders o ON (c.tenant_id, c.id) = (o.tenant_id, o.customer_id);
SELECT count(*) FROM customers c JOIN orders o ON c.tenant_id = o.tenant_id OR c.id = o.customer_id;
SELECT count(*) FROM customers c, orders o, items i, products p, countries n WHERE c.tenant_id = o.tenant_id AND o.tenant_id = i.tenant_id AND c.id = o.customer_id AND i.order_id = o.id AND p.id = i.product_id AND n.code = o.country;
SELECT count(*) FROM customers c JOIN orders o ON true;
SELECT count(*) FROM customers c JOIN orders o ON false;
SELECT c.tenant_id, c.id FROM customers c LEFT JOIN orders o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id WHERE o.id IS NULL;
SELECT c.tenant_id, c.id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id WHERE o.id IS NULL;
SELECT c.tenant_id, c.id FROM customers c WHERE NOT EXISTS (SELECT FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id);
SELECT a.id, b.id FROM customers a JOIN customers b ON a.tenant_id = b.tenant_id AND a.born < b.born WHERE a.tenant_id IN ({k1}, {k5}) AND a.id < 4 AND b.id < 4;
SELECT j.a FROM (customers c JOIN filled f USING (tenant_id, id)) AS j;
SELECT x.tid, x.i FROM (customers c JOIN filled f USING (tenant_id, id)) AS x (tid, i) WHERE x.i = 2;
SELECT tenant_id FROM customers c JOIN orders o ON c.tenant_id = o.tenant_id;
SELECT c.id FROM customers c JOIN orders c ON true;
SELECT nosuch.id FROM customers c;
SELECT count(*) FROM customers c JOIN orders USING (nosuch);
--! list lateral: (SELECT o.id AS x FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id ORDER BY o.id DESC LIMIT 1) | (SELECT count(*) AS x FROM orders o WHERE o.tenant_id = c.tenant_id) | (SELECT max(total) AS x FROM orders o WHERE o.customer_id = c.id) | (SELECT c.id + 1 AS x) | (SELECT n.name AS x FROM countries n WHERE n.code = 'DE') | (VALUES (c.id)) | generate_series(1, c.id % 3) | unnest(c.tags) | jsonb_array_elements(c.doc->'flags') | (SELECT key AS x FROM settings WHERE n = c.id)
SELECT c.tenant_id, c.id, l.* FROM customers c, LATERAL {lateral} AS l(x);
SELECT c.tenant_id, c.id, l.x FROM customers c LEFT JOIN LATERAL {lateral} AS l(x) ON true WHERE c.tenant_id = {k1};
SELECT count(*), count(l.x) FROM customers c LEFT JOIN LATERAL {lateral} AS l(x) ON l.x IS NOT NULL;
