//! Sets of buckets as people write them and as they are stored: ranges, both ends included, ascending and apart from each
//! other.

/// As few ranges as possible; buckets ascend.
pub fn of(buckets: impl IntoIterator<Item = u16>) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for bucket in buckets {
        match ranges.last_mut() {
            Some((_, to)) if *to + 1 == bucket => *to = bucket,
            _ => ranges.push((bucket, bucket)),
        }
    }
    ranges
}

/// Why a text names no buckets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("buckets \"{0}\": write FROM-TO, or several of them, e.g. 0-511 or 0-9,40-49,77")]
pub struct NoRanges(String);

/// `0-9,40-49,77`, in the order in which they are written: whether they are buckets of a map says who has the map.
pub fn parse(text: &str) -> Result<Vec<(u16, u16)>, NoRanges> {
    let one = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    text.split(',').map(one).collect::<Option<_>>().ok_or_else(|| NoRanges(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(of([]), []);
        assert_eq!(of([0, 1, 2, 7, 9, 10]), [(0, 2), (7, 7), (9, 10)]);
    }

    #[test]
    fn several_ranges_and_single_buckets_are_read() {
        assert_eq!(parse("0-9,40-49,77"), Ok(vec![(0, 9), (40, 49), (77, 77)]));
        assert_eq!(parse(" 5 , 3 - 4 "), Ok(vec![(5, 5), (3, 4)]));
        for wrong in ["", "abc", "1-2-3", "1,", ",1", "-1", "1-", "70000", "1;2"] {
            let why = parse(wrong).expect_err(wrong).to_string();
            assert!(why.contains(&format!("\"{wrong}\": write FROM-TO")), "{why}");
        }
    }
}
