//! Cuts a COPY stream into rows and reads each row's key. PURE.
//!
//! The rules are those of src/backend/commands/copyfromparse.c. Where a shard, which sees only its own rows, would
//! judge differently from a server that sees all (the style of line ends is taken from the first line), the stream
//! is held to the stricter reading.

use std::ops::Range;

use shard_config::KeyHash;

use super::copy_lines::{LineCount, LineCounter};
use super::limits::COPY_ROW;
use crate::route::plan::CopyFormat;
use crate::route::values::{KeyReader, KeyValue};

/// Signature, flags and extension length of the binary format.
const BINARY_SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopyError {
    pub(super) sqlstate: &'static str,
    pub(super) message: String,
    /// The client's own line, or row of the binary format; 0 when it is about none.
    pub(super) line: u64,
    /// The row is the last piece, and a server is to judge it first.
    pub(super) judged: bool,
}

/// A piece of the stream; ranges are of `Splitter::bytes`.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Piece {
    /// Every shard must hear it first: the header line, the binary header.
    Head { bytes: Range<usize>, lines: LineCount },
    /// `hash` is `None` when the row has no key that could be read; any server reports that. `line`: the client's own.
    Row { bytes: Range<usize>, hash: Option<KeyHash>, lines: LineCount, line: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Newline,
    Both,
}

pub(super) struct Splitter {
    format: CopyFormat,
    key_position: usize,
    reader: KeyReader,
    table: String,
    /// Not cut yet.
    buffer: Vec<u8>,
    /// Where looking for the row's end goes on, and within quotes or not.
    scanned: usize,
    quoted: bool,
    /// Lines (or binary rows) up to the last row that was cut.
    line: LineCounter,
    /// Newlines and carriage returns within quotes of the row that is being looked at.
    newlines: u64,
    returns: u64,
    line_end: Option<LineEnd>,
    head_done: bool,
    ended: bool,
}

impl Splitter {
    pub(super) fn new(format: CopyFormat, key_position: usize, reader: KeyReader, table: String) -> Self {
        let head_done = !matches!(format, CopyFormat::Binary | CopyFormat::Csv { header: true, .. });
        Self {
            format,
            key_position,
            reader,
            table,
            buffer: Vec::new(),
            scanned: 0,
            quoted: false,
            line: LineCounter::default(),
            newlines: 0,
            returns: 0,
            line_end: None,
            head_done,
            ended: false,
        }
    }

    /// What the ranges of pieces refer to, until the next call of `push`.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes a part of the stream and cuts off what is complete. `pieces` is emptied first.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        consumed: &mut usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), CopyError> {
        self.buffer.drain(..*consumed);
        self.scanned -= *consumed;
        *consumed = 0;
        pieces.clear();
        if self.ended {
            return Ok(());
        }
        self.buffer.extend_from_slice(chunk);
        while !self.ended {
            let start = *consumed;
            let Some(end) = self.next_end(start)? else { break };
            *consumed = end;
            self.scanned = end;
            self.cut(start..end, pieces)?;
        }
        if self.buffer.len() - *consumed > COPY_ROW {
            return Err(self.error("54000", format!("a row of this COPY is longer than {COPY_ROW} bytes")));
        }
        Ok(())
    }

    /// The stream is over: what is left is the last row, without a line end.
    pub(super) fn finish(&mut self, consumed: &mut usize, pieces: &mut Vec<Piece>) -> Result<(), CopyError> {
        self.push(b"", consumed, pieces)?;
        let rest = *consumed..self.buffer.len();
        if self.ended || rest.is_empty() {
            return Ok(());
        }
        if self.format == CopyFormat::Binary {
            return Err(self.error("22P04", "unexpected EOF in COPY data".to_owned()));
        }
        if self.quoted {
            *consumed = rest.end;
            self.scanned = rest.end;
            let lines = self.count_row();
            pieces.push(Piece::Row { bytes: rest, hash: None, lines, line: self.line.lines() });
            let error = self.error("22P04", "unterminated CSV quoted field".to_owned());
            return Err(CopyError { judged: true, ..error });
        }
        // An incomplete line end would be completed by the next row of a shard.
        if self.buffer[rest.clone()].ends_with(b"\r") {
            self.count_row();
            return Err(self.carriage_return());
        }
        *consumed = rest.end;
        self.scanned = rest.end;
        self.cut(rest, pieces)
    }

    fn error(&self, sqlstate: &'static str, message: String) -> CopyError {
        CopyError { sqlstate, message, line: self.line.lines(), judged: false }
    }

    /// The row that is being looked at, as servers count its lines.
    fn count_row(&mut self) -> LineCount {
        let (newlines, returns) = (std::mem::take(&mut self.newlines), std::mem::take(&mut self.returns));
        let later = if self.line_end == Some(LineEnd::Newline) { newlines } else { returns };
        let count = LineCount { first: 1 + returns, later: 1 + later };
        self.line.add(count);
        count
    }

    fn carriage_return(&self) -> CopyError {
        let kind = if matches!(self.format, CopyFormat::Csv { .. }) { "unquoted" } else { "literal" };
        self.error("22P04", format!("{kind} carriage return found in data"))
    }

    /// The end of the piece that starts at `start`, if it has arrived.
    fn next_end(&mut self, start: usize) -> Result<Option<usize>, CopyError> {
        match self.format {
            CopyFormat::Binary => self.binary_end(start),
            CopyFormat::Text { .. } => self.line_end(start, None),
            CopyFormat::Csv { quote, escape, .. } => self.line_end(start, Some((quote, escape))),
        }
    }

    fn line_end(&mut self, start: usize, csv: Option<(u8, u8)>) -> Result<Option<usize>, CopyError> {
        let mut at = self.scanned.max(start);
        while at < self.buffer.len() {
            let byte = self.buffer[at];
            match csv {
                None if byte == b'\\' => {
                    if at + 1 >= self.buffer.len() {
                        break;
                    }
                    // A backslash before a line end makes it data, which servers do not count as a line.
                    at += 2;
                    continue;
                }
                Some((quote, escape)) if self.quoted => {
                    if byte == escape && escape != quote {
                        let Some(next) = self.buffer.get(at + 1) else { break };
                        if *next == quote || *next == escape {
                            at += 2;
                            continue;
                        }
                    }
                    self.quoted = byte != quote;
                    self.newlines += u64::from(byte == b'\n');
                    self.returns += u64::from(byte == b'\r');
                    at += 1;
                    continue;
                }
                Some((quote, _)) if byte == quote => self.quoted = true,
                _ => {}
            }
            let found = match byte {
                b'\n' => Some((LineEnd::Newline, at + 1)),
                b'\r' => match self.buffer.get(at + 1) {
                    None => break,
                    Some(b'\n') => Some((LineEnd::Both, at + 2)),
                    Some(_) => {
                        self.count_row();
                        return Err(self.carriage_return());
                    }
                },
                _ => None,
            };
            if let Some((kind, end)) = found {
                if *self.line_end.get_or_insert(kind) != kind {
                    self.count_row();
                    let what = if kind == LineEnd::Newline { "newline" } else { "carriage return" };
                    return Err(self.error("22P04", format!("literal {what} found in data")));
                }
                return Ok(Some(end));
            }
            at += 1;
        }
        self.scanned = at;
        Ok(None)
    }

    fn binary_end(&mut self, start: usize) -> Result<Option<usize>, CopyError> {
        let rest = &self.buffer[start..];
        let int = |at: usize| rest.get(at..at + 4).map(|b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        if !self.head_done {
            let (Some(flags), Some(extension)) = (int(11), int(15)) else { return Ok(None) };
            if !rest.starts_with(BINARY_SIGNATURE) || flags >> 16 != 0 || extension < 0 {
                return Err(self.error("22P04", "COPY file signature not recognized".to_owned()));
            }
            let end = 19 + extension as usize;
            return Ok((rest.len() >= end).then_some(start + end));
        }
        let Some(count) = rest.get(..2).map(|b| i16::from_be_bytes([b[0], b[1]])) else { return Ok(None) };
        if count == -1 {
            self.ended = true;
            return Ok(None);
        }
        let mut at = 2;
        for _ in 0..count {
            let Some(length) = int(at) else { return Ok(None) };
            if length < -1 {
                self.count_row();
                return Err(self.error("22P04", "unexpected EOF in COPY data".to_owned()));
            }
            at += 4 + length.max(0) as usize;
        }
        Ok((rest.len() >= at).then_some(start + at))
    }

    fn cut(&mut self, bytes: Range<usize>, pieces: &mut Vec<Piece>) -> Result<(), CopyError> {
        if !self.head_done {
            self.head_done = true;
            let binary = self.format == CopyFormat::Binary;
            let lines = if binary { LineCount { first: 0, later: 0 } } else { self.count_row() };
            pieces.push(Piece::Head { bytes, lines });
            return Ok(());
        }
        let row = &self.buffer[bytes.clone()];
        let row = row.strip_suffix(b"\n").map_or(row, |r| r.strip_suffix(b"\r").unwrap_or(r));
        let value = match &self.format {
            CopyFormat::Binary => binary_field(row, self.key_position).map(|f| f.map(<[u8]>::to_vec)),
            _ if row == b"\\." => {
                self.ended = true;
                return Ok(());
            }
            CopyFormat::Text { delimiter, null } => text_field(row, self.key_position, *delimiter, null),
            CopyFormat::Csv { delimiter, quote, escape, null, .. } => {
                csv_field(row, self.key_position, (*delimiter, *quote, *escape), null)
            }
        };
        // Of a row whose key is no key a server says what PostgreSQL says; our own words are for one that takes it.
        let mut wrong = None;
        let hash = match value {
            None => None,
            Some(None) => {
                wrong = Some(("23502", format!("null value in the sharding key of table {}", self.table)));
                None
            }
            Some(Some(value)) => {
                let read = if self.format == CopyFormat::Binary {
                    self.reader.binary(&value, 0)
                } else {
                    self.reader.text(&value)
                };
                match read {
                    Ok(KeyValue::At(hash)) => Some(hash),
                    Ok(KeyValue::Nowhere) => None,
                    Err(refusal) => {
                        wrong = Some((refusal.sqlstate, refusal.message));
                        None
                    }
                }
            }
        };
        let lines = self.count_row();
        pieces.push(Piece::Row { bytes, hash, lines, line: self.line.lines() });
        match wrong {
            None => Ok(()),
            Some((sqlstate, message)) => Err(CopyError { judged: true, ..self.error(sqlstate, message) }),
        }
    }
}

/// `None`: the row has no such field. `Some(None)`: NULL.
fn text_field(row: &[u8], position: usize, delimiter: u8, null: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut fields = 0;
    let (mut start, mut at) = (0, 0);
    while at <= row.len() {
        if at == row.len() || row[at] == delimiter {
            if fields == position {
                let raw = &row[start..at];
                return Some((raw != null).then(|| unescape(raw)));
            }
            fields += 1;
            start = at + 1;
            at += 1;
        } else {
            at += if row[at] == b'\\' { 2 } else { 1 };
            at = at.min(row.len());
            if at == row.len() && fields == position {
                continue;
            }
        }
    }
    None
}

fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let byte = raw[at];
        at += 1;
        if byte != b'\\' || at == raw.len() {
            out.push(byte);
            continue;
        }
        let escaped = raw[at];
        at += 1;
        out.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'0'..=b'7' => {
                let mut value = u32::from(escaped - b'0');
                for _ in 0..2 {
                    match raw.get(at) {
                        Some(digit @ b'0'..=b'7') => {
                            value = value << 3 | u32::from(digit - b'0');
                            at += 1;
                        }
                        _ => break,
                    }
                }
                value as u8
            }
            b'x' if raw.get(at).is_some_and(u8::is_ascii_hexdigit) => {
                let mut value = 0;
                for _ in 0..2 {
                    match raw.get(at).and_then(|d| (*d as char).to_digit(16)) {
                        Some(digit) => {
                            value = value << 4 | digit;
                            at += 1;
                        }
                        None => break,
                    }
                }
                value as u8
            }
            other => other,
        });
    }
    out
}

fn csv_field(
    row: &[u8],
    position: usize,
    (delimiter, quote, escape): (u8, u8, u8),
    null: &[u8],
) -> Option<Option<Vec<u8>>> {
    let mut at = 0;
    for field in 0.. {
        let mut value = Vec::new();
        let (mut inside, mut was_quoted) = (false, false);
        while at < row.len() {
            let byte = row[at];
            if inside {
                let next = row.get(at + 1);
                if byte == escape && next.is_some_and(|n| *n == quote || *n == escape) {
                    value.push(row[at + 1]);
                    at += 2;
                    continue;
                }
                if byte == quote {
                    inside = false;
                } else {
                    value.push(byte);
                }
            } else if byte == delimiter {
                break;
            } else if byte == quote {
                inside = true;
                was_quoted = true;
            } else {
                value.push(byte);
            }
            at += 1;
        }
        if field == position {
            return Some((was_quoted || value != null).then_some(value));
        }
        if at >= row.len() {
            return None;
        }
        at += 1;
    }
    None
}

fn binary_field(row: &[u8], position: usize) -> Option<Option<&[u8]>> {
    let count = i16::from_be_bytes([*row.first()?, *row.get(1)?]);
    let mut at = 2;
    for field in 0..usize::try_from(count).ok()? {
        let length = row.get(at..at + 4)?;
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        at += 4;
        let value = if length < 0 { None } else { Some(row.get(at..at + length as usize)?) };
        if field == position {
            return Some(value);
        }
        at += length.max(0) as usize;
    }
    None
}

#[cfg(test)]
#[path = "copy_split_tests.rs"]
mod tests;
