//! The Postgres wire protocol, as far as a proxy must know it. PURE: bytes in, bytes out.
//!
//! Frames are found (`frame`), the few that routing needs are read (`read`), and what we say ourselves is written
//! (`build`). Rows are never decoded. pgwire's decoders are not used on client bytes: they panic on malformed
//! frames and read past the frame.

pub mod build;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod read;
