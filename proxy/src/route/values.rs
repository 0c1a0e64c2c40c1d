//! From a constant or a parameter value to a bucket.
//!
//! Spellings are canonicalised by `shard_config::key` (H24); what the server would not accept as this type is
//! refused with the server's own SQLSTATE and words rather than sent to a guessed shard, because a server of another
//! version might accept it.

use shard_config::{KeyHash, KeyType};
use smallvec::SmallVec;

use super::lex::{Literal, LiteralKind};
use super::plan::Refusal;

/// One value of a Bind message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamValue<'a> {
    Null,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// Parameters of one execution; 0-based.
pub trait Params {
    /// `Null` for a parameter that does not exist: the server will report it.
    fn get(&self, n: u16) -> ParamValue<'_>;
    /// Type OID declared in Parse (or reported by the server); 0 when left to inference.
    fn type_oid(&self, n: u16) -> u32;
    /// Of text parameters, and of the statement's text itself.
    fn client_encoding_is_utf8(&self) -> bool;
}

/// For the simple protocol.
#[derive(Debug, Clone, Copy)]
pub struct NoParams {
    pub client_encoding_is_utf8: bool,
}

impl Params for NoParams {
    fn get(&self, _: u16) -> ParamValue<'_> {
        ParamValue::Null
    }

    fn type_oid(&self, _: u16) -> u32 {
        0
    }

    fn client_encoding_is_utf8(&self) -> bool {
        self.client_encoding_is_utf8
    }
}

/// A key value brought to its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyValue {
    At(KeyHash),
    /// NULL, or a number that no value of the column's type equals: matches no row on any shard.
    Nowhere,
}

/// What every conversion needs to know.
#[derive(Clone, Copy)]
pub struct KeyReader {
    pub key_type: KeyType,
    pub utf8: bool,
}

mod oid {
    //! `src/include/catalog/pg_type.dat`.
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const UUID: u32 = 2950;
}

fn integer_key(key_type: KeyType) -> bool {
    matches!(key_type, KeyType::Int2 | KeyType::Int4 | KeyType::Int8)
}

impl KeyReader {
    pub fn literal(self, literal: &Literal, text: &[u8]) -> Result<KeyValue, Refusal> {
        let source = literal.source(text);
        match literal.kind {
            LiteralKind::Integer | LiteralKind::NegativeInteger if integer_key(self.key_type) => {
                // A constant of a wider type is compared as such: no row of a narrower column equals it.
                Ok(KeyType::Int8
                    .hash_of_text_value(source)
                    .filter(|_| self.key_type.hash_of_text_value(source).is_some())
                    .map_or(KeyValue::Nowhere, KeyValue::At))
            }
            LiteralKind::Decimal | LiteralKind::NegativeDecimal if integer_key(self.key_type) => {
                self.decimal(source)
            }
            LiteralKind::String | LiteralKind::Escape | LiteralKind::Dollar => {
                let mut scratch = SmallVec::new();
                match string_value(literal, source, &mut scratch) {
                    Some(value) => self.text(value),
                    None => Err(self.unreadable()),
                }
            }
            _ => Err(self.unreadable()),
        }
    }

    pub fn parameter(self, value: ParamValue<'_>, type_oid: u32) -> Result<KeyValue, Refusal> {
        match value {
            ParamValue::Null => Ok(KeyValue::Nowhere),
            ParamValue::Text(bytes) => self.text_of_type(bytes, type_oid),
            ParamValue::Binary(bytes) => self.binary(bytes, type_oid),
        }
    }

    fn text_of_type(self, bytes: &[u8], type_oid: u32) -> Result<KeyValue, Refusal> {
        match type_oid {
            0 | oid::UNKNOWN | oid::TEXT | oid::VARCHAR => self.text(bytes),
            oid::UUID if self.key_type == KeyType::Uuid => self.text(bytes),
            oid::INT2 | oid::INT4 | oid::INT8 if integer_key(self.key_type) => self.wide_integer(bytes),
            oid::NUMERIC if integer_key(self.key_type) => self.decimal(bytes),
            _ => Err(self.wrong_type(type_oid)),
        }
    }

    /// Binary format; with a type left to inference, the type is the key's own or, for integers, told by the length.
    pub fn binary(self, bytes: &[u8], type_oid: u32) -> Result<KeyValue, Refusal> {
        match (type_oid, self.key_type) {
            (0 | oid::UUID, KeyType::Uuid) => {
                KeyType::Uuid.hash_of_binary_value(bytes).map(KeyValue::At).ok_or_else(|| bad_binary("uuid"))
            }
            (0 | oid::INT2 | oid::INT4 | oid::INT8, KeyType::Int2 | KeyType::Int4 | KeyType::Int8) => {
                let number = match *bytes {
                    [a, b] => i64::from(i16::from_be_bytes([a, b])),
                    [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
                    _ => return Err(bad_binary("integer")),
                };
                Ok(KeyValue::At(shard_config::hash_of_int8(number)))
            }
            (oid::TEXT | oid::VARCHAR | oid::UNKNOWN, _) | (0, KeyType::Text) => self.text(bytes),
            _ => Err(self.wrong_type(type_oid)),
        }
    }

    /// A string constant or a text parameter, read as the key's type by the server's input function.
    pub fn text(self, bytes: &[u8]) -> Result<KeyValue, Refusal> {
        if self.key_type == KeyType::Text && !self.utf8 && !bytes.is_ascii() {
            return Err(Refusal::unsupported(
                "a text key with non-ASCII characters needs client_encoding UTF8",
                "The server hashes the key in UTF-8; SET client_encoding = 'UTF8'.",
            ));
        }
        if let Some(hash) = self.key_type.hash_of_text_value(bytes) {
            return Ok(KeyValue::At(hash));
        }
        let shown = String::from_utf8_lossy(bytes);
        let name = sql_name(self.key_type);
        Err(if self.key_type == KeyType::Text {
            Refusal::new(
                "22021",
                "invalid byte sequence for encoding \"UTF8\"",
                "Send text in the client_encoding.",
            )
        } else if integer_key(self.key_type) && is_integer(bytes) {
            Refusal::new("22003", format!("value \"{shown}\" is out of range for type {name}"), KEY_HINT)
        } else {
            Refusal::new("22P02", format!("invalid input syntax for type {name}: \"{shown}\""), KEY_HINT)
        })
    }

    fn wide_integer(self, bytes: &[u8]) -> Result<KeyValue, Refusal> {
        Self { key_type: KeyType::Int8, ..self }.text(bytes)
    }

    /// A numeric equals an integer key when its fraction is zero.
    fn decimal(self, source: &[u8]) -> Result<KeyValue, Refusal> {
        let (whole, fraction) = match source.iter().position(|b| *b == b'.') {
            Some(dot) => (&source[..dot], &source[dot + 1..]),
            None => (source, &[][..]),
        };
        if !fraction.iter().all(|b| *b == b'0') {
            // As a comparison it matches nothing, as an inserted value it is rounded: not the same shard.
            return Err(self.unreadable());
        }
        if !is_integer(whole) {
            return Err(self.unreadable());
        }
        Ok(KeyType::Int8.hash_of_text_value(whole).map_or(KeyValue::Nowhere, KeyValue::At))
    }

    fn unreadable(self) -> Refusal {
        Refusal::unsupported(
            format!("this spelling of a key of type {} has no canonical form here", sql_name(self.key_type)),
            "Write the key as a plain constant of its own type, or pass it as a parameter.",
        )
    }

    fn wrong_type(self, type_oid: u32) -> Refusal {
        Refusal::unsupported(
            format!(
                "the key has type {} but its parameter was declared with type OID {type_oid}, which has no canonical form",
                sql_name(self.key_type)
            ),
            "Declare the parameter with the key's own type, or leave its type unspecified.",
        )
    }
}

const KEY_HINT: &str =
    "The value is the sharding key, so it is read before the statement is sent to a shard.";

fn bad_binary(name: &str) -> Refusal {
    Refusal::new(
        "22P03",
        format!("incorrect binary data format for the sharding key (type {name})"),
        KEY_HINT,
    )
}

fn sql_name(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Uuid => "uuid",
        KeyType::Int8 => "bigint",
        KeyType::Int4 => "integer",
        KeyType::Int2 => "smallint",
        KeyType::Text => "text",
    }
}

fn is_integer(bytes: &[u8]) -> bool {
    let digits = bytes.trim_ascii();
    let digits = digits.strip_prefix(b"-").or_else(|| digits.strip_prefix(b"+")).unwrap_or(digits);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// What a string constant stands for. `None`: an escape that is not decoded here.
pub fn string_value<'a>(
    literal: &Literal,
    source: &'a [u8],
    scratch: &'a mut SmallVec<[u8; 64]>,
) -> Option<&'a [u8]> {
    match literal.kind {
        LiteralKind::Dollar => {
            let tag = source.iter().skip(1).position(|b| *b == b'$')? + 2;
            source.get(tag..source.len().checked_sub(tag)?)
        }
        LiteralKind::String | LiteralKind::Escape => {
            let open = source.iter().position(|b| *b == b'\'')?;
            let body = source.get(open + 1..source.len().checked_sub(1)?)?;
            let escapes = literal.kind == LiteralKind::Escape && body.contains(&b'\\');
            if !escapes && !body.contains(&b'\'') {
                return Some(body);
            }
            scratch.clear();
            let mut bytes = body.iter().copied();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\'' => {
                        bytes.next();
                        scratch.push(b'\'');
                    }
                    b'\\' if escapes => match bytes.next()? {
                        same @ (b'\\' | b'\'' | b'"') => scratch.push(same),
                        _ => return None,
                    },
                    other => scratch.push(other),
                }
            }
            Some(scratch)
        }
        _ => None,
    }
}
