//! Cancel requests that no server can answer: one that reaches another proxy, one for a statement that waits (H38).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{Client, NoTls};

use crate::cluster::{Cluster, connect, take_port};
use crate::proxy::{CONFIGURATION, Proxy, code};

/// A balancer that sends each new connection to the proxy on `target`.
async fn balancer(target: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.load(Ordering::SeqCst);
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    port
}

/// Runs the statement and sends cancel requests until it ends. The first ones may be too early.
async fn cancelled(client: &Client, sql: &str) -> String {
    let token = client.cancel_token();
    let mut running = std::pin::pin!(client.simple_query(sql));
    loop {
        tokio::select! {
            result = &mut running => return result.err().map_or_else(|| "no error".to_owned(), |e| code(&e)),
            () = tokio::time::sleep(Duration::from_millis(100)) => token.cancel_query(NoTls).await.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h38_a_cancel_request_finds_its_client() {
    let cluster = Cluster::start("cancel", 1, false);
    let places = [(take_port(), take_port()), (take_port(), take_port())];
    let peers = format!("peers = [\"127.0.0.1:{}\", \"127.0.0.1:{}\"]\n[pool]", places[0].1, places[1].1);
    let proxies = places.map(|(port, http)| {
        let text = cluster.configuration(port, http, CONFIGURATION).replacen("[pool]", &peers, 1);
        Proxy::run(&cluster, (port, http), &text)
    });
    for proxy in &proxies {
        proxy.client().await.simple_query("SELECT 1").await.unwrap();
    }

    // The session is on the first proxy, and the cancel request reaches the second.
    let target = Arc::new(AtomicU16::new(places[0].0));
    let port = balancer(target.clone()).await;
    let client = connect(&format!("postgresql://app:app@127.0.0.1:{port}/payments")).await;
    let bystander = proxies[1].client().await;
    target.store(places[1].0, Ordering::SeqCst);
    let idle = tokio::spawn(async move { bystander.simple_query("SELECT pg_sleep(1)").await.map(drop) });
    assert_eq!(cancelled(&client, "SELECT pg_sleep(600)").await, "57014");
    idle.await.unwrap().expect("another client's statement is left alone");
    client.simple_query("SELECT 1").await.unwrap();

    // Nobody serves the statement: it waits for a primary.
    let waiting = proxies[0].client().await;
    cluster.primaries[0].stop("immediate");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match cancelled(&waiting, "SELECT count(*) FROM pg_class").await.as_str() {
            "57014" => break,
            // The death is not noticed yet.
            code if code.starts_with("08") || matches!(code, "57P01" | "57P02") => {}
            code => panic!("{code} instead of the end of the wait"),
        }
        assert!(Instant::now() < deadline, "it never waits");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.primaries[0].start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = waiting.simple_query("SELECT 1").await {
        assert!(Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
