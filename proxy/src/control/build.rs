//! From what the shards' catalogs say to what routing may rely on. PURE.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use shard_config::{
    Config, FunctionRoute as ConfiguredRoute, KeyType, ShardId, TableKind as ConfiguredKind, TableRule,
};

use super::builtin;
use super::raw::{RawCatalog, RawColumn, RawFunction, RawRelation};
use crate::catalog::{Catalog, Column, Declared, Function, FunctionRoute, Table, TableKind, Volatility};
use crate::oids::OidMap;

type Name = (String, String);

/// `system` and `user` of the default shard; `others` are the user parts of the other shards that were reached.
pub(super) fn build(
    config: &Config,
    system: &RawCatalog,
    user: &RawCatalog,
    others: &[(ShardId, &RawCatalog)],
) -> Catalog {
    let mut functions: FxHashMap<Name, Vec<Function>> = FxHashMap::default();
    for raw in system.functions.iter().chain(&user.functions) {
        functions.entry((raw.schema.clone(), raw.name.clone())).or_default().push(function(config, raw));
    }
    let mut tables = FxHashMap::default();
    for (name, raw) in &system.relations {
        let table = Table { kind: TableKind::System, ..bare(name, raw) };
        tables.insert(name.clone(), table);
    }
    for (name, raw) in &user.relations {
        let mut table = judge(config, name, raw, &functions);
        if !matches!(table.kind, TableKind::Plain | TableKind::System) && table.drift.is_none() {
            table.drift = drift(name, raw, others);
        }
        tables.insert(name.clone(), table);
    }
    for (shard, other) in others {
        for (name, raw) in &other.relations {
            if !tables.contains_key(name) && name.0 != "shard_catalog" {
                let why = format!("it exists on shard {shard} and not on the default shard");
                tables.insert(name.clone(), Table { drift: Some(why), ..bare(name, raw) });
            }
        }
    }
    let oids = others.iter().map(|(shard, other)| (shard.0, oid_map(user, other)));
    Catalog {
        version: 0,
        tables,
        functions,
        oids: oids.filter(|(_, map)| !map.is_empty()).collect(),
        key_column: Some((config.key.column.clone(), config.key.key_type)),
        declared: config.tables.iter().map(|rule| declared(config, rule)).collect(),
        unique_by_construction: config.tables.iter().filter_map(vouched).collect(),
    }
}

pub(super) fn oid_map(ours: &RawCatalog, theirs: &RawCatalog) -> OidMap {
    let relations = |catalog: &RawCatalog| -> BTreeMap<Name, u32> {
        catalog.relations.iter().map(|(name, raw)| (name.clone(), raw.oid)).collect()
    };
    OidMap::new((&ours.types, &theirs.types), (&relations(ours), &relations(theirs)))
}

fn bare(name: &Name, raw: &RawRelation) -> Table {
    let column = |c: &RawColumn| Column {
        name: c.name.clone(),
        type_oid: c.type_oid,
        not_null: c.not_null,
        has_default: c.has_default,
        volatile_default: c.has_default && !c.generated && !c.default.as_deref().is_some_and(is_constant),
        draws: c.has_default && !c.generated && c.default.as_deref().is_none_or(|d| d.contains("nextval(")),
        draw: draw(name, c),
        generated: c.generated,
    };
    Table {
        schema: name.0.clone(),
        name: name.1.clone(),
        kind: TableKind::Plain,
        columns: raw.columns.iter().map(column).collect(),
        view_definition: raw.definition.clone(),
        opaque_trigger: None,
        opaque_policy: None,
        drift: None,
    }
}

fn judge(
    config: &Config,
    name: &Name,
    raw: &RawRelation,
    functions: &FxHashMap<Name, Vec<Function>>,
) -> Table {
    let mut table = bare(name, raw);
    let rule = config.tables.iter().find(|rule| is_named(&rule.name, name));
    if name.0 == "shard_catalog" {
        table.kind = TableKind::System;
        return table;
    }
    if raw.kind == 'v' {
        table.kind = TableKind::View;
        return table;
    }
    let key_column = rule.and_then(|r| r.key.as_deref()).unwrap_or(&config.key.column);
    let key_type = rule.and_then(|r| r.key_type).unwrap_or(config.key.key_type);
    let kind = match rule {
        Some(rule) => rule.kind,
        None if raw.kind == 'S' || raw.kind == 'f' => ConfiguredKind::Plain,
        None if raw.columns.iter().any(|c| c.name == *key_column) => ConfiguredKind::Sharded,
        None => ConfiguredKind::Plain,
    };
    match kind {
        ConfiguredKind::Sharded => match key(raw, key_column, key_type) {
            Ok((key_index, key_type)) => table.kind = TableKind::Sharded { key_index, key_type },
            Err(why) => table.drift = Some(why),
        },
        ConfiguredKind::Reference => table.kind = TableKind::Reference,
        ConfiguredKind::Plain if raw.kind == 'm' => {
            table.drift =
                Some("a materialized view without the key column holds only one shard's part".to_owned());
        }
        ConfiguredKind::Plain => {}
    }
    let spread = matches!(table.kind, TableKind::Sharded { .. } | TableKind::Reference);
    let is_bound = |schema: &str, function: &str| {
        let overloads = functions.get(&(schema.to_owned(), function.to_owned()));
        overloads.is_some_and(|all| {
            // What a plain table's trigger does on the default shard is where that function belongs.
            let stays = |f: &Function| {
                f.route == FunctionRoute::Local || (!spread && f.route == FunctionRoute::DefaultShard)
            };
            all.iter().all(stays)
        })
    };
    table.opaque_trigger = opaque_trigger(raw, is_bound);
    if spread {
        table.opaque_policy = opaque(&raw.policies, is_bound).or_else(|| raw.policy_queries.first().cloned());
        table.opaque_trigger = table
            .opaque_trigger
            .or_else(|| opaque(&raw.expressions, is_bound))
            .or_else(|| table.opaque_policy.clone());
    }
    table
}

/// The key column, or why the table cannot be routed although it was meant to be sharded.
fn key(raw: &RawRelation, column: &str, wanted: KeyType) -> Result<(usize, KeyType), String> {
    let Some(index) = raw.columns.iter().position(|c| c.name == column) else {
        return Err(format!("it has no column {column}"));
    };
    let found = &raw.columns[index];
    let key_type = KeyType::from_name(&found.base_type).filter(|t| t.hashes_like(wanted));
    match key_type {
        // Integers of any width hash alike, so the width is the column's own.
        Some(key_type) if found.deterministic => Ok((index, key_type)),
        Some(_) => Err(format!("its key column {column} has a non-deterministic collation")),
        None => Err(format!(
            "its column {column} is of type {}, and the key is {}",
            found.type_name,
            wanted.name()
        )),
    }
}

fn opaque_trigger(raw: &RawRelation, is_bound: impl Fn(&str, &str) -> bool) -> Option<String> {
    opaque(&raw.triggers, is_bound)
        .map(|trigger| format!("trigger {trigger}"))
        .or_else(|| raw.rules.then(|| "a rewrite rule".to_owned()))
}

/// The first of these (what, function's schema, function's name) whose function may touch any table.
fn opaque(calls: &[(String, String, String)], is_bound: impl Fn(&str, &str) -> bool) -> Option<String> {
    let (what, schema, function) = calls.iter().find(|(_, schema, function)| !is_bound(schema, function))?;
    Some(format!("{what} (function {schema}.{function})"))
}

/// Why this relation is not the same on all shards.
fn drift(name: &Name, raw: &RawRelation, others: &[(ShardId, &RawCatalog)]) -> Option<String> {
    others.iter().find_map(|(shard, other)| match other.relations.get(name) {
        None => Some(format!("it does not exist on shard {shard}")),
        Some(theirs) => {
            difference(raw, theirs).map(|what| format!("{what} on shard {shard} and on the default shard"))
        }
    })
}

fn difference(ours: &RawRelation, theirs: &RawRelation) -> Option<String> {
    // OIDs of user types differ between shards by right (H23); their names do not.
    let shape = |r: &RawRelation| -> BTreeMap<String, (String, bool, bool)> {
        r.columns.iter().map(|c| (c.name.clone(), (c.type_name.clone(), c.not_null, c.has_default))).collect()
    };
    let order = |r: &RawRelation| r.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if ours.kind != theirs.kind {
        return Some("it is another kind of relation".to_owned());
    }
    let (left, right) = (shape(ours), shape(theirs));
    if let Some(column) = left.keys().chain(right.keys()).find(|c| left.get(*c) != right.get(*c)) {
        return Some(format!("column {column} differs"));
    }
    if order(ours) != order(theirs) {
        return Some("the order of its columns differs".to_owned());
    }
    if ours.definition != theirs.definition {
        return Some("its definition differs".to_owned());
    }
    if ours.constraints != theirs.constraints {
        return Some("its constraints differ".to_owned());
    }
    if ours.triggers != theirs.triggers {
        return Some("its triggers differ".to_owned());
    }
    if ours.rules != theirs.rules {
        return Some("its rewrite rules differ".to_owned());
    }
    if ours.expressions != theirs.expressions {
        return Some("functions called by its defaults or constraints differ".to_owned());
    }
    (ours.policies != theirs.policies || ours.policy_queries != theirs.policy_queries)
        .then(|| "its row-level-security policies differ".to_owned())
}

fn function(config: &Config, raw: &RawFunction) -> Function {
    let volatility = match raw.volatility {
        'i' => Volatility::Immutable,
        's' => Volatility::Stable,
        _ => Volatility::Volatile,
    };
    let name = (raw.schema.clone(), raw.name.clone());
    let route = match config.functions.iter().find(|rule| is_named(&rule.name, &name)) {
        Some(rule) => match rule.route {
            ConfiguredRoute::Local => FunctionRoute::Local,
            ConfiguredRoute::Default => FunctionRoute::DefaultShard,
            ConfiguredRoute::Key | ConfiguredRoute::KeyArray => FunctionRoute::Keyed {
                argument: usize::from(rule.argument.unwrap_or(1)).saturating_sub(1),
                array: rule.route == ConfiguredRoute::KeyArray,
                key_type: config.key.key_type,
            },
        },
        None if raw.schema == "pg_catalog" || raw.schema == "information_schema" => {
            builtin::route(&raw.name, volatility)
        }
        None if raw.schema == "shard_catalog" && raw.name == "uuidv7" => FunctionRoute::Local,
        None if raw.schema == "shard_catalog" => FunctionRoute::Opaque,
        None if volatility == Volatility::Immutable => FunctionRoute::Local,
        None if raw.extension.as_deref().is_some_and(builtin::extension_is_local) => FunctionRoute::Local,
        None => FunctionRoute::Opaque,
    };
    Function { volatility, arguments: raw.arguments, defaults: raw.defaults, aggregate: raw.aggregate, route }
}

fn declared(config: &Config, rule: &TableRule) -> (Name, Declared) {
    let declared = match rule.kind {
        ConfiguredKind::Sharded => Declared::Sharded {
            column: rule.key.clone().unwrap_or_else(|| config.key.column.clone()),
            key_type: rule.key_type.unwrap_or(config.key.key_type),
        },
        ConfiguredKind::Reference => Declared::Reference,
        ConfiguredKind::Plain => Declared::Plain,
    };
    (full_name(rule), declared)
}

fn vouched(rule: &TableRule) -> Option<(Name, Vec<String>)> {
    let all = &rule.unique_by_construction;
    (!all.is_empty()).then(|| (full_name(rule), all.clone()))
}

fn full_name(rule: &TableRule) -> Name {
    let (schema, name) = rule.name.split_once('.').unwrap_or(("public", &rule.name));
    (schema.to_owned(), name.to_owned())
}

/// What draws the value of a serial or identity column.
fn draw(table: &Name, column: &RawColumn) -> Option<String> {
    match &column.default {
        _ if !column.has_default || column.generated => None,
        Some(default) => {
            let name = default.strip_prefix("nextval('")?.strip_suffix("'::regclass)")?;
            (!name.contains('\'')).then(|| format!("pg_catalog.{default}"))
        }
        None => {
            let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
            let plain = !table.0.contains('\\') && !table.1.contains('\\') && !column.name.contains('\\');
            let full = format!("{}.{}", quote(&table.0), quote(&table.1));
            plain.then(|| {
                format!("shard_catalog.next_identity({}, {})", literal(&full), literal(&column.name))
            })
        }
    }
}

/// A default that is one literal, with or without a cast: the same on every shard. Anything else may not be.
fn is_constant(default: &str) -> bool {
    let value = match default.strip_prefix('\'') {
        // The server prints quotes doubled and casts without parentheses around them: 'it''s'::text.
        Some(rest) => match rest.replace("''", "").split_once('\'') {
            Some((_, after)) => return after.is_empty() || is_cast(after),
            None => return false,
        },
        None => default,
    };
    let value = value.strip_prefix('(').and_then(|v| v.strip_suffix(')')).unwrap_or(value);
    let (literal, cast) = value.split_once("::").map_or((value, ""), |(l, c)| (l, c));
    let number = literal.trim_start_matches('-');
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (is_number || matches!(literal, "true" | "false" | "NULL")) && (cast.is_empty() || is_type_name(cast))
}

fn is_cast(text: &str) -> bool {
    text.strip_prefix("::").is_some_and(is_type_name)
}

fn is_type_name(text: &str) -> bool {
    // 'now'::timestamp is no constant when written so, but the server prints its value at CREATE TABLE.
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b" _.,()[]\"".contains(&b))
}

/// `configured` is "schema.name"; a name alone means the schema public.
fn is_named(configured: &str, name: &Name) -> bool {
    match configured.split_once('.') {
        Some((schema, rest)) => schema == name.0 && rest == name.1,
        None => name.0 == "public" && configured == name.1,
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
