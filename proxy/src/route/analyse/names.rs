//! Names -> relations, columns and functions, by the search path, as `namespace.c` and `parse_relation.c` do.

use pg_raw_parse::{Node, nodes};

use super::facts::Term;
use super::ir::{Builder, ItemColumn, Result};
use crate::catalog::{Function, FunctionRoute, Table, TableKind, Volatility};
use crate::route::plan::Refusal;

/// What a name in FROM stands for.
pub(super) enum Found<'a> {
    Cte(usize),
    Table(&'a Table),
    /// `pg_catalog`, `information_schema`, even if the catalog does not list it.
    System(String),
    Temporary,
}

impl<'a> Builder<'a> {
    /// A relation that the statement uses.
    pub(super) fn used_relation(&mut self, var: &nodes::RangeVar) -> Result<Found<'a>> {
        let found = self.relation(var)?;
        if let Found::Table(table) = found {
            self.seen.tables.add(table);
        }
        Ok(found)
    }

    pub(super) fn relation(&self, var: &nodes::RangeVar) -> Result<Found<'a>> {
        let name = var.relname().unwrap_or_default();
        if let Some(schema) = var.schemaname() {
            if schema == "pg_temp" || schema.starts_with("pg_temp_") {
                return Ok(Found::Temporary);
            }
            if let Some(table) = self.table(schema, name) {
                return self.usable(table);
            }
            if is_system_schema(schema) {
                return Ok(Found::System(format!("{schema}.{name}")));
            }
            return Err(self.no_relation(&format!("{schema}.{name}"), var.location));
        }
        let cte = self.visible_ctes.iter().rev().find(|cte| self.ctes[**cte].name == name);
        if let Some(cte) = cte {
            return Ok(Found::Cte(*cte));
        }
        if self.later_ctes.iter().any(|later| later == name) {
            return Err(Refusal::unsupported(
                format!("WITH RECURSIVE refers to {name} before it is defined"),
                "Put the definitions in the order of their use.",
            ));
        }
        if let Some(table) = self.find_table(name) {
            return self.usable(table);
        }
        // Every relation of pg_catalog has this prefix.
        if name.starts_with("pg_") {
            return Ok(Found::System(format!("pg_catalog.{name}")));
        }
        if self.context.session_has_temp {
            return Ok(Found::Temporary);
        }
        Err(self.no_relation(name, var.location))
    }

    /// By the search path; within a view's text every name but those of `pg_catalog` is qualified.
    pub(super) fn find_table(&self, name: &str) -> Option<&'a Table> {
        if self.views > 0 {
            return self.table("pg_catalog", name);
        }
        self.context.search_path.schemas().find_map(|schema| self.table(schema, name))
    }

    fn table(&self, schema: &str, name: &str) -> Option<&'a Table> {
        self.context.catalog.tables.get(&(schema.to_owned(), name.to_owned()))
    }

    fn usable(&self, table: &'a Table) -> Result<Found<'a>> {
        let full = format!("{}.{}", table.schema, table.name);
        if let Some(drift) = &table.drift {
            return Err(Refusal::unsupported(
                format!("table {full} is not the same on every shard: {drift}"),
                "Bring the shards' schemas together; shardctl doctor lists the differences.",
            ));
        }
        if let TableKind::Sharded { key_index, key_type } = table.kind {
            let column = table.columns.get(key_index);
            if column.is_none_or(|column| column.type_oid != key_type.oid()) {
                return Err(Refusal::unsupported(
                    format!("the key column of {full} has a type without a canonical form (not {key_type})"),
                    "Equal keys must have equal bytes: use uuid, bigint, integer, smallint or text.",
                ));
            }
        }
        Ok(Found::Table(table))
    }

    pub(super) fn no_relation(&self, name: &str, location: i32) -> Refusal {
        Refusal::new(
            "42P01",
            format!("relation \"{name}\" does not exist"),
            "The proxy knows the tables that exist on the shards; one created around it is seen within a second.",
        )
        .at(self.position(location))
    }

    /// A column reference; `None` when it is not exactly one known column.
    pub(super) fn column(&self, reference: &nodes::ColumnRef) -> Option<ItemColumn> {
        let mut parts = Vec::new();
        for field in reference.fields() {
            parts.push(field.as_str()?);
        }
        match parts.as_slice() {
            [column] => self.unqualified(column),
            [table, column] => self.qualified(None, table, column),
            [schema, table, column] => self.qualified(Some(schema), table, column),
            _ => None,
        }
    }

    /// `t.f` may be `f(t)`: a user's function that is called without looking like it.
    pub(super) fn hidden_call(&self, reference: &nodes::ColumnRef) -> Option<String> {
        let parts: Vec<&str> = reference.fields().iter().filter_map(Node::as_str).collect();
        let [_, .., name] = parts.as_slice() else { return None };
        if parts.len() != reference.fields().len() || self.column(reference).is_some() {
            return None;
        }
        let mut schemas = self.context.search_path.schemas().filter(|s| *s != "pg_catalog");
        let functions = &self.context.catalog.functions;
        let takes_a_row = |f: &Function| {
            f.arguments.is_none_or(|n| n >= 1 && n <= f.defaults + 1) && f.route != FunctionRoute::Local
        };
        schemas
            .any(|schema| {
                let overloads = functions.get(&(schema.to_owned(), (*name).to_owned()));
                overloads.is_some_and(|list| list.iter().any(takes_a_row))
            })
            .then(|| (*name).to_owned())
    }

    fn unqualified(&self, name: &str) -> Option<ItemColumn> {
        for level in self.levels.iter().rev() {
            let mut found =
                level.iter().flat_map(|i| i.columns.iter()).filter(|c| !c.hidden && c.name == name);
            if let Some(first) = found.next() {
                // Ambiguous: the server will say so.
                return found.next().is_none().then(|| first.clone());
            }
            // It may be a column that is not listed, or the name of a whole row.
            if level.iter().any(|i| i.open || i.alias.as_deref() == Some(name)) {
                return None;
            }
        }
        None
    }

    fn qualified(&self, schema: Option<&str>, table: &str, name: &str) -> Option<ItemColumn> {
        for level in self.levels.iter().rev() {
            let named = |i: &&super::ir::Item| {
                i.alias.as_deref() == Some(table) && (schema.is_none() || i.schema.as_deref() == schema)
            };
            let mut items = level.iter().filter(named);
            if let Some(item) = items.next() {
                if items.next().is_some() {
                    return None;
                }
                let mut found = item.columns.iter().filter(|c| c.name == name);
                let first = found.next()?;
                return found.next().is_none().then(|| first.clone());
            }
        }
        None
    }

    /// All functions a call may mean: same name, in sight, and the number of arguments fits.
    pub(super) fn functions(&self, call: &nodes::FuncCall) -> (String, Vec<&'a Function>, bool) {
        let parts: Vec<&str> = call.funcname().iter().filter_map(Node::as_str).collect();
        let count = call.args().len();
        let all = &self.context.catalog.functions;
        let mut found: Vec<&Function> = Vec::new();
        let mut builtin = false;
        let mut add = |schema: &str, name: &str| {
            if let Some(list) = all.get(&(schema.to_owned(), name.to_owned())) {
                let before = found.len();
                found.extend(list.iter().filter(|f| {
                    f.arguments.is_none_or(|n| call.func_variadic || (count <= n && count + f.defaults >= n))
                        || (call.agg_within_group || call.agg_star)
                }));
                builtin |= schema == "pg_catalog" && found.len() > before;
            }
        };
        let name = match parts.as_slice() {
            [name] => {
                if self.views > 0 {
                    add("pg_catalog", name);
                } else {
                    self.context.search_path.schemas().for_each(|schema| add(schema, name));
                }
                (*name).to_owned()
            }
            [.., schema, name] => {
                add(schema, name);
                format!("{schema}.{name}")
            }
            [] => String::new(),
        };
        (name, found, builtin)
    }
}

/// The worst that a call may do.
pub(super) fn worst(functions: &[&Function]) -> Option<(Volatility, FunctionRoute)> {
    let volatility = functions.iter().map(|f| f.volatility).max_by_key(|v| match v {
        Volatility::Immutable => 0,
        Volatility::Stable => 1,
        Volatility::Volatile => 2,
    })?;
    let route = functions.iter().map(|f| &f.route).max_by_key(|r| match r {
        FunctionRoute::Local => 0,
        FunctionRoute::DefaultShard => 1,
        FunctionRoute::Keyed { .. } => 2,
        FunctionRoute::Opaque => 3,
    })?;
    // Overloads that disagree on the key cannot be told apart without the arguments' types.
    let keyed = |f: &&&Function| matches!(f.route, FunctionRoute::Keyed { .. });
    if matches!(route, FunctionRoute::Keyed { .. })
        && (functions.iter().any(|f| f.route != *route) || functions.iter().filter(keyed).count() == 0)
    {
        return Some((volatility, FunctionRoute::Opaque));
    }
    Some((volatility, route.clone()))
}

pub(super) fn is_system_schema(schema: &str) -> bool {
    matches!(schema, "pg_catalog" | "information_schema" | "pg_toast")
}

/// A column as a term, if its type has one equality.
pub(super) fn usable_term(column: &ItemColumn) -> Option<(Term, u32)> {
    column.term.map(|term| (term, column.type_oid))
}
