//! Payments: post, read, list.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::auth::Caller;
use super::front::{self, IDEMPOTENT_REPLAYED, TRUE};
use super::params::Path;
use super::view::{Page, PaymentView};
use super::{body, page};
use crate::app::App;
use crate::domain::code::Code;
use crate::domain::ids::{AccountId, PaymentId};
use crate::domain::payment::{PaymentDetails, PaymentStatus, Verdict};
use crate::domain::request::PaymentBody;
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::idempotency;
use crate::ledger::account_payments;
use crate::ledger::payments::{self, Filter};
use crate::limits;

/// POST /v1/payments. The hot path.
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("payments:write")?;
    let key = body::required_idempotency_key(&headers)?;
    let bytes = body::read(&headers, request_body, limits::BODY_MAX).await?;
    let details =
        body::parse::<PaymentBody<'_>>(&bytes)?.validate(Faults::default()).map_err(Problem::faults)?;
    let payment = idempotency::payment(tenant, key, details.clone());
    let verdict = app.lanes.post(payment, deadline(&app)).await?;
    let (view, replayed) = succeeded(&details, verdict)?;
    let mut response = answer_with(201, &view)?;
    if replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, TRUE);
    }
    Ok(response)
}

pub(super) fn deadline(app: &App) -> Instant {
    Instant::now() + Duration::from_millis(app.config.request_timeout_ms)
}

/// The payment and whether it is a replay, if money moved.
pub(super) fn succeeded(
    details: &PaymentDetails,
    verdict: Verdict,
) -> Result<(PaymentView<'_>, bool), Problem> {
    match verdict {
        Verdict::Stored { payment_id, status: PaymentStatus::Succeeded, replayed, .. } => {
            Ok((PaymentView::posted(details, payment_id, PaymentStatus::Succeeded, None), replayed))
        }
        Verdict::Stored { payment_id, status: PaymentStatus::Declined, code, replayed, .. } => {
            Err(Problem::declined(code.unwrap_or(Code::LimitExceeded), payment_id, replayed))
        }
        Verdict::Mismatch => Err(Problem::of(Code::IdempotencyKeyReused)),
        Verdict::Rejected(code) => Err(Problem::of(code)),
    }
}

/// GET /v1/payments/{id}
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(id): Path) -> Result<Response, Problem> {
    let tenant = caller.may("payments:read")?;
    // Somebody else's payment, an id of another kind and no id at all are told apart by nobody.
    let id = PaymentId::parse(&id).ok_or_else(|| Problem::of(Code::NotFound))?;
    let mut db = app.reads(tenant).await?;
    let row = payments::get(&mut db, tenant, id).await?.ok_or_else(|| Problem::of(Code::NotFound))?;
    answer(&PaymentView::stored(&row)?)
}

/// Any JSON with 200.
pub(super) fn answer<T: Serialize>(value: &T) -> Result<Response, Problem> {
    answer_with(200, value)
}

pub(super) fn answer_with<T: Serialize>(status: u16, value: &T) -> Result<Response, Problem> {
    Ok(front::json(status, serde_json::to_vec(value).map_err(|_| Problem::of(Code::Internal))?))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    status: Option<String>,
    account_id: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// A filter as it is in a cursor.
#[derive(Serialize, Deserialize, PartialEq, Default, Clone)]
struct CursorFilter {
    s: Option<String>,
    a: Option<Uuid>,
    f: Option<DateTime<Utc>>,
    t: Option<DateTime<Utc>>,
}

/// Where a page ended: the list of one account has a position of its own.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum Position {
    Id(Uuid),
    Account(account_payments::Position),
}

/// GET /v1/payments?status=&account_id=&from=&to=&limit=&cursor=, newest first.
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let tenant = caller.may("payments:read")?;
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let limit = page::limit(query.limit.as_deref())?;
    if let Some(status) = &query.status
        && PaymentStatus::parse(status).is_none()
    {
        return Err(Problem::new(Code::InvalidQuery, "status: expected succeeded or declined"));
    }
    let account = match &query.account_id {
        None => None,
        Some(text) => Some(
            AccountId::parse(text)
                .ok_or_else(|| Problem::new(Code::InvalidQuery, "account_id: expected a UUID"))?
                .0,
        ),
    };
    let given = CursorFilter {
        s: query.status,
        a: account,
        f: page::time("from", query.from.as_deref())?,
        t: page::time("to", query.to.as_deref())?,
    };
    let (filter, position) = match &query.cursor {
        None => (given, None),
        Some(cursor) => {
            let (filter, position) = page::decode::<CursorFilter, Position>("payments", given, cursor)?;
            (filter, Some(position))
        }
    };
    let wanted = Filter { status: filter.s.clone(), from: filter.f, to: filter.t };
    let (rows, end) = match (filter.a, position) {
        (None, None | Some(Position::Id(_))) => {
            let before = match position {
                Some(Position::Id(id)) => Some((PaymentId(id).created_at().ok_or_else(invalid_cursor)?, id)),
                _ => None,
            };
            let mut db = app.reads(tenant).await?;
            let mut rows = payments::list(&mut db, tenant, &wanted, before, limit + 1).await?;
            let more = rows.len() as i64 > limit;
            rows.truncate(limit as usize);
            let end = rows.last().filter(|_| more).map(|last| Position::Id(last.payment_id));
            (rows, end)
        }
        (Some(account), None | Some(Position::Account(_))) => {
            let after = match position {
                Some(Position::Account(after)) => after,
                _ => account_payments::Position::START,
            };
            let mut db = app.reads(tenant).await?;
            let (rows, end) =
                account_payments::list(&mut db, tenant, AccountId(account), &wanted, after, limit).await?;
            (rows, end.map(Position::Account))
        }
        _ => return Err(invalid_cursor()),
    };
    let next_cursor = end.map(|end| page::encode("payments", filter, end));
    let data = rows.iter().map(PaymentView::stored).collect::<Result<Vec<_>, _>>()?;
    answer(&Page { data, next_cursor })
}

fn invalid_cursor() -> Problem {
    Problem::of(Code::InvalidCursor)
}
