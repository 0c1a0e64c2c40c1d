//! Writes other than payments, made once a key: claim, do, keep the answer, in one transaction.

use std::sync::Arc;

use axum::http::HeaderValue;
use axum::response::Response;

use super::front::{self, IDEMPOTENT_REPLAYED, TRUE};
use crate::app::App;
use crate::clock;
use crate::domain::code::Code;
use crate::domain::ids::TenantId;
use crate::error::Problem;
use crate::idempotency::fingerprint::Fingerprint;
use crate::ledger::keys::{self, Claim, StoredAnswer};
use crate::ledger::reads::Lease;

/// A transaction that may hold an idempotency key. [`Once::finish`] commits it; dropped before, nothing happened.
pub struct Once {
    pub db: Lease,
    tenant: TenantId,
    key: Option<String>,
}

/// Either the right to do it, or the answer that somebody got before.
pub enum Begun {
    Go(Once),
    Done(Response),
}

pub async fn begin(
    app: &Arc<App>,
    tenant: TenantId,
    key: Option<String>,
    fingerprint: Fingerprint,
) -> Result<Begun, Problem> {
    let mut db = app.primary(tenant).await?;
    db.begin().await?;
    let Some(key) = key else { return Ok(Begun::Go(Once { db, tenant, key: None })) };
    match keys::claim(&mut db, tenant, &key, &fingerprint, clock::now()).await? {
        Claim::Ours => Ok(Begun::Go(Once { db, tenant, key: Some(key) })),
        Claim::Mismatch => {
            db.rollback().await?;
            Err(Problem::of(Code::IdempotencyKeyReused))
        }
        Claim::Replay(answer) => {
            keys::commit_replay(&mut db, tenant, &key).await?;
            let mut response = front::json(answer.status, answer.body);
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, TRUE);
            Ok(Begun::Done(response))
        }
    }
}

impl Once {
    /// Keeps the answer under the key, commits, and answers.
    pub async fn finish<T: serde::Serialize>(mut self, status: u16, value: &T) -> Result<Response, Problem> {
        let body = serde_json::to_string(value).map_err(|_| Problem::of(Code::Internal))?;
        let answer = StoredAnswer { status, body };
        if let Some(key) = &self.key {
            keys::store(&mut self.db, self.tenant, key, &answer).await?;
        }
        self.commit().await?;
        Ok(front::json(status, answer.body))
    }

    /// A lost answer to COMMIT leaves it open whether it was done. With a key the client may ask again; without one the
    /// resource's own uniqueness protects it.
    async fn commit(&mut self) -> Result<(), Problem> {
        self.db.commit().await.map_err(|error| {
            tracing::warn!(%error, "a commit was not confirmed");
            Problem::of(Code::OutcomeUnknown)
        })
    }

    /// Refuses without keeping anything: the key may be used again for a corrected request.
    pub async fn refuse(mut self, problem: Problem) -> Problem {
        match self.db.rollback().await {
            Ok(()) => problem,
            Err(error) => error.into(),
        }
    }
}

/// `ETag: "3"` for a row of version 3.
pub fn etag(version: i64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// The version named by If-Match or, as 0 ("there must be none"), by `If-None-Match: *`.
pub fn expected_version(headers: &axum::http::HeaderMap) -> Result<Option<i64>, Problem> {
    if headers.get("if-none-match").is_some_and(|v| v.as_bytes() == b"*") {
        return Ok(Some(0));
    }
    let Some(value) = headers.get("if-match") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    version.filter(|v| *v > 0).map(Some).ok_or_else(|| Problem::of(Code::PreconditionFailed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_headers() {
        let check = |name: &'static str, value: &str, expected: Option<Option<i64>>| {
            let mut headers = axum::http::HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(expected_version(&headers).ok(), expected, "{name}: {value}");
        };
        check("if-match", "\"3\"", Some(Some(3)));
        check("if-match", "*", Some(None));
        check("if-match", "3", None);
        check("if-match", "\"0\"", None);
        check("if-match", "\"x\"", None);
        check("if-none-match", "*", Some(Some(0)));
        assert_eq!(etag(7), "\"7\"");
    }
}
