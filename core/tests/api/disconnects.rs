//! Clients that go before they are answered.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::bed::Bed;

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < Duration::from_secs(60), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The change is made after its client has gone, and the caches are told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn h33_a_client_that_goes_does_not_keep_the_eviction_from_being_made() {
    let bed = Bed::new().await;
    let (_, wallet) = bed.accounts().await;
    let path = format!("/v1/accounts/{wallet}");
    assert_eq!(bed.get(&path).await.text("status"), "ACTIVE");
    let evicted = async || -> u64 {
        let text = bed.as_key("", "GET", "/metrics", &[], "").await.body;
        let name = "paycore_cache_evictions_total{cache=\"account-cache\",cause=\"changed\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0)
    };
    assert_eq!(evicted().await, 0);
    let lock = bed.lock(&wallet).await;
    let body = r#"{"status":"FROZEN"}"#;
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nhost: core\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        bed.key,
        body.len()
    );
    let mut client = TcpStream::connect(bed.address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let sql = bed.sql().await;
    let name = format!("{}/writes", bed.app.config.instance);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1";
    until("the change to wait for the row", async || {
        sql.query_one(waiting, &[&name]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    drop(client);
    // This question's own connection is the only one left: the core has seen that the client went.
    until("the client to be gone", async || bed.metric("paycore_http_connections").await <= 1.0).await;
    lock.batch_execute("COMMIT").await.unwrap();
    until("the change", async || bed.count("accounts", "status = 'FROZEN'").await == 1).await;
    until("the eviction", async || evicted().await > 0).await;
    // It frees what it held: the end of the instance waits for such changes.
    bed.stop().await.unwrap();
}
