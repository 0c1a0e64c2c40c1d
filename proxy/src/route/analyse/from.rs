//! FROM: relations, joins, subqueries, functions, views.

use pg_raw_parse::raw::JoinType;
use pg_raw_parse::{Node, nodes};

use super::expr::Place;
use super::facts::{Fact, Term};
use super::ir::{
    BlockId, Builder, Item, ItemColumn, Rel, RelColumn, RelKind, Result, Scope, alias_columns, family,
};
use super::names::Found;
use super::select::type_of;
use crate::catalog::{Table, TableKind};
use crate::route::plan::Refusal;

impl Builder<'_> {
    /// Adds the names of one FROM item to the innermost level.
    pub(super) fn range_item(&mut self, node: Node<'_>, block: BlockId, scope: usize) -> Result<()> {
        self.enter()?;
        match node {
            Node::RangeVar(var) => {
                let item = self.table_item(var, block, scope)?;
                self.add_item(item);
            }
            Node::JoinExpr(join) => self.join(join, block, scope)?,
            Node::RangeSubselect(sub) => self.subselect(sub, block, scope)?,
            Node::RangeFunction(function) => self.range_function(function, block, scope)?,
            Node::RangeTableSample(sample) => {
                self.range_item(sample.relation(), block, scope)?;
                let place = Place { block, scope: Some(scope) };
                self.expressions(sample.args(), place)?;
                self.expression(sample.repeatable(), place)?;
                self.seen.unstable = Some("TABLESAMPLE".to_owned());
                self.seen.physical = Some("TABLESAMPLE".to_owned());
            }
            other => {
                // XMLTABLE, JSON_TABLE: their arguments matter, their columns are not followed.
                self.children(other, Place { block, scope: Some(scope) })?;
                self.add_item(Item { alias: None, schema: None, columns: Vec::new(), open: true });
            }
        }
        self.leave();
        Ok(())
    }

    fn add_item(&mut self, item: Item) {
        if let Some(level) = self.levels.last_mut() {
            level.push(item);
        }
    }

    pub(super) fn table_item(&mut self, var: &nodes::RangeVar, block: BlockId, scope: usize) -> Result<Item> {
        let found = self.used_relation(var)?;
        let alias =
            var.alias().and_then(nodes::Alias::aliasname).or(var.relname()).unwrap_or_default().to_owned();
        let renamed = alias_columns(var.alias());
        let schema = |name: &str| var.alias().is_none().then(|| name.to_owned());
        match found {
            Found::Cte(id) => {
                self.ctes[id].references += 1;
                let mut columns = self.ctes[id].columns.clone();
                rename(&mut columns, &renamed);
                let open = self.blocks[self.ctes[id].block].outputs.is_none();
                let rel =
                    self.add_rel(block, scope, Rel { kind: RelKind::Cte(id), name: alias.clone(), columns });
                let exports = self.ctes[id].exports.clone();
                self.export_facts(rel, &exports, block, scope);
                Ok(self.item(rel, alias, None, open))
            }
            Found::System(name) => {
                self.seen.default = Some(format!("system table {name}"));
                self.seen.system = true;
                let rel = Rel { kind: RelKind::Other, name, columns: Vec::new() };
                let rel = self.add_rel(block, scope, rel);
                Ok(self.item(rel, alias, schema("pg_catalog"), true))
            }
            Found::Temporary => {
                self.seen.temporary = true;
                let rel = Rel { kind: RelKind::Other, name: alias.clone(), columns: Vec::new() };
                let rel = self.add_rel(block, scope, rel);
                Ok(self.item(rel, alias, None, true))
            }
            Found::Table(table) => {
                if let Some(policy) = &table.opaque_policy {
                    return Err(Refusal::unsupported(
                        format!(
                            "table {}.{} has a policy that may look at rows of other shards: {policy}",
                            table.schema, table.name
                        ),
                        "Declare the policy's function local in the configuration, or drop the policy.",
                    ));
                }
                // The sources of a view are those of its own text.
                let outer = std::mem::take(&mut self.sources);
                let item = self.catalog_item(table, alias, &renamed, schema(&table.schema), block, scope)?;
                let inner = std::mem::replace(&mut self.sources, outer);
                self.note_source(var, table, inner);
                Ok(item)
            }
        }
    }

    fn catalog_item(
        &mut self,
        table: &Table,
        alias: String,
        renamed: &[String],
        schema: Option<String>,
        block: BlockId,
        scope: usize,
    ) -> Result<Item> {
        let full = format!("{}.{}", table.schema, table.name);
        let mut columns: Vec<RelColumn> =
            table.columns.iter().map(|c| RelColumn { name: c.name.clone(), type_oid: c.type_oid }).collect();
        rename(&mut columns, renamed);
        let mut exports = Vec::new();
        let mut open = false;
        let kind = match table.kind {
            TableKind::Sharded { key_index, key_type } => RelKind::Sharded { key: key_index, key_type },
            TableKind::Reference => {
                self.reference_items.push((block, alias.clone(), full.clone()));
                RelKind::Other
            }
            TableKind::Plain => {
                self.seen.default = Some(format!("plain table {full}"));
                RelKind::Other
            }
            TableKind::System => {
                self.seen.default = Some(format!("system table {full}"));
                self.seen.system = true;
                open = true;
                RelKind::Other
            }
            TableKind::View => {
                let view = self.view(table, &full)?;
                self.derived_items.push((block, alias.clone(), view));
                exports = self.exports(view);
                RelKind::Derived(view)
            }
        };
        let name = if alias == table.name { full } else { format!("{full} {alias}") };
        let rel = self.add_rel(block, scope, Rel { kind, name, columns });
        self.export_facts(rel, &exports, block, scope);
        Ok(self.item(rel, alias, schema, open))
    }

    /// A view is its query, looked at with nothing else in sight.
    fn view(&mut self, table: &Table, full: &str) -> Result<BlockId> {
        let unreadable = || {
            Refusal::unsupported(
                format!("the definition of view {full} could not be analysed"),
                "Query its tables directly.",
            )
        };
        let definition = table.view_definition.as_deref().ok_or_else(unreadable)?;
        let tree = pg_raw_parse::parse(definition).map_err(|_| unreadable())?;
        let Some(Node::SelectStmt(select)) = tree.stmts().next() else { return Err(unreadable()) };
        let levels = std::mem::take(&mut self.levels);
        let ctes = std::mem::take(&mut self.visible_ctes);
        self.views += 1;
        let block = self.select(select);
        self.views -= 1;
        self.levels = levels;
        self.visible_ctes = ctes;
        block
    }

    fn subselect(&mut self, sub: &nodes::RangeSubselect, block: BlockId, scope: usize) -> Result<()> {
        // Only LATERAL sees its neighbours.
        let hidden = if sub.lateral { None } else { self.levels.last_mut().map(std::mem::take) };
        let inner = match sub.subquery() {
            Node::SelectStmt(select) => self.select(select),
            other => self.modifying_or_select(other),
        };
        if let (Some(hidden), Some(level)) = (hidden, self.levels.last_mut()) {
            *level = hidden;
        }
        let inner = inner?;
        let alias = sub.alias().and_then(nodes::Alias::aliasname).unwrap_or_default().to_owned();
        let columns = self.block_columns(inner, &alias_columns(sub.alias()));
        let exports = self.exports(inner);
        let open = self.blocks[inner].outputs.is_none();
        self.derived_items.push((block, alias.clone(), inner));
        let rel = Rel { kind: RelKind::Derived(inner), name: format!("subquery {alias}"), columns };
        let rel = self.add_rel(block, scope, rel);
        self.export_facts(rel, &exports, block, scope);
        let item = self.item(rel, alias, None, open);
        self.add_item(item);
        Ok(())
    }

    /// `unnest($1::uuid[], ...) AS u (k, ...)`: a column is one of its array's elements.
    fn range_function(
        &mut self,
        function: &nodes::RangeFunction,
        block: BlockId,
        scope: usize,
    ) -> Result<()> {
        let place = Place { block, scope: Some(scope) };
        let mut columns: Vec<RelColumn> = Vec::new();
        let mut values = Vec::new();
        let mut known = true;
        let mut name = String::new();
        for entry in function.functions() {
            let call = match entry {
                Node::NodeList(list) => list.first().unwrap_or(Node::None),
                other => other,
            };
            let Node::FuncCall(call) = call else {
                self.expression(call, place)?;
                known = false;
                continue;
            };
            name = call.funcname().iter().filter_map(Node::as_str).next_back().unwrap_or_default().to_owned();
            if name == "unnest" && call.funcname().len() == 1 {
                // With several arrays it is the grammar's own, not a function.
                for arg in call.args() {
                    self.expression(arg, place)?;
                    let value = self.array(arg);
                    let type_oid = value.as_ref().and_then(|v| v.family).map_or(0, type_of);
                    values.push((columns.len(), value, type_oid));
                    columns.push(RelColumn { name: name.clone(), type_oid });
                }
            } else {
                self.function(call, place)?;
                // One column or many: the catalog does not say.
                known = false;
                columns.push(RelColumn { name: name.clone(), type_oid: 0 });
            }
        }
        if function.ordinality {
            columns.push(RelColumn { name: "ordinality".to_owned(), type_oid: 0 });
        }
        let alias =
            function.alias().and_then(nodes::Alias::aliasname).map_or_else(|| name.clone(), str::to_owned);
        let renamed = alias_columns(function.alias());
        if renamed.is_empty()
            && columns.len() == 1
            && let Some(column) = columns.first_mut()
        {
            column.name.clone_from(&alias);
        }
        if !known {
            // Positions are not known either, but for the names given.
            columns.clear();
            values.clear();
            columns.extend(renamed.iter().map(|name| RelColumn { name: name.clone(), type_oid: 0 }));
        }
        rename(&mut columns, &renamed);
        let rel = self.add_rel(block, scope, Rel { kind: RelKind::Other, name: alias.clone(), columns });
        for (i, value, type_oid) in values {
            if let Some(value) = value
                && let Some(fact) = self.bind(Term::Column(rel, i), family(type_oid), value)
            {
                self.add_fact(block, Some(scope), fact);
            }
        }
        let item = self.item(rel, alias, None, !known);
        self.add_item(item);
        Ok(())
    }

    fn new_scope(&mut self, block: BlockId, parent: usize) -> usize {
        let scopes = &mut self.blocks[block].scopes;
        scopes.push(Scope { parent: Some(parent), facts: Vec::new() });
        scopes.len() - 1
    }

    fn join(&mut self, join: &nodes::JoinExpr, block: BlockId, scope: usize) -> Result<()> {
        // A nullable side gets a scope of its own: what ON says holds only where that side is present.
        let (left, right, on) = match join.jointype {
            JoinType::JOIN_INNER => (scope, scope, Some(scope)),
            JoinType::JOIN_LEFT => {
                let right = self.new_scope(block, scope);
                (scope, right, Some(right))
            }
            JoinType::JOIN_RIGHT => {
                let left = self.new_scope(block, scope);
                (left, scope, Some(left))
            }
            // ON constrains neither side of a FULL JOIN.
            _ => (self.new_scope(block, scope), self.new_scope(block, scope), None),
        };
        let start = self.levels.last().map_or(0, Vec::len);
        self.range_item(join.larg(), block, left)?;
        let middle = self.levels.last().map_or(0, Vec::len);
        self.range_item(join.rarg(), block, right)?;
        let place = Place { block, scope: on };
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        // ON sees the two sides of its join and what is around the query, not its neighbours in FROM.
        let mut own = level.split_off(start);
        let neighbours = std::mem::take(level);
        let mut names: Vec<String> =
            join.using_clause().iter().filter_map(|s| s.sval().map(str::to_owned)).collect();
        if join.is_natural {
            names = natural(&own, middle - start)?;
        }
        self.using(&mut own, middle - start, &names, join.jointype, place);
        if let Some(level) = self.levels.last_mut() {
            *level = own;
        }
        let conditions = if on.is_some() {
            self.condition(join.quals(), place)
        } else {
            self.expression(join.quals(), place)
        };
        if let Some(level) = self.levels.last_mut() {
            let own = std::mem::replace(level, neighbours);
            match join.alias() {
                None => level.extend(own),
                Some(alias) => level.push(joined(own, alias)),
            }
        }
        conditions
    }

    fn using(&mut self, items: &mut Vec<Item>, mut middle: usize, names: &[String], kind: u32, place: Place) {
        for name in names {
            let border = middle.min(items.len());
            let (left, right) = items.split_at_mut(border);
            let find = |items: &mut [Item]| {
                let mut found: Vec<(usize, usize)> = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    found.extend(
                        item.columns
                            .iter()
                            .enumerate()
                            .filter(|(_, c)| !c.hidden && c.name == *name)
                            .map(|(j, _)| (i, j)),
                    );
                }
                if found.len() == 1 { found.pop() } else { None }
            };
            let (Some((li, lj)), Some((ri, rj))) = (find(left), find(right)) else { continue };
            let (l, r) = (&mut left[li].columns[lj], &mut right[ri].columns[rj]);
            let fact = match (l.term, r.term) {
                (Some(a), Some(b))
                    if family(l.type_oid).is_some() && family(l.type_oid) == family(r.type_oid) =>
                {
                    Some(Fact::equal(a, b))
                }
                _ => None,
            };
            match kind {
                JoinType::JOIN_RIGHT => l.hidden = true,
                JoinType::JOIN_FULL => {
                    // COALESCE of both: no column's own value.
                    l.hidden = true;
                    r.hidden = true;
                    let merged = ItemColumn { name: name.clone(), term: None, type_oid: 0, hidden: false };
                    items.insert(0, Item { alias: None, schema: None, columns: vec![merged], open: false });
                    middle += 1;
                    continue;
                }
                _ => r.hidden = true,
            }
            if let Some(fact) = fact {
                self.add_fact(place.block, place.scope, fact);
            }
        }
        // `SELECT *` puts merged columns first.
        if !names.is_empty() && kind != JoinType::JOIN_FULL {
            let mut merged = Vec::new();
            for name in names {
                let column =
                    items.iter().flat_map(|i| i.columns.iter()).find(|c| !c.hidden && c.name == *name);
                merged.extend(column.cloned());
            }
            for item in items.iter_mut() {
                for column in &mut item.columns {
                    column.hidden |= names.contains(&column.name);
                }
            }
            items.insert(0, Item { alias: None, schema: None, columns: merged, open: false });
        }
    }
}

/// Columns that both sides of a NATURAL JOIN have.
fn natural(items: &[Item], middle: usize) -> Result<Vec<String>> {
    if items.iter().any(|i| i.open) {
        return Err(Refusal::unsupported(
            "NATURAL JOIN of a relation whose columns are not known",
            "Name the columns with USING or ON.",
        ));
    }
    let visible = |items: &[Item]| -> Vec<String> {
        items.iter().flat_map(|i| i.columns.iter()).filter(|c| !c.hidden).map(|c| c.name.clone()).collect()
    };
    let (left, right) = items.split_at(middle.min(items.len()));
    let right = visible(right);
    Ok(visible(left).into_iter().filter(|name| right.contains(name)).collect())
}

/// `(a JOIN b ...) AS j`: the names within are no longer seen.
fn joined(items: Vec<Item>, alias: &nodes::Alias) -> Item {
    let open = items.iter().any(|i| i.open);
    let mut columns: Vec<ItemColumn> =
        items.into_iter().flat_map(|i| i.columns).filter(|c| !c.hidden).collect();
    for (column, name) in columns.iter_mut().zip(alias_columns(Some(alias))) {
        column.name = name;
    }
    Item { alias: alias.aliasname().map(str::to_owned), schema: None, columns, open }
}

fn rename(columns: &mut [RelColumn], names: &[String]) {
    for (column, name) in columns.iter_mut().zip(names) {
        column.name.clone_from(name);
    }
}
