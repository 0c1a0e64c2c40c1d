//! The connections of one worker to one server as one role.
//!
//! Not deadpool's managed pool, though DESIGN.md names it. What is needed here is (1) a take that is a plain
//! function: the data path polls sockets by hand and must not build a future to get an idle connection; (2) a put
//! that hands the connection to the longest waiter directly; (3) connections that hold thread-local state (`Rc`),
//! which deadpool's `Send` bounds rule out; (4) a minimum of open connections, a maximum life, and retirement with
//! its server's role, which deadpool leaves to its user anyway.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::auth::client_side::SaltedKeys;
use crate::limits;
use crate::pool::connect::{ConnectError, connect};
use crate::pool::server::{Role, Server};
use crate::session::settings::Settings;
use crate::wire::{build, frame};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLimits {
    pub max: usize,
    pub min: usize,
    /// For the answers to queries over several shards.
    pub scratch: bool,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_lifetime: Duration,
    pub validation_timeout: Duration,
    pub test_query: String,
}

#[derive(Debug, Clone)]
pub enum AcquireError {
    /// All connections stayed in use.
    Timeout {
        waited: Duration,
        size: usize,
    },
    TooManyWaiters,
    /// No connection could be opened.
    Connect(ConnectError),
    /// The server lost its role; ask the new state for another.
    Retired,
}

pub struct Pool {
    pub shard: usize,
    pub shard_id: u16,
    pub role: Role,
    pub address: SocketAddr,
    pub user: String,
    password: shard_config::Secret,
    database: String,
    pub limits: PoolLimits,
    keys: Rc<RefCell<SaltedKeys>>,
    no_settings: Rc<Settings>,
    idle: RefCell<Vec<Box<Server>>>,
    waiters: RefCell<VecDeque<oneshot::Sender<Result<Box<Server>, AcquireError>>>>,
    /// Open connections, idle or in use; and those being opened.
    size: Cell<usize>,
    connecting: Cell<usize>,
    retry_at: Cell<Option<Instant>>,
    backoff: Cell<Duration>,
    retired: Cell<bool>,
    /// Filled up to the minimum once somebody has used it.
    wanted: Cell<bool>,
}

/// What SHOW POOLS and the metrics tell about a pool.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    pub shard_id: u16,
    pub role: Role,
    pub address: SocketAddr,
    pub user: String,
    pub idle: usize,
    pub used: usize,
    pub connecting: usize,
    pub waiting: usize,
    pub max: usize,
}

#[allow(clippy::too_many_arguments)]
impl Pool {
    pub fn new(
        shard: usize,
        shard_id: u16,
        role: Role,
        address: SocketAddr,
        (user, password, database): (&str, &shard_config::Secret, &str),
        limits: PoolLimits,
        keys: Rc<RefCell<SaltedKeys>>,
        no_settings: Rc<Settings>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            shard_id,
            role,
            address,
            user: user.to_owned(),
            password: password.clone(),
            database: database.to_owned(),
            limits,
            keys,
            no_settings,
            idle: RefCell::default(),
            waiters: RefCell::default(),
            size: Cell::new(0),
            connecting: Cell::new(0),
            retry_at: Cell::new(None),
            backoff: Cell::new(limits::CONNECT_BACKOFF),
            retired: Cell::new(false),
            wanted: Cell::new(false),
        })
    }

    /// An idle connection, unless others have waited longer. The most recently used first: its caches are warm, on
    /// the server too, and the rest can time out.
    #[inline]
    pub fn try_take(&self) -> Option<Box<Server>> {
        if !self.waiters.borrow().is_empty() {
            return None;
        }
        loop {
            let mut server = self.idle.borrow_mut().pop()?;
            if server.is_quiet() {
                return Some(server);
            }
        }
    }

    /// Waits for a connection: first come, first served.
    pub async fn take(self: &Rc<Self>) -> Result<Box<Server>, AcquireError> {
        if self.retired.get() {
            return Err(AcquireError::Retired);
        }
        if let Some(server) = self.try_take() {
            return Ok(server);
        }
        let started = Instant::now();
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.waiters.borrow_mut();
            if waiters.len() >= limits::POOL_WAITERS {
                return Err(AcquireError::TooManyWaiters);
            }
            waiters.push_back(sender);
        }
        self.wanted.set(true);
        self.grow();
        let mut waiting = Waiting { pool: self, receiver };
        match tokio::time::timeout(self.limits.connect_timeout, &mut waiting.receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AcquireError::Retired),
            Err(_) => Err(AcquireError::Timeout { waited: started.elapsed(), size: self.size.get() }),
        }
    }

    /// Takes a connection back, or closes it.
    pub fn put(self: &Rc<Self>, mut server: Box<Server>, now: Instant) {
        if self.retired.get() || !server.is_clean() || now > server.expires {
            drop(server);
            self.grow();
            return;
        }
        if server.key.pending.get() > 0 {
            // H38: a cancel request is on its way to this connection. Whoever gets it next must not be hit.
            let pool = self.clone();
            tokio::task::spawn_local(async move {
                while server.key.pending.get() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                pool.put(server, Instant::now());
            });
            return;
        }
        server.used = now;
        let mut waiters = self.waiters.borrow_mut();
        while let Some(waiter) = waiters.pop_front() {
            match waiter.send(Ok(server)) {
                Ok(()) => return,
                Err(Ok(back)) => server = back,
                Err(Err(_)) => return,
            }
        }
        drop(waiters);
        self.idle.borrow_mut().push(server);
    }

    /// A connection was closed.
    pub(super) fn gone(&self) {
        self.size.set(self.size.get().saturating_sub(1));
    }

    /// Opens connections for those who wait.
    fn grow(self: &Rc<Self>) {
        while self.connecting.get() < self.waiters.borrow().len() && self.may_connect() {
            self.spawn_connect();
        }
    }

    fn may_connect(&self) -> bool {
        !self.retired.get()
            && self.size.get() + self.connecting.get() < self.limits.max
            && self.connecting.get() < limits::POOL_CONNECTING
            && self.retry_at.get().is_none_or(|at| Instant::now() >= at)
    }

    fn spawn_connect(self: &Rc<Self>) {
        self.connecting.set(self.connecting.get() + 1);
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            let result = connect(
                pool.address,
                &pool.user,
                pool.password.expose(),
                &pool.database,
                &pool.keys,
                pool.limits.connect_timeout,
            )
            .await;
            pool.connecting.set(pool.connecting.get() - 1);
            match result {
                Ok(opened) => {
                    pool.backoff.set(limits::CONNECT_BACKOFF);
                    pool.retry_at.set(None);
                    pool.size.set(pool.size.get() + 1);
                    // Lifetimes differ by up to a tenth, so that connections opened together do not close together.
                    let life = pool.limits.max_lifetime.mul_f64(0.9 + rand::random::<f64>() / 10.0);
                    let now = Instant::now();
                    let server = Server::new(
                        opened.stream,
                        opened.key,
                        pool.clone(),
                        pool.no_settings.clone(),
                        opened.parameters,
                        now + life,
                    );
                    pool.put(Box::new(server), now);
                    pool.grow();
                }
                Err(error) => pool.connect_failed(&error),
            }
        });
    }

    fn connect_failed(&self, error: &ConnectError) {
        let backoff = self.backoff.get();
        if backoff == limits::CONNECT_BACKOFF {
            tracing::warn!(shard = self.shard_id, address = %self.address, user = self.user, %error, "cannot connect to server");
        }
        self.retry_at.set(Some(Instant::now() + backoff));
        self.backoff.set((backoff * 2).min(limits::CONNECT_BACKOFF_MAX));
        // With connections open, those who wait may still get one of them.
        if self.size.get() == 0 || matches!(error, ConnectError::Refused { .. }) {
            for waiter in self.waiters.borrow_mut().drain(..) {
                let _ = waiter.send(Err(AcquireError::Connect(error.clone())));
            }
        }
    }

    /// The server lost its role: idle connections close now, those in use at their end.
    pub fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        for waiter in self.waiters.borrow_mut().drain(..) {
            let _ = waiter.send(Err(AcquireError::Retired));
        }
    }

    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_at.get().map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub fn status(&self) -> PoolStatus {
        let idle = self.idle.borrow().len();
        PoolStatus {
            shard_id: self.shard_id,
            role: self.role,
            address: self.address,
            user: self.user.clone(),
            idle,
            used: self.size.get().saturating_sub(idle),
            connecting: self.connecting.get(),
            waiting: self.waiters.borrow().len(),
            max: self.limits.max,
        }
    }

    /// Called every `limits::MAINTENANCE`: closes what is too old or dead, tests what was idle long, fills up.
    pub fn maintain(self: &Rc<Self>, now: Instant) {
        if self.retired.get() {
            return;
        }
        let mut spare = self.size.get().saturating_sub(self.limits.min);
        let mut stale = Vec::new();
        {
            let mut idle = self.idle.borrow_mut();
            let mut at = 0;
            while at < idle.len() {
                let server = &mut idle[at];
                let unused = now.saturating_duration_since(server.used);
                let surplus = spare > 0 && unused > self.limits.idle_timeout;
                if surplus || now > server.expires || !server.is_quiet() {
                    spare = spare.saturating_sub(1);
                    drop(idle.remove(at));
                } else if unused > limits::VALIDATE_AFTER {
                    stale.push(idle.remove(at));
                } else {
                    at += 1;
                }
            }
        }
        for server in stale {
            tokio::task::spawn_local(validate(self.clone(), server));
        }
        self.grow();
        let missing = self.limits.min.saturating_sub(self.size.get() + self.connecting.get());
        if self.wanted.get() {
            for _ in 0..missing.min(limits::POOL_CONNECTING) {
                if self.may_connect() {
                    self.spawn_connect();
                }
            }
        }
    }
}

/// A place among the waiters. Who gives it up, by a timeout or a cancel request, leaves nothing that would keep
/// others from an idle connection, and no connection that was handed over at the same moment is lost.
struct Waiting<'a> {
    pool: &'a Rc<Pool>,
    receiver: oneshot::Receiver<Result<Box<Server>, AcquireError>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.receiver.is_terminated() {
            return;
        }
        self.receiver.close();
        self.pool.waiters.borrow_mut().retain(|waiter| !waiter.is_closed());
        if let Ok(Ok(server)) = self.receiver.try_recv() {
            self.pool.put(server, Instant::now());
        }
    }
}

/// Runs the test query on an idle connection and puts it back if the answer is in order.
async fn validate(pool: Rc<Pool>, mut server: Box<Server>) {
    let timeout = pool.limits.validation_timeout;
    match tokio::time::timeout(timeout, round_trip(&mut server, pool.limits.test_query.as_bytes())).await {
        Ok(Ok(())) => pool.put(server, Instant::now()),
        outcome => {
            tracing::info!(shard = pool.shard_id, address = %pool.address, ?outcome, "idle connection failed its test");
        }
    }
}

/// A simple query whose rows nobody wants, on a connection that nobody uses.
pub async fn round_trip(server: &mut Server, sql: &[u8]) -> Result<(), String> {
    server.status = b'?';
    build::query(&mut server.out, sql);
    std::future::poll_fn(|cx| server.poll_flush(cx)).await.map_err(|e| e.to_string())?;
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    let mut failure = None;
    loop {
        while let Some(size) = frame::server_frame(&buffer).map_err(|e| e.to_string())? {
            if size > buffer.len() {
                if size > limits::SERVER_MESSAGE {
                    return Err("oversized answer".into());
                }
                break;
            }
            let message: Vec<u8> = buffer.drain(..size).collect();
            match message[0] {
                b'E' => {
                    let text = crate::wire::read::error_field(&message, b'M').unwrap_or(b"?");
                    failure = Some(String::from_utf8_lossy(text).into_owned());
                }
                b'S' => {
                    let mut reader = crate::wire::read::body(&message);
                    if let (Some(name), Some(value)) = (reader.cstr(), reader.cstr()) {
                        server.set_parameter(&String::from_utf8_lossy(name), &String::from_utf8_lossy(value));
                    }
                }
                b'Z' => {
                    server.status = message.get(5).copied().unwrap_or(b'?');
                    return failure.map_or(Ok(()), Err);
                }
                _ => {}
            }
        }
        let read =
            std::future::poll_fn(|cx| server.poll_read(cx, &mut chunk)).await.map_err(|e| e.to_string())?;
        if read == 0 {
            return Err("the server closed the connection".into());
        }
        buffer.extend_from_slice(&chunk[..read]);
    }
}
