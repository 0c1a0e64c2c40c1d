//! What a shard need not keep is removed, with Kafka or without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use payment_core::metrics::Metrics;
use payment_core::outbox::OutboxConfig;
use payment_core::outbox::sweep::Sweeper;

use crate::servers::{Database, Servers};

/// Nobody listens at the broker's address: the sweeper must not need it.
fn config(database: &str) -> OutboxConfig {
    OutboxConfig::new(database.parse().unwrap(), "127.0.0.1:1", "a")
}

async fn until(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < limit, "waited {limit:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Published rows stay for their retention, unpublished ones for ever. One round removes all the others, however many
/// there are, so that it keeps up with payments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_round_removes_every_old_row_without_kafka() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let rows = "INSERT INTO outbox (tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id, \
                amount_minor, currency, status, occurred_at, published_at) \
         SELECT gen_random_uuid(), gen_random_uuid(), s, gen_random_uuid(), 'payments.payment.succeeded', \
                gen_random_uuid(), gen_random_uuid(), 1, 'USD', 'succeeded', now() - age, \
                CASE WHEN s % 1000 = 0 THEN NULL ELSE now() - age END \
           FROM generate_series(1, 26000) s, \
                LATERAL (SELECT CASE WHEN s <= 25000 THEN interval '8 days' ELSE interval '6 days' END) a (age); \
         INSERT INTO idempotency_keys (tenant_id, key, request_hash, created_at, expires_at) \
         SELECT gen_random_uuid(), 'k' || n, '\\x00', now() - interval '8 days', now() - interval '1 day' \
           FROM generate_series(1, 25000) n";
    database.client.batch_execute(rows).await.unwrap();
    let metrics = Arc::new(Metrics::new("test").unwrap());
    // The first round comes soon, the second would come in an hour.
    let sweeper = Sweeper::start(
        OutboxConfig { sweep_every: Duration::from_secs(3600), ..config(&database.url) },
        metrics.clone(),
    );
    let count = async |table: &str| -> i64 {
        database.client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
    };
    until("the sweeper", Duration::from_secs(120), async || {
        metrics.outbox_deleted.get() >= 25_000 - 25 && count("idempotency_keys").await == 0
    })
    .await;
    sweeper.stop().await;
    assert_eq!((metrics.outbox_deleted.get(), count("outbox").await), (25_000 - 25, 1_000 + 25));
}

/// What a shard need not keep goes, chunk by chunk; what it still needs stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_keys_ended_windows_and_old_notes_are_swept() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let tenant = uuid::Uuid::new_v4();
    database
        .client
        .batch_execute(&format!(
            "INSERT INTO idempotency_keys (tenant_id, key, request_hash, created_at, expires_at) \
             SELECT '{tenant}', 'k' || n, '\\x00', now() - interval '8 days', \
                    now() + CASE WHEN n <= 2500 THEN interval '-1 day' ELSE interval '1 day' END \
               FROM generate_series(1, 2510) n; \
             INSERT INTO tenants (tenant_id, name) VALUES ('{tenant}', 'Swept'); \
             INSERT INTO fraud_rules (tenant_id, rule_id, rule_type, amount_minor) \
             VALUES ('{tenant}', '{tenant}', 'daily_amount', 100); \
             INSERT INTO rule_usage (tenant_id, rule_id, account_id, window_start, used_count, used_minor) \
             VALUES ('{tenant}', '{tenant}', gen_random_uuid(), now() - interval '2 days', 1, 1), \
                    ('{tenant}', '{tenant}', gen_random_uuid(), now() - interval '2 hours', 2, 1), \
                    ('{tenant}', gen_random_uuid(), gen_random_uuid(), now() - interval '2 hours', 3, 1); \
             INSERT INTO inbox (tenant_id, consumer, event_id, processed_at) \
             VALUES ('{tenant}', 'old', gen_random_uuid(), now() - interval '15 days'), \
                    ('{tenant}', 'new', gen_random_uuid(), now() - interval '13 days')"
        ))
        .await
        .unwrap();
    let mut config = config(&database.url);
    config.sweep_every = Duration::from_millis(100);
    config.tidy_every = Duration::from_millis(100);
    let sweeper = Sweeper::start(config, Arc::new(Metrics::new("test").unwrap()));
    let state = "SELECT (SELECT count(*) FROM idempotency_keys)::text \
                 || ' ' || (SELECT string_agg(used_count::text, ',') FROM rule_usage) \
                 || ' ' || (SELECT string_agg(consumer, ',') FROM inbox)";
    until("the sweeper", Duration::from_secs(60), async || {
        database.client.query_one(state, &[]).await.unwrap().get::<_, String>(0) == "10 2 new"
    })
    .await;
    sweeper.stop().await;
}

/// A system that runs for a year needs nobody to make partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_partitions_are_made_while_the_system_runs() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let none = "DO $$ DECLARE child regclass; BEGIN \
                FOR child IN SELECT inhrelid FROM pg_inherits WHERE inhparent IN ('payments'::regclass, 'entries'::regclass) \
                LOOP EXECUTE 'DROP TABLE ' || child; END LOOP; END $$";
    database.client.batch_execute(none).await.unwrap();
    let mut config = config(&database.url);
    config.sweep_every = Duration::from_millis(100);
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let sweeper = Sweeper::start(config, metrics.clone());
    let days = metrics.partition_days_ahead.with_label_values(&["1"]);
    let began = std::time::Instant::now();
    while days.get() <= 180.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "no partitions");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sql =
        "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('payments'::regclass, 'entries'::regclass)";
    assert_eq!(database.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 16);
    sweeper.stop().await;
}
