//! Statement -> plan, by PostgreSQL's own grammar. Runs on a cache miss only.
//!
//! - [`ir`], [`facts`]: relation occurrences, query blocks and equalities.
//! - [`names`], [`from`], [`select`], [`dml`] with [`insert`], [`merge`], [`expr`], [`calls`]: the parse tree becomes blocks.
//! - [`prove`]: every sharded occurrence is bound to the key.
//! - [`scatter`]: if not, whether every shard can answer for its own rows; [`split`], with [`groups`] and [`write`]: a
//!   query cut into the shards' parts and what PostgreSQL makes of them; [`gather`]: what to bring together if neither.
//! - [`apply`]: writes that are done to copies first.
//! - [`tenant`]: the text for a session that sees one key only; [`edits`]: how texts are changed.
//! - [`hide`]: what a shard runs that must not show rows on their way.
//! - [`around`]: the query within COPY, EXPLAIN and DECLARE.
//! - [`physical`]: what is one server's own, such as a row's address.
//! - [`utility`], [`ddl`] with [`constraints`] and [`placement`], [`copy`]: statements that are not queries; [`changes`]: what
//!   a definition changes.
//! - [`syntax`]: texts that the grammar refuses, and texts that are not UTF-8.

pub(super) mod apply;
mod around;
mod calls;
mod changes;
mod constraints;
mod copy;
mod ddl;
mod dml;
mod edits;
mod expr;
mod facts;
mod from;
pub(super) mod gather;
mod groups;
pub(super) mod hide;
mod insert;
mod ir;
mod merge;
mod names;
mod physical;
mod placement;
mod prove;
mod scatter;
mod select;
pub(super) mod split;
mod syntax;
pub(super) mod tenant;
mod tokens;
mod utility;
mod write;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pg_raw_parse::Node;

use super::RouteContext;
use super::cache::Sharing;
use super::lex::Literals;
use super::plan::{Access, Around, Broadcast, Effect, How, Plan, Refusal, Route, SplitInsert, Tables};
use apply::ApplyPlan;
use gather::GatherPlan;
use ir::{BlockId, Builder, Result};

pub use apply::last_word;
pub use syntax::split;
pub use tokens::{ExecuteParts, execute_parts, prepare_parts};

/// A plan and how much of the text it depends on.
#[derive(Debug)]
pub struct Analysed {
    pub plan: Plan,
    pub sharing: Sharing,
}

/// The plan of an empty text.
pub fn empty() -> Plan {
    plain_plan(Route::Any, Access::Read, Effect::None)
}

fn plain_plan(route: Route, access: Access, effect: Effect) -> Plan {
    let tables = Tables::default();
    Plan {
        route,
        access,
        effect,
        evidence: Vec::new(),
        straddle: None,
        parameters: 0,
        tables,
        changes: None,
        around: Around::Nothing,
    }
}

fn refused(refusal: Refusal) -> Plan {
    let evidence = vec![refusal.message.clone()];
    Plan { evidence, ..plain_plan(Route::Refuse(refusal), Access::Write, Effect::None) }
}

/// Analyses the one statement `sql[range]`. `sure`: the lexer vouches for `literals`.
pub fn statement(
    context: &RouteContext<'_>,
    sql: &[u8],
    range: Range<usize>,
    literals: &Literals,
    sure: bool,
) -> Analysed {
    let text = sql.get(range).unwrap_or_default();
    // The grammar's library reports what it does not expect by panicking; that is no reason to lose a worker.
    let analysed = catch_unwind(AssertUnwindSafe(|| analyse(context, text, literals, sure)));
    analysed.unwrap_or_else(|_| Analysed {
        plan: refused(Refusal::unsupported(
            "the statement could not be analysed",
            "Please report it; SET shard.target sends statements to one shard as they are.",
        )),
        sharing: Sharing::Never,
    })
}

/// What to bring together for a text whose plan is `Route::Scatter(How::Gather)`, or whose keys straddle.
pub fn gather_plan(
    context: &RouteContext<'_>,
    text: &[u8],
    literals: &Literals,
) -> std::result::Result<GatherPlan, Refusal> {
    if !context.standard_conforming_strings && text.contains(&b'\\') {
        return Err(Refusal::unsupported(
            "a query over several shards with backslashes in its strings",
            "SET standard_conforming_strings = on, or write them as E'...'.",
        ));
    }
    let text = std::str::from_utf8(text).map_err(|_| {
        Refusal::unsupported(
            "a query over several shards whose text is not UTF-8",
            "SET client_encoding = 'UTF8'.",
        )
    })?;
    let planned = catch_unwind(AssertUnwindSafe(|| {
        let tree = pg_raw_parse::parse(text).map_err(|error| syntax::error(text, &error.to_string()))?;
        let node = tree.stmts().next().ok_or_else(dml::odd_statement)?;
        let select = around::query_within(node).ok_or_else(dml::odd_statement)?;
        let span = around::span_within(node, text, context.standard_conforming_strings)
            .ok_or_else(dml::odd_statement)?;
        let mut builder = Builder::new(context, text, literals);
        let block = builder.select(select)?;
        let seen = &builder.seen;
        if seen.writes || seen.locks || seen.user_code || seen.physical.is_some() {
            // Only of statements that every shard could answer, if no rows were on their way.
            return Err(hide::cannot("what it does beside reading rows"));
        }
        builder.gather_plan(select, block, span)
    }));
    planned.unwrap_or_else(|_| Err(dml::odd_statement()))
}

/// What to copy and to run for a text whose plan is `Route::Scatter(How::Apply)`, or whose keys straddle.
pub fn apply_plan(
    context: &RouteContext<'_>,
    text: &[u8],
    literals: &Literals,
) -> std::result::Result<ApplyPlan, Refusal> {
    if !context.standard_conforming_strings && text.contains(&b'\\') {
        return Err(Refusal::unsupported(
            "a write over several shards with backslashes in its strings",
            "SET standard_conforming_strings = on, or write them as E'...'.",
        ));
    }
    let text = std::str::from_utf8(text).map_err(|_| {
        Refusal::unsupported(
            "a write over several shards whose text is not UTF-8",
            "SET client_encoding = 'UTF8'.",
        )
    })?;
    let planned = catch_unwind(AssertUnwindSafe(|| {
        let tree = pg_raw_parse::parse(text).map_err(|error| syntax::error(text, &error.to_string()))?;
        let Some(node) = tree.stmts().next() else { return Err(dml::odd_statement()) };
        let mut builder = Builder::new(context, text, literals);
        match node {
            Node::InsertStmt(insert) => drop(builder.insert(insert, true)?),
            Node::UpdateStmt(update) => drop(builder.update(update)?),
            Node::DeleteStmt(delete) => drop(builder.delete(delete)?),
            Node::MergeStmt(merge) => drop(builder.merge_statement(merge)?),
            Node::SelectStmt(select) => drop(builder.select(select)?),
            _ => return Err(dml::odd_statement()),
        }
        if !builder.applies(&builder.keys) {
            return Err(hide::cannot("what it does beside changing rows"));
        }
        builder.apply_plan(node)
    }));
    planned.unwrap_or_else(|_| Err(dml::odd_statement()))
}

/// The text for a session that sees one key only; see [`tenant`].
pub fn restrict(
    context: &RouteContext<'_>,
    text: &str,
    literals: &Literals,
    value: &str,
) -> std::result::Result<Option<tenant::Restricted>, Refusal> {
    catch_unwind(AssertUnwindSafe(|| tenant::restrict(context, text, literals, value)))
        .unwrap_or_else(|_| Err(dml::odd_statement()))
}

/// What a shard runs in the place of `text` that must not show `hidden`. `generated`: a text of our own (see `SplitPlan`).
/// An error says why there is none: the statement is answered in another way, or not at all.
pub fn hidden_text(
    context: &RouteContext<'_>,
    text: &[u8],
    literals: &Literals,
    hidden: &crate::motion::Hidden,
    generated: bool,
) -> std::result::Result<String, Refusal> {
    let text = syntax::readable(context, text, literals)?;
    if !context.client_encoding_is_utf8 && !text.is_ascii() {
        return Err(Refusal::unsupported(
            "a statement over several shards with non-ASCII characters while a move is under way",
            "SET client_encoding = 'UTF8'.",
        ));
    }
    let planned = catch_unwind(AssertUnwindSafe(|| {
        let tree = pg_raw_parse::parse(&text).map_err(|error| syntax::error(&text, &error.to_string()))?;
        let node = tree.stmts().next().ok_or_else(dml::odd_statement)?;
        Builder::new(context, &text, literals).hidden(node, hidden, generated)
    }));
    planned.unwrap_or_else(|_| Err(dml::odd_statement()))
}

fn analyse(context: &RouteContext<'_>, text: &[u8], literals: &Literals, sure: bool) -> Analysed {
    let never = |plan| Analysed { plan, sharing: Sharing::Never };
    let none = Literals::new();
    let literals = if sure { literals } else { &none };
    let text = match syntax::readable(context, text, literals) {
        Ok(text) => text,
        Err(refusal) => return never(refused(refusal)),
    };
    if let Some(plan) = utility::explain_route(&text, context.standard_conforming_strings) {
        return Analysed { plan, sharing: Sharing::Exact };
    }
    let tree = match pg_raw_parse::parse(&text) {
        Ok(tree) => tree,
        Err(error) => return never(refused(syntax::error(&text, &error.to_string()))),
    };
    let mut statements = tree.stmts();
    let (Some(node), None) = (statements.next(), statements.next()) else {
        return never(if tree.is_empty() { empty() } else { refused(syntax::several_commands()) });
    };
    let mut builder = Builder::new(context, &text, literals);
    let mut plan = match builder.plan(node) {
        Ok(plan) => plan,
        Err(refusal) => refused(refusal),
    };
    plan.parameters = plan.parameters.max(builder.seen.parameters);
    plan.tables = std::mem::take(&mut builder.seen.tables).into();
    if plan.effect == Effect::CreatesObject {
        plan.changes = changes::of(node);
    }
    // A cut constant that the grammar did not see where the lexer did, or whose value mattered: the plan is this
    // text's only (H25).
    let disagree = literals.iter().zip(&builder.agreed).any(|(literal, agreed)| literal.cut && !agreed);
    let any_cut = literals.iter().any(|literal| literal.cut);
    let sharing = match &plan.route {
        // Spans are of this text.
        Route::SplitInsert(_) if any_cut => Sharing::Never,
        _ if disagree || builder.peeked => Sharing::Exact,
        _ => Sharing::Shape,
    };
    Analysed { plan, sharing }
}

impl Builder<'_> {
    fn plan(&mut self, node: Node<'_>) -> Result<Plan> {
        match node {
            Node::SelectStmt(select) => match self.set_config(select)? {
                Some(plan) => Ok(plan),
                None => {
                    let block = self.select(select)?;
                    let plan = self.finish(block, None)?;
                    self.explained(node, select, block, plan)
                }
            },
            Node::InsertStmt(insert) => {
                let (block, split) = self.insert(insert, true)?;
                self.finish(block, split)
            }
            Node::UpdateStmt(update) => {
                let block = self.update(update)?;
                self.finish(block, None)
            }
            Node::DeleteStmt(delete) => {
                let block = self.delete(delete)?;
                self.finish(block, None)
            }
            Node::MergeStmt(merge) => {
                let block = self.merge_statement(merge)?;
                self.finish(block, None)
            }
            other => self.utility(other),
        }
    }

    /// The plan, in which a gathering is explained. `node`: the statement in which the query stands.
    fn explained(
        &mut self,
        node: Node<'_>,
        select: &pg_raw_parse::nodes::SelectStmt,
        block: BlockId,
        mut plan: Plan,
    ) -> Result<Plan> {
        if matches!(plan.route, Route::Scatter(How::Gather)) {
            let span = around::span_within(node, self.text, self.context.standard_conforming_strings);
            self.evidence = std::mem::take(&mut plan.evidence);
            self.explain_gather(select, block, span.unwrap_or(0..self.text.len()));
            plan.evidence = std::mem::take(&mut self.evidence);
        }
        Ok(plan)
    }

    /// The proof, and what follows from it and from everything seen.
    fn finish(&mut self, block: BlockId, split: Option<SplitInsert>) -> Result<Plan> {
        let early = self.keys.clone();
        let soft = self.soft.take();
        let softened = soft.is_some();
        let proved = match soft {
            Some(refusal) => Err(refusal),
            None => self.prove(block, &[], &[]).and_then(|()| self.decide(split)),
        };
        // After what was softened the facts are not the whole truth.
        let spread = |builder: &mut Self| match builder.scatter(block, &early) {
            Some(how) if !softened => Some(how),
            _ => builder.applies(&early).then_some(How::Apply),
        };
        let (route, straddle) = match proved {
            Ok(route) => {
                let straddle = self.straddles(&route).then(|| spread(self)).flatten();
                (route, straddle)
            }
            Err(refusal) if refusal.sqlstate == "0A000" => match spread(self) {
                Some(how) => {
                    self.explain_scatter(how, &refusal);
                    (Route::Scatter(how), None)
                }
                None => return Err(refusal),
            },
            Err(refusal) => return Err(refusal),
        };
        let seen = &self.seen;
        let writes = seen.writes || seen.volatile || seen.default_function;
        let effect = if seen.session_lock && seen.sequence_value {
            return Err(Refusal::unsupported(
                "currval() and lastval() together with session advisory locks",
                "Ask for the number first, and pass it.",
            ));
        } else if seen.session_lock {
            Effect::Pin("session advisory lock")
        } else if seen.sequence_value {
            Effect::ReadsSequence
        } else if seen.sets_sequence {
            Effect::SetsSequence
        } else {
            Effect::None
        };
        Ok(Plan {
            route,
            access: if writes { Access::Write } else { Access::Read },
            effect,
            evidence: std::mem::take(&mut self.evidence),
            straddle,
            parameters: seen.parameters,
            tables: Tables::default(),
            changes: None,
            around: Around::Nothing,
        })
    }

    fn decide(&mut self, split: Option<SplitInsert>) -> Result<Route> {
        let sharded = !self.keys.is_empty();
        if let Some(table) = self.seen.reference_write.clone() {
            return self.reference_write(&table);
        }
        if let Some(table) = self.seen.locked_reference.clone().filter(|_| sharded) {
            return Err(Refusal::unsupported(
                format!(
                    "row locks on reference table {table} together with a sharded table: they would be on one shard's copy, \
                     and exclude nobody elsewhere"
                ),
                "Lock the sharded rows alone (FOR UPDATE OF ...), and the reference rows by a statement of their own.",
            ));
        }
        if let Some(what) = self.seen.default.clone() {
            if sharded {
                return Err(Refusal::unsupported(
                    format!(
                        "the statement uses {what}, which lives on the default shard, together with a sharded table"
                    ),
                    "Run it as two statements, or make the table a reference table.",
                ));
            }
            self.evidence.push(format!("{what}: default shard"));
            return Ok(Route::Default);
        }
        if let Some(split) = split {
            self.evidence.push(format!("{} rows, each to the shard of its key", split.rows.len()));
            return Ok(Route::SplitInsert(std::sync::Arc::new(split)));
        }
        if sharded {
            let mut keys = Vec::new();
            for key in std::mem::take(&mut self.keys) {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            return Ok(Route::Key(keys.into()));
        }
        if self.seen.locks && !self.seen.temporary {
            // Everybody must lock the same copy of a reference row.
            self.evidence.push("row locks on reference tables: default shard".to_owned());
            return Ok(Route::Default);
        }
        if self.seen.oids && !self.seen.temporary {
            self.evidence.push("numbers of the catalog: default shard".to_owned());
            return Ok(Route::Default);
        }
        self.evidence.push(if self.seen.temporary {
            "temporary table: the session's own server".to_owned()
        } else {
            "no sharded and no plain table: any shard".to_owned()
        });
        Ok(Route::Any)
    }

    fn reference_write(&mut self, table: &str) -> Result<Route> {
        let seen = &self.seen;
        let why = if !self.keys.is_empty() {
            Some("a sharded table".to_owned())
        } else if let Some(what) = &seen.default {
            Some(what.clone())
        } else if seen.temporary {
            Some("a temporary table".to_owned())
        } else if let Some(what) = &seen.unstable {
            Some(format!("{what}, which may differ from shard to shard"))
        } else if let Some(what) = seen.physical.as_ref().filter(|what| !what.starts_with("the name")) {
            Some(format!("{what}, which is each server's own"))
        } else if let Some(what) = &seen.order {
            Some(what.clone())
        } else if seen.limit {
            Some("LIMIT, which may choose other rows on each shard".to_owned())
        } else {
            None
        };
        match why {
            None => {
                self.evidence.push(format!("{table}: reference table, written on every shard"));
                Ok(Route::All(Broadcast::ReferenceWrite))
            }
            Some(what) => Err(Refusal::unsupported(
                format!("the statement writes reference table {table} and uses {what}"),
                "Every shard must write the same rows: read first, then write constants or parameters.",
            )),
        }
    }
}
