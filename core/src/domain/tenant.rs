//! Tenants and their API keys.

use serde::Serialize;

use super::ids::TenantId;

/// `pk_<32 hex digits of the tenant>_<secret>`: the text names its tenant, so one indexed look-up on one shard
/// authenticates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiKeyText<'a> {
    pub tenant: TenantId,
    pub secret: &'a str,
}

/// Characters of the secret: 32 random bytes in base64url.
pub const SECRET_CHARS: usize = 43;

impl<'a> ApiKeyText<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let (tenant, secret) = text.strip_prefix("pk_")?.split_once('_')?;
        if tenant.len() != 32 || secret.len() != SECRET_CHARS || !secret.is_ascii() {
            return None;
        }
        Some(Self { tenant: TenantId::parse(tenant)?, secret })
    }

    pub fn compose(tenant: TenantId, secret: &str) -> String {
        format!("pk_{}_{secret}", tenant.0.simple())
    }
}

/// What an API key may do. A key without scopes may do everything its tenant may.
pub const SCOPES: &[&str] = &[
    "payments:read",
    "payments:write",
    "accounts:read",
    "accounts:write",
    "settings:read",
    "settings:write",
    "keys:read",
    "keys:write",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TenantStatus {
    Active,
    Suspended,
    Closed,
}

impl TenantStatus {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ACTIVE" => Some(Self::Active),
            "SUSPENDED" => Some(Self::Suspended),
            "CLOSED" => Some(Self::Closed),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Closed => "CLOSED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_tenant() {
        let tenant = crate::clock::new_id::<TenantId>();
        let secret = "a".repeat(SECRET_CHARS);
        let text = ApiKeyText::compose(tenant, &secret);
        assert_eq!(ApiKeyText::parse(&text), Some(ApiKeyText { tenant, secret: &secret }));
    }

    #[test]
    fn other_texts_are_not_keys() {
        let tenant = crate::clock::new_id::<TenantId>().0.simple().to_string();
        for bad in [
            "",
            "pk_",
            "pk__",
            &format!("pk_{tenant}"),
            &format!("pk_{tenant}_short"),
            &format!("sk_{tenant}_{}", "a".repeat(SECRET_CHARS)),
            &format!("pk_{tenant}_{}", "a".repeat(SECRET_CHARS + 1)),
        ] {
            assert_eq!(ApiKeyText::parse(bad), None, "{bad}");
        }
    }
}
