//! Payments and what posting one can say.

use super::code::Code;
use super::currency::Currency;
use super::ids::{AccountId, PaymentId, TenantId};
use super::metadata::Metadata;
use super::money::Minor;

/// The statuses this release writes; the column knows more for what comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    Succeeded,
    Declined,
}

impl PaymentStatus {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "succeeded" => Some(Self::Succeeded),
            "declined" => Some(Self::Declined),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Declined => "declined",
        }
    }
}

/// What a payment asks for, validated on its own (not against the ledger).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentDetails {
    pub debit: AccountId,
    pub credit: AccountId,
    pub amount: Minor,
    pub currency: Currency,
    pub payment_type: Option<String>,
    pub reference: Option<String>,
    pub description: Option<String>,
    pub metadata: Option<Metadata>,
}

/// A payment to be posted: who, under which key, and what.
#[derive(Clone, Debug)]
pub struct NewPayment {
    pub tenant: TenantId,
    /// The id the payment gets if this posting is the one that stores it. It stays the same through every retry, which
    /// is how a retry after a lost answer recognises its own work.
    pub candidate: PaymentId,
    pub key: String,
    pub fingerprint: [u8; 16],
    pub details: PaymentDetails,
    /// The canonical text of `details.metadata`.
    pub metadata_json: Option<String>,
}

/// What the ledger said about one payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is stored, now or by an earlier request with the same key.
    Stored {
        payment_id: PaymentId,
        status: PaymentStatus,
        code: Option<Code>,
        replayed: bool,
        /// Versions of the debit and the credit account after it, if this posting moved money.
        versions: Option<(i64, i64)>,
    },
    /// The key belongs to another request. Nothing was done.
    Mismatch,
    /// Not a valid request against this ledger. Nothing was stored.
    Rejected(Code),
}
