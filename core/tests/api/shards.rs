//! What the core does with the shard map: a hint, whose age costs time and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use payment_core::domain::currency::Currency;
use shard_config::bucket_of_uuid;

use crate::bed::{Bed, Reply, payment};

const LAST: u16 = 4095;

/// A tenant with its accounts.
struct Tenant {
    id: String,
    key: String,
    settlement: String,
    wallet: String,
}

async fn tenant(bed: &Bed) -> Tenant {
    let (id, key) = bed.new_tenant("Shards").await;
    let settlement = bed.account(&key, "S", "settlement").await;
    let wallet = bed.account(&key, "W", "wallet").await;
    Tenant { id, key, settlement, wallet }
}

fn bucket(tenant: &str) -> u16 {
    bucket_of_uuid(uuid::Uuid::parse_str(tenant).unwrap().as_bytes(), LAST + 1).get()
}

/// Two tenants in different buckets, the lower bucket first.
async fn two_tenants(bed: &Bed) -> (Tenant, Tenant) {
    let a = tenant(bed).await;
    loop {
        let b = tenant(bed).await;
        match bucket(&a.id).cmp(&bucket(&b.id)) {
            std::cmp::Ordering::Less => return (a, b),
            std::cmp::Ordering::Greater => return (b, a),
            std::cmp::Ordering::Equal => {}
        }
    }
}

async fn pay(bed: &Bed, tenant: &Tenant, key: &str) -> Reply {
    let body = payment(&tenant.settlement, &tenant.wallet, "1.00").to_string();
    bed.as_key(&tenant.key, "POST", "/v1/payments", &[("idempotency-key", key)], &body).await
}

async fn place(bed: &Bed, tenant: &Tenant, shard: i32) {
    let sql = format!("INSERT INTO placed VALUES ('{}', {shard})", tenant.id);
    bed.sql().await.batch_execute(&sql).await.unwrap();
}

/// Payments of both tenants gather in one lane, and are posted as one batch when the lock goes.
async fn one_batch_of_both(bed: &Arc<Bed>, a: Tenant, b: Tenant, meanwhile: impl AsyncFnOnce()) {
    let lock = bed.lock(&a.wallet).await;
    let (a, b) = (Arc::new(a), Arc::new(b));
    let spawn = |tenant: &Arc<Tenant>, key: String| {
        let (bed, tenant) = (bed.clone(), tenant.clone());
        tokio::spawn(async move { pay(&bed, &tenant, &key).await })
    };
    let mut paying = vec![spawn(&a, "first".into())];
    bed.until_blocked(1).await;
    for i in 0..5 {
        paying.push(spawn(&a, format!("k{i}")));
        paying.push(spawn(&b, format!("k{i}")));
    }
    while bed.metric("paycore_payments_active").await < 11.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    meanwhile().await;
    lock.batch_execute("COMMIT").await.unwrap();
    for paid in paying {
        let reply = paid.await.unwrap();
        assert_eq!((reply.status, reply.header("idempotent-replayed")), (201, None), "{reply:?}");
    }
    let errors = bed.as_key("", "GET", "/metrics", &[], "").await.body;
    assert!(errors.contains("paycore_db_errors_total{class=\"SP\"}"), "a batch straddled: {errors}");
    for (tenant, payments) in [(&a, 6), (&b, 5)] {
        let list = bed.as_key(&tenant.key, "GET", "/v1/payments", &[], "").await.json();
        assert_eq!(list["data"].as_array().unwrap().len(), payments);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h31_a_straddling_batch_is_split_by_the_new_map() {
    let bed = Arc::new(Bed::with_map(&["--map-poll-ms", "3600000"], &[(0, LAST, 1)]).await);
    let (a, b) = two_tenants(&bed).await;
    place(&bed, &a, 1).await;
    place(&bed, &b, 2).await;
    let border = bucket(&a.id);
    let wire = bed.clone();
    one_batch_of_both(&bed, a, b, async move || {
        wire.wire.set_map(2, &[(0, border, 1), (border + 1, LAST, 2)])
    })
    .await;
    let routing = bed.app.lanes.routing();
    assert_eq!((routing.map.epoch(), routing.sharded, routing.map.shards().len()), (2, true, 2));
}

/// The proxy says that a batch straddles, and its map says that it does not: tenants are posted one by one.
#[tokio::test(flavor = "multi_thread")]
async fn h31_a_map_that_is_wrong_is_only_slower() {
    let bed = Arc::new(Bed::with_map(&[], &[(0, LAST, 1)]).await);
    let (a, b) = two_tenants(&bed).await;
    place(&bed, &a, 1).await;
    place(&bed, &b, 2).await;
    one_batch_of_both(&bed, a, b, async || {}).await;
    assert_eq!(bed.app.lanes.routing().map.epoch(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_gone_holds_up_nobody_else() {
    let bed =
        Arc::new(Bed::with_map(&["--retry-budget-ms", "3000", "--map-poll-ms", "50"], &[(0, LAST, 1)]).await);
    let (a, b) = two_tenants(&bed).await;
    let b = Arc::new(b);
    let border = bucket(&a.id);
    bed.wire.set_map(2, &[(0, border, 1), (border + 1, LAST, 2)]);
    while bed.app.lanes.routing().map.epoch() != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((pay(&bed, &a, "1").await.status, pay(&bed, &b, "1").await.status), (201, 201));
    let gone = format!("INSERT INTO gone VALUES ('{}', '57P03')", b.id);
    bed.sql().await.batch_execute(&gone).await.unwrap();
    // While the lane of b retries, a pays.
    let stuck = tokio::spawn({
        let (bed, b) = (bed.clone(), b.clone());
        async move { pay(&bed, &b, "2").await }
    });
    while bed.metric("paycore_post_retries_total").await < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for i in 0..10 {
        assert_eq!(pay(&bed, &a, &format!("a{i}")).await.status, 201);
    }
    assert!(!stuck.is_finished(), "a waited for the lane of b");
    assert_eq!(stuck.await.unwrap().problem(), (503, "shard_unavailable".into()));
    assert_eq!(pay(&bed, &b, "3").await.problem(), (503, "shard_unavailable".into()));
    bed.sql().await.batch_execute(&format!("DELETE FROM gone WHERE tenant_id = '{}'", b.id)).await.unwrap();
    let started = Instant::now();
    while pay(&bed, &b, "2").await.status != 201 {
        assert!(started.elapsed() < Duration::from_secs(10), "the shard comes back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The program and the database know the same currencies with the same exponents.
#[tokio::test(flavor = "multi_thread")]
async fn currencies_agree_with_the_database() {
    let bed = Bed::new().await;
    let rows = bed
        .sql()
        .await
        .query("SELECT code::text, exponent FROM currencies ORDER BY code", &[])
        .await
        .unwrap();
    let stored: Vec<(String, i16)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let ours: Vec<(String, i16)> =
        Currency::all().map(|c| (c.code().to_owned(), i16::from(c.exponent()))).collect();
    assert_eq!(stored, ours);

    // An operator may take one out of use.
    bed.sql().await.execute("DELETE FROM currencies WHERE code = 'XPF'", &[]).await.unwrap();
    let reply =
        bed.call("POST", "/v1/accounts", &[], r#"{ "account_number": "x", "currency": "XPF" }"#).await;
    assert_eq!(reply.problem(), (422, "unknown_currency".into()));
}
