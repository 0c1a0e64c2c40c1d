//! Random statements over `t`, `t2` (k int8, x int4) and the view `tv`. Every query has the columns k and x.

/// xorshift64*: the runs must repeat from their seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

pub(crate) struct Generator {
    random: Random,
    names: usize,
}

type Names = Vec<String>;

impl Generator {
    pub(crate) fn new(random: Random) -> Self {
        Self { random, names: 0 }
    }

    pub(crate) fn statement(&mut self) -> String {
        self.names = 0;
        if self.random.percent(30) {
            return self.modification();
        }
        let depth = 1 + self.random.below(3);
        self.query(depth, &[], &[])
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn constant(&mut self) -> usize {
        1 + self.random.below(2)
    }

    fn pick(&mut self, names: &[String]) -> String {
        names[self.random.below(names.len())].clone()
    }

    fn condition(&mut self, names: &[String], depth: usize, ctes: &[String]) -> String {
        let (a, b) = (self.pick(names), self.pick(names));
        let (c, d) = (self.constant(), self.constant());
        let sub = if depth > 0 { 7 } else { 0 };
        match self.random.below(20 + sub) {
            0..=4 => format!("{a}.k = {b}.k"),
            5..=8 => format!("{a}.k = {c}"),
            9 => format!("{a}.k IN ({c}, {d})"),
            10 => format!("({a}.k = {c} OR {b}.k = {d})"),
            11 => format!("(({a}.k = {c} AND {b}.x = 1) OR {a}.k = {d})"),
            12 => format!("{a}.x = {c}"),
            13 => format!("{a}.x <= {b}.x"),
            14 => format!("{a}.k = {b}.x"),
            15 => format!("{a}.k IS NULL"),
            16 => format!("k = {c}"),
            17 => format!("NOT ({})", self.condition(names, depth, ctes)),
            18 => format!("coalesce({a}.k, {c}) = {b}.k"),
            19 => format!("({a}.k, {b}.x) = ({c}, 1)"),
            with_query => {
                let query = self.query(depth - 1, names, ctes);
                match with_query - 20 {
                    0 => format!("EXISTS ({query})"),
                    1 => format!("NOT EXISTS ({query})"),
                    2 => format!("{a}.k IN (SELECT z.k FROM ({query}) z)"),
                    3 => format!("({a}.k, {a}.x) IN ({query})"),
                    4 => format!("{a}.k NOT IN (SELECT z.k FROM ({query}) z)"),
                    5 => format!("{a}.x = (SELECT max(z.x) FROM ({query}) z)"),
                    _ => format!("{a}.x = ANY (SELECT z.x FROM ({query}) z)"),
                }
            }
        }
    }

    fn conditions(&mut self, names: &[String], depth: usize, ctes: &[String], at_most: usize) -> String {
        let count = 1 + self.random.below(at_most);
        (0..count).map(|_| self.condition(names, depth, ctes)).collect::<Vec<_>>().join(" AND ")
    }

    /// A FROM item and the names it brings; `left` is in sight of LATERAL.
    fn item(&mut self, depth: usize, outer: &[String], left: &[String], ctes: &[String]) -> (String, Names) {
        let a = self.name("a");
        let choice = self.random.below(if depth > 0 { 14 } else { 7 });
        let sql = match choice {
            0..=2 => format!("t {a}"),
            3 | 4 => format!("t2 {a}"),
            5 => format!("(VALUES ({}::int8, 1), (2, 0)) {a}(k, x)", self.constant()),
            6 if ctes.is_empty() => format!("tv {a}"),
            6 => format!("{} {a}", self.pick(ctes)),
            7 => format!("({}) {a}", self.query(depth - 1, outer, ctes)),
            8 => format!("LATERAL ({}) {a}", self.query(depth - 1, &[outer, left].concat(), ctes)),
            _ => return self.join(depth - 1, outer, left, ctes),
        };
        (sql, vec![a])
    }

    fn join(&mut self, depth: usize, outer: &[String], left: &[String], ctes: &[String]) -> (String, Names) {
        let (l, l_names) = self.item(depth, outer, left, ctes);
        let (r, r_names) = self.item(depth, outer, &[left, &l_names].concat(), ctes);
        let kind = self.random.of(&["JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let names = [l_names.clone(), r_names.clone()].concat();
        if self.random.percent(18) {
            return (format!("({l} {kind} {r} USING (k))"), names);
        }
        if self.random.percent(4) {
            return (format!("({l} NATURAL {kind} {r})"), names);
        }
        let (a, b) = (self.pick(&l_names), self.pick(&r_names));
        let on = match (kind, self.random.below(3)) {
            // What is not hashable or mergeable, a FULL JOIN refuses.
            ("FULL JOIN", 0) => format!("{a}.k = {b}.k AND {a}.x = {b}.x"),
            ("FULL JOIN", _) => format!("{a}.k = {b}.k"),
            (_, 0) => self.conditions(&names, depth, ctes, 2),
            (_, 1) => format!("{a}.k = {b}.k AND {}", self.condition(&names, 0, ctes)),
            _ => format!("{a}.k = {b}.k"),
        };
        (format!("({l} {kind} {r} ON {on})"), names)
    }

    fn with(&mut self, depth: usize, outer: &[String], ctes: &mut Names) -> String {
        let name = self.name("c");
        let query = self.query(depth - 1, outer, ctes);
        let sql = if self.random.percent(35) {
            let a = self.name("a");
            let on = self.conditions(&[a.clone(), name.clone()], 0, &[], 2);
            let k = match self.random.below(3) {
                0 => format!("{a}.k"),
                1 => format!("{name}.k"),
                _ => format!("{a}.x::int8"),
            };
            format!(
                "WITH RECURSIVE {name} AS (({query}) UNION SELECT {k}, {a}.x FROM t {a}, {name} WHERE {on}) "
            )
        } else {
            format!("WITH {name} AS {}({query}) ", self.random.of(&["", "", "MATERIALIZED "]))
        };
        ctes.push(name);
        sql
    }

    fn query(&mut self, depth: usize, outer: &[String], ctes: &[String]) -> String {
        if depth > 0 && self.random.percent(15) {
            let operator = self.random.of(&["UNION ALL", "UNION", "EXCEPT", "INTERSECT", "INTERSECT ALL"]);
            let (l, r) = (self.query(depth - 1, outer, ctes), self.query(depth - 1, outer, ctes));
            return format!("({l}) {operator} ({r})");
        }
        let mut ctes = ctes.to_vec();
        let with = if depth > 0 && self.random.percent(22) {
            self.with(depth, outer, &mut ctes)
        } else {
            String::new()
        };
        let mut names = Names::new();
        let mut from = Vec::new();
        for _ in 0..1 + usize::from(self.random.percent(30)) {
            let (sql, added) = self.item(depth, outer, &names.clone(), &ctes);
            from.push(sql);
            names.extend(added);
        }
        let sight = if self.random.percent(60) { [&names, outer].concat() } else { names.clone() };
        let body = format!("FROM {} WHERE {}", from.join(", "), self.conditions(&sight, depth, &ctes, 3));
        let (a, b) = (self.pick(&names), self.pick(&names));
        let c = self.constant();
        let select = match self.random.below(12) {
            0 => format!("SELECT DISTINCT {a}.k, {b}.x {body}"),
            1 => format!("SELECT {a}.k, count(*)::int4 AS x {body} GROUP BY {a}.k"),
            2 => format!("SELECT {a}.k, max({b}.x) AS x {body} GROUP BY 1 HAVING count(*) > 1"),
            3 => format!("SELECT max({a}.k) AS k, min({b}.x) AS x {body}"),
            4 => format!("SELECT {a}.k, {b}.x {body} ORDER BY 1, 2 LIMIT 2"),
            5 => format!("SELECT DISTINCT ON ({b}.x) {a}.k, {b}.x {body} ORDER BY {b}.x, {a}.k"),
            6 => format!("SELECT {a}.k, (rank() OVER (PARTITION BY {b}.k ORDER BY {b}.x))::int4 AS x {body}"),
            7 => format!("SELECT {c}::int8 AS k, {b}.x {body}"),
            8 if depth > 0 => {
                let inner = self.query(depth - 1, &[&names, outer].concat(), &ctes);
                format!("SELECT {a}.k, (SELECT count(*)::int4 FROM ({inner}) z) AS x {body}")
            }
            _ => format!("SELECT {a}.k, {b}.x {body}"),
        };
        with + &select
    }

    fn modification(&mut self) -> String {
        let t = vec!["t".to_owned()];
        let (item, mut names) = self.item(1, &[], &[], &[]);
        let a = self.pick(&names);
        names.extend(t.clone());
        let (on_t, on_all) = (self.conditions(&t, 1, &[], 3), self.conditions(&names, 1, &[], 3));
        let query = self.query(1, &[], &[]);
        let c = self.constant();
        match self.random.below(7) {
            0 => format!(
                "UPDATE t SET x = coalesce((SELECT min(q.x) FROM t2 q WHERE q.k = t.k), t.x + 1) FROM {item} WHERE {on_all}"
            ),
            1 => format!("DELETE FROM t USING {item} WHERE {on_all} RETURNING t.k, t.x"),
            2 => format!(
                "INSERT INTO t2 (k, x) SELECT q.k, q.x FROM ({query}) q WHERE q.k IS NOT NULL RETURNING k, x"
            ),
            3 => format!(
                "WITH d AS (DELETE FROM t WHERE {on_t} RETURNING k, x), s AS ({query}) \
                 INSERT INTO t2 (k, x) SELECT d.k, s.x FROM d, s WHERE d.k = s.k RETURNING k, x"
            ),
            4 => format!(
                "WITH u AS (UPDATE t SET x = {c} WHERE {on_t} RETURNING k, x), s AS ({query}) \
                 SELECT u.k, s.x, t2.k, t2.x FROM u, s, t2 WHERE t2.k = u.{} AND s.k = u.k",
                self.random.of(&["k", "x"])
            ),
            5 => format!(
                "MERGE INTO t USING (SELECT q.k, max(q.x) AS x FROM ({query}) q GROUP BY q.k) {a} ON t.k = {a}.k AND t.x = {c} \
                 WHEN MATCHED AND t.x = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET x = t.x + 10 \
                 WHEN NOT MATCHED THEN INSERT (k, x) VALUES ({a}.k, {a}.x)"
            ),
            _ => format!("DELETE FROM t WHERE {on_t} RETURNING k, x"),
        }
    }
}
