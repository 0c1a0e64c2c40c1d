//! Makes random statements that PostgreSQL defines: what is cut by LIMIT is ordered by all of its columns, windows have
//! frames of whole peer groups, and nothing that is evaluated can fail.

use super::query::{Condition, Generated, Item, Output, Query, Source};
use crate::catalog::key;
use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Int,
    Numeric,
    Text,
    Uuid,
    Bool,
    Time,
}

use Type::{Bool, Int, Numeric, Text, Time, Uuid};

pub(super) type Columns = &'static [(&'static str, Type)];

pub(super) const SHARDED: [(&str, Columns); 7] = [
    (
        "customers",
        &[
            ("tenant_id", Uuid),
            ("id", Int),
            ("name", Text),
            ("code", Text),
            ("balance", Numeric),
            ("active", Bool),
            ("created", Time),
        ],
    ),
    (
        "orders",
        &[
            ("tenant_id", Uuid),
            ("id", Int),
            ("customer_id", Int),
            ("status", Text),
            ("total", Numeric),
            ("note", Text),
        ],
    ),
    (
        "items",
        &[
            ("tenant_id", Uuid),
            ("order_id", Int),
            ("line", Int),
            ("product_id", Int),
            ("quantity", Int),
            ("price", Numeric),
        ],
    ),
    ("events", &[("tenant_id", Uuid), ("at", Time), ("kind", Text), ("seq", Int)]),
    ("filled", &[("tenant_id", Uuid), ("id", Int), ("a", Int), ("b", Text), ("c", Int)]),
    ("big_orders", &[("tenant_id", Uuid), ("id", Int), ("status", Text), ("total", Numeric)]),
    (
        "order_totals",
        &[("tenant_id", Uuid), ("id", Int), ("status", Text), ("amount", Numeric), ("lines", Int)],
    ),
];
const OTHERS: [(&str, Columns); 4] = [
    ("countries", &[("name", Text), ("region", Text), ("tax", Numeric)]),
    ("products", &[("id", Int), ("name", Text), ("category", Text), ("price", Numeric)]),
    ("numbers", &[("n", Int), ("word", Text)]),
    ("settings", &[("key", Text), ("value", Text), ("n", Int)]),
];
const TYPES: [Type; 6] = [Int, Numeric, Text, Uuid, Bool, Time];
pub(super) const COMPARISONS: [&str; 6] = ["=", "<>", "<", ">", "<=", ">="];

/// What is in sight under a name.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) alias: String,
    pub(super) columns: Vec<(String, Type)>,
}

pub(crate) struct Grammar<'r> {
    pub(super) random: &'r mut Random,
    names: usize,
    /// Every table is bound to this tenant.
    pub(super) tenant: Option<usize>,
    ctes: Vec<Relation>,
}

impl<'r> Grammar<'r> {
    pub(crate) fn new(random: &'r mut Random) -> Grammar<'r> {
        let tenant = random.percent(22).then(|| 1 + random.below(9));
        Grammar { random, names: 0, tenant, ctes: Vec::new() }
    }

    pub(crate) fn statement(mut self) -> Generated {
        match self.random.below(100) {
            0..84 => {
                let depth = 1 + self.random.below(2);
                Generated::Read(self.top(depth))
            }
            84..91 => self.update(),
            91..95 => self.delete(),
            _ => self.insert(),
        }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn types(&mut self) -> Vec<Type> {
        (0..1 + self.random.below(3)).map(|_| TYPES[self.random.below(TYPES.len())]).collect()
    }

    fn top(&mut self, depth: usize) -> Query {
        let mut ctes = Vec::new();
        if self.random.percent(18) {
            for _ in 0..1 + self.random.below(2) {
                let types = self.types();
                let query = self.query(&types, depth.saturating_sub(1), &[]);
                let alias = self.name("w");
                let names: Vec<String> = (1..=types.len()).map(|n| format!("c{n}")).collect();
                let columns = names.iter().cloned().zip(types).collect();
                ctes.push((alias.clone(), names, query));
                self.ctes.push(Relation { alias, columns });
            }
        }
        let types = self.types();
        let mut query = self.query(&types, depth, &[]);
        query.ctes = ctes;
        query
    }

    fn query(&mut self, types: &[Type], depth: usize, outer: &[Relation]) -> Query {
        let mut query = self.block(types, depth, outer);
        if depth > 0 && self.random.percent(12) {
            let operators = ["UNION", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL", "INTERSECT ALL"];
            let operator = operators[self.random.below(operators.len())];
            query.set = Some((operator, Box::new(self.block(types, depth - 1, outer))));
        }
        query.ordered = self.random.percent(35);
        if query.ordered && self.random.percent(50) {
            query.limit = Some(self.random.below(12));
            query.offset = self.random.percent(30).then(|| self.random.below(5));
        }
        query
    }

    fn block(&mut self, types: &[Type], depth: usize, outer: &[Relation]) -> Query {
        let mut query = Query::default();
        let mut local: Vec<Relation> = Vec::new();
        // Deep inside one table is enough: what is evaluated for each row of the outer queries must be little.
        let count = if outer.is_empty() {
            [1, 1, 1, 2, 2, 2, 3][self.random.below(7)]
        } else {
            [1, 1, 1, 1, 2][self.random.below(5)]
        };
        for n in 0..count {
            let (mut item, relation) = self.item(depth, outer, &local, n);
            if n > 0 && item.join != "CROSS JOIN" {
                item.on = self.join_conditions(&local, &relation, depth, outer);
            }
            query.from.push(item);
            local.push(relation);
        }
        let sight: Vec<Relation> = local.iter().chain(outer).cloned().collect();
        if let Some(tenant) = self.tenant {
            for relation in &local {
                if relation.columns.iter().any(|(name, _)| name == "tenant_id") {
                    query.conditions.push(Condition::Plain(format!(
                        "{}.tenant_id = '{}'",
                        relation.alias,
                        key(tenant)
                    )));
                }
            }
        }
        for _ in 0..self.random.below(3) {
            query.conditions.push(self.condition(&local, &sight, depth));
        }
        match self.random.below(100) {
            0..28 => self.grouped(&mut query, types, &local, depth),
            28..38 => {
                query.outputs = types.iter().map(|t| Output::Plain(self.aggregate(*t, &local))).collect()
            }
            _ => {
                query.distinct = self.random.percent(14);
                query.outputs = types.iter().map(|t| self.output(*t, &local, &sight, depth)).collect();
            }
        }
        query
    }

    fn grouped(&mut self, query: &mut Query, types: &[Type], local: &[Relation], depth: usize) {
        for kind in types {
            if self.random.percent(55) {
                let group = self.column(*kind, local).unwrap_or_else(|| self.constant(*kind));
                // A constant in GROUP BY is a column's number.
                if group.contains('.') && !group.starts_with(['\'', '(']) {
                    query.groups.push(group.clone());
                }
                query.outputs.push(Output::Plain(group));
            } else {
                let aggregate = self.aggregate(*kind, local);
                query.outputs.push(Output::Plain(aggregate));
            }
        }
        if query.groups.is_empty() {
            let group = self.column(Uuid, local).or_else(|| self.column(Text, local));
            query.groups.extend(group);
        }
        if self.random.percent(30) {
            let (kind, op) = ([Int, Numeric][self.random.below(2)], self.random.below(COMPARISONS.len()));
            let (aggregate, constant) = (self.aggregate(kind, local), self.constant(kind));
            query.having.push(Condition::Plain(format!("{aggregate} {} {constant}", COMPARISONS[op])));
        }
        let _ = depth;
    }

    fn item(&mut self, depth: usize, outer: &[Relation], local: &[Relation], n: usize) -> (Item, Relation) {
        let joins =
            ["JOIN", "JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"];
        let mut join = if n == 0 { "" } else { joins[self.random.below(joins.len())] };
        let alias = self.name("a");
        let choice = self.random.below(100);
        let (source, columns, names) = if choice < 12 && depth > 0 {
            let types = self.types();
            let lateral = n > 0 && self.random.percent(35);
            let sight: Vec<Relation> =
                if lateral { local.iter().chain(outer).cloned().collect() } else { outer.to_vec() };
            let query = Box::new(self.query(&types, depth - 1, &sight));
            let names: Vec<String> = (1..=types.len()).map(|n| format!("c{n}")).collect();
            let columns = names.iter().cloned().zip(types).collect();
            if lateral && matches!(join, "RIGHT JOIN" | "FULL JOIN") {
                join = "LEFT JOIN";
            }
            (if lateral { Source::Lateral(query) } else { Source::Query(query) }, columns, names)
        } else if choice < 20 && !self.ctes.is_empty() {
            let cte = self.ctes[self.random.below(self.ctes.len())].clone();
            (Source::Table(cte.alias), cte.columns, Vec::new())
        } else {
            let (name, columns) = if self.random.percent(80) {
                SHARDED[self.random.below(SHARDED.len())]
            } else {
                OTHERS[self.random.below(OTHERS.len())]
            };
            let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
            (Source::Table(name.to_owned()), columns, Vec::new())
        };
        // Three tables side by side are a lot of rows; and an outer join of everything needs a condition it can hash.
        if join == "CROSS JOIN" && (n > 1 || !outer.is_empty() || self.random.percent(70)) {
            join = "JOIN";
        }
        let item = Item { join, source, alias: alias.clone(), columns: names, on: Vec::new() };
        (item, Relation { alias, columns })
    }

    /// FULL JOIN needs equalities that can be hashed or merged; others get more.
    fn join_conditions(
        &mut self,
        local: &[Relation],
        new: &Relation,
        depth: usize,
        outer: &[Relation],
    ) -> Vec<Condition> {
        let mut conditions = Vec::new();
        let other = local[self.random.below(local.len())].clone();
        let key = |relation: &Relation| relation.columns.iter().any(|(name, _)| name == "tenant_id");
        if key(&other) && key(new) && self.random.percent(75) {
            conditions.push(Condition::Plain(format!("{}.tenant_id = {}.tenant_id", other.alias, new.alias)));
        }
        let both: Vec<(String, String)> = other
            .columns
            .iter()
            .flat_map(|(a, of)| {
                new.columns.iter().filter(move |(_, t)| t == of).map(move |(b, _)| (a.clone(), b.clone()))
            })
            .filter(|(a, b)| a != "tenant_id" && b != "tenant_id")
            .collect();
        if !both.is_empty() && (conditions.is_empty() || self.random.percent(70)) {
            let (a, b) = &both[self.random.below(both.len())];
            conditions.push(Condition::Plain(format!("{}.{a} = {}.{b}", other.alias, new.alias)));
        }
        if conditions.is_empty() {
            // Nothing fits: few rows of one side, or there would be far too many.
            let few =
                self.column(Int, &[new.clone()]).map_or("1 = 2".to_owned(), |column| format!("{column} = 1"));
            let full = if self.random.percent(50) { few } else { "1 = 2".to_owned() };
            conditions.push(Condition::Plain(full));
        }
        if self.random.percent(15) && depth > 0 {
            let sight: Vec<Relation> = local.iter().chain([new]).cloned().collect();
            let _ = outer;
            conditions.push(Condition::Plain(self.simple(&sight)));
        }
        conditions
    }

    pub(super) fn simple(&mut self, sight: &[Relation]) -> String {
        let kind = [Int, Numeric, Text, Int, Time, Bool][self.random.below(6)];
        let a = self.expression(kind, sight, 1);
        let op = COMPARISONS[self.random.below(COMPARISONS.len())];
        let b = if self.random.percent(60) { self.constant(kind) } else { self.expression(kind, sight, 0) };
        format!("{a} {op} {b}")
    }

    pub(super) fn condition(&mut self, local: &[Relation], sight: &[Relation], depth: usize) -> Condition {
        let with_queries = if depth > 0 { 100 } else { 74 };
        match self.random.below(with_queries) {
            0..30 => Condition::Plain(self.simple(sight)),
            30..38 => {
                let kind = TYPES[self.random.below(TYPES.len())];
                let column = self.column(kind, sight).unwrap_or_else(|| "1".to_owned());
                Condition::Plain(format!("{column} IS {}NULL", ["", "NOT "][self.random.below(2)]))
            }
            38..48 => {
                let Some(column) = self.column(Uuid, local) else {
                    return Condition::Plain(self.simple(sight));
                };
                let keys: Vec<String> = (0..1 + self.random.below(4)).map(|_| self.constant(Uuid)).collect();
                Condition::Plain(format!("{column} IN ({})", keys.join(", ")))
            }
            48..54 => {
                let Some(column) = self.column(Uuid, local) else {
                    return Condition::Plain(self.simple(sight));
                };
                Condition::Plain(format!(
                    "{column} {} {}",
                    COMPARISONS[self.random.below(6)],
                    self.constant(Uuid)
                ))
            }
            54..60 => {
                let column = self.column(Int, sight).unwrap_or_else(|| "1".to_owned());
                Condition::Plain(format!(
                    "{column} BETWEEN {} AND {}",
                    self.random.below(4),
                    3 + self.random.below(9)
                ))
            }
            60..68 => Condition::Either(vec![
                self.condition(local, sight, depth.saturating_sub(1)),
                self.condition(local, sight, depth.saturating_sub(1)),
            ]),
            68..74 => Condition::Not(Box::new(self.condition(local, sight, depth.saturating_sub(1)))),
            74..84 => {
                let mut query = self.query(&[Int], depth - 1, sight);
                self.correlate(&mut query, local);
                let not = if self.random.percent(30) { "NOT EXISTS" } else { "EXISTS" };
                Condition::Query(not.to_owned(), Box::new(query))
            }
            84..94 => {
                let kind = [Int, Uuid, Text][self.random.below(3)];
                let value = self.column(kind, local).unwrap_or_else(|| self.constant(kind));
                let mut query = self.query(&[kind], depth - 1, sight);
                self.correlate(&mut query, local);
                let operator = ["IN", "NOT IN", "= ANY", "< ANY", ">= ALL"][self.random.below(5)];
                Condition::Query(format!("{value} {operator}"), Box::new(query))
            }
            _ => {
                let value = self.expression(Int, local, 0);
                let query = self.scalar(Int, depth - 1, local);
                let operator = COMPARISONS[self.random.below(6)];
                Condition::Query(format!("{value} {operator}"), Box::new(query))
            }
        }
    }

    /// Half of the subqueries are about the outer row's key.
    fn correlate(&mut self, query: &mut Query, outer: &[Relation]) {
        let Some(inner) = query.from.first() else { return };
        let Source::Table(name) = &inner.source else { return };
        let sharded = SHARDED.iter().any(|(table, _)| table == name);
        let of = outer.iter().find(|relation| relation.columns.iter().any(|(name, _)| name == "tenant_id"));
        if let (true, Some(of)) = (sharded && self.random.percent(55), of) {
            query
                .conditions
                .push(Condition::Plain(format!("{}.tenant_id = {}.tenant_id", inner.alias, of.alias)));
        }
    }

    /// One row at most: an aggregate without groups.
    fn scalar(&mut self, kind: Type, depth: usize, outer: &[Relation]) -> Query {
        let mut query = self.block(&[kind], depth, outer);
        let own: Vec<Relation> = Vec::new();
        query.groups.clear();
        query.having.clear();
        query.distinct = false;
        let inner: Vec<Relation> = query
            .from
            .iter()
            .filter_map(|item| {
                let Source::Table(name) = &item.source else { return None };
                let (_, columns) = SHARDED.iter().chain(&OTHERS).find(|(table, _)| table == name)?;
                let columns = columns.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
                Some(Relation { alias: item.alias.clone(), columns })
            })
            .collect();
        let of = if inner.is_empty() { &own } else { &inner };
        query.outputs = vec![Output::Plain(self.aggregate(kind, of))];
        self.correlate(&mut query, outer);
        query
    }

    fn output(&mut self, kind: Type, local: &[Relation], sight: &[Relation], depth: usize) -> Output {
        match self.random.below(100) {
            0..8 if depth > 0 => Output::Query(Box::new(self.scalar(kind, depth - 1, local))),
            8..20 => {
                let part = TYPES[self.random.below(TYPES.len())];
                let partition =
                    self.column(part, local).map(|c| format!("PARTITION BY {c} ")).unwrap_or_default();
                let order = self.column(Int, local).or_else(|| self.column(Text, local));
                let order = order.map(|c| format!("ORDER BY {c}")).unwrap_or_default();
                let call = match kind {
                    Int if self.random.percent(50) => {
                        ["rank()", "dense_rank()"][self.random.below(2)].to_owned()
                    }
                    // Distinct and ordered aggregates are not allowed in windows.
                    Int | Text | Bool => {
                        let column = self.column(Int, local).unwrap_or_else(|| "1".to_owned());
                        match kind {
                            Int => format!("count({column})"),
                            Text => format!("max({column}::text)"),
                            _ => format!("bool_and({column} > 2)"),
                        }
                    }
                    Numeric => {
                        let column = self.column(Numeric, local).unwrap_or_else(|| "1.5".to_owned());
                        format!("{}({column})", ["sum", "avg", "min"][self.random.below(3)])
                    }
                    _ => return Output::Plain(self.expression(kind, sight, 1)),
                };
                Output::Plain(format!("{call} OVER ({partition}{order})"))
            }
            _ => Output::Plain(self.expression(kind, sight, 2)),
        }
    }
}
