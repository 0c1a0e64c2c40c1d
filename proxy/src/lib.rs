//! shard-proxy: speaks the Postgres wire protocol, looks like one database, and sends each statement to the shard
//! that holds its tenant.
//!
//! The data path, in reading order: `listen` accepts -> `worker` (one thread, everything its clients share; `progress`: what it follows) ->
//! `session` (one state machine a client) -> `route` (PURE: text -> shard) -> `pool` (server connections). Beside
//! it: `wire` (PURE: frames), `auth` (SCRAM both ways), `replica` (read-your-writes), `multi` and `twophase`
//! (statements and transactions over several shards), `oids` and `sequences` (PURE), `grow` (lists that grow while they are read), `control` (one thread that watches the shards and publishes
//! `shared::State`), `motion` (buckets on their way to another shard), `admin`, `http` and `metrics` (what operators see), `peers` (cancel requests for other proxies).
//!
//! Invariants:
//!
//! - Never guess a shard: a statement is proved to belong to one, is answered over several exactly as by one database, or
//!   is refused.
//! - Never replay what may have been executed: lost after it was sent = the client is told so (08007).
//! - Writes go only to what `State` calls the primary; a lower timeline is never one (H5).
//! - Frames are forwarded, not decoded; a server's errors reach the client untouched.
//! - No lock shared between clients, no allocation and no parse for a statement seen before.
//! - Everything is bounded (`limits`).
//!
//! Known window: a DDL that reaches a shard around this proxy is followed when the shard's notification has arrived and
//! the catalogs are read again, or half a second later when it is lost; until then statements are routed by the old
//! schema (H39).
//!
//! Deliberately absent: TLS.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod admin;
pub mod auth;
pub mod catalog;
pub mod control;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grow;
pub mod http;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod motion;
pub mod multi;
pub mod oids;
pub mod peers;
pub mod pool;
pub mod progress;
pub mod replica;
pub mod route;
pub mod sequences;
pub mod session;
pub mod shared;
pub mod twophase;
pub mod wire;
pub mod worker;
