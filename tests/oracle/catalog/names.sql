-- Views, quoted names, search_path, aliases, system tables, SHOW, statements without tables.
--! list view: big_orders | order_totals | order_countries | regions
SELECT * FROM {view};
SELECT count(*) FROM {view};
SELECT * FROM {view} v ORDER BY 1, 2 LIMIT 4;
SELECT * FROM oracle.{view};
SELECT v.* FROM {view} AS v(a, b) ORDER BY a, b;
SELECT x.n, v.* FROM numbers x LEFT JOIN {view} v ON x.n = 2 WHERE x.n < 4;
SELECT * FROM big_orders WHERE tenant_id = {k1} ORDER BY id;
SELECT status, sum(total) FROM big_orders GROUP BY status ORDER BY 1;
SELECT b.id, t.amount FROM big_orders b JOIN order_totals t USING (tenant_id, id);
SELECT b.id, t.amount FROM big_orders b JOIN order_totals t USING (tenant_id, id) WHERE b.tenant_id = {k7};
SELECT tenant_id, max(amount) FROM order_totals GROUP BY tenant_id;
SELECT * FROM order_totals WHERE tenant_id = {k1} AND amount > 100;
SELECT o.*, r.tax FROM order_countries o JOIN regions r USING (region) ORDER BY tenant_id, id;
SELECT * FROM "Odd Names";
SELECT "Id", "select", "ünï", "a""b" FROM "Odd Names" ORDER BY "Id";
SELECT "select", count(*) FROM "Odd Names" GROUP BY "select" ORDER BY 1;
SELECT o."Id" AS "My Id" FROM oracle."Odd Names" o WHERE o."tenant_id" = {k1};
SELECT "Odd Names".* FROM "Odd Names" WHERE "Id" > 3;
SELECT Id FROM "Odd Names";
SELECT * FROM odd_names;
SELECT * FROM "odd names";
SELECT CUSTOMERS.ID FROM Customers WHERE Tenant_ID = {k1};
SELECT * FROM "Customers";
SELECT c."id" FROM "oracle"."customers" AS c WHERE c."tenant_id" = {k2};
SELECT oracle.customers.id FROM oracle.customers WHERE tenant_id = {k1};
SELECT oracle.customers.id FROM customers ORDER BY tenant_id, id;
SELECT payments.oracle.customers.id FROM payments.oracle.customers WHERE tenant_id = {k1};
SELECT customers FROM customers WHERE tenant_id = {k1} AND id = 1;
SELECT id AS "group", name AS "order" FROM customers WHERE tenant_id = {k1};
SELECT 1 AS a, 2 AS a;
SELECT * FROM events;
SELECT count(*), min(at) FROM events;
SELECT * FROM events WHERE tenant_id = {k1} ORDER BY at, seq, kind;
SELECT * FROM ONLY events;
SELECT * FROM events_2026;
SELECT count(*) FROM events_old WHERE tenant_id = {k1};
SELECT kind, count(*) FROM events WHERE at >= '2026-01-01 00:00+00' GROUP BY kind ORDER BY kind NULLS LAST;
SELECT date_trunc('year', at), count(*), count(DISTINCT tenant_id) FROM events GROUP BY 1 ORDER BY 1;
SELECT DISTINCT * FROM events;
SELECT * FROM nothing;
SELECT FROM customers;
SELECT FROM customers WHERE tenant_id = {k2};
SELECT;
SELECT 1;
SELECT 1, 'a', NULL, true, 1.5, '2020-01-01'::date;
SELECT $$a$$, E'\\', 'it''s', U&'d\0061t';
SELECT 1 /* comment */ + /* nested /* comment */ */ 2 -- end;
;
SELECT now() = now(), current_date = now()::date, clock_timestamp() >= now();
SELECT now() IS NOT NULL FROM customers WHERE tenant_id = {k1};
SELECT count(*) FROM customers WHERE created < now();
SELECT count(*) FROM customers WHERE born < current_date;
SELECT random() < 2, gen_random_uuid() IS NOT NULL;
SELECT count(*) FROM customers WHERE random() < 2;
SELECT id, random() < 2 FROM customers WHERE tenant_id = {k1};
SELECT current_user, session_user, current_database(), current_schema();
SELECT current_setting('TimeZone'), current_setting('nosuch.thing', true);
SELECT pg_typeof(1), pg_typeof('x'), pg_typeof(NULL::uuid);
SELECT 'customers'::regclass::text, 'int4'::regtype, 'now'::regproc;
SELECT to_regclass('oracle.customers') IS NOT NULL, to_regclass('oracle.nosuch');
SELECT has_table_privilege('oracle.customers', 'SELECT'), has_schema_privilege('oracle', 'USAGE');
SELECT pg_get_viewdef('oracle.big_orders'::regclass);
SELECT obj_description('oracle.customers'::regclass), col_description('oracle.customers'::regclass, 1);
SELECT format_type(1042, 6), pg_encoding_to_char(6);
SELECT version() LIKE 'PostgreSQL%';
SELECT pg_backend_pid() > 0, pg_is_in_recovery();
SELECT inet_server_port() > 0;
--! list show: search_path | timezone | datestyle | client_encoding | server_version | standard_conforming_strings | transaction_isolation | default_transaction_read_only | integer_datetimes | intervalstyle | bytea_output | extra_float_digits | statement_timeout | nosuch | max_identifier_length | server_encoding | lc_collate
SHOW {show};
SHOW application_name;
SELECT current_setting('application_name');
--! list cat: SELECT relname, relkind FROM pg_class WHERE relnamespace = 'oracle'::regnamespace ORDER BY relname | SELECT nspname FROM pg_namespace WHERE nspname = 'oracle' | SELECT attname, atttypid::regtype, attnotnull, attnum FROM pg_attribute WHERE attrelid = 'oracle.orders'::regclass AND attnum > 0 ORDER BY attnum
--! + SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'oracle'::regnamespace ORDER BY conname, contype | SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'oracle' ORDER BY indexname | SELECT typname, typtype FROM pg_type WHERE typnamespace = 'oracle'::regnamespace AND typtype IN ('e', 'd') ORDER BY 1
--! + SELECT enumlabel FROM pg_enum WHERE enumtypid = 'oracle.mood'::regtype ORDER BY enumsortorder | SELECT proname, provolatile, pronargs FROM pg_proc WHERE pronamespace = 'oracle'::regnamespace ORDER BY 1 | SELECT viewname, definition FROM pg_views WHERE schemaname = 'oracle' ORDER BY 1
--! + SELECT tablename, hasindexes FROM pg_tables WHERE schemaname = 'oracle' ORDER BY 1 | SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'oracle.events'::regclass ORDER BY 1 | SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'oracle.filled'::regclass ORDER BY adnum
--! + SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'oracle' ORDER BY 1 | SELECT column_name, data_type, is_nullable, column_default, character_maximum_length, numeric_precision FROM information_schema.columns WHERE table_schema = 'oracle' AND table_name = 'customers' ORDER BY ordinal_position
--! + SELECT constraint_name, constraint_type FROM information_schema.table_constraints WHERE table_schema = 'oracle' AND constraint_type <> 'CHECK' ORDER BY 1 | SELECT constraint_name, column_name, ordinal_position FROM information_schema.key_column_usage WHERE table_schema = 'oracle' ORDER BY 1, 3 | SELECT routine_name, data_type FROM information_schema.routines WHERE routine_schema = 'oracle' ORDER BY 1
--! + SELECT n.nspname, c.relname, c.relkind, pg_get_userbyid(c.relowner) FROM pg_class c LEFT JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v') AND n.nspname = 'oracle' AND pg_table_is_visible(c.oid) ORDER BY 1, 2 | SELECT count(*) > 400 FROM pg_type | SELECT collname FROM pg_collation WHERE collname IN ('C', 'POSIX', 'default') ORDER BY 1
--! + SELECT a.attname, format_type(a.atttypid, a.atttypmod), (SELECT substring(pg_get_expr(d.adbin, d.adrelid) for 128) FROM pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), a.attnotnull FROM pg_attribute a WHERE a.attrelid = 'oracle.filled'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
--! + SELECT c2.relname, i.indisprimary, i.indisunique, pg_get_indexdef(i.indexrelid, 0, true) FROM pg_class c, pg_class c2, pg_index i WHERE c.oid = 'oracle.filled'::regclass AND c.oid = i.indrelid AND i.indexrelid = c2.oid ORDER BY i.indisprimary DESC, c2.relname | SELECT count(*) FROM pg_stat_activity WHERE false | SELECT rolname FROM pg_roles WHERE rolname = 'app' | SELECT datname, encoding FROM pg_database WHERE datname = current_database() | SELECT name, setting FROM pg_settings WHERE name = 'server_version_num' | SELECT count(*) FROM pg_locks WHERE false | SELECT * FROM pg_prepared_xacts WHERE false
{cat};
