//! The outbox while a tenant's rows are on two shards: only the shard that owns them publishes and removes them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use payment_core::outbox::claim::{Claims, Cursor};
use payment_core::outbox::lease::Lease;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// What a proxy makes on every shard.
const BOOTSTRAP: &str = include_str!("../../proxy/src/control/bootstrap.sql");

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn post(client: &Client, tenant: Uuid, events: i64) {
    let sql = "INSERT INTO outbox (tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id,
                                   amount_minor, currency, status, occurred_at)
               SELECT $1, $1, s, gen_random_uuid(), 'payments.payment.succeeded', gen_random_uuid(), $1, 100, 'USD', 'succeeded',
                      clock_timestamp() FROM generate_series(1, $2::int8) s";
    client.execute(sql, &[&tenant, &events]).await.unwrap();
}

#[tokio::test]
async fn h12_a_relay_publishes_only_what_its_shard_owns() {
    let server = testpg::TempPostgres::start(&[]);
    let url = server.url("postgres");
    let report = sql_assets::apply(&url, &sql_assets::Options::default()).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let client = connect(&url).await;
    client.batch_execute(&format!("BEGIN; {}{BOOTSTRAP} COMMIT", shard_config::CATALOG_SQL)).await.unwrap();

    let (here, coming, pinned) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    for tenant in [here, coming, pinned] {
        post(&client, tenant, 3).await;
    }
    let bucket = shard_config::bucket_of_uuid(coming.as_bytes(), 4096).get();
    let hash: i64 = client
        .query_one(&format!("SELECT uuid_hash_extended($1, {})", shard_config::HASH_SEED), &[&pinned])
        .await
        .unwrap()
        .get(0);
    client
        .batch_execute(&format!(
            "INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES \
             (1, '{{\"ranges\": [[{bucket}, {bucket}]], \"hashes\": []}}', 4095), (2, '{{\"ranges\": [], \"hashes\": [{hash}]}}', 4095)"
        ))
        .await
        .unwrap();

    let relay = connect(&url).await;
    let lease = Lease::acquire(&relay, 1, "one", Duration::from_secs(60)).await.unwrap().unwrap();
    let claims = Claims::prepare(&relay, 100).await.unwrap();
    let tenants = async || -> Vec<Uuid> {
        let mut tenants: Vec<_> =
            claims.next(&relay, Cursor::START).await.unwrap().iter().map(|event| event.tenant_id).collect();
        tenants.dedup();
        tenants
    };
    assert_eq!(tenants().await, [here], "copies of rows that another shard owns are left alone");
    assert_eq!(claims.pending(&relay).await.unwrap().0, 3);

    // The shard becomes their owner, and the other way round: seen by the next claim of the same session.
    client.batch_execute("DELETE FROM shard_catalog.fence").await.unwrap();
    let mut all = tenants().await;
    all.sort_unstable();
    assert_eq!(all, [here, coming, pinned]);
    let claimed = claims.next(&relay, Cursor::START).await.unwrap();
    client
        .batch_execute(&format!(
            "INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES (3, '{{\"ranges\": [[{bucket}, {bucket}]]}}', 4095)"
        ))
        .await
        .unwrap();
    assert!(claims.mark(&relay, &lease, &claimed).await.unwrap());
    let left = "SELECT count(*) FROM outbox WHERE published_at IS NULL AND tenant_id = $1";
    let left = async |tenant: Uuid| client.query_one(left, &[&tenant]).await.unwrap().get::<_, i64>(0);
    assert_eq!((left(here).await, left(pinned).await), (0, 0));
    assert_eq!(left(coming).await, 3, "moved on after the claim: its new owner marks it");
}
