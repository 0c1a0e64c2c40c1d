//! Sockets and connections: how many, how long, and how they end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::app::App;
use crate::limits;

/// Bytes of one connection's read buffer at most: request line and headers must fit, bodies pass through.
const BUFFER_MAX: usize = 32 * 1024;

/// Serves until `stopped`, then lets requests under way finish, at most until `drain_by`.
pub async fn run(
    app: Arc<App>,
    listener: TcpListener,
    router: axum::Router,
    mut stopped: watch::Receiver<bool>,
    drain: Duration,
) {
    let places = Arc::new(Semaphore::new(app.config.max_connections));
    let mut connections = JoinSet::new();
    while !*stopped.borrow() {
        // Whoever finds no place waits in the kernel's backlog, which is bounded too.
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            _ = stopped.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                app.metrics.http_connections.inc();
                connections.spawn(connection(app.clone(), stream, place, router.clone(), stopped.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: trying again at once would only burn the CPU.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let until = Instant::now() + drain;
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout_at(until.into(), ended).await.is_err() {
        tracing::warn!("requests were still under way at the end of draining");
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: axum::Router,
    mut stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    // Ends a connection whose peer does not read: hyper would wait for ever for room in the socket's buffer.
    let unread = Duration::from_secs(limits::UNREAD_ANSWER_TIMEOUT_S);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(unread));
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(infallible(router.call(request.map(Body::new)).await)) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits::HEADER_TIMEOUT_S))
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => log(ended),
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            log(serving.await);
        }
    }
    app.metrics.http_connections.dec();
    drop(place);
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// Peers break off all the time.
fn log(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client connection ended badly");
    }
}
