//! What a generated statement is made of, how it is written, and how it becomes smaller.

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Table(String),
    Query(Box<Query>),
    Lateral(Box<Query>),
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Empty for the first one.
    pub join: &'static str,
    pub source: Source,
    pub alias: String,
    /// Names of its columns, of queries.
    pub columns: Vec<String>,
    pub on: Vec<Condition>,
}

#[derive(Clone, Debug)]
pub(crate) enum Condition {
    Plain(String),
    /// `before (query) after`.
    Query(String, Box<Query>),
    Either(Vec<Condition>),
    Not(Box<Condition>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub ctes: Vec<(String, Vec<String>, Query)>,
    pub distinct: bool,
    pub outputs: Vec<Output>,
    pub from: Vec<Item>,
    pub conditions: Vec<Condition>,
    pub groups: Vec<String>,
    pub having: Vec<Condition>,
    pub set: Option<(&'static str, Box<Query>)>,
    /// By all columns, so that equal ones only are left in any order.
    pub ordered: bool,
    pub limit: Option<usize>,
    pub offset: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) enum Output {
    Plain(String),
    Query(Box<Query>),
}

#[derive(Clone, Debug)]
pub(crate) enum Generated {
    Read(Query),
    Insert {
        table: &'static str,
        columns: &'static str,
        rows: Source,
        returning: bool,
        conflict: &'static str,
    },
    Update {
        table: &'static str,
        sets: Vec<String>,
        from: Option<Item>,
        conditions: Vec<Condition>,
        returning: bool,
    },
    Delete {
        table: &'static str,
        using: Option<Item>,
        conditions: Vec<Condition>,
        returning: bool,
    },
}

impl Source {
    fn sql(&self) -> String {
        match self {
            Source::Table(name) => name.clone(),
            Source::Query(query) => format!("({})", query.sql()),
            Source::Lateral(query) => format!("LATERAL ({})", query.sql()),
        }
    }

    fn smaller(&self) -> Vec<Source> {
        match self {
            Source::Table(_) => Vec::new(),
            Source::Query(query) => query.smaller().into_iter().map(|q| Source::Query(Box::new(q))).collect(),
            Source::Lateral(query) => {
                let mut all = vec![Source::Query(query.clone())];
                all.extend(query.smaller().into_iter().map(|q| Source::Lateral(Box::new(q))));
                all
            }
        }
    }
}

impl Item {
    fn sql(&self) -> String {
        let columns =
            if self.columns.is_empty() { String::new() } else { format!("({})", self.columns.join(", ")) };
        let on = match self.join {
            "" | "CROSS JOIN" => String::new(),
            _ if self.on.is_empty() => " ON true".to_owned(),
            _ => format!(" ON {}", all(&self.on)),
        };
        let join = if self.join.is_empty() { String::new() } else { format!(" {} ", self.join) };
        format!("{join}{} {}{columns}{on}", self.source.sql(), self.alias)
    }

    fn smaller(&self) -> Vec<Item> {
        let mut smaller = Vec::new();
        if !matches!(self.join, "" | "JOIN" | "CROSS JOIN") {
            smaller.push(Item { join: "JOIN", ..self.clone() });
        }
        smaller.extend(self.source.smaller().into_iter().map(|source| Item { source, ..self.clone() }));
        smaller.extend(fewer(&self.on, Condition::smaller).into_iter().map(|on| Item { on, ..self.clone() }));
        smaller
    }
}

impl Condition {
    fn sql(&self) -> String {
        match self {
            Condition::Plain(text) => text.clone(),
            Condition::Query(before, query) => format!("{before} ({})", query.sql()),
            Condition::Either(parts) => {
                format!("({})", parts.iter().map(Condition::sql).collect::<Vec<_>>().join(" OR "))
            }
            Condition::Not(inner) => format!("NOT ({})", inner.sql()),
        }
    }

    fn smaller(&self) -> Vec<Condition> {
        match self {
            Condition::Plain(_) => Vec::new(),
            Condition::Query(before, query) => {
                query.smaller().into_iter().map(|q| Condition::Query(before.clone(), Box::new(q))).collect()
            }
            Condition::Either(parts) => {
                let mut smaller = parts.clone();
                smaller.extend(fewer(parts, Condition::smaller).into_iter().map(Condition::Either));
                smaller
            }
            Condition::Not(inner) => {
                let mut smaller = vec![(**inner).clone()];
                smaller.extend(inner.smaller().into_iter().map(|c| Condition::Not(Box::new(c))));
                smaller
            }
        }
    }
}

fn all(conditions: &[Condition]) -> String {
    conditions.iter().map(Condition::sql).collect::<Vec<_>>().join(" AND ")
}

/// The list without one of its elements, or with a smaller one.
fn fewer<T: Clone>(list: &[T], smaller: impl Fn(&T) -> Vec<T>) -> Vec<Vec<T>> {
    let mut lists = Vec::new();
    for at in 0..list.len() {
        let mut without = list.to_vec();
        without.remove(at);
        lists.push(without);
        for element in smaller(&list[at]) {
            let mut with = list.to_vec();
            with[at] = element;
            lists.push(with);
        }
    }
    lists
}

impl Output {
    fn sql(&self) -> String {
        match self {
            Output::Plain(text) => text.clone(),
            Output::Query(query) => format!("({})", query.sql()),
        }
    }

    fn smaller(&self) -> Vec<Output> {
        match self {
            Output::Plain(_) => Vec::new(),
            Output::Query(query) => {
                let mut all = vec![Output::Plain("NULL".to_owned())];
                all.extend(query.smaller().into_iter().map(|q| Output::Query(Box::new(q))));
                all
            }
        }
    }
}

impl Query {
    pub(crate) fn sql(&self) -> String {
        let mut out = String::new();
        if !self.ctes.is_empty() {
            let ctes = self
                .ctes
                .iter()
                .map(|(name, columns, query)| format!("{name}({}) AS ({})", columns.join(", "), query.sql()));
            out = format!("WITH {} ", ctes.collect::<Vec<_>>().join(", "));
        }
        match &self.set {
            Some((operator, other)) => out += &format!("({}) {operator} ({})", self.core(), other.sql()),
            None => out += &self.core(),
        }
        if self.ordered {
            let columns: Vec<String> = (1..=self.outputs.len()).map(|n| n.to_string()).collect();
            out += &format!(" ORDER BY {}", columns.join(", "));
        }
        if let Some(limit) = self.limit {
            out += &format!(" LIMIT {limit}");
        }
        if let Some(offset) = self.offset {
            out += &format!(" OFFSET {offset}");
        }
        out
    }

    fn core(&self) -> String {
        let outputs: Vec<String> = self.outputs.iter().map(Output::sql).collect();
        let mut out =
            format!("SELECT {}{}", if self.distinct { "DISTINCT " } else { "" }, outputs.join(", "));
        for (n, item) in self.from.iter().enumerate() {
            if n == 0 {
                out += " FROM ";
            }
            out += &item.sql();
        }
        if !self.conditions.is_empty() {
            out += &format!(" WHERE {}", all(&self.conditions));
        }
        if !self.groups.is_empty() {
            out += &format!(" GROUP BY {}", self.groups.join(", "));
        }
        if !self.having.is_empty() {
            out += &format!(" HAVING {}", all(&self.having));
        }
        out
    }

    pub(crate) fn smaller(&self) -> Vec<Query> {
        let mut smaller = Vec::new();
        let mut push = |change: &dyn Fn(&mut Query)| {
            let mut query = self.clone();
            change(&mut query);
            smaller.push(query);
        };
        if let Some((_, other)) = &self.set {
            push(&|query| query.set = None);
            push(&|query| *query = (**other).clone());
            for part in other.smaller() {
                push(&|query| {
                    if let Some((_, other)) = &mut query.set {
                        **other = part.clone();
                    }
                });
            }
        }
        if self.limit.is_some() || self.offset.is_some() {
            push(&|query| (query.limit, query.offset) = (None, None));
        }
        if self.ordered {
            push(&|query| (query.ordered, query.limit, query.offset) = (false, None, None));
        }
        if self.distinct {
            push(&|query| query.distinct = false);
        }
        let step = |(name, columns, query): &(String, Vec<String>, Query)| {
            let part = |q| (name.clone(), columns.clone(), q);
            query.smaller().into_iter().map(part).collect::<Vec<_>>()
        };
        for ctes in fewer(&self.ctes, step) {
            push(&|query| query.ctes = ctes.clone());
        }
        for having in fewer(&self.having, Condition::smaller) {
            push(&|query| query.having = having.clone());
        }
        for conditions in fewer(&self.conditions, Condition::smaller) {
            push(&|query| query.conditions = conditions.clone());
        }
        for mut from in fewer(&self.from, Item::smaller) {
            if let Some(first) = from.first_mut() {
                first.join = "";
            }
            push(&|query| query.from = from.clone());
        }
        for groups in fewer(&self.groups, |_| Vec::new()) {
            push(&|query| query.groups = groups.clone());
        }
        if self.outputs.len() > 1 {
            for outputs in fewer(&self.outputs, Output::smaller) {
                push(&|query| query.outputs = outputs.clone());
            }
        }
        smaller
    }
}

impl Generated {
    pub(crate) fn writes(&self) -> Option<&'static str> {
        match self {
            Generated::Read(_) => None,
            Generated::Insert { table, .. }
            | Generated::Update { table, .. }
            | Generated::Delete { table, .. } => Some(table),
        }
    }

    pub(crate) fn sql(&self) -> String {
        let filter = |conditions: &[Condition]| {
            if conditions.is_empty() { String::new() } else { format!(" WHERE {}", all(conditions)) }
        };
        let back = |returning: &bool| if *returning { " RETURNING *" } else { "" };
        match self {
            Generated::Read(query) => query.sql(),
            Generated::Insert { table, columns, rows, returning, conflict } => {
                let rows = match rows {
                    Source::Table(values) => values.clone(),
                    Source::Query(query) | Source::Lateral(query) => query.sql(),
                };
                format!("INSERT INTO {table} {columns} {rows}{conflict}{}", back(returning))
            }
            Generated::Update { table, sets, from, conditions, returning } => {
                let from = from.as_ref().map(|item| format!(" FROM {}", item.sql())).unwrap_or_default();
                // A join may find several rows for one, and which of them counts is not defined.
                let back = if from.is_empty() { back(returning) } else { "" };
                format!("UPDATE {table} t SET {}{from}{}{back}", sets.join(", "), filter(conditions))
            }
            Generated::Delete { table, using, conditions, returning } => {
                let using = using.as_ref().map(|item| format!(" USING {}", item.sql())).unwrap_or_default();
                let back = if using.is_empty() { back(returning) } else { "" };
                format!("DELETE FROM {table} t{using}{}{back}", filter(conditions))
            }
        }
    }

    pub(crate) fn smaller(&self) -> Vec<Generated> {
        match self {
            Generated::Read(query) => query.smaller().into_iter().map(Generated::Read).collect(),
            Generated::Insert { table, columns, rows, returning, conflict } => {
                let (table, columns, conflict) = (*table, *columns, *conflict);
                let (returning, sources) = (*returning, rows.smaller());
                let of = |rows| Generated::Insert { table, columns, rows, returning, conflict };
                sources.into_iter().map(of).collect()
            }
            Generated::Update { table, sets, from, conditions, returning } => {
                let of =
                    |sets: &[String], from: &Option<Item>, conditions: Vec<Condition>| Generated::Update {
                        table,
                        sets: sets.to_vec(),
                        from: from.clone(),
                        conditions,
                        returning: *returning,
                    };
                let mut smaller = vec![of(sets, &None, conditions.clone())];
                smaller.retain(|_| from.is_some());
                if sets.len() > 1 {
                    smaller.extend(
                        fewer(sets, |_| Vec::new()).iter().map(|sets| of(sets, from, conditions.clone())),
                    );
                }
                smaller.extend(fewer(conditions, Condition::smaller).into_iter().map(|c| of(sets, from, c)));
                smaller
            }
            Generated::Delete { table, using, conditions, returning } => {
                let of = |using: &Option<Item>, conditions: Vec<Condition>| Generated::Delete {
                    table,
                    using: using.clone(),
                    conditions,
                    returning: *returning,
                };
                let mut smaller = vec![of(&None, conditions.clone())];
                smaller.retain(|_| using.is_some());
                smaller.extend(fewer(conditions, Condition::smaller).into_iter().map(|c| of(using, c)));
                smaller
            }
        }
    }
}
