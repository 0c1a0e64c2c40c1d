//! INSERT, UPDATE and DELETE, whose effect does not depend on the order in which rows are met.

use super::grammar::Type::{Int, Numeric, Text};
use super::grammar::{Grammar, Relation, SHARDED};
use super::query::{Condition, Generated, Item, Output, Query, Source};
use crate::catalog::key;

impl Grammar<'_> {
    fn target(&mut self) -> (&'static str, Vec<Relation>) {
        let (name, columns) = [SHARDED[4], SHARDED[1], SHARDED[2]][self.random.below(3)];
        let columns = columns.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
        (name, vec![Relation { alias: "t".to_owned(), columns }])
    }

    fn write_conditions(&mut self, local: &[Relation]) -> Vec<Condition> {
        let mut conditions: Vec<Condition> =
            (0..self.random.below(3)).map(|_| self.condition(local, local, 1)).collect();
        if let Some(tenant) = self.tenant {
            conditions.push(Condition::Plain(format!("t.tenant_id = '{}'", key(tenant))));
        }
        conditions
    }

    /// Joined on the key, to a table of which at most one row fits each.
    fn joined(&mut self, local: &[Relation], conditions: &mut Vec<Condition>) -> Option<Item> {
        if !self.random.percent(25) {
            return None;
        }
        let number = self.column(Int, local)?;
        let (name, on) = match self.random.below(3) {
            0 => ("customers", format!("j.tenant_id = t.tenant_id AND j.id = {number}")),
            1 => ("orders", format!("j.tenant_id = t.tenant_id AND j.id = {number}")),
            _ => ("products", format!("j.id = {number}")),
        };
        conditions.push(Condition::Plain(on));
        let source = Source::Table(name.to_owned());
        Some(Item { join: "", source, alias: "j".to_owned(), columns: Vec::new(), on: Vec::new() })
    }

    pub(super) fn update(mut self) -> Generated {
        let (table, local) = self.target();
        let mut conditions = self.write_conditions(&local);
        let sets = match table {
            "filled" => {
                vec![format!("b = {}", self.expression(Text, &local, 2)), "a = t.a + 5000".to_owned()]
            }
            "orders" => vec![
                format!("note = {}", self.expression(Text, &local, 2)),
                format!("total = {}", self.column(Numeric, &local).unwrap_or_else(|| "1.5".to_owned())),
            ],
            _ => vec!["quantity = t.quantity + 1".to_owned(), "price = t.price * 2".to_owned()],
        };
        let from = self.joined(&local, &mut conditions);
        let returning = self.random.percent(40);
        Generated::Update { table, sets, from, conditions, returning }
    }

    pub(super) fn delete(mut self) -> Generated {
        let (table, local) = self.target();
        let mut conditions = self.write_conditions(&local);
        let using = self.joined(&local, &mut conditions);
        Generated::Delete { table, using, conditions, returning: self.random.percent(40) }
    }

    pub(super) fn insert(mut self) -> Generated {
        let conflict =
            ["", "", " ON CONFLICT DO NOTHING", " ON CONFLICT (tenant_id, id) DO UPDATE SET b = 'again'"]
                [self.random.below(4)];
        let rows = if self.random.percent(60) {
            let first = self.random.below(9);
            let rows: Vec<String> = (0..1 + self.random.below(6))
                .map(|n| {
                    let tenant = self.tenant.unwrap_or(1 + self.random.below(16));
                    format!("('{}', {}, {}, {})", key(tenant), first + n + 1, 10_000 + n, self.constant(Text))
                })
                .collect();
            Source::Table(format!("VALUES {}", rows.join(", ")))
        } else {
            let mut query = Query::default();
            let outputs = ["s.tenant_id", "s.id + 700", "s.id + 20000", "'selected'"];
            query.outputs = outputs.iter().map(|text| Output::Plain((*text).to_owned())).collect();
            let source = Source::Table("customers".to_owned());
            query.from.push(Item {
                join: "",
                source,
                alias: "s".to_owned(),
                columns: Vec::new(),
                on: Vec::new(),
            });
            let columns = SHARDED[0].1.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
            let local = [Relation { alias: "s".to_owned(), columns }];
            for _ in 0..self.random.below(2) {
                query.conditions.push(self.condition(&local, &local, 1));
            }
            Source::Query(Box::new(query))
        };
        let (table, columns) = ("filled", "(tenant_id, id, a, b)");
        Generated::Insert { table, columns, rows, returning: self.random.percent(40), conflict }
    }
}
