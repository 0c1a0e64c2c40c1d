//! What spans several shards, through the real proxy over real PostgreSQL servers, four shards on this machine.
#![allow(clippy::unwrap_used)]

#[path = "multi/cancel.rs"]
mod cancel;
#[path = "multi/cluster.rs"]
mod cluster;
#[path = "multi/control.rs"]
mod control;
#[path = "multi/copies.rs"]
mod copies;
#[path = "multi/deadlocks.rs"]
mod deadlocks;
#[path = "multi/faults.rs"]
mod faults;
#[path = "multi/grow.rs"]
mod grow;
#[path = "multi/hang_up.rs"]
mod hang_up;
#[path = "multi/home.rs"]
mod home;
#[path = "multi/lease.rs"]
mod lease;
#[path = "multi/motion.rs"]
mod motion;
#[path = "multi/motion_pipelines.rs"]
mod motion_pipelines;
#[path = "multi/motion_replicas.rs"]
mod motion_replicas;
#[path = "multi/motion_scatter.rs"]
mod motion_scatter;
#[path = "multi/motion_snapshots.rs"]
mod motion_snapshots;
#[path = "multi/motion_waits.rs"]
mod motion_waits;
#[path = "multi/mover.rs"]
mod mover;
#[path = "multi/oids.rs"]
mod oids;
#[path = "multi/placement.rs"]
mod placement;
#[path = "multi/prepared.rs"]
mod prepared;
#[path = "multi/proxy.rs"]
mod proxy;
#[path = "multi/recovery.rs"]
mod recovery;
#[path = "multi/scatter.rs"]
mod scatter;
#[path = "multi/scatter_portals.rs"]
mod scatter_portals;
#[path = "multi/sequences.rs"]
mod sequences;
#[path = "multi/shrink.rs"]
mod shrink;
#[path = "multi/tenant.rs"]
mod tenant;
#[path = "multi/transactions.rs"]
mod transactions;
#[path = "multi/write_portals.rs"]
mod write_portals;
#[path = "multi/writes.rs"]
mod writes;
