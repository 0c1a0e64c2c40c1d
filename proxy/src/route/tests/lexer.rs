//! The lexer by itself.

use super::super::lex::{LiteralKind, Literals, scan};

/// Statement texts, then its constants as `source kind cut`.
fn check(sql: &str, expected: &[(&str, &[&str])]) {
    let mut found = Vec::new();
    let mut from = 0;
    while from < sql.len() {
        let mut literals = Literals::new();
        let scanned = scan(sql.as_bytes(), from, true, &mut literals);
        from = scanned.next;
        if scanned.empty {
            continue;
        }
        let text = &sql[scanned.start..scanned.end];
        let all: Vec<String> = literals
            .iter()
            .map(|l| {
                let source = String::from_utf8_lossy(l.source(text.as_bytes())).into_owned();
                format!("{source} {:?}{}", l.kind, if l.cut { " cut" } else { "" })
            })
            .collect();
        found.push((text.to_owned(), all));
    }
    let expected: Vec<(String, Vec<String>)> = expected
        .iter()
        .map(|(t, l)| ((*t).to_owned(), l.iter().map(|s| (*s).to_owned()).collect()))
        .collect();
    assert_eq!(found, expected, "{sql}");
}

#[test]
fn statements_end_at_semicolons_outside_everything() {
    check("a; b ;;c", &[("a", &[]), ("b", &[]), ("c", &[])]);
    check("a ';' b; c", &[("a ';' b", &["';' String"]), ("c", &[])]);
    check(
        "a \";\" -- ;\n b /* ; /* ; */ ; */ c; d",
        &[("a \";\" -- ;\n b /* ; /* ; */ ; */ c", &[]), ("d", &[])],
    );
    check("a $x$ ; $$ ; $x$; b", &[("a $x$ ; $$ ; $x$", &["$x$ ; $$ ; $x$ Dollar"]), ("b", &[])]);
    check("a (b; c); d", &[("a (b; c)", &[]), ("d", &[])]);
    check("a E'\\';' ; b", &[("a E'\\';'", &["E'\\';' Escape"]), ("b", &[])]);
    check("  /* x */ a -- y", &[("a", &[])]);
    // An error that the grammar has to word.
    check("a; b /* x", &[("a", &[]), ("b /* x", &[])]);
    check("a; /* x", &[("a", &[]), ("/* x", &[])]);
}

#[test]
fn constants_and_where_they_are_cut() {
    check(
        "SELECT 1, f(2, 'x'), a - 3, a -4, -5 FROM t WHERE k=-6 AND b = 'it''s' ORDER BY 7, 8 LIMIT 9",
        &[(
            "SELECT 1, f(2, 'x'), a - 3, a -4, -5 FROM t WHERE k=-6 AND b = 'it''s' ORDER BY 7, 8 LIMIT 9",
            &[
                "1 Integer",
                "2 Integer cut",
                "'x' String cut",
                "3 Integer cut",
                "4 Integer cut",
                "5 Integer cut",
                "-6 NegativeInteger cut",
                "'it''s' String cut",
                "7 Integer",
                "8 Integer",
                "9 Integer",
            ],
        )],
    );
    check(
        "SELECT a@-5, b<-.5, c->>'x'",
        &[("SELECT a@-5, b<-.5, c->>'x'", &["5 Integer cut", "-.5 NegativeDecimal cut", "'x' String cut"])],
    );
    check(
        "SELECT (1.5e-3), (1e5), (5.), (.5)",
        &[(
            "SELECT (1.5e-3), (1e5), (5.), (.5)",
            &["1.5e-3 Decimal cut", "1e5 Decimal cut", "5. Decimal cut", ".5 Decimal cut"],
        )],
    );
    check(
        "SELECT (0x1F), (1_000), (1a)",
        &[("SELECT (0x1F), (1_000), (1a)", &["0x1F Odd", "1_000 Odd", "1a Odd"])],
    );
    check(
        "SELECT (B'1'), (x'1F'), (N'a'), (U&'a'), (U&\"b\")",
        &[(
            "SELECT (B'1'), (x'1F'), (N'a'), (U&'a'), (U&\"b\")",
            &["B'1' Odd", "x'1F' Odd", "N'a' Odd", "U&'a' Odd"],
        )],
    );
    check(
        "SELECT ('a'\n'b'), ('a' 'b')",
        &[("SELECT ('a'\n'b'), ('a' 'b')", &["'a'\n'b' Odd", "'a' String cut", "'b' String"])],
    );
    check("SELECT $1, $2::int, a$3, date '1'", &[("SELECT $1, $2::int, a$3, date '1'", &["'1' String"])]);
    check("SET x = 'y'", &[("SET x = 'y'", &["'y' String"])]);
    check(
        "SELECT a[1], ARRAY[2, 3], 4::text",
        &[(
            "SELECT a[1], ARRAY[2, 3], 4::text",
            &["1 Integer cut", "2 Integer cut", "3 Integer cut", "4 Integer"],
        )],
    );
}

#[test]
fn what_is_not_understood_is_not_sure() {
    for sql in
        ["SELECT 'a", "SELECT \"a", "SELECT /* a", "SELECT $x$ a", "SELECT {", "SELECT \\", "SELECT $99999"]
    {
        let scanned = scan(sql.as_bytes(), 0, true, &mut Literals::new());
        assert!(!scanned.sure, "{sql}");
    }
    let scanned = scan(b"SELECT $3, $12", 0, true, &mut Literals::new());
    assert!(scanned.sure && scanned.parameters == 12);
}

#[test]
fn strings_follow_standard_conforming_strings() {
    let mut literals = Literals::new();
    let sql = br"SELECT 'a\', 'b', 'c'";
    let kinds = |literals: &Literals| literals.iter().map(|l| l.kind).collect::<Vec<_>>();
    scan(sql, 0, true, &mut literals);
    assert_eq!(kinds(&literals), [LiteralKind::String, LiteralKind::String, LiteralKind::String]);
    let sql = br"SELECT 'a\', 'b', E'c'";
    assert!(scan(sql, 0, true, &mut literals).sure);
    assert!(!scan(sql, 0, false, &mut literals).sure);
    assert!(scan(br"SELECT 'a\'b'", 0, false, &mut literals).sure);
    assert_eq!(kinds(&literals), [LiteralKind::Escape]);
}
