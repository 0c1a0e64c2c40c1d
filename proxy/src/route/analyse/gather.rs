//! What to bring to one server so that PostgreSQL itself can answer a query over several shards.
//!
//! Every table named in FROM becomes a temporary table of the same columns there, and the query is the client's own
//! text with those names in their place; a view becomes its definition in parentheses. Nothing else of the text
//! changes, so types, names, order, errors and everything that PostgreSQL does to rows are PostgreSQL's.

use std::ops::Range;

use pg_raw_parse::raw::SetOperation;
use pg_raw_parse::{Node, nodes};

use super::apply::target_copy;
use super::ir::{BlockId, Builder, Clock, Result};
use super::split::SplitPlan;
use crate::catalog::{Table, TableKind};
use crate::route::plan::Refusal;
use crate::route::tokens::{Token, TokenKind, tokens};

/// A relation named in FROM.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) location: usize,
    pub(super) name: String,
    /// What the statement calls it.
    pub(super) alias: String,
    pub(super) only: bool,
    pub(super) has_alias: bool,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Table(GatherTable),
    /// What a part of the statement writes, and the number of its copy.
    Target(usize),
    View {
        full: (String, String),
        text: String,
        sources: Vec<Source>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatherTable {
    pub schema: String,
    pub name: String,
    pub only: bool,
    pub kind: Spread,
    /// Read through a view, which has its owner's rights.
    pub viewed: bool,
    /// A condition on its rows that the query has anyway, with the FROM item that it speaks of.
    pub filter: Option<Filter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub alias: String,
    pub condition: String,
}

/// Where its rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    Shards,
    /// The same on every shard, or only on the default one: the server that answers has them.
    Default,
}

/// How one text is answered by gathering.
#[derive(Debug)]
pub struct GatherPlan {
    /// Temporary table n is `pg_temp.shard_gather_n`.
    pub tables: Vec<GatherTable>,
    /// For a server that has only the sharded tables' copies.
    pub text: String,
    /// For one that has copies of all tables, because the transaction may have changed any of them.
    pub text_of_all: String,
    /// The query within the statement, and where in its text it stands.
    pub query: Range<usize>,
    /// How it is answered without moving all those rows.
    pub split: Option<SplitPlan>,
    /// It reads system tables.
    pub system: bool,
    /// It uses the time at which the transaction began.
    pub clock: bool,
    /// Where a constant can be put in that time's place, with the constant's type.
    clock_places: Vec<(Range<usize>, &'static str)>,
    /// It is used elsewhere, too.
    pub clock_elsewhere: bool,
    /// It has a GROUP BY, in which a primary key stands for all columns of its table.
    pub grouped: bool,
}

impl GatherPlan {
    /// The statement with the transaction's time, in UTC, in the place of now() and its kin.
    pub fn at_time(&self, text: &str, time: &str) -> String {
        let mut out = text.to_owned();
        for (place, kind) in self.clock_places.iter().rev() {
            let constant = format!("('{time}+00'::pg_catalog.timestamptz::pg_catalog.{kind})");
            out.replace_range(place.clone(), &constant);
        }
        out
    }
}

pub fn temporary_name(n: usize) -> String {
    format!("shard_gather_{n}")
}

impl Source {
    /// Schema and name, if it reads sharded rows.
    pub(super) fn sharded(&self) -> Option<(&str, &str)> {
        match &self.what {
            What::Table(table) if table.kind == Spread::Shards => Some((&table.schema, &table.name)),
            What::View { full, sources, .. } if sources.iter().any(|source| source.sharded().is_some()) => {
                Some((&full.0, &full.1))
            }
            _ => None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn only(&self) -> bool {
        self.only
    }

    pub(super) fn has_alias(&self) -> bool {
        self.has_alias
    }

    /// Where its name stands, and whether it is where no alias can be.
    pub(super) fn span(&self, text: &str, tokens: &[Token]) -> Result<(Range<usize>, bool)> {
        name_span(text, tokens, self)
    }

    pub(super) fn numbered(self, n: usize) -> Self {
        Self { what: What::Target(n), ..self }
    }

    pub(super) fn target(var: &nodes::RangeVar, n: usize) -> Option<Self> {
        Some(Self {
            location: usize::try_from(var.location).ok()?,
            name: var.relname()?.to_owned(),
            alias: var.alias().and_then(nodes::Alias::aliasname).or(var.relname())?.to_owned(),
            only: !var.inh,
            has_alias: var.alias().is_some(),
            what: What::Target(n),
        })
    }
}

impl Builder<'_> {
    pub(super) fn note_source(&mut self, var: &nodes::RangeVar, table: &Table, inner: Vec<Source>) {
        let Ok(location) = usize::try_from(var.location) else { return };
        if self.sources.iter().any(|source| source.location == location) {
            return; // The step of a recursive query is looked at several times.
        }
        let what = match (&table.kind, &table.view_definition) {
            (TableKind::System, _) => return,
            (TableKind::View, Some(text)) => {
                let full = (table.schema.clone(), table.name.clone());
                What::View { full, text: text.clone(), sources: inner }
            }
            (kind, _) => What::Table(GatherTable {
                schema: table.schema.clone(),
                name: table.name.clone(),
                only: !var.inh,
                kind: match kind {
                    TableKind::Sharded { .. } => Spread::Shards,
                    _ => Spread::Default,
                },
                viewed: self.views > 0,
                filter: None,
            }),
        };
        let name = var.relname().unwrap_or_default().to_owned();
        let has_alias = var.alias().is_some();
        let alias = var.alias().and_then(nodes::Alias::aliasname).unwrap_or(&name).to_owned();
        self.sources.push(Source { location, name, alias, only: !var.inh, has_alias, what });
    }

    pub(super) fn gather_plan(
        &mut self,
        select: &nodes::SelectStmt,
        block: BlockId,
        query: Range<usize>,
    ) -> Result<GatherPlan> {
        let standard = self.context.standard_conforming_strings;
        self.push_condition(select);
        let mut tables = Vec::new();
        let text = splice(self.text, &self.sources, standard, false, &mut tables)?;
        let text_of_all = splice(self.text, &self.sources, standard, true, &mut tables)?;
        let grouped = self.blocks.iter().any(|block| !block.shape.groups.is_empty());
        let split = self.split_query(select, block, query.clone()).ok();
        let (system, clock) = (self.seen.system, self.seen.clock);
        let clock_places = self.clock_places();
        let clock_elsewhere = self.seen.clock_elsewhere || clock_places.is_none();
        let clock_places = clock_places.unwrap_or_default();
        Ok(GatherPlan {
            tables,
            text,
            text_of_all,
            query,
            split,
            system,
            clock,
            clock_places,
            clock_elsewhere,
            grouped,
        })
    }

    /// Sorted; `None`: one of them was not found.
    fn clock_places(&self) -> Option<Vec<(Range<usize>, &'static str)>> {
        let all = tokens(self.text.as_bytes(), self.context.standard_conforming_strings)?;
        let mut places = Vec::new();
        for (location, clock) in &self.seen.clock_places {
            let at = all.iter().position(|token| token.range.start == *location)?;
            places.push(match clock {
                Clock::Word(kind) => (all[at].range.clone(), *kind),
                Clock::Call => {
                    let open = (at..all.len()).find(|i| all[*i].kind == TokenKind::Open)?;
                    let close = all.get(open + 1).filter(|token| token.kind == TokenKind::Close)?;
                    (all[at].range.start..close.range.end, "timestamptz")
                }
            });
        }
        places.sort_by_key(|(range, _)| range.start);
        Some(places)
    }

    /// The condition of a query over one table is applied where the rows are, too. It is evaluated once more at the end,
    /// so it must say the same both times.
    fn push_condition(&mut self, select: &nodes::SelectStmt) {
        let mut items = select.from_clause().iter();
        let (Some(Node::RangeVar(var)), None) = (items.next(), items.next()) else { return };
        let alone = select.op == SetOperation::SETOP_NONE
            && select.with_clause().is_none()
            && !matches!(select.where_clause(), Node::None)
            && self.blocks.len() == 1
            && !self.seen.volatile
            && !self.seen.server_bound
            && !self.seen.oids
            && !self.seen.clock;
        let renamed = var.alias().is_some_and(|alias| !alias.colnames().is_empty());
        let [Source { what: What::Table(table), .. }] = self.sources.as_mut_slice() else { return };
        if !alone || renamed {
            return;
        }
        let span = condition_span(self.text, self.context.standard_conforming_strings, 0);
        if let Some(condition) = span.and_then(|span| self.text.get(span)) {
            let alias = var.alias().and_then(nodes::Alias::aliasname).or(var.relname()).unwrap_or_default();
            table.filter = Some(Filter { alias: alias.to_owned(), condition: condition.to_owned() });
        }
    }
}

/// The text with its relations replaced. `all`: those of the default shard, too.
pub(super) fn splice(
    text: &str,
    sources: &[Source],
    standard: bool,
    all: bool,
    tables: &mut Vec<GatherTable>,
) -> Result<String> {
    let tokens = tokens(text.as_bytes(), standard).ok_or_else(unreadable)?;
    let mut sources: Vec<&Source> = sources.iter().collect();
    sources.sort_by_key(|source| source.location);
    let mut out = String::with_capacity(text.len() + 64);
    let mut from = 0;
    for source in sources {
        let replacement = match &source.what {
            What::Table(table) if table.kind == Spread::Shards || all => {
                let n = tables.iter().position(|known| known == table).unwrap_or_else(|| {
                    tables.push(table.clone());
                    tables.len() - 1
                });
                format!("pg_temp.{}", temporary_name(n))
            }
            What::Table(_) => continue,
            What::Target(n) => target_copy(*n),
            What::View { .. } if source.only => return Err(unreadable()),
            What::View { text, sources, .. } => {
                let inner = splice(text.trim_end().trim_end_matches(';'), sources, true, all, tables)?;
                format!("({inner})")
            }
        };
        let (span, bare) = name_span(text, &tokens, source)?;
        out.push_str(text.get(from..span.start).ok_or_else(unreadable)?);
        out.push_str(&replacement);
        if !source.has_alias && !bare {
            out.push_str(&format!(" AS \"{}\"", source.name.replace('"', "\"\"")));
        } else if bare && matches!(source.what, What::View { .. }) {
            return Err(unreadable());
        }
        from = span.end;
    }
    out.push_str(text.get(from..).ok_or_else(unreadable)?);
    Ok(out)
}

/// The span of a possibly qualified name, and whether it stands where no alias can (`TABLE t`).
pub(super) fn name_span(text: &str, tokens: &[Token], source: &Source) -> Result<(Range<usize>, bool)> {
    let at = tokens.iter().position(|t| t.range.start == source.location).ok_or_else(unreadable)?;
    let piece = |i: usize| tokens.get(i).and_then(|t| text.get(t.range.clone())).unwrap_or_default();
    let mut last = at;
    while piece(last + 1) == "." {
        last += 2;
    }
    let name = piece(last);
    let plain = name.to_lowercase() == source.name
        || name
            .strip_prefix('"')
            .is_some_and(|n| n.strip_suffix('"').is_some_and(|n| n.replace("\"\"", "\"") == source.name));
    // `t *` is an old way to say that children count, and `ONLY (t)` has no room for an alias.
    let odd = piece(last + 1) == "*" || (source.only && at > 0 && piece(at - 1) == "(");
    if !plain || odd {
        return Err(unreadable());
    }
    let before = |back: usize, word: &str| at >= back && piece(at - back).eq_ignore_ascii_case(word);
    let bare = before(1, "table") || (before(1, "only") && before(2, "table"));
    Ok((tokens[at].range.start..tokens[last].range.end, bare))
}

fn unreadable() -> Refusal {
    Refusal::unsupported(
        "a table's name in this query over several shards could not be replaced",
        "Write it plainly, as schema.table or table.",
    )
}

/// The condition of a query over one table alone, if every shard may apply it to its own rows: the text between WHERE
/// and what follows it. The analyser has seen that there is no subquery in it. `from`: within the query, which may stand in
/// parentheses.
pub(super) fn condition_span(text: &str, standard: bool, from: usize) -> Option<Range<usize>> {
    let tokens = tokens(text.as_bytes(), standard)?;
    let mut depth = 0usize;
    let mut start = None;
    let mut end = text.len();
    let mut previous = "";
    for token in tokens.iter().filter(|token| token.range.start >= from) {
        // Behind a dot or AS any word is a name.
        let named = previous == "." || previous.eq_ignore_ascii_case("as");
        previous = text.get(token.range.clone())?;
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close if depth == 0 => {
                end = token.range.start;
                break;
            }
            TokenKind::Close => depth -= 1,
            TokenKind::Word if depth == 0 && !named => {
                let word = text.get(token.range.clone())?.to_ascii_lowercase();
                if start.is_none() {
                    if word == "where" {
                        start = Some(token.range.end);
                    }
                } else if matches!(
                    word.as_str(),
                    "group"
                        | "having"
                        | "window"
                        | "order"
                        | "limit"
                        | "offset"
                        | "fetch"
                        | "for"
                        | "union"
                        | "intersect"
                        | "except"
                        | "returning"
                ) {
                    end = token.range.start;
                    break;
                }
            }
            _ => {}
        }
    }
    start.map(|start| start..end)
}
