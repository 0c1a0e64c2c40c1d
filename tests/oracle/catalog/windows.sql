-- Window functions: partitions by the key and not, frames, named windows, windows over groups.
--! list fn: row_number() | rank() | dense_rank() | percent_rank() | cume_dist() | ntile(3) | lag(id) | lag(id, 2, -1) | lead(total, 2, 0) | first_value(id) | last_value(id) | nth_value(id, 2) | sum(total) | count(*) | avg(id) | max(status) | array_agg(id) | string_agg(status, ',') | count(*) FILTER (WHERE status = 'new') | bool_or(total > 200)
--! list win: PARTITION BY tenant_id ORDER BY id | PARTITION BY status ORDER BY tenant_id, id | ORDER BY tenant_id, id | PARTITION BY tenant_id, status ORDER BY total NULLS FIRST, id | PARTITION BY country ORDER BY total DESC NULLS LAST, tenant_id, id
SELECT tenant_id, id, {fn} OVER ({win}) FROM orders;
--! list frame: ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING | ROWS UNBOUNDED PRECEDING | ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING | RANGE BETWEEN 2 PRECEDING AND CURRENT ROW | GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING | ROWS BETWEEN 2 PRECEDING AND 1 PRECEDING EXCLUDE TIES | RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING EXCLUDE CURRENT ROW
SELECT id, tenant_id, sum(id) OVER (PARTITION BY tenant_id ORDER BY id {frame}) AS s FROM orders ORDER BY tenant_id, id;
SELECT id, tenant_id, max(total) OVER (PARTITION BY tenant_id ORDER BY id DESC {frame}) AS s FROM orders ORDER BY 1, 2, 3;
SELECT placed, sum(total) OVER (ORDER BY placed RANGE BETWEEN '10 days' PRECEDING AND '1 day' FOLLOWING) FROM orders ORDER BY placed, 2;
SELECT tenant_id, id, row_number() OVER w, sum(total) OVER w FROM orders WINDOW w AS (PARTITION BY tenant_id ORDER BY id);
SELECT tenant_id, id, rank() OVER w2, count(*) OVER w FROM orders WINDOW w AS (PARTITION BY status), w2 AS (w ORDER BY tenant_id, id);
SELECT status, rank() OVER (ORDER BY count(*) DESC, status) FROM orders GROUP BY status;
SELECT tenant_id, status, sum(sum(total)) OVER (PARTITION BY status ORDER BY tenant_id) FROM orders GROUP BY tenant_id, status;
SELECT tenant_id, count(*) OVER () FROM orders GROUP BY tenant_id ORDER BY 1;
SELECT DISTINCT tenant_id, max(total) OVER (PARTITION BY tenant_id) FROM orders;
SELECT tenant_id, id, total - avg(total) OVER (PARTITION BY tenant_id) FROM orders ORDER BY 3 DESC NULLS LAST, 1, 2 LIMIT 6;
SELECT * FROM (SELECT tenant_id, id, row_number() OVER (PARTITION BY status ORDER BY placed, tenant_id, id) AS n FROM orders) x WHERE n <= 2 ORDER BY 1, 2;
SELECT c.tenant_id, c.id, o.id, lag(o.id) OVER (PARTITION BY c.tenant_id, c.id ORDER BY o.id) FROM customers c JOIN orders o ON o.tenant_id = c.tenant_id AND o.customer_id = c.id;
SELECT code, rank() OVER (ORDER BY tax DESC NULLS LAST) FROM countries ORDER BY 2, 1;
SELECT id, row_number() OVER (ORDER BY id) FROM orders WHERE tenant_id = {k1} ORDER BY 1 LIMIT 5;
SELECT id FROM orders WHERE row_number() OVER () = 1;
SELECT sum(id) OVER nosuch FROM orders;
SELECT id, sum(id) OVER (ROWS BETWEEN CURRENT ROW AND 1 PRECEDING) FROM orders;
SELECT ntile(0) OVER (ORDER BY id) FROM orders;
SELECT * FROM (SELECT tenant_id, id, count(*) OVER () AS n FROM customers) x WHERE tenant_id = {k1};
SELECT * FROM (SELECT tenant_id, id, rank() OVER (ORDER BY total DESC NULLS LAST, tenant_id, id) AS r FROM orders) x WHERE tenant_id = {k2};
