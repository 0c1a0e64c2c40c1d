//! Request bodies as they are on the wire, and the step from there to validated values. Bodies of HTTP requests and of
//! commands from Kafka are the same.

use std::borrow::Cow;

use serde::Deserialize;

use super::account::{AccountStatus, AccountType, NewAccount};
use super::code::Code;
use super::currency::Currency;
use super::metadata::Metadata;
use super::money::Minor;
use super::payment::PaymentDetails;
use super::rule::Rule;
use super::tenant;
use super::validate::{Faults, Violation};
use crate::limits;

/// Strings are borrowed from the body wherever they hold no escapes.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PaymentBody<'a> {
    #[serde(borrow)]
    pub debit_account_id: Cow<'a, str>,
    #[serde(borrow)]
    pub credit_account_id: Cow<'a, str>,
    #[serde(borrow)]
    pub amount: Cow<'a, str>,
    #[serde(borrow)]
    pub currency: Cow<'a, str>,
    #[serde(borrow, default)]
    pub payment_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub reference: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub description: Option<Cow<'a, str>>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
}

impl PaymentBody<'_> {
    pub fn validate(self, mut faults: Faults) -> Result<PaymentDetails, Vec<Violation>> {
        let currency = faults.currency("currency", &self.currency);
        let amount = faults.positive_amount("amount", &self.amount, currency);
        let debit = faults.account_id("debit_account_id", &self.debit_account_id);
        let credit = faults.account_id("credit_account_id", &self.credit_account_id);
        if debit.is_some() && debit == credit {
            faults.add("credit_account_id", Code::SameAccount, "must differ from debit_account_id");
        }
        let payment_type =
            self.payment_type.and_then(|t| faults.identifier("payment_type", &t, limits::CODE_MAX));
        let reference = self.reference.and_then(|t| faults.line("reference", &t, limits::REFERENCE_MAX));
        let description =
            self.description.and_then(|t| faults.paragraph("description", &t, limits::DESCRIPTION_MAX));
        if let Some(metadata) = &self.metadata {
            check_metadata(metadata, &mut faults);
        }
        faults.finish()?;
        match (debit, credit, amount, currency) {
            (Some(debit), Some(credit), Some(amount), Some(currency)) => Ok(PaymentDetails {
                debit,
                credit,
                amount,
                currency,
                payment_type,
                reference,
                description,
                metadata: self.metadata.filter(|m| !m.is_empty()),
            }),
            // Every missing value above was reported as a fault.
            _ => Err(Vec::new()),
        }
    }
}

fn check_metadata(metadata: &Metadata, faults: &mut Faults) {
    if metadata.len() > limits::METADATA_KEYS_MAX {
        faults.add("metadata", Code::InvalidText, format!("at most {} members", limits::METADATA_KEYS_MAX));
        return;
    }
    for (key, value) in metadata {
        faults.line("metadata", key, limits::METADATA_KEY_MAX);
        if value.chars().count() > limits::METADATA_VALUE_MAX || value.contains('\0') {
            faults.add(
                "metadata",
                Code::InvalidText,
                format!("at most {} characters a value", limits::METADATA_VALUE_MAX),
            );
        }
    }
}

/// One item of POST /v1/payments/batch.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct BatchItem<'a> {
    #[serde(borrow)]
    pub idempotency_key: Cow<'a, str>,
    #[serde(borrow)]
    pub debit_account_id: Cow<'a, str>,
    #[serde(borrow)]
    pub credit_account_id: Cow<'a, str>,
    #[serde(borrow)]
    pub amount: Cow<'a, str>,
    #[serde(borrow)]
    pub currency: Cow<'a, str>,
    #[serde(borrow, default)]
    pub payment_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub reference: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub description: Option<Cow<'a, str>>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
}

impl<'a> BatchItem<'a> {
    /// The key and the body that POST /v1/payments would have had. (serde's flatten would buffer every member.)
    pub fn split(self) -> (Cow<'a, str>, PaymentBody<'a>) {
        let body = PaymentBody {
            debit_account_id: self.debit_account_id,
            credit_account_id: self.credit_account_id,
            amount: self.amount,
            currency: self.currency,
            payment_type: self.payment_type,
            reference: self.reference,
            description: self.description,
            metadata: self.metadata,
        };
        (self.idempotency_key, body)
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PaymentBatchBody<'a> {
    #[serde(borrow)]
    pub payments: Vec<BatchItem<'a>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AccountBody {
    pub account_number: String,
    pub currency: String,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub overdraft_limit: Option<String>,
}

impl AccountBody {
    pub fn validate(self, mut faults: Faults) -> Result<NewAccount, Vec<Violation>> {
        let currency = faults.currency("currency", &self.currency);
        let number = faults.line("account_number", &self.account_number, limits::ACCOUNT_NUMBER_MAX);
        let kind = match self.kind {
            None => Some(AccountType::Wallet),
            Some(text) => faults.one_of("type", &text, AccountType::parse, "wallet, settlement"),
        };
        let overdraft_limit = match self.overdraft_limit {
            None => Some(Minor::ZERO),
            Some(text) => faults.amount("overdraft_limit", &text, currency),
        };
        if kind == Some(AccountType::Settlement) && overdraft_limit.is_some_and(|l| l != Minor::ZERO) {
            faults.add("overdraft_limit", Code::InvalidValue, "a settlement account has no lower limit");
        }
        faults.finish()?;
        match (number, currency, kind, overdraft_limit) {
            (Some(number), Some(currency), Some(kind), Some(overdraft_limit)) => {
                Ok(NewAccount { number, currency, kind, overdraft_limit })
            }
            _ => Err(Vec::new()),
        }
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct AccountBatchBody {
    pub accounts: Vec<AccountBody>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct AccountPatch {
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub overdraft_limit: Option<String>,
}

/// The validated change of an account; the limit's currency is the account's, so it comes as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AccountChange {
    pub status: Option<AccountStatus>,
    pub overdraft_limit: Option<Minor>,
}

impl AccountPatch {
    pub fn validate(self, currency: Currency, kind: AccountType) -> Result<AccountChange, Vec<Violation>> {
        let mut faults = Faults::default();
        let status = self
            .status
            .and_then(|t| faults.one_of("status", &t, AccountStatus::parse, "ACTIVE, FROZEN, CLOSED"));
        let overdraft_limit =
            self.overdraft_limit.and_then(|t| faults.amount("overdraft_limit", &t, Some(currency)));
        if kind == AccountType::Settlement && overdraft_limit.is_some() {
            faults.add("overdraft_limit", Code::InvalidValue, "a settlement account has no lower limit");
        }
        faults.finish()?;
        Ok(AccountChange { status, overdraft_limit })
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct TenantBody {
    pub name: String,
    /// The currency that the tenant mostly uses; kept in its configuration of type `defaults`.
    #[serde(default)]
    pub currency: Option<String>,
}

impl TenantBody {
    pub fn validate(self) -> Result<(String, Option<Currency>), Vec<Violation>> {
        let mut faults = Faults::default();
        let name = faults.line("name", &self.name, limits::NAME_MAX);
        let currency = self.currency.and_then(|c| faults.currency("currency", &c));
        faults.finish()?;
        Ok((name.unwrap_or_default(), currency))
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyBody {
    #[serde(default)]
    pub scopes: Vec<String>,
}

impl ApiKeyBody {
    pub fn validate(self) -> Result<Vec<String>, Vec<Violation>> {
        let mut faults = Faults::default();
        if self.scopes.iter().any(|s| !tenant::SCOPES.contains(&s.as_str())) {
            faults.add(
                "scopes",
                Code::InvalidValue,
                format!("expected some of: {}", tenant::SCOPES.join(", ")),
            );
        }
        faults.finish()?;
        let mut scopes = self.scopes;
        scopes.sort();
        scopes.dedup();
        Ok(scopes)
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PaymentTypeBody {
    pub code: String,
    pub name: String,
    #[serde(default)]
    pub is_active: Option<bool>,
    /// Minor units of whatever currency the payment has: a type is not bound to a currency.
    #[serde(default)]
    pub min_amount_minor: Option<i64>,
    #[serde(default)]
    pub max_amount_minor: Option<i64>,
}

/// A validated payment type.
#[derive(Debug, PartialEq, Eq)]
pub struct NewPaymentType {
    pub code: String,
    pub name: String,
    pub is_active: bool,
    pub min_amount: Option<i64>,
    pub max_amount: Option<i64>,
}

impl PaymentTypeBody {
    pub fn validate(self) -> Result<NewPaymentType, Vec<Violation>> {
        let mut faults = Faults::default();
        let code = faults.identifier("code", &self.code, limits::CODE_MAX);
        let name = faults.line("name", &self.name, limits::NAME_MAX);
        let sensible = |amount: i64| (1..=limits::AMOUNT_MAX_MINOR).contains(&amount);
        for (member, amount) in
            [("min_amount_minor", self.min_amount_minor), ("max_amount_minor", self.max_amount_minor)]
        {
            if amount.is_some_and(|a| !sensible(a)) {
                faults.add(member, Code::InvalidValue, format!("expected 1 to {}", limits::AMOUNT_MAX_MINOR));
            }
        }
        if matches!((self.min_amount_minor, self.max_amount_minor), (Some(min), Some(max)) if min > max) {
            faults.add("max_amount_minor", Code::InvalidValue, "must not be less than min_amount_minor");
        }
        faults.finish()?;
        Ok(NewPaymentType {
            code: code.unwrap_or_default(),
            name: name.unwrap_or_default(),
            is_active: self.is_active.unwrap_or(true),
            min_amount: self.min_amount_minor,
            max_amount: self.max_amount_minor,
        })
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    pub rule_type: String,
    #[serde(default)]
    pub currency: Option<String>,
    #[serde(default)]
    pub amount: Option<String>,
    #[serde(default)]
    pub window_seconds: Option<i32>,
    #[serde(default)]
    pub max_count: Option<i32>,
    #[serde(default)]
    pub is_active: Option<bool>,
}

impl RuleBody {
    pub fn validate(self) -> Result<(Rule, bool), Vec<Violation>> {
        let mut faults = Faults::default();
        let is_active = self.is_active.unwrap_or(true);
        let currency = self.currency.as_deref().and_then(|c| faults.currency("currency", c));
        let amount_rule = matches!(self.rule_type.as_str(), "max_amount" | "daily_amount");
        let mut rule = None;
        if amount_rule {
            if self.currency.is_none() {
                faults.add("currency", Code::UnknownCurrency, "an amount needs a currency");
            }
            let amount = match &self.amount {
                Some(text) => faults.positive_amount("amount", text, currency),
                None => {
                    faults.add("amount", Code::InvalidAmount, "this rule needs an amount");
                    None
                }
            };
            for (member, given) in [("window_seconds", self.window_seconds), ("max_count", self.max_count)] {
                if given.is_some() {
                    faults.add(member, Code::InvalidValue, "this rule does not have it");
                }
            }
            if let (Some(currency), Some(amount)) = (currency, amount) {
                rule = Some(match self.rule_type.as_str() {
                    "max_amount" => Rule::MaxAmount { currency, amount },
                    _ => Rule::DailyAmount { currency, amount },
                });
            }
        } else if self.rule_type == "velocity_count" {
            let window = self.window_seconds.filter(|s| (1..=31_622_400).contains(s));
            let count = self.max_count.filter(|c| *c > 0);
            if window.is_none() {
                faults.add("window_seconds", Code::InvalidValue, "expected 1 to 31622400 seconds");
            }
            if count.is_none() {
                faults.add("max_count", Code::InvalidValue, "expected 1 or more");
            }
            if self.amount.is_some() {
                faults.add("amount", Code::InvalidValue, "this rule does not have it");
            }
            if let (Some(window_seconds), Some(max_count)) = (window, count) {
                rule = Some(Rule::VelocityCount { currency, max_count, window_seconds });
            }
        } else {
            faults.add(
                "rule_type",
                Code::InvalidValue,
                "expected one of: max_amount, daily_amount, velocity_count",
            );
        }
        faults.finish()?;
        rule.map(|rule| (rule, is_active)).ok_or_else(Vec::new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::AccountId;

    fn body(
        debit: &str,
        credit: &str,
        amount: &str,
        currency: &str,
        reference: Option<&str>,
    ) -> PaymentBody<'static> {
        PaymentBody {
            debit_account_id: debit.to_owned().into(),
            credit_account_id: credit.to_owned().into(),
            amount: amount.to_owned().into(),
            currency: currency.to_owned().into(),
            payment_type: None,
            reference: reference.map(|r| r.to_owned().into()),
            description: None,
            metadata: None,
        }
    }

    fn codes(result: Result<PaymentDetails, Vec<Violation>>) -> Vec<Code> {
        result.err().unwrap_or_default().into_iter().map(|v| v.code).collect()
    }

    #[test]
    fn every_fault_is_reported_and_the_first_has_precedence() {
        let found = codes(body("x", "y", "1.234", "USD", Some("\u{7}")).validate(Faults::default()));
        assert_eq!(
            found,
            [Code::AmountTooPrecise, Code::InvalidAccountId, Code::InvalidAccountId, Code::InvalidText]
        );
        // Without a currency the amount cannot be judged.
        assert_eq!(
            codes(body("x", "y", "-1", "usd", None).validate(Faults::default()))[0],
            Code::UnknownCurrency
        );
    }

    proptest! {
        /// An account is what it is, whatever else is wrong: adding a later fault never changes the first code.
        #[test]
        fn later_faults_do_not_change_the_answer(amount in "-?[0-9]{1,4}(\\.[0-9]{1,3})?", bad_text in any::<bool>()) {
            let (a, b) = (crate::clock::new_id::<AccountId>().to_string(), crate::clock::new_id::<AccountId>().to_string());
            let alone = codes(body(&a, &b, &amount, "USD", None).validate(Faults::default()));
            let text = if bad_text { Some("\0") } else { None };
            let together = codes(body(&a, "nonsense", &amount, "USD", text).validate(Faults::default()));
            match alone.first() {
                Some(first) => prop_assert_eq!(together.first(), Some(first)),
                None => prop_assert_eq!(together.first(), Some(&Code::InvalidAccountId)),
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}|[\\x00-\\x1f]{0,5}") {
            let _ = body(&text, &text, &text, &text, Some(&text)).validate(Faults::default());
        }
    }
}
