//! Idempotency keys of requests that are not payments: claimed, executed and answered in one transaction.

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};

use super::reads::{DbError, Lease};
use crate::domain::ids::TenantId;
use crate::idempotency::fingerprint::Fingerprint;
use crate::limits;

/// What an earlier request with the key was answered. The body is kept as text: jsonb would reorder its members, and a
/// replay returns the same bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    pub status: u16,
    pub body: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller's transaction holds the key.
    Ours,
    Replay(StoredAnswer),
    /// The key belongs to another request (or to a payment).
    Mismatch,
}

/// Waits for a concurrent transaction with the same key. Call it inside a transaction.
pub async fn claim(
    db: &mut Lease,
    tenant: TenantId,
    key: &str,
    fingerprint: &Fingerprint,
    now: DateTime<Utc>,
) -> Result<Claim, DbError> {
    let expires = now + Duration::seconds(limits::IDEMPOTENCY_RETENTION_S);
    let claimed = db
        .query(
            "INSERT INTO idempotency_keys (tenant_id, key, request_hash, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, key) DO NOTHING RETURNING 1",
            &[&tenant.0, &key, &fingerprint.as_slice(), &now, &expires],
        )
        .await?;
    if !claimed.is_empty() {
        return Ok(Claim::Ours);
    }
    let row = db
        .query_opt(
            "SELECT request_hash, response FROM idempotency_keys WHERE tenant_id = $1 AND key = $2",
            &[&tenant.0, &key],
        )
        .await?;
    // Gone in between: the retention sweeper took it. The client may try again.
    let row = row.ok_or_else(|| DbError::Unavailable("the idempotency key is expiring".into()))?;
    let hash: &[u8] = row.try_get(0)?;
    let response: Option<Value> = row.try_get(1)?;
    if hash != fingerprint {
        return Ok(Claim::Mismatch);
    }
    Ok(match response.as_ref().and_then(|r| Some((r.get("status")?.as_u64()?, r.get("body")?.as_str()?))) {
        Some((status, body)) => Claim::Replay(StoredAnswer { status: status as u16, body: body.to_owned() }),
        None => Claim::Mismatch,
    })
}

/// Ends a transaction that found an earlier answer. The first holder's commit may still wait for the synchronous standby,
/// or its wait was cut short by a restart; a record of our own makes this commit wait, and what precedes it in the WAL
/// with it. Selected from the key's row, so that it is of the tenant's shard.
pub async fn commit_replay(db: &mut Lease, tenant: TenantId, key: &str) -> Result<(), DbError> {
    db.query(
        "SELECT pg_logical_emit_message(true, 'payment-core', 'replay')::text FROM idempotency_keys \
         WHERE tenant_id = $1 AND key = $2",
        &[&tenant.0, &key],
    )
    .await?;
    db.commit().await
}

/// Stores the answer of the claimed key, in the claim's transaction.
pub async fn store(
    db: &mut Lease,
    tenant: TenantId,
    key: &str,
    answer: &StoredAnswer,
) -> Result<(), DbError> {
    let response = json!({ "status": answer.status, "body": answer.body });
    db.query(
        "UPDATE idempotency_keys SET response = $3 WHERE tenant_id = $1 AND key = $2",
        &[&tenant.0, &key, &response],
    )
    .await?;
    Ok(())
}
