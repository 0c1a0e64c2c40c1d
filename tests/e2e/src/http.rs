//! One kept-alive HTTP/1.1 connection, written for this crate alone.

use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub const TIMEOUT: Duration = Duration::from_secs(15);
const BODY_MAX: usize = 16 << 20;

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub replayed: bool,
    pub retry_after: Option<Duration>,
    pub content_type: String,
    pub body: Value,
}

pub struct Connection {
    address: String,
    stream: Option<BufReader<TcpStream>>,
}

pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub token: &'a str,
    pub key: Option<&'a str>,
    pub body: &'a str,
}

impl Connection {
    pub fn new(address: &str) -> Connection {
        Connection { address: address.to_owned(), stream: None }
    }

    /// # Errors
    /// When the connection broke or the answer did not come in time: the outcome is unknown.
    pub async fn send(&mut self, request: &Request<'_>) -> Result<Reply, String> {
        // Dropped on every error, so that a late answer cannot be taken for the next one.
        let kept = self.stream.take();
        let exchange = async {
            let mut stream = match kept {
                Some(stream) => stream,
                None => {
                    let stream =
                        TcpStream::connect(&self.address).await.map_err(|e| format!("connect: {e}"))?;
                    stream.set_nodelay(true).map_err(|e| e.to_string())?;
                    BufReader::new(stream)
                }
            };
            let (reply, keep) = exchange(&mut stream, request).await?;
            Ok::<_, String>((stream, reply, keep))
        };
        let (stream, reply, keep) = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(done) => done?,
            Err(_) => return Err("no answer in time".into()),
        };
        self.stream = keep.then_some(stream);
        Ok(reply)
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, request: &Request<'_>) -> Result<(Reply, bool), String> {
    let Request { method, path, token, key, body } = request;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: core\r\nContent-Length: {}\r\n", body.len());
    if !token.is_empty() {
        head.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if let Some(key) = key {
        head.push_str(&format!("Idempotency-Key: {key}\r\n"));
    }
    if !body.is_empty() {
        head.push_str("Content-Type: application/json\r\n");
    }
    head.push_str("\r\n");
    head.push_str(body);
    // A server that refuses a body answers before it has read it: what it says counts, not that writing failed.
    let written = stream.get_mut().write_all(head.as_bytes()).await;
    let mut line = String::new();
    stream.read_line(&mut line).await.map_err(|e| e.to_string())?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| {
        written.as_ref().err().map_or_else(|| "the connection was closed".to_owned(), ToString::to_string)
    })?;
    let mut reply =
        Reply { status, replayed: false, retry_after: None, content_type: String::new(), body: Value::Null };
    let (mut length, mut keep) = (0usize, true);
    loop {
        line.clear();
        stream.read_line(&mut line).await.map_err(|e| e.to_string())?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(|_| "content-length is no number")?,
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            "retry-after" => reply.retry_after = value.parse().ok().map(Duration::from_secs),
            "idempotent-replayed" => reply.replayed = value == "true",
            "content-type" => reply.content_type = value.to_owned(),
            _ => {}
        }
    }
    if length > BODY_MAX {
        return Err("the answer is too large".into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(|e| e.to_string())?;
    reply.body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Ok((reply, keep))
}
