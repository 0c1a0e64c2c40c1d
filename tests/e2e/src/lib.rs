//! End-to-end tests: faults under load against the running stack, and the house rules.
//!
//! Rooms, in reading order: `stack` (where the servers are, and the commands that hurt them), `http` (a client
//! connection), `load` (payments with a log of what was acknowledged), `faults` (what is done to the system), `judge`
//! (what must hold afterwards), `run` (one seeded run from seeding to verdict); `twophase` (the kill matrix of commits over
//! several shards); `rebalance` (moves of buckets, and everything struck meanwhile). `tests/` holds tidy and the checks
//! that need the stack (ignored by a plain `cargo test`; `cargo verify` runs them).
//!
//! Invariants: no code is shared with the proxy or the core; an acknowledgement is on file before its client asks for
//! anything else; shards are read directly, never through the proxy, when judging.

pub mod faults;
pub mod http;
pub mod judge;
pub mod load;
pub mod rebalance;
pub mod run;
pub mod stack;
pub mod twophase;
