//! Which line of the client's stream a shard means. PURE.
//!
//! A server names the line of its own stream in an error's context: "COPY payments, line 3, column amount: ...". The
//! last rows sent to each shard are remembered with the client's line; more bytes of them than a server can be
//! behind.

use std::collections::VecDeque;

use super::limits::COPY_LINES;

#[derive(Debug, Default)]
pub(super) struct Lines {
    /// (last line of the row in the shard's stream, in the client's stream, bytes)
    rows: VecDeque<(u64, u64, usize)>,
    bytes: usize,
    /// Lines sent to the shard.
    sent: u64,
}

impl Lines {
    /// The head was sent to the shard: it counts as a line there.
    pub(super) fn head(&mut self, lines: u64) {
        self.sent += lines;
    }

    pub(super) fn row(&mut self, lines: u64, client_line: u64, bytes: usize) {
        self.sent += lines;
        self.bytes += bytes;
        self.rows.push_back((self.sent, client_line, bytes));
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

    /// The context with the client's line in place of the shard's.
    pub(super) fn translate(&self, context: &str) -> String {
        const MARK: &str = ", line ";
        let Some(at) = context.find(MARK).filter(|_| context.starts_with("COPY ")) else {
            return context.to_owned();
        };
        let digits = &context[at + MARK.len()..];
        let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        match digits[..length].parse().ok().and_then(|line| self.client_line(line)) {
            Some(line) => format!("{}{MARK}{line}{}", &context[..at], &digits[length..]),
            None => context.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_names_the_clients_line() {
        let mut lines = Lines::default();
        lines.head(1);
        lines.row(1, 5, 10);
        lines.row(2, 9, 10);
        assert_eq!(lines.translate("COPY t, line 2, column a: \"x\""), "COPY t, line 5, column a: \"x\"");
        assert_eq!(lines.translate("COPY t, line 4"), "COPY t, line 9");
        assert_eq!(lines.translate("COPY t, line 7"), "COPY t, line 7", "unknown lines stay");
        assert_eq!(lines.translate("PL/pgSQL function f() line 3"), "PL/pgSQL function f() line 3");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lines = Lines::default();
        for n in 1..=100 {
            lines.row(1, n, COPY_LINES / 10);
        }
        assert!(lines.rows.len() <= 10);
        assert_eq!(lines.translate("COPY t, line 100"), "COPY t, line 100");
    }
}
