//! Fraud rules.
//!
//! A rule is a resource ([`crate::domain::rule`], [`crate::http::rules`]); it is applied by the posting statement, under
//! the lock of the debit account, from the rows and not from a cache. So a rule that was switched off or tightened holds
//! from its commit on, and two payments in one batch cannot both use the last bit of a limit.
//!
//! What is here is the advisory test: what the amount rules would say about an amount now. Windows are not tried, because
//! trying would have to count.

use crate::cache::values::CachedFraudRule;
use crate::domain::code::Code;

/// The code of the first active amount rule that an amount breaks.
pub fn advise(rules: &[CachedFraudRule], currency: &str, amount_minor: i64) -> Option<Code> {
    rules
        .iter()
        .filter(|rule| rule.is_active && rule.currency.as_deref().is_none_or(|c| c == currency))
        .filter(|rule| rule.rule_type != "velocity_count")
        .any(|rule| rule.amount_minor.is_some_and(|limit| amount_minor > limit))
        .then_some(Code::LimitExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_active_rules_of_the_currency_count() {
        let rule = |active, currency: Option<&str>| CachedFraudRule {
            rule_id: uuid::Uuid::nil(),
            rule_type: "max_amount".into(),
            currency: currency.map(str::to_owned),
            amount_minor: Some(100),
            window_seconds: None,
            max_count: None,
            is_active: active,
            version: 1,
        };
        assert_eq!(advise(&[rule(true, Some("USD"))], "USD", 101), Some(Code::LimitExceeded));
        assert_eq!(advise(&[rule(true, None)], "USD", 101), Some(Code::LimitExceeded));
        assert_eq!(advise(&[rule(true, Some("USD"))], "USD", 100), None);
        assert_eq!(advise(&[rule(true, Some("EUR"))], "USD", 101), None);
        assert_eq!(advise(&[rule(false, Some("USD"))], "USD", 101), None);
    }
}
