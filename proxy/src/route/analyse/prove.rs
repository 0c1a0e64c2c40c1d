//! The proof: every sharded occurrence is bound to key values, so that leaving out all other shards changes nothing.
//!
//! For an occurrence R of a query block it is enough that every row of the block's result that R takes part in has
//! R.key = v. WHERE and inner ON conditions say so for all rows of the block; the ON of an outer join only for rows
//! in which its nullable side is present, which is all that is asked for the relations of that side. A filter on a
//! subquery's column says it of the subquery's rows if the subquery lets filters through (no LIMIT, no window).

use pg_raw_parse::Node;

use super::calls::describe;
use super::facts::{Closure, Export, Fact, Term, not_null};
use super::ir::{BlockId, Builder, RelKind, Result};
use crate::route::plan::{KeyPlace, KeyRef, Refusal};

impl Builder<'_> {
    /// Proves a block and everything below it.
    pub(super) fn prove(&mut self, block: BlockId, inherited: &[Fact], links: &[Export]) -> Result<()> {
        self.enter()?;
        for cte in self.blocks[block].ctes.clone() {
            if self.ctes[cte].closed || self.ctes[cte].references != 1 {
                self.prove(self.ctes[cte].block, inherited, &[])?;
            }
        }
        let mut base = inherited.to_vec();
        let mut through = Vec::new();
        for link in links {
            let outputs = self.blocks[block].outputs.as_ref();
            let Some(output) = outputs.and_then(|o| o.get(link.output)) else { continue };
            if output.pushable {
                through.push(*link);
                base.extend(output.term.map(|a| Fact { a, b: link.term, strict: link.strict }));
            }
        }
        for branch in self.blocks[block].branches.clone() {
            self.prove(branch, inherited, &through)?;
        }
        let contexts: Vec<Vec<Fact>> =
            (0..self.blocks[block].scopes.len()).map(|scope| self.context(block, scope, &base)).collect();
        let mut closures: Vec<Option<Closure>> = contexts.iter().map(|_| None).collect();
        for (rel, scope) in self.blocks[block].members.clone() {
            let facts = &contexts[scope];
            let columns = self.rels[rel].columns.len();
            match self.rels[rel].kind {
                RelKind::Sharded { key, key_type } => {
                    let closure = closures[scope].get_or_insert_with(|| self.closure(facts));
                    let Some(place) = self.bound(closure, Term::Column(rel, key)) else {
                        return Err(self.unbound(rel, key));
                    };
                    let key_name = self.rels[rel].columns.get(key).map_or("", |c| c.name.as_str());
                    self.evidence.push(format!("{}: {key_name} = {}", self.rels[rel].name, describe(&place)));
                    self.add_key(KeyRef { key_type, place, batch: false });
                }
                RelKind::Derived(inner) => {
                    self.prove(inner, facts, &column_links(rel, columns))?;
                }
                RelKind::Cte(cte) => {
                    if !self.ctes[cte].closed && self.ctes[cte].references == 1 {
                        self.prove(self.ctes[cte].block, facts, &column_links(rel, columns))?;
                    }
                }
                RelKind::Other => {}
            }
        }
        for sub in self.blocks[block].subs.clone() {
            let facts = sub.scope.and_then(|scope| contexts.get(scope)).map_or(inherited, Vec::as_slice);
            // IN is true only of equal values.
            let links: Vec<Export> = sub
                .links
                .iter()
                .map(|(output, term)| Export { output: *output, term: *term, strict: true })
                .collect();
            self.prove(sub.block, facts, &links)?;
        }
        self.prove_calls(block, &contexts, inherited)?;
        self.leave();
        Ok(())
    }

    fn prove_calls(&mut self, block: BlockId, contexts: &[Vec<Fact>], inherited: &[Fact]) -> Result<()> {
        let calls = self.blocks[block].calls.clone();
        for call in calls {
            let facts = call.scope.and_then(|scope| contexts.get(scope)).map_or(inherited, Vec::as_slice);
            let Some(place) = self.bound(&self.closure(facts), call.argument) else {
                return Err(Refusal::unsupported(
                    format!("the key of function {} is not bound to a value", call.name),
                    "Pass the key as a parameter or a constant, or bind the column to one with =.",
                ));
            };
            self.evidence.push(format!("{}: key {}", call.name, describe(&place)));
            self.add_key(KeyRef { key_type: call.key_type, place, batch: false });
        }
        Ok(())
    }

    fn closure(&self, facts: &[Fact]) -> Closure {
        Closure::of(facts, |term| match term {
            Term::Value(v) => self.values.get(v).is_some_and(|value| value.is_set()),
            Term::Column(..) => false,
        })
    }

    pub(super) fn add_key(&mut self, key: KeyRef) {
        if !self.keys.contains(&key) {
            self.keys.push(key);
        }
    }

    /// Facts that hold in every row in which `scope`'s side is present and that reaches the block's result.
    fn context(&self, block: BlockId, scope: usize, base: &[Fact]) -> Vec<Fact> {
        let block = &self.blocks[block];
        let mut within = vec![false; block.scopes.len()];
        let mut facts = base.to_vec();
        let mut pending = vec![scope, 0];
        loop {
            while let Some(next) = pending.pop() {
                if within.get(next).is_none_or(|done| *done) {
                    continue;
                }
                within[next] = true;
                facts.extend(&block.scopes[next].facts);
                pending.extend(block.scopes[next].parent);
            }
            if within.iter().all(|done| *done) {
                return facts;
            }
            // A side of which a column is not NULL is present.
            let present = not_null(&facts);
            let has_column =
                |rel: usize| present.iter().any(|t| matches!(t, Term::Column(of, _) if *of == rel));
            pending.extend(
                block.members.iter().filter(|(rel, s)| !within[*s] && has_column(*rel)).map(|(_, s)| *s),
            );
            if pending.is_empty() {
                return facts;
            }
        }
    }

    /// The best value in a term's class: one place rather than a set.
    fn bound(&self, closure: &Closure, term: Term) -> Option<KeyPlace> {
        let mut best: Option<(u8, &KeyPlace)> = None;
        for member in closure.class(term) {
            let Term::Value(value) = member else { continue };
            let place = &self.values.get(value)?.place;
            let rank = match place {
                KeyPlace::Symbol => 0,
                KeyPlace::Parameter(_) | KeyPlace::Literal(_) => 1,
                KeyPlace::Null => 2,
                KeyPlace::OneOf(_) => 3,
                KeyPlace::ParameterArray(_) | KeyPlace::LiteralArray(_) => 4,
            };
            if best.is_none_or(|(r, _)| rank < r) {
                best = Some((rank, place));
            }
        }
        best.map(|(_, place)| place.clone())
    }

    fn unbound(&self, rel: usize, key: usize) -> Refusal {
        let rel = &self.rels[rel];
        let key = rel.columns.get(key).map_or("the key", |c| c.name.as_str());
        Refusal::unsupported(
            format!("table {} is not bound to one value of its sharding key {key}", rel.name),
            format!("Add {key} = ... for this table (in WHERE, or joined to a table that has it)."),
        )
    }

    /// What a block's outputs are known to equal, as seen from outside it: values and columns of enclosing queries.
    pub(super) fn exports(&mut self, block: BlockId) -> Vec<Export> {
        let branches = self.blocks[block].branches.clone();
        if !branches.is_empty() {
            return self.export_branches(&branches);
        }
        let facts = self.context(block, 0, &[]);
        let closure = self.closure(&facts);
        let present = not_null(&facts);
        let first_rel = self.blocks[block].first_rel;
        let mut exports = Vec::new();
        for (i, output) in self.blocks[block].outputs.iter().flatten().enumerate() {
            let Some(term) = output.term else { continue };
            let outside = |t: &Term| match t {
                Term::Value(_) => true,
                Term::Column(rel, _) => *rel < first_rel,
            };
            let strict = present.contains(&term);
            exports.extend(closure.class(term).filter(outside).map(|term| Export {
                output: i,
                term,
                strict,
            }));
        }
        exports
    }

    /// A union's output is what it is in every branch; values that differ make a set.
    fn export_branches(&mut self, branches: &[BlockId]) -> Vec<Export> {
        let all: Vec<Vec<Export>> = branches.iter().map(|b| self.exports(*b)).collect();
        let Some((first, rest)) = all.split_first() else { return Vec::new() };
        let also = |known: &Export, branch: &Vec<Export>| {
            branch
                .iter()
                .any(|e| e.output == known.output && e.term == known.term && e.strict == known.strict)
        };
        let mut exports: Vec<Export> =
            first.iter().filter(|known| rest.iter().all(|other| also(known, other))).copied().collect();
        let width = self.blocks[branches[0]].outputs.as_ref().map_or(0, Vec::len);
        for i in 0..width {
            if exports.iter().any(|known| known.output == i) {
                continue;
            }
            let values: Option<Vec<_>> = all
                .iter()
                .map(|branch| {
                    branch.iter().find_map(|known| match known.term {
                        Term::Value(v) if known.output == i => self.values.get(v).cloned(),
                        _ => None,
                    })
                })
                .collect();
            if let Some(value) = values.and_then(super::select::merge) {
                let term = self.add_value(value);
                exports.push(Export { output: i, term, strict: false });
            }
        }
        exports
    }
}

/// The columns of a subquery in FROM are its outputs, NULL or not.
fn column_links(rel: usize, columns: usize) -> Vec<Export> {
    (0..columns).map(|i| Export { output: i, term: Term::Column(rel, i), strict: false }).collect()
}

/// Used by callers that hold a statement node.
pub(super) fn is_query(node: Node<'_>) -> bool {
    matches!(
        node,
        Node::SelectStmt(_)
            | Node::InsertStmt(_)
            | Node::UpdateStmt(_)
            | Node::DeleteStmt(_)
            | Node::MergeStmt(_)
    )
}
