//! The lexer's rules for one token each, after `scan.l`.

use super::lex::LiteralKind;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Space,
    Letter,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Operator,
    Open,
    Close,
    Comma,
    Semicolon,
    Dot,
    Colon,
    Other,
}

pub(super) const CLASSES: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = match i as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'<' | b'>' | b'=' => Class::Operator,
            b'(' | b'[' => Class::Open,
            b')' | b']' => Class::Close,
            b',' => Class::Comma,
            b';' => Class::Semicolon,
            b'.' => Class::Dot,
            b':' => Class::Colon,
            _ => Class::Other,
        };
        i += 1;
    }
    table
};

/// A cursor in a text.
pub(super) struct Scanner<'a> {
    pub(super) sql: &'a [u8],
    pub(super) at: usize,
    pub(super) standard_strings: bool,
    /// Cleared when something is not understood for certain.
    pub(super) sure: bool,
    /// A comment that nothing ends.
    pub(super) open_comment: bool,
}

impl Scanner<'_> {
    /// The byte `ahead` of the cursor; 0 at the end, which no rule accepts.
    pub(super) fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Skips a comment if one starts here.
    pub(super) fn comment(&mut self) -> bool {
        match (self.peek(0), self.peek(1)) {
            (b'-', b'-') => {
                while !matches!(self.peek(0), b'\n' | b'\r' | 0)
                    || (self.peek(0) == 0 && self.at < self.sql.len())
                {
                    self.at += 1;
                }
                true
            }
            (b'/', b'*') => {
                let mut depth = 0u32;
                loop {
                    match (self.peek(0), self.peek(1)) {
                        (b'/', b'*') => {
                            depth += 1;
                            self.at += 2;
                        }
                        (b'*', b'/') => {
                            depth -= 1;
                            self.at += 2;
                            if depth == 0 {
                                return true;
                            }
                        }
                        _ if self.at >= self.sql.len() => {
                            self.sure = false;
                            self.open_comment = true;
                            return true;
                        }
                        _ => self.at += 1,
                    }
                }
            }
            _ => false,
        }
    }

    pub(super) fn word(&mut self) {
        while let Some(&byte) = self.sql.get(self.at) {
            if !matches!(CLASSES[byte as usize], Class::Letter | Class::Digit | Class::Dollar) {
                break;
            }
            self.at += 1;
        }
    }

    /// `E'..'` and the like. Outer `None`: an ordinary word; inner `None`: `U&"name"`.
    pub(super) fn prefixed_string(&mut self, byte: u8) -> Option<Option<LiteralKind>> {
        match (byte | 0x20, self.peek(1)) {
            (b'e', b'\'') => {
                self.at += 1;
                Some(Some(self.string(true)))
            }
            (b'b' | b'x' | b'n', b'\'') => {
                self.at += 1;
                let escapes = (byte | 0x20) == b'n' && !self.standard_strings;
                self.string(escapes);
                Some(Some(LiteralKind::Odd))
            }
            (b'u', b'&') if self.peek(2) == b'\'' => {
                self.at += 2;
                self.string(false);
                Some(Some(LiteralKind::Odd))
            }
            (b'u', b'&') if self.peek(2) == b'"' => {
                self.at += 2;
                self.quoted_identifier();
                Some(None)
            }
            _ => None,
        }
    }

    /// Cursor on the opening quote.
    pub(super) fn string(&mut self, escapes: bool) -> LiteralKind {
        let mut kind = if escapes { LiteralKind::Escape } else { LiteralKind::String };
        loop {
            self.at += 1;
            if !self.string_body(escapes) {
                self.sure = false;
                return LiteralKind::Odd;
            }
            // A string goes on after white space that holds a newline.
            if CLASSES[self.peek(0) as usize] == Class::Space
                || (self.peek(0) == b'-' && self.peek(1) == b'-')
            {
                let resume = self.at;
                if self.continued() {
                    kind = LiteralKind::Odd;
                    continue;
                }
                self.at = resume;
            }
            return kind;
        }
    }

    /// Goes behind the closing quote; `false` when there is none.
    fn string_body(&mut self, escapes: bool) -> bool {
        while let Some(&byte) = self.sql.get(self.at) {
            match byte {
                b'\'' if self.peek(1) == b'\'' => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    return true;
                }
                b'\\' if escapes => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at = self.sql.len();
        false
    }

    fn continued(&mut self) -> bool {
        let mut newline = false;
        loop {
            match self.peek(0) {
                b'\n' | b'\r' => {
                    newline = true;
                    self.at += 1;
                }
                b' ' | b'\t' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.peek(1) == b'-' => {
                    self.comment();
                }
                b'\'' => return newline,
                _ => return false,
            }
        }
    }

    pub(super) fn quoted_identifier(&mut self) {
        self.at += 1;
        while let Some(&byte) = self.sql.get(self.at) {
            self.at += 1;
            if byte == b'"' {
                if self.peek(0) != b'"' {
                    return;
                }
                self.at += 1;
            }
        }
        self.sure = false;
    }

    pub(super) fn number(&mut self) -> LiteralKind {
        let mut kind = LiteralKind::Integer;
        self.digits();
        // `1..2` is not a decimal (a range in PL/pgSQL).
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            kind = LiteralKind::Decimal;
            self.at += 1;
            self.digits();
        }
        if self.peek(0) | 0x20 == b'e' {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                kind = LiteralKind::Decimal;
                self.at += 1 + sign;
                self.digits();
            }
        }
        if CLASSES[self.peek(0) as usize] == Class::Letter {
            // 0x10, 1_000, or junk: what it means depends on the server's version.
            self.word();
            kind = LiteralKind::Odd;
        }
        kind
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
    }

    pub(super) fn parameter(&mut self) -> u16 {
        self.at += 1;
        let mut number = 0u32;
        while self.peek(0).is_ascii_digit() {
            number = number.saturating_mul(10).saturating_add(u32::from(self.peek(0) - b'0'));
            self.at += 1;
        }
        u16::try_from(number).unwrap_or_else(|_| {
            self.sure = false;
            u16::MAX
        })
    }

    pub(super) fn dollar_string(&mut self) -> LiteralKind {
        let open = self.at;
        let mut at = self.at + 1;
        while let Some(&byte) = self.sql.get(at) {
            match CLASSES[byte as usize] {
                Class::Letter => at += 1,
                Class::Digit if at > open + 1 => at += 1,
                _ => break,
            }
        }
        if self.sql.get(at) != Some(&b'$') {
            // A lone `$`: a syntax error, which the grammar will report.
            self.sure = false;
            self.at += 1;
            return LiteralKind::Odd;
        }
        let tag = &self.sql[open..=at];
        let mut from = at + 1;
        while let Some(offset) = self.sql[from..].iter().position(|b| *b == b'$') {
            from += offset;
            if self.sql[from..].starts_with(tag) {
                self.at = from + tag.len();
                return LiteralKind::Dollar;
            }
            from += 1;
        }
        self.at = self.sql.len();
        self.sure = false;
        LiteralKind::Odd
    }

    /// An operator of several characters ends in `+` or `-` only if it contains one of `~!@#^&|`?%` (scan.l), so
    /// that `=-5` is `=` and `-5`.
    pub(super) fn operator(&mut self) {
        let begin = self.at;
        let mut special = false;
        while let Some(&byte) = self.sql.get(self.at) {
            if CLASSES[byte as usize] != Class::Operator {
                break;
            }
            let after = self.peek(1);
            if self.at > begin && ((byte == b'-' && after == b'-') || (byte == b'/' && after == b'*')) {
                break;
            }
            special |= matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%');
            self.at += 1;
        }
        if !special {
            while self.at > begin + 1 && matches!(self.sql[self.at - 1], b'+' | b'-') {
                self.at -= 1;
            }
        }
    }
}
