-- Sessions: transactions, savepoints, cursors, prepared statements, COPY, DDL, settings, several statements in one message.
--! script
BEGIN;
INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 50, 50), ({k2}, 50, 50);
SELECT count(*) FROM filled WHERE id = 50;
SELECT id FROM filled WHERE tenant_id = {k1} ORDER BY id;
UPDATE filled SET b = 'in' WHERE id = 50;
SELECT b, count(*) FROM filled GROUP BY b ORDER BY b NULLS LAST;
COMMIT;
SELECT count(*) FROM filled WHERE id = 50;
--! end filled
--! script
BEGIN;
DELETE FROM filled;
SELECT count(*) FROM filled;
ROLLBACK;
SELECT count(*) FROM filled;
--! end filled
--! script
START TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SHOW transaction_isolation;
SELECT count(*) FROM filled WHERE tenant_id = {k1};
SAVEPOINT a;
UPDATE filled SET b = 'a' WHERE tenant_id = {k1};
SAVEPOINT b;
UPDATE filled SET b = 'b' WHERE tenant_id = {k2};
ROLLBACK TO b;
SELECT tenant_id, b FROM filled WHERE id = 1;
RELEASE b;
ROLLBACK TO SAVEPOINT a;
INSERT INTO filled (tenant_id, id, a) VALUES ({k3}, 90, 90);
RELEASE SAVEPOINT a;
COMMIT;
SELECT tenant_id, id, b FROM filled WHERE id IN (1, 90);
--! end filled
--! script
BEGIN;
INSERT INTO filled (tenant_id, id) VALUES ({k1}, 1);
SELECT 1;
SELECT count(*) FROM filled;
COMMIT;
SELECT count(*) FROM filled;
--! end filled
--! script
BEGIN;
SAVEPOINT s;
INSERT INTO filled (tenant_id, id) VALUES ({k1}, 60);
INSERT INTO filled (tenant_id, id) VALUES ({k2}, 1);
ROLLBACK TO s;
INSERT INTO filled (tenant_id, id, a) VALUES ({k3}, 61, 1);
INSERT INTO filled (tenant_id, id, a) VALUES ({k4}, 61, 1);
SAVEPOINT t;
SELECT nosuch FROM filled;
ROLLBACK TO t;
END;
SELECT tenant_id, id FROM filled WHERE id > 50 ORDER BY 1, 2;
--! end filled
--! script
BEGIN;
BEGIN READ ONLY;
SHOW transaction_read_only;
INSERT INTO filled (tenant_id, id) VALUES ({k1}, 70);
ROLLBACK;
BEGIN;
SELECT count(*) FROM filled;
START TRANSACTION READ ONLY;
SHOW transaction_read_only;
UPDATE filled SET a = 1;
ROLLBACK;
BEGIN;
UPDATE filled SET a = 1 WHERE tenant_id = {k1};
BEGIN READ ONLY;
UPDATE filled SET a = 1 WHERE tenant_id = {k2};
ROLLBACK;
BEGIN;
SAVEPOINT s;
BEGIN READ ONLY;
ROLLBACK TO s;
UPDATE filled SET a = 1 WHERE tenant_id = {k2};
COMMIT;
--! end filled
--! script
BEGIN READ ONLY;
SELECT count(*) FROM filled;
INSERT INTO filled (tenant_id, id) VALUES ({k1}, 60);
ROLLBACK;
BEGIN;
SET TRANSACTION READ ONLY;
UPDATE filled SET b = 'x';
ROLLBACK;
SET default_transaction_read_only = on;
DELETE FROM filled WHERE tenant_id = {k1};
RESET default_transaction_read_only;
--! end filled
--! script
COMMIT;
ROLLBACK;
BEGIN;
BEGIN;
COMMIT;
SAVEPOINT x;
ROLLBACK TO nosuch;
RELEASE x;
--! end filled
--! script
BEGIN;
ROLLBACK TO nosuch;
ROLLBACK;
COMMIT AND CHAIN;
BEGIN;
COMMIT AND CHAIN;
SELECT 1;
ROLLBACK AND CHAIN;
ROLLBACK;
ABORT;
--! end
--! script
BEGIN;
DECLARE c CURSOR FOR SELECT id, name FROM customers WHERE tenant_id = {k1} ORDER BY id;
FETCH 2 FROM c;
FETCH NEXT FROM c;
FETCH ALL FROM c;
FETCH c;
CLOSE c;
COMMIT;
--! end
--! script
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id;
FETCH FIRST FROM c;
FETCH LAST FROM c;
FETCH PRIOR FROM c;
FETCH ABSOLUTE 2 FROM c;
FETCH RELATIVE -1 FROM c;
FETCH BACKWARD 5 FROM c;
MOVE FORWARD 3 FROM c;
FETCH 1 FROM c;
CLOSE c;
FETCH 1 FROM c;
ROLLBACK;
--! end
--! script
BEGIN;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM customers ORDER BY tenant_id, id;
FETCH 3 FROM c;
FETCH ALL FROM c;
COMMIT;
--! end
--! script
DECLARE c CURSOR FOR SELECT 1;
FETCH 1 FROM nosuch;
CLOSE nosuch;
DECLARE h CURSOR WITH HOLD FOR SELECT id FROM customers WHERE tenant_id = {k2} ORDER BY id;
FETCH 2 FROM h;
FETCH 2 FROM h;
CLOSE ALL;
--! end
--! script
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM filled WHERE tenant_id = {k1} ORDER BY id FOR UPDATE;
FETCH 1 FROM c;
UPDATE filled SET b = 'current' WHERE CURRENT OF c;
COMMIT;
SELECT id, b FROM filled WHERE tenant_id = {k1} ORDER BY id;
--! end filled
--! script
PREPARE p AS SELECT name FROM customers WHERE tenant_id = {k1} AND id = 1;
EXECUTE p;
DEALLOCATE p;
EXECUTE p;
--! end
--! script
PREPARE p (uuid, int) AS SELECT name FROM customers WHERE tenant_id = $1 AND id = $2;
EXECUTE p ({k1}, 1);
EXECUTE p ({k2}, 1);
DEALLOCATE ALL;
--! end
--! script
PREPARE p AS SELECT count(*) FROM customers;
EXECUTE p;
EXECUTE p;
DEALLOCATE p;
--! end
--! script
PREPARE p (uuid, int) AS INSERT INTO filled (tenant_id, id, a) VALUES ($1, $2, $2);
EXECUTE p ({k1}, 61);
EXECUTE p ({k2}, 61);
EXECUTE p ({k2}, 61);
SELECT tenant_id, a FROM filled WHERE id = 61;
--! end filled
--! script
PREPARE p AS SELECT nosuch FROM customers;
--! end
--! script
EXECUTE nosuch;
--! end
--! script
DEALLOCATE nosuch;
--! end
--! script
PREPARE q AS SELECT 1;
PREPARE q AS SELECT 2;
EXECUTE q;
DISCARD ALL;
EXECUTE q;
--! end
--! script
PREPARE p (uuid, int) AS SELECT name, $2 + 1 AS next FROM customers WHERE tenant_id = $1 AND id = $2;
EXECUTE p ({k1}, 1 + 1);
EXECUTE p ({k1});
EXECUTE p ({k1}, 'x');
EXECUTE p ({k1}, nosuch);
EXECUTE p (NULL, NULL);
EXPLAIN (COSTS off) EXECUTE p (NULL, 1);
EXPLAIN EXECUTE nosuch;
CREATE TEMP TABLE copied AS EXECUTE p ({k1}, 2);
SELECT * FROM copied;
EXECUTE p ({k1}, 2);
CREATE TEMP TABLE empty AS EXECUTE p ({k1}, 2) WITH NO DATA;
CREATE TEMP TABLE IF NOT EXISTS empty AS EXECUTE p ({k1}, 2) WITH NO DATA;
SELECT * FROM empty;
--! end
--! script
PREPARE q (int) AS SELECT count(*), sum(id) FROM customers WHERE id > $1;
EXECUTE q (3);
EXECUTE q (length('abc'));
PREPARE r AS SELECT tenant_id, id FROM customers ORDER BY tenant_id, id LIMIT 5;
EXECUTE r;
PREPARE v AS VALUES (1, 'one'), (2, NULL);
EXECUTE v;
PREPARE s (text, date, numeric, int[], jsonb) AS SELECT $1, $2, $3, $4, $5;
EXECUTE s ('text', '2020-02-29', 1.50, '{1,2,NULL}', '{"a": 1}');
EXECUTE s (NULL, 'tomorrow'::date - 'tomorrow'::date + date '2020-01-01', 2, ARRAY[3], 'null');
DEALLOCATE q;
EXECUTE q (3);
--! end
--! script
BEGIN;
PREPARE w (int) AS UPDATE filled SET b = 'prepared' WHERE id = $1 RETURNING tenant_id, b;
EXECUTE w (1);
PREPARE x (uuid) AS DELETE FROM filled WHERE tenant_id = $1;
EXECUTE x ({k2});
SELECT count(*) FROM filled;
EXECUTE w ('no');
EXECUTE w (1);
ROLLBACK;
EXECUTE w (2);
SELECT count(*) FROM filled WHERE b = 'prepared';
--! end filled
--! script simple
CREATE TABLE made_several (tenant_id uuid NOT NULL, id serial, v text, PRIMARY KEY (tenant_id, id));
INSERT INTO made_several (tenant_id, v) VALUES ({k1}, 'a');
INSERT INTO made_several (tenant_id, v) VALUES ({k2}, 'b')\; SELECT lastval()\; INSERT INTO made_several (tenant_id, v) VALUES ({k3}, 'c'), ({k4}, 'd')\; SELECT currval('made_several_id_seq');
SELECT lastval();
--! cleanup DROP TABLE IF EXISTS made_several
--! end
--! script simple
PREPARE p (uuid) AS SELECT count(*) FROM customers WHERE tenant_id = $1\; EXECUTE p ({k1})\; EXECUTE p ({k2})\; DEALLOCATE p;
EXECUTE p ({k1});
PREPARE p AS SELECT count(*) FROM customers\; EXECUTE p\; SELECT 1;
EXECUTE p\; EXECUTE p;
SELECT 1\; EXECUTE nosuch\; SELECT 2;
PREPARE i (uuid, int) AS INSERT INTO filled (tenant_id, id, a) VALUES ($1, $2, $2)\; EXECUTE i ({k1}, 70)\; EXECUTE i ({k2}, 70)\; EXECUTE i ({k3}, 70);
EXECUTE i ({k4}, 71)\; EXECUTE i ({k1}, 71)\; EXECUTE i ({k1}, 71);
SELECT tenant_id, id, a FROM filled WHERE id >= 70 ORDER BY tenant_id, id;
BEGIN\; EXECUTE i ({k1}, 72)\; EXECUTE i ({k2}, 72)\; ROLLBACK\; EXECUTE i ({k3}, 73);
BEGIN\; EXECUTE i ({k1}, 74)\; SELECT count(*) FROM filled WHERE id = 74;
COMMIT;
PREPARE p AS SELECT 1\; SELECT 2;
PREPARE u (int) AS UPDATE filled SET b = 'u' WHERE id = $1 RETURNING id\; EXECUTE u (70)\; SELECT count(*) FROM filled WHERE b = 'u'\; DEALLOCATE ALL;
EXECUTE u (70);
SELECT tenant_id, id, b FROM filled WHERE id >= 70 ORDER BY tenant_id, id;
--! end filled
-- Arguments of EXECUTE keep their values, however the session writes values.
--! script
SET timezone = 'Asia/Shanghai';
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'sql_standard';
SET bytea_output = 'escape';
SET extra_float_digits = 0;
PREPARE at (timestamptz, timestamp, date, timetz) AS SELECT extract(epoch from $1), extract(epoch from $2), extract(doy from $3), $4;
EXECUTE at ('2026-01-02 03:04:05+00'::timestamptz, '2026-03-04 05:06:07', '2026-03-04', '03:04:05+02');
EXECUTE at ('infinity', '0044-03-15 00:00:00 BC', '03/04/2026', NULL);
SET datestyle = 'Postgres, MDY';
EXECUTE at ('2026-01-02 03:04:05+00'::timestamptz, '2026-03-04 05:06:07', '2026-03-04', '03:04:05+02');
EXECUTE at ('infinity', '0044-03-15 00:00:00 BC', '03/04/2026', NULL);
SET datestyle = 'German';
EXECUTE at ('2026-01-02 03:04:05+00'::timestamptz, '2026-03-04 05:06:07', '2026-03-04', '03:04:05+02');
EXECUTE at ('infinity', '0044-03-15 00:00:00 BC', '03/04/2026', NULL);
SET datestyle = 'ISO, YMD';
EXECUTE at ('2026-01-02 03:04:05+00'::timestamptz, '2026-03-04 05:06:07', '2026-03-04', '03:04:05+02');
EXECUTE at ('infinity', '0044-03-15 00:00:00 BC', '03/04/2026', NULL);
SET datestyle = 'SQL, DMY';
PREPARE at_all (timestamptz[], tstzrange) AS SELECT extract(epoch from $1[1]), extract(epoch from upper($2));
EXECUTE at_all (ARRAY['2026-01-02 03:04:05+00'::timestamptz], tstzrange(NULL, '2026-07-02 03:04:05+00'::timestamptz));
PREPARE floats (float8, float4, float8[], point) AS SELECT $1 = 0.1::float8 + 0.2::float8, $2 = 1.1::float4 / 3, $3[1] = 0.1::float8 + 0.2::float8, $4[0] = 0.1::float8 + 0.2::float8;
EXECUTE floats (0.1::float8 + 0.2::float8, 1.1::float4 / 3, ARRAY[0.1::float8 + 0.2::float8], point(0.1::float8 + 0.2::float8, 1));
PREPARE spans (interval, bytea, "char", char(5), bit(3), money) AS SELECT extract(epoch from $1), $2, $3, octet_length($4), $4 || '|', $5, $6;
EXECUTE spans ('-1 year +2 days -03:00:00'::interval, '\x00ff5c', 'a', 'ab   ', '101', '12.34');
EXECUTE spans ('1 year -2 days +3 hours', E'\\\\x', '', 'abcdefgh', '10101', 12);
EXECUTE spans ('-1 day -2 hours', NULL, NULL, NULL, NULL, NULL);
PREPARE put (uuid, int, timestamptz) AS UPDATE customers SET created = $3 WHERE tenant_id = $1 AND id = $2 RETURNING extract(epoch from created);
EXECUTE put ({k1}, 1, '2026-01-02 03:04:05+00'::timestamptz);
BEGIN;
EXECUTE at ('2026-01-02 03:04:05+00'::timestamptz, '2026-03-04 05:06:07', '2026-03-04', '03:04:05+02');
SHOW datestyle;
SHOW intervalstyle;
SHOW extra_float_digits;
SHOW bytea_output;
SAVEPOINT s;
EXECUTE floats (0.1, 1, NULL, NULL);
EXECUTE floats ('no', 1, NULL, NULL);
ROLLBACK TO s;
SELECT created FROM customers WHERE tenant_id = {k1} AND id = 1;
COMMIT;
PREPARE none AS SELECT 1;
EXECUTE none (5);
EXECUTE none (nosuch, 1 / 0);
PREPARE r (record) AS SELECT $1;
EXECUTE r (ROW(1, 2));
--! end customers
--! script simple
PREPARE again (uuid, int) AS INSERT INTO filled (tenant_id, id) VALUES ($1, $2) RETURNING id, b;
SELECT 1\; EXECUTE again ({k1}, 1);
SELECT 1\; EXECUTE again ({k1}, 900)\; EXECUTE again ({k2}, 900);
PREPARE div (uuid, int) AS SELECT id / (id - $2) FROM customers WHERE tenant_id = $1 ORDER BY id;
SELECT 1\; EXECUTE div ({k1}, 1);
SELECT 1\; SELECT 1 / (id - 1) FROM customers WHERE tenant_id = {k1} ORDER BY id;
--! end filled
--! script simple
DECLARE c CURSOR FOR SELECT tenant_id, id FROM customers ORDER BY tenant_id, id\; FETCH 2 FROM c\; FETCH 2 FROM c\; CLOSE c\; SELECT 1;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM customers ORDER BY tenant_id, id\; FETCH 2 FROM c;
FETCH 2 FROM c;
DECLARE c CURSOR FOR SELECT count(*) FROM customers;
DECLARE c SCROLL CURSOR FOR SELECT tenant_id, id FROM customers ORDER BY tenant_id, id\; FETCH LAST FROM c\; FETCH FIRST FROM c\; MOVE 3 IN c\; FETCH PRIOR FROM c;
SELECT count(*) FROM filled\; DECLARE c CURSOR FOR SELECT count(*) FROM filled\; UPDATE filled SET a = a WHERE tenant_id = {k1} AND id = 1\; FETCH c;
SELECT id FROM customers WHERE tenant_id = {k1} AND id = 1\; DECLARE c CURSOR FOR SELECT id FROM customers WHERE tenant_id = {k2} ORDER BY id\; FETCH 2 FROM c\; FETCH 1 FROM c;
DECLARE c CURSOR FOR SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id\; DECLARE c CURSOR FOR SELECT id FROM customers WHERE tenant_id = {k2} ORDER BY id\; SELECT 1;
DECLARE c CURSOR FOR SELECT count(*) FROM customers\; DECLARE c CURSOR FOR SELECT count(*) FROM orders;
DECLARE c CURSOR FOR SELECT count(*) FROM customers\; COMMIT\; FETCH 1 FROM c;
BEGIN\; DECLARE c CURSOR FOR SELECT count(*) FROM customers\; FETCH 1 FROM c;
FETCH 1 FROM c;
ROLLBACK;
--! end filled
--! script
COPY filled (tenant_id, id, a, b) FROM STDIN;
{u1}	60	600	one
{u2}	60	600	two
{u3}	60	\N	\N
{u16}	60	600	tab\there
\.
SELECT tenant_id, id, a, b FROM filled WHERE id = 60;
COPY filled (tenant_id, id, a, b) FROM STDIN WITH (FORMAT csv, HEADER, NULL 'nil');
tenant_id,id,a,b
{u1},61,nil,"quoted, ""text"""
{u2},61,6,plain
\.
COPY filled (id, tenant_id) FROM STDIN (DELIMITER '|');
62|{u1}
62|{u9}
\.
SELECT count(*) FROM filled WHERE id > 50;
COPY filled (tenant_id, id) FROM STDIN;
{u1}	1
{u2}	63
\.
COPY filled (tenant_id, id) FROM STDIN;
{u2}	64
{u1}	notanumber
\.
COPY filled (tenant_id, id) FROM STDIN;
{u2}	65	extra
\.
COPY filled (tenant_id, id) FROM STDIN;
{u2}
\.
COPY filled (tenant_id, id) FROM STDIN;
nokey	66
\.
COPY filled (tenant_id, id) FROM STDIN;
\.
COPY filled (tenant_id, nosuch) FROM STDIN;
\.
COPY nosuch FROM STDIN;
\.
SELECT count(*) FROM filled WHERE id > 50;
--! end filled
--! script
BEGIN;
COPY filled (tenant_id, id) FROM STDIN;
{u1}	70
{u2}	70
\.
SELECT count(*) FROM filled WHERE id = 70;
ROLLBACK;
COPY countries FROM STDIN;
AA	Aland	\N	0.1
BB	Bland	\N	0.1
\.
SELECT count(*) FROM countries;
COPY settings FROM STDIN;
epsilon	five	5
\.
SELECT count(*) FROM settings;
--! end filled, countries, settings
--! list out: COPY customers TO STDOUT | COPY customers (tenant_id, id, name) TO STDOUT WITH (FORMAT csv) | COPY (SELECT id, name FROM customers WHERE tenant_id = {k1} ORDER BY id) TO STDOUT | COPY (SELECT tenant_id, id FROM customers ORDER BY tenant_id, id) TO STDOUT (FORMAT csv) | COPY countries TO STDOUT | COPY settings TO STDOUT WITH (FORMAT csv) | COPY (SELECT count(*) FROM customers) TO STDOUT | COPY (SELECT 1, NULL, 'a,b') TO STDOUT (FORMAT csv, NULL 'x') | COPY nosuch TO STDOUT | COPY (SELECT nosuch FROM customers) TO STDOUT | COPY big_orders TO STDOUT | COPY (DELETE FROM filled WHERE tenant_id = {k16} RETURNING id) TO STDOUT | COPY customers TO '/tmp/x' | COPY events TO STDOUT
--! simple
{out};
--! script simple
SELECT 1\; SELECT 2;
SELECT id FROM customers WHERE tenant_id = {k1} AND id = 1\; SELECT id FROM customers WHERE tenant_id = {k2} AND id = 1;
INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 50, 50)\; INSERT INTO filled (tenant_id, id, a) VALUES ({k2}, 50, 50)\; SELECT count(*) FROM filled WHERE id = 50;
INSERT INTO filled (tenant_id, id, a) VALUES ({k1}, 51, 51)\; SELECT 1 / 0\; SELECT 2;
SELECT count(*) FROM filled WHERE id = 51;
BEGIN\; INSERT INTO filled (tenant_id, id, a) VALUES ({k3}, 52, 52)\; COMMIT\; SELECT count(*) FROM filled WHERE id = 52;
BEGIN\; DELETE FROM filled\; ROLLBACK\; SELECT count(*) FROM filled;
SELECT 1\; SELEC 2\; SELECT 3;
SELECT 1\; SELECT nosuch\; SELECT 3;
\;\; SELECT 1\; \;;
SELECT count(*) FROM customers\; SELECT count(*) FROM orders;
UPDATE filled SET b = 'm' WHERE tenant_id = {k1}\; UPDATE filled SET b = 'm' WHERE tenant_id = {k2};
SET extra_float_digits = 0\; SELECT 0.1::float8 + 0.2\; RESET extra_float_digits;
SELECT count(*) FROM filled\; BEGIN\; SELECT 1;
SELECT 2\; COMMIT\; SELECT 3;
--! end filled
--! script
SET search_path = oracle;
SELECT count(*) FROM customers WHERE tenant_id = {k1};
SET search_path = public;
SELECT count(*) FROM customers WHERE tenant_id = {k1};
SELECT count(*) FROM oracle.customers WHERE tenant_id = {k1};
RESET search_path;
SHOW search_path;
SET LOCAL search_path = public;
BEGIN;
SET LOCAL search_path = pg_catalog;
SELECT count(*) FROM customers;
ROLLBACK;
SELECT count(*) FROM customers;
BEGIN;
SET search_path = public, pg_catalog;
SHOW search_path;
ROLLBACK;
SHOW search_path;
SELECT set_config('search_path', 'public', false);
SELECT count(*) FROM customers;
SELECT current_setting('search_path');
--! end
--! script
SET timezone = 'Europe/Berlin';
SELECT created FROM customers ORDER BY created, tenant_id, id LIMIT 3;
SELECT created FROM customers WHERE tenant_id = {k1} ORDER BY id;
SET datestyle = 'German';
SELECT created, born FROM customers WHERE tenant_id = {k2} ORDER BY id;
SELECT min(born) FROM customers;
SET intervalstyle = 'iso_8601';
SELECT iv FROM typed ORDER BY tenant_id, id LIMIT 3;
SET bytea_output = 'escape';
SELECT photo FROM customers ORDER BY tenant_id, id;
SET extra_float_digits = -10;
SELECT score / 3 FROM customers ORDER BY tenant_id, id;
RESET ALL;
--! end
--! script
SHOW timezone;
SET nosuch = 1;
SET a.b = 'custom';
SHOW a.b;
SELECT current_setting('a.b');
SET statement_timeout = '10s';
SHOW statement_timeout;
SET timezone TO DEFAULT;
SHOW timezone;
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE;
SHOW default_transaction_isolation;
SET standard_conforming_strings = off;
SELECT 'a\\b' AS x;
SET standard_conforming_strings = on;
SELECT 'a\\b' AS x;
SET client_min_messages = error;
SET work_mem = 'nonsense';
SET TIME ZONE 3;
SHOW timezone;
--! end
--! script
CREATE TABLE made (tenant_id uuid NOT NULL, id int, v text, PRIMARY KEY (tenant_id, id));
CREATE TABLE made (tenant_id uuid);
CREATE TABLE IF NOT EXISTS made (tenant_id uuid);
INSERT INTO made VALUES ({k1}, 1, 'a'), ({k2}, 1, 'b'), ({k3}, 2, NULL);
SELECT * FROM made ORDER BY tenant_id;
ALTER TABLE made ADD COLUMN n int DEFAULT 5;
SELECT tenant_id, n FROM made;
ALTER TABLE made RENAME COLUMN v TO w;
SELECT w FROM made WHERE tenant_id = {k1};
SELECT v FROM made;
ALTER TABLE made ALTER COLUMN n TYPE bigint;
SELECT n FROM made WHERE tenant_id = {k2};
CREATE INDEX made_n ON made (n);
CREATE UNIQUE INDEX made_u ON made (tenant_id, w);
ALTER TABLE made ADD CONSTRAINT made_check CHECK (n > 0);
INSERT INTO made VALUES ({k1}, 9, 'z', -1);
ALTER TABLE made DROP CONSTRAINT made_check;
ALTER TABLE made ALTER COLUMN n SET NOT NULL;
INSERT INTO made VALUES ({k1}, 9, 'z', NULL);
COMMENT ON TABLE made IS 'made by the suite';
SELECT obj_description('made'::regclass);
CREATE VIEW made_view AS SELECT tenant_id, w FROM made WHERE n > 1;
SELECT * FROM made_view;
DROP TABLE made;
DROP VIEW made_view;
ALTER TABLE made RENAME TO remade;
SELECT count(*) FROM remade;
TRUNCATE remade;
SELECT count(*) FROM remade;
DROP TABLE remade;
DROP TABLE remade;
DROP TABLE IF EXISTS remade;
SELECT * FROM remade;
ALTER TABLE nosuch ADD COLUMN x int;
CREATE INDEX ON nosuch (a);
CREATE TABLE bad (a int, a int);
CREATE TABLE bad (a nosuch);
--! cleanup DROP VIEW IF EXISTS made_view
--! cleanup DROP TABLE IF EXISTS made, remade
--! end
--! script
BEGIN;
CREATE TABLE made (tenant_id uuid NOT NULL, id int);
ROLLBACK;
SELECT * FROM made;
CREATE TABLE plain_made (id serial PRIMARY KEY, v text);
INSERT INTO plain_made (v) VALUES ('a'), ('b') RETURNING id;
BEGIN;
INSERT INTO plain_made (v) VALUES ('c');
SELECT currval('plain_made_id_seq') > 0, lastval() > 0;
COMMIT;
SELECT v FROM plain_made ORDER BY id;
DROP TABLE plain_made;
--! cleanup DROP TABLE IF EXISTS plain_made, made
--! end
--! script
SELECT currval('nosuch_seq');
--! end
--! script
CREATE TABLE made_drawn (tenant_id uuid NOT NULL, id serial, n bigint GENERATED ALWAYS AS IDENTITY, v text, PRIMARY KEY (tenant_id, id));
INSERT INTO made_drawn (tenant_id, v) VALUES ({k1}, 'a');
SELECT currval('made_drawn_id_seq');
SELECT lastval();
SELECT currval('made_drawn_n_seq') AS n, currval(pg_get_serial_sequence('made_drawn', 'id')), lastval() + 1;
INSERT INTO made_drawn (tenant_id, v) VALUES ({k1}, 'b'), ({k2}, 'c'), ({k3}, 'd');
SELECT currval('oracle.made_drawn_id_seq'::regclass), pg_catalog.lastval(), currval('made_drawn_n_seq');
UPDATE made_drawn SET v = 'u' WHERE tenant_id = {k1};
INSERT INTO filled (tenant_id, id, a) VALUES ({k2}, 77, 77);
SELECT currval('made_drawn_id_seq') AS mine FROM numbers WHERE n < 3;
SELECT currval('nosuch_seq');
BEGIN;
INSERT INTO made_drawn (tenant_id, v) VALUES ({k4}, 'e'), ({k5}, 'f');
SELECT currval('made_drawn_id_seq'), lastval();
SAVEPOINT s;
SELECT currval('made_drawn_id_seq') / 0;
ROLLBACK TO s;
SELECT lastval();
ROLLBACK;
SELECT currval('made_drawn_id_seq'), lastval();
INSERT INTO settings (key, n) VALUES ('drawn', currval('made_drawn_id_seq')) RETURNING n;
DISCARD SEQUENCES;
SELECT currval('made_drawn_id_seq');
SELECT lastval();
BEGIN;
SELECT lastval();
ROLLBACK;
INSERT INTO made_drawn (tenant_id, v) VALUES ({k1}, 'g');
SELECT currval('made_drawn_id_seq'), currval('made_drawn_n_seq'), lastval();
--! cleanup DROP TABLE IF EXISTS made_drawn
--! end filled, settings
--! script
CREATE SEQUENCE made_seq;
SELECT nextval('made_seq') > 0;
SELECT setval('made_seq', 100);
SELECT nextval('made_seq') > 100;
ALTER SEQUENCE made_seq RESTART;
DROP SEQUENCE made_seq;
SELECT nextval('made_seq');
--! cleanup DROP SEQUENCE IF EXISTS made_seq
--! end
--! script
CREATE TYPE made_type AS ENUM ('a', 'b');
ALTER TYPE made_type ADD VALUE 'c';
SELECT 'c'::made_type::text;
SELECT 'd'::made_type::text;
DROP TYPE made_type;
--! cleanup DROP TYPE IF EXISTS made_type
--! end
--! script
CREATE FUNCTION made_function(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + 1';
SELECT made_function(1);
SELECT made_function(id) FROM customers WHERE tenant_id = {k1} ORDER BY id;
SELECT sum(made_function(id)) FROM customers;
DROP FUNCTION made_function;
SELECT made_function(1);
--! cleanup DROP FUNCTION IF EXISTS made_function(int)
--! end
--! script
CREATE SCHEMA made_schema;
CREATE TABLE made_schema.t (tenant_id uuid, n int);
INSERT INTO made_schema.t VALUES ({k1}, 1), ({k2}, 2);
SELECT count(*) FROM made_schema.t;
DROP SCHEMA made_schema;
DROP SCHEMA made_schema CASCADE;
--! cleanup DROP SCHEMA IF EXISTS made_schema CASCADE
--! end
--! script
CREATE TABLE copied AS SELECT tenant_id, id, name FROM customers;
--! cleanup DROP TABLE IF EXISTS copied
--! end
--! script
CREATE MATERIALIZED VIEW m AS SELECT 1 AS one;
SELECT * FROM m;
REFRESH MATERIALIZED VIEW m;
DROP MATERIALIZED VIEW m;
--! cleanup DROP MATERIALIZED VIEW IF EXISTS m
--! end
--! script
CREATE TEMP TABLE scratch (id int, v text);
INSERT INTO scratch VALUES (1, 'a'), (2, 'b');
SELECT * FROM scratch ORDER BY id;
UPDATE scratch SET v = 'c' WHERE id = 1;
SELECT count(*) FROM scratch s JOIN countries c ON c.code IS NOT NULL;
DROP TABLE scratch;
SELECT * FROM scratch;
DISCARD TEMP;
--! end
--! script
CREATE TEMP TABLE scratch AS SELECT g AS id FROM generate_series(1, 3) g;
SELECT sum(id) FROM scratch;
--! end
--! script
SELECT pg_advisory_lock(77);
SELECT pg_advisory_unlock(77);
SELECT pg_advisory_unlock(78);
SELECT pg_try_advisory_lock(77);
SELECT pg_advisory_unlock_all();
BEGIN;
SELECT pg_advisory_xact_lock(5);
COMMIT;
LISTEN ch;
NOTIFY ch;
UNLISTEN *;
DISCARD ALL;
--! end
--! script
BEGIN;
SELECT id FROM customers WHERE tenant_id = {k1} ORDER BY id FOR UPDATE;
SELECT id FROM customers WHERE tenant_id = {k1} AND id = 1 FOR SHARE;
SELECT id FROM customers WHERE tenant_id = {k2} ORDER BY id FOR NO KEY UPDATE SKIP LOCKED;
SELECT id FROM customers WHERE tenant_id = {k2} ORDER BY id FOR KEY SHARE NOWAIT;
SELECT o.id FROM orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id WHERE o.tenant_id = {k1} ORDER BY o.id, i.line FOR UPDATE OF o;
LOCK TABLE filled IN SHARE MODE;
COMMIT;
SELECT id FROM customers WHERE tenant_id = {k1} FOR UPDATE OF nosuch;
SELECT count(*) FROM customers WHERE tenant_id = {k1} FOR UPDATE;
SELECT DISTINCT id FROM customers WHERE tenant_id = {k1} FOR UPDATE;
--! end
--! script
DO $$ BEGIN PERFORM 1; END $$;
DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'ZZ001'; END $$;
--! end
--! script
EXPLAIN (COSTS off) SELECT 1;
--! end
--! script
VACUUM filled;
--! end
--! script
ANALYZE filled;
--! end
--! script
CHECKPOINT;
--! end
--! script
REINDEX TABLE filled;
--! end
--! script
SET CONSTRAINTS ALL DEFERRED;
--! end
--! script
GRANT SELECT ON filled TO app;
--! end
--! script
REVOKE SELECT ON filled FROM app;
GRANT SELECT ON filled TO app;
--! end
--! script
GRANT SELECT ON filled TO nosuch;
--! end
--! script
CREATE ROLE nosuch2;
--! end
--! script
CREATE DATABASE nosuch2;
--! end
--! script
SET ROLE nosuch;
--! end
--! script
SET SESSION AUTHORIZATION postgres;
--! end
--! script
LOCK TABLE filled;
--! end
--! script
BEGIN;
VACUUM filled;
ROLLBACK;
--! end
--! script
SET ROLE app;
SELECT current_user;
RESET ROLE;
--! end
--! script
BEGIN;
UPDATE filled SET b = 'one' WHERE tenant_id = {k1};
SELECT count(*) FROM filled WHERE b = 'one';
SELECT f.b, count(*) FROM filled f JOIN customers c ON c.id = f.id GROUP BY f.b ORDER BY 1 NULLS LAST;
DELETE FROM filled WHERE tenant_id IN ({k1}, {k2}, {k3}, {k4});
SELECT DISTINCT tenant_id FROM filled ORDER BY 1;
INSERT INTO filled (tenant_id, id, a) SELECT tenant_id, id + 600, id FROM customers WHERE tenant_id = {k1} AND id < 3;
SELECT * FROM filled ORDER BY tenant_id, id LIMIT 5;
INSERT INTO countries VALUES ('TX', 'T', 'T', 0);
SELECT count(*) FROM countries;
SELECT r.code, count(f.id) FROM countries r LEFT JOIN filled f ON f.id = 2 GROUP BY r.code ORDER BY 1;
UPDATE settings SET n = 100 WHERE key = 'alpha';
SELECT s.n, count(*) FROM settings s, filled f GROUP BY s.n ORDER BY 1 NULLS LAST;
ROLLBACK;
SELECT count(*) FROM filled;
--! end filled
-- Cursors of one name, on one shard and on several.
--! script
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM filled WHERE tenant_id = {k1} ORDER BY id;
SAVEPOINT s;
DECLARE c CURSOR FOR SELECT id FROM filled WHERE tenant_id = {k2} ORDER BY id;
ROLLBACK TO s;
DECLARE c CURSOR FOR SELECT id FROM filled ORDER BY id;
ROLLBACK TO s;
FETCH 1 FROM c;
CLOSE c;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM filled ORDER BY tenant_id, id;
SAVEPOINT s;
DECLARE c CURSOR FOR SELECT id FROM filled WHERE tenant_id = {k1} ORDER BY id;
ROLLBACK TO s;
FETCH 3 FROM c;
CLOSE ALL;
DECLARE c CURSOR FOR SELECT id FROM filled WHERE tenant_id = {k2} ORDER BY id;
FETCH ALL FROM c;
COMMIT;
--! end
-- A definition does not make another kind of table of one that has rows.
--! script
CREATE TABLE made_plain (id int, other int);
ALTER TABLE made_plain RENAME COLUMN other TO another;
ALTER TABLE made_plain RENAME TO made_again;
CREATE TABLE made_child (more int) INHERITS (made_again);
INSERT INTO made_child VALUES (1, 2, 3);
SELECT * FROM made_again;
--! cleanup DROP TABLE IF EXISTS made_child, made_again, made_plain
--! end
-- COPY with line ends in its rows; a wrong row says its line.
--! script
COPY filled (tenant_id, id, b) FROM STDIN (FORMAT csv);
{u1},800,"a
b"
{u2},800,"c

d"
{u7},x,"e"
\.
COPY filled (tenant_id, id, b) FROM STDIN (FORMAT csv);
{u1},800,"a
b"
,801,"no key"
\.
COPY filled (tenant_id, id, b) FROM STDIN;
{u1}	800	a
nokey	801	b
\.
SELECT count(*) FROM filled WHERE id >= 800;
--! end filled
-- A cursor over several shards has a connection of its own, for which the session's others would wait.
--! script simple
CREATE TABLE made_used (tenant_id uuid NOT NULL, id int, PRIMARY KEY (tenant_id, id));
INSERT INTO made_used VALUES ({k1}, 1), ({k2}, 1), ({k3}, 2);
DECLARE c CURSOR FOR SELECT tenant_id, id FROM made_used ORDER BY tenant_id, id\; TRUNCATE made_used\; FETCH c;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM made_used ORDER BY tenant_id, id\; ALTER TABLE made_used ADD COLUMN z int;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM made_used ORDER BY tenant_id, id\; DROP TABLE made_used;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM made_used ORDER BY tenant_id, id\; FETCH c\; CLOSE c\; TRUNCATE made_used;
BEGIN;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM made_used ORDER BY tenant_id, id;
SAVEPOINT s;
ALTER TABLE made_used ADD COLUMN z int;
ROLLBACK TO s;
TRUNCATE made_used;
ROLLBACK TO s;
FETCH c;
CREATE TABLE made_beside (tenant_id uuid NOT NULL, id int, PRIMARY KEY (tenant_id, id));
CLOSE c;
ALTER TABLE made_used ADD COLUMN z int;
ROLLBACK;
--! cleanup DROP TABLE IF EXISTS made_used
--! end
--! script simple
BEGIN;
DECLARE c CURSOR FOR SELECT tenant_id, id FROM filled ORDER BY tenant_id, id;
LOCK TABLE filled;
ROLLBACK;
--! end filled
-- What BEGIN says of the transaction comes when there is one already.
--! script simple
UPDATE filled SET b = '13'\; BEGIN READ ONLY\; UPDATE filled SET b = '14'\; COMMIT;
ROLLBACK;
UPDATE filled SET a = 1\; BEGIN ISOLATION LEVEL SERIALIZABLE\; SHOW transaction_isolation;
SHOW transaction_isolation;
UPDATE filled SET a = 2\; BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY\; SHOW transaction_read_only\; COMMIT;
UPDATE filled SET a = 3\; START TRANSACTION READ WRITE\; UPDATE filled SET a = a + 1\; COMMIT;
UPDATE filled SET a = 5\; BEGIN\; BEGIN READ ONLY\; UPDATE filled SET a = 6;
ROLLBACK;
SELECT DISTINCT a FROM filled;
--! end filled
--! script simple
UPDATE filled SET b = '1'\; SAVEPOINT s\; UPDATE filled SET b = '2'\; ROLLBACK TO s;
SAVEPOINT s\; UPDATE filled SET b = '3';
UPDATE filled SET b = '4'\; RELEASE s;
UPDATE filled SET b = '5'\; ROLLBACK TO s;
UPDATE filled SET b = '6'\; COMMIT AND CHAIN;
UPDATE filled SET b = '7'\; ROLLBACK AND CHAIN;
UPDATE filled SET b = '8'\; BEGIN\; SAVEPOINT s\; UPDATE filled SET b = '9'\; ROLLBACK TO s\; COMMIT;
SELECT DISTINCT b FROM filled;
--! end filled
--! script
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, v text, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id, v) VALUES ({k1}, 'a'), ({k2}, 'b');
SELECT "lastval"(), "currval"('made_told_id_seq'), "pg_catalog"."lastval"();
COPY (SELECT lastval(), 'x') TO STDOUT;
SELECT * FROM lastval();
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
SELECT * FROM lastval() WITH ORDINALITY;
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
SELECT U&"lastval"();
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
DECLARE c CURSOR FOR SELECT lastval()\; FETCH c;
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
CREATE TEMP TABLE x AS SELECT lastval()\; SELECT * FROM x;
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
SELECT x FROM currval('made_told_id_seq') AS x;
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script simple
CREATE TABLE made_told (tenant_id uuid NOT NULL, id serial, PRIMARY KEY (tenant_id, id));
INSERT INTO made_told (tenant_id) VALUES ({k1}), ({k2});
SELECT pg_advisory_lock(lastval());
--! cleanup DROP TABLE IF EXISTS made_told
--! end
--! script
CREATE SEQUENCE made_seen;
BEGIN;
SELECT nextval('made_seen'), currval('made_seen');
SELECT currval('made_seen'), lastval();
COMMIT;
--! cleanup DROP SEQUENCE IF EXISTS made_seen
--! end
--! script simple
CREATE SEQUENCE made_seen;
BEGIN\; SELECT nextval('made_seen')\; SELECT lastval()\; COMMIT;
--! cleanup DROP SEQUENCE IF EXISTS made_seen
--! end
