//! One test for each hazard that the router answers for; each fails without its resolution.

use shard_config::{ShardId, ShardMap};

use super::super::plan::{How, Refusal, Route};
use super::super::{NoParams, ParamValue, Params, Resolved, Router, SearchPath, resolve};
use super::{check, context, describe_all, with_router};
use crate::catalog::Table;

fn even() -> ShardMap {
    ShardMap::even(&[ShardId(1), ShardId(2), ShardId(3), ShardId(4)], 4096)
}

/// Routes a simple statement to the end.
pub(super) fn run(sql: &str, utf8: bool) -> Resolved {
    with_router(|router, context| {
        let context = super::super::RouteContext { client_encoding_is_utf8: utf8, ..*context };
        let routed = router.simple(&context, sql.as_bytes());
        let statement = &routed.statements[0];
        let text = &sql.as_bytes()[statement.text.clone()];
        resolve(
            &statement.plan,
            &statement.literals,
            text,
            &NoParams { client_encoding_is_utf8: utf8 },
            &even(),
        )
    })
}

fn bucket(sql: &str) -> Option<u16> {
    match run(sql, true) {
        Resolved::One { key, .. } => key.map(|hash| hash.bucket(4096).get()),
        _ => None,
    }
}

fn refusal(sql: &str, utf8: bool) -> Refusal {
    match run(sql, utf8) {
        Resolved::Refuse(refusal) => refusal,
        other => panic!("{sql}: {other:?}"),
    }
}

#[test]
fn h9_opaque_functions_and_triggers_are_refused() {
    check(&[
        ("SELECT audit_all()", "refuse 0A000"),
        ("SELECT x FROM t WHERE k = 1 AND x > audit_all()", "refuse 0A000"),
        ("SELECT * FROM audited", "refuse 0A000"),
        ("SELECT * FROM t, audit_all() WHERE k = 1", "refuse 0A000"),
        ("CALL nosuch()", "refuse 42883"),
        ("SELECT nosuch(1)", "refuse 42883"),
        ("SELECT query_to_xml('SELECT * FROM t', true, true, '')", "refuse 0A000"),
        ("SELECT fee(x) FROM t WHERE k = 1", "key #0 r"),
        ("SELECT t.row_audit FROM t WHERE k = 1", "refuse 0A000"),
        ("SELECT x FROM t WHERE k = 1 AND set_config('a.b', 'c', false) = ''", "refuse 0A000"),
        ("SELECT log_local(x) FROM t WHERE k = 1", "key #0 w"),
        ("SELECT next_number()", "default w"),
        ("INSERT INTO triggered VALUES ($1, 1)", "refuse 0A000"),
        ("UPDATE triggered SET x = 1 WHERE tenant_id = $1", "refuse 0A000"),
        ("SELECT * FROM triggered WHERE tenant_id = $1", "key $1 r"),
    ]);
}

#[test]
fn h11_uniqueness_without_the_key_is_refused() {
    check(&[
        ("CREATE TABLE a (tenant_id uuid, id bigint PRIMARY KEY)", "refuse 0A000"),
        ("CREATE TABLE a (tenant_id uuid, id bigint, PRIMARY KEY (id))", "refuse 0A000"),
        ("CREATE TABLE a (tenant_id uuid PRIMARY KEY, id bigint)", "ddl w"),
        ("CREATE TABLE a (tenant_id uuid, id bigint, UNIQUE (id))", "refuse 0A000"),
        ("CREATE TABLE a (tenant_id uuid, id bigint UNIQUE)", "refuse 0A000"),
        ("CREATE TABLE a (tenant_id uuid, r int4range, EXCLUDE USING gist (r WITH &&))", "refuse 0A000"),
        (
            "CREATE TABLE a (tenant_id uuid, r int4range, EXCLUDE USING gist (tenant_id WITH =, r WITH &&))",
            "ddl w",
        ),
        (
            "CREATE TABLE a (tenant_id uuid, id bigint, account uuid REFERENCES accounts (account_id))",
            "refuse 0A000",
        ),
        (
            "CREATE TABLE a (tenant_id uuid, account uuid, FOREIGN KEY (tenant_id, account) REFERENCES accounts (tenant_id, account_id))",
            "ddl w",
        ),
        (
            "CREATE TABLE a (tenant_id uuid, account uuid, FOREIGN KEY (tenant_id, account) REFERENCES accounts (account_id, tenant_id))",
            "refuse 0A000",
        ),
        ("CREATE TABLE a (tenant_id uuid, currency text REFERENCES currencies)", "ddl w"),
        ("CREATE TABLE a (tenant_id uuid, s text REFERENCES settings (name))", "refuse 0A000"),
        (
            "CREATE TABLE a (id bigint PRIMARY KEY, account uuid REFERENCES accounts (account_id))",
            "refuse 0A000",
        ),
        ("CREATE TABLE a (tenant_id bigint, id bigint)", "refuse 0A000"),
        ("CREATE TABLE a (tenant_id varchar(36), id bigint)", "refuse 0A000"),
        ("CREATE TABLE public.countries (tenant_id text, code text PRIMARY KEY)", "ddl w"),
        ("CREATE TABLE public.by_region (region text, id bigint PRIMARY KEY)", "refuse 0A000"),
        (
            "CREATE TABLE a PARTITION OF payments (PRIMARY KEY (payment_id)) FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
            "refuse 0A000",
        ),
        ("CREATE TABLE a (LIKE accounts INCLUDING ALL, UNIQUE (account_number))", "refuse 0A000"),
        ("CREATE UNIQUE INDEX ON accounts (account_number)", "refuse 0A000"),
        ("CREATE UNIQUE INDEX ON accounts (tenant_id, account_number)", "ddl w"),
        ("ALTER TABLE accounts ADD PRIMARY KEY (account_id)", "refuse 0A000"),
        ("ALTER TABLE accounts ADD CONSTRAINT u UNIQUE (tenant_id, account_id)", "ddl w"),
        ("ALTER TABLE accounts ADD COLUMN z int UNIQUE", "refuse 0A000"),
        ("ALTER TABLE accounts DROP COLUMN tenant_id", "refuse 0A000"),
        ("ALTER TABLE accounts ALTER COLUMN tenant_id TYPE text", "refuse 0A000"),
        ("ALTER TABLE accounts RENAME COLUMN tenant_id TO owner_id", "refuse 0A000"),
        ("ALTER TABLE settings ADD COLUMN tenant_id uuid", "refuse 0A000"),
        ("CREATE SCHEMA s CREATE TABLE a (tenant_id uuid, id bigint PRIMARY KEY)", "refuse 0A000"),
        ("CREATE SCHEMA s", "ddl w"),
        (
            "CREATE TABLE public.countries (code text PRIMARY KEY, s text REFERENCES settings (name))",
            "refuse 0A000",
        ),
    ]);
}

#[test]
fn h24_equal_keys_have_one_spelling_or_none() {
    let canonical = bucket("SELECT * FROM accounts WHERE tenant_id = '550e8400-e29b-41d4-a716-446655440000'");
    assert_eq!(canonical, Some(3302));
    for spelling in [
        "'550E8400-E29B-41D4-A716-446655440000'",
        "'{550e8400-e29b-41d4-a716-446655440000}'",
        "'550e8400e29b41d4a716446655440000'",
        "'550e-8400-e29b-41d4-a716-4466-5544-0000'",
        "E'550e8400-e29b-41d4-a716-446655440000'",
        "$$550e8400-e29b-41d4-a716-446655440000$$",
        "$k$550e8400-e29b-41d4-a716-446655440000$k$::uuid",
        "uuid '550e8400-e29b-41d4-a716-446655440000'",
        "CAST('550e8400-e29b-41d4-a716-446655440000' AS pg_catalog.uuid)",
    ] {
        assert_eq!(
            bucket(&format!("SELECT * FROM accounts WHERE tenant_id = {spelling}")),
            canonical,
            "{spelling}"
        );
    }
    for spelling in ["42", "'42'", "42.0", "42.000", "' +42 '", "42::int", "bigint '42'", "'042'", "+42"] {
        let found = bucket(&format!("SELECT * FROM t WHERE k = {spelling}"));
        // A unary plus is an operator: not a constant, so not proved.
        assert_eq!(found, (spelling != "+42").then_some(383), "{spelling}");
    }
    assert_eq!(bucket("SELECT * FROM t WHERE k = -1"), Some(1730));
    assert_eq!(bucket("SELECT * FROM t4 WHERE k = 42"), Some(383));
    assert_eq!(bucket("SELECT * FROM docs WHERE k = 'a'"), Some(1659));
    assert_eq!(bucket("SELECT * FROM docs WHERE k = E'tenant-1'"), Some(3184));
    assert_eq!(bucket("SELECT * FROM docs WHERE k = '漢字'"), Some(303));
}

#[test]
fn h24_spellings_without_a_canonical_form_are_refused() {
    check(&[
        ("SELECT * FROM padded WHERE k = 'a'", "refuse 0A000"),
        ("SELECT * FROM docs WHERE k = 'abc'::char(2)", "each r"),
        ("SELECT * FROM docs WHERE k = 'abc'::varchar(2)", "each r"),
        ("SELECT * FROM docs WHERE k = 'abc'::citext", "each r"),
        ("SELECT * FROM docs WHERE k = 5::text", "each r"),
        ("SELECT * FROM docs WHERE k = 'a' || 'b'", "each r"),
        ("SELECT * FROM docs WHERE k = U&'a'", "each r"),
        ("SELECT * FROM docs WHERE k = 'a'\n'b'", "each r"),
        ("SELECT * FROM docs WHERE k LIKE 'a'", "each r"),
        ("SELECT * FROM docs a JOIN docs b ON a.k = b.padded WHERE a.k = 'x'", "gather r"),
        ("SELECT * FROM docs a JOIN docs b ON a.code = b.k WHERE a.k = 'x' AND a.code = 'x'", "key #0, #1 r"),
        ("SELECT * FROM t JOIN t4 ON t.k = t4.f WHERE t4.f = 1 AND t4.k = 1", "gather r"),
        ("SELECT * FROM t WHERE k = 5.7::int", "each r"),
        ("SELECT * FROM t WHERE k = $1::text::int8", "each r"),
        ("SELECT * FROM t WHERE k = '5'::text::int8", "each r"),
        ("SELECT * FROM t WHERE k::text = '5'", "each r"),
        ("SELECT * FROM t WHERE k = $1::numeric", "each r"),
        ("SELECT * FROM t WHERE k = 1::float8", "each r"),
        ("SELECT * FROM t WHERE k = true::int", "each r"),
    ]);
    assert_eq!(refusal("SELECT * FROM t WHERE k = 5.5", true).sqlstate, "0A000");
    assert_eq!(refusal("SELECT * FROM t WHERE k = 'abc'", true).sqlstate, "22P02");
    assert_eq!(refusal("SELECT * FROM t WHERE k = '0x10'", true).sqlstate, "22P02");
    assert_eq!(refusal("SELECT * FROM t4 WHERE k = '3000000000'", true).sqlstate, "22003");
    assert_eq!(
        refusal("SELECT * FROM accounts WHERE tenant_id = 'x'", true).message,
        "invalid input syntax for type uuid: \"x\""
    );
    // No int4 equals it: nothing to find, wherever it runs.
    assert!(matches!(run("SELECT * FROM t4 WHERE k = 3000000000", true), Resolved::Default));
}

#[test]
fn h24_text_key_latin1_is_refused() {
    assert_eq!(refusal("SELECT * FROM docs WHERE k = 'caf\u{e9}'", false).sqlstate, "0A000");
    assert!(matches!(run("SELECT * FROM docs WHERE k = 'cafe'", false), Resolved::One { .. }));
    // The bytes that a LATIN1 client really sends.
    with_router(|router, context| {
        let context = super::super::RouteContext { client_encoding_is_utf8: false, ..*context };
        let route = |router: &mut Router, sql: &[u8]| describe_all(&router.simple(&context, sql));
        assert_eq!(route(router, b"SELECT * FROM t WHERE k = 1 AND v = 'caf\xe9'"), "key #0 r");
        assert_eq!(route(router, b"SELECT * FROM t WHERE k = 1 AND v = E'caf\xe9'"), "refuse 0A000");
        assert_eq!(route(router, b"SELECT * FROM t\xe9 WHERE k = 1"), "refuse 0A000");
        let utf8 = super::super::RouteContext { client_encoding_is_utf8: true, ..context };
        assert_eq!(
            describe_all(&router.simple(&utf8, b"SELECT * FROM t WHERE k = 1 AND v = 'caf\xe9'")),
            "refuse 22021"
        );
    });
}

#[test]
fn h25_constants_that_are_not_values_stay_in_the_key() {
    with_router(|router, context| {
        let mut same = |a: &str, b: &str| {
            let first = router.simple(context, a.as_bytes());
            let second = router.simple(context, b.as_bytes());
            std::sync::Arc::ptr_eq(&first.statements[0].plan, &second.statements[0].plan)
        };
        assert!(same("SELECT * FROM t WHERE k = 1 AND v = 'a'", "SELECT * FROM t WHERE k = 22 AND v = 'bc'"));
        assert!(same("INSERT INTO t VALUES (1, 2, 'a')", "INSERT INTO t VALUES (100, 200, 'abc')"));
        assert!(same("SELECT * FROM t WHERE k IN (1, 2)", "SELECT * FROM t WHERE k IN (3, 4)"));
        for (a, b) in [
            ("SELECT x, k FROM t WHERE k = 1 ORDER BY 1", "SELECT x, k FROM t WHERE k = 1 ORDER BY 2"),
            ("SELECT x, k FROM t WHERE k = 1 ORDER BY x, 1", "SELECT x, k FROM t WHERE k = 1 ORDER BY x, 2"),
            ("SELECT x, k FROM t WHERE k = 1 ORDER BY (1)", "SELECT x, k FROM t WHERE k = 1 ORDER BY (2)"),
            ("SELECT x, k FROM t WHERE k = 1 GROUP BY 1, 2", "SELECT x, k FROM t WHERE k = 1 GROUP BY 2, 1"),
            (
                "SELECT x, k FROM t WHERE k = 1 GROUP BY (1), 2",
                "SELECT x, k FROM t WHERE k = 1 GROUP BY (2), 1",
            ),
            ("SELECT x FROM t WHERE k = 1 LIMIT 5", "SELECT x FROM t WHERE k = 1 LIMIT 6"),
            ("SELECT x FROM t WHERE k = 1 LIMIT (5)", "SELECT x FROM t WHERE k = 1 LIMIT (6)"),
            ("SELECT x FROM t WHERE k = 5", "SELECT x FROM t WHERE k = '5'"),
            ("SELECT x FROM t WHERE k = 5", "SELECT x FROM t WHERE k = 5.0"),
            ("SELECT x FROM t WHERE k = 5", "SELECT x FROM t WHERE k = -5"),
            ("SELECT x FROM t WHERE k = '5'", "SELECT x FROM t WHERE k = E'5'"),
            ("SELECT x FROM t WHERE k = '5'", "SELECT x FROM t WHERE k = $$5$$"),
            ("SELECT x FROM t WHERE k = 5", "SELECT x FROM t WHERE k = 5::int"),
            (
                "SELECT x FROM t WHERE k = 1 AND v > date '2026-01-01'",
                "SELECT x FROM t WHERE k = 1 AND v > time '10:00'",
            ),
            ("SELECT set_config('a.b', 'c', false)", "SELECT set_config('a.b', 'd', false)"),
            ("SET a.b = 'c'", "SET a.b = 'd'"),
        ] {
            assert!(!same(a, b), "{a}\n{b}");
        }
    });
}

#[test]
fn h25_settings_that_change_meaning_are_in_the_key() {
    let catalog = super::catalog::test_catalog();
    let public = SearchPath::parse("public", "app");
    let other = SearchPath::parse("other, public", "app");
    let mut router = Router::new(64);
    let sql = b"SELECT * FROM settings WHERE value = 'a'";
    assert_eq!(describe_all(&router.simple(&context(&catalog, &public), sql)), "default r");
    assert_eq!(describe_all(&router.simple(&context(&catalog, &other), sql)), "each r");
    assert_eq!(describe_all(&router.simple(&context(&catalog, &public), sql)), "default r");
    // `\'` ends the string or not: with the setting off the key is in a string.
    let on = context(&catalog, &public);
    let off = super::super::RouteContext { standard_conforming_strings: false, ..on };
    let tricky = br"SELECT * FROM t WHERE v = '\' AND k = 1 --'";
    assert_eq!(describe_all(&router.simple(&on, tricky)), "key #1 r");
    assert_eq!(describe_all(&router.simple(&off, tricky)), "refuse 0A000");
    assert_eq!(describe_all(&router.simple(&off, b"SELECT * FROM t WHERE v = 'a' AND k = 1")), "key #1 r");
}

#[test]
fn h31_a_straddling_batch_is_sp001_with_the_epoch() {
    let same = "SELECT * FROM post_payments('{550e8400-e29b-41d4-a716-446655440000,550E8400E29B41D4A716446655440000}', $1, $2)";
    assert!(matches!(run(same, true), Resolved::One { shard: ShardId(4), key: Some(_) }));
    let straddling = same.replace("550E8400E29B41D4A716446655440000", "00000000-0000-0000-0000-000000000000");
    let refused = refusal(&straddling, true);
    assert_eq!((refused.sqlstate, refused.detail.as_deref()), ("SP001", Some("epoch=1")));
    let null = same.replace("550E8400E29B41D4A716446655440000", "NULL");
    assert_eq!(refusal(&null, true).sqlstate, "22004");
    let nested = "SELECT * FROM post_payments('{{550e8400-e29b-41d4-a716-446655440000}}', $1, $2)";
    assert_eq!(refusal(nested, true).sqlstate, "0A000");
    // The same keys in an ordinary statement are a scatter, which is another matter.
    let ordinary = "SELECT * FROM t WHERE k IN (1, 42)";
    let Resolved::Scatter { how: How::Each, shards: Some(shards) } = run(ordinary, true) else {
        panic!("{ordinary}")
    };
    assert_eq!(shards.as_slice(), [ShardId(1), ShardId(2)]);
}

#[test]
fn h37_refusals_say_why_and_what_to_do() {
    with_router(|router, context| {
        for sql in [
            "SELECT * FROM t ORDER BY x FOR UPDATE",
            "DO $$ $$",
            "SELECT audit_all()",
            "INSERT INTO t (k) VALUES (1) ON CONFLICT (k) DO UPDATE SET k = 2",
            "SELECT * FROM nosuch",
        ] {
            let routed = router.simple(context, sql.as_bytes());
            let Route::Refuse(refusal) = &routed.statements[0].plan.route else { panic!("{sql}") };
            assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{sql}: {refusal:?}");
        }
    });
    let unknown = refusal("SELECT 'é', * FROM nosuch", true);
    assert_eq!((unknown.sqlstate, unknown.position), ("42P01", Some(20)));
    let syntax = refusal("SELECT * FORM t WHERE FORM = 1", true);
    assert_eq!(
        (syntax.sqlstate, syntax.message.as_str(), syntax.position),
        ("42601", "syntax error at or near \"FORM\"", Some(10))
    );
    assert_eq!(refusal("SELECT * FROM", true).position, Some(14));
    for open in ["SELECT 1 /* one /* two */", "/* nothing else"] {
        let comment = refusal(open, true);
        assert_eq!(
            (comment.sqlstate, comment.message.contains("unterminated /* comment")),
            ("42601", true),
            "{open}"
        );
    }
    let frame = refusal("SELECT sum(x) OVER (ROWS BETWEEN CURRENT ROW AND 1 PRECEDING) FROM t", true);
    assert_eq!(frame.sqlstate, "42P20");
}

#[test]
fn h39_plans_follow_the_schema_and_temporary_tables() {
    let mut catalog = super::catalog::test_catalog();
    let path = SearchPath::default();
    let mut router = Router::new(64);
    let sql = b"SELECT * FROM later WHERE tenant_id = $1";
    assert_eq!(describe_all(&router.simple(&context(&catalog, &path), sql)), "refuse 42P01");
    let accounts = catalog.tables[&("public".to_owned(), "accounts".to_owned())].clone();
    catalog
        .tables
        .insert(("public".to_owned(), "later".to_owned()), Table { name: "later".to_owned(), ..accounts });
    catalog.version += 1;
    assert_eq!(describe_all(&router.simple(&context(&catalog, &path), sql)), "key $1 r");
    // Temporary tables: never one that hides a table already routed by name.
    let plain = context(&catalog, &path);
    let pinned = super::super::RouteContext { session_has_temp: true, ..plain };
    let mut check = |context, sql: &str, expected: &str| {
        assert_eq!(describe_all(&router.simple(context, sql.as_bytes())), expected, "{sql}");
    };
    check(&plain, "CREATE TEMP TABLE work (a int)", "any w Pin(\"temporary table\")");
    check(&plain, "CREATE TEMP TABLE accounts (a int)", "refuse 0A000");
    check(
        &plain,
        "CREATE TEMP TABLE work AS SELECT * FROM t WHERE k = 1",
        "key #0 w Pin(\"temporary table\")",
    );
    check(&plain, "CREATE TEMP VIEW settings AS SELECT 1", "refuse 0A000");
    check(&plain, "SELECT * FROM work", "refuse 42P01");
    check(&pinned, "SELECT * FROM work", "any r");
    check(&pinned, "INSERT INTO work VALUES (1)", "any w");
    check(&pinned, "INSERT INTO work SELECT x FROM t WHERE k = 1", "key #0 w");
    check(&pinned, "SELECT * FROM pg_temp.work JOIN t ON t.x = work.a WHERE t.k = 5", "key #0 r");
    check(&pinned, "DROP TABLE work", "any w");
    check(&pinned, "DROP TABLE t", "ddl w");
    check(&pinned, "CREATE INDEX ON work (a)", "any w");
}

/// Parameters are read by their declared type and format.
struct One {
    value: Vec<u8>,
    binary: bool,
    oid: u32,
}

impl Params for One {
    fn get(&self, _: u16) -> ParamValue<'_> {
        if self.binary { ParamValue::Binary(&self.value) } else { ParamValue::Text(&self.value) }
    }

    fn type_oid(&self, _: u16) -> u32 {
        self.oid
    }

    fn client_encoding_is_utf8(&self) -> bool {
        true
    }
}

#[test]
fn h24_parameters_by_type_and_format() {
    let check = |sql: &str, value: &[u8], binary: bool, oid: u32, expected: Result<u16, &str>| {
        with_router(|router, context| {
            let routed = router.parse(context, sql.as_bytes()).expect(sql);
            let params = One { value: value.to_vec(), binary, oid };
            let found = match resolve(&routed.plan, &routed.literals, sql.as_bytes(), &params, &even()) {
                Resolved::One { key, .. } => Ok(key.map_or(9999, |hash| hash.bucket(4096).get())),
                Resolved::Refuse(refusal) => Err(refusal.sqlstate),
                Resolved::Scatter { .. } => Err("scatter"),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{sql} {value:?} {oid}");
        });
    };
    let uuid = "SELECT * FROM accounts WHERE tenant_id = $1";
    let raw: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&"550e8400e29b41d4a716446655440000"[i * 2..i * 2 + 2], 16).expect("hex"))
        .collect();
    check(uuid, &raw, true, 0, Ok(3302));
    check(uuid, &raw, true, 2950, Ok(3302));
    check(uuid, &raw[..15], true, 2950, Err("22P03"));
    check(uuid, b"550E8400-e29b-41d4-a716-446655440000", false, 0, Ok(3302));
    check(uuid, b"550E8400-e29b-41d4-a716-446655440000", true, 25, Ok(3302));
    check(uuid, b"550E8400", false, 2950, Err("22P02"));
    check(uuid, b"5", false, 23, Err("0A000"));
    let int8 = "SELECT * FROM t WHERE k = $1";
    check(int8, &42i64.to_be_bytes(), true, 20, Ok(383));
    check(int8, &42i32.to_be_bytes(), true, 23, Ok(383));
    check(int8, &42i16.to_be_bytes(), true, 21, Ok(383));
    check(int8, &42i64.to_be_bytes(), true, 0, Ok(383));
    check(int8, b"42", false, 0, Ok(383));
    check(int8, b"42", false, 1043, Ok(383));
    check(int8, b"42.00", false, 1700, Ok(383));
    check(int8, b"42.5", false, 1700, Err("0A000"));
    check(int8, b"42", false, 701, Err("0A000"));
    check(int8, b"\0", true, 16, Err("0A000"));
    let any = "SELECT * FROM t WHERE k = ANY ($1)";
    check(any, b"{42,42,NULL}", false, 1016, Ok(383));
    check(any, b"{42, \"42\"}", false, 0, Ok(383));
    check(any, b"{42", false, 0, Err("22P02"));
    check(any, b"{1,42}", false, 0, Err("scatter"));
    let mut array = Vec::new();
    for n in [1, 0, 20, 2, 1] {
        array.extend(i32::to_be_bytes(n));
    }
    for _ in 0..2 {
        array.extend(8i32.to_be_bytes());
        array.extend(42i64.to_be_bytes());
    }
    check(any, &array, true, 1016, Ok(383));
    check(any, &array[..array.len() - 1], true, 1016, Err("22P02"));
}
