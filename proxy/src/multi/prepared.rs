//! SQL PREPARE and EXECUTE, by means of the protocol's prepared statements.
//!
//! Servers are pooled, so a statement that one of them prepared would be gone with the next transaction. PREPARE makes
//! an entry of the session, like Parse; EXECUTE becomes a Bind of it. Arguments are any expressions, which PostgreSQL
//! turns into the parameters' types as in an assignment: one server is asked for their values.

use std::ops::Range;
use std::rc::Rc;

use super::arguments::evaluate;
use super::exchange::{self, Reply, change_fields, gather};
use super::{Failure, commit};
use crate::error::ProxyError;
use crate::route::analyse::{ExecuteParts, execute_parts, prepare_parts};
use crate::route::plan::Effect;
use crate::session::multi_hook::{Described, Message, OfPortal, Participants};
use crate::session::prepared::{Entry, OF_EXECUTE, shape};
use crate::wire::{build, read};

/// Asks a server of this shard, which takes part in the transaction if there is one. Not a function: what is asked borrows
/// the participants, too.
macro_rules! asked {
    ($p:ident, $shard:expr, |$at:ident| $ask:expr) => {{
        let alone = !$p.in_block() && $p.indices().is_empty();
        let $at = $p.enlist($shard, !alone).await?;
        let result = $ask.await;
        if alone {
            $p.release_readers();
        }
        result
    }};
}

pub(super) async fn run(
    p: &mut Participants<'_>,
    effect: &Effect,
    text: &str,
    portal: Option<&OfPortal>,
) -> Result<(), Failure> {
    // Servers that are in an implicit transaction are spoken to by simple queries now.
    commit::settle(p).await?;
    match effect {
        Effect::SqlPrepare(name) => {
            let (types, at) = prepare_parts(text, p.standard_strings()).ok_or_else(unsure)?;
            prepare(p, name, text, types, at).await
        }
        _ => {
            let bound = bind(p, effect, text, portal).await?;
            p.bind_in_place(bound.message, bound.rows, portal);
            Ok(())
        }
    }
}

fn unsure() -> Failure {
    ProxyError::internal("the parts of this statement were not found").into()
}

/// What an EXECUTE has become.
pub(super) struct Bound {
    pub(super) entry: Rc<Entry>,
    /// The Bind.
    pub(super) message: Vec<u8>,
    /// It has a result.
    pub(super) rows: bool,
}

pub(super) async fn bind(
    p: &mut Participants<'_>,
    effect: &Effect,
    text: &str,
    portal: Option<&OfPortal>,
) -> Result<Bound, Failure> {
    let Effect::SqlExecute { name, default_shard } = effect else { return Err(unsure()) };
    let parts = execute_parts(text, p.standard_strings()).ok_or_else(unsure)?;
    let shard = if *default_shard { p.default_shard() } else { p.preferred_shard() };
    if *default_shard {
        p.may_have_drawn();
    }
    let prepared = p.prepared(name)?;
    let before = text.get(..parts.arguments.start).unwrap_or_default().chars().count();
    let arguments = text.get(parts.arguments.clone()).unwrap_or_default();
    let known = prepared.shape.borrow().is_some();
    let mut values = Vec::new();
    if !arguments.trim().is_empty() || prepared.routed.plan.parameters > 0 || !known {
        let evaluated = asked!(p, shard, |at| evaluate(p, at, name, &prepared, arguments));
        values = evaluated.map_err(|failure| shifted(failure, before))?;
    }
    let (entry, name) = match within(p, text, &parts, &prepared)? {
        None => (prepared, name.as_bytes()),
        Some(entry) => {
            if entry.shape.borrow().is_none() {
                let reply = asked!(p, shard, |at| describe(p, at, &entry.sql, &entry.oids));
                note_shape(&entry, &reply.map_err(|failure| moved(failure, |_| None))?);
            }
            let name = p.add_within(&entry);
            (entry, name)
        }
    };
    let mut message = Vec::new();
    let start = build::begin(&mut message, b'B');
    build::cstr(&mut message, portal.map_or(b"", |portal| &portal.name));
    build::cstr(&mut message, name);
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            Some(bytes) => {
                message.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                message.extend_from_slice(&bytes);
            }
            None => message.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    message.extend_from_slice(portal.map_or(&[0, 0], |portal| &portal.results));
    build::end(&mut message, start);
    let rows = entry.shape.borrow().as_ref().is_some_and(|shape| !shape.is_empty());
    Ok(Bound { entry, message, rows })
}

/// EXPLAIN and CREATE TABLE AS around an EXECUTE: the same around what it runs, whose parameters stay parameters.
fn within(
    p: &mut Participants<'_>,
    text: &str,
    parts: &ExecuteParts,
    prepared: &Entry,
) -> Result<Option<Rc<Entry>>, Failure> {
    let around = (text.get(..parts.whole.start), text.get(parts.whole.end..));
    let (Some(before), Some(behind)) = around else { return Err(unsure()) };
    if before.is_empty() {
        return Ok(None);
    }
    let query = String::from_utf8_lossy(prepared.source());
    // The query may end in a comment.
    let whole = format!("{before}{query}\n{OF_EXECUTE} {behind}");
    let entry = p.prepared_entry(whole.as_bytes(), &prepared.oids);
    entry.map(Some).map_err(|error| moved(error.into(), |_| None))
}

/// Describe of an EXECUTE. One that nothing was prepared for has no result until it fails, as in PostgreSQL.
pub(super) async fn tell(
    p: &mut Participants<'_>,
    effect: &Effect,
    text: &str,
    of: &Described,
) -> Result<(), Failure> {
    commit::settle(p).await?;
    let Effect::SqlExecute { name, .. } = effect else { return Err(unsure()) };
    let parts = execute_parts(text, p.standard_strings()).ok_or_else(unsure)?;
    let mut description = None;
    if let Ok(prepared) = p.prepared(name) {
        let entry = within(p, text, &parts, &prepared)?.unwrap_or(prepared);
        let shard = p.preferred_shard();
        let reply = asked!(p, shard, |at| describe(p, at, &entry.sql, &entry.oids))?;
        note_shape(&entry, &reply);
        description = reply.description;
    }
    let mut out = Vec::new();
    if let Described::Statement = of {
        // No parameters: those of what it runs are its own.
        out.extend_from_slice(b"t\0\0\0\x06\0\0");
    }
    match (description, of) {
        (None, _) => out.extend_from_slice(build::NO_DATA),
        (Some(description), Described::Statement) => out.extend_from_slice(&description),
        (Some(description), Described::Portal(results)) => {
            out.extend_from_slice(&in_formats(description, results));
        }
    }
    p.reply(&out).await;
    Ok(())
}

/// Where the format codes of a RowDescription's columns stand. `None`: it is none.
pub(super) fn formats(description: &[u8]) -> Option<Vec<Range<usize>>> {
    if description.first() != Some(&b'T') {
        return None;
    }
    let mut reader = read::body(description);
    let mut places = Vec::new();
    // Type byte, length and number of columns stand before the first; the format is the last of a column's 18 bytes.
    let mut at = 7;
    for _ in 0..reader.u16()? {
        at += reader.cstr()?.len() + 1;
        reader.bytes(18)?;
        at += 18;
        places.push(at - 2..at);
    }
    Some(places)
}

/// A RowDescription with the format codes of a Bind (PortalSetResultFormat in src/backend/tcop/pquery.c).
fn in_formats(mut description: Message, results: &[u8]) -> Message {
    let codes: Vec<&[u8]> = results.get(2..).unwrap_or_default().chunks_exact(2).collect();
    if codes.is_empty() {
        return description;
    }
    for (n, place) in formats(&description).unwrap_or_default().into_iter().enumerate() {
        let code = if codes.len() == 1 { codes.first() } else { codes.get(n) };
        if let Some(code) = code {
            description[place].copy_from_slice(code);
        }
    }
    description
}

async fn prepare(
    p: &mut Participants<'_>,
    name: &str,
    text: &str,
    types: Option<Range<usize>>,
    query: usize,
) -> Result<(), Failure> {
    let shard = p.preferred_shard();
    let entry = asked!(p, shard, |at| check(p, at, text, types, query))?;
    p.add_prepared(name, &entry)?;
    exchange::say_tag(p, "PREPARE").await;
    Ok(())
}

/// The entry, which a server has accepted.
async fn check(
    p: &mut Participants<'_>,
    at: usize,
    text: &str,
    types: Option<Range<usize>>,
    query: usize,
) -> Result<Rc<Entry>, Failure> {
    let oids = match types {
        Some(types) => declared(p, at, text, types).await?,
        None => Vec::new(),
    };
    // Errors speak of positions in the client's own text.
    let before = text.get(..query).unwrap_or_default().chars().count();
    let query = text.get(query..).unwrap_or_default();
    let entry = p.prepared_entry(query.as_bytes(), &oids).map_err(|error| shifted(error.into(), before))?;
    let reply = describe(p, at, &entry.sql, &entry.oids).await.map_err(|failure| shifted(failure, before))?;
    note_shape(&entry, &reply);
    entry.validated.set(true);
    Ok(entry)
}

/// The OIDs of types that are given by name: PostgreSQL reads the names.
async fn declared(
    p: &mut Participants<'_>,
    at: usize,
    text: &str,
    types: Range<usize>,
) -> Result<Vec<u8>, Failure> {
    let mut before = text.get(..types.start).unwrap_or_default().chars().count();
    let names = split_list(text.get(types).unwrap_or_default(), p.standard_strings());
    let mut casts = "SELECT ".to_owned();
    // Where each name begins, in characters: in the text that is sent, and in the client's.
    let mut begins = Vec::new();
    for (n, name) in names.iter().enumerate() {
        casts += &format!("{}CAST(${} AS ", if n > 0 { ", " } else { "" }, n + 1);
        begins.push((casts.chars().count(), before));
        casts += name;
        casts.push(')');
        before += name.chars().count() + 1;
    }
    let reply = describe(p, at, casts.as_bytes(), &[]).await.map_err(|failure| {
        moved(failure, |position| {
            let (sent, own) = begins.iter().rev().find(|(sent, _)| *sent < position)?;
            Some(position - sent + own)
        })
    })?;
    let mut oids = parameter_oids(&reply);
    for (oid, _) in oids.chunks_exact_mut(4).zip(&names).filter(|(_, name)| is_unknown(name)) {
        oid.fill(0);
    }
    Ok(oids)
}

/// A type that is not given; a cast to it would make it text.
fn is_unknown(name: &str) -> bool {
    name.trim().rsplit('.').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("unknown"))
}

/// The parts of a list that was written with commas.
pub(super) fn split_list(text: &str, standard_strings: bool) -> Vec<&str> {
    use crate::route::tokens::{TokenKind, tokens};
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for token in tokens(text.as_bytes(), standard_strings).unwrap_or_default() {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            TokenKind::Comma if depth == 0 => {
                parts.push(text.get(start..token.range.start).unwrap_or_default());
                start = token.range.end;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

pub(super) fn parameter_oids(reply: &Reply) -> Vec<u8> {
    let Some(message) = &reply.parameters else { return Vec::new() };
    let mut reader = read::body(message);
    let count = reader.u16().unwrap_or(0);
    reader.bytes(usize::from(count) * 4).unwrap_or_default().to_vec()
}

/// What its result looks like: an EXECUTE of a statement without one has no RowDescription.
pub(super) fn note_shape(entry: &Rc<Entry>, reply: &Reply) {
    if let Some(description) = &reply.description {
        entry.shape.borrow_mut().get_or_insert_with(|| shape(description));
    }
}

/// Parse and Describe on a server, of a statement that is not kept there.
pub(super) async fn describe(
    p: &mut Participants<'_>,
    at: usize,
    sql: &[u8],
    oids: &[u8],
) -> Result<Reply, Failure> {
    let oids = p.parameter_types(at, oids);
    let server = p.server(at);
    server.unnamed = 0;
    build::parse(&mut server.out, b"", sql, &oids);
    build::named(&mut server.out, b'D', b'S', b"");
    server.out.extend_from_slice(build::SYNC);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    gather(p, at).await?.ok()
}

/// With positions counted from the beginning of the client's text.
fn shifted(failure: Failure, by: usize) -> Failure {
    moved(failure, |position| position.checked_add(by))
}

/// With another position, or none.
pub(super) fn moved(failure: Failure, place: impl Fn(usize) -> Option<usize>) -> Failure {
    match failure {
        Failure::Ours(error) => {
            let position =
                error.position.and_then(|at| place(at as usize)).and_then(|at| u32::try_from(at).ok());
            Failure::Ours(ProxyError { position, ..error })
        }
        Failure::Server(message) => Failure::Server(change_fields(&message, |tag, text| match tag {
            b'P' => place(text.parse().ok()?).map(|at| at.to_string()),
            _ => Some(text.to_owned()),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::{in_formats, split_list};

    #[test]
    fn lists_are_split_at_their_own_commas() {
        assert_eq!(split_list("int, numeric(10, 2),\"a,b\"", true), ["int", " numeric(10, 2)", "\"a,b\""]);
        assert_eq!(split_list("f(1, 2), ',', $$,$$", true).len(), 3);
    }

    #[test]
    fn columns_are_described_in_the_formats_of_their_portal() {
        let columns = [("a", crate::wire::build::TEXT), ("bc", crate::wire::build::INT4)];
        let mut description = Vec::new();
        crate::wire::build::row_description(&mut description, &columns);
        let codes = |results: &[u8]| {
            let described = in_formats(description.clone(), results);
            assert_eq!(described.len(), description.len());
            (described[7 + 20 - 2..7 + 20].to_vec(), described[described.len() - 2..].to_vec())
        };
        assert_eq!(codes(&[0, 0]), (vec![0, 0], vec![0, 0]));
        assert_eq!(codes(&[0, 1, 0, 1]), (vec![0, 1], vec![0, 1]));
        assert_eq!(codes(&[0, 2, 0, 0, 0, 1]), (vec![0, 0], vec![0, 1]));
    }
}
