//! A write over several shards that no shard can do by itself (`How::Apply`).
//!
//! PostgreSQL runs the client's own text on a connection of its own to the default shard, over copies of what it reads
//! and of the rows that it may change (`load`, `shape`); those rows are locked where they are first, so that what was
//! read is what is written. What happened to the copies (`images`) is then done to the rows, within the
//! transaction (`place`): a row whose key now belongs to another shard is deleted here and inserted there. Sequences are
//! drawn from on the default shard, for all shards (H26); a reference table gets the same rows everywhere, whatever
//! computed them (H22).
//!
//! Rows of the target that only a join excludes are locked, too, until the transaction ends.

mod images;
mod load;
mod place;
mod shape;

use shard_config::KeyType;

use self::images::{Address, Tail};
#[cfg(any(test, fuzzing))]
pub(super) use self::images::any_tail;
use self::load::Load;
use self::place::{Find, Rest, Row};
use self::shape::{BEFORE, Column, ROWS, Shape, broken, full_name, names, quote};
use super::exchange::{self, Reply, fields, gather};
use super::gather::{check_views, parameter_oids, select_of};
use super::pour::{self, binary_results};
use super::limits::GATHER_ANALYZE_ROWS;
use super::statement::say_rows;
use super::{Failure, carry, commit};
use crate::catalog::TableKind;
use crate::error::{Column as ErrorColumn, ProxyError};
use crate::oids::FIRST_USER_OID;
use crate::route::{ApplyPlan, Command, Spread, TARGET, temporary_name};
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
    let mut sources = Vec::new();
    if plan.tables.iter().any(|table| table.kind == Spread::Shards) || matches!(plan.kind, TableKind::Sharded { .. }) && plan.command != Command::Insert {
        for shard in shards {
            sources.push((*shard, p.enlist(*shard, true).await?));
        }
    }
    let home = match (&plan.kind, plan.command) {
        (_, Command::Insert) | (TableKind::Sharded { .. }, _) => None,
        // Everybody locks a reference table's rows on the same shard (H22).
        (TableKind::Reference, _) => Some((0, p.enlist(0, true).await?)),
        _ => Some((p.default_shard(), p.enlist(p.default_shard(), true).await?)),
    };
    // What the transaction has done to other tables is seen by its own connection only.
    let default = match alone {
        true => None,
        false => Some(p.enlist(p.default_shard(), true).await?),
    };
    let scratch = p.scratch().await?;
    let targets = home.map_or_else(|| sources.clone(), |home| vec![home]);
    let applying = Applying { plan: &plan, statement, sources: &sources, targets: &targets, default, scratch };
    let result = applying.compute(p).await;
    let server = p.server(scratch);
    if server.dirty || server.unsynced || exchange::ask(p, scratch, "ROLLBACK").await.is_err() {
        p.discard(scratch);
    }
    p.give_back(scratch);
    if plan.draws {
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
    /// Where the rows that may change are.
    targets: &'a [(usize, usize)],
    /// The transaction's connection to the default shard, from which all other tables are copied, too.
    default: Option<usize>,
    scratch: usize,
}

/// What happened to the copies.
struct Computed {
    shape: Shape,
    /// Types of the client's parameters.
    oids: Vec<u8>,
    /// The client's rows and tag; not of an INSERT, whose shards say them.
    reply: Reply,
    inserted: Vec<Message>,
    /// Each: shard, table, ctid, then the columns.
    updated: Vec<Message>,
    /// Each: shard, table, ctid, then the primary key.
    deleted: Vec<Message>,
}

fn client_tail(statement: &MultiStatement) -> &[u8] {
    match &statement.protocol {
        Protocol::Simple => &[0; 6],
        Protocol::Extended { bind, .. } => read::bind(bind).map_or(&[0; 6][..], |b| b.tail),
    }
}

impl Applying<'_> {
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
        let shape = Shape::read(p, self.scratch, self.plan).await?;
        self.check(&shape)?;
        let keys = if self.plan.grouped { " INCLUDING INDEXES" } else { "" };
        let mut prepare = shape.create(self.plan);
        for (n, table) in self.plan.tables.iter().enumerate() {
            let name = format!("{}.{}", quote(&table.schema), quote(&table.name));
            prepare.push_str(&format!(
                "CREATE TEMP TABLE {} (LIKE {name}{keys}) ON COMMIT DROP;",
                temporary_name(n)
            ));
        }
        exchange::ask(p, self.scratch, &prepare).await?.ok()?;
        let mut bytes = 0;
        self.load_target(p, &shape, &oids, &mut bytes).await?;
        for n in 0..self.plan.tables.len() {
            self.load_source(p, n, &mut bytes).await?;
        }
        let reply = self.execute(p, described, &oids).await?;
        exchange::ask(p, self.scratch, "SET LOCAL extra_float_digits = 3").await?.ok()?;
        let stored = shape.stored();
        let (mut inserted, mut updated, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        let command = self.plan.command;
        if matches!(command, Command::Insert | Command::Merge) {
            let sql = format!("SELECT {} FROM ONLY {TARGET} ORDER BY ctid", names(&stored));
            inserted = self.read(p, &sql, 0, &stored).await?;
        }
        if matches!(command, Command::Update | Command::Merge) {
            let sql = format!(
                "SELECT shard_at, shard_table, shard_ctid, {} FROM {ROWS} \
                 WHERE xmin <> pg_catalog.pg_current_xact_id()::pg_catalog.xid",
                names(&stored)
            );
            updated = self.read(p, &sql, 3, &stored).await?;
        }
        if matches!(command, Command::Delete | Command::Merge) {
            let primary = shape.primary();
            let list = primary.iter().map(|column| format!(", b.{}", column.quoted())).collect::<String>();
            let sql = format!(
                "SELECT b.shard_at, b.shard_table, b.shard_ctid{list} FROM {BEFORE} b WHERE NOT EXISTS (SELECT FROM {ROWS} r \
                 WHERE (r.shard_at, r.shard_table, r.shard_ctid) = (b.shard_at, b.shard_table, b.shard_ctid))"
            );
            deleted = self.read(p, &sql, 3, &primary).await?;
        }
        Ok(Computed { shape, oids, reply, inserted, updated, deleted })
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

    fn check(&self, shape: &Shape) -> Result<(), Failure> {
        let changes = self.plan.command != Command::Insert;
        let name = full_name(self.plan);
        if changes && shape.triggers {
            return Err(unsupported(
                &format!("changes rows of {name}, which has triggers"),
                "Bind the sharding key, or do it in the application.",
            ));
        }
        if matches!(self.plan.kind, TableKind::Reference) {
            let primary = shape.primary();
            let sets_key = |column: &&Column| self.plan.assigned.contains(&column.name);
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

    async fn load_target(
        &self,
        p: &mut Participants<'_>,
        shape: &Shape,
        oids: &[u8],
        bytes: &mut usize,
    ) -> Result<(), Failure> {
        if self.plan.command == Command::Insert {
            return Ok(());
        }
        let built_in = |oid: &[u8]| {
            oid.try_into().is_ok_and(|oid| u32::from_be_bytes(oid) < FIRST_USER_OID)
        };
        let filter = self.plan.filter.as_ref().filter(|_| oids.chunks_exact(4).all(built_in));
        let columns = shape.stored();
        let stored = names(&columns);
        let carried = carry::as_text(p, self.scratch, TARGET).await?;
        let quoted: Vec<String> = columns.iter().map(|column| column.quoted()).collect();
        let list = carried.as_ref().map_or_else(|| stored.clone(), |carried| carried.list(Some(&quoted)));
        let alias = filter.map_or(&self.plan.name, |filter| &filter.alias);
        let condition = |shard: usize| {
            let shown = p.shown(shard, &self.plan.schema, &self.plan.name);
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
        let lock = if self.plan.command == Command::Update { "NO KEY UPDATE" } else { "UPDATE" };
        let select = |shard: usize| {
            format!(
                "SELECT {list}, {shard}::pg_catalog.int4, tableoid, ctid FROM {} AS {}{} FOR {lock}",
                full_name(self.plan),
                quote(alias),
                condition(shard)
            )
        };
        let tail = binary_results(client_tail(self.statement));
        let load = Load {
            into: format!(
                "COPY {ROWS} ({stored}, shard_at, shard_table, shard_ctid) FROM STDIN (FORMAT binary)"
            ),
            from: self.targets.iter().map(|(shard, at)| (*at, select(*shard))).collect(),
            parameters: filter.map(|_| (oids, &tail[..])),
            locks: true,
        };
        load.run(p, self.scratch, bytes).await?;
        if let Some(carried) = carried {
            exchange::ask(p, self.scratch, &carried.back).await?.ok()?;
        }
        exchange::ask(p, self.scratch, &shape.remember()).await?.ok()?;
        Ok(())
    }

    async fn load_source(&self, p: &mut Participants<'_>, n: usize, bytes: &mut usize) -> Result<(), Failure> {
        let table = &self.plan.tables[n];
        let from: Vec<usize> = match (table.kind, self.default) {
            (Spread::Shards, _) => self.sources.iter().map(|(_, at)| *at).collect(),
            (Spread::Default, Some(default)) => vec![default],
            (Spread::Default, None) => return Ok(()),
        };
        let temporary = format!("pg_temp.{}", temporary_name(n));
        let carried = carry::as_text(p, self.scratch, &temporary).await?;
        let list = carried.as_ref().map_or("*".to_owned(), |carried| carried.list(None));
        let load = Load {
            into: format!("COPY {temporary} FROM STDIN (FORMAT binary)"),
            from: from.into_iter().map(|at| (at, select_of(p, at, table, &list, false))).collect(),
            parameters: None,
            locks: false,
        };
        let rows = load.run(p, self.scratch, bytes).await?;
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
    async fn execute(&self, p: &mut Participants<'_>, described: Reply, oids: &[u8]) -> Result<Reply, Failure> {
        exchange::ask(p, self.scratch, "SAVEPOINT shard_apply").await?.ok()?;
        let text = if self.default.is_some() { &self.plan.text_of_all } else { &self.plan.text };
        let tail = client_tail(self.statement);
        // An INSERT returns nothing here.
        let mut ours = Vec::new();
        if self.plan.command == Command::Insert {
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

/// What one shard must do.
#[derive(Default)]
struct Part<'a> {
    deleted: Vec<(Address<'a>, Row<'a>)>,
    updated: Vec<(Address<'a>, Row<'a>)>,
    /// Numbered in the order of the statement's rows.
    inserted: Vec<(usize, Row<'a>)>,
}

impl Computed {
    async fn place(
        &self,
        p: &mut Participants<'_>,
        plan: &ApplyPlan,
        statement: &MultiStatement,
    ) -> Result<Vec<u8>, Failure> {
        let parts = self.parts(p, plan)?;
        let stored = self.shape.stored();
        let reference = matches!(plan.kind, TableKind::Reference);
        let client = Tail::of(client_tail(statement)).ok_or_else(broken)?;
        let rest =
            Rest { text: &plan.tail, oids: &self.oids, client: &client, parameters: plan.tail_parameters };
        let insert = plan.command == Command::Insert;
        let rest = insert.then_some(&rest);
        let set: Vec<(usize, &Column)> = (0..stored.len())
            .filter(|n| plan.assigned.contains(&stored[*n].name))
            .map(|n| (n, stored[n]))
            .collect();
        let primary = self.shape.primary();
        let mut replies: Vec<(Vec<usize>, Reply)> = Vec::new();
        for (shard, part) in parts.iter().enumerate() {
            let Some(part) = part else { continue };
            let at = p.enlist(shard, true).await?;
            p.mark_write(shard, None);
            if !part.deleted.is_empty() {
                let rows: Vec<&[Option<&[u8]>]> = part.deleted.iter().map(|(_, row)| &row[..]).collect();
                let find = match reference {
                    true => Find::Key(primary.clone()),
                    false => Find::Address(part.deleted.iter().map(|(address, _)| address.copied()).collect()),
                };
                place::delete(p, at, plan, &find, &rows).await?;
            }
            if !part.updated.is_empty() && !set.is_empty() {
                let find = match reference {
                    true => Find::Key(primary.clone()),
                    false => Find::Address(part.updated.iter().map(|(address, _)| address.copied()).collect()),
                };
                let keys = stored.iter().enumerate().filter(|(_, column)| reference && column.primary);
                let wanted: Vec<usize> = keys.map(|(n, _)| n).chain(set.iter().map(|(n, _)| *n)).collect();
                let rows: Vec<Row<'_>> =
                    part.updated.iter().map(|(_, row)| wanted.iter().map(|n| row[*n]).collect()).collect();
                let rows: Vec<&[Option<&[u8]>]> = rows.iter().map(|row| &row[..]).collect();
                let columns: Vec<&Column> = set.iter().map(|(_, column)| *column).collect();
                place::update(p, at, plan, &find, &columns, &rows).await?;
            }
            if !part.inserted.is_empty() || insert {
                let rows: Vec<&[Option<&[u8]>]> = part.inserted.iter().map(|(_, row)| &row[..]).collect();
                let reply = place::insert(p, at, plan, &stored, &rows, rest).await?;
                replies.push((part.inserted.iter().map(|(n, _)| *n).collect(), reply));
            }
        }
        let mut complete = Vec::new();
        if !insert {
            say_rows(p, statement, self.reply.description.as_ref(), &self.reply.rows).await;
            build::command_complete(&mut complete, self.reply.tag.as_deref().unwrap_or_default());
            return Ok(complete);
        }
        if reference {
            let same = |pair: &[(Vec<usize>, Reply)]| pair[0].1.tag == pair[1].1.tag;
            if !replies.windows(2).all(same) {
                return Err(ProxyError::new("XX001", "the shards disagree on a reference table")
                    .hint("Compare the table's rows on the shards; nothing was changed.")
                    .into());
            }
            replies.truncate(1);
        }
        let count: u64 = replies.iter().map(|(_, reply)| reply.count()).sum();
        for notice in replies.iter().flat_map(|(_, reply)| &reply.notices) {
            p.reply(notice).await;
        }
        let description = replies.iter().find_map(|(_, reply)| reply.description.clone());
        say_rows(p, statement, description.as_ref(), &in_order(replies)).await;
        build::command_complete(&mut complete, &format!("INSERT 0 {count}"));
        Ok(complete)
    }

    /// What each shard has to do; `None`: nothing.
    fn parts<'s>(&'s self, p: &Participants<'_>, plan: &ApplyPlan) -> Result<Vec<Option<Part<'s>>>, Failure> {
        let mut parts: Vec<Option<Part<'s>>> = (0..p.shard_count()).map(|_| None).collect();
        let all: Vec<usize> = (0..p.shard_count()).collect();
        let stored = self.shape.stored();
        let key = stored.iter().position(|column| Some(&column.name) == plan.key.as_ref());
        let here = |row: &Row<'_>| -> Result<Vec<usize>, Failure> {
            Ok(match plan.kind {
                TableKind::Reference => all.clone(),
                TableKind::Sharded { key_type, .. } => vec![shard_of(p, key_type, key, row, plan)?],
                _ => vec![p.default_shard()],
            })
        };
        for message in &self.deleted {
            let (shard, address, row) = placed(message)?;
            let shards = if matches!(plan.kind, TableKind::Reference) { all.clone() } else { vec![shard] };
            for shard in shards {
                part(&mut parts, shard)?.deleted.push((address.copied(), row.clone()));
            }
        }
        let moves = plan.key.as_ref().is_some_and(|key| plan.assigned.contains(key));
        for (n, message) in self.updated.iter().enumerate() {
            let (shard, address, row) = placed(message)?;
            let shards = if moves || matches!(plan.kind, TableKind::Reference) { here(&row)? } else { vec![shard] };
            if moves && shards != [shard] {
                if self.shape.referenced {
                    return Err(unsupported(
                        &format!("moves rows of {} to other shards, and foreign keys refer to it", full_name(plan)),
                        "Insert the rows under the new key, change what refers to them, and delete the old ones.",
                    ));
                }
                part(&mut parts, shard)?.deleted.push((address, Vec::new()));
                for shard in shards {
                    part(&mut parts, shard)?.inserted.push((n, row.clone()));
                }
                continue;
            }
            for shard in shards {
                part(&mut parts, shard)?.updated.push((address.copied(), row.clone()));
            }
        }
        for (n, message) in self.inserted.iter().enumerate() {
            let row = fields(message).ok_or_else(broken)?;
            for shard in here(&row)? {
                part(&mut parts, shard)?.inserted.push((n, row.clone()));
            }
        }
        if plan.command == Command::Insert && parts.iter().all(Option::is_none) {
            // Rights and columns are still PostgreSQL's to judge.
            let shard = match plan.kind {
                TableKind::Sharded { .. } => p.preferred_shard(),
                TableKind::Reference => 0,
                _ => p.default_shard(),
            };
            part(&mut parts, shard)?;
        }
        Ok(parts)
    }
}

fn part<'p, 's>(parts: &'p mut [Option<Part<'s>>], shard: usize) -> Result<&'p mut Part<'s>, Failure> {
    parts.get_mut(shard).map(|part| part.get_or_insert_default()).ok_or_else(broken)
}

/// Shard, address and the rest of a row that came from a shard.
fn placed(message: &[u8]) -> Result<(usize, Address<'_>, Row<'_>), Failure> {
    let mut row = fields(message).ok_or_else(broken)?;
    if row.len() < 3 {
        return Err(broken());
    }
    let rest = row.split_off(3);
    let [Some(shard), Some(table), Some(ctid)] = row[..] else { return Err(broken()) };
    let shard: [u8; 4] = shard.try_into().map_err(|_| broken())?;
    Ok((u32::from_be_bytes(shard) as usize, Address { table, ctid }, rest))
}

fn shard_of(
    p: &Participants<'_>,
    key_type: KeyType,
    key: Option<usize>,
    row: &Row<'_>,
    plan: &ApplyPlan,
) -> Result<usize, Failure> {
    let value = key.and_then(|key| row.get(key)).copied().ok_or_else(broken)?;
    let Some(value) = value else {
        let column = plan.key.as_deref().unwrap_or_default();
        let message = format!(
            "null value in column \"{column}\" of relation \"{}\" violates not-null constraint",
            plan.name
        );
        let of = ErrorColumn { schema: plan.schema.clone(), table: plan.name.clone(), name: column.to_owned() };
        let error = ProxyError::new("23502", message).hint("Every row needs its sharding key.");
        return Err(ProxyError { column: Some(Box::new(of)), ..error }.into());
    };
    let hash = key_type.hash_of_binary_value(value).ok_or_else(broken)?;
    Ok(p.shard_of(hash)?)
}

/// RETURNING in the order of the statement's rows. Where a shard returned fewer than it was given (ON CONFLICT DO
/// NOTHING), nobody can say which is missing; then they come shard by shard, which SQL allows.
fn in_order(replies: Vec<(Vec<usize>, Reply)>) -> Vec<Message> {
    let complete = replies.iter().all(|(numbers, reply)| numbers.len() == reply.rows.len());
    if !complete {
        return replies.into_iter().flat_map(|(_, reply)| reply.rows).collect();
    }
    let mut rows: Vec<(usize, Message)> =
        replies.into_iter().flat_map(|(numbers, reply)| numbers.into_iter().zip(reply.rows)).collect();
    rows.sort_by_key(|(n, _)| *n);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn unsupported(what: &str, hint: &str) -> Failure {
    ProxyError::not_supported(&format!("a write over several shards that {what}"), hint).into()
}
