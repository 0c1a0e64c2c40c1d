//! SCRAM-SHA-256 both ways. PURE: messages in, messages out.
//!
//! `server_side` lets clients in (pgwire's `ScramServerAuth`, behind our own length checks), `client_side` logs in
//! at the shards with a cached salted key, so that opening a server connection costs no PBKDF2.

pub mod client_side;
pub mod server_side;
pub mod users;
