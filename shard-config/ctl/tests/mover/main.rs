//! Moves between real servers: two or three PostgreSQL, a proxy's part played by `proxy`, and clients that write meanwhile.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod bed;
mod commands;
mod copying;
mod failures;
mod fence;
mod moves;
mod proxy;
mod refusals;
mod serve;
mod verifying;
