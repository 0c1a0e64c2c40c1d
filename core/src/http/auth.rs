//! Who calls: an API key (`Authorization: Bearer pk_...`) or the admin token.
//!
//! Keys are random 256-bit secrets, so one SHA-256 is enough to store them; a slow hash protects guessable passwords and
//! would cost more than the payment. A key that was looked up is trusted for [`limits::API_KEY_REVOCATION_S`] seconds:
//! that is how long a revocation takes to hold everywhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
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
    known: moka::future::Cache<[u8; 32], Known>,
    life: Duration,
    forgotten: Mutex<Option<Instant>>,
}

/// What a look-up found. It tells of the time before its query was sent: a key may have been revoked since.
#[derive(Clone)]
struct Known {
    asked: Instant,
    grant: Option<Arc<Grant>>,
}

#[derive(Debug)]
pub struct Grant {
    pub tenant: TenantId,
    status: TenantStatus,
    scopes: Vec<String>,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self::trusted_for(Duration::from_secs(limits::API_KEY_REVOCATION_S))
    }
}

impl KeyCache {
    fn trusted_for(life: Duration) -> Self {
        let known =
            moka::future::Cache::builder().max_capacity(limits::API_KEYS_CACHED).time_to_live(life).build();
        Self { known, life, forgotten: Mutex::default() }
    }

    async fn grant(
        &self,
        key: ApiKeyText<'_>,
        text: &str,
        app: &App,
    ) -> Result<Option<Arc<Grant>>, Arc<DbError>> {
        let hash = hash_of(text);
        self.get(hash, || look_up(key.tenant, hash, app)).await
    }

    /// What is known, or what `look_up` finds. Concurrent callers share a look-up, unless it is too old by then.
    async fn get<F, T>(&self, hash: [u8; 32], look_up: F) -> Result<Option<Arc<Grant>>, Arc<DbError>>
    where
        F: Fn() -> T,
        T: Future<Output = Result<Option<Arc<Grant>>, DbError>>,
    {
        let asking = || async {
            let asked = Instant::now();
            Ok::<_, DbError>(Known { asked, grant: look_up().await? })
        };
        for _ in 0..2 {
            let known = self.known.try_get_with(hash, asking()).await?;
            if self.holds(&known) {
                return Ok(known.grant);
            }
            self.known.invalidate(&hash).await;
        }
        // Look-ups take longer than an answer may be kept: one that began with this request is as good as no cache.
        look_up().await.map_err(Arc::new)
    }

    fn holds(&self, known: &Known) -> bool {
        known.asked.elapsed() < self.life && self.forgotten.lock().is_none_or(|at| known.asked > at)
    }

    /// This instance forgets everything it knows and is about to learn; others within [`limits::API_KEY_REVOCATION_S`].
    pub fn forget(&self) {
        *self.forgotten.lock() = Some(Instant::now());
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
                Err(Problem::new(
                    Code::ShardUnavailable,
                    "the tenant's shard does not answer; nothing was done",
                ))
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
    let text =
        header.and_then(|h| h.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    text.map(|(_, text)| text.trim())
        .filter(|t| !t.is_empty())
        .ok_or_else(|| Problem::of(Code::Unauthenticated))
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

    fn granted() -> Option<Arc<Grant>> {
        let tenant = crate::clock::new_id::<TenantId>();
        Some(Arc::new(Grant { tenant, status: TenantStatus::Active, scopes: vec![] }))
    }

    /// A look-up read the key, the key is revoked and forgotten, the look-up ends: nobody may use what it read.
    #[tokio::test]
    async fn a_look_up_that_began_before_a_revocation_is_not_trusted() {
        let keys = KeyCache::default();
        let (reading, gate) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let revoked = std::sync::atomic::AtomicBool::new(false);
        let look_up = || async {
            if revoked.load(std::sync::atomic::Ordering::SeqCst) {
                return Ok(None);
            }
            reading.notify_one();
            gate.notified().await;
            Ok(granted())
        };
        let revoking = async {
            reading.notified().await;
            revoked.store(true, std::sync::atomic::Ordering::SeqCst);
            keys.forget();
            gate.notify_one();
        };
        let (early, ()) = tokio::join!(keys.get([1; 32], look_up), revoking);
        assert!(early.expect("no error").is_none(), "the caller that waited got the revoked key");
        assert!(keys.get([1; 32], look_up).await.expect("no error").is_none());
    }

    #[tokio::test]
    async fn the_life_of_an_entry_begins_before_its_query() {
        let keys = KeyCache::trusted_for(Duration::from_millis(200));
        let queries = std::sync::atomic::AtomicUsize::new(0);
        let slow = || async {
            queries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(250)).await;
            Ok(granted())
        };
        assert!(keys.get([1; 32], slow).await.expect("no error").is_some());
        let before = queries.load(std::sync::atomic::Ordering::SeqCst);
        assert!(keys.get([1; 32], slow).await.expect("no error").is_some());
        assert!(
            queries.load(std::sync::atomic::Ordering::SeqCst) > before,
            "an answer was used past its life"
        );
    }

    #[test]
    fn comparison() {
        assert!(constant_time_eq(b"abc", b"abc"));
        assert!(!constant_time_eq(b"abc", b"abd"));
        assert!(!constant_time_eq(b"abc", b"ab"));
        assert!(!constant_time_eq(b"", b"a"));
    }
}
