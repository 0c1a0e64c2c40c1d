//! The Idempotency-Key header: a Structured Field string in quotes (IETF draft), or the bare text most clients send.

use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    Empty,
    TooLong,
    /// Anything but printable ASCII, a quote that is not closed, an escape that RFC 8941 does not have.
    Malformed,
}

/// `"abc"` and `abc` are the same key.
pub fn parse(header: &[u8]) -> Result<String, KeyError> {
    let text = header.trim_ascii();
    let key = match text {
        [b'"', inner @ .., b'"'] => unescape(inner)?,
        [b'"', ..] | [.., b'"'] => return Err(KeyError::Malformed),
        bare => bare.to_vec(),
    };
    check(&key)?;
    String::from_utf8(key).map_err(|_| KeyError::Malformed)
}

/// The same rules for a key given as a JSON string.
pub fn check(key: &[u8]) -> Result<(), KeyError> {
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > limits::IDEMPOTENCY_KEY_MAX {
        return Err(KeyError::TooLong);
    }
    if !key.iter().all(|b| (0x20..0x7f).contains(b)) {
        return Err(KeyError::Malformed);
    }
    Ok(())
}

fn unescape(inner: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(&escaped @ (b'"' | b'\\')) => out.push(escaped),
                _ => return Err(KeyError::Malformed),
            },
            b'"' => return Err(KeyError::Malformed),
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_and_quoted() {
        let check = |header: &str, expected: Result<&str, KeyError>| {
            assert_eq!(parse(header.as_bytes()).as_deref(), expected.as_ref().map(|s| *s), "{header:?}");
        };
        check("abc-123", Ok("abc-123"));
        check("\"abc-123\"", Ok("abc-123"));
        check("  \"a b\"  ", Ok("a b"));
        check(r#""a\"b\\c""#, Ok(r#"a"b\c"#));
        check("", Err(KeyError::Empty));
        check("\"\"", Err(KeyError::Empty));
        check("\"abc", Err(KeyError::Malformed));
        check("\"", Err(KeyError::Malformed));
        check(r#""a\n""#, Err(KeyError::Malformed));
        check(r#""a"b""#, Err(KeyError::Malformed));
        check("a\u{7}", Err(KeyError::Malformed));
        check("schlüssel", Err(KeyError::Malformed));
        check(&"k".repeat(255), Ok(&"k".repeat(255)));
        check(&"k".repeat(256), Err(KeyError::TooLong));
    }
}
