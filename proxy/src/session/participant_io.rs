//! Bytes to and from the servers, and the client, of a session that is lent to `crate::multi`. Every wait for a server ends
//! when that has lost its role, and when the client has hung up.

use std::task::{Context, Poll, Waker};

use super::hang_up::{GivenUp, HangUp};
use super::participants::{Message, Participants};
use crate::error::ProxyError;
use crate::wire::{frame, read};

impl Participants<'_> {
    /// Keeps what a server reported, and passes it on.
    pub fn parameter_status(&mut self, at: usize, message: &[u8]) {
        let mut reader = read::body(message);
        if let (Some(name), Some(value)) = (reader.cstr(), reader.cstr()) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.session.servers[at].set_parameter(&text(name), &text(value));
        }
        self.session.client_output().extend_from_slice(message);
    }

    /// With the default shard's numbers for types and tables (H23).
    fn described(&self, at: usize, message: Message) -> Message {
        match message.first() {
            Some(b'T' | b't') => self.session.described(at, &message).unwrap_or(message),
            _ => message,
        }
    }

    /// A message that has arrived whole; does not wait.
    pub fn try_receive(&mut self, at: usize) -> Result<Option<Message>, ProxyError> {
        let server = &mut self.session.servers[at];
        let mut chunk = [0; 8192];
        loop {
            if let Ok(Some(size)) = frame::server_frame(&server.partial)
                && size <= server.partial.len()
            {
                let rest = server.partial.split_off(size);
                let message = std::mem::replace(&mut server.partial, rest);
                return Ok(Some(self.described(at, message)));
            }
            match server.poll_read(&mut Context::from_waker(Waker::noop()), &mut chunk) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Ok(size)) if size > 0 => server.partial.extend_from_slice(&chunk[..size]),
                Poll::Ready(_) => {
                    server.dirty = true;
                    return Err(ProxyError::outcome_unknown(server.pool.shard_id));
                }
            }
        }
    }

    /// A simple query of our own; the first error, if any, as one of ours with the server's SQLSTATE left out.
    pub async fn simple(&mut self, at: usize, sql: &[u8]) -> Result<(), ProxyError> {
        let shard = self.session.servers[at].pool.shard_id;
        let (server, wait) = self.session.server_and_wait(at);
        let answer = wait.until(crate::pool::pool::round_trip(server, sql)).await;
        let why = match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(given_up) => {
                self.note(&given_up);
                "the answer was not waited for".to_owned()
            }
        };
        // It is not known what it has heard: never again.
        self.session.servers[at].dirty = true;
        Err(ProxyError::new("08006", format!("shard {shard}: {why}")))
    }

    /// Appends bytes for a server; `flush` sends them.
    pub fn push(&mut self, at: usize, bytes: &[u8]) {
        self.session.servers[at].out.extend_from_slice(bytes);
    }

    pub async fn flush(&mut self, at: usize) -> Result<(), ProxyError> {
        let (server, wait) = self.session.server_and_wait(at);
        let flushed = wait.until(std::future::poll_fn(|cx| server.poll_flush(cx))).await;
        if matches!(flushed, Ok(Ok(()))) {
            return Ok(());
        }
        if let Err(given_up) = flushed {
            self.note(&given_up);
        }
        Err(self.lost(at))
    }

    /// The next whole message of a server. `Err`: the server is lost; it will not be used again.
    pub async fn receive(&mut self, at: usize) -> Result<Message, ProxyError> {
        let mut chunk = [0; 8192];
        loop {
            // Not what is about buckets that may be somebody else's by now (H8).
            let passes = self.session.may_pass_on();
            let server = &mut self.session.servers[at];
            match frame::server_frame(&server.partial) {
                Ok(Some(_)) if !passes => return Err(self.lost(at)),
                Ok(Some(size)) if size <= server.partial.len() => {
                    let message = server.partial[..size].to_vec();
                    server.partial.drain(..size);
                    if message[0] == b'Z' {
                        server.status = message.get(5).copied().unwrap_or(b'?');
                        server.unsynced = false;
                    }
                    return Ok(self.described(at, message));
                }
                Ok(_) if server.partial.len() <= crate::limits::SERVER_MESSAGE => {}
                _ => return Err(self.lost(at)),
            }
            let (server, wait) = self.session.server_and_wait(at);
            match wait.until(std::future::poll_fn(|cx| server.poll_read(cx, &mut chunk))).await {
                Ok(Ok(size)) if size > 0 => server.partial.extend_from_slice(&chunk[..size]),
                Ok(_) => return Err(self.lost(at)),
                Err(given_up) => {
                    self.note(&given_up);
                    return Err(self.lost(at));
                }
            }
        }
    }

    /// Bytes for the client, sent before this returns (so memory stays bounded). `false`: the client is gone.
    pub async fn reply(&mut self, bytes: &[u8]) -> bool {
        self.session.client_output().extend_from_slice(bytes);
        if self.session.output.len() < crate::limits::SPARE_BUFFER {
            return true;
        }
        self.session.flush_client().await.is_ok()
    }

    /// Sends what `reply` has collected.
    pub async fn flush_replies(&mut self) -> bool {
        self.session.flush_client().await.is_ok()
    }

    /// The next whole message of the client (COPY data). `None`: the client is gone or breaks the protocol.
    pub async fn client_message(&mut self) -> Option<Message> {
        loop {
            let input = &mut self.session.input;
            match frame::client_frame(input) {
                Ok(Some(size)) if size <= input.len() => {
                    let rest = input.split_off(size);
                    return Some(std::mem::replace(input, rest));
                }
                Ok(_) => {}
                Err(_) => return None,
            }
            if !self.session.read_client().await {
                return None;
            }
        }
    }

    fn note(&mut self, given_up: &GivenUp) {
        if matches!(given_up, GivenUp::ClientGone) {
            self.session.hung_up();
        }
    }

    fn lost(&mut self, at: usize) -> ProxyError {
        let server = &mut self.session.servers[at];
        server.dirty = true;
        ProxyError::outcome_unknown(server.pool.shard_id)
    }

    /// From here on a client that hangs up changes nothing: what is being done is done to its end (`true`), or stopped
    /// again (`false`).
    pub fn go_on_without_client(&mut self, on: bool) {
        self.session.hang_up = match (self.session.hang_up, on) {
            (HangUp::Noticed, _) => HangUp::Noticed,
            (_, true) => HangUp::Ignored,
            (_, false) => HangUp::Watched,
        };
    }
}
