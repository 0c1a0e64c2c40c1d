//! What a DBA asks of the shards, and has done to them: where is a tenant, how does a statement run, is everything well;
//! move these buckets there while payments run.
//!
//! Rooms: [`connect`] (the proxy, and one shard through it), [`map`] and [`explain`] (what the proxy knows), [`status`] and
//! [`doctor`] with `sweep` (what the shards say), [`migrate`]; [`direct`] (the shards past the proxy, by `replication` as a standby would), [`plans`] (what to move), [`epochs`] (what has moved), [`moves`] (the verbs on
//! moves) with [`aim`] (whether a move came where it was wanted) and [`look`] (what is seen of it), [`serve`] (the same, asked for by SQL), [`exit`] (statuses), [`mover`] (moves rows between shards), [`output`] (a table for people, one JSON value for programs).
//!
//! What only asks, asks through the proxy with the role of the URL, so it needs no access that an application has not. What
//! moves rows takes the servers and the superuser of `[control]` from the proxy's configuration file.
//!
//! Invariants: nothing is changed by a verb that asks; what changes something says how to undo it; a job is durable, and
//! whoever typed the command may go.

pub mod aim;
pub mod connect;
pub mod constraints;
pub mod direct;
pub mod doctor;
pub mod epochs;
pub mod exit;
pub mod explain;
pub mod look;
pub mod map;
pub mod migrate;
pub mod mover;
pub mod moves;
pub mod output;
pub mod plans;
mod replication;
pub mod serve;
pub mod status;
mod sweep;

/// The proxy could not be reached: exit status 3.
#[derive(Debug)]
pub struct Unreachable(pub String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}
