//! A client that says exactly the bytes it is told to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use shard_proxy::auth::client_side::{Login, SaltedKeys};
use shard_proxy::wire::{build, read};

use crate::cluster::cluster;

pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    pub id: i32,
    pub secret: Vec<u8>,
    /// Messages before ReadyForQuery of the login.
    pub greeting: Vec<(u8, Vec<u8>)>,
}

pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&version.to_be_bytes());
    for (name, value) in parameters {
        build::cstr(&mut out, name.as_bytes());
        build::cstr(&mut out, value.as_bytes());
    }
    out.push(0);
    build::end(&mut out, 0);
    out
}

impl Raw {
    pub fn dial() -> Self {
        let stream = TcpStream::connect(("127.0.0.1", cluster().proxy_port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: Vec::new(), id: 0, secret: Vec::new(), greeting: Vec::new() }
    }

    pub fn login() -> Self {
        Self::login_with(0x0003_0000, &[]).expect("logged in")
    }

    /// `Err`: the ErrorResponse.
    pub fn login_with(version: u32, more: &[(&str, &str)]) -> Result<Self, Vec<u8>> {
        let mut parameters = vec![("user", "app"), ("database", "db")];
        for (name, value) in more {
            parameters.retain(|(known, _)| known != name);
            parameters.push((name, value));
        }
        let mut raw = Self::dial();
        raw.send(&startup(version, &parameters));
        let mut login = Login::new();
        loop {
            let Some((tag, body)) = raw.message() else { return Err(Vec::new()) };
            let text = std::str::from_utf8(body.get(4..).unwrap_or_default()).unwrap_or_default();
            let mut out = Vec::new();
            match (tag, body.get(3)) {
                (b'R', Some(10)) => {
                    let start = build::begin(&mut out, b'p');
                    build::cstr(&mut out, b"SCRAM-SHA-256");
                    let first = login.first();
                    out.extend_from_slice(&(first.len() as u32).to_be_bytes());
                    out.extend_from_slice(first.as_bytes());
                    build::end(&mut out, start);
                    raw.send(&out);
                }
                (b'R', Some(11)) => {
                    let start = build::begin(&mut out, b'p');
                    let user = parameters.iter().find(|(n, _)| *n == "user").expect("user").1;
                    let answer = login.answer(user, text, &mut SaltedKeys::default()).expect("challenge");
                    out.extend_from_slice(answer.as_bytes());
                    build::end(&mut out, start);
                    raw.send(&out);
                }
                (b'R', Some(12)) => assert!(login.verify(text), "the proxy knows the password"),
                (b'E', _) => return Err(body),
                (b'Z', _) => return Ok(raw),
                (b'K', _) => {
                    raw.id = i32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    raw.secret = body[4..].to_vec();
                }
                _ => raw.greeting.push((tag, body)),
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// The next message; `None` when the connection was closed.
    pub fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Ok(Some(size)) = shard_proxy::wire::frame::server_frame(&self.buffer)
                && size <= self.buffer.len()
            {
                let rest = self.buffer.split_off(size);
                let message = std::mem::replace(&mut self.buffer, rest);
                return Some((message[0], message[5..].to_vec()));
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(size) => self.buffer.extend_from_slice(&chunk[..size]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The tags up to and with `count` ReadyForQuery, errors as their SQLSTATE, rows as their first value.
    pub fn answers(&mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let mut ready = 0;
        while ready < count {
            let Some((tag, body)) = self.message() else {
                seen.push("closed".to_owned());
                return seen;
            };
            seen.push(match tag {
                b'E' => format!("E{}", field(&body, b'C')),
                b'D' => format!("D{}", first_value(&body)),
                b'C' => format!("C{}", String::from_utf8_lossy(&body[..body.len() - 1])),
                b'Z' => {
                    ready += 1;
                    format!("Z{}", char::from(body[0]))
                }
                b'S' | b'N' => continue,
                tag => char::from(tag).to_string(),
            });
        }
        seen
    }

    pub fn query(&mut self, sql: &str) -> Vec<String> {
        let mut out = Vec::new();
        build::query(&mut out, sql.as_bytes());
        self.send(&out);
        self.answers(1)
    }

    /// The first value of the first row.
    pub fn value(&mut self, sql: &str) -> String {
        let answers = self.query(sql);
        answers
            .iter()
            .find_map(|a| a.strip_prefix('D'))
            .map(str::to_owned)
            .unwrap_or_else(|| panic!("{sql}: {answers:?}"))
    }

    pub fn cancel(id: i32, secret: &[u8]) {
        let mut raw = Self::dial();
        let mut out = vec![0; 4];
        out.extend_from_slice(&80_877_102_u32.to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(secret);
        build::end(&mut out, 0);
        raw.send(&out);
        assert!(raw.message().is_none(), "a cancel request is not answered");
    }
}

pub fn field(body: &[u8], tag: u8) -> String {
    let mut message = vec![b'E', 0, 0, 0, 0];
    message.extend_from_slice(body);
    String::from_utf8_lossy(read::error_field(&message, tag).unwrap_or_default()).into_owned()
}

fn first_value(body: &[u8]) -> String {
    let length = body.get(2..6).map_or(-1, |b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    if length < 0 {
        "NULL".to_owned()
    } else {
        String::from_utf8_lossy(&body[6..6 + length as usize]).into_owned()
    }
}

/// Messages of the extended protocol, to be put together.
#[derive(Default)]
pub struct Batch(pub Vec<u8>);

impl Batch {
    pub fn parse(mut self, name: &str, sql: &str) -> Self {
        build::parse(&mut self.0, name.as_bytes(), sql.as_bytes(), b"");
        self
    }

    pub fn bind(self, name: &str, values: &[&str]) -> Self {
        self.bind_portal("", name, values)
    }

    pub fn bind_portal(mut self, portal: &str, name: &str, values: &[&str]) -> Self {
        let start = build::begin(&mut self.0, b'B');
        build::cstr(&mut self.0, portal.as_bytes());
        build::cstr(&mut self.0, name.as_bytes());
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            self.0.extend_from_slice(&(value.len() as u32).to_be_bytes());
            self.0.extend_from_slice(value.as_bytes());
        }
        self.0.extend_from_slice(&[0, 0]);
        build::end(&mut self.0, start);
        self
    }

    pub fn describe(mut self, kind: u8, name: &str) -> Self {
        build::named(&mut self.0, b'D', kind, name.as_bytes());
        self
    }

    pub fn close(mut self, kind: u8, name: &str) -> Self {
        build::named(&mut self.0, b'C', kind, name.as_bytes());
        self
    }

    pub fn execute(self) -> Self {
        self.execute_portal("", 0)
    }

    pub fn execute_portal(mut self, portal: &str, rows: i32) -> Self {
        let start = build::begin(&mut self.0, b'E');
        build::cstr(&mut self.0, portal.as_bytes());
        self.0.extend_from_slice(&rows.to_be_bytes());
        build::end(&mut self.0, start);
        self
    }

    pub fn sync(mut self) -> Self {
        self.0.extend_from_slice(build::SYNC);
        self
    }

    pub fn flush(mut self) -> Self {
        self.0.extend_from_slice(build::FLUSH);
        self
    }

    pub fn run(self, raw: &mut Raw) -> Vec<String> {
        let syncs = self.0.windows(5).filter(|w| *w == build::SYNC).count();
        raw.send(&self.0);
        raw.answers(syncs)
    }
}
