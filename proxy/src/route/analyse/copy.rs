//! COPY.

use pg_raw_parse::{ConstValue, Node, nodes};
use std::sync::Arc;

use super::ir::{Builder, Result};
use super::names::Found;
use super::plain_plan;
use crate::catalog::{Table, TableKind};
use crate::route::plan::{Access, Around, CopyFormat, CopyIn, CopyRows, Effect, How, Plan, Refusal, Route};

impl Builder<'_> {
    pub(super) fn copy(&mut self, copy: &nodes::CopyStmt) -> Result<Plan> {
        if copy.is_program || copy.filename().is_some() {
            return Err(Refusal::unsupported(
                "COPY to or from a file or program of the server",
                "Use COPY ... FROM STDIN or TO STDOUT (\\copy in psql).",
            ));
        }
        if !matches!(copy.query(), Node::None) {
            let mut plan = self.inner(Node::CopyStmt(copy), copy.query())?;
            plan.around = Around::CopyOut { header: has_header(copy) };
            return Ok(plan);
        }
        let Some(var) = copy.relation() else {
            return Err(Refusal::unsupported("this COPY could not be analysed", "Please report it."));
        };
        let access = if copy.is_from { Access::Write } else { Access::Read };
        let table = match self.used_relation(var)? {
            Found::Table(table) => table,
            Found::Temporary => return Ok(plain_plan(Route::Any, Access::Write, Effect::None)),
            Found::System(_) | Found::Cte(_) => return Ok(plain_plan(Route::Default, access, Effect::None)),
        };
        let full = format!("{}.{}", table.schema, table.name);
        if let Some(trigger) = table.opaque_trigger.as_ref().filter(|_| copy.is_from) {
            return Err(Refusal::unsupported(
                format!("a write to table {full} may touch other shards: {trigger}"),
                "Declare the function that it calls local in the configuration, or drop it.",
            ));
        }
        match (&table.kind, copy.is_from) {
            (TableKind::Sharded { key_index, key_type }, true) => {
                let position = key_position(copy, table, *key_index)?;
                draws_nothing(copy, table)?;
                let route = CopyIn {
                    table: (table.schema.clone(), table.name.clone()),
                    rows: CopyRows::ByKey { position, key_type: *key_type },
                    format: format(copy)?,
                };
                Ok(plain_plan(Route::CopyIn(Arc::new(route)), Access::Write, Effect::None))
            }
            (TableKind::Sharded { .. }, false) => {
                let around = Around::CopyOut { header: has_header(copy) };
                let evidence = vec![format!("{full}: every shard copies its own rows")];
                let plan = plain_plan(Route::Scatter(How::Each), access, Effect::None);
                Ok(Plan { around, evidence, ..plan })
            }
            (TableKind::Reference, true) => {
                same_everywhere(copy, table)?;
                let route = CopyIn {
                    table: (table.schema.clone(), table.name.clone()),
                    rows: CopyRows::Everywhere,
                    format: format(copy)?,
                };
                Ok(plain_plan(Route::CopyIn(Arc::new(route)), Access::Write, Effect::None))
            }
            (TableKind::Reference, false) => Ok(plain_plan(Route::Any, access, Effect::None)),
            (TableKind::Plain | TableKind::System, _) => Ok(plain_plan(Route::Default, access, Effect::None)),
            (TableKind::View, _) => Err(Refusal::unsupported(
                format!("COPY of view {full}"),
                "COPY (SELECT ... FROM the view) TO STDOUT.",
            )),
        }
    }
}

/// Every shard makes the same rows of the same stream: none adds a value of its own, and none leaves a row out.
fn same_everywhere(copy: &nodes::CopyStmt, table: &Table) -> Result<()> {
    let full = format!("{}.{}", table.schema, table.name);
    let listed: Vec<_> = copy.attlist().iter().map(|n| n.as_str().map(str::to_owned)).collect();
    let is_copied =
        |name: &str| listed.is_empty() || listed.iter().any(|listed| listed.as_deref() == Some(name));
    if let Some(column) = table.columns.iter().find(|c| c.volatile_default && !is_copied(&c.name)) {
        return Err(Refusal::unsupported(
            format!("COPY {full}: the default of column {} would differ between the shards", column.name),
            format!("Name {} among the columns.", column.name),
        ));
    }
    match copy.where_clause() {
        Node::None => Ok(()),
        _ => Err(Refusal::unsupported(
            format!("COPY {full} with WHERE: a reference table's rows must be the same on every shard"),
            "Leave out the rows that are not wanted before they are sent.",
        )),
    }
}

/// Every shard would draw from a sequence of its own (H26).
fn draws_nothing(copy: &nodes::CopyStmt, table: &Table) -> Result<()> {
    let is_copied = |name: &str| {
        copy.attlist().is_empty() || copy.attlist().iter().any(|listed| listed.as_str() == Some(name))
    };
    match table.columns.iter().find(|column| column.draws && !is_copied(&column.name)) {
        None => Ok(()),
        Some(column) => Err(super::insert::draws(&column.name)),
    }
}

fn key_position(copy: &nodes::CopyStmt, table: &Table, key_index: usize) -> Result<usize> {
    let key = table.columns.get(key_index).map_or("", |c| c.name.as_str());
    let position = if copy.attlist().is_empty() {
        table.columns.iter().filter(|c| !c.generated).position(|c| c.name == key)
    } else {
        copy.attlist().iter().position(|n| n.as_str() == Some(key))
    };
    position.ok_or_else(|| {
        Refusal::unsupported(
            format!("COPY into {}.{} without its sharding key {key}", table.schema, table.name),
            format!("Name {key} among the columns."),
        )
    })
}

fn format(copy: &nodes::CopyStmt) -> Result<CopyFormat> {
    let mut name = "text".to_owned();
    let (mut delimiter, mut quote, mut escape, mut null) = (None, None, None, None);
    let mut header = false;
    for option in copy.options().iter() {
        let text = || option_text(option.arg());
        match option.defname().unwrap_or_default() {
            "format" => name = text().unwrap_or_default().to_ascii_lowercase(),
            "delimiter" => delimiter = Some(byte(text())?),
            "quote" => quote = Some(byte(text())?),
            "escape" => escape = Some(byte(text())?),
            "null" => null = text().map(String::into_bytes),
            "header" => {
                header =
                    text().is_none_or(|t| !matches!(t.to_ascii_lowercase().as_str(), "false" | "off" | "0"))
            }
            "freeze" | "force_not_null" | "force_null" | "force_quote" => {}
            "encoding"
                if text().is_some_and(|t| matches!(t.to_ascii_lowercase().as_str(), "utf8" | "utf-8")) => {}
            other => {
                return Err(Refusal::unsupported(
                    format!("COPY option {other} for a sharded table"),
                    "Leave the option out.",
                ));
            }
        }
    }
    match name.as_str() {
        "binary" => Ok(CopyFormat::Binary),
        "csv" => {
            let quote = quote.unwrap_or(b'"');
            Ok(CopyFormat::Csv {
                delimiter: delimiter.unwrap_or(b','),
                quote,
                escape: escape.unwrap_or(quote),
                null: null.unwrap_or_default(),
                header,
            })
        }
        "text" if header => Err(Refusal::unsupported(
            "COPY with HEADER in text format for a sharded table",
            "Use FORMAT csv, or leave the header out.",
        )),
        "text" => Ok(CopyFormat::Text {
            delimiter: delimiter.unwrap_or(b'\t'),
            null: null.unwrap_or_else(|| b"\\N".to_vec()),
        }),
        other => Err(Refusal::new(
            "22023",
            format!("COPY format \"{other}\" not recognized"),
            "Use text, csv or binary.",
        )),
    }
}

/// Does COPY TO begin with a line of names?
fn has_header(copy: &nodes::CopyStmt) -> bool {
    copy.options().iter().any(|option| {
        let off = |text: String| matches!(text.to_ascii_lowercase().as_str(), "false" | "off" | "0");
        option.defname() == Some("header") && !option_text(option.arg()).is_some_and(off)
    })
}

fn option_text(node: Node<'_>) -> Option<String> {
    match node {
        Node::String(s) => s.sval().map(str::to_owned),
        Node::Integer(i) => Some(i.ival.to_string()),
        Node::Boolean(b) => Some(b.boolval.to_string()),
        Node::A_Const(c) => match c.val()? {
            ConstValue::String(s) => Some(s.to_owned()),
            other => Some(other.to_string()),
        },
        _ => None,
    }
}

fn byte(text: Option<String>) -> Result<u8> {
    match text.as_deref().map(str::as_bytes) {
        Some([one]) => Ok(*one),
        _ => Err(Refusal::new(
            "0A000",
            "COPY delimiter, quote and escape must be a single one-byte character",
            "Use one ASCII character.",
        )),
    }
}
