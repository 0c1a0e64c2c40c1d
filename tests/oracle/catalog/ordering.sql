-- ORDER BY, LIMIT, OFFSET, FETCH in all of their forms. Ties are broken by the table's key.
--! list by: name COLLATE "C" | name COLLATE "C" DESC | code | code DESC NULLS LAST | code NULLS FIRST | balance | balance DESC | balance NULLS FIRST | balance DESC NULLS LAST | score | score DESC NULLS LAST | active | active DESC NULLS LAST | born | born DESC NULLS FIRST | created DESC | tags | doc | photo NULLS FIRST | lower(name) COLLATE "C" | id % 3 | length(name) DESC | -id | balance * 2 | coalesce(balance, 0) | doc->>'city' COLLATE "C" | CASE WHEN active THEN 1 ELSE 2 END | id USING > | name USING ~<~ | (active, id) | born IS NULL | name | name DESC | email | email DESC NULLS LAST
SELECT tenant_id, id, name FROM customers ORDER BY {by}, tenant_id, id;
SELECT tenant_id, id FROM customers ORDER BY {by}, tenant_id, id LIMIT 10;
SELECT id, name FROM customers WHERE tenant_id = {k1} ORDER BY {by}, id;
--! list cut: LIMIT 5 | LIMIT 5 OFFSET 3 | OFFSET 60 | LIMIT 0 | LIMIT ALL | LIMIT NULL | LIMIT 1000 | OFFSET 1000 | OFFSET 0 | FETCH FIRST ROW ONLY | FETCH FIRST 3 ROWS ONLY | OFFSET 2 ROWS FETCH NEXT 4 ROWS ONLY | LIMIT 2 + 3 | LIMIT (SELECT 4) | OFFSET (SELECT count(*) FROM countries) LIMIT 3 | LIMIT '7' | LIMIT 3.4 | LIMIT -1 | OFFSET -1 | LIMIT 'x' | LIMIT 1 OFFSET 1 | LIMIT 9223372036854775807 | LIMIT 5::int8
SELECT tenant_id, id FROM customers ORDER BY tenant_id, id {cut};
SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id DESC {cut};
SELECT count(*) FROM (SELECT 1 FROM customers {cut}) x;
SELECT 1 AS one FROM customers {cut};
SELECT 1 AS one FROM customers c JOIN orders o USING (tenant_id, id) {cut};
SELECT tenant_id, count(*) FROM customers GROUP BY tenant_id ORDER BY 2 DESC, 1 {cut};
SELECT DISTINCT status FROM orders ORDER BY status {cut};
--! list ties: 1 | 3 | 10 | 100
SELECT id FROM customers ORDER BY id FETCH FIRST {ties} ROWS WITH TIES;
SELECT status FROM orders ORDER BY status OFFSET 5 FETCH NEXT {ties} ROWS WITH TIES;
SELECT id, name FROM customers ORDER BY 1, 2 COLLATE "C";
SELECT id, name FROM customers ORDER BY 1, name COLLATE "C" DESC;
SELECT id AS name, name AS id FROM customers ORDER BY name, id COLLATE "C", tenant_id;
SELECT id AS x FROM customers ORDER BY x + 1;
SELECT id AS x FROM customers ORDER BY -x;
SELECT -id AS id FROM customers ORDER BY id;
SELECT id, name FROM customers ORDER BY 3;
SELECT id FROM customers ORDER BY 0;
SELECT id FROM customers ORDER BY nosuch;
SELECT id FROM customers UNION SELECT id FROM orders ORDER BY id LIMIT 4;
SELECT id FROM customers UNION SELECT id FROM orders ORDER BY id + 1;
SELECT tenant_id, id, total FROM orders ORDER BY total DESC NULLS LAST, placed, tenant_id, id LIMIT 12;
SELECT tenant_id, m FROM typed ORDER BY m DESC NULLS LAST, tenant_id, id LIMIT 12;
SELECT iv FROM typed ORDER BY iv, tenant_id, id;
SELECT ip, r, pr FROM typed ORDER BY ip, r, pr, tenant_id, id LIMIT 9;
SELECT pt FROM typed ORDER BY pt;
SELECT js FROM typed ORDER BY js;
SELECT name FROM customers ORDER BY name COLLATE "de_DE.utf8", tenant_id, id;
SELECT name FROM customers ORDER BY name COLLATE "POSIX", tenant_id, id;
SELECT name FROM customers ORDER BY name COLLATE "nosuch";
SELECT code FROM countries ORDER BY name;
SELECT code, name FROM countries ORDER BY region NULLS FIRST, code DESC LIMIT 4;
SELECT key FROM settings ORDER BY n DESC NULLS LAST;
SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id LIMIT 2 OFFSET 1;
(SELECT id FROM customers ORDER BY tenant_id, id LIMIT 2) UNION ALL (SELECT id FROM orders ORDER BY tenant_id DESC, id DESC LIMIT 2);
SELECT (SELECT id FROM customers ORDER BY tenant_id DESC, id DESC LIMIT 1);
SELECT array(SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id DESC LIMIT 3);
VALUES (3, 'c'), (1, 'a'), (2, NULL) ORDER BY 2 DESC NULLS LAST;
VALUES (3), (1), (2) ORDER BY column1 OFFSET 1 LIMIT 1;
TABLE countries ORDER BY code LIMIT 3;
TABLE customers ORDER BY tenant_id, id LIMIT 3;
