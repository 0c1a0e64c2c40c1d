//! Moves between real servers: two or three PostgreSQL, a proxy's part played by `proxy`, and clients that write meanwhile.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod bed;
mod commands;
mod copying;
mod cutover;
mod dba;
mod disk;
mod doctor;
mod dry_run;
mod durable;
mod failures;
mod fence;
mod gone;
mod home;
mod late_tables;
mod loss;
mod losses;
mod moves;
mod pause;
mod places;
mod planning;
mod preflight;
mod proxies;
mod proxy;
mod refusals;
mod serve;
mod throttle;
mod types;
mod verbs;
mod verifying;
mod waits;
mod wrong;
