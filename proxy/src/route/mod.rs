//! SQL text -> where it runs. PURE: no socket, no clock, no task.
//!
//! Rooms, in reading order:
//!
//! - [`plan`]: the conclusion about a statement; holds no value, so one plan serves every execution.
//! - [`lex`], with `scanner` and [`tokens`]: one pass over the text: statement borders and constants.
//! - [`cache`]: plans by text with the constants left out.
//! - [`analyse`]: on a miss, PostgreSQL's grammar -> query blocks -> a proof that one key binds every sharded table.
//! - [`resolve`], with [`values`] and [`arrays`]: key values -> bucket -> shard, at every execution.
//!
//! Invariants:
//!
//! - Never guess. What is not proved is `Route::Refuse` with a reason and a HINT.
//! - A plan never depends on a value that the cache left out of its comparison.
//! - Nothing here panics on any bytes; whatever happens within the grammar's library ends as a refusal.
//!
//! Deliberately absent: everything about which server of a shard is used.

pub mod analyse;
pub mod arrays;
pub mod cache;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod lex;
pub mod plan;
pub mod resolve;
mod scanner;
pub mod search_path;
pub mod tokens;
pub mod values;

#[cfg(any(test, fuzzing))]
#[path = "tests/catalog.rs"]
mod test_catalog;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::catalog::Catalog;
use crate::motion::Hidden;

pub use analyse::apply::{ApplyPlan, Command, Written, target_copy};
pub use analyse::gather::{Filter, GatherPlan, GatherTable, Spread, temporary_name};
pub use analyse::hide::shown;
pub use analyse::split::{Groups, Last, Rows, SplitPlan, is_exact_key};
pub use lex::{Literal, LiteralKind, Literals};
pub use resolve::{Resolved, SplitRows, resolve, visit_keys};
pub use search_path::SearchPath;
pub use values::{NoParams, ParamValue, Params};

use cache::{PlanCache, Sharing};
use plan::{Plan, Refusal, Route};

/// Everything outside the text that a plan depends on (H25, H39).
#[derive(Debug, Clone, Copy)]
pub struct RouteContext<'a> {
    pub catalog: &'a Catalog,
    pub search_path: &'a SearchPath,
    pub user: &'a str,
    pub standard_conforming_strings: bool,
    pub client_encoding_is_utf8: bool,
    /// The session created temporary objects and is pinned to a server: names that the catalog does not know are
    /// taken for temporary tables there. (CREATE TEMP TABLE that would hide a known table is refused.)
    pub session_has_temp: bool,
}

impl RouteContext<'_> {
    fn key(&self) -> u64 {
        self.search_path.hash()
            ^ u64::from(self.standard_conforming_strings)
            ^ u64::from(self.client_encoding_is_utf8) << 1
            ^ u64::from(self.session_has_temp) << 2
    }
}

/// Does this setting decide what names and constants of a statement mean, and so where it goes?
pub fn is_routing_setting(name: &str) -> bool {
    matches!(
        name,
        "search_path"
            | "role"
            | "session_authorization"
            | "standard_conforming_strings"
            | "client_encoding"
            | "shard.key"
    )
}

/// Is it the proxy's own, of which no server ever hears? `shard.key` is not: it is kept, and taken back with its
/// transaction, as servers do it.
pub fn is_own_setting(name: &str) -> bool {
    name.starts_with("shard.") && name != "shard.key"
}

#[derive(Debug, Clone)]
pub struct RoutedStatement {
    /// Within the text given to the router; no comments around it, no semicolon.
    pub text: Range<usize>,
    pub plan: Arc<Plan>,
    /// Offsets are relative to `text.start`.
    pub literals: Literals,
}

/// The statements of one simple query. Empty: only blanks and comments (the session answers EmptyQueryResponse).
///
/// All are routed by the catalog and settings as they are now: after a statement with `Effect::CreatesObject`,
/// `Effect::Pin`, or a `Set` of `search_path`, `role` or `standard_conforming_strings`, the session routes the rest
/// of the text again. A syntax error anywhere makes the whole text ONE refused statement, as PostgreSQL runs
/// nothing of such a text.
#[derive(Debug, Clone)]
pub struct Routed {
    pub statements: SmallVec<[RoutedStatement; 1]>,
}

/// One worker's router.
#[derive(Debug)]
pub struct Router {
    cache: PlanCache,
    catalog_version: u64,
    analysed: u64,
}

impl Router {
    pub fn new(cache_capacity: usize) -> Self {
        Self { cache: PlanCache::new(cache_capacity), catalog_version: 0, analysed: 0 }
    }

    /// Hits and misses of the plan cache since the start.
    pub fn cache_counts(&self) -> (u64, u64) {
        (self.cache.hits, self.cache.misses)
    }

    /// Statements analysed since the start, by the grammar: what the cache has spared is not among them.
    pub fn analysed(&self) -> u64 {
        self.analysed
    }

    /// Routes the text of a Query message (without its NUL).
    pub fn simple(&mut self, context: &RouteContext<'_>, sql: &[u8]) -> Routed {
        self.follow(context.catalog);
        let key = context.key();
        let mut statements: SmallVec<[RoutedStatement; 1]> = SmallVec::new();
        let mut from = 0;
        while from < sql.len() {
            let mut literals = Literals::new();
            let scanned = lex::scan(sql, from, context.standard_conforming_strings, &mut literals);
            from = scanned.next;
            if scanned.empty {
                continue;
            }
            let text = scanned.start..scanned.end;
            let routed = self.statement(context, key, sql, text, literals, scanned.sure);
            if is_syntax_error(&routed.plan) {
                return self.whole(context, sql);
            }
            statements.push(routed);
        }
        Routed { statements }
    }

    /// Routes the text of a Parse message. An empty text is `Route::Any`: the server answers it.
    pub fn parse(&mut self, context: &RouteContext<'_>, sql: &[u8]) -> Result<RoutedStatement, Refusal> {
        self.follow(context.catalog);
        let key = context.key();
        if let Some((plan, literals)) = self.cache.get_exact(key, sql) {
            let (text, literals) = (0..sql.len(), literals.clone());
            // Kept by `keep_parsed` for texts that are one statement from the first byte to the last.
            return refused(RoutedStatement { text, plan, literals });
        }
        let mut literals = Literals::new();
        let scanned = lex::scan(sql, 0, context.standard_conforming_strings, &mut literals);
        if scanned.empty && scanned.next >= sql.len() {
            let plan = Arc::new(analyse::empty());
            return Ok(RoutedStatement { text: 0..sql.len(), plan, literals });
        }
        let mut rest = Literals::new();
        let mut after = scanned.next;
        let mut single = true;
        while after < sql.len() {
            let next = lex::scan(sql, after, context.standard_conforming_strings, &mut rest);
            single &= next.empty;
            after = next.next;
        }
        let text = if single { scanned.start..scanned.end } else { 0..sql.len() };
        if !single {
            self.analysed += 1;
            let plan = analyse::statement(context, sql, text.clone(), &literals, false).plan;
            return refused(RoutedStatement { text, plan: Arc::new(plan), literals });
        }
        let whole = text == (0..sql.len());
        let routed = self.statement(context, key, sql, text, literals, scanned.sure);
        if whole && scanned.sure {
            self.cache.put_exact(key, sql, &routed.literals, &routed.plan);
        }
        refused(routed)
    }

    /// The text for a session that sees the rows of one key only (`SET shard.key`). `None`: as it is.
    pub fn restrict(
        &mut self,
        context: &RouteContext<'_>,
        sql: &[u8],
        value: &str,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let unreadable =
            || analyse::tenant::refusal("a text that is not UTF-8", "SET client_encoding = 'UTF8'.");
        let mut out = Vec::new();
        let (mut from, mut changed) = (0, false);
        let mut inserts = smallvec::SmallVec::<[bool; 1]>::new();
        for statement in self.simple(context, sql).statements {
            let piece = sql.get(statement.text.clone()).unwrap_or_default();
            out.extend_from_slice(sql.get(from..statement.text.start).unwrap_or_default());
            from = statement.text.end;
            let text = std::str::from_utf8(piece).map_err(|_| unreadable())?;
            match analyse::restrict(context, text, &statement.literals, value)? {
                Some(restricted) => {
                    changed = true;
                    inserts.push(restricted.inserts);
                    out.extend_from_slice(restricted.text.as_bytes());
                }
                None => {
                    inserts.push(false);
                    out.extend_from_slice(piece);
                }
            }
        }
        if !changed {
            return Ok(None);
        }
        out.extend_from_slice(sql.get(from..).unwrap_or_default());
        let routed = self.simple(context, &out).statements;
        if routed.len() != inserts.len() {
            return Err(analyse::tenant::refusal("a text that could not be cut", "Write it more plainly."));
        }
        for (statement, inserts) in routed.iter().zip(inserts) {
            let text = out.get(statement.text.clone()).unwrap_or_default();
            let is_value =
                |key: &plan::KeyRef| resolve::is_constant(&key.place, &statement.literals, text, value);
            let one = match &statement.plan.route {
                Route::Key(keys) => !inserts || keys.iter().all(is_value),
                Route::SplitInsert(insert) => insert.rows.iter().all(|row| is_value(&row.key)),
                Route::Scatter(_) | Route::CopyIn(_) => false,
                _ => true,
            };
            if !one {
                let hint = "Leave the key out, or give the value of shard.key as a constant.";
                return Err(analyse::tenant::refusal(
                    "rows of another key, or of one that is known later only,",
                    hint,
                ));
            }
        }
        Ok(Some(out))
    }

    /// How to answer one statement's text by gathering. Analysed at every execution: what that costs is nothing beside
    /// the rows.
    pub fn gather(&self, context: &RouteContext<'_>, text: &[u8]) -> Result<GatherPlan, Refusal> {
        let mut literals = Literals::new();
        let scanned = lex::scan(text, 0, context.standard_conforming_strings, &mut literals);
        if !scanned.sure {
            literals.clear();
        }
        analyse::gather_plan(context, text, &literals)
    }

    /// How to write by doing it to copies first. Analysed at every execution, as above.
    pub fn apply(&self, context: &RouteContext<'_>, text: &[u8]) -> Result<ApplyPlan, Refusal> {
        let mut literals = Literals::new();
        let scanned = lex::scan(text, 0, context.standard_conforming_strings, &mut literals);
        if !scanned.sure {
            literals.clear();
        }
        analyse::apply_plan(context, text, &literals)
    }

    /// What a shard runs that must not show rows on their way. Analysed at every execution while there are any.
    pub fn hidden_text(
        &self,
        context: &RouteContext<'_>,
        text: &[u8],
        hidden: &Hidden,
        generated: bool,
    ) -> Result<String, Refusal> {
        let mut literals = Literals::new();
        let scanned = lex::scan(text, 0, context.standard_conforming_strings, &mut literals);
        if !scanned.sure {
            literals.clear();
        }
        analyse::hidden_text(context, text, &literals, hidden, generated)
    }

    /// Routes one statement of a text again, because another one in front of it changes what names mean. Constants are
    /// read as before: PostgreSQL reads a whole message's constants before it runs the first statement.
    pub fn again(&mut self, context: &RouteContext<'_>, sql: &[u8], range: Range<usize>) -> RoutedStatement {
        self.follow(context.catalog);
        let text = sql.get(range.clone()).unwrap_or_default();
        let mut literals = Literals::new();
        let scanned = lex::scan(text, 0, context.standard_conforming_strings, &mut literals);
        let whole = (scanned.start..scanned.end) == (0..text.len());
        if !whole {
            literals.clear();
        }
        self.statement(context, context.key(), sql, range, literals, scanned.sure && whole)
    }

    /// Plans of another schema are worth nothing (H39).
    fn follow(&mut self, catalog: &Catalog) {
        if catalog.version != self.catalog_version {
            self.cache.clear();
            self.catalog_version = catalog.version;
        }
    }

    #[inline]
    fn statement(
        &mut self,
        context: &RouteContext<'_>,
        key: u64,
        sql: &[u8],
        range: Range<usize>,
        literals: Literals,
        sure: bool,
    ) -> RoutedStatement {
        let text = sql.get(range.clone()).unwrap_or_default();
        if sure && let Some(plan) = self.cache.get(key, text, &literals) {
            return RoutedStatement { text: range, plan, literals };
        }
        self.analysed += 1;
        let analysed = analyse::statement(context, sql, range.clone(), &literals, sure);
        let plan = Arc::new(analysed.plan);
        let sharing = if sure { analysed.sharing } else { Sharing::Never };
        self.cache.put(key, text, &literals, &plan, sharing);
        RoutedStatement { text: range, plan, literals }
    }

    /// The slow path for a text in which a piece is not a statement: the grammar splits it
    /// (`CREATE FUNCTION ... BEGIN ATOMIC ...; END` has semicolons of its own), or reports the error.
    fn whole(&mut self, context: &RouteContext<'_>, sql: &[u8]) -> Routed {
        let statements: SmallVec<[RoutedStatement; 1]> = analyse::split(context, sql)
            .into_iter()
            .map(|range| {
                let mut literals = Literals::new();
                let text = sql.get(range.clone()).unwrap_or_default();
                lex::scan(text, 0, context.standard_conforming_strings, &mut literals);
                // The literals of a text with inner semicolons would be those of its first part.
                literals.clear();
                let plan = analyse::statement(context, sql, range.clone(), &literals, false).plan;
                RoutedStatement { text: range, plan: Arc::new(plan), literals }
            })
            .collect();
        self.analysed += statements.len() as u64;
        Routed { statements }
    }
}

fn is_syntax_error(plan: &Plan) -> bool {
    matches!(&plan.route, Route::Refuse(refusal) if matches!(refusal.sqlstate, "42601" | "42P20"))
}

fn refused(routed: RoutedStatement) -> Result<RoutedStatement, Refusal> {
    match &routed.plan.route {
        Route::Refuse(refusal) => Err(refusal.clone()),
        _ => Ok(routed),
    }
}
