//! The analyser's view of a statement: relation occurrences, query blocks, and facts about them.

use pg_raw_parse::nodes;
use shard_config::KeyType;

use super::apply::Write;
use super::facts::{Export, Fact, RelId, Term};
use super::gather::Source;
use crate::route::RouteContext;
use crate::route::lex::Literals;
use crate::route::plan::{KeyPlace, KeyRef, Refusal};

pub(super) type BlockId = usize;
pub(super) type Result<T> = std::result::Result<T, Refusal>;

/// Deepest nesting of expressions and queries that is analysed; bounds the stack.
pub(super) const MAX_DEPTH: usize = 300;
/// Most relation occurrences, views expanded; bounds the time.
pub(super) const MAX_RELATIONS: usize = 1000;

/// Types whose `=` means: same bytes hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Uuid,
    Integer,
    Text,
}

/// `src/include/catalog/pg_type.dat`. `char(n)`, `citext`, domains and floats have none: their equality is not
/// equality of what is hashed (H24).
pub(super) fn family(type_oid: u32) -> Option<Family> {
    match type_oid {
        2950 => Some(Family::Uuid),
        20 | 21 | 23 => Some(Family::Integer),
        25 | 1043 => Some(Family::Text),
        _ => None,
    }
}

#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) place: KeyPlace,
    /// `None`: takes the type of what it is compared with (a string constant, an untyped parameter, NULL).
    pub(super) family: Option<Family>,
}

impl Value {
    pub(super) fn is_set(&self) -> bool {
        matches!(self.place, KeyPlace::OneOf(_) | KeyPlace::ParameterArray(_) | KeyPlace::LiteralArray(_))
    }
}

#[derive(Debug, Clone)]
pub(super) struct RelColumn {
    pub(super) name: String,
    /// 0 when not known.
    pub(super) type_oid: u32,
}

#[derive(Debug)]
pub(super) enum RelKind {
    Sharded {
        key: usize,
        key_type: KeyType,
    },
    /// A subquery in FROM, or an expanded view.
    Derived(BlockId),
    /// A reference to a CTE.
    Cte(usize),
    /// Everything that has nothing to be proved.
    Other,
}

#[derive(Debug)]
pub(super) struct Rel {
    pub(super) kind: RelKind,
    /// For evidence and refusals.
    pub(super) name: String,
    pub(super) columns: Vec<RelColumn>,
}

/// The nullable side of an outer join, or (index 0) the rows of the block itself.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) parent: Option<usize>,
    /// Hold on every row in which this side is present.
    pub(super) facts: Vec<Fact>,
}

/// A subquery in an expression.
#[derive(Debug, Clone)]
pub(super) struct Sub {
    pub(super) block: BlockId,
    /// Whose facts hold wherever the subquery's value matters; `None`: nothing of this block.
    pub(super) scope: Option<usize>,
    /// Output column = term, for `x IN (SELECT ...)` as a conjunct.
    pub(super) links: Vec<(usize, Term)>,
}

#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) term: Option<Term>,
    pub(super) type_oid: u32,
    /// A filter on this output may be applied to the block's rows instead.
    pub(super) pushable: bool,
}

/// A call of a function keyed by a column: the column must be bound.
#[derive(Debug, Clone)]
pub(super) struct KeyedCall {
    pub(super) name: String,
    pub(super) argument: Term,
    pub(super) key_type: KeyType,
    pub(super) scope: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) scopes: Vec<Scope>,
    pub(super) members: Vec<(RelId, usize)>,
    pub(super) subs: Vec<Sub>,
    pub(super) calls: Vec<KeyedCall>,
    /// `None`: not known (a star over unknown columns).
    pub(super) outputs: Option<Vec<Output>>,
    /// Branches of a set operation; then the block has no members of its own.
    pub(super) branches: Vec<BlockId>,
    /// CTEs of its WITH.
    pub(super) ctes: Vec<usize>,
    /// The first relation that belongs to this block or its children; smaller ids are outer.
    pub(super) first_rel: RelId,
    pub(super) shape: Shape,
    /// What an INSERT writes to: none of its rows come from there.
    pub(super) inserts_into: Option<RelId>,
}

/// What a block does with its rows beside choosing and computing them one by one.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// DISTINCT, ORDER BY, LIMIT, windows, grouping sets, MERGE, rows of constants: what it does to all rows together is
    /// not what it does to the rows of each key.
    pub(super) whole: bool,
    /// GROUPING SETS, ROLLUP, CUBE.
    pub(super) sets: bool,
    /// Has an aggregate or GROUP BY: one row of many.
    pub(super) grouped: bool,
    /// The plain columns of GROUP BY.
    pub(super) groups: Vec<Term>,
}

#[derive(Debug)]
pub(super) struct Cte {
    pub(super) name: String,
    pub(super) block: BlockId,
    pub(super) columns: Vec<RelColumn>,
    /// Equal to each output, if it is known (see `Builder::exports`).
    pub(super) exports: Vec<Export>,
    pub(super) references: usize,
    /// Evaluated once, as it stands: data-modifying, recursive or MATERIALIZED.
    pub(super) closed: bool,
}

/// A name in FROM.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// `None`: an unnamed join.
    pub(super) alias: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) columns: Vec<ItemColumn>,
    /// May have columns that are not listed.
    pub(super) open: bool,
}

#[derive(Debug, Clone)]
pub(super) struct ItemColumn {
    pub(super) name: String,
    pub(super) term: Option<Term>,
    pub(super) type_oid: u32,
    /// Merged by USING: found by qualified names only.
    pub(super) hidden: bool,
}

/// What was met on the way, for the final decision.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// A plain or system table, or a function of the default shard.
    pub(super) default: Option<String>,
    /// `default` is (also) a function: about the primary's own state.
    pub(super) default_function: bool,
    pub(super) reference_write: Option<String>,
    pub(super) volatile: bool,
    /// Not the same on every server: now(), current_user, random() ...
    pub(super) unstable: Option<String>,
    pub(super) writes: bool,
    /// FOR UPDATE and the like.
    pub(super) locks: bool,
    pub(super) limit: bool,
    /// What may come out differently where the same rows lie in another order.
    pub(super) order: Option<String>,
    /// A reference table of which rows are locked.
    pub(super) locked_reference: Option<String>,
    /// Where a row is, or which transaction wrote it, is compared with a given value: true for one server only.
    pub(super) address: bool,
    /// INSERT, UPDATE, DELETE and MERGE, those within WITH too.
    pub(super) write_count: usize,
    /// `default` is (also) a function other than nextval().
    pub(super) other_default_function: bool,
    /// Calls nextval().
    pub(super) draws: bool,
    pub(super) temporary: bool,
    pub(super) session_lock: bool,
    /// currval() or lastval().
    pub(super) sequence_value: bool,
    /// setval().
    pub(super) sets_sequence: bool,
    pub(super) tables: SeenTables,
    pub(super) parameters: u16,
    /// Something whose answer depends on the table itself and not only on its rows: ctid, tableoid, TABLESAMPLE, names
    /// with a schema. Rows that were brought elsewhere would give another.
    pub(super) physical: Option<String>,
    /// An aggregate that may belong to a query around the one it stands in.
    pub(super) outer_aggregate: bool,
    /// A system table.
    pub(super) system: bool,
    /// Speaks of the catalog's own numbers: without a sharded table the default shard's, which clients see (H23).
    pub(super) oids: bool,
    /// WHERE CURRENT OF: the cursor is on one server.
    pub(super) cursor: bool,
    /// Uses the time at which the transaction began.
    pub(super) clock: bool,
    /// Where it does, in the text.
    pub(super) clock_places: Vec<(usize, Clock)>,
    /// It does so in a way, or in a view, where a constant cannot be put in its place.
    pub(super) clock_elsewhere: bool,
    /// Calls a STABLE function that may say other things on another server of the same session.
    pub(super) server_bound: bool,
    /// Calls a user's function that is not IMMUTABLE: what it may write must not be rolled back with the gathered rows.
    pub(super) user_code: bool,
}

/// What is taken of the transaction's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// `now()`.
    Call,
    /// `CURRENT_TIMESTAMP`, `CURRENT_DATE`, `LOCALTIMESTAMP`: the type that it has.
    Word(&'static str),
}

/// See `plan::Tables`.
#[derive(Debug, Default)]
pub(super) struct SeenTables {
    pub(super) names: Vec<String>,
    pub(super) keyed: bool,
}

impl SeenTables {
    pub(super) fn add(&mut self, table: &crate::catalog::Table) {
        use crate::catalog::TableKind;
        self.keyed |= matches!(table.kind, TableKind::Sharded { .. } | TableKind::Reference);
        if !self.names.contains(&table.name) {
            self.names.push(table.name.clone());
        }
    }
}

pub(super) struct Builder<'a> {
    pub(super) context: &'a RouteContext<'a>,
    pub(super) text: &'a str,
    pub(super) literals: &'a Literals,
    /// Constants that the grammar found where the lexer did.
    pub(super) agreed: Vec<bool>,
    /// A cut constant's value was looked at.
    pub(super) peeked: bool,
    pub(super) rels: Vec<Rel>,
    pub(super) values: Vec<Value>,
    pub(super) blocks: Vec<Block>,
    pub(super) ctes: Vec<Cte>,
    /// CTEs in sight, innermost last.
    pub(super) visible_ctes: Vec<usize>,
    /// CTEs of a WITH RECURSIVE that are yet to come; one may be meant where a table of its name is found.
    pub(super) later_ctes: Vec<String>,
    /// FROM lists in sight, innermost last.
    pub(super) levels: Vec<Vec<Item>>,
    pub(super) seen: Seen,
    pub(super) keys: Vec<KeyRef>,
    pub(super) evidence: Vec<String>,
    pub(super) depth: usize,
    /// Within a view's text: its constants are not this statement's.
    pub(super) views: usize,
    /// What the statement itself writes.
    pub(super) write: Option<Write<'a>>,
    /// What the parts of its WITH write.
    pub(super) parts: Vec<Write<'a>>,
    /// Why no shard can write its own rows by itself, although the statement may be right.
    pub(super) soft: Option<Refusal>,
    /// How many of `keys` are values that the key is set to.
    pub(super) assigned_keys: usize,
    /// Relations named in FROM, of the text that is being looked at.
    pub(super) sources: Vec<Source>,
    /// Reference tables in FROM: the block, the name in it, the table.
    pub(super) reference_items: Vec<(BlockId, String, String)>,
    /// Subqueries and views in FROM: the block, the name in it, their own block.
    pub(super) derived_items: Vec<(BlockId, String, BlockId)>,
    /// What the outermost query's FROM shows.
    pub(super) top_items: Option<Vec<Item>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(context: &'a RouteContext<'a>, text: &'a str, literals: &'a Literals) -> Self {
        Self {
            context,
            text,
            literals,
            agreed: vec![false; literals.len()],
            peeked: false,
            rels: Vec::new(),
            values: Vec::new(),
            blocks: Vec::new(),
            ctes: Vec::new(),
            visible_ctes: Vec::new(),
            later_ctes: Vec::new(),
            levels: Vec::new(),
            seen: Seen::default(),
            keys: Vec::new(),
            evidence: Vec::new(),
            depth: 0,
            views: 0,
            write: None,
            parts: Vec::new(),
            soft: None,
            assigned_keys: 0,
            sources: Vec::new(),
            reference_items: Vec::new(),
            derived_items: Vec::new(),
            top_items: None,
        }
    }

    pub(super) fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH || self.rels.len() > MAX_RELATIONS {
            return Err(Refusal::new(
                "54001",
                "the statement is nested too deeply to be routed",
                "Simplify it, or send it to one shard with SET shard.target.",
            ));
        }
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    pub(super) fn new_block(&mut self) -> BlockId {
        let first_rel = self.rels.len();
        self.blocks.push(Block { scopes: vec![Scope::default()], first_rel, ..Block::default() });
        self.blocks.len() - 1
    }

    pub(super) fn add_rel(&mut self, block: BlockId, scope: usize, rel: Rel) -> RelId {
        self.rels.push(rel);
        let id = self.rels.len() - 1;
        self.blocks[block].members.push((id, scope));
        id
    }

    pub(super) fn add_value(&mut self, value: Value) -> Term {
        let same = |v: &Value| v.place == value.place && matches!(v.place, KeyPlace::Parameter(_));
        if let Some(found) = self.values.iter().position(same) {
            return Term::Value(found);
        }
        self.values.push(value);
        Term::Value(self.values.len() - 1)
    }

    pub(super) fn add_fact(&mut self, block: BlockId, scope: Option<usize>, fact: Fact) {
        if let Some(scope) = scope {
            self.blocks[block].scopes[scope].facts.push(fact);
        }
    }

    /// The item that a relation occurrence shows under `alias`.
    pub(super) fn item(&self, rel: RelId, alias: String, schema: Option<String>, open: bool) -> Item {
        let columns = self.rels[rel].columns.iter().enumerate().map(|(i, column)| ItemColumn {
            name: column.name.clone(),
            term: Some(Term::Column(rel, i)),
            type_oid: column.type_oid,
            hidden: false,
        });
        Item { alias: Some(alias), schema, columns: columns.collect(), open }
    }

    /// 1-based character position of a byte offset.
    pub(super) fn position(&self, location: i32) -> Option<u32> {
        if self.views > 0 {
            return None;
        }
        let before = self.text.get(..usize::try_from(location).ok()?)?;
        u32::try_from(before.chars().count() + 1).ok()
    }
}

/// Aliases of columns: `AS t (a, b)`.
pub(super) fn alias_columns(alias: Option<&nodes::Alias>) -> Vec<String> {
    let names = alias.into_iter().flat_map(|alias| alias.colnames().iter());
    names.filter_map(|node| node.as_str().map(str::to_owned)).collect()
}
