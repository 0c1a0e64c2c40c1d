//! Token borders of a statement that PostgreSQL's grammar accepted: for the spans of VALUES rows and of SET values.

use std::ops::Range;

use crate::route::lex::{Literals, Scanned};
use crate::route::plan::{KeyRef, SplitInsert, SplitRow};
use crate::route::tokens::{Token, TokenKind, tokens};

/// Cuts `INSERT ... VALUES (..), (..) tail` at its rows. `None` if the text does not look like that.
pub(super) fn split_rows(
    text: &str,
    standard_strings: bool,
    keys: Vec<KeyRef>,
    returning: bool,
) -> Option<SplitInsert> {
    let all = tokens(text.as_bytes(), standard_strings)?;
    let mut depth = 0usize;
    let mut values = None;
    for (i, token) in all.iter().enumerate() {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.checked_sub(1)?,
            TokenKind::Word
                if depth == 0 && text.get(token.range.clone())?.eq_ignore_ascii_case("values") =>
            {
                values = Some(i);
                break;
            }
            _ => {}
        }
    }
    let mut at = values? + 1;
    let head = 0..narrow(all.get(at)?.range.start)?;
    let mut rows = Vec::with_capacity(keys.len());
    let mut tail = text.len();
    for (n, key) in keys.into_iter().enumerate() {
        if n > 0 {
            if all.get(at)?.kind != TokenKind::Comma {
                return None;
            }
            at += 1;
        }
        let (range, parameters, next) = row(&all, at)?;
        at = next;
        tail = range.end;
        rows.push(SplitRow {
            text: narrow(range.start)?..narrow(range.end)?,
            key,
            parameters: parameters.into(),
        });
    }
    // Another comma here would be a row that the grammar did not count.
    if all.get(at).is_some_and(|token| token.kind == TokenKind::Comma) {
        return None;
    }
    Some(SplitInsert {
        head,
        tail: narrow(tail)?..narrow(text.len())?,
        rows: rows.into(),
        returning,
        draws: None,
    })
}

type Row = (Range<usize>, Vec<(u16, Range<u32>)>, usize);

/// From `(` to its `)`.
fn row(all: &[Token], from: usize) -> Option<Row> {
    let start = all.get(from).filter(|token| token.kind == TokenKind::Open)?.range.start;
    let mut depth = 0usize;
    let mut parameters = Vec::new();
    for (i, token) in all.iter().enumerate().skip(from) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((start..token.range.end, parameters, i + 1));
                }
            }
            TokenKind::Parameter(n) => {
                parameters.push((n.checked_sub(1)?, narrow(token.range.start)?..narrow(token.range.end)?));
            }
            _ => {}
        }
    }
    None
}

fn narrow(offset: usize) -> Option<u32> {
    u32::try_from(offset).ok()
}

/// The first words of a text, lower case, with what follows them: for statements that are ours, not PostgreSQL's.
pub(super) fn leading_words(text: &str, standard_strings: bool, count: usize) -> Option<(Vec<String>, &str)> {
    let mut literals = Literals::new();
    let Scanned { start, .. } = crate::route::lex::scan(text.as_bytes(), 0, standard_strings, &mut literals);
    let mut rest = text.get(start..)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, after) = rest.split_at_checked(end)?;
        if word.is_empty() {
            return None;
        }
        words.push(word.to_ascii_lowercase());
        rest = after.trim_start();
    }
    Some((words, rest))
}

/// `PREPARE name [(types)] AS query`, which the grammar has accepted: where the types' names stand, and where the query
/// begins.
pub fn prepare_parts(text: &str, standard_strings: bool) -> Option<(Option<Range<usize>>, usize)> {
    let all = tokens(text.as_bytes(), standard_strings)?;
    let (types, mut at) = in_parentheses(&all, 2)?;
    // AS
    at += 1;
    Some((types, all.get(at)?.range.start))
}

/// The parts of an EXECUTE, by itself or within EXPLAIN and CREATE TABLE AS.
#[derive(Debug, PartialEq, Eq)]
pub struct ExecuteParts {
    /// From `EXECUTE` up to the end of its arguments.
    pub whole: Range<usize>,
    pub arguments: Range<usize>,
}

/// `... EXECUTE name [(arguments)] ...`, which the grammar has accepted.
pub fn execute_parts(text: &str, standard_strings: bool) -> Option<ExecuteParts> {
    let all = tokens(text.as_bytes(), standard_strings)?;
    let is = |n: usize, words: &[&str]| {
        let word = all.get(n).and_then(|token| text.get(token.range.clone()));
        word.is_some_and(|word| words.iter().any(|one| word.eq_ignore_ascii_case(one)))
    };
    // A table may be called so, too, but not behind these.
    let before = ["explain", "analyze", "analyse", "verbose", ")", "as"];
    let at = (0..all.len()).find(|n| is(*n, &["execute"]) && (*n == 0 || is(*n - 1, &before)))?;
    let (arguments, next) = in_parentheses(&all, at + 2)?;
    let end = all.get(next.checked_sub(1)?)?.range.end;
    Some(ExecuteParts { whole: all[at].range.start..end, arguments: arguments.unwrap_or(end..end) })
}

/// What stands between the parenthesis at token `from` and its partner, and the token behind it; nothing if there is no
/// parenthesis.
fn in_parentheses(all: &[Token], from: usize) -> Option<(Option<Range<usize>>, usize)> {
    let Some(open) = all.get(from).filter(|token| token.kind == TokenKind::Open) else {
        return Some((None, from));
    };
    let mut depth = 0usize;
    for (i, token) in all.iter().enumerate().skip(from) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((Some(open.range.end..token.range.start), i + 1));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_prepare_and_execute() {
        let prepare = |text: &'static str| {
            prepare_parts(text, true).map(|(types, at)| (types.map(|range| &text[range]), &text[at..]))
        };
        assert_eq!(prepare("PREPARE a AS SELECT 1"), Some((None, "SELECT 1")));
        assert_eq!(
            prepare(
                "prepare \"a (b\" (int, numeric(10, 2)) /* as */ AS -- (\n INSERT INTO t VALUES ($1, 'x) as')"
            ),
            Some((Some("int, numeric(10, 2)"), "INSERT INTO t VALUES ($1, 'x) as')"))
        );
        assert_eq!(prepare("PREPARE a (int"), None);
        let execute = |text: &'static str| {
            execute_parts(text, true)
                .map(|parts| (&text[parts.arguments], &text[..parts.whole.start], &text[parts.whole.end..]))
        };
        assert_eq!(execute("EXECUTE a"), Some(("", "", "")));
        assert_eq!(execute("execute a (f(1, ')'), $$)$$) "), Some(("f(1, ')'), $$)$$", "", " ")));
        assert_eq!(execute("EXPLAIN (COSTS off) EXECUTE a(1)"), Some(("1", "EXPLAIN (COSTS off) ", "")));
        assert_eq!(
            execute("CREATE TABLE execute AS EXECUTE \"execute\" WITH NO DATA"),
            Some(("", "CREATE TABLE execute AS ", " WITH NO DATA"))
        );
    }
}
