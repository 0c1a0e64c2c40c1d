//! UPDATE, DELETE and what all writes have in common -> blocks. INSERT is in [`super::insert`].

use pg_raw_parse::{Node, nodes};

use super::apply::Command;
use super::expr::Place;
use super::facts::Term;
use super::ir::{BlockId, Builder, Item, Rel, RelColumn, RelKind, Result, family};
use super::names::Found;
use crate::catalog::{Table, TableKind};
use crate::route::plan::{KeyRef, Refusal};

impl<'a> Builder<'a> {
    /// The table written to; `None` for temporary ones.
    pub(super) fn target_table(&mut self, var: &nodes::RangeVar) -> Result<Option<&'a Table>> {
        self.seen.writes = true;
        self.seen.write_count += 1;
        let table = match self.used_relation(var)? {
            Found::Cte(_) => {
                let name = var.relname().unwrap_or_default();
                match self.find_table(name) {
                    Some(table) => table,
                    None => return Err(self.no_relation(name, var.location)),
                }
            }
            Found::Temporary => {
                self.seen.temporary = true;
                return Ok(None);
            }
            Found::System(name) => {
                self.seen.default = Some(format!("system table {name}"));
                return Ok(None);
            }
            Found::Table(table) => table,
        };
        let full = format!("{}.{}", table.schema, table.name);
        if let Some(trigger) = &table.opaque_trigger {
            return Err(Refusal::unsupported(
                format!("a write to table {full} may touch other shards: {trigger}"),
                "Declare the function that it calls local in the configuration, or drop it.",
            ));
        }
        match table.kind {
            TableKind::View => Err(Refusal::unsupported(
                format!("{full} is a view; writing through views is not supported"),
                "Write to its table.",
            )),
            TableKind::Reference => {
                self.seen.reference_write = Some(full);
                Ok(Some(table))
            }
            TableKind::Plain | TableKind::System => {
                self.seen.default = Some(format!("plain table {full}"));
                Ok(Some(table))
            }
            TableKind::Sharded { .. } => Ok(Some(table)),
        }
    }

    /// The target as a relation of the block; it must be bound like any other.
    pub(super) fn add_target(
        &mut self,
        var: &nodes::RangeVar,
        table: Option<&Table>,
        block: BlockId,
    ) -> (usize, Item) {
        let name = var.relname().unwrap_or_default();
        let alias = var.alias().and_then(nodes::Alias::aliasname).unwrap_or(name).to_owned();
        let columns: Vec<RelColumn> = table.map_or_else(Vec::new, |t| {
            t.columns.iter().map(|c| RelColumn { name: c.name.clone(), type_oid: c.type_oid }).collect()
        });
        let kind = match table.map(|t| &t.kind) {
            Some(TableKind::Sharded { key_index, key_type }) => {
                RelKind::Sharded { key: *key_index, key_type: *key_type }
            }
            _ => RelKind::Other,
        };
        let full = table.map_or_else(|| name.to_owned(), |t| format!("{}.{}", t.schema, t.name));
        let rel = self.add_rel(block, 0, Rel { kind, name: full, columns });
        let schema = table.filter(|_| var.alias().is_none()).map(|t| t.schema.clone());
        (rel, self.item(rel, alias, schema, table.is_none()))
    }

    pub(super) fn update(&mut self, update: &nodes::UpdateStmt) -> Result<BlockId> {
        let ctes_before = self.visible_ctes.len();
        let block = self.new_block();
        if let Some(with) = update.with_clause() {
            self.with(with, block)?;
        }
        let Some(var) = update.relation() else { return Err(odd_statement()) };
        let table = self.target_table(var)?;
        self.note_write(var, table, Command::Update, block);
        let (rel, item) = self.add_target(var, table, block);
        let place = Place { block, scope: Some(0) };
        self.levels.push(vec![item]);
        for node in update.from_clause() {
            self.range_item(node, block, 0)?;
        }
        if !update.from_clause().is_empty() {
            self.seen.order = Some("FROM, which may find several rows for one".to_owned());
        }
        self.condition(update.where_clause(), place)?;
        let others = !update.from_clause().is_empty();
        for target in update.target_list().iter() {
            self.assignment(target, rel, block)?;
            self.expression(target.val(), place)?;
        }
        self.note_condition(update.where_clause(), others, block);
        // RETURNING shows the new row; WHERE spoke of the old one.
        self.returning(update.returning_clause(), Place { block, scope: None })?;
        let assigned: Vec<&str> = update.target_list().iter().filter_map(nodes::ResTarget::name).collect();
        let columns = &self.rels[rel].columns;
        for output in self.blocks[block].outputs.iter_mut().flatten() {
            if let Some(Term::Column(of, i)) = output.term
                && of == rel
                && columns.get(i).is_none_or(|column| assigned.contains(&column.name.as_str()))
            {
                output.term = None;
            }
        }
        self.levels.pop();
        self.visible_ctes.truncate(ctes_before);
        Ok(block)
    }

    /// SET key = ... only to a value that is then known to be on the same shard.
    pub(super) fn assignment(&mut self, target: &nodes::ResTarget, rel: usize, block: BlockId) -> Result<()> {
        if let Some(name) = target.name() {
            self.note_assigned(name, matches!(target.val(), Node::SetToDefault(_)), block)?;
        }
        let RelKind::Sharded { key, key_type } = self.rels[rel].kind else { return Ok(()) };
        let Some(column) = self.rels[rel].columns.get(key).cloned() else { return Ok(()) };
        if target.name() != Some(column.name.as_str()) {
            return Ok(());
        }
        if let Some(value) = self.value(target.val())
            && value.family.is_none_or(|f| Some(f) == family(column.type_oid))
        {
            // Both the old and the new key are resolved, and must be on one shard.
            self.evidence.push(format!("SET {} = {}", column.name, super::calls::describe(&value.place)));
            let before = self.keys.len();
            self.add_key(KeyRef { key_type, place: value.place, batch: false });
            self.assigned_keys += self.keys.len() - before;
            return Ok(());
        }
        if self.column_term(target.val()).is_some_and(|(term, _)| term == Term::Column(rel, key)) {
            return Ok(());
        }
        self.soften(block, key_update(&column.name))
    }

    pub(super) fn delete(&mut self, delete: &nodes::DeleteStmt) -> Result<BlockId> {
        let ctes_before = self.visible_ctes.len();
        let block = self.new_block();
        if let Some(with) = delete.with_clause() {
            self.with(with, block)?;
        }
        let Some(var) = delete.relation() else { return Err(odd_statement()) };
        let table = self.target_table(var)?;
        self.note_write(var, table, Command::Delete, block);
        let (_, item) = self.add_target(var, table, block);
        self.levels.push(vec![item]);
        for node in delete.using_clause() {
            self.range_item(node, block, 0)?;
        }
        self.condition(delete.where_clause(), Place { block, scope: Some(0) })?;
        self.note_condition(delete.where_clause(), !delete.using_clause().is_empty(), block);
        self.returning(delete.returning_clause(), Place { block, scope: Some(0) })?;
        self.levels.pop();
        self.visible_ctes.truncate(ctes_before);
        Ok(block)
    }

    pub(super) fn returning(&mut self, clause: Option<&nodes::ReturningClause>, place: Place) -> Result<()> {
        let mut outputs = Some(Vec::new());
        if let Some(clause) = clause {
            for node in clause.exprs() {
                let Node::ResTarget(target) = node else { continue };
                self.expression(target.val(), place)?;
                let found = self.target(target);
                outputs = match (outputs, found) {
                    (Some(mut all), Some(found)) => {
                        all.extend(found);
                        Some(all)
                    }
                    _ => None,
                };
            }
        }
        // What is written does not depend on who reads RETURNING.
        if let Some(outputs) = outputs.as_mut() {
            outputs.iter_mut().for_each(|o: &mut super::ir::Output| o.pushable = false);
        }
        self.blocks[place.block].outputs = outputs;
        Ok(())
    }
}

pub(super) fn unknown_key(column: &str) -> Refusal {
    Refusal::unsupported(
        format!("the value of the sharding key {column} is not known before execution"),
        "Give the key as a constant or a parameter of its own type.",
    )
}

pub(super) fn key_update(column: &str) -> Refusal {
    Refusal::unsupported(
        format!("changing the sharding key {column} would move the row to another shard"),
        "Delete the row and insert it under the other key.",
    )
}

pub(super) fn odd_statement() -> Refusal {
    Refusal::unsupported("the statement could not be analysed", "Please report it.")
}
