//! Constraints of the schema as it is that no shard can enforce for all (H11): the proxy refuses them when they are
//! created, but a schema may be older than it.

use std::collections::BTreeMap;

use shard_config::{Config, TableKind, is_vouched};
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, ask, cell};
use crate::doctor::Findings;

/// Between parts of a name and between columns: in no name that anybody gives.
const SEPARATOR: char = '\u{1f}';

const TABLES: &str = "SELECT n.nspname AS schema, c.relname AS name,
        string_agg(a.attname, chr(31) ORDER BY a.attnum) AS columns,
        (SELECT string_agg(pn.nspname || chr(31) || p.relname, chr(30)) FROM pg_catalog.pg_inherits i
            JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
            WHERE i.inhrelid = c.oid) AS parents
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog')
    GROUP BY n.nspname, c.relname, c.oid";

/// `columns`: those that are compared by equality, of a foreign key each with the one that it refers to.
const CONSTRAINTS: &str = "SELECT n.nspname AS schema, c.relname AS name, k.conname AS constraint, k.contype AS type,
        pg_catalog.pg_get_constraintdef(k.oid) AS definition, fn.nspname AS target_schema, f.relname AS target,
        (SELECT string_agg(a.attname || coalesce(chr(31) || b.attname, ''), chr(30) ORDER BY u.n)
            FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, n)
            JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
            LEFT JOIN pg_catalog.pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[u.n]
            LEFT JOIN pg_catalog.pg_operator o ON o.oid = k.conexclop[u.n]
            WHERE k.contype <> 'x' OR o.oprname = '=') AS columns
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_class f ON f.oid = k.confrelid LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
    WHERE k.contype IN ('p', 'u', 'x', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'shard_catalog'
    UNION ALL
    SELECT n.nspname, c.relname, ic.relname, 'i', pg_catalog.pg_get_indexdef(i.indexrelid), NULL, NULL,
        (SELECT string_agg(a.attname, chr(30)) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
    JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE i.indisunique AND n.nspname !~ '^pg_' AND n.nspname <> 'shard_catalog'
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
    ORDER BY 1, 2, 3";

/// Where a table's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// By this column.
    Sharded(String),
    Reference,
    Plain,
}

type Name = (String, String);

struct Schema<'c> {
    config: Option<&'c Config>,
    kinds: BTreeMap<Name, Kind>,
}

/// Without a file the key is `tenant_id`, and nothing is declared.
pub(crate) async fn unenforced(
    client: &Client,
    config: Option<&Config>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut schema = Schema { config, kinds: BTreeMap::new() };
    let mut parents = Vec::new();
    for row in ask(client, TABLES, ANSWER_TIMEOUT).await? {
        let name = (cell(&row, "schema"), cell(&row, "name"));
        let kind = schema.kind(&name, &cell(&row, "columns"));
        schema.kinds.insert(name.clone(), kind);
        for parent in cell(&row, "parents").split('\u{1e}') {
            if let Some((schema, table)) = parent.split_once(SEPARATOR) {
                parents.push((name.clone(), (schema.to_owned(), table.to_owned())));
            }
        }
    }
    for (child, parent) in parents {
        if schema.kinds.get(&child) != schema.kinds.get(&parent) {
            let remedy =
                "a query of the parent finds only a part of the child's rows: declare both alike ([[table]])";
            let check = format!(
                "{} and its parent {} have their rows in different places",
                shown(&child),
                shown(&parent)
            );
            findings.problem(check, remedy);
        }
    }
    let mut enforced = 0;
    let mut unknown = 0;
    for row in ask(client, CONSTRAINTS, ANSWER_TIMEOUT).await? {
        let columns = cell(&row, "columns");
        let constraint = Constraint {
            table: (cell(&row, "schema"), cell(&row, "name")),
            name: cell(&row, "constraint"),
            definition: cell(&row, "definition"),
            target: (cell(&row, "type") == "f").then(|| (cell(&row, "target_schema"), cell(&row, "target"))),
            columns: columns
                .split('\u{1e}')
                .filter(|column| !column.is_empty())
                .map(|column| match column.split_once(SEPARATOR) {
                    Some((column, refers)) => (column.to_owned(), refers.to_owned()),
                    None => (column.to_owned(), String::new()),
                })
                .collect(),
        };
        if config.is_none() && schema.refers_to_undeclared(&constraint) {
            unknown += 1;
            continue;
        }
        let Some((why, remedy)) = schema.why_not(&constraint) else {
            enforced += 1;
            continue;
        };
        let check = format!("{}: {} {}", shown(&constraint.table), constraint.name, constraint.definition);
        if schema.vouches(&constraint) {
            findings.well(check, format!("{why}; unique by construction, says the file"));
        } else {
            findings.problem(check, format!("{why}: {remedy}"));
        }
    }
    let unknown = match unknown {
        0 => String::new(),
        n => format!("; of {n} more the proxy's file (--config) says whether their target is on every shard"),
    };
    findings.well("constraints", format!("{enforced} are enforced by the shards{unknown}"));
    Ok(())
}

fn shown(name: &Name) -> String {
    format!("{}.{}", name.0, name.1)
}

struct Constraint {
    table: Name,
    name: String,
    definition: String,
    /// What a foreign key refers to.
    target: Option<Name>,
    /// Each with the column that it refers to, if any.
    columns: Vec<(String, String)>,
}

impl Schema<'_> {
    fn kind(&self, name: &Name, columns: &str) -> Kind {
        let default = self.config.map_or("tenant_id", |config| &config.key.column);
        let rule = self.config.and_then(|config| config.tables.iter().find(|rule| rule.name == shown(name)));
        match rule.map(|rule| (rule.kind, &rule.key)) {
            Some((TableKind::Sharded, key)) => {
                Kind::Sharded(key.clone().unwrap_or_else(|| default.to_owned()))
            }
            Some((TableKind::Reference, _)) => Kind::Reference,
            Some((TableKind::Plain, _)) => Kind::Plain,
            None if columns.split(SEPARATOR).any(|column| column == default) => {
                Kind::Sharded(default.to_owned())
            }
            None => Kind::Plain,
        }
    }

    /// Does it refer from a sharded table to one without the key column, which may be on every shard?
    fn refers_to_undeclared(&self, constraint: &Constraint) -> bool {
        let kind = |name: &Name| self.kinds.get(name);
        matches!(kind(&constraint.table), Some(Kind::Sharded(_)))
            && matches!(constraint.target.as_ref().and_then(kind), Some(Kind::Plain))
    }

    /// Why the shards do not enforce it, and what to do.
    fn why_not(&self, constraint: &Constraint) -> Option<(String, &'static str)> {
        const VOUCH: &str =
            "include it, or say that its values are made so ([[table]] unique_by_construction)";
        let own = self.kinds.get(&constraint.table)?;
        let target = match &constraint.target {
            Some(target) => Some(self.kinds.get(target)?),
            None => None,
        };
        match (own, target) {
            (Kind::Sharded(key), None) => {
                let has = constraint.columns.iter().any(|(column, _)| column == key);
                (!has).then(|| {
                    (format!("it lacks the key column {key}, so each shard sees its own rows only"), VOUCH)
                })
            }
            (Kind::Sharded(key), Some(Kind::Sharded(other))) => {
                let has = constraint.columns.iter().any(|(column, refers)| column == key && refers == other);
                (!has).then(|| {
                    (
                        format!(
                            "it does not refer from {key} to {other}, so rows of other shards are not seen"
                        ),
                        VOUCH,
                    )
                })
            }
            (Kind::Sharded(_) | Kind::Reference, Some(Kind::Plain)) => Some((
                "the rows that it refers to are on the default shard only".to_owned(),
                "make that table a reference table ([[table]])",
            )),
            (Kind::Reference | Kind::Plain, Some(Kind::Sharded(_))) => Some((
                "the rows that it refers to are on several shards".to_owned(),
                "give the table the key column, or drop the constraint",
            )),
            _ => None,
        }
    }

    fn vouches(&self, constraint: &Constraint) -> bool {
        let rule = self
            .config
            .and_then(|config| config.tables.iter().find(|rule| rule.name == shown(&constraint.table)));
        let columns: Vec<String> = constraint.columns.iter().map(|(column, _)| column.clone()).collect();
        rule.is_some_and(|rule| is_vouched(&rule.unique_by_construction, Some(&constraint.name), &columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
[[shard]]
id = 1
primary = \"h:1\"
[[table]]
name = \"public.rates\"
kind = \"reference\"
[[table]]
name = \"public.made\"
kind = \"sharded\"
unique_by_construction = [\"id\", \"made_code\"]
";

    async fn findings(client: &Client, config: Option<&Config>) -> Vec<(String, bool)> {
        let mut findings = Findings::default();
        unenforced(client, config, &mut findings).await.unwrap();
        findings.all.into_iter().map(|(check, outcome)| (check, outcome.is_ok())).collect()
    }

    #[tokio::test]
    async fn h11_every_constraint_that_no_shard_can_enforce_is_listed() {
        let server = testpg::TempPostgres::start(&[]);
        let (client, connection) =
            tokio_postgres::connect(&server.url("postgres"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(
                "CREATE TABLE rates (code text PRIMARY KEY, kind int);
                 CREATE TABLE plain (id int PRIMARY KEY);
                 CREATE TABLE made (tenant_id uuid NOT NULL, id int PRIMARY KEY, code text, CONSTRAINT made_code UNIQUE (code));
                 CREATE TABLE a (tenant_id uuid NOT NULL, id int, code text REFERENCES rates, p int REFERENCES plain, r int4range,
                     CONSTRAINT a_pk PRIMARY KEY (tenant_id, id), CONSTRAINT a_id UNIQUE (id),
                     CONSTRAINT a_overlap EXCLUDE USING gist (r WITH &&));
                 CREATE UNIQUE INDEX a_lower ON a (lower(code));
                 CREATE UNIQUE INDEX a_good ON a (code, tenant_id);
                 CREATE UNIQUE INDEX a_beside ON a (code) INCLUDE (tenant_id);
                 CREATE TABLE b (tenant_id uuid NOT NULL, id int, other uuid, PRIMARY KEY (id, tenant_id),
                     CONSTRAINT b_good FOREIGN KEY (tenant_id, id) REFERENCES a (tenant_id, id),
                     CONSTRAINT b_turned FOREIGN KEY (other, id) REFERENCES a (tenant_id, id),
                     CONSTRAINT b_short FOREIGN KEY (id) REFERENCES a (id));
                 CREATE TABLE c (n int, CONSTRAINT c_to_made FOREIGN KEY (n) REFERENCES made (id));
                 CREATE TABLE child (tenant_id uuid) INHERITS (plain)",
            )
            .await
            .unwrap();
        let config = Config::parse(FILE).unwrap();
        let all = findings(&client, Some(&config)).await;
        let problems: Vec<&str> =
            all.iter().filter(|(_, well)| !well).map(|(check, _)| check.split(' ').nth(1).unwrap()).collect();
        assert_eq!(
            problems,
            [
                "and",
                "a_beside",
                "a_id",
                "a_lower",
                "a_overlap",
                "a_p_fkey",
                "b_short",
                "b_turned",
                "c_to_made"
            ],
            "{all:?}"
        );
        let vouched: Vec<&str> =
            all.iter().filter(|(_, well)| *well).map(|(check, _)| check.as_str()).collect();
        assert_eq!(
            vouched,
            [
                "public.made: made_code UNIQUE (code)",
                "public.made: made_pkey PRIMARY KEY (id)",
                "constraints"
            ]
        );
        // Without the file nobody knows what is on every shard.
        let undeclared = findings(&client, None).await;
        assert!(
            undeclared.iter().all(|(check, _)| !check.contains("a_p_fkey") && !check.contains("a_code_fkey"))
        );
        assert!(
            undeclared.iter().any(|(check, well)| !well && check.contains("made_pkey")),
            "{undeclared:?}"
        );
    }
}
