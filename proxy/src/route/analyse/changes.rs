//! Which relations a definition changes: until its transaction ends, routing knows them as they were before (H39).

use pg_raw_parse::raw::{AlterTableType, DropBehavior, ObjectType};
use pg_raw_parse::{Node, nodes};

use super::ir::SeenTables;
use crate::route::plan::{Changes, Tables};

/// `None`: nothing that routing goes by.
pub(super) fn of(node: Node<'_>) -> Option<Changes> {
    match node {
        Node::IndexStmt(_)
        | Node::CommentStmt(_)
        | Node::GrantStmt(_)
        | Node::GrantRoleStmt(_)
        | Node::VacuumStmt(_)
        | Node::ReindexStmt(_)
        | Node::ClusterStmt(_)
        | Node::CreateSeqStmt(_)
        | Node::AlterSeqStmt(_)
        | Node::CreateStatsStmt(_)
        | Node::AlterStatsStmt(_)
        | Node::CreateEnumStmt(_)
        | Node::CreateRoleStmt(_)
        | Node::AlterRoleStmt(_)
        | Node::AlterRoleSetStmt(_)
        | Node::DropRoleStmt(_)
        | Node::AlterOwnerStmt(_) => None,
        Node::CreateSchemaStmt(create) if create.schema_elts().is_empty() => None,
        Node::CreateStmt(create) => relation(create.relation()),
        Node::CreateTableAsStmt(create) => relation(create.into().and_then(nodes::IntoClause::rel)),
        Node::ViewStmt(view) => relation(view.view()),
        Node::CreateTrigStmt(trigger) => relation(trigger.relation()),
        Node::RuleStmt(rule) => relation(rule.relation()),
        Node::AlterTableStmt(alter) if !reaches_others(alter) => relation(alter.relation()),
        Node::AlterObjectSchemaStmt(alter) => relation(alter.relation()),
        Node::RenameStmt(rename) => {
            let old = rename.relation().and_then(nodes::RangeVar::relname);
            let new = rename.newname();
            match (old, new) {
                (Some(old), Some(new)) => Some(Changes::Relations([old.to_owned(), new.to_owned()].into())),
                _ => Some(Changes::Unknown),
            }
        }
        Node::DropStmt(drop) => dropped(drop),
        _ => Some(Changes::Unknown),
    }
}

fn relation(var: Option<&nodes::RangeVar>) -> Option<Changes> {
    let name = var.and_then(nodes::RangeVar::relname);
    Some(name.map_or(Changes::Unknown, |name| Changes::Relations([name.to_owned()].into())))
}

/// Partitions and children lose a column with their parent, and a table may become one of another's.
fn reaches_others(alter: &nodes::AlterTableStmt) -> bool {
    alter.cmds().iter().any(|command| match command {
        Node::AlterTableCmd(command) => matches!(
            command.subtype,
            AlterTableType::AT_DropColumn
                | AlterTableType::AT_AttachPartition
                | AlterTableType::AT_DetachPartition
                | AlterTableType::AT_AddInherit
                | AlterTableType::AT_DropInherit
        ),
        _ => true,
    })
}

fn dropped(drop: &nodes::DropStmt) -> Option<Changes> {
    match drop.remove_type {
        _ if drop.behavior == DropBehavior::DROP_CASCADE => Some(Changes::Unknown),
        ObjectType::OBJECT_INDEX | ObjectType::OBJECT_SEQUENCE => None,
        ObjectType::OBJECT_TABLE | ObjectType::OBJECT_VIEW | ObjectType::OBJECT_MATVIEW => {
            let name = |object: Node<'_>| {
                object
                    .as_node_list()
                    .into_iter()
                    .flatten()
                    .filter_map(|n| n.as_str().map(str::to_owned))
                    .last()
            };
            let names: Option<Box<[String]>> = drop.objects().iter().map(name).collect();
            Some(names.map_or(Changes::Unknown, Changes::Relations))
        }
        _ => Some(Changes::Unknown),
    }
}

impl From<SeenTables> for Tables {
    fn from(seen: SeenTables) -> Self {
        Self { names: seen.names.into(), keyed: seen.keyed }
    }
}
