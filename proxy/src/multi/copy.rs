//! COPY ... FROM STDIN of a sharded table: rows are dealt out by their key, in one transaction.
//!
//! A shard joins with its first row. A server that does not read holds up the client, by TCP; nothing piles up here
//! but one buffer a shard.

use std::sync::Arc;

use super::Failure;
use super::copy_lines::Lines;
use super::copy_split::{CopyError, Piece, Splitter};
use super::exchange::{self, Reply, gather};
use super::limits::COPY_BUFFER;
use crate::error::ProxyError;
use crate::route::plan::{CopyFormat, CopyIn, CopyRows};
use crate::route::values::KeyReader;
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

/// One shard's stream.
struct Target {
    shard: usize,
    at: usize,
    /// Rows for the next CopyData.
    buffer: Vec<u8>,
    lines: Lines,
}

pub(super) struct Copy<'a> {
    statement: &'a MultiStatement,
    targets: Vec<Target>,
    /// What every shard hears first.
    head: Option<Vec<u8>>,
    binary: bool,
    /// Lines of the client's stream so far.
    line: u64,
}

pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    copy: &Arc<CopyIn>,
) -> Result<Vec<u8>, Failure> {
    let CopyRows::ByKey { position, key_type } = copy.rows else {
        return super::copy_everywhere::run(p, statement, copy).await;
    };
    if !p.client_encoding_is_ascii_safe() {
        return Err(ProxyError::not_supported(
            "COPY of a sharded table needs a client_encoding whose multi-byte characters hold no ASCII bytes",
            "SET client_encoding = 'UTF8'.",
        )
        .into());
    }
    let reader = KeyReader { key_type, buckets: p.buckets(), utf8: p.client_encoding_is_utf8() };
    let table = format!("{}.{}", copy.table.0, copy.table.1);
    let mut splitter = Splitter::new(copy.format.clone(), position, reader, table);
    let mut state = Copy::new(statement, copy.format == CopyFormat::Binary);

    // The first server checks the statement, and its answer tells the client to begin.
    let first = p.preferred_shard();
    let begin = state.open(p, first).await?;
    state.begin(p, &begin).await?;
    match state.stream(p, &mut splitter).await {
        Ok(()) => state.end(p).await,
        Err(failure) => {
            state.give_up(p, "COPY failed on another shard").await;
            Err(failure)
        }
    }
}

fn client_gone() -> Failure {
    ProxyError::new("08006", "the client's connection ended during COPY").into()
}

/// The client's next CopyData; `None` when it has sent all.
pub(super) async fn next(p: &mut Participants<'_>) -> Result<Option<Message>, Failure> {
    loop {
        let message = p.client_message().await.ok_or_else(client_gone)?;
        match message[0] {
            b'd' => return Ok(Some(message)),
            b'c' => return Ok(None),
            b'f' => {
                let why = read::body(&message).cstr().map(|text| String::from_utf8_lossy(text).into_owned());
                let message = format!("COPY from stdin failed: {}", why.unwrap_or_default());
                return Err(ProxyError::new("57014", message).into());
            }
            // As CopyGetData in src/backend/commands/copyfromparse.c: Flush and Sync are ignored within COPY.
            b'H' | b'S' => {}
            other => {
                let text = format!(
                    "unexpected message type '{}' during COPY from stdin",
                    char::from(other).escape_default()
                );
                return Err(ProxyError::new("08P01", text).into());
            }
        }
    }
}

impl<'a> Copy<'a> {
    pub(super) fn new(statement: &'a MultiStatement, binary: bool) -> Self {
        Self { statement, targets: Vec::new(), head: None, binary, line: 0 }
    }

    /// Shards that take part; they are named by index.
    pub(super) fn count(&self) -> usize {
        self.targets.len()
    }

    /// Bytes for one shard, which `send` sends.
    pub(super) fn queue(&mut self, index: usize, bytes: &[u8]) {
        self.targets[index].buffer.extend_from_slice(bytes);
    }

    /// Tells the client to begin, with a server's CopyInResponse.
    pub(super) async fn begin(&self, p: &mut Participants<'_>, response: &[u8]) -> Result<(), Failure> {
        if let Protocol::Extended { describe: true, .. } = self.statement.protocol {
            p.reply(build::NO_DATA).await;
        }
        p.reply(response).await;
        if p.flush_replies().await { Ok(()) } else { Err(client_gone()) }
    }

    /// Starts the COPY on one more shard; returns its CopyInResponse.
    pub(super) async fn open(&mut self, p: &mut Participants<'_>, shard: usize) -> Result<Message, Failure> {
        let at = p.enlist(shard, true).await?;
        p.mark_write(shard, None);
        let server = p.server(at);
        server.unnamed = 0;
        match &self.statement.protocol {
            Protocol::Simple => build::query(&mut server.out, self.statement.text()),
            Protocol::Extended { entry, bind, .. } => {
                build::parse(&mut server.out, b"", self.statement.text(), &entry.oids);
                let tail = read::bind(bind).map_or(&[0; 6][..], |b| b.tail);
                super::commit::bind_execute(&mut server.out, tail, false);
                // No Sync: within COPY it would be ignored.
                server.out.extend_from_slice(build::FLUSH);
            }
        }
        p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
        loop {
            let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
            match message[0] {
                b'G' => {
                    let mut target = Target { shard, at, buffer: Vec::new(), lines: Lines::default() };
                    if let Some(head) = &self.head {
                        target.buffer.extend_from_slice(head);
                        target.lines.head(u64::from(!self.binary));
                    }
                    self.targets.push(target);
                    return Ok(message);
                }
                b'E' => {
                    self.synced(p, at).await;
                    return Err(Failure::Server(message));
                }
                _ => {}
            }
        }
    }

    /// After an error: reads up to ReadyForQuery, which an extended batch must ask for.
    async fn synced(&self, p: &mut Participants<'_>, at: usize) {
        if matches!(self.statement.protocol, Protocol::Extended { .. }) {
            p.push(at, build::SYNC);
            let _ = p.flush(at).await;
        }
        let _ = gather(p, at).await;
    }

    /// Deals out the client's rows until it says that it is done.
    async fn stream(&mut self, p: &mut Participants<'_>, splitter: &mut Splitter) -> Result<(), Failure> {
        let mut pieces = Vec::new();
        let mut consumed = 0;
        loop {
            let Some(message) = next(p).await? else {
                let cut = splitter.finish(&mut consumed, &mut pieces);
                self.deal(p, splitter, &pieces).await?;
                return cut.map_err(copy_error);
            };
            let cut = splitter.push(&message[5..], &mut consumed, &mut pieces);
            self.deal(p, splitter, &pieces).await?;
            cut.map_err(copy_error)?;
        }
    }

    async fn deal(
        &mut self,
        p: &mut Participants<'_>,
        splitter: &Splitter,
        pieces: &[Piece],
    ) -> Result<(), Failure> {
        for piece in pieces {
            match piece {
                Piece::Head(bytes) => {
                    let head = splitter.bytes()[bytes.clone()].to_vec();
                    self.line += u64::from(!self.binary);
                    for target in &mut self.targets {
                        target.buffer.extend_from_slice(&head);
                        target.lines.head(u64::from(!self.binary));
                    }
                    self.head = Some(head);
                }
                Piece::Row { bytes, bucket, lines } => {
                    self.line += lines;
                    let index = match bucket {
                        None => 0,
                        Some(bucket) => {
                            let shard = p.shard_of(*bucket)?;
                            match self.targets.iter().position(|t| t.shard == shard) {
                                Some(index) => index,
                                None => {
                                    self.open(p, shard).await?;
                                    self.targets.len() - 1
                                }
                            }
                        }
                    };
                    let row = &splitter.bytes()[bytes.clone()];
                    let target = &mut self.targets[index];
                    target.buffer.extend_from_slice(row);
                    target.lines.row(*lines, self.line, row.len());
                    if target.buffer.len() >= COPY_BUFFER {
                        self.send(p, index).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends what one shard has waiting, and looks whether any shard has already failed.
    pub(super) async fn send(&mut self, p: &mut Participants<'_>, index: usize) -> Result<(), Failure> {
        let target = &mut self.targets[index];
        let at = target.at;
        if !target.buffer.is_empty() {
            let out = &mut p.server(at).out;
            let start = build::begin(out, b'd');
            out.append(&mut target.buffer);
            build::end(out, start);
            p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
        }
        while let Some(message) = p.try_receive(at).map_err(|_| exchange::lost(p, at))? {
            if message[0] == b'E' {
                let failure = self.translate(index, &message);
                self.targets.remove(index);
                self.synced(p, at).await;
                return Err(failure);
            }
        }
        Ok(())
    }

    fn translate(&self, index: usize, message: &[u8]) -> Failure {
        let lines = &self.targets[index].lines;
        Failure::Server(exchange::change_fields(message, |tag, text| {
            Some(if tag == b'W' { lines.translate(text) } else { text.to_owned() })
        }))
    }

    async fn end(&mut self, p: &mut Participants<'_>) -> Result<Vec<u8>, Failure> {
        if self.binary {
            self.targets.iter_mut().for_each(|t| t.buffer.extend_from_slice(&(-1i16).to_be_bytes()));
        }
        let count: u64 = self.finish(p).await?.iter().map(|(_, reply)| reply.count()).sum();
        let mut complete = Vec::new();
        build::command_complete(&mut complete, &format!("COPY {count}"));
        Ok(complete)
    }

    /// The stream is over on all shards; all their answers are read, each with its participant.
    pub(super) async fn finish(&mut self, p: &mut Participants<'_>) -> Result<Vec<(usize, Reply)>, Failure> {
        for index in 0..self.targets.len() {
            if let Err(failure) = self.send(p, index).await {
                self.give_up(p, "COPY failed on another shard").await;
                return Err(failure);
            }
        }
        let mut result = Ok(());
        for index in 0..self.targets.len() {
            let at = self.targets[index].at;
            p.push(at, b"c\0\0\0\x04");
            if matches!(self.statement.protocol, Protocol::Extended { .. }) {
                p.push(at, build::SYNC);
            }
            if p.flush(at).await.is_err() {
                result = Err(exchange::lost(p, at).into());
            }
        }
        let mut replies = Vec::new();
        for index in 0..self.targets.len() {
            let at = self.targets[index].at;
            if p.server(at).dirty {
                continue;
            }
            match gather(p, at).await {
                Ok(Reply { error: Some(error), .. }) => {
                    let failure = self.translate(index, &error);
                    if result.is_ok() {
                        result = Err(failure);
                    }
                }
                Ok(reply) => replies.push((at, reply)),
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        result.map(|()| replies)
    }

    /// Ends the COPY on all shards without its rows.
    pub(super) async fn give_up(&mut self, p: &mut Participants<'_>, why: &str) {
        for target in std::mem::take(&mut self.targets) {
            if p.server(target.at).dirty {
                continue;
            }
            let out = &mut p.server(target.at).out;
            let start = build::begin(out, b'f');
            build::cstr(out, why.as_bytes());
            build::end(out, start);
            if p.flush(target.at).await.is_ok() {
                self.synced(p, target.at).await;
            }
        }
    }
}

fn copy_error(error: CopyError) -> Failure {
    let ours =
        ProxyError::new(error.sqlstate, error.message).hint("The proxy reads the sharding key of each row.");
    Failure::Ours(if error.line > 0 { ours.detail(format!("COPY line {}", error.line)) } else { ours })
}
