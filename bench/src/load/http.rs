//! A kept-alive HTTP/1.1 client connection that costs little: one write, one read, no allocation a request.
//!
//! Written by hand because hyper's client spends more CPU than the rest of the generator together, and that CPU is
//! taken from the servers under test. It understands what it asks for: bodies with Content-Length or chunked.
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub enum HttpError {
    Connect(io::ErrorKind),
    /// The connection broke: whether the request was executed is unknown.
    Broken(io::ErrorKind),
    Timeout,
    /// Not an HTTP answer that this client understands.
    Malformed(&'static str),
}

impl HttpError {
    pub fn kind(&self) -> String {
        match self {
            HttpError::Connect(kind) => format!("connect: {kind}"),
            HttpError::Broken(kind) => format!("connection lost: {kind}"),
            HttpError::Timeout => "timeout".to_owned(),
            HttpError::Malformed(what) => format!("malformed answer: {what}"),
        }
    }
}

pub struct Reply<'a> {
    pub status: u16,
    pub replayed: bool,
    pub retry_after: Option<Duration>,
    pub body: &'a [u8],
}

#[derive(Default)]
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    close: bool,
    replayed: bool,
    retry_after: Option<Duration>,
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    body: Vec<u8>,
    /// The server said that it will close after this answer.
    pub closing: bool,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Connection, HttpError> {
        let stream = TcpStream::connect(address).await.map_err(|e| HttpError::Connect(e.kind()))?;
        stream.set_nodelay(true).map_err(|e| HttpError::Connect(e.kind()))?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4096), body: Vec::new(), closing: false })
    }

    /// After any error the connection must be dropped: answers could be matched to the wrong request.
    pub async fn exchange(&mut self, request: &[u8], timeout: Duration) -> Result<Reply<'_>, HttpError> {
        match tokio::time::timeout(timeout, self.exchange_unbounded(request)).await {
            Ok(Ok(head)) => Ok(Reply {
                status: head.status,
                replayed: head.replayed,
                retry_after: head.retry_after,
                body: &self.body,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(HttpError::Timeout),
        }
    }

    async fn exchange_unbounded(&mut self, request: &[u8]) -> Result<Head, HttpError> {
        let broken = |e: io::Error| HttpError::Broken(e.kind());
        self.buffer.clear();
        self.body.clear();
        self.stream.write_all(request).await.map_err(broken)?;
        let (head, mut at) = loop {
            self.fill().await?;
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break (parse_head(&self.buffer[..end + 2])?, end + 4);
            }
            if self.buffer.len() > MAX_HEADER_BYTES {
                return Err(HttpError::Malformed("header too long"));
            }
        };
        self.closing = head.close;
        if head.chunked {
            loop {
                let line_end = loop {
                    match find(&self.buffer[at..], b"\r\n") {
                        Some(offset) => break at + offset,
                        None => self.fill().await?,
                    }
                };
                let size = std::str::from_utf8(&self.buffer[at..line_end])
                    .ok()
                    .and_then(|line| usize::from_str_radix(line.split(';').next()?.trim(), 16).ok())
                    .filter(|size| self.body.len() + size <= MAX_BODY_BYTES)
                    .ok_or(HttpError::Malformed("chunk size"))?;
                at = line_end + 2;
                while self.buffer.len() < at + size + 2 {
                    self.fill().await?;
                }
                self.body.extend_from_slice(&self.buffer[at..at + size]);
                at += size + 2;
                if size == 0 {
                    return Ok(head);
                }
            }
        }
        let length = head.length.unwrap_or(0);
        if length > MAX_BODY_BYTES {
            return Err(HttpError::Malformed("body too long"));
        }
        while self.buffer.len() < at + length {
            self.fill().await?;
        }
        self.body.extend_from_slice(&self.buffer[at..at + length]);
        Ok(head)
    }

    async fn fill(&mut self) -> Result<(), HttpError> {
        if self.buffer.capacity() - self.buffer.len() < 2048 {
            self.buffer.reserve(16 * 1024);
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(HttpError::Broken(io::ErrorKind::UnexpectedEof)),
            Ok(_) => Ok(()),
            Err(error) => Err(HttpError::Broken(error.kind())),
        }
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// `head` ends with the line end of its last header.
fn parse_head(head: &[u8]) -> Result<Head, HttpError> {
    let text = std::str::from_utf8(head).map_err(|_| HttpError::Malformed("header bytes"))?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok())
        .ok_or(HttpError::Malformed("status line"))?;
    let mut parsed = Head { status, ..Head::default() };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            parsed.length = Some(value.parse().map_err(|_| HttpError::Malformed("content length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            parsed.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("idempotent-replayed") {
            parsed.replayed = value.eq_ignore_ascii_case("true");
        } else if name.eq_ignore_ascii_case("retry-after") {
            parsed.retry_after = value.parse().ok().map(Duration::from_secs);
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answer(pieces: Vec<&'static [u8]>) -> Result<(u16, Vec<u8>, bool, bool), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            let _ = stream.read(&mut request).await;
            for piece in pieces {
                stream.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let mut connection = Connection::open(&address).await.unwrap();
        let result = connection.exchange(b"GET / HTTP/1.1\r\n\r\n", Duration::from_millis(300)).await;
        let result = result.map(|r| (r.status, r.body.to_vec(), r.replayed)).map_err(|e| e.kind());
        result.map(|(status, body, replayed)| (status, body, replayed, connection.closing))
    }

    #[tokio::test]
    async fn bodies_by_length_and_by_chunks_in_any_pieces() {
        let plain = answer(vec![
            b"HTTP/1.1 201 Created\r\ncontent-le",
            b"ngth: 5\r\nIdempotent-Replayed: true\r\n\r\nhel",
            b"lo",
        ]);
        assert_eq!(plain.await, Ok((201, b"hello".to_vec(), true, false)));
        let chunked = answer(vec![
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nab",
            b"c\r\n2;x=y\r\nde\r\n0",
            b"\r\n\r\n",
        ]);
        assert_eq!(chunked.await, Ok((200, b"abcde".to_vec(), false, true)));
    }

    #[tokio::test]
    async fn a_lost_connection_a_silent_server_and_nonsense_are_told_apart() {
        assert_eq!(
            answer(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe"]).await,
            Err("connection lost: unexpected end of file".into())
        );
        assert_eq!(answer(vec![b"SSH-2.0-x\r\n\r\n"]).await, Err("malformed answer: status line".into()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = Connection::open(&listener.local_addr().unwrap().to_string()).await.unwrap();
        let silent = connection.exchange(b"x", Duration::from_millis(30)).await;
        assert!(matches!(silent, Err(HttpError::Timeout)));
    }
}
