//! Payment types, tenant configuration and fraud rules. Each row carries a version; a change names the version it was
//! made from, so that two operators do not undo each other.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::reads::{DbError, Lease};
use crate::cache::values::{CachedFraudRule, CachedPaymentType, CachedTenantConfig};
use crate::cache::warm;
use crate::domain::ids::{PaymentTypeId, RuleId, TenantId};
use crate::domain::request::NewPaymentType;
use crate::domain::rule::Rule;

pub async fn insert_payment_type(
    db: &mut Lease,
    tenant: TenantId,
    new: &NewPaymentType,
    now: DateTime<Utc>,
) -> Result<Option<CachedPaymentType>, DbError> {
    let id = crate::clock::new_id::<PaymentTypeId>();
    let rows = db
        .query(
            "INSERT INTO payment_types (tenant_id, payment_type_id, code, name, is_active, min_amount_minor, \
             max_amount_minor, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) \
             ON CONFLICT (tenant_id, code) DO NOTHING RETURNING 1",
            &[&tenant.0, &id.0, &new.code, &new.name, &new.is_active, &new.min_amount, &new.max_amount, &now],
        )
        .await?;
    Ok((!rows.is_empty()).then(|| CachedPaymentType {
        payment_type_id: id.0,
        code: new.code.clone(),
        name: new.name.clone(),
        is_active: new.is_active,
        min_amount_minor: new.min_amount,
        max_amount_minor: new.max_amount,
        version: 1,
    }))
}

pub async fn payment_types(db: &mut Lease, tenant: TenantId) -> Result<Vec<CachedPaymentType>, DbError> {
    let sql = format!("{} WHERE tenant_id = $1 ORDER BY code LIMIT 1000", warm::PAYMENT_TYPES);
    let rows = db.query(&sql, &[&tenant.0]).await?;
    rows.iter().map(|row| Ok(warm::payment_type(row)?)).collect()
}

pub async fn payment_type(
    db: &mut Lease,
    tenant: TenantId,
    code: &str,
) -> Result<Option<CachedPaymentType>, DbError> {
    let sql = format!("{} WHERE tenant_id = $1 AND code = $2", warm::PAYMENT_TYPES);
    Ok(db.query_opt(&sql, &[&tenant.0, &code]).await?.as_ref().map(warm::payment_type).transpose()?)
}

/// Replaces the payment type `code` if it still has `version` (any, if `None`). `None`: it has not, or is not there.
pub async fn update_payment_type(
    db: &mut Lease,
    tenant: TenantId,
    new: &NewPaymentType,
    version: Option<i64>,
    now: DateTime<Utc>,
) -> Result<Option<i64>, DbError> {
    let row = db
        .change_opt(
            "UPDATE payment_types SET name = $3, is_active = $4, min_amount_minor = $5, max_amount_minor = $6, \
             version = version + 1, updated_at = $7 WHERE tenant_id = $1 AND code = $2 \
             AND ($8::bigint IS NULL OR version = $8) RETURNING version",
            &[&tenant.0, &new.code, &new.name, &new.is_active, &new.min_amount, &new.max_amount, &now, &version],
        )
        .await?;
    Ok(row.map(|r| r.try_get(0)).transpose()?)
}

pub async fn config(
    db: &mut Lease,
    tenant: TenantId,
    kind: &str,
) -> Result<Option<CachedTenantConfig>, DbError> {
    let sql = format!("{} WHERE tenant_id = $1 AND config_type = $2", warm::TENANT_CONFIG);
    Ok(db.query_opt(&sql, &[&tenant.0, &kind]).await?.as_ref().map(warm::tenant_config).transpose()?)
}

/// Creates or replaces. With `version`, only if that is the stored one (0: only if there is none). `None`: it was not.
pub async fn put_config(
    db: &mut Lease,
    tenant: TenantId,
    kind: &str,
    value: &Value,
    version: Option<i64>,
    now: DateTime<Utc>,
) -> Result<Option<i64>, DbError> {
    let row = match version {
        Some(0) => {
            db.change_opt(
                "INSERT INTO tenant_config (tenant_id, config_type, config, updated_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (tenant_id, config_type) DO NOTHING RETURNING version",
                &[&tenant.0, &kind, value, &now],
            )
            .await?
        }
        Some(version) => {
            db.change_opt(
                "UPDATE tenant_config SET config = $3, version = version + 1, updated_at = $4 \
                 WHERE tenant_id = $1 AND config_type = $2 AND version = $5 RETURNING version",
                &[&tenant.0, &kind, value, &now, &version],
            )
            .await?
        }
        None => {
            db.change_opt(
                "INSERT INTO tenant_config AS c (tenant_id, config_type, config, updated_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (tenant_id, config_type) DO UPDATE SET config = excluded.config, version = c.version + 1, \
                 updated_at = excluded.updated_at RETURNING version",
                &[&tenant.0, &kind, value, &now],
            )
            .await?
        }
    };
    Ok(row.map(|r| r.try_get(0)).transpose()?)
}

pub async fn rules(db: &mut Lease, tenant: TenantId) -> Result<Vec<CachedFraudRule>, DbError> {
    let sql = format!("{} WHERE tenant_id = $1 ORDER BY rule_id LIMIT 1000", warm::FRAUD_RULES);
    let rows = db.query(&sql, &[&tenant.0]).await?;
    rows.iter().map(|row| Ok(warm::fraud_rule(row)?)).collect()
}

pub async fn insert_rule(
    db: &mut Lease,
    tenant: TenantId,
    id: RuleId,
    rule: &Rule,
    is_active: bool,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    db.query(
        "INSERT INTO fraud_rules (tenant_id, rule_id, rule_type, currency, amount_minor, window_seconds, max_count, \
         is_active, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        &[
            &tenant.0,
            &id.0,
            &rule.kind(),
            &rule.currency().map(|c| c.code()),
            &rule.amount().map(|a| a.get()),
            &rule.window_seconds(),
            &rule.max_count(),
            &is_active,
            &now,
        ],
    )
    .await?;
    Ok(())
}

/// Replaces the rule if it still has `version` (any, if `None`).
pub async fn update_rule(
    db: &mut Lease,
    tenant: TenantId,
    id: RuleId,
    rule: &Rule,
    is_active: bool,
    version: Option<i64>,
    now: DateTime<Utc>,
) -> Result<Option<i64>, DbError> {
    let row = db
        .change_opt(
            "UPDATE fraud_rules SET rule_type = $3, currency = $4, amount_minor = $5, window_seconds = $6, max_count = $7, \
             is_active = $8, version = version + 1, updated_at = $9 WHERE tenant_id = $1 AND rule_id = $2 \
             AND ($10::bigint IS NULL OR version = $10) RETURNING version",
            &[
                &tenant.0,
                &id.0,
                &rule.kind(),
                &rule.currency().map(|c| c.code()),
                &rule.amount().map(|a| a.get()),
                &rule.window_seconds(),
                &rule.max_count(),
                &is_active,
                &now,
                &version,
            ],
        )
        .await?;
    Ok(row.map(|r| r.try_get(0)).transpose()?)
}

pub async fn delete_rule(db: &mut Lease, tenant: TenantId, id: RuleId) -> Result<bool, DbError> {
    let rows = db
        .change(
            "DELETE FROM fraud_rules WHERE tenant_id = $1 AND rule_id = $2 RETURNING 1",
            &[&tenant.0, &id.0],
        )
        .await?;
    Ok(!rows.is_empty())
}
