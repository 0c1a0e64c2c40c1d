//! Opens a connection to a server: TCP, SCRAM, and whatever the server reports at its start.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::auth::client_side::{Login, SaltedKeys};
use crate::limits;
use crate::pool::server::ServerKey;
use crate::wire::frame::HEADER;
use crate::wire::{build, frame, read};

/// First key of the advisory locks that are the product's own (H10): "shrd".
pub const LOCK_CLASS: i32 = 0x7368_7264;

#[derive(Debug, Clone)]
pub enum ConnectError {
    /// Nobody answers there, or not like a PostgreSQL server; trying again may help.
    Unreachable(String),
    /// The server answered and refused: SQLSTATE and message.
    Refused { sqlstate: String, message: String },
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused { sqlstate, message } => write!(f, "{sqlstate} {message}"),
        }
    }
}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

pub struct Opened {
    pub stream: TcpStream,
    pub key: ServerKey,
    pub parameters: Vec<(String, String)>,
}

pub async fn connect(
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
    keys: &std::cell::RefCell<SaltedKeys>,
    timeout: Duration,
) -> Result<Opened, ConnectError> {
    match tokio::time::timeout(timeout, open(address, user, password, database, keys)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Unreachable(format!("{address} did not answer within {timeout:?}"))),
    }
}

async fn open(
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
    keys: &std::cell::RefCell<SaltedKeys>,
) -> Result<Opened, ConnectError> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5)),
    )?;
    // A peer that vanished without a word is noticed after this, also while we wait for its answer to a write.
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;

    let mut out = vec![0; 4];
    out.extend_from_slice(&0x0003_0000_u32.to_be_bytes());
    let parameters = [
        ("user", user),
        ("database", database),
        // No application_name: a client that gave none must find none, and pg_stat_activity shows what SHOW does.
        // DDL in this session may be prepared, so it must not notify: see control/bootstrap.sql.
        ("shard_proxy.session", "on"),
    ];
    for (name, value) in parameters {
        build::cstr(&mut out, name.as_bytes());
        build::cstr(&mut out, value.as_bytes());
    }
    out.push(0);
    build::end(&mut out, 0);
    stream.write_all(&out).await?;

    let mut buffer = Vec::with_capacity(1024);
    let mut login = Login::new();
    let mut parameters = Vec::new();
    let (mut pid, mut secret) = (0, Vec::new());
    let bad = |what: &str| ConnectError::Unreachable(format!("{address}: {what}"));
    loop {
        let message = message(&mut stream, &mut buffer).await?;
        let mut reader = read::body(&message);
        match message[0] {
            b'R' => {
                let code = reader.i32().ok_or_else(|| bad("short authentication request"))?;
                let text = std::str::from_utf8(reader.rest()).unwrap_or_default();
                let mut out = Vec::new();
                match code {
                    0 => continue,
                    10 => {
                        if !text.split('\0').any(|mechanism| mechanism == crate::auth::server_side::MECHANISM)
                        {
                            return Err(bad("offers no SCRAM-SHA-256"));
                        }
                        let first = login.first();
                        let start = build::begin(&mut out, b'p');
                        build::cstr(&mut out, crate::auth::server_side::MECHANISM.as_bytes());
                        out.extend_from_slice(&(first.len() as u32).to_be_bytes());
                        out.extend_from_slice(first.as_bytes());
                        build::end(&mut out, start);
                    }
                    11 => {
                        let answer = login.answer(password, text, &mut keys.borrow_mut()).map_err(bad)?;
                        let start = build::begin(&mut out, b'p');
                        out.extend_from_slice(answer.as_bytes());
                        build::end(&mut out, start);
                    }
                    12 if login.verify(text) => continue,
                    12 => return Err(bad("could not prove that it knows the password")),
                    // Clear-text and MD5 would hand the password, or a replayable hash of it, to whoever listens there.
                    _ => return Err(bad("asks for an authentication method other than SCRAM-SHA-256")),
                }
                stream.write_all(&out).await?;
            }
            b'S' => {
                let (Some(name), Some(value)) = (reader.cstr(), reader.cstr()) else {
                    return Err(bad("malformed ParameterStatus"));
                };
                if parameters.len() < limits::SETTINGS_PER_SESSION {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    parameters.push((text(name), text(value)));
                }
            }
            b'K' => {
                pid = reader.i32().ok_or_else(|| bad("malformed BackendKeyData"))?;
                secret = reader.rest().to_vec();
            }
            b'E' => {
                let field = |tag| {
                    String::from_utf8_lossy(read::error_field(&message, tag).unwrap_or(b"?")).into_owned()
                };
                return Err(ConnectError::Refused { sqlstate: field(b'C'), message: field(b'M') });
            }
            b'Z' => break,
            b'N' | b'v' => {}
            tag => return Err(bad(&format!("unexpected message {:?} at start-up", char::from(tag)))),
        }
    }
    tag(&mut stream, &mut buffer).await?;
    let key = ServerKey { address, pid, secret, pending: Default::default(), poisoned: Default::default() };
    Ok(Opened { stream, key, parameters })
}

/// By this number others find the backends of this process (`shard_catalog.backends_of`): when it is stopped or cut off while
/// a move goes on, they are ended (H8).
pub fn backend_tag() -> u32 {
    static TAG: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *TAG.get_or_init(|| rand::random_range(1000..=i32::MAX as u32))
}

/// The backend carries the number as an advisory lock, which everybody sees and which ends with it.
async fn tag(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), ConnectError> {
    let mut out = Vec::new();
    let lock = format!("SELECT pg_catalog.pg_advisory_lock_shared({LOCK_CLASS}, {})", backend_tag());
    build::query(&mut out, lock.as_bytes());
    stream.write_all(&out).await?;
    let mut refused = None;
    loop {
        let message = message(stream, buffer).await?;
        match message[0] {
            b'Z' => return refused.map_or(Ok(()), Err),
            b'E' => {
                let field = |tag| {
                    String::from_utf8_lossy(read::error_field(&message, tag).unwrap_or(b"?")).into_owned()
                };
                refused = Some(ConnectError::Refused { sqlstate: field(b'C'), message: field(b'M') });
            }
            _ => {}
        }
    }
}

/// Reads one whole message; what came after it stays in `buffer`.
async fn message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Vec<u8>, ConnectError> {
    loop {
        if let Some(size) =
            frame::server_frame(buffer).map_err(|e| ConnectError::Unreachable(e.to_string()))?
        {
            if size > limits::AUTH_MESSAGE {
                return Err(ConnectError::Unreachable("oversized message at start-up".into()));
            }
            if buffer.len() >= size {
                let rest = buffer.split_off(size);
                return Ok(std::mem::replace(buffer, rest));
            }
        } else if buffer.len() >= HEADER {
            return Err(ConnectError::Unreachable("malformed message at start-up".into()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(ConnectError::Unreachable("the server closed the connection at start-up".into()));
        }
    }
}

/// Asks the server to cancel what `key` is doing, and waits until it has acted on it (it closes the connection).
pub async fn cancel(key: &ServerKey) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(key.address).await?;
    let mut out = vec![0; 4];
    out.extend_from_slice(&80_877_102_u32.to_be_bytes());
    out.extend_from_slice(&key.pid.to_be_bytes());
    out.extend_from_slice(&key.secret);
    build::end(&mut out, 0);
    stream.write_all(&out).await?;
    let mut sink = [0; 64];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}
