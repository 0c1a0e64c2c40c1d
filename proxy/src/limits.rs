//! Every limit of the data path, in one place.

use std::time::Duration;

/// Longest startup packet, from PostgreSQL's `MAX_STARTUP_PACKET_LENGTH` (src/include/libpq/pqcomm.h).
pub const STARTUP_PACKET: usize = 10_000;
/// Longest password or SASL message, from `PG_MAX_AUTH_TOKEN_LENGTH`.
pub const AUTH_MESSAGE: usize = 65_535;
/// Longest message of a kind that is always small, from `PQ_SMALL_MESSAGE_LIMIT` (libpq/pqcomm.h).
pub const SMALL_MESSAGE: usize = 10_000;
/// Longest Query, Parse, Bind or CopyData. PostgreSQL allows 1 GiB; we hold a whole message in memory and do not.
pub const LARGE_MESSAGE: usize = 256 << 20;
/// Longest frame of a server that we have to see whole (errors, parameter status, descriptions).
pub const SERVER_MESSAGE: usize = 64 << 20;

/// A client must have logged in within this time.
pub const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);
/// One read from a socket; shared by all sessions of a worker, so its size costs nothing per client.
pub const READ_BUFFER: usize = 64 << 10;
/// A session or server keeps an output buffer up to this capacity for its next message.
pub const SPARE_BUFFER: usize = 64 << 10;

/// Statement shapes the router remembers per worker.
pub const ROUTE_CACHE: usize = 8192;
/// Statements (text, parameter types, settings) a worker remembers for re-preparing. R5 asks for 2048 at least.
pub const REGISTRY: usize = 16_384;
/// Bytes of their texts, per worker.
pub const REGISTRY_BYTES: usize = 64 << 20;
/// Bytes of long statements, of portals, and of held messages of one client, each.
pub const CLIENT_BYTES: usize = 16 << 20;
/// Longest statement text that is kept prepared on servers; longer ones are sent as they are.
pub const PREPARED_TEXT: usize = 64 << 10;
/// Prepared statements kept on one server connection; the least recently used is closed.
pub const SERVER_STATEMENTS: usize = 1024;
/// Named statements and portals of one client.
pub const CLIENT_STATEMENTS: usize = 10_000;
/// Different sets of session settings a worker remembers.
pub const SETTINGS_CACHE: usize = 4096;
/// Settings one session may change.
pub const SETTINGS_PER_SESSION: usize = 100;
/// Statements held in front of the first one that picks a shard (BEGIN, SET LOCAL, SAVEPOINT).
pub const TRANSACTION_PROLOGUE: usize = 1000;
/// Cursors of one transaction whose shards are remembered.
pub const CURSORS: usize = 1000;
/// Portals and cursors over several shards that one transaction may have open; each may keep a connection.
pub const RUNNING: usize = 16;
/// Relations changed in one transaction that are told apart; with more, any sharded or reference table may have changed.
pub const CHANGED_RELATIONS: usize = 1000;
/// Messages of an extended-protocol batch held until a shard is known.
pub const HELD_MESSAGES: usize = 1000;

/// One connection for queries over several shards for so many of `primary_max`.
pub const SCRATCH_SHARE: usize = 4;
/// Sessions waiting for one pool; more are refused at once.
pub const POOL_WAITERS: usize = 20_000;
/// Connections one pool opens at the same time.
pub const POOL_CONNECTING: usize = 8;
/// Back-off after a failed connect, doubled up to the maximum.
pub const CONNECT_BACKOFF: Duration = Duration::from_millis(50);
pub const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How often a worker looks whether what it routed by an older version of the catalog has ended, while it has not.
pub const DRAIN_LOOK: Duration = Duration::from_millis(3);
/// A statement whose buckets move waits so long, well above what a move takes to hand them over (400 ms).
pub const HOLD: Duration = Duration::from_secs(5);
/// While it waits it looks so often whether the lease is back.
pub const HOLD_LOOK: Duration = Duration::from_millis(50);
/// Statements of one worker that wait so at one time.
pub const HELD: u64 = 20_000;
/// How often a worker looks after its pools and clients.
pub const MAINTENANCE: Duration = Duration::from_millis(500);
/// An idle server connection is tested with the test query when it was not used for this long.
pub const VALIDATE_AFTER: Duration = Duration::from_secs(30);
/// A statement that finds no primary waits this long before 57P03.
pub const PRIMARY_WAIT: Duration = Duration::from_secs(10);
/// A server that lost its role while a statement runs on it gets this long to answer.
pub const RETIRED_GRACE: Duration = Duration::from_secs(5);
/// Transactions may run on for this long after SIGTERM.
pub const DRAIN: Duration = Duration::from_secs(20);
/// The answer to DDL is held back until routing knows the new schema, but not for longer.
pub const REFRESH_WAIT: Duration = Duration::from_secs(15);
/// Console sessions served beside max_clients.
pub const CONSOLE_CLIENTS: u64 = 8;
/// A cancel request is given up after this long; the server connection it was for is then closed, not pooled.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control plane may take to end a victim of a deadlock.
pub const DEADLOCK_SIGNAL: Duration = Duration::from_secs(5);
/// Cancel requests that one worker passes on to the other proxies at the same time; the next one is dropped.
pub const PEER_REQUESTS: usize = 64;
/// Longest such request and its answer.
pub const PEER_MESSAGE: usize = 4096;
/// A peer's request is believed for this long, and so far may the clocks differ.
pub const PEER_CLOCKS: Duration = Duration::from_secs(30);
/// Messages waiting for a worker (new clients, cancels).
pub const MAILBOX: usize = 1024;

const _: () = assert!(REGISTRY >= 2048, "R5: a statement cache of at least 2048");
const _: () = assert!(SERVER_STATEMENTS < REGISTRY, "a server knows a part of what the worker knows");
const _: () = assert!(SMALL_MESSAGE < READ_BUFFER, "a small message always fits one read");
