//! The pools for everything but posting: GETs, and the small writes.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};

use super::connect;
use super::outcome::{self, Failure};
use crate::config::Config;
use crate::limits;

/// Two pools to one database. `reads` follows the proxy's read policy (replicas that are fresh for the tenant); `primary`
/// is for writes and for filling caches, which must never be filled from something older than an eviction.
#[derive(Clone)]
pub struct Database {
    reads: Pool,
    primary: Pool,
    idle: Duration,
    lifetime: Duration,
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection, or no answer in time, or the connection broke.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// A change was sent, and whether it was made is not known.
    #[error("the outcome of a change is not known: {0}")]
    OutcomeUnknown(String),
    /// The database refuses the values; `constraint` if one did.
    #[error("the database refuses: {state} {detail}")]
    Refused { state: String, constraint: Option<String>, detail: String },
    /// The statement or the schema is wrong.
    #[error("a statement failed: {0}")]
    Broken(String),
}

impl DbError {
    /// For statements that change nothing by themselves.
    fn nothing_done(self) -> Self {
        match self {
            Self::OutcomeUnknown(why) => Self::Unavailable(why),
            other => other,
        }
    }

    pub fn is_constraint(&self, sqlstate: &str) -> bool {
        matches!(self, Self::Refused { state, .. } if state == sqlstate)
    }
}

/// As for a change that takes effect with the statement; [`DbError::nothing_done`] makes it one of a read.
impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::OutcomeUnknown(error.to_string());
        };
        let state = db.code().code();
        if outcome::of_sqlstate(state, db.constraint()) == Failure::Unknown {
            return Self::OutcomeUnknown(format!("{state} {}", db.message()));
        }
        match state.get(..2) {
            Some("22" | "23") => Self::Refused {
                state: state.to_owned(),
                constraint: db.constraint().map(str::to_owned),
                detail: db.message().to_owned(),
            },
            Some("08" | "57" | "53" | "40" | "55" | "25" | "26" | "SP") => {
                Self::Unavailable(format!("{state} {}", db.message()))
            }
            _ => Self::Broken(format!("{state} {}", db.message())),
        }
    }
}

impl From<PoolError> for DbError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::from(error).nothing_done(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl Database {
    pub fn new(config: &Config) -> Result<Self, tokio_postgres::Error> {
        let reads = connect::settings(config, "reads")?;
        let mut primary = connect::settings(config, "writes")?;
        // A plain PostgreSQL takes this as a setting of nobody's; the proxy reads from the primary.
        primary.options("-c shard.read=primary");
        Ok(Self {
            reads: pool(reads, config),
            primary: pool(primary, config),
            idle: Duration::from_secs(config.database_idle_timeout_s),
            lifetime: Duration::from_secs(config.database_max_lifetime_s),
        })
    }

    pub async fn reads(&self) -> Result<Lease, DbError> {
        Ok(Lease::new(self.reads.get().await?))
    }

    pub async fn primary(&self) -> Result<Lease, DbError> {
        Ok(Lease::new(self.primary.get().await?))
    }

    /// Closes connections that are idle or old, until `stopped`.
    pub async fn sweep(self, mut stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            tokio::select! {
                _ = tokio::time::sleep(Duration::from_secs(10)) => {}
                _ = stopped.changed() => return,
            }
            for pool in [&self.reads, &self.primary] {
                pool.retain(|_, m| m.last_used() < self.idle && m.created.elapsed() < self.lifetime);
            }
        }
    }

    /// (pool, connections open, connections free) for the metrics.
    pub fn usage(&self) -> [(&'static str, usize, usize); 2] {
        [("reads", &self.reads), ("primary", &self.primary)].map(|(name, pool)| {
            let status = pool.status();
            (name, status.size, status.available)
        })
    }

    pub fn close(&self) {
        self.reads.close();
        self.primary.close();
    }
}

fn pool(settings: tokio_postgres::Config, config: &Config) -> Pool {
    let manager =
        Manager::from_config(settings, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let patience = Duration::from_millis(config.database_connect_timeout_ms);
    let built = Pool::builder(manager)
        .max_size(config.database_pool_size.max(1))
        .wait_timeout(Some(patience))
        .create_timeout(Some(patience))
        .recycle_timeout(Some(patience))
        .runtime(Runtime::Tokio1)
        .build();
    // The only error is "time-outs without a runtime".
    built.unwrap_or_else(|error| unreachable!("{error}"))
}

/// A pooled connection. It goes back to the pool only between statements and outside transactions: a request that was
/// cut off in the middle leaves a connection in a state nobody knows, and that one is closed.
pub struct Lease {
    object: Option<Object>,
    clean: bool,
    /// The shard's leave to have it; given back with it.
    pass: Option<OwnedSemaphorePermit>,
}

impl Lease {
    fn new(object: Object) -> Self {
        Self { object: Some(object), clean: true, pass: None }
    }

    pub fn with(mut self, pass: OwnedSemaphorePermit) -> Self {
        self.pass = Some(pass);
        self
    }

    fn object(&self) -> &Object {
        match &self.object {
            Some(object) => object,
            // Only drop takes it.
            None => unreachable!("a lease is used after it was dropped"),
        }
    }

    /// Runs one statement that takes effect, if at all, with a later COMMIT or not at all.
    pub async fn query(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DbError> {
        self.run(sql, params).await.map_err(DbError::nothing_done)
    }

    /// Runs one change. Outside a transaction it takes effect with the statement, so a lost answer leaves it open.
    pub async fn change(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DbError> {
        let autocommit = self.clean;
        let done = self.run(sql, params).await;
        if autocommit { done } else { done.map_err(DbError::nothing_done) }
    }

    /// Prepared once a connection.
    async fn run(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DbError> {
        let was_clean = std::mem::replace(&mut self.clean, false);
        let object = self.object();
        let work = async {
            let statement = object.prepare_cached(sql).await.map_err(|e| DbError::from(e).nothing_done())?;
            Ok::<_, DbError>(object.query(&statement, params).await?)
        };
        let rows = in_time(work).await??;
        self.clean = was_clean;
        Ok(rows)
    }

    pub async fn query_opt(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, DbError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// [`Lease::change`] of at most one row.
    pub async fn change_opt(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, DbError> {
        Ok(self.change(sql, params).await?.into_iter().next())
    }

    /// In a transaction: the same statement for many rows, pipelined: one round trip, and each execution is routed by its own parameters.
    pub async fn query_each(
        &mut self,
        sql: &str,
        rows: &[Vec<&(dyn ToSql + Sync)>],
    ) -> Result<Vec<Vec<Row>>, DbError> {
        let was_clean = std::mem::replace(&mut self.clean, false);
        let object = self.object();
        let work = async {
            let statement = object.prepare_cached(sql).await?;
            futures_util::future::try_join_all(rows.iter().map(|params| object.query(&statement, params)))
                .await
        };
        let answers = in_time(work).await.and_then(|done| Ok(done?)).map_err(DbError::nothing_done)?;
        self.clean = was_clean;
        Ok(answers)
    }

    pub async fn begin(&mut self) -> Result<(), DbError> {
        self.clean = false;
        in_time(self.object().batch_execute("BEGIN"))
            .await
            .and_then(|done| Ok(done?))
            .map_err(DbError::nothing_done)
    }

    pub async fn commit(&mut self) -> Result<(), DbError> {
        in_time(self.object().batch_execute("COMMIT")).await??;
        self.clean = true;
        Ok(())
    }

    pub async fn rollback(&mut self) -> Result<(), DbError> {
        let done = in_time(self.object().batch_execute("ROLLBACK")).await.and_then(|done| Ok(done?));
        done.map_err(DbError::nothing_done)?;
        self.clean = true;
        Ok(())
    }

    /// For code that brings its own statements (cache warming).
    pub fn client(&self) -> &tokio_postgres::Client {
        self.object()
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, DbError> {
    tokio::time::timeout(Duration::from_millis(limits::STATEMENT_TIMEOUT_MS), work)
        .await
        .map_err(|_| DbError::OutcomeUnknown("no answer in time".into()))
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.clean
            && let Some(object) = self.object.take()
        {
            drop(Object::take(object));
        }
    }
}
