//! INSERT ... VALUES whose rows belong to several shards: each shard gets the statement with its own rows.
//!
//! Parameters keep their numbers, and every shard is given all of them with their types declared: a parameter that
//! a shard's rows do not use is then accepted and ignored, and no value has to be copied into another place.

use super::Failure;
use super::draws::draw;
use super::exchange::{self, Reply, gather};
use super::last::{Say, limit, relay};
use super::portals::SUSPENDED;
use super::statement::{compose, say_rows};
use crate::error::ProxyError;
use crate::oids::FIRST_USER_OID;
use crate::route::SplitRows;
use crate::route::plan::Draws;
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

/// All rows are one shard's, so that it can be a transaction of its own there.
pub(super) fn is_for_one(rows: &SplitRows) -> bool {
    rows.shards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Runs it on its one shard and commits there, without asking more than that; says all but the error. To be called
/// outside of any transaction only.
pub(super) async fn alone(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    rows: &SplitRows,
) -> Result<(), Failure> {
    let result = alone_on(p, statement, rows).await;
    known_if(p, rows, result)
}

/// Of rows behind one that failed PostgreSQL had not drawn.
fn known_if<T>(p: &mut Participants<'_>, rows: &SplitRows, result: Result<T, Failure>) -> Result<T, Failure> {
    if result.is_err() && rows.insert.draws.is_some() {
        p.may_have_drawn();
    }
    result
}

async fn alone_on(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    rows: &SplitRows,
) -> Result<(), Failure> {
    let drawn = match &rows.insert.draws {
        Some(draws) => Some((draws, draw(p, draws, rows.shards.len()).await?)),
        None => None,
    };
    let parts = parts(p, statement, rows, drawn.as_ref())?;
    let [part] = parts.as_slice() else {
        return Err(ProxyError::internal("rows of several shards were taken for rows of one").into());
    };
    let at = p.enlist(part.shard, false).await?;
    for key in rows.keys.iter() {
        let bucket = key.map(|hash| p.bucket(hash));
        p.mark_write(part.shard, bucket);
    }
    let oids = match &statement.protocol {
        Protocol::Extended { entry, .. } if !all_declared(&entry.oids, statement.routed.plan.parameters) => {
            match describe(p, at, &entry.sql, &entry.oids).await {
                Ok(oids) => Some(oids),
                Err(failure) => {
                    p.finish(false);
                    return Err(failure);
                }
            }
        }
        _ => None,
    };
    compose(p, at, statement, &part.text, oids.as_deref());
    let (simple, described) = match &statement.protocol {
        Protocol::Simple => (true, true),
        Protocol::Extended { describe, .. } => (false, *describe),
    };
    // The portal ends with this transaction: rows that are not asked for now never are.
    let asked = usize::try_from(limit(statement)).ok().filter(|asked| *asked > 0).unwrap_or(usize::MAX);
    let mut said = 0;
    let mut say = |message: Message| match message[0] {
        b'T' if described => Say::Now(message),
        b'n' if described && !simple => Say::Now(message),
        b'D' => {
            said += 1;
            if said > asked { Say::Nothing } else { Say::Now(message) }
        }
        b'N' => Say::Now(message),
        b'C' if said >= asked => Say::Last(Vec::new(), SUSPENDED.to_vec()),
        b'C' => Say::Last(Vec::new(), message),
        _ => Say::Nothing,
    };
    // It commits by itself: a cancel request could end its wait for a standby, and show what the standby does not have.
    p.go_on_without_client(true);
    let result = match p.flush(at).await {
        Ok(()) => relay(p, at, &mut say).await,
        Err(error) => Err(error.into()),
    };
    p.go_on_without_client(false);
    // It was sent, and it is a transaction of its own: nobody can say what became of it.
    let unknown = p.server(at).dirty.then(|| ProxyError::outcome_unknown(p.shard_id(at).0));
    if unknown.is_some() {
        p.abandon_marks(at);
    }
    p.finish(result.is_ok());
    match (result, unknown) {
        (Err(_), Some(unknown)) => Err(unknown.into()),
        (result, _) => {
            p.reply(&result?).await;
            Ok(())
        }
    }
}

pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    rows: &SplitRows,
) -> Result<Vec<u8>, Failure> {
    let result = run_on_each(p, statement, rows).await;
    known_if(p, rows, result)
}

async fn run_on_each(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    rows: &SplitRows,
) -> Result<Vec<u8>, Failure> {
    let drawn = match &rows.insert.draws {
        Some(draws) => Some((draws, draw(p, draws, rows.shards.len()).await?)),
        None => None,
    };
    let parts = parts(p, statement, rows, drawn.as_ref())?;
    let mut oids: Option<Vec<u8>> = None;
    // What can fail without having been sent comes first: nothing may be left unread when one of them fails.
    let mut ready = Vec::new();
    for part in &parts {
        let at = p.enlist(part.shard, true).await?;
        for row in &part.rows {
            let bucket = rows.keys[*row].map(|hash| p.bucket(hash));
            p.mark_write(part.shard, bucket);
        }
        if let Protocol::Extended { entry, .. } = &statement.protocol
            && !oids.as_ref().is_some_and(|oids| are_built_in(oids))
        {
            oids = if all_declared(&entry.oids, statement.routed.plan.parameters) {
                Some(entry.oids.to_vec())
            } else {
                Some(describe(p, at, &entry.sql, &entry.oids).await?)
            };
        }
        ready.push((at, oids.clone()));
    }
    let mut sent = Vec::new();
    for (part, (at, oids)) in parts.iter().zip(ready) {
        compose(p, at, statement, &part.text, oids.as_deref());
        sent.push((at, p.flush(at).await.map_err(|_| exchange::lost(p, at))));
    }
    // All answers are read before any error is acted on: every server must be ready for the ROLLBACK.
    let mut replies = Vec::new();
    for (at, sent) in sent {
        replies.push(match sent {
            Ok(()) => gather(p, at).await,
            Err(error) => Err(error),
        });
    }
    let mut done: Vec<Reply> = Vec::new();
    for reply in replies {
        // The position is one in the text that the shard was given.
        done.push(reply?.ok().map_err(without_position)?);
    }
    for notice in done.iter().flat_map(|reply| &reply.notices) {
        p.reply(notice).await;
    }
    let count: u64 = done.iter().map(Reply::count).sum();
    let description = done.first_mut().and_then(|reply| reply.description.take());
    let returned = in_client_order(rows.shards.len(), &parts, done);
    say_rows(p, statement, description.as_ref(), &returned).await;
    let mut complete = Vec::new();
    build::command_complete(&mut complete, &format!("INSERT 0 {count}"));
    Ok(complete)
}

/// One shard's share.
struct Part {
    shard: usize,
    /// Which of the client's rows, ascending.
    rows: Vec<usize>,
    text: Vec<u8>,
}

fn parts(
    p: &Participants<'_>,
    statement: &MultiStatement,
    rows: &SplitRows,
    drawn: Option<&(&Draws, Vec<String>)>,
) -> Result<Vec<Part>, Failure> {
    let text = statement.text();
    let cut = |range: &std::ops::Range<u32>| text.get(range.start as usize..range.end as usize);
    let broken = || ProxyError::internal("a row of this INSERT is outside of its text");
    let mut parts: Vec<Part> = Vec::new();
    for (number, shard) in rows.shards.iter().enumerate() {
        let shard = p.position(*shard).ok_or_else(|| {
            ProxyError::no_primary(shard.0, "the map names it but the configuration does not")
        })?;
        let row = cut(&rows.insert.rows[number].text).ok_or_else(broken)?;
        let mut row = row.to_vec();
        if let Some((_, values)) = drawn {
            // In front of the closing parenthesis.
            row.pop().filter(|last| *last == b')').ok_or_else(broken)?;
            row.extend_from_slice(values.get(number).ok_or_else(broken)?.as_bytes());
            row.push(b')');
        }
        match parts.iter_mut().find(|part| part.shard == shard) {
            Some(part) => {
                part.rows.push(number);
                part.text.extend_from_slice(b", ");
                part.text.extend_from_slice(&row);
            }
            None => {
                let mut text = match drawn {
                    Some((draws, _)) => draws.head.as_bytes().to_vec(),
                    None => cut(&rows.insert.head).ok_or_else(broken)?.to_vec(),
                };
                text.extend_from_slice(&row);
                parts.push(Part { shard, rows: vec![number], text });
            }
        }
    }
    for part in &mut parts {
        // Blanks, in case the cuts are tight.
        part.text.push(b' ');
        part.text.extend_from_slice(cut(&rows.insert.tail).ok_or_else(broken)?);
    }
    parts.sort_by_key(|part| part.shard);
    Ok(parts)
}

/// Rows of RETURNING in the order of the client's rows. Where a shard returned fewer than it was given (ON CONFLICT DO
/// NOTHING), nobody can say which is missing; then they come shard by shard, which SQL allows.
fn in_client_order(count: usize, parts: &[Part], replies: Vec<Reply>) -> Vec<Vec<u8>> {
    let complete = parts.iter().zip(&replies).all(|(part, reply)| part.rows.len() == reply.rows.len());
    if !complete {
        return replies.into_iter().flat_map(|reply| reply.rows).collect();
    }
    let mut ordered = vec![Vec::new(); count];
    for (part, reply) in parts.iter().zip(replies) {
        for (number, row) in part.rows.iter().zip(reply.rows) {
            ordered[*number] = row;
        }
    }
    ordered.retain(|row| !row.is_empty());
    ordered
}

fn all_declared(oids: &[u8], parameters: u16) -> bool {
    oids.len() / 4 >= usize::from(parameters) && oids.chunks_exact(4).all(|oid| oid != [0; 4])
}

fn are_built_in(oids: &[u8]) -> bool {
    oids.chunks_exact(4).all(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]) < FIRST_USER_OID)
}

/// The parameter types that this server infers from the whole statement.
async fn describe(p: &mut Participants<'_>, at: usize, sql: &[u8], oids: &[u8]) -> Result<Vec<u8>, Failure> {
    let oids = p.parameter_types(at, oids);
    let server = p.server(at);
    server.unnamed = 0;
    build::parse(&mut server.out, b"", sql, &oids);
    build::named(&mut server.out, b'D', b'S', b"");
    server.out.extend_from_slice(build::SYNC);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    let reply = gather(p, at).await?.ok()?;
    let message =
        reply.parameters.ok_or_else(|| ProxyError::internal("the server described no parameters"))?;
    let mut reader = read::body(&message);
    let count = reader.u16().unwrap_or(0);
    Ok(reader.bytes(usize::from(count) * 4).unwrap_or_default().to_vec())
}

fn without_position(failure: Failure) -> Failure {
    match failure {
        Failure::Server(message) => Failure::Server(exchange::change_fields(&message, |tag, text| {
            (tag != b'P').then(|| text.to_owned())
        })),
        ours => ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: &[usize]) -> Part {
        Part { shard: 0, rows: rows.to_vec(), text: Vec::new() }
    }

    fn reply(rows: &[u8]) -> Reply {
        Reply { rows: rows.iter().map(|r| vec![*r]).collect(), ..Reply::default() }
    }

    #[test]
    fn returned_rows_come_in_the_clients_order() {
        let parts = [part(&[1, 2]), part(&[0, 3])];
        assert_eq!(in_client_order(4, &parts, vec![reply(b"bc"), reply(b"ad")]), [b"a", b"b", b"c", b"d"]);
        assert_eq!(
            in_client_order(4, &parts, vec![reply(b"b"), reply(b"ad")]),
            [b"b", b"a", b"d"],
            "one was skipped"
        );
    }

    #[test]
    fn only_fully_declared_parameters_need_no_question() {
        assert!(all_declared(&[0, 0, 0, 23], 1));
        assert!(!all_declared(&[0, 0, 0, 23], 2));
        assert!(!all_declared(&[0, 0, 0, 23, 0, 0, 0, 0], 2));
        assert!(are_built_in(&[0, 0, 0x3f, 0xff]) && !are_built_in(&[0, 0, 0x40, 0]));
    }
}
