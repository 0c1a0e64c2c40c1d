//! Moves bytes. Every other file of the session is free of sockets.
//!
//! One read from the client, one write to the server, one read from the server, one write to the client: that is
//! the whole cost of a query in system calls. Reads go to the worker's shared buffer; a read that did not fill it
//! has emptied the socket, and tokio's `poll_read` then knows it without asking the kernel again.
//!
//! Back-pressure: nothing is read from a server while the client has not taken what was read before, nothing from
//! the client while a server has not.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hang_up::HangUp;
use super::{Next, Session};
use crate::error::ProxyError;
use crate::limits;
use crate::session::client::Activity;
use crate::wire::build;

/// Replies of our own wait for the server's up to this size.
const POSTPONED: usize = 4096;

impl Session {
    pub(super) async fn run(mut self) {
        loop {
            match poll_fn(|cx| self.poll_io(cx)).await {
                // Boxed: what is rare must not make every session's task bigger.
                Next::Checkout(want) => Box::pin(self.checkout(want)).await,
                Next::Hold => {
                    Box::pin(self.wait_for_move()).await;
                    if self.hang_up == HangUp::Noticed {
                        break;
                    }
                }
                Next::Multi(work) => {
                    Box::pin(super::multi_hook::run(&mut self, *work)).await;
                    if self.hang_up == HangUp::Noticed {
                        break;
                    }
                }
                Next::Refresh => {
                    let control = self.worker.control.clone();
                    let _ = Box::pin(tokio::time::timeout(limits::REFRESH_WAIT, control.refresh())).await;
                }
                Next::Close(error) => {
                    if let Some(error) = error {
                        error.write(self.client_output());
                        let farewell =
                            tokio::time::timeout(limits::CONNECT_BACKOFF, poll_fn(|cx| self.poll_flush(cx)));
                        let _ = Box::pin(farewell).await;
                    }
                    break;
                }
            }
        }
        self.abandon_servers();
    }

    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        self.info.watch(cx.waker());
        if self.worker.draining.get() && self.may_leave() {
            let error =
                ProxyError::new("57P01", "terminating connection due to administrator command").fatal();
            return Poll::Ready(Next::Close(Some(Box::new(error))));
        }
        if self.info.give_up_retired.get() {
            self.give_up_retired();
        }
        'progress: loop {
            // Terminate is the end at once; what answers the messages before it goes out first.
            let leaves = self.input == build::TERMINATE && self.queue.is_empty() && !self.output.is_empty();
            if !self.input.is_empty() && !leaves && !self.is_held() {
                let mut input = std::mem::take(&mut self.input);
                let (used, next) = self.client_bytes(&input);
                input.drain(..used);
                self.input = input;
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                if let Some(next) = next {
                    return Poll::Ready(next);
                }
            }

            let mut server_blocked = false;
            for at in 0..self.servers.len() {
                if self.servers[at].out.is_empty() {
                    continue;
                }
                match self.servers[at].poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        if let Some(next) = self.server_lost(at, &error.to_string()) {
                            return Poll::Ready(next);
                        }
                        continue 'progress;
                    }
                    Poll::Pending => server_blocked = true,
                }
            }

            // What we say ourselves (ParseComplete) goes out with the server's answer, not in a packet of its own.
            // What a replica answered may have to be forgotten, so it is kept; too much of it cannot be taken back.
            if !self.retry.is_empty() && !self.answered && self.output.len() >= self.retry_mark + POSTPONED {
                self.answered = true;
                self.retry.clear();
            }
            let small = self.sent == 0 && self.output.len() < POSTPONED;
            let postponed = !self.answered && !self.queue.is_empty() && (small || !self.retry.is_empty());
            let flushed = if postponed { Poll::Ready(Ok(())) } else { self.poll_flush(cx) };
            let client_blocked = flushed.is_pending();
            if leaves && self.output.is_empty() {
                continue 'progress;
            }
            match flushed {
                Poll::Ready(Ok(())) => {
                    for at in 0..self.servers.len() {
                        // With replies outstanding only their server is read; without, anyone may say goodbye.
                        if !self.queue.is_empty() && at != self.active {
                            continue;
                        }
                        let mut buffer = self.worker.take_read_buffer();
                        let read = self.servers[at].poll_read(cx, &mut buffer);
                        let next = match read {
                            Poll::Ready(Ok(0)) => self.server_lost(at, "the server closed the connection"),
                            Poll::Ready(Ok(size)) => self.server_bytes(at, &buffer[..size]),
                            Poll::Ready(Err(ref error)) => self.server_lost(at, &error.to_string()),
                            Poll::Pending => None,
                        };
                        self.worker.put_read_buffer(buffer);
                        if let Some(next) = next {
                            return Poll::Ready(next);
                        }
                        if read.is_ready() {
                            continue 'progress;
                        }
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Next::Close(None)),
                Poll::Pending => {}
            }

            if !server_blocked && !client_blocked && self.wants_input() {
                let mut buffer = self.worker.take_read_buffer();
                let mut read = ReadBuf::new(&mut buffer);
                let outcome = Pin::new(&mut self.stream).poll_read(cx, &mut read);
                let size = read.filled().len();
                let next = match outcome {
                    Poll::Ready(Ok(())) if size > 0 => self.received(&buffer[..size]),
                    Poll::Ready(_) => Some(Next::Close(None)),
                    Poll::Pending => None,
                };
                self.worker.put_read_buffer(buffer);
                if let Some(next) = next {
                    return Poll::Ready(next);
                }
                if outcome.is_ready() {
                    continue 'progress;
                }
            }
            // What is sent by half is sent to its end first: a client that does not wait for its answer may close.
            if !server_blocked && self.is_held() && self.is_hung_up(cx) {
                return Poll::Ready(Next::Close(None));
            }
            return Poll::Pending;
        }
    }

    #[inline]
    fn received(&mut self, bytes: &[u8]) -> Option<Next> {
        if !self.input.is_empty() || self.is_held() {
            self.input.extend_from_slice(bytes);
            return None; // Processed at the top of the loop.
        }
        let (used, next) = self.client_bytes(bytes);
        if used < bytes.len() {
            self.input.extend_from_slice(&bytes[used..]);
        }
        next
    }

    /// Messages wait for something before they may be looked at.
    #[inline]
    fn is_held(&self) -> bool {
        (self.gate && !self.copy_in) || (self.drain && !self.queue.is_empty())
    }

    /// Is there room and reason to read from the client? While an answer is on its way a little is read ahead only
    /// for COPY; a pipeline behind an unanswered Sync waits in the kernel's buffers.
    #[inline]
    fn wants_input(&self) -> bool {
        !self.is_held() && !self.closing
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.output.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(size)) => self.sent += size,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.sent = 0;
        self.retry_mark = 0;
        self.worker.put_spare(std::mem::take(&mut self.output));
        Poll::Ready(Ok(()))
    }

    /// Where bytes for the client are composed. Nobody else uses the worker's spare buffer between this and the
    /// flush unless the client does not take the bytes; then this session keeps it and the worker gets another.
    #[inline]
    pub(super) fn client_output(&mut self) -> &mut Vec<u8> {
        if self.output.capacity() == 0 {
            self.output = self.worker.take_spare();
        }
        &mut self.output
    }

    /// Passes a piece of the server's answer on: straight from the read buffer when nothing is waiting before it.
    #[inline]
    pub(super) fn pass_on(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut written = 0;
        if self.output.is_empty() {
            // An error shows again at the next poll.
            written = self.stream.try_write(bytes).unwrap_or(0);
        }
        if written < bytes.len() {
            self.client_output().extend_from_slice(&bytes[written..]);
        }
    }

    /// Sends what was composed to client and servers, waiting as long as it takes. For `multi` only.
    pub(super) async fn flush_client(&mut self) -> std::io::Result<()> {
        let flushed = poll_fn(|cx| self.poll_flush(cx)).await;
        if flushed.is_err() {
            self.hung_up();
        }
        flushed
    }

    /// Reads from the client into `input`. For `multi` only. `false`: the client is gone.
    pub(super) async fn read_client(&mut self) -> bool {
        let mut chunk = vec![0; limits::SMALL_MESSAGE];
        match tokio::io::AsyncReadExt::read(&mut self.stream, &mut chunk).await {
            Ok(size) if size > 0 => {
                self.input.extend_from_slice(&chunk[..size]);
                true
            }
            _ => {
                self.hung_up();
                false
            }
        }
    }

    pub(super) fn set_activity(&self) {
        let activity = if self.gate || !self.queue.is_empty() {
            Activity::Active
        } else if self.transaction.is_some() && !self.servers.is_empty() {
            Activity::IdleInTransaction
        } else {
            Activity::Idle
        };
        self.info.set_activity(activity, self.worker.now.get());
        self.settle_touch();
    }
}
