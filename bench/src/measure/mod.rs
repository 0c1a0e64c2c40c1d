//! What a load costs: CPU of each process and of all, WAL of each shard, batch sizes of the cores.
pub mod core_metrics;
pub mod processes;
pub mod processors;
pub mod wal;
pub mod wal_files;
