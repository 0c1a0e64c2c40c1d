//! Rows of a COPY as messages, so that one COPY's rows may be given to several others. PURE.
//!
//! A server sends one CopyData message a row (protocol-flow.html#PROTOCOL-COPY). In binary form the first one begins with the
//! header, and a message of its own ends it (sql-copy.html, "Binary Format").

use bytes::Bytes;

/// Signature, flags, and the length of the header's extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Instead of a row's number of fields.
const TRAILER: &[u8; 2] = b"\xff\xff";

/// Takes the messages of one COPY apart.
#[derive(Debug)]
pub(super) struct Rows {
    binary: bool,
    is_first: bool,
}

impl Rows {
    pub(super) const fn new(binary: bool) -> Self {
        Self { binary, is_first: true }
    }

    /// The row of the next message, if it has one.
    pub(super) fn of(&mut self, mut message: Bytes) -> Option<Bytes> {
        let is_first = std::mem::replace(&mut self.is_first, false);
        if self.binary {
            if is_first && message.starts_with(HEADER) {
                message = message.slice(HEADER.len()..);
            }
            if message.as_ref() == TRAILER {
                return None;
            }
        }
        (!message.is_empty()).then_some(message)
    }

    /// What a COPY that takes rows must be given before them.
    pub(super) const fn header(&self) -> Bytes {
        Bytes::from_static(if self.binary { HEADER } else { b"" })
    }

    pub(super) const fn trailer(&self) -> Bytes {
        Bytes::from_static(if self.binary { TRAILER } else { b"" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(binary: bool, messages: &[&[u8]]) -> Vec<Bytes> {
        let mut rows = Rows::new(binary);
        messages.iter().filter_map(|message| rows.of(Bytes::copy_from_slice(message))).collect()
    }

    #[test]
    fn rows_are_without_what_belongs_to_the_whole() {
        let first = [HEADER.as_slice(), b"\0\x01\0\0\0\x01a"].concat();
        let second = b"\0\x01\xff\xff\xff\xff".as_slice();
        assert_eq!(all(true, &[&first, second, TRAILER]), [&first[19..], second]);
        assert!(all(true, &[&[HEADER.as_slice(), TRAILER].concat()]).is_empty(), "no rows");
        // In text these are a row's own characters.
        assert_eq!(all(false, &[b"PGCOPY\n", b"\xff\xff", b"a\n"]).len(), 3);
        assert!(all(false, &[]).is_empty());
    }
}
