//! The beginning and the end of every request.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::error::Problem;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
pub const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Counts and times a request, gives it an id, and gives a [`Problem`] its body.
pub async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers().get(&X_REQUEST_ID));
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let body = problem.render(id.to_str().ok());
        *response.body_mut() = Body::from(body);
        if problem.is_replay() {
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, TRUE);
        }
    }
    response.headers_mut().insert(X_REQUEST_ID, id);
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let status = response.status();
    app.metrics.http_requests.with_label_values(&[route, status.as_str()]).inc();
    app.metrics.http_request_duration.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    response
}

/// The client's own id if it is short and printable, otherwise a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let usable =
        |v: &&HeaderValue| (1..=128).contains(&v.len()) && v.as_bytes().iter().all(u8::is_ascii_graphic);
    if let Some(given) = given.filter(usable) {
        return given.clone();
    }
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
}

/// A JSON answer from bytes that are there already.
pub fn json(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() =
        axum::http::StatusCode::from_u16(status).unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 204.
pub fn empty() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = axum::http::StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_kept_or_made() {
        let kept = HeaderValue::from_static("abc-1");
        assert_eq!(request_id(Some(&kept)), kept);
        for bad in ["", "a b", &"x".repeat(129)] {
            let bad = HeaderValue::from_str(bad).unwrap();
            assert_ne!(request_id(Some(&bad)), bad);
        }
        assert_ne!(request_id(None), request_id(None));
    }
}
