//! Notices that the client has gone while servers work for it. PostgreSQL looks for that too, if it is told to
//! (`client_connection_check_interval`, WL_SOCKET_CLOSED in src/backend/tcop/postgres.c): the end of the stream is enough,
//! whatever was sent before it.
//!
//! With one server the session only looks (`is_hung_up`) and leaves what was sent ahead in the kernel, all but Terminate:
//! statements that a client sends and does not wait for are carried out. What runs on several shards is stopped at once, and
//! rolled back, unless its transaction is being ended: that goes on to its end, as if the client were there.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::Session;
use super::client::ClientInfo;
use crate::limits;
use crate::pool::server::ServerKey;
use crate::pool::{Pool, Server};
use crate::wire::build;

/// What the end of the client's stream means for what `crate::multi` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HangUp {
    /// Nothing, now.
    Ignored,
    Watched,
    /// It has ended, and the servers were told.
    Noticed,
}

/// A wait for a server's answer, and what ends it before.
pub(super) struct Wait<'a> {
    stream: &'a mut TcpStream,
    input: &'a mut Vec<u8>,
    hang_up: HangUp,
    info: Rc<ClientInfo>,
    pool: Rc<Pool>,
}

/// Why there is no answer.
pub(super) enum GivenUp {
    /// The server has lost its role and does not answer. A paused server never closes its connection, so maintenance
    /// wakes who waits for one (`ClientInfo::give_up_retired`).
    Retired,
    ClientGone,
}

impl Wait<'_> {
    pub(super) async fn until<T>(self, answer: impl Future<Output = T>) -> Result<T, GivenUp> {
        let mut answer = pin!(answer);
        let Self { stream, input, hang_up, info, pool } = self;
        poll_fn(|cx| {
            info.watch(cx.waker());
            match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                Poll::Pending if info.give_up_retired.get() && pool.is_retired() => {
                    Poll::Ready(Err(GivenUp::Retired))
                }
                Poll::Pending => poll_gone(stream, input, hang_up, cx).map(|()| Err(GivenUp::ClientGone)),
            }
        })
        .await
    }
}

/// Ready when the client is gone and that matters. What it has sent ahead goes to `input`, where it would go anyway; one that
/// has sent more than a little is not watched.
pub(super) fn poll_gone(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    hang_up: HangUp,
    cx: &mut Context<'_>,
) -> Poll<()> {
    match hang_up {
        HangUp::Ignored => return Poll::Pending,
        HangUp::Noticed => return Poll::Ready(()),
        HangUp::Watched => {}
    }
    let mut chunk = [0; 4096];
    while input.len() < limits::SMALL_MESSAGE {
        let mut read = ReadBuf::new(&mut chunk);
        match Pin::new(&mut *stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => input.extend_from_slice(read.filled()),
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Pending
}

/// Tells a server to stop what nobody waits for any more. Its connection must not be used again.
pub(super) fn cancel(key: Rc<ServerKey>) {
    tokio::task::spawn_local(async move {
        match tokio::time::timeout(limits::CANCEL_TIMEOUT, crate::pool::connect::cancel(&key)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(server = %key.address, %error, "cancel request failed"),
            Err(_) => tracing::info!(server = %key.address, "cancel request timed out"),
        }
    });
}

impl Session {
    /// One of its servers, and the wait for its answer.
    pub(super) fn server_and_wait(&mut self, at: usize) -> (&mut Server, Wait<'_>) {
        let server = &mut self.servers[at];
        let pool = server.pool.clone();
        let wait = Wait {
            stream: &mut self.stream,
            input: &mut self.input,
            hang_up: self.hang_up,
            info: self.info.clone(),
            pool,
        };
        (server, wait)
    }

    /// The client is gone, and nothing that it has begun on several shards may go on: every server is told to stop, and
    /// rolls back when its connection closes.
    pub(super) fn hung_up(&mut self) {
        if self.hang_up != HangUp::Watched {
            return;
        }
        self.hang_up = HangUp::Noticed;
        tracing::info!(client = %self.info.address, servers = self.servers.len(), "the client hung up; its statement is cancelled");
        for server in &mut self.servers {
            server.dirty = true;
            cancel(server.key.clone());
        }
    }

    /// While messages wait nothing is read, and so the end of the stream would not be seen. Costs no system call unless
    /// something has arrived. Messages that wait before the end are looked at first; Terminate is the end, but not alone: a client
    /// may send it ahead and read its answers until the stream ends.
    pub(super) fn is_hung_up(&mut self, cx: &mut Context<'_>) -> bool {
        while self.stream.poll_read_ready(cx).is_ready() {
            let ready =
                pin!(self.stream.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
            let closed = matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed());
            if !closed && !self.input.is_empty() {
                return false;
            }
            let mut ahead = [0; build::TERMINATE.len() + 1];
            let mut ahead = ReadBuf::new(&mut ahead);
            match self.stream.poll_peek(cx, &mut ahead) {
                Poll::Ready(Ok(0)) => return self.input.is_empty() || self.input == build::TERMINATE,
                Poll::Ready(Ok(_)) if !self.input.is_empty() || ahead.filled() != build::TERMINATE => {
                    return false;
                }
                Poll::Ready(Ok(_)) if closed => return true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return true,
                Poll::Pending => return false,
            }
            // While it waits in the kernel the stream is ready, and its end would wake nobody: it is taken. A read that finds less
            // than it has room for tells tokio to wait for more.
            ahead.clear();
            match Pin::new(&mut self.stream).poll_read(cx, &mut ahead) {
                Poll::Ready(Ok(())) if !ahead.filled().is_empty() => {
                    self.input.extend_from_slice(ahead.filled())
                }
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }
}
