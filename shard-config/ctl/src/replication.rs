//! Connections of the streaming replication protocol, which tokio-postgres has no setting for: the startup message asks for
//! one by the parameter `replication`. Everything else, authentication above all, is the library's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Asks for a walsender that is connected to the database and so takes SQL, too (protocol-replication.html).
const PARAMETER: &[u8] = b"replication\0database\0";

/// A connection whose startup message, the first that is written, has one parameter more.
#[derive(Debug)]
pub(crate) struct Walsender<S> {
    stream: S,
    startup: Startup,
}

#[derive(Debug)]
enum Startup {
    Expected,
    /// What of it has not been written yet.
    Under(Vec<u8>),
    Done,
}

impl<S> Walsender<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, startup: Startup::Expected }
    }
}

/// The startup message with the parameter: length, version, names and values, and a zero that ends them. PURE.
fn extended(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = message.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize);
    let (true, Some((0, parameters))) = (length == Some(message.len()), message.split_last()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the startup message is not written in one piece",
        ));
    };
    let length = u32::try_from(message.len() + PARAMETER.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), &parameters[4..], PARAMETER, &[0]].concat())
}

impl<S: AsyncWrite + Unpin> Walsender<S> {
    fn poll_startup(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Startup::Under(left) = &mut self.startup {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            left.drain(..written);
            if left.is_empty() {
                self.startup = Startup::Done;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Walsender<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if matches!(self.startup, Startup::Expected) {
            self.startup = Startup::Under(extended(buf)?);
            // It is taken as a whole; what the socket does not take at once goes with the flush.
            if let Poll::Ready(Err(error)) = self.poll_startup(cx) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Walsender<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Through a pipe that takes three bytes at a time; what comes after the first message is not touched.
    #[tokio::test]
    async fn the_first_message_has_one_parameter_more() {
        let first = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";
        let (near, mut far) = tokio::io::duplex(3);
        let written = tokio::spawn(async move {
            let mut walsender = Walsender::new(near);
            walsender.write_all(first).await.unwrap();
            walsender.write_all(b"p\0\0\0\x04").await.unwrap();
            walsender.shutdown().await.unwrap();
        });
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        written.await.unwrap();
        assert_eq!(seen, b"\0\0\0\x26\0\x03\0\0user\0me\0replication\0database\0\0p\0\0\0\x04");
    }

    #[test]
    fn half_a_startup_message_is_no_startup_message() {
        assert!(extended(b"\0\0\0\x11\0\x03\0\0user").is_err());
        assert!(extended(b"").is_err());
    }
}
