//! Every operation of the API, once: the router and the OpenAPI document are made from this table.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing;

use super::{
    accounts, api_keys, front, openapi, ops, payment_batch, payment_types, payments, rules, statements,
    tenant_config, tenants,
};
use crate::app::App;

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Key,
    Admin,
    Open,
}

/// One line of the table. `request` and `response` name schemas of the OpenAPI document; "" = none.
#[derive(Debug)]
pub struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    pub id: &'static str,
    pub door: Door,
    pub summary: &'static str,
    pub request: &'static str,
    pub status: u16,
    pub response: &'static str,
    /// Query parameters.
    pub query: &'static [&'static str],
    /// Whether an Idempotency-Key is needed (`Some(true)`) or heeded (`Some(false)`).
    pub key: Option<bool>,
}

macro_rules! operations {
    ($($method:ident $path:literal $id:literal $door:ident $handler:path;
        $summary:literal $request:literal -> $status:literal $response:literal, $query:expr, $key:expr;)+) => {
        pub const OPERATIONS: &[Operation] = &[$(Operation {
            method: stringify!($method), path: $path, id: $id, door: Door::$door, summary: $summary, request: $request,
            status: $status, response: $response, query: $query, key: $key,
        }),+];

        fn table() -> Router<Arc<App>> {
            Router::new()$(.route($path, routing::$method($handler)))+
        }
    };
}

operations! {
    post "/v1/payments" "createPayment" Key payments::create;
        "Move money from one account to another." "PaymentRequest" -> 201 "Payment", &[], Some(true);
    get "/v1/payments" "listPayments" Key payments::list;
        "Payments, newest first; with account_id in the order in which they were posted to it." "" -> 200 "PaymentPage", &["status", "account_id", "from", "to", "limit", "cursor"], None;
    get "/v1/payments/{id}" "getPayment" Key payments::get;
        "One payment." "" -> 200 "Payment", &[], None;
    post "/v1/payments/batch" "createPayments" Key payment_batch::create;
        "Up to 1000 payments, each with its own key and outcome, in order." "PaymentBatchRequest" -> 200 "PaymentBatchResult", &[], None;
    post "/v1/accounts" "createAccount" Key accounts::create;
        "Open an account." "AccountRequest" -> 201 "Account", &[], Some(false);
    get "/v1/accounts" "listAccounts" Key accounts::list;
        "Accounts in order of creation." "" -> 200 "AccountPage", &["status", "limit", "cursor"], None;
    post "/v1/accounts/batch" "createAccounts" Key accounts::create_batch;
        "Open up to 1000 accounts, each with its own outcome." "AccountBatchRequest" -> 200 "AccountBatchResult", &[], Some(false);
    get "/v1/accounts/{id}" "getAccount" Key accounts::get;
        "One account." "" -> 200 "Account", &[], None;
    patch "/v1/accounts/{id}" "changeAccount" Key accounts::patch;
        "Change an account's status or overdraft limit." "AccountChange" -> 200 "Account", &[], None;
    get "/v1/accounts/{id}/balance" "getBalance" Key accounts::balance;
        "The balance; Cache-Control: no-cache reads the row itself." "" -> 200 "Balance", &[], None;
    get "/v1/accounts/{id}/statement" "getStatement" Key statements::get;
        "Entries with the balance after each, the last 30 days by default." "" -> 200 "Statement", &["from", "to", "limit", "cursor"], None;
    post "/v1/payment-types" "createPaymentType" Key payment_types::create;
        "Add a payment type." "PaymentType" -> 201 "PaymentType", &[], Some(false);
    get "/v1/payment-types" "listPaymentTypes" Key payment_types::list;
        "Payment types." "" -> 200 "PaymentTypePage", &[], None;
    get "/v1/payment-types/{code}" "getPaymentType" Key payment_types::get;
        "One payment type, with its version as ETag." "" -> 200 "PaymentType", &[], None;
    put "/v1/payment-types/{code}" "putPaymentType" Key payment_types::put;
        "Replace a payment type; If-Match guards against lost changes." "PaymentType" -> 200 "PaymentType", &[], None;
    get "/v1/tenant-config/{type}" "getTenantConfig" Key tenant_config::get;
        "One configuration document, with its version as ETag." "" -> 200 "TenantConfig", &[], None;
    put "/v1/tenant-config/{type}" "putTenantConfig" Key tenant_config::put;
        "Create or replace a configuration document." "Object" -> 200 "TenantConfig", &[], None;
    post "/v1/fraud-rules" "createFraudRule" Key rules::create;
        "Add a rule; it holds for every posting from its commit on." "FraudRule" -> 201 "FraudRule", &[], Some(false);
    get "/v1/fraud-rules" "listFraudRules" Key rules::list;
        "All rules." "" -> 200 "FraudRulePage", &[], None;
    post "/v1/fraud-rules/test" "testFraudRules" Key rules::test;
        "What the amount rules would say about an amount." "FraudRuleTest" -> 200 "FraudRuleTestResult", &[], None;
    get "/v1/fraud-rules/{id}" "getFraudRule" Key rules::get;
        "One rule, with its version as ETag." "" -> 200 "FraudRule", &[], None;
    put "/v1/fraud-rules/{id}" "putFraudRule" Key rules::put;
        "Replace a rule; If-Match guards against lost changes." "FraudRule" -> 200 "FraudRule", &[], None;
    delete "/v1/fraud-rules/{id}" "deleteFraudRule" Key rules::delete;
        "Remove a rule." "" -> 204 "", &[], None;
    post "/v1/api-keys" "createApiKey" Key api_keys::create;
        "Make an API key; its text is in this answer only." "ApiKeyRequest" -> 201 "ApiKey", &[], None;
    get "/v1/api-keys" "listApiKeys" Key api_keys::list;
        "API keys, newest first." "" -> 200 "ApiKeyPage", &[], None;
    delete "/v1/api-keys/{id}" "revokeApiKey" Key api_keys::revoke;
        "Revoke an API key; it holds everywhere within 5 seconds." "" -> 204 "", &[], None;
    post "/v1/tenants" "createTenant" Admin tenants::create;
        "Add a tenant; its first API key is in this answer only." "TenantRequest" -> 201 "Tenant", &[], None;
    get "/v1/tenants/{id}" "getTenant" Admin tenants::get;
        "One tenant." "" -> 200 "Tenant", &[], None;
    patch "/v1/tenants/{id}" "changeTenant" Admin tenants::patch;
        "Suspend, resume or close a tenant." "TenantChange" -> 200 "Tenant", &[], None;
    get "/healthz" "healthz" Open ops::healthz;
        "The process runs." "" -> 200 "Health", &[], None;
    get "/readyz" "readyz" Open ops::readyz;
        "It can serve: the database answers." "" -> 200 "Health", &[], None;
    get "/metrics" "metrics" Open ops::metrics;
        "Prometheus metrics." "" -> 200 "", &[], None;
    get "/openapi.json" "openapi" Open openapi::serve;
        "This document." "" -> 200 "Object", &[], None;
}

/// The whole API. Body limits are each handler's own.
pub fn router(app: Arc<App>) -> Router {
    table()
        .fallback(ops::not_found)
        .method_not_allowed_fallback(ops::method_not_allowed)
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(app.clone(), front::around))
        .with_state(app)
}
