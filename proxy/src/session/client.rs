//! What the rest of the worker may know of a client: to list it, cancel it, wake it, or tell it to go.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Instant;

use tokio::sync::Notify;

use crate::motion::Touch;
use crate::pool::server::ServerKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Idle,
    Active,
    IdleInTransaction,
    WaitingForServer,
}

impl Activity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::IdleInTransaction => "idle in transaction",
            Self::WaitingForServer => "waiting",
        }
    }
}

pub struct ClientInfo {
    /// The process id of BackendKeyData: worker in the high byte, so that a cancel finds its worker.
    pub id: u32,
    pub secret: Vec<u8>,
    pub user: String,
    pub address: SocketAddr,
    pub application_name: RefCell<String>,
    pub connected: Instant,
    pub activity: Cell<Activity>,
    pub since: Cell<Instant>,
    pub pinned: Cell<Option<&'static str>>,
    pub leak_warned: Cell<bool>,
    /// Servers that work for this client now.
    pub serving: RefCell<Vec<Rc<ServerKey>>>,
    /// Those that keep rows of its cursors and portals, and locks, and do nothing.
    pub kept: super::running::Keys,
    /// What its transaction, or its statement outside of any, has touched.
    pub touch: RefCell<Touch>,
    /// Grows when a transaction, or a statement outside of any, is over.
    pub ended: Cell<u32>,
    /// Set from outside, with a wake: give up servers that lost their role.
    pub give_up_retired: Cell<bool>,
    /// Its transaction is being ended for a deadlock: what its servers call cancelled is told as that.
    pub deadlocked: Cell<bool>,
    /// A cancel request arrived: ends a wait for a server. Who does not wait for one does not hear it.
    pub cancelled: Notify,
    waker: RefCell<Option<Waker>>,
}

impl ClientInfo {
    pub fn new(id: u32, secret: Vec<u8>, user: &str, address: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            id,
            secret,
            user: user.to_owned(),
            address,
            application_name: RefCell::default(),
            connected: now,
            activity: Cell::new(Activity::Idle),
            since: Cell::new(now),
            pinned: Cell::new(None),
            leak_warned: Cell::new(false),
            serving: RefCell::default(),
            kept: Default::default(),
            touch: RefCell::default(),
            ended: Cell::new(0),
            give_up_retired: Cell::new(false),
            deadlocked: Cell::new(false),
            cancelled: Notify::new(),
            waker: RefCell::new(None),
        }
    }

    #[inline]
    pub fn watch(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    #[inline]
    pub fn set_activity(&self, activity: Activity, now: Instant) {
        if self.activity.get() != activity {
            self.activity.set(activity);
            self.since.set(now);
            self.leak_warned.set(false);
        }
    }
}

/// A client as SHOW CLIENTS prints it: a plain value that may leave the worker's thread.
#[derive(Debug, Clone)]
pub struct ClientStatus {
    pub id: u32,
    pub user: String,
    pub address: SocketAddr,
    pub application_name: String,
    pub activity: Activity,
    pub connected: Instant,
    pub since: Instant,
    pub pinned: Option<&'static str>,
    /// Servers that work for it now, or keep its rows: address and backend process id.
    pub servers: Vec<(SocketAddr, i32)>,
}

impl From<&ClientInfo> for ClientStatus {
    fn from(info: &ClientInfo) -> Self {
        Self {
            id: info.id,
            user: info.user.clone(),
            address: info.address,
            application_name: info.application_name.borrow().clone(),
            activity: info.activity.get(),
            connected: info.connected,
            since: info.since.get(),
            pinned: info.pinned.get(),
            servers: info
                .serving
                .borrow()
                .iter()
                .chain(info.kept.borrow().iter())
                .map(|key| (key.address, key.pid))
                .collect(),
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one worker. Only the worker's thread adds; anybody reads.
        #[derive(Debug, Default)]
        pub struct WorkerStats { $($(#[$doc])* pub $name: Counter),* }

        /// One reading of `WorkerStats`.
        #[derive(Debug, Default, Clone, Copy)]
        pub struct WorkerSnapshot { $($(#[$doc])* pub $name: u64),* }

        impl WorkerStats {
            pub fn snapshot(&self) -> WorkerSnapshot {
                WorkerSnapshot { $($name: self.$name.get()),* }
            }
        }

        impl WorkerSnapshot {
            /// Name and value of each counter.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Clients connected now.
    clients,
    /// Clients that logged in since the start.
    logins,
    /// Logins that were refused.
    logins_refused,
    /// Statements sent to a server or answered by the proxy.
    statements,
    /// Transactions that ended on a server (autocommit statements included).
    transactions,
    /// Errors made by the proxy itself.
    refusals,
    /// Errors that servers sent.
    server_errors,
    /// Statements served by a replica.
    replica_reads,
    /// Replica reads that were run again on the primary.
    replica_retries,
    /// Parse messages whose statement was known.
    prepared_hits,
    /// Parse messages that had to be analysed.
    prepared_misses,
    /// Statements that went through the grammar because no plan for their like was known.
    statements_analysed,
    /// Times a statement had to wait for a server connection.
    pool_waits,
    /// Waits that ended without a connection.
    pool_timeouts,
    /// Server connections lost while they were in use.
    servers_lost,
    /// Cancel requests forwarded.
    cancels,
    /// Clients found idle in a transaction for longer than pool.leak_detection_s.
    leaks,
    /// Sessions pinned to a server.
    pins,
    /// Transactions that spanned several shards.
    multi_shard,
    /// Statements that had to wait because their buckets move.
    holds,
    /// Such waits that ended with an error.
    hold_timeouts,
    /// Transactions given up because what they touched has moved (40001).
    moved,
}

/// Written by one thread: a load and a store, no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
