//! What would look for rows where they are not, lock one copy of several, or give copies different values.

use super::check;

#[test]
fn h11_what_is_unique_by_construction_is_said_by_the_configuration() {
    check(&[
        ("CREATE TABLE public.vouched (tenant_id uuid, id bigint PRIMARY KEY)", "ddl w"),
        ("CREATE TABLE public.vouched (tenant_id uuid, id bigint, UNIQUE (id))", "ddl w"),
        ("CREATE TABLE public.vouched (tenant_id uuid, code text, day date, UNIQUE (day, code))", "ddl w"),
        ("CREATE TABLE public.vouched (tenant_id uuid, code text, UNIQUE (code))", "refuse 0A000"),
        (
            "CREATE TABLE public.vouched (tenant_id uuid, code text, CONSTRAINT by_name UNIQUE (code))",
            "ddl w",
        ),
        ("CREATE TABLE public.vouched (tenant_id uuid, id bigint REFERENCES accounts (account_id))", "ddl w"),
        ("CREATE TABLE other.vouched (tenant_id uuid, id bigint PRIMARY KEY)", "refuse 0A000"),
        ("ALTER TABLE orders ADD UNIQUE (id)", "ddl w"),
        ("CREATE UNIQUE INDEX ON orders (id)", "ddl w"),
        ("CREATE UNIQUE INDEX ON orders ((id + 1))", "refuse 0A000"),
        ("INSERT INTO orders (tenant_id, id) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING", "key $1 w"),
        (
            "INSERT INTO orders (tenant_id, id) VALUES ($1, $2) ON CONFLICT (status) DO NOTHING",
            "refuse 0A000",
        ),
    ]);
}

/// A table whose rows stay where they are must not become one whose rows are looked for elsewhere.
#[test]
fn h11_no_definition_changes_where_rows_are_looked_for() {
    check(&[
        ("ALTER TABLE settings RENAME COLUMN value TO tenant_id", "refuse 0A000"),
        ("ALTER TABLE settings RENAME value TO other", "ddl w"),
        ("ALTER TABLE accounts RENAME COLUMN status TO state", "ddl w"),
        ("ALTER TABLE settings RENAME TO countries", "refuse 0A000"),
        ("ALTER TABLE settings RENAME TO configuration", "ddl w"),
        ("ALTER TABLE accounts RENAME TO customers", "ddl w"),
        ("ALTER TABLE app.accounts_of_app SET SCHEMA other", "ddl w"),
        ("ALTER TABLE other.settings RENAME TO countries", "ddl w"),
        ("ALTER SCHEMA public RENAME TO private", "refuse 0A000"),
        ("ALTER SCHEMA app RENAME TO application", "ddl w"),
        ("CREATE TABLE child (tenant_id uuid) INHERITS (settings)", "refuse 0A000"),
        ("CREATE TABLE child (n int) INHERITS (settings)", "ddl w"),
        ("CREATE TABLE child (n int) INHERITS (accounts)", "ddl w"),
        ("CREATE TABLE child (n int) INHERITS (currencies)", "refuse 0A000"),
        ("ALTER TABLE accounts INHERIT settings", "refuse 0A000"),
        ("ALTER TABLE accounts INHERIT payments", "ddl w"),
        ("ALTER TABLE payments ATTACH PARTITION settings DEFAULT", "refuse 0A000"),
        ("ALTER TABLE payments ATTACH PARTITION entries DEFAULT", "ddl w"),
    ]);
}

#[test]
fn h22_reference_rows_do_not_depend_on_the_order_in_which_a_shard_finds_them() {
    check(&[
        ("UPDATE currencies c SET name = h.name FROM holidays h WHERE h.id = c.exponent", "apply w"),
        ("UPDATE currencies SET name = (SELECT string_agg(name, ',') FROM holidays)", "apply w"),
        ("UPDATE currencies SET exponent = (SELECT count(*) FROM holidays)", "reference-write w"),
        ("UPDATE currencies SET exponent = exponent + 1", "reference-write w"),
        ("INSERT INTO currencies SELECT DISTINCT ON (name) name, 2, name FROM holidays", "apply w"),
        ("INSERT INTO currencies SELECT name, row_number() OVER (), name FROM holidays", "apply w"),
        ("INSERT INTO currencies SELECT name, 2, name FROM holidays", "reference-write w"),
        ("INSERT INTO currencies SELECT name, 2, name FROM holidays ON CONFLICT DO NOTHING", "apply w"),
        ("INSERT INTO currencies VALUES ('EUR', 2, 'e') ON CONFLICT DO NOTHING", "reference-write w"),
        ("DELETE FROM currencies WHERE ctid = '(0,1)'", "refuse 0A000"),
        (
            "DELETE FROM currencies a USING currencies b WHERE a.ctid < b.ctid AND a.code = b.code",
            "refuse 0A000",
        ),
        // Locked on one shard's copy, a reference row would be free on the others.
        ("SELECT * FROM t JOIN currencies c ON c.code = t.v WHERE t.k = 1 FOR UPDATE", "refuse 0A000"),
        ("SELECT * FROM t JOIN currencies c ON c.code = t.v WHERE t.k = 1 FOR UPDATE OF c", "refuse 0A000"),
        ("SELECT * FROM t JOIN currencies c ON c.code = t.v WHERE t.k = 1 FOR UPDATE OF t", "key #0 w"),
        ("SELECT * FROM t JOIN rates r ON r.code = t.v WHERE t.k = 1 FOR SHARE", "refuse 0A000"),
        ("SELECT * FROM t JOIN rates r ON r.code = t.v WHERE t.k = 1 FOR SHARE OF t", "key #0 w"),
        ("SELECT * FROM t, (SELECT * FROM currencies) c WHERE t.k = 1 FOR UPDATE", "refuse 0A000"),
        ("SELECT * FROM t WHERE k = 1 AND v IN (SELECT code FROM currencies) FOR UPDATE", "key #0 w"),
        ("SELECT * FROM t JOIN currencies c ON c.code = t.v FOR UPDATE", "refuse 0A000"),
        ("SELECT * FROM currencies FOR UPDATE", "default w"),
    ]);
}

/// Every shard has a row at (0,1).
#[test]
fn a_rows_address_is_one_servers_own() {
    check(&[
        ("DELETE FROM t WHERE ctid = '(0,1)'", "refuse 0A000"),
        ("DELETE FROM t WHERE ctid = $1", "refuse 0A000"),
        ("DELETE FROM t WHERE ctid = ANY ($1)", "refuse 0A000"),
        ("DELETE FROM t WHERE ctid IN ('(0,1)', '(0,2)')", "refuse 0A000"),
        ("UPDATE t SET x = 1 WHERE x = 2 AND '(0,1)'::tid = ctid", "refuse 0A000"),
        ("UPDATE t SET x = 1 WHERE t.xmin::text = $1", "refuse 0A000"),
        ("SELECT * FROM t WHERE ctid = '(0,1)'", "refuse 0A000"),
        ("SELECT * FROM t WHERE k = 1 AND ctid = '(0,1)'", "key #0 r"),
        ("DELETE FROM t WHERE k = $1 AND ctid = $2", "key $1 w"),
        ("SELECT ctid, * FROM t", "each r"),
        ("DELETE FROM t a USING t b WHERE a.k = b.k AND a.x = b.x AND a.ctid < b.ctid", "each w"),
    ]);
}
