//! What a DBA asks of the shards, and has done to them: where is a tenant, how does a statement run, is everything well;
//! move these buckets there while payments run.
//!
//! Rooms: [`connect`] (the proxy, and one shard through it), [`map`] and [`explain`] (what the proxy knows), [`status`] and
//! [`doctor`] with `drift`, `movable` and `sweep` (what the shards say), [`migrate`]; [`direct`] (the shards past the proxy, by `replication` as a standby would), [`plans`] (what to move) by [`figures`] (what buckets have; `tenants` shows it), [`epochs`] (what has moved), `home` and [`relocate`] (where the catalog is), [`repair`] (what it has lost), [`apply`] (a plan carried out; `abreast`: several steps at a time), [`moves`] (the verbs on
//! one move) with [`aim`] (whether a move came where it was wanted), [`dry_run`] (what a verb would do) and [`look`] (what is seen of it) with [`flow`] (whether its rows still flow), [`serve`] (the same, asked for by SQL: `asked`), [`reload`] with [`served`] (PURE; the file's servers beside those that proxies serve), [`exit`] (statuses), [`mover`] (moves rows between shards), [`output`] (a table for people, one JSON value for programs).
//!
//! What only asks, asks through the proxy with the role of the URL, so it needs no access that an application has not. What
//! moves rows takes the servers and the superuser of `[control]` from the proxy's configuration file.
//!
//! Invariants: nothing is changed by a verb that asks; what changes something says how to undo it; a job is durable, and
//! whoever typed the command may go.

mod abreast;
pub mod aim;
pub mod apply;
mod asked;
pub mod connect;
pub mod constraints;
pub mod direct;
pub mod doctor;
mod drift;
pub mod dry_run;
pub mod epochs;
pub mod exit;
pub mod explain;
pub mod figures;
pub mod flow;
mod home;
pub mod look;
pub mod map;
pub mod migrate;
mod movable;
pub mod mover;
pub mod moves;
pub mod output;
pub mod plans;
pub mod reload;
pub mod relocate;
pub mod repair;
mod replication;
pub mod serve;
pub mod served;
pub mod status;
mod sweep;
pub mod tenants;

/// The proxy could not be reached: exit status 3.
#[derive(Debug)]
pub struct Unreachable(pub String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}
