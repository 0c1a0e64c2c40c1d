//! Exit statuses, and the errors that have one of their own. `shardctl --help` says what each means.

/// Something failed, or a move came to another end than was asked for.
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const UNREACHABLE: u8 = 3;
pub const STALE: u8 = 4;
pub const REFUSED: u8 = 5;
pub const DIFFERENT: u8 = 6;
pub const GIVEN_UP: u8 = 7;
pub const DETACHED: u8 = 130;

/// An error that ends the program with a status of its own.
#[derive(Debug)]
pub struct Failure {
    pub status: u8,
    text: String,
}

impl Failure {
    /// An argument cannot be what is meant.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { status: USAGE, text: text.into() }
    }

    /// The map is not the one that the plan was made for.
    pub fn stale(text: impl Into<String>) -> Self {
        Self { status: STALE, text: text.into() }
    }

    /// It cannot be done as things are; nothing was changed.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { status: REFUSED, text: text.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
