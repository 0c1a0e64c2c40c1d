//! Equalities that hold on every row that matters, and what follows from them.

use rustc_hash::{FxHashMap, FxHashSet};

/// Index into the statement's relation occurrences.
pub(super) type RelId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Term {
    /// Column of one occurrence of a relation.
    Column(RelId, usize),
    /// Index into the statement's key values.
    Value(usize),
}

/// What is known of two terms on every row that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) a: Term,
    /// When this is a set of values, `a` is one of them.
    pub(super) b: Term,
    /// Both are not NULL, as after a comparison. Otherwise they are the same thing under two names, NULL included.
    pub(super) strict: bool,
}

impl Fact {
    /// A comparison was true.
    pub(super) fn equal(a: Term, b: Term) -> Self {
        Self { a, b, strict: true }
    }

    /// One is computed as the other.
    pub(super) fn same(a: Term, b: Term) -> Self {
        Self { a, b, strict: false }
    }
}

/// The terms that cannot be NULL: those compared, and what is the same as one of them.
pub(super) fn not_null(facts: &[Fact]) -> FxHashSet<Term> {
    let mut terms: FxHashSet<Term> = facts.iter().filter(|f| f.strict).flat_map(|f| [f.a, f.b]).collect();
    loop {
        let before = terms.len();
        for fact in facts.iter().filter(|f| !f.strict) {
            if terms.contains(&fact.a) || terms.contains(&fact.b) {
                terms.insert(fact.a);
                terms.insert(fact.b);
            }
        }
        if terms.len() == before {
            return terms;
        }
    }
}

/// Something that an output of a block is known to equal, as seen from outside the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) output: usize,
    pub(super) term: Term,
    pub(super) strict: bool,
}

/// Equivalence classes (union-find).
///
/// A set of values belongs to a class without joining it to others: two columns that are each one of (1, 2) need not
/// be equal.
#[derive(Debug, Default)]
pub(super) struct Closure {
    members: Vec<(Term, Term)>,
    index: FxHashMap<Term, usize>,
    terms: Vec<Term>,
    parent: Vec<usize>,
}

impl Closure {
    pub(super) fn of<'a>(facts: impl IntoIterator<Item = &'a Fact>, is_set: impl Fn(Term) -> bool) -> Self {
        let mut closure = Self::default();
        for Fact { a, b, .. } in facts {
            if is_set(*b) {
                closure.members.push((*a, *b));
                continue;
            }
            if is_set(*a) {
                closure.members.push((*b, *a));
                continue;
            }
            let (a, b) = (closure.node(*a), closure.node(*b));
            let (a, b) = (closure.find(a), closure.find(b));
            if a != b {
                closure.parent[a] = b;
            }
        }
        for node in 0..closure.parent.len() {
            closure.parent[node] = closure.find(node);
        }
        closure
    }

    fn node(&mut self, term: Term) -> usize {
        *self.index.entry(term).or_insert_with(|| {
            self.terms.push(term);
            self.parent.push(self.parent.len());
            self.parent.len() - 1
        })
    }

    /// After `of`, every parent is a root.
    fn root(&self, node: usize) -> usize {
        self.parent[node]
    }

    /// While classes are being joined: path halving, or a hostile statement would make chains.
    fn find(&mut self, mut node: usize) -> usize {
        while self.parent[node] != node {
            self.parent[node] = self.parent[self.parent[node]];
            node = self.parent[node];
        }
        node
    }

    /// Everything known to equal `term`, itself included, and the sets that it is in.
    pub(super) fn class(&self, term: Term) -> impl Iterator<Item = Term> + '_ {
        let root = self.index.get(&term).map(|node| self.root(*node));
        let alone = root.is_none().then_some(term);
        let sets = self.members.iter().filter(move |(column, _)| {
            *column == term || (root.is_some() && self.index.get(column).map(|node| self.root(*node)) == root)
        });
        let members = self
            .terms
            .iter()
            .enumerate()
            .filter(move |(node, _)| root.is_some_and(|root| self.root(*node) == root))
            .map(|(_, term)| *term);
        alone.into_iter().chain(members).chain(sets.map(|(_, set)| *set))
    }
}
