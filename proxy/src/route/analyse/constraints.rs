//! What a sharded table may not have: uniqueness and references that its shards could not enforce (H11).

use pg_raw_parse::raw::{ConstrType, TableLikeOption};
use pg_raw_parse::{Node, nodes};

use super::ir::{Builder, Result};
use crate::catalog::{Declared, TableKind};
use crate::route::plan::Refusal;

impl Builder<'_> {
    pub(super) fn check_column(
        &self,
        column: &nodes::ColumnDef,
        key: Option<&str>,
        table: &(String, String),
    ) -> Result<()> {
        for node in column.constraints() {
            if let Node::Constraint(constraint) = node {
                self.check_constraint(constraint, key, table, column.colname())?;
            }
        }
        Ok(())
    }

    /// The indexes of a table without the key may be unique without it.
    pub(super) fn check_like(
        &self,
        like: &nodes::TableLikeClause,
        key: Option<&str>,
        table: &(String, String),
    ) -> Result<()> {
        let Some(key) = key.filter(|_| like.options & TableLikeOption::CREATE_TABLE_LIKE_INDEXES != 0) else {
            return Ok(());
        };
        match like.relation().and_then(|var| self.sharded_key(var)) {
            Some(same) if same == key => Ok(()),
            _ => Err(lacks_key("an index copied by LIKE INCLUDING INDEXES", key, table)),
        }
    }

    /// Uniqueness and references are enforced by one shard, so they must include the key.
    pub(super) fn check_constraint(
        &self,
        constraint: &nodes::Constraint,
        key: Option<&str>,
        table: &(String, String),
        column: Option<&str>,
    ) -> Result<()> {
        let named = |list: &pg_raw_parse::list::NodeList| -> Vec<String> {
            let mut names: Vec<String> = list.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect();
            if names.is_empty() {
                names.extend(column.map(str::to_owned));
            }
            names
        };
        let (kind, columns) = match constraint.contype {
            ConstrType::CONSTR_PRIMARY => ("PRIMARY KEY", named(constraint.keys())),
            ConstrType::CONSTR_UNIQUE => ("UNIQUE constraint", named(constraint.keys())),
            ConstrType::CONSTR_EXCLUSION => ("EXCLUDE constraint", excluded_columns(constraint)),
            ConstrType::CONSTR_FOREIGN => {
                let columns = named(constraint.fk_attrs());
                return self.check_reference(constraint, key, table, &columns);
            }
            _ => return Ok(()),
        };
        match key {
            // UNIQUE USING INDEX names no columns: the index was checked when it was made.
            Some(key)
                if constraint.indexname().is_none()
                    && !columns.iter().any(|c| c == key)
                    && !self.is_vouched(table, constraint.conname(), &columns) =>
            {
                Err(lacks_key(kind, key, table))
            }
            _ => Ok(()),
        }
    }

    fn check_reference(
        &self,
        constraint: &nodes::Constraint,
        key: Option<&str>,
        table: &(String, String),
        columns: &[String],
    ) -> Result<()> {
        let Some(target) = constraint.pktable() else { return Ok(()) };
        if self.is_vouched(table, constraint.conname(), columns) {
            return Ok(());
        }
        let itself = self.full_name(target) == *table;
        let target_key = if itself { key.map(str::to_owned) } else { self.sharded_key(target) };
        let kind = self.known(target).map(|t| t.kind.clone());
        let full = format!("{}.{}", table.0, table.1);
        match (key, target_key) {
            (None, None)
                if matches!(self.context.catalog.declared.get(table), Some(Declared::Reference))
                    && matches!(kind, Some(TableKind::Plain)) =>
            {
                Err(Refusal::unsupported(
                    format!(
                        "reference table {full} cannot reference a plain table, whose rows are on the default shard"
                    ),
                    "Declare the referenced table as a reference table, too.",
                ))
            }
            (None, None) => Ok(()),
            (Some(_), None) if matches!(kind, Some(TableKind::Plain)) => Err(Refusal::unsupported(
                format!(
                    "sharded table {full} cannot reference a plain table, whose rows are on the default shard"
                ),
                "Declare the referenced table as a reference table.",
            )),
            (Some(_), None) => Ok(()),
            (None, Some(_)) => Err(Refusal::unsupported(
                format!("table {full} is not sharded and cannot reference a sharded table"),
                "Give it the key column.",
            )),
            (Some(key), Some(target_key)) => {
                let pairs: Vec<String> =
                    constraint.pk_attrs().iter().filter_map(|n| n.as_str().map(str::to_owned)).collect();
                let position = columns.iter().position(|c| c == key);
                let matches = match position {
                    None => false,
                    Some(_) if pairs.is_empty() => true,
                    Some(i) => pairs.get(i) == Some(&target_key),
                };
                if matches { Ok(()) } else { Err(lacks_key("FOREIGN KEY", key, table)) }
            }
        }
    }

    pub(super) fn check_index(&self, index: &nodes::IndexStmt) -> Result<()> {
        let Some(var) = index.relation().filter(|_| index.unique) else { return Ok(()) };
        let Some(key) = self.sharded_key(var) else { return Ok(()) };
        if index.index_params().iter().any(|element| element.name() == Some(&key)) {
            return Ok(());
        }
        let columns: Vec<String> =
            index.index_params().iter().filter_map(|element| element.name().map(str::to_owned)).collect();
        let plain = columns.len() == index.index_params().len();
        let table =
            self.known(var).map_or_else(|| self.full_name(var), |t| (t.schema.clone(), t.name.clone()));
        if self.is_vouched(&table, index.idxname(), if plain { &columns } else { &[] }) {
            return Ok(());
        }
        Err(lacks_key("UNIQUE index", &key, &table))
    }

    /// The configuration says that what this constraint asks for holds over all shards, by the way in which its values are
    /// made: its name, or its columns in any order.
    pub(super) fn is_vouched(
        &self,
        table: &(String, String),
        name: Option<&str>,
        columns: &[String],
    ) -> bool {
        let vouched = self.context.catalog.unique_by_construction.get(table);
        vouched.is_some_and(|all| shard_config::is_vouched(all, name, columns))
    }
}

fn excluded_columns(constraint: &nodes::Constraint) -> Vec<String> {
    let mut columns = Vec::new();
    for pair in constraint.exclusions() {
        let mut parts = pair.as_node_list().into_iter().flatten();
        let (Some(Node::IndexElem(element)), Some(operator)) = (parts.next(), parts.next()) else { continue };
        let equal = operator
            .as_node_list()
            .is_some_and(|o| o.iter().next_back().and_then(|n| n.as_str()) == Some("="));
        if equal {
            columns.extend(element.name().map(str::to_owned));
        }
    }
    columns
}

fn lacks_key(kind: &str, key: &str, table: &(String, String)) -> Refusal {
    Refusal::unsupported(
        format!("{kind} of sharded table {}.{} does not include the sharding key {key}", table.0, table.1),
        format!(
            "It would hold within each shard only; include {key}, for example PRIMARY KEY ({key}, id). If its values are unique \
             by the way in which they are made, say so: [[table]] unique_by_construction in the configuration."
        ),
    )
}
