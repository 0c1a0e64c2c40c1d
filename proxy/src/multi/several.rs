//! Several statements in one simple query, for different shards: one implicit transaction (H20), or a part of the
//! block that is open.

use std::rc::Rc;

use super::exchange::{self, gather};
use super::{Failure, commit, prepared, statement};
use crate::error::ProxyError;
use crate::route::plan::{Broadcast, Effect, SavepointVerb};
use crate::route::{Resolved, Routed, RoutedStatement};
use crate::session::multi_hook::{Destination, MultiStatement, Participants, Place, Protocol, set_modes};
use crate::wire::build;

/// Statement after statement; each one's replies are said as it ends, as PostgreSQL does. BEGIN within the message
/// turns what was done before it into a part of the block; COMMIT and ROLLBACK end what there is.
pub(super) async fn run(p: &mut Participants<'_>, sql: &Rc<[u8]>, routed: &Routed) -> Result<(), Failure> {
    commit::settle(p).await?;
    let mut cursors = Cursors::default();
    for one in &routed.statements {
        let text = String::from_utf8_lossy(&sql[one.text.clone()]).into_owned();
        if matches!(one.plan.effect, Effect::Commit { .. } | Effect::Rollback { .. }) {
            cursors.0.clear();
        }
        match &one.plan.effect {
            Effect::Begin { .. } if p.indices().is_empty() => p.answer_local(one, &text)?,
            Effect::Begin { read_only } => begin(p, &text, *read_only).await?,
            Effect::Savepoint(verb, _) if !p.in_block() => {
                return Err(only_in_block(match verb {
                    SavepointVerb::Savepoint => "SAVEPOINT",
                    SavepointVerb::Release => "RELEASE SAVEPOINT",
                    SavepointVerb::RollbackTo => "ROLLBACK TO SAVEPOINT",
                })
                .into());
            }
            Effect::Commit { .. } | Effect::Rollback { .. } | Effect::Savepoint(..)
                if p.indices().is_empty() =>
            {
                p.answer_local(one, &text)?;
            }
            Effect::Commit { chain: true } if !p.in_block() => {
                return Err(only_in_block("COMMIT AND CHAIN").into());
            }
            Effect::Rollback { chain: true } if !p.in_block() => {
                return Err(only_in_block("ROLLBACK AND CHAIN").into());
            }
            Effect::Commit { chain: false } => {
                warn_outside(p).await;
                commit::commit(p).await?;
                exchange::say_tag(p, "COMMIT").await;
            }
            Effect::Rollback { chain: false } => {
                warn_outside(p).await;
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
            Effect::SqlPrepare(_) => prepared::run(p, &one.plan.effect, &text, None).await?,
            Effect::SqlExecute { .. } => executed(p, &one.plan.effect, &text).await?,
            Effect::Deallocate(_) => p.answer_local(one, &text)?,
            Effect::None
            | Effect::CreatesObject
            | Effect::Declare(_)
            | Effect::Cursor(Some(_))
            | Effect::ReadsSequence
            | Effect::SetsSequence
            | Effect::NeedsBlock(_) => {
                one_statement(p, sql, one, &mut cursors).await?;
            }
            _ => return Err(settings().into()),
        }
    }
    if !p.in_block() && !p.indices().is_empty() {
        commit::commit(p).await?;
    }
    Ok(())
}

/// BEGIN with what it says of the transaction: servers that have begun hear it as SET TRANSACTION, and refuse what comes too
/// late, as PostgreSQL does, to which the modes of BEGIN are just that (standard_ProcessUtility in src/backend/tcop/utility.c).
async fn begin(p: &mut Participants<'_>, text: &str, read_only: Option<bool>) -> Result<(), Failure> {
    p.warn_in_progress();
    if let Some(set) = set_modes(text, p.standard_strings()) {
        statement::everywhere(p, &set, &[]).await?;
    }
    p.begin(text, read_only)?;
    Ok(())
}

fn only_in_block(verb: &str) -> ProxyError {
    ProxyError::new("25P01", format!("{verb} can only be used in transaction blocks"))
}

/// As PostgreSQL says it of the end of an implicit block (EndTransactionBlock in src/backend/access/transam/xact.c).
async fn warn_outside(p: &mut Participants<'_>) {
    if !p.in_block() {
        let mut warning = Vec::new();
        build::warning(&mut warning, "25P01", "there is no transaction in progress");
        p.reply(&warning).await;
    }
}

/// Cursors of single shards that the message has declared: without a block the session does not keep them.
#[derive(Default)]
struct Cursors(Vec<(String, usize)>);

impl Cursors {
    fn destination(
        &self,
        p: &Participants<'_>,
        effect: &Effect,
        found: Destination,
    ) -> Result<Destination, ProxyError> {
        let (Effect::Declare(name) | Effect::Cursor(Some(name))) = effect else { return Ok(found) };
        if p.in_block() {
            return Ok(found);
        }
        let Some((_, shard)) = self.0.iter().find(|(known, _)| known == name) else { return Ok(found) };
        match (effect, found) {
            (Effect::Cursor(_), _) => {
                Ok(Destination::Shard(Place { shard: *shard, key: None, keyed: false }))
            }
            // That server knows its name.
            (_, Destination::Shard(place)) if place.shard == *shard => Ok(Destination::Shard(place)),
            (_, Destination::Refused(error)) => Ok(Destination::Refused(error)),
            _ => Err(ProxyError::new("42P03", format!("cursor \"{name}\" already exists"))),
        }
    }
}

fn settings() -> ProxyError {
    ProxyError::not_supported(
        "settings cannot be changed in one message with statements for different shards, or with EXECUTE",
        "Send the statements one by one.",
    )
}

/// EXECUTE: what it runs is bound to the values of its arguments.
async fn executed(p: &mut Participants<'_>, effect: &Effect, text: &str) -> Result<(), Failure> {
    let bound = prepared::bind(p, effect, text, None).await?;
    let entry = &bound.entry;
    if !matches!(entry.routed.plan.effect, Effect::None | Effect::CreatesObject | Effect::SetsSequence) {
        return Err(settings().into());
    }
    let destination = p.destination_of(entry, &bound.message).await?;
    let resolved = match &destination {
        Destination::Multi(resolved) => resolved.clone(),
        _ => Resolved::Any,
    };
    let part = MultiStatement {
        resolved,
        sql: Rc::from(&*entry.sql),
        routed: entry.routed.clone(),
        protocol: Protocol::Extended {
            entry: entry.clone(),
            bind: bound.message.as_slice().into(),
            describe: bound.rows,
            max_rows: 0,
            portal: Box::default(),
        },
    };
    match destination {
        Destination::Refused(error) => return Err(error.into()),
        Destination::Shard(place) => {
            let at = p.enlist(place.shard, true).await?;
            p.mark_write(place.shard, place.key.filter(|_| place.keyed).map(|hash| p.bucket(hash)));
            statement::compose(p, at, &part, part.text(), None);
            p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
            relay(p, at, true).await?;
        }
        Destination::Multi(_) => {
            let complete = statement::execute(p, &part).await?;
            p.reply(&complete).await;
        }
    }
    if entry.routed.plan.effect != Effect::None {
        p.apply(&entry.routed.plan, &String::from_utf8_lossy(part.text()));
    }
    Ok(())
}

async fn one_statement(
    p: &mut Participants<'_>,
    sql: &Rc<[u8]>,
    one: &RoutedStatement,
    cursors: &mut Cursors,
) -> Result<(), Failure> {
    let destination = p.destination(one, sql).await?;
    match cursors.destination(p, &one.plan.effect, destination)? {
        Destination::Refused(error) => return Err(error.into()),
        Destination::Shard(place) => {
            let at = p.enlist(place.shard, true).await?;
            p.mark_write(place.shard, place.key.filter(|_| place.keyed).map(|hash| p.bucket(hash)));
            build::query(&mut p.server(at).out, &sql[one.text.clone()]);
            p.server(at).unnamed = 0;
            p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
            relay(p, at, false).await?;
            match &one.plan.effect {
                Effect::Declare(name) => {
                    p.declared(name, place.shard);
                    cursors.0.push((name.clone(), place.shard));
                }
                Effect::Cursor(Some(_)) | Effect::SetsSequence => {
                    p.apply(&one.plan, &String::from_utf8_lossy(&sql[one.text.clone()]))
                }
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
///
/// `late`: it was bound for an EXECUTE. PostgreSQL runs that to its end before it describes the rows (PORTAL_UTIL_SELECT in
/// src/backend/tcop/pquery.c), so an error comes without a description.
async fn relay(p: &mut Participants<'_>, at: usize, late: bool) -> Result<(), Failure> {
    let mut description = None;
    loop {
        let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
        match message[0] {
            b'Z' => return Ok(()),
            b'E' => {
                gather(p, at).await?;
                return Err(Failure::Server(message));
            }
            b'S' => p.parameter_status(at, &message),
            // Of a statement that EXECUTE has bound: the client sent no Parse and no Bind.
            b'1' | b'2' | b'n' => {}
            b'T' if late => description = Some(message),
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
                let mut due = message;
                if matches!(due[0], b'D' | b'C') {
                    due = description.take().into_iter().flatten().chain(due).collect();
                }
                if !p.reply(&due).await {
                    return Err(ProxyError::client_gone().into());
                }
            }
        }
    }
}
