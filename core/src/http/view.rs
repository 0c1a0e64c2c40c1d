//! Resources as JSON.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::cache::values::{CachedAccount, CachedBalance};
use crate::domain::code::Code;
use crate::domain::currency::Currency;
use crate::domain::ids::PaymentId;
use crate::domain::metadata::Metadata;
use crate::domain::money::{MajorUnits, Minor};
use crate::domain::payment::{PaymentDetails, PaymentStatus};
use crate::error::Problem;
use crate::ledger::accounts::EntryRow;
use crate::ledger::payments::PaymentRow;

/// RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy)]
pub struct Timestamp(pub DateTime<Utc>);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// Rows name their currency; one that this build does not know is our fault, not the client's.
pub fn currency(code: &str) -> Result<Currency, Problem> {
    Currency::parse(code).ok_or_else(|| {
        tracing::error!(code, "a row has an unknown currency");
        Problem::of(Code::Internal)
    })
}

#[derive(Serialize)]
pub struct PaymentView<'a> {
    pub payment_id: Uuid,
    pub status: &'a str,
    pub debit_account_id: Uuid,
    pub credit_account_id: Uuid,
    pub amount: MajorUnits,
    pub currency: &'a str,
    pub payment_type: Option<&'a str>,
    pub reference: Option<&'a str>,
    pub description: Option<&'a str>,
    pub metadata: Option<MetadataView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<&'a str>,
    pub created_at: Timestamp,
}

/// Metadata as it was sent or as it was stored.
#[derive(Serialize)]
#[serde(untagged)]
pub enum MetadataView<'a> {
    Sent(&'a Metadata),
    Stored(&'a serde_json::Value),
}

impl<'a> PaymentView<'a> {
    /// From the request and what the ledger said, without reading the row back: the same values for a first answer and
    /// for a replay, because a replay has the same request.
    pub fn posted(
        details: &'a PaymentDetails,
        id: PaymentId,
        status: PaymentStatus,
        code: Option<Code>,
    ) -> Self {
        Self {
            payment_id: id.0,
            status: status.as_str(),
            debit_account_id: details.debit.0,
            credit_account_id: details.credit.0,
            amount: details.amount.display(details.currency),
            currency: details.currency.code(),
            payment_type: details.payment_type.as_deref(),
            reference: details.reference.as_deref(),
            description: details.description.as_deref(),
            metadata: details.metadata.as_ref().map(MetadataView::Sent),
            decline_code: code.map(Code::as_str),
            created_at: Timestamp(id.created_at().unwrap_or_default()),
        }
    }

    pub fn stored(row: &'a PaymentRow) -> Result<Self, Problem> {
        Ok(Self {
            payment_id: row.payment_id,
            status: &row.status,
            debit_account_id: row.debit,
            credit_account_id: row.credit,
            amount: Minor::new(row.amount_minor).display(currency(&row.currency)?),
            currency: &row.currency,
            payment_type: row.payment_type.as_deref(),
            reference: row.reference.as_deref(),
            description: row.description.as_deref(),
            metadata: row.metadata.as_ref().map(MetadataView::Stored),
            decline_code: row.decline_code.as_deref(),
            created_at: Timestamp(row.created_at),
        })
    }
}

#[derive(Serialize)]
pub struct AccountView<'a> {
    pub account_id: Uuid,
    pub account_number: &'a str,
    pub currency: &'a str,
    pub r#type: &'a str,
    pub status: &'a str,
    /// `null`: no limit.
    pub overdraft_limit: Option<MajorUnits>,
    pub created_at: Timestamp,
}

impl<'a> AccountView<'a> {
    pub fn new(account: &'a CachedAccount) -> Result<Self, Problem> {
        Ok(Self {
            account_id: account.account_id,
            account_number: &account.account_number,
            currency: &account.currency,
            r#type: &account.account_type,
            status: &account.status,
            overdraft_limit: limit(account.min_balance_minor, currency(&account.currency)?),
            created_at: Timestamp(DateTime::from_timestamp_micros(account.created_at_us).unwrap_or_default()),
        })
    }
}

fn limit(min_balance: Option<i64>, currency: Currency) -> Option<MajorUnits> {
    Some(Minor::new(min_balance?).checked_neg()?.display(currency))
}

#[derive(Serialize)]
pub struct BalanceView<'a> {
    pub account_id: Uuid,
    pub currency: &'a str,
    pub posted: MajorUnits,
    pub held: MajorUnits,
    /// What payments may take: posted - held - the lower limit. `null`: no limit.
    pub available: Option<MajorUnits>,
    /// Number of entries of the account.
    pub version: i64,
}

impl<'a> BalanceView<'a> {
    pub fn new(account_id: Uuid, balance: &'a CachedBalance) -> Result<Self, Problem> {
        let currency = currency(&balance.currency)?;
        let (posted, held) = (Minor::new(balance.posted_minor), Minor::new(balance.held_minor));
        let available = balance
            .min_balance_minor
            .and_then(|min| posted.checked_sub(held)?.checked_sub(Minor::new(min)))
            .map(|minor| minor.display(currency));
        Ok(Self {
            account_id,
            currency: &balance.currency,
            posted: posted.display(currency),
            held: held.display(currency),
            available,
            version: balance.version,
        })
    }
}

#[derive(Serialize)]
pub struct EntryView {
    pub version: i64,
    pub payment_id: Uuid,
    pub counterparty_account_id: Uuid,
    pub direction: &'static str,
    pub amount: MajorUnits,
    pub balance_after: MajorUnits,
    pub created_at: Timestamp,
}

impl EntryView {
    pub fn new(entry: &EntryRow, currency: Currency) -> Self {
        let amount = Minor::new(entry.amount_minor);
        Self {
            version: entry.version,
            payment_id: entry.payment_id,
            counterparty_account_id: entry.counterparty,
            direction: if entry.amount_minor < 0 { "debit" } else { "credit" },
            amount: amount
                .checked_neg()
                .filter(|_| entry.amount_minor < 0)
                .unwrap_or(amount)
                .display(currency),
            balance_after: Minor::new(entry.posted_after_minor).display(currency),
            created_at: Timestamp(entry.created_at),
        }
    }
}

/// One page of a list.
#[derive(Serialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    /// `null`: there is no more.
    pub next_cursor: Option<String>,
}
