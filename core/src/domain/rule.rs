//! Fraud rules: simple limits that the posting statement applies.

use super::currency::Currency;
use super::money::Minor;

/// A validated rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// No single payment above this amount.
    MaxAmount { currency: Currency, amount: Minor },
    /// No more than this amount of succeeded debits of one account in a UTC day.
    DailyAmount { currency: Currency, amount: Minor },
    /// No more than this many payments of one account in a window.
    VelocityCount { currency: Option<Currency>, max_count: i32, window_seconds: i32 },
}

impl Rule {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MaxAmount { .. } => "max_amount",
            Self::DailyAmount { .. } => "daily_amount",
            Self::VelocityCount { .. } => "velocity_count",
        }
    }

    pub fn currency(&self) -> Option<Currency> {
        match self {
            Self::MaxAmount { currency, .. } | Self::DailyAmount { currency, .. } => Some(*currency),
            Self::VelocityCount { currency, .. } => *currency,
        }
    }

    pub fn amount(&self) -> Option<Minor> {
        match self {
            Self::MaxAmount { amount, .. } | Self::DailyAmount { amount, .. } => Some(*amount),
            Self::VelocityCount { .. } => None,
        }
    }

    pub fn window_seconds(&self) -> Option<i32> {
        match self {
            Self::VelocityCount { window_seconds, .. } => Some(*window_seconds),
            _ => None,
        }
    }

    pub fn max_count(&self) -> Option<i32> {
        match self {
            Self::VelocityCount { max_count, .. } => Some(*max_count),
            _ => None,
        }
    }
}
