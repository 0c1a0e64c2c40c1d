//! Moves rows of buckets, or of single tenants, from one running shard to another while the application writes them.
//!
//! Rooms, in reading order: `machine` (PURE: phases and what follows what), `job` (the durable record), `attach` (takes a move up), `run`
//! (does the step of the phase that is written down), `steps`; each step's work: `preflight` with `newcomer`, `objects`, `durable` and `warnings` (`standing`: how one shard stands for moves), `catalog` (what proxies obey), `arm` (guards; `brief`), `published` (the tables that it is about),
//! `copying` (the first copy: `snapshot`, `leaves`, `transfer` by `lane`s, with `piece` and `pace` (PURE), `niceness` and `throttle`), `copy` (native logical replication from there on), `comparing`: `verify` with `digest`, `rounds`, `changes` (PURE) and `tables` with `definition`, `cutover` and `fence` with `obstacles`,
//! `clean`. `part` says how far they are, `scope` (PURE) says which rows; `lost` frees one shard when the other one is gone; `limit` keeps too many moves from copying at once; `disk` ends a
//! move before a disk is full;
//! `fault` stops a runner for tests.
//!
//! Invariants:
//!
//! - One shard takes writes of a scope at any time, and the shards themselves see to it: the other one is fenced.
//! - The owner changes by one transaction, in which the map, the motion and the move's phase change together.
//! - Nobody flips before both sides were found equal, row by row for what changed since the digests.
//! - Rows are deleted only from a shard that the map does not name, after every proxy has drained.
//! - Every step may be repeated. A mover that dies anywhere leaves what `resume`, `abort`, `rollback` or `finish` ends.

pub mod arm;
pub mod attach;
mod brief;
pub mod catalog;
pub mod changes;
pub mod clean;
mod comparing;
pub mod copy;
mod copying;
mod cutover;
pub mod definition;
pub mod digest;
pub mod disk;
mod durable;
pub mod fault;
pub mod fence;
pub mod job;
mod lane;
mod leaves;
mod limit;
pub mod lost;
pub mod machine;
mod newcomer;
mod niceness;
pub mod objects;
pub mod obstacles;
mod pace;
pub mod part;
mod piece;
pub mod preflight;
mod published;
mod room;
pub mod rounds;
pub mod run;
pub mod scope;
mod snapshot;
pub mod standing;
mod steps;
pub mod tables;
pub mod throttle;
mod transfer;
pub mod verify;
mod warnings;
