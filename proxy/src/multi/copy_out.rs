//! COPY ... TO STDOUT that every shard answers for its own rows: one stream, with one header and one trailer.

use super::Failure;
use super::exchange;
use super::scatter::{client_gone, drain};
use super::statement::{Texts, compose};
use crate::error::ProxyError;
use crate::session::multi_hook::{MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

/// Signature, flags and length of the extension area (src/backend/commands/copyto.c).
const BINARY_HEAD: usize = 19;
const BINARY_TAIL: &[u8] = &[0xff, 0xff];

/// Returns the CommandComplete that is due.
pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    header: bool,
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
    let mut stream = Stream { header, binary: false, begun: false, rows: 0 };
    for at in servers {
        result = match result {
            Ok(()) => stream.pass_on(p, statement, at).await,
            Err(failure) => {
                // Outside of a transaction nobody waits for the rest.
                if alone || drain(p, at).await.is_err() {
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
    if stream.binary {
        data(p, BINARY_TAIL).await?;
    }
    p.reply(b"c\0\0\0\x04").await;
    let mut complete = Vec::new();
    build::command_complete(&mut complete, &format!("COPY {}", stream.rows));
    Ok(complete)
}

struct Stream {
    header: bool,
    binary: bool,
    /// The client was told that data follow.
    begun: bool,
    rows: u64,
}

impl Stream {
    async fn pass_on(
        &mut self,
        p: &mut Participants<'_>,
        statement: &MultiStatement,
        at: usize,
    ) -> Result<(), Failure> {
        let mut failure = None;
        let mut cut = Cut::default();
        let mut first = true;
        loop {
            let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
            let mut reply: &[u8] = b"";
            let mut rows = Vec::new();
            match message[0] {
                b'Z' => break,
                b'E' => {
                    failure.get_or_insert(Failure::Server(message));
                    continue;
                }
                b'S' => p.parameter_status(at, &message),
                _ if failure.is_some() => {}
                b'n' if !self.begun
                    && matches!(statement.protocol, Protocol::Extended { describe: true, .. }) =>
                {
                    reply = &message;
                }
                b'N' => reply = &message,
                b'H' => {
                    self.binary = message.get(5) == Some(&1);
                    cut.head = if self.binary && self.begun { BINARY_HEAD } else { 0 };
                    if !self.begun {
                        reply = &message;
                    }
                    first = !self.begun;
                    self.begun = true;
                }
                b'd' if self.binary => rows = cut.rows(&message[5..]),
                // A message is a line: this one is the header, which the client has.
                b'd' if self.header && !first => first = true,
                b'd' => reply = &message,
                b'C' => {
                    let tag =
                        String::from_utf8_lossy(read::body(&message).cstr().unwrap_or_default()).into_owned();
                    self.rows += tag.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                }
                _ => {}
            }
            let said = if rows.is_empty() { p.reply(reply).await } else { data(p, &rows).await.is_ok() };
            if !said {
                p.discard(at);
                return Err(client_gone());
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if self.binary && cut.held != BINARY_TAIL => {
                Err(ProxyError::internal("a binary COPY ended without its trailer").into())
            }
            None => Ok(()),
        }
    }
}

async fn data(p: &mut Participants<'_>, bytes: &[u8]) -> Result<(), Failure> {
    let mut out = Vec::with_capacity(bytes.len() + 5);
    let start = build::begin(&mut out, b'd');
    out.extend_from_slice(bytes);
    build::end(&mut out, start);
    if p.reply(&out).await { Ok(()) } else { Err(client_gone()) }
}

/// One shard's binary stream without its header, which only the first one's is passed on of, and without its trailer.
#[derive(Default)]
struct Cut {
    /// Bytes of the header that are still to come.
    head: usize,
    /// The last two bytes so far: the trailer, in the end.
    held: Vec<u8>,
}

impl Cut {
    fn rows(&mut self, bytes: &[u8]) -> Vec<u8> {
        let skipped = self.head.min(bytes.len());
        self.head -= skipped;
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(&bytes[skipped..]);
        self.held = all.split_off(all.len().saturating_sub(BINARY_TAIL.len()));
        all
    }
}

/// However a binary stream is cut into messages, the same bytes are left of it.
#[cfg(any(test, fuzzing))]
pub(super) fn tail(bytes: &[u8]) {
    let cut = |size: usize| {
        let mut cut = Cut { head: 19, held: Vec::new() };
        bytes.chunks(size).flat_map(|chunk| cut.rows(chunk)).collect::<Vec<u8>>()
    };
    assert_eq!(cut(3), cut(bytes.len().max(1)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_stream_loses_its_header_and_its_trailer_wherever_messages_end() {
        let mut whole = vec![7; BINARY_HEAD];
        whole.extend_from_slice(b"rows");
        whole.extend_from_slice(BINARY_TAIL);
        for size in 1..=whole.len() {
            let mut cut = Cut { head: BINARY_HEAD, held: Vec::new() };
            let rows: Vec<u8> = whole.chunks(size).flat_map(|chunk| cut.rows(chunk)).collect();
            assert_eq!((rows.as_slice(), cut.held.as_slice()), (&b"rows"[..], BINARY_TAIL), "{size}");
        }
    }
}
