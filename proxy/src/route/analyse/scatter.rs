//! Statements over several shards: which of them every shard can answer for its own rows.
//!
//! Let T be the key of a table that rows are read from and that is not on the nullable side of a join. If the statement restricted to
//! T = v is proved to belong to the shard of v, whatever v is, then each shard gives exactly the part of the answer
//! that its own keys give, and the parts make up the whole, provided that the outermost query does nothing to its
//! rows together: no LIMIT, ORDER BY, DISTINCT or window, and groups only by T. The proof is the ordinary one
//! ([`super::prove`]) with a symbol in the place of v.
//!
//! What cannot be proved so and only reads is gathered: see [`super::gather`].

use std::ops::{ControlFlow, Range};

use pg_raw_parse::raw::SetOperation;
use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::facts::{Fact, Term};
use super::ir::{BlockId, Builder, RelKind, Value};
use super::split::{Last, SplitPlan};
use crate::route::plan::{How, KeyPlace, KeyRef, Refusal, Route};

/// More tables than these in one FROM are not tried as T.
const CANDIDATES: usize = 16;

impl Builder<'_> {
    /// May the keys of this route turn out to be on several shards?
    pub(super) fn straddles(&self, route: &Route) -> bool {
        let set = |key: &KeyRef| {
            matches!(key.place, KeyPlace::OneOf(_) | KeyPlace::ParameterArray(_) | KeyPlace::LiteralArray(_))
        };
        match route {
            Route::Key(keys) => !keys.iter().any(|key| key.batch) && (keys.len() > 1 || keys.iter().any(set)),
            _ => false,
        }
    }

    /// `early`: keys that do not come from tables (keyed functions, SET key = ...). `None`: nothing is proved.
    pub(super) fn scatter(&mut self, block: BlockId, early: &[KeyRef]) -> Option<How> {
        let seen = &self.seen;
        if !early.is_empty()
            || seen.reference_write.is_some()
            || seen.temporary
            || seen.session_lock
            || seen.default_function
            || seen.cursor
            || seen.address
            || seen.locked_reference.is_some()
        {
            return None;
        }
        if seen.default.is_none() && self.distributes(block) {
            return Some(How::Each);
        }
        let seen = &self.seen;
        (!seen.writes && !seen.user_code && seen.physical.is_none()).then_some(How::Gather)
    }

    pub(super) fn explain_scatter(&mut self, how: How, why: &Refusal) {
        self.evidence.clear();
        self.evidence.push(why.message.clone());
        self.evidence.push(match how {
            How::Each => "each key's part of the answer is proved to be its own shard's: every shard runs it"
                .to_owned(),
            How::Gather => {
                "the rows it reads are brought to one server, and PostgreSQL answers there".to_owned()
            }
            How::Apply => {
                "PostgreSQL runs it on copies of the rows, and what changed there is changed where it belongs"
                    .to_owned()
            }
        });
    }

    /// Says which of the ways to gather is taken, and why not a cheaper one.
    pub(super) fn explain_gather(&mut self, select: &nodes::SelectStmt, block: BlockId, span: Range<usize>) {
        // The time is put into the text before it is cut.
        let clock = std::mem::replace(&mut self.seen.clock, self.seen.clock_elsewhere);
        let split = self.split_query(select, block, span);
        self.seen.clock = clock;
        self.evidence.pop();
        self.evidence.push(match split {
            Ok(SplitPlan { last: Last::Groups(_), .. }) => {
                "partial aggregates: every shard aggregates its own rows, and PostgreSQL combines them on one server"
                    .to_owned()
            }
            Ok(SplitPlan { last: Last::Rows(_), .. }) => {
                "every shard gives its part of the answer, and PostgreSQL sorts and limits the parts on one server"
                    .to_owned()
            }
            Err(why) => format!(
                "the rows it reads are brought to one server, and PostgreSQL answers there; not cut into the shards' parts because of {why}"
            ),
        });
    }

    fn distributes(&mut self, block: BlockId) -> bool {
        let shape = &self.blocks[block].shape;
        if shape.whole {
            return false;
        }
        let groups = shape.grouped.then(|| shape.groups.clone());
        self.distributes_by(block, groups.as_deref())
    }

    /// Are the rows of the block's FROM and WHERE the shards' own rows put together, whatever is done with them then?
    pub(super) fn rows_distribute(&mut self, block: BlockId) -> bool {
        self.distributes_by(block, None)
    }

    /// `groups`: only a key among these will do.
    fn distributes_by(&mut self, block: BlockId, groups: Option<&[Term]>) -> bool {
        let top = &self.blocks[block];
        if !top.branches.is_empty() || self.seen.outer_aggregate {
            return false;
        }
        let mut candidates = Vec::new();
        for (rel, scope) in &top.members {
            if *scope == 0 && top.inserts_into != Some(*rel) {
                let columns = 0..self.rels[*rel].columns.len();
                candidates
                    .extend(columns.map(|i| Term::Column(*rel, i)).filter(|term| self.is_stored_key(*term)));
            }
        }
        if let Some(groups) = groups {
            candidates.retain(|term| groups.contains(term));
        }
        candidates.truncate(CANDIDATES);
        let (keys, evidence, depth) = (self.keys.clone(), self.evidence.clone(), self.depth);
        let found = candidates.into_iter().any(|term| {
            self.keys.clear();
            let symbol = self.add_value(Value { place: KeyPlace::Symbol, family: None });
            let proved = self.prove(block, &[Fact::equal(term, symbol)], &[]).is_ok();
            self.depth = depth;
            proved && !self.keys.is_empty() && self.keys.iter().all(|key| key.place == KeyPlace::Symbol)
        });
        (self.keys, self.evidence) = (keys, evidence);
        found
    }

    /// A column that is, row for row, the key under which a row is stored: never NULL because a join found nothing.
    fn is_stored_key(&self, term: Term) -> bool {
        let Term::Column(rel, column) = term else { return false };
        match self.rels[rel].kind {
            RelKind::Sharded { key, .. } => column == key,
            RelKind::Derived(inner) => {
                let block = &self.blocks[inner];
                let output = block.outputs.as_ref().and_then(|outputs| outputs.get(column));
                let Some(Term::Column(of, at)) = output.and_then(|o| o.term) else { return false };
                let whole_rows = block.branches.is_empty() && !block.shape.whole;
                whole_rows && block.members.contains(&(of, 0)) && self.is_stored_key(Term::Column(of, at))
            }
            RelKind::Cte(_) | RelKind::Other => false,
        }
    }

    pub(super) fn note_shape(&mut self, select: &nodes::SelectStmt, block: BlockId, whole: bool) {
        let mut sets = false;
        let mut groups = Vec::new();
        for node in select.group_clause() {
            let column = match node {
                Node::GroupingSet(_) => {
                    sets = true;
                    continue;
                }
                Node::A_Const(constant) => match constant.val() {
                    // GROUP BY 2: the second column of the answer.
                    Some(ConstValue::Integer(n)) => {
                        let at = usize::try_from(n).ok().and_then(|n| n.checked_sub(1));
                        at.and_then(|at| select.target_list().iter().nth(at)).map_or(Node::None, |t| t.val())
                    }
                    _ => Node::None,
                },
                other => other,
            };
            groups.extend(self.column_term(column).map(|(term, _)| term));
        }
        let shape = &mut self.blocks[block].shape;
        shape.sets |= sets;
        shape.whole |= whole
            || sets
            || select.op != SetOperation::SETOP_NONE
            || !select.distinct_clause().is_empty()
            || !select.sort_clause().is_empty()
            || !select.window_clause().is_empty();
        shape.grouped |= !select.group_clause().is_empty() || !matches!(select.having_clause(), Node::None);
        shape.groups = groups;
    }

    /// An aggregate belongs to the innermost query that one of its columns is of: with columns of an outer query only,
    /// to that one.
    pub(super) fn aggregate(&mut self, call: &nodes::FuncCall, block: BlockId) {
        self.blocks[block].shape.grouped = true;
        let first = self.blocks[block].first_rel;
        let mut outer = false;
        // WITHIN GROUP (ORDER BY ...) and ORDER BY within the call are arguments, too.
        let sorts = call.agg_order().iter().map(|sort| sort.node());
        for argument in call.args().iter().chain(sorts).chain([call.agg_filter()]) {
            if matches!(argument, Node::None) {
                continue;
            }
            let found = match argument {
                Node::ColumnRef(reference) => !self.is_own(reference, first),
                Node::A_Const(_) | Node::ParamRef(_) => false,
                _ => walk_manual(argument, |node| match node {
                    Node::ColumnRef(reference) if !self.is_own(reference, first) => ControlFlow::Break(()),
                    _ => Recurse::yes(),
                })
                .is_some(),
            };
            outer |= found;
        }
        self.seen.outer_aggregate |= outer;
    }

    fn is_own(&self, reference: &nodes::ColumnRef, first: usize) -> bool {
        let column = self.column(reference);
        column.is_some_and(|c| matches!(c.term, Some(Term::Column(rel, _)) if rel >= first))
    }
}
