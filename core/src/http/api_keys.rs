//! API keys of the calling tenant. The secret is in the answer that makes it and nowhere else, so making one takes no
//! Idempotency-Key: a stored answer would be a stored secret.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use uuid::Uuid;

use super::auth::{self, Caller};
use super::params::Path;
use super::payments::{answer, answer_with};
use super::view::{Page, Timestamp};
use super::{body, change, front};
use crate::app::App;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::ids::KeyId;
use crate::domain::request::ApiKeyBody;
use crate::error::Problem;
use crate::ledger::tenants;
use crate::limits;

#[derive(Serialize)]
struct KeyView<'a> {
    key_id: Uuid,
    prefix: &'a str,
    scopes: &'a [String],
    status: &'a str,
    created_at: Timestamp,
    revoked_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
}

/// POST /v1/api-keys
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("keys:write")?;
    let request: ApiKeyBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let scopes = request.validate().map_err(Problem::faults)?;
    caller.may_grant(&scopes)?;
    let (key, text) = auth::new_key(tenant, scopes)?;
    let now = clock::now();
    let mut db = app.primary(tenant).await?;
    tenants::insert_key(&mut db, tenant, &key, now).await?;
    answer_with(
        201,
        &KeyView {
            key_id: key.key_id.0,
            prefix: &key.prefix,
            scopes: &key.scopes,
            status: "ACTIVE",
            created_at: Timestamp(now),
            revoked_at: None,
            api_key: Some(&text),
        },
    )
}

/// GET /v1/api-keys, newest first.
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let tenant = caller.may("keys:read")?;
    let mut db = app.reads(tenant).await?;
    let rows = tenants::keys(&mut db, tenant).await?;
    let data = rows
        .iter()
        .map(|row| KeyView {
            key_id: row.key_id,
            prefix: &row.prefix,
            scopes: &row.scopes,
            status: &row.status,
            created_at: Timestamp(row.created_at),
            revoked_at: row.revoked_at.map(Timestamp),
            api_key: None,
        })
        .collect();
    answer(&Page { data, next_cursor: None })
}

/// DELETE /v1/api-keys/{id}: refused here from now on, and by other instances within
/// [`limits::API_KEY_REVOCATION_S`] seconds.
pub async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
) -> Result<Response, Problem> {
    let tenant = caller.may("keys:write")?;
    let id = KeyId::parse(&id).ok_or_else(|| Problem::of(Code::NotFound))?;
    let mut db = app.primary(tenant).await?;
    change::to_its_end(&app.clone(), async move {
        let revoked = tenants::revoke(&mut db, tenant, id, clock::now()).await;
        app.keys.forget();
        if !revoked? {
            return Err(Problem::of(Code::NotFound));
        }
        Ok(front::empty())
    })
    .await
}
