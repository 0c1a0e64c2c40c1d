//! One client's session: a state machine over two kinds of sockets.
//!
//! Rooms, in reading order:
//!
//! - `startup`: login, settings of the startup packet, keys; `reported`: what the client is told of settings.
//! - `io`: the only place that polls sockets on the data path. Client bytes go to `messages`, server bytes to `replies`.
//! - `messages` -> `simple` | `extended` with `describe` and `execute` | `local`: what a client message means; composes bytes
//!   for a server.
//! - `statements`: what the client's statements are called on servers, and which server has them.
//! - `dispatch`: which server: route, enlistment, replica or primary, what it must hear first.
//! - `motion`, with `motion_ddl` (PURE): what must wait, or cannot go on, because its buckets move; `hold`: the wait.
//! - `naming`: which settings statements are routed by.
//! - `config`: `SELECT set_config(...)`.
//! - `changed`: what DDL in the open transaction has changed; `in_use`: what an open cursor keeps from being changed.
//! - `effects`: what a statement that a server ran means for the session.
//! - `replies`: what a server's message means; a queue of expected replies says what to pass on, swallow or add;
//!   `errors`: what an error ends.
//! - `checkout`: waiting for a connection, and what happens when one is lost; `hang_up`: when the client is.
//! - `transaction`, `settings`, `prepared`: PURE state.
//! - `admin`: sessions of the console.
//! - `sql_prepared`: what SQL PREPARE and EXECUTE make of the protocol's prepared statements.
//! - `drawn`: numbers of sequences, drawn ahead; `current` (PURE): those that currval() tells.
//! - `multi_hook`, `participants` with `participant_io`: the door to `crate::multi`, for what spans several shards.
//!
//! Invariants:
//!
//! - All replies outstanding at one time are of one server (`active`), so replies cannot overtake each other.
//! - Messages behind a Sync or Query wait until it was answered: the transaction's state is known before the next
//!   statement is routed.
//! - A server goes back to its pool only at ReadyForQuery 'I' with nothing outstanding (H38); else it is closed.
//! - A partial message is the only thing an idle session may own a buffer for.

mod admin;
pub mod cancel;
mod changed;
mod checkout;
pub mod client;
mod config;
pub mod current;
mod describe;
mod dispatch;
mod drawn;
mod effects;
mod errors;
mod execute;
mod extended;
mod hang_up;
mod hold;
mod in_use;
mod io;
mod local;
mod messages;
mod motion;
mod motion_ddl;
pub mod multi_hook;
mod naming;
mod participant_io;
mod participants;
mod portals;
pub mod prepared;
mod replies;
mod reported;
pub mod running;
pub mod settings;
mod simple;
mod sql_prepared;
pub mod startup;
mod statements;
mod transaction;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::net::TcpStream;

use crate::error::ProxyError;
use crate::limits;
use crate::pool::server::ServerKey;
use crate::pool::{Pool, Server};
use crate::replica::WriteMark;
use crate::route::plan::Plan;
use crate::shared::State;
use crate::worker::{UserSpace, Worker};
use client::ClientInfo;
use hang_up::HangUp;
pub(crate) use local::overrides;
use multi_hook::MultiWork;
use portals::Portals;
use prepared::Entry;
use settings::Settings;
use transaction::Transaction;

pub struct Session {
    pub(crate) worker: Rc<Worker>,
    pub(crate) space: Rc<UserSpace>,
    pub(crate) info: Rc<ClientInfo>,
    stream: TcpStream,
    /// Received and not processed: a partial message, or messages behind the one being answered.
    input: Vec<u8>,
    /// To send, and how much of it was sent.
    output: Vec<u8>,
    sent: usize,
    pub(crate) settings: Rc<Settings>,
    startup_settings: Rc<Settings>,
    /// What SET LOCAL made of them, as far as routing needs it, until the transaction ends.
    local_settings: Option<Rc<Settings>>,
    /// A statement that may change what names mean was sent and is not answered: nothing is routed until it is.
    unsettled: bool,
    /// Servers of the current transaction; with a pinned session also the server it is pinned to, always first.
    pub(crate) servers: SmallVec<[Box<Server>; 1]>,
    /// The one that outstanding replies will come from.
    active: usize,
    queue: VecDeque<Expect>,
    pub(crate) transaction: Option<Box<Transaction>>,
    extended: Option<Box<Extended>>,
    /// Writes in flight, for read-your-writes.
    pub(crate) marks: SmallVec<[WriteMark; 1]>,
    /// A read sent to a replica in autocommit, kept so that it can be asked of the primary instead.
    retry: Vec<u8>,
    /// Length of `output` before its answer began, which is forgotten when it is asked again.
    retry_mark: usize,
    /// Something of the current answer was passed to the client.
    answered: bool,
    /// The next statement is such a read, and must not go to a replica again.
    force_primary: bool,
    /// `shard.target`: position of the shard that takes every statement.
    target: Option<usize>,
    /// `shard.read`.
    read: ReadSetting,
    /// An error happened in this extended batch: messages are ignored until Sync.
    skip: bool,
    /// A Sync or Query is being answered: later messages wait.
    gate: bool,
    /// Messages wait until all replies have arrived (another server is needed next).
    drain: bool,
    /// The active server asked for COPY data.
    copy_in: bool,
    /// A server has checked a statement and is not needed any more.
    checked: bool,
    pinned: Option<&'static str>,
    /// The server that it is pinned to, until that is the first of `servers`.
    pinned_to: Option<Rc<ServerKey>>,
    /// Settings to return to if the current batch, which is outside of a transaction block, fails.
    implicit_before: Option<Rc<Settings>>,
    /// A Sync behind an Execute that may begin COPY FROM STDIN is kept back: the server would ignore it if the COPY
    /// begins, and answer it if not.
    sync_owed: bool,
    has_temp: bool,
    closing: bool,
    hang_up: HangUp,
    /// What currval() and lastval() tell of the numbers drawn for it.
    current: current::Current,
    /// The next Bind is ours, made of an EXECUTE: the client hears nothing of it.
    hidden_bind: bool,
    /// DDL ran in the open transaction on all shards: its COMMIT is followed by a look at the catalog (H39).
    schema_changed: bool,
    /// Its servers may have drawn from sequences since it took them.
    drew: bool,
    /// What that DDL has changed, until the transaction ends.
    changed: Option<Box<changed::Changed>>,
    /// What a server said of the settings held for it: it is told in place of the "transaction is aborted" that follows.
    prologue_error: Option<Box<[u8]>>,
    /// A participant of the implicit transaction was lost: what the others did must not commit.
    participant_lost: bool,
    /// Portals and cursors over several shards that have rows left.
    pub(crate) running: running::All,
    /// Why the message at the start of `input` cannot be run; it is told when the message is looked at again.
    failure: Option<Box<ProxyError>>,
    /// Since when the statement at hand waits for its buckets to be moved.
    held_since: Option<std::time::Instant>,
    /// What the statements of the message at hand will have touched that are behind the end of a transaction in it.
    behind: Option<crate::motion::Touch>,
    /// The lease's term in which the statement at hand was judged; `None`: it touches no bucket.
    term: Option<u64>,
    /// By which a statement over several shards was routed, until it has ended.
    pub(crate) statement_state: Option<Arc<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadSetting {
    /// As `reads.policy` says.
    Policy,
    Primary,
    Replica,
}

/// What the session's task must do before messages can go on.
enum Next {
    Checkout(Want),
    /// The buckets of the statement at hand move: it is looked at again when something has changed.
    Hold,
    Multi(Box<MultiWork>),
    /// A statement changed the schema: its answer is said when routing knows (H39).
    Refresh,
    Close(Option<Box<ProxyError>>),
}

/// A server that is needed.
enum Want {
    /// The primary of this shard, whichever it is when we get one.
    Primary(usize),
    /// A connection of the default shard for the answer to a query over several shards.
    Scratch(usize),
    Pool(Rc<Pool>),
}

/// What became of a client message.
enum Flow {
    Done,
    /// Not processed; look at it again once `drain` or the gate allows.
    Later,
    /// Not processed; look at it again after this.
    After(Next),
    /// Processed, and this follows.
    DoneThen(Next),
}

/// The next reply of the active server, or of ourselves in its place.
#[derive(Debug)]
enum Expect {
    /// A simple query of our own (settings, BEGIN): nothing of its answer is for the client.
    Hidden,
    /// BEGIN and what was held behind it: as `Hidden`, but its settings are the client's, and so is an error in them.
    Prologue,
    /// A simple query of our own that is meant to fail, to abort the server's transaction.
    Abort,
    /// A Parse of our own.
    HiddenParse(Rc<Entry>),
    HiddenClose,
    /// The end of a check of our own: the server ran nothing and is not part of the transaction.
    HiddenSync,
    /// In an extended batch: makes the server fail and skip to Sync.
    Poison,
    /// Said by us when everything before was answered.
    Ours(Box<[u8]>),
    OursStatic(&'static [u8]),
    /// ParseComplete of a statement that is known to be good; the client's name for it, if it has one.
    OursParse(Option<Box<[u8]>>),
    Parse(Rc<Entry>, Option<Box<[u8]>>),
    Bind,
    HiddenBind,
    Close,
    DescribePortal(Rc<Entry>),
    /// What was seen of the answer so far; `hidden`: asked by us.
    DescribeStatement {
        entry: Rc<Entry>,
        seen: Vec<u8>,
        hidden: bool,
    },
    Execute(Option<Box<Pending>>),
    Query(Option<Box<Pending>>),
    Sync,
}

/// An effect that is due when the server has said that the statement succeeded.
#[derive(Debug, Default)]
struct Pending {
    /// Each statement with its own text: what is held for servers that join later must not run its neighbours
    /// again.
    plans: SmallVec<[(Arc<Plan>, String); 1]>,
    failed: bool,
    /// It said COMMIT, and the server answered ROLLBACK.
    rolled_back: bool,
    /// It may be COPY FROM STDIN.
    copies: bool,
    /// IF NOT EXISTS has found one.
    exists: bool,
    /// What the statements behind the last end of a transaction have touched, when there is one.
    behind: Option<Box<crate::motion::Touch>>,
}

impl Pending {
    fn of(plan: &Arc<Plan>, text: String) -> Self {
        Self { plans: smallvec::smallvec![(plan.clone(), text)], ..Self::default() }
    }
}

/// State of the extended protocol; sessions that never use it do not have it.
#[derive(Default)]
struct Extended {
    statements: FxHashMap<Box<[u8]>, Rc<Entry>>,
    unnamed: Option<Rc<Entry>>,
    portals: Portals,
    /// Of statements that SQL EXECUTE has run: how their parameters' types are named, and which entry that is true of.
    parameter_types: FxHashMap<Box<[u8]>, (u64, Rc<[String]>)>,
    /// Replies that need a server which is not chosen yet.
    held: Vec<Held>,
}

impl Extended {
    /// A statement under a name of its own.
    fn add(&mut self, name: &[u8], entry: &Rc<Entry>) -> Result<(), ProxyError> {
        if self.statements.get(name).is_some_and(|old| old.validated.get()) {
            let name = String::from_utf8_lossy(name);
            return Err(ProxyError::new("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        let too_many = |what: &str| {
            ProxyError::new("54000", what).hint("Close or DEALLOCATE what is not needed any more.")
        };
        if self.statements.len() >= limits::CLIENT_STATEMENTS {
            return Err(too_many("too many prepared statements"));
        }
        let long = if entry.is_shared() { 0 } else { entry.sql.len() };
        if long + self.long_texts() > limits::CLIENT_BYTES {
            return Err(too_many("too many bytes of long prepared statements"));
        }
        self.statements.insert(name.into(), entry.clone());
        Ok(())
    }

    /// Bytes of named statements that no registry shares.
    fn long_texts(&self) -> usize {
        self.statements.values().filter(|entry| !entry.is_shared()).map(|entry| entry.sql.len()).sum()
    }
}

enum Held {
    Parse(Rc<Entry>, Option<Box<[u8]>>),
    Describe(Rc<Entry>),
    Ours(Box<[u8]>),
}
