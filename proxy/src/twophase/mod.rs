//! Atomic commit over several shards, recoverable from the shards alone (H4, H16, H17, H19).
//!
//! The decision is a row in the first participant's OWN transaction: the others PREPARE under the gid, the first
//! COMMITs (that is the commit point), the others COMMIT PREPARED. Whoever finds a prepared transaction of ours
//! looks on the first shard: the row is there, so it commits; it is not, so a tombstone is put there, which makes
//! that first COMMIT impossible for ever, and then it rolls back. No proxy keeps a log that could be lost.
//!
//! Rooms: `gid` (PURE: the name of such a transaction), `recovery` (on the control thread: finishes what nobody
//! finishes), `forget` (what is finished), `confirm` (is a decision on the standby, too), `fault` (where tests stop
//! it). The coordinator's own steps are in `multi::commit`.

mod confirm;
pub mod fault;
mod forget;
mod gid;
mod recovery;

pub use gid::Gid;
pub use recovery::{Outcome, Recovery, Resolve};
