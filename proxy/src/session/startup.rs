//! From an accepted socket to a session: encryption requests, the startup packet, login, first settings.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Session;
use super::client::ClientInfo;
use super::reported::reported;
use super::settings::{Settings, Value, parse_options};
use crate::auth::server_side;
use crate::error::ProxyError;
use crate::limits;
use crate::wire::{build, frame, read};
use crate::worker::{UserSpace, Worker};

// From src/include/libpq/pqcomm.h.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
/// The newest minor version of protocol 3 that we speak.
const NEWEST_MINOR: u32 = 2;

struct Startup {
    minor: u32,
    parameters: Vec<(String, String)>,
    /// `_pq_.` options, none of which we know.
    unknown_options: Vec<String>,
}

enum First {
    Startup(Startup),
    Cancel { id: u32, secret: Vec<u8> },
    Closed,
}

/// One client, from its first byte to its last.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream) {
    // Boxed and finished before the session begins: an idle client does not carry its login around.
    let session =
        Box::pin(tokio::time::timeout(limits::STARTUP_TIMEOUT, begin(worker.clone(), stream))).await;
    let (info, session) = match session {
        Ok(Some(Begun::Session(session))) => (session.info.clone(), session),
        Ok(Some(Begun::Admin(admin))) => {
            Box::pin(admin.run()).await;
            worker.stats.clients.sub(1);
            return;
        }
        Ok(None) | Err(_) => return,
    };
    worker.clients.borrow_mut().insert(info.id, info.clone());
    session.run().await;
    worker.clients.borrow_mut().remove(&info.id);
    worker.stats.clients.sub(1);
}

enum Begun {
    Session(Session),
    Admin(super::admin::AdminSession),
}

async fn begin(worker: Rc<Worker>, mut stream: TcpStream) -> Option<Begun> {
    let address = stream.peer_addr().ok()?;
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(&stream);
    let _ = socket.set_keepalive(true);
    let mut buffer = Vec::new();
    let first = match first_packet(&mut stream, &mut buffer).await {
        Ok(first) => first,
        Err(error) => {
            refuse(&mut stream, &error).await;
            return None;
        }
    };
    match first {
        First::Closed => None,
        First::Cancel { id, secret } => {
            super::cancel::request(&worker, id, secret).await;
            None
        }
        First::Startup(startup) => match login(&worker, &mut stream, &mut buffer, address, startup).await {
            Ok(begun) => {
                worker.stats.logins.add(1);
                worker.stats.clients.add(1);
                Some(begun.with(worker, stream, buffer))
            }
            Err(error) => {
                worker.stats.logins_refused.add(1);
                refuse(&mut stream, &error).await;
                None
            }
        },
    }
}

async fn refuse(stream: &mut TcpStream, error: &ProxyError) {
    let mut out = Vec::new();
    error.clone().fatal().write(&mut out);
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
}

async fn first_packet(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<First, ProxyError> {
    // One SSLRequest and one GSSENCRequest at most, as in PostgreSQL's ProcessStartupPacket.
    for _ in 0..3 {
        let Some(size) = fill(stream, buffer, |b| frame::startup_frame(b)).await? else {
            return Ok(First::Closed);
        };
        let packet: Vec<u8> = buffer.drain(..size).collect();
        let mut reader = read::Reader::new(&packet[4..]);
        let code = reader.i32().map_or(0, |c| c as u32);
        match code {
            SSL_REQUEST | GSSENC_REQUEST => {
                if !buffer.is_empty() {
                    // CVE-2021-23214: what follows would be taken for encrypted data.
                    return Err(ProxyError::protocol("received unencrypted data after encryption request"));
                }
                if stream.write_all(b"N").await.is_err() {
                    return Ok(First::Closed);
                }
            }
            CANCEL_REQUEST => {
                let id = reader.i32().ok_or_else(|| ProxyError::protocol("invalid cancel request"))?;
                return Ok(First::Cancel { id: id as u32, secret: reader.rest().to_vec() });
            }
            _ if code >> 16 == 3 => return startup_packet(code & 0xffff, reader).map(First::Startup),
            _ => {
                let (major, minor) = (code >> 16, code & 0xffff);
                return Err(ProxyError::new(
                    "0A000",
                    format!(
                        "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}"
                    ),
                ));
            }
        }
    }
    Err(ProxyError::protocol("too many encryption requests"))
}

fn startup_packet(minor: u32, mut reader: read::Reader<'_>) -> Result<Startup, ProxyError> {
    let layout = || ProxyError::protocol("invalid startup packet layout: expected terminator as last byte");
    let mut startup = Startup { minor, parameters: Vec::new(), unknown_options: Vec::new() };
    loop {
        let name = reader.cstr().ok_or_else(layout)?;
        if name.is_empty() {
            break;
        }
        let value = reader.cstr().ok_or_else(layout)?;
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return Err(ProxyError::protocol("startup packet is not UTF-8"));
        };
        if name.starts_with("_pq_.") {
            startup.unknown_options.push(name.to_owned());
        } else if startup.parameters.len() < limits::SETTINGS_PER_SESSION {
            startup.parameters.push((name.to_owned(), value.to_owned()));
        } else {
            return Err(ProxyError::protocol("too many startup parameters"));
        }
    }
    if reader.is_empty() { Ok(startup) } else { Err(layout()) }
}

/// Reads until `buffer` begins with a whole packet; `None`: the client has closed before.
async fn fill(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    size: impl Fn(&[u8]) -> Result<Option<usize>, frame::FrameError>,
) -> Result<Option<usize>, ProxyError> {
    loop {
        match size(buffer) {
            Ok(Some(size)) if size <= buffer.len() => return Ok(Some(size)),
            Ok(_) => {}
            Err(error) => return Err(ProxyError::protocol(error.to_string())),
        }
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            return Ok(None);
        }
    }
}

/// What a login yields, before it owns the socket.
enum LoggedIn {
    Session {
        space: Rc<UserSpace>,
        info: Rc<ClientInfo>,
        settings: Rc<Settings>,
        local: Vec<(String, Value)>,
    },
    Admin {
        user: String,
    },
}

async fn login(
    worker: &Rc<Worker>,
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    address: SocketAddr,
    startup: Startup,
) -> Result<LoggedIn, ProxyError> {
    let get =
        |name: &str| startup.parameters.iter().find(|(known, _)| known == name).map(|(_, v)| v.as_str());
    let user = get("user").filter(|u| !u.is_empty());
    let user = user
        .ok_or_else(|| ProxyError::new("28000", "no PostgreSQL user name specified in startup packet"))?
        .to_owned();
    let database = get("database").filter(|d| !d.is_empty()).unwrap_or(&user).to_owned();
    if startup.minor > NEWEST_MINOR || !startup.unknown_options.is_empty() {
        let mut out = Vec::new();
        let start = build::begin(&mut out, b'v');
        out.extend_from_slice(&(0x0003_0000 | startup.minor.min(NEWEST_MINOR)).to_be_bytes());
        out.extend_from_slice(&(startup.unknown_options.len() as u32).to_be_bytes());
        for option in &startup.unknown_options {
            build::cstr(&mut out, option.as_bytes());
        }
        build::end(&mut out, start);
        send(stream, &out).await?;
    }
    authenticate(worker, stream, buffer, &user).await?;

    let config = worker.state().config.clone();
    let is_admin = database == crate::admin::DATABASE;
    if is_admin && !config.user(&user).is_some_and(|u| u.admin) {
        return Err(ProxyError::new("42501", format!("user \"{user}\" may not open the console"))
            .hint("Set admin = true for this user's [[user]] in the configuration."));
    }
    let clients: u64 = worker.workers.borrow().iter().map(|w| w.stats.snapshot().clients).sum();
    // A few places are kept for operators.
    let places = u64::from(config.proxy.max_clients) + if is_admin { limits::CONSOLE_CLIENTS } else { 0 };
    if clients >= places {
        return Err(ProxyError::new("53300", "sorry, too many clients already")
            .hint("Raise max_clients in [proxy], or use fewer connections."));
    }
    if worker.draining.get() {
        return Err(ProxyError::new("57P03", "the proxy is shutting down"));
    }
    let mut greeting = Vec::new();
    build::authentication(&mut greeting, 0, b"");
    if is_admin {
        for (name, value) in [
            ("server_version", "15.0 (shard_proxy)"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
        ] {
            build::parameter_status(&mut greeting, name, value);
        }
        build::ready(&mut greeting, b'I');
        send(stream, &greeting).await?;
        return Ok(LoggedIn::Admin { user });
    }
    if database != config.proxy.database {
        return Err(ProxyError::new("3D000", format!("database \"{database}\" does not exist")).hint(
            format!("This proxy serves \"{}\", and \"admin\" for its console.", config.proxy.database),
        ));
    }
    let space = worker.space(&user).ok_or_else(|| ProxyError::new("28P01", "the user was removed"))?;
    let (settings, local) = settings_of(&space, &startup.parameters)?;
    let reported = reported(worker, &space, &settings, address).await?;

    let id = worker.new_client_id();
    let secret = if startup.minor >= 2 {
        rand::random::<[u8; 32]>().to_vec()
    } else {
        rand::random::<[u8; 4]>().to_vec()
    };
    greeting.extend_from_slice(&reported);
    let start = build::begin(&mut greeting, b'K');
    greeting.extend_from_slice(&id.to_be_bytes());
    greeting.extend_from_slice(&secret);
    build::end(&mut greeting, start);
    build::ready(&mut greeting, b'I');
    let info = Rc::new(ClientInfo::new(id, secret, &user, address));
    *info.application_name.borrow_mut() = get("application_name").unwrap_or_default().to_owned();
    send(stream, &greeting).await?;
    Ok(LoggedIn::Session { space, info, settings, local })
}

async fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), ProxyError> {
    stream.write_all(bytes).await.map_err(|e| ProxyError::new("08006", e.to_string()))
}

async fn authenticate(
    worker: &Worker,
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    user: &str,
) -> Result<(), ProxyError> {
    let mut out = Vec::new();
    build::authentication(&mut out, 10, b"SCRAM-SHA-256\0\0");
    send(stream, &out).await?;
    let body = password_message(stream, buffer).await?;
    let verifier = worker.users.borrow().verifier(user);
    let (challenge, exchange) = server_side::first(&body, verifier)?;
    out.clear();
    build::authentication(&mut out, 11, challenge.as_bytes());
    send(stream, &out).await?;
    let body = password_message(stream, buffer).await?;
    let last = exchange.finish(&body, user)?;
    out.clear();
    build::authentication(&mut out, 12, last.as_bytes());
    send(stream, &out).await
}

async fn password_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Vec<u8>, ProxyError> {
    let only_password = |bytes: &[u8]| match bytes.first() {
        Some(tag) if *tag != b'p' => Err(frame::FrameError::UnknownTag(*tag)),
        _ => frame::client_frame(bytes),
    };
    let size = fill(stream, buffer, only_password).await?;
    let size = size.ok_or_else(|| ProxyError::protocol("connection closed during login"))?;
    let message: Vec<u8> = buffer.drain(..size).collect();
    Ok(message[frame::HEADER..].to_vec())
}

/// The settings that a startup packet asks for, and those that are the proxy's own.
fn settings_of(
    space: &UserSpace,
    parameters: &[(String, String)],
) -> Result<(Rc<Settings>, Vec<(String, Value)>), ProxyError> {
    let mut wanted = Vec::new();
    for (name, value) in parameters {
        match name.as_str() {
            "user" | "database" => {}
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => {
                return Err(ProxyError::not_supported(
                    "replication connections are not supported",
                    "Connect to the shard itself.",
                ));
            }
            "options" => {
                let options = parse_options(value).ok_or_else(|| {
                    ProxyError::new("22023", "startup parameter \"options\" holds more than settings")
                        .hint("Only -c name=value and --name=value are supported.")
                })?;
                wanted.extend(options);
            }
            _ => wanted.push((name.to_ascii_lowercase(), value.clone())),
        }
    }
    let mut table = space.settings.borrow_mut();
    let mut settings = table.none();
    let mut local = Vec::new();
    for (name, value) in wanted {
        if crate::route::is_own_setting(&name) {
            local.push((name, Value::Raw(value)));
        } else {
            settings = table
                .with(&settings, &name, Some(Value::Raw(value)))
                .map_err(|()| ProxyError::new("54000", "too many settings in the startup packet"))?;
        }
    }
    Ok((settings, local))
}

impl LoggedIn {
    fn with(self, worker: Rc<Worker>, stream: TcpStream, input: Vec<u8>) -> Begun {
        match self {
            Self::Admin { user } => {
                Begun::Admin(super::admin::AdminSession::new(worker, stream, input, user))
            }
            Self::Session { space, info, settings, local } => {
                let mut session = Session::new(worker, space, info, stream, settings);
                session.input = input;
                for (name, value) in &local {
                    if let Err(error) = session.set_proxy(name, Some(value)) {
                        session.failure = Some(Box::new(error));
                    }
                }
                Begun::Session(session)
            }
        }
    }
}

impl Session {
    fn new(
        worker: Rc<Worker>,
        space: Rc<UserSpace>,
        info: Rc<ClientInfo>,
        stream: TcpStream,
        settings: Rc<Settings>,
    ) -> Self {
        let running = super::running::All::told(info.kept.clone());
        Self {
            worker,
            space,
            info,
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            startup_settings: settings.clone(),
            local_settings: None,
            unsettled: false,
            changed: None,
            prologue_error: None,
            settings,
            servers: Default::default(),
            active: 0,
            queue: Default::default(),
            transaction: None,
            extended: None,
            marks: Default::default(),
            retry: Vec::new(),
            retry_mark: 0,
            answered: false,
            force_primary: false,
            target: None,
            read: super::ReadSetting::Policy,
            skip: false,
            gate: false,
            drain: false,
            copy_in: false,
            checked: false,
            pinned: None,
            pinned_to: None,
            implicit_before: None,
            sync_owed: false,
            has_temp: false,
            closing: false,
            hang_up: super::HangUp::Ignored,
            current: Default::default(),
            hidden_bind: false,
            behind: None,
            schema_changed: false,
            drew: false,
            participant_lost: false,
            running,
            failure: None,
            held_since: None,
            term: None,
            statement_state: None,
        }
    }

    /// May the session end now without anybody noticing more than a closed connection?
    pub(super) fn may_leave(&self) -> bool {
        self.queue.is_empty()
            && self.transaction.is_none()
            && !self.servers.iter().any(|s| s.enlisted)
            && self.output.is_empty()
    }
}
