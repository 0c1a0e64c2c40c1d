//! Expressions: every node is visited (functions, subqueries, constants), conjuncts yield facts.

use std::ops::ControlFlow;

use pg_raw_parse::raw::{A_Expr_Kind, BoolExprType, SubLinkType};
use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::facts::{Fact, Term};
use super::ir::{BlockId, Builder, Family, Result, Sub, Value, family};
use super::names::usable_term;
use crate::route::lex::LiteralKind;
use crate::route::plan::KeyPlace;

/// Where an expression stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) block: BlockId,
    /// Whose facts hold wherever the expression's value matters.
    pub(super) scope: Option<usize>,
}

/// A side of a comparison.
enum Side {
    Column(Term, Option<Family>),
    Value(Value),
}

impl Builder<'_> {
    /// Facts from a condition that must be true, and everything in it visited.
    pub(super) fn condition(&mut self, node: Node<'_>, place: Place) -> Result<()> {
        match node {
            Node::None => Ok(()),
            Node::BoolExpr(b) if b.boolop == BoolExprType::AND_EXPR => {
                b.args().iter().try_for_each(|arg| self.condition(arg, place))
            }
            Node::SubLink(link)
                if link.sub_link_type == SubLinkType::ANY_SUBLINK && equality(link.oper_name(), true) =>
            {
                self.sublink(link, place, true)
            }
            _ => {
                for fact in self.facts_of(node) {
                    self.add_fact(place.block, place.scope, fact);
                }
                self.expression(node, place)
            }
        }
    }

    /// Equalities that follow from one conjunct being true.
    fn facts_of(&mut self, node: Node<'_>) -> Vec<Fact> {
        match node {
            Node::A_Expr(e) if e.kind == A_Expr_Kind::AEXPR_OP && equality(e.name(), false) => {
                match (e.lexpr(), e.rexpr()) {
                    (Node::RowExpr(l), Node::RowExpr(r)) if l.args().len() == r.args().len() => {
                        let pairs = l.args().iter().zip(r.args().iter());
                        pairs.filter_map(|(l, r)| self.equal(l, r)).collect()
                    }
                    (l, r) => self.equal(l, r).into_iter().collect(),
                }
            }
            Node::A_Expr(e) if e.kind == A_Expr_Kind::AEXPR_OP_ANY && equality(e.name(), false) => {
                let fact = match (self.column_side(e.lexpr()), self.array(e.rexpr())) {
                    (Some((term, family)), Some(value)) => self.bind(term, family, value),
                    _ => None,
                };
                fact.into_iter().collect()
            }
            Node::A_Expr(e) if e.kind == A_Expr_Kind::AEXPR_IN && equality(e.name(), false) => {
                self.in_list(e)
            }
            Node::BoolExpr(b) if b.boolop == BoolExprType::OR_EXPR => self.disjunction(b),
            _ => Vec::new(),
        }
    }

    fn equal(&mut self, left: Node<'_>, right: Node<'_>) -> Option<Fact> {
        match (self.side(left)?, self.side(right)?) {
            (Side::Column(a, fa), Side::Column(b, fb)) => {
                (fa.is_some() && fa == fb).then_some(Fact::equal(a, b))
            }
            (Side::Column(term, family), Side::Value(value))
            | (Side::Value(value), Side::Column(term, family)) => self.bind(term, family, value),
            (Side::Value(_), Side::Value(_)) => None,
        }
    }

    /// `term = value`, if the comparison is by the column's own equality.
    pub(super) fn bind(&mut self, term: Term, column: Option<Family>, value: Value) -> Option<Fact> {
        let column = column?;
        if value.family.is_some_and(|f| f != column) {
            return None;
        }
        Some(Fact::equal(term, self.add_value(value)))
    }

    fn side(&self, node: Node<'_>) -> Option<Side> {
        if let Some((term, family)) = self.column_side(node) {
            return Some(Side::Column(term, family));
        }
        self.value(node).map(Side::Value)
    }

    pub(super) fn column_side(&self, node: Node<'_>) -> Option<(Term, Option<Family>)> {
        let (term, type_oid) = self.column_term(node)?;
        Some((term, family(type_oid)))
    }

    /// A plain column, or one cast to its own type.
    pub(super) fn column_term(&self, node: Node<'_>) -> Option<(Term, u32)> {
        match node {
            Node::ColumnRef(reference) => self.column(reference).as_ref().and_then(usable_term),
            Node::TypeCast(cast) => {
                let (term, type_oid) = self.column_term(cast.arg())?;
                let target = cast.type_name().and_then(builtin_type)?;
                (!target.array && target.oid == type_oid).then_some((term, type_oid))
            }
            _ => None,
        }
    }

    /// A constant or parameter whose canonical form is known.
    pub(super) fn value(&self, node: Node<'_>) -> Option<Value> {
        match node {
            Node::A_Const(constant) => self.constant(constant),
            Node::ParamRef(parameter) => parameter_place(parameter)
                .filter(|_| self.views == 0)
                .map(|n| Value { place: KeyPlace::Parameter(n), family: None }),
            Node::TypeCast(cast) => {
                let target = cast.type_name().and_then(builtin_type).filter(|t| !t.array)?;
                let family = family(target.oid)?;
                let inner = match cast.arg() {
                    node @ (Node::A_Const(_) | Node::ParamRef(_)) => self.value(node)?,
                    _ => return None,
                };
                let fits = match (&inner.place, inner.family) {
                    (KeyPlace::Null | KeyPlace::Parameter(_), _) => true,
                    // A number cast to text, or a fraction cast to an integer, is not what is written.
                    (KeyPlace::Literal(n), kind) => match kind {
                        None => true,
                        Some(_) => {
                            family == Family::Integer
                                && matches!(
                                    self.literals.get(usize::from(*n)).map(|l| l.kind),
                                    Some(LiteralKind::Integer | LiteralKind::NegativeInteger)
                                )
                        }
                    },
                    _ => false,
                };
                fits.then_some(Value { place: inner.place, family: Some(family) })
            }
            _ => None,
        }
    }

    fn constant(&self, constant: &nodes::A_Const) -> Option<Value> {
        if constant.isnull {
            return Some(Value { place: KeyPlace::Null, family: None });
        }
        let (index, kind) = self.literal_at(constant)?;
        let place = KeyPlace::Literal(u16::try_from(index).ok()?);
        let family = match (constant.val()?, kind) {
            (ConstValue::Integer(_), LiteralKind::Integer | LiteralKind::NegativeInteger)
            | (ConstValue::Float(_), LiteralKind::Integer | LiteralKind::NegativeInteger)
            | (ConstValue::Float(_), LiteralKind::Decimal | LiteralKind::NegativeDecimal) => {
                Some(Family::Integer)
            }
            (ConstValue::String(_), LiteralKind::String | LiteralKind::Escape | LiteralKind::Dollar) => None,
            _ => return None,
        };
        Some(Value { place, family })
    }

    /// The lexer's constant at the place where the grammar saw one.
    fn literal_at(&self, constant: &nodes::A_Const) -> Option<(usize, LiteralKind)> {
        if self.views > 0 {
            return None;
        }
        let start = u32::try_from(constant.location).ok()?;
        let index = self.literals.binary_search_by_key(&start, |l| l.start).ok()?;
        self.literals.get(index).map(|l| (index, l.kind))
    }

    /// Constants, parameters and ARRAY[...] as a set of keys.
    pub(super) fn array(&self, node: Node<'_>) -> Option<Value> {
        match node {
            Node::A_Const(_) => match self.value(node)? {
                Value { place: KeyPlace::Literal(n), family: None } => {
                    Some(Value { place: KeyPlace::LiteralArray(n), family: None })
                }
                null @ Value { place: KeyPlace::Null, .. } => Some(null),
                _ => None,
            },
            Node::ParamRef(parameter) => parameter_place(parameter)
                .filter(|_| self.views == 0)
                .map(|n| Value { place: KeyPlace::ParameterArray(n), family: None }),
            Node::TypeCast(cast) => {
                let target = cast.type_name().and_then(builtin_type).filter(|t| t.array)?;
                let family = family(target.oid)?;
                let inner = match cast.arg() {
                    node @ (Node::A_Const(_) | Node::ParamRef(_) | Node::A_ArrayExpr(_)) => {
                        self.array(node)?
                    }
                    _ => return None,
                };
                let fits = inner.family.is_none_or(|f| f == family);
                fits.then_some(Value { place: inner.place, family: Some(family) })
            }
            Node::A_ArrayExpr(array) => self.one_of(array.elements().iter()),
            _ => None,
        }
    }

    /// All of them known values of one family.
    fn one_of<'n>(&self, elements: impl Iterator<Item = Node<'n>>) -> Option<Value> {
        let mut places = Vec::new();
        let mut family = None;
        for element in elements {
            let value = self.value(element)?;
            if family.is_some() && value.family.is_some() && value.family != family {
                return None;
            }
            family = family.or(value.family);
            places.push(value.place);
        }
        let place = if places.len() == 1 { places.pop()? } else { KeyPlace::OneOf(places.into()) };
        Some(Value { place, family })
    }

    fn in_list(&mut self, e: &nodes::A_Expr) -> Vec<Fact> {
        let Node::NodeList(list) = e.rexpr() else { return Vec::new() };
        let mut facts = Vec::new();
        match e.lexpr() {
            Node::RowExpr(row) => {
                for (i, column) in row.args().iter().enumerate() {
                    let Some((term, family)) = self.column_side(column) else { continue };
                    let elements: Option<Vec<Node<'_>>> = list
                        .iter()
                        .map(|element| match element {
                            Node::RowExpr(r) if r.args().len() == row.args().len() => r.args().get(i),
                            _ => None,
                        })
                        .collect();
                    let value = elements.and_then(|e| self.one_of(e.into_iter()));
                    facts.extend(value.and_then(|value| self.bind(term, family, value)));
                }
            }
            column => {
                if let (Some((term, family)), Some(value)) =
                    (self.column_side(column), self.one_of(list.iter()))
                {
                    facts.extend(self.bind(term, family, value));
                }
            }
        }
        facts
    }

    /// `k = 1 OR k = 2`: a column bound in every arm has one of the arms' values.
    fn disjunction(&mut self, or: &nodes::BoolExpr) -> Vec<Fact> {
        let mut common: Option<Vec<(Term, Vec<KeyPlace>)>> = None;
        for arm in or.args() {
            let facts = match arm {
                Node::BoolExpr(and) if and.boolop == BoolExprType::AND_EXPR => {
                    and.args().iter().flat_map(|conjunct| self.facts_of(conjunct)).collect()
                }
                _ => self.facts_of(arm),
            };
            let bound: Vec<(Term, KeyPlace)> = facts
                .iter()
                .filter_map(|Fact { a: term, b: value, .. }| match value {
                    Term::Value(v) => Some((*term, self.values.get(*v)?.place.clone())),
                    Term::Column(..) => None,
                })
                .collect();
            common = Some(match common {
                None => bound.into_iter().map(|(term, place)| (term, vec![place])).collect(),
                Some(so_far) => so_far
                    .into_iter()
                    .filter_map(|(term, mut places)| {
                        let (_, place) = bound.iter().find(|(other, _)| *other == term)?;
                        places.push(place.clone());
                        Some((term, places))
                    })
                    .collect(),
            });
        }
        let common = common.unwrap_or_default();
        common
            .into_iter()
            .map(|(term, places)| {
                let value = Value { place: KeyPlace::OneOf(places.into()), family: None };
                Fact::equal(term, self.add_value(value))
            })
            .collect()
    }

    /// Visits an expression whose value may be anything.
    pub(super) fn expression(&mut self, node: Node<'_>, place: Place) -> Result<()> {
        self.enter()?;
        match node {
            Node::None => {}
            Node::A_Const(constant) => self.note_constant(constant),
            Node::ParamRef(parameter) => {
                let number = u16::try_from(parameter.number).unwrap_or(u16::MAX);
                self.seen.parameters = self.seen.parameters.max(number);
            }
            Node::ColumnRef(reference) => {
                if let Some(function) = self.hidden_call(reference) {
                    return Err(super::calls::opaque(&function));
                }
                self.note_physical(reference);
            }
            Node::SubLink(link) => self.sublink(link, place, false)?,
            Node::TypeCast(cast) => {
                self.seen.oids |= cast.type_name().is_some_and(is_oid_alias);
                self.children(node, place)?;
            }
            Node::FuncCall(call) => self.function(call, place)?,
            Node::SelectStmt(select) => {
                let block = self.select(select)?;
                self.blocks[place.block].subs.push(Sub { block, scope: place.scope, links: Vec::new() });
            }
            // Aggregates, perhaps windowed, with a grammar of their own: never taken for what each shard can do alone.
            Node::JsonArrayAgg(_) | Node::JsonObjectAgg(_) => {
                let shape = &mut self.blocks[place.block].shape;
                (shape.grouped, shape.whole) = (true, true);
                self.seen.outer_aggregate = true;
                self.children(node, place)?;
            }
            Node::A_Expr(operation) => {
                self.note_address(operation);
                self.children(node, place)?;
            }
            Node::CurrentOfExpr(_) => self.seen.cursor = true,
            Node::SQLValueFunction(function) => {
                self.seen.unstable = Some("CURRENT_TIMESTAMP or CURRENT_USER".to_owned());
                self.clock_word(function);
            }
            _ => self.children(node, place)?,
        }
        self.leave();
        Ok(())
    }

    pub(super) fn expressions(&mut self, list: &pg_raw_parse::list::NodeList, place: Place) -> Result<()> {
        list.iter().try_for_each(|node| self.expression(node, place))
    }

    pub(super) fn children(&mut self, node: Node<'_>, place: Place) -> Result<()> {
        // The library's walker does not take a null pointer, which is how an empty list arrives.
        if matches!(node, Node::None) || matches!(node, Node::NodeList(list) if list.is_empty()) {
            return Ok(());
        }
        let broken = walk_manual(node, |child| match self.expression(child, place) {
            Ok(()) => Recurse::no(),
            Err(refusal) => ControlFlow::Break(refusal),
        });
        broken.map_or(Ok(()), Err)
    }

    fn note_constant(&mut self, constant: &nodes::A_Const) {
        if let Some((index, _)) = self.literal_at(constant) {
            self.agreed[index] = true;
        }
    }

    /// The plan depends on this constant's value.
    pub(super) fn peek(&mut self, node: Node<'_>) {
        if let Node::A_Const(constant) = node
            && let Some((index, _)) = self.literal_at(constant)
            && self.literals.get(index).is_some_and(|l| l.cut)
        {
            self.peeked = true;
        }
    }

    /// ORDER BY, GROUP BY, DISTINCT ON, LIMIT: a bare constant means something other than its value (H25).
    pub(super) fn positional(&mut self, node: Node<'_>, place: Place) -> Result<()> {
        self.peek(node);
        self.expression(node, place)
    }

    fn sublink(&mut self, link: &nodes::SubLink, place: Place, conjunct: bool) -> Result<()> {
        self.enter()?;
        self.expression(link.testexpr(), place)?;
        let Node::SelectStmt(select) = link.subselect() else {
            return self.children(link.subselect(), place);
        };
        let block = self.select(select)?;
        let mut links = Vec::new();
        if conjunct {
            let columns: Vec<Node<'_>> = match link.testexpr() {
                Node::RowExpr(row) => row.args().iter().collect(),
                other => vec![other],
            };
            let exports = self.exports(block);
            for (i, node) in columns.into_iter().enumerate() {
                let output = self.output_family(block, i);
                let Some((term, column)) = self.column_side(node) else {
                    if let Some(value) = self.value(node)
                        && output.is_some()
                        && value.family.is_none_or(|f| Some(f) == output)
                    {
                        links.push((i, self.add_value(value)));
                    }
                    continue;
                };
                if column.is_none() || column != output {
                    continue;
                }
                links.push((i, term));
                for known in exports.iter().filter(|known| known.output == i) {
                    self.add_fact(place.block, place.scope, Fact::equal(term, known.term));
                }
            }
        }
        self.blocks[place.block].subs.push(Sub { block, scope: place.scope, links });
        self.leave();
        Ok(())
    }
}

/// PostgreSQL's own `=`; an empty name is that of IN.
fn equality(name: &pg_raw_parse::list::NodeList, empty: bool) -> bool {
    let mut parts = name.iter().map(|n| n.as_str());
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => empty,
        (Some(Some("=")), None, _) => true,
        (Some(Some("pg_catalog")), Some(Some("=")), None) => true,
        _ => false,
    }
}

fn parameter_place(parameter: &nodes::ParamRef) -> Option<u16> {
    u16::try_from(parameter.number).ok()?.checked_sub(1)
}

/// A built-in type without modifiers.
#[derive(Debug, Clone, Copy)]
pub(super) struct BuiltinType {
    pub(super) oid: u32,
    pub(super) array: bool,
}

/// `None` for types with modifiers (`varchar(3)` truncates) and for types that have no family.
pub(super) fn builtin_type(name: &nodes::TypeName) -> Option<BuiltinType> {
    if name.setof || name.pct_type || !name.typmods().is_empty() {
        return None;
    }
    let mut parts: Vec<&str> = name.names().iter().filter_map(|s| s.sval()).collect();
    let last = parts.pop()?;
    if !matches!(parts.as_slice(), [] | ["pg_catalog"]) {
        return None;
    }
    let oid = match last {
        "uuid" => 2950,
        "int8" => 20,
        "int2" => 21,
        "int4" => 23,
        "text" => 25,
        "varchar" => 1043,
        _ => return None,
    };
    Some(BuiltinType { oid, array: !name.array_bounds().is_empty() })
}

/// regclass, regtype and the like: names for OIDs.
fn is_oid_alias(name: &nodes::TypeName) -> bool {
    name.names().iter().next_back().and_then(nodes::String::sval).is_some_and(|last| last.starts_with("reg"))
}
