//! One shard's catalog, as read: seven queries, no judgement. `build` judges.

use std::collections::BTreeMap;

use anyhow::ensure;
use tokio_postgres::Client;

use super::limits::CATALOG_RELATIONS_MAX;

#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawCatalog {
    /// By (schema, name).
    pub(super) relations: BTreeMap<(String, String), RawRelation>,
    pub(super) functions: Vec<RawFunction>,
    /// `pg_type.oid` by (schema, name), of what users have created.
    pub(super) types: BTreeMap<(String, String), u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RawRelation {
    /// `pg_class.oid`.
    pub(super) oid: u32,
    /// `pg_class.relkind`: r p v m f S
    pub(super) kind: char,
    /// Has enabled rewrite rules; false for views, whose own is one.
    pub(super) rules: bool,
    pub(super) definition: Option<String>,
    /// Constraints and partition bound, as the server prints them, sorted.
    pub(super) constraints: Vec<String>,
    pub(super) columns: Vec<RawColumn>,
    /// (trigger, function's schema, function's name), enabled user triggers.
    pub(super) triggers: Vec<(String, String, String)>,
    /// (what, function's schema, function's name) of what a default, a CHECK or a domain's CHECK calls. Functions of
    /// the system are not among them.
    pub(super) expressions: Vec<(String, String, String)>,
    /// The same of row-level-security policies that are in force.
    pub(super) policies: Vec<(String, String, String)>,
    /// Such policies that hold a query.
    pub(super) policy_queries: Vec<String>,
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

/// Constraints only to be compared.
fn relations_sql() -> String {
    let constraint = shard_config::CONSTRAINT_SQL;
    format!(
        "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
    -- `relhasrules` stays true after the last rule was dropped, until the next VACUUM.
    c.relhasrules AND c.relkind NOT IN ('v', 'm') AND EXISTS (
        SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN' AND w.ev_enabled <> 'D'),
    CASE WHEN c.relkind = 'v' AND NOT $1 THEN pg_get_viewdef(c.oid) END,
    CASE WHEN $1 THEN '{{}}' ELSE ARRAY(
        SELECT {constraint}
        FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'x', 'c') ORDER BY 1) END
    || CASE WHEN c.relpartbound IS NULL THEN '{{}}' ELSE ARRAY[pg_get_expr(c.relpartbound, c.oid)] END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'
    AND (n.nspname IN ('pg_catalog', 'information_schema')) = $1"
    )
}

/// Not the guards of rows that are being moved: they refuse or let pass, are on two shards only, and come and go.
const TRIGGERS: &str = "
SELECT t.tgrelid::int8, t.tgname::text, fn.nspname::text, f.proname::text
FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace fn ON fn.oid = f.pronamespace
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND fn.nspname <> 'shard_catalog' ORDER BY t.tgrelid, t.tgname";

/// `pg_depend` knows every function that an expression needs, but those that came with the system, which are pinned.
/// An operator stands for its function. The flag: it is a policy.
const EXPRESSIONS: &str = "
WITH uses (relation, what, class, object) AS (
    SELECT d.adrelid, 'the default of column ' || a.attname, 'pg_attrdef'::regclass, d.oid
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    UNION ALL
    SELECT k.conrelid, 'constraint ' || k.conname, 'pg_constraint'::regclass, k.oid
    FROM pg_constraint k WHERE k.contype = 'c' AND k.conrelid <> 0
    UNION ALL
    SELECT a.attrelid, 'the type of column ' || a.attname, 'pg_constraint'::regclass, k.oid
    FROM pg_constraint k JOIN pg_attribute a ON a.atttypid = k.contypid
    WHERE k.contypid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT p.polrelid, 'policy ' || p.polname, 'pg_policy'::regclass, p.oid
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE c.relrowsecurity
)
SELECT DISTINCT u.relation::int8, u.what, n.nspname::text, f.proname::text, u.class = 'pg_policy'::regclass
FROM uses u JOIN pg_depend d ON d.classid = u.class AND d.objid = u.object
LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
JOIN pg_proc f ON f.oid = CASE WHEN d.refclassid = 'pg_proc'::regclass THEN d.refobjid ELSE o.oprcode::oid END
JOIN pg_namespace n ON n.oid = f.pronamespace
ORDER BY 1, 2, 3, 4";

/// A query within a policy is a SubLink node of src/include/nodes/primnodes.h. `pg_depend` would not tell one on the
/// policy's own table from a column.
const POLICY_QUERIES: &str = "
SELECT p.polrelid::int8, 'policy ' || p.polname
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
WHERE c.relrowsecurity AND (p.polqual::text LIKE '%{SUBLINK %' OR p.polwithcheck::text LIKE '%{SUBLINK %')
ORDER BY 1, 2";

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

/// Arrays and row types too.
const TYPES: &str = "
SELECT n.nspname::text, t.typname::text, t.oid::int8
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid >= 16384 AND n.nspname NOT LIKE 'pg\\_%'";

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
    let user = async |sql: &str| match part {
        Part::System => Ok(Vec::new()),
        Part::User => transaction.query(sql, &[]).await,
    };
    let (relations, columns, functions, triggers, expressions, policy_queries, types) = (
        transaction.query(&relations_sql(), &[&system]).await?,
        transaction.query(COLUMNS, &[&system]).await?,
        transaction.query(FUNCTIONS, &[&system]).await?,
        user(TRIGGERS).await?,
        user(EXPRESSIONS).await?,
        user(POLICY_QUERIES).await?,
        user(TYPES).await?,
    );
    transaction.commit().await?;
    ensure!(
        relations.len() <= CATALOG_RELATIONS_MAX,
        "{} relations are more than the proxy reads",
        relations.len()
    );

    let mut by_oid: BTreeMap<i64, ((String, String), RawRelation)> = BTreeMap::new();
    for row in relations {
        let oid: i64 = row.try_get(0)?;
        let relation = RawRelation {
            oid: oid as u32,
            kind: first_char(row.try_get(3)?),
            rules: row.try_get(4)?,
            definition: row.try_get(5)?,
            constraints: row.try_get(6)?,
            columns: Vec::new(),
            triggers: Vec::new(),
            expressions: Vec::new(),
            policies: Vec::new(),
            policy_queries: Vec::new(),
        };
        by_oid.insert(oid, ((row.try_get(1)?, row.try_get(2)?), relation));
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
    for row in expressions {
        if let Some((_, relation)) = by_oid.get_mut(&row.try_get(0)?) {
            let calls = if row.try_get(4)? { &mut relation.policies } else { &mut relation.expressions };
            calls.push((row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
        }
    }
    for row in policy_queries {
        if let Some((_, relation)) = by_oid.get_mut(&row.try_get(0)?) {
            relation.policy_queries.push(row.try_get(1)?);
        }
    }
    let mut catalog = RawCatalog { relations: by_oid.into_values().collect(), ..RawCatalog::default() };
    for row in types {
        catalog.types.insert((row.try_get(0)?, row.try_get(1)?), row.try_get::<_, i64>(2)? as u32);
    }
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
