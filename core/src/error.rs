//! What a client sees when it does not get what it asked for: RFC 9457 problem+json with a stable `code`. What happened
//! inside is logged where it is turned into a [`Problem`], and never rendered.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::batch::NotPosted;
use crate::cache::LoadError;
use crate::domain::code::Code;
use crate::domain::ids::PaymentId;
use crate::domain::validate::Violation;
use crate::ledger::reads::DbError;

/// A refusal or failure. The front gives it its request id and its bytes.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<Violation>,
    payment_id: Option<PaymentId>,
    replayed: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<PaymentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault<'a>>,
}

#[derive(Serialize)]
struct Fault<'a> {
    pointer: &'a str,
    code: &'static str,
    detail: &'a str,
}

pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

impl Problem {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            payment_id: None,
            replayed: false,
        }))
    }

    /// With the code's title as the detail.
    pub fn of(code: Code) -> Self {
        Self::new(code, code.title())
    }

    /// The first fault gives the code.
    pub fn faults(errors: Vec<Violation>) -> Self {
        let (code, detail) = match errors.first() {
            Some(first) => (first.code, format!("{}: {}", first.pointer, first.detail)),
            None => (Code::InvalidBody, Code::InvalidBody.title().to_owned()),
        };
        let mut this = Self::new(code, detail);
        this.0.errors = errors;
        this
    }

    /// A stored payment that the ledger declined.
    pub fn declined(code: Code, payment_id: PaymentId, replayed: bool) -> Self {
        let mut this = Self::of(code);
        this.0.payment_id = Some(payment_id);
        this.0.replayed = replayed;
        this
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn is_replay(&self) -> bool {
        self.0.replayed
    }

    /// Seconds after which it makes sense to try again.
    pub fn retry_after(&self) -> Option<HeaderValue> {
        matches!(self.0.code.status(), 429 | 503).then(|| HeaderValue::from_static("1"))
    }

    /// The JSON text. The answer of a declined payment is part of its outcome and the same on every replay, so it does
    /// not name the request (the header X-Request-Id does).
    pub fn render(&self, request_id: Option<&str>) -> Vec<u8> {
        serde_json::to_vec(&self.body(request_id)).unwrap_or_default()
    }

    /// As a member of a batch's answer.
    pub fn value(&self) -> impl Serialize + '_ {
        self.body(None)
    }

    fn body<'a>(&'a self, request_id: Option<&'a str>) -> Body<'a> {
        let parts = &*self.0;
        Body {
            r#type: format!("urn:payment-core:problem:{}", parts.code.as_str()),
            title: parts.code.title(),
            status: parts.code.status(),
            detail: &parts.detail,
            code: parts.code.as_str(),
            retryable: parts.code.retryable(),
            instance: parts.payment_id.map(|id| format!("/v1/payments/{id}")),
            payment_id: parts.payment_id,
            request_id: request_id.filter(|_| parts.payment_id.is_none()),
            errors: parts
                .errors
                .iter()
                .map(|v| Fault { pointer: &v.pointer, code: v.code.as_str(), detail: &v.detail })
                .collect(),
        }
    }
}

/// The body follows in the front, which knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds);
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<NotPosted> for Problem {
    fn from(why: NotPosted) -> Self {
        Self::of(why.code())
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        match &error {
            DbError::OutcomeUnknown(why) => {
                tracing::warn!(why, "the outcome of a change is not known");
                Self::new(Code::OutcomeUnknown, "the change may have been made; look before making it again")
            }
            DbError::Unavailable(why) => {
                tracing::warn!(why, "the database is not available");
                Self::new(Code::ShardUnavailable, "the database does not answer; try again")
            }
            DbError::Refused { .. } => {
                tracing::warn!(%error, "unexpected refusal by the database");
                Self::of(Code::Unprocessable)
            }
            DbError::Broken(_) => {
                tracing::error!(%error, "a statement is broken");
                Self::of(Code::Internal)
            }
        }
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        tracing::warn!(%error, "loading for a cache failed");
        match error.get::<DbError>() {
            Some(DbError::Broken(_)) => Self::of(Code::Internal),
            _ => Self::new(Code::ShardUnavailable, "the database does not answer; try again"),
        }
    }
}
