//! FETCH, MOVE and CLOSE of a cursor over several shards: said to the server that has its rows.

use super::Failure;
use super::exchange;
use super::gather::give_back;
use super::last::{Say, relay};
use super::statement::compose;
use crate::error::ProxyError;
use crate::route::plan::Effect;
use crate::session::multi_hook::{Message, MultiStatement, Name, Participants, Protocol, Running};

/// Returns the CommandComplete that is due.
pub(super) async fn run(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<Vec<u8>, Failure> {
    let Effect::Cursor(Some(cursor)) = &statement.routed.plan.effect else {
        return Err(ProxyError::internal("a cursor without a name").into());
    };
    let name = Name::Cursor(cursor.clone());
    let Some((Running::Gathered(server, plan), depth)) = p.take_running(&name) else {
        return Err(ProxyError::new("34000", format!("cursor \"{cursor}\" does not exist")).into());
    };
    let at = p.add_server(server);
    let described = match &statement.protocol {
        Protocol::Simple => true,
        Protocol::Extended { describe, .. } => *describe,
    };
    let extended = matches!(statement.protocol, Protocol::Extended { .. });
    compose(p, at, statement, statement.text(), None);
    let result = match p.flush(at).await {
        Ok(()) => {
            let mut say = |message: Message| match message[0] {
                b'T' if described => Say::Now(message),
                b'n' if described && extended => Say::Now(message),
                b'D' | b'N' => Say::Now(message),
                b'C' => Say::Last(Vec::new(), message),
                _ => Say::Nothing,
            };
            relay(p, at, &mut say).await
        }
        Err(_) => Err(exchange::lost(p, at).into()),
    };
    let closed = result.as_ref().map_or(true, |complete| complete.get(5..10) == Some(b"CLOSE"));
    if closed {
        // After an error the cursor could not be used either.
        give_back(p, at).await;
    } else {
        let server = p.take_server(at);
        p.keep_again(name, Running::Gathered(server, plan), depth);
    }
    result
}
