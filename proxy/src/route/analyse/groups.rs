//! Partial results of groups and aggregates.

use pg_raw_parse::{ConstValue, Node, nodes};

use super::ir::Builder;
use super::split::{Clauses, Last, SplitPlan, Why, direction, is_star};
use super::write::{Columns, MARK};

/// One row for each group of each shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// Gives the values that `roles` speak of, in order; only looked at, never run.
    pub probe: String,
    roles: Vec<Role>,
    /// What makes the answer of the rows; `MARK n MARK` is a cast that depends on the type of role n.
    query: String,
}

/// What a value is used for decides which types combine exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Equal values must print alike: any of them stands for the group.
    Key,
    Extreme,
    Sum,
    Average,
    Bits,
}

/// Types whose equal values are the same bytes, by their OIDs in src/include/catalog/pg_type.dat: bool, bytea, char, name,
/// int8, int2, int4, text, oid, varchar, date, time, timestamp, timestamptz, uuid. (Of a collation's equality PostgreSQL
/// is asked.)
const PLAIN: [u32; 15] = [16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950];
const NUMERIC: u32 = 1700;
const BPCHAR: u32 = 1042;
const INTEGERS: [u32; 3] = [20, 21, 23];

impl Role {
    fn is_exact(self, oid: u32, typmod: i32) -> bool {
        match self {
            // With a typmod all values have the same scale or length.
            Self::Key | Self::Extreme => {
                PLAIN.contains(&oid) || ((oid == NUMERIC || oid == BPCHAR) && typmod >= 0)
            }
            Self::Sum | Self::Average => INTEGERS.contains(&oid) || oid == NUMERIC,
            Self::Bits => INTEGERS.contains(&oid),
        }
    }
}

/// May rows of this type be taken for equal only when they print alike?
pub fn is_exact_key(oid: u32, typmod: i32) -> bool {
    Role::Key.is_exact(oid, typmod)
}

impl Groups {
    /// What makes the answer of the partial results in `table`, when the probe's columns have these types (OID, typmod).
    /// `None`: with these it would not be exact.
    pub fn last(&self, table: &str, types: &[(u32, i32)]) -> Option<String> {
        if types.len() != self.roles.len() {
            return None;
        }
        let mut query = self.query.replace(&format!("{MARK}table{MARK}"), table);
        for (n, (role, (oid, typmod))) in self.roles.iter().zip(types).enumerate() {
            if !role.is_exact(*oid, *typmod) {
                return None;
            }
            // sum(int4) is bigint, and so must be the sum of such sums; all others are numeric.
            let cast = if *role == Role::Sum && matches!(oid, 21 | 23) { "::pg_catalog.int8" } else { "" };
            query = query.replace(&format!("{MARK}{n}{MARK}"), cast);
        }
        Some(query)
    }
}

pub(super) struct Grouping<'b, 'a, 's> {
    builder: &'b Builder<'a>,
    select: &'s nodes::SelectStmt,
    /// Of GROUP BY, then arguments of DISTINCT aggregates, which are groups of the shards only: identity, SQL.
    keys: Vec<(String, String)>,
    /// SQL of partial results.
    partials: Vec<String>,
    probes: Vec<(String, Role)>,
}

impl<'b, 'a, 's> Grouping<'b, 'a, 's> {
    pub(super) fn new(builder: &'b Builder<'a>, select: &'s nodes::SelectStmt) -> Self {
        Self { builder, select, keys: Vec::new(), partials: Vec::new(), probes: Vec::new() }
    }

    pub(super) fn plan(mut self, clauses: &Clauses<'_>) -> Why<SplitPlan> {
        if self.select.distinct_clause().iter().any(|node| !matches!(node, Node::None)) {
            return Err("DISTINCT ON");
        }
        for node in self.select.group_clause() {
            let node = self.grouped(node)?;
            self.key(node).ok_or("an expression in GROUP BY")?;
        }
        let own = self.keys.len();
        let mut targets = Vec::new();
        for target in self.select.target_list().iter() {
            targets.push(
                self.last(target.val()).ok_or("an output that is not made of groups and exact aggregates")?,
            );
        }
        let mut query = String::from("SELECT ");
        if !self.select.distinct_clause().is_empty() {
            query += "DISTINCT ";
        }
        query += &format!("{} FROM {MARK}table{MARK}", targets.join(", "));
        if own > 0 {
            let groups: Vec<String> = (1..=own).map(|n| format!("g{n}")).collect();
            query += &format!(" GROUP BY {}", groups.join(", "));
        }
        if !matches!(self.select.having_clause(), Node::None) {
            let having = self.last(self.select.having_clause()).ok_or("an expression in HAVING")?;
            query += &format!(" HAVING {having}");
        }
        let mut sorts = Vec::new();
        for sort in self.select.sort_clause().iter() {
            let item = match self.builder.sorted_output(self.select, sort.node())? {
                Some(n) => n.to_string(),
                None => self.last(sort.node()).ok_or("an expression in ORDER BY")?,
            };
            sorts.push(format!("{item}{}", direction(sort)?));
        }
        if !sorts.is_empty() {
            query += &format!(" ORDER BY {}", sorts.join(", "));
        }
        query += &self.builder.limit(self.select)?.whole();
        if self.keys.is_empty() && self.partials.is_empty() {
            return Err("neither groups nor aggregates");
        }

        let rows = clauses.text(clauses.from..clauses.after_where)?;
        let with = clauses.text(clauses.start..clauses.select)?;
        let mut columns: Vec<String> =
            self.keys.iter().enumerate().map(|(n, (_, sql))| format!("{sql} AS g{}", n + 1)).collect();
        columns.extend(self.partials.iter().enumerate().map(|(n, sql)| format!("{sql} AS p{}", n + 1)));
        // The text may end in a comment.
        let mut shard = format!("{with}SELECT {} {rows}\n", columns.join(", "));
        if !self.keys.is_empty() {
            let groups: Vec<String> = (1..=self.keys.len()).map(|n| n.to_string()).collect();
            shard += &format!("GROUP BY {}", groups.join(", "));
        }
        for (_, sql) in &self.keys {
            self.probes.push((sql.clone(), Role::Key));
        }
        let probed: Vec<&str> = self.probes.iter().map(|(sql, _)| sql.as_str()).collect();
        let probe = format!("{with}SELECT {} {rows}\n", probed.join(", "));
        let roles = self.probes.iter().map(|(_, role)| *role).collect();
        Ok(SplitPlan { shard, last: Last::Groups(Groups { probe, roles, query }) })
    }

    /// What an item of GROUP BY means: names of input columns come before those of outputs.
    fn grouped<'n>(&self, node: Node<'n>) -> Why<Node<'n>>
    where
        's: 'n,
    {
        let output = match node {
            Node::GroupingSet(_) => return Err("grouping sets"),
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::Integer(n)) => usize::try_from(n).ok(),
                _ => return Err("a constant in GROUP BY"),
            },
            Node::ColumnRef(reference) if reference.fields().len() == 1 => {
                if self.builder.column(reference).is_some() {
                    None
                } else {
                    // It may be a column of a relation whose columns are not all known.
                    let unknown =
                        self.builder.levels.last().is_none_or(|level| level.iter().any(|item| item.open));
                    let name = reference.fields().iter().next().and_then(Node::as_str);
                    let (false, Some(name)) = (unknown, name) else {
                        return Err("an unknown name in GROUP BY");
                    };
                    Some(self.builder.named_output(self.select, name)?.ok_or("an unknown name in GROUP BY")?)
                }
            }
            _ => None,
        };
        let Some(output) = output else { return Ok(node) };
        let star = self.select.target_list().iter().any(|target| is_star(target.val()));
        let target = output.checked_sub(1).and_then(|at| self.select.target_list().iter().nth(at));
        match target.filter(|_| !star).map(nodes::ResTarget::val) {
            None | Some(Node::A_Const(_)) => Err("an output of that position in GROUP BY"),
            Some(node) => Ok(node),
        }
    }

    /// The number (from 1) of a group's column.
    fn key(&mut self, node: Node<'_>) -> Option<usize> {
        let identity = self.builder.write(node, Columns::Identity)?;
        if let Some(at) = self.keys.iter().position(|(known, _)| *known == identity) {
            return Some(at + 1);
        }
        let sql = self.builder.write(node, Columns::Named)?;
        self.keys.push((identity, sql));
        Some(self.keys.len())
    }

    /// An expression over groups and aggregates, in terms of the shards' rows.
    fn last(&mut self, node: Node<'_>) -> Option<String> {
        let builder = self.builder;
        builder.write_with(node, &mut |leaf| {
            if matches!(leaf, Node::A_Const(_) | Node::ParamRef(_)) {
                return None;
            }
            if let Some(identity) = builder.write(leaf, Columns::Identity)
                && let Some(at) = self.keys.iter().position(|(known, _)| *known == identity)
            {
                return Some(Some(format!("g{}", at + 1)));
            }
            match leaf {
                Node::FuncCall(call) if builder.is_aggregate(call) => Some(self.aggregate(call)),
                // Also one that is known by its primary key: that is gathered.
                Node::ColumnRef(_) => Some(None),
                _ => None,
            }
        })
    }

    fn aggregate(&mut self, call: &nodes::FuncCall) -> Option<String> {
        let name = self.builtin(call)?;
        if call.over().is_some()
            || call.agg_within_group
            || call.func_variadic
            || !call.agg_order().is_empty()
        {
            return None;
        }
        let filter = match call.agg_filter() {
            Node::None => String::new(),
            node => format!(" FILTER (WHERE {})", self.builder.write(node, Columns::Named)?),
        };
        if call.agg_star {
            let count = self.partial(format!("pg_catalog.count(*){filter}"));
            return (name == "count").then(|| counted(count));
        }
        let mut arguments = call.args().iter();
        let (Some(argument), None) = (arguments.next(), arguments.next()) else { return None };
        if call.agg_distinct {
            let distinct = matches!(name, "count" | "sum" | "avg" | "min" | "max");
            let key =
                Some(argument).filter(|_| distinct && filter.is_empty()).and_then(|node| self.key(node))?;
            return Some(format!("pg_catalog.{name}(DISTINCT g{key})"));
        }
        let sql = self.builder.write(argument, Columns::Named)?;
        let partial = format!("pg_catalog.{name}({sql}){filter}");
        match name {
            "count" => Some(counted(self.partial(partial))),
            "sum" => {
                let (n, role) = (self.partial(partial), self.probe(sql, Role::Sum));
                Some(format!("(pg_catalog.sum(p{n}){MARK}{role}{MARK})"))
            }
            // As int8_avg and numeric_avg divide (src/backend/utils/adt/numeric.c).
            "avg" => {
                let count = self.partial(format!("pg_catalog.count({sql}){filter}"));
                let sum = self.partial(format!("pg_catalog.sum({sql}){filter}"));
                self.probe(sql, Role::Average);
                Some(format!("(pg_catalog.sum(p{sum})::pg_catalog.numeric / pg_catalog.sum(p{count}))"))
            }
            "min" | "max" => {
                let n = self.partial(partial);
                self.probe(sql, Role::Extreme);
                Some(format!("pg_catalog.{name}(p{n})"))
            }
            "bit_and" | "bit_or" | "bit_xor" => {
                let n = self.partial(partial);
                self.probe(sql, Role::Bits);
                Some(format!("pg_catalog.{name}(p{n})"))
            }
            "bool_and" | "bool_or" | "every" => {
                Some(format!("pg_catalog.{name}(p{})", self.partial(partial)))
            }
            _ => None,
        }
    }

    /// PostgreSQL's own aggregate of this name, and no other that is in sight.
    fn builtin<'c>(&self, call: &'c nodes::FuncCall) -> Option<&'c str> {
        let parts: Vec<&str> = call.funcname().iter().filter_map(Node::as_str).collect();
        match parts.as_slice() {
            ["pg_catalog", name] => Some(name),
            [name] => {
                let context = self.builder.context;
                let mut schemas = context.search_path.schemas().filter(|schema| *schema != "pg_catalog");
                let hidden = schemas.any(|schema| {
                    context.catalog.functions.contains_key(&(schema.to_owned(), (*name).to_owned()))
                });
                (!hidden).then_some(*name)
            }
            _ => None,
        }
    }

    fn partial(&mut self, sql: String) -> usize {
        let at = self.partials.iter().position(|known| *known == sql).unwrap_or_else(|| {
            self.partials.push(sql);
            self.partials.len() - 1
        });
        at + 1
    }

    fn probe(&mut self, sql: String, role: Role) -> usize {
        self.probes.iter().position(|known| known.0 == sql && known.1 == role).unwrap_or_else(|| {
            self.probes.push((sql, role));
            self.probes.len() - 1
        })
    }
}

/// Over no rows at all it is 0, not NULL.
fn counted(partial: usize) -> String {
    format!("(coalesce(pg_catalog.sum(p{partial}), 0)::pg_catalog.int8)")
}
