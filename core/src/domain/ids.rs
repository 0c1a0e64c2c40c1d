//! Typed ids. All are UUIDs of version 7, so that newer rows sort after older ones.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The usual spelling with hyphens, or the bare 32 digits.
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != 36 && text.len() != 32 {
                    return None;
                }
                Uuid::try_parse_ascii(text.as_bytes()).ok().map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

typed_ids! {
    /// The sharding key of everything.
    TenantId,
    AccountId,
    /// Its millisecond is the payment's created_at.
    PaymentId,
    KeyId,
    PaymentTypeId,
    RuleId,
}

impl PaymentId {
    /// Milliseconds since 1970 inside the id (RFC 9562 section 5.7); `None` for ids that are not version 7, which no
    /// payment has.
    pub fn created_at_ms(self) -> Option<u64> {
        if self.0.get_version_num() != 7 {
            return None;
        }
        let b = self.0.as_bytes();
        Some(u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]]))
    }

    pub fn created_at(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_millis(i64::try_from(self.created_at_ms()?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_millisecond_is_inside() {
        let id = PaymentId::parse("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").unwrap();
        // The example of RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC.
        assert_eq!(id.created_at().unwrap().to_rfc3339(), "2022-02-22T19:22:22+00:00");
        assert_eq!(PaymentId(Uuid::nil()).created_at(), None);
    }

    #[test]
    fn spellings() {
        for bad in [
            "",
            "x",
            "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
            "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
            "urn:uuid:017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
            "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        ] {
            assert_eq!(AccountId::parse(bad), None, "{bad}");
        }
        assert!(AccountId::parse("017F22E279B07CC398C4DC0C0C07398F").is_some());
    }
}
