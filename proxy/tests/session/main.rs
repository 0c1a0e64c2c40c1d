//! The proxy against real servers: what a client sees, byte for byte.

mod batches;
mod blocks;
mod cluster;
mod config;
mod copy;
mod extended;
mod failures;
mod login;
mod names;
mod raw;
mod servers;
mod simple;
mod transactions;
