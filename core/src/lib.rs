//! payment-core: the HTTP service that moves money.
//!
//! A request goes through these rooms, in this order:
//!
//! - [`http`]: sockets, limits, authentication, JSON in and problem+json out.
//! - [`idempotency`]: the key's form, the fingerprint of a request, keys in flight in this process.
//! - [`domain`]: PURE. Money, ids, validation, statuses. No tokio, no clock, no socket.
//! - [`batch`]: one lane a shard; a lane posts everything that waits as soon as its last batch returned.
//! - [`ledger`]: the statements sent to PostgreSQL (through the proxy) and what its errors mean for money.
//! - [`outbox`] and [`events`]: from the outbox rows of a shard to Kafka, and the consumers of commands.
//!
//! Beside them: [`risk`] (fraud rules as a resource; they are applied inside the posting statement), [`cache`]
//! (in-process and Redis), [`metrics`], [`config`], [`limits`], [`clock`], [`error`], and [`app`], which wires them.
//!
//! Invariants:
//!
//! 1. A payment is posted by one SQL statement that claims its idempotency key, or not at all.
//! 2. An unknown outcome is resolved only by posting the same key and the same payment id again, never by a read.
//! 3. No decision about money uses a cache: a cached value may save a query for a GET, and nothing else.
//! 4. Every queue is bounded and answers when it is full; a shard that is gone never holds up another shard's tenants.
//! 5. Amounts are integers of minor units from the parsed request to the stored row.
//!
//! Deliberately absent: knowledge of where a shard lives. The core sees one database; the shard map it reads from the
//! proxy is a hint for grouping, and a wrong hint costs time, not correctness.

pub mod app;
pub mod batch;
pub mod cache;
pub mod clock;
pub mod config;
pub mod domain;
pub mod error;
pub mod events;
pub mod http;
pub mod idempotency;
pub mod ledger;
pub mod limits;
pub mod metrics;
pub mod outbox;
pub mod risk;
