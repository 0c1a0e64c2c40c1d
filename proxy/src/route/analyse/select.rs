//! SELECT, VALUES and set operations -> blocks.

use std::ops::ControlFlow;

use pg_raw_parse::raw::{CTEMaterialize, SetOperation};
use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{Node, nodes};

use super::expr::Place;
use super::facts::{Export, Fact, Term};
use super::ir::{BlockId, Builder, Cte, Family, Output, RelColumn, Result, Value, family};
use crate::route::plan::{KeyPlace, Refusal};

impl Builder<'_> {
    pub(super) fn select(&mut self, select: &nodes::SelectStmt) -> Result<BlockId> {
        self.enter()?;
        let ctes_before = self.visible_ctes.len();
        let block = self.new_block();
        if let Some(with) = select.with_clause() {
            self.with(with, block)?;
        }
        if select.into_clause().is_some() {
            return Err(Refusal::unsupported(
                "SELECT INTO is not supported",
                "Use CREATE TABLE, then INSERT ... SELECT.",
            ));
        }
        let place = Place { block, scope: Some(0) };
        if select.op != SetOperation::SETOP_NONE {
            self.set_operation(select, block)?;
            self.tail(select, place)?;
        } else if !select.values_lists().is_empty() {
            self.levels.push(Vec::new());
            self.values_rows(select.values_lists(), block)?;
            self.blocks[block].shape.whole = true;
            self.tail(select, place)?;
            self.levels.pop();
        } else {
            self.query(select, place)?;
        }
        self.visible_ctes.truncate(ctes_before);
        self.leave();
        Ok(block)
    }

    fn query(&mut self, select: &nodes::SelectStmt, place: Place) -> Result<()> {
        self.levels.push(Vec::new());
        for item in select.from_clause() {
            self.range_item(item, place.block, 0)?;
        }
        self.condition(select.where_clause(), place)?;
        let limited = self.limited(select);
        let mut windows = !select.window_clause().is_empty();
        for target in select.target_list().iter() {
            self.expression(target.val(), place)?;
            windows |= has_window(target.val());
        }
        for node in select.group_clause() {
            self.positional(node, place)?;
        }
        self.expression(select.having_clause(), place)?;
        for node in select.window_clause() {
            if let Node::WindowDef(window) = node {
                self.window(window, place)?;
            }
        }
        // DISTINCT ON keeps one row of each group: a filter on anything but the group would choose another.
        let mut distinct_on: Option<Vec<Term>> = None;
        for node in select.distinct_clause() {
            self.positional(node, place)?;
            if !matches!(node, Node::None) {
                self.seen.order = Some("DISTINCT ON".to_owned());
                let term = self.column_term(node).map(|(term, _)| term);
                distinct_on.get_or_insert_with(Vec::new).extend(term);
            }
        }
        // With GROUP BY a plain column is constant within its group, so a filter on it may go below.
        let pushable = |term: Option<Term>| {
            !limited
                && !windows
                && distinct_on.as_ref().is_none_or(|on| term.is_some_and(|t| on.contains(&t)))
        };
        let mut outputs = Some(Vec::new());
        for target in select.target_list().iter() {
            let mut found = self.target(target);
            if let Some(found) = found.as_mut() {
                found.iter_mut().for_each(|o| o.pushable = pushable(o.term));
            }
            outputs = match (outputs, found) {
                (Some(mut all), Some(found)) => {
                    all.extend(found);
                    Some(all)
                }
                _ => None,
            };
        }
        self.blocks[place.block].outputs = outputs;
        self.note_shape(select, place.block, limited || windows);
        self.tail(select, place)?;
        let items = self.levels.pop();
        if place.block == 0 {
            self.top_items = items;
        }
        Ok(())
    }

    /// ORDER BY, LIMIT, FOR UPDATE.
    fn tail(&mut self, select: &nodes::SelectStmt, place: Place) -> Result<()> {
        for sort in select.sort_clause().iter() {
            self.positional(sort.node(), place)?;
        }
        self.positional(select.limit_count(), place)?;
        self.positional(select.limit_offset(), place)?;
        if !select.locking_clause().is_empty() {
            self.seen.writes = true;
            self.seen.locks = true;
            self.note_locks(select.locking_clause(), place.block);
        }
        Ok(())
    }

    fn limited(&mut self, select: &nodes::SelectStmt) -> bool {
        let none = |node: Node<'_>| match node {
            Node::None => true,
            Node::A_Const(c) => c.isnull,
            _ => false,
        };
        let limited = !none(select.limit_count()) || !none(select.limit_offset());
        self.seen.limit |= limited;
        limited
    }

    fn set_operation(&mut self, select: &nodes::SelectStmt, block: BlockId) -> Result<()> {
        // A long chain of UNION ALL leans to the left; unrolled, it costs no stack. What the operations are does
        // not matter: a filter on an output commutes with all of them.
        let mut rest = vec![];
        let mut left = select;
        loop {
            rest.extend(left.rarg());
            let Some(next) = left.larg() else { break };
            left = next;
            let plain = left.op != SetOperation::SETOP_NONE
                && left.with_clause().is_none()
                && left.sort_clause().is_empty()
                && matches!(left.limit_count(), Node::None)
                && matches!(left.limit_offset(), Node::None)
                && left.locking_clause().is_empty();
            if !plain {
                rest.push(left);
                break;
            }
        }
        let mut branches = Vec::new();
        for branch in rest.into_iter().rev() {
            branches.push(self.select(branch)?);
        }
        let limited = self.limited(select);
        let mut outputs = branches.first().and_then(|b| self.blocks[*b].outputs.clone());
        if let Some(outputs) = outputs.as_mut() {
            for (i, output) in outputs.iter_mut().enumerate() {
                let same = branches.iter().all(|b| {
                    let of = self.blocks[*b].outputs.as_ref().and_then(|o| o.get(i));
                    of.is_some_and(|o| o.type_oid == output.type_oid)
                });
                output.term = None;
                output.pushable = !limited;
                if !same {
                    output.type_oid = 0;
                }
            }
        }
        self.blocks[block].outputs = outputs;
        self.blocks[block].branches = branches;
        Ok(())
    }

    /// Rows of constants: each column is one of its values.
    fn values_rows(&mut self, rows: &pg_raw_parse::list::NodeList, block: BlockId) -> Result<()> {
        let place = Place { block, scope: Some(0) };
        let mut columns: Vec<Option<Vec<Value>>> = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let Node::NodeList(row) = row else { continue };
            if n == 0 {
                columns = vec![Some(Vec::new()); row.len()];
            }
            for (i, node) in row.iter().enumerate() {
                self.expression(node, place)?;
                let value = self.value(node);
                if let Some(column) = columns.get_mut(i) {
                    *column = match (column.take(), value) {
                        (Some(mut all), Some(value)) => {
                            all.push(value);
                            Some(all)
                        }
                        _ => None,
                    };
                }
            }
        }
        let mut outputs = Vec::new();
        for (i, column) in columns.into_iter().enumerate() {
            let name = format!("column{}", i + 1);
            let merged = column.and_then(merge);
            let type_oid = merged.as_ref().and_then(|v| v.family).map_or(0, type_of);
            let term = merged.map(|value| self.add_value(value));
            outputs.push(Output { name, term, type_oid, pushable: true });
        }
        self.blocks[block].outputs = Some(outputs);
        Ok(())
    }

    /// The output columns of one item of a target list. `None`: not known.
    pub(super) fn target(&mut self, target: &nodes::ResTarget) -> Option<Vec<Output>> {
        if let Node::ColumnRef(reference) = target.val() {
            let fields: Vec<Node<'_>> = reference.fields().iter().collect();
            if matches!(fields.last(), Some(Node::A_Star(_))) {
                let qualifier: Vec<&str> = fields.iter().filter_map(|f| f.as_str()).collect();
                return self.star(&qualifier);
            }
        }
        let column = self.column_term(target.val());
        let (term, type_oid) = match column {
            Some((term, type_oid)) => (Some(term), type_oid),
            None => match self.value(target.val()) {
                Some(value) => {
                    let type_oid = value.family.map_or(0, type_of);
                    (Some(self.add_value(value)), type_oid)
                }
                None => (None, 0),
            },
        };
        let name = target.name().map_or_else(|| figure_name(target.val()), str::to_owned);
        Some(vec![Output { name, term, type_oid, pushable: true }])
    }

    fn star(&self, qualifier: &[&str]) -> Option<Vec<Output>> {
        let level = self.levels.last()?;
        let mut outputs = Vec::new();
        for item in level {
            let wanted = match qualifier {
                [] => true,
                [table] => item.alias.as_deref() == Some(table),
                [.., schema, table] => {
                    item.alias.as_deref() == Some(table) && item.schema.as_deref() == Some(schema)
                }
            };
            if !wanted {
                continue;
            }
            if item.open {
                return None;
            }
            let columns = item.columns.iter().filter(|c| !c.hidden || !qualifier.is_empty());
            outputs.extend(columns.map(|c| Output {
                name: c.name.clone(),
                term: c.term,
                type_oid: c.type_oid,
                pushable: true,
            }));
        }
        (!outputs.is_empty()).then_some(outputs)
    }

    pub(super) fn with(&mut self, with: &nodes::WithClause, block: BlockId) -> Result<()> {
        let outer = self.later_ctes.len();
        if with.recursive {
            // Its own name is in sight of a recursive CTE by other means.
            let names = with.ctes().iter().skip(1).filter_map(|cte| cte.ctename().map(str::to_owned));
            let mut names: Vec<String> = names.collect();
            names.reverse();
            self.later_ctes.extend(names);
        }
        for (n, cte) in with.ctes().iter().enumerate() {
            if with.recursive && n > 0 {
                self.later_ctes.pop();
            }
            let name = cte.ctename().unwrap_or_default().to_owned();
            let aliases: Vec<String> =
                cte.aliascolnames().iter().filter_map(|n| n.as_str().map(str::to_owned)).collect();
            let recursive = with.recursive && matches!(cte.ctequery(), Node::SelectStmt(s) if s.op != 0);
            let closed = recursive
                || cte.ctematerialized == CTEMaterialize::CTEMaterializeAlways
                || !matches!(cte.ctequery(), Node::SelectStmt(_));
            // FROM items of the query that has the WITH are not in sight of its CTEs, those around it are.
            let id = match cte.ctequery() {
                Node::SelectStmt(select) if recursive => self.recursive(select, name, &aliases)?,
                query => {
                    let inner = self.modifying_or_select(query).map_err(|refusal| match with.recursive {
                        true => of_itself(refusal, &name),
                        false => refusal,
                    })?;
                    self.add_cte(name, inner, &aliases, closed)
                }
            };
            self.visible_ctes.push(id);
            self.blocks[block].ctes.push(id);
        }
        self.later_ctes.truncate(outer);
        Ok(())
    }

    pub(super) fn modifying_or_select(&mut self, query: Node<'_>) -> Result<BlockId> {
        match query {
            Node::SelectStmt(select) => self.select(select),
            Node::InsertStmt(insert) => self.insert(insert, false).map(|(block, _)| block),
            Node::UpdateStmt(update) => self.update(update),
            Node::DeleteStmt(delete) => self.delete(delete),
            _ => {
                Err(Refusal::unsupported("this statement is not supported within WITH", "Run it by itself."))
            }
        }
    }

    fn add_cte(&mut self, name: String, block: BlockId, aliases: &[String], closed: bool) -> usize {
        let columns = self.block_columns(block, aliases);
        let exports = self.exports(block);
        self.ctes.push(Cte { name, block, columns, exports, references: 0, closed });
        self.ctes.len() - 1
    }

    /// `base UNION [ALL] step`, where `step` reads the CTE: what the base's rows are known to have, the step may
    /// assume, if its own rows have it too (induction).
    fn recursive(&mut self, select: &nodes::SelectStmt, name: String, aliases: &[String]) -> Result<usize> {
        let block = self.new_block();
        let (Some(left), Some(right)) = (select.larg(), select.rarg()) else {
            return Err(Refusal::unsupported(
                "this recursive query is not supported",
                "Rewrite it without WITH RECURSIVE.",
            ));
        };
        let ctes_before = self.visible_ctes.len();
        if let Some(with) = select.with_clause() {
            self.with(with, block)?;
        }
        let base = self.select(left)?;
        let columns = self.block_columns(base, aliases);
        let mut exports = self.exports(base);
        exports.retain(|known| matches!(known.term, Term::Value(_)));
        exports.iter_mut().for_each(|known| known.strict = false);
        let id = self.ctes.len();
        self.ctes.push(Cte { name, block, columns, exports, references: 0, closed: true });
        loop {
            self.visible_ctes.push(id);
            let step = self.select(right);
            self.visible_ctes.pop();
            let step = step?;
            let proved = self.exports(step);
            let before = self.ctes[id].exports.len();
            let has =
                |known: &Export| proved.iter().any(|p| p.output == known.output && p.term == known.term);
            self.ctes[id].exports.retain(has);
            if self.ctes[id].exports.len() == before {
                self.blocks[block].branches = vec![base, step];
                break;
            }
        }
        self.visible_ctes.truncate(ctes_before);
        let outputs = self.blocks[base].outputs.clone().map(|mut outputs| {
            outputs.iter_mut().for_each(|o| {
                o.term = None;
                o.pushable = false;
            });
            outputs
        });
        self.blocks[block].outputs = outputs;
        Ok(id)
    }

    pub(super) fn block_columns(&self, block: BlockId, aliases: &[String]) -> Vec<RelColumn> {
        let outputs = self.blocks[block].outputs.as_deref().unwrap_or_default();
        outputs
            .iter()
            .enumerate()
            .map(|(i, output)| RelColumn {
                name: aliases.get(i).unwrap_or(&output.name).clone(),
                type_oid: output.type_oid,
            })
            .collect()
    }

    pub(super) fn output_family(&self, block: BlockId, i: usize) -> Option<Family> {
        let output = self.blocks[block].outputs.as_ref()?.get(i)?;
        family(output.type_oid)
    }

    /// `derived column = what the block says it is`, for every export.
    pub(super) fn export_facts(&mut self, rel: usize, exports: &[Export], block: BlockId, scope: usize) {
        for known in exports {
            let fact = Fact { a: Term::Column(rel, known.output), b: known.term, strict: known.strict };
            self.add_fact(block, Some(scope), fact);
        }
    }
}

/// A CTE of a WITH RECURSIVE that looks for itself and is no UNION (src/backend/parser/parse_cte.c).
fn of_itself(refusal: Refusal, name: &str) -> Refusal {
    if refusal.sqlstate != "42P01" || !refusal.message.contains(&format!("\"{name}\"")) {
        return refusal;
    }
    let message = format!(
        "recursive query \"{name}\" does not have the form non-recursive-term UNION [ALL] recursive-term"
    );
    Refusal { sqlstate: "42P19", message, ..refusal }
}

pub(super) fn merge(mut values: Vec<Value>) -> Option<Value> {
    if values.len() == 1 {
        return values.pop();
    }
    let family = values.iter().find_map(|v| v.family);
    if values.iter().any(|v| v.family.is_some() && v.family != family) {
        return None;
    }
    let places: Vec<KeyPlace> = values.into_iter().map(|v| v.place).collect();
    let place = match places.first() {
        Some(first) if places.iter().all(|p| p == first) => first.clone(),
        _ => KeyPlace::OneOf(places.into()),
    };
    Some(Value { place, family })
}

pub(super) fn type_of(family: Family) -> u32 {
    match family {
        Family::Uuid => 2950,
        Family::Integer => 20,
        Family::Text => 25,
    }
}

pub(super) fn has_window(node: Node<'_>) -> bool {
    match node {
        // The library's walker does not take a null pointer.
        Node::None | Node::ColumnRef(_) | Node::A_Const(_) | Node::ParamRef(_) => false,
        Node::FuncCall(f) if f.over().is_some() => true,
        Node::JsonArrayAgg(_) | Node::JsonObjectAgg(_) => true,
        _ => {
            let found = walk_manual(node, |n| match n {
                Node::FuncCall(f) if f.over().is_some() => ControlFlow::Break(()),
                Node::JsonArrayAgg(_) | Node::JsonObjectAgg(_) => ControlFlow::Break(()),
                Node::SelectStmt(_) => Recurse::no(),
                _ => Recurse::yes(),
            });
            found.is_some()
        }
    }
}

/// `FigureColname` of parse_target.c, for the cases that can be a key.
fn figure_name(node: Node<'_>) -> String {
    match node {
        Node::ColumnRef(reference) => {
            reference.fields().iter().filter_map(Node::as_str).next_back().unwrap_or("?column?").to_owned()
        }
        Node::TypeCast(cast) => match cast.arg() {
            inner @ (Node::ColumnRef(_) | Node::FuncCall(_)) => figure_name(inner),
            _ => cast
                .type_name()
                .and_then(|t| t.names().iter().next_back().and_then(|s| s.sval().map(str::to_owned)))
                .unwrap_or_else(|| "?column?".to_owned()),
        },
        Node::FuncCall(call) => {
            call.funcname().iter().filter_map(Node::as_str).next_back().unwrap_or("?column?").to_owned()
        }
        Node::CollateClause(collate) => figure_name(collate.arg()),
        _ => "?column?".to_owned(),
    }
}
