//! What the analyser concludes about a statement, and what the session does with it.

use std::sync::Arc;

/// The conclusion about ONE statement. Holds no literal and no parameter value: values are looked up at
/// execution by `resolve`, so one plan serves every statement of the same shape.
#[derive(Debug)]
pub struct Plan {
    pub route: Route,
    pub access: Access,
    /// What the statement does to the session or the transaction, beside running.
    pub effect: Effect,
    /// The proof, one line a step, as `EXPLAIN ROUTE` prints it.
    pub evidence: Vec<String>,
    /// Of `Route::Key`: what is done when its keys turn out to be on several shards. `None`: refused.
    pub straddle: Option<How>,
    /// Highest `$n` used.
    pub parameters: u16,
    /// The relations that it uses, those within views too.
    pub tables: Tables,
    /// What else in the same transaction the catalog is not true for any more, once this has run (H39).
    pub changes: Option<Changes>,
    /// What stands around a query that may be for several shards.
    pub around: Around,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    Nothing,
    /// `text`: in lines of text, to which one can be added.
    Explain {
        analyze: bool,
        text: bool,
    },
    /// COPY TO STDOUT; `header`: its first line is not a row.
    CopyOut {
        header: bool,
    },
    /// DECLARE of a cursor.
    Cursor,
}

#[derive(Debug, Default)]
pub struct Tables {
    /// Without their schemas: a new table may hide one of another schema.
    pub names: Box<[String]>,
    /// One of them is sharded or a reference table.
    pub keyed: bool,
}

/// Relations whose definition, as the catalog has it, a definition changes.
#[derive(Debug, PartialEq, Eq)]
pub enum Changes {
    Relations(Box<[String]>),
    /// Not told by its text.
    Unknown,
}

#[derive(Debug)]
pub enum Route {
    /// The session answers or handles it alone (see `Effect`); no shard is needed to know where.
    Session,
    /// Every sharded table is bound to the key by one of these values. They must all fall on one shard.
    Key(Box<[KeyRef]>),
    /// Touches reference tables or no table at all: any one shard answers it. Within a transaction the shard
    /// already enlisted is preferred.
    Any,
    /// Plain and system tables: the default shard.
    Default,
    /// DDL, or a write to a reference table: runs on every shard, atomically.
    All(Broadcast),
    /// `INSERT ... VALUES` of several rows whose keys may fall on several shards.
    SplitInsert(Arc<SplitInsert>),
    /// `COPY sharded FROM STDIN`: rows are dealt out by the key column.
    CopyIn(Arc<CopyIn>),
    /// Concerns the rows of every shard.
    Scatter(How),
    /// Not proved; never guessed.
    Refuse(Refusal),
}

/// How a statement over several shards gets the answer that one database would give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Proved: the answer is the answers of the shards, put one after the other. Each runs the statement as it is.
    Each,
    /// The rows it reads are brought to one server, and PostgreSQL answers there. Reads only.
    Gather,
    /// A write: PostgreSQL runs it on copies of the rows, and what it did to them is done where they are.
    Apply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broadcast {
    Ddl,
    /// DDL that cannot run in a transaction block (CREATE INDEX CONCURRENTLY, VACUUM, ...).
    DdlAutocommit,
    ReferenceWrite,
}

/// Where a key value is found at execution time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    pub key_type: shard_config::KeyType,
    pub place: KeyPlace,
    /// The key array of a registered function: straddling is SP001 (the caller splits again by the new map, H31),
    /// and a NULL element is refused.
    pub batch: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// n-th literal that the lexer found in this statement, cut or not.
    Literal(u16),
    /// `$n`, 0-based.
    Parameter(u16),
    /// `$n` (0-based) is an array of keys.
    ParameterArray(u16),
    /// n-th literal is an array constant ('{...}').
    LiteralArray(u16),
    /// `IN (...)` and the like: the row may have any of these keys; all must be on one shard.
    OneOf(Box<[KeyPlace]>),
    /// NULL: no row can match; an INSERT of it is the server's error to raise.
    Null,
    /// Any one key: stands for a value while it is proved that a statement does for each key what it does for all.
    /// Never in a plan.
    Symbol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Provably changes nothing: a replica may serve it.
    Read,
    /// Writes, locks, or calls something that may.
    Write,
}

/// A multi-row INSERT cut at its VALUES rows. Spans are byte ranges of the statement's text.
#[derive(Debug)]
pub struct SplitInsert {
    /// Text before the first row, e.g. `INSERT INTO t (a, b) VALUES `.
    pub head: std::ops::Range<u32>,
    /// Text after the last row (RETURNING, ON CONFLICT ...).
    pub tail: std::ops::Range<u32>,
    pub rows: Box<[SplitRow]>,
    pub returning: bool,
    pub draws: Option<Draws>,
}

/// Columns of a split INSERT whose values come from sequences: drawn for all shards on the default shard (H26), and
/// put behind the values of each row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// Text in place of `SplitInsert::head`, which names the columns.
    pub head: String,
    /// SQL that draws one value, for each of the columns.
    pub values: Vec<String>,
}

#[derive(Debug)]
pub struct SplitRow {
    pub text: std::ops::Range<u32>,
    pub key: KeyRef,
    /// `$n` used in this row (0-based) with the span of each occurrence, in text order.
    pub parameters: Box<[(u16, std::ops::Range<u32>)]>,
}

#[derive(Debug)]
pub struct CopyIn {
    pub table: (String, String),
    pub rows: CopyRows,
    pub format: CopyFormat,
}

/// Where the rows of a COPY go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyRows {
    /// To the shard of the key, which is the column at this position among the copied ones.
    ByKey { position: usize, key_type: shard_config::KeyType },
    /// Each of them to every shard.
    Everywhere,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFormat {
    Text { delimiter: u8, null: Vec<u8> },
    Csv { delimiter: u8, quote: u8, escape: u8, null: Vec<u8>, header: bool },
    Binary,
}

/// Why a statement is not run. Rendered with ROUTINE 'shard_proxy' so that nobody takes it for a server's own
/// error (H37).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub sqlstate: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: String,
    /// Field 'P' of the error: 1-based, in characters, within the statement's own text. For errors that PostgreSQL
    /// itself would report with a position (syntax, unknown relation).
    pub position: Option<u32>,
}

impl Refusal {
    pub fn new(sqlstate: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), detail: None, hint: hint.into(), position: None }
    }

    /// 0A000: correct SQL that this proxy does not run (yet).
    pub fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new("0A000", message, hint)
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn at(mut self, position: Option<u32>) -> Self {
        self.position = position;
        self
    }
}

/// Effects on the session's own state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    None,
    Begin {
        /// What it says of it.
        read_only: Option<bool>,
    },
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    /// SAVEPOINT, RELEASE, ROLLBACK TO: goes to every enlisted shard.
    Savepoint(SavepointVerb, String),
    /// `SET [SESSION|LOCAL] name = value`; `value` is the text to replay, `None` for DEFAULT / RESET.
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    /// `SELECT set_config(...)` by itself: a SET that is answered with a row, and whose value is not SQL text.
    SetConfig {
        name: String,
        value: ConfigValue,
        local: bool,
    },
    ResetAll,
    /// SET TRANSACTION / SET SESSION CHARACTERISTICS: passed to the servers of the transaction.
    SetTransaction {
        read_only: Option<bool>,
    },
    /// `SHOW shard.map` and the like, answered by the proxy; the rest of the text in lower case.
    ShowProxy(String),
    ExplainRoute(String),
    Discard(String),
    Deallocate(Option<String>),
    /// `PREPARE name [(types)] AS query`: becomes one of the session's prepared statements.
    SqlPrepare(String),
    /// `EXECUTE name [(arguments)]`, also within EXPLAIN and CREATE TABLE AS; `default_shard`: its arguments must be
    /// computed there.
    SqlExecute {
        name: String,
        default_shard: bool,
    },
    /// Creates state that lives in one server connection: temp table, LISTEN, session advisory lock, WITH HOLD.
    Pin(&'static str),
    /// DECLARE of a cursor that ends with its transaction.
    Declare(String),
    /// FETCH, MOVE or CLOSE: for the server that has the cursor; `None` is CLOSE ALL.
    Cursor(Option<String>),
    /// currval() and lastval(): what the same session has drawn before.
    ReadsSequence,
    /// setval().
    SetsSequence,
    /// What it is for ends with its transaction, so that PostgreSQL wants a block around it.
    NeedsBlock(&'static str),
    /// PREPARE TRANSACTION and other statements the proxy keeps for itself are `Route::Refuse`.
    CreatesObject,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigValue {
    Text(String),
    /// `$n`, 0-based: known when it is bound.
    Parameter(u16),
}

impl Effect {
    /// The setting that SET, RESET or set_config() changes.
    pub fn setting(&self) -> Option<&str> {
        match self {
            Self::Set { name, .. } | Self::SetConfig { name, .. } => Some(name),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavepointVerb {
    Savepoint,
    Release,
    RollbackTo,
}
