//! Monthly partitions. PURE: months in, statements out.

use std::fmt;

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

    /// Reads the suffix that [`partition_name`] writes.
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        let (year, month) = suffix.split_once('_')?;
        Self::new(year.parse().ok()?, month.parse().ok()?)
    }
}

// === impl Display ===

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}_{:02}", self.year, self.month)
    }
}

/// `payments_2026_11`
pub fn partition_name(table: &str, month: Month) -> String {
    format!("{table}_{month}")
}

/// Creates the partition as a table of its own and then attaches it: that takes only SHARE UPDATE EXCLUSIVE on the
/// parent, where `CREATE TABLE ... PARTITION OF` would stop payments for its ACCESS EXCLUSIVE lock.
pub fn create_statements(table: &str, month: Month) -> [String; 2] {
    let name = partition_name(table, month);
    let next = month.plus(1);
    let bound = |m: Month| format!("'{:04}-{:02}-01 00:00:00+00'", m.year, m.month);
    [
        format!("CREATE TABLE IF NOT EXISTS {name} (LIKE {table} INCLUDING ALL)"),
        format!(
            "ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({}) TO ({})",
            bound(month),
            bound(next)
        ),
    ]
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
    fn names_are_read_back() {
        assert_eq!(partition_name("payments", month(2026, 3)), "payments_2026_03");
        assert_eq!(Month::from_suffix("2026_03"), Some(month(2026, 3)));
        assert_eq!(Month::from_suffix("2026_13"), None);
    }

    #[test]
    fn the_bounds_are_the_months_in_utc() {
        let [_, attach] = create_statements("entries", month(2026, 12));
        assert!(
            attach.ends_with("FROM ('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')"),
            "{attach}"
        );
    }

    #[test]
    fn only_months_before_the_kept_ones_retire() {
        let all = [month(2026, 8), month(2026, 9), month(2026, 10), month(2026, 11)];
        assert_eq!(retired(&all, month(2026, 11), 2), vec![month(2026, 8)]);
        assert!(retired(&all, month(2026, 11), 12).is_empty());
    }
}
