//! Copies rows from the servers of a transaction into a temporary table of another connection.

use super::super::Failure;
use super::super::exchange::{self, gather};
use super::super::pour::{COPY_HEAD, COPY_TAIL, bind, too_much};
use super::super::limits::{GATHER, GATHER_CHUNK};
use super::super::scatter::drain;
use crate::session::multi_hook::Participants;
use crate::wire::build;

/// One table's rows.
pub(super) struct Load<'a> {
    pub(super) into: String,
    /// Which servers are asked what.
    pub(super) from: Vec<(usize, String)>,
    /// Types of the client's parameters, and its Bind with all results in binary, if the queries have parameters.
    pub(super) parameters: Option<(&'a [u8], &'a [u8])>,
    /// The queries lock rows: one server after the other, so that two of us wait for each other on none of them.
    pub(super) locks: bool,
}

impl Load<'_> {
    /// Returns how many rows there were. After an error the connection `to` is to be closed if it is not ready.
    pub(super) async fn run(&self, p: &mut Participants<'_>, to: usize, bytes: &mut usize) -> Result<u64, Failure> {
        exchange::send(p, to, self.into.as_bytes()).await?;
        loop {
            let message = p.receive(to).await.map_err(|_| exchange::lost(p, to))?;
            match message[0] {
                b'G' => break,
                b'E' => {
                    drain(p, to).await?;
                    return Err(Failure::Server(message));
                }
                _ => {}
            }
        }
        p.server(to).unsynced = true;
        push(p, to, COPY_HEAD);
        let mut rows = 0;
        let mut result = Ok(());
        if !self.locks {
            for (at, sql) in &self.from {
                result = result.and(self.ask(p, *at, sql).await);
            }
        }
        for (at, sql) in &self.from {
            if self.locks {
                // Those behind a failure are not asked: nobody would read their answers.
                result?;
                result = self.ask(p, *at, sql).await;
            }
            result = match result {
                Ok(()) => pump(p, *at, to, &mut rows, bytes).await,
                Err(failure) => {
                    if drain(p, *at).await.is_err() {
                        p.discard(*at);
                    }
                    Err(failure)
                }
            };
        }
        result?;
        push(p, to, COPY_TAIL);
        p.push(to, b"c\0\0\0\x04");
        p.flush(to).await.map_err(|_| exchange::lost(p, to))?;
        p.server(to).unsynced = false;
        gather(p, to).await?.ok()?;
        Ok(rows)
    }

    async fn ask(&self, p: &mut Participants<'_>, at: usize, sql: &str) -> Result<(), Failure> {
        let (oids, tail) = self.parameters.unwrap_or((b"", &[0, 0, 0, 0, 0, 1, 0, 1]));
        let server = p.server(at);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", sql.as_bytes(), oids);
        bind(&mut server.out, b"", tail);
        let start = build::begin(&mut server.out, b'E');
        server.out.extend_from_slice(&[0; 5]);
        build::end(&mut server.out, start);
        server.out.extend_from_slice(build::SYNC);
        p.flush(at).await.map_err(|_| exchange::lost(p, at).into())
    }
}

fn push(p: &mut Participants<'_>, to: usize, bytes: &[u8]) {
    let out = &mut p.server(to).out;
    let start = build::begin(out, b'd');
    out.extend_from_slice(bytes);
    build::end(out, start);
}

/// A DataRow in binary is a tuple of COPY in binary, byte for byte.
async fn pump(
    p: &mut Participants<'_>,
    at: usize,
    to: usize,
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
                failure.get_or_insert(Failure::Server(message));
            }
            b'D' if failure.is_none() => {
                *rows += 1;
                *bytes += message.len();
                if *bytes > GATHER {
                    failure = Some(too_much());
                    continue;
                }
                chunk.extend_from_slice(&message[5..]);
                if chunk.len() >= GATHER_CHUNK {
                    failure = send(p, to, &mut chunk).await.err();
                }
            }
            b'S' => p.parameter_status(at, &message),
            _ => {}
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => send(p, to, &mut chunk).await,
    }
}

async fn send(p: &mut Participants<'_>, to: usize, chunk: &mut Vec<u8>) -> Result<(), Failure> {
    if !chunk.is_empty() {
        push(p, to, chunk);
        chunk.clear();
        p.flush(to).await.map_err(|_| exchange::lost(p, to))?;
    }
    // An error (a full disk) shows before the end.
    match p.try_receive(to).map_err(|_| exchange::lost(p, to))? {
        Some(message) if message[0] == b'E' => {
            p.discard(to);
            Err(Failure::Server(message))
        }
        _ => Ok(()),
    }
}
