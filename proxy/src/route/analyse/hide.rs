//! A statement without the rows that a shard has and does not own, because they are on their way: what a shard runs in its
//! place while buckets move (H30).
//!
//! Every sharded table in FROM becomes a query of its rows that may be seen, views become their definitions in parentheses,
//! and the target of UPDATE and DELETE gets a condition more; nothing else of the text changes. Where that would not be the
//! same to PostgreSQL (a whole row, a system column, a column that is only grouped because its key is), there is none, and
//! the statement is answered in another way or refused.

use std::ops::ControlFlow;

use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::edits::{self, Edit};
use super::gather::{GatherTable, Source, Spread, What, name_span};
use super::ir::{Builder, Result};
use super::names::Found;
use super::write::name as quote_name;
use crate::catalog::{Catalog, TableKind};
use crate::motion::Hidden;
use crate::route::plan::Refusal;
use crate::route::tokens::{TokenKind, tokens};

/// True for rows of the table that may be seen; `alias` in front of the key's name. `None`: it is not sharded.
pub fn shown(
    catalog: &Catalog,
    hidden: &Hidden,
    schema: &str,
    name: &str,
    alias: Option<&str>,
) -> Option<String> {
    let table = catalog.tables.get(&(schema.to_owned(), name.to_owned()))?;
    let TableKind::Sharded { key_index, key_type } = table.kind else { return None };
    let key = quote_name(&table.columns.get(key_index)?.name);
    let key = alias.map_or_else(|| key.clone(), |alias| format!("{}.{key}", quote_name(alias)));
    Some(hidden.shown(&key, key_type))
}

impl Builder<'_> {
    /// `generated`: a text of our own, whose outputs are grouped for certain.
    pub(super) fn hidden(&mut self, node: Node<'_>, hidden: &Hidden, generated: bool) -> Result<String> {
        let query = match node {
            Node::ExplainStmt(explain) => explain.query(),
            Node::DeclareCursorStmt(cursor) => cursor.query(),
            Node::CopyStmt(copy) if matches!(copy.query(), Node::None) => {
                return self.hidden_copy(copy, hidden);
            }
            Node::CopyStmt(copy) => copy.query(),
            other => other,
        };
        let mut edits = Vec::new();
        match query {
            Node::SelectStmt(select) => drop(self.select(select)?),
            Node::InsertStmt(insert) => drop(self.insert(insert, true)?),
            Node::UpdateStmt(update) => {
                self.update(update)?;
                edits = self.target_condition(hidden)?;
            }
            Node::DeleteStmt(delete) => {
                self.delete(delete)?;
                edits = self.target_condition(hidden)?;
            }
            _ => return Err(cannot("this kind of statement")),
        }
        let reads = matches!(query, Node::SelectStmt(_));
        if self.seen.write_count > usize::from(!reads) {
            return Err(cannot("a part of WITH that writes"));
        }
        if let Some(what) = &self.seen.physical {
            return Err(cannot(what));
        }
        if let Some(what) = self.not_the_same(query, generated) {
            return Err(cannot(&what));
        }
        let how = (self.context.standard_conforming_strings, generated);
        edits.extend(self.source_edits(self.text, &self.sources, hidden, how)?);
        apply(self.text, edits)
    }

    /// `COPY t (a, b) TO` copies what `SELECT a, b FROM ONLY t` gives.
    fn hidden_copy(&mut self, copy: &nodes::CopyStmt, hidden: &Hidden) -> Result<String> {
        let var = copy.relation().ok_or_else(|| cannot("this COPY"))?;
        let Found::Table(table) = self.used_relation(var)? else { return Err(cannot("this COPY")) };
        let all = tokens(self.text.as_bytes(), self.context.standard_conforming_strings)
            .ok_or_else(|| cannot("this COPY"))?;
        let start = usize::try_from(var.location).map_err(|_| cannot("this COPY"))?;
        let mut depth = 0usize;
        let to = all.iter().filter(|token| token.range.start > start).find(|token| {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.saturating_sub(1),
                _ => {}
            }
            let word = self.text.get(token.range.clone()).unwrap_or_default();
            depth == 0 && token.kind == TokenKind::Word && word.eq_ignore_ascii_case("to")
        });
        let end = to.ok_or_else(|| cannot("this COPY"))?.range.start;
        let listed: Vec<String> = copy.attlist().iter().filter_map(|n| n.as_str().map(quote_name)).collect();
        let columns = match listed.is_empty() {
            true => table.columns.iter().filter(|c| !c.generated).map(|c| quote_name(&c.name)).collect(),
            false => listed,
        };
        let shown = shown(self.context.catalog, hidden, &table.schema, &table.name, None);
        let shown = shown.ok_or_else(|| cannot("this COPY"))?;
        let query = format!(
            "(SELECT {} FROM ONLY {}.{} WHERE {shown}) ",
            columns.join(", "),
            quote_name(&table.schema),
            quote_name(&table.name)
        );
        apply(self.text, vec![(start..end, query)])
    }

    /// One condition more on the rows of UPDATE and DELETE.
    fn target_condition(&self, hidden: &Hidden) -> Result<Vec<Edit>> {
        let Some((schema, name, alias)) = self.written() else { return Err(cannot("this target")) };
        let alias = alias.unwrap_or(name);
        let Some(shown) = shown(self.context.catalog, hidden, schema, name, Some(alias)) else {
            return Ok(Vec::new());
        };
        Ok(edits::condition(self.text, self.context.standard_conforming_strings, &shown))
    }

    /// `standard`: how strings are read, which in views does not depend on the session.
    fn source_edits(
        &self,
        text: &str,
        sources: &[Source],
        hidden: &Hidden,
        (standard, generated): (bool, bool),
    ) -> Result<Vec<Edit>> {
        let all = tokens(text.as_bytes(), standard).ok_or_else(|| cannot("its text"))?;
        let mut edits = Vec::new();
        for source in sources {
            let replacement = match &source.what {
                What::Table(table) if table.kind == Spread::Shards => self.seen_rows(table, hidden)?,
                What::Table(_) | What::Target(_) => continue,
                What::View { sources, .. } if !reads_shards(sources) => continue,
                // With its owner's rights it may read what the session may not: the gathering judges that first.
                What::View { .. } if !generated || source.only => {
                    return Err(cannot(&format!("the view {}", source.name)));
                }
                What::View { text, sources, .. } => {
                    let text = text.trim_end().trim_end_matches(';');
                    let edits = self.source_edits(text, sources, hidden, (true, generated))?;
                    format!("({})", apply(text, edits)?)
                }
            };
            let (mut span, bare) = name_span(text, &all, source)?;
            if bare {
                return Err(cannot("TABLE"));
            }
            if source.only {
                let before = all.iter().rev().find(|token| token.range.end <= span.start);
                span.start = before.ok_or_else(|| cannot("ONLY"))?.range.start;
            }
            let alias = match source.has_alias {
                true => String::new(),
                false => format!(" AS {}", quote_name(&source.name)),
            };
            edits.push((span, format!("{replacement}{alias}")));
        }
        Ok(edits)
    }

    fn seen_rows(&self, table: &GatherTable, hidden: &Hidden) -> Result<String> {
        let shown = shown(self.context.catalog, hidden, &table.schema, &table.name, None);
        let shown = shown.ok_or_else(|| cannot("a table"))?;
        let only = if table.only { "ONLY " } else { "" };
        Ok(format!(
            "(SELECT * FROM {only}{}.{} WHERE {shown})",
            quote_name(&table.schema),
            quote_name(&table.name)
        ))
    }
}

fn reads_shards(sources: &[Source]) -> bool {
    sources.iter().any(|source| match &source.what {
        What::Table(table) => table.kind == Spread::Shards,
        What::View { sources, .. } => reads_shards(sources),
        What::Target(_) => false,
    })
}

impl Builder<'_> {
    /// What a query of rows is not the table itself for.
    fn not_the_same(&self, node: Node<'_>, generated: bool) -> Option<String> {
        let look = |node: Node<'_>| match node {
            Node::ColumnRef(reference) => {
                let mut fields = reference.fields().iter();
                match (fields.next().and_then(Node::as_str), fields.next()) {
                    // It may also be a column of that name; then nothing is lost but the shortest way.
                    (Some(name), None) if self.sources.iter().any(|source| source.alias == name) => {
                        ControlFlow::Break(format!("the whole row {name}"))
                    }
                    _ => Recurse::yes(),
                }
            }
            Node::SelectStmt(select) if !generated && self.depends_on_key(select) => {
                ControlFlow::Break("a column that is not grouped".to_owned())
            }
            _ => Recurse::yes(),
        };
        match look(node) {
            ControlFlow::Break(what) => Some(what),
            ControlFlow::Continue(_) => walk_manual(node, look),
        }
    }

    /// May an output be legal only because GROUP BY names a primary key? Then a query in the table's place would be an
    /// error.
    fn depends_on_key(&self, select: &nodes::SelectStmt) -> bool {
        if select.group_clause().is_empty() {
            return false;
        }
        let mut grouped = Vec::new();
        for node in select.group_clause() {
            let column = match node {
                Node::A_Const(constant) => match constant.val() {
                    Some(ConstValue::Integer(n)) => usize::try_from(n - 1)
                        .ok()
                        .and_then(|n| select.target_list().iter().nth(n))
                        .map_or(Node::None, |target| target.val()),
                    _ => Node::None,
                },
                other => other,
            };
            if let Node::ColumnRef(reference) = column {
                grouped.extend(last_name(reference));
            }
        }
        let free = |node: Node<'_>| {
            let look = |node: Node<'_>| match node {
                Node::FuncCall(call) if self.is_aggregate(call) => Recurse::no(),
                Node::SubLink(_) => Recurse::no(),
                Node::ColumnRef(reference) => match last_name(reference) {
                    Some(name) if grouped.contains(&name) => Recurse::yes(),
                    _ => ControlFlow::Break(()),
                },
                _ => Recurse::yes(),
            };
            match look(node) {
                ControlFlow::Break(()) => true,
                ControlFlow::Continue(Recurse::No) => false,
                ControlFlow::Continue(_) => walk_manual(node, look).is_some(),
            }
        };
        select.target_list().iter().any(|target| free(target.val()))
            || (!matches!(select.having_clause(), Node::None) && free(select.having_clause()))
    }
}

fn last_name(reference: &nodes::ColumnRef) -> Option<String> {
    reference.fields().iter().next_back().and_then(|field| field.as_str().map(str::to_owned))
}

fn apply(text: &str, edits: Vec<Edit>) -> Result<String> {
    edits::apply(text, edits).ok_or_else(|| cannot("its text"))
}

pub(super) fn cannot(what: &str) -> Refusal {
    Refusal::unsupported(
        format!("this statement over several shards, because of {what}, while a move is under way"),
        "Bind the sharding key, write it without that, or run it again when the move has ended (SHOW MOVES).",
    )
}
