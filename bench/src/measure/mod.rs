//! What a load costs: CPU of each process, WAL of each shard, batch sizes of the cores.
pub mod core_metrics;
pub mod processes;
pub mod wal;
