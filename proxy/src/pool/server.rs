//! One connection to a server, and what the proxy knows about it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use rustc_hash::FxHashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::limits;
use crate::session::settings::Settings;
use crate::wire::build;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    Replica,
}

/// How to cancel what the server is doing. Shared with cancel tasks, which outlive neither the pool's rules: the
/// connection is not reused while `pending` is not 0.
#[derive(Debug)]
pub struct ServerKey {
    pub address: SocketAddr,
    pub pid: i32,
    pub secret: Vec<u8>,
    /// Cancel requests on their way to this server.
    pub pending: Cell<u32>,
    /// A cancel request was given up: it may still arrive, so nobody else may be on this connection.
    pub poisoned: Cell<bool>,
}

pub struct Server {
    pub stream: TcpStream,
    pub key: Rc<ServerKey>,
    /// Position in `State::shards`.
    pub shard: usize,
    pub role: Role,
    pub pool: Rc<super::Pool>,
    /// Prepared statements it has: registry id -> last use.
    statements: FxHashMap<u64, u32>,
    tick: u32,
    /// Session settings it has now.
    pub settings: Rc<Settings>,
    /// Last value of each parameter it reported.
    pub parameters: Vec<(String, String)>,
    /// Bytes to send.
    pub out: Vec<u8>,
    /// How much of `out` was sent.
    pub sent: usize,
    /// Start of a frame that has not arrived whole.
    pub partial: Vec<u8>,
    /// Bytes of the current frame that are still to be passed through or swallowed.
    pub pass: usize,
    pub swallow: usize,
    /// Id of the entry that its unnamed statement holds.
    pub unnamed: u64,
    /// Messages were sent since the last Sync or Query was answered.
    pub unsynced: bool,
    /// Status byte of the last ReadyForQuery.
    pub status: u8,
    /// It has heard BEGIN and whatever else comes before the first statement.
    pub enlisted: bool,
    /// Must not be pooled again.
    pub dirty: bool,
    /// Which settings it has is not known: it may end its transaction, but nobody else gets it.
    pub unknown_state: bool,
    /// Sequences may have been drawn from on it, so that it has values of currval() and lastval().
    pub drawn: bool,
    /// So they were before the session that has it now took it.
    pub drawn_by_others: bool,
    pub created: Instant,
    pub used: Instant,
    /// Closed when idle after this.
    pub expires: Instant,
}

impl Server {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        stream: TcpStream,
        key: ServerKey,
        pool: Rc<super::Pool>,
        settings: Rc<Settings>,
        parameters: Vec<(String, String)>,
        expires: Instant,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            key: Rc::new(key),
            shard: pool.shard,
            role: pool.role,
            pool,
            statements: FxHashMap::default(),
            tick: 0,
            settings,
            parameters,
            out: Vec::new(),
            sent: 0,
            partial: Vec::new(),
            pass: 0,
            swallow: 0,
            unsynced: false,
            status: b'I',
            enlisted: false,
            unnamed: 0,
            dirty: false,
            unknown_state: false,
            drawn: false,
            drawn_by_others: false,
            created: now,
            used: now,
            expires,
        }
    }

    /// Reads what has arrived. `Ready(Ok(0))` is the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<std::io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        std::pin::Pin::new(&mut self.stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
    }

    /// Sends what is pending. `Ready(Ok(()))` when nothing is left.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while self.sent < self.out.len() {
            match std::pin::Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.sent += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.sent = 0;
        if self.out.capacity() > limits::SPARE_BUFFER {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Has an idle connection neither ended nor said anything? Costs no system call: without readiness there is
    /// nothing to read. A server that restarted or was told to go has made the socket readable.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        self.poll_read(&mut Context::from_waker(Waker::noop()), &mut byte).is_pending()
    }

    /// Does it have this statement? Marks it used.
    #[inline]
    pub fn knows(&mut self, id: u64) -> bool {
        self.tick = self.tick.wrapping_add(1);
        match self.statements.get_mut(&id) {
            Some(used) => {
                *used = self.tick;
                true
            }
            None => false,
        }
    }

    /// It is about to have this statement; returns the one to close for it, if there are too many.
    pub fn learn(&mut self, id: u64) -> Option<u64> {
        let mut evicted = None;
        if self.statements.len() >= limits::SERVER_STATEMENTS {
            let now = self.tick;
            evicted =
                self.statements.iter().max_by_key(|(_, used)| now.wrapping_sub(**used)).map(|(id, _)| *id);
            if let Some(id) = evicted {
                self.statements.remove(&id);
            }
        }
        self.statements.insert(id, self.tick);
        evicted
    }

    pub fn forget(&mut self, id: u64) {
        self.statements.remove(&id);
    }

    pub fn set_parameter(&mut self, name: &str, value: &str) {
        if let Some((_, old)) = self.parameters.iter_mut().find(|(known, _)| known == name) {
            value.clone_into(old);
        } else if self.parameters.len() < limits::SETTINGS_PER_SESSION {
            self.parameters.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Nothing is outstanding in either direction and the server is outside any transaction.
    pub fn is_clean(&self) -> bool {
        !self.dirty
            && !self.unknown_state
            && self.status == b'I'
            && !self.unsynced
            && self.out.is_empty()
            && self.partial.is_empty()
            && self.pass == 0
            && self.swallow == 0
            && !self.key.poisoned.get()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politeness only: the server sees the end of the stream either way.
        let _ = self.stream.try_write(build::TERMINATE);
        self.pool.gone();
    }
}
