//! `SET shard.key`: the session sees and changes the rows of one key only. PURE: text -> text.
//!
//! Every sharded table in FROM becomes `(SELECT * FROM t WHERE key = value)`, the target of UPDATE and DELETE gets the
//! condition, an INSERT that does not give the key gets the value. So the server itself applies it, and it holds whatever
//! else the statement says; the router then proves what it always proves. What cannot be written so is refused.

use pg_raw_parse::{Node, nodes};

use super::apply::Command;
use super::edits::{self, Edit};
use super::ir::{Builder, Result};
use super::names::Found;
use super::utility::quote;
use super::write::name as quoted;
use crate::catalog::{Table, TableKind};
use crate::route::RouteContext;
use crate::route::lex::Literals;
use crate::route::plan::Refusal;
use crate::route::tokens::{Token, TokenKind, tokens};

/// The statement for one key.
#[derive(Debug, PartialEq, Eq)]
pub struct Restricted {
    pub text: String,
    /// An INSERT: all keys that its plan knows must be constants of that value.
    pub inserts: bool,
}

type Edits = Vec<Edit>;

/// `None`: there is nothing to restrict, or the text is no statement and is reported as it is. What could not be looked
/// at is not let through.
pub fn restrict(
    context: &RouteContext<'_>,
    text: &str,
    literals: &Literals,
    value: &str,
) -> Result<Option<Restricted>> {
    let Ok(tree) = pg_raw_parse::parse(text) else { return Ok(None) };
    let Some(node) = tree.stmts().next() else { return Ok(None) };
    let mut builder = Builder::new(context, text, literals);
    builder.restrict(node, value)
}

fn query_of(node: Node<'_>) -> Node<'_> {
    match node {
        Node::ExplainStmt(explain) => query_of(explain.query()),
        Node::DeclareCursorStmt(cursor) => query_of(cursor.query()),
        Node::CreateTableAsStmt(create) => query_of(create.query()),
        Node::CopyStmt(copy) if !matches!(copy.query(), Node::None) => query_of(copy.query()),
        other => other,
    }
}

impl Builder<'_> {
    fn restrict(&mut self, node: Node<'_>, value: &str) -> Result<Option<Restricted>> {
        let query = query_of(node);
        let mut written = None;
        match query {
            Node::SelectStmt(select) => {
                if self.set_config(select)?.is_some() {
                    return Ok(None);
                }
                self.select(select)?;
            }
            Node::InsertStmt(insert) => {
                self.insert(insert, true)?;
                written = insert.relation();
            }
            Node::UpdateStmt(update) => {
                self.update(update)?;
                written = update.relation();
            }
            Node::DeleteStmt(delete) => {
                self.delete(delete)?;
                written = delete.relation();
            }
            Node::MergeStmt(merge) => {
                self.merge_statement(merge)?;
                written = merge.relation();
            }
            Node::CopyStmt(copy) => return self.whole_table(copy.relation(), "COPY").map(|()| None),
            Node::TruncateStmt(truncate) => return self.whole_tables(truncate.relations(), "TRUNCATE"),
            Node::LockStmt(lock) => return self.whole_tables(lock.relations(), "LOCK"),
            Node::CallStmt(_) => {
                return Err(refusal("CALL", "RESET shard.key first."));
            }
            _ => return Ok(None),
        }
        let mut edits = Edits::new();
        let all = tokens(self.text.as_bytes(), self.context.standard_conforming_strings)
            .ok_or_else(|| refusal("a text that could not be cut", "Write it more plainly."))?;
        self.restrict_sources(&all, value, &mut edits)?;
        let target = self.write.as_ref().map(|write| write.target());
        let sharded = target.and_then(|(table, ..)| key_of(table));
        let keyed = !edits.is_empty() || sharded.is_some();
        if !self.blocks.iter().all(|block| block.calls.is_empty()) || self.keys.len() > self.assigned_keys {
            return Err(refusal(
                "a function that is given the key",
                "RESET shard.key first, or call it by itself.",
            ));
        }
        if self.seen.write_count > usize::from(written.is_some()) && self.seen.tables.keyed {
            return Err(refusal("a statement of which a part of WITH writes", "Write it as two statements."));
        }
        if target.is_none() {
            self.whole_table(written, "a write of this form")?;
        }
        let mut inserts = false;
        if let (Some((_, alias, command)), Some(key)) = (target, sharded) {
            let column = quoted(key);
            match (command, query) {
                (Command::Insert, Node::InsertStmt(insert)) => {
                    inserts = true;
                    self.fill(insert, key, value, &all, &mut edits)?;
                }
                (Command::Update | Command::Delete, _) => {
                    if self.write.as_ref().is_some_and(|write| write.assigns(key)) {
                        return Err(refusal("a change of the sharding key", "RESET shard.key first."));
                    }
                    self.condition_edit(
                        &format!("{}.{column} = {}", quoted(alias), quote(value)),
                        &mut edits,
                    )?;
                }
                _ => {
                    return Err(refusal(
                        "MERGE into a sharded table",
                        "RESET shard.key first, and bind the key.",
                    ));
                }
            }
        }
        if !keyed {
            return Ok(None);
        }
        let text = edits::apply(self.text, edits).ok_or_else(unreadable)?;
        Ok(Some(Restricted { text, inserts }))
    }

    fn whole_tables(
        &self,
        relations: &pg_raw_parse::list::NodeList,
        verb: &str,
    ) -> Result<Option<Restricted>> {
        for node in relations {
            if let Node::RangeVar(var) = node {
                self.whole_table(Some(var), verb)?;
            }
        }
        Ok(None)
    }

    fn whole_table(&self, var: Option<&nodes::RangeVar>, verb: &str) -> Result<()> {
        match var.map(|var| self.relation(var)) {
            Some(Ok(Found::Table(table))) if key_of(table).is_some() => Err(refusal(
                &format!("{verb} of a sharded table"),
                "It is about all keys: RESET shard.key first.",
            )),
            _ => Ok(()),
        }
    }

    fn restrict_sources(&self, all: &[Token], value: &str, edits: &mut Edits) -> Result<()> {
        for source in &self.sources {
            let Some((schema, name)) = source.sharded() else { continue };
            let table = self.context.catalog.tables.get(&(schema.to_owned(), name.to_owned()));
            let key = table.and_then(|table| match table.kind {
                TableKind::View => self.view_key(table),
                _ => key_of(table),
            });
            let Some(key) = key else {
                return Err(refusal(
                    &format!("view {schema}.{name}, which does not show the key"),
                    "Query its tables.",
                ));
            };
            let (span, bare) = source.span(self.text, all)?;
            if bare || source.only() {
                return Err(refusal("TABLE and ONLY", "Write SELECT * FROM the table."));
            }
            let written = self.text.get(span.clone()).ok_or_else(unreadable)?;
            let alias =
                if source.has_alias() { String::new() } else { format!(" AS {}", quoted(source.name())) };
            edits.push((
                span,
                format!("(SELECT * FROM {written} WHERE {} = {}){alias}", quoted(key), quote(value)),
            ));
        }
        Ok(())
    }

    /// The column of a view that has the key's name; that it is the key is for the router to prove.
    fn view_key<'t>(&self, view: &'t Table) -> Option<&'t str> {
        let (key, _) = self.context.catalog.key_column.as_ref()?;
        view.columns.iter().find(|column| column.name == *key).map(|column| column.name.as_str())
    }

    /// `WHERE (...) AND condition`.
    fn condition_edit(&self, condition: &str, edits: &mut Edits) -> Result<()> {
        if self.seen.cursor {
            return Err(refusal("WHERE CURRENT OF", "RESET shard.key first."));
        }
        edits.extend(edits::condition(self.text, self.context.standard_conforming_strings, condition));
        Ok(())
    }

    /// The key's column and its value, where the statement does not name it.
    fn fill(
        &self,
        insert: &nodes::InsertStmt,
        key: &str,
        value: &str,
        all: &[Token],
        edits: &mut Edits,
    ) -> Result<()> {
        let named: Vec<&str> = insert
            .cols()
            .iter()
            .filter_map(|node| match node {
                Node::ResTarget(target) => target.name(),
                _ => None,
            })
            .collect();
        if named.is_empty() || named.contains(&key) {
            return match insert.select_stmt() {
                Node::None => Err(refusal("INSERT ... DEFAULT VALUES", "Name the columns.")),
                _ => Ok(()),
            };
        }
        let rows = match insert.select_stmt() {
            Node::SelectStmt(select)
                if !select.values_lists().is_empty() && insert.with_clause().is_none() =>
            {
                select.values_lists().len()
            }
            _ => {
                let hint = "Name the key's column, too, and select it.";
                return Err(refusal("INSERT ... SELECT without the key", hint));
            }
        };
        // The first parenthesis is the list of columns, those behind VALUES are its rows.
        let (mut depth, mut list, mut values, mut found) = (0usize, false, false, 0);
        for token in all {
            match token.kind {
                TokenKind::Open => {
                    if depth == 0 && !list {
                        edits.push((token.range.end..token.range.end, format!("{}, ", quoted(key))));
                        list = true;
                    } else if depth == 0 && values && found < rows {
                        edits.push((token.range.end..token.range.end, format!("{}, ", quote(value))));
                        found += 1;
                    }
                    depth += 1;
                }
                TokenKind::Close => depth = depth.saturating_sub(1),
                TokenKind::Word if depth == 0 && list => {
                    let word = self.text.get(token.range.clone()).unwrap_or_default();
                    values |= word.eq_ignore_ascii_case("values");
                }
                _ => {}
            }
        }
        if found == rows { Ok(()) } else { Err(unreadable()) }
    }
}

fn key_of(table: &Table) -> Option<&str> {
    match table.kind {
        TableKind::Sharded { key_index, .. } => {
            table.columns.get(key_index).map(|column| column.name.as_str())
        }
        _ => None,
    }
}

pub(in crate::route) fn refusal(what: &str, hint: &str) -> Refusal {
    Refusal::unsupported(format!("with shard.key set, {what} cannot be restricted to one key"), hint)
}

fn unreadable() -> Refusal {
    refusal("a text that could not be cut", "Write it more plainly.")
}
