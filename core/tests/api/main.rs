//! The HTTP API over real sockets and a real PostgreSQL with the migrations of `sql/`.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod bed;
mod disconnects;
mod failures;
mod gathering;
mod idempotency;
mod lists;
mod malformed;
mod overload;
mod resources;
mod shards;
