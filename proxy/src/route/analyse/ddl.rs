//! Definitions: run on every shard, so that all have one schema; and what a sharded table may not have (H11).

use pg_raw_parse::raw::{AlterTableType, ConstrType, ObjectType, TableLikeOption};
use pg_raw_parse::{Node, nodes};
use shard_config::KeyType;

use super::expr::builtin_type;
use super::ir::{Builder, Result};
use super::names::Found;
use super::plain_plan;
use super::utility::autocommit;
use crate::catalog::{Declared, Table, TableKind};
use crate::route::plan::{Access, Broadcast, Effect, Plan, Refusal, Route};

/// `RELPERSISTENCE_TEMP` of pg_class.h.
const TEMPORARY: u8 = b't';

fn everywhere() -> Result<Plan> {
    Ok(plain_plan(Route::All(Broadcast::Ddl), Access::Write, Effect::CreatesObject))
}

fn decides_names(set: &nodes::VariableSetStmt) -> bool {
    use pg_raw_parse::raw::VariableSetKind;
    let sets = !matches!(set.kind, VariableSetKind::VAR_RESET | VariableSetKind::VAR_RESET_ALL);
    sets && set.name().is_some_and(|name| crate::route::is_routing_setting(&name.to_ascii_lowercase()))
}

fn temporary(var: Option<&nodes::RangeVar>) -> bool {
    var.is_some_and(|v| {
        v.relpersistence.cast_unsigned() == TEMPORARY
            || v.schemaname().is_some_and(|s| s.starts_with("pg_temp"))
    })
}

impl Builder<'_> {
    pub(super) fn definition(&mut self, node: Node<'_>) -> Result<Plan> {
        match node {
            Node::CreateStmt(create) => self.create_table(create),
            Node::CreateTableAsStmt(create) => self.create_table_as(create),
            Node::IndexStmt(index) => {
                if self.on_temporary(index.relation()) {
                    return Ok(plain_plan(Route::Any, Access::Write, Effect::None));
                }
                self.check_index(index)?;
                if index.concurrent { Ok(autocommit()) } else { everywhere() }
            }
            Node::AlterTableStmt(alter) => {
                if self.on_temporary(alter.relation()) {
                    return Ok(plain_plan(Route::Any, Access::Write, Effect::None));
                }
                self.check_alter(alter)?;
                let concurrently = alter.cmds().iter().any(
                    |c| matches!(c, Node::AlterTableCmd(c) if matches!(c.def(), Node::PartitionCmd(p) if p.concurrent)),
                );
                if concurrently { Ok(autocommit()) } else { everywhere() }
            }
            Node::RenameStmt(rename) => {
                self.check_rename(rename)?;
                everywhere()
            }
            Node::ViewStmt(view) if temporary(view.view()) => {
                self.pin_temporary(view.view(), "temporary view")
            }
            Node::CreateSeqStmt(s) if temporary(s.sequence()) => {
                self.pin_temporary(s.sequence(), "temporary sequence")
            }
            Node::DropStmt(drop) => {
                if self.drops_only_temporary(drop) {
                    return Ok(plain_plan(Route::Any, Access::Write, Effect::None));
                }
                if drop.concurrent { Ok(autocommit()) } else { everywhere() }
            }
            Node::CreatedbStmt(_)
            | Node::DropdbStmt(_)
            | Node::AlterDatabaseStmt(_)
            | Node::AlterDatabaseSetStmt(_)
            | Node::AlterSystemStmt(_)
            | Node::CreateTableSpaceStmt(_)
            | Node::DropTableSpaceStmt(_)
            | Node::CreateSubscriptionStmt(_)
            | Node::AlterSubscriptionStmt(_)
            | Node::DropSubscriptionStmt(_)
            | Node::LoadStmt(_) => Err(Refusal::unsupported(
                "this statement is about a server, not about the sharded database",
                "Run it on the server itself.",
            )),
            // Connections opened before and after it would read names differently (H39).
            Node::AlterRoleSetStmt(alter) if alter.setstmt().is_some_and(decides_names) => {
                Err(Refusal::unsupported(
                    "ALTER ROLE ... SET of a setting that decides what names mean, such as search_path",
                    "Let clients set it when they connect (options=-csearch_path=...), or SET it in the session.",
                ))
            }
            Node::ViewStmt(_)
            | Node::AlterRoleSetStmt(_)
            | Node::CreateSeqStmt(_)
            | Node::AlterSeqStmt(_)
            | Node::AlterCollationStmt(_)
            | Node::AlterDefaultPrivilegesStmt(_)
            | Node::AlterDomainStmt(_)
            | Node::AlterEnumStmt(_)
            | Node::AlterEventTrigStmt(_)
            | Node::AlterExtensionStmt(_)
            | Node::AlterExtensionContentsStmt(_)
            | Node::AlterFdwStmt(_)
            | Node::AlterForeignServerStmt(_)
            | Node::AlterFunctionStmt(_)
            | Node::AlterObjectDependsStmt(_)
            | Node::AlterObjectSchemaStmt(_)
            | Node::AlterOpFamilyStmt(_)
            | Node::AlterOperatorStmt(_)
            | Node::AlterOwnerStmt(_)
            | Node::AlterPolicyStmt(_)
            | Node::AlterPublicationStmt(_)
            | Node::AlterRoleStmt(_)
            | Node::AlterStatsStmt(_)
            | Node::AlterTSConfigurationStmt(_)
            | Node::AlterTSDictionaryStmt(_)
            | Node::AlterTypeStmt(_)
            | Node::AlterUserMappingStmt(_)
            | Node::CommentStmt(_)
            | Node::CompositeTypeStmt(_)
            | Node::CreateAmStmt(_)
            | Node::CreateCastStmt(_)
            | Node::CreateConversionStmt(_)
            | Node::CreateDomainStmt(_)
            | Node::CreateEnumStmt(_)
            | Node::CreateEventTrigStmt(_)
            | Node::CreateExtensionStmt(_)
            | Node::CreateFdwStmt(_)
            | Node::CreateForeignServerStmt(_)
            | Node::CreateFunctionStmt(_)
            | Node::CreateOpClassStmt(_)
            | Node::CreateOpFamilyStmt(_)
            | Node::CreatePLangStmt(_)
            | Node::CreatePolicyStmt(_)
            | Node::CreatePublicationStmt(_)
            | Node::CreateRangeStmt(_)
            | Node::CreateRoleStmt(_)
            | Node::CreateSchemaStmt(_)
            | Node::CreateStatsStmt(_)
            | Node::CreateTransformStmt(_)
            | Node::CreateTrigStmt(_)
            | Node::CreateUserMappingStmt(_)
            | Node::DefineStmt(_)
            | Node::DropOwnedStmt(_)
            | Node::DropRoleStmt(_)
            | Node::DropUserMappingStmt(_)
            | Node::GrantRoleStmt(_)
            | Node::GrantStmt(_)
            | Node::ReassignOwnedStmt(_)
            | Node::RefreshMatViewStmt(_)
            | Node::RuleStmt(_)
            | Node::SecLabelStmt(_) => everywhere(),
            _ => Err(Refusal::unsupported(
                "this kind of statement is not supported",
                "SET shard.target = 'n' sends statements to one shard as they are.",
            )),
        }
    }

    /// The table an ALTER or CREATE INDEX is about is one of the session's temporary tables.
    fn on_temporary(&self, var: Option<&nodes::RangeVar>) -> bool {
        var.is_some_and(|var| matches!(self.relation(var), Ok(Found::Temporary)))
    }

    fn drops_only_temporary(&self, drop: &nodes::DropStmt) -> bool {
        let relation = matches!(
            drop.remove_type,
            ObjectType::OBJECT_TABLE
                | ObjectType::OBJECT_VIEW
                | ObjectType::OBJECT_SEQUENCE
                | ObjectType::OBJECT_INDEX
        );
        relation
            && self.context.session_has_temp
            && drop.objects().iter().all(|object| {
                let names: Vec<&str> =
                    object.as_node_list().into_iter().flatten().filter_map(|n| n.as_str()).collect();
                match names.as_slice() {
                    [name] => self.find_table(name).is_none(),
                    [schema, _] => schema.starts_with("pg_temp"),
                    _ => false,
                }
            })
    }

    /// Temporary objects live in one server connection. One that hides a known table would change what statements
    /// routed before mean (H39).
    fn pin_temporary(&self, var: Option<&nodes::RangeVar>, what: &'static str) -> Result<Plan> {
        let name = var.and_then(nodes::RangeVar::relname).unwrap_or_default();
        if let Some(table) = self.find_table(name) {
            return Err(Refusal::unsupported(
                format!("a temporary object named {name} would hide {}.{}", table.schema, table.name),
                "Give it another name.",
            ));
        }
        Ok(plain_plan(Route::Any, Access::Write, Effect::Pin(what)))
    }

    fn create_table_as(&mut self, create: &nodes::CreateTableAsStmt) -> Result<Plan> {
        let into = create.into();
        let target = into.and_then(nodes::IntoClause::rel);
        if temporary(target) {
            let pin = self.pin_temporary(target, "temporary table")?;
            let plan = self.inner(pg_raw_parse::Node::None, create.query())?;
            if matches!(plan.route, Route::Scatter(_)) {
                return Err(Refusal::unsupported(
                    "a temporary table of a query over several shards",
                    "Bind the key, or CREATE TEMP TABLE and INSERT the rows.",
                ));
            }
            let mut plan = Plan { straddle: None, ..plan };
            plan.access = Access::Write;
            plan.effect = pin.effect;
            return Ok(plan);
        }
        if create.objtype == ObjectType::OBJECT_MATVIEW || !into.is_some_and(|into| into.skip_data) {
            return Err(Refusal::unsupported(
                "CREATE TABLE AS and CREATE MATERIALIZED VIEW would hold different rows on each shard",
                "CREATE TABLE with a key column, then INSERT ... SELECT.",
            ));
        }
        everywhere()
    }

    fn create_table(&mut self, create: &nodes::CreateStmt) -> Result<Plan> {
        if temporary(create.relation()) {
            return self.pin_temporary(create.relation(), "temporary table");
        }
        let name = create.relation().map_or_else(Default::default, |var| self.full_name(var));
        let key = self.key_of_new(create, &name)?;
        for element in create.table_elts() {
            match element {
                Node::ColumnDef(column) => self.check_column(column, key.as_deref(), &name)?,
                Node::Constraint(constraint) => {
                    self.check_constraint(constraint, key.as_deref(), &name, None)?
                }
                Node::TableLikeClause(like) => self.check_like(like, key.as_deref(), &name)?,
                _ => {}
            }
        }
        for constraint in create.constraints().iter() {
            self.check_constraint(constraint, key.as_deref(), &name, None)?;
        }
        everywhere()
    }

    fn full_name(&self, var: &nodes::RangeVar) -> (String, String) {
        let schema = var.schemaname().unwrap_or_else(|| self.creation_schema());
        (schema.to_owned(), var.relname().unwrap_or_default().to_owned())
    }

    /// The first schema of the search path that exists, as far as the catalog shows.
    fn creation_schema(&self) -> &str {
        let catalog = self.context.catalog;
        let exists = |schema: &str| {
            schema == "public"
                || catalog.tables.keys().any(|(s, _)| s == schema)
                || catalog.functions.keys().any(|(s, _)| s == schema)
        };
        self.context.search_path.schemas().find(|s| !s.starts_with("pg_") && exists(s)).unwrap_or("public")
    }

    /// The key column that a table about to be created will have.
    fn key_of_new(&self, create: &nodes::CreateStmt, name: &(String, String)) -> Result<Option<String>> {
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

    fn known(&self, var: &nodes::RangeVar) -> Option<&Table> {
        match self.relation(var) {
            Ok(Found::Table(table)) => Some(table),
            _ => None,
        }
    }

    fn sharded_key(&self, var: &nodes::RangeVar) -> Option<String> {
        let table = self.known(var)?;
        match table.kind {
            TableKind::Sharded { key_index, .. } => table.columns.get(key_index).map(|c| c.name.clone()),
            _ => None,
        }
    }

    fn check_column(
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
    fn check_like(
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
    fn check_constraint(
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
            Some(key) if constraint.indexname().is_none() && !columns.iter().any(|c| c == key) => {
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
        let itself = self.full_name(target) == *table;
        let target_key = if itself { key.map(str::to_owned) } else { self.sharded_key(target) };
        let kind = self.known(target).map(|t| t.kind.clone());
        let full = format!("{}.{}", table.0, table.1);
        match (key, target_key) {
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

    fn check_index(&self, index: &nodes::IndexStmt) -> Result<()> {
        let Some(var) = index.relation().filter(|_| index.unique) else { return Ok(()) };
        let Some(key) = self.sharded_key(var) else { return Ok(()) };
        if index.index_params().iter().any(|element| element.name() == Some(&key)) {
            return Ok(());
        }
        Err(lacks_key("UNIQUE index", &key, &self.full_name(var)))
    }

    fn check_alter(&self, alter: &nodes::AlterTableStmt) -> Result<()> {
        let Some(var) = alter.relation() else { return Ok(()) };
        let key = self.sharded_key(var);
        let name = self.full_name(var);
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
                        return Err(Refusal::unsupported(
                            format!(
                                "adding the sharding key to {}.{} would make it a sharded table",
                                name.0, name.1
                            ),
                            "Create a new table with the key and copy the rows.",
                        ));
                    }
                }
                (
                    AlterTableType::AT_DropColumn
                    | AlterTableType::AT_AlterColumnType
                    | AlterTableType::AT_DropNotNull,
                    _,
                ) if on_key => return Err(alters_key(&name)),
                _ => {}
            }
        }
        Ok(())
    }

    fn check_rename(&self, rename: &nodes::RenameStmt) -> Result<()> {
        let Some(var) = rename.relation().filter(|_| rename.rename_type == ObjectType::OBJECT_COLUMN) else {
            return Ok(());
        };
        match self.sharded_key(var) {
            Some(key) if rename.subname() == Some(&key) => Err(alters_key(&self.full_name(var))),
            _ => Ok(()),
        }
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
        format!("It would hold within each shard only; include {key}, for example PRIMARY KEY ({key}, id)."),
    )
}

fn alters_key(table: &(String, String)) -> Refusal {
    Refusal::unsupported(
        format!("the sharding key of {}.{} cannot be altered: rows are placed by it", table.0, table.1),
        "Create a new table and copy the rows.",
    )
}
