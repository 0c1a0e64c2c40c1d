//! INSERT -> blocks: rows that may be cut apart by their keys, defaults, and conflicts.

use pg_raw_parse::raw::{OnConflictAction, OverridingKind};
use pg_raw_parse::{Node, nodes};

use super::apply::Command;
use super::dml::{key_update, odd_statement, unknown_key};
use super::expr::Place;
use super::facts::{Fact, Term};
use super::ir::{BlockId, Builder, Item, ItemColumn, Rel, RelKind, Result, Value, family};
use super::select::merge;
use super::tokens::split_rows;
use crate::catalog::{Table, TableKind};
use crate::route::plan::{Draws, KeyRef, Refusal, SplitInsert};

impl Builder<'_> {
    /// `top`: a statement of its own, which may be split by rows.
    pub(super) fn insert(
        &mut self,
        insert: &nodes::InsertStmt,
        top: bool,
    ) -> Result<(BlockId, Option<SplitInsert>)> {
        let ctes_before = self.visible_ctes.len();
        let block = self.new_block();
        if let Some(with) = insert.with_clause() {
            self.with(with, block)?;
        }
        let Some(var) = insert.relation() else { return Err(odd_statement()) };
        let table = self.target_table(var)?;
        // A copy has no identity whose values could be overridden.
        if insert.override_ != OverridingKind::OVERRIDING_USER_VALUE {
            self.note_write(var, table, Command::Insert, block);
        }
        let (rel, item) = self.add_target(var, table, block);
        self.blocks[block].inserts_into = Some(rel);
        let named: Vec<&str> = insert
            .cols()
            .iter()
            .filter_map(|node| match node {
                Node::ResTarget(target) => target.name(),
                _ => None,
            })
            .collect();
        let key = match table.map(|t| (&t.kind, t)) {
            Some((TableKind::Sharded { key_index, .. }, table)) => {
                let column = table.columns.get(*key_index).map_or("", |c| c.name.as_str());
                let position = if named.is_empty() {
                    Some(*key_index)
                } else {
                    named.iter().position(|name| *name == column)
                };
                if position.is_none() {
                    self.soften(block, no_key(table, column))?;
                }
                position.map(|position| (*key_index, position, column))
            }
            _ => None,
        };
        let (mut undrawn, mut draws) = (None, None);
        if let Some(table) = table.filter(|t| t.kind == TableKind::Reference) {
            self.reference_defaults(table, &named, insert).or_else(|refusal| self.soften(block, refusal))?;
        }
        if let Some(table) = table.filter(|t| matches!(t.kind, TableKind::Sharded { .. })) {
            undrawn = self.sequence_defaults(table, &named, insert).err();
            draws = undrawn.as_ref().and_then(|_| drawn_columns(table, &named, insert));
        }
        let place = Place { block, scope: Some(0) };
        let mut split = None;
        self.levels.push(Vec::new());
        match insert.select_stmt() {
            Node::None => {
                if let (Some((_, _, column)), Some(table)) = (key, table) {
                    self.soften(block, no_key(table, column))?;
                }
            }
            Node::SelectStmt(select) if is_values(select) => {
                let mut values = Vec::new();
                for row in select.values_lists() {
                    let Node::NodeList(row) = row else { continue };
                    self.expressions(row, place)?;
                    let Some((_, position, column)) = key else { continue };
                    match row.get(position).and_then(|node| self.value(node)) {
                        Some(value) => values.push(value),
                        None => self.soften(block, unknown_key(column))?,
                    }
                }
                if let Some((index, _, _)) = key.filter(|_| self.soft.is_none() || block != 0) {
                    split = self.insert_rows(insert, rel, index, values, block, top, draws.is_some());
                }
            }
            Node::SelectStmt(select) => {
                let inner = self.select(select)?;
                let columns = self.block_columns(inner, &[]);
                let output = key.and_then(|(_, position, _)| {
                    self.blocks[inner].outputs.as_ref().and_then(|o| o.get(position)).cloned()
                });
                let exports = self.exports(inner);
                let derived =
                    Rel { kind: RelKind::Derived(inner), name: "the inserted rows".to_owned(), columns };
                let derived = self.add_rel(block, 0, derived);
                self.export_facts(derived, &exports, block, 0);
                if let Some((index, position, column)) = key {
                    let wanted = self.rels[rel].columns.get(index).map_or(0, |c| c.type_oid);
                    let fits = |oid: u32| oid == 0 || family(oid) == family(wanted);
                    if !output.is_some_and(|o| fits(o.type_oid)) {
                        self.soften(block, unknown_key(column))?;
                    } else {
                        self.add_fact(
                            block,
                            Some(0),
                            Fact::same(Term::Column(rel, index), Term::Column(derived, position)),
                        );
                    }
                }
            }
            _ => return Err(odd_statement()),
        }
        if let Some(refusal) = undrawn {
            match (&mut split, draws) {
                (Some(split), Some(draws)) => split.draws = Some(draws),
                _ => {
                    split = None;
                    self.soften(block, refusal)?;
                }
            }
        }
        self.levels.pop();
        self.levels.push(vec![item.clone()]);
        let before = self.before_tail();
        if insert.on_conflict_clause().is_some()
            && matches!(insert.select_stmt(), Node::SelectStmt(select) if !is_values(select))
        {
            self.seen.order = Some("rows of a query of which the first one wins".to_owned());
        }
        if let Some(conflict) = insert.on_conflict_clause() {
            self.on_conflict(conflict, &item, table, place)?;
        }
        self.returning(insert.returning_clause(), place)?;
        self.note_tail(before, insert.on_conflict_clause().is_some(), block);
        self.levels.pop();
        self.visible_ctes.truncate(ctes_before);
        Ok((block, split))
    }

    /// Binds the target to the rows' keys; several rows of a statement of its own may be split instead.
    fn insert_rows(
        &mut self,
        insert: &nodes::InsertStmt,
        rel: usize,
        index: usize,
        values: Vec<Value>,
        block: BlockId,
        top: bool,
        draws: bool,
    ) -> Option<SplitInsert> {
        let RelKind::Sharded { key_type, .. } = self.rels[rel].kind else { return None };
        let column = self.rels[rel].columns.get(index).map_or(0, |c| c.type_oid);
        let term = Term::Column(rel, index);
        let keys: Vec<KeyRef> =
            values.iter().map(|v| KeyRef { key_type, place: v.place.clone(), batch: false }).collect();
        let fits = values.iter().all(|v| v.family.is_none_or(|f| Some(f) == family(column)));
        let several = draws || values.len() > 1 && values.iter().any(|v| v.place != values[0].place);
        if fits
            && let Some(value) = merge(values)
            && let Some(fact) = self.bind(term, family(column), Value { family: None, ..value })
        {
            self.add_fact(block, Some(0), fact);
        }
        let alone = top
            && self.blocks[block].subs.is_empty()
            && insert.with_clause().is_none()
            && self.keys.is_empty();
        if !(fits && several && alone) {
            return None;
        }
        let returning = insert.returning_clause().is_some();
        split_rows(self.text, self.context.standard_conforming_strings, keys, returning)
    }

    fn on_conflict(
        &mut self,
        conflict: &nodes::OnConflictClause,
        item: &Item,
        table: Option<&Table>,
        place: Place,
    ) -> Result<()> {
        let key = table.and_then(|t| match t.kind {
            TableKind::Sharded { key_index, .. } => t.columns.get(key_index).map(|c| c.name.clone()),
            _ => None,
        });
        if let Some(infer) = conflict.infer() {
            let mut names = Vec::new();
            for node in infer.index_elems() {
                if let Node::IndexElem(element) = node {
                    names.extend(element.name().map(str::to_owned));
                    self.expression(element.expr(), place)?;
                }
            }
            self.expression(infer.where_clause(), place)?;
            let full = table.map(|t| (t.schema.clone(), t.name.clone()));
            let vouched = full.is_some_and(|table| self.is_vouched(&table, None, &names));
            if let Some(key) =
                key.as_ref().filter(|key| !names.is_empty() && !names.contains(key) && !vouched)
            {
                return Err(Refusal::unsupported(
                    format!("ON CONFLICT without the sharding key {key} would only see one shard's rows"),
                    format!("Make {key} part of the unique index and of the conflict target."),
                ));
            }
        }
        if conflict.action != OnConflictAction::ONCONFLICT_UPDATE {
            return Ok(());
        }
        let excluded = Item {
            alias: Some("excluded".to_owned()),
            schema: None,
            // Not terms: the row proposed and the row stored have the same key, but nothing needs to know.
            columns: item.columns.iter().map(|c| ItemColumn { term: None, ..c.clone() }).collect(),
            open: item.open,
        };
        if let Some(level) = self.levels.last_mut() {
            level.push(excluded);
        }
        for target in conflict.target_list().iter() {
            if matches!(target.val(), Node::SetToDefault(_))
                && let Some(column) =
                    table.and_then(|t| t.columns.iter().find(|c| Some(c.name.as_str()) == target.name()))
                && column.draws
            {
                return Err(draws(&column.name));
            }
            if target.name() == key.as_deref() && key.is_some() && !keeps_key(target) {
                return Err(key_update(key.as_deref().unwrap_or_default()));
            }
            self.expression(target.val(), place)?;
        }
        self.expression(conflict.where_clause(), place)?;
        if let Some(level) = self.levels.last_mut() {
            level.pop();
        }
        Ok(())
    }

    /// A shard would draw from a sequence of its own, and give numbers that others have given, too (H26).
    fn sequence_defaults(&self, table: &Table, named: &[&str], insert: &nodes::InsertStmt) -> Result<()> {
        let mut columns = table.columns.iter().enumerate().filter(|(_, c)| c.draws);
        match columns.find(|(i, c)| !always_given(insert, named, *i, &c.name)) {
            None => Ok(()),
            Some((_, column)) => Err(draws(&column.name)),
        }
    }

    /// Every shard computes its own defaults: they must come out the same.
    fn reference_defaults(&self, table: &Table, named: &[&str], insert: &nodes::InsertStmt) -> Result<()> {
        let mut columns = table.columns.iter().enumerate().filter(|(_, c)| c.volatile_default);
        let missing = columns.find(|(i, c)| !always_given(insert, named, *i, &c.name));
        match missing {
            None => Ok(()),
            Some((_, column)) => Err(Refusal::unsupported(
                format!(
                    "the default of column {} of reference table {}.{} would differ from shard to shard",
                    column.name, table.schema, table.name
                ),
                "Give the column a value.",
            )),
        }
    }
}

/// Does every row give this column a value? Without a list of columns a row gives the first ones.
fn always_given(insert: &nodes::InsertStmt, named: &[&str], index: usize, name: &str) -> bool {
    let position = match named.iter().position(|known| *known == name) {
        Some(position) => position,
        None if named.is_empty() => index,
        None => return false,
    };
    match insert.select_stmt() {
        Node::SelectStmt(s) if is_values(s) => s.values_lists().iter().all(|row| {
            row.as_node_list()
                .and_then(|row| row.get(position))
                .is_some_and(|value| !matches!(value, Node::SetToDefault(_)))
        }),
        Node::SelectStmt(_) => !named.is_empty(),
        _ => false,
    }
}

/// An INSERT's head that names the columns left out whose values come from sequences, and what draws them. `None`: it
/// is not that simple.
fn drawn_columns(table: &Table, named: &[&str], insert: &nodes::InsertStmt) -> Option<Draws> {
    let Node::SelectStmt(select) = insert.select_stmt() else { return None };
    let plain =
        insert.cols().iter().all(|node| matches!(node, Node::ResTarget(t) if t.indirection().is_empty()));
    if !is_values(select) || !plain || insert.override_ == OverridingKind::OVERRIDING_USER_VALUE {
        return None;
    }
    let widths: Option<Vec<usize>> =
        select.values_lists().iter().map(|row| Some(row.as_node_list()?.len())).collect();
    let widths = widths?;
    let width = *widths.first()?;
    let mut columns: Vec<&str> = match named {
        [] => table.columns.iter().take(width).map(|column| column.name.as_str()).collect(),
        named => named.to_vec(),
    };
    let given = |name: &str| columns.contains(&name);
    let missing: Vec<_> = table.columns.iter().filter(|c| c.draws && !given(&c.name)).collect();
    // The rows' DEFAULTs must not be for such columns, either.
    let explicit = table
        .columns
        .iter()
        .enumerate()
        .any(|(i, c)| c.draws && given(&c.name) && !always_given(insert, named, i, &c.name));
    if explicit || missing.is_empty() || columns.len() != width || widths.iter().any(|other| *other != width)
    {
        return None;
    }
    columns.extend(missing.iter().map(|column| column.name.as_str()));
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let alias = insert.relation()?.alias().and_then(nodes::Alias::aliasname);
    let alias = alias.map_or(String::new(), |alias| format!(" AS {}", quote(alias)));
    let list: Vec<String> = columns.iter().map(|name| quote(name)).collect();
    // Identities that the rows give are given only if the client overrides, too: else that is the server's error.
    let identities = table.columns.iter().any(|c| c.draws && given_by(&columns, missing.len(), &c.name));
    let overriding = insert.override_ == OverridingKind::OVERRIDING_SYSTEM_VALUE;
    if identities && !overriding && missing.iter().any(|c| is_identity(c)) {
        return None;
    }
    Some(Draws {
        head: format!(
            "INSERT INTO {}.{}{alias} ({}) {}VALUES ",
            quote(&table.schema),
            quote(&table.name),
            list.join(", "),
            if overriding || missing.iter().any(|c| is_identity(c)) {
                "OVERRIDING SYSTEM VALUE "
            } else {
                ""
            }
        ),
        values: missing.iter().map(|column| column.draw.clone()).collect::<Option<_>>()?,
    })
}

/// One of the client's own columns, of which the last `ours` are not.
fn given_by(columns: &[&str], ours: usize, name: &str) -> bool {
    columns.iter().take(columns.len() - ours).any(|column| *column == name)
}

fn is_identity(column: &crate::catalog::Column) -> bool {
    column.draw.as_ref().is_some_and(|draw| draw.starts_with("shard_catalog."))
}

pub(super) fn draws(column: &str) -> Refusal {
    Refusal::unsupported(
        format!("column {column} takes its default from a sequence, of which every shard has its own"),
        format!("Draw with nextval() first, and give {column} that value."),
    )
}

fn is_values(select: &nodes::SelectStmt) -> bool {
    !select.values_lists().is_empty()
        && select.with_clause().is_none()
        && select.sort_clause().is_empty()
        && matches!(select.limit_count(), Node::None)
        && matches!(select.limit_offset(), Node::None)
}

fn keeps_key(target: &nodes::ResTarget) -> bool {
    let Node::ColumnRef(reference) = target.val() else { return false };
    let parts: Vec<&str> = reference.fields().iter().filter_map(Node::as_str).collect();
    matches!(parts.as_slice(), ["excluded", column] if Some(*column) == target.name())
}

fn no_key(table: &Table, column: &str) -> Refusal {
    Refusal::unsupported(
        format!("INSERT into {}.{} does not give its sharding key {column}", table.schema, table.name),
        format!("Name {column} among the columns and give it a value."),
    )
}
