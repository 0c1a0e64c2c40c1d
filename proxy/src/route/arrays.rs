//! Arrays of keys: PostgreSQL's text and binary representations.

use smallvec::SmallVec;

use super::plan::Refusal;
use super::values::{KeyReader, KeyValue, ParamValue};

/// Calls `found` for each element of a text array (`array_in`). Elements may be nested; they are all visited.
pub fn text_array(
    reader: KeyReader,
    text: &[u8],
    one_dimension: bool,
    mut found: impl FnMut(KeyValue) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut at = skip_blanks(text, 0);
    if text.get(at) != Some(&b'{') {
        // `[2:3]={...}` has other bounds; nobody sends keys that way.
        return Err(malformed());
    }
    let mut depth = 0usize;
    let mut scratch: SmallVec<[u8; 64]> = SmallVec::new();
    loop {
        at = skip_blanks(text, at);
        match text.get(at).copied() {
            None => return Err(malformed()),
            Some(b'{') => {
                depth += 1;
                at += 1;
                if depth > 1 && one_dimension {
                    return Err(not_flat());
                }
                if depth > 6 {
                    return Err(malformed());
                }
            }
            Some(b'}') => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    break;
                }
            }
            Some(b',') => at += 1,
            Some(b'"') => {
                scratch.clear();
                at += 1;
                loop {
                    match text.get(at).copied() {
                        None => return Err(malformed()),
                        Some(b'"') => break,
                        Some(b'\\') => {
                            scratch.push(text.get(at + 1).copied().ok_or_else(malformed)?);
                            at += 2;
                        }
                        Some(byte) => {
                            scratch.push(byte);
                            at += 1;
                        }
                    }
                }
                at += 1;
                found(reader.text(&scratch)?)?;
            }
            Some(_) => {
                let from = at;
                while !matches!(text.get(at), None | Some(b',' | b'}' | b'{' | b'"' | b'\\')) {
                    at += 1;
                }
                // A quote or backslash within an unquoted element: legal, never produced; refused, not guessed.
                if !matches!(text.get(at), Some(b',' | b'}')) {
                    return Err(malformed());
                }
                let element = text[from..at].trim_ascii_end();
                if element.eq_ignore_ascii_case(b"null") {
                    found(KeyValue::Nowhere)?;
                } else {
                    found(reader.text(element)?)?;
                }
            }
        }
    }
    if skip_blanks(text, at) != text.len() { Err(malformed()) } else { Ok(()) }
}

/// Calls `found` for each element of a binary array (`array_recv`): ndim, flags, element type, then per dimension
/// its length and lower bound, then length-prefixed elements.
pub fn binary_array(
    reader: KeyReader,
    bytes: &[u8],
    one_dimension: bool,
    mut found: impl FnMut(KeyValue) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut rest = bytes;
    let dimensions = take_i32(&mut rest)?;
    let _flags = take_i32(&mut rest)?;
    let element_oid = take_i32(&mut rest)?.cast_unsigned();
    if !(0..=6).contains(&dimensions) {
        return Err(malformed());
    }
    if dimensions > 1 && one_dimension {
        return Err(not_flat());
    }
    let mut count = usize::from(dimensions > 0);
    for _ in 0..dimensions {
        let length = usize::try_from(take_i32(&mut rest)?).map_err(|_| malformed())?;
        let _lower_bound = take_i32(&mut rest)?;
        count = count.checked_mul(length).ok_or_else(malformed)?;
    }
    for _ in 0..count {
        let length = take_i32(&mut rest)?;
        if length < 0 {
            found(KeyValue::Nowhere)?;
            continue;
        }
        let length = usize::try_from(length).map_err(|_| malformed())?;
        let (element, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
        rest = after;
        found(reader.binary(element, element_oid)?)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(malformed()) }
}

/// An array parameter in either format.
pub fn parameter_array(
    reader: KeyReader,
    value: ParamValue<'_>,
    one_dimension: bool,
    mut found: impl FnMut(KeyValue) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    match value {
        ParamValue::Null => found(KeyValue::Nowhere),
        ParamValue::Text(text) => text_array(reader, text, one_dimension, found),
        ParamValue::Binary(bytes) => binary_array(reader, bytes, one_dimension, found),
    }
}

fn take_i32(rest: &mut &[u8]) -> Result<i32, Refusal> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}

fn skip_blanks(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|b| b.is_ascii_whitespace() || *b == 0x0b) {
        at += 1;
    }
    at
}

fn malformed() -> Refusal {
    Refusal::new(
        "22P02",
        "malformed array literal for the sharding key",
        "The array of keys is read before the statement is sent to a shard; write it as '{a,b,c}'.",
    )
}

fn not_flat() -> Refusal {
    Refusal::unsupported(
        "the array of keys of a registered function must have one dimension",
        "Pass parallel one-dimensional arrays.",
    )
}
