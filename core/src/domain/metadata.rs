//! What a client attaches to a payment: a flat map of strings. Numbers are refused, because a number that passes through
//! a double or through jsonb comes back as another text, and a replay must return the same bytes.

use std::collections::BTreeMap;

/// Sorted by key, so that equal maps have equal texts.
pub type Metadata = BTreeMap<String, String>;

/// The canonical JSON text.
pub fn to_json(metadata: &Metadata) -> String {
    serde_json::to_string(metadata).unwrap_or_else(|_| "{}".into())
}
