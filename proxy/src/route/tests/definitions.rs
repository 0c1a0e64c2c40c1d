//! Statements that are not queries.

use super::check;

#[test]
fn transactions_and_settings() {
    check(&[
        ("BEGIN", "session r Begin { read_only: None }"),
        ("begin read only", "session r Begin { read_only: Some(true) }"),
        (
            "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            "session r Begin { read_only: Some(true) }",
        ),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE", "session r Begin { read_only: Some(false) }"),
        ("COMMIT", "session r Commit { chain: false }"),
        ("END", "session r Commit { chain: false }"),
        ("COMMIT AND CHAIN", "session r Commit { chain: true }"),
        ("ROLLBACK", "session r Rollback { chain: false }"),
        ("ABORT", "session r Rollback { chain: false }"),
        ("SAVEPOINT a", "session r Savepoint(Savepoint, \"a\")"),
        ("RELEASE SAVEPOINT a", "session r Savepoint(Release, \"a\")"),
        ("ROLLBACK TO SAVEPOINT \"A b\"", "session r Savepoint(RollbackTo, \"A b\")"),
        ("PREPARE TRANSACTION 'x'", "refuse 0A000"),
        ("COMMIT PREPARED 'x'", "refuse 0A000"),
        ("SET TRANSACTION READ ONLY", "any w SetTransaction { read_only: Some(true) }"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "any w SetTransaction { read_only: None }"),
        ("SET CONSTRAINTS ALL DEFERRED", "any w SetTransaction { read_only: None }"),
        (
            "SET search_path TO a, \"B\"",
            "any w Set { name: \"search_path\", value: Some(\"'a', 'B'\"), local: false }",
        ),
        (
            "SET LOCAL statement_timeout = '5s'",
            "any w Set { name: \"statement_timeout\", value: Some(\"'5s'\"), local: true }",
        ),
        (
            "SET TIME ZONE 'Europe/Rome'",
            "any w Set { name: \"timezone\", value: Some(\"'Europe/Rome'\"), local: false }",
        ),
        (
            "SET NAMES 'utf8'",
            "any w Set { name: \"client_encoding\", value: Some(\"'utf8'\"), local: false }",
        ),
        ("SET ROLE other", "any w Set { name: \"role\", value: Some(\"'other'\"), local: false }"),
        ("SET x.y = 'it''s'", "any w Set { name: \"x.y\", value: Some(\"'it''s'\"), local: false }"),
        ("RESET work_mem", "any w Set { name: \"work_mem\", value: None, local: false }"),
        ("SET work_mem TO DEFAULT", "any w Set { name: \"work_mem\", value: None, local: false }"),
        ("RESET ALL", "any w ResetAll"),
        (
            "SET shard.target = '2'",
            "session w Set { name: \"shard.target\", value: Some(\"'2'\"), local: false }",
        ),
        (
            "SET shard.target = 2",
            "session w Set { name: \"shard.target\", value: Some(\"2\"), local: false }",
        ),
        (
            "SELECT set_config('shard.read', 'replica', false)",
            "session w SetConfig { name: \"shard.read\", value: Text(\"replica\"), local: false }",
        ),
        ("SHOW shard.map", "session r ShowProxy(\"map\")"),
        ("show SHARD.Epoch", "session r ShowProxy(\"epoch\")"),
        ("SHOW search_path", "any r"),
        ("SHOW ALL", "any r"),
        (
            "EXPLAIN ROUTE SELECT * FROM t WHERE k = 1",
            "session r ExplainRoute(\"SELECT * FROM t WHERE k = 1\")",
        ),
        ("explain  route\n select 1", "session r ExplainRoute(\"select 1\")"),
        ("DISCARD ALL", "session r Discard(\"ALL\")"),
        ("DEALLOCATE ALL", "session r Deallocate(None)"),
        ("DEALLOCATE s1", "session r Deallocate(Some(\"s1\"))"),
        ("PREPARE s AS SELECT 1", "session r SqlPrepare(\"s\")"),
        ("EXECUTE s", "session r SqlExecute { name: \"s\", default_shard: false }"),
        ("EXECUTE s (nextval('q'))", "session r SqlExecute { name: \"s\", default_shard: true }"),
        ("EXPLAIN (COSTS off) EXECUTE s (1)", "session r SqlExecute { name: \"s\", default_shard: false }"),
        ("CREATE TEMP TABLE t AS EXECUTE s", "session r SqlExecute { name: \"s\", default_shard: false }"),
        ("EXECUTE s (pg_advisory_lock(1))", "refuse 0A000"),
        ("LISTEN c", "default w Pin(\"LISTEN\")"),
        ("UNLISTEN *", "default w"),
        ("NOTIFY c, 'x'", "default w"),
        ("DECLARE c CURSOR FOR SELECT * FROM t WHERE k = 1", "key #0 w Declare(\"c\")"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t WHERE k = 1", "key #0 w Pin(\"WITH HOLD cursor\")"),
        ("DECLARE c CURSOR FOR SELECT * FROM t", "gather w Declare(\"c\")"),
        ("FETCH 10 FROM c", "any w Cursor(Some(\"c\"))"),
        ("CLOSE c", "any w Cursor(Some(\"c\"))"),
        ("CLOSE ALL", "any w Cursor(None)"),
        ("DO $$ BEGIN DELETE FROM t; END $$", "refuse 0A000"),
        ("EXPLAIN SELECT * FROM t WHERE k = 1", "key #0 r"),
        ("EXPLAIN (ANALYZE, BUFFERS) UPDATE t SET x = 1 WHERE k = 1", "key #1 w"),
        ("EXPLAIN SELECT * FROM t", "each r"),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1), (2)", "refuse 0A000"),
        (
            "BEGIN; SELECT * FROM t WHERE k = 1; COMMIT",
            "session r Begin { read_only: None }; key #0 r; session r Commit { chain: false }",
        ),
        ("SELECT 1; SELEC 2; SELECT 3", "refuse 42601"),
        ("SELECT FROM WHERE", "refuse 42601"),
        ("LOCK TABLE settings", "default w NeedsBlock(\"LOCK TABLE\")"),
        ("LOCK TABLE t IN SHARE MODE", "ddl w NeedsBlock(\"LOCK TABLE\")"),
        ("LOCK TABLE t, settings", "refuse 0A000"),
        ("TRUNCATE t, t2", "ddl w"),
        ("TRUNCATE settings", "default w"),
        ("TRUNCATE currencies", "ddl w"),
    ]);
}

#[test]
fn copy_statements() {
    check(&[
        ("COPY t FROM STDIN", "copy-in 0 w"),
        ("COPY t (x, k) FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';')", "copy-in 1 w"),
        ("COPY t (x, v) FROM STDIN", "refuse 0A000"),
        ("COPY computed FROM STDIN (FORMAT binary)", "copy-in 0 w"),
        ("COPY t FROM STDIN WITH (FORMAT text, HEADER)", "refuse 0A000"),
        ("COPY t FROM STDIN WITH (ENCODING 'latin1')", "refuse 0A000"),
        ("COPY t FROM '/tmp/x'", "refuse 0A000"),
        ("COPY t FROM PROGRAM 'x'", "refuse 0A000"),
        ("COPY t TO STDOUT", "each r"),
        ("COPY (SELECT * FROM t WHERE k = 1) TO STDOUT WITH CSV", "key #0 r"),
        ("COPY (SELECT * FROM t) TO STDOUT", "each r"),
        ("COPY settings FROM STDIN", "default w"),
        ("COPY settings TO STDOUT", "default r"),
        ("COPY currencies TO STDOUT", "any r"),
        ("COPY currencies FROM STDIN", "copy-in everywhere w"),
        ("COPY currencies (code, exponent, name) FROM STDIN (FORMAT csv)", "copy-in everywhere w"),
        ("COPY currencies FROM STDIN WHERE random() < 0.5", "refuse 0A000"),
        ("COPY holidays FROM STDIN", "copy-in everywhere w"),
        ("COPY holidays (day, name) FROM STDIN", "refuse 0A000"),
        ("COPY triggered FROM STDIN", "refuse 0A000"),
    ]);
}

#[test]
fn definitions_run_everywhere() {
    check(&[
        ("CREATE TABLE plain_one (id bigint PRIMARY KEY, v text)", "ddl w"),
        ("CREATE TABLE n (tenant_id uuid NOT NULL, id bigint, PRIMARY KEY (tenant_id, id))", "ddl w"),
        ("CREATE INDEX ON t (x)", "ddl w"),
        ("CREATE INDEX CONCURRENTLY i ON t (x)", "ddl-autocommit w"),
        ("DROP INDEX CONCURRENTLY i", "ddl-autocommit w"),
        ("DROP TABLE t", "ddl w"),
        ("ALTER TABLE t ADD COLUMN y int", "ddl w"),
        (
            "ALTER TABLE payments ATTACH PARTITION p1 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
            "ddl w",
        ),
        ("ALTER TABLE payments DETACH PARTITION p1 CONCURRENTLY", "ddl-autocommit w"),
        ("CREATE VIEW vv AS SELECT * FROM t", "ddl w"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; SELECT 2 $$", "ddl w"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "ddl w"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 1", "ddl w; any r"),
        ("CREATE SCHEMA s", "ddl w"),
        ("CREATE EXTENSION pgcrypto", "ddl w"),
        ("CREATE TYPE mood AS ENUM ('a', 'b')", "ddl w"),
        ("CREATE ROLE r LOGIN", "ddl w"),
        ("GRANT SELECT ON t TO r", "ddl w"),
        ("COMMENT ON TABLE t IS 'x'", "ddl w"),
        ("CREATE SEQUENCE s", "ddl w"),
        ("CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()", "ddl w"),
        ("ANALYZE t", "ddl w"),
        ("VACUUM (ANALYZE) t", "ddl-autocommit w"),
        ("REINDEX TABLE t", "ddl w"),
        ("REINDEX TABLE CONCURRENTLY t", "ddl-autocommit w"),
        ("REINDEX DATABASE payments", "ddl-autocommit w"),
        ("CHECKPOINT", "ddl-autocommit w"),
        ("CREATE DATABASE x", "refuse 0A000"),
        ("DROP DATABASE x", "refuse 0A000"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "refuse 0A000"),
        ("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p", "refuse 0A000"),
        ("LOAD 'x'", "refuse 0A000"),
        ("CREATE TABLE x AS SELECT * FROM t WHERE k = 1", "refuse 0A000"),
        ("SELECT * INTO x FROM t WHERE k = 1", "refuse 0A000"),
        ("CREATE MATERIALIZED VIEW m AS SELECT * FROM currencies", "refuse 0A000"),
    ]);
}

/// Indexes that LIKE copies are as unique as those that are written out (H11).
#[test]
fn h11_like_copies_no_unique_index_without_the_key() {
    check(&[
        ("CREATE TABLE new (LIKE accounts INCLUDING ALL)", "ddl w"),
        ("CREATE TABLE new (tenant_id uuid NOT NULL, LIKE currencies)", "ddl w"),
        ("CREATE TABLE new (tenant_id uuid NOT NULL, LIKE currencies INCLUDING ALL)", "refuse 0A000"),
        ("CREATE TABLE new (tenant_id uuid NOT NULL, LIKE currencies INCLUDING INDEXES)", "refuse 0A000"),
        ("CREATE TABLE new (LIKE currencies INCLUDING ALL)", "ddl w"),
    ]);
}
