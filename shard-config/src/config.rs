//! The configuration file: one declaration a setting, from which the parser, the default and the documentation
//! come. `validate` checks what no setting can check alone.

use std::net::SocketAddr;

use toml::de::{DeTable, DeValue};

use crate::key::KeyType;
use crate::map::{ShardId, ShardMap};
use crate::secret::Secret;
use crate::settings::{FromToml, Mistake, Reader, Section, SectionDoc, did_you_mean, section, text, words};
use crate::validate::validate;

section! {
    /// The process itself.
    ProxySettings = "[proxy]" {
        /// Name in logs, metrics and SHOW; different for each proxy of a cluster.
        "name" name: String = "proxy1",
        /// Where PostgreSQL clients connect.
        "listen" listen: SocketAddr = "127.0.0.1:17051",
        /// Where /metrics, /healthz and /readyz are served.
        "http" http: SocketAddr = "127.0.0.1:17061",
        /// The http addresses of all proxies of the cluster, host:port; this one may be among them. A client's cancel
        /// request that reaches another proxy than its session, as behind a balancer, is passed on to them. They must
        /// be able to reach each other's http address, agree on the password of [control], and have clocks that
        /// differ by less than half a minute.
        "peers" peers: Vec<HostPort> = [],
        /// The one database that clients see, of the same name on every shard.
        "database" database: String = "payments",
        /// Threads that serve clients; more than the machine has cores is waste.
        "workers" workers: u16 = 1 in 1..=256,
        /// Directory where the proxy remembers each shard's timeline, so that a returned old primary is not
        /// mistaken for the primary.
        "state_dir" state_dir: String = "/var/lib/shard-proxy",
        /// Clients served at once; the next one is refused with SQLSTATE 53300.
        "max_clients" max_clients: u32 = 10000 in 1..=1000000,
        /// The shard on which plain tables live.
        "default_shard" default_shard: ShardId = 1,
    }
}

section! {
    /// The sharding key. Fixed once rows exist.
    KeySettings = "[key]" {
        /// A table that has this column, of this type, is sharded by it.
        "column" column: String = "tenant_id",
        /// Type of the column.
        "type" key_type: KeyType = "uuid",
        /// Number of buckets: a power of two. Shards own ranges of them.
        "buckets" buckets: u16 = 4096 in 2..=32768,
    }
}

section! {
    /// Server connections: of each shard, shared by all workers of this proxy.
    PoolSettings = "[pool]" {
        /// Most connections to a shard's primary.
        "primary_max" primary_max: u32 = 50 in 1..=10000,
        /// Idle connections to a primary that are kept open.
        "primary_min" primary_min: u32 = 20 in 0..=10000,
        /// Most connections to a shard's replicas.
        "replica_max" replica_max: u32 = 100 in 1..=10000,
        /// Idle connections to replicas that are kept open.
        "replica_min" replica_min: u32 = 50 in 0..=10000,
        /// How long a statement waits for a connection before it fails with SQLSTATE 53300.
        "connect_timeout_ms" connect_timeout_ms: u64 = 3000 in 10..=600000,
        /// A connection above the minimum that is idle for so long is closed.
        "idle_timeout_s" idle_timeout_s: u64 = 300 in 1..=86400,
        /// A connection older than this is closed when it is next idle.
        "max_lifetime_s" max_lifetime_s: u64 = 600 in 1..=86400,
        /// How long the test query of a connection may take.
        "validation_timeout_ms" validation_timeout_ms: u64 = 3000 in 10..=600000,
        /// A client that sits idle in a transaction for so long is warned about and counted. 0: never.
        "leak_detection_s" leak_detection_s: u64 = 10 in 0..=86400,
        /// Asked of a connection that was idle, before it is used again.
        "test_query" test_query: String = "SELECT 1",
    }
}

section! {
    /// serial and identity columns of sharded tables. Their numbers are drawn on the default shard, for all shards.
    SequenceSettings = "[sequences]" {
        /// Numbers drawn at a time, for all clients of a worker, so that not every INSERT asks the default shard. What is
        /// not used within a second is a gap, and so long another proxy may still give numbers that it drew before a
        /// setval() or RESTART. 1: each INSERT draws its own.
        "block" block: u32 = 32 in 1..=10000,
    }
}

section! {
    /// Reads from replicas.
    ReadSettings = "[reads]" {
        /// "fresh": a replica serves a read once it has replayed the last write seen to the read's bucket, so
        /// clients read their writes; correct with ONE proxy only. "primary": replicas serve nothing.
        /// "opt_in": replicas serve sessions that said SET shard.read = 'replica'.
        "policy" policy: ReadPolicy = "fresh",
        /// How often each server's WAL position is asked for.
        "poll_ms" poll_ms: u64 = 100 in 10..=60000,
    }
}

section! {
    /// The role with which the proxy watches the shards and finishes transactions that span several. A superuser.
    ControlSettings = "[control]" {
        /// Its name on every shard.
        "user" user: String = "shard_proxy",
        /// Its password on every shard.
        "password" password: Secret = "",
    }
}

section! {
    /// A role that clients may log in as, of the same name and password on every shard. Repeated.
    User = "[[user]]" {
        /// Role name.
        "name" name: String = required,
        /// Used towards clients and towards servers, with SCRAM-SHA-256 both ways.
        "password" password: Secret = required,
        /// May open the proxy's console (database "admin"), which shows every client and changes the proxy.
        "admin" admin: bool = false,
    }
}

section! {
    /// A shard: a primary and its replicas. Repeated. Shards with numbers above all others, and replicas, may be added
    /// while a proxy runs.
    ShardServers = "[[shard]]" {
        /// From 1; never given to another shard later.
        "id" id: ShardId = required,
        /// host:port. Which server IS the primary is asked of the servers, so a failover needs no edit.
        "primary" primary: HostPort = required,
        /// host:port of each streaming replica.
        "replicas" replicas: Vec<HostPort> = [],
        /// Share of the buckets a new cluster gives it, relative to the others. 0: none yet.
        "weight" weight: u32 = 1 in 0..=1000,
    }
}

section! {
    /// A table that is not what its columns say. A table not named here is sharded when it has the key column
    /// with the key's type, and plain otherwise. Repeated.
    TableRule = "[[table]]" {
        /// schema.table
        "name" name: String = required,
        /// "sharded": rows live where their key says. "reference": the same rows on every shard. "plain": on the
        /// default shard.
        "kind" kind: TableKind = required,
        /// Key column of a sharded table, when not that of [key].
        "key" key: Option<String> = optional,
        /// Type of that column, when not that of [key].
        "type" key_type: Option<KeyType> = optional,
        /// Constraints and unique indexes of a sharded table that lack the key column, by name or as a list of columns
        /// ("id", "code, day"), and that hold over all shards by the way in which their values are made: uuids, numbers
        /// of one sequence, references to rows of the same key. A shard enforces them among its own rows; without
        /// this they are refused, as nobody enforces them among all. shardctl doctor lists them.
        "unique_by_construction" unique_by_construction: Vec<String> = [],
    }
}

section! {
    /// Where a function runs. A function that may touch tables and is not named here is refused. Repeated.
    FunctionRule = "[[function]]" {
        /// schema.function, for every overload.
        "name" name: String = required,
        /// "key": on the shard of an argument. "key_array": an argument is an array of keys, all on one shard.
        /// "local": anywhere, it touches no sharded table. "default": on the default shard.
        "route" route: FunctionRoute = required,
        /// Number of that argument, from 1.
        "argument" argument: Option<u16> = optional in 1..=100,
    }
}

/// Does one of these entries of `unique_by_construction` name this constraint or index, or its columns in any order?
pub fn is_vouched(entries: &[String], name: Option<&str>, columns: &[String]) -> bool {
    let sorted = |columns: &mut dyn Iterator<Item = &str>| {
        let mut all: Vec<String> = columns.map(|column| column.trim().to_owned()).collect();
        all.sort();
        all
    };
    let wanted = sorted(&mut columns.iter().map(String::as_str));
    entries.iter().any(|entry| name == Some(entry.trim()) || sorted(&mut entry.split(',')) == wanted)
}

/// Which reads go to replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPolicy {
    Fresh,
    Primary,
    OptIn,
}
words!(ReadPolicy { "fresh" => Fresh, "primary" => Primary, "opt_in" => OptIn });

/// What the configuration says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Sharded,
    Reference,
    Plain,
}
words!(TableKind { "sharded" => Sharded, "reference" => Reference, "plain" => Plain });

/// What the configuration says of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionRoute {
    Key,
    KeyArray,
    Local,
    Default,
}
words!(FunctionRoute { "key" => Key, "key_array" => KeyArray, "local" => Local, "default" => Default });

/// A server's address, its name not resolved yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for HostPort {
    type Err = ();

    /// `host:port`, `[v6 address]:port`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(());
        }
        let host = bracketed.unwrap_or(host);
        let port = port.parse().map_err(|_| ())?;
        if host.is_empty() || port == 0 || host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl FromToml for HostPort {
    const EXPECTS: &'static str = "\"host:port\"";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let text = text(value, Self::EXPECTS)?;
        text.parse()
            .map_err(|()| (format!("\"{text}\" is not host:port"), "write e.g. \"10.0.0.7:5432\"".into()))
    }
}

impl FromToml for SocketAddr {
    const EXPECTS: &'static str = "\"address:port\"";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let text = text(value, Self::EXPECTS)?;
        text.parse().map_err(|_| {
            (
                format!("\"{text}\" is not an address and port"),
                "write e.g. \"127.0.0.1:6432\" or \"[::]:6432\"".into(),
            )
        })
    }
}

impl FromToml for KeyType {
    const EXPECTS: &'static str = "one of \"uuid\", \"int8\", \"int4\", \"int2\", \"text\"";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let name = text(value, Self::EXPECTS)?;
        Self::from_name(name)
            .ok_or_else(|| (format!("no key can be of type \"{name}\""), format!("write {}", Self::EXPECTS)))
    }
}

impl FromToml for ShardId {
    const EXPECTS: &'static str = "a shard's number";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        match u16::from_toml(value)? {
            0 => Err(("there is no shard 0".into(), "number shards from 1".into())),
            id => Ok(Self(id)),
        }
    }
}

/// A configuration file that was read and found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub proxy: ProxySettings,
    pub key: KeySettings,
    pub pool: PoolSettings,
    pub sequences: SequenceSettings,
    pub reads: ReadSettings,
    pub control: ControlSettings,
    pub users: Vec<User>,
    /// Sorted by id; at least one.
    pub shards: Vec<ShardServers>,
    pub tables: Vec<TableRule>,
    pub functions: Vec<FunctionRule>,
}

/// Every section in the order in which the documentation shows them.
pub const SECTIONS: [SectionDoc; 10] = [
    ProxySettings::DOC,
    KeySettings::DOC,
    PoolSettings::DOC,
    SequenceSettings::DOC,
    ReadSettings::DOC,
    ControlSettings::DOC,
    User::DOC,
    ShardServers::DOC,
    TableRule::DOC,
    FunctionRule::DOC,
];

impl Config {
    /// Reads a whole file. `Err` has every mistake in it, in the order of lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(text);
        let mut config = read(&mut reader, text);
        if let Some(config) = &mut config {
            validate(config, &mut reader);
            config.shards.sort_by_key(|shard| shard.id);
        }
        let Reader { mut mistakes, .. } = reader;
        mistakes.sort_by_key(|mistake| mistake.line);
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }

    /// The map of a new cluster of this configuration (R2). One in use is stored and may differ.
    pub fn initial_map(&self) -> ShardMap {
        let weighted: Vec<_> = self.shards.iter().map(|shard| (shard.id, shard.weight)).collect();
        ShardMap::weighted(&weighted, self.key.buckets)
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    pub fn shard(&self, id: ShardId) -> Option<&ShardServers> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// A file with every setting, its documentation and its default.
    pub fn reference() -> String {
        let mut out = String::new();
        for section in SECTIONS {
            for line in section.doc {
                out += &format!("#{line}\n");
            }
            let repeated = section.header.starts_with("[[");
            out += &format!("{}{}\n", if repeated { "# " } else { "" }, section.header);
            for setting in section.settings {
                for line in setting.doc {
                    out += &format!("#{line}\n");
                }
                let (off, value) = match setting.default {
                    word @ ("required" | "optional") => ("# ", format!("{} ({word})", setting.expects)),
                    default => (if repeated { "# " } else { "" }, default.to_owned()),
                };
                let range =
                    setting.range.map(|(low, high)| format!("   # {low} to {high}")).unwrap_or_default();
                out += &format!("{off}{} = {value}{range}\n", setting.name);
            }
            out.push('\n');
        }
        out
    }
}

/// `None` when some value is missing or wrong; the reader has the mistakes.
fn read(reader: &mut Reader<'_>, text: &str) -> Option<Config> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let syntax_ok = errors.is_empty();
    for error in errors {
        let line = reader.line_of(error.span().map_or(0, |span| span.start));
        reader.mistake(line, error.message(), "correct the TOML syntax");
    }
    let root = root.get_ref();
    for (key, _) in root {
        let name = |section: &SectionDoc| section.header.trim_matches(['[', ']']);
        if !SECTIONS.iter().any(|section| name(section) == key.get_ref()) {
            let line = reader.line_of(key.span().start);
            let remedy = did_you_mean(key.get_ref(), SECTIONS.iter().map(name));
            reader.mistake(line, format!("there is no section [{}]", key.get_ref()), remedy);
        }
    }
    // All are read before the first `?`, so that all their mistakes are found.
    let proxy = one(reader, root);
    let key = one(reader, root);
    let pool = one(reader, root);
    let sequences = one(reader, root);
    let reads = one(reader, root);
    let control = one(reader, root);
    let users = many(reader, root);
    let shards: Option<Vec<ShardServers>> = many(reader, root);
    let tables = many(reader, root);
    let functions = many(reader, root);
    let config = Config {
        proxy: proxy?,
        key: key?,
        pool: pool?,
        sequences: sequences?,
        reads: reads?,
        control: control?,
        users: users?,
        shards: shards?,
        tables: tables?,
        functions: functions?,
    };
    syntax_ok.then_some(config)
}

/// A section that may be left out: then every setting has its default.
fn one<S: Section>(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<S> {
    let header = S::DOC.header;
    let name = header.trim_matches(['[', ']']);
    match root.iter().find(|(key, _)| key.get_ref() == name) {
        None => reader.section(&DeTable::new(), 1, 0),
        Some((key, value)) => {
            let line = reader.line_of(key.span().start);
            match value.get_ref() {
                DeValue::Table(table) => reader.section(table, line, 0),
                _ => {
                    reader.mistake(line, format!("{name} is a section"), format!("write {header}"));
                    None
                }
            }
        }
    }
}

/// A repeated section.
fn many<S: Section>(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<Vec<S>> {
    let header = S::DOC.header;
    let name = header.trim_matches(['[', ']']);
    let Some((key, value)) = root.iter().find(|(key, _)| key.get_ref() == name) else {
        return Some(Vec::new());
    };
    let items = match value.get_ref() {
        DeValue::Array(items) => &items[..],
        _ => &[],
    };
    let mut sections = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let line = reader.line_of(item.span().start);
        if let DeValue::Table(table) = item.get_ref() {
            sections.push(reader.section(table, line, index));
        }
    }
    if items.is_empty() || sections.len() < items.len() {
        let line = reader.line_of(key.span().start);
        reader.mistake(line, format!("{name} is a repeated section"), format!("write {header} before each"));
        return None;
    }
    sections.into_iter().collect()
}
