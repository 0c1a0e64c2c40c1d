//! Exact amounts. The wire has decimal strings of major units ("12.34"), everything inside has integers of minor units.

use std::fmt;

use rust_decimal::Decimal;

use super::currency::Currency;
use crate::limits;

/// An amount in minor units of some currency, positive or negative. Arithmetic is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Minor(i64);

/// Why a text is not an amount of a currency. The order is the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmountError {
    /// Not a plain decimal number: signs other than a leading '-', exponents, separators, spaces, other digits.
    NotDecimal,
    Negative,
    /// More decimal digits than the currency has.
    TooPrecise,
    /// More than [`limits::AMOUNT_MAX_MINOR`].
    TooLarge,
    /// Zero, where a positive amount is wanted.
    Zero,
}

impl Minor {
    pub const ZERO: Self = Self(0);

    pub const fn new(minor: i64) -> Self {
        Self(minor)
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    pub fn checked_neg(self) -> Option<Self> {
        self.0.checked_neg().map(Self)
    }

    /// Zero or more, at most [`limits::AMOUNT_MAX_MINOR`].
    pub fn parse(text: &str, currency: Currency) -> Result<Self, AmountError> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // Decimal's own parser also takes "+1", "1_000" and ".5"; the wire format takes one spelling.
        let (whole, fraction) = match digits.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (digits, None),
        };
        let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if text.len() > limits::AMOUNT_TEXT_MAX || !all_digits(whole) || !fraction.is_none_or(all_digits) {
            return Err(AmountError::NotDecimal);
        }
        if negative {
            return Err(AmountError::Negative);
        }
        let exponent = usize::from(currency.exponent());
        if fraction.map_or(0, str::len) > exponent {
            return Err(AmountError::TooPrecise);
        }
        let mut value = Decimal::from_str_exact(digits).map_err(|_| AmountError::TooLarge)?;
        value.rescale(exponent as u32);
        // Rescaling loses digits silently when they do not fit 96 bits; such a value is far beyond the limit.
        if value.scale() as usize != exponent {
            return Err(AmountError::TooLarge);
        }
        match i64::try_from(value.mantissa()) {
            Ok(minor) if minor <= limits::AMOUNT_MAX_MINOR => Ok(Self(minor)),
            _ => Err(AmountError::TooLarge),
        }
    }

    /// As [`Minor::parse`], and more than zero.
    pub fn parse_positive(text: &str, currency: Currency) -> Result<Self, AmountError> {
        match Self::parse(text, currency)? {
            Self::ZERO => Err(AmountError::Zero),
            amount => Ok(amount),
        }
    }

    /// The decimal string of major units, with all digits of the currency: "12.30", "100", "-0.005".
    pub fn display(self, currency: Currency) -> MajorUnits {
        MajorUnits { minor: self.0, exponent: currency.exponent() }
    }
}

/// Formats without allocating. See [`Minor::display`].
#[derive(Clone, Copy)]
pub struct MajorUnits {
    minor: i64,
    exponent: u8,
}

impl fmt::Display for MajorUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.minor < 0 { "-" } else { "" };
        let value = self.minor.unsigned_abs();
        if self.exponent == 0 {
            return write!(f, "{sign}{value}");
        }
        let unit = 10u64.pow(u32::from(self.exponent));
        write!(f, "{sign}{}.{:0width$}", value / unit, value % unit, width = usize::from(self.exponent))
    }
}

impl serde::Serialize for MajorUnits {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::parse(code).unwrap()
    }

    fn check(text: &str, code: &str, expected: Result<i64, AmountError>) {
        assert_eq!(Minor::parse_positive(text, currency(code)).map(Minor::get), expected, "{text:?} {code}");
    }

    #[test]
    fn spellings() {
        use AmountError::*;
        check("12.34", "USD", Ok(1234));
        check("12.3", "USD", Ok(1230));
        check("12", "USD", Ok(1200));
        check("007", "USD", Ok(700));
        check("100", "JPY", Ok(100));
        check("1.234", "KWD", Ok(1234));
        check("0.0001", "CLF", Ok(1));
        check("9999999999999.99", "USD", Ok(999_999_999_999_999));
        for text in [
            "",
            "-",
            ".",
            ".5",
            "5.",
            "+1",
            "1e3",
            "1,000",
            "1_000",
            " 1",
            "1 ",
            "1.2.3",
            "0x10",
            "NaN",
            "١٢",
            "--1",
            "inf",
            "1\u{0}",
            "000000000000000000000000000000001",
        ] {
            check(text, "USD", Err(NotDecimal));
        }
        check("-1", "USD", Err(Negative));
        check("-0.01", "USD", Err(Negative));
        check("0", "USD", Err(Zero));
        check("0.00", "USD", Err(Zero));
        check("1.001", "USD", Err(TooPrecise));
        check("1.000", "USD", Err(TooPrecise));
        check("1.0", "JPY", Err(TooPrecise));
        check("10000000000000.00", "USD", Err(TooLarge));
        check("9223372036854775807", "JPY", Err(TooLarge));
        check("92233720368547758.08", "USD", Err(TooLarge));
        check("79228162514264337593543950335", "USD", Err(TooLarge));
        check("99999999999999999999999999999999", "USD", Err(TooLarge));
    }

    #[test]
    fn extremes_are_formatted() {
        assert_eq!(Minor::new(i64::MIN).display(currency("USD")).to_string(), "-92233720368547758.08");
        assert_eq!(Minor::new(-5).display(currency("KWD")).to_string(), "-0.005");
        assert_eq!(Minor::new(0).display(currency("JPY")).to_string(), "0");
        assert_eq!(Minor::new(i64::MIN).checked_neg(), None);
        assert_eq!(Minor::new(i64::MAX).checked_add(Minor::new(1)), None);
        assert_eq!(Minor::new(i64::MIN).checked_sub(Minor::new(1)), None);
    }

    fn any_currency() -> impl Strategy<Value = Currency> {
        proptest::sample::select(Currency::all().collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn what_is_formatted_is_read_back(minor in 0..=limits::AMOUNT_MAX_MINOR, c in any_currency()) {
            let text = Minor::new(minor).display(c).to_string();
            prop_assert_eq!(Minor::parse(&text, c), Ok(Minor::new(minor)));
        }

        #[test]
        fn formatting_agrees_with_decimal(minor: i64, c in any_currency()) {
            let expected = Decimal::from_i128_with_scale(i128::from(minor), u32::from(c.exponent())).to_string();
            prop_assert_eq!(Minor::new(minor).display(c).to_string(), expected);
        }

        #[test]
        fn any_text_is_refused_or_means_what_decimal_says(text in "-?[0-9]{0,20}(\\.[0-9]{0,5})?", c in any_currency()) {
            if let Ok(minor) = Minor::parse(&text, c) {
                let exact = Decimal::from_i128_with_scale(i128::from(minor.get()), u32::from(c.exponent()));
                prop_assert_eq!(exact, text.parse::<Decimal>().unwrap());
            }
        }

        #[test]
        fn no_text_panics(text: String, c in any_currency()) {
            let _ = Minor::parse(&text, c);
        }
    }
}
