//! Collects everything that is wrong with a request that can be read. Which fault decides the status of the answer
//! follows from the order of the checks below and in the callers, never from the order of JSON members.

use super::code::Code;
use super::currency::Currency;
use super::ids::AccountId;
use super::money::{AmountError, Minor};
use crate::limits;

/// One fault, at a place named by a JSON pointer (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub pointer: String,
    pub code: Code,
    pub detail: String,
}

/// The faults of one request. The first one gives the answer its code.
#[derive(Default, Debug)]
pub struct Faults {
    prefix: String,
    found: Vec<Violation>,
}

impl Faults {
    /// For item `n` of a batch: pointers start with `/member/n`.
    pub fn within(prefix: String) -> Self {
        Self { prefix, found: Vec::new() }
    }

    pub fn add(&mut self, member: &str, code: Code, detail: impl Into<String>) {
        self.found.push(Violation {
            pointer: format!("{}/{member}", self.prefix),
            code,
            detail: detail.into(),
        });
    }

    pub fn finish(self) -> Result<(), Vec<Violation>> {
        if self.found.is_empty() { Ok(()) } else { Err(self.found) }
    }

    pub fn account_id(&mut self, member: &str, text: &str) -> Option<AccountId> {
        let id = AccountId::parse(text);
        if id.is_none() {
            self.add(member, Code::InvalidAccountId, "expected a UUID");
        }
        id
    }

    pub fn currency(&mut self, member: &str, text: &str) -> Option<Currency> {
        let currency = Currency::parse(text);
        if currency.is_none() {
            self.add(
                member,
                Code::UnknownCurrency,
                "expected an active ISO 4217 code in upper case, such as USD",
            );
        }
        currency
    }

    /// An amount above zero. Without a currency its precision cannot be judged, so nothing is reported.
    pub fn positive_amount(&mut self, member: &str, text: &str, currency: Option<Currency>) -> Option<Minor> {
        self.judged(member, Minor::parse_positive(text, currency?), currency?)
    }

    /// An amount of zero or more.
    pub fn amount(&mut self, member: &str, text: &str, currency: Option<Currency>) -> Option<Minor> {
        self.judged(member, Minor::parse(text, currency?), currency?)
    }

    fn judged(
        &mut self,
        member: &str,
        parsed: Result<Minor, AmountError>,
        currency: Currency,
    ) -> Option<Minor> {
        let error = match parsed {
            Ok(amount) => return Some(amount),
            Err(error) => error,
        };
        let (code, detail) = match error {
            AmountError::NotDecimal => (
                Code::InvalidAmount,
                "expected a decimal string such as \"12.34\", without sign or exponent".into(),
            ),
            AmountError::Negative => (Code::AmountNotPositive, "must not be negative".into()),
            AmountError::Zero => (Code::AmountNotPositive, "must be more than zero".into()),
            AmountError::TooPrecise => (
                Code::AmountTooPrecise,
                format!("{} has {} decimal digits", currency.code(), currency.exponent()),
            ),
            AmountError::TooLarge => {
                let most = Minor::new(limits::AMOUNT_MAX_MINOR).display(currency);
                (Code::AmountTooLarge, format!("the largest amount is {most}"))
            }
        };
        self.add(member, code, detail);
        None
    }

    /// A text of 1 to `max` characters that PostgreSQL can store and a screen can show on one line.
    pub fn line(&mut self, member: &str, text: &str, max: usize) -> Option<String> {
        self.text(member, text, max, |c| !c.is_control())
    }

    /// As [`Faults::line`], with line breaks and tabs.
    pub fn paragraph(&mut self, member: &str, text: &str, max: usize) -> Option<String> {
        self.text(member, text, max, |c| !c.is_control() || c == '\n' || c == '\t')
    }

    /// A short identifier: letters, digits, '_', '-', '.'.
    pub fn identifier(&mut self, member: &str, text: &str, max: usize) -> Option<String> {
        self.text(member, text, max, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    }

    fn text(&mut self, member: &str, text: &str, max: usize, allowed: fn(char) -> bool) -> Option<String> {
        // Bytes first: counting the characters of a very long text is work for nothing.
        let long = text.len() > max * 4 || text.chars().count() > max;
        if long || text.trim().is_empty() {
            self.add(member, Code::InvalidText, format!("expected 1 to {max} characters"));
            return None;
        }
        if !text.chars().all(allowed) {
            self.add(member, Code::InvalidText, "has characters that are not allowed here");
            return None;
        }
        Some(text.to_owned())
    }

    pub fn one_of<T>(
        &mut self,
        member: &str,
        text: &str,
        parse: fn(&str) -> Option<T>,
        allowed: &str,
    ) -> Option<T> {
        let parsed = parse(text);
        if parsed.is_none() {
            self.add(member, Code::InvalidValue, format!("expected one of: {allowed}"));
        }
        parsed
    }
}
