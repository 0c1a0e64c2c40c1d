-- Text search, ranges, arrays, JSON and other types over several shards, grouped, sorted and joined by them.
--! list g: to_tsvector('simple', note) | to_tsvector('english', coalesce(note, '')) @@ to_tsquery('english', 'urgent') | ts_headline('simple', coalesce(note, 'none'), to_tsquery('simple', 'call')) | int8range(id, id + 3) | daterange(placed::date, NULL) | ARRAY[id, 1] | string_to_array(note, ' ') | to_jsonb(status) | jsonb_build_object('s', status) | (placed - timestamp '2026-01-01') | date_part('month', placed) | placed::time | total::int % 7 | md5(status) | left(note, 2) | num_nonnulls(note, total) | note ~* 'urg' | note SIMILAR TO '%e%' | encode(status::bytea, 'hex') | (status, country) | country::text || status | total IS NULL | sign(total - 150) | width_bucket(total, 0, 300, 4) | justify_interval(placed - timestamp '2026-01-01')
SELECT {g} AS g, count(*), sum(id) FROM orders GROUP BY 1;
SELECT tenant_id, id, {g} AS g FROM orders WHERE tenant_id IN ({k1}, {k2}, {k5}) ORDER BY 1, 2;
SELECT DISTINCT {g} FROM orders WHERE id < 6;
SELECT count(DISTINCT {g}) FROM orders;
SELECT status, array_agg({g} ORDER BY tenant_id, id) FROM orders WHERE id < 4 GROUP BY status;
--! list j: jsonb_object_agg(id::text || tenant_id, doc->'level') | jsonb_agg(doc->'flags' ORDER BY tenant_id, id) | sum((doc->>'level')::int) | max((doc->'nested'->>'x')::int) | count(*) FILTER (WHERE doc @> '{"level": 1}') | count(*) FILTER (WHERE doc ? 'city') | bool_or(doc->>'city' = 'Rome') | array_agg(DISTINCT doc->>'city' ORDER BY doc->>'city') | string_agg(doc->>'city', '' ORDER BY tenant_id, id) | avg((doc->>'level')::numeric)
SELECT {j} FROM customers;
SELECT name, {j} FROM customers GROUP BY name;
SELECT tenant_id, {j} FROM customers GROUP BY tenant_id;
SELECT doc->>'city' AS city, {j} FROM customers GROUP BY 1 ORDER BY 1 NULLS LAST;
--! list u: m | p | r | iv | t | ip | mac | u | b | small | nm | ch | money | v
SELECT {u}, count(*) FROM typed GROUP BY {u};
SELECT {u} FROM typed ORDER BY {u} NULLS FIRST, tenant_id, id LIMIT 8;
SELECT min(id), max(tenant_id::text) FROM typed GROUP BY {u} HAVING count(*) > 1;
SELECT DISTINCT {u} FROM typed;
SELECT a.id, b.id FROM typed a JOIN typed b ON a.{u} = b.{u} AND a.tenant_id < b.tenant_id WHERE a.id = 1 AND b.id = 2;
SELECT count(*) FROM typed a WHERE EXISTS (SELECT 1 FROM typed b WHERE b.tenant_id = a.tenant_id AND b.{u} = a.{u} AND b.id <> a.id);
