//! Accounts: open (one or many), read, list, change, balance.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::auth::Caller;
use super::params::Path;
use super::payments::answer;
use super::stored::{self, Begun};
use super::view::{self, AccountView, BalanceView, Page};
use super::{body, change, page};
use crate::app::App;
use crate::cache::values::{CachedAccount, CachedBalance};
use crate::clock;
use crate::domain::account::{AccountStatus, AccountType, NewAccount};
use crate::domain::code::Code;
use crate::domain::ids::{AccountId, TenantId};
use crate::domain::request::{AccountBatchBody, AccountBody, AccountPatch};
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::idempotency::fingerprint;
use crate::ledger::accounts;
use crate::ledger::reads::DbError;
use crate::limits;

fn taken(number: &str) -> Problem {
    Problem::new(Code::AlreadyExists, format!("the tenant has an account with the number {number:?}"))
}

/// An operator may take a currency out of the database's table; the foreign key then refuses it.
fn refused_by_database(error: DbError) -> Problem {
    if error.is_constraint("23503") {
        return Problem::new(Code::UnknownCurrency, "this currency is not in use here");
    }
    error.into()
}

/// POST /v1/accounts
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:write")?;
    let key = body::idempotency_key(&headers)?;
    let request: AccountBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let account = [request.validate(Faults::default()).map_err(Problem::faults)?];
    let fingerprint = fingerprint::of_accounts("POST /v1/accounts", account.iter().map(Ok));
    let mut once = match stored::begin(&app, tenant, key, fingerprint).await? {
        Begun::Go(once) => once,
        Begun::Done(response) => return Ok(response),
    };
    match accounts::insert(&mut once.db, tenant, &account, clock::now())
        .await
        .map_err(refused_by_database)?
        .pop()
        .flatten()
    {
        Some(row) => once.finish(201, &AccountView::new(&row)?).await,
        None => Err(once.refuse(taken(&account[0].number)).await),
    }
}

#[derive(Serialize)]
struct BatchResults<'a> {
    results: Vec<BatchResult<'a>>,
}

#[derive(Serialize)]
struct BatchResult<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<AccountView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<serde_json::Value>,
}

fn refused(problem: &Problem) -> BatchResult<'static> {
    let value = serde_json::to_value(problem.value()).ok();
    BatchResult { status: problem.code().status(), account: None, problem: value }
}

/// POST /v1/accounts/batch: each item by itself; those that are valid and free are opened in one transaction.
pub async fn create_batch(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:write")?;
    let key = body::idempotency_key(&headers)?;
    let request: AccountBatchBody = body::json(&headers, request_body, limits::BATCH_BODY_MAX).await?;
    let n = request.accounts.len();
    if n == 0 || n > limits::BATCH_ITEMS_MAX {
        let detail = format!("/accounts: expected 1 to {} items", limits::BATCH_ITEMS_MAX);
        return Err(Problem::new(Code::TooManyItems, detail));
    }
    let mut valid: Vec<NewAccount> = Vec::with_capacity(n);
    // For each item: its place among the valid ones, or what is wrong with it.
    let mut places: Vec<Result<usize, (Problem, AccountBody)>> = Vec::with_capacity(n);
    for (i, item) in request.accounts.into_iter().enumerate() {
        places.push(match item.clone().validate(Faults::within(format!("/accounts/{i}"))) {
            Ok(account) => {
                valid.push(account);
                Ok(valid.len() - 1)
            }
            Err(faults) => Err((Problem::faults(faults), item)),
        });
    }
    let items = places.iter().map(|place| match place {
        Ok(place) => Ok(&valid[*place]),
        Err((_, item)) => Err(item),
    });
    let fingerprint = fingerprint::of_accounts("POST /v1/accounts/batch", items);
    let mut once = match stored::begin(&app, tenant, key, fingerprint).await? {
        Begun::Go(once) => once,
        Begun::Done(response) => return Ok(response),
    };
    let rows =
        accounts::insert(&mut once.db, tenant, &valid, clock::now()).await.map_err(refused_by_database)?;
    let results = places
        .iter()
        .map(|place| match place {
            Err((problem, _)) => Ok(refused(problem)),
            Ok(place) => match &rows[*place] {
                Some(row) => {
                    Ok(BatchResult { status: 201, account: Some(AccountView::new(row)?), problem: None })
                }
                None => Ok(refused(&taken(&valid[*place].number))),
            },
        })
        .collect::<Result<_, Problem>>()?;
    once.finish(200, &BatchResults { results }).await
}

fn parse_id(text: &str) -> Result<AccountId, Problem> {
    AccountId::parse(text).ok_or_else(|| Problem::of(Code::NotFound))
}

/// The account, perhaps from a cache: its balance is not in it.
pub(super) async fn cached(
    app: &App,
    tenant: TenantId,
    id: AccountId,
) -> Result<Arc<CachedAccount>, Problem> {
    let load = || async {
        let mut db = app.primary(tenant).await?;
        Ok(accounts::get(&mut db, tenant, id).await?)
    };
    app.caches.accounts.get(&(tenant.0, id.0), load).await?.ok_or_else(|| Problem::of(Code::NotFound))
}

/// GET /v1/accounts/{id}
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(id): Path) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:read")?;
    answer(&AccountView::new(&*cached(&app, tenant, parse_id(&id)?).await?)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    status: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// GET /v1/accounts?status=&limit=&cursor=, in order of creation.
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:read")?;
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidQuery, e.body_text()))?;
    let limit = page::limit(query.limit.as_deref())?;
    if query.status.as_deref().is_some_and(|s| AccountStatus::parse(s).is_none()) {
        return Err(Problem::new(Code::InvalidQuery, "status: expected ACTIVE, FROZEN or CLOSED"));
    }
    let (status, after) = match &query.cursor {
        None => (query.status, Uuid::nil()),
        Some(cursor) => page::decode::<Option<String>, Uuid>("accounts", query.status, cursor)?,
    };
    let mut db = app.reads(tenant).await?;
    let mut rows = accounts::list(&mut db, tenant, after, status.as_deref(), limit + 1).await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(limit as usize);
    let next_cursor =
        rows.last().filter(|_| more).map(|last| page::encode("accounts", status, last.account_id));
    let data = rows.iter().map(AccountView::new).collect::<Result<Vec<_>, _>>()?;
    answer(&Page { data, next_cursor })
}

/// PATCH /v1/accounts/{id}: status and overdraft limit.
pub async fn patch(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:write")?;
    let id = parse_id(&id)?;
    let patch: AccountPatch = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let mut db = app.primary(tenant).await?;
    let current = accounts::get(&mut db, tenant, id).await?.ok_or_else(|| Problem::of(Code::NotFound))?;
    let kind = AccountType::parse(&current.account_type).unwrap_or(AccountType::Wallet);
    let changes = patch.validate(view::currency(&current.currency)?, kind).map_err(Problem::faults)?;
    change::to_its_end(&app.clone(), async move {
        let updated = accounts::update(&mut db, tenant, id, &changes, clock::now()).await;
        change::evict(&app.caches.accounts, &(tenant.0, id.0), None, &updated);
        change::evict(&app.caches.balances, &(tenant.0, id.0), None, &updated);
        let row =
            updated?.ok_or_else(|| Problem::new(Code::StateConflict, "a closed account stays closed"))?;
        answer(&AccountView::new(&row)?)
    })
    .await
}

/// GET /v1/accounts/{id}/balance. May come from a cache that this instance's postings evict at once and others' within
/// milliseconds; `Cache-Control: no-cache` reads the row.
pub async fn balance(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let tenant = caller.may("accounts:read")?;
    let id = parse_id(&id)?;
    let not_found = || Problem::of(Code::NotFound);
    let fresh = headers
        .get(header::CACHE_CONTROL)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.to_ascii_lowercase().contains("no-cache"));
    let balance: Arc<CachedBalance> = if fresh {
        let mut db = app.primary(tenant).await?;
        accounts::balance(&mut db, tenant, id).await?.map(Arc::new).ok_or_else(not_found)?
    } else {
        let load = || async {
            let mut db = app.primary(tenant).await?;
            Ok(accounts::balance(&mut db, tenant, id).await?)
        };
        app.caches.balances.get(&(tenant.0, id.0), load).await?.ok_or_else(not_found)?
    };
    answer(&BalanceView::new(id.0, &balance)?)
}
