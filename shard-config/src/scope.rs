//! What a move is about: ranges of buckets, single tenants, or both. Whatever belongs to a scope is decided by hashes
//! alone, by the same predicate in Rust and in SQL.

use serde::{Deserialize, Serialize};

use crate::bucket::{Bucket, KeyHash};
use crate::key::KeyType;
use crate::map::OVERRIDES_MAX;

/// Canonical: ranges ascend and neither touch nor overlap, hashes ascend, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    ranges: Vec<(u16, u16)>,
    hashes: Vec<KeyHash>,
}

/// Why something is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("{0}..{1} is not a range of buckets")]
    Range(u16, u16),
    #[error("bucket {0} does not exist: there are {1}")]
    Bucket(u16, u16),
    #[error("a scope of {0} single tenants: move their buckets instead")]
    TooManyTenants(usize),
    #[error("not a scope: {0}")]
    Json(String),
}

/// As it is stored: `{"ranges": [[from, to], ...], "hashes": [hash, ...]}`, either of them left out when empty.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<(u16, u16)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<i64>,
}

impl Scope {
    /// Ranges are inclusive and may be given in any order, and overlap; so may hashes.
    pub fn new(ranges: &[(u16, u16)], hashes: &[KeyHash]) -> Result<Self, ScopeError> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (from, to) in sorted {
            if from > to {
                return Err(ScopeError::Range(from, to));
            }
            match merged.last_mut() {
                Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
                _ => merged.push((from, to)),
            }
        }
        let mut hashes = hashes.to_vec();
        hashes.sort_unstable();
        hashes.dedup();
        if hashes.len() > OVERRIDES_MAX {
            return Err(ScopeError::TooManyTenants(hashes.len()));
        }
        Ok(Self { ranges: merged, hashes })
    }

    /// The buckets from one to the other, whichever comes first.
    pub fn of_range(from: u16, to: u16) -> Self {
        Self { ranges: vec![(from.min(to), from.max(to))], hashes: Vec::new() }
    }

    pub fn parse(json: &str) -> Result<Self, ScopeError> {
        // A list would be read as the fields in their order.
        if !json.trim_start().starts_with('{') {
            return Err(ScopeError::Json("an object is expected".to_owned()));
        }
        let stored: Stored = serde_json::from_str(json).map_err(|e| ScopeError::Json(e.to_string()))?;
        let hashes: Vec<KeyHash> = stored.hashes.into_iter().map(KeyHash::new).collect();
        Self::new(&stored.ranges, &hashes)
    }

    pub fn from_json(json: &serde_json::Value) -> Result<Self, ScopeError> {
        Self::parse(&json.to_string())
    }

    pub fn json(&self) -> serde_json::Value {
        let hashes = self.hashes.iter().map(|hash| hash.get()).collect();
        let stored = Stored { ranges: self.ranges.clone(), hashes };
        // Lists of numbers can always be written.
        serde_json::to_value(&stored).unwrap_or_default()
    }

    /// Are all its buckets among so many?
    pub fn fits(&self, buckets: u16) -> Result<(), ScopeError> {
        match self.ranges.last() {
            Some(&(_, last)) if last >= buckets => Err(ScopeError::Bucket(last, buckets)),
            _ => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.hashes.is_empty()
    }

    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    pub fn hashes(&self) -> &[KeyHash] {
        &self.hashes
    }

    /// Is the whole bucket in it?
    pub fn has_range_of(&self, bucket: Bucket) -> bool {
        let bucket = bucket.get();
        self.ranges.iter().any(|&(from, to)| (from..=to).contains(&bucket))
    }

    pub fn contains_hash(&self, hash: KeyHash, buckets: u16) -> bool {
        self.has_range_of(hash.bucket(buckets)) || self.hashes.binary_search(&hash).is_ok()
    }

    /// May a key of this bucket be in it?
    pub fn may_contain_bucket(&self, bucket: Bucket, buckets: u16) -> bool {
        self.has_range_of(bucket) || self.hashes.iter().any(|hash| hash.bucket(buckets) == bucket)
    }

    /// Is there a hash that is in both?
    pub fn intersects(&self, other: &Self, buckets: u16) -> bool {
        let ranges = self.ranges.iter().any(|&(from, to)| {
            other.ranges.iter().any(|&(other_from, other_to)| from <= other_to && other_from <= to)
        });
        ranges
            || self.hashes.iter().any(|hash| other.contains_hash(*hash, buckets))
            || other.hashes.iter().any(|hash| self.contains_hash(*hash, buckets))
    }

    /// The buckets that may have keys in it, ascending.
    pub fn buckets(&self, buckets: u16) -> Vec<Bucket> {
        let whole = self.ranges.iter().flat_map(|&(from, to)| from..=to);
        let single = self.hashes.iter().map(|hash| hash.bucket(buckets).get());
        let mut all: Vec<u16> = whole.chain(single).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().filter_map(|bucket| Bucket::new(bucket, buckets)).collect()
    }

    /// The predicate as a shard computes it; `column` is SQL text. NULL for a key that is NULL.
    pub fn sql(&self, column: &str, key_type: KeyType, buckets: u16) -> String {
        let bucket = key_type.sql(column, buckets);
        let mut parts: Vec<String> = self
            .ranges
            .iter()
            .map(|(from, to)| match from == to {
                true => format!("{bucket} = {from}"),
                false => format!("{bucket} BETWEEN {from} AND {to}"),
            })
            .collect();
        let hash = key_type.sql_hash(column);
        match self.hashes.as_slice() {
            [] => {}
            [one] => parts.push(format!("{hash} = ({one})")),
            several => {
                let list: Vec<String> = several.iter().map(ToString::to_string).collect();
                parts.push(format!("{hash} IN ({})", list.join(", ")));
            }
        }
        match parts.as_slice() {
            [] => "false".to_owned(),
            [one] => one.clone(),
            several => format!("({})", several.join(" OR ")),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.ranges.iter().map(|(from, to)| match from == to {
            true => format!("bucket {from}"),
            false => format!("buckets {from}-{to}"),
        });
        let all: Vec<String> =
            ranges.chain(self.hashes.iter().map(|hash| format!("tenant hash {hash}"))).collect();
        f.write_str(&if all.is_empty() { "nothing".to_owned() } else { all.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUCKETS: u16 = 64;

    fn scope(ranges: &[(u16, u16)], hashes: &[i64]) -> Scope {
        Scope::new(ranges, &hashes.iter().copied().map(KeyHash::new).collect::<Vec<_>>()).expect("a scope")
    }

    #[test]
    fn stored_forms() {
        let one =
            Scope::parse(r#"{"ranges": [[7, 9], [3, 3], [4, 6]], "hashes": [-9223372036854775808, 5, 5]}"#);
        assert_eq!(one, Ok(scope(&[(3, 9)], &[i64::MIN, 5])));
        assert_eq!(
            one.map(|s| s.json()),
            Ok(serde_json::json!({"ranges": [[3, 9]], "hashes": [i64::MIN, 5]}))
        );
        assert_eq!(Scope::parse("{}"), Ok(Scope::default()));
        assert_eq!(Scope::parse(r#"{"ranges": [[9, 7]]}"#), Err(ScopeError::Range(9, 7)));
        for bad in ["", "[]", r#"{"range": []}"#, r#"{"hashes": [1.5]}"#, r#"{"ranges": [[1, 70000]]}"#] {
            assert!(matches!(Scope::parse(bad), Err(ScopeError::Json(_))), "{bad}");
        }
        assert_eq!(scope(&[(3, 64)], &[]).fits(BUCKETS), Err(ScopeError::Bucket(64, 64)));
        assert_eq!(scope(&[(0, 3), (9, 9)], &[-7]).to_string(), "buckets 0-3, bucket 9, tenant hash -7");
    }

    #[test]
    fn as_sql() {
        let sql = |scope: Scope| scope.sql("k", KeyType::Int8, 4096);
        assert_eq!(
            sql(scope(&[(1, 2), (9, 9)], &[-5])),
            "((hashint8extended(k, 8816678312871386365) & 4095) BETWEEN 1 AND 2 \
             OR (hashint8extended(k, 8816678312871386365) & 4095) = 9 OR hashint8extended(k, 8816678312871386365) = (-5))"
        );
        assert_eq!(sql(scope(&[], &[1, -2])), "hashint8extended(k, 8816678312871386365) IN (-2, 1)");
        assert_eq!(sql(Scope::default()), "false");
    }

    fn any() -> impl Strategy<Value = Scope> {
        let range = (0..BUCKETS, 0u16..6).prop_map(|(from, len)| (from, (from + len).min(BUCKETS - 1)));
        let hashes = prop::collection::vec(-200i64..200, 0..4);
        (prop::collection::vec(range, 0..4), hashes).prop_map(|(ranges, hashes)| scope(&ranges, &hashes))
    }

    proptest! {
        #[test]
        fn print_and_parse(scope in any()) {
            prop_assert_eq!(Scope::from_json(&scope.json()), Ok(scope));
        }

        #[test]
        fn all_questions_agree_with_membership(a in any(), b in any()) {
            let hashes: Vec<KeyHash> = (-400..400).map(KeyHash::new).collect();
            let within = |scope: &Scope| -> Vec<KeyHash> {
                hashes.iter().copied().filter(|hash| scope.contains_hash(*hash, BUCKETS)).collect()
            };
            let (of_a, of_b) = (within(&a), within(&b));
            prop_assert_eq!(a.intersects(&b, BUCKETS), of_a.iter().any(|hash| of_b.contains(hash)));
            prop_assert_eq!(a.is_empty(), of_a.is_empty());
            for bucket in (0..BUCKETS).filter_map(|n| Bucket::new(n, BUCKETS)) {
                let some = of_a.iter().any(|hash| hash.bucket(BUCKETS) == bucket);
                prop_assert_eq!(a.may_contain_bucket(bucket, BUCKETS), some);
                prop_assert_eq!(a.buckets(BUCKETS).contains(&bucket), some);
                let every = hashes.iter().filter(|hash| hash.bucket(BUCKETS) == bucket).all(|hash| of_a.contains(hash));
                prop_assert!(!a.has_range_of(bucket) || every);
            }
        }
    }
}
