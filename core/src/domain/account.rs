//! Accounts.

use super::currency::Currency;
use super::money::Minor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountType {
    /// Its balance never falls below minus its overdraft limit.
    Wallet,
    /// No lower limit: money enters and leaves the system there.
    Settlement,
}

impl AccountType {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "wallet" => Some(Self::Wallet),
            "settlement" => Some(Self::Settlement),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wallet => "wallet",
            Self::Settlement => "settlement",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    Active,
    Frozen,
    Closed,
}

impl AccountStatus {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ACTIVE" => Some(Self::Active),
            "FROZEN" => Some(Self::Frozen),
            "CLOSED" => Some(Self::Closed),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Frozen => "FROZEN",
            Self::Closed => "CLOSED",
        }
    }

    /// Closed is final.
    pub fn may_become(self, next: Self) -> bool {
        self == next || self != Self::Closed
    }
}

/// A validated request for an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAccount {
    pub number: String,
    pub currency: Currency,
    pub kind: AccountType,
    /// How far below zero the balance may go; for wallets only.
    pub overdraft_limit: Minor,
}

impl NewAccount {
    /// The column min_balance_minor: `None` = no limit.
    pub fn min_balance(&self) -> Option<Minor> {
        match self.kind {
            AccountType::Settlement => None,
            // A limit is between zero and AMOUNT_MAX_MINOR, so its negative exists.
            AccountType::Wallet => self.overdraft_limit.checked_neg(),
        }
    }
}
