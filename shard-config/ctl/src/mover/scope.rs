//! What a move moves: ranges of buckets, or single keys by their full hash. PURE.
//!
//! One predicate over the hash decides everywhere, in triggers, publications, digests and clean-up alike, so a tenant
//! never needs its spelling and no two places can disagree about a row.

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::KeyType;

/// Inclusive ranges of buckets and full signed hashes of single keys. Not empty, sorted, nothing twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub ranges: Vec<(u16, u16)>,
    pub hashes: Vec<i64>,
}

impl Scope {
    pub fn new(mut ranges: Vec<(u16, u16)>, mut hashes: Vec<i64>) -> anyhow::Result<Self> {
        anyhow::ensure!(!ranges.is_empty() || !hashes.is_empty(), "there is nothing to move");
        ranges.sort_unstable();
        hashes.sort_unstable();
        hashes.dedup();
        for &(from, to) in &ranges {
            anyhow::ensure!(from <= to, "buckets {from} to {to} are not a range");
        }
        for pair in ranges.windows(2) {
            anyhow::ensure!(pair[0].1 < pair[1].0, "bucket {} is named twice", pair[1].0);
        }
        Ok(Self { ranges, hashes })
    }

    pub fn of_range(from: u16, to: u16) -> Self {
        Self { ranges: vec![(from, to)], hashes: Vec::new() }
    }

    pub fn json(&self) -> Value {
        json!({ "ranges": self.ranges, "hashes": self.hashes })
    }

    pub fn from_json(value: &Value) -> anyhow::Result<Self> {
        let list = |name: &str| value.get(name).cloned().unwrap_or_else(|| json!([]));
        let ranges = serde_json::from_value(list("ranges")).context("the scope's ranges")?;
        let hashes = serde_json::from_value(list("hashes")).context("the scope's hashes")?;
        Self::new(ranges, hashes)
    }

    /// As the proxy knows it.
    fn shared(&self) -> shard_config::scope::Scope {
        let hashes: Vec<_> = self.hashes.iter().map(|&hash| shard_config::KeyHash::new(hash)).collect();
        // A scope was checked when it was made; an empty one has no row.
        shard_config::scope::Scope::new(&self.ranges, &hashes).unwrap_or_default()
    }

    /// The condition under which a row whose key is `column` (already quoted) belongs to the scope: the proxy's own, of
    /// built-in immutable functions only, because PostgreSQL accepts nothing else in a publication's row filter.
    pub fn sql(&self, column: &str, key: KeyType, buckets: u16) -> String {
        format!("({})", self.shared().sql(column, key, buckets))
    }

    /// Whether some key may belong to both.
    pub fn meets(&self, other: &Self, buckets: u16) -> bool {
        self.shared().intersects(&other.shared(), buckets)
    }
}

/// The full hash of a key as a shard computes it.
pub fn hash_sql(column: &str, key: KeyType) -> String {
    key.sql_hash(column)
}

/// The full hash of a key as text; `None`: PostgreSQL would not take this text for the type.
pub fn hash_of_key(key: KeyType, text: &str) -> Option<i64> {
    key.hash_of_text_value(text.as_bytes()).map(shard_config::KeyHash::get)
}

pub fn bucket_of(hash: i64, buckets: u16) -> u16 {
    (hash as u64 & u64::from(buckets - 1)) as u16
}

/// For people: `buckets 0-511, 600` or `tenant hash 42`.
impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if !self.ranges.is_empty() {
            let ranges: Vec<_> = self
                .ranges
                .iter()
                .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
                .collect();
            parts.push(format!("buckets {}", ranges.join(", ")));
        }
        if !self.hashes.is_empty() {
            let hashes: Vec<_> = self.hashes.iter().map(i64::to_string).collect();
            parts.push(format!("tenant hash {}", hashes.join(", ")));
        }
        f.write_str(&parts.join(" and "))
    }
}

/// A name as SQL reads it.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL reads it, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    if text.contains('\\') { format!("E'{escaped}'") } else { format!("'{escaped}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_round_trips_and_is_checked() {
        let scope = Scope::new(vec![(8, 9), (0, 3)], vec![5, -7, 5]).unwrap();
        assert_eq!((&scope.ranges[..], &scope.hashes[..]), (&[(0, 3), (8, 9)][..], &[-7, 5][..]));
        assert_eq!(Scope::from_json(&scope.json()).unwrap(), scope);
        assert_eq!(scope.to_string(), "buckets 0-3, 8-9 and tenant hash -7, 5");
        assert!(Scope::new(vec![], vec![]).is_err());
        assert!(Scope::new(vec![(3, 2)], vec![]).is_err());
        assert!(Scope::new(vec![(0, 3), (3, 4)], vec![]).is_err());
        assert!(Scope::from_json(&json!({"ranges": [[0, 70000]]})).is_err());
    }

    #[test]
    fn scopes_that_share_a_key_meet() {
        let range = |from, to| Scope::of_range(from, to);
        let hash = |hash| Scope::new(vec![], vec![hash]).unwrap();
        assert!(range(0, 3).meets(&range(3, 4), 16));
        assert!(!range(0, 3).meets(&range(4, 4), 16));
        assert!(range(0, 3).meets(&hash(18), 16), "18 & 15 = 2");
        assert!(hash(-1).meets(&range(15, 15), 16), "the mask takes the low bits of a negative hash");
        assert!(!hash(20).meets(&range(0, 3), 16));
        assert!(hash(1).meets(&hash(1), 16) && !hash(1).meets(&hash(17), 16));
    }

    #[test]
    fn the_predicate_is_built_in_sql() {
        let scope = Scope::new(vec![(0, 3)], vec![]).unwrap();
        assert_eq!(
            scope.sql("\"id\"", KeyType::Int8, 16),
            "((hashint8extended(\"id\", 8816678312871386365) & 15) BETWEEN 0 AND 3)"
        );
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
    }
}
