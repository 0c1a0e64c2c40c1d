//! Rows of several servers into a temporary table of another: binary results are passed on as a binary COPY.

use super::Failure;
use super::exchange::{self, gather};
use super::limits::{GATHER, GATHER_CHUNK};
use super::scatter::drain;
use crate::error::ProxyError;
use crate::session::multi_hook::{Message, Participants};
use crate::wire::{build, read};

/// `PGCOPY\n\377\r\n\0`, no flags, no extension (src/backend/commands/copyto.c).
const COPY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TAIL: &[u8] = &[0xff, 0xff];

pub(super) struct Pour {
    pub(super) scratch: usize,
    /// The COPY FROM STDIN (FORMAT binary) that takes the rows.
    pub(super) into: String,
    /// The servers that are read take part in no transaction: what is not read to its end is closed.
    pub(super) own: bool,
    /// The query is not the client's text: errors name no position in it.
    pub(super) alien: bool,
    /// The queries lock rows: one server after the other, so that two of us wait for each other on none of them.
    pub(super) locks: bool,
}

impl Pour {
    /// Runs a query on each of the servers `from`; returns how many rows there were. `values`: parameter types, and what
    /// stands behind the names in Bind. After an error the connection `scratch` is to be closed if it is not ready.
    pub(super) async fn run(
        &self,
        p: &mut Participants<'_>,
        from: &[(usize, String)],
        (oids, tail): (&[u8], &[u8]),
        bytes: &mut usize,
    ) -> Result<u64, Failure> {
        self.open(p).await?;
        p.server(self.scratch).unsynced = true;
        let tail = binary_results(tail);
        let mut result = Ok(());
        if !self.locks {
            for (at, select) in from {
                result = result.and(ask(p, *at, select, (oids, &tail)).await);
            }
        }
        self.push(p, COPY_HEAD);
        let mut rows = 0;
        for (at, select) in from {
            if self.locks {
                // Those behind a failure are not asked: nobody would read their answers.
                result?;
                result = ask(p, *at, select, (oids, &tail)).await;
            }
            result = match result {
                Ok(()) => self.pump(p, *at, &mut rows, bytes).await,
                // What was only read is not read to its end for nothing.
                Err(failure) if self.own => {
                    p.discard(*at);
                    Err(failure)
                }
                Err(failure) => {
                    if drain(p, *at).await.is_err() {
                        p.discard(*at);
                    }
                    Err(failure)
                }
            };
        }
        result?;
        self.push(p, COPY_TAIL);
        p.push(self.scratch, b"c\0\0\0\x04");
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        p.server(self.scratch).unsynced = false;
        gather(p, self.scratch).await?.ok()?;
        Ok(rows)
    }

    async fn open(&self, p: &mut Participants<'_>) -> Result<(), Failure> {
        exchange::send(p, self.scratch, self.into.as_bytes()).await?;
        loop {
            let message = p.receive(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
            match message[0] {
                b'G' => return Ok(()),
                b'E' => {
                    drain(p, self.scratch).await?;
                    return Err(Failure::Server(message));
                }
                _ => {}
            }
        }
    }

    fn push(&self, p: &mut Participants<'_>, bytes: &[u8]) {
        let out = &mut p.server(self.scratch).out;
        let start = build::begin(out, b'd');
        out.extend_from_slice(bytes);
        build::end(out, start);
    }

    /// One shard's rows: a DataRow in binary is a tuple of COPY in binary, byte for byte (src/backend/commands/copyfrom.c
    /// and src/backend/access/common/printtup.c agree on it).
    async fn pump(
        &self,
        p: &mut Participants<'_>,
        at: usize,
        rows: &mut u64,
        bytes: &mut usize,
    ) -> Result<(), Failure> {
        let mut failure = None;
        let mut chunk: Vec<u8> = Vec::with_capacity(GATHER_CHUNK);
        loop {
            let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
            match message[0] {
                b'Z' => break,
                b'E' => {
                    let message = if self.alien { without_position(&message) } else { message };
                    failure.get_or_insert(Failure::Server(message));
                }
                b'D' if failure.is_none() => {
                    *rows += 1;
                    *bytes += message.len();
                    if *bytes > GATHER {
                        if self.own {
                            p.discard(at);
                            return Err(too_much());
                        }
                        failure = Some(too_much());
                        continue;
                    }
                    chunk.extend_from_slice(&message[5..]);
                    if chunk.len() >= GATHER_CHUNK {
                        failure = self.send(p, &mut chunk).await.err();
                    }
                }
                b'S' => p.parameter_status(at, &message),
                _ => {}
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => self.send(p, &mut chunk).await,
        }
    }

    async fn send(&self, p: &mut Participants<'_>, chunk: &mut Vec<u8>) -> Result<(), Failure> {
        if !chunk.is_empty() {
            self.push(p, chunk);
            chunk.clear();
            p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        }
        // An error (a full disk) shows before the end.
        match p.try_receive(self.scratch).map_err(|_| exchange::lost(p, self.scratch))? {
            Some(message) if message[0] == b'E' => {
                p.discard(self.scratch);
                Err(Failure::Server(message))
            }
            _ => Ok(()),
        }
    }
}

async fn ask(
    p: &mut Participants<'_>,
    at: usize,
    select: &str,
    (oids, tail): (&[u8], &[u8]),
) -> Result<(), Failure> {
    let server = p.server(at);
    server.unnamed = 0;
    build::parse(&mut server.out, b"", select.as_bytes(), oids);
    super::commit::bind_execute(&mut server.out, tail, false);
    server.out.extend_from_slice(build::SYNC);
    p.flush(at).await.map_err(|_| exchange::lost(p, at).into())
}

fn too_much() -> Failure {
    ProxyError::new("54000", format!("the rows that this query would bring together exceed {GATHER} bytes"))
        .hint("Add a condition on the sharding key, or one that the shards can apply to their own rows.")
        .into()
}

/// An error whose position is one in a text that the client does not know.
pub(super) fn without_position(message: &[u8]) -> Message {
    exchange::change_fields(message, |tag, text| (tag != b'P').then(|| text.to_owned()))
}

/// Bind of the unnamed statement.
pub(super) fn bind(out: &mut Vec<u8>, portal: &[u8], tail: &[u8]) {
    let start = build::begin(out, b'B');
    build::cstr(out, portal);
    out.push(0);
    out.extend_from_slice(tail);
    build::end(out, start);
}

/// The client's parameters, and all results in binary.
pub(super) fn binary_results(tail: &[u8]) -> Vec<u8> {
    let mut reader = read::Reader::new(tail);
    let end = (|| {
        let formats = reader.u16()?;
        reader.bytes(usize::from(formats) * 2)?;
        for _ in 0..reader.u16()? {
            let length = reader.i32()?;
            reader.bytes(usize::try_from(length).unwrap_or(0))?;
        }
        Some(tail.len() - reader.rest().len())
    })();
    let mut out = tail.get(..end.unwrap_or(0)).unwrap_or_default().to_vec();
    if out.is_empty() {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(&[0, 1, 0, 1]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_asked_for_in_binary_whatever_the_client_wanted() {
        // One format code, one value of two bytes, two result codes.
        let tail = [0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 7, 8, 0, 2, 0, 0, 0, 1];
        assert_eq!(binary_results(&tail), [0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 7, 8, 0, 1, 0, 1]);
        assert_eq!(binary_results(&[0; 6]), [0, 0, 0, 0, 0, 1, 0, 1]);
    }
}
