//! What is one server's own and not the database's: where a row lies, in which order rows are found, which copy of a row
//! is locked.

use std::ops::ControlFlow;

use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{Node, nodes};

use super::ir::{BlockId, Builder};

/// System columns (src/backend/catalog/heap.c) that say where a row is, or which transaction wrote it.
const ADDRESS: [&str; 5] = ["ctid", "xmin", "xmax", "cmin", "cmax"];

impl Builder<'_> {
    /// Columns that a copy of the rows would not have, and names that would not find the copy.
    pub(super) fn note_physical(&mut self, reference: &nodes::ColumnRef) {
        let parts: Vec<&str> = reference.fields().iter().filter_map(Node::as_str).collect();
        let system = parts
            .last()
            .filter(|name| matches!(**name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid"));
        if let Some(name) = system {
            self.seen.physical = Some(format!("column {name}"));
        } else if reference.fields().len() > 2 {
            self.seen.physical = Some(format!("the name {}", parts.join(".")));
        }
    }

    /// `ctid = '(0,1)'` is true of another row on every shard, and `xmin = '741'` may be. Compared with each other, as in
    /// a search for duplicates, the rows of one shard are told apart rightly.
    pub(super) fn note_address(&mut self, operation: &nodes::A_Expr) {
        let (left, right) = (operation.lexpr(), operation.rexpr());
        let with_value = |side, other| is_address(side) && !has_column(other);
        self.seen.address |= with_value(left, right) || with_value(right, left);
    }

    /// An aggregate or window function whose value depends on the order in which it is given the rows.
    pub(super) fn note_order(&mut self, call: &nodes::FuncCall, name: &str, aggregate: bool) {
        let bare = name.rsplit('.').next().unwrap_or_default();
        let any_order = matches!(
            bare,
            "count" | "min" | "max" | "bool_and" | "bool_or" | "every" | "bit_and" | "bit_or" | "bit_xor"
        );
        if call.over().is_some() || (aggregate && !any_order) {
            self.seen.order = Some(format!("function {name}, whose value may depend on the order of rows"));
        }
    }

    /// FOR UPDATE and its kin of a reference table's rows. `clauses`: of this block.
    pub(super) fn note_locks(
        &mut self,
        clauses: &pg_raw_parse::list::CastNodeList<nodes::LockingClause>,
        block: BlockId,
    ) {
        for clause in clauses.iter() {
            let names: Vec<&str> = clause
                .locked_rels()
                .iter()
                .filter_map(|node| match node {
                    Node::RangeVar(var) => var.relname(),
                    _ => None,
                })
                .collect();
            let within = self.locked_blocks(block, &names);
            let locked = self.reference_items.iter().find(|(of, alias, _)| {
                if *of == block && !names.is_empty() {
                    names.contains(&alias.as_str())
                } else {
                    within.contains(of)
                }
            });
            if let Some((_, _, table)) = locked {
                self.seen.locked_reference = Some(table.clone());
            }
        }
    }

    /// This block, and the subqueries and views in FROM that the lock reaches.
    fn locked_blocks(&self, block: BlockId, names: &[&str]) -> Vec<BlockId> {
        let mut all = vec![block];
        let mut at = 0;
        while let Some(next) = all.get(at).copied() {
            at += 1;
            for (of, alias, inner) in &self.derived_items {
                let named = names.is_empty() || next != block || names.contains(&alias.as_str());
                if *of == next && named && !all.contains(inner) {
                    all.push(*inner);
                }
            }
        }
        all
    }
}

fn is_address(node: Node<'_>) -> bool {
    match node {
        Node::TypeCast(cast) => is_address(cast.arg()),
        Node::ColumnRef(reference) => reference
            .fields()
            .iter()
            .filter_map(Node::as_str)
            .next_back()
            .is_some_and(|name| ADDRESS.contains(&name)),
        _ => false,
    }
}

fn has_column(node: Node<'_>) -> bool {
    match node {
        // The library's walker does not take a null pointer.
        Node::None | Node::A_Const(_) | Node::ParamRef(_) => false,
        Node::ColumnRef(_) | Node::SubLink(_) => true,
        Node::NodeList(list) => list.iter().any(has_column),
        _ => walk_manual(node, |child| match child {
            Node::ColumnRef(_) | Node::SubLink(_) => ControlFlow::Break(()),
            _ => Recurse::yes(),
        })
        .is_some(),
    }
}
