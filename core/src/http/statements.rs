//! GET /v1/accounts/{id}/statement: the entries of an account with the balance after each.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::auth::Caller;
use super::params::Path;
use super::payments::answer;
use super::view::{self, EntryView, Timestamp};
use super::{accounts as account_resource, page};
use crate::app::App;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::ids::AccountId;
use crate::domain::money::{MajorUnits, Minor};
use crate::error::Problem;
use crate::ledger::accounts;

/// Days that a statement covers without `from`.
const DAYS_DEFAULT: i64 = 30;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementQuery {
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct StatementView {
    account_id: Uuid,
    currency: &'static str,
    from: Timestamp,
    to: Timestamp,
    /// Before the first entry of this page; absent on a page without entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    opening_balance: Option<MajorUnits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closing_balance: Option<MajorUnits>,
    entries: Vec<EntryView>,
    next_cursor: Option<String>,
}

/// What a cursor of a statement carries besides its position.
#[derive(Serialize, Deserialize, PartialEq, Default, Clone)]
struct Period {
    a: Uuid,
    f: Option<DateTime<Utc>>,
    t: Option<DateTime<Utc>>,
}

pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
    query: Result<Query<StatementQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:read")?;
    let id = AccountId::parse(&id).ok_or_else(|| Problem::of(Code::NotFound))?;
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let limit = page::limit(query.limit.as_deref())?;
    let (from, to) = (page::time("from", query.from.as_deref())?, page::time("to", query.to.as_deref())?);
    let account = account_resource::cached(&app, tenant, id).await?;
    let currency = view::currency(&account.currency)?;

    let (period, after) = match &query.cursor {
        None => {
            // The period is fixed by the first page, so that "until now" means the same on all.
            let to = to.unwrap_or_else(|| clock::now() + Duration::milliseconds(1));
            let from = from.unwrap_or_else(|| to - Duration::days(DAYS_DEFAULT));
            (Period { a: id.0, f: Some(from), t: Some(to) }, 0)
        }
        Some(cursor) => {
            let given = match (from, to) {
                (None, None) => Period::default(),
                (f, t) => Period { a: id.0, f, t },
            };
            let (period, after) = page::decode::<Period, i64>("statement", given, cursor)?;
            if period.a != id.0 {
                return Err(Problem::of(Code::InvalidCursor));
            }
            (period, after)
        }
    };
    let (Some(from), Some(to)) = (period.f, period.t) else { return Err(Problem::of(Code::InvalidCursor)) };

    let mut db = app.reads(tenant).await?;
    let mut entries = accounts::statement(&mut db, tenant, id, after, from, to, limit + 1).await?;
    let more = entries.len() as i64 > limit;
    entries.truncate(limit as usize);
    let opening = entries.first().and_then(|e| {
        Minor::new(e.posted_after_minor).checked_sub(Minor::new(e.amount_minor)).map(|m| m.display(currency))
    });
    let closing = entries.last().map(|e| Minor::new(e.posted_after_minor).display(currency));
    let next_cursor =
        entries.last().filter(|_| more).map(|last| page::encode("statement", period, last.version));
    answer(&StatementView {
        account_id: id.0,
        currency: currency.code(),
        from: Timestamp(from),
        to: Timestamp(to),
        opening_balance: opening,
        closing_balance: closing,
        entries: entries.iter().map(|e| EntryView::new(e, currency)).collect(),
        next_cursor,
    })
}
