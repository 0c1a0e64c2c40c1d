//! Texts as the grammar needs them, and what to say about those that it refuses.

use std::borrow::Cow;
use std::ops::Range;

use crate::route::RouteContext;
use crate::route::lex::{LiteralKind, Literals};
use crate::route::plan::Refusal;
use crate::route::tokens::{TokenKind, tokens};

/// Candidates tried to find where a syntax error is.
const POSITIONS_TRIED: usize = 16;

/// The statement as UTF-8 of the same length, in which constants mean what they mean to the server.
pub(super) fn readable<'t>(
    context: &RouteContext<'_>,
    text: &'t [u8],
    literals: &Literals,
) -> Result<Cow<'t, str>, Refusal> {
    if !context.standard_conforming_strings && text.contains(&b'\\') {
        // The grammar's library takes backslashes in '...' literally; E'...' is read the same by both.
        let plain = |l: &crate::route::lex::Literal| l.source(text).first() == Some(&b'\'');
        let only_marked = !literals.is_empty()
            && literals
                .iter()
                .all(|l| l.kind != LiteralKind::Odd && !(plain(l) && l.source(text).contains(&b'\\')));
        if !only_marked {
            return Err(Refusal::unsupported(
                "backslashes in ordinary strings with standard_conforming_strings = off",
                "Write E'...' strings, or SET standard_conforming_strings = on.",
            ));
        }
    }
    if text.is_ascii() {
        return std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| not_utf8());
    }
    if context.client_encoding_is_utf8 {
        return std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| not_utf8());
    }
    masked(text, context.standard_conforming_strings).map(Cow::Owned)
}

/// In other client encodings, names must be ASCII; what stands in strings and comments does not matter to routing,
/// and a text key with such characters is refused when it is read. A trailing byte of a multi-byte character is
/// never a quote, but may be a backslash, so escape strings are refused too.
fn masked(text: &[u8], standard_strings: bool) -> Result<String, Refusal> {
    let refusal = || {
        Refusal::unsupported(
            "non-ASCII names and escape strings need client_encoding UTF8",
            "SET client_encoding = 'UTF8'.",
        )
    };
    let all = tokens(text, standard_strings).ok_or_else(refusal)?;
    for token in all {
        let source = text.get(token.range).unwrap_or_default();
        let string = standard_strings && matches!(source.first(), Some(b'\'' | b'$'));
        if !source.is_ascii() && (token.kind != TokenKind::Other || !string) {
            return Err(refusal());
        }
    }
    let bytes = text.iter().map(|b| if b.is_ascii() { *b } else { b'x' }).collect();
    String::from_utf8(bytes).map_err(|_| not_utf8())
}

fn not_utf8() -> Refusal {
    Refusal::new("22021", "invalid byte sequence for encoding \"UTF8\"", "Send text in the client_encoding.")
}

pub(super) fn several_commands() -> Refusal {
    Refusal::new(
        "42601",
        "cannot insert multiple commands into a prepared statement",
        "Send one command at a time in the extended protocol.",
    )
}

/// The grammar's error with the position that its library does not hand out.
pub(super) fn error(text: &str, message: &str) -> Refusal {
    let message = message.strip_prefix("Invalid statement: ").unwrap_or(message);
    let characters = |bytes: usize| text.get(..bytes).and_then(|t| u32::try_from(t.chars().count() + 1).ok());
    let position = if message.ends_with("at end of input") {
        characters(text.len())
    } else {
        offending(text, message).and_then(characters)
    };
    Refusal::new(state(message), message, "The proxy parses statements before it sends them to a shard.")
        .at(position)
}

/// What gram.y raises with another SQLSTATE than that of a syntax error.
fn state(message: &str) -> &'static str {
    if message.contains("nul bytes") {
        "22021"
    } else if ["frame start", "frame end"].iter().any(|start| message.starts_with(start)) {
        "42P20"
    } else {
        "42601"
    }
}

/// The token at which the grammar gives up is the first whose prefix fails with the same words.
fn offending(text: &str, message: &str) -> Option<usize> {
    let token = message.split_once("at or near \"")?.1.strip_suffix('"')?;
    if token.is_empty() {
        return None;
    }
    text.match_indices(token).take(POSITIONS_TRIED).map(|(at, _)| at).find(|at| {
        let prefix = text.get(..at + token.len()).unwrap_or_default();
        let failed = pg_raw_parse::parse(prefix).err().map(|e| e.to_string());
        failed.is_some_and(|m| m.strip_prefix("Invalid statement: ").unwrap_or(&m) == message)
    })
}

/// The statements of a text as the grammar splits it; on an error the whole text.
pub fn split(context: &RouteContext<'_>, sql: &[u8]) -> Vec<Range<usize>> {
    let whole = || std::iter::once(0..sql.len()).collect::<Vec<_>>();
    let Ok(text) = readable(context, sql, &Literals::new()) else { return whole() };
    let Ok(tree) = pg_raw_parse::parse(&text) else { return whole() };
    let ranges = tree.iter().filter_map(|raw| {
        let start = usize::try_from(raw.stmt_location).unwrap_or(0);
        let length = usize::try_from(raw.stmt_len).ok().filter(|len| *len > 0);
        let end = length.map_or(sql.len(), |len| start + len).min(sql.len());
        (start < end).then_some(start..end)
    });
    ranges.collect()
}
