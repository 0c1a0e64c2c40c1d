//! What a move moves: ranges of buckets, or single keys by their full hash. PURE.
//!
//! One predicate over the hash decides everywhere, in triggers, publications, digests and clean-up alike, so a tenant
//! never needs its spelling and no two places can disagree about a row.

use shard_config::KeyType;
pub use shard_config::{KeyHash, Scope};

/// What an operator, a plan or the catalog says, checked: something is moved, and nothing is named twice.
pub fn checked(ranges: &[(u16, u16)], hashes: &[KeyHash]) -> anyhow::Result<Scope> {
    anyhow::ensure!(!ranges.is_empty() || !hashes.is_empty(), "there is nothing to move");
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        anyhow::ensure!(pair[0].1 < pair[1].0, "bucket {} is named twice", pair[1].0);
    }
    Ok(Scope::new(ranges, hashes)?)
}

/// The full hash of a key as a shard computes it.
pub fn hash_sql(column: &str, key: KeyType) -> String {
    key.sql_hash(column)
}

/// The full hash of a key as text; `None`: PostgreSQL would not take this text for the type.
pub fn hash_of_key(key: KeyType, text: &str) -> Option<KeyHash> {
    key.hash_of_text_value(text.as_bytes())
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
    fn a_scope_is_checked() {
        let hashes = [5, -7, 5].map(KeyHash::new);
        assert_eq!(
            checked(&[(8, 9), (0, 3)], &hashes).unwrap().to_string(),
            "buckets 0-3, buckets 8-9, tenant hash -7, tenant hash 5"
        );
        for ranges in [&[][..], &[(3, 2)], &[(0, 3), (3, 4)]] {
            assert!(checked(ranges, &[]).is_err(), "{ranges:?}");
        }
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
    }
}
