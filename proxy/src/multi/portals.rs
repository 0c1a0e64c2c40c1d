//! Execute with a limit on its rows (`setFetchSize`), over several shards. Nothing is read that is not asked for: the
//! rest waits on the servers, in portals that end with the transaction.

use std::rc::Rc;

use super::Failure;
use super::exchange;
use super::gather::{give_back, protocol};
use super::last::{Say, execute, limit, relay};
use super::scatter::{complete, same_shape};
use super::statement::Texts;
use crate::error::ProxyError;
use crate::route::Resolved;
use crate::route::analyse::last_word;
use crate::route::plan::Broadcast;
use crate::session::multi_hook::{Gathered, Message, MultiStatement, Name, Participants, Protocol, Running};
use crate::wire::{build, read};

pub(super) const SUSPENDED: &[u8] = b"s\0\0\0\x04";

/// A read that every shard answers for its own rows. All portals are opened now, as of one moment for each shard.
pub(super) async fn open(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    texts: &Texts,
) -> Result<Vec<u8>, Failure> {
    p.may_keep()?;
    let Protocol::Extended { describe, portal: clients, .. } = &statement.protocol else {
        return Err(ProxyError::internal("a portal of a simple query").into());
    };
    let (oids, tail) = protocol(statement);
    let portal = p.new_portal();
    let mut servers = Vec::new();
    for shard in shards {
        servers.push(p.enlist(*shard, true).await?);
    }
    for at in &servers {
        let oids = p.parameter_types(*at, oids);
        let server = p.server(*at);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", texts.on(server.shard, statement), &oids);
        super::pour::bind(&mut server.out, portal.as_bytes(), tail);
        build::named(&mut server.out, b'D', b'P', portal.as_bytes());
        server.out.extend_from_slice(build::SYNC);
    }
    let mut flushed = Vec::new();
    for at in &servers {
        flushed.push(p.flush(*at).await.is_ok());
    }
    // All answers are read before any error is acted on.
    let mut replies = Vec::new();
    for (at, sent) in servers.iter().zip(flushed) {
        replies.push(if sent { exchange::gather(p, *at).await } else { Err(exchange::lost(p, *at)) });
    }
    let mut descriptions = Vec::new();
    for reply in replies {
        descriptions.extend(reply?.ok()?.description);
    }
    same_shape(descriptions.iter())?;
    if let Some(description) = descriptions.first().filter(|_| *describe) {
        p.reply(description).await;
    }
    let keys = servers.iter().map(|at| p.server(*at).key.clone()).collect();
    let running = Running::Each { servers: keys, portal, next: 0 };
    match fetch(p, running, limit(statement)).await? {
        (complete, None) => Ok(complete),
        (complete, Some(running)) => {
            p.suspend_portal(clients);
            p.keep(Name::Portal(clients.clone()), running);
            Ok(complete)
        }
    }
}

/// More of its rows, and what is said of their end.
pub(super) async fn resume(p: &mut Participants<'_>, portal: &[u8], max_rows: i32) -> Result<(), Failure> {
    super::commit::settle(p).await?;
    let name = Name::Portal(portal.into());
    let Some((running, depth)) = p.take_running(&name) else {
        let portal = String::from_utf8_lossy(portal);
        return Err(ProxyError::new("34000", format!("portal \"{portal}\" does not exist")).into());
    };
    let (complete, rest) = match running {
        Running::Each { .. } => fetch(p, running, max_rows.max(0)).await?,
        Running::Told { rows, tag } => told(p, rows, tag, max_rows).await,
        Running::Gathered(gathered) => {
            let at = p.add_server(gathered.server);
            let result = more(p, at, b"", max_rows.max(0)).await;
            if matches!(&result, Ok(complete) if complete.first() == Some(&b's')) {
                let server = p.take_server(at);
                (result?, Some(Running::Gathered(Gathered { server, ..gathered })))
            } else {
                give_back(p, at).await;
                (result?, None)
            }
        }
    };
    match rest {
        Some(rest) => p.keep_again(name, rest, depth),
        None => p.end_portal(portal, none_left(&complete)),
    }
    p.reply(&complete).await;
    Ok(())
}

/// Keeps what a write returned beyond what was asked for. A portal that had exactly as many rows is suspended, too.
pub(super) fn hold(p: &mut Participants<'_>, statement: &MultiStatement, rows: Vec<Message>) {
    let Protocol::Extended { portal, .. } = &statement.protocol else { return };
    p.suspend_portal(portal);
    p.keep(Name::Portal(portal.clone()), Running::Told { rows: rows.into_iter(), tag: Vec::new() });
}

/// What is due at the end of a statement whose CommandComplete this is: PortalSuspended, if rows of it are held.
pub(super) fn ended(p: &mut Participants<'_>, statement: &MultiStatement, complete: Vec<u8>) -> Vec<u8> {
    let Protocol::Extended { portal, .. } = &statement.protocol else { return complete };
    if complete.first() != Some(&b'C') {
        return complete;
    }
    let name = Name::Portal(portal.clone());
    match p.take_running(&name) {
        Some((Running::Told { rows, .. }, depth)) => {
            p.keep_again(name, Running::Told { rows, tag: complete }, depth);
            SUSPENDED.to_vec()
        }
        Some((running, depth)) => {
            p.keep_again(name, running, depth);
            complete
        }
        None => {
            if gives_rows(statement, &complete, p.standard_strings()) {
                p.end_portal(portal, none_left(&complete));
            }
            complete
        }
    }
}

/// Whether its portal gives rows, though there may be none (ChoosePortalStrategy in src/backend/tcop/pquery.c).
fn gives_rows(statement: &MultiStatement, complete: &[u8], standard_strings: bool) -> bool {
    if matches!(statement.resolved, Resolved::All(Broadcast::Ddl | Broadcast::DdlAutocommit)) {
        return false;
    }
    let tag = String::from_utf8_lossy(read::body(complete).cstr().unwrap_or_default()).into_owned();
    match tag.split(' ').next() {
        Some("SELECT" | "FETCH" | "EXPLAIN" | "SHOW") => true,
        Some("INSERT" | "UPDATE" | "DELETE" | "MERGE") => {
            let text = String::from_utf8_lossy(statement.text()).into_owned();
            last_word(&text, standard_strings, "returning").is_some()
        }
        _ => false,
    }
}

/// The same CommandComplete for no rows.
fn none_left(of: &[u8]) -> Vec<u8> {
    let tag = String::from_utf8_lossy(read::body(of).cstr().unwrap_or_default()).into_owned();
    complete(&tag, 0)
}

/// More of what a write returned; the tag counts the rows of the last portion.
async fn told(
    p: &mut Participants<'_>,
    mut rows: std::vec::IntoIter<Message>,
    tag: Vec<u8>,
    max_rows: i32,
) -> (Vec<u8>, Option<Running>) {
    let asked = usize::try_from(max_rows).ok().filter(|asked| *asked > 0).unwrap_or(usize::MAX);
    let mut said = 0;
    while said < asked
        && let Some(row) = rows.next()
    {
        p.reply(&row).await;
        said += 1;
    }
    if said == asked {
        return (SUSPENDED.to_vec(), Some(Running::Told { rows, tag }));
    }
    let text = String::from_utf8_lossy(read::body(&tag).cstr().unwrap_or_default()).into_owned();
    (complete(&text, said as u64), None)
}

/// At most so many rows (0: all) of one shard after the other.
async fn fetch(
    p: &mut Participants<'_>,
    running: Running,
    max_rows: i32,
) -> Result<(Vec<u8>, Option<Running>), Failure> {
    let Running::Each { servers, portal, mut next } = running else {
        return Err(ProxyError::internal("a portal of another kind").into());
    };
    let mut rows = 0u64;
    let mut left = max_rows;
    while let Some(key) = servers.get(next) {
        let key = Rc::clone(key);
        let lost = || ProxyError::new("34000", "the portal's connection to a shard is gone");
        let at = p.index_of(&key).ok_or_else(lost)?;
        let complete = more(p, at, portal.as_bytes(), left).await?;
        if complete.first() == Some(&b's') {
            return Ok((complete, Some(Running::Each { servers, portal, next })));
        }
        let tag = read::body(&complete).cstr().unwrap_or_default();
        let count =
            String::from_utf8_lossy(tag).rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0u64);
        rows += count;
        if max_rows > 0 {
            // A portal that had exactly as many rows is suspended, not complete: at least one is still wanted.
            left -= i32::try_from(count).unwrap_or(left);
        }
        next += 1;
    }
    let mut complete = Vec::new();
    build::command_complete(&mut complete, &format!("SELECT {rows}"));
    Ok((complete, None))
}

/// Returns CommandComplete or PortalSuspended.
async fn more(p: &mut Participants<'_>, at: usize, portal: &[u8], max_rows: i32) -> Result<Vec<u8>, Failure> {
    let server = p.server(at);
    execute(&mut server.out, portal, max_rows);
    server.out.extend_from_slice(build::SYNC);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    let mut say = |message: Message| match message[0] {
        b'D' | b'N' => Say::Now(message),
        b'C' | b's' => Say::Last(Vec::new(), message),
        _ => Say::Nothing,
    };
    relay(p, at, &mut say).await
}
