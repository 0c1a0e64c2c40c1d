//! What the target of a write is like, as PostgreSQL's catalogs on the default shard have it, and its copy there.

use super::super::Failure;
use super::super::exchange::{self, fields};
use crate::error::ProxyError;
use crate::route::{Command, Written, target_copy};
use crate::session::multi_hook::Participants;

/// The copied rows, with the place that each is from; a child of the target's copy, so that the client's text, which
/// names the parent, finds them and does not see what they have beside its columns.
pub(super) fn rows(n: usize) -> String {
    format!("pg_temp.shard_rows_{n}")
}

/// Which rows there were before the statement ran.
pub(super) fn before(n: usize) -> String {
    format!("pg_temp.shard_before_{n}")
}

pub(super) struct Column {
    pub(super) name: String,
    /// With its schema, quoted.
    pub(super) type_name: String,
    pub(super) type_oid: u32,
    /// Travels in binary.
    pub(super) binary: bool,
    pub(super) generated: bool,
    pub(super) primary: bool,
    /// Foreign keys of the table hold it.
    pub(super) refers: bool,
    /// Foreign keys point to it.
    pub(super) referred: bool,
    not_null: bool,
    identity: bool,
}

impl Column {
    pub(super) fn quoted(&self) -> String {
        quote(&self.name)
    }
}

pub(super) struct Shape {
    pub(super) columns: Vec<Column>,
    /// Enabled triggers of its user. The guards of a move change nothing, they refuse or let pass.
    pub(super) triggers: bool,
    /// Foreign keys point to it.
    pub(super) referenced: bool,
}

pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if escaped.contains('\\') {
        format!("E'{}'", escaped.replace('\\', "\\\\"))
    } else {
        format!("'{escaped}'")
    }
}

pub(super) fn full_name(plan: &Written) -> String {
    format!("{}.{}", quote(&plan.schema), quote(&plan.name))
}

/// The names of these columns, as a list in SQL.
pub(super) fn names(columns: &[&Column]) -> String {
    columns.iter().map(|column| column.quoted()).collect::<Vec<_>>().join(", ")
}

impl Shape {
    pub(super) async fn read(p: &mut Participants<'_>, at: usize, plan: &Written) -> Result<Self, Failure> {
        let table = literal(&full_name(plan));
        let sql = format!(
            "SELECT a.attname, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(y.typname), y.oid::pg_catalog.int8,
                (y.oid < 16384 AND y.typcategory <> 'A' AND y.typtype IN ('b', 'r', 'm') AND y.typname !~ '^reg'
                    AND y.typname <> 'aclitem')::pg_catalog.int4,
                a.attnotnull::pg_catalog.int4, (a.attidentity <> '')::pg_catalog.int4, (a.attgenerated <> '')::pg_catalog.int4,
                EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary
                    AND a.attnum = ANY (i.indkey))::pg_catalog.int4,
                EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE NOT g.tgisinternal AND g.tgenabled <> 'D'
                    AND g.tgfoid NOT IN (SELECT f.oid FROM pg_catalog.pg_proc f
                        WHERE f.pronamespace = pg_catalog.to_regnamespace('shard_catalog')) AND (g.tgrelid = a.attrelid
                    OR g.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(a.attrelid))))::pg_catalog.int4,
                EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.confrelid = a.attrelid)::pg_catalog.int4,
                EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conrelid = a.attrelid
                    AND a.attnum = ANY (k.conkey))::pg_catalog.int4,
                EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.confrelid = a.attrelid
                    AND a.attnum = ANY (k.confkey))::pg_catalog.int4
            FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
            JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace
            WHERE a.attrelid = {table}::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        );
        let reply = exchange::ask(p, at, &sql).await?.ok()?;
        let mut shape = Self { columns: Vec::new(), triggers: false, referenced: false };
        for row in &reply.rows {
            let values = fields(row).ok_or_else(broken)?;
            let text = |n: usize| {
                String::from_utf8_lossy(values.get(n).copied().flatten().unwrap_or_default()).into_owned()
            };
            let yes = |n: usize| text(n) == "1";
            shape.columns.push(Column {
                name: text(0),
                type_name: text(1),
                type_oid: text(2).parse().map_err(|_| broken())?,
                binary: yes(3),
                not_null: yes(4),
                identity: yes(5),
                generated: yes(6),
                primary: yes(7),
                refers: yes(10),
                referred: yes(11),
            });
            shape.triggers |= yes(8);
            shape.referenced |= yes(9);
        }
        Ok(shape)
    }

    /// Everything but what PostgreSQL computes itself.
    pub(super) fn stored(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| !column.generated).collect()
    }

    pub(super) fn primary(&self) -> Vec<&Column> {
        self.columns.iter().filter(|column| column.primary).collect()
    }

    /// The copy has the defaults of the target, and draws from its sequences. Constraints are left to the shards.
    pub(super) fn create(&self, plan: &Written, n: usize) -> String {
        let (name, target) = (full_name(plan), target_copy(n));
        let mut sql = format!(
            "CREATE TEMP TABLE shard_target_{n} (LIKE {name} INCLUDING DEFAULTS INCLUDING GENERATED) ON COMMIT DROP;"
        );
        for column in &self.columns {
            let quoted = column.quoted();
            if column.not_null {
                sql.push_str(&format!("ALTER TABLE {target} ALTER COLUMN {quoted} DROP NOT NULL;"));
            }
            if column.identity {
                sql.push_str(&format!(
                    "ALTER TABLE {target} ALTER COLUMN {quoted} SET DEFAULT shard_catalog.next_identity({}, {});",
                    literal(&name),
                    literal(&column.name)
                ));
            }
        }
        if plan.command != Command::Insert {
            sql.push_str(&format!(
                "CREATE TEMP TABLE shard_rows_{n} (shard_at pg_catalog.int4, shard_table pg_catalog.oid, shard_ctid pg_catalog.tid)
                    INHERITS ({target}) ON COMMIT DROP;"
            ));
        }
        sql
    }

    /// Remembers the rows that may be deleted.
    pub(super) fn remember(&self, n: usize) -> String {
        let mut list = String::from("shard_at, shard_table, shard_ctid");
        for column in self.primary() {
            list.push_str(", ");
            list.push_str(&column.quoted());
        }
        let (rows, before) = (rows(n), before(n));
        format!(
            "CREATE TEMP TABLE shard_before_{n} ON COMMIT DROP AS SELECT {list} FROM {rows};ANALYZE {before};ANALYZE {rows}"
        )
    }
}

pub(super) fn broken() -> Failure {
    ProxyError::internal("a row of the catalog could not be read").into()
}
