//! Server connections: opening them (`connect`), what we know of each (`server`), and who may use one (`pool`).
//!
//! Everything here belongs to one worker thread. Two rules: a connection goes back only when the server said that
//! it is idle and no answer is outstanding (H38), and it is never handed on while a cancel request for it is on
//! its way.

pub mod connect;
#[allow(clippy::module_inception)]
pub mod pool;
pub mod server;

pub use connect::backend_tag;
pub use pool::{AcquireError, Pool, PoolLimits};
pub use server::{Role, Server};
