//! Several statements in one simple query, for different shards: one implicit transaction (H20), or a part of the
//! block that is open.

use std::rc::Rc;

use super::exchange::{self, gather};
use super::{Failure, commit, statement};
use crate::error::ProxyError;
use crate::route::plan::{Broadcast, Effect, SavepointVerb};
use crate::route::{Resolved, Routed, RoutedStatement};
use crate::session::multi_hook::{Destination, MultiStatement, Participants, Protocol};
use crate::wire::build;

/// Statement after statement; each one's replies are said as it ends, as PostgreSQL does. BEGIN within the message
/// turns what was done before it into a part of the block; COMMIT and ROLLBACK end what there is.
pub(super) async fn run(p: &mut Participants<'_>, sql: &Rc<[u8]>, routed: &Routed) -> Result<(), Failure> {
    commit::settle(p).await?;
    for one in &routed.statements {
        let text = String::from_utf8_lossy(&sql[one.text.clone()]).into_owned();
        match &one.plan.effect {
            Effect::Begin { .. } if p.indices().is_empty() => p.answer_local(one, &text)?,
            Effect::Begin { read_only } => p.begin(&text, *read_only),
            Effect::Commit { .. } | Effect::Rollback { .. } | Effect::Savepoint(..)
                if p.indices().is_empty() =>
            {
                p.answer_local(one, &text)?;
            }
            Effect::Commit { chain: false } => {
                commit::commit(p).await?;
                exchange::say_tag(p, "COMMIT").await;
            }
            Effect::Rollback { chain: false } => {
                commit::rollback(p).await;
                exchange::say_tag(p, "ROLLBACK").await;
            }
            Effect::Savepoint(verb, _) => {
                let tag = match verb {
                    SavepointVerb::Savepoint => "SAVEPOINT",
                    SavepointVerb::Release => "RELEASE",
                    SavepointVerb::RollbackTo => "ROLLBACK",
                };
                let mut answer = Vec::new();
                build::command_complete(&mut answer, tag);
                statement::everywhere(p, &text, &answer).await?;
                p.apply(&one.plan, &text);
            }
            Effect::None
            | Effect::CreatesObject
            | Effect::Declare(_)
            | Effect::Cursor(Some(_))
            | Effect::SetsSequence
            | Effect::NeedsBlock(_) => {
                one_statement(p, sql, one).await?;
            }
            _ => {
                return Err(ProxyError::not_supported(
                    "settings cannot be changed in one message with statements for different shards",
                    "Send the statements one by one.",
                )
                .into());
            }
        }
    }
    if !p.in_block() && !p.indices().is_empty() {
        commit::commit(p).await?;
    }
    Ok(())
}

async fn one_statement(
    p: &mut Participants<'_>,
    sql: &Rc<[u8]>,
    one: &RoutedStatement,
) -> Result<(), Failure> {
    match p.destination(one, sql).await? {
        Destination::Refused(error) => return Err(error.into()),
        Destination::Shard(place) => {
            let at = p.enlist(place.shard, true).await?;
            p.mark_write(place.shard, place.key.filter(|_| place.keyed).map(|hash| p.bucket(hash)));
            build::query(&mut p.server(at).out, &sql[one.text.clone()]);
            p.server(at).unnamed = 0;
            p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
            relay(p, at).await?;
            match &one.plan.effect {
                Effect::Declare(name) => p.declared(name, place.shard),
                Effect::Cursor(Some(_)) | Effect::SetsSequence => p.apply(&one.plan, &String::from_utf8_lossy(&sql[one.text.clone()])),
                _ => {}
            }
        }
        Destination::Multi(Resolved::All(Broadcast::DdlAutocommit)) => {
            return Err(
                ProxyError::new("25001", "this statement cannot be one of several in one message").into()
            );
        }
        Destination::Multi(resolved) => {
            let part = MultiStatement {
                resolved,
                sql: sql.clone(),
                routed: one.clone(),
                protocol: Protocol::Simple,
            };
            let complete = statement::execute(p, &part).await?;
            p.reply(&complete).await;
        }
    }
    Ok(())
}

/// Passes a server's answer on as it comes, up to ReadyForQuery.
async fn relay(p: &mut Participants<'_>, at: usize) -> Result<(), Failure> {
    loop {
        let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
        match message[0] {
            b'Z' => return Ok(()),
            b'E' => {
                gather(p, at).await?;
                return Err(Failure::Server(message));
            }
            b'S' => p.parameter_status(at, &message),
            b'G' | b'H' | b'W' => {
                // Only a COPY that the router did not recognise as one; its data could not be told apart.
                p.discard(at);
                return Err(ProxyError::not_supported(
                    "COPY cannot be one of several statements in one message",
                    "Send it by itself.",
                )
                .into());
            }
            _ => {
                if !p.reply(&message).await {
                    return Err(ProxyError::new("08006", "the client's connection ended").into());
                }
            }
        }
    }
}
