//! MERGE -> blocks.

use pg_raw_parse::raw::{CmdType, MergeMatchKind};
use pg_raw_parse::{Node, nodes};

use super::apply::Command;
use super::dml::{odd_statement, unknown_key};
use super::expr::Place;
use super::ir::{BlockId, Builder, KeyedCall, RelKind, Result, Scope, family};
use crate::route::plan::{KeyRef, Refusal};

impl Builder<'_> {
    /// The target takes part as the nullable side of `source LEFT JOIN target ON ...`.
    pub(super) fn merge_statement(&mut self, merge: &nodes::MergeStmt) -> Result<BlockId> {
        let block = self.new_block();
        self.blocks[block].shape.whole = true;
        if let Some(with) = merge.with_clause() {
            self.with(with, block)?;
        }
        let Some(var) = merge.relation() else { return Err(odd_statement()) };
        let table = self.target_table(var)?;
        self.note_write(var, table, Command::Merge, block);
        let (rel, item) = self.add_target(var, table, block);
        self.blocks[block].scopes.push(Scope { parent: Some(0), facts: Vec::new() });
        if let Some(member) = self.blocks[block].members.last_mut() {
            member.1 = 1;
        }
        self.levels.push(vec![item]);
        self.range_item(merge.source_relation(), block, 0)?;
        self.condition(merge.join_condition(), Place { block, scope: Some(1) })?;
        let place = Place { block, scope: Some(0) };
        for clause in merge.merge_when_clauses().iter() {
            if clause.match_kind == MergeMatchKind::MERGE_WHEN_NOT_MATCHED_BY_SOURCE {
                return Err(Refusal::unsupported(
                    "MERGE ... WHEN NOT MATCHED BY SOURCE is not supported",
                    "Use a DELETE or UPDATE with NOT EXISTS.",
                ));
            }
            self.expression(clause.condition(), place)?;
            self.expressions(clause.values(), place)?;
            let targets: Vec<&nodes::ResTarget> = clause
                .target_list()
                .iter()
                .filter_map(|node| match node {
                    Node::ResTarget(target) => Some(target),
                    _ => None,
                })
                .collect();
            if clause.command_type == CmdType::CMD_INSERT {
                self.merge_insert(rel, clause, &targets, block)?;
                continue;
            }
            for target in targets {
                self.assignment(target, rel, block)?;
                self.expression(target.val(), place)?;
            }
        }
        self.returning(merge.returning_clause(), Place { block, scope: None })?;
        self.levels.pop();
        Ok(block)
    }

    fn merge_insert(
        &mut self,
        rel: usize,
        clause: &nodes::MergeWhenClause,
        targets: &[&nodes::ResTarget],
        block: BlockId,
    ) -> Result<()> {
        self.note_merge_insert(targets, block)?;
        let RelKind::Sharded { key, key_type } = self.rels[rel].kind else { return Ok(()) };
        let name = self.rels[rel].columns.get(key).map_or_else(String::new, |c| c.name.clone());
        let position = if targets.is_empty() {
            Some(key)
        } else {
            targets.iter().position(|t| t.name() == Some(name.as_str()))
        };
        let Some(value) = position.and_then(|i| clause.values().get(i)) else {
            return self.soften(block, unknown_key(&name));
        };
        let column = self.rels[rel].columns.get(key).map_or(0, |c| c.type_oid);
        if let Some(value) = self.value(value)
            && value.family.is_none_or(|f| Some(f) == family(column))
        {
            let before = self.keys.len();
            self.add_key(KeyRef { key_type, place: value.place, batch: false });
            self.assigned_keys += self.keys.len() - before;
            return Ok(());
        }
        match self.column_side(value) {
            Some((term, of)) if of == family(column) => {
                let block = self.blocks.len() - 1;
                let owner = (0..=block)
                    .find(|b| self.blocks[*b].members.iter().any(|(r, _)| *r == rel))
                    .unwrap_or(block);
                self.blocks[owner].calls.push(KeyedCall {
                    name: "the row that MERGE inserts".to_owned(),
                    argument: term,
                    key_type,
                    scope: Some(0),
                });
                Ok(())
            }
            _ => self.soften(block, unknown_key(&name)),
        }
    }
}
