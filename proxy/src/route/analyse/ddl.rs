//! Definitions: run on every shard, so that all have one schema. What a table may not have is in [`super::constraints`],
//! what would make it another kind of table in [`super::placement`].

use pg_raw_parse::raw::ObjectType;
use pg_raw_parse::{Node, nodes};

use super::ir::{Builder, Result};
use super::names::Found;
use super::plain_plan;
use super::utility::autocommit;
use crate::catalog::{Table, TableKind};
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
            Node::AlterObjectSchemaStmt(alter) => {
                self.check_new_schema(alter)?;
                everywhere()
            }
            Node::CreateSchemaStmt(create) if !create.schema_elts().is_empty() => Err(Refusal::unsupported(
                "CREATE SCHEMA with the objects in it",
                "Create the schema first, then its objects, each by a statement of its own.",
            )),
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
        if let Node::ExecuteStmt(execute) = create.query() {
            return self.execute(execute);
        }
        let into = create.into();
        let target = into.and_then(nodes::IntoClause::rel);
        if temporary(target) {
            let pin = self.pin_temporary(target, "temporary table")?;
            let plan = self.inner(pg_raw_parse::Node::None, create.query())?;
            self.without_sequence_value("CREATE TABLE AS")?;
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
        self.check_parents(create, key.as_deref(), &name)?;
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

    pub(super) fn full_name(&self, var: &nodes::RangeVar) -> (String, String) {
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

    pub(super) fn known(&self, var: &nodes::RangeVar) -> Option<&Table> {
        match self.relation(var) {
            Ok(Found::Table(table)) => Some(table),
            _ => None,
        }
    }

    pub(super) fn sharded_key(&self, var: &nodes::RangeVar) -> Option<String> {
        let table = self.known(var)?;
        match table.kind {
            TableKind::Sharded { key_index, .. } => table.columns.get(key_index).map(|c| c.name.clone()),
            _ => None,
        }
    }
}
