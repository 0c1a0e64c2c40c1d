//! Which tables hold rows of a scope, what identifies a row of theirs, and whether both shards define them alike.

use std::collections::BTreeMap;

use shard_config::{Config, KeyType, TableKind};

use super::scope::{Scope, ident};
use crate::direct::Db;

/// A sharded table; a partitioned one stands for its partitions.
#[derive(Debug, Clone)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub partitioned: bool,
    pub key_column: String,
    pub key_type: KeyType,
    /// Columns of the primary key with their types, in its order, without those that it only includes. Empty if replication
    /// could not tell rows by it.
    pub primary_key: Vec<(String, String)>,
    /// Columns that are stored (not generated ones), by name, so that both shards say them in one order.
    pub columns: Vec<String>,
    /// Of all partitions, with toast and without indexes.
    pub bytes: i64,
    /// PostgreSQL's estimate.
    pub rows: i64,
}

impl Table {
    /// As SQL reads it.
    pub fn sql(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }

    /// For people, and for `pgoutput`'s relations.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether a row (of alias `row`, with the dot, or none) belongs to `scope`.
    pub fn predicate(&self, row: &str, scope: &Scope, buckets: u16) -> String {
        format!("({})", scope.sql(&format!("{row}{}", ident(&self.key_column)), self.key_type, buckets))
    }

    /// One text for the whole row (of alias `row`, with the dot, or none), equal on both shards for equal rows.
    pub fn row_text(&self, row: &str) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| format!("{row}{}", ident(column))).collect();
        format!("ROW({})::text", columns.join(", "))
    }

    /// One text for the primary key.
    pub fn key_text(&self) -> String {
        let columns: Vec<_> = self.primary_key.iter().map(|(column, _)| ident(column)).collect();
        format!("ROW({})::text", columns.join(", "))
    }
}

/// Every table of the shard whose rows are placed by the sharding key.
pub async fn sharded(db: &Db, config: &Config) -> anyhow::Result<Vec<Table>> {
    let rules: BTreeMap<&str, &shard_config::TableRule> =
        config.tables.iter().map(|rule| (rule.name.as_str(), rule)).collect();
    let sql = "SELECT n.nspname::text, c.relname::text, c.relkind = 'p',
            array(SELECT a.attname::text FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attname),
            array(SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attname),
            array(SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
                    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                   WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND k.n <= i.indnkeyatts ORDER BY k.n),
            pg_table_size(c.oid) + (SELECT coalesce(sum(pg_table_size(t.relid)), 0)::int8 FROM pg_partition_tree(c.oid) t WHERE t.isleaf),
            (greatest(c.reltuples, 0) + (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0) FROM pg_partition_tree(c.oid) t
               JOIN pg_class l ON l.oid = t.relid WHERE t.isleaf AND c.relkind = 'p')
               - CASE WHEN c.relkind = 'p' THEN greatest(c.reltuples, 0) ELSE 0 END)::int8
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
          AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog')
        ORDER BY 1, 2";
    let mut tables = Vec::new();
    for row in db.rows(sql, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let columns: Vec<String> = row.try_get(3)?;
        let types: Vec<String> = row.try_get(4)?;
        let rule = rules.get(format!("{schema}.{name}").as_str());
        if rule.is_some_and(|rule| rule.kind != TableKind::Sharded) {
            continue;
        }
        let key_column = rule.and_then(|rule| rule.key.clone()).unwrap_or_else(|| config.key.column.clone());
        let key_type = rule.and_then(|rule| rule.key_type).unwrap_or(config.key.key_type);
        let type_of =
            |column: &str| columns.iter().position(|name| name == column).map(|at| types[at].as_str());
        // Integers of any width hash alike, so the width is the column's own. What is not understood is `obscure`.
        let own = type_of(&key_column).and_then(KeyType::from_name);
        let Some(key_type) = own.filter(|own| own.hashes_like(key_type)) else { continue };
        let key: Vec<String> = row.try_get(5)?;
        let primary_key =
            key.iter().filter_map(|column| Some((column.clone(), type_of(column)?.to_owned()))).collect();
        tables.push(Table {
            schema,
            name,
            partitioned: row.try_get(2)?,
            key_column,
            key_type,
            primary_key,
            columns,
            bytes: row.try_get(6)?,
            rows: row.try_get(7)?,
        });
    }
    Ok(tables)
}

/// Relations that seem to hold rows by the sharding key and are none of `sharded`: a proxy may serve them by key, so their
/// rows must not be left behind in silence. With the reason.
pub async fn obscure(db: &Db, config: &Config) -> anyhow::Result<Vec<(String, String)>> {
    let understood: Vec<String> = sharded(db, config).await?.iter().map(Table::full_name).collect();
    let sql = "SELECT n.nspname || '.' || c.relname, c.relkind::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
          AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog') ORDER BY 1";
    let mut found = Vec::new();
    for row in db.rows(sql, &[]).await? {
        let (name, kind, column, type_name): (String, String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let rule = config.tables.iter().find(|rule| rule.name == name);
        let key = rule.and_then(|rule| rule.key.as_ref()).unwrap_or(&config.key.column);
        // A foreign table is plain until it is declared.
        let placed = rule.map_or(kind != "f", |rule| rule.kind == TableKind::Sharded);
        if column != *key || !placed || understood.contains(&name) {
            continue;
        }
        found.push((
            name,
            match kind.as_str() {
                "m" => "it is a materialized view, which cannot be replicated".to_owned(),
                "f" => "it is a foreign table, which cannot be replicated".to_owned(),
                _ => format!("its column {column} is of type {type_name}, which rows cannot be chosen by"),
            },
        ));
    }
    Ok(found)
}

/// What replication does with each relation of a table's tree that it should not, with the remedy.
pub async fn misfits(db: &Db, table: &Table) -> anyhow::Result<Vec<(String, String)>> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), c.relpersistence = 'u', c.relkind = 'r' AND c.relreplident NOT IN ('d', 'f'),
                (SELECT string_agg(g.tgname, ', ') FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal
                    AND g.tgenabled IN ('A', 'R') AND g.tgname NOT LIKE 'zzz_shard_move_%')
         FROM {TREE} t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY t.level, 1"
    );
    let mut found = Vec::new();
    for row in db.rows(&sql, &[&table.sql()]).await? {
        let name: String = row.try_get(0)?;
        if row.try_get(1)? {
            found.push((
                format!("{name} is UNLOGGED"),
                format!("it cannot be replicated: ALTER TABLE {name} SET LOGGED"),
            ));
        }
        if row.try_get(2)? {
            found.push((
                format!("{name} does not have its primary key as replica identity"),
                format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
            ));
        }
        if let Some(triggers) = row.try_get::<_, Option<String>>(3)? {
            found.push((
                format!("{name} has triggers that are fired by replicated rows, too: {triggers}"),
                "on the target they would do once more what they have done: ALTER TABLE ... ENABLE TRIGGER (not ALWAYS, not REPLICA)"
                    .to_owned(),
            ));
        }
    }
    Ok(found)
}

/// The first relation of the table's tree whose primary key is deferrable, and that key: PostgreSQL takes none for a replica
/// identity (`RelationGetIndexList` in relcache.c), so UPDATE and DELETE of a published table fail.
pub async fn deferrable_key(db: &Db, table: &Table) -> anyhow::Result<Option<(String, String)>> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), quote_ident(k.relname)
         FROM {TREE} t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate JOIN pg_class k ON k.oid = i.indexrelid
         ORDER BY t.level, 1 LIMIT 1"
    );
    db.first(&sql, &[&table.sql()]).await?.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// The tree of `$1`: `pg_partition_tree` knows nothing of a table that is neither partitioned nor a partition.
pub const TREE: &str = "(SELECT relid::oid, isleaf, level FROM pg_partition_tree($1::text::regclass) \
     UNION ALL SELECT $1::text::regclass::oid, true, 0 WHERE NOT EXISTS (SELECT FROM pg_partition_tree($1::text::regclass)))";

/// The ordinary tables that hold the rows: the partitions, or the table itself.
pub async fn leaves(db: &Db, table: &Table) -> anyhow::Result<Vec<String>> {
    relations(db, table, "WHERE t.isleaf").await
}

/// Of the relation that `leaf` names, as it is now.
pub async fn pages(db: &Db, leaf: &str) -> anyhow::Result<i64> {
    db.value("SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::int8", &[&leaf])
        .await
}

/// The table and all its partitions, roots first.
pub async fn tree(db: &Db, table: &Table) -> anyhow::Result<Vec<String>> {
    relations(db, table, "").await
}

async fn relations(db: &Db, table: &Table, which: &str) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM {TREE} t JOIN pg_class c ON c.oid = t.relid \
         JOIN pg_namespace n ON n.oid = c.relnamespace {which} ORDER BY t.level, 1"
    );
    let rows = db.rows(&sql, &[&table.sql()]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
