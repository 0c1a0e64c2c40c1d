//! PostgreSQL's own functions that are not what their volatility says, and extensions known to touch no table.

use crate::catalog::{FunctionRoute, Volatility};

/// State that exists once for the cluster: on the default shard (H10, H26).
const DEFAULT_SHARD: &[&str] =
    &["currval", "lastval", "nextval", "setval", "pg_notify", "pg_sequence_last_value", "loread", "lowrite"];
const DEFAULT_SHARD_PREFIXES: &[&str] = &["pg_advisory_", "pg_try_advisory_", "lo_"];

/// They run a query given as text, or speak of one server only: an answer of one shard would be a silent part.
const OPAQUE: &[&str] = &[
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "database_to_xmlschema",
    "pg_cancel_backend",
    "pg_database_size",
    "pg_export_snapshot",
    "pg_indexes_size",
    "pg_relation_size",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_terminate_backend",
    "pg_total_relation_size",
    "query_to_xml",
    "query_to_xml_and_xmlschema",
    "query_to_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "schema_to_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "table_to_xmlschema",
    "ts_stat",
];

/// Extensions whose functions compute from their arguments (or from randomness) and read no table.
const LOCAL_EXTENSIONS: &[&str] = &[
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "seg",
    "unaccent",
    "uuid-ossp",
];

pub(super) fn route(name: &str, volatility: Volatility) -> FunctionRoute {
    if DEFAULT_SHARD.contains(&name) || DEFAULT_SHARD_PREFIXES.iter().any(|p| name.starts_with(p)) {
        FunctionRoute::DefaultShard
    } else if OPAQUE.contains(&name) || (name == "ts_rewrite" && volatility == Volatility::Volatile) {
        // ts_rewrite(query, target, substitute) computes; the form with two arguments runs a SELECT given as text.
        FunctionRoute::Opaque
    } else {
        FunctionRoute::Local
    }
}

pub(super) fn extension_is_local(name: &str) -> bool {
    LOCAL_EXTENSIONS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h10_advisory_locks_and_sequences_have_one_home() {
        for name in [
            "pg_advisory_lock",
            "pg_advisory_xact_lock_shared",
            "pg_try_advisory_lock",
            "nextval",
            "lo_import",
        ] {
            assert_eq!(route(name, Volatility::Volatile), FunctionRoute::DefaultShard, "{name}");
        }
        assert_eq!(route("log", Volatility::Immutable), FunctionRoute::Local);
        assert_eq!(route("lower", Volatility::Immutable), FunctionRoute::Local);
    }

    #[test]
    fn what_runs_a_query_given_as_text_is_opaque() {
        assert_eq!(route("query_to_xml", Volatility::Volatile), FunctionRoute::Opaque);
        assert_eq!(route("ts_rewrite", Volatility::Volatile), FunctionRoute::Opaque);
        assert_eq!(route("ts_rewrite", Volatility::Immutable), FunctionRoute::Local);
    }
}
