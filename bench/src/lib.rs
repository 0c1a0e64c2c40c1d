//! Measures and checks the running system from outside.
//!
//! Rooms, in reading order:
//! - [`stack`]: where the servers of the running stack are (the environment that `cargo stack env` prints);
//! - [`load`]: `bench load`, payments over HTTP at a rate (open loop) or from N clients (closed loop);
//! - [`measure`]: what a load costs: CPU of every process from /proc, WAL and WAL syncs, the core's batch sizes;
//! - [`check`]: `bench check`, the ledger's invariants, read from the shards and from Kafka directly;
//! - [`compare`]: `bench compare`, our proxy beside its peers in one run;
//! - [`servers`]: servers that tests and comparisons start for themselves.
//!
//! Invariants:
//! - The checker shares no code with what it checks: this crate depends on neither the proxy, nor the core, nor
//!   shard-config. It opens its own connections to the shards and to Kafka, and knows the schema only from SQL.
//! - Latency is measured from the moment a request was due, not from the moment it could be sent, so a server that
//!   stalls cannot hide it (no coordinated omission).
//! - An acknowledgement is in the log file before its connection sends the next request.
//! - A figure that could not be taken is `null`, never zero.
//!
//! Deliberately absent: TLS, HTTP/2, redirects. The generator talks to the core over loopback and has to leave the
//! CPU to what it measures.

pub mod check;
pub mod compare;
pub mod load;
pub mod measure;
pub mod output;
pub mod servers;
pub mod stack;
