//! What psql, pgjdbc and monitoring send.

use super::check;

#[test]
fn psql_reads_the_catalog_of_the_default_shard() {
    check(&[
        (
            "SELECT n.nspname as \"Schema\", c.relname as \"Name\", CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as \"Type\", pg_catalog.pg_get_userbyid(c.relowner) as \"Owner\" FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam WHERE c.relkind IN ('r','p','v','m','S','f','') AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema' AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2;",
            "default r",
        ),
        (
            "SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname OPERATOR(pg_catalog.~) '^(accounts)$' COLLATE pg_catalog.default AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3;",
            "default r",
        ),
        (
            "SELECT c.relchecks, c.relkind, c.relhasindex, c.relhasrules, c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, false AS relhasoids, c.relispartition, '', c.reltablespace, CASE WHEN c.reloftype = 0 THEN '' ELSE c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, c.relreplident, am.amname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid) LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid) WHERE c.oid = '16386';",
            "default r",
        ),
        (
            "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), a.attnotnull, (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation, a.attidentity, a.attgenerated FROM pg_catalog.pg_attribute a WHERE a.attrelid = '16386' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum;",
            "default r",
        ),
        (
            "SELECT c2.relname, i.indisprimary, i.indisunique, pg_catalog.pg_get_indexdef(i.indexrelid, 0, true), pg_catalog.pg_get_constraintdef(con.oid, true), contype FROM pg_catalog.pg_class c, pg_catalog.pg_class c2, pg_catalog.pg_index i LEFT JOIN pg_catalog.pg_constraint con ON (conrelid = i.indrelid AND conindid = i.indexrelid AND contype IN ('p','u','x')) WHERE c.oid = '16386' AND c.oid = i.indrelid AND i.indexrelid = c2.oid ORDER BY i.indisprimary DESC, c2.relname;",
            "default r",
        ),
        (
            "SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i WHERE c.oid = i.inhparent AND i.inhrelid = '16386' AND c.relkind != 'p' AND c.relkind != 'I' ORDER BY inhseqno;",
            "default r",
        ),
        (
            "SELECT pubname, NULL, NULL FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_namespace pn ON p.oid = pn.pnpubid JOIN pg_catalog.pg_class pc ON pc.relnamespace = pn.pnnspid WHERE pc.oid ='16386' and pg_catalog.pg_relation_is_publishable('16386') UNION SELECT pubname, NULL, NULL FROM pg_catalog.pg_publication p WHERE p.puballtables ORDER BY 1;",
            "default r",
        ),
        (
            "SELECT d.datname as \"Name\", pg_catalog.pg_get_userbyid(d.datdba) as \"Owner\", pg_catalog.array_to_string(d.datacl, E'\\n') AS \"Access privileges\" FROM pg_catalog.pg_database d ORDER BY 1;",
            "default r",
        ),
        (
            "SELECT r.rolname, r.rolsuper, ARRAY(SELECT b.rolname FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles b ON (m.roleid = b.oid) WHERE m.member = r.oid) as memberof FROM pg_catalog.pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1;",
            "default r",
        ),
        (
            "SELECT n.nspname as \"Schema\", p.proname as \"Name\", pg_catalog.pg_get_function_result(p.oid), pg_catalog.pg_get_function_arguments(p.oid) FROM pg_catalog.pg_proc p LEFT JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE pg_catalog.pg_function_is_visible(p.oid) AND n.nspname <> 'pg_catalog' ORDER BY 1, 2, 4;",
            "default r",
        ),
        (
            "SELECT c.relname, NULL::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'S', 'v', 'm', 'f', 'p') AND (c.relname) LIKE 'acc%' AND pg_catalog.pg_table_is_visible(c.oid) AND c.relnamespace <> (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'pg_catalog') UNION ALL SELECT NULL::pg_catalog.text, n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname LIKE 'acc%' LIMIT 1000",
            "default r",
        ),
        (
            "SELECT conname, conrelid::pg_catalog.regclass AS ontable, pg_catalog.pg_get_constraintdef(oid, true) AS condef FROM pg_catalog.pg_constraint c WHERE confrelid IN (SELECT pg_catalog.pg_partition_ancestors('16386') UNION ALL VALUES ('16386'::pg_catalog.regclass)) AND contype = 'f' AND conparentid = 0 ORDER BY conname;",
            "default w",
        ),
        (
            "select o.n, p.partstrat, pg_catalog.count(i.inhparent) from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on (n.oid = c.relnamespace) cross join lateral (select pg_catalog.array_position(pg_catalog.current_schemas(true), n.nspname)) as o(n) left join pg_catalog.pg_partitioned_table as p on (p.partrelid = c.oid) left join pg_catalog.pg_inherits as i on (c.oid = i.inhparent) where c.relname = 'pgbench_accounts' and o.n is not null group by 1, 2 order by 1 asc limit 1",
            "default r",
        ),
        ("\\d accounts", "refuse 42601"),
    ]);
}

#[test]
fn pgjdbc_metadata_and_housekeeping() {
    check(&[
        (
            "SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME, CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema' WHEN true THEN 'SYSTEM TABLE' ELSE 'TABLE' END AS TABLE_TYPE, d.description AS REMARKS FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_description d ON (c.oid = d.objoid AND d.objsubid = 0 and d.classoid = 'pg_class'::regclass) WHERE c.relnamespace = n.oid AND c.relname LIKE 'accounts' AND (false OR ( c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema')) ORDER BY TABLE_TYPE,TABLE_SCHEM,TABLE_NAME",
            "default r",
        ),
        (
            "SELECT * FROM (SELECT n.nspname,c.relname,a.attname,a.atttypid,a.attnotnull,row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) AS attnum FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON (c.relnamespace = n.oid) JOIN pg_catalog.pg_attribute a ON (a.attrelid=c.oid) WHERE a.attnum > 0) c WHERE true AND attname LIKE '%' ORDER BY nspname,c.relname,attnum",
            "default r",
        ),
        (
            "SELECT result.TABLE_CAT, result.COLUMN_NAME, result.KEY_SEQ FROM (SELECT NULL AS TABLE_CAT, a.attname AS COLUMN_NAME, (information_schema._pg_expandarray(i.indkey)).n AS KEY_SEQ, i.indkey AS KEYS FROM pg_catalog.pg_class ct JOIN pg_catalog.pg_attribute a ON (ct.oid = a.attrelid) JOIN pg_catalog.pg_index i ON (a.attrelid = i.indrelid)) result WHERE result.KEY_SEQ = 1",
            "default r",
        ),
        (
            "SELECT typinput='pg_catalog.array_in'::regproc as is_array, typtype, typname, pg_type.oid FROM pg_catalog.pg_type LEFT JOIN (select ns.oid as nspoid, ns.nspname, r.r from pg_namespace as ns join ( select s.r, (current_schemas(false))[s.r] as nspname from generate_series(1, array_upper(current_schemas(false), 1)) as s(r) ) as r using ( nspname )) as sp ON sp.nspoid = typnamespace WHERE pg_type.oid = $1 ORDER BY sp.r, pg_type.oid DESC",
            "default r",
        ),
        (
            "SELECT e.typdelim FROM pg_catalog.pg_type t, pg_catalog.pg_type e WHERE t.oid = $1 and t.typelem = e.oid",
            "default r",
        ),
        ("SHOW TRANSACTION ISOLATION LEVEL", "any r"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "any w Set { name: \"default_transaction_read_only\", value: Some(\"'on'\"), local: false }",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "any w Set { name: \"default_transaction_isolation\", value: Some(\"'serializable'\"), local: false }",
        ),
        (
            "SET application_name = 'PostgreSQL JDBC Driver'",
            "any w Set { name: \"application_name\", value: Some(\"'PostgreSQL JDBC Driver'\"), local: false }",
        ),
        (
            "SET extra_float_digits = 3",
            "any w Set { name: \"extra_float_digits\", value: Some(\"3\"), local: false }",
        ),
        ("select current_schema()", "any r"),
        ("select current_database(), version()", "any r"),
        ("SELECT current_setting('server_version_num')::int", "any r"),
        ("SELECT pg_backend_pid()", "any r"),
        ("select pg_is_in_recovery()", "default w"),
        ("SELECT * FROM information_schema.tables WHERE table_schema = 'public'", "default r"),
        ("SELECT pid, state FROM pg_stat_activity", "default r"),
        ("SELECT * FROM pg_locks", "default r"),
        ("SELECT pg_size_pretty(pg_total_relation_size('accounts'))", "default w"),
        ("SELECT now(), clock_timestamp()", "any w"),
        ("SELECT pg_sleep(1)", "any w"),
        ("SELECT * FROM currencies WHERE code = 'EUR' FOR UPDATE", "default w"),
        ("SELECT pg_cancel_backend(5)", "default w"),
        ("SELECT pg_advisory_lock(7)", "default w Pin(\"session advisory lock\")"),
        ("SELECT pg_advisory_xact_lock(7)", "default w"),
        ("SELECT pg_advisory_xact_lock(x) FROM t WHERE k = 1", "refuse 0A000"),
        ("SELECT pg_notify('c', 'x')", "default w"),
        (
            "SELECT set_config('search_path', 'other', false)",
            "any w SetConfig { name: \"search_path\", value: Text(\"other\"), local: false }",
        ),
        (
            "SELECT pg_catalog.set_config('search_path', '', false)",
            "any w SetConfig { name: \"search_path\", value: Text(\"\"), local: false }",
        ),
        ("SELECT set_config('search_path', v, false) FROM t WHERE k = 1", "refuse 0A000"),
        (
            "SELECT set_config('a.b', $1, true)",
            "any w SetConfig { name: \"a.b\", value: Parameter(0), local: true }",
        ),
        ("SELECT set_config($1, 'c', true)", "refuse 0A000"),
        ("SELECT set_config('shard.target', $1, true)", "refuse 0A000"),
        ("", ""),
        (";;", ""),
        ("-- nothing\n/* at all */ ;", ""),
    ]);
}
