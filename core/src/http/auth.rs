//! Who calls: an API key (`Authorization: Bearer pk_...`) or the admin token.
//!
//! Keys are random 256-bit secrets, so one SHA-256 is enough to store them; a slow hash protects guessable passwords and
//! would cost more than the payment. A key that was looked up is trusted for [`limits::API_KEY_REVOCATION_S`] seconds:
//! that is how long a revocation takes to hold everywhere.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::domain::code::Code;
use crate::domain::ids::{KeyId, TenantId};
use crate::domain::tenant::{ApiKeyText, TenantStatus};
use crate::error::Problem;
use crate::ledger::reads::DbError;
use crate::ledger::tenants::{self, NewKey};
use crate::limits;

/// The API keys seen lately, by hash; unknown ones too, so that a client with a wrong key does not query every time.
pub struct KeyCache {
    known: moka::future::Cache<[u8; 32], Option<Arc<Grant>>>,
}

#[derive(Debug)]
pub struct Grant {
    pub tenant: TenantId,
    status: TenantStatus,
    scopes: Vec<String>,
}

impl Default for KeyCache {
    fn default() -> Self {
        let known = moka::future::Cache::builder()
            .max_capacity(limits::API_KEYS_CACHED)
            .time_to_live(Duration::from_secs(limits::API_KEY_REVOCATION_S))
            .build();
        Self { known }
    }
}

impl KeyCache {
    async fn grant(&self, key: ApiKeyText<'_>, text: &str, app: &App) -> Result<Option<Arc<Grant>>, Arc<DbError>> {
        let hash = hash_of(text);
        if let Some(known) = self.known.get(&hash).await {
            return Ok(known);
        }
        self.known.try_get_with(hash, look_up(key.tenant, hash, app)).await
    }

    /// This instance forgets everything it knows; others within [`limits::API_KEY_REVOCATION_S`].
    pub fn forget(&self) {
        self.known.invalidate_all();
    }
}

async fn look_up(tenant: TenantId, hash: [u8; 32], app: &App) -> Result<Option<Arc<Grant>>, DbError> {
    // The primary: a key that was just made must work, and one that was just revoked must not.
    let mut db = app.primary(tenant).await?;
    let Some(row) = tenants::grants(&mut db, tenant, &hash).await? else { return Ok(None) };
    let status = TenantStatus::parse(&row.tenant_status).unwrap_or(TenantStatus::Closed);
    let valid = constant_time_eq(&row.hash, &hash) && status != TenantStatus::Closed;
    Ok(valid.then(|| Arc::new(Grant { tenant, status, scopes: row.scopes })))
}

pub fn hash_of(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Takes as long whether the first or the last byte differs.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    let mut difference = u8::from(a.len() != b.len());
    for (x, y) in a.iter().zip(b) {
        difference |= std::hint::black_box(x ^ y);
    }
    std::hint::black_box(difference) == 0
}

/// A new key and its text, which exists only in the answer that carries it.
pub fn new_key(tenant: TenantId, scopes: Vec<String>) -> Result<(NewKey, String), Problem> {
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).map_err(|error| {
        tracing::error!(%error, "no randomness");
        Problem::of(Code::Internal)
    })?;
    let text = ApiKeyText::compose(tenant, &URL_SAFE_NO_PAD.encode(secret));
    // Enough to tell one's keys apart, and nothing to guess the rest by.
    let prefix = text[..text.len().min(3 + 32 + 1 + 6)].to_owned();
    Ok((NewKey { key_id: crate::clock::new_id::<KeyId>(), prefix, hash: hash_of(&text), scopes }, text))
}

/// The tenant that calls, and what its key may do.
pub struct Caller(Arc<Grant>);

impl Caller {
    /// The tenant, if the key has the scope.
    pub fn may(&self, scope: &'static str) -> Result<TenantId, Problem> {
        let grant = &*self.0;
        if !grant.scopes.is_empty() && !grant.scopes.iter().any(|s| s == scope) {
            return Err(Problem::new(Code::Forbidden, format!("the API key lacks the scope {scope}")));
        }
        if grant.status == TenantStatus::Suspended && scope.ends_with(":write") {
            return Err(Problem::of(Code::TenantSuspended));
        }
        Ok(grant.tenant)
    }

    /// A key hands on no more than it may itself; no scopes mean all of them.
    pub fn may_grant(&self, scopes: &[String]) -> Result<(), Problem> {
        let own = &self.0.scopes;
        if own.is_empty() || (!scopes.is_empty() && scopes.iter().all(|scope| own.contains(scope))) {
            return Ok(());
        }
        Err(Problem::new(Code::Forbidden, "a key with scopes makes keys with some of its own scopes only"))
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let text = bearer(parts)?;
        let key = ApiKeyText::parse(text).ok_or_else(|| Problem::of(Code::Unauthenticated))?;
        match app.keys.grant(key, text, app).await {
            Ok(Some(grant)) => Ok(Self(grant)),
            Ok(None) => Err(Problem::of(Code::Unauthenticated)),
            Err(error) => {
                tracing::warn!(%error, "an API key could not be looked up");
                Err(Problem::new(Code::ShardUnavailable, "the tenant's shard does not answer; nothing was done"))
            }
        }
    }
}

/// The operator.
pub struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let text = bearer(parts)?;
        let expected = &app.config.admin_token;
        // Compared as hashes: of equal length, whatever was sent.
        if expected.is_empty() || !constant_time_eq(&hash_of(text), &hash_of(expected)) {
            return Err(Problem::new(Code::Forbidden, "this needs the admin token"));
        }
        Ok(Self)
    }
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let text = header.and_then(|h| h.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    text.map(|(_, text)| text.trim()).filter(|t| !t.is_empty()).ok_or_else(|| Problem::of(Code::Unauthenticated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_keys_are_random_and_parse() {
        let tenant = crate::clock::new_id::<TenantId>();
        let (a, text) = new_key(tenant, vec![]).unwrap();
        let (b, other) = new_key(tenant, vec![]).unwrap();
        assert_ne!(text, other);
        assert_ne!(a.hash, b.hash);
        assert!(text.starts_with(&a.prefix) && a.prefix.len() == 42 && a.prefix.len() + 30 < text.len());
        assert_eq!(ApiKeyText::parse(&text).map(|k| k.tenant), Some(tenant));
        assert_eq!(a.hash, hash_of(&text));
    }

    #[test]
    fn comparison() {
        assert!(constant_time_eq(b"abc", b"abc"));
        assert!(!constant_time_eq(b"abc", b"abd"));
        assert!(!constant_time_eq(b"abc", b"ab"));
        assert!(!constant_time_eq(b"", b"a"));
    }
}
