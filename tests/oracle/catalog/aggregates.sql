-- Every aggregate of PostgreSQL's documentation, over all tenants, by key and by something else. Floats are added up in
-- an order that PostgreSQL does not promise, so their sums are rounded.

--! list agg: count(*) | count(total) | count(DISTINCT status) | sum(total) | sum(DISTINCT id) | avg(total) | avg(id) | min(total) | max(total) | min(placed) | max(placed)
--! + min(status COLLATE "C") | max(note COLLATE "C") | min(note) | max(status) | bool_and(id > 0) | bool_or(total > 290) | every(total IS NOT NULL) | bit_and(id) | bit_or(id) | bit_xor(id)
--! + stddev(total) | stddev_pop(total) | stddev_samp(id) | variance(total) | var_pop(id) | var_samp(total)
--! + count(*) FILTER (WHERE status = 'new') | sum(total) FILTER (WHERE id > 3) | avg(total) FILTER (WHERE false)
--! + array_agg(id ORDER BY tenant_id, id) | array_agg(DISTINCT status ORDER BY status) | string_agg(status, ',' ORDER BY tenant_id, id) | string_agg(DISTINCT status, '/' ORDER BY status DESC NULLS LAST)
--! + json_agg(id ORDER BY tenant_id, id) | jsonb_agg(status ORDER BY tenant_id, id) | json_object_agg(tenant_id::text || id, status ORDER BY tenant_id, id) | jsonb_object_agg(tenant_id::text || id, total)
--! + percentile_cont(0.5) WITHIN GROUP (ORDER BY id) | percentile_disc(0.25) WITHIN GROUP (ORDER BY total) | percentile_disc(ARRAY[0.1, 0.9]) WITHIN GROUP (ORDER BY total) | mode() WITHIN GROUP (ORDER BY status)
--! + rank(100) WITHIN GROUP (ORDER BY total) | dense_rank(100) WITHIN GROUP (ORDER BY total) | round(percent_rank(100) WITHIN GROUP (ORDER BY total)::numeric, 6) | round(cume_dist(100) WITHIN GROUP (ORDER BY total)::numeric, 6)
--! + round(corr(id, total)::numeric, 6) | round(covar_pop(id, total)::numeric, 4) | round(covar_samp(id, total)::numeric, 4) | regr_count(id, total) | round(regr_avgx(id, total)::numeric, 4) | round(regr_avgy(id, total)::numeric, 4) | round(regr_r2(id, total)::numeric, 6) | round(regr_slope(id, total)::numeric, 6) | round(regr_intercept(id, total)::numeric, 6) | round(regr_sxx(id, total)::numeric, 3) | round(regr_sxy(id, total)::numeric, 3) | round(regr_syy(id, total)::numeric, 3)
--! + sum(total) / count(*) | max(id) - min(id) | coalesce(sum(total), 0) + 1 | count(*) * 2 | greatest(count(*), sum(id)) | xmlagg(NULL) | any_value(1)
--! + sum(id + 1) | sum(CASE WHEN status = 'new' THEN 1 ELSE 0 END) | product(2) | count(note) - count(DISTINCT note) | sum(id)::text || 'x' | array_length(array_agg(id), 1)
SELECT {agg} FROM orders;
SELECT {agg} FROM orders WHERE tenant_id = {k1};
SELECT tenant_id, {agg} FROM orders GROUP BY tenant_id;
SELECT status, {agg} FROM orders GROUP BY status ORDER BY status;

--! list empty: count(*) | sum(id) | max(v) | array_agg(id) | string_agg(v, ',') | bool_and(id > 0) | json_agg(id) | avg(id) | count(DISTINCT v)
SELECT {empty} FROM nothing;
SELECT tenant_id, {empty} FROM nothing GROUP BY tenant_id;
SELECT {empty} FROM nothing HAVING count(*) > 0;

SELECT sum(score) FROM customers;
SELECT round(avg(score)::numeric, 6), round(sum(score)::numeric, 4), round(stddev(score)::numeric, 6) FROM customers;
SELECT min(born), max(created), max(email), min(code), max(active::int), sum(balance) FROM customers;
SELECT min(tags), max(tags) FROM customers;
SELECT count(DISTINCT tenant_id), count(DISTINCT (tenant_id, id)), count(DISTINCT name) FROM customers;
SELECT count(DISTINCT doc), count(DISTINCT tags), count(DISTINCT photo) FROM customers;
SELECT sum(iv), min(t), max(iv), min(ip), max(m), min(m), max(r), max(money), sum(money) FROM typed;
SELECT range_agg(r), range_intersect_agg(r) FROM typed;
SELECT bit_or(b), bit_and(b), max(v::text) FROM typed;
SELECT product(p) FROM typed WHERE id = 1 AND p < 3;
SELECT array_agg(xs ORDER BY tenant_id, id) FROM typed WHERE id = 1 AND p = 1;
--! text
SELECT array_agg(m ORDER BY tenant_id, id), array_agg(pr ORDER BY tenant_id, id) FROM typed;
SELECT sum(quantity * price), sum(quantity * price * (1 - coalesce(discount, 0))) FROM items;
SELECT product_id, sum(quantity), sum(quantity * price)::numeric(12, 2), count(discount), avg(discount) FROM items GROUP BY product_id ORDER BY product_id;
SELECT product_id % 3, line, count(*) FROM items GROUP BY product_id % 3, line ORDER BY 1, 2;
SELECT count(*) FROM (SELECT DISTINCT status, country FROM orders) d;
SELECT avg(n), max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY tenant_id) t;
SELECT avg(n), max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY status) t;
SELECT (SELECT sum(total) FROM orders) - (SELECT sum(total) FROM orders WHERE status = 'new');
SELECT sum(sum(total)) OVER () FROM orders GROUP BY status;
SELECT status, sum(count(*)) OVER (ORDER BY status) FROM orders GROUP BY status ORDER BY status;
SELECT count(*) FROM orders o, orders p;
SELECT sum(total) FROM orders GROUP BY ();
SELECT 1 FROM orders HAVING count(*) > 5;
SELECT 1 FROM orders HAVING false;
SELECT max(max(id)) FROM orders;
SELECT sum(note) FROM orders;
SELECT status FROM orders WHERE count(*) > 1;
SELECT id, count(*) FROM orders;
SELECT count(nosuch) FROM orders;
SELECT string_agg(note) FROM orders;
SELECT tenant_id, id, sum(total) OVER () FROM orders GROUP BY tenant_id;
