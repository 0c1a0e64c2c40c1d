//! Expressions written back as SQL, every operation in parentheses. What is not known here is not written, and the
//! query is answered in another way.

use pg_raw_parse::raw::{A_Expr_Kind, BoolExprType, BoolTestType, MinMaxOp, NullTestType};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::facts::Term;
use super::ir::Builder;
use super::utility::quote;

/// How columns are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    /// As the statement names them.
    Named,
    /// By what they are, so that `id` and `t.id` are the same: for comparing expressions only.
    Identity,
}

/// Stands in texts for what is decided when the types are known; no constant may contain it.
pub(super) const MARK: char = '\u{1}';

impl Builder<'_> {
    /// `None`: not an expression that can be written here. Aggregates, subqueries and window functions never are.
    pub(super) fn write(&self, node: Node<'_>, columns: Columns) -> Option<String> {
        self.write_with(node, &mut |leaf| match leaf {
            Node::ColumnRef(reference) => Some(self.write_column(reference, columns)),
            Node::FuncCall(call) if self.is_aggregate(call) => Some(None),
            _ => None,
        })
    }

    fn write_column(&self, reference: &nodes::ColumnRef, columns: Columns) -> Option<String> {
        match columns {
            Columns::Named => {
                let parts: Option<Vec<String>> =
                    reference.fields().iter().map(|field| field.as_str().map(name)).collect();
                parts.map(|parts| parts.join("."))
            }
            Columns::Identity => match self.column(reference)?.term? {
                Term::Column(rel, column) => Some(format!("{MARK}{rel}.{column}")),
                Term::Value(_) => None,
            },
        }
    }

    /// `special` is asked first at every node: `Some(None)` ends it, `Some(Some(text))` is taken, `None` goes on.
    pub(super) fn write_with<'n>(
        &self,
        node: Node<'n>,
        special: &mut dyn FnMut(Node<'n>) -> Option<Option<String>>,
    ) -> Option<String> {
        if let Some(decided) = special(node) {
            return decided;
        }
        match node {
            Node::A_Const(constant) => write_constant(constant),
            Node::ParamRef(parameter) => Some(format!("${}", parameter.number)),
            Node::TypeCast(cast) => {
                let inner = self.write_with(cast.arg(), special)?;
                Some(format!("({inner}::{})", type_name(cast.type_name()?)?))
            }
            Node::CollateClause(collate) => {
                let inner = self.write_with(collate.arg(), special)?;
                Some(format!("({inner} COLLATE {})", qualified(collate.collname())?))
            }
            Node::BoolExpr(b) => {
                let args = self.write_list(b.args(), special)?;
                match b.boolop {
                    BoolExprType::AND_EXPR => Some(format!("({})", args.join(" AND "))),
                    BoolExprType::OR_EXPR => Some(format!("({})", args.join(" OR "))),
                    _ => Some(format!("(NOT {})", args.first()?)),
                }
            }
            Node::NullTest(test) => {
                let inner = self.write_with(test.arg(), special)?;
                let what = if test.nulltesttype == NullTestType::IS_NULL { "NULL" } else { "NOT NULL" };
                Some(format!("({inner} IS {what})"))
            }
            Node::BooleanTest(test) => {
                let inner = self.write_with(test.arg(), special)?;
                let what = match test.booltesttype {
                    BoolTestType::IS_TRUE => "TRUE",
                    BoolTestType::IS_NOT_TRUE => "NOT TRUE",
                    BoolTestType::IS_FALSE => "FALSE",
                    BoolTestType::IS_NOT_FALSE => "NOT FALSE",
                    BoolTestType::IS_UNKNOWN => "UNKNOWN",
                    _ => "NOT UNKNOWN",
                };
                Some(format!("({inner} IS {what})"))
            }
            Node::CoalesceExpr(c) => {
                Some(format!("coalesce({})", self.write_list(c.args(), special)?.join(", ")))
            }
            Node::MinMaxExpr(m) => {
                let function = if m.op == MinMaxOp::IS_GREATEST { "greatest" } else { "least" };
                Some(format!("{function}({})", self.write_list(m.args(), special)?.join(", ")))
            }
            Node::A_ArrayExpr(array) => {
                Some(format!("ARRAY[{}]", self.write_list(array.elements(), special)?.join(", ")))
            }
            Node::CaseExpr(case) => self.write_case(case, special),
            Node::A_Expr(e) => self.write_operation(e, special),
            Node::FuncCall(call) => self.write_call(call, special),
            _ => None,
        }
    }

    fn write_list<'n>(
        &self,
        list: &'n pg_raw_parse::list::NodeList,
        special: &mut dyn FnMut(Node<'n>) -> Option<Option<String>>,
    ) -> Option<Vec<String>> {
        list.iter().map(|node| self.write_with(node, special)).collect()
    }

    fn write_case<'n>(
        &self,
        case: &'n nodes::CaseExpr,
        special: &mut dyn FnMut(Node<'n>) -> Option<Option<String>>,
    ) -> Option<String> {
        let mut out = String::from("(CASE");
        if !matches!(case.arg(), Node::None) {
            out = format!("{out} {}", self.write_with(case.arg(), special)?);
        }
        for when in case.args() {
            let Node::CaseWhen(when) = when else { return None };
            let condition = self.write_with(when.expr(), special)?;
            out = format!("{out} WHEN {condition} THEN {}", self.write_with(when.result(), special)?);
        }
        if !matches!(case.defresult(), Node::None) {
            out = format!("{out} ELSE {}", self.write_with(case.defresult(), special)?);
        }
        Some(out + " END)")
    }

    fn write_operation<'n>(
        &self,
        e: &'n nodes::A_Expr,
        special: &mut dyn FnMut(Node<'n>) -> Option<Option<String>>,
    ) -> Option<String> {
        let left = match e.lexpr() {
            Node::None => None,
            node => Some(self.write_with(node, special)?),
        };
        let operator = operator(e.name())?;
        if let Node::NodeList(list) = e.rexpr() {
            let right = self.write_list(list, special)?;
            let (left, bare) = (left?, operator.trim());
            return match e.kind {
                A_Expr_Kind::AEXPR_IN => {
                    let not = if bare == "<>" { " NOT" } else { "" };
                    Some(format!("({left}{not} IN ({}))", right.join(", ")))
                }
                A_Expr_Kind::AEXPR_BETWEEN => Some(format!("({left} BETWEEN {})", right.join(" AND "))),
                A_Expr_Kind::AEXPR_NOT_BETWEEN => {
                    Some(format!("({left} NOT BETWEEN {})", right.join(" AND ")))
                }
                _ => None,
            };
        }
        let right = self.write_with(e.rexpr(), special)?;
        match (e.kind, left) {
            (A_Expr_Kind::AEXPR_OP | A_Expr_Kind::AEXPR_LIKE | A_Expr_Kind::AEXPR_ILIKE, Some(left)) => {
                Some(format!("({left}{operator}{right})"))
            }
            (A_Expr_Kind::AEXPR_OP, None) => Some(format!("({operator}{right})")),
            (A_Expr_Kind::AEXPR_OP_ANY, Some(left)) => Some(format!("({left}{operator}ANY ({right}))")),
            (A_Expr_Kind::AEXPR_OP_ALL, Some(left)) => Some(format!("({left}{operator}ALL ({right}))")),
            (A_Expr_Kind::AEXPR_DISTINCT, Some(left)) => Some(format!("({left} IS DISTINCT FROM {right})")),
            (A_Expr_Kind::AEXPR_NOT_DISTINCT, Some(left)) => {
                Some(format!("({left} IS NOT DISTINCT FROM {right})"))
            }
            (A_Expr_Kind::AEXPR_NULLIF, Some(left)) => Some(format!("nullif({left}, {right})")),
            _ => None,
        }
    }

    fn write_call<'n>(
        &self,
        call: &'n nodes::FuncCall,
        special: &mut dyn FnMut(Node<'n>) -> Option<Option<String>>,
    ) -> Option<String> {
        let plain = call.over().is_none()
            && call.agg_order().is_empty()
            && matches!(call.agg_filter(), Node::None)
            && !call.agg_within_group
            && !call.agg_star
            && !call.agg_distinct
            && !call.func_variadic;
        if !plain {
            return None;
        }
        let args = self.write_list(call.args(), special)?;
        Some(format!("{}({})", qualified(call.funcname())?, args.join(", ")))
    }

    /// May it be an aggregate, whoever made it?
    pub(super) fn is_aggregate(&self, call: &nodes::FuncCall) -> bool {
        let (_, functions, _) = self.functions(call);
        functions.is_empty() || functions.iter().any(|f| f.aggregate)
    }
}

pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn qualified(list: &pg_raw_parse::list::NodeList) -> Option<String> {
    let parts: Option<Vec<String>> = list.iter().map(|part| part.as_str().map(name)).collect();
    parts.map(|parts| parts.join("."))
}

/// With a blank on both sides.
fn operator(list: &pg_raw_parse::list::NodeList) -> Option<String> {
    let parts: Option<Vec<&str>> = list.iter().map(|part| part.as_str()).collect();
    match parts?.as_slice() {
        [operator] => Some(format!(" {operator} ")),
        [schema @ .., operator] if !schema.is_empty() => {
            let schema: Vec<String> = schema.iter().map(|part| name(part)).collect();
            Some(format!(" OPERATOR({}.{operator}) ", schema.join(".")))
        }
        _ => None,
    }
}

fn type_name(of: &nodes::TypeName) -> Option<String> {
    if of.setof || of.pct_type {
        return None;
    }
    let parts: Option<Vec<String>> = of.names().iter().map(|part| part.sval().map(name)).collect();
    let mut out = parts?.join(".");
    if !of.typmods().is_empty() {
        let typmods: Option<Vec<String>> = of
            .typmods()
            .iter()
            .map(|node| match node {
                Node::A_Const(constant) => match constant.val() {
                    Some(ConstValue::Integer(n)) => Some(n.to_string()),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        out = format!("{out}({})", typmods?.join(", "));
    }
    Some(out + &"[]".repeat(of.array_bounds().len()))
}

fn write_constant(constant: &nodes::A_Const) -> Option<String> {
    if constant.isnull {
        return Some("NULL".to_owned());
    }
    match constant.val()? {
        ConstValue::Integer(n) if n < 0 => Some(format!("({n})")),
        ConstValue::Integer(n) => Some(n.to_string()),
        ConstValue::Float(text) if text.starts_with('-') => Some(format!("({text})")),
        ConstValue::Float(text) => Some(text.to_owned()),
        ConstValue::Boolean(b) => Some(if b { "TRUE" } else { "FALSE" }.to_owned()),
        ConstValue::String(text) if !text.contains(MARK) => Some(quote(text)),
        _ => None,
    }
}
