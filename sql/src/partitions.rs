//! The months of partitions. PURE. They are made by `make_partitions` in SQL, which needs no `migrate` to be run.

/// The tables partitioned by month of `created_at`.
pub const PARTITIONED: &[&str] = &["payments", "entries"];

/// A calendar month, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i32,
    /// 1..=12
    month: u32,
}

impl Month {
    /// `None` unless `month` is 1..=12.
    pub fn new(year: i32, month: u32) -> Option<Self> {
        (1..=12).contains(&month).then_some(Self { year, month })
    }

    /// The month `by` months later (earlier when negative).
    pub fn plus(self, by: i32) -> Self {
        let months = self.year * 12 + self.month as i32 - 1 + by;
        Self { year: months.div_euclid(12), month: months.rem_euclid(12) as u32 + 1 }
    }

    /// Reads the `2026_11` of `payments_2026_11`.
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        let (year, month) = suffix.split_once('_')?;
        Self::new(year.parse().ok()?, month.parse().ok()?)
    }
}

/// Which of the attached `months` are older than `keep` months before `now`.
pub fn retired(months: &[Month], now: Month, keep: u16) -> Vec<Month> {
    let oldest = now.plus(-i32::from(keep));
    months.iter().copied().filter(|month| *month < oldest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(year: i32, month: u32) -> Month {
        Month::new(year, month).expect("a month")
    }

    #[test]
    fn months_cross_years_in_both_directions() {
        assert_eq!(month(2026, 12).plus(1), month(2027, 1));
        assert_eq!(month(2026, 1).plus(-1), month(2025, 12));
        assert_eq!(month(2026, 11).plus(14), month(2028, 1));
    }

    #[test]
    fn names_are_read() {
        assert_eq!(Month::from_suffix("2026_03"), Some(month(2026, 3)));
        assert_eq!(Month::from_suffix("2026_13"), None);
    }

    #[test]
    fn only_months_before_the_kept_ones_retire() {
        let all = [month(2026, 8), month(2026, 9), month(2026, 10), month(2026, 11)];
        assert_eq!(retired(&all, month(2026, 11), 2), vec![month(2026, 8)]);
        assert!(retired(&all, month(2026, 11), 12).is_empty());
    }
}
