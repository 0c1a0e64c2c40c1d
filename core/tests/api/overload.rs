//! Full queues, many connections, slow clients, and the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::bed::{Bed, payment};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers() {
    let bed = Arc::new(Bed::with(&["--lane-queue", "3"]).await);
    let (settlement, wallet) = bed.accounts().await;
    let lock = bed.lock(&wallet).await;
    let pay = |i: u32| {
        let (bed, body) = (bed.clone(), payment(&settlement, &wallet, "1.00"));
        tokio::spawn(async move { bed.pay(&format!("q{i}"), &body).await })
    };
    let mut waiting = vec![pay(0)];
    bed.until_blocked(1).await;
    // One is being posted, three wait; the others are told.
    let items: Vec<_> = (1..=8)
        .map(|i| {
            let mut item = payment(&settlement, &wallet, "1.00");
            item["idempotency_key"] = json!(format!("q{i}"));
            item
        })
        .collect();
    let batch = {
        let bed = bed.clone();
        tokio::spawn(async move {
            bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": items }).to_string()).await
        })
    };
    while bed.metric("paycore_batch_queue_transfers").await < 3.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let full = bed.pay("q99", &payment(&settlement, &wallet, "1.00")).await;
    assert_eq!(full.problem(), (429, "queue_full".into()));
    assert_eq!(full.header("retry-after"), Some("1"));
    lock.batch_execute("COMMIT").await.unwrap();
    assert_eq!(waiting.remove(0).await.unwrap().status, 201);
    let results = batch.await.unwrap().json();
    let statuses: Vec<_> =
        results["results"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!(statuses, [201, 201, 201, 429, 429, 429, 429, 429].map(|s| json!(s)));
    assert_eq!(bed.count("payments", "true").await, 4);
    assert_eq!(bed.metric("paycore_payments_active").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waited_too_long_is_not_posted() {
    let bed = Arc::new(Bed::with(&["--request-timeout-ms", "300"]).await);
    let (settlement, wallet) = bed.accounts().await;
    let lock = bed.lock(&wallet).await;
    let body = payment(&settlement, &wallet, "1.00");
    let sent = {
        let (bed, body) = (bed.clone(), body.clone());
        tokio::spawn(async move { bed.pay("sent", &body).await })
    };
    bed.until_blocked(1).await;
    let queued = bed.pay("queued", &body).await;
    // Whether it will be sent, nobody knows yet; it is not, because its time is over when the lane comes to it.
    assert_eq!(queued.problem(), (503, "outcome_unknown".into()));
    assert_eq!(sent.await.unwrap().problem(), (503, "outcome_unknown".into()));
    lock.batch_execute("COMMIT").await.unwrap();
    while bed.metric("paycore_payments_active").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bed.count("idempotency_keys", "key = 'sent'").await, 1);
    assert_eq!(bed.count("idempotency_keys", "key = 'queued'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_cost_nobody_anything() {
    let bed = Bed::new().await;
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(TcpStream::connect(bed.address).await.unwrap());
    }
    // Half a request, for ever.
    for stream in idle.iter_mut().take(100) {
        stream.write_all(b"POST /v1/payments HTTP/1.1\r\nhost: x\r\ncontent-le").await.unwrap();
    }
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("k", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    assert!(bed.metric("paycore_http_connections").await >= 400.0);
    drop(idle);
    for _ in 0..200 {
        if bed.metric("paycore_http_connections").await < 10.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("connections leak");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_wait_outside() {
    let bed = Bed::with(&["--max-connections", "5"]).await;
    let idle: Vec<_> = futures_util::future::join_all((0..5).map(|_| TcpStream::connect(bed.address))).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let address = bed.address;
    let outside =
        tokio::spawn(async move { crate::bed::call(address, "", "GET", "/healthz", &[], "").await.status });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!outside.is_finished());
    drop(idle);
    assert_eq!(outside.await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_finishes_what_was_accepted() {
    let bed = Arc::new(Bed::new().await);
    let (settlement, wallet) = bed.accounts().await;
    let lock = bed.lock(&wallet).await;
    let paying = {
        let (bed, body) = (bed.clone(), payment(&settlement, &wallet, "1.00"));
        tokio::spawn(async move { bed.pay("last", &body).await })
    };
    bed.until_blocked(1).await;
    let stopped = bed.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(bed.address).await.is_err(), "no new connections");
    assert!(!stopped.is_finished(), "it waits for the payment");
    lock.batch_execute("COMMIT").await.unwrap();
    assert_eq!(paying.await.unwrap().status, 201);
    tokio::time::timeout(Duration::from_secs(10), stopped).await.expect("it ends").unwrap();
    assert_eq!(bed.count("payments", "true").await, 1);
}
