//! The query within COPY, EXPLAIN and DECLARE.

use std::ops::Range;

use pg_raw_parse::{Node, nodes};

use crate::route::tokens::{TokenKind, tokens};

/// The query of a statement, if it has one that returns rows.
pub(super) fn query_within(node: Node<'_>) -> Option<&nodes::SelectStmt> {
    let query = match node {
        Node::CopyStmt(copy) => copy.query(),
        Node::ExplainStmt(explain) => explain.query(),
        Node::DeclareCursorStmt(cursor) => cursor.query(),
        other => other,
    };
    match query {
        Node::SelectStmt(select) => Some(select),
        Node::DeclareCursorStmt(_) => query_within(query),
        _ => None,
    }
}

/// Where that query stands in the statement's text.
pub(super) fn span_within(node: Node<'_>, text: &str, standard: bool) -> Option<Range<usize>> {
    if matches!(node, Node::SelectStmt(_)) {
        return Some(0..text.len());
    }
    let all = tokens(text.as_bytes(), standard)?;
    let is = |i: usize, word: &str| {
        let piece = all.get(i).and_then(|t| text.get(t.range.clone())).unwrap_or_default();
        piece.eq_ignore_ascii_case(word)
    };
    let closing = |open: usize| {
        let mut depth = 0usize;
        all.iter().enumerate().skip(open).find_map(|(i, token)| {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(i)
        })
    };
    match node {
        Node::CopyStmt(_) => {
            let open = all.iter().position(|token| token.kind == TokenKind::Open)?;
            let close = closing(open)?;
            Some(all[open].range.end..all[close].range.start)
        }
        Node::DeclareCursorStmt(_) => {
            let at = (0..all.len()).find(|i| is(*i, "for"))?;
            Some(all[at].range.end..text.len())
        }
        Node::ExplainStmt(explain) => {
            if matches!(explain.query(), Node::DeclareCursorStmt(_)) {
                return None;
            }
            let begins = |i: usize| ["select", "with", "values", "table"].iter().any(|word| is(i, word));
            let options =
                all.get(1).is_some_and(|token| token.kind == TokenKind::Open) && !begins(2) && !is(2, "(");
            let first = if options { closing(1)? + 1 } else { 1 };
            let at = (first..all.len()).find(|i| begins(*i) || is(*i, "("))?;
            Some(all[at].range.start..text.len())
        }
        _ => None,
    }
}
