//! Fills the in-process level at start, so that the first requests of a busy tenant do not all go to the database.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::Caches;
use super::values::{CachedFraudRule, CachedFraudRules, CachedPaymentType, CachedTenantConfig};

impl Caches {
    /// Loads up to `warm_rows` rows of each kind through a session on one shard's primary: payment types, tenant
    /// configuration and fraud rules, which are few and used by every request. Accounts and balances are left to their
    /// first use: a guess at which of millions will be asked for costs more than it saves. Returns how many entries were
    /// made.
    pub async fn warm(&self, session: &Client) -> Result<usize, tokio_postgres::Error> {
        let limit = self.hub.config.warm_rows;
        let mut made = 0;
        let ticket = self.payment_types.ticket();
        for row in session.query(&format!("{PAYMENT_TYPES} LIMIT $1"), &[&limit]).await? {
            let value = payment_type(&row)?;
            let key = (row.try_get("tenant_id")?, value.code.clone());
            made += usize::from(self.payment_types.warm(ticket, key, value));
        }
        let ticket = self.tenant_config.ticket();
        for row in session.query(&format!("{TENANT_CONFIG} LIMIT $1"), &[&limit]).await? {
            let key = (row.try_get("tenant_id")?, row.try_get("config_type")?);
            made += usize::from(self.tenant_config.warm(ticket, key, tenant_config(&row)?));
        }
        let ticket = self.fraud_rules.ticket();
        let mut tenants: BTreeMap<Uuid, Vec<CachedFraudRule>> = BTreeMap::new();
        // Whole tenants only: a list that misses a rule would be a wrong list.
        let rules = format!(
            "{FRAUD_RULES} WHERE tenant_id IN (SELECT DISTINCT tenant_id FROM fraud_rules LIMIT $1) ORDER BY rule_id"
        );
        for row in session.query(&rules, &[&(limit / 10)]).await? {
            tenants.entry(row.try_get("tenant_id")?).or_default().push(fraud_rule(&row)?);
        }
        for (tenant, rules) in tenants {
            made += usize::from(self.fraud_rules.warm(ticket, tenant, CachedFraudRules { rules }));
        }
        Ok(made)
    }
}

/// The columns that [`payment_type`] reads. Loaders add their WHERE.
pub const PAYMENT_TYPES: &str = "SELECT tenant_id, payment_type_id, code, name, is_active, min_amount_minor, \
    max_amount_minor, version FROM payment_types";

/// One row of [`PAYMENT_TYPES`].
pub fn payment_type(row: &Row) -> Result<CachedPaymentType, tokio_postgres::Error> {
    Ok(CachedPaymentType {
        payment_type_id: row.try_get("payment_type_id")?,
        code: row.try_get("code")?,
        name: row.try_get("name")?,
        is_active: row.try_get("is_active")?,
        min_amount_minor: row.try_get("min_amount_minor")?,
        max_amount_minor: row.try_get("max_amount_minor")?,
        version: row.try_get("version")?,
    })
}

/// The columns that [`tenant_config`] reads.
pub const TENANT_CONFIG: &str =
    "SELECT tenant_id, config_type, config, version, updated_at FROM tenant_config";

/// One row of [`TENANT_CONFIG`].
pub fn tenant_config(row: &Row) -> Result<CachedTenantConfig, tokio_postgres::Error> {
    Ok(CachedTenantConfig {
        config: row.try_get("config")?,
        version: row.try_get("version")?,
        updated_at_us: row.try_get::<_, DateTime<Utc>>("updated_at")?.timestamp_micros(),
    })
}

/// The columns that [`fraud_rule`] reads.
pub const FRAUD_RULES: &str = "SELECT tenant_id, rule_id, rule_type, currency, amount_minor, window_seconds, \
    max_count, is_active, version FROM fraud_rules";

/// One row of [`FRAUD_RULES`].
pub fn fraud_rule(row: &Row) -> Result<CachedFraudRule, tokio_postgres::Error> {
    Ok(CachedFraudRule {
        rule_id: row.try_get("rule_id")?,
        rule_type: row.try_get("rule_type")?,
        currency: row.try_get("currency")?,
        amount_minor: row.try_get("amount_minor")?,
        window_seconds: row.try_get("window_seconds")?,
        max_count: row.try_get("max_count")?,
        is_active: row.try_get("is_active")?,
        version: row.try_get("version")?,
    })
}
