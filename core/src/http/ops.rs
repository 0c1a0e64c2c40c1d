//! Health, metrics, and what a path that does not exist gets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::front;
use crate::app::App;
use crate::domain::code::Code;
use crate::error::Problem;

/// GET /healthz: the process runs and schedules.
pub async fn healthz() -> Response {
    front::json(200, r#"{"status":"ok"}"#)
}

/// GET /readyz: it can serve: the database answers and it is not shutting down. Redis and Kafka are not asked: without
/// them payments are posted all the same.
pub async fn readyz(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if app.draining.load(Ordering::Relaxed) {
        return Err(Problem::of(Code::ShuttingDown));
    }
    let ask = async {
        let mut db = app.db.reads().await?;
        db.query("SELECT 1", &[]).await
    };
    match tokio::time::timeout(Duration::from_secs(2), ask).await {
        Ok(Ok(_)) => Ok(front::json(200, r#"{"status":"ready"}"#)),
        Ok(Err(_)) | Err(_) => Err(Problem::new(Code::ShardUnavailable, "the database does not answer")),
    }
}

/// GET /metrics
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    app.lanes.observe();
    for (pool, open, free) in app.db.usage() {
        let gauge = |state: &str, n: usize| {
            app.metrics.db_connections.with_label_values(&[pool, state]).set(n as i64)
        };
        gauge("idle", free);
        gauge("used", open.saturating_sub(free));
    }
    let text = app.metrics.render().map_err(|error| {
        tracing::error!(%error, "metrics could not be rendered");
        Problem::of(Code::Internal)
    })?;
    let mut response = Response::new(text.into());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

pub async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "there is no such path")
}

pub async fn method_not_allowed() -> Problem {
    Problem::of(Code::MethodNotAllowed)
}
