//! Connections to the shards themselves, past the proxy, with the role of its `[control]` section: what moves buckets
//! makes subscriptions, prepares transactions and installs triggers, and that takes a superuser.
//!
//! Which server of a shard is its primary is asked of the servers each time, so a failover needs no edit. No statement
//! waits for ever: after its patience a connection is given up, and whoever had it opens another.
//!
//! Commits are durable whatever the servers, the database or the role have as their default (H15): who does not need that
//! says so.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use shard_config::{Config, HostPort, ShardId, ShardMap};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{Client, CopyInSink, CopyOutStream, NoTls, Row, SimpleQueryMessage, Statement};

use crate::connect::describe;
use crate::replication::Walsender;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of ours takes longer unless it says so.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// NULL of a standby. The timeline by the WAL file's name: the control file's lags behind a promotion until the next
/// checkpoint.
const IDENTITY: &str = "CASE WHEN NOT r.rec THEN (SELECT system_identifier FROM pg_control_system()) END, \
     CASE WHEN NOT r.rec THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END";

/// The session's commits wait for the disk and for the standbys that are named; what waits for more than that is left so.
const DURABLE: &str = "CASE WHEN current_setting('synchronous_commit') <> 'remote_apply' THEN set_config('synchronous_commit', 'on', false) END";

/// A prepared transaction that is older is in doubt: whoever made it is not about to end it.
const IN_DOUBT: Duration = Duration::from_secs(60);

pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Where the servers are and what the sharding key is.
#[derive(Debug, Clone)]
pub struct Servers {
    pub config: Config,
    /// Age from which on a prepared transaction keeps a move from being begun.
    pub in_doubt: Duration,
    user: String,
    password: String,
}

impl Servers {
    pub fn new(config: Config) -> Self {
        let user = config.control.user.clone();
        let password = config.control.password.expose().to_owned();
        Self { config, in_doubt: IN_DOUBT, user, password }
    }

    pub fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        match Config::parse(&text) {
            Ok(config) => Ok(Self::new(config)),
            Err(mistakes) => {
                let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                anyhow::bail!("{}: {}", path.display(), mistakes.join("; "))
            }
        }
    }

    pub fn shards(&self) -> Vec<ShardId> {
        self.config.shards.iter().map(|shard| shard.id).collect()
    }

    pub fn has(&self, shard: ShardId) -> bool {
        self.config.shard(shard).is_some()
    }

    fn settings(&self, place: &HostPort, name: &str) -> tokio_postgres::Config {
        let mut settings = tokio_postgres::Config::new();
        settings
            .host(&place.host)
            .port(place.port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.config.proxy.database)
            .application_name(name)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(10))
            // Texts of rows are compared between servers, so nothing of their format may depend on a setting.
            .options(
                "-c DateStyle=ISO,YMD -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=1 \
                 -c bytea_output=hex -c xmlbinary=base64 -c search_path=pg_catalog -c jit=off \
                 -c standard_conforming_strings=on -c idle_in_transaction_session_timeout=60000 -c idle_session_timeout=0 \
                 -c lock_timeout=0 -c statement_timeout=0 -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
            );
        settings
    }

    /// A session on this server, which need not be in the file.
    pub async fn open(&self, shard: ShardId, place: &HostPort, name: &str) -> anyhow::Result<Db> {
        self.open_as(format!("shard {shard} ({place})"), place, name).await
    }

    async fn open_as(&self, what: String, place: &HostPort, name: &str) -> anyhow::Result<Db> {
        let connected =
            tokio::time::timeout(CONNECT_TIMEOUT, self.settings(place, name).connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => anyhow::bail!("{what}: {}", describe(&error)),
            Err(_) => anyhow::bail!("{what}: no answer within {CONNECT_TIMEOUT:?}"),
        };
        // Ends when the client is dropped; a loss is reported by the statement that was waiting.
        tokio::spawn(connection);
        Ok(Db { client, what, place: place.clone(), patience: PATIENCE, identity: None })
    }

    /// A session beside `db`, on the same server; an error when it has become another one by now.
    pub async fn beside(&self, db: &Db, name: &str) -> anyhow::Result<Db> {
        let mut beside = self.open_as(db.what.clone(), &db.place, name).await?;
        beside.identity = beside.who().await?;
        anyhow::ensure!(
            beside.identity == db.identity,
            "{}: it is another server than a moment ago",
            db.what
        );
        Ok(beside)
    }

    /// A session beside `db`, on the same server, that takes commands of the streaming replication protocol (and, like every
    /// session, those of SQL, as simple queries only).
    pub async fn replication(&self, db: &Db, name: &str) -> anyhow::Result<Db> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
            let stream = TcpStream::connect((db.place.host.as_str(), db.place.port)).await?;
            anyhow::Ok(self.settings(&db.place, name).connect_raw(Walsender::new(stream), NoTls).await?)
        });
        let (client, connection) = match connected.await {
            Ok(connected) => connected.with_context(|| format!("{}: a replication connection", db.what))?,
            Err(_) => anyhow::bail!("{}: no replication connection within {CONNECT_TIMEOUT:?}", db.what),
        };
        tokio::spawn(connection);
        Ok(Db { client, what: db.what.clone(), place: db.place.clone(), patience: PATIENCE, identity: None })
    }

    /// A session on the shard's primary. Of two servers that both think to be it, the one with the higher timeline is
    /// (H5).
    pub async fn primary(&self, shard: ShardId, name: &str) -> anyhow::Result<Db> {
        let servers = self.config.shard(shard).with_context(|| {
            format!("shard {shard} is not in the configuration: add [[shard]] with id = {shard}")
        })?;
        let mut best: Option<Db> = None;
        let mut errors = Vec::new();
        for place in std::iter::once(&servers.primary).chain(&servers.replicas) {
            let asked = async {
                let mut db = self.open(shard, place, name).await?;
                db.identity = db.who().await?;
                anyhow::Ok(db)
            };
            match asked.await {
                Ok(db) => match (db.identity, best.as_ref().and_then(|best| best.identity)) {
                    (None, _) => {}
                    (Some((system, timeline)), Some(known)) if known == (system, timeline) => anyhow::bail!(
                        "shard {shard} has two servers that take writes, both of timeline {timeline}: {} and {}",
                        best.map_or_else(String::new, |best| best.what),
                        db.what
                    ),
                    (Some((_, timeline)), Some((_, known))) if known > timeline => {}
                    (Some(_), _) => best = Some(db),
                },
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        best.with_context(|| match errors.is_empty() {
            true => format!("shard {shard} has no primary: every server of it is in recovery"),
            false => format!("no primary of shard {shard} can be reached: {}", errors.join("; ")),
        })
    }

    /// Sessions on those replicas of the shard that answer.
    pub async fn replicas(&self, shard: ShardId, name: &str) -> Vec<Db> {
        let mut found = Vec::new();
        let Some(servers) = self.config.shard(shard) else { return found };
        for place in std::iter::once(&servers.primary).chain(&servers.replicas) {
            if let Ok(db) = self.open(shard, place, name).await
                && db.value::<bool>("SELECT pg_is_in_recovery()", &[]).await.unwrap_or(false)
            {
                found.push(db);
            }
        }
        found
    }

    /// A session on the primary that keeps `shard_catalog.map` and the moves.
    pub async fn control(&self, name: &str) -> anyhow::Result<Db> {
        Ok(crate::home::find(self, name).await.context("the shard catalog")?.db)
    }

    /// How another server reaches the one that `db` is connected to, as a subscription stores it.
    pub fn conninfo(&self, db: &Db) -> String {
        let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        let mut text = format!(
            "host={} port={} user={} dbname={} connect_timeout=5 keepalives_idle=10",
            quoted(&db.place.host),
            db.place.port,
            quoted(&self.user),
            quoted(&self.config.proxy.database)
        );
        if !self.password.is_empty() {
            text += &format!(" password={}", quoted(&self.password));
        }
        text
    }
}

/// One session. Errors say which server and what it said.
pub struct Db {
    pub client: Client,
    what: String,
    place: HostPort,
    pub patience: Duration,
    /// Of a server that takes writes: its system identifier and its timeline, another one after each failover.
    pub identity: Option<(i64, i32)>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Db({})", self.what)
    }
}

/// What a server answered instead of a result, with its code for those who must tell errors apart.
#[derive(Debug)]
pub struct Refused {
    text: String,
    pub code: Option<SqlState>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// Whether no repetition mends `error`: data that is not taken, a constraint, a name or a right that is missing (classes 22,
/// 23 and 42 of errcodes-appendix.html).
pub fn is_for_good(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<Refused>().and_then(|refused| refused.code.as_ref());
    code.is_some_and(|code| ["22", "23", "42"].iter().any(|class| code.code().starts_with(class)))
}

/// Whether `error` is a server's, of this code.
pub fn is_code(error: &anyhow::Error, code: &SqlState) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code.as_ref() == Some(code))
}

impl Db {
    /// Waits for an answer no longer than its patience.
    pub async fn answered<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> anyhow::Result<T> {
        self.answered_within(self.patience, asked).await
    }

    async fn answered_within<T>(
        &self,
        patience: Duration,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> anyhow::Result<T> {
        match tokio::time::timeout(patience, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refused(&error)),
            Err(_) => Err(anyhow::anyhow!("{}: no answer within {patience:?}", self.what)),
        }
    }

    async fn who(&self) -> anyhow::Result<Option<(i64, i32)>> {
        // In one round trip: each session begins with it.
        let sql = format!("SELECT {IDENTITY}, {DURABLE} FROM (SELECT pg_is_in_recovery() AS rec) r");
        let row = self.one(&sql, &[]).await?;
        Ok(row.try_get::<_, Option<i64>>(0)?.map(|system| (system, row.get(1))))
    }

    /// Commits wait for what clients' commits wait for, and for no more: while clients are held nobody waits for a standby for
    /// which they would not. Until `durable`.
    pub async fn like_clients(&self) -> anyhow::Result<()> {
        self.run("RESET synchronous_commit").await
    }

    /// As every session begins.
    pub async fn durable(&self) -> anyhow::Result<()> {
        self.run(&format!("SELECT {DURABLE}")).await
    }

    /// What the server said, and which one.
    pub fn refused(&self, error: &tokio_postgres::Error) -> anyhow::Error {
        Refused { text: format!("{}: {}", self.what, describe(error)), code: error.code().cloned() }.into()
    }

    pub async fn prepare(&self, sql: &str) -> anyhow::Result<Statement> {
        self.answered(self.client.prepare(sql)).await
    }

    /// Rows by `COPY ... TO STDOUT`. Each of them is to be waited for by `answered`, too.
    pub async fn copy_out(&self, statement: &Statement) -> anyhow::Result<CopyOutStream> {
        self.answered(self.client.copy_out(statement)).await
    }

    /// Takes what `COPY ... FROM STDIN` reads; nothing is there before its `finish`.
    pub async fn copy_in(&self, statement: &Statement) -> anyhow::Result<CopyInSink<Bytes>> {
        self.answered(self.client.copy_in(statement)).await
    }

    /// The first row that one or more commands answer, of SQL or not: (column, value).
    pub async fn command(&self, command: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let answer = self.answered(self.client.simple_query(command)).await?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.with_context(|| format!("{}: no answer to {command}", self.what))?;
        let named = row.columns().iter().enumerate();
        Ok(named
            .filter_map(|(at, column)| Some((column.name().to_owned(), row.get(at)?.to_owned())))
            .collect())
    }

    /// One or more statements without parameters.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        self.answered(self.client.batch_execute(sql)).await
    }

    pub async fn execute(&self, sql: &str, params: Params<'_>) -> anyhow::Result<u64> {
        self.answered(self.client.execute(sql, params)).await
    }

    pub async fn rows(&self, sql: &str, params: Params<'_>) -> anyhow::Result<Vec<Row>> {
        self.answered(self.client.query(sql, params)).await
    }

    /// For what may take longer than others.
    pub async fn rows_within(
        &self,
        patience: Duration,
        sql: &str,
        params: Params<'_>,
    ) -> anyhow::Result<Vec<Row>> {
        self.answered_within(patience, self.client.query(sql, params)).await
    }

    pub async fn one(&self, sql: &str, params: Params<'_>) -> anyhow::Result<Row> {
        self.answered(self.client.query_one(sql, params)).await
    }

    pub async fn first(&self, sql: &str, params: Params<'_>) -> anyhow::Result<Option<Row>> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// The first column of the only row.
    pub async fn value<T: FromSqlOwned>(&self, sql: &str, params: Params<'_>) -> anyhow::Result<T> {
        Ok(self.one(sql, params).await?.try_get(0)?)
    }

    /// Whether the only row is true.
    pub async fn holds(&self, sql: &str, params: Params<'_>) -> anyhow::Result<bool> {
        self.value(sql, params).await
    }

    pub fn place(&self) -> &HostPort {
        &self.place
    }
}

/// How many buckets each shard owns, for people.
pub fn counts(map: &ShardMap) -> BTreeMap<u16, u16> {
    map.shards().into_iter().map(|shard| (shard.0, map.count(shard))).collect()
}
