//! PostgreSQL's lexer, as far as routing needs it: where statements end, where constants are.
//!
//! One pass, no allocation. It follows `src/backend/parser/scan.l`; where it is not sure (an odd spelling, an
//! unterminated string) it says so, and the caller takes the uncached path, in which PostgreSQL's own grammar
//! decides.
//!
//! A constant is *cut* when it stands where only its value can matter (after an operator, inside parentheses,
//! after WHERE and the like), so that statements which differ in it share a plan. Everything else stays in the
//! text that the plan cache compares: `ORDER BY 1`, `LIMIT 10`, `interval '1 day'` (H25). The analyser has the last
//! word: a plan that looked at a cut constant's value is kept for that very text only.

use smallvec::SmallVec;

use super::scanner::{CLASSES, Class, Scanner};

/// All constants of a statement, in text order.
pub type Literals = SmallVec<[Literal; 8]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal {
    /// Byte offset within the statement's own text. A sign that belongs to the constant is included, quotes too.
    pub start: u32,
    pub len: u32,
    pub kind: LiteralKind,
    /// Left out of the text that the plan cache compares.
    pub cut: bool,
}

impl Literal {
    pub fn end(&self) -> usize {
        self.start as usize + self.len as usize
    }

    /// The constant as written, quotes and all.
    pub fn source<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.start as usize..self.end()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LiteralKind {
    Integer,
    NegativeInteger,
    Decimal,
    NegativeDecimal,
    /// `'...'` with standard_conforming_strings on.
    String,
    /// `E'...'`, or `'...'` with standard_conforming_strings off.
    Escape,
    Dollar,
    /// `U&''`, bit strings, `N''`, continued strings, `1_000`, `0x10`: never cut, never a key.
    Odd,
}

/// One statement found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// From the first token to the end of the last; without comments around it and without the semicolon.
    pub start: usize,
    pub end: usize,
    /// Where the next statement's scan starts.
    pub next: usize,
    /// No token at all.
    pub empty: bool,
    /// `false`: the lexer met something that it does not understand for certain.
    pub sure: bool,
    /// Highest `$n`.
    pub parameters: u16,
}

#[derive(Clone, Copy)]
enum Previous {
    Start,
    Word(usize, usize),
    Operator,
    Open,
    Comma,
    Other,
}

/// Scans one statement from `from`. Offsets in `literals` are relative to the statement's start.
pub fn scan(sql: &[u8], from: usize, standard_strings: bool, literals: &mut Literals) -> Scanned {
    literals.clear();
    let mut s = Scanner { sql, at: from, standard_strings, sure: true, open_comment: false };
    let mut start = None;
    let mut end = from;
    let mut depth = 0u32;
    let mut cuttable = false;
    let mut parameters = 0u16;
    let mut previous = Previous::Start;
    while let Some(&byte) = sql.get(s.at) {
        let begin = s.at;
        let class = CLASSES[byte as usize];
        if class == Class::Space {
            s.at += 1;
            continue;
        }
        if class == Class::Operator && s.comment() {
            if s.open_comment {
                // An error, which the grammar words: it belongs to the statement.
                start.get_or_insert(begin);
                end = s.at;
            }
            continue;
        }
        if class == Class::Semicolon && depth == 0 {
            s.at += 1;
            break;
        }
        let first = *start.get_or_insert(begin);
        let mut found: Option<LiteralKind> = None;
        let next = match class {
            Class::Letter => match s.prefixed_string(byte) {
                Some(kind) => {
                    found = kind;
                    Previous::Other
                }
                None => {
                    s.word();
                    if begin == first {
                        cuttable = data_statement(&sql[begin..s.at]);
                    }
                    Previous::Word(begin, s.at)
                }
            },
            Class::Quote => {
                found = Some(s.string(!standard_strings));
                Previous::Other
            }
            Class::DoubleQuote => {
                s.quoted_identifier();
                Previous::Other
            }
            Class::Digit => {
                found = Some(s.number());
                Previous::Other
            }
            Class::Dot if s.peek(1).is_ascii_digit() => {
                found = Some(s.number());
                Previous::Other
            }
            Class::Dollar => {
                if s.peek(1).is_ascii_digit() {
                    parameters = parameters.max(s.parameter());
                } else {
                    found = Some(s.dollar_string());
                }
                Previous::Other
            }
            Class::Operator => {
                if byte == b'-' && unary_position(sql, previous) && starts_number(sql, begin + 1) {
                    s.at += 1;
                    found = Some(match s.number() {
                        LiteralKind::Integer => LiteralKind::NegativeInteger,
                        LiteralKind::Decimal => LiteralKind::NegativeDecimal,
                        odd => odd,
                    });
                    Previous::Other
                } else {
                    s.operator();
                    Previous::Operator
                }
            }
            Class::Open => {
                if begin == first {
                    cuttable = true;
                }
                depth += 1;
                s.at += 1;
                Previous::Open
            }
            Class::Close => {
                depth = depth.saturating_sub(1);
                s.at += 1;
                Previous::Other
            }
            Class::Comma => {
                s.at += 1;
                if depth > 0 { Previous::Comma } else { Previous::Other }
            }
            Class::Colon => {
                s.at += 1;
                match s.peek(0) {
                    b':' => {
                        s.at += 1;
                        Previous::Other
                    }
                    b'=' => {
                        s.at += 1;
                        Previous::Operator
                    }
                    _ => Previous::Other,
                }
            }
            Class::Semicolon | Class::Dot => {
                s.at += 1;
                Previous::Other
            }
            Class::Other | Class::Space => {
                // `{`, `}`, `\`, a control byte: nothing that PostgreSQL's lexer knows outside strings.
                s.sure = false;
                s.at += 1;
                Previous::Other
            }
        };
        if let Some(kind) = found {
            let cut = cuttable && kind != LiteralKind::Odd && value_position(sql, previous);
            literals.push(Literal {
                start: u32::try_from(begin - first).unwrap_or(u32::MAX),
                len: u32::try_from(s.at - begin).unwrap_or(u32::MAX),
                kind,
                cut,
            });
        }
        previous = next;
        end = s.at;
    }
    let start_at = start.unwrap_or(s.at);
    // KeyPlace numbers literals by u16.
    let sure = s.sure && literals.len() <= usize::from(u16::MAX);
    Scanned { start: start_at, end: end.max(start_at), next: s.at, empty: start.is_none(), sure, parameters }
}

/// Statements whose constants may be cut; utility statements keep theirs (`SET x = 'y'`).
fn data_statement(word: &[u8]) -> bool {
    let is = |text: &[u8]| word.eq_ignore_ascii_case(text);
    match word.len() {
        4 => is(b"with") || is(b"call"),
        5 => is(b"merge"),
        6 => is(b"select") || is(b"insert") || is(b"update") || is(b"delete") || is(b"values"),
        _ => false,
    }
}

/// Words after which an expression's operand follows. All are reserved or cannot be column names, but BETWEEN; if
/// it is one, the analyser does not find the constant where the lexer did, and does not share the plan.
fn operand_word(word: &[u8]) -> bool {
    let is = |text: &[u8]| word.eq_ignore_ascii_case(text);
    match word.len() {
        2 => is(b"or") || is(b"on"),
        3 => is(b"and") || is(b"not"),
        4 => is(b"when") || is(b"then") || is(b"else") || is(b"like"),
        5 => is(b"where") || is(b"ilike"),
        6 => is(b"having"),
        7 => is(b"between"),
        _ => false,
    }
}

fn value_position(sql: &[u8], previous: Previous) -> bool {
    match previous {
        Previous::Operator | Previous::Open | Previous::Comma => true,
        Previous::Word(from, to) => operand_word(&sql[from..to]),
        Previous::Start | Previous::Other => false,
    }
}

fn unary_position(sql: &[u8], previous: Previous) -> bool {
    matches!(previous, Previous::Start) || value_position(sql, previous)
}

fn starts_number(sql: &[u8], at: usize) -> bool {
    match sql.get(at) {
        Some(b'.') => sql.get(at + 1).is_some_and(u8::is_ascii_digit),
        Some(byte) => byte.is_ascii_digit(),
        None => false,
    }
}
