//! What everybody must agree on to find a row: the bucket of a key, the shard of a bucket, and the
//! configuration that names the servers.
//!
//! Rooms, in reading order:
//!
//! - [`bucket`]: PostgreSQL's own hash of a key, so that the proxy and plain SQL on a shard say the same bucket.
//! - [`key`]: key values as PostgreSQL spells them, brought to the bytes that are hashed.
//! - [`map`]: bucket -> shard, with an epoch that only grows; single tenants may live elsewhere than their bucket.
//! - [`scope`]: a set of buckets and tenants, as a predicate in Rust and in SQL: what a move is about.
//! - [`assign`]: which shard each bucket should be on, moving as few as possible.
//! - [`plan`]: which moves lead to a better map.
//! - [`ranges`]: sets of buckets as people write them.
//! - [`change`]: the only ways in which one map may become another.
//! - [`settings`], [`config`], [`validate`]: the configuration file; one table entry a setting, and every mistake
//!   reported at once.
//! - [`url`]: connection URLs as libpq and JDBC write them.
//!
//! Invariants:
//!
//! - Same bytes in, same bucket out, for ever: the hash, the seed and the number of buckets never change after
//!   the first row was written. The vectors in `bucket` pin them; `tests/live.rs` asks a live PostgreSQL.
//! - A map names an owner for every bucket. A map in use is the persisted table; it is never computed again from
//!   `assign`, whose result depends on history.
//! - Secrets do not reach a log: they are `Secret`, whose `Debug` prints nothing of them.
//!
//! Deliberately absent: sockets, clocks, files and async code. This crate is given text and returns values.

pub mod assign;
pub mod bucket;
pub mod change;
pub mod config;
pub mod digest;
pub mod key;
pub mod map;
pub mod plan;
pub mod ranges;
pub mod scope;
pub mod secret;
pub mod settings;
pub mod url;
pub mod validate;

pub use bucket::{
    BUCKETS_DEFAULT, Bucket, HASH_SEED, KeyHash, bucket_of_int8, bucket_of_text, bucket_of_uuid,
    hash_of_int8, hash_of_text, hash_of_uuid,
};
pub use change::{ChangeError, Move, Offer};
pub use config::{
    Config, FunctionRoute, FunctionRule, HostPort, ReadPolicy, SequenceSettings, ShardServers, TableKind,
    TableRule, User, is_vouched,
};
pub use key::KeyType;
pub use map::{ShardId, ShardMap};
pub use scope::{Scope, ScopeError};
pub use secret::Secret;
pub use settings::Mistake;
pub use url::ConnectionUrl;

macro_rules! noise {
    () => {
        r"'::(character varying|double precision|timestamp with(out)? time zone|[a-z_0-9]+)(\([0-9,]+\))?(\[\])?|[() ]'"
    };
}

/// A regular expression, as SQL reads it, for what an expression of a dump that was restored has in other places: casts,
/// parentheses and blanks.
pub const NOISE_SQL: &str = noise!();

/// SQL for what a constraint `k`, a row of `pg_constraint`, says: for comparisons between shards. Of checks without `NOISE_SQL`.
pub const CONSTRAINT_SQL: &str = concat!(
    "CASE WHEN k.contype = 'c' THEN regexp_replace(pg_get_constraintdef(k.oid), ",
    noise!(),
    ", '', 'g') ELSE pg_get_constraintdef(k.oid) END"
);

/// The catalog's tables, which proxies and `shardctl` make alike: for `batch_execute` by a superuser, safe to repeat.
pub const CATALOG_SQL: &str = concat!(include_str!("../sql/catalog.sql"), include_str!("../sql/verbs.sql"));
