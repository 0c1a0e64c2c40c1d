//! Definitions that would change where a table's rows live without moving them: they are refused. A table is what its
//! name is declared to be, or what its columns say; so its key column, its name and its parents matter.

use pg_raw_parse::raw::{AlterTableType, ObjectType};
use pg_raw_parse::{Node, nodes};
use shard_config::KeyType;

use super::expr::builtin_type;
use super::ir::{Builder, Result};
use crate::catalog::{Declared, Table, TableKind};
use crate::route::plan::Refusal;

/// What a table is, as far as it decides where its rows are.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Sharded(String),
    Reference,
    Plain,
}

impl Builder<'_> {
    /// The key column that a table about to be created will have.
    pub(super) fn key_of_new(
        &self,
        create: &nodes::CreateStmt,
        name: &(String, String),
    ) -> Result<Option<String>> {
        match self.context.catalog.declared.get(name) {
            Some(Declared::Sharded { column, .. }) => return Ok(Some(column.clone())),
            Some(Declared::Reference | Declared::Plain) => return Ok(None),
            None => {}
        }
        let Some((key, key_type)) = &self.context.catalog.key_column else { return Ok(None) };
        for element in create.table_elts() {
            match element {
                Node::ColumnDef(column) if column.colname() == Some(key) => {
                    return check_key_type(column, *key_type, name).map(|()| Some(key.clone()));
                }
                Node::TableLikeClause(like) => {
                    if let Some(key) = like.relation().and_then(|var| self.sharded_key(var)) {
                        return Ok(Some(key));
                    }
                }
                _ => {}
            }
        }
        // A partition or child has its parent's columns.
        let mut parents = create.inh_relations().iter().filter_map(|node| match node {
            Node::RangeVar(var) => self.sharded_key(var),
            _ => None,
        });
        Ok(parents.next_back())
    }

    fn kind_of(&self, table: &Table) -> Option<Kind> {
        match table.kind {
            TableKind::Sharded { key_index, .. } => {
                table.columns.get(key_index).map(|column| Kind::Sharded(column.name.clone()))
            }
            TableKind::Reference => Some(Kind::Reference),
            TableKind::Plain => Some(Kind::Plain),
            TableKind::System | TableKind::View => None,
        }
    }

    /// What a table of these columns would be under this name.
    fn kind_under(&self, name: &(String, String), mut columns: impl Iterator<Item = String>) -> Kind {
        match self.context.catalog.declared.get(name) {
            Some(Declared::Sharded { column, .. }) => Kind::Sharded(column.clone()),
            Some(Declared::Reference) => Kind::Reference,
            Some(Declared::Plain) => Kind::Plain,
            None => match &self.context.catalog.key_column {
                Some((key, _)) if columns.any(|column| column == *key) => Kind::Sharded(key.clone()),
                _ => Kind::Plain,
            },
        }
    }

    /// A query of the parent reads its children where the parent's rows are.
    pub(super) fn check_parents(
        &self,
        create: &nodes::CreateStmt,
        key: Option<&str>,
        name: &(String, String),
    ) -> Result<()> {
        let child = self.kind_under(name, key.map(str::to_owned).into_iter());
        for node in create.inh_relations() {
            let Node::RangeVar(var) = node else { continue };
            if let Some(parent) = self.known(var)
                && self.kind_of(parent).is_some_and(|kind| kind != child)
            {
                return Err(other_family(&format!("{}.{}", name.0, name.1), parent));
            }
        }
        Ok(())
    }

    fn check_family(&self, child: &nodes::RangeVar, parent: &nodes::RangeVar) -> Result<()> {
        let (Some(child), Some(parent)) = (self.known(child), self.known(parent)) else { return Ok(()) };
        if self.kind_of(child) == self.kind_of(parent) {
            return Ok(());
        }
        Err(other_family(&format!("{}.{}", child.schema, child.name), parent))
    }

    pub(super) fn check_alter(&self, alter: &nodes::AlterTableStmt) -> Result<()> {
        let Some(var) = alter.relation() else { return Ok(()) };
        let key = self.sharded_key(var);
        let name =
            self.known(var).map_or_else(|| self.full_name(var), |t| (t.schema.clone(), t.name.clone()));
        for node in alter.cmds() {
            let Node::AlterTableCmd(command) = node else { continue };
            let on_key = key.is_some() && command.name() == key.as_deref();
            match (command.subtype, command.def()) {
                (AlterTableType::AT_AddConstraint, Node::Constraint(constraint)) => {
                    self.check_constraint(constraint, key.as_deref(), &name, None)?;
                }
                (AlterTableType::AT_AddColumn, Node::ColumnDef(column)) => {
                    self.check_column(column, key.as_deref(), &name)?;
                    let configured = self.context.catalog.key_column.as_ref().map(|(key, _)| key.as_str());
                    let declared = self.context.catalog.declared.contains_key(&name);
                    if key.is_none()
                        && !declared
                        && self.known(var).is_some()
                        && column.colname() == configured
                    {
                        return Err(becomes_sharded(&name));
                    }
                }
                (
                    AlterTableType::AT_DropColumn
                    | AlterTableType::AT_AlterColumnType
                    | AlterTableType::AT_DropNotNull,
                    _,
                ) if on_key => return Err(alters_key(&name)),
                (AlterTableType::AT_AddInherit, Node::RangeVar(parent)) => self.check_family(var, parent)?,
                (AlterTableType::AT_AttachPartition, Node::PartitionCmd(partition)) => {
                    if let Some(child) = partition.name() {
                        self.check_family(child, var)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn check_rename(&self, rename: &nodes::RenameStmt) -> Result<()> {
        let new = rename.newname().unwrap_or_default();
        if rename.rename_type == ObjectType::OBJECT_SCHEMA {
            let old = rename.subname().unwrap_or_default();
            let declared =
                self.context.catalog.declared.keys().find(|(schema, _)| schema == old || schema == new);
            return match declared {
                None => Ok(()),
                Some((schema, name)) => Err(declared_by_name(&format!("{schema}.{name}"))),
            };
        }
        let Some(table) = rename.relation().and_then(|var| self.known(var)) else { return Ok(()) };
        let columns = || table.columns.iter().map(|column| column.name.clone());
        let name = (table.schema.clone(), table.name.clone());
        match rename.rename_type {
            ObjectType::OBJECT_COLUMN => {
                let old = rename.subname().unwrap_or_default();
                match self.kind_of(table) {
                    Some(Kind::Sharded(key)) if key == old => Err(alters_key(&name)),
                    Some(_) => {
                        let renamed =
                            columns().map(|column| if column == old { new.to_owned() } else { column });
                        let same = self.kind_under(&name, columns()) == self.kind_under(&name, renamed);
                        if same { Ok(()) } else { Err(becomes_sharded(&name)) }
                    }
                    None => Ok(()),
                }
            }
            ObjectType::OBJECT_TABLE => self.check_new_name(table, (table.schema.clone(), new.to_owned())),
            _ => Ok(()),
        }
    }

    /// SET SCHEMA.
    pub(super) fn check_new_schema(&self, alter: &nodes::AlterObjectSchemaStmt) -> Result<()> {
        let Some(table) = alter.relation().and_then(|var| self.known(var)) else { return Ok(()) };
        let schema = alter.newschema().unwrap_or_default().to_owned();
        self.check_new_name(table, (schema, table.name.clone()))
    }

    fn check_new_name(&self, table: &Table, new: (String, String)) -> Result<()> {
        let columns = || table.columns.iter().map(|column| column.name.clone());
        let old = (table.schema.clone(), table.name.clone());
        if self.kind_of(table).is_none()
            || self.kind_under(&old, columns()) == self.kind_under(&new, columns())
        {
            return Ok(());
        }
        Err(declared_by_name(&format!("{}.{} or {}.{}", old.0, old.1, new.0, new.1)))
    }
}

fn check_key_type(column: &nodes::ColumnDef, key_type: KeyType, table: &(String, String)) -> Result<()> {
    let found = column.type_name().and_then(builtin_type).filter(|t| !t.array).map(|t| t.oid);
    if found == Some(key_type.oid()) {
        return Ok(());
    }
    Err(Refusal::unsupported(
        format!(
            "column {} of {}.{} has the sharding key's name but not its type {key_type}",
            column.colname().unwrap_or_default(),
            table.0,
            table.1
        ),
        "Give it that type; or declare the table in the configuration ([[table]] kind = \"plain\" or \"reference\").",
    ))
}

fn alters_key(table: &(String, String)) -> Refusal {
    Refusal::unsupported(
        format!("the sharding key of {}.{} cannot be altered: rows are placed by it", table.0, table.1),
        "Create a new table and copy the rows.",
    )
}

fn becomes_sharded(table: &(String, String)) -> Refusal {
    Refusal::unsupported(
        format!("adding the sharding key to {}.{} would make it a sharded table", table.0, table.1),
        "Create a new table with the key and copy the rows.",
    )
}

fn declared_by_name(what: &str) -> Refusal {
    Refusal::unsupported(
        format!(
            "the configuration says by its name where the rows of {what} are: another name would lose them"
        ),
        "Create a new table, copy the rows, and change the configuration.",
    )
}

fn other_family(child: &str, parent: &Table) -> Refusal {
    Refusal::unsupported(
        format!(
            "{child} and its parent {}.{} would have their rows in different places (sharded, reference or plain)",
            parent.schema, parent.name
        ),
        "Give both the key column, or declare both alike in the configuration ([[table]]).",
    )
}
