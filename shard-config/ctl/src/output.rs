//! A report is one JSON value and a text of it.

use std::io::{self, Write};

use serde_json::Value;

pub struct Report {
    pub json: Value,
    pub text: String,
    /// Decides the exit status.
    pub well: bool,
}

impl Report {
    pub fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json { writeln!(out, "{:#}", self.json) } else { write!(out, "{}", self.text) }
    }
}

/// Columns as wide as their widest cell, two blanks between; numbers to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| {
        cells(column).map(|cell| cell.chars().count()).chain([header[column].len()]).max().unwrap_or(0)
    };
    let numeric = |column: usize| cells(column).all(|cell| cell.bytes().all(|b| b.is_ascii_digit()));
    let shape: Vec<_> = (0..header.len()).map(|column| (width(column), numeric(column))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells
            .zip(&shape)
            .map(
                |(cell, &(width, numeric))| {
                    if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["1".to_owned(), "ok".to_owned(), "x".to_owned()],
            vec!["12".into(), "lost".into(), "".into()],
        ];
        assert_eq!(
            table(&["shard", "state", "why"], &rows),
            "shard  state  why\n    1  ok     x\n   12  lost\n"
        );
    }
}
