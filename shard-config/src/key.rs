//! Key values as clients write them, brought to the bytes that are hashed (H24). What is accepted here is exactly
//! what PostgreSQL's input and receive functions accept for the type; a spelling they would refuse is `None`, and
//! then there is no bucket to speak of.

use crate::bucket::{Bucket, KeyHash, hash_of_int8, hash_of_text, hash_of_uuid};

/// The types a sharding key may have. Others are refused: `numeric` has 1 and 1.0, `char(n)` pads, `varchar(n)`
/// truncates trailing blanks, `citext` folds, so equal keys could have different bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    Uuid,
    Int8,
    Int4,
    Int2,
    Text,
}

impl KeyType {
    pub const ALL: [Self; 5] = [Self::Uuid, Self::Int8, Self::Int4, Self::Int2, Self::Text];

    /// The name used in the configuration and in `pg_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
            Self::Text => "text",
        }
    }

    /// The type's name in `pg_type`, or the SQL name of an integer type.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "uuid" => Self::Uuid,
            "int8" | "bigint" => Self::Int8,
            "int4" | "integer" | "int" => Self::Int4,
            "int2" | "smallint" => Self::Int2,
            "text" => Self::Text,
            _ => return None,
        })
    }

    /// Whether equal values of both have equal hashes: integers of any width.
    pub const fn hashes_like(self, other: Self) -> bool {
        const fn family(key: KeyType) -> u8 {
            match key {
                KeyType::Uuid => 0,
                KeyType::Int2 | KeyType::Int4 | KeyType::Int8 => 1,
                KeyType::Text => 2,
            }
        }
        family(self) == family(other)
    }

    /// `pg_type.oid` (`src/include/catalog/pg_type.dat`).
    pub const fn oid(self) -> u32 {
        match self {
            Self::Uuid => 2950,
            Self::Int8 => 20,
            Self::Int4 => 23,
            Self::Int2 => 21,
            Self::Text => 25,
        }
    }

    pub fn from_oid(oid: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.oid() == oid)
    }

    /// The hash expression as a shard computes it.
    pub fn sql_hash(self, column: &str) -> String {
        let function = match self {
            Self::Uuid => "uuid_hash_extended",
            Self::Int8 => "hashint8extended",
            Self::Int4 => "hashint4extended",
            Self::Int2 => "hashint2extended",
            Self::Text => "hashtextextended",
        };
        format!("{function}({column}, {})", crate::HASH_SEED)
    }

    /// The bucket expression as a shard computes it, for CHECKs, publications and DBAs.
    pub fn sql(self, column: &str, buckets: u16) -> String {
        format!("({} & {})", self.sql_hash(column), buckets - 1)
    }

    /// The hash of a value in PostgreSQL's text format. `None`: the server would not accept this text.
    #[inline]
    pub fn hash_of_text_value(self, value: &[u8]) -> Option<KeyHash> {
        match self {
            Self::Uuid => parse_uuid(value).map(|key| hash_of_uuid(&key)),
            Self::Int8 | Self::Int4 | Self::Int2 => {
                parse_int8(value).filter(|n| self.in_range(*n)).map(hash_of_int8)
            }
            Self::Text => std::str::from_utf8(value)
                .ok()
                .filter(|text| !text.contains('\0'))
                .map(|_| hash_of_text(value)),
        }
    }

    /// The hash of a value in PostgreSQL's binary format. `None`: wrong length, or not UTF-8.
    #[inline]
    pub fn hash_of_binary_value(self, value: &[u8]) -> Option<KeyHash> {
        match self {
            Self::Uuid => value.try_into().ok().map(hash_of_uuid),
            Self::Int8 => value.try_into().ok().map(|n| hash_of_int8(i64::from_be_bytes(n))),
            Self::Int4 => value.try_into().ok().map(|n| hash_of_int8(i32::from_be_bytes(n).into())),
            Self::Int2 => value.try_into().ok().map(|n| hash_of_int8(i16::from_be_bytes(n).into())),
            Self::Text => self.hash_of_text_value(value),
        }
    }

    /// The bucket of a value in PostgreSQL's text format. `None`: the server would not accept this text.
    #[inline]
    pub fn bucket_of_text_value(self, value: &[u8], buckets: u16) -> Option<Bucket> {
        self.hash_of_text_value(value).map(|hash| hash.bucket(buckets))
    }

    /// The bucket of a value in PostgreSQL's binary format. `None`: wrong length, or not UTF-8.
    #[inline]
    pub fn bucket_of_binary_value(self, value: &[u8], buckets: u16) -> Option<Bucket> {
        self.hash_of_binary_value(value).map(|hash| hash.bucket(buckets))
    }

    fn in_range(self, number: i64) -> bool {
        match self {
            Self::Int2 => i16::try_from(number).is_ok(),
            Self::Int4 => i32::try_from(number).is_ok(),
            _ => true,
        }
    }
}

impl std::fmt::Display for KeyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `string_to_uuid` of `src/backend/utils/adt/uuid.c`: 32 hexadecimal digits of either case, a hyphen allowed
/// after every fourth, the whole in braces or not; no blanks.
#[inline]
pub fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let text = match text {
        [b'{', inner @ .., b'}'] => inner,
        _ => text,
    };
    let mut key = [0; 16];
    let mut at = 0;
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = hex(*text.get(at)?)? << 4 | hex(*text.get(at + 1)?)?;
        at += 2;
        if i % 2 == 1 && i < 15 && text.get(at) == Some(&b'-') {
            at += 1;
        }
    }
    (at == text.len()).then_some(key)
}

#[inline]
fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// `pg_strtoint64` of PostgreSQL 15: blanks around it, one sign, decimal digits. The `0x10` and `1_000` of
/// PostgreSQL 16 are not accepted, so that shards of both versions agree.
#[inline]
pub fn parse_int8(text: &[u8]) -> Option<i64> {
    // isspace() in the C locale, which is more than `trim_ascii` strips (vertical tab).
    let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = text.iter().position(|b| !blank(b))?;
    let end = text.iter().rposition(|b| !blank(b))? + 1;
    let (negative, digits) = match &text[start..end] {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    // Accumulated as a negative number, because -2^63 has no positive counterpart.
    let mut number = 0i64;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        number = number.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative { Some(number) } else { number.checked_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key_type: KeyType, text: &str, expected: Option<u16>) {
        assert_eq!(
            key_type.bucket_of_text_value(text.as_bytes(), 4096).map(Bucket::get),
            expected,
            "{key_type} {text:?}"
        );
    }

    #[test]
    fn h24_every_spelling_of_a_uuid_is_one_bucket() {
        for text in [
            "550e8400-e29b-41d4-a716-446655440000",
            "550E8400-E29B-41D4-A716-446655440000",
            "550e8400e29b41d4a716446655440000",
            "{550e8400-e29b-41d4-a716-446655440000}",
            "550e-8400-e29b-41d4-a716-4466-5544-0000",
        ] {
            check(KeyType::Uuid, text, Some(3302));
        }
        for text in [
            "",
            "550e8400",
            " 550e8400-e29b-41d4-a716-446655440000",
            "550e8400-e29b-41d4-a716-446655440000 ",
            "{550e8400-e29b-41d4-a716-446655440000",
            "550e8400-e29b-41d4-a716-446655440000}",
            "550e840-0e29b-41d4-a716-446655440000",
            "550e8400-e29b-41d4-a716-446655440000-",
            "g50e8400-e29b-41d4-a716-446655440000",
        ] {
            check(KeyType::Uuid, text, None);
        }
    }

    #[test]
    fn h24_a_number_is_one_bucket_in_every_integer_type_and_spelling() {
        for key_type in [KeyType::Int2, KeyType::Int4, KeyType::Int8] {
            for text in ["42", "+42", " 42", "42\n", "0042", "\x0b42\x0c"] {
                check(key_type, text, Some(383));
            }
            check(key_type, "-1", Some(1730));
            for text in ["", " ", "-", "4 2", "42.0", "0x2a", "4_2", "+-1", "1e3"] {
                check(key_type, text, None);
            }
        }
        check(KeyType::Int8, "9223372036854775807", Some(403));
        check(KeyType::Int8, "-9223372036854775808", Some(2204));
        check(KeyType::Int8, "9223372036854775808", None);
        check(KeyType::Int4, "2147483648", None);
        check(KeyType::Int2, "32768", None);
    }

    #[test]
    fn h24_text_key_latin1_is_refused() {
        assert_eq!(KeyType::Text.bucket_of_text_value(b"caf\xe9", 4096), None);
        assert!(KeyType::Text.bucket_of_text_value("café".as_bytes(), 4096).is_some());
        assert_eq!(KeyType::Text.bucket_of_binary_value(b"caf\xe9", 4096), None);
    }

    #[test]
    fn binary_and_text_format_agree() {
        let text = KeyType::Uuid.bucket_of_text_value(b"018f3c1e-7b2a-7c3d-8e4f-5a6b7c8d9e0f", 4096);
        let binary = KeyType::Uuid.bucket_of_binary_value(
            &[0x01, 0x8f, 0x3c, 0x1e, 0x7b, 0x2a, 0x7c, 0x3d, 0x8e, 0x4f, 0x5a, 0x6b, 0x7c, 0x8d, 0x9e, 0x0f],
            4096,
        );
        assert_eq!(text, binary);
        assert_eq!(text.map(Bucket::get), Some(529));
        let binary = |t: KeyType, bytes: &[u8]| t.bucket_of_binary_value(bytes, 4096).map(Bucket::get);
        assert_eq!(binary(KeyType::Int8, &42i64.to_be_bytes()), Some(383));
        assert_eq!(binary(KeyType::Int4, &(-1i32).to_be_bytes()), Some(1730));
        assert_eq!(binary(KeyType::Int2, &42i16.to_be_bytes()), Some(383));
        assert_eq!(binary(KeyType::Int8, &42i32.to_be_bytes()), None);
    }
}
