//! Reads the messages that routing needs. Every access is checked: a lying length gives `None`, never a panic.

use crate::wire::frame::HEADER;

/// A cursor over one message's body.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    #[inline]
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }

    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|b| b[0])
    }

    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    #[inline]
    pub fn i32(&mut self) -> Option<i32> {
        self.bytes(4).map(|b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    #[inline]
    pub fn cstr(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|b| *b == 0)?;
        let (head, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Some(head)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Body of a whole frame.
#[inline]
pub fn body(frame: &[u8]) -> Reader<'_> {
    Reader::new(frame.get(HEADER..).unwrap_or_default())
}

/// The text of a Query message: everything up to the one NUL that must be its last byte.
#[inline]
pub fn query(frame: &[u8]) -> Option<&[u8]> {
    let (last, text) = frame.get(HEADER..)?.split_last()?;
    (*last == 0 && !text.contains(&0)).then_some(text)
}

#[derive(Debug)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub sql: &'a [u8],
    /// Declared parameter types, 4 bytes each, as on the wire.
    pub oids: &'a [u8],
}

pub fn parse(frame: &[u8]) -> Option<Parse<'_>> {
    let mut reader = body(frame);
    let name = reader.cstr()?;
    let sql = reader.cstr()?;
    let count = reader.u16()?;
    let oids = reader.bytes(usize::from(count) * 4)?;
    reader.is_empty().then_some(Parse { name, sql, oids })
}

#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    /// Everything behind the statement's name, forwarded as it is.
    pub tail: &'a [u8],
    /// Format codes of the parameters, 2 bytes each.
    pub formats: &'a [u8],
    pub count: u16,
    /// Lengths and values of the parameters.
    pub values: &'a [u8],
    /// Number and format codes of the result's columns.
    pub results: &'a [u8],
}

#[inline]
pub fn bind(frame: &[u8]) -> Option<Bind<'_>> {
    let mut reader = body(frame);
    let portal = reader.cstr()?;
    let statement = reader.cstr()?;
    let tail = reader.rest();
    let formats = reader.u16()?;
    let formats = reader.bytes(usize::from(formats) * 2)?;
    let count = reader.u16()?;
    let values = reader.rest();
    for _ in 0..count {
        let length = reader.i32()?;
        if length > 0 {
            reader.bytes(length as usize)?;
        } else if length < -1 {
            return None;
        }
    }
    let results = reader.rest();
    let codes = reader.u16()?;
    reader.bytes(usize::from(codes) * 2)?;
    reader.is_empty().then_some(Bind { portal, statement, tail, formats, count, values, results })
}

impl<'a> Bind<'a> {
    /// The n-th parameter (0-based): `Some(None)` is NULL, `None` means that there is no such parameter.
    #[inline]
    pub fn value(&self, n: u16) -> Option<Option<&'a [u8]>> {
        if n >= self.count {
            return None;
        }
        let mut reader = Reader::new(self.values);
        for _ in 0..n {
            let length = reader.i32()?;
            if length > 0 {
                reader.bytes(length as usize)?;
            }
        }
        let length = reader.i32()?;
        if length < 0 { Some(None) } else { reader.bytes(length as usize).map(Some) }
    }

    /// Is the n-th parameter in binary format? (No codes: all text; one code: for all.)
    #[inline]
    pub fn is_binary(&self, n: u16) -> bool {
        let at = match self.formats.len() / 2 {
            0 => return false,
            1 => 0,
            _ => usize::from(n),
        };
        self.formats.get(at * 2 + 1).is_some_and(|code| *code == 1)
    }
}

/// Describe or Close: kind (`S` or `P`) and name.
#[inline]
pub fn named(frame: &[u8]) -> Option<(u8, &[u8])> {
    let mut reader = body(frame);
    let kind = reader.u8()?;
    let name = reader.cstr()?;
    (reader.is_empty() && (kind == b'S' || kind == b'P')).then_some((kind, name))
}

/// Execute: portal and row limit.
#[inline]
pub fn execute(frame: &[u8]) -> Option<(&[u8], i32)> {
    let mut reader = body(frame);
    let portal = reader.cstr()?;
    let rows = reader.i32()?;
    reader.is_empty().then_some((portal, rows))
}

/// One field of an ErrorResponse or NoticeResponse.
pub fn error_field(frame: &[u8], tag: u8) -> Option<&[u8]> {
    let mut reader = body(frame);
    loop {
        let found = reader.u8()?;
        if found == 0 {
            return None;
        }
        let text = reader.cstr()?;
        if found == tag {
            return Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bind_with_a_lying_length_is_not_read() {
        let good = b"B\0\0\0\x14p\0s\0\0\0\0\x01\0\0\0\x01x\0\0";
        let bind = bind(good).expect("well formed");
        assert_eq!((bind.portal, bind.statement, bind.count), (&b"p"[..], &b"s"[..], 1));
        assert_eq!(bind.value(0), Some(Some(&b"x"[..])));
        assert_eq!(bind.value(1), None);
        let mut bad = good.to_vec();
        bad[16] = 9;
        assert!(super::bind(&bad).is_none());
    }

    #[test]
    fn a_query_ends_with_its_only_nul() {
        assert_eq!(query(b"Q\0\0\0\x07ab\0"), Some(&b"ab"[..]));
        assert_eq!(query(b"Q\0\0\0\x07ab"), None);
        assert_eq!(query(b"Q\0\0\0\x07a\0b\0"), None);
        assert_eq!(query(b"Q\0\0\0\x04"), None);
    }

    proptest! {
        #[test]
        fn no_reader_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(bind) = bind(&bytes) {
                for n in 0..4 {
                    let _ = (bind.value(n), bind.is_binary(n));
                }
            }
            let _ = (parse(&bytes), query(&bytes), named(&bytes), execute(&bytes), error_field(&bytes, b'C'));
        }
    }
}
