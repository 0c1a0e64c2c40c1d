//! Expressions, aggregates and constants of a type, over what is in sight.

use super::grammar::Type::{Bool, Int, Numeric, Text, Time, Uuid};
use super::grammar::{Grammar, Relation, Type};
use crate::catalog::key;

impl Grammar<'_> {
    pub(super) fn aggregate(&mut self, kind: Type, local: &[Relation]) -> String {
        let of = |this: &mut Self, kind| this.column(kind, local).unwrap_or_else(|| this.constant(kind));
        let filter = if self.random.percent(12) {
            format!(" FILTER (WHERE {})", self.simple(local))
        } else {
            String::new()
        };
        let call = match kind {
            Int => match self.random.below(6) {
                0 | 1 => "count(*)".to_owned(),
                2 => {
                    let kind = [Text, Uuid, Int][self.random.below(3)];
                    format!("count(DISTINCT {})", of(self, kind))
                }
                3 => format!("sum({})", of(self, Int)),
                4 => format!("max({})", of(self, Int)),
                _ => format!("count({})", of(self, Text)),
            },
            Numeric => {
                let name = ["sum", "avg", "min", "max", "sum", "stddev"][self.random.below(6)];
                format!("{name}({})", of(self, Numeric))
            }
            Text => match self.random.below(4) {
                0 => {
                    let column = of(self, Text);
                    format!("string_agg({column}, ',' ORDER BY {column})")
                }
                1 => format!("min({})", of(self, Text)),
                2 => {
                    let column = of(self, Int);
                    format!("array_agg({column} ORDER BY {column})::text")
                }
                _ => format!("max({})", of(self, Text)),
            },
            Uuid => format!("max({}::text)::uuid", of(self, Uuid)),
            Bool => format!("{}({})", ["bool_and", "bool_or", "every"][self.random.below(3)], of(self, Bool)),
            Time => format!("{}({})", ["min", "max"][self.random.below(2)], of(self, Time)),
        };
        // FILTER belongs to the call, not to the cast behind it.
        match call.split_once("::") {
            Some((call, cast)) if call.ends_with(')') => format!("{call}{filter}::{cast}"),
            Some(_) => call,
            None => format!("{call}{filter}"),
        }
    }

    pub(super) fn column(&mut self, kind: Type, sight: &[Relation]) -> Option<String> {
        let all: Vec<String> = sight
            .iter()
            .flat_map(|relation| {
                let fitting = relation.columns.iter().filter(|(_, t)| *t == kind);
                fitting.map(|(name, _)| format!("{}.{name}", relation.alias))
            })
            .collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())].clone())
    }

    pub(super) fn constant(&mut self, kind: Type) -> String {
        match kind {
            Int => self.random.below(12).to_string(),
            Numeric => format!("{}.5", self.random.below(200)),
            Text => {
                ["'new'", "'paid'", "'Bob'", "'x'", "'click'", "'m'"][self.random.below(6)].to_owned()
                    + "::text"
            }
            Uuid => format!("'{}'::uuid", key(1 + self.random.below(16))),
            Bool => ["true", "false"][self.random.below(2)].to_owned(),
            Time => format!("'202{}-06-01 00:00+00'::timestamptz", 4 + self.random.below(3)),
        }
    }

    pub(super) fn expression(&mut self, kind: Type, sight: &[Relation], depth: usize) -> String {
        let column = self.column(kind, sight).unwrap_or_else(|| self.constant(kind));
        if depth == 0 || self.random.percent(60) {
            return column;
        }
        match kind {
            Int => match self.random.below(4) {
                0 => format!("({column} + {})", self.expression(Int, sight, depth - 1)),
                1 => format!("({column} % 3)"),
                2 => format!("length({})", self.expression(Text, sight, depth - 1)),
                _ => format!("coalesce({column}, -1)"),
            },
            Numeric => match self.random.below(3) {
                0 => format!("({column} * 2)"),
                // With the scale of all columns: of equal numbers with other scales INTERSECT may give either, by its plan.
                1 => format!("(round({column}, 1) + 0.00)"),
                _ => format!("({column} - {})", self.expression(Int, sight, depth - 1)),
            },
            Text => match self.random.below(4) {
                0 => format!("upper({column})"),
                1 => format!("({column} || '-' || {})", self.expression(Int, sight, depth - 1)),
                2 => format!("coalesce({column}, 'none')"),
                _ => format!("CASE WHEN {} THEN {column} ELSE 'other' END", self.simple(sight)),
            },
            Bool => match self.random.below(2) {
                0 => format!("({} IS NULL)", self.expression(Text, sight, depth - 1)),
                _ => format!("({})", self.simple(sight)),
            },
            Time => format!("date_trunc('month', {column})"),
            Uuid => column,
        }
    }
}
