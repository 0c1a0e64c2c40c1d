//! The schema as routing sees it: which tables are sharded, by which column, and what functions do.
//!
//! PURE: this file knows no socket. `control/` fills it from the shards' catalogs, `route/` reads it.

use rustc_hash::FxHashMap;
use shard_config::KeyType;

use crate::oids::OidMap;

/// What the proxy knows of one database's schema. Immutable; a new one replaces it when the schema changes.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    /// Grows with every change seen; part of the plan cache's key (H25, H39).
    pub version: u64,
    /// By (schema, name).
    pub tables: FxHashMap<(String, String), Table>,
    /// By (schema, name); several overloads share an entry. Holds every `pg_proc` row, `pg_catalog` included
    /// (aggregates and window functions too): a name that is not here does not exist.
    pub functions: FxHashMap<(String, String), Vec<Function>>,
    /// Name and type of the sharding key, as configured: says whether a table about to be created will be sharded.
    /// `None`: only tables declared in the configuration are.
    pub key_column: Option<(String, KeyType)>,
    /// By shard id: what a shard numbers otherwise than the default shard (H23). Shards that do not are left out.
    pub oids: FxHashMap<u16, OidMap>,
    /// What the configuration says of tables, existing or not; overrides the key column's rule.
    pub declared: FxHashMap<(String, String), Declared>,
    /// By table: what is unique, or refers to rows of its own shard, by the way in which values are made (H11).
    pub unique_by_construction: FxHashMap<(String, String), Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    Sharded { column: String, key_type: KeyType },
    Reference,
    Plain,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub kind: TableKind,
    /// In attnum order, dropped columns left out.
    pub columns: Vec<Column>,
    /// The view's query as `pg_get_viewdef` prints it under an EMPTY search_path, so that every name but those of
    /// `pg_catalog` is qualified; `None` for tables.
    pub view_definition: Option<String>,
    /// What runs when the table is written and is not known to stay on its own shard: a user trigger or a rule; of
    /// sharded and reference tables also a default, a constraint or a policy (H9).
    pub opaque_trigger: Option<String>,
    /// A row-level-security policy of a sharded or reference table that may look at other rows: a read would see
    /// what its shard has of them (H9).
    pub opaque_policy: Option<String>,
    /// Set when shards disagree on this table's definition; routing refuses it (H39).
    pub drift: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    /// `pg_type.oid` on the default shard.
    pub type_oid: u32,
    pub not_null: bool,
    /// Has a DEFAULT, or is identity/generated.
    pub has_default: bool,
    /// The default is not the same everywhere (nextval, now(), random ...; identity): a reference table's row must
    /// then name the column. `true` when in doubt.
    pub volatile_default: bool,
    /// The default is drawn from a sequence, or the column is an identity: `nextval` on its shard would give numbers that
    /// other shards give, too (H26).
    pub draws: bool,
    /// SQL that draws its next value on the default shard, if the default is no more than that.
    pub draw: Option<String>,
    /// GENERATED ALWAYS AS (...) STORED: not among the columns of a COPY without a column list.
    pub generated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableKind {
    /// Rows live where the key column's bucket lives. `key_index` indexes `Table::columns`.
    Sharded {
        key_index: usize,
        key_type: KeyType,
    },
    /// Same rows on every shard.
    Reference,
    /// Lives on the default shard.
    Plain,
    /// `pg_catalog`, `information_schema`: answered by the default shard.
    System,
    View,
}

#[derive(Debug, Clone)]
pub struct Function {
    pub volatility: Volatility,
    /// Number of declared input arguments; `None` when variadic.
    pub arguments: Option<usize>,
    /// How many of them have a default.
    pub defaults: usize,
    /// Makes one row of many: its answer over all shards is not the answers of the shards.
    pub aggregate: bool,
    pub route: FunctionRoute,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// How a call constrains the shard (H9, H31).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionRoute {
    /// Touches no table (built-ins, IMMUTABLE): runs wherever the statement runs.
    Local,
    /// Runs on the default shard's primary only (advisory locks, plain-table functions).
    DefaultShard,
    /// Argument `argument` (0-based) is the key, or an array of keys when `array`.
    Keyed { argument: usize, array: bool, key_type: KeyType },
    /// May touch any table: refused until it is declared in the configuration.
    Opaque,
}
