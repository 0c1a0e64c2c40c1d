//! Finds the borders of messages and checks their lengths before anything else looks at them.

use crate::limits;

/// Header of a message: tag and length.
pub const HEADER: usize = 5;

#[derive(Debug, PartialEq, Eq)]
pub enum FrameError {
    UnknownTag(u8),
    Length { tag: u8, length: i64 },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownTag(tag) => write!(f, "invalid frontend message type {tag}"),
            Self::Length { tag, length } => {
                write!(f, "invalid length {length} of message type '{}'", char::from(*tag).escape_default())
            }
        }
    }
}

/// Total size (tag included) of the client message at the start of `buf`; `None` when its header is incomplete.
/// The limits are those of `SocketBackend` in src/backend/tcop/postgres.c, with our own upper bound.
#[inline]
pub fn client_frame(buf: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(header) = buf.first_chunk::<HEADER>() else {
        return match buf.first() {
            Some(&tag) => client_limit(tag).map(|_| None),
            None => Ok(None),
        };
    };
    let tag = header[0];
    let limit = client_limit(tag)?;
    let length = i64::from(i32::from_be_bytes([header[1], header[2], header[3], header[4]]));
    if length < 4 || length > limit as i64 {
        return Err(FrameError::Length { tag, length });
    }
    Ok(Some(length as usize + 1))
}

#[inline]
fn client_limit(tag: u8) -> Result<usize, FrameError> {
    match tag {
        b'Q' | b'P' | b'B' | b'd' | b'F' => Ok(limits::LARGE_MESSAGE),
        b'D' | b'E' | b'C' | b'S' | b'H' | b'X' | b'c' | b'f' => Ok(limits::SMALL_MESSAGE),
        b'p' => Ok(limits::AUTH_MESSAGE),
        _ => Err(FrameError::UnknownTag(tag)),
    }
}

/// Total size of the server message at the start of `buf`. A server that sends nonsense is not talked to again.
#[inline]
pub fn server_frame(buf: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(header) = buf.first_chunk::<HEADER>() else { return Ok(None) };
    let length = i64::from(i32::from_be_bytes([header[1], header[2], header[3], header[4]]));
    if length < 4 {
        return Err(FrameError::Length { tag: header[0], length });
    }
    Ok(Some(length as usize + 1))
}

/// Total size of a startup packet (which has no tag) at the start of `buf`.
pub fn startup_frame(buf: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(header) = buf.first_chunk::<4>() else { return Ok(None) };
    let length = i64::from(i32::from_be_bytes(*header));
    if length < 8 || length > limits::STARTUP_PACKET as i64 {
        return Err(FrameError::Length { tag: 0, length });
    }
    Ok(Some(length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_before_the_body_is_awaited() {
        assert_eq!(client_frame(b"Q\0\0\0\x05x"), Ok(Some(6)));
        assert_eq!(client_frame(b"Q\0\0"), Ok(None));
        assert!(client_frame(b"Q\0\0\0\x03").is_err());
        assert!(client_frame(b"Q\xff\xff\xff\xff").is_err());
        assert!(client_frame(b"S\0\x01\0\0").is_err(), "a Sync of 64 KiB");
        assert!(client_frame(b"z").is_err(), "an unknown tag is refused at its first byte");
    }
}
