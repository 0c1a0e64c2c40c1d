//! Configuration of the calling tenant: one JSON object a type.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::auth::Caller;
use super::params::Path;
use super::payments::answer;
use super::stored;
use super::view::Timestamp;
use super::{body, change};
use crate::app::App;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::ledger::settings;
use crate::limits;

#[derive(Serialize)]
struct ConfigView<'a> {
    config_type: &'a str,
    config: &'a Value,
    version: i64,
    updated_at: Timestamp,
}

fn check_type(kind: &str) -> Result<(), Problem> {
    let mut faults = Faults::default();
    faults.identifier("config_type", kind, limits::CODE_MAX);
    faults.finish().map_err(|_| Problem::of(Code::NotFound))
}

/// GET /v1/tenant-config/{type}
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(kind): Path) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    check_type(&kind)?;
    let load = || async {
        let mut db = app.primary(tenant).await?;
        Ok(settings::config(&mut db, tenant, &kind).await?)
    };
    let found = app.caches.tenant_config.get(&(tenant.0, kind.clone()), load).await?;
    let found = found.ok_or_else(|| Problem::of(Code::NotFound))?;
    let updated_at = chrono::DateTime::from_timestamp_micros(found.updated_at_us).unwrap_or_default();
    let mut response = answer(&ConfigView {
        config_type: &kind,
        config: &found.config,
        version: found.version,
        updated_at: Timestamp(updated_at),
    })?;
    response.headers_mut().insert(header::ETAG, stored::etag(found.version));
    Ok(response)
}

/// PUT /v1/tenant-config/{type}; If-Match for a change, `If-None-Match: *` for a first version.
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(kind): Path,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    check_type(&kind)?;
    let expected = stored::expected_version(&headers)?;
    let value: Value = body::json(&headers, request_body, limits::TENANT_CONFIG_MAX).await?;
    // jsonb cannot hold it, and would say so as a failure of ours.
    if !value.is_object() || value.to_string().contains("\\u0000") {
        return Err(Problem::new(Code::InvalidBody, "expected a JSON object without NUL characters"));
    }
    let now = clock::now();
    let mut db = app.primary(tenant).await?;
    change::to_its_end(&app.clone(), async move {
        let written = settings::put_config(&mut db, tenant, &kind, &value, expected, now).await;
        let version = written.as_ref().ok().copied().flatten();
        change::evict(&app.caches.tenant_config, &(tenant.0, kind.clone()), version, &written);
        let version = written?.ok_or_else(|| Problem::of(Code::PreconditionFailed))?;
        let mut response =
            answer(&ConfigView { config_type: &kind, config: &value, version, updated_at: Timestamp(now) })?;
        response.headers_mut().insert(header::ETAG, stored::etag(version));
        Ok(response)
    })
    .await
}
