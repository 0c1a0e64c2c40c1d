//! What happened to the copies, and how it is done to the rows: one shard after the other, in order of their ids.

use shard_config::KeyType;

use super::super::Failure;
use super::super::exchange::{Reply, fields};
use super::super::statement::{disagree, say_rows};
use super::images::{Address, Tail};
use super::order::{self, Order};
use super::place::{self, Find, Rest, Row};
use super::shape::{Column, Shape, broken, full_name};
use super::{client_tail, unsupported};
use crate::catalog::TableKind;
use crate::error::{Column as ErrorColumn, ProxyError};
use crate::route::{ApplyPlan, Written};
use crate::session::multi_hook::{Message, MultiStatement, Participants};
use crate::wire::build;

/// What one shard must do.
#[derive(Default)]
struct Part<'a> {
    deleted: Vec<(Address<'a>, Row<'a>)>,
    updated: Vec<(Address<'a>, Row<'a>)>,
    /// Numbered in the order of the statement's rows.
    inserted: Vec<(usize, Row<'a>)>,
}

/// What happened to the copies.
pub(super) struct Computed {
    /// Of each part that writes.
    pub(super) changes: Vec<Change>,
    pub(super) order: Order,
    /// Types of the client's parameters.
    pub(super) oids: Vec<u8>,
    /// The client's rows and tag; not of an INSERT whose shards say them.
    pub(super) reply: Reply,
}

/// What happened to one copy.
pub(super) struct Change {
    pub(super) shape: Shape,
    pub(super) inserted: Vec<Message>,
    /// Each: shard, table, ctid, then the columns.
    pub(super) updated: Vec<Message>,
    /// Each: shard, table, ctid, then the primary key.
    pub(super) deleted: Vec<Message>,
}

impl Computed {
    pub(super) async fn place(
        &self,
        p: &mut Participants<'_>,
        plan: &ApplyPlan,
        statement: &MultiStatement,
    ) -> Result<Vec<u8>, Failure> {
        let client = Tail::of(client_tail(statement)).ok_or_else(broken)?;
        let rest =
            Rest { text: &plan.tail, oids: &self.oids, client: &client, parameters: plan.tail_parameters };
        let with_tail = plan.with_tail;
        let mut parts = Vec::new();
        for (n, (change, written)) in self.changes.iter().zip(&plan.writes).enumerate() {
            parts.push(change.parts(p, written, with_tail == Some(n))?);
        }
        let mut replies: Vec<(Vec<usize>, Reply)> = Vec::new();
        for shard in 0..p.shard_count() {
            if parts.iter().all(|parts| parts[shard].is_none()) {
                continue;
            }
            let at = p.enlist(shard, true).await?;
            p.mark_write(shard, None);
            // What a part deletes of its own rows makes room for what it inserts: they move.
            for n in &self.order.inserting {
                let Some(part) = &parts[*n][shard] else { continue };
                let reply = self.insert(p, at, (*n, plan), part, &rest).await?;
                if with_tail == Some(*n)
                    && let Some(reply) = reply
                {
                    replies.push((part.inserted.iter().map(|(n, _)| *n).collect(), reply));
                }
            }
            for n in &self.order.changing {
                let Some(part) = &parts[*n][shard] else { continue };
                self.changes[*n].delete(p, at, &plan.writes[*n], part).await?;
                self.changes[*n].update(p, at, &plan.writes[*n], part).await?;
                self.insert(p, at, (*n, plan), part, &rest).await?;
            }
            for n in &self.order.deleting {
                if let Some(part) = &parts[*n][shard] {
                    self.changes[*n].delete(p, at, &plan.writes[*n], part).await?;
                }
            }
        }
        let mut complete = Vec::new();
        let Some(own) = with_tail else {
            say_rows(p, statement, self.reply.description.as_ref(), &self.reply.rows).await;
            build::command_complete(&mut complete, self.reply.tag.as_deref().unwrap_or_default());
            return Ok(complete);
        };
        if matches!(plan.writes[own].kind, TableKind::Reference) {
            let same = |pair: &[(Vec<usize>, Reply)]| pair[0].1.tag == pair[1].1.tag;
            if !replies.windows(2).all(same) {
                return Err(disagree(""));
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

    /// The rows that a part inserts on one shard; `None`: there is nothing to say.
    async fn insert(
        &self,
        p: &mut Participants<'_>,
        at: usize,
        (n, plan): (usize, &ApplyPlan),
        part: &Part<'_>,
        rest: &Rest<'_>,
    ) -> Result<Option<Reply>, Failure> {
        let rest = (plan.with_tail == Some(n)).then_some(rest);
        if part.inserted.is_empty() && rest.is_none() {
            return Ok(None);
        }
        let rows: Vec<&[Option<&[u8]>]> = part.inserted.iter().map(|(_, row)| &row[..]).collect();
        let written = &plan.writes[n];
        let stored = self.changes[n].shape.stored();
        let reply = place::insert(p, at, written, &stored, &rows, rest).await;
        let gone = |other: usize| !self.changes[other].deleted.is_empty();
        let beside = order::deletes_of_its_table(&plan.writes, n).any(gone);
        reply
            .map(Some)
            .map_err(|failure| if beside { order::if_in_the_way(failure, written) } else { failure })
    }
}

impl Change {
    async fn delete(
        &self,
        p: &mut Participants<'_>,
        at: usize,
        written: &Written,
        part: &Part<'_>,
    ) -> Result<(), Failure> {
        if part.deleted.is_empty() {
            return Ok(());
        }
        let rows: Vec<&[Option<&[u8]>]> = part.deleted.iter().map(|(_, row)| &row[..]).collect();
        let find = match matches!(written.kind, TableKind::Reference) {
            true => Find::Key(self.shape.primary()),
            false => Find::Address(part.deleted.iter().map(|(address, _)| address.copied()).collect()),
        };
        place::delete(p, at, written, &find, &rows).await
    }

    async fn update(
        &self,
        p: &mut Participants<'_>,
        at: usize,
        written: &Written,
        part: &Part<'_>,
    ) -> Result<(), Failure> {
        let stored = self.shape.stored();
        let set: Vec<(usize, &Column)> = (0..stored.len())
            .filter(|n| written.assigned.contains(&stored[*n].name))
            .map(|n| (n, stored[n]))
            .collect();
        if part.updated.is_empty() || set.is_empty() {
            return Ok(());
        }
        let reference = matches!(written.kind, TableKind::Reference);
        let find = match reference {
            true => Find::Key(self.shape.primary()),
            false => Find::Address(part.updated.iter().map(|(address, _)| address.copied()).collect()),
        };
        let keys = stored.iter().enumerate().filter(|(_, column)| reference && column.primary);
        let wanted: Vec<usize> = keys.map(|(n, _)| n).chain(set.iter().map(|(n, _)| *n)).collect();
        let rows: Vec<Row<'_>> =
            part.updated.iter().map(|(_, row)| wanted.iter().map(|n| row[*n]).collect()).collect();
        let rows: Vec<&[Option<&[u8]>]> = rows.iter().map(|row| &row[..]).collect();
        let columns: Vec<&Column> = set.iter().map(|(_, column)| *column).collect();
        place::update(p, at, written, &find, &columns, &rows).await
    }

    /// What each shard has to do; `None`: nothing. `own`: an INSERT whose shards say its rows.
    fn parts<'s>(
        &'s self,
        p: &Participants<'_>,
        plan: &Written,
        own: bool,
    ) -> Result<Vec<Option<Part<'s>>>, Failure> {
        let mut parts: Vec<Option<Part<'s>>> = (0..p.shard_count()).map(|_| None).collect();
        let all = p.members();
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
            let shards =
                if moves || matches!(plan.kind, TableKind::Reference) { here(&row)? } else { vec![shard] };
            if moves && shards != [shard] {
                if self.shape.referenced {
                    return Err(unsupported(
                        &format!(
                            "moves rows of {} to other shards, and foreign keys refer to it",
                            full_name(plan)
                        ),
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
        if own && parts.iter().all(Option::is_none) {
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
    plan: &Written,
) -> Result<usize, Failure> {
    let value = key.and_then(|key| row.get(key)).copied().ok_or_else(broken)?;
    let Some(value) = value else {
        let column = plan.key.as_deref().unwrap_or_default();
        let message = format!(
            "null value in column \"{column}\" of relation \"{}\" violates not-null constraint",
            plan.name
        );
        let of =
            ErrorColumn { schema: plan.schema.clone(), table: plan.name.clone(), name: column.to_owned() };
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
