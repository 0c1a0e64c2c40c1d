-- Ways to say which key: constants, casts, lists, arrays, alternatives, rows, NULL. What rivals route by the first
-- equality that they see (evidence of their routers) is here, too.

--! list one: tenant_id = {k1} | {k1} = tenant_id | tenant_id = {k2}::uuid | tenant_id = CAST({k3} AS uuid) | tenant_id = uuid {k4}
--! + tenant_id IN ({k5}) | tenant_id = ANY (ARRAY[{k6}]::uuid[]) | tenant_id = ANY ('{{u7}}'::uuid[]) | tenant_id::text = {k8} | (tenant_id) = ({k9})
--! + tenant_id = '{7e000000-0000-4000-8000-000000000001}' | tenant_id = '7E000000-0000-4000-8000-000000000002' | tenant_id = '7e000000000040008000000000000003'
--! + ROW(tenant_id) = ROW({k1}::uuid) | (tenant_id, id) = ({k1}, 2) | (tenant_id, id) IN (({k1}, 1), ({k1}, 2)) | tenant_id IS NOT DISTINCT FROM {k3}
--! + tenant_id BETWEEN {k2} AND {k2} | tenant_id >= {k3} AND tenant_id <= {k3} | tenant_id IN (SELECT {k4}::uuid) | tenant_id = (SELECT {k5}::uuid)
--! + tenant_id = {k15} | tenant_id = {k1} AND tenant_id = {k2} | tenant_id = {k1} AND id > 3 | tenant_id = {k1} AND (id = 1 OR id = 2)
--! + tenant_id = {k1} OR false | NOT (tenant_id <> {k7}) | tenant_id = {k1} AND true | coalesce(tenant_id, {k2}) = {k1}
SELECT id, name FROM customers WHERE {one};
SELECT count(*), min(id), max(name COLLATE "C") FROM customers WHERE {one};

--! list many: tenant_id IN ({k1}, {k2}) | tenant_id IN ({k1}, {k2}, {k3}, {k4}, {k5}, {k6}, {k7}, {k8}) | tenant_id IN ({k1}, NULL)
--! + tenant_id = ANY (ARRAY[{k1}, {k2}, {k3}]::uuid[]) | tenant_id = ANY ('{{u1},{u4},{u9}}') | tenant_id = {k1} OR tenant_id = {k2}
--! + tenant_id = {k1} OR id = 1 | tenant_id <> {k1} | NOT tenant_id = {k1} | tenant_id > {k5} | tenant_id BETWEEN {k3} AND {k8}
--! + tenant_id IS NOT NULL | tenant_id IS NULL | (tenant_id, id) IN (({k1}, 1), ({k2}, 1), ({k3}, 2)) | tenant_id = NULL | tenant_id NOT IN ({k1}, {k2})
--! + tenant_id = ALL (ARRAY[{k1}]::uuid[]) | tenant_id <> ALL (ARRAY[{k1}, {k2}]::uuid[]) | tenant_id::text LIKE '%5' | tenant_id = ANY (ARRAY[]::uuid[]) | tenant_id = ANY (NULL::uuid[])
--! + (tenant_id = {k1} AND id = 1) OR (tenant_id = {k2} AND id = 2) | tenant_id IN ({k1}, {k1}) | tenant_id = {k1} IS NOT TRUE | CASE WHEN id = 1 THEN tenant_id = {k1} ELSE tenant_id = {k2} END
--! + tenant_id IN (SELECT tenant_id FROM orders WHERE total > 200) | tenant_id IN (VALUES ({k1}::uuid), ({k2}::uuid)) | (tenant_id = {k1}) = (id > 2) | tenant_id < ANY (ARRAY[{k2}, {k3}]::uuid[]) | tenant_id IN ({k1}, (SELECT {k2}::uuid), (SELECT {k3}::uuid)) | tenant_id IN ({k1}, lower({k2}::text)::uuid, lower({k3}::text)::uuid, lower({k4}::text)::uuid)
--! + tenant_id IS DISTINCT FROM {k1} | (tenant_id, id) > ({k6}, 2) | (tenant_id = {k1} OR tenant_id = {k7}) AND id < 4 | tenant_id IN ({k1}, {k2}) AND tenant_id IN ({k2}, {k3})
SELECT tenant_id, id FROM customers WHERE {many};
SELECT count(*), sum(id) FROM customers WHERE {many};
SELECT tenant_id, id, name FROM customers WHERE {many} ORDER BY tenant_id DESC, id LIMIT 7;

-- The key in the wrong place says nothing about the rows that are read.
SELECT count(*) FILTER (WHERE tenant_id = {k1}) FROM customers;
SELECT tenant_id = {k1} AS mine, count(*) FROM customers GROUP BY 1 ORDER BY 1;
SELECT id FROM customers WHERE EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = {k1} AND o.total > 100);
SELECT c.id, o.id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id AND o.tenant_id = {k2} WHERE c.tenant_id = {k1};
SELECT c.id, o.id FROM customers c LEFT JOIN orders o ON c.tenant_id = o.tenant_id AND o.tenant_id = {k2} AND o.customer_id = c.id;
SELECT c.id, o.id FROM orders o RIGHT JOIN customers c ON c.tenant_id = o.tenant_id AND o.tenant_id = {k2} AND o.customer_id = c.id;
SELECT c.id, o.id FROM orders o RIGHT JOIN customers c ON c.tenant_id = o.tenant_id AND c.tenant_id = {k2} AND o.customer_id = c.id;
SELECT a.id, b.id FROM customers a JOIN customers b ON a.id = b.id WHERE a.tenant_id = {k1} AND b.tenant_id = {k2};
SELECT a.tenant_id, a.id, b.tenant_id FROM customers a JOIN orders b ON a.id = b.id WHERE a.tenant_id IN ({k1}, {k2}, {k3}, {k7}) AND b.tenant_id IN ({k1}, {k2}, {k3}, {k7});
WITH m AS (SELECT * FROM customers WHERE tenant_id IN ({k1}, {k2}, {k3}, {k7})) SELECT a.tenant_id, a.id, b.tenant_id FROM m a JOIN m b ON a.id = b.id;
SELECT a.tenant_id, a.id, b.tenant_id FROM (SELECT tenant_id, id, tenant_id AS t FROM customers WHERE tenant_id IN ({k1}, {k2}, {k3}, {k7})) a JOIN orders b ON b.tenant_id = a.t AND b.id = a.id;
SELECT a.id, b.id FROM customers a, customers b WHERE a.tenant_id = {k1} AND b.tenant_id = {k7} AND a.name = b.name;
SELECT id FROM customers WHERE tenant_id = {k1} UNION ALL SELECT id FROM customers WHERE tenant_id = {k2};
SELECT id FROM customers WHERE tenant_id = {k1} EXCEPT SELECT id FROM customers WHERE tenant_id = {k2};
SELECT id FROM customers WHERE tenant_id = {k1} UNION SELECT id FROM orders WHERE tenant_id = {k3};
SELECT (SELECT count(*) FROM orders o WHERE o.tenant_id = {k2}) FROM customers WHERE tenant_id = {k1};
SELECT CASE WHEN tenant_id = {k1} THEN 'one' ELSE 'other' END AS which, count(*) FROM customers GROUP BY 1;
WITH mine AS (SELECT * FROM customers WHERE tenant_id = {k1}) SELECT count(*) FROM customers, mine WHERE mine.id = customers.id;
WITH mine AS (SELECT * FROM customers WHERE tenant_id = {k1}) SELECT count(*) FROM mine;
SELECT count(*) FROM (SELECT * FROM customers) c WHERE tenant_id = {k1};
SELECT count(*) FROM (SELECT tenant_id AS t, id FROM customers) c WHERE t = {k7};
SELECT count(*) FROM (SELECT id, tenant_id FROM customers OFFSET 0) c WHERE tenant_id = {k7};
SELECT o.id FROM orders o JOIN customers c USING (tenant_id) WHERE c.tenant_id = {k1} AND c.id = 1;
SELECT o.id FROM orders o NATURAL JOIN (SELECT tenant_id FROM customers WHERE tenant_id = {k4} AND id = 1) c;
SELECT o.id, i.line FROM orders o, items i, customers c WHERE o.tenant_id = i.tenant_id AND i.tenant_id = c.tenant_id AND c.tenant_id = {k1} AND i.order_id = o.id AND c.id = o.customer_id;
SELECT count(*) FROM customers WHERE tenant_id = (SELECT tenant_id FROM orders WHERE id = 1 ORDER BY tenant_id LIMIT 1);
SELECT count(*) FROM customers WHERE tenant_id = 'nonsense';
SELECT count(*) FROM customers WHERE tenant_id = 5;
SELECT count(*) FROM customers WHERE tenant_id = '';
SELECT count(*) FROM customers WHERE tenant_id = gen_random_uuid();
SELECT count(*) FROM customers WHERE tenant_id::text || '' = {k1};
SELECT count(*) FROM customers WHERE uuid_hash_extended(tenant_id, 0) % 2 = 0;
SELECT tenant_id, count(*) FROM customers GROUP BY tenant_id HAVING tenant_id = {k1};
SELECT DISTINCT tenant_id FROM customers WHERE id = 1 AND tenant_id IN ({k1}, {k2}, {k15}) ORDER BY 1;
SELECT * FROM customers WHERE tenant_id = {k16};
SELECT max(id) FROM customers WHERE tenant_id = {k16};
SELECT tenant_id FROM customers WHERE false;
