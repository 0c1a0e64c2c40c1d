//! The rooms that talk to Kafka and Redis, against real servers: PostgreSQL, Redis and Kafka of this test's own, on free
//! loopback ports, stopped with the last test that uses them.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod caches;
mod consumers;
mod kafka;
mod relay;
mod servers;
mod sweep;
