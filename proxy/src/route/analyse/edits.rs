//! Changes of a statement's text: what stands in the place of what, and one condition more on its rows. PURE.

use std::ops::Range;

use super::apply::last_word;
use super::gather::condition_span;

/// Nothing overlaps; what is put in at one place stands before what replaces the text there.
pub(super) type Edit = (Range<usize>, String);

/// `None`: an edit is not one of this text.
pub(super) fn apply(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut out = String::with_capacity(text.len() + 64 * edits.len());
    let mut from = 0;
    for (range, replacement) in edits {
        out.push_str(text.get(from..range.start)?);
        out.push_str(&replacement);
        from = range.end;
    }
    out.push_str(text.get(from..)?);
    Some(out)
}

/// One condition more on the rows of an UPDATE or DELETE. What stands in its own may be edited, too: it stays as it is,
/// between two edits.
pub(super) fn condition(text: &str, standard_strings: bool, condition: &str) -> Vec<Edit> {
    match condition_span(text, standard_strings, 0) {
        // Either may end in a comment.
        Some(span) => vec![
            (span.start..span.start, " (".to_owned()),
            (span.end..span.end, format!("\n) AND {condition} ")),
        ],
        None => {
            let end = last_word(text, standard_strings, "returning").map_or(text.len(), |word| word.start);
            vec![(end..end, format!("\nWHERE {condition} "))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_condition_more() {
        let with = |text: &str| apply(text, condition(text, true, "k = 1"));
        let check = |text: &str, expected: &str| assert_eq!(with(text).as_deref(), Some(expected));
        check("DELETE FROM t", "DELETE FROM t\nWHERE k = 1 ");
        check("DELETE FROM t RETURNING id", "DELETE FROM t \nWHERE k = 1 RETURNING id");
        check(
            "UPDATE t SET a = (SELECT 1 WHERE b) -- all",
            "UPDATE t SET a = (SELECT 1 WHERE b) -- all\nWHERE k = 1 ",
        );
    }

    #[test]
    fn edits_are_done_from_the_front() {
        let edits = vec![(4..5, "T".to_owned()), (0..1, "S".to_owned()), (4..4, "(".to_owned())];
        assert_eq!(apply("a b c", edits).as_deref(), Some("S b (T"));
        assert_eq!(apply("a", vec![(2..3, String::new())]), None);
    }
}
