//! The HTTP door for operators: /metrics, /healthz, /readyz, /map; and for the other proxies (`peers`). On the
//! control thread, never on a worker.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::admin::{Context, workers};
use crate::control::limits::{HTTP_CONNECTIONS, HTTP_HEADER_TIMEOUT};
use crate::limits::PEER_MESSAGE;
use crate::metrics::{Gauges, Page};
use crate::motion::Stage;
use crate::peers;
use crate::pool::pool::PoolStatus;
use crate::session::client::{Activity, ClientStatus};
use crate::worker::Mail;

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, context: Context) {
    let context = Arc::new(context);
    let slots = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: those in use will be given back.
                tracing::warn!(%error, "http: accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let context = context.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, context.clone()));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HTTP_HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "http connection");
            }
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    context: Arc<Context>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::POST && request.uri().path() == peers::PATH {
        return Ok(cancel(request, &context).await);
    }
    if request.method() != Method::GET {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    Ok(match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&context),
        "/map" => map(&context),
        "/metrics" => {
            let (clients, pools) =
                (workers::clients(&context.workers).await, workers::pools(&context.workers).await);
            match metrics(&context, &clients, &pools).print() {
                Ok(page) => respond(StatusCode::OK, "text/plain; version=0.0.4", page),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /map\n"),
    })
}

/// A peer's cancel request. Whether a client was found is not told, as to clients.
async fn cancel(request: Request<Incoming>, context: &Context) -> Response<Full<Bytes>> {
    let body = Limited::new(request.into_body(), PEER_MESSAGE).collect();
    let body = match timeout(HTTP_HEADER_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "this is no cancel request\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "too slow\n"),
    };
    let key = match peers::open(&context.shared.load().config, &body) {
        Ok(key) => key,
        Err(error) => {
            tracing::warn!(?error, "a cancel request that is not from a peer");
            return text(StatusCode::FORBIDDEN, "not from a proxy of this cluster\n");
        }
    };
    if let Some(worker) = context.workers.get((key.id >> 24) as usize) {
        // A worker whose mailbox stays full is not slowed down further.
        let _ = timeout(HTTP_HEADER_TIMEOUT, worker.mail.send(Mail::Cancel { key, from_peer: true })).await;
    }
    text(StatusCode::NO_CONTENT, "")
}

/// Ready = knows the schema and the map. A shard without a primary is reported, not a reason to be taken out: the
/// other shards' tenants are served.
fn ready(context: &Context) -> Response<Full<Bytes>> {
    let state = context.shared.load();
    let members = || state.shards.iter().filter(|shard| shard.is_member());
    let without: Vec<u16> = members().filter(|s| s.primary.is_none()).map(|s| s.id.0).collect();
    let ready = context.control.is_ready() && without.len() < members().count();
    let body = serde_json::json!({ "ready": ready, "shards_without_primary": without });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond(status, "application/json", format!("{body}\n"))
}

fn map(context: &Context) -> Response<Full<Bytes>> {
    let state = context.shared.load();
    let range = |(from, to, shard): (u16, u16, shard_config::ShardId)| serde_json::json!({ "bucket_from": from, "bucket_to": to, "shard": shard.0 });
    let ranges: Vec<_> = state.map.ranges().into_iter().map(range).collect();
    let body =
        serde_json::json!({ "epoch": state.map.epoch(), "buckets": state.map.buckets(), "ranges": ranges });
    respond(StatusCode::OK, "application/json", format!("{body}\n"))
}

fn metrics(context: &Context, clients: &[ClientStatus], pools: &[PoolStatus]) -> Page {
    let state = context.shared.load();
    let mut page = Page::default();
    page.gauge(Gauges::BuildInfo, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.gauge(Gauges::MapEpoch, &[], state.map.epoch() as f64);
    page.gauge(Gauges::CatalogVersion, &[], state.catalog.version as f64);
    let leased = context.shared.gate.is_leased(crate::motion::boottime_ms());
    page.gauge(Gauges::CatalogSeen, &[], state.following.version as f64);
    page.gauge(Gauges::LeaseValid, &[], f64::from(u8::from(leased)));
    for stage in [Stage::Copying, Stage::Holding, Stage::Flipped] {
        let motions = state.following.motions.as_deref().map_or(&[][..], |motions| motions.list());
        let count = motions.iter().filter(|motion| motion.stage == stage).count();
        page.gauge(Gauges::Motions, &[("stage", stage.name())], count as f64);
    }
    let holding =
        context.workers.iter().map(|w| w.progress.holding.load(std::sync::atomic::Ordering::Relaxed));
    page.gauge(Gauges::Holding, &[], holding.sum::<u64>() as f64);
    let drifted = state.catalog.tables.values().filter(|t| t.drift.is_some()).count();
    page.gauge(Gauges::TablesDrifted, &[], drifted as f64);
    for activity in
        [Activity::Idle, Activity::Active, Activity::IdleInTransaction, Activity::WaitingForServer]
    {
        let count = clients.iter().filter(|c| c.activity == activity).count();
        page.gauge(Gauges::ClientConnections, &[("state", &activity.name().replace(' ', "_"))], count as f64);
    }
    for pool in pools {
        let (shard, role) = (pool.shard_id.to_string(), format!("{:?}", pool.role).to_lowercase());
        let labels = [("shard", shard.as_str()), ("role", role.as_str()), ("user", pool.user.as_str())];
        for (name, count) in [("idle", pool.idle), ("active", pool.used), ("connecting", pool.connecting)] {
            let labels = [labels[0], labels[1], labels[2], ("state", name)];
            page.gauge(Gauges::ServerConnections, &labels, count as f64);
        }
        page.gauge(Gauges::PoolLimit, &labels, pool.max as f64);
        page.gauge(Gauges::PoolWaiting, &labels, pool.waiting as f64);
    }
    for shard in state.shards.iter().filter(|shard| shard.is_member()) {
        if let Some(primary) = &shard.primary {
            page.gauge(Gauges::Timeline, &[("shard", &shard.id.to_string())], f64::from(primary.timeline));
        }
    }
    for (name, value) in
        workers::counters(&context.workers).into_iter().filter(|(name, _)| *name != "clients")
    {
        page.counter(name, &[], value);
    }
    for server in context.control.world.status().into_iter().filter(|server| server.role != "leaving") {
        let (shard, address) = (server.shard.to_string(), server.address.to_string());
        let labels = [("shard", shard.as_str()), ("address", address.as_str()), ("role", server.role)];
        let up = matches!(server.role, "primary" | "replica");
        page.gauge(Gauges::BackendUp, &labels, f64::from(u8::from(up)));
    }
    for (shard, prepared) in context.control.prepared() {
        page.gauge(Gauges::PreparedTransactions, &[("shard", &shard.to_string())], prepared as f64);
    }
    page
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.to_owned())
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
