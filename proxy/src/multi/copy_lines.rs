//! Which line of the client's stream a shard means. PURE.
//!
//! A server names the line of its own stream in an error's context: "COPY payments, line 3, column amount: ...". The
//! last rows sent to each shard are remembered with the client's line; more bytes of them than a server can be
//! behind.

use std::collections::VecDeque;

use super::limits::COPY_LINES;

/// How many lines a row is, as `CopyReadLineText` of src/backend/commands/copyfromparse.c counts them: a newline within
/// quotes is one when the stream is known to end its lines with newlines, a carriage return before that is known, or when
/// lines end with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineCount {
    /// To who has not seen the end of a line yet.
    pub(super) first: u64,
    pub(super) later: u64,
}

/// The lines of one stream so far.
#[derive(Debug, Default)]
pub(super) struct LineCounter {
    lines: u64,
    begun: bool,
}

impl LineCounter {
    pub(super) fn add(&mut self, count: LineCount) {
        self.lines += if self.begun { count.later } else { count.first };
        self.begun |= count.first > 0;
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines
    }
}

#[derive(Debug, Default)]
pub(super) struct Lines {
    /// (last line of the row in the shard's stream, in the client's stream, bytes)
    rows: VecDeque<(u64, u64, usize)>,
    bytes: usize,
    /// Lines sent to the shard.
    sent: LineCounter,
}

impl Lines {
    /// The head was sent to the shard, and may count as a line there.
    pub(super) fn head(&mut self, lines: LineCount) {
        self.sent.add(lines);
    }

    pub(super) fn row(&mut self, lines: LineCount, client_line: u64, bytes: usize) {
        self.sent.add(lines);
        self.bytes += bytes;
        self.rows.push_back((self.sent.lines(), client_line, bytes));
        while self.bytes > COPY_LINES {
            if let Some((_, _, bytes)) = self.rows.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    fn client_line(&self, line: u64) -> Option<u64> {
        let at = self.rows.binary_search_by_key(&line, |row| row.0).ok()?;
        self.rows.get(at).map(|row| row.1)
    }

    /// The context with the client's line in place of the shard's, and that line.
    pub(super) fn translate(&self, context: &str) -> (String, Option<u64>) {
        const MARK: &str = ", line ";
        let unknown = || (context.to_owned(), None);
        let Some(at) = context.find(MARK).filter(|_| context.starts_with("COPY ")) else { return unknown() };
        let digits = &context[at + MARK.len()..];
        let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        match digits[..length].parse().ok().and_then(|line| self.client_line(line)) {
            Some(line) => (format!("{}{MARK}{line}{}", &context[..at], &digits[length..]), Some(line)),
            None => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(lines: u64) -> LineCount {
        LineCount { first: lines, later: lines }
    }

    fn translated(lines: &Lines, context: &str) -> String {
        lines.translate(context).0
    }

    #[test]
    fn a_context_names_the_clients_line() {
        let mut lines = Lines::default();
        lines.head(count(1));
        lines.row(count(1), 5, 10);
        lines.row(LineCount { first: 1, later: 2 }, 9, 10);
        assert_eq!(translated(&lines, "COPY t, line 2, column a: \"x\""), "COPY t, line 5, column a: \"x\"");
        assert_eq!(lines.translate("COPY t, line 4"), ("COPY t, line 9".to_owned(), Some(9)));
        assert_eq!(
            lines.translate("COPY t, line 7"),
            ("COPY t, line 7".to_owned(), None),
            "unknown lines stay"
        );
        assert_eq!(translated(&lines, "PL/pgSQL function f() line 3"), "PL/pgSQL function f() line 3");
    }

    #[test]
    fn a_stream_that_begins_with_a_row_of_several_lines_counts_one() {
        let mut lines = Lines::default();
        lines.row(LineCount { first: 1, later: 3 }, 30, 10);
        lines.row(LineCount { first: 1, later: 3 }, 40, 10);
        assert_eq!(translated(&lines, "COPY t, line 1"), "COPY t, line 30");
        assert_eq!(translated(&lines, "COPY t, line 4"), "COPY t, line 40");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lines = Lines::default();
        for n in 1..=100 {
            lines.row(count(1), n, COPY_LINES / 10);
        }
        assert!(lines.rows.len() <= 10);
        assert_eq!(translated(&lines, "COPY t, line 100"), "COPY t, line 100");
    }
}
