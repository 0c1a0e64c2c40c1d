//! Which definitions must wait for the end of a move: what is copied between two shards must stay what it is, and nothing new
//! may come up that would not be copied. PURE.

use crate::catalog::{Catalog, Declared, TableKind};
use crate::route::plan::{Changes, Effect, Plan};

/// What is done on all shards as definitions are, and is about no row and no column: it goes on while buckets move, and no move
/// waits for it.
pub(super) fn leaves_rows(text: &[u8]) -> bool {
    let first = text.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    let words = ["vacuum", "analyze", "analyse", "reindex", "comment", "grant", "revoke"];
    words.iter().any(|word| first.eq_ignore_ascii_case(word.as_bytes()))
}

/// Is the definition about rows that may be on their way? In doubt, it is. (Not asked about what `leaves_rows`.)
pub(super) fn changes_rows(plan: &Plan, text: &[u8], catalog: &Catalog) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let first = words.first().copied().unwrap_or_default();
    let sharded = |name: &str| {
        let same = |(_, known): &(String, String)| known.to_lowercase() == name.to_lowercase();
        catalog
            .tables
            .iter()
            .any(|(known, table)| same(known) && matches!(table.kind, TableKind::Sharded { .. }))
    };
    let names = |names: &[String]| names.iter().any(|name| sharded(name));
    if plan.effect != Effect::CreatesObject {
        // TRUNCATE and LOCK.
        return first == "truncate" && (plan.tables.names.is_empty() || names(&plan.tables.names));
    }
    match &plan.changes {
        Some(Changes::Unknown) => true,
        // An index, whose table only the text names; a role, a type, a sequence, which have no rows.
        None => words.iter().any(|word| sharded(word)),
        Some(Changes::Relations(changed)) => {
            let creates = first == "create" && words.contains(&"table");
            names(changed)
                || names(&plan.tables.names)
                || (creates && changed.iter().any(|name| may_be_sharded(name, &words, catalog)))
        }
    }
}

/// A table that is about to be created.
fn may_be_sharded(name: &str, words: &[&str], catalog: &Catalog) -> bool {
    let declared =
        catalog.declared.iter().find(|((_, known), _)| known == name).map(|(_, declared)| declared);
    match declared {
        Some(Declared::Sharded { .. }) => true,
        Some(Declared::Reference | Declared::Plain) => false,
        // Its columns may also come from elsewhere.
        None => catalog.key_column.as_ref().is_some_and(|(column, _)| {
            let column = column.to_ascii_lowercase();
            let elsewhere = ["like", "partition", "inherits", "as", "of"];
            words.iter().any(|word| *word == column || elsewhere.contains(word))
        }),
    }
}
