//! A write over several shards that no shard can do by itself (`How::Apply`).
//!
//! PostgreSQL runs the client's own text on a connection of its own to the default shard, over copies of what it reads
//! and of the rows that it may change (`shape`); those rows are locked where they are first, so that what was
//! read is what is written. What happened to the copies (`images`) is then done to the rows, within the
//! transaction (`changes`, `place`): a row whose key now belongs to another shard is deleted here and inserted there. Sequences are
//! drawn from on the default shard, for all shards (H26); a reference table gets the same rows everywhere, whatever
//! computed them (H22).
//!
//! Parts of WITH that write have copies of their own, of the rows that there were before: like PostgreSQL's snapshot, they
//! know nothing of each other but what they return.
//!
//! Rows of the target that only a join excludes are locked, too, until the transaction ends.

mod changes;
mod images;
mod order;
mod place;
mod shape;

use self::changes::{Change, Computed};
use self::images::Tail;
#[cfg(any(test, fuzzing))]
pub(super) use self::images::any_tail;
use self::order::Order;
use self::shape::{Column, Shape, before, broken, full_name, names, quote, rows};
use super::exchange::{self, Reply, gather};
use super::gather::{check_views, parameter_oids, select_of};
use super::limits::GATHER_ANALYZE_ROWS;
use super::pour::{self, Pour};
use super::{Failure, carry, commit};
use crate::catalog::TableKind;
use crate::error::ProxyError;
use crate::oids::FIRST_USER_OID;
use crate::route::{ApplyPlan, Command, Spread, Written, target_copy, temporary_name};
use crate::session::multi_hook::{Message, MultiStatement, Participants, Protocol};
use crate::wire::{build, read};

/// Returns the CommandComplete that is due. `shards`: those whose rows are read.
pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
) -> Result<Vec<u8>, Failure> {
    if !p.client_encoding_is_utf8() {
        return Err(unsupported("needs client_encoding UTF8", "SET client_encoding = 'UTF8'."));
    }
    let plan = p.apply_plan(statement.text()).map_err(|refusal| ProxyError::from(&refusal))?;
    let alone = !p.in_block() && p.indices().is_empty();
    if plan.system && !alone {
        return Err(unsupported("reads system tables within a transaction", "Run it as two statements."));
    }
    if plan.clock && !alone {
        return Err(unsupported("uses now() within a transaction", "Pass the time as a parameter."));
    }
    if p.schema_changed() {
        return Err(unsupported("follows DDL, LOCK or TRUNCATE in the same transaction", "COMMIT first."));
    }
    // Who is asked for rows joins before the scratch connection does.
    let changes_shards = |written: &Written| {
        matches!(written.kind, TableKind::Sharded { .. }) && written.command != Command::Insert
    };
    let mut sources = Vec::new();
    if plan.tables.iter().any(|table| table.kind == Spread::Shards) || plan.writes.iter().any(changes_shards)
    {
        for shard in shards {
            sources.push((*shard, p.enlist(*shard, true).await?));
        }
    }
    let mut targets = Vec::new();
    for written in &plan.writes {
        targets.push(match (&written.kind, written.command) {
            (_, Command::Insert) => Vec::new(),
            (TableKind::Sharded { .. }, _) => sources.clone(),
            // Everybody locks a reference table's rows on the same shard (H22).
            (TableKind::Reference, _) => vec![(0, p.enlist(0, true).await?)],
            _ => vec![(p.default_shard(), p.enlist(p.default_shard(), true).await?)],
        });
    }
    // What the transaction has done to other tables is seen by its own connection only.
    let default = match alone {
        true => None,
        false => Some(p.enlist(p.default_shard(), true).await?),
    };
    let first = sources.first().or_else(|| targets.iter().flatten().next()).map(|(_, at)| *at).or(default);
    let participant = match first {
        Some(at) => at,
        None => p.enlist(p.default_shard(), true).await?,
    };
    let scratch = p.scratch().await?;
    let applying = Applying {
        plan: &plan,
        statement,
        sources: &sources,
        targets: &targets,
        default,
        participant,
        scratch,
    };
    let result = applying.compute(p).await;
    let server = p.server(scratch);
    if server.dirty || server.unsynced || exchange::ask(p, scratch, "ROLLBACK").await.is_err() {
        p.discard(scratch);
    }
    p.give_back(scratch);
    if plan.draws {
        p.may_have_drawn();
        p.drew_elsewhere();
    }
    let computed = result?;
    computed.place(p, &plan, statement).await
}

struct Applying<'a> {
    plan: &'a ApplyPlan,
    statement: &'a MultiStatement,
    /// Shards that are read, as positions and connections.
    sources: &'a [(usize, usize)],
    /// Where the rows that each part may change are.
    targets: &'a [Vec<(usize, usize)>],
    /// The transaction's connection to the default shard, from which all other tables are copied, too.
    default: Option<usize>,
    /// Any connection of the transaction.
    participant: usize,
    scratch: usize,
}

fn client_tail(statement: &MultiStatement) -> &[u8] {
    match &statement.protocol {
        Protocol::Simple => &[0; 6],
        Protocol::Extended { bind, .. } => read::bind(bind).map_or(&[0; 6][..], |b| b.tail),
    }
}

/// Of a query without parameters.
const NO_VALUES: (&[u8], &[u8]) = (b"", &[0; 6]);

impl Applying<'_> {
    fn pour(&self, into: String, locks: bool) -> Pour {
        Pour { scratch: self.scratch, into, own: false, alien: false, locks }
    }

    async fn compute(&self, p: &mut Participants<'_>) -> Result<Computed, Failure> {
        let mut begin = String::from("BEGIN READ WRITE");
        for text in p.local_settings() {
            begin.push_str(&format!(";{text}"));
        }
        if self.default.is_some() {
            // A table that the session's own transaction has locked is not waited for.
            begin.push_str(";SET LOCAL lock_timeout = '2s'");
        }
        exchange::ask(p, self.scratch, &begin).await?.ok()?;
        check_views(p, self.scratch, &self.plan.tables).await?;
        let described = self.describe(p).await?;
        let oids = parameter_oids(&described)?;
        self.refuse_if_read_only(p).await?;
        let mut shapes = Vec::new();
        for (n, written) in self.plan.writes.iter().enumerate() {
            let shape = Shape::read(p, self.scratch, written).await?;
            check(written, &shape, self.plan.with_tail == Some(n))?;
            shapes.push(shape);
        }
        let order = Order::of(p, self.scratch, &self.plan.writes, &shapes).await?;
        let keys = if self.plan.grouped { " INCLUDING INDEXES" } else { "" };
        let mut prepare = String::new();
        for (n, (shape, written)) in shapes.iter().zip(&self.plan.writes).enumerate() {
            prepare.push_str(&shape.create(written, n));
        }
        for (n, table) in self.plan.tables.iter().enumerate() {
            let name = format!("{}.{}", quote(&table.schema), quote(&table.name));
            prepare.push_str(&format!(
                "CREATE TEMP TABLE {} (LIKE {name}{keys}) ON COMMIT DROP;",
                temporary_name(n)
            ));
        }
        exchange::ask(p, self.scratch, &prepare).await?.ok()?;
        let mut bytes = 0;
        for (n, shape) in shapes.iter().enumerate() {
            self.load_target(p, n, shape, &oids, &mut bytes).await?;
        }
        for n in 0..self.plan.tables.len() {
            self.load_source(p, n, &mut bytes).await?;
        }
        let reply = self.execute(p, described, &oids).await?;
        exchange::ask(p, self.scratch, "SET LOCAL extra_float_digits = 3").await?.ok()?;
        let mut changes = Vec::new();
        for (n, shape) in shapes.into_iter().enumerate() {
            changes.push(self.change(p, n, shape).await?);
        }
        Ok(Computed { changes, order, oids, reply })
    }

    /// A part of WITH that finds no rows to write writes nothing, and is refused all the same (ExecCheckXactReadOnly in
    /// src/backend/executor/execMain.c).
    async fn refuse_if_read_only(&self, p: &mut Participants<'_>) -> Result<(), Failure> {
        let reply = exchange::ask(p, self.participant, "SHOW transaction_read_only").await?.ok()?;
        match reply.value().as_deref() {
            Some("off") => Ok(()),
            _ => {
                let message = format!("cannot execute {} in a read-only transaction", self.plan.verb);
                Err(ProxyError::new("25006", message).into())
            }
        }
    }

    /// What happened to the n-th copy.
    async fn change(&self, p: &mut Participants<'_>, n: usize, shape: Shape) -> Result<Change, Failure> {
        let stored = shape.stored();
        let (mut inserted, mut updated, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        let command = self.plan.writes[n].command;
        if matches!(command, Command::Insert | Command::Merge) {
            let sql = format!("SELECT {} FROM ONLY {} ORDER BY ctid", names(&stored), target_copy(n));
            inserted = self.read(p, &sql, 0, &stored).await?;
        }
        if matches!(command, Command::Update | Command::Merge) {
            let sql = format!(
                "SELECT shard_at, shard_table, shard_ctid, {} FROM {} \
                 WHERE xmin <> pg_catalog.pg_current_xact_id()::pg_catalog.xid",
                names(&stored),
                rows(n)
            );
            updated = self.read(p, &sql, 3, &stored).await?;
        }
        if matches!(command, Command::Delete | Command::Merge) {
            let primary = shape.primary();
            let list = primary.iter().map(|column| format!(", b.{}", column.quoted())).collect::<String>();
            let sql = format!(
                "SELECT b.shard_at, b.shard_table, b.shard_ctid{list} FROM {} b WHERE NOT EXISTS (SELECT FROM {} r \
                 WHERE (r.shard_at, r.shard_table, r.shard_ctid) = (b.shard_at, b.shard_table, b.shard_ctid))",
                before(n),
                rows(n)
            );
            deleted = self.read(p, &sql, 3, &primary).await?;
        }
        Ok(Change { shape, inserted, updated, deleted })
    }

    /// The client's own text, looked at by PostgreSQL on the default shard: its errors, parameters and columns.
    async fn describe(&self, p: &mut Participants<'_>) -> Result<Reply, Failure> {
        let declared = match &self.statement.protocol {
            Protocol::Simple => &[][..],
            Protocol::Extended { entry, .. } => &entry.oids,
        };
        let server = p.server(self.scratch);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", self.statement.text(), declared);
        build::named(&mut server.out, b'D', b'S', b"");
        pour::bind(&mut server.out, b"", client_tail(self.statement));
        build::named(&mut server.out, b'D', b'P', b"");
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        gather(p, self.scratch).await?.ok()
    }

    async fn load_target(
        &self,
        p: &mut Participants<'_>,
        n: usize,
        shape: &Shape,
        oids: &[u8],
        bytes: &mut usize,
    ) -> Result<(), Failure> {
        let written = &self.plan.writes[n];
        if written.command == Command::Insert {
            return Ok(());
        }
        let built_in = |oid: &[u8]| oid.try_into().is_ok_and(|oid| u32::from_be_bytes(oid) < FIRST_USER_OID);
        let filter = written.filter.as_ref().filter(|_| oids.chunks_exact(4).all(built_in));
        let columns = shape.stored();
        let stored = names(&columns);
        let carried = carry::as_text(p, self.scratch, &target_copy(n)).await?;
        let quoted: Vec<String> = columns.iter().map(|column| column.quoted()).collect();
        let list = carried.as_ref().map_or_else(|| stored.clone(), |carried| carried.list(Some(&quoted)));
        let alias = filter.map_or(&written.name, |filter| &filter.alias);
        let condition = |shard: usize| {
            let shown = p.shown(shard, &written.schema, &written.name);
            match (filter, shown) {
                (None, None) => String::new(),
                (None, Some(shown)) => format!(" WHERE {shown}"),
                (Some(filter), shown) => {
                    let shown = shown.map_or(String::new(), |shown| format!(" AND {shown}"));
                    format!(" WHERE ({}\n){shown}", filter.condition)
                }
            }
        };
        // As PostgreSQL's own UPDATE would (src/backend/access/heap/README.tuplock).
        let lock = if written.command == Command::Update { "NO KEY UPDATE" } else { "UPDATE" };
        let select = |shard: usize| {
            format!(
                "SELECT {list}, {shard}::pg_catalog.int4, tableoid, ctid FROM {} AS {}{} FOR {lock}",
                full_name(written),
                quote(alias),
                condition(shard)
            )
        };
        let into = format!(
            "COPY {} ({stored}, shard_at, shard_table, shard_ctid) FROM STDIN (FORMAT binary)",
            rows(n)
        );
        let from: Vec<_> = self.targets[n].iter().map(|(shard, at)| (*at, select(*shard))).collect();
        let values = filter.map_or(NO_VALUES, |_| (oids, client_tail(self.statement)));
        self.pour(into, true).run(p, &from, values, bytes).await?;
        if let Some(carried) = carried {
            exchange::ask(p, self.scratch, &carried.back).await?.ok()?;
        }
        exchange::ask(p, self.scratch, &shape.remember(n)).await?.ok()?;
        Ok(())
    }

    async fn load_source(
        &self,
        p: &mut Participants<'_>,
        n: usize,
        bytes: &mut usize,
    ) -> Result<(), Failure> {
        let table = &self.plan.tables[n];
        let from: Vec<usize> = match (table.kind, self.default) {
            (Spread::Shards, _) => self.sources.iter().map(|(_, at)| *at).collect(),
            (Spread::Default, Some(default)) => vec![default],
            (Spread::Default, None) => return Ok(()),
        };
        let temporary = format!("pg_temp.{}", temporary_name(n));
        let carried = carry::as_text(p, self.scratch, &temporary).await?;
        let list = carried.as_ref().map_or("*".to_owned(), |carried| carried.list(None));
        let from: Vec<_> = from.into_iter().map(|at| (at, select_of(p, at, table, &list, false))).collect();
        let into = format!("COPY {temporary} FROM STDIN (FORMAT binary)");
        let rows = self.pour(into, false).run(p, &from, NO_VALUES, bytes).await?;
        if let Some(carried) = carried {
            exchange::ask(p, self.scratch, &carried.back).await?.ok()?;
        }
        if rows >= GATHER_ANALYZE_ROWS {
            let analyze = format!("ANALYZE {temporary}");
            exchange::ask(p, self.scratch, &analyze).await?.ok()?;
        }
        Ok(())
    }

    /// The client's text over the copies. What it changes is marked by the subtransaction that it runs in.
    async fn execute(
        &self,
        p: &mut Participants<'_>,
        described: Reply,
        oids: &[u8],
    ) -> Result<Reply, Failure> {
        exchange::ask(p, self.scratch, "SAVEPOINT shard_apply").await?.ok()?;
        let text = if self.default.is_some() { &self.plan.text_of_all } else { &self.plan.text };
        let tail = client_tail(self.statement);
        // An INSERT returns nothing here.
        let mut ours = Vec::new();
        if self.plan.with_tail.is_some() {
            let client = Tail::of(tail).ok_or_else(broken)?;
            ours.extend_from_slice(&tail[..tail.len() - client.results.len()]);
            ours.extend_from_slice(&[0, 0]);
        }
        let server = p.server(self.scratch);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", text.as_bytes(), oids);
        commit::bind_execute(&mut server.out, if ours.is_empty() { tail } else { &ours }, false);
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        let reply = gather(p, self.scratch).await?.ok().map_err(place::without_position)?;
        Ok(Reply { description: described.description, ..reply })
    }

    /// `before`: how many columns there are in front of these, all in binary.
    async fn read(
        &self,
        p: &mut Participants<'_>,
        sql: &str,
        before: usize,
        columns: &[&Column],
    ) -> Result<Vec<Message>, Failure> {
        let count = u16::try_from(before + columns.len()).map_err(|_| broken())?;
        let mut tail = vec![0, 0, 0, 0];
        tail.extend_from_slice(&count.to_be_bytes());
        (0..before).for_each(|_| tail.extend_from_slice(&[0, 1]));
        columns.iter().for_each(|column| tail.extend_from_slice(&[0, u8::from(column.binary)]));
        let server = p.server(self.scratch);
        server.unnamed = 0;
        build::parse(&mut server.out, b"", sql.as_bytes(), b"");
        commit::bind_execute(&mut server.out, &tail, false);
        server.out.extend_from_slice(build::SYNC);
        p.flush(self.scratch).await.map_err(|_| exchange::lost(p, self.scratch))?;
        Ok(gather(p, self.scratch).await?.ok()?.rows)
    }
}

/// `own`: it is an INSERT that the shards run to its end.
fn check(written: &Written, shape: &Shape, own: bool) -> Result<(), Failure> {
    let changes = written.command != Command::Insert;
    let name = full_name(written);
    if !own && shape.triggers {
        let what = if changes { "changes rows" } else { "inserts, and reads what it returns, rows" };
        return Err(unsupported(
            &format!("{what} of {name}, which has triggers"),
            "Bind the sharding key, or do it in the application.",
        ));
    }
    if matches!(written.kind, TableKind::Reference) {
        let primary = shape.primary();
        let sets_key = |column: &&Column| written.assigned.contains(&column.name);
        if changes && (primary.is_empty() || primary.iter().any(sets_key)) {
            return Err(unsupported(
                &format!("changes rows of reference table {name} without a primary key that stays as it is"),
                "Every shard must change the same rows: read first, then write constants or parameters.",
            ));
        }
        if shape.triggers {
            return Err(unsupported(
                &format!("computes rows of reference table {name}, which has triggers"),
                "Every shard must write the same rows: read first, then write constants or parameters.",
            ));
        }
    }
    Ok(())
}

fn unsupported(what: &str, hint: &str) -> Failure {
    ProxyError::not_supported(&format!("a write over several shards that {what}"), hint).into()
}
