-- GROUP BY in all of its forms, HAVING, DISTINCT.
--! list by: status | status, country | country | placed::date | date_trunc('month', placed) | id % 3 | note | tenant_id | tenant_id, status | total > 100 | (status, country) | coalesce(note, '-')
SELECT {by}, count(*), sum(total) FROM orders GROUP BY {by};
SELECT count(*), max(id) FROM orders GROUP BY {by} ORDER BY 1, 2;
SELECT count(*) AS n, min(tenant_id::text) FROM orders GROUP BY {by} HAVING count(*) > 2 ORDER BY n DESC, 2;
--! list sets: ROLLUP (status) | ROLLUP (status, country) | CUBE (status, country) | GROUPING SETS ((status), (country)) | GROUPING SETS ((status, country), ()) | GROUPING SETS (()) | ROLLUP (status), country | status, ROLLUP (country) | GROUPING SETS (ROLLUP (status), CUBE (country)) | DISTINCT ROLLUP (status), ROLLUP (status, country)
SELECT status, country, count(*), sum(total) FROM orders GROUP BY {sets}, status, country;
SELECT grouping(status), count(*), sum(id) FROM orders GROUP BY status, {sets};
--! list whole: ROLLUP (status, country) | CUBE (status, country) | GROUPING SETS ((status, country), (status), ()) | GROUPING SETS ((status), (country), ()) | ROLLUP (country, status)
SELECT status, country, grouping(status, country) AS g, count(*) FROM orders GROUP BY {whole} ORDER BY g, status NULLS FIRST, country NULLS FIRST, 4;
SELECT status, country, count(*) FROM orders GROUP BY {whole} HAVING count(*) > 3 ORDER BY 3 DESC, 1 NULLS LAST, 2 NULLS LAST;
SELECT status, country, sum(total) FROM orders WHERE tenant_id = {k1} GROUP BY {whole};
SELECT tenant_id, count(*) FROM orders GROUP BY ROLLUP (tenant_id) ORDER BY 1 NULLS LAST;
SELECT tenant_id, status, count(*) FROM orders GROUP BY GROUPING SETS ((tenant_id), (status)) ORDER BY 1 NULLS LAST, 2 NULLS LAST;
SELECT tenant_id, status, count(*), grouping(tenant_id) FROM orders GROUP BY tenant_id, CUBE (status);
--! list having: count(*) > 1 | sum(total) > 500 | min(id) = 1 | count(*) = (SELECT max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY status) x) | bool_or(note IS NULL) | max(total) - min(total) > 250 | count(DISTINCT country) > 4 | status > 'new' | NOT count(*) > 1000 | count(*) BETWEEN 10 AND 60
SELECT status, count(*) FROM orders GROUP BY status HAVING {having};
SELECT tenant_id, status, count(*) FROM orders GROUP BY tenant_id, status HAVING {having};
SELECT o.status, r.region, count(*) FROM orders o JOIN countries r ON r.code = o.country GROUP BY o.status, r.region HAVING count(*) > 1;
--! list what: status | country | status, country | tenant_id | tenant_id, status | note | total > 100 | placed::date | (id % 2) AS odd | name_of.region | 1 | NULL::text | count(*) OVER ()
SELECT DISTINCT {what} FROM orders LEFT JOIN countries name_of ON name_of.code = orders.country;
SELECT count(*) FROM (SELECT DISTINCT {what} FROM orders LEFT JOIN countries name_of ON name_of.code = orders.country) x;
--! list on: status | country | tenant_id | status, country | tenant_id, status | (total > 100) | id
SELECT DISTINCT ON ({on}) id, tenant_id, status, country, total FROM orders ORDER BY {on}, tenant_id, id;
SELECT DISTINCT ON ({on}) id, tenant_id, status FROM orders ORDER BY {on}, id DESC, tenant_id DESC;
SELECT DISTINCT ON (status) status, id FROM orders ORDER BY id;
SELECT DISTINCT status FROM orders ORDER BY total;
SELECT DISTINCT doc->'level' FROM customers;
SELECT DISTINCT tags FROM customers ORDER BY tags NULLS FIRST;
SELECT DISTINCT name FROM customers ORDER BY name COLLATE "C";
SELECT DISTINCT lower(name) FROM customers;
SELECT DISTINCT m FROM typed ORDER BY m DESC;
SELECT m, count(*) FROM typed GROUP BY m ORDER BY m;
SELECT tenant_id, name, count(*) FROM customers GROUP BY tenant_id, id;
SELECT c.tenant_id, c.id, c.name, count(o.id) FROM customers c LEFT JOIN orders o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id GROUP BY c.tenant_id, c.id;
SELECT id, name FROM customers GROUP BY id;
SELECT status, id FROM orders GROUP BY status;
SELECT status FROM orders GROUP BY 3;
SELECT 1 AS one, count(*) FROM orders GROUP BY one;
SELECT status AS s, count(*) FROM orders GROUP BY s ORDER BY s;
SELECT upper(status) AS status, count(*) FROM orders GROUP BY status ORDER BY 1, 2;
