//! COPY ... FROM STDIN of a sharded table: rows are dealt out by their key, in one transaction.
//!
//! A shard joins with its first row. A server that does not read holds up the client, by TCP; nothing piles up here
//! but one buffer a shard.

use std::sync::Arc;

use super::Failure;
use super::copy_lines::{LineCount, Lines};
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
    head: Option<(Vec<u8>, LineCount)>,
    binary: bool,
    /// The table's name, as errors have it.
    table: &'a str,
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
    let reader = KeyReader { key_type, utf8: p.client_encoding_is_utf8() };
    let table = format!("{}.{}", copy.table.0, copy.table.1);
    let mut splitter = Splitter::new(copy.format.clone(), position, reader, table);
    let mut state = Copy::new(statement, &copy.table.1, copy.format == CopyFormat::Binary);

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
    pub(super) fn new(statement: &'a MultiStatement, table: &'a str, binary: bool) -> Self {
        Self { statement, targets: Vec::new(), head: None, binary, table }
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
                    if let Some((head, lines)) = &self.head {
                        target.buffer.extend_from_slice(head);
                        target.lines.head(*lines);
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
                return self.judge(p, cut).await;
            };
            let cut = splitter.push(&message[5..], &mut consumed, &mut pieces);
            self.deal(p, splitter, &pieces).await?;
            self.judge(p, cut).await?;
        }
    }

    /// A row whose key cannot be read has been given to the first server, which ends its part with it and says what is
    /// wrong. If it takes the row, what is wrong is what we say; nothing of it stays.
    async fn judge(&mut self, p: &mut Participants<'_>, cut: Result<(), CopyError>) -> Result<(), Failure> {
        let Err(error) = cut else { return Ok(()) };
        if error.judged && !self.targets.is_empty() {
            self.end_binary(0);
            self.send(p, 0).await?;
            let at = self.targets[0].at;
            self.push_end(p, at);
            let reply = match p.flush(at).await {
                Ok(()) => gather(p, at).await,
                Err(_) => Err(exchange::lost(p, at)),
            };
            let said = reply.map(|reply| reply.error.map(|message| self.translate(0, &message).0));
            self.targets.remove(0);
            if let Some(failure) = said? {
                return Err(failure);
            }
        }
        let ours = ProxyError::new(error.sqlstate, error.message)
            .hint("The proxy reads the sharding key of each row.");
        let context = (error.line > 0).then(|| format!("COPY {}, line {}", self.table, error.line));
        Err(ProxyError { context, ..ours }.into())
    }

    fn end_binary(&mut self, index: usize) {
        if self.binary {
            self.targets[index].buffer.extend_from_slice(&(-1i16).to_be_bytes());
        }
    }

    /// CopyDone, and the Sync that an extended batch needs.
    fn push_end(&self, p: &mut Participants<'_>, at: usize) {
        p.push(at, b"c\0\0\0\x04");
        if matches!(self.statement.protocol, Protocol::Extended { .. }) {
            p.push(at, build::SYNC);
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
                Piece::Head { bytes, lines } => {
                    let head = splitter.bytes()[bytes.clone()].to_vec();
                    for target in &mut self.targets {
                        target.buffer.extend_from_slice(&head);
                        target.lines.head(*lines);
                    }
                    self.head = Some((head, *lines));
                }
                Piece::Row { bytes, hash, lines, line } => {
                    let index = match hash {
                        None => 0,
                        Some(hash) => {
                            let shard = p.shard_of(*hash)?;
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
                    target.lines.row(*lines, *line, row.len());
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
                let (failure, _) = self.translate(index, &message);
                self.targets.remove(index);
                self.synced(p, at).await;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// The shard's error, and the client's line that it is about.
    fn translate(&self, index: usize, message: &[u8]) -> (Failure, Option<u64>) {
        let lines = &self.targets[index].lines;
        let context = read::error_field(message, b'W').map(|text| String::from_utf8_lossy(text).into_owned());
        let (context, line) = context.map_or_else(Default::default, |context| lines.translate(&context));
        let changed = exchange::change_fields(message, |tag, text| {
            Some(if tag == b'W' { context.clone() } else { text.to_owned() })
        });
        (Failure::Server(changed), line)
    }

    async fn end(&mut self, p: &mut Participants<'_>) -> Result<Vec<u8>, Failure> {
        (0..self.targets.len()).for_each(|index| self.end_binary(index));
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
        let mut result: Result<(), Failure> = Ok(());
        for index in 0..self.targets.len() {
            let at = self.targets[index].at;
            self.push_end(p, at);
            if p.flush(at).await.is_err() {
                result = Err(exchange::lost(p, at).into());
            }
        }
        let mut replies = Vec::new();
        // Of several errors the one that one server would have met first.
        let mut first: Option<(u64, Failure)> = None;
        for index in 0..self.targets.len() {
            let at = self.targets[index].at;
            if p.server(at).dirty {
                continue;
            }
            match gather(p, at).await {
                Ok(Reply { error: Some(error), .. }) => {
                    let (failure, line) = self.translate(index, &error);
                    let line = line.unwrap_or(u64::MAX);
                    if first.as_ref().is_none_or(|(known, _)| line < *known) {
                        first = Some((line, failure));
                    }
                }
                Ok(reply) => replies.push((at, reply)),
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        result?;
        first.map_or(Ok(replies), |(_, failure)| Err(failure))
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
