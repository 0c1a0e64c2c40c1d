//! currval() and lastval() of numbers that the proxy drew for the session.

use super::Failure;
use super::exchange::{self, ask};
use super::last::{Say, relay};
use super::statement::compose;
use crate::error::ProxyError;
use crate::session::current::{Current, NOWHERE};
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::read;

/// Returns the CommandComplete that is due.
pub(super) async fn run(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<Vec<u8>, Failure> {
    let current = p.current().clone();
    let alone = !p.in_block() && p.indices().is_empty();
    let shard = p.default_shard();
    let at = p.enlist(shard, !alone).await?;
    let result = told(p, statement, &current, at).await;
    if alone {
        p.release_readers();
    }
    result.map_err(|failure| match failure {
        Failure::Server(message) if is_untold(&message, &current) => elsewhere().into(),
        failure => failure,
    })
}

async fn told(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    current: &Current,
    at: usize,
) -> Result<Vec<u8>, Failure> {
    let asks = p.knows_draws(at);
    if !asks && !current.answers() {
        return Err(elsewhere().into());
    }
    let text = String::from_utf8_lossy(statement.text());
    let filled = current.fill(&text, p.standard_strings(), asks).ok_or_else(elsewhere)?;
    if current.is_all() {
        // What the server knows was drawn for others.
        ask(p, at, "DISCARD SEQUENCES").await?.ok()?;
    }
    let shard = p.server(at).shard;
    p.mark_write(shard, None);
    compose(p, at, statement, filled.as_bytes(), None);
    let (simple, described) = match &statement.protocol {
        Protocol::Simple => (true, true),
        Protocol::Extended { describe, .. } => (false, *describe),
    };
    let mut say = |message: Message| match message[0] {
        b'T' if described => Say::Now(message),
        b'n' if described && !simple => Say::Now(message),
        // Of COPY (SELECT currval(...)) TO STDOUT, too.
        b'D' | b'N' | b'H' | b'd' | b'c' => Say::Now(message),
        b'C' => Say::Last(Vec::new(), message),
        _ => Say::Nothing,
    };
    let result = match p.flush(at).await {
        Ok(()) => relay(p, at, &mut say).await,
        Err(_) => Err(exchange::lost(p, at).into()),
    };
    let reads = text.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"));
    if !reads || text.to_ascii_lowercase().contains("nextval") {
        p.may_have_drawn();
    }
    result
}

/// Does the server not know, where the session has drawn what is not remembered? Or can the number not stand where the call did
/// (in FROM), which the grammar has accepted?
fn is_untold(message: &[u8], current: &Current) -> bool {
    let field = |tag| read::error_field(message, tag).unwrap_or_default();
    let text = field(b'M');
    let nowhere =
        text.windows(NOWHERE.len() - 1).any(|part| part == &NOWHERE.as_bytes()[..NOWHERE.len() - 1]);
    let undefined = field(b'C') == b"55000" && matches!(field(b'R'), b"currval_oid" | b"lastval");
    nowhere || (undefined && !current.is_all()) || field(b'R') == b"scanner_yyerror"
}

fn elsewhere() -> ProxyError {
    ProxyError::not_supported(
        "currval() and lastval() of what a server has drawn, outside of the transaction block in which it did",
        "Use INSERT ... RETURNING, or nextval() and currval() in one transaction block.",
    )
}
