//! A query over several shards that PostgreSQL answers on one server (`How::Gather`), a connection of its own to the
//! default shard.
//!
//! If the query can be cut (`SplitPlan`), the shards' own answers or partial aggregates are streamed there, in binary,
//! into a temporary table, and the rest of the query runs over it. If not, the rows of every sharded table that it reads
//! are, and the client's text runs with those tables in the place of the real ones. Either way PostgreSQL has described
//! the client's own text first: errors, parameters, names and types are those of one server. The temporary tables end
//! with the transaction that made them, whatever happens.
//!
//! Outside of a transaction each shard is read in one snapshot: with one statement, or all tables together (REPEATABLE
//! READ). There is no
//! snapshot over several shards; a transaction at READ COMMITTED sees each table as of its own moment.

use super::exchange::{self, Reply};
use super::last;
use super::limits::GATHER_ANALYZE_ROWS;
use super::pour::{Pour, binary_results, bind};
use super::{Failure, carry, scatter};
use crate::error::ProxyError;
use crate::oids::FIRST_USER_OID;
use crate::route::plan::Around;
use crate::route::{GatherPlan, GatherTable, Last, SplitPlan, Spread, is_exact_key, temporary_name};
use crate::session::multi_hook::{MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

const SNAPSHOT: &[u8] = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Of columns that could not be carried over: a collation under which equal texts differ, a row type.
const ODD_COLUMNS: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a \
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation \
    WHERE a.attrelid = 'pg_temp.shard_gather_0'::pg_catalog.regclass AND a.attnum > 0 \
    AND (t.typtype IN ('c', 'p') OR NOT c.collisdeterministic";
const NOW: &str =
    "SELECT pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')";

/// Returns the CommandComplete that is due, or PortalSuspended.
pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
) -> Result<Vec<u8>, Failure> {
    if !p.client_encoding_is_utf8() {
        return Err(ProxyError::not_supported(
            "a query over several shards needs client_encoding UTF8",
            "SET client_encoding = 'UTF8'.",
        )
        .into());
    }
    if last::goes_on(statement) {
        p.may_keep()?;
    }
    let plan = p.gather_plan(statement.text()).map_err(|refusal| ProxyError::from(&refusal))?;
    let alone = !p.in_block() && p.indices().is_empty() && !last::goes_on(statement);
    refuse(p, &plan, alone)?;
    let mut sources = Vec::new();
    for shard in shards {
        sources.push(p.enlist(*shard, !alone).await?);
    }
    // What the transaction has done to other tables is seen by its own connection only.
    let default = match alone {
        true => None,
        false => Some(p.enlist(p.default_shard(), true).await?),
    };
    let scratch = p.scratch().await?;
    let mut gathering =
        Gathering { plan, text: String::new(), statement, sources: &sources, default, scratch };
    let result = gathering.answer(p).await;
    match result {
        // It is kept for the rows that are left.
        Ok(last::Answer { complete, kept: true }) => return Ok(complete),
        _ => give_back(p, scratch).await,
    }
    if alone {
        scatter::end_reading(p).await;
    }
    result.map(|answer| answer.complete)
}

/// Also what failed half way is ready again, or it is closed.
pub(super) async fn give_back(p: &mut Participants<'_>, scratch: usize) {
    let server = p.server(scratch);
    if server.dirty || server.unsynced || exchange::ask(p, scratch, "ROLLBACK").await.is_err() {
        p.discard(scratch);
    }
    p.give_back(scratch);
}

fn refuse(p: &Participants<'_>, plan: &GatherPlan, alone: bool) -> Result<(), Failure> {
    let (what, hint) = if plan.system && !alone {
        ("and system tables within a transaction", "Run it outside of the transaction, or as two queries.")
    } else if plan.clock_elsewhere && !alone {
        (
            "that uses the time in a view or as CURRENT_TIME within a transaction",
            "Pass the time as a parameter.",
        )
    } else if p.schema_changed() {
        // The connection that answers would wait for the locks of our own transaction, and nobody would see it.
        ("after DDL, LOCK or TRUNCATE in the same transaction", "COMMIT first.")
    } else {
        return Ok(());
    };
    Err(ProxyError::not_supported(format!("a query over several shards {what}"), hint).into())
}

/// A view reads its tables with its owner's rights, the gathering reads them with the session's: with row-level security
/// those may be other rows.
pub(super) async fn check_views(
    p: &mut Participants<'_>,
    scratch: usize,
    tables: &[GatherTable],
) -> Result<(), Failure> {
    let viewed: Vec<String> = tables
        .iter()
        .filter(|table| table.viewed)
        .map(|table| format!("'{}'::pg_catalog.regclass", quoted(table).replace('\'', "''")))
        .collect();
    if viewed.is_empty() {
        return Ok(());
    }
    let guarded = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class WHERE relrowsecurity AND oid IN ({})",
        viewed.join(", ")
    );
    let reply = exchange::ask(p, scratch, &guarded).await?.ok()?;
    if reply.value().as_deref() == Some("0") {
        return Ok(());
    }
    Err(ProxyError::not_supported(
        "a query over several shards through a view of a table with row-level security",
        "Query the table itself, or bind the view's key.",
    )
    .into())
}

struct Gathering<'a> {
    plan: GatherPlan,
    /// The client's, with the transaction's time in the place of `now()`.
    text: String,
    statement: &'a MultiStatement,
    /// Of the shards that are read.
    sources: &'a [usize],
    /// The transaction's connection to the default shard, from which all other tables are copied, too.
    default: Option<usize>,
    scratch: usize,
}

impl Gathering<'_> {
    async fn answer(&mut self, p: &mut Participants<'_>) -> Result<last::Answer, Failure> {
        self.text = String::from_utf8_lossy(self.statement.text()).into_owned();
        let begin = self.begin(p);
        exchange::ask(p, self.scratch, &begin).await?.ok()?;
        check_views(p, self.scratch, &self.plan.tables).await?;
        let described = self.describe(p).await?;
        let oids = parameter_oids(&described)?;
        self.set_time(p).await?;
        let portable = oids.chunks_exact(4).all(|oid| number(oid) < FIRST_USER_OID);
        if let Some(split) = self.plan.split.take().filter(|_| portable) {
            if let Some(query) = self.split(p, &split, &described, &oids).await? {
                let (from, to) = (self.plan.query.start, self.plan.query.end);
                let around = (self.text.get(..from), self.text.get(to..));
                let (Some(before), Some(behind)) = around else { return Err(no_text()) };
                // COPY's header and FETCH take the names from the query.
                let names = names_of(&described);
                let text = match self.statement.routed.plan.around {
                    Around::CopyOut { .. } | Around::Cursor => {
                        format!("{before} SELECT * FROM ({query}) AS parts ({names}) {behind}")
                    }
                    _ => format!("{before} {query} {behind}"),
                };
                return last::run(p, self.statement, self.scratch, &text, described.description, &oids).await;
            }
            exchange::ask(p, self.scratch, &format!("ROLLBACK;{begin}")).await?.ok()?;
        }
        if self.default.is_none() {
            for at in self.sources {
                p.simple(*at, SNAPSHOT).await?;
            }
        }
        self.tables(p, portable.then_some(&oids)).await?;
        let text = if self.default.is_some() { &self.plan.text_of_all } else { &self.plan.text };
        last::run(p, self.statement, self.scratch, text, described.description, &oids).await
    }

    /// Temporary tables are made even for a session whose transactions only read. A table that the session's own
    /// transaction has locked is not waited for.
    fn begin(&self, p: &Participants<'_>) -> String {
        let mut begin = String::from("BEGIN READ WRITE");
        for text in p.local_settings() {
            begin.push_str(&format!(";{text}"));
        }
        if self.default.is_some() {
            begin.push_str(";SET LOCAL lock_timeout = '2s'");
        }
        begin
    }

    /// `now()` is the time of the session's own transaction, the same for all shards.
    async fn set_time(&mut self, p: &mut Participants<'_>) -> Result<(), Failure> {
        if !self.plan.clock || self.plan.clock_elsewhere {
            return Ok(());
        }
        let clock = self.default.unwrap_or(self.scratch);
        let time = exchange::ask(p, clock, NOW).await?.ok()?.value();
        let time = time.ok_or_else(|| ProxyError::internal("a server did not say the time"))?;
        let text = self.plan.at_time(&self.text, &time);
        match p.gather_plan(text.as_bytes()) {
            Ok(plan) => (self.plan, self.text) = (plan, text),
            // The constant cannot stand there (FROM now()): the one server's clock is asked.
            Err(_) if self.default.is_none() => {}
            Err(refusal) => return Err(ProxyError::from(&refusal).into()),
        }
        Ok(())
    }

    /// The client's own query, looked at by PostgreSQL on the default shard: its errors, parameters and columns.
    async fn describe(&self, p: &mut Participants<'_>) -> Result<Reply, Failure> {
        let server = p.server(self.scratch);
        server.unnamed = 0;
        let (oids, tail) = protocol(self.statement);
        let within = self.statement.routed.plan.around != Around::Nothing;
        let query = self.text.get(self.plan.query.clone()).ok_or_else(no_text)?;
        build::parse(&mut server.out, b"", query.as_bytes(), oids);
        build::named(&mut server.out, b'D', b'S', b"");
        if within {
            bind(&mut server.out, b"", &binary_results(tail));
        } else {
            bind(&mut server.out, b"", tail);
        }
        build::named(&mut server.out, b'D', b'P', b"");
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        exchange::gather(p, self.scratch).await?.ok()
    }

    /// Brings the shards' parts of the answer together; returns the query that makes the answer of them. `None`: with
    /// these types it would not be exact.
    async fn split(
        &self,
        p: &mut Participants<'_>,
        split: &SplitPlan,
        described: &Reply,
        oids: &[u8],
    ) -> Result<Option<String>, Failure> {
        let mut parts = Vec::new();
        for at in self.sources {
            let shard = p.server(*at).shard;
            match p.hidden_text(shard, split.shard.as_bytes(), true) {
                Ok(text) => parts.push((*at, text.unwrap_or_else(|| split.shard.clone()))),
                // Rows on their way cannot be left out of the parts, but of the tables.
                Err(_) => return Ok(None),
            }
        }
        let (_, tail) = protocol(self.statement);
        let table = format!("pg_temp.{}", temporary_name(0));
        let columns = columns_of(described);
        let (query, names) = match &split.last {
            Last::Rows(rows) => {
                if rows.distinct && !columns.iter().all(|(oid, typmod)| is_exact_key(*oid, *typmod)) {
                    return Ok(None);
                }
                let names = format!(" ({})", rows.columns(columns.len()));
                (rows.last(&table, columns.len()), names)
            }
            Last::Groups(groups) => {
                let server = p.server(self.scratch);
                build::parse(&mut server.out, b"", groups.probe.as_bytes(), oids);
                build::named(&mut server.out, b'D', b'S', b"");
                server.out.extend_from_slice(build::SYNC);
                p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
                let Ok(probed) = exchange::gather(p, self.scratch).await?.ok() else { return Ok(None) };
                let Some(query) = groups.last(&table, &columns_of(&probed)) else { return Ok(None) };
                (query, String::new())
            }
        };
        let create = format!(
            "CREATE TEMP TABLE {}{names} ON COMMIT DROP AS {} WITH NO DATA",
            temporary_name(0),
            split.shard
        );
        let server = p.server(self.scratch);
        build::parse(&mut server.out, b"", create.as_bytes(), oids);
        super::commit::bind_execute(&mut server.out, &binary_results(tail), false);
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        if exchange::gather(p, self.scratch).await?.ok().is_err() {
            return Ok(None);
        }
        let numbered = if p.has_other_numbers() { carry::NUMBERED } else { "false" };
        let odd = format!("{ODD_COLUMNS} OR {numbered})");
        if exchange::ask(p, self.scratch, &odd).await?.ok()?.value().as_deref() != Some("0") {
            return Ok(None);
        }
        let mut bytes = 0;
        let pour = self.pour(&table, true);
        pour.run(p, &parts, (oids, tail), &mut bytes).await?;
        Ok(Some(query))
    }

    fn pour(&self, temporary: &str, alien: bool) -> Pour {
        let into = format!("COPY {temporary} FROM STDIN (FORMAT binary)");
        Pour { scratch: self.scratch, into, own: self.default.is_none(), alien, locks: false }
    }

    /// Brings the tables' rows together.
    async fn tables(&self, p: &mut Participants<'_>, oids: Option<&Vec<u8>>) -> Result<(), Failure> {
        let keys = if self.plan.grouped { " INCLUDING INDEXES" } else { "" };
        let mut prepare = String::new();
        for (n, table) in self.plan.tables.iter().enumerate() {
            let name = quoted(table);
            prepare.push_str(&format!(
                "CREATE TEMP TABLE {} (LIKE {name}{keys}) ON COMMIT DROP;",
                temporary_name(n)
            ));
        }
        exchange::ask(p, self.scratch, &prepare).await?.ok()?;
        let (_, tail) = protocol(self.statement);
        let mut bytes = 0;
        for (n, table) in self.plan.tables.iter().enumerate() {
            let from = match (table.kind, self.default) {
                (Spread::Shards, _) => self.sources,
                (Spread::Default, Some(default)) => &[default][..],
                (Spread::Default, None) => continue,
            };
            let temporary = format!("pg_temp.{}", temporary_name(n));
            let carried = carry::as_text(p, self.scratch, &temporary).await?;
            let list = carried.as_ref().map_or("*".to_owned(), |carried| carried.list(None));
            let queries: Vec<_> =
                from.iter().map(|at| (*at, select_of(p, *at, table, &list, oids.is_some()))).collect();
            let values: (&[u8], &[u8]) = match oids.filter(|_| table.filter.is_some()) {
                Some(oids) => (oids, tail),
                None => (b"", &[0; 6]),
            };
            let pour = self.pour(&temporary, false);
            let rows = pour.run(p, &queries, values, &mut bytes).await?;
            if let Some(carried) = carried {
                exchange::ask(p, self.scratch, &carried.back).await?.ok()?;
            }
            if rows >= GATHER_ANALYZE_ROWS {
                let analyze = format!("ANALYZE {temporary}");
                exchange::ask(p, self.scratch, &analyze).await?.ok()?;
            }
        }
        Ok(())
    }
}

/// Declared parameter types, and everything behind the names in Bind.
pub(super) fn protocol(statement: &MultiStatement) -> (&[u8], &[u8]) {
    match &statement.protocol {
        Protocol::Simple => (b"", &[0; 6]),
        Protocol::Extended { entry, bind, .. } => {
            (&entry.oids, read::bind(bind).map_or(&[0; 6][..], |b| b.tail))
        }
    }
}

fn no_text() -> Failure {
    ProxyError::internal("a query's place in its text was lost").into()
}

fn quoted(table: &GatherTable) -> String {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}

/// What one server is asked for a table's rows: `list` of all that it has and may show.
pub(super) fn select_of(
    p: &mut Participants<'_>,
    at: usize,
    table: &GatherTable,
    list: &str,
    filtered: bool,
) -> String {
    let only = if table.only { "ONLY " } else { "" };
    let name = quoted(table);
    let shard = p.server(at).shard;
    let shown = p.shown(shard, &table.schema, &table.name);
    match (table.filter.as_ref().filter(|_| filtered), shown) {
        (None, None) => format!("SELECT {list} FROM {only}{name}"),
        (None, Some(shown)) => format!("SELECT {list} FROM {only}{name} WHERE {shown}"),
        (Some(filter), shown) => {
            let alias = filter.alias.replace('"', "\"\"");
            let shown = shown.map_or(String::new(), |shown| format!(" AND {shown}"));
            // The condition may end in a comment.
            format!("SELECT {list} FROM {only}{name} AS \"{alias}\" WHERE ({}\n){shown}", filter.condition)
        }
    }
}

pub(super) fn parameter_oids(described: &Reply) -> Result<Vec<u8>, Failure> {
    let message = described
        .parameters
        .as_ref()
        .ok_or_else(|| ProxyError::internal("the server described no parameters"))?;
    let mut reader = read::body(message);
    let count = reader.u16().unwrap_or(0);
    Ok(reader.bytes(usize::from(count) * 4).unwrap_or_default().to_vec())
}

/// Type OIDs and typmods of a RowDescription.
fn columns_of(described: &Reply) -> Vec<(u32, i32)> {
    let Some(message) = described.description.as_ref().filter(|message| message[0] == b'T') else {
        return Vec::new();
    };
    let mut reader = read::body(message);
    let count = reader.u16().unwrap_or(0);
    let column = |_| {
        reader.cstr()?;
        reader.bytes(6)?;
        let oid = number(reader.bytes(4)?);
        reader.u16()?;
        let typmod = reader.i32()?;
        reader.u16()?;
        Some((oid, typmod))
    };
    (0..count).map_while(column).collect()
}

/// A RowDescription's names, as a list of SQL identifiers.
fn names_of(described: &Reply) -> String {
    let Some(message) = described.description.as_ref().filter(|message| message[0] == b'T') else {
        return String::new();
    };
    let mut reader = read::body(message);
    let count = reader.u16().unwrap_or(0);
    let name = |_| {
        let name = String::from_utf8_lossy(reader.cstr()?).replace('"', "\"\"");
        reader.bytes(18)?;
        Some(format!("\"{name}\""))
    };
    (0..count).map_while(name).collect::<Vec<_>>().join(", ")
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(u32::MAX, u32::from_be_bytes)
}
