//! Fraud rules of the calling tenant. What a rule does is in [`crate::risk`] and in the posting statement.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::auth::Caller;
use super::params::Path;
use super::payments::answer;
use super::stored::{self, Begun};
use super::view::{self, Page};
use super::{body, change, front};
use crate::app::App;
use crate::cache::values::{CachedFraudRule, CachedFraudRules};
use crate::clock;
use crate::domain::code::Code;
use crate::domain::ids::{RuleId, TenantId};
use crate::domain::money::{MajorUnits, Minor};
use crate::domain::request::RuleBody;
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::idempotency::fingerprint;
use crate::ledger::settings;
use crate::{limits, risk};

#[derive(Serialize)]
struct RuleView<'a> {
    rule_id: Uuid,
    rule_type: &'a str,
    currency: Option<&'a str>,
    amount: Option<MajorUnits>,
    window_seconds: Option<i32>,
    max_count: Option<i32>,
    is_active: bool,
    version: i64,
}

impl<'a> RuleView<'a> {
    fn of(rule: &'a CachedFraudRule) -> Result<Self, Problem> {
        let amount = match (&rule.currency, rule.amount_minor) {
            (Some(code), Some(minor)) => Some(Minor::new(minor).display(view::currency(code)?)),
            _ => None,
        };
        Ok(Self {
            rule_id: rule.rule_id,
            rule_type: &rule.rule_type,
            currency: rule.currency.as_deref(),
            amount,
            window_seconds: rule.window_seconds,
            max_count: rule.max_count,
            is_active: rule.is_active,
            version: rule.version,
        })
    }
}

/// POST /v1/fraud-rules
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    let key = body::idempotency_key(&headers)?;
    let request: RuleBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let (rule, is_active) = request.validate().map_err(Problem::faults)?;
    let number = |n: Option<i64>| n.map(|n| n.to_string());
    let (amount, window) =
        (number(rule.amount().map(|a| a.get())), number(rule.window_seconds().map(i64::from)));
    let count = number(rule.max_count().map(i64::from));
    let fingerprint = fingerprint::of_fields(
        "POST /v1/fraud-rules",
        &[
            Some(rule.kind()),
            rule.currency().map(|c| c.code()),
            amount.as_deref(),
            window.as_deref(),
            count.as_deref(),
            Some(if is_active { "1" } else { "0" }),
        ],
    );
    let mut once = match stored::begin(&app, tenant, key, fingerprint).await? {
        Begun::Go(once) => once,
        Begun::Done(response) => return Ok(response),
    };
    let id = clock::new_id::<RuleId>();
    settings::insert_rule(&mut once.db, tenant, id, &rule, is_active, clock::now()).await?;
    let row = CachedFraudRule {
        rule_id: id.0,
        rule_type: rule.kind().to_owned(),
        currency: rule.currency().map(|c| c.code().to_owned()),
        amount_minor: rule.amount().map(|a| a.get()),
        window_seconds: rule.window_seconds(),
        max_count: rule.max_count(),
        is_active,
        version: 1,
    };
    change::to_its_end(&app.clone(), async move {
        let response = once.finish(201, &RuleView::of(&row)?).await;
        match &response {
            Err(problem) if problem.code() == Code::OutcomeUnknown => app.caches.fraud_rules.doubt(&tenant.0),
            _ => app.caches.fraud_rules.evict(&tenant.0, None),
        }
        response
    })
    .await
}

async fn rules(app: &App, tenant: TenantId) -> Result<Arc<CachedFraudRules>, Problem> {
    let load = || async {
        let mut db = app.primary(tenant).await?;
        Ok(Some(CachedFraudRules { rules: settings::rules(&mut db, tenant).await? }))
    };
    app.caches.fraud_rules.get(&tenant.0, load).await?.ok_or_else(|| Problem::of(Code::NotFound))
}

/// GET /v1/fraud-rules
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    let found = rules(&app, tenant).await?;
    let data = found.rules.iter().map(RuleView::of).collect::<Result<Vec<_>, _>>()?;
    answer(&Page { data, next_cursor: None })
}

fn parse_id(text: &str) -> Result<RuleId, Problem> {
    RuleId::parse(text).ok_or_else(|| Problem::of(Code::NotFound))
}

/// GET /v1/fraud-rules/{id}
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(id): Path) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    let id = parse_id(&id)?;
    let found = rules(&app, tenant).await?;
    let rule = found.rules.iter().find(|r| r.rule_id == id.0).ok_or_else(|| Problem::of(Code::NotFound))?;
    let mut response = answer(&RuleView::of(rule)?)?;
    response.headers_mut().insert(header::ETAG, stored::etag(rule.version));
    Ok(response)
}

/// PUT /v1/fraud-rules/{id}, with If-Match if nobody else's change may be lost.
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    let id = parse_id(&id)?;
    let expected = stored::expected_version(&headers)?;
    let request: RuleBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let (rule, is_active) = request.validate().map_err(Problem::faults)?;
    let mut db = app.primary(tenant).await?;
    change::to_its_end(&app.clone(), async move {
        let updated =
            settings::update_rule(&mut db, tenant, id, &rule, is_active, expected, clock::now()).await;
        change::evict(&app.caches.fraud_rules, &tenant.0, None, &updated);
        let Some(version) = updated? else {
            let there = settings::rules(&mut db, tenant).await?.iter().any(|r| r.rule_id == id.0);
            return Err(Problem::of(if there { Code::PreconditionFailed } else { Code::NotFound }));
        };
        let row = CachedFraudRule {
            rule_id: id.0,
            rule_type: rule.kind().to_owned(),
            currency: rule.currency().map(|c| c.code().to_owned()),
            amount_minor: rule.amount().map(|a| a.get()),
            window_seconds: rule.window_seconds(),
            max_count: rule.max_count(),
            is_active,
            version,
        };
        let mut response = answer(&RuleView::of(&row)?)?;
        response.headers_mut().insert(header::ETAG, stored::etag(version));
        Ok(response)
    })
    .await
}

/// DELETE /v1/fraud-rules/{id}
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:write")?;
    let id = parse_id(&id)?;
    let mut db = app.primary(tenant).await?;
    change::to_its_end(&app.clone(), async move {
        let deleted = settings::delete_rule(&mut db, tenant, id).await;
        change::evict(&app.caches.fraud_rules, &tenant.0, None, &deleted);
        if deleted? { Ok(front::empty()) } else { Err(Problem::of(Code::NotFound)) }
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestBody {
    amount: String,
    currency: String,
}

#[derive(Serialize)]
struct TestView {
    allowed: bool,
    code: Option<&'static str>,
}

/// POST /v1/fraud-rules/test: what the amount rules would say now. Advice, not a promise.
pub async fn test(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("settings:read")?;
    let request: TestBody = body::json(&headers, request_body, limits::BODY_MAX).await?;
    let mut faults = Faults::default();
    let currency = faults.currency("currency", &request.currency);
    let amount = faults.positive_amount("amount", &request.amount, currency);
    faults.finish().map_err(Problem::faults)?;
    let found = rules(&app, tenant).await?;
    let code = match (currency, amount) {
        (Some(currency), Some(amount)) => risk::advise(&found.rules, currency.code(), amount.get()),
        _ => None,
    };
    answer(&TestView { allowed: code.is_none(), code: code.map(Code::as_str) })
}
