//! The payment model in SQL, and the code that applies it.
//!
//! Rooms: `../migrations` (forward-only SQL files), [`migrations`] (the files, in order, with checksums),
//! [`partitions`] (PURE: which months' partitions retire), [`apply`] (runs both against
//! every shard behind a proxy, or against one plain PostgreSQL).
//!
//! Invariants:
//! - A migration and its row in `schema_migrations` commit together, shard by shard. What one shard misses, the next
//!   run applies there and nowhere else, so a run that failed half way is resumed by running it again.
//! - An applied file never changes: its checksum is compared on every run.
//! - Nothing here needs a connection to a shard: shards are reached through the proxy with `shard.target`.
//!
//! Deliberately absent: down-migrations. A mistake is corrected by a further migration.

pub mod apply;
pub mod migrations;
pub mod partitions;

pub use apply::{Options, Report, apply};
