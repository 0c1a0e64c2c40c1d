//! Buckets and tenants on their way from one shard to another, as every proxy must serve them meanwhile.
//!
//! Rooms: `motions` (PURE: what moves, and what statements must not see of it), `touch` (PURE: what a transaction has
//! touched), `lease` (how long this proxy may rely on what it knows). `control::follow` reads the catalog, `session::motion`
//! asks before it sends anything.
//!
//! Invariants:
//!
//! - While rows of a scope are on two shards, a statement over several shards sees them on the one that owns them (H30).
//! - What a transaction has touched of a scope, rows read and locked included, it has touched on one shard, or it fails with
//!   40001 (H2).
//! - A proxy whose lease has run out neither sends to a scope that it knows to be moving nor passes on what comes from
//!   there (H8).
//!
//! Where nothing moves this costs a statement one comparison, and noting which bucket it is for.

pub mod lease;
pub mod motions;
pub mod touch;

pub use lease::{Gate, boottime_ms};
pub use motions::{Following, Hidden, MOTIONS_MAX, Mask, Motion, Motions, Stage};
pub use touch::Touch;
