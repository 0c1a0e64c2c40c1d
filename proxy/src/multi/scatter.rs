//! One statement on several shards, each for its own rows (`How::Each`): the answers are put one after the other.
//!
//! Rows of a read are passed on as they come: the shards work at the same time, and one that is not being read waits
//! for us, by TCP. Nothing piles up here.

use super::Failure;
use super::exchange::{self, gather};
use super::statement::{Texts, compose, say_rows};
use crate::error::ProxyError;
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::session::prepared::shape;
use crate::wire::{build, read};

/// A write on all of `shards`, within the transaction; returns the CommandComplete that is due.
pub(super) async fn write(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    texts: &Texts,
) -> Result<Vec<u8>, Failure> {
    let mut servers = Vec::new();
    for shard in shards {
        servers.push(p.enlist(*shard, true).await?);
        p.mark_write(*shard, None);
    }
    // One after the other: two such statements at once would else wait for each other on different shards, which no
    // server's deadlock detector sees.
    let mut done = Vec::new();
    for at in servers {
        let text = texts.on(p.server(at).shard, statement);
        compose(p, at, statement, text, None);
        p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
        done.push(gather(p, at).await?.ok()?);
    }
    same_shape(done.iter().filter_map(|reply| reply.description.as_ref()))?;
    let count: u64 = done.iter().map(exchange::Reply::count).sum();
    for notice in done.iter().flat_map(|reply| &reply.notices) {
        p.reply(notice).await;
    }
    let description = done.first().and_then(|reply| reply.description.clone());
    let tag = done.first().and_then(|reply| reply.tag.clone()).unwrap_or_default();
    let rows: Vec<Message> = done.into_iter().flat_map(|reply| reply.rows).collect();
    say_rows(p, statement, description.as_ref(), &rows).await;
    Ok(complete(&tag, count))
}

/// A read on all of `shards`; outside of a transaction the servers are given back when it is done.
pub(super) async fn read(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    texts: &Texts,
) -> Result<Vec<u8>, Failure> {
    let alone = !p.in_block() && p.indices().is_empty();
    let mut servers = Vec::new();
    for shard in shards {
        servers.push(p.enlist(*shard, !alone).await?);
    }
    let mut result = Ok(());
    for at in &servers {
        let text = texts.on(p.server(*at).shard, statement);
        compose(p, *at, statement, text, None);
        if p.flush(*at).await.is_err() {
            result = Err(Failure::from(exchange::lost(p, *at)));
        }
    }
    // Whatever happens, every answer is read to its end, or its connection is closed.
    let mut relay = Relay { description: None, tag: String::new(), count: 0, client_gone: false };
    for at in servers {
        result = match result {
            Ok(()) => relay.pass_on(p, statement, at).await,
            Err(failure) => {
                if relay.client_gone || drain(p, at).await.is_err() {
                    p.discard(at);
                }
                Err(failure)
            }
        };
    }
    if alone {
        p.release_readers();
    }
    result?;
    Ok(complete(&relay.tag, relay.count))
}

struct Relay {
    /// What the client was told of its columns.
    description: Option<Message>,
    tag: String,
    count: u64,
    client_gone: bool,
}

impl Relay {
    async fn pass_on(
        &mut self,
        p: &mut Participants<'_>,
        statement: &MultiStatement,
        at: usize,
    ) -> Result<(), Failure> {
        let mut failure = None;
        loop {
            let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
            match message[0] {
                b'Z' => break,
                b'E' => {
                    failure.get_or_insert(Failure::Server(message));
                }
                _ if failure.is_some() => {}
                b'T' | b'n' => {
                    if let Err(error) = self.describe(p, statement, message).await {
                        failure = Some(error);
                    }
                }
                b'D' | b'N' => {
                    if !p.reply(&message).await {
                        // The rest of its rows is nobody's: the connection goes with them.
                        p.discard(at);
                        self.client_gone = true;
                        return Err(client_gone());
                    }
                }
                b'C' => {
                    let tag = read::body(&message).cstr().unwrap_or_default();
                    self.tag = String::from_utf8_lossy(tag).into_owned();
                    self.count +=
                        self.tag.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                }
                b'S' => p.parameter_status(at, &message),
                _ => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn describe(
        &mut self,
        p: &mut Participants<'_>,
        statement: &MultiStatement,
        message: Message,
    ) -> Result<(), Failure> {
        if let Some(first) = &self.description {
            return same_shape([first, &message].into_iter());
        }
        let due = match &statement.protocol {
            Protocol::Simple => message[0] == b'T',
            Protocol::Extended { describe, .. } => *describe,
        };
        if due {
            p.reply(&message).await;
        }
        self.description = Some(message);
        Ok(())
    }
}

/// Reads up to ReadyForQuery what nobody wants any more.
pub(super) async fn drain(p: &mut Participants<'_>, at: usize) -> Result<(), ProxyError> {
    if p.server(at).dirty {
        return Ok(());
    }
    loop {
        let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
        if message[0] == b'Z' {
            return Ok(());
        }
    }
}

pub(super) fn client_gone() -> Failure {
    ProxyError::client_gone().into()
}

/// Rows of another type must not be put behind these: user types may have another OID on each shard (H23).
pub(super) fn same_shape<'a>(mut descriptions: impl Iterator<Item = &'a Message>) -> Result<(), Failure> {
    let Some(first) = descriptions.next().map(|message| shape(message)) else { return Ok(()) };
    if descriptions.all(|other| shape(other) == first) {
        return Ok(());
    }
    Err(ProxyError::not_supported(
        "the shards describe the columns of this statement with different types",
        "A type of your own has another OID on each shard: cast the column to text, or bind the key.",
    )
    .into())
}

/// The tag of one server, with the count of all.
pub(super) fn complete(tag: &str, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    match tag.rsplit_once(' ') {
        Some((verb, number)) if number.parse::<u64>().is_ok() => {
            build::command_complete(&mut out, &format!("{verb} {count}"));
        }
        _ => build::command_complete(&mut out, tag),
    }
    out
}

/// Ends what [`read`] and the gathering read began, when the transaction is nobody's.
pub(super) async fn end_reading(p: &mut Participants<'_>) {
    for at in p.indices() {
        if !p.server(at).dirty && p.server(at).status != b'I' {
            let ended = exchange::ask(p, at, "COMMIT").await;
            if ended.is_err() {
                p.discard(at);
            }
        }
    }
    p.release_readers();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_in_the_tags_own_form() {
        let text = |tag, count| {
            let bytes = complete(tag, count);
            String::from_utf8_lossy(&bytes[5..bytes.len() - 1]).into_owned()
        };
        assert_eq!(text("SELECT 3", 10), "SELECT 10");
        assert_eq!(text("INSERT 0 3", 10), "INSERT 0 10");
        assert_eq!(text("UPDATE 0", 4), "UPDATE 4");
        assert_eq!(text("CREATE TABLE", 0), "CREATE TABLE");
    }
}
