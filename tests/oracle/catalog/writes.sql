-- INSERT, UPDATE, DELETE, MERGE. Each is followed by a comparison of what it touched, commits once and is rolled back twice.
--! list ret:  | RETURNING * | RETURNING id, tenant_id | RETURNING id + 1 AS next, upper(b)
--! list into: (tenant_id, id) VALUES ({k1}, 50) | (tenant_id, id, a, b) VALUES ({k2}, 50, 51, 'new') | (id, tenant_id) VALUES (50, {k3}), (51, {k3}) | (tenant_id, id, a) VALUES ({k1}, 50, 500), ({k2}, 50, 500), ({k3}, 50, 500), ({k4}, 50, 500), ({k5}, 50, NULL)
--! + (tenant_id, id, a) VALUES ({k1}, 50, DEFAULT), ({k7}, 50, DEFAULT) | (tenant_id, id, b) SELECT {k4}, 60, 'sel' | (tenant_id, id) SELECT tenant_id, id + 100 FROM filled WHERE tenant_id = {k1} | VALUES ({k15}, 1) | VALUES ({k15}, 1, 2, 'b', DEFAULT)
--! + (tenant_id, id, a) SELECT {k6}, g, g * 10 FROM generate_series(70, 73) g | (tenant_id, id, a, b) VALUES ('{u9}'::uuid, 2 * 30, 1 + 1, lower('X') || 'y') | (tenant_id, id, a) VALUES ({k15}, 50, 1), ({k16}, 50, 1)
--! + (tenant_id, id, a) SELECT tenant_id, id + 100, a + 1000 FROM filled | (tenant_id, id, a, b) SELECT tenant_id, id + 1000, NULL, name FROM customers WHERE id < 3
--! writes filled
INSERT INTO filled {into} {ret};
--! list conflict: DO NOTHING | (tenant_id, id) DO NOTHING | (tenant_id, id) DO UPDATE SET b = 'conflict' | (tenant_id, id) DO UPDATE SET b = excluded.b || '!', a = filled.a + 1 WHERE filled.b IS NOT NULL | ON CONSTRAINT filled_pk DO NOTHING | ON CONSTRAINT filled_pk DO UPDATE SET (a, b) = (excluded.a, 'both') | (tenant_id, a) DO UPDATE SET b = 'same a' | (tenant_id, id) WHERE true DO UPDATE SET b = DEFAULT | (b) DO NOTHING
--! list rows: ({k1}, 1, 900, 'x') | ({k1}, 1, 900, 'x'), ({k2}, 1, 901, 'y'), ({k3}, 99, 902, 'z') | ({k7}, 70, 5, 'a clash') | ({k1}, 1, 5, 'same')
--! writes filled
INSERT INTO filled (tenant_id, id, a, b) VALUES {rows} ON CONFLICT {conflict} RETURNING id, a, b;
--! writes filled
INSERT INTO filled (tenant_id, id, a, b) VALUES ({k1}, 80, 81, 'twice'), ({k1}, 80, 82, 'twice') ON CONFLICT (tenant_id, id) DO UPDATE SET b = 'x';
--! writes filled
INSERT INTO filled (tenant_id, id, a, b) SELECT tenant_id, id, a, 'copied' FROM filled ON CONFLICT (tenant_id, id) DO UPDATE SET b = excluded.b;
--! list bad: (tenant_id, id) VALUES ({k1}, 1) | (tenant_id, id, a) VALUES ({k1}, 60, 5) | (tenant_id, id) VALUES ({k1}, -1) | (tenant_id, id) VALUES ({k1}, NULL) | (tenant_id, id) VALUES (NULL, 1) | (id) VALUES (1) | (tenant_id, id, c) VALUES ({k1}, 60, 1) | (tenant_id, id) VALUES ({k1}, 'x') | (tenant_id, id) VALUES ('nokey', 1) | (tenant_id, nosuch) VALUES ({k1}, 1) | (tenant_id, id, a) VALUES ({k1}, 1) | (tenant_id) VALUES ({k1}, 1) | (tenant_id, id) VALUES ({k1}, 60), ({k2}, -1) | (tenant_id, id) VALUES ({k1}, 61), ({k2}, 61), ({k3}, 1) | (tenant_id, id) VALUES ({k1}, 1 / 0) | (tenant_id, id, id) VALUES ({k1}, 1, 2) | DEFAULT VALUES | (tenant_id, id) SELECT tenant_id, id FROM filled | (tenant_id, id) VALUES ({k1}, 2147483648) | (tenant_id, id) SELECT id, tenant_id FROM filled
--! writes filled
INSERT INTO filled {bad};
--! writes items
INSERT INTO items VALUES ({k1}, 99999, 1, 1, 1, 1.00, NULL);
--! writes items
INSERT INTO items VALUES ({k1}, 1, 9, 1, -1, 1.00, NULL);
--! writes orders
INSERT INTO orders (tenant_id, id, status, placed) VALUES ({k1}, 900, 'much too long for it', '2026-01-01');
--! writes orders
INSERT INTO orders (tenant_id, id, status, placed, total) VALUES ({k1}, 900, 'new', '2026-01-01', 12345678901.5);
--! writes orders
INSERT INTO orders (tenant_id, id, placed) VALUES ({k1}, 900, '2026-01-01');
--! writes typed
INSERT INTO typed (tenant_id, id, m) VALUES ({k1}, 90, 'furious');
--! writes typed
INSERT INTO typed (tenant_id, id, p) VALUES ({k1}, 90, 0);
--! writes typed
INSERT INTO typed (tenant_id, id, m, p, pr, r, xs) VALUES ({k1}, 90, 'ok', 3, ROW(1, 'x'), '[1,5]', ARRAY[1, 2]) RETURNING id, p, r, xs;
--! writes events
INSERT INTO events (tenant_id, at, kind, seq) VALUES ({k1}, '2025-01-01 00:00+00', 'new', 1), ({k2}, '2026-06-01 00:00+00', 'new', 2), ({k3}, '2030-01-01 00:00+00', 'new', 3);
--! writes events
INSERT INTO events_2026 (tenant_id, at) VALUES ({k1}, '2020-01-01 00:00+00');
--! writes events
INSERT INTO events SELECT tenant_id, at + interval '1 year', 'again', seq, payload FROM events;
--! writes "Odd Names"
INSERT INTO "Odd Names" ("tenant_id", "Id", "ünï", "a""b") VALUES ({k1}, 70, 'ß', 7) RETURNING "a""b", "ünï";
--! writes countries
INSERT INTO countries VALUES ('ZZ', 'Zzz', NULL, 0.5) RETURNING *;
--! writes countries
INSERT INTO countries VALUES ('DE', 'again') ON CONFLICT (code) DO UPDATE SET name = excluded.name || countries.name RETURNING name;
--! writes countries
INSERT INTO countries VALUES ('DE', 'again');
--! writes products
INSERT INTO products (id, name) SELECT n + 100, word FROM numbers WHERE word IS NOT NULL;
--! writes products
INSERT INTO products (id, name) SELECT 200 + g, 'g' || g FROM generate_series(1, 5) g;
--! writes settings
INSERT INTO settings VALUES ('new', 'v', 1), ('newer', 'v', 2) RETURNING key;
--! writes settings
INSERT INTO settings SELECT name, region, 5 FROM countries;
--! writes numbers
INSERT INTO numbers SELECT id + 500, min(name COLLATE "C") FROM customers GROUP BY id;
--! writes numbers
INSERT INTO numbers SELECT id + 500, name FROM customers WHERE tenant_id = {k1};

--! list set: b = 'set' | b = upper(b), a = a + 1000 | (a, b) = (id + 2000, 'row') | a = DEFAULT | b = NULL | a = a + (SELECT count(*) FROM countries) | b = b || id | a = CASE WHEN id = 1 THEN NULL ELSE a END | b = (SELECT o.note FROM orders o WHERE o.tenant_id = filled.tenant_id AND o.id = filled.id) | a = (SELECT max(x.a) FROM filled x WHERE x.tenant_id = filled.tenant_id) + id * 1000
--! list where: tenant_id = {k1} | tenant_id = {k1} AND id = 1 | tenant_id IN ({k1}, {k2}, {k7}) AND id = 2 | true | id = 1 | b LIKE 'b%' AND id < 3 | tenant_id = {k16} | id IN (SELECT n FROM numbers WHERE n < 3) | EXISTS (SELECT 1 FROM orders o WHERE o.tenant_id = filled.tenant_id AND o.id = filled.id) | tenant_id = ANY (ARRAY[{k3}, {k4}]::uuid[])
--! writes filled
UPDATE filled SET {set} WHERE {where} RETURNING tenant_id, id, a, b, c;
--! writes filled
DELETE FROM filled WHERE {where} RETURNING *;
--! writes filled
DELETE FROM filled WHERE {where};
--! list join: UPDATE filled f SET b = c.name FROM customers c WHERE c.tenant_id = f.tenant_id AND c.id = f.id | UPDATE filled f SET b = c.name FROM customers c WHERE c.tenant_id = f.tenant_id AND c.id = f.id AND f.tenant_id = {k1} | UPDATE filled f SET b = n.word FROM numbers n WHERE n.n = f.id | UPDATE filled f SET b = p.name FROM products p WHERE p.id = f.id
--! + UPDATE filled SET b = 'x' WHERE id = (SELECT max(id) FROM filled) | UPDATE filled f SET b = 'y' WHERE id IN (SELECT customer_id FROM orders o WHERE o.total > 250) | UPDATE filled f SET b = (SELECT count(*)::text FROM orders) | UPDATE filled f SET a = f.a + 3000 FROM filled g WHERE g.tenant_id = f.tenant_id AND g.id = f.id + 1
--! + UPDATE filled f SET b = c.name FROM customers c WHERE c.tenant_id = {k2} AND c.id = 1 AND f.id = 1 | DELETE FROM filled f USING customers c WHERE c.tenant_id = f.tenant_id AND c.id = f.id AND c.active | DELETE FROM filled f USING products p WHERE p.id = f.id AND p.category = 'tools' | DELETE FROM filled f USING customers c WHERE c.id = f.id AND c.name = 'Bob'
--! + DELETE FROM filled WHERE id = (SELECT min(id) FROM filled) | DELETE FROM filled WHERE (tenant_id, id) IN (SELECT tenant_id, customer_id FROM orders WHERE total > 100) | WITH d AS (DELETE FROM filled WHERE tenant_id = {k1} RETURNING *) SELECT count(*), sum(a) FROM d | WITH d AS (DELETE FROM filled RETURNING *) SELECT count(*), sum(a) FROM d
--! + WITH u AS (UPDATE filled SET b = 'cte' WHERE tenant_id = {k2} RETURNING id) INSERT INTO filled (tenant_id, id, a) SELECT {k2}, id + 300, id + 300 FROM u RETURNING id | WITH i AS (INSERT INTO filled (tenant_id, id, a) VALUES ({k5}, 400, 400) RETURNING tenant_id, id) SELECT * FROM i | WITH x AS (SELECT tenant_id, id FROM customers WHERE tenant_id = {k1}) UPDATE filled f SET b = 'x' FROM x WHERE x.tenant_id = f.tenant_id AND x.id = f.id
--! + UPDATE ONLY filled SET b = 'only' | DELETE FROM ONLY filled WHERE id = 1 | UPDATE filled AS f SET b = f.b RETURNING f.* | UPDATE filled SET a = a WHERE tenant_id = {k1} | DELETE FROM filled | UPDATE filled SET id = id + 100 | UPDATE filled SET id = id + 1 WHERE tenant_id = {k2}
--! + UPDATE filled SET tenant_id = {k1} WHERE tenant_id = {k1} | UPDATE filled SET tenant_id = tenant_id | UPDATE filled SET tenant_id = {k16} WHERE tenant_id = {k1} AND id = 1 | UPDATE filled SET tenant_id = {k9}, b = 'moved' WHERE tenant_id = {k2}
--! + WITH moved AS (DELETE FROM filled WHERE tenant_id = {k1} RETURNING id, a, b) INSERT INTO filled (tenant_id, id, a, b) SELECT {k16}, id, a, b FROM moved | UPDATE filled SET c = 1 | UPDATE filled SET nosuch = 1 | UPDATE nosuch SET a = 1 | DELETE FROM nosuch | UPDATE filled SET id = -1 | UPDATE filled SET a = 'x' | UPDATE filled SET id = 1 | UPDATE filled SET a = 1 / (id - 1) | DELETE FROM filled WHERE nosuch = 1 | UPDATE filled SET a = 1, a = 2 | UPDATE filled SET tenant_id = NULL | UPDATE filled SET a = 1 WHERE CURRENT OF nosuch
--! writes filled
{join};
--! list other: UPDATE orders SET status = 'closed' WHERE tenant_id = {k1} | UPDATE orders SET total = total * 1.1 | UPDATE orders SET note = NULL WHERE note = '' | UPDATE orders o SET note = n.name FROM countries n WHERE n.code = o.country | UPDATE orders SET id = id + 1000 WHERE tenant_id = {k1} | DELETE FROM orders WHERE tenant_id = {k1} AND id = 1 | DELETE FROM orders | DELETE FROM orders WHERE id = 1 | DELETE FROM orders o WHERE NOT EXISTS (SELECT 1 FROM items i WHERE i.tenant_id = o.tenant_id AND i.order_id = o.id)
--! + UPDATE orders SET total = (SELECT sum(i.quantity * i.price) FROM items i WHERE i.tenant_id = orders.tenant_id AND i.order_id = orders.id) | UPDATE items SET quantity = quantity + 1 WHERE product_id = 3 | UPDATE items i SET price = p.price FROM products p WHERE p.id = i.product_id | DELETE FROM items WHERE discount > 0.25 RETURNING tenant_id, order_id, line | UPDATE items SET quantity = -1 WHERE tenant_id = {k1} | UPDATE items SET order_id = 77777 WHERE tenant_id = {k1}
--! writes orders, items
{other};
--! list family: WITH o AS (INSERT INTO orders (tenant_id, id, status, placed) SELECT tenant_id, 9000 + id, 'made', '2026-01-01' FROM filled RETURNING tenant_id, id) INSERT INTO items (tenant_id, order_id, line, product_id, quantity, price) SELECT tenant_id, id, 1, 1, 1, 1 FROM o | WITH i AS (DELETE FROM items WHERE order_id IN (SELECT id FROM orders WHERE total < 50) RETURNING tenant_id, order_id) DELETE FROM orders o USING i WHERE o.tenant_id = i.tenant_id AND o.id = i.order_id AND NOT EXISTS (SELECT FROM items x WHERE x.tenant_id = o.tenant_id AND x.order_id = o.id AND x.price > 1000) | WITH o AS (UPDATE orders SET total = 0 WHERE total > 100 RETURNING tenant_id, id) UPDATE items i SET price = 0 FROM o WHERE o.tenant_id = i.tenant_id AND o.id = i.order_id | WITH i AS (DELETE FROM items RETURNING tenant_id, order_id, price * quantity AS amount), s AS (SELECT tenant_id, order_id, sum(amount) AS amount FROM i GROUP BY 1, 2) UPDATE orders o SET total = s.amount FROM s WHERE s.tenant_id = o.tenant_id AND s.order_id = o.id AND o.total IS DISTINCT FROM s.amount
--! writes orders, items
{family};
--! list flat: UPDATE countries SET tax = tax + 0.01 | UPDATE countries SET region = 'R' WHERE code = 'DE' RETURNING * | DELETE FROM countries WHERE region IS NULL | UPDATE countries c SET name = s.value FROM settings s WHERE s.key = 'beta' AND c.code = 'FR' | DELETE FROM countries | UPDATE countries SET code = 'QQ' WHERE code = 'DE' | UPDATE countries SET code = 'FR' WHERE code = 'DE' | UPDATE countries SET tax = 99999
--! writes countries
{flat};
--! list plain: UPDATE settings SET n = n + 1 | UPDATE settings SET value = 'x' WHERE key = 'alpha' RETURNING n, value | DELETE FROM settings WHERE n IS NULL | UPDATE settings s SET value = c.name FROM customers c WHERE c.tenant_id = {k1} AND c.id = s.n | UPDATE settings SET n = (SELECT count(*) FROM customers) | DELETE FROM settings WHERE n IN (SELECT id FROM customers) | UPDATE settings SET value = (SELECT name FROM countries WHERE code = 'DE') | INSERT INTO settings SELECT name, email, id FROM customers WHERE tenant_id = {k2} ON CONFLICT DO NOTHING
--! writes settings
{plain};
--! list event: UPDATE events SET kind = 'seen' WHERE tenant_id = {k1} | UPDATE events SET kind = 'seen' | UPDATE events SET at = at + interval '2 years' WHERE tenant_id = {k1} | UPDATE events SET at = '2026-02-02 00:00+00' | DELETE FROM events WHERE at < '2026-01-01 00:00+00' | DELETE FROM events_2026 | UPDATE events SET payload = payload || '{"x": 1}' WHERE seq > 5 | DELETE FROM events e USING customers c WHERE c.tenant_id = e.tenant_id AND c.id = e.seq
--! writes events
{event};
--! list merge: USING (VALUES ({k1}::uuid, 1), ({k1}::uuid, 77)) v(t, i) ON f.tenant_id = v.t AND f.id = v.i AND f.tenant_id = {k1} | USING (SELECT tenant_id AS t, id AS i FROM customers WHERE tenant_id = {k1}) v ON f.tenant_id = v.t AND f.id = v.i | USING (SELECT tenant_id AS t, id AS i FROM customers) v ON f.tenant_id = v.t AND f.id = v.i
--! list then: WHEN MATCHED THEN UPDATE SET b = 'merged' | WHEN MATCHED AND f.id > 1 THEN DELETE WHEN NOT MATCHED THEN DO NOTHING | WHEN MATCHED THEN DO NOTHING WHEN NOT MATCHED THEN INSERT (tenant_id, id, a) VALUES (v.t, v.i, v.i + 5000)
--! writes filled
MERGE INTO filled f {merge} {then};
-- Rows of reference tables that depend on which rows are found first, or lie where.
--! list first: UPDATE products p SET name = c.name FROM countries c WHERE c.code = 'DE' AND p.id < 3 | UPDATE products SET name = (SELECT string_agg(code, ',' ORDER BY code) FROM countries) WHERE id = 1 | UPDATE products SET price = (SELECT count(*) FROM countries) WHERE id < 4 | INSERT INTO products (id, name) SELECT 900 + row_number() OVER (ORDER BY code), name FROM countries
--! + INSERT INTO products (id, name) SELECT DISTINCT ON (category) id + 900, name FROM products ORDER BY category, id | INSERT INTO products (id, name) SELECT id, 'again' FROM products WHERE id < 3 ON CONFLICT (id) DO UPDATE SET name = excluded.name | INSERT INTO products (id, name) SELECT id, 'again' FROM products ON CONFLICT DO NOTHING
--! writes products
{first};
-- Not of one tenant: they run at the same time, and one would find the others' locks.
--! list locked: {k1} FOR UPDATE OF o | {k2} FOR SHARE OF o | {k3} FOR NO KEY UPDATE OF o NOWAIT
--! rows any
SELECT o.id, c.name FROM orders o JOIN countries c ON c.code = o.country WHERE o.tenant_id = {locked};
--! writes filled
DELETE FROM filled a USING filled b WHERE a.tenant_id = b.tenant_id AND a.id = b.id AND a.ctid < b.ctid;
--! writes filled
UPDATE filled SET b = 'here' WHERE tenant_id = {k1} AND ctid = (SELECT min(ctid) FROM filled WHERE tenant_id = {k1} AND id = 1) RETURNING id;
-- Parts of WITH that write, for rows of several keys: all see what was there before, and know of each other what they return.
--! list parts: WITH moved AS (DELETE FROM filled WHERE id = 1 RETURNING *) INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, id, b FROM moved RETURNING * | WITH moved AS (DELETE FROM filled RETURNING id, b) INSERT INTO nothing (tenant_id, id, v) SELECT {k4}, id, b FROM moved | WITH u AS (UPDATE filled SET b = 'u' WHERE id < 3 RETURNING tenant_id, id, b) SELECT * FROM u ORDER BY tenant_id, id LIMIT 3 | WITH u AS (UPDATE filled SET a = a + 5000 RETURNING a) SELECT count(*), min(a), max(a) FROM u | WITH u AS (UPDATE filled SET b = 'u' RETURNING *) SELECT f.b, count(*) FROM u JOIN filled f USING (tenant_id, id) GROUP BY f.b ORDER BY f.b NULLS FIRST | WITH d AS (DELETE FROM filled WHERE id = 2 RETURNING tenant_id, id, a) INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id + 700, a FROM d
--! + WITH d AS (DELETE FROM filled WHERE tenant_id IN ({k1}, {k2}) RETURNING id, a, b) INSERT INTO filled (tenant_id, id, a, b) SELECT {k16}, row_number() OVER (ORDER BY id, a, b) + 100, NULL, b FROM d | WITH i AS (INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, max(id), 'max' FROM filled GROUP BY tenant_id RETURNING tenant_id, id) UPDATE filled f SET b = 'max' FROM i WHERE i.tenant_id = f.tenant_id AND i.id = f.id RETURNING f.tenant_id, f.id, f.b | WITH i AS (INSERT INTO filled (tenant_id, id) VALUES ({k1}, 800), ({k2}, 800), ({k3}, 800) RETURNING *) SELECT tenant_id, id, a, b, c FROM i ORDER BY tenant_id
--! + WITH d AS (DELETE FROM filled WHERE id = 1 RETURNING tenant_id), n AS (INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, 1, 'gone' FROM d RETURNING id), s AS (UPDATE settings SET n = n + 1 RETURNING key) SELECT (SELECT count(*) FROM d), (SELECT count(*) FROM n), (SELECT count(*) FROM s), (SELECT count(*) FROM filled) | WITH d AS (DELETE FROM filled WHERE id > 2 RETURNING *) SELECT 1 AS one | WITH s AS (UPDATE settings SET value = 'w' WHERE n IS NOT NULL RETURNING n) UPDATE filled SET b = 'w' WHERE id IN (SELECT n FROM s) RETURNING tenant_id, id | WITH c AS (UPDATE countries SET tax = 0.5 WHERE code IN ('DE', 'FR') RETURNING code, name) INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, id, name FROM filled, c WHERE filled.id = 1
--! + WITH x AS (SELECT tenant_id, min(id) AS id FROM filled GROUP BY tenant_id), d AS (DELETE FROM filled f USING x WHERE x.tenant_id = f.tenant_id AND x.id = f.id RETURNING f.*) SELECT tenant_id, id, b FROM d ORDER BY 1, 2 | WITH m AS (UPDATE filled SET tenant_id = {k16}, id = id + 900, a = NULL WHERE tenant_id = {k3} RETURNING *) SELECT count(*) FROM m | WITH a AS (UPDATE filled SET b = 'a' WHERE id = 1 RETURNING id), b AS (UPDATE nothing SET v = 'b' RETURNING id) DELETE FROM settings WHERE n = (SELECT count(*) FROM a) | WITH d AS (DELETE FROM filled WHERE nosuch = 1 RETURNING *) SELECT * FROM d | WITH d AS (DELETE FROM filled) SELECT * FROM d | WITH u AS (UPDATE filled SET id = -1 RETURNING id) SELECT * FROM u | WITH u AS (UPDATE filled SET a = 1 / (id - 1) RETURNING id) SELECT count(*) FROM u
--! + WITH d AS (DELETE FROM filled RETURNING *) INSERT INTO filled SELECT tenant_id, id + 300, a FROM d ON CONFLICT DO NOTHING RETURNING id | WITH u AS (UPDATE filled SET b = 'one' WHERE id = 1), w AS (UPDATE filled SET b = 'two' WHERE id = 2) SELECT count(*) FROM filled WHERE b IN ('one', 'two')
--! writes filled, nothing, settings, countries
{parts};
-- INSERTs that read when they return, or when they conflict: reference tables are on every shard, all else is read where it is brought together.
--! list told: INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 90, 900), ({k2}, 90, 900) RETURNING tenant_id, (SELECT count(*) FROM orders) AS orders | INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 90, 900), ({k2}, 90, 900) RETURNING id, c, (SELECT name FROM countries WHERE code = 'DE') | INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 90, 900) RETURNING (SELECT count(*) FROM filled), b | INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id + 500, id + 5000 FROM customers WHERE id < 3 RETURNING tenant_id, id, (SELECT max(o.id) FROM orders o WHERE o.tenant_id = filled.tenant_id), EXISTS (SELECT FROM settings WHERE n = filled.id - 500) | INSERT INTO filled AS f (tenant_id, id, a) VALUES ({k1}, 90, NULL), ({k3}, 90, NULL) RETURNING f.id, (SELECT sum(x.id) FROM filled x WHERE x.tenant_id = f.tenant_id)
--! + INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 1, 900), ({k2}, 1, 900) ON CONFLICT (tenant_id, id) DO UPDATE SET b = (SELECT name FROM countries WHERE code = 'DE') RETURNING id, b | INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id, id + 7000 FROM customers WHERE id < 3 ON CONFLICT (tenant_id, id) DO UPDATE SET b = (SELECT max(name) FROM products WHERE id = filled.id) WHERE EXISTS (SELECT FROM countries WHERE code = 'FR') RETURNING id, b | INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 1, 900), ({k2}, 1, 900) ON CONFLICT (tenant_id, id) DO UPDATE SET b = (SELECT count(*)::text FROM orders) | INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 1, 900), ({k2}, 91, 900) RETURNING (SELECT count(*) FROM orders) | INSERT INTO countries (code, name) VALUES ('QQ', 'Q') RETURNING code, (SELECT count(*) FROM customers) | INSERT INTO settings (key, n) SELECT 'k' || id, 1 FROM customers WHERE tenant_id = {k1} AND id < 3 RETURNING key, (SELECT count(*) FROM orders)
--! writes filled, countries, settings
{told};
-- Two parts that write one table, or tables that are tied by a foreign key: whether a row is in the way, or is referred to,
-- is a question of their order.
--! list tied: WITH d AS (DELETE FROM filled WHERE id = 1) INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, 1, NULL FROM customers WHERE id = 1 | WITH i AS (INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id, NULL FROM filled RETURNING tenant_id, id) DELETE FROM filled f USING i WHERE f.tenant_id = i.tenant_id AND f.id = i.id | WITH d AS (DELETE FROM filled RETURNING tenant_id, id) INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id + 1, NULL FROM d | WITH d AS (DELETE FROM filled WHERE id = 1 RETURNING tenant_id, id) INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id + 700, NULL FROM d | WITH d AS (DELETE FROM filled WHERE id = -1 RETURNING *) INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id, NULL FROM customers
--! + WITH u AS (UPDATE items SET quantity = 5 RETURNING tenant_id, order_id) DELETE FROM orders o USING u WHERE o.tenant_id = u.tenant_id AND o.id = 1 | WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING tenant_id, id) UPDATE items i SET quantity = 9 FROM d WHERE i.tenant_id = d.tenant_id RETURNING i.order_id, i.line | WITH u AS (UPDATE items SET order_id = 2, line = line + 100 WHERE order_id = 1 RETURNING tenant_id) DELETE FROM orders o USING u WHERE o.tenant_id = u.tenant_id AND o.id = 1 | WITH o AS (INSERT INTO orders (tenant_id, id, status, placed) SELECT tenant_id, 100001, 'n', '2026-01-01' FROM orders WHERE id = 1 RETURNING tenant_id) UPDATE items i SET order_id = 100001 FROM o WHERE i.tenant_id = o.tenant_id AND i.order_id = 1 | WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING tenant_id) INSERT INTO items (tenant_id, order_id, line, product_id, quantity, price) SELECT tenant_id, 1, 99, 1, 1, 1 FROM d | WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING tenant_id) INSERT INTO items (tenant_id, order_id, line, product_id, quantity, price) SELECT tenant_id, 2, 99, 1, 1, 1 FROM d
--! writes filled, orders, items
{tied};
-- A part of WITH that finds nothing to write is a write all the same.
--! list nothing_found: WITH i AS (INSERT INTO filled (tenant_id, id) SELECT tenant_id, id + 50 FROM customers WHERE id = -99 RETURNING *) SELECT count(*) FROM i | WITH d AS (DELETE FROM filled WHERE id = -99 RETURNING *) INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, id, b FROM d | INSERT INTO filled (tenant_id, id) SELECT {k1}, id FROM orders WHERE id = -99
--! script
BEGIN READ ONLY;
WITH i AS (INSERT INTO filled (tenant_id, id) SELECT tenant_id, id + 50 FROM customers WHERE id = -99 RETURNING *) SELECT count(*) FROM i;
ROLLBACK;
BEGIN;
SET TRANSACTION READ ONLY;
WITH d AS (DELETE FROM filled WHERE id = -99 RETURNING *) INSERT INTO nothing (tenant_id, id, v) SELECT tenant_id, id, b FROM d;
ROLLBACK;
SET default_transaction_read_only = on;
{nothing_found};
SET default_transaction_read_only = off;
{nothing_found};
--! end filled, nothing
