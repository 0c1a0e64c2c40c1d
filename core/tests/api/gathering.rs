//! A busy lane lets payments gather; an idle one, and a client by itself, do not wait.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, payment};

const STATEMENTS: &str = "paycore_batch_transfers_count";

/// As many payments as there are keys, in one request and so in one statement.
async fn together(bed: &Bed, body: &Value, keys: &[&str]) {
    let items: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut item = body.clone();
            item["idempotency_key"] = json!(key);
            item
        })
        .collect();
    let reply = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": items }).to_string()).await;
    let results = reply.json()["results"].as_array().unwrap().clone();
    assert!(results.iter().all(|result| result["status"] == 201), "{results:?}");
}

/// The interval is so long that only who waits for more has both in one statement: the second comes after one interval and
/// before the end of two.
#[tokio::test(flavor = "multi_thread")]
async fn few_payments_wait_for_others_longer_than_one_interval() {
    let bed = Arc::new(Bed::with(&["--lane-interval-ms", "2000"]).await);
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    together(&bed, &body, &["a", "b", "c", "d"]).await;
    let before = bed.metric(STATEMENTS).await;
    let pay = |key: &'static str| {
        let (bed, body) = (bed.clone(), body.clone());
        tokio::spawn(async move { bed.pay(key, &body).await })
    };
    let first = pay("e");
    tokio::time::sleep(Duration::from_millis(2600)).await;
    assert!(!first.is_finished(), "posted after one interval, by itself");
    let second = pay("f");
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(second.await.unwrap().status, 201);
    assert_eq!(bed.metric(STATEMENTS).await - before, 1.0);
}

/// Otherwise clients that wait for their answers, all of them, would wait for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn as_many_as_last_time_wait_for_nobody() {
    // Two intervals are longer than a request may take.
    let bed = Bed::with(&["--lane-interval-ms", "2000", "--request-timeout-ms", "3500"]).await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    together(&bed, &body, &["a", "b", "c"]).await;
    together(&bed, &body, &["d", "e", "f"]).await;
    assert_eq!(bed.count("payments", "true").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_by_itself_waits_for_nobody() {
    // An interval is longer than a request may take.
    let bed = Bed::with(&["--lane-interval-ms", "60000", "--request-timeout-ms", "3500"]).await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    for key in ["a", "b", "c"] {
        assert_eq!(bed.pay(key, &body).await.status, 201);
    }
}
