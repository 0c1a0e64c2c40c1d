//! Payment types of the calling tenant.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;

use super::auth::Caller;
use super::params::Path;
use super::payments::answer;
use super::stored::{self, Begun};
use super::view::Page;
use super::{body, change};
use crate::app::App;
use crate::cache::values::CachedPaymentType;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::request::PaymentTypeBody;
use crate::error::Problem;
use crate::idempotency::fingerprint;
use crate::ledger::settings;
use crate::limits;

/// POST /v1/payment-types
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    let key = body::idempotency_key(&headers)?;
    let request: PaymentTypeBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let new = request.validate().map_err(Problem::faults)?;
    let number = |n: Option<i64>| n.map(|n| n.to_string());
    let (min, max) = (number(new.min_amount), number(new.max_amount));
    let fingerprint = fingerprint::of_fields(
        "POST /v1/payment-types",
        &[
            Some(&new.code),
            Some(&new.name),
            Some(if new.is_active { "1" } else { "0" }),
            min.as_deref(),
            max.as_deref(),
        ],
    );
    let mut once = match stored::begin(&app, tenant, key, fingerprint).await? {
        Begun::Go(once) => once,
        Begun::Done(response) => return Ok(response),
    };
    match settings::insert_payment_type(&mut once.db, tenant, &new, clock::now()).await? {
        Some(made) => once.finish(201, &made).await,
        None => {
            let problem = Problem::new(Code::AlreadyExists, "the tenant has a payment type with this code");
            Err(once.refuse(problem).await)
        }
    }
}

/// GET /v1/payment-types
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    let mut db = app.reads(tenant).await?;
    answer(&Page { data: settings::payment_types(&mut db, tenant).await?, next_cursor: None })
}

/// GET /v1/payment-types/{code}
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(code): Path) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    let load = || async {
        let mut db = app.primary(tenant).await?;
        Ok(settings::payment_type(&mut db, tenant, &code).await?)
    };
    let found = app.caches.payment_types.get(&(tenant.0, code.clone()), load).await?;
    let found = found.ok_or_else(|| Problem::of(Code::NotFound))?;
    let mut response = answer(&*found)?;
    response.headers_mut().insert(header::ETAG, stored::etag(found.version));
    Ok(response)
}

/// PUT /v1/payment-types/{code}, with If-Match if nobody else's change may be lost.
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(code): Path,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    let expected = stored::expected_version(&headers)?;
    let request: PaymentTypeBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let new = request.validate().map_err(Problem::faults)?;
    if new.code != code {
        return Err(Problem::new(Code::StateConflict, "the code of a payment type does not change"));
    }
    let mut db = app.primary(tenant).await?;
    change::to_its_end(&app.clone(), async move {
        let updated = settings::update_payment_type(&mut db, tenant, &new, expected, clock::now()).await;
        let version = updated.as_ref().ok().copied().flatten();
        change::evict(&app.caches.payment_types, &(tenant.0, code.clone()), version, &updated);
        let updated = updated?;
        let row = settings::payment_type(&mut db, tenant, &code).await?;
        match (updated, row) {
            (_, None) => Err(Problem::of(Code::NotFound)),
            (None, Some(_)) => Err(Problem::of(Code::PreconditionFailed)),
            (Some(version), Some(row)) => {
                let mut response = answer(&CachedPaymentType {
                    payment_type_id: row.payment_type_id,
                    code: new.code,
                    name: new.name,
                    is_active: new.is_active,
                    min_amount_minor: new.min_amount,
                    max_amount_minor: new.max_amount,
                    version,
                })?;
                response.headers_mut().insert(header::ETAG, stored::etag(version));
                Ok(response)
            }
        }
    })
    .await
}
