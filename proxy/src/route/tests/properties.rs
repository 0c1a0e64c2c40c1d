//! Random statements and random bytes.

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::super::Router;
use super::super::lex::{Literals, scan};
use super::super::plan::Route;
use super::{context, describe, describe_all};
use crate::route::SearchPath;

const PIECES: &[&str] = &[
    "SELECT ",
    "* ",
    "FROM ",
    "t ",
    "t2 ",
    "WHERE ",
    "k ",
    "x ",
    "= ",
    "1 ",
    "'a' ",
    "'it''s' ",
    "-5 ",
    "$1 ",
    "( ",
    ") ",
    ", ",
    "AND ",
    "OR ",
    "NOT ",
    "IN ",
    "ANY ",
    "ARRAY[",
    "] ",
    "::int8 ",
    "UNION ALL ",
    "JOIN ",
    "LEFT JOIN ",
    "ON ",
    "USING ",
    "EXISTS ",
    "WITH c AS ",
    "c ",
    "INSERT INTO ",
    "VALUES ",
    "UPDATE ",
    "SET ",
    "DELETE FROM ",
    "RETURNING ",
    "ORDER BY ",
    "GROUP BY ",
    "LIMIT ",
    "; ",
    "-- x\n",
    "/* y */ ",
    "E'\\'' ",
    "$$q$$ ",
    "\"k\" ",
    "a. ",
    "t.k ",
    "count(*) ",
    "- ",
    "+ ",
    "=- ",
    "1.5e3 ",
    "'{1,2}' ",
    "LATERAL ",
    "AS ",
    "s ",
    "CASE WHEN ",
    "THEN ",
    "END ",
    "é",
    "SELECT * FROM t WHERE k = 1 ",
    "(SELECT k FROM t2 WHERE k = 3) ",
    "k = 1 ",
    "t.k = t2.k ",
    "\0",
    "{",
];

fn soup() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..24).prop_map(|pieces| pieces.concat())
}

/// Statements that are right more often than soup is: a template and its constants.
fn statement() -> impl Strategy<Value = (String, Vec<String>)> {
    let templates = proptest::sample::select(
        &[
            "SELECT * FROM t WHERE k = ? AND x > ?",
            "SELECT x, ? FROM t WHERE x IN (?, ?) AND k = ? ORDER BY 1",
            "SELECT * FROM t JOIN t2 USING (k) WHERE t.x = ? AND k = ?",
            "INSERT INTO t (k, x, v) VALUES (?, ?, ?)",
            "UPDATE t SET x = x - ?, v = ? WHERE k = ?",
            "DELETE FROM t WHERE k = ? AND v BETWEEN ? AND ?",
            "SELECT * FROM t WHERE k IN (?, ?)",
            "SELECT * FROM (SELECT k, ? AS c FROM t LIMIT (?)) s WHERE k = ?",
            "SELECT * FROM t WHERE k = ? OR k = ?",
            "SELECT coalesce(?, v) FROM t WHERE (k, x) = (?, ?)",
        ][..],
    );
    let constant = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (0i64..100).prop_map(|n| n.to_string()),
        "[a-z' ;$(-]{0,6}".prop_map(|s| format!("'{}'", s.replace('\'', "''"))),
        (0u32..1000, 0u32..100).prop_map(|(a, b)| format!("{a}.{b}")),
        Just("E'a\\'b'".to_owned()),
        Just("$q$a'b$q$".to_owned()),
        Just("-0.5".to_owned()),
    ];
    (templates, proptest::collection::vec(constant, 4)).prop_map(|(t, c)| (t.to_owned(), c))
}

fn fill(template: &str, constants: &[String]) -> String {
    let mut constants = constants.iter().cycle();
    template.split('?').enumerate().fold(String::new(), |mut sql, (i, part)| {
        if i > 0 {
            sql.push_str(constants.next().map_or("", String::as_str));
        }
        sql.push_str(part);
        sql
    })
}

fn cases(n: u32) -> Config {
    Config { cases: n, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(cases(3000))]

    /// Where the grammar accepts a text, the lexer splits it into the same statements.
    #[test]
    fn lexer_and_grammar_split_alike(sql in soup()) {
        if let Ok(tree) = pg_raw_parse::parse(&sql) {
            let mut count = 0;
            let mut from = 0;
            let mut literals = Literals::new();
            while from < sql.len() {
                let scanned = scan(sql.as_bytes(), from, true, &mut literals);
                prop_assert!(scanned.next > from);
                from = scanned.next;
                count += usize::from(!scanned.empty);
            }
            prop_assert_eq!(count, tree.iter().count(), "{}", sql);
        }
    }

    /// A plan from the cache is the plan that a fresh analysis makes.
    #[test]
    fn cached_plans_are_those_of_a_fresh_analysis((template, first) in statement(), second in proptest::collection::vec("[0-9]{1,3}|'[a-z]{0,3}'|-[0-9]{1,2}", 4)) {
        let catalog = super::catalog::test_catalog();
        let path = SearchPath::default();
        let context = context(&catalog, &path);
        let mut warm = Router::new(256);
        for constants in [&first, &second, &first] {
            let sql = fill(&template, constants);
            let from_warm = warm.simple(&context, sql.as_bytes());
            let fresh = Router::new(8).simple(&context, sql.as_bytes());
            prop_assert_eq!(describe_all(&from_warm), describe_all(&fresh), "{}", &sql);
            let again = warm.parse(&context, sql.as_bytes()).map(|r| describe(&r.plan));
            let fresh = Router::new(8).parse(&context, sql.as_bytes()).map(|r| describe(&r.plan));
            prop_assert_eq!(again, fresh);
        }
    }

    #[test]
    fn random_text_never_panics(sql in soup(), standard in any::<bool>(), utf8 in any::<bool>()) {
        routes(sql.as_bytes(), standard, utf8);
    }

    #[test]
    fn random_bytes_never_panic(sql in proptest::collection::vec(any::<u8>(), 0..64), standard in any::<bool>(), utf8 in any::<bool>()) {
        routes(&sql, standard, utf8);
    }

    #[test]
    fn random_arrays_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[{},\"a0\\\\ NUL]{0,20}") {
        use super::super::{arrays, values::KeyReader};
        let reader = KeyReader { key_type: shard_config::KeyType::Int8, utf8: true };
        let _ = arrays::binary_array(reader, &bytes, true, |_| Ok(()));
        let _ = arrays::text_array(reader, text.as_bytes(), false, |_| Ok(()));
        let _ = arrays::text_array(reader, &bytes, false, |_| Ok(()));
    }
}

fn routes(sql: &[u8], standard_conforming_strings: bool, client_encoding_is_utf8: bool) {
    use super::super::{NoParams, resolve};
    let catalog = super::catalog::test_catalog();
    let path = SearchPath::default();
    let context = super::super::RouteContext {
        standard_conforming_strings,
        client_encoding_is_utf8,
        ..context(&catalog, &path)
    };
    let map = shard_config::ShardMap::even(&[shard_config::ShardId(1), shard_config::ShardId(2)], 4096);
    let mut router = Router::new(64);
    for statement in router.simple(&context, sql).statements {
        let text = &sql[statement.text.clone()];
        // What passes for analysed must not have been lost to a panic that was caught.
        if let Route::Refuse(refusal) = &statement.plan.route {
            assert_ne!(
                refusal.message,
                "the statement could not be analysed",
                "{}",
                String::from_utf8_lossy(sql)
            );
        }
        resolve(&statement.plan, &statement.literals, text, &NoParams { client_encoding_is_utf8 }, &map);
    }
    let _ = router.parse(&context, sql);
}

#[test]
fn deep_nesting_is_refused_not_overflowed() {
    let catalog = super::catalog::test_catalog();
    let path = SearchPath::default();
    let context = context(&catalog, &path);
    let mut router = Router::new(64);
    // A worker thread has 2 MiB.
    let deep = [
        format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000)),
        format!("SELECT {}", vec!["1"; 20000].join(" + ")),
        format!("SELECT {}1{}", "f(".repeat(2000), ")".repeat(2000)),
        format!("SELECT * FROM t WHERE {}", "NOT ".repeat(4000) + "k = 1"),
        format!("{}SELECT 1{}", "SELECT * FROM (".repeat(400), ") s".repeat(400)),
        format!(
            "SELECT * FROM t {}",
            (0..2500).map(|i| format!("JOIN t2 a{i} ON a{i}.k = t.k ")).collect::<String>()
        ),
    ];
    for sql in deep {
        let found = describe_all(&router.simple(&context, sql.as_bytes()));
        assert!(found.starts_with("refuse") || found == "any r", "{found}: {}", &sql[..60]);
    }
    let many = format!(
        "SELECT * FROM {} WHERE {} AND a0.k = 1",
        (0..480).map(|i| format!("t a{i}")).collect::<Vec<_>>().join(", "),
        (1..480).map(|i| format!("a{i}.k = a{}.k", i - 1)).collect::<Vec<_>>().join(" AND ")
    );
    let start = std::time::Instant::now();
    assert_eq!(describe_all(&router.simple(&context, many.as_bytes())), "key #0 r");
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    let union = vec!["SELECT x FROM t WHERE k = 1"; 900].join(" UNION ALL ");
    assert!(describe_all(&router.simple(&context, union.as_bytes())).starts_with("key #0"));
}
