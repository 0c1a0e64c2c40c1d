//! One shard's catalog, as read: four queries, no judgement. `build` judges.

use std::collections::BTreeMap;

use anyhow::ensure;
use tokio_postgres::Client;

use super::limits::CATALOG_RELATIONS_MAX;

#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawCatalog {
    /// By (schema, name).
    pub(super) relations: BTreeMap<(String, String), RawRelation>,
    pub(super) functions: Vec<RawFunction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawRelation {
    /// `pg_class.relkind`: r p v m f S
    pub(super) kind: char,
    /// Has rewrite rules beyond a view's own.
    pub(super) rules: bool,
    pub(super) definition: Option<String>,
    /// Constraints and partition bound, as the server prints them, sorted.
    pub(super) constraints: Vec<String>,
    pub(super) columns: Vec<RawColumn>,
    /// (trigger, function's schema, function's name), enabled user triggers.
    pub(super) triggers: Vec<(String, String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawColumn {
    pub(super) name: String,
    pub(super) type_oid: u32,
    /// As `format_type` prints it: the same on all shards, unlike the OID of a user's type (H23).
    pub(super) type_name: String,
    /// `pg_type.typname` of the type, or of the base type of a domain.
    pub(super) base_type: String,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    /// GENERATED ALWAYS AS (...) STORED.
    pub(super) generated: bool,
    /// The default's expression, as the server prints it; `None` for identity.
    pub(super) default: Option<String>,
    /// Equal values have equal bytes (false for non-deterministic collations).
    pub(super) deterministic: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawFunction {
    pub(super) schema: String,
    pub(super) name: String,
    /// `pg_proc.provolatile`: i s v
    pub(super) volatility: char,
    /// `None` when variadic.
    pub(super) arguments: Option<usize>,
    pub(super) defaults: usize,
    /// `pg_proc.prokind` is 'a'.
    pub(super) aggregate: bool,
    pub(super) language: String,
    pub(super) extension: Option<String>,
}

/// Which part of the catalog: the system's own never changes while a server runs and is read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    System,
    User,
}

const RELATIONS: &str = "
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
    c.relhasrules AND c.relkind NOT IN ('v', 'm'),
    CASE WHEN c.relkind = 'v' AND NOT $1 THEN pg_get_viewdef(c.oid) END,
    CASE WHEN $1 THEN '{}' ELSE ARRAY(
        SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'x', 'c') ORDER BY 1) END
    || CASE WHEN c.relpartbound IS NULL THEN '{}' ELSE ARRAY[pg_get_expr(c.relpartbound, c.oid)] END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'
    AND (n.nspname IN ('pg_catalog', 'information_schema')) = $1";

const TRIGGERS: &str = "
SELECT t.tgrelid::int8, t.tgname::text, fn.nspname::text, f.proname::text
FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace fn ON fn.oid = f.pronamespace
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY t.tgrelid, t.tgname";

const COLUMNS: &str = "
SELECT a.attrelid::int8, a.attname::text, a.atttypid::int8, format_type(a.atttypid, a.atttypmod),
    coalesce(b.typname, t.typname)::text, a.attnotnull OR t.typnotnull, a.atthasdef OR a.attidentity <> '',
    coalesce(l.collisdeterministic, true), a.attgenerated <> '', pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    AND c.relpersistence <> 't' AND (n.nspname IN ('pg_catalog', 'information_schema')) = $1
ORDER BY a.attrelid, a.attnum";

const FUNCTIONS: &str = "
SELECT n.nspname::text, p.proname::text, p.provolatile::text, p.pronargs::int4, p.provariadic <> 0, l.lanname::text,
    e.extname::text, p.pronargdefaults::int4, p.prokind = 'a'
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    AND d.refclassid = 'pg_extension'::regclass
LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE (n.nspname IN ('pg_catalog', 'information_schema')) = $1
ORDER BY 1, 2, p.pronargs, p.oid";

/// Reads in one snapshot, so that a DDL in between is seen whole or not at all.
pub(super) async fn read(client: &mut Client, part: Part) -> anyhow::Result<RawCatalog> {
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    // View definitions are printed with every schema named, whatever the role's search_path is.
    transaction.batch_execute("SET LOCAL search_path = pg_catalog; SET LOCAL jit = off").await?;
    let system = part == Part::System;
    let (relations, columns, functions, triggers) = (
        transaction.query(RELATIONS, &[&system]).await?,
        transaction.query(COLUMNS, &[&system]).await?,
        transaction.query(FUNCTIONS, &[&system]).await?,
        if system { Vec::new() } else { transaction.query(TRIGGERS, &[]).await? },
    );
    transaction.commit().await?;
    ensure!(
        relations.len() <= CATALOG_RELATIONS_MAX,
        "{} relations are more than the proxy reads",
        relations.len()
    );

    let mut by_oid: BTreeMap<i64, ((String, String), RawRelation)> = BTreeMap::new();
    for row in relations {
        let relation = RawRelation {
            kind: first_char(row.try_get(3)?),
            rules: row.try_get(4)?,
            definition: row.try_get(5)?,
            constraints: row.try_get(6)?,
            columns: Vec::new(),
            triggers: Vec::new(),
        };
        by_oid.insert(row.try_get(0)?, ((row.try_get(1)?, row.try_get(2)?), relation));
    }
    for row in columns {
        if let Some((_, relation)) = by_oid.get_mut(&row.try_get(0)?) {
            relation.columns.push(RawColumn {
                name: row.try_get(1)?,
                type_oid: row.try_get::<_, i64>(2)? as u32,
                type_name: row.try_get(3)?,
                base_type: row.try_get(4)?,
                not_null: row.try_get(5)?,
                has_default: row.try_get(6)?,
                deterministic: row.try_get(7)?,
                generated: row.try_get(8)?,
                default: row.try_get(9)?,
            });
        }
    }
    for row in triggers {
        if let Some((_, relation)) = by_oid.get_mut(&row.try_get(0)?) {
            relation.triggers.push((row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
        }
    }
    let mut catalog = RawCatalog { relations: by_oid.into_values().collect(), functions: Vec::new() };
    for row in functions {
        let count: i32 = row.try_get(3)?;
        let variadic: bool = row.try_get(4)?;
        catalog.functions.push(RawFunction {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
            volatility: first_char(row.try_get(2)?),
            arguments: (!variadic).then_some(count as usize),
            language: row.try_get(5)?,
            extension: row.try_get(6)?,
            defaults: row.try_get::<_, i32>(7)? as usize,
            aggregate: row.try_get(8)?,
        });
    }
    Ok(catalog)
}

fn first_char(text: String) -> char {
    text.chars().next().unwrap_or(' ')
}
