//! What spans several shards: one transaction on all of them, and statements that are cut or repeated.
//!
//! Sessions talk to one server at a time; for what needs several they lend their sockets (`Participants`) to this
//! room until it is done. Nothing here is on the path of a statement that one shard can run.
//!
//! Rooms, in reading order: `exchange` (ask a server, collect its answer), `commit` (the end of a transaction with
//! several participants: plain or in two phases), `statement` (DDL and reference writes on all shards, several
//! statements in one message), `scatter` with `copy_out` (each shard answers for its own rows), `gather` with
//! `pour`, `carry` and `last` (rows, or the shards' parts of the answer, are brought to one server, which answers), `portals` and
//! `cursors` (rows are taken a few at a time), `explain`,
//! `apply` (a write is done to copies first), `split_insert` with `draws`, `copy` with `copy_split` (PURE) and `copy_lines` (PURE), `copy_everywhere`;
//! `prepared` (SQL PREPARE and EXECUTE), `current` (currval() of what was drawn here).
//!
//! Invariants:
//!
//! - All or nothing: what ran on several shards commits by `commit` only; any error aborts it on all (H20, H21).
//! - Shards are visited in one order (by id) wherever locks may be taken, so that two of us cannot wait for each
//!   other.
//! - A wait that no single server can see the end of is found by `control::deadlock`; an error in a block takes the locks
//!   of all participants away at once, as on one server.
//! - `now()` is each shard's own: the rows of one split statement may differ by the time between their BEGINs. A
//!   stated deviation.

mod apply;
mod arguments;
mod carry;
mod commit;
mod copy;
mod copy_everywhere;
mod copy_lines;
mod copy_out;
mod copy_split;
mod current;
mod cursors;
mod draws;
mod exchange;
mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gather;
mod last;
pub mod limits;
mod portals;
mod pour;
mod prepared;
mod scatter;
mod several;
mod split_insert;
mod statement;

use crate::error::ProxyError;
use crate::session::multi_hook::{Message, MultiWork, Participants};

/// Why it did not work: an error of ours, or a server's own ErrorResponse, which the client gets as it is.
#[derive(Debug)]
pub enum Failure {
    Ours(ProxyError),
    Server(Message),
}

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        Self::Ours(error)
    }
}

/// Does what was asked and says its replies, all but the error. After an error the transaction is over on all
/// servers (implicit), or failed on all of them (explicit block).
pub async fn run(p: &mut Participants<'_>, work: &MultiWork) -> Result<(), Failure> {
    if !matches!(work, MultiWork::FailOthers | MultiWork::Prepared { .. } | MultiWork::DescribeExecute { .. })
    {
        p.count_multi_shard();
    }
    let result = match work {
        MultiWork::Commit { tag, .. } => {
            let result = commit::commit(p).await;
            if result.is_ok() && *tag {
                exchange::say_tag(p, "COMMIT").await;
            }
            return result;
        }
        MultiWork::Rollback { tag, .. } => {
            commit::rollback(p).await;
            if *tag {
                exchange::say_tag(p, "ROLLBACK").await;
            }
            return Ok(());
        }
        MultiWork::FailOthers => {
            commit::fail_all(p).await;
            return Ok(());
        }
        MultiWork::Everywhere { sql, answer, .. } => statement::everywhere(p, sql, answer).await,
        MultiWork::Statement(statement) => statement::run(p, statement).await,
        MultiWork::Prepared { plan, text, portal } => {
            prepared::run(p, &plan.effect, text, portal.as_ref()).await
        }
        MultiWork::DescribeExecute { plan, text, of } => prepared::tell(p, &plan.effect, text, of).await,
        MultiWork::Resume { portal, max_rows } => portals::resume(p, portal, *max_rows).await,
        MultiWork::Several { sql, routed } => several::run(p, sql, routed).await,
    };
    match result {
        Ok(()) => Ok(()),
        Err(failure) if !p.in_block() && !work.is_extended() => {
            commit::rollback(p).await;
            Err(failure)
        }
        Err(failure) => {
            commit::fail_all(p).await;
            Err(failure)
        }
    }
}
