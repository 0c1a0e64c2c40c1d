//! The proxy's own errors and how a client sees them.
//!
//! Whatever a server said is forwarded untouched and never becomes a `ProxyError`. Ours carry ROUTINE
//! `shard_proxy`, so that nobody takes a refusal of ours for one of PostgreSQL's (H37).

use std::fmt;

use crate::route::plan::Refusal;
use crate::wire::build;

/// ROUTINE field of every error we make.
pub const ROUTINE: &str = "shard_proxy";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    /// The connection is closed after this error.
    Fatal,
}

/// May the caller run the statement again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// Nothing reached a server.
    Safe,
    /// It may have been executed.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct ProxyError {
    pub severity: Severity,
    pub sqlstate: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// What was being done, as field 'W' of PostgreSQL's errors says it.
    pub context: Option<String>,
    /// Character position in the statement, from 1.
    pub position: Option<u32>,
    pub retry: Retry,
    pub routine: &'static str,
    /// What it is about, where PostgreSQL says so.
    pub column: Option<Box<Column>>,
}

/// A column, as errors name it.
#[derive(Debug, Clone)]
pub struct Column {
    pub schema: String,
    pub table: String,
    pub name: String,
}

impl ProxyError {
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            severity: Severity::Error,
            sqlstate,
            message,
            detail: None,
            hint: None,
            context: None,
            position: None,
            retry: Retry::Never,
            routine: ROUTINE,
            column: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }

    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// A message that breaks the protocol; the connection cannot go on.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::new("08P01", message).fatal()
    }

    pub fn not_supported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new("0A000", message).hint(hint)
    }

    /// The statement was sent and the server's answer will never come.
    pub fn outcome_unknown(shard: u16) -> Self {
        Self::new(
            "08007",
            format!("connection to shard {shard} was lost while a statement was running: outcome unknown"),
        )
        .detail("The statement was sent to the server; it may or may not have taken effect.")
        .hint("Check whether it took effect before running it again.")
        .retry(Retry::Unknown)
    }

    /// Nothing was sent: no server may take the statement now.
    pub fn no_primary(shard: u16, why: &str) -> Self {
        Self::new("57P03", format!("shard {shard} has no reachable primary: {why}"))
            .hint("The statement was not sent; run it again.")
            .retry(Retry::Safe)
    }

    pub fn pool_timeout(shard: u16, waited_ms: u128, size: usize) -> Self {
        Self::new("53300", format!("no connection to shard {shard} became free within {waited_ms} ms"))
            .detail(format!("All {size} connections of the pool are in use."))
            .hint("Shorten transactions, or raise primary_max / replica_max in [pool].")
            .retry(Retry::Safe)
    }

    /// Before the commit point.
    pub fn participant_lost(shard: u16) -> Self {
        Self::new(
            "08006",
            format!("connection to shard {shard} was lost: the transaction is rolled back on all shards"),
        )
        .hint("Run the transaction again.")
        .retry(Retry::Safe)
    }

    /// Nobody will read it; it ends what was done for the client.
    pub fn client_gone() -> Self {
        Self::new("08006", "the client's connection ended")
    }

    pub fn failed_transaction() -> Self {
        Self::new("25P02", "current transaction is aborted, commands ignored until end of transaction block")
    }

    /// What PostgreSQL says (plancache.c) when a prepared statement's result is no longer what it was. Said in its name:
    /// drivers prepare the statement again when they see this state and routine.
    pub fn cached_plan_changed() -> Self {
        let routine = "RevalidateCachedQuery";
        Self { routine, ..Self::new("0A000", "cached plan must not change result type") }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("XX000", message)
            .hint("This is a defect of the proxy; please report it with the statement.")
    }

    /// Appends the ErrorResponse.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = build::begin(out, b'E');
        let severity = match self.severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        let field = |out: &mut Vec<u8>, tag: u8, text: &str| {
            out.push(tag);
            build::cstr(out, text.as_bytes());
        };
        field(out, b'S', severity);
        field(out, b'V', severity);
        field(out, b'C', self.sqlstate);
        field(out, b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(out, b'D', detail);
        }
        if let Some(hint) = &self.hint {
            field(out, b'H', hint);
        }
        if let Some(context) = &self.context {
            field(out, b'W', context);
        }
        if let Some(position) = self.position {
            field(out, b'P', &position.to_string());
        }
        if let Some(column) = &self.column {
            field(out, b's', &column.schema);
            field(out, b't', &column.table);
            field(out, b'c', &column.name);
        }
        field(out, b'R', self.routine);
        out.push(0);
        build::end(out, start);
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sqlstate, self.message)
    }
}

impl std::error::Error for ProxyError {}

impl From<&Refusal> for ProxyError {
    fn from(refusal: &Refusal) -> Self {
        Self {
            severity: Severity::Error,
            sqlstate: refusal.sqlstate,
            message: refusal.message.clone(),
            detail: refusal.detail.clone(),
            hint: (!refusal.hint.is_empty()).then(|| refusal.hint.clone()),
            context: None,
            position: refusal.position,
            retry: Retry::Never,
            routine: ROUTINE,
            column: None,
        }
    }
}
