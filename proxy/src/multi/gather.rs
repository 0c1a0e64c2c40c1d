//! A query over several shards that PostgreSQL answers on one server (`How::Gather`).
//!
//! The rows of every sharded table that it reads are streamed, in binary, from the shards into temporary tables of a
//! connection of its own to the default shard, and the client's text runs there with those tables in the place of the
//! real ones. The temporary tables end with the transaction that made them, whatever happens.
//!
//! Outside of a transaction each shard is read in one snapshot, all tables together (REPEATABLE READ). There is no
//! snapshot over several shards; a transaction at READ COMMITTED sees each table as of its own moment.

use super::exchange::{self, Reply, gather};
use super::limits::{GATHER, GATHER_ANALYZE_ROWS, GATHER_CHUNK};
use super::scatter::{client_gone, drain};
use super::{Failure, commit};
use crate::error::ProxyError;
use crate::route::{GatherPlan, GatherTable, Spread, temporary_name};
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

/// `PGCOPY\n\377\r\n\0`, no flags, no extension (src/backend/commands/copyto.c).
const COPY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TAIL: &[u8] = &[0xff, 0xff];
const SNAPSHOT: &[u8] = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// OIDs below are the same on every shard (FirstNormalObjectId in src/include/access/transam.h).
const FIRST_USER_OID: u32 = 16_384;

/// Returns the CommandComplete that is due.
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
    let plan = p.gather_plan(statement.text()).map_err(|refusal| ProxyError::from(&refusal))?;
    let alone = !p.in_block() && p.indices().is_empty();
    if plan.system && !alone {
        return Err(ProxyError::not_supported(
            "a query over several shards and system tables within a transaction",
            "Run it outside of the transaction, or as two queries.",
        )
        .into());
    }
    if plan.clock && !alone {
        return Err(ProxyError::not_supported(
            "a query over several shards that uses now() within a transaction",
            "Pass the time as a parameter.",
        )
        .into());
    }
    if p.schema_changed() {
        // The connection that answers would wait for the locks of our own transaction, and nobody would see it.
        return Err(ProxyError::not_supported(
            "a query over several shards after DDL, LOCK or TRUNCATE in the same transaction",
            "COMMIT first.",
        )
        .into());
    }
    let mut sources = Vec::new();
    for shard in shards {
        let at = p.enlist(*shard, !alone).await?;
        if alone {
            p.simple(at, SNAPSHOT).await?;
        }
        sources.push(at);
    }
    // What the transaction has done to other tables is seen by its own connection only.
    let default = match alone {
        true => None,
        false => Some(p.enlist(p.default_shard(), true).await?),
    };
    let scratch = p.scratch().await?;
    let gathering = Gathering { plan: &plan, statement, sources: &sources, default, scratch };
    let result = gathering.answer(p).await;
    // Also what failed half way is ready again, or it is closed.
    if exchange_ready(p, scratch) {
        if exchange::ask(p, scratch, "ROLLBACK").await.is_err() {
            p.discard(scratch);
        }
    } else {
        p.discard(scratch);
    }
    p.give_back(scratch);
    if alone {
        super::scatter::end_reading(p).await;
    }
    result
}

fn exchange_ready(p: &mut Participants<'_>, at: usize) -> bool {
    let server = p.server(at);
    !server.dirty && !server.unsynced
}

struct Gathering<'a> {
    plan: &'a GatherPlan,
    statement: &'a MultiStatement,
    /// Of the shards that are read.
    sources: &'a [usize],
    /// The transaction's connection to the default shard, from which all other tables are copied, too.
    default: Option<usize>,
    scratch: usize,
}

impl Gathering<'_> {
    async fn answer(&self, p: &mut Participants<'_>) -> Result<Vec<u8>, Failure> {
        // Temporary tables are made even for a session whose transactions only read. A table that the session's own
        // transaction has locked is not waited for.
        let mut begin = String::from("BEGIN READ WRITE");
        for text in p.local_settings() {
            begin.push_str(&format!(";{text}"));
        }
        if self.default.is_some() {
            begin.push_str(";SET LOCAL lock_timeout = '2s'");
        }
        exchange::ask(p, self.scratch, &begin).await?.ok()?;
        self.check_views(p).await?;
        let described = self.describe(p).await?;
        let oids = parameter_oids(&described)?;
        let filtered = oids.chunks_exact(4).all(|oid| {
            u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]) < FIRST_USER_OID
        });
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
        let mut bytes = 0;
        for (n, table) in self.plan.tables.iter().enumerate() {
            let from = match (table.kind, self.default) {
                (Spread::Shards, _) => self.sources,
                (Spread::Default, Some(default)) => &[default][..],
                (Spread::Default, None) => continue,
            };
            let rows = self.copy(p, n, table, from, filtered.then_some(&oids), &mut bytes).await?;
            if rows >= GATHER_ANALYZE_ROWS {
                let analyze = format!("ANALYZE pg_temp.{}", temporary_name(n));
                exchange::ask(p, self.scratch, &analyze).await?.ok()?;
            }
        }
        self.finish(p, described, &oids).await
    }

    /// A view reads its tables with its owner's rights, the gathering reads them with the session's: with row-level security
    /// those may be other rows.
    async fn check_views(&self, p: &mut Participants<'_>) -> Result<(), Failure> {
        let viewed: Vec<String> = self
            .plan
            .tables
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
        let reply = exchange::ask(p, self.scratch, &guarded).await?.ok()?;
        if reply.value().as_deref() == Some("0") {
            return Ok(());
        }
        Err(ProxyError::not_supported(
            "a query over several shards through a view of a table with row-level security",
            "Query the table itself, or bind the view's key.",
        )
        .into())
    }

    /// The client's own text, looked at by PostgreSQL on the default shard: its errors, parameters and columns.
    async fn describe(&self, p: &mut Participants<'_>) -> Result<Reply, Failure> {
        let server = p.server(self.scratch);
        server.unnamed = 0;
        let (oids, tail) = self.protocol();
        build::parse(&mut server.out, b"", self.statement.text(), oids);
        build::named(&mut server.out, b'D', b'S', b"");
        bind(&mut server.out, tail);
        build::named(&mut server.out, b'D', b'P', b"");
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        gather(p, self.scratch).await?.ok()
    }

    /// Declared parameter types, and everything behind the names in Bind.
    fn protocol(&self) -> (&[u8], &[u8]) {
        match &self.statement.protocol {
            Protocol::Simple => (b"", &[0; 6]),
            Protocol::Extended { entry, bind, .. } => {
                (&entry.oids, read::bind(bind).map_or(&[0; 6][..], |b| b.tail))
            }
        }
    }

    /// Brings one table's rows together; returns how many.
    async fn copy(
        &self,
        p: &mut Participants<'_>,
        n: usize,
        table: &GatherTable,
        from: &[usize],
        oids: Option<&Vec<u8>>,
        bytes: &mut usize,
    ) -> Result<u64, Failure> {
        let into = format!("COPY pg_temp.{} FROM STDIN (FORMAT binary)", temporary_name(n));
        exchange::send(p, self.scratch, into.as_bytes()).await?;
        loop {
            let message = p.receive(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
            match message[0] {
                b'G' => break,
                b'E' => {
                    drain(p, self.scratch).await?;
                    return Err(Failure::Server(message));
                }
                _ => {}
            }
        }
        p.server(self.scratch).unsynced = true;
        let select = select_of(table, oids.is_some());
        for at in from {
            let (_, tail) = self.protocol();
            let server = p.server(*at);
            server.unnamed = 0;
            match oids.filter(|_| table.filter.is_some()) {
                Some(oids) => {
                    build::parse(&mut server.out, b"", select.as_bytes(), oids);
                    bind(&mut server.out, &binary_results(tail));
                }
                None => {
                    build::parse(&mut server.out, b"", select.as_bytes(), b"");
                    bind(&mut server.out, &[0, 0, 0, 0, 0, 1, 0, 1]);
                }
            }
            let start = build::begin(&mut server.out, b'E');
            server.out.extend_from_slice(&[0; 5]);
            build::end(&mut server.out, start);
            server.out.extend_from_slice(build::SYNC);
        }
        let mut result = Ok(());
        for at in from {
            if p.flush(*at).await.is_err() {
                result = Err(Failure::from(exchange::lost(p, *at)));
            }
        }
        let mut chunk = Vec::with_capacity(GATHER_CHUNK + 8192);
        let start = build::begin(&mut chunk, b'd');
        chunk.extend_from_slice(COPY_HEAD);
        build::end(&mut chunk, start);
        p.push(self.scratch, &chunk);
        let mut rows = 0;
        for at in from {
            result = match result {
                Ok(()) => self.pump(p, *at, &mut rows, bytes).await,
                // What was only read is not read to its end for nothing.
                Err(failure) if self.default.is_none() => {
                    p.discard(*at);
                    Err(failure)
                }
                Err(failure) => {
                    drain(p, *at).await.ok();
                    Err(failure)
                }
            };
        }
        result?;
        let out = &mut p.server(self.scratch).out;
        let start = build::begin(out, b'd');
        out.extend_from_slice(COPY_TAIL);
        build::end(out, start);
        out.extend_from_slice(b"c\0\0\0\x04");
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        p.server(self.scratch).unsynced = false;
        gather(p, self.scratch).await?.ok()?;
        Ok(rows)
    }

    /// One shard's rows: a DataRow in binary is a tuple of COPY in binary, byte for byte (src/backend/commands/copyfrom.c
    /// and src/backend/access/common/printtup.c agree on it).
    async fn pump(
        &self,
        p: &mut Participants<'_>,
        at: usize,
        rows: &mut u64,
        bytes: &mut usize,
    ) -> Result<(), Failure> {
        let mut failure = None;
        let mut chunk: Vec<u8> = Vec::with_capacity(GATHER_CHUNK);
        loop {
            let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
            match message[0] {
                b'Z' => break,
                b'E' => {
                    failure.get_or_insert(Failure::Server(message));
                }
                b'D' if failure.is_none() => {
                    *rows += 1;
                    *bytes += message.len();
                    if *bytes > GATHER {
                        if self.default.is_none() {
                            p.discard(at);
                            return Err(too_much());
                        }
                        failure = Some(too_much());
                        continue;
                    }
                    chunk.extend_from_slice(&message[5..]);
                    if chunk.len() >= GATHER_CHUNK {
                        failure = self.send(p, &mut chunk).await.err();
                    }
                }
                b'S' => p.parameter_status(at, &message),
                _ => {}
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => self.send(p, &mut chunk).await,
        }
    }

    async fn send(&self, p: &mut Participants<'_>, chunk: &mut Vec<u8>) -> Result<(), Failure> {
        if !chunk.is_empty() {
            let out = &mut p.server(self.scratch).out;
            let start = build::begin(out, b'd');
            out.append(chunk);
            build::end(out, start);
            p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        }
        // An error (a full disk) shows before the end.
        match p.try_receive(self.scratch).map_err(|_| exchange::lost(p, self.scratch))? {
            Some(message) if message[0] == b'E' => {
                p.discard(self.scratch);
                Err(Failure::Server(message))
            }
            _ => Ok(()),
        }
    }

    /// The client's text over the copies.
    async fn finish(
        &self,
        p: &mut Participants<'_>,
        described: Reply,
        oids: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let text = if self.default.is_some() { &self.plan.text_of_all } else { &self.plan.text };
        let (_, tail) = self.protocol();
        let server = p.server(self.scratch);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", text.as_bytes(), oids);
        commit::bind_execute(&mut server.out, tail, false);
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        let due = match &self.statement.protocol {
            Protocol::Simple => true,
            Protocol::Extended { describe, .. } => *describe,
        };
        // Said with the first row, or at the end: an error comes without it, as from one server.
        let mut description = described.description.filter(|_| due);
        let mut complete = None;
        let mut failure = None;
        loop {
            let message = p.receive(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
            match message[0] {
                b'Z' => break,
                b'E' => {
                    failure.get_or_insert(Failure::Server(self.without_position(&message)));
                }
                _ if failure.is_some() => {}
                b'D' | b'C' => {
                    if let Some(description) = description.take() {
                        p.reply(&description).await;
                    }
                    if message[0] == b'C' {
                        complete = Some(message);
                    } else if !p.reply(&message).await {
                        p.discard(self.scratch);
                        return Err(client_gone());
                    }
                }
                b'N' => drop(p.reply(&message).await),
                b'S' => p.parameter_status(self.scratch, &message),
                _ => {}
            }
        }
        match (failure, complete) {
            (Some(failure), _) => Err(failure),
            (None, Some(complete)) => Ok(complete),
            (None, None) => Err(ProxyError::internal("a query ended without saying so").into()),
        }
    }

    /// It would be one in the text that the server was given.
    fn without_position(&self, message: &[u8]) -> Message {
        exchange::change_fields(message, |tag, text| (tag != b'P').then(|| text.to_owned()))
    }
}

fn too_much() -> Failure {
    ProxyError::new("54000", format!("the rows that this query would bring together exceed {GATHER} bytes"))
        .hint("Add a condition on the sharding key, or one that the shards can apply to their own rows.")
        .into()
}

fn bind(out: &mut Vec<u8>, tail: &[u8]) {
    let start = build::begin(out, b'B');
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(tail);
    build::end(out, start);
}

/// The client's parameters, and all results in binary.
fn binary_results(tail: &[u8]) -> Vec<u8> {
    let mut reader = read::Reader::new(tail);
    let end = (|| {
        let formats = reader.u16()?;
        reader.bytes(usize::from(formats) * 2)?;
        for _ in 0..reader.u16()? {
            let length = reader.i32()?;
            reader.bytes(usize::try_from(length).unwrap_or(0))?;
        }
        Some(tail.len() - reader.rest().len())
    })();
    let mut out = tail.get(..end.unwrap_or(0)).unwrap_or_default().to_vec();
    if out.is_empty() {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(&[0, 1, 0, 1]);
    out
}

fn quoted(table: &GatherTable) -> String {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}

fn select_of(table: &GatherTable, filtered: bool) -> String {
    let only = if table.only { "ONLY " } else { "" };
    let name = quoted(table);
    match table.filter.as_ref().filter(|_| filtered) {
        None => format!("SELECT * FROM {only}{name}"),
        Some(filter) => {
            let alias = filter.alias.replace('"', "\"\"");
            // The condition may end in a comment.
            format!("SELECT * FROM {only}{name} AS \"{alias}\" WHERE {}\n", filter.condition)
        }
    }
}

fn parameter_oids(described: &Reply) -> Result<Vec<u8>, Failure> {
    let message = described
        .parameters
        .as_ref()
        .ok_or_else(|| ProxyError::internal("the server described no parameters"))?;
    let mut reader = read::body(message);
    let count = reader.u16().unwrap_or(0);
    Ok(reader.bytes(usize::from(count) * 4).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_asked_for_in_binary_whatever_the_client_wanted() {
        // One format code, one value of two bytes, two result codes.
        let tail = [0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 7, 8, 0, 2, 0, 0, 0, 1];
        assert_eq!(binary_results(&tail), [0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 7, 8, 0, 1, 0, 1]);
        assert_eq!(binary_results(&[0; 6]), [0, 0, 0, 0, 0, 1, 0, 1]);
    }
}
