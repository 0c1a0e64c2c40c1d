//! When a replica may answer a read: read-your-writes for every client of this proxy, at the cost of two atomic
//! loads a query (H7).
//!
//! Rooms: `samples` (PURE: which samples a replica has replayed) <- `freshness` (what sessions ask and report).
//! `control/` feeds both. Correct with ONE proxy that sees every write; with several, use `reads.policy = "primary"`
//! or `"opt_in"`.

mod freshness;
mod samples;

pub use freshness::{Freshness, ReadChoice, WriteMark};
pub use samples::{Lsn, Samples};
