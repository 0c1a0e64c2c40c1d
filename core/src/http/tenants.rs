//! Tenants; the operator's resource.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::auth::{self, Admin};
use super::params::Path;
use super::payments::{answer, answer_with};
use super::view::Timestamp;
use super::{body, change};
use crate::app::App;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::ids::TenantId;
use crate::domain::request::TenantBody;
use crate::domain::tenant::TenantStatus;
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::ledger::tenants::{self, TenantRow};
use crate::limits;

#[derive(Serialize)]
struct TenantView<'a> {
    tenant_id: Uuid,
    name: &'a str,
    status: &'a str,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
}

impl<'a> TenantView<'a> {
    fn of(row: &'a TenantRow) -> Self {
        Self {
            tenant_id: row.tenant_id,
            name: &row.name,
            status: &row.status,
            created_at: Timestamp(row.created_at),
            api_key: None,
        }
    }
}

/// POST /v1/tenants: the tenant with its first API key, which is shown here and never again.
pub async fn create(
    State(app): State<Arc<App>>,
    _: Admin,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let request: TenantBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let (name, currency) = request.validate().map_err(Problem::faults)?;
    let tenant = clock::new_id::<TenantId>();
    let (key, text) = auth::new_key(tenant, Vec::new())?;
    let now = clock::now();
    let mut db = app.primary(tenant).await?;
    tenants::create(&mut db, tenant, &name, currency, &key, now).await?;
    answer_with(
        201,
        &TenantView {
            tenant_id: tenant.0,
            name: &name,
            status: TenantStatus::Active.as_str(),
            created_at: Timestamp(now),
            api_key: Some(&text),
        },
    )
}

fn parse_id(text: &str) -> Result<TenantId, Problem> {
    TenantId::parse(text).ok_or_else(|| Problem::of(Code::NotFound))
}

/// GET /v1/tenants/{id}
pub async fn get(State(app): State<Arc<App>>, _: Admin, Path(id): Path) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let mut db = app.reads(id).await?;
    let row = tenants::get(&mut db, id).await?.ok_or_else(|| Problem::of(Code::NotFound))?;
    answer(&TenantView::of(&row))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantPatch {
    status: String,
}

/// PATCH /v1/tenants/{id}: suspend, resume, close. The next posting of the tenant sees it.
pub async fn patch(
    State(app): State<Arc<App>>,
    _: Admin,
    Path(id): Path,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let request: TenantPatch = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let mut faults = Faults::default();
    let status = faults.one_of("status", &request.status, TenantStatus::parse, "ACTIVE, SUSPENDED, CLOSED");
    faults.finish().map_err(Problem::faults)?;
    let status = status.unwrap_or(TenantStatus::Active);
    let mut db = app.primary(id).await?;
    change::to_its_end(&app.clone(), async move {
        let row = tenants::set_status(&mut db, id, status.as_str()).await;
        app.keys.forget();
        answer(&TenantView::of(&row?.ok_or_else(|| Problem::of(Code::NotFound))?))
    })
    .await
}
