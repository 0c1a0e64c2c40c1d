//! Writes that no shard can do by itself (`How::Apply`): what they do to the rows is found out on copies, by PostgreSQL
//! running the client's own text there, and then done to the rows where they are.
//!
//! Every table that is read becomes a temporary table ([`super::gather`]), and so does the target, as
//! `pg_temp.shard_target_0` and so on: one for each part of `WITH` that writes, and for the statement itself. The parts
//! see nothing of each other but what they return, and each writes to a copy of its own, so two of them may write to one
//! table as long as they cannot mean the same row. What the statement says of its own INSERT's conflicts and of that
//! one's RETURNING stays for the shards.

use std::ops::Range;

use pg_raw_parse::{Node, nodes};

use super::gather::{Filter, GatherTable, Source, condition_span, splice};
use super::ir::{BlockId, Builder, Result};
use crate::catalog::{Table, TableKind};
use crate::route::plan::{KeyRef, Refusal};
use crate::route::tokens::{TokenKind, tokens};

/// The copy of what the n-th part writes to.
pub fn target_copy(n: usize) -> String {
    format!("pg_temp.shard_target_{n}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Insert,
    Update,
    Delete,
    Merge,
}

/// What the statement itself, or a part of its WITH, writes.
#[derive(Debug)]
pub(super) struct Write<'a> {
    block: BlockId,
    table: &'a Table,
    command: Command,
    source: Source,
    only: bool,
    alias: Option<String>,
    assigned: Vec<String>,
    /// Of INSERT: it has ON CONFLICT.
    conflict: bool,
    /// Of UPDATE and DELETE: they have a condition, and no other tables.
    plain: bool,
    /// Of INSERT, what a shard could not do of its ON CONFLICT and RETURNING: they read more than reference tables, call a
    /// function of the default shard, or something that is not the same on every shard.
    tail_reads: bool,
    tail_function: bool,
    tail_unstable: bool,
}

/// See `Builder::before_tail`.
pub(super) struct BeforeTail {
    relations: usize,
    reference: usize,
    function: bool,
    unstable: Option<String>,
}

impl<'a> Write<'a> {
    /// Can what it does be found out on a copy of its table?
    fn can_be_copied(&self) -> bool {
        let kind = !matches!(
            (&self.table.kind, self.command),
            (TableKind::Reference, Command::Merge) | (TableKind::View | TableKind::System, _)
        );
        // A copy does not know what there is to conflict with.
        let conflicts = !self.conflict || self.block == 0 && !self.tail_is_copied();
        kind && conflicts && !self.only
    }

    /// Is its RETURNING, or what it does with conflicts, more than a shard can do? What a part returns is for the other
    /// parts, so it is always asked of its copy.
    fn tail_is_copied(&self) -> bool {
        let reference = self.table.kind == TableKind::Reference;
        self.block != 0 || self.tail_reads || self.tail_function || reference && self.tail_unstable
    }

    /// Of two parts that change the same row PostgreSQL does one; which, it does not say.
    fn is_apart_from(&self, other: &Self) -> bool {
        let changes = |write: &Self| write.command != Command::Insert || write.conflict;
        let same = (&self.table.schema, &self.table.name) == (&other.table.schema, &other.table.name);
        let inserts = |write: &Self| write.command == Command::Insert && !write.conflict;
        let deletes = |write: &Self| write.command == Command::Delete;
        !same
            || !changes(self) && !changes(other)
            || deletes(self) && inserts(other)
            || inserts(self) && deletes(other)
    }

    /// The table, the name by which the statement's columns refer to it, and what is done.
    pub(super) fn target(&self) -> (&'a Table, &str, Command) {
        (self.table, self.alias.as_deref().unwrap_or(&self.table.name), self.command)
    }

    pub(super) fn assigns(&self, column: &str) -> bool {
        self.assigned.iter().any(|assigned| assigned == column)
    }
}

/// What one part of a text writes.
#[derive(Debug)]
pub struct Written {
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
}

/// How one text is applied.
#[derive(Debug)]
pub struct ApplyPlan {
    /// The n-th has its copy in `target_copy(n)`; parts of WITH in their order, then what the statement itself writes.
    pub writes: Vec<Written>,
    /// What the statement itself does, as PostgreSQL calls it in errors.
    pub verb: &'static str,
    /// Which of them is an INSERT whose shards run its ON CONFLICT and RETURNING: `tail`.
    pub with_tail: Option<usize>,
    /// Temporary table n is `pg_temp.shard_gather_n`.
    pub tables: Vec<GatherTable>,
    /// For a server that has copies of the sharded tables only, and for one that has copies of all.
    pub text: String,
    pub text_of_all: String,
    /// ON CONFLICT and RETURNING of that INSERT.
    pub tail: String,
    pub tail_parameters: bool,
    pub system: bool,
    pub clock: bool,
    pub grouped: bool,
    /// It may draw from a sequence.
    pub draws: bool,
}

impl<'a> Builder<'a> {
    /// A reason why no shard can do its part alone. For a statement of its own, or one that is a part of its WITH, that is
    /// not the end yet.
    pub(super) fn soften(&mut self, block: BlockId, refusal: Refusal) -> Result<()> {
        if block != 0 && self.write_of(block).is_none() {
            return Err(refusal);
        }
        self.soft.get_or_insert(refusal);
        Ok(())
    }

    fn write_of(&mut self, block: BlockId) -> Option<&mut Write<'a>> {
        self.parts.iter_mut().chain(&mut self.write).find(|write| write.block == block)
    }

    pub(super) fn note_write(
        &mut self,
        var: &nodes::RangeVar,
        table: Option<&'a Table>,
        command: Command,
        block: BlockId,
    ) {
        let Some(table) = table else { return };
        let n = if block == 0 { usize::MAX } else { self.parts.len() };
        let Some(source) = Source::target(var, n) else { return };
        let write = Write {
            block,
            table,
            command,
            source,
            only: !var.inh,
            alias: var.alias().and_then(nodes::Alias::aliasname).map(str::to_owned),
            assigned: Vec::new(),
            conflict: false,
            plain: false,
            tail_reads: false,
            tail_function: false,
            tail_unstable: false,
        };
        if block == 0 {
            self.write = Some(write);
        } else {
            self.parts.push(write);
        }
    }

    /// `others`: it has other tables.
    pub(super) fn note_condition(&mut self, condition: Node<'_>, others: bool, block: BlockId) {
        let plain = !others && !matches!(condition, Node::None) && self.blocks[block].subs.is_empty();
        if let Some(write) = self.write_of(block) {
            write.plain = plain;
        }
    }

    /// What is written: schema, name and alias.
    pub(super) fn written(&self) -> Option<(&str, &str, Option<&str>)> {
        let write = self.write.as_ref()?;
        Some((&write.table.schema, &write.table.name, write.alias.as_deref()))
    }

    /// SET id = DEFAULT would be drawn from the shard's own sequence.
    pub(super) fn note_assigned(&mut self, name: &str, default: bool, block: BlockId) -> Result<()> {
        let Some(write) = self.write_of(block) else { return Ok(()) };
        if !write.assigned.iter().any(|known| known == name) {
            write.assigned.push(name.to_owned());
        }
        let table = write.table;
        let column = table.columns.iter().find(|column| column.name == name);
        let sharded = matches!(table.kind, TableKind::Sharded { .. });
        match column.filter(|column| default && sharded && column.draws) {
            Some(column) => self.soften(block, super::insert::draws(&column.name)),
            None => Ok(()),
        }
    }

    /// MERGE ... INSERT without a column that is drawn from a sequence.
    pub(super) fn note_merge_insert(&mut self, targets: &[&nodes::ResTarget], block: BlockId) -> Result<()> {
        let Some(write) = self.write_of(block) else { return Ok(()) };
        let given = |name: &str| {
            targets.iter().any(|t| t.name() == Some(name) && !matches!(t.val(), Node::SetToDefault(_)))
        };
        let table = write.table;
        let missing = table.columns.iter().find(|column| column.draws && !given(&column.name));
        match missing {
            Some(column) => self.soften(block, super::insert::draws(&column.name)),
            None => Ok(()),
        }
    }

    /// What was seen before an INSERT's ON CONFLICT and RETURNING.
    pub(super) fn before_tail(&mut self) -> BeforeTail {
        BeforeTail {
            relations: self.rels.len(),
            reference: self.reference_items.len(),
            function: std::mem::take(&mut self.seen.default_function),
            unstable: self.seen.unstable.take(),
        }
    }

    pub(super) fn note_tail(&mut self, before: BeforeTail, conflict: bool, block: BlockId) {
        let reads = self.rels.len() - before.relations > self.reference_items.len() - before.reference;
        let (function, moving) = (self.seen.default_function, self.seen.unstable.is_some());
        if let Some(write) = self.write_of(block) {
            write.conflict = conflict;
            write.tail_reads = reads;
            write.tail_function = function;
            write.tail_unstable = moving;
        }
        self.seen.default_function |= before.function;
        self.seen.unstable = self.seen.unstable.take().or(before.unstable);
    }

    /// Can it be done to copies first? `early`: keys that do not come from tables.
    pub(super) fn applies(&self, early: &[KeyRef]) -> bool {
        let writes: Vec<&Write<'_>> = self.parts.iter().chain(&self.write).collect();
        let seen = &self.seen;
        let all = !writes.is_empty() && seen.write_count == writes.len() && early.len() == self.assigned_keys;
        let copied = !(seen.temporary
            || seen.session_lock
            || seen.other_default_function
            || seen.sequence_value
            || seen.locks
            || seen.cursor
            || seen.user_code
            || seen.physical.is_some());
        let apart =
            |(n, one): (usize, &&Write<'_>)| writes[n + 1..].iter().all(|other| one.is_apart_from(other));
        all && copied
            && writes.iter().all(|write| write.can_be_copied())
            && writes.iter().enumerate().all(apart)
    }

    /// `node`: the whole statement.
    pub(super) fn apply_plan(&mut self, node: Node<'_>) -> Result<ApplyPlan> {
        let tailed = |write: &Write<'a>| write.command == Command::Insert && !write.tail_is_copied();
        let for_shards = self.write.as_ref().is_some_and(tailed);
        let verb = match self.write.as_ref().map(|write| write.command) {
            Some(Command::Insert) => "INSERT",
            Some(Command::Update) => "UPDATE",
            Some(Command::Delete) => "DELETE",
            Some(Command::Merge) => "MERGE",
            None => "SELECT",
        };
        let writes: Vec<Write<'a>> =
            std::mem::take(&mut self.parts).into_iter().chain(self.write.take()).collect();
        let standard = self.context.standard_conforming_strings;
        let cut = match node {
            Node::InsertStmt(insert) if for_shards => tail_start(self.text, standard, insert)?,
            _ => self.text.len(),
        };
        let (body, tail) = self.text.split_at_checked(cut).ok_or_else(super::dml::odd_statement)?;
        self.sources.retain(|source| source.location < cut);
        for (n, write) in writes.iter().enumerate() {
            self.sources.push(write.source.clone().numbered(n));
        }
        let mut tables = Vec::new();
        let text = splice(body, &self.sources, standard, false, &mut tables)?;
        let text_of_all = splice(body, &self.sources, standard, true, &mut tables)?;
        let tail_parameters = tokens(tail.as_bytes(), standard)
            .is_none_or(|all| all.iter().any(|token| matches!(token.kind, TokenKind::Parameter(_))));
        let drawn = |write: &Write<'_>| write.table.columns.iter().any(|column| column.draws);
        let draws = self.seen.draws || writes.iter().any(drawn);
        Ok(ApplyPlan {
            verb,
            with_tail: writes.len().checked_sub(1).filter(|_| for_shards),
            writes: writes.into_iter().map(|write| self.written_by(write)).collect(),
            tables,
            text,
            text_of_all,
            tail: tail.to_owned(),
            tail_parameters,
            system: self.seen.system,
            clock: self.seen.clock,
            grouped: self.blocks.iter().any(|block| !block.shape.groups.is_empty()),
            draws,
        })
    }

    fn written_by(&self, write: Write<'a>) -> Written {
        let key = match write.table.kind {
            TableKind::Sharded { key_index, .. } => {
                write.table.columns.get(key_index).map(|column| column.name.clone())
            }
            _ => None,
        };
        Written {
            filter: self.target_filter(&write),
            command: write.command,
            schema: write.table.schema.clone(),
            name: write.table.name.clone(),
            alias: write.alias,
            kind: write.table.kind.clone(),
            key,
            assigned: write.assigned,
        }
    }

    /// The condition of an UPDATE or DELETE of one table is applied where the rows are, too.
    fn target_filter(&self, write: &Write<'_>) -> Option<Filter> {
        let plain = write.plain && !self.seen.volatile && self.seen.unstable.is_none();
        let standard = self.context.standard_conforming_strings;
        let span = condition_span(self.text, standard, write.source.location).filter(|_| plain)?;
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
pub fn last_word(text: &str, standard: bool, wanted: &str) -> Option<Range<usize>> {
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
