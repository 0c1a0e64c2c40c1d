//! Writes that no shard can do by itself (`How::Apply`): what they do to the rows is found out on copies, by PostgreSQL
//! running the client's own text there, and then done to the rows where they are.
//!
//! Every table that is read becomes a temporary table ([`super::gather`]), and so does the target, as
//! `pg_temp.shard_target`. What the statement says of an INSERT's conflicts and of its RETURNING stays for the shards.

use std::ops::Range;

use pg_raw_parse::{Node, nodes};

use super::gather::{Filter, GatherTable, Source, condition_span, splice};
use super::ir::{BlockId, Builder, Result};
use crate::catalog::{Table, TableKind};
use crate::route::plan::{KeyRef, Refusal};
use crate::route::tokens::{TokenKind, tokens};

/// The target's copy.
pub const TARGET: &str = "pg_temp.shard_target";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Insert,
    Update,
    Delete,
    Merge,
}

/// What the statement itself, and no part of it, writes.
#[derive(Debug)]
pub(super) struct Write<'a> {
    table: &'a Table,
    command: Command,
    source: Source,
    only: bool,
    alias: Option<String>,
    assigned: Vec<String>,
    /// Of INSERT: its ON CONFLICT and RETURNING hold a query, call a function of the default shard, or something that
    /// is not the same on every shard.
    tail_queries: bool,
    tail_function: bool,
    tail_unstable: bool,
}

impl<'a> Write<'a> {
    /// The table, the name by which the statement's columns refer to it, and what is done.
    pub(super) fn target(&self) -> (&'a Table, &str, Command) {
        (self.table, self.alias.as_deref().unwrap_or(&self.table.name), self.command)
    }

    pub(super) fn assigns(&self, column: &str) -> bool {
        self.assigned.iter().any(|assigned| assigned == column)
    }
}

/// How one text is applied.
#[derive(Debug)]
pub struct ApplyPlan {
    pub command: Command,
    pub schema: String,
    pub name: String,
    pub alias: Option<String>,
    pub kind: TableKind,
    /// The key's name, of a sharded table.
    pub key: Option<String>,
    /// Columns that UPDATE and MERGE set.
    pub assigned: Vec<String>,
    /// A condition on the target's rows that every shard can apply.
    pub filter: Option<Filter>,
    /// Temporary table n is `pg_temp.shard_gather_n`.
    pub tables: Vec<GatherTable>,
    /// For a server that has copies of the sharded tables only, and for one that has copies of all.
    pub text: String,
    pub text_of_all: String,
    /// ON CONFLICT and RETURNING of an INSERT.
    pub tail: String,
    pub tail_parameters: bool,
    pub system: bool,
    pub clock: bool,
    pub grouped: bool,
    /// It may draw from a sequence.
    pub draws: bool,
}

impl<'a> Builder<'a> {
    /// A reason why no shard can do its part alone. For a statement of its own that is not the end yet.
    pub(super) fn soften(&mut self, block: BlockId, refusal: Refusal) -> Result<()> {
        if block != 0 {
            return Err(refusal);
        }
        self.soft.get_or_insert(refusal);
        Ok(())
    }

    pub(super) fn note_write(
        &mut self,
        var: &nodes::RangeVar,
        table: Option<&'a Table>,
        command: Command,
        block: BlockId,
    ) {
        let Some(table) = table.filter(|_| block == 0) else { return };
        let Some(source) = Source::target(var, TARGET) else { return };
        self.write = Some(Write {
            table,
            command,
            source,
            only: !var.inh,
            alias: var.alias().and_then(nodes::Alias::aliasname).map(str::to_owned),
            assigned: Vec::new(),
            tail_queries: false,
            tail_function: false,
            tail_unstable: false,
        });
    }

    /// What is written: schema, name and alias.
    pub(super) fn written(&self) -> Option<(&str, &str, Option<&str>)> {
        let write = self.write.as_ref()?;
        Some((&write.table.schema, &write.table.name, write.alias.as_deref()))
    }

    /// SET id = DEFAULT would be drawn from the shard's own sequence.
    pub(super) fn note_assigned(&mut self, name: &str, default: bool, block: BlockId) -> Result<()> {
        let Some(write) = self.write.as_mut().filter(|_| block == 0) else { return Ok(()) };
        if !write.assigned.iter().any(|known| known == name) {
            write.assigned.push(name.to_owned());
        }
        let column = write.table.columns.iter().find(|column| column.name == name);
        let sharded = matches!(write.table.kind, TableKind::Sharded { .. });
        match column.filter(|column| default && sharded && column.draws) {
            Some(column) => self.soften(block, super::insert::draws(&column.name)),
            None => Ok(()),
        }
    }

    /// MERGE ... INSERT without a column that is drawn from a sequence.
    pub(super) fn note_merge_insert(&mut self, targets: &[&nodes::ResTarget], block: BlockId) -> Result<()> {
        let Some(write) = self.write.as_ref().filter(|_| block == 0) else { return Ok(()) };
        let given = |name: &str| {
            targets.iter().any(|t| t.name() == Some(name) && !matches!(t.val(), Node::SetToDefault(_)))
        };
        let missing = write.table.columns.iter().find(|column| column.draws && !given(&column.name));
        match missing {
            Some(column) => self.soften(block, super::insert::draws(&column.name)),
            None => Ok(()),
        }
    }

    /// What was seen before an INSERT's ON CONFLICT and RETURNING.
    pub(super) fn before_tail(&mut self) -> (usize, bool, Option<String>) {
        let functions = std::mem::take(&mut self.seen.default_function);
        (self.blocks.len(), functions, self.seen.unstable.take())
    }

    pub(super) fn note_tail(&mut self, before: (usize, bool, Option<String>), block: BlockId) {
        let (blocks, functions, unstable) = before;
        if let Some(write) = self.write.as_mut().filter(|_| block == 0) {
            write.tail_queries = self.blocks.len() > blocks;
            write.tail_function = self.seen.default_function;
            write.tail_unstable = self.seen.unstable.is_some();
        }
        self.seen.default_function |= functions;
        self.seen.unstable = self.seen.unstable.take().or(unstable);
    }

    /// Can it be done to copies first? `early`: keys that do not come from tables.
    pub(super) fn applies(&self, early: &[KeyRef]) -> bool {
        let Some(write) = &self.write else { return false };
        let seen = &self.seen;
        let alone = seen.write_count == 1 && early.len() == self.assigned_keys && !write.only;
        let copied = !(seen.temporary
            || seen.session_lock
            || seen.other_default_function
            || seen.sequence_value
            || seen.locks
            || seen.cursor
            || seen.user_code
            || seen.physical.is_some());
        let kind = match (&write.table.kind, write.command) {
            (TableKind::Reference, Command::Merge) | (TableKind::View | TableKind::System, _) => false,
            (TableKind::Reference, _) => !write.tail_unstable,
            _ => true,
        };
        alone && copied && kind && !write.tail_queries && !write.tail_function
    }

    /// `node`: the whole statement.
    pub(super) fn apply_plan(&mut self, node: Node<'_>) -> Result<ApplyPlan> {
        let write = self.write.take().ok_or_else(super::dml::odd_statement)?;
        let standard = self.context.standard_conforming_strings;
        let cut = match node {
            Node::InsertStmt(insert) => tail_start(self.text, standard, insert)?,
            _ => self.text.len(),
        };
        let (body, tail) = self.text.split_at_checked(cut).ok_or_else(super::dml::odd_statement)?;
        let filter = self.target_filter(node, &write);
        self.sources.push(write.source);
        let mut tables = Vec::new();
        let text = splice(body, &self.sources, standard, false, &mut tables)?;
        let text_of_all = splice(body, &self.sources, standard, true, &mut tables)?;
        let tail_parameters = tokens(tail.as_bytes(), standard)
            .is_none_or(|all| all.iter().any(|token| matches!(token.kind, TokenKind::Parameter(_))));
        let key = match write.table.kind {
            TableKind::Sharded { key_index, .. } => {
                write.table.columns.get(key_index).map(|column| column.name.clone())
            }
            _ => None,
        };
        Ok(ApplyPlan {
            command: write.command,
            schema: write.table.schema.clone(),
            name: write.table.name.clone(),
            alias: write.alias,
            kind: write.table.kind.clone(),
            key,
            assigned: write.assigned,
            filter,
            tables,
            text,
            text_of_all,
            tail: tail.to_owned(),
            tail_parameters,
            system: self.seen.system,
            clock: self.seen.clock,
            grouped: self.blocks.iter().any(|block| !block.shape.groups.is_empty()),
            draws: self.seen.draws || write.table.columns.iter().any(|column| column.draws),
        })
    }

    /// The condition of an UPDATE or DELETE of one table is applied where the rows are, too.
    fn target_filter(&self, node: Node<'_>, write: &Write<'_>) -> Option<Filter> {
        let (with, others, condition) = match node {
            Node::UpdateStmt(update) => {
                (update.with_clause(), update.from_clause().len(), update.where_clause())
            }
            Node::DeleteStmt(delete) => {
                (delete.with_clause(), delete.using_clause().len(), delete.where_clause())
            }
            _ => return None,
        };
        let plain = with.is_none()
            && others == 0
            && !matches!(condition, Node::None)
            && self.blocks.len() == 1
            && !self.seen.volatile
            && self.seen.unstable.is_none();
        let span = condition_span(self.text, self.context.standard_conforming_strings).filter(|_| plain)?;
        let alias = write.alias.clone().unwrap_or_else(|| write.table.name.clone());
        Some(Filter { alias, condition: self.text.get(span)?.to_owned() })
    }
}

/// Where ON CONFLICT or RETURNING begins; the end, if there is neither.
fn tail_start(text: &str, standard: bool, insert: &nodes::InsertStmt) -> Result<usize> {
    if let Some(conflict) = insert.on_conflict_clause() {
        return usize::try_from(conflict.location).map_err(|_| super::dml::odd_statement());
    }
    if insert.returning_clause().is_none() {
        return Ok(text.len());
    }
    let last = last_word(text, standard, "returning");
    last.map(|range| range.start).ok_or_else(super::dml::odd_statement)
}

/// The last such word outside of parentheses that is not a column's name.
pub(super) fn last_word(text: &str, standard: bool, wanted: &str) -> Option<Range<usize>> {
    let all = tokens(text.as_bytes(), standard)?;
    let mut depth = 0usize;
    let mut previous = "";
    let mut found = None;
    for token in &all {
        let piece = text.get(token.range.clone())?;
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.checked_sub(1)?,
            TokenKind::Word
                if depth == 0
                    && piece.eq_ignore_ascii_case(wanted)
                    && previous != "."
                    && !previous.eq_ignore_ascii_case("as") =>
            {
                found = Some(token.range.clone());
            }
            _ => {}
        }
        previous = piece;
    }
    found
}
