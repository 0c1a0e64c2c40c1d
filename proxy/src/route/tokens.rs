//! All tokens of a text: for the slow path, which needs borders rather than speed.

use super::scanner::{CLASSES, Class, Scanner};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub range: std::ops::Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Word,
    Open,
    Close,
    Comma,
    Semicolon,
    /// `$n`, as written (1-based).
    Parameter(u16),
    Other,
}

/// All tokens of a text; `None` when the lexer is not sure of them.
pub fn tokens(sql: &[u8], standard_strings: bool) -> Option<Vec<Token>> {
    let mut s = Scanner { sql, at: 0, standard_strings, sure: true, open_comment: false };
    let mut all = Vec::new();
    while let Some(&byte) = sql.get(s.at) {
        let begin = s.at;
        let class = CLASSES[byte as usize];
        if class == Class::Space {
            s.at += 1;
            continue;
        }
        if class == Class::Operator && s.comment() {
            continue;
        }
        let kind = match class {
            Class::Letter => match s.prefixed_string(byte) {
                Some(_) => TokenKind::Other,
                None => {
                    s.word();
                    TokenKind::Word
                }
            },
            Class::Quote => {
                s.string(!standard_strings);
                TokenKind::Other
            }
            Class::DoubleQuote => {
                s.quoted_identifier();
                TokenKind::Other
            }
            Class::Digit => {
                s.number();
                TokenKind::Other
            }
            Class::Dot if s.peek(1).is_ascii_digit() => {
                s.number();
                TokenKind::Other
            }
            Class::Dollar if s.peek(1).is_ascii_digit() => TokenKind::Parameter(s.parameter()),
            Class::Dollar => {
                s.dollar_string();
                TokenKind::Other
            }
            Class::Operator => {
                s.operator();
                TokenKind::Other
            }
            _ => {
                s.at += 1;
                match class {
                    Class::Open => TokenKind::Open,
                    Class::Close => TokenKind::Close,
                    Class::Comma => TokenKind::Comma,
                    Class::Semicolon => TokenKind::Semicolon,
                    _ => TokenKind::Other,
                }
            }
        };
        all.push(Token { kind, range: begin..s.at });
    }
    s.sure.then_some(all)
}
