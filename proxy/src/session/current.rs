//! currval() and lastval(): what a session knows of the numbers that were drawn for it. PURE.
//!
//! A server knows of the numbers that it drew itself, for whichever client, and nothing of those that the proxy drew
//! ahead (H26). So the session remembers the latter, and a query for them is sent with the numbers in it. What a server may
//! have drawn for the session makes all it remembers uncertain: that is asked of the server, in the transaction in which it
//! happened, or not at all.

use crate::route::tokens::{TokenKind, tokens};

/// Sequences that are remembered; with more the oldest is uncertain.
const REMEMBERED: usize = 64;
/// Names a relation that cannot be: what is drawn elsewhere is to fail.
pub const NOWHERE: &str = "shard_proxy_elsewhere.";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// SQL for the sequence's number in the catalog, and its number drawn last; the last one drawn comes last.
    known: Vec<(String, i64)>,
    /// Servers may have drawn, too.
    elsewhere: bool,
    /// Both have: which of them did so last for a sequence is not known any more.
    mixed: bool,
}

impl Current {
    /// `draws`: SQL that drew one value each; `rows`: the values of rows, each as SQL behind a comma.
    pub fn drew(&mut self, draws: &[String], rows: &[String]) {
        self.mixed |= self.elsewhere;
        for row in rows {
            let values: Vec<&str> = row.split(", ").skip(1).collect();
            for (n, draw) in draws.iter().enumerate() {
                let value = values
                    .get(n)
                    .filter(|_| values.len() == draws.len())
                    .and_then(|value| value.parse().ok());
                let (Some(sequence), Some(value)) = (sequence_of(draw), value) else { return self.forget() };
                self.known.retain(|(known, _)| *known != sequence);
                self.known.push((sequence, value));
            }
        }
        if self.known.len() > REMEMBERED {
            self.known.remove(0);
            (self.elsewhere, self.mixed) = (true, true);
        }
    }

    /// A server may have drawn for the session.
    pub fn forget(&mut self) {
        self.mixed |= !self.known.is_empty();
        self.known.clear();
        self.elsewhere = true;
    }

    /// Can some be told without the server that drew?
    pub fn answers(&self) -> bool {
        !self.elsewhere || !self.known.is_empty()
    }

    /// Nothing was drawn for the session but what it knows.
    pub fn is_all(&self) -> bool {
        !self.elsewhere
    }

    pub fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// The text with what is known in the place of the calls. `asks`: of other sequences the server knows. `None`: it
    /// cannot be told.
    pub fn fill(&self, text: &str, standard_strings: bool, asks: bool) -> Option<String> {
        let all = tokens(text.as_bytes(), standard_strings)?;
        let piece = |n: usize| all.get(n).and_then(|token| text.get(token.range.clone())).unwrap_or_default();
        let quoted = |n: usize| piece(n).strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        let is = |n: usize, word: &str| piece(n).eq_ignore_ascii_case(word) || quoted(n) == Some(word);
        // It draws before it asks, or behind: only who draws knows.
        let alone = asks && self.known.is_empty();
        let any = |word: &str| (0..all.len()).any(|n| is(n, word));
        let escaped = text.to_ascii_lowercase().contains("u&\"");
        if any("setval") || (any("nextval") && !alone) || escaped {
            return None;
        }
        let mut out = String::new();
        let (mut from, mut n, mut calls) = (0, 0, 0);
        while n < all.len() {
            let call = all.get(n + 1).is_some_and(|token| token.kind == TokenKind::Open);
            let last = is(n, "lastval");
            if !call || !(last || is(n, "currval")) {
                n += 1;
                continue;
            }
            let mut start = all[n].range.start;
            if n >= 2 && piece(n - 1) == "." {
                if !is(n - 2, "pg_catalog") {
                    return None;
                }
                start = all[n - 2].range.start;
            }
            let close = closing(&all, n + 1)?;
            let arguments = text.get(all[n + 1].range.end..all[close].range.start)?;
            out.push_str(text.get(from..start)?);
            out.push_str(&if last { self.lastval() } else { self.currval(arguments, asks) });
            from = all[close].range.end;
            n = close + 1;
            calls += 1;
        }
        out.push_str(text.get(from..)?);
        (calls > 0).then_some(out)
    }

    /// A column is named by what stands behind ELSE (FigureColnameInternal in src/backend/parser/parse_target.c).
    fn lastval(&self) -> String {
        match self.known.last() {
            Some((_, value)) => {
                format!("(CASE WHEN true THEN {value}::pg_catalog.int8 ELSE pg_catalog.lastval() END)")
            }
            None => "pg_catalog.lastval()".to_owned(),
        }
    }

    fn currval(&self, argument: &str, asks: bool) -> String {
        let sequence = format!("({argument}\n)::pg_catalog.regclass");
        let other = match asks || self.is_all() {
            true => format!("pg_catalog.currval({sequence})"),
            false => format!(
                "pg_catalog.currval(('{NOWHERE}' || {sequence}::pg_catalog.text)::pg_catalog.regclass)"
            ),
        };
        if self.known.is_empty() {
            return other;
        }
        let known =
            self.known.iter().map(|(oid, value)| format!(" WHEN {oid} THEN {value}::pg_catalog.int8"));
        format!("(CASE {sequence}::pg_catalog.oid{} ELSE {other} END)", known.collect::<String>())
    }
}

fn closing(all: &[crate::route::tokens::Token], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (n, token) in all.iter().enumerate().skip(open) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close if depth == 1 => return Some(n),
            TokenKind::Close => depth -= 1,
            _ => {}
        }
    }
    None
}

/// SQL for the number of the sequence that this draws from (see `draw` in `control::build`).
fn sequence_of(draw: &str) -> Option<String> {
    let inner = |prefix: &str| draw.strip_prefix(prefix)?.strip_suffix(')');
    match inner("pg_catalog.nextval(") {
        Some(name) => Some(format!("({name})::pg_catalog.oid")),
        None => inner("shard_catalog.next_identity(").map(|of| {
            format!("pg_catalog.pg_get_serial_sequence({of})::pg_catalog.regclass::pg_catalog.oid")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(elsewhere: bool) -> Current {
        let mut current = Current::default();
        if elsewhere {
            current.forget();
        }
        let draws =
            ["pg_catalog.nextval('a.s'::regclass)", "shard_catalog.next_identity('\"a\".\"t\"', 'id')"];
        current.drew(&draws.map(str::to_owned), &[", 1, 10".to_owned(), ", 2, 20".to_owned()]);
        current
    }

    #[test]
    fn what_was_drawn_is_put_into_the_text() {
        let fill = |text: &str| drawn(false).fill(text, true, false);
        assert_eq!(
            fill("SELECT lastval ( ), 1").as_deref(),
            Some("SELECT (CASE WHEN true THEN 20::pg_catalog.int8 ELSE pg_catalog.lastval() END), 1")
        );
        assert_eq!(
            fill("SELECT pg_catalog.CURRVAL(f('x)')) + 1").as_deref(),
            Some(
                "SELECT (CASE (f('x)')\n)::pg_catalog.regclass::pg_catalog.oid WHEN ('a.s'::regclass)::pg_catalog.oid THEN 2::pg_catalog.int8 \
                 WHEN pg_catalog.pg_get_serial_sequence('\"a\".\"t\"', 'id')::pg_catalog.regclass::pg_catalog.oid THEN 20::pg_catalog.int8 \
                 ELSE pg_catalog.currval((f('x)')\n)::pg_catalog.regclass) END) + 1"
            )
        );
        assert_eq!(
            fill("SELECT \"pg_catalog\".\"lastval\"()").as_deref(),
            Some("SELECT (CASE WHEN true THEN 20::pg_catalog.int8 ELSE pg_catalog.lastval() END)")
        );
        let escaped = ["SELECT u&\"lastval\"()", "SELECT U&\"l\\0061stval\"()"];
        for text in ["SELECT currval('s'), nextval('s')", "SELECT \"Lastval\"()"].iter().chain(&escaped) {
            assert_eq!(fill(text), None, "{text}");
        }
        assert_eq!(fill("SELECT mine.currval('s')"), None);
    }

    #[test]
    fn what_servers_may_have_drawn_is_not_known() {
        let mut current = drawn(true);
        assert!(current.answers() && !current.is_all());
        assert!(current.fill("SELECT currval('s')", true, false).is_some_and(|text| text.contains(NOWHERE)));
        assert!(current.fill("SELECT currval('s')", true, true).is_some_and(|text| !text.contains(NOWHERE)));
        current.drew(&["pg_catalog.nextval('a.s'::regclass)".to_owned()], &[", 'not a number'".to_owned()]);
        assert!(!current.answers());
        assert!(current.is_mixed() && !Current::default().is_mixed());
        let asked = |asks| Current::default().fill("SELECT nextval('s'), currval('s')", true, asks);
        assert_eq!((asked(true).is_some(), asked(false)), (true, None));
        assert!(Current::default().answers() && Current::default().is_all());
        let fresh = Current::default().fill("SELECT currval('s')", true, false);
        assert_eq!(fresh.as_deref(), Some("SELECT pg_catalog.currval(('s'\n)::pg_catalog.regclass)"));
    }
}
