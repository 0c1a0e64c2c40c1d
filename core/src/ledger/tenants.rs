//! Tenants and their API keys.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::reads::{DbError, Lease};
use crate::domain::currency::Currency;
use crate::domain::ids::{KeyId, PaymentTypeId, TenantId};

/// A key as it is stored: the secret itself is shown once and kept nowhere.
pub struct NewKey {
    pub key_id: KeyId,
    pub prefix: String,
    pub hash: [u8; 32],
    pub scopes: Vec<String>,
}

pub struct KeyRow {
    pub key_id: Uuid,
    pub prefix: String,
    pub scopes: Vec<String>,
    pub status: String,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

pub struct TenantRow {
    pub tenant_id: Uuid,
    pub name: String,
    pub status: String,
    pub created_at: DateTime<Utc>,
}

/// The tenant, its first key and the payment type `transfer`, in one transaction.
pub async fn create(
    db: &mut Lease,
    tenant: TenantId,
    name: &str,
    currency: Option<Currency>,
    key: &NewKey,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    db.begin().await?;
    db.query(
        "INSERT INTO tenants (tenant_id, name, created_at) VALUES ($1, $2, $3)",
        &[&tenant.0, &name, &now],
    )
    .await?;
    insert_key(db, tenant, key, now).await?;
    db.query(
        "INSERT INTO payment_types (tenant_id, payment_type_id, code, name, created_at, updated_at) \
         VALUES ($1, $2, 'transfer', 'Transfer', $3, $3)",
        &[&tenant.0, &crate::clock::new_id::<PaymentTypeId>().0, &now],
    )
    .await?;
    if let Some(currency) = currency {
        let config = serde_json::json!({ "currency": currency.code() });
        db.query(
            "INSERT INTO tenant_config (tenant_id, config_type, config, updated_at) VALUES ($1, 'defaults', $2, $3)",
            &[&tenant.0, &config, &now],
        )
        .await?;
    }
    db.commit().await
}

pub async fn get(db: &mut Lease, tenant: TenantId) -> Result<Option<TenantRow>, DbError> {
    let row = db
        .query_opt(
            "SELECT tenant_id, name, status, created_at FROM tenants WHERE tenant_id = $1",
            &[&tenant.0],
        )
        .await?;
    row.as_ref().map(tenant_row).transpose()
}

pub async fn set_status(
    db: &mut Lease,
    tenant: TenantId,
    status: &str,
) -> Result<Option<TenantRow>, DbError> {
    let row = db
        .change_opt(
            "UPDATE tenants SET status = $2 WHERE tenant_id = $1 RETURNING tenant_id, name, status, created_at",
            &[&tenant.0, &status],
        )
        .await?;
    row.as_ref().map(tenant_row).transpose()
}

fn tenant_row(row: &tokio_postgres::Row) -> Result<TenantRow, DbError> {
    Ok(TenantRow {
        tenant_id: row.try_get(0)?,
        name: row.try_get(1)?,
        status: row.try_get(2)?,
        created_at: row.try_get(3)?,
    })
}

pub async fn insert_key(
    db: &mut Lease,
    tenant: TenantId,
    key: &NewKey,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    db.change(
        "INSERT INTO api_keys (tenant_id, key_id, prefix, key_hash, scopes, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        &[&tenant.0, &key.key_id.0, &key.prefix, &key.hash.as_slice(), &key.scopes, &now],
    )
    .await?;
    Ok(())
}

/// What authentication needs of a key and its tenant.
pub struct KeyGrant {
    pub hash: Vec<u8>,
    pub scopes: Vec<String>,
    pub tenant_status: String,
}

/// The active keys of the tenant with this prefix: one, unless somebody won a lottery.
pub async fn grants(db: &mut Lease, tenant: TenantId, hash: &[u8]) -> Result<Option<KeyGrant>, DbError> {
    let row = db
        .query_opt(
            "SELECT k.key_hash, k.scopes, t.status FROM api_keys k JOIN tenants t ON t.tenant_id = k.tenant_id \
             WHERE k.tenant_id = $1 AND k.key_hash = $2 AND k.status = 'ACTIVE'",
            &[&tenant.0, &hash],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(KeyGrant { hash: row.try_get(0)?, scopes: row.try_get(1)?, tenant_status: row.try_get(2)? }))
}

pub async fn keys(db: &mut Lease, tenant: TenantId) -> Result<Vec<KeyRow>, DbError> {
    let rows = db
        .query(
            "SELECT key_id, prefix, scopes, status, created_at, revoked_at FROM api_keys WHERE tenant_id = $1 \
             ORDER BY key_id DESC LIMIT 1000",
            &[&tenant.0],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(KeyRow {
                key_id: row.try_get(0)?,
                prefix: row.try_get(1)?,
                scopes: row.try_get(2)?,
                status: row.try_get(3)?,
                created_at: row.try_get(4)?,
                revoked_at: row.try_get(5)?,
            })
        })
        .collect()
}

/// Whether there is such a key. Revoking twice is the same as once.
pub async fn revoke(
    db: &mut Lease,
    tenant: TenantId,
    key: KeyId,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    let rows = db
        .change(
            "UPDATE api_keys SET status = 'REVOKED', revoked_at = coalesce(revoked_at, $3) \
             WHERE tenant_id = $1 AND key_id = $2 RETURNING 1",
            &[&tenant.0, &key.0, &now],
        )
        .await?;
    Ok(!rows.is_empty())
}
