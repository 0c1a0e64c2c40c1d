//! What is cached, under which keys. Everything here is advisory (H33): a GET may be answered from it, a payment is
//! decided inside its posting statement from the locked rows, never from a cache.

use std::hash::Hash;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A key: how it is written in Redis and in eviction messages. Text, so that an operator can read it.
pub trait Key: Eq + Hash + Clone + Send + Sync + 'static {
    fn write(&self, out: &mut String);
    fn parse(text: &str) -> Option<Self>;
}

/// A value. `version` is the row's own counter where it has one; 0 says that it has none, and such values are protected
/// by the lease alone (see [`super::l2`]).
pub trait Value: Serialize + DeserializeOwned + Send + Sync + 'static {
    fn version(&self) -> i64 {
        0
    }
}

impl Key for Uuid {
    fn write(&self, out: &mut String) {
        out.push_str(self.simple().encode_lower(&mut Uuid::encode_buffer()));
    }
    fn parse(text: &str) -> Option<Uuid> {
        Uuid::try_parse(text).ok()
    }
}

/// (tenant, a row of the tenant).
impl Key for (Uuid, Uuid) {
    fn write(&self, out: &mut String) {
        self.0.write(out);
        out.push(':');
        self.1.write(out);
    }
    fn parse(text: &str) -> Option<(Uuid, Uuid)> {
        let (tenant, row) = text.split_once(':')?;
        Some((Uuid::parse(tenant)?, Uuid::parse(row)?))
    }
}

/// (tenant, a code within the tenant).
impl Key for (Uuid, String) {
    fn write(&self, out: &mut String) {
        self.0.write(out);
        out.push(':');
        out.push_str(&self.1);
    }
    fn parse(text: &str) -> Option<(Uuid, String)> {
        let (tenant, code) = text.split_once(':')?;
        Some((Uuid::parse(tenant)?, code.to_owned()))
    }
}

/// account-cache: key (tenant, account). The row has no counter of its own: `accounts.version` counts entries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedAccount {
    pub account_id: Uuid,
    pub account_number: String,
    pub currency: String,
    pub account_type: String,
    pub status: String,
    /// None: no lower limit (a settlement account).
    pub min_balance_minor: Option<i64>,
    /// Microseconds since 1970, UTC.
    pub created_at_us: i64,
}
impl Value for CachedAccount {}

/// account-balance: key (tenant, account). Read-only; version = number of entries of the account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedBalance {
    pub posted_minor: i64,
    pub held_minor: i64,
    pub min_balance_minor: Option<i64>,
    pub currency: String,
    pub version: i64,
}
impl Value for CachedBalance {
    fn version(&self) -> i64 {
        self.version
    }
}

/// payment-type-cache: key (tenant, code).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedPaymentType {
    pub payment_type_id: Uuid,
    pub code: String,
    pub name: String,
    pub is_active: bool,
    pub min_amount_minor: Option<i64>,
    pub max_amount_minor: Option<i64>,
    pub version: i64,
}
impl Value for CachedPaymentType {
    fn version(&self) -> i64 {
        self.version
    }
}

/// tenant-config-cache: key (tenant, config type).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedTenantConfig {
    pub config: serde_json::Value,
    pub version: i64,
    pub updated_at_us: i64,
}
impl Value for CachedTenantConfig {
    fn version(&self) -> i64 {
        self.version
    }
}

/// fraud-rules-cache: key tenant; all rules of the tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedFraudRules {
    pub rules: Vec<CachedFraudRule>,
}
impl Value for CachedFraudRules {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedFraudRule {
    pub rule_id: Uuid,
    pub rule_type: String,
    pub currency: Option<String>,
    pub amount_minor: Option<i64>,
    pub window_seconds: Option<i32>,
    pub max_count: Option<i32>,
    pub is_active: bool,
    pub version: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<K: Key + std::fmt::Debug>(key: K, text: &str) {
        let mut written = String::new();
        key.write(&mut written);
        assert_eq!(written, text);
        assert_eq!(K::parse(text), Some(key));
    }

    #[test]
    fn keys_survive_the_wire() {
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        check(id, "01900000000070008000000000000001");
        check((id, id), "01900000000070008000000000000001:01900000000070008000000000000001");
        check((id, "limits:eu".to_owned()), "01900000000070008000000000000001:limits:eu");
        assert_eq!(<(Uuid, Uuid)>::parse("nonsense"), None);
    }
}
