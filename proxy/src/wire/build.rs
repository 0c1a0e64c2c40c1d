//! Writes the messages that the proxy says itself.

/// Starts a message; `end` fills in its length.
#[inline]
pub fn begin(out: &mut Vec<u8>, tag: u8) -> usize {
    out.push(tag);
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

#[inline]
pub fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A NUL-terminated string. A NUL inside would cut the message in two; it cannot come from the wire.
#[inline]
pub fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    debug_assert!(!text.contains(&0));
    out.extend_from_slice(text);
    out.push(0);
}

pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
pub const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";
pub const SYNC: &[u8] = b"S\0\0\0\x04";
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

#[inline]
pub fn ready(out: &mut Vec<u8>, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    let start = begin(out, b'C');
    cstr(out, tag.as_bytes());
    end(out, start);
}

pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    let start = begin(out, b'Q');
    cstr(out, sql);
    end(out, start);
}

pub fn parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], oids: &[u8]) {
    let start = begin(out, b'P');
    cstr(out, name);
    cstr(out, sql);
    out.extend_from_slice(&((oids.len() / 4) as u16).to_be_bytes());
    out.extend_from_slice(oids);
    end(out, start);
}

/// Describe or Close: `kind` is `S` or `P`.
pub fn named(out: &mut Vec<u8>, tag: u8, kind: u8, name: &[u8]) {
    let start = begin(out, tag);
    out.push(kind);
    cstr(out, name);
    end(out, start);
}

pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    let start = begin(out, b'S');
    cstr(out, name.as_bytes());
    cstr(out, value.as_bytes());
    end(out, start);
}

pub fn authentication(out: &mut Vec<u8>, code: u32, body: &[u8]) {
    let start = begin(out, b'R');
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(body);
    end(out, start);
}

/// Type OIDs of the columns we describe ourselves (src/include/catalog/pg_type.dat).
pub const INT8: u32 = 20;
pub const INT4: u32 = 23;
pub const TEXT: u32 = 25;

/// RowDescription of computed columns in text format.
pub fn row_description(out: &mut Vec<u8>, columns: &[(&str, u32)]) {
    let start = begin(out, b'T');
    out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
    for (name, oid) in columns {
        cstr(out, name.as_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&oid.to_be_bytes());
        let size: i16 = match *oid {
            INT8 => 8,
            INT4 => 4,
            _ => -1,
        };
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&(-1i32).to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
    }
    end(out, start);
}

pub fn data_row(out: &mut Vec<u8>, values: &[&str]) {
    let start = begin(out, b'D');
    out.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    end(out, start);
}

/// A NoticeResponse of severity WARNING.
pub fn warning(out: &mut Vec<u8>, sqlstate: &str, message: &str) {
    let start = begin(out, b'N');
    for (tag, text) in [
        (b'S', "WARNING"),
        (b'V', "WARNING"),
        (b'C', sqlstate),
        (b'M', message),
        (b'R', crate::error::ROUTINE),
    ] {
        out.push(tag);
        cstr(out, text.as_bytes());
    }
    out.push(0);
    end(out, start);
}
