-- Subqueries: correlated on the key or not, scalar, EXISTS, IN, ANY, ALL, in every clause.
--! list sub: EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) | EXISTS (SELECT FROM orders o WHERE o.customer_id = c.id) | EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = c.tenant_id AND o.total > 290)
--! + NOT EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) | NOT EXISTS (SELECT 1 FROM nothing) | EXISTS (SELECT 1 FROM countries WHERE code = 'DE')
--! + c.id IN (SELECT customer_id FROM orders) | c.id IN (SELECT customer_id FROM orders o WHERE o.tenant_id = c.tenant_id) | c.id NOT IN (SELECT customer_id FROM orders WHERE customer_id IS NOT NULL) | c.id NOT IN (SELECT customer_id FROM orders)
--! + (c.tenant_id, c.id) IN (SELECT tenant_id, customer_id FROM orders WHERE status = 'paid') | (c.tenant_id, c.id) NOT IN (SELECT tenant_id, customer_id FROM orders WHERE customer_id IS NOT NULL) | c.tenant_id IN (SELECT tenant_id FROM orders WHERE total > 280)
--! + c.id = ANY (SELECT n FROM numbers WHERE n < 3) | c.id > ALL (SELECT n FROM settings WHERE n IS NOT NULL) | c.balance > (SELECT avg(balance) FROM customers) | c.balance > (SELECT avg(balance) FROM customers x WHERE x.tenant_id = c.tenant_id)
--! + c.id = (SELECT max(id) FROM customers x WHERE x.tenant_id = c.tenant_id) | c.id = (SELECT count(*) FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) | c.born = (SELECT min(born) FROM customers)
--! + (SELECT count(*) FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) > 1 | c.id < ANY (SELECT quantity FROM items i WHERE i.tenant_id = c.tenant_id) | c.name IN (SELECT name FROM customers x WHERE x.tenant_id = {k2})
--! + EXISTS (SELECT 1 FROM orders o JOIN items i USING (tenant_id) WHERE o.tenant_id = c.tenant_id AND i.quantity > 8) | EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = c.tenant_id AND EXISTS (SELECT 1 FROM items i WHERE i.tenant_id = o.tenant_id AND i.order_id = o.id AND i.quantity = c.id))
--! + c.id <> ALL (ARRAY(SELECT n FROM numbers WHERE word LIKE 't%')) | c.code = ANY (ARRAY(SELECT code FROM customers WHERE tenant_id = {k1})) | (SELECT true) | c.id = (SELECT n FROM settings WHERE key = 'beta') | EXISTS (SELECT 1 FROM customers x WHERE x.name = c.name AND x.tenant_id <> c.tenant_id)
SELECT c.tenant_id, c.id, c.name FROM customers c WHERE {sub};
SELECT count(*), sum(c.id) FROM customers c WHERE {sub};
SELECT c.id FROM customers c WHERE c.tenant_id = {k1} AND {sub};
SELECT c.tenant_id, c.id, {sub} AS yes FROM customers c;
SELECT {sub} AS yes, count(*) FROM customers c GROUP BY 1;
SELECT c.id FROM customers c WHERE {sub} ORDER BY c.tenant_id, c.id LIMIT 5 OFFSET 2;
--! list scalar: (SELECT count(*) FROM orders o WHERE o.tenant_id = c.tenant_id) | (SELECT max(total) FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) | (SELECT max(total) FROM orders) | (SELECT name FROM countries WHERE code = 'JP') | (SELECT word FROM numbers WHERE n = c.id)
--! + (SELECT string_agg(o.status, ',' ORDER BY o.id) FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id) | ARRAY(SELECT o.id FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id ORDER BY 1) | (SELECT count(*) FROM customers x WHERE x.born < c.born) | (SELECT id FROM orders WHERE false) | (SELECT c.name)
--! + (SELECT sum(i.quantity) FROM items i WHERE i.tenant_id = c.tenant_id AND i.order_id IN (SELECT o.id FROM orders o WHERE o.tenant_id = c.tenant_id AND o.customer_id = c.id)) | (SELECT o FROM orders o WHERE o.tenant_id = c.tenant_id AND o.id = 1) | (SELECT json_agg(x.id ORDER BY x.id) FROM orders x WHERE x.tenant_id = c.tenant_id)
SELECT c.tenant_id, c.id, {scalar} FROM customers c;
SELECT c.id, {scalar} AS s FROM customers c WHERE c.tenant_id = {k7} ORDER BY c.id;
SELECT {scalar} FROM customers c WHERE c.id = 1 ORDER BY c.tenant_id;
SELECT c.id FROM customers c WHERE {scalar} IS NOT NULL;
SELECT (SELECT id FROM orders);
SELECT (SELECT id, total FROM orders LIMIT 1);
SELECT id FROM customers WHERE id = (SELECT customer_id FROM orders);
SELECT * FROM (SELECT tenant_id, id, rank() OVER (ORDER BY total DESC NULLS LAST, tenant_id, id) AS r FROM orders) x WHERE r <= 5;
SELECT * FROM (SELECT tenant_id, id, rank() OVER (PARTITION BY tenant_id ORDER BY total DESC NULLS LAST, id) AS r FROM orders) x WHERE r = 1;
SELECT * FROM (SELECT tenant_id, id FROM orders ORDER BY total DESC NULLS LAST, tenant_id, id LIMIT 5) x ORDER BY id, tenant_id;
SELECT * FROM (SELECT tenant_id, max(total) AS m FROM orders GROUP BY tenant_id) x WHERE m > 200;
SELECT * FROM (SELECT tenant_id, id FROM orders UNION ALL SELECT tenant_id, id FROM customers) x WHERE tenant_id = {k1};
SELECT x.n, count(*) FROM (SELECT count(*) AS n FROM orders GROUP BY tenant_id) x GROUP BY x.n ORDER BY 1;
SELECT id FROM orders ORDER BY (SELECT name FROM countries WHERE code = country) NULLS LAST, tenant_id, id LIMIT 8;
SELECT status FROM orders GROUP BY status HAVING count(*) > (SELECT count(*) / 5 FROM orders);
SELECT (SELECT (SELECT max(i.quantity) FROM items i WHERE i.tenant_id = o.tenant_id) FROM orders o WHERE o.tenant_id = c.tenant_id AND o.id = 1) FROM customers c WHERE c.id = 1;
SELECT (SELECT sum(c.id) FROM countries WHERE code = 'DE') FROM customers c GROUP BY c.tenant_id;
SELECT count(*) FROM customers c WHERE c.id = (SELECT count(c.id) FROM nothing);
SELECT o.id FROM orders o WHERE (o.tenant_id, o.total) IN (SELECT tenant_id, max(total) FROM orders GROUP BY tenant_id);
SELECT o.id FROM orders o WHERE (o.status, o.total) IN (SELECT status, max(total) FROM orders GROUP BY status);
