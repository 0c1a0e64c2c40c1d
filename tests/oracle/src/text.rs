//! Just enough of SQL's lexical rules to find constants, words and nesting in the statements of this suite.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word,
    Number,
    String,
    Quoted,
    Symbol,
    Open,
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub kind: Kind,
    pub range: Range<usize>,
    pub depth: usize,
}

pub(crate) fn tokens(sql: &str) -> Vec<Token> {
    let bytes = sql.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let mut tokens = Vec::new();
    let (mut i, mut depth) = (0, 0usize);
    while i < bytes.len() {
        let start = i;
        let byte = bytes[i];
        let kind = match byte {
            _ if byte.is_ascii_whitespace() => {
                i += 1;
                continue;
            }
            b'-' if at(i + 1) == b'-' => {
                while i < bytes.len() && at(i) != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if at(i + 1) == b'*' => {
                i = sql[i..].find("*/").map_or(bytes.len(), |end| i + end + 2);
                continue;
            }
            b'\'' => {
                let escapes = start > 0 && matches!(at(start - 1), b'e' | b'E');
                i = quoted(bytes, i, b'\'', escapes);
                Kind::String
            }
            b'"' => {
                i = quoted(bytes, i, b'"', false);
                Kind::Quoted
            }
            b'$' if dollar_tag(bytes, i).is_some() => {
                let tag = dollar_tag(bytes, i).unwrap_or(i..i);
                let text = &sql[tag.clone()];
                i = sql[tag.end..].find(text).map_or(bytes.len(), |end| tag.end + end + text.len());
                Kind::String
            }
            b'(' => {
                i += 1;
                depth += 1;
                Kind::Open
            }
            b')' => {
                i += 1;
                depth = depth.saturating_sub(1);
                Kind::Close
            }
            b'0'..=b'9' => {
                while matches!(at(i), b'0'..=b'9' | b'.' | b'e' | b'E') {
                    i += 1;
                }
                Kind::Number
            }
            _ if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                while at(i).is_ascii_alphanumeric() || matches!(at(i), b'_' | b'$') || at(i) >= 0x80 {
                    i += 1;
                }
                Kind::Word
            }
            b',' | b';' | b'[' | b']' | b'.' => {
                i += 1;
                Kind::Symbol
            }
            _ => {
                i += 1;
                while b"+-*/<>=~!@#%^&|`?:".contains(&at(i))
                    && at(i) != 0
                    && !(at(i) == b'-' && at(i + 1) == b'-')
                {
                    i += 1;
                }
                Kind::Symbol
            }
        };
        let inside = if kind == Kind::Open { depth - 1 } else { depth };
        tokens.push(Token { kind, range: start..i, depth: inside });
    }
    tokens
}

fn quoted(bytes: &[u8], start: usize, quote: u8, escapes: bool) -> usize {
    let mut i = start + 1;
    while i < bytes.len() {
        if escapes && bytes[i] == b'\\' {
            i += 2;
        } else if bytes[i] != quote {
            i += 1;
        } else if bytes.get(i + 1) == Some(&quote) {
            i += 2;
        } else {
            return i + 1;
        }
    }
    bytes.len()
}

/// `$$` or `$tag$`.
fn dollar_tag(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    let rest = bytes.get(start + 1..)?;
    let end = rest.iter().position(|byte| !(byte.is_ascii_alphabetic() || *byte == b'_'))?;
    (rest[end] == b'$').then_some(start..start + end + 2)
}

/// Has the outermost query an ORDER BY?
pub(crate) fn is_ordered(sql: &str) -> bool {
    let tokens = tokens(sql);
    let word =
        |token: &Token, word: &str| token.depth == 0 && sql[token.range.clone()].eq_ignore_ascii_case(word);
    tokens.windows(2).any(|pair| word(&pair[0], "order") && word(&pair[1], "by"))
}

/// The statement with its constants as parameters, and their values as text.
///
/// A constant stands for a value only where its place says so: behind an operator, or in a list of IN or VALUES.
/// Elsewhere it may be a column's number or a part of the grammar.
pub(crate) fn with_parameters(sql: &str) -> (String, Vec<String>) {
    let tokens = tokens(sql);
    let text = |i: usize| tokens.get(i).map_or("", |token| &sql[token.range.clone()]);
    let mut lists: Vec<usize> = Vec::new();
    let mut values = Vec::new();
    let mut out = String::with_capacity(sql.len());
    let mut from = 0;
    for (i, token) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).map_or("", text);
        match token.kind {
            Kind::Open => {
                let again = before == "," && lists.last().is_some_and(|depth| *depth == token.depth + 1);
                if before.eq_ignore_ascii_case("in") || before.eq_ignore_ascii_case("values") || again {
                    lists.push(token.depth + 1);
                }
            }
            Kind::Close => {
                // A list of rows goes on with a comma.
                if text(i + 1) != "," {
                    lists.retain(|depth| *depth <= token.depth);
                }
            }
            Kind::String | Kind::Number => {
                let in_list = lists.last() == Some(&token.depth) && matches!(before, "(" | ",");
                let operand = matches!(before, "=" | "<" | ">" | "<=" | ">=" | "<>" | "!=" | "%" | "||");
                // `'x' COLLATE`, `'1' '2'`: left alone; so is what is negated or typed by a word in front.
                let plain = matches!(
                    text(i + 1),
                    ")" | "," | ";" | "" | "::" | "AND" | "OR" | "THEN" | "END" | "GROUP" | "ORDER"
                );
                let escaped = token.range.start > from
                    && sql[..token.range.start].ends_with(['e', 'E'])
                    && token.kind == Kind::String;
                if (in_list || operand) && plain && !escaped && values.len() < 100 {
                    let raw = &sql[token.range.clone()];
                    let value = match token.kind {
                        Kind::String if raw.starts_with('\'') => raw[1..raw.len() - 1].replace("''", "'"),
                        Kind::String => continue,
                        _ => raw.to_owned(),
                    };
                    values.push(value);
                    out.push_str(&sql[from..token.range.start]);
                    out.push_str(&format!("${}", values.len()));
                    from = token.range.end;
                }
            }
            _ => {}
        }
    }
    out.push_str(&sql[from..]);
    (out, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &str, values: &[&str]) {
        let (text, found) = with_parameters(sql);
        assert_eq!(
            (text.as_str(), found.iter().map(String::as_str).collect::<Vec<_>>()),
            (expected, values.to_vec())
        );
    }

    #[test]
    fn constants_become_parameters_where_they_are_values() {
        check(
            "SELECT 1 FROM t WHERE a = 5 AND b = 'it''s' ORDER BY 1",
            "SELECT 1 FROM t WHERE a = $1 AND b = $2 ORDER BY 1",
            &["5", "it's"],
        );
        check(
            "SELECT * FROM t WHERE a IN (1, 2) LIMIT 3",
            "SELECT * FROM t WHERE a IN ($1, $2) LIMIT 3",
            &["1", "2"],
        );
        check(
            "INSERT INTO t VALUES (1, 'x'), (2, f(3))",
            "INSERT INTO t VALUES ($1, $2), ($3, f(3))",
            &["1", "x", "2"],
        );
        check("SELECT date '2020-01-01', '{1,2}'::int[]", "SELECT date '2020-01-01', '{1,2}'::int[]", &[]);
        check(
            "SELECT x[1] FROM t WHERE a = 'b' COLLATE \"C\"",
            "SELECT x[1] FROM t WHERE a = 'b' COLLATE \"C\"",
            &[],
        );
        check("SELECT '= 5' -- = 6\n, a = 7", "SELECT '= 5' -- = 6\n, a = $1", &["7"]);
    }

    #[test]
    fn only_the_outermost_order_counts() {
        assert!(is_ordered("SELECT a FROM t ORDER BY a"));
        assert!(is_ordered("SELECT a FROM (SELECT 1) x order\nby a"));
        assert!(!is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY a) x"));
        assert!(!is_ordered("SELECT string_agg(a, ',' ORDER BY a), 'x ORDER BY y' FROM t"));
    }
}
