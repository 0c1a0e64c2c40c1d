//! currval() and lastval() of numbers that the proxy drew for the session.

use super::Failure;
use super::exchange::{self, ask};
use super::last::{Say, relay};
use super::statement::compose;
use crate::error::ProxyError;
use crate::session::current::NOWHERE;
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::read;

/// Returns the CommandComplete that is due.
pub(super) async fn run(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<Vec<u8>, Failure> {
    let current = p.current().clone();
    let alone = !p.in_block() && p.indices().is_empty();
    let shard = p.default_shard();
    let at = p.enlist(shard, !alone).await?;
    let asks = p.in_block() || p.is_pinned(at);
    let text = String::from_utf8_lossy(statement.text());
    let filled = current.fill(&text, p.standard_strings(), asks).ok_or_else(elsewhere)?;
    if current.is_all() {
        // What the server knows was drawn for others.
        ask(p, at, "DISCARD SEQUENCES").await?.ok()?;
    }
    p.mark_write(shard, None);
    compose(p, at, statement, filled.as_bytes(), None);
    let (simple, described) = match &statement.protocol {
        Protocol::Simple => (true, true),
        Protocol::Extended { describe, .. } => (false, *describe),
    };
    let mut say = |message: Message| match message[0] {
        b'T' if described => Say::Now(message),
        b'n' if described && !simple => Say::Now(message),
        b'D' | b'N' => Say::Now(message),
        b'C' => Say::Last(Vec::new(), message),
        _ => Say::Nothing,
    };
    let result = match p.flush(at).await {
        Ok(()) => relay(p, at, &mut say).await,
        Err(_) => Err(exchange::lost(p, at).into()),
    };
    let reads = text.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"));
    if !reads {
        p.may_have_drawn();
    }
    if alone {
        p.release_readers();
    }
    result.map_err(|failure| match failure {
        Failure::Server(message) if speaks_of_nowhere(&message) => elsewhere().into(),
        failure => failure,
    })
}

fn speaks_of_nowhere(message: &[u8]) -> bool {
    let text = read::error_field(message, b'M').unwrap_or_default();
    text.windows(NOWHERE.len() - 1).any(|part| part == &NOWHERE.as_bytes()[..NOWHERE.len() - 1])
}

fn elsewhere() -> ProxyError {
    ProxyError::not_supported(
        "currval() and lastval() of what a server has drawn, outside of the transaction block in which it did",
        "Use INSERT ... RETURNING, or nextval() and currval() in one transaction block.",
    )
}
