//! What the schema is for: its indexes and its views, on a real PostgreSQL.

use sql_assets::{Options, apply};
use testpg::TempPostgres;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

async fn server() -> (TempPostgres, String) {
    let postgres = TempPostgres::start(&[]);
    let url = postgres.url("postgres");
    let report = apply(&url, &Options::default()).await.expect("apply");
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    (postgres, url)
}

/// Amounts of currencies with every number of decimals, up to the largest that a row can hold.
#[tokio::test]
async fn the_transactions_view_shows_amounts_in_full() {
    let (_postgres, url) = server().await;
    let client = connect(&url).await;
    let cases = [
        ("KWD", 1234, "1.234"),
        ("BHD", 1, "0.001"),
        ("KWD", i64::MAX, "9223372036854775.807"),
        ("JPY", 1, "1"),
        ("JPY", 10_000_000_000_000, "10000000000000"),
        ("JPY", i64::MAX, "9223372036854775807"),
        ("USD", 1205, "12.05"),
        ("USD", i64::MAX, "92233720368547758.07"),
        ("CLF", i64::MAX, "922337203685477.5807"),
    ];
    for (currency, minor, _) in cases {
        let sql = "INSERT INTO payments (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, \
                   amount_minor, currency, status) VALUES ($1, gen_random_uuid(), now(), $1, $1, $2, $3, 'succeeded')";
        client.execute(sql, &[&Uuid::nil(), &minor, &currency]).await.expect("a payment");
    }
    let sql = "SELECT t.amount::text FROM transactions t JOIN payments p ON p.payment_id = t.id \
               WHERE t.tenant_id = $1 AND p.amount_minor = $2 AND t.currency_code = $3";
    for (currency, minor, expected) in cases {
        let row = client.query_one(sql, &[&Uuid::nil(), &minor, &currency]).await.expect("a transaction");
        assert_eq!(row.get::<_, &str>(0), expected, "{minor} {currency}");
    }
}

/// The core's named queries use the indexes they were made for; an index that no query uses does not exist.
#[tokio::test]
async fn every_index_serves_a_query() {
    let (_postgres, url) = server().await;
    let client = connect(&url).await;
    // Enough rows of one tenant that one index is clearly the right one.
    let seed = "
        INSERT INTO tenants (tenant_id, name) VALUES ('00000000-0000-0000-0000-000000000001', 't');
        INSERT INTO accounts (tenant_id, account_id, account_number, currency)
             SELECT tenant_id, gen_random_uuid(), i, 'USD' FROM tenants, generate_series(1, 2000) i;
        INSERT INTO api_keys (tenant_id, key_id, prefix, key_hash)
             SELECT tenant_id, gen_random_uuid(), i, sha256(i::text::bytea) FROM tenants, generate_series(1, 2000) i;
        INSERT INTO payment_types (tenant_id, payment_type_id, code, name)
             SELECT tenant_id, gen_random_uuid(), i, i FROM tenants, generate_series(1, 2000) i;
        INSERT INTO payments (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, amount_minor,
                              currency, status)
             SELECT tenant_id, gen_random_uuid(), now() - i * interval '1 ms', lpad(to_hex(i % 100), 32, '0')::uuid,
                    lpad(to_hex(i % 99), 32, 'a')::uuid, 1, 'USD', CASE i % 50 WHEN 7 THEN 'declined' ELSE 'succeeded' END
               FROM tenants, generate_series(1, 20000) i;
        INSERT INTO entries (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, amount_minor,
                             currency, debit_posted_after, debit_version, credit_posted_after, credit_version)
             SELECT tenant_id, payment_id, created_at, debit_account_id, credit_account_id, 1, 'USD', 0,
                    row_number() OVER (PARTITION BY debit_account_id ORDER BY created_at), 0,
                    row_number() OVER (PARTITION BY credit_account_id ORDER BY created_at)
               FROM payments WHERE status = 'succeeded';
        ANALYZE;
        SET enable_seqscan = off";
    client.batch_execute(seed).await.expect("seed");
    let t = "'00000000-0000-0000-0000-000000000001'::uuid";
    // The two streams of the payments of an account.
    let succeeded = |side: &str| {
        format!(
            "SELECT e.{side}_version, p.* FROM entries e JOIN payments p ON p.tenant_id = e.tenant_id \
             AND p.created_at = e.created_at AND p.payment_id = e.payment_id \
             WHERE e.tenant_id = {t} AND e.{side}_account_id = {t} AND e.{side}_version < 50 \
             AND e.created_at >= '1970-01-01' AND e.created_at < '9999-12-31' ORDER BY e.{side}_version DESC LIMIT 51"
        )
    };
    let unsettled = |side: &str| {
        format!(
            "SELECT * FROM payments p WHERE p.tenant_id = {t} AND p.{side}_account_id = {t} \
             AND p.status <> 'succeeded' AND (p.created_at, p.payment_id) < (now(), {t}) \
             AND p.created_at >= '1970-01-01' AND p.created_at < '9999-12-31' \
             ORDER BY p.created_at DESC, p.payment_id DESC LIMIT 51"
        )
    };
    let queries = [
        (
            "payments_%_pkey",
            format!(
                "SELECT * FROM payments WHERE tenant_id = {t} AND created_at = now() AND payment_id = {t}"
            ),
        ),
        (
            "payments_%_pkey",
            format!(
                "SELECT * FROM payments WHERE tenant_id = {t} AND (created_at, payment_id) < (now(), {t}) ORDER BY created_at DESC, payment_id DESC LIMIT 50"
            ),
        ),
        (
            "entries_%_pkey",
            format!(
                "SELECT * FROM account_entries WHERE tenant_id = {t} AND account_id = {t} AND version < 5 ORDER BY version DESC LIMIT 50"
            ),
        ),
        (
            "entries_%_credit_version_idx",
            format!(
                "SELECT * FROM account_entries WHERE tenant_id = {t} AND account_id = {t} AND version < 5 ORDER BY version DESC LIMIT 50"
            ),
        ),
        ("entries_%_pkey", succeeded("debit")),
        ("entries_%_credit_version_idx", succeeded("credit")),
        ("payments_%_pkey", succeeded("debit")),
        (
            "payments_%_created_at_payment_id_idx",
            format!(
                "SELECT * FROM payments WHERE tenant_id = {t} AND (created_at, payment_id) < (now(), {t}) AND status <> 'succeeded' AND status = 'declined' ORDER BY created_at DESC, payment_id DESC LIMIT 50"
            ),
        ),
        ("payments_%_debit_account_id_created_at_paym_idx", unsettled("debit")),
        ("payments_%_credit_account_id_created_at_pay_idx", unsettled("credit")),
        ("accounts_pkey", format!("SELECT * FROM accounts WHERE tenant_id = {t} AND account_id = {t}")),
        (
            "accounts_tenant_id_account_number_key",
            format!("SELECT * FROM accounts WHERE tenant_id = {t} AND account_number = 'x'"),
        ),
        (
            "api_keys_tenant_id_key_hash_key",
            format!("SELECT * FROM api_keys WHERE tenant_id = {t} AND key_hash = '\\x00'"),
        ),
        ("api_keys_pkey", format!("SELECT * FROM api_keys WHERE tenant_id = {t} AND key_id = {t}")),
        (
            "payment_types_tenant_id_code_key",
            format!("SELECT * FROM payment_types WHERE tenant_id = {t} AND code = 'x'"),
        ),
        (
            "payment_types_pkey",
            format!("SELECT * FROM payment_types WHERE tenant_id = {t} AND payment_type_id = {t}"),
        ),
        ("fraud_rules_pkey", format!("SELECT * FROM fraud_rules WHERE tenant_id = {t} AND rule_id = {t}")),
        (
            "rule_usage_pkey",
            format!("SELECT * FROM rule_usage WHERE tenant_id = {t} AND rule_id = {t} AND account_id = {t}"),
        ),
        (
            "tenant_config_pkey",
            format!("SELECT * FROM tenant_config WHERE tenant_id = {t} AND config_type = 'x'"),
        ),
        ("tenants_pkey", format!("SELECT * FROM tenants WHERE tenant_id = {t}")),
        (
            "idempotency_keys_pkey",
            format!("SELECT * FROM idempotency_keys WHERE tenant_id = {t} AND key = 'x'"),
        ),
        ("idempotency_keys_expires", "SELECT ctid FROM idempotency_keys WHERE expires_at < now()".to_owned()),
        (
            "outbox_pending",
            format!(
                "SELECT * FROM outbox WHERE published_at IS NULL AND account_id > {t} ORDER BY account_id, event_seq LIMIT 100"
            ),
        ),
        ("outbox_published", "SELECT ctid FROM outbox WHERE occurred_at < now()".to_owned()),
        (
            "outbox_pkey",
            format!(
                "UPDATE outbox SET published_at = now() WHERE tenant_id = {t} AND account_id = {t} AND event_seq = 1"
            ),
        ),
        (
            "inbox_pkey",
            format!("SELECT 1 FROM inbox WHERE tenant_id = {t} AND consumer = 'x' AND event_id = {t}"),
        ),
        ("relay_leases_pkey", "SELECT * FROM relay_leases WHERE shard_id = 1".to_owned()),
        ("currencies_pkey", "SELECT * FROM currencies WHERE code = 'USD'".to_owned()),
        ("schema_migrations_pkey", "SELECT * FROM schema_migrations WHERE version = 1".to_owned()),
    ];
    let like = |pattern: &str, name: &str| match pattern.split_once('%') {
        Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
        None => name == pattern,
    };
    for (index, query) in &queries {
        let rows = client.query(&format!("EXPLAIN {query}"), &[]).await.expect(query);
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let used = plan.iter().flat_map(|line| line.split_whitespace()).any(|word| like(index, word));
        assert!(used, "{index} is not used by {query}:\n{}", plan.join("\n"));
    }
    let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind = 'i' AND n.nspname = 'public'";
    for row in client.query(sql, &[]).await.expect("indexes") {
        let name: String = row.get(0);
        assert!(queries.iter().any(|(index, _)| like(index, &name)), "{name} serves no query of the list");
    }
}

/// Months after the last `migrate`, a user who may make no tables makes partitions.
#[tokio::test]
async fn partitions_are_made_ahead_by_whoever_calls() {
    let (_postgres, url) = server().await;
    let client = connect(&url).await;
    let months_left = async || {
        let sql = "SELECT (extract(year FROM a) * 12 + extract(month FROM a))::int FROM \
                   (SELECT age(partitions_until(), date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC') AS a) x";
        client.query_one(sql, &[]).await.expect("the months").get::<_, i32>(0)
    };
    assert_eq!(months_left().await, 7);
    let sql = "CREATE ROLE caller; SET ROLE caller; SET timezone = 'Asia/Tokyo'";
    client.batch_execute(sql).await.expect("a role");
    let made = client.query("SELECT make_partitions(8)", &[]).await.expect("make_partitions");
    assert_eq!(made.len(), 4);
    assert_eq!(client.query("SELECT make_partitions(8)", &[]).await.expect("again").len(), 0);
    client.batch_execute("RESET ROLE; SET timezone = 'UTC'").await.expect("reset");
    assert_eq!(months_left().await, 9);
    // The last one ends where the month does in UTC, and has the indexes of all.
    let sql = "SELECT pg_get_expr(c.relpartbound, c.oid) LIKE format('%%TO (%L)', to_char(partitions_until(), 'YYYY-MM-01') || ' 00:00:00+00'), \
                      (SELECT count(*) FROM pg_index x WHERE x.indrelid = c.oid) \
                 FROM pg_class c WHERE c.oid = (SELECT max(inhrelid) FROM pg_inherits WHERE inhparent = 'payments'::regclass)";
    let last = client.query_one(sql, &[]).await.expect("the last partition");
    assert_eq!((last.get::<_, bool>(0), last.get::<_, i64>(1)), (true, 4));
    let refused = client.query("SELECT make_partitions(100000)", &[]).await.expect_err("too many");
    assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("22023"));
}
