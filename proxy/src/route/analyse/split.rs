//! A query cut in two: what every shard computes of its own rows, and what PostgreSQL makes of the parts.
//!
//! It needs a proof ([`super::scatter`]) that the rows of its FROM and WHERE are the shards' own rows put together.
//! Then, instead of those rows,
//!
//! - with ORDER BY, LIMIT or DISTINCT, each shard's own answer is brought together, with the values to sort by, and
//!   the clauses are applied once more;
//! - with GROUP BY or aggregates, one row a group and shard: partial results that combine to exactly the whole one.
//!   Sums of floats depend on their order, so they do not; equal values that print differently (1.0 and 1.00) do not
//!   either. What the types are is known when a server has looked at the query ([`Groups::last`]).
//!
//! What this module cannot write is answered by [`super::gather`].

use std::ops::Range;

use pg_raw_parse::raw::{A_Expr_Kind, LimitOption, MinMaxOp, SetOperation, SortByDir, SortByNulls};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::groups::Grouping;
use super::ir::{BlockId, Builder};
use super::select::has_window;
use super::write::Columns;
use crate::route::tokens::{Token, TokenKind, tokens};

pub use super::groups::{Groups, is_exact_key};

/// Columns that the shards' rows have on the server that combines them: `c1`, ... of the answer, `s1`, ... to sort by,
/// `g1`, ... of GROUP BY, `p1`, ... partial results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitPlan {
    /// What every shard runs.
    pub shard: String,
    pub last: Last,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last {
    Rows(Rows),
    Groups(Groups),
}

/// Rows of the answer, with `sorts` columns behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Equal rows of several shards are one.
    pub distinct: bool,
    pub sorts: usize,
    /// ORDER BY, LIMIT and OFFSET.
    tail: String,
}

impl Rows {
    /// The columns' names, when the answer has so many.
    pub fn columns(&self, count: usize) -> String {
        let answer = (1..=count).map(|n| format!("c{n}"));
        answer.chain((1..=self.sorts).map(|n| format!("s{n}"))).collect::<Vec<_>>().join(", ")
    }

    /// What makes the answer of the rows in `table`.
    pub fn last(&self, table: &str, count: usize) -> String {
        let columns: Vec<String> = (1..=count).map(|n| format!("c{n}")).collect();
        let distinct = if self.distinct { "DISTINCT " } else { "" };
        format!("SELECT {distinct}{} FROM {table}{}", columns.join(", "), self.tail)
    }
}

pub(super) type Why<T> = Result<T, &'static str>;

impl Builder<'_> {
    /// `Err`: why it is not cut. `span`: the query within the text.
    pub(super) fn split_query(
        &mut self,
        select: &nodes::SelectStmt,
        block: BlockId,
        span: Range<usize>,
    ) -> Why<SplitPlan> {
        if select.op != SetOperation::SETOP_NONE || !select.values_lists().is_empty() {
            return Err("a set operation");
        }
        if self.seen.volatile || self.seen.server_bound || self.seen.clock || self.seen.oids {
            return Err("a function whose value is not the same on every server");
        }
        let shape = &self.blocks[block].shape;
        let grouped = shape.grouped;
        let windows = !select.window_clause().is_empty()
            || select.target_list().iter().any(|target| has_window(target.val()))
            || select.sort_clause().iter().any(|sort| has_window(sort.node()));
        if windows {
            return Err("a window function");
        }
        if shape.sets {
            return Err("grouping sets");
        }
        if self.seen.default.is_some() || !self.rows_distribute(block) {
            return Err("rows of one shard may meet rows of another");
        }
        let Some(items) = self.top_items.clone() else { return Err("no FROM") };
        let clauses = Clauses::of(self.text, span, self.context.standard_conforming_strings)
            .ok_or("a text that could not be cut")?;
        self.levels.push(items);
        let split = if grouped {
            Grouping::new(self, select).plan(&clauses)
        } else {
            self.split_rows(select, &clauses)
        };
        self.levels.pop();
        split
    }

    fn split_rows(&self, select: &nodes::SelectStmt, clauses: &Clauses<'_>) -> Why<SplitPlan> {
        let distinct = !select.distinct_clause().is_empty();
        if select.distinct_clause().iter().any(|node| !matches!(node, Node::None)) {
            return Err("DISTINCT ON");
        }
        let mut hidden: Vec<String> = Vec::new();
        let mut sorts = Vec::new();
        for sort in select.sort_clause().iter() {
            let column = match self.sorted_output(select, sort.node())? {
                Some(n) => format!("c{n}"),
                None if distinct => return Err("ORDER BY of another expression than DISTINCT's"),
                None => {
                    hidden.push(self.write(sort.node(), Columns::Named).ok_or("an expression in ORDER BY")?);
                    format!("s{}", hidden.len())
                }
            };
            sorts.push(format!("{column}{}", direction(sort)?));
        }
        let limit = self.limit(select)?;
        let mut tail = String::new();
        if !sorts.is_empty() {
            tail = format!(" ORDER BY {}", sorts.join(", "));
        }
        tail += &limit.whole();
        let mut shard = clauses.text(clauses.start..clauses.from)?.to_owned();
        for (n, sort) in hidden.iter().enumerate() {
            shard += &format!(", {sort} AS s{} ", n + 1);
        }
        shard += clauses.text(clauses.from..clauses.limit)?;
        // The text may end in a comment.
        shard += "\n";
        shard += &limit.part();
        Ok(SplitPlan { shard, last: Last::Rows(Rows { distinct, sorts: hidden.len(), tail }) })
    }

    /// The output column (from 1) that an item of ORDER BY means. `None`: an expression of its own.
    pub(super) fn sorted_output(&self, select: &nodes::SelectStmt, node: Node<'_>) -> Why<Option<usize>> {
        match node {
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::Integer(n)) => Ok(usize::try_from(n).ok()),
                _ => Err("a constant in ORDER BY"),
            },
            Node::ColumnRef(reference) if reference.fields().len() == 1 => {
                let Some(wanted) = reference.fields().iter().next().and_then(Node::as_str) else {
                    return Err("an odd name in ORDER BY");
                };
                self.named_output(select, wanted)
            }
            node => {
                let Some(wanted) = self.write(node, Columns::Identity) else { return Ok(None) };
                let same = |target: &nodes::ResTarget| {
                    self.write(target.val(), Columns::Identity).as_ref() == Some(&wanted)
                };
                Ok(counted(select).position(same).map(|n| n + 1))
            }
        }
    }

    /// The output of this name; names of outputs come before those of input columns.
    pub(super) fn named_output(&self, select: &nodes::SelectStmt, wanted: &str) -> Why<Option<usize>> {
        let mut star = false;
        for (n, target) in select.target_list().iter().enumerate() {
            let value = target.val();
            if is_star(value) {
                star = true;
                continue;
            }
            let named = match target.name() {
                Some(name) => name == wanted,
                None => {
                    let (_, name) =
                        figured(value).ok_or("a name that may be an output's without one of its own")?;
                    name == wanted
                }
            };
            if named && star {
                return Err("ORDER BY of a column behind *");
            }
            if named {
                return Ok(Some(n + 1));
            }
        }
        Ok(None)
    }

    pub(super) fn limit(&self, select: &nodes::SelectStmt) -> Why<Limit> {
        let write = |node: Node<'_>| match node {
            Node::None => Ok(None),
            Node::A_Const(constant) if constant.isnull => Ok(None),
            node => self.write(node, Columns::Named).map(Some).ok_or("an expression in LIMIT"),
        };
        Ok(Limit {
            count: write(select.limit_count())?,
            offset: write(select.limit_offset())?,
            ties: select.limit_option == LimitOption::LIMIT_OPTION_WITH_TIES,
        })
    }
}

/// The targets in front of the first star: their positions are known.
fn counted(select: &nodes::SelectStmt) -> impl Iterator<Item = &nodes::ResTarget> {
    select.target_list().iter().take_while(|target| !is_star(target.val()))
}

pub(super) fn is_star(node: Node<'_>) -> bool {
    matches!(node, Node::ColumnRef(r) if r.fields().iter().any(|f| matches!(f, Node::A_Star(_))))
}

/// The name of an output without AS and how strong it is, as `FigureColnameInternal` finds it
/// (src/backend/parser/parse_target.c). `None`: not known here.
fn figured(node: Node<'_>) -> Option<(u8, String)> {
    let named = |strength, name: &str| Some((strength, name.to_owned()));
    match node {
        Node::None => named(0, "?column?"),
        Node::ColumnRef(reference) => {
            named(2, reference.fields().iter().filter_map(Node::as_str).next_back()?)
        }
        Node::FuncCall(call) => named(2, call.funcname().iter().filter_map(Node::as_str).next_back()?),
        Node::TypeCast(cast) => match figured(cast.arg())? {
            (2, name) => Some((2, name)),
            _ => named(1, cast.type_name()?.names().iter().next_back().and_then(nodes::String::sval)?),
        },
        Node::CollateClause(collate) => figured(collate.arg()),
        Node::CaseExpr(case) => match figured(case.defresult())? {
            (2, name) => Some((2, name)),
            _ => named(1, "case"),
        },
        Node::CoalesceExpr(_) => named(2, "coalesce"),
        Node::MinMaxExpr(m) => named(2, if m.op == MinMaxOp::IS_GREATEST { "greatest" } else { "least" }),
        Node::A_ArrayExpr(_) => named(2, "array"),
        Node::A_Expr(e) if e.kind == A_Expr_Kind::AEXPR_NULLIF => named(2, "nullif"),
        Node::A_Expr(_)
        | Node::A_Const(_)
        | Node::ParamRef(_)
        | Node::BoolExpr(_)
        | Node::NullTest(_)
        | Node::BooleanTest(_) => named(0, "?column?"),
        _ => None,
    }
}

/// How an item of ORDER BY sorts.
pub(super) fn direction(sort: &nodes::SortBy) -> Why<&'static str> {
    let up = match sort.sortby_dir {
        SortByDir::SORTBY_DEFAULT | SortByDir::SORTBY_ASC => true,
        SortByDir::SORTBY_DESC => false,
        _ => return Err("ORDER BY ... USING"),
    };
    Ok(match (up, sort.sortby_nulls) {
        (true, SortByNulls::SORTBY_NULLS_FIRST) => " NULLS FIRST",
        (true, _) => " NULLS LAST",
        (false, SortByNulls::SORTBY_NULLS_LAST) => " DESC NULLS LAST",
        (false, _) => " DESC NULLS FIRST",
    })
}

pub(super) struct Limit {
    count: Option<String>,
    offset: Option<String>,
    ties: bool,
}

impl Limit {
    /// As the client said it.
    pub(super) fn whole(&self) -> String {
        let mut out = String::new();
        if let Some(offset) = &self.offset {
            out += &format!(" OFFSET ({offset})");
        }
        match &self.count {
            Some(count) if self.ties => out += &format!(" FETCH FIRST ({count}) ROWS WITH TIES"),
            Some(count) => out += &format!(" LIMIT ({count})"),
            None => {}
        }
        out
    }

    /// As many rows of a shard as the whole answer and what is left out before it may need.
    fn part(&self) -> String {
        let Some(count) = &self.count else { return String::new() };
        let rows = match &self.offset {
            None => format!("({count})"),
            Some(offset) => format!(
                "(least(({count})::pg_catalog.numeric + greatest(coalesce(({offset})::pg_catalog.numeric, 0), 0), 9223372036854775807)::pg_catalog.int8)"
            ),
        };
        if self.ties { format!("FETCH FIRST {rows} ROWS WITH TIES") } else { format!("LIMIT {rows}") }
    }
}

/// Where the clauses of a query's outermost block begin in the text.
pub(super) struct Clauses<'t> {
    text: &'t str,
    /// Of the whole query, WITH included.
    pub(super) start: usize,
    /// Of the word SELECT.
    pub(super) select: usize,
    pub(super) from: usize,
    /// Of the first of GROUP BY, HAVING, WINDOW, ORDER BY, LIMIT ...
    pub(super) after_where: usize,
    /// Of the first of LIMIT, OFFSET, FETCH.
    pub(super) limit: usize,
}

impl<'t> Clauses<'t> {
    fn of(text: &'t str, span: Range<usize>, standard: bool) -> Option<Self> {
        let all = tokens(text.as_bytes(), standard)?;
        let within: Vec<Token> =
            all.into_iter().filter(|t| t.range.start >= span.start && t.range.end <= span.end).collect();
        let word = |i: usize| within.get(i).and_then(|t| text.get(t.range.clone())).unwrap_or_default();
        let mut depth = 0usize;
        let (mut select, mut from, mut after_where, mut limit) = (None, None, None, None);
        for (i, token) in within.iter().enumerate() {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.checked_sub(1)?,
                TokenKind::Word if depth == 0 => {
                    let back =
                        |n: usize| if i >= n { word(i - n).to_ascii_lowercase() } else { String::new() };
                    // Behind a dot or AS any word is a name.
                    if matches!(back(1).as_str(), "." | "as") {
                        continue;
                    }
                    let at = Some(token.range.start);
                    match word(i).to_ascii_lowercase().as_str() {
                        "select" if select.is_none() => select = at,
                        "from" if select.is_some() && from.is_none() => {
                            let compared = back(1) == "distinct" && matches!(back(2).as_str(), "is" | "not");
                            if !compared {
                                from = at;
                            }
                        }
                        "group" | "having" | "window" | "order" | "for" if from.is_some() => {
                            after_where = after_where.or(at);
                        }
                        "limit" | "offset" | "fetch" if from.is_some() => {
                            after_where = after_where.or(at);
                            limit = limit.or(at);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        let end = span.end;
        Some(Self {
            text,
            start: span.start,
            select: select?,
            from: from?,
            after_where: after_where.unwrap_or(end),
            limit: limit.unwrap_or(end),
        })
    }

    pub(super) fn text(&self, range: Range<usize>) -> Why<&'t str> {
        self.text.get(range).ok_or("a text that could not be cut")
    }
}
