//! Does to the shards what was done to the copies: one shard after the other, in order of their ids.

use super::super::Failure;
use super::super::commit::bind_execute;
use super::super::exchange::{self, Reply, gather};
use super::images::{self, Address, Tail, bind_tail};
use super::shape::{Column, full_name, names};
use crate::error::ProxyError;
use crate::route::Written;
use crate::session::multi_hook::Participants;
use crate::wire::build;

pub(super) type Row<'a> = Vec<Option<&'a [u8]>>;

/// How a shard finds the rows.
pub(super) enum Find<'a> {
    /// Where they were when they were locked.
    Address(Vec<Address<'a>>),
    /// By these columns, the first ones of each row.
    Key(Vec<&'a Column>),
}

/// What one server must hear.
struct Statement {
    text: String,
    oids: Vec<u8>,
    tail: Vec<u8>,
}

async fn tell(p: &mut Participants<'_>, at: usize, statement: &Statement) -> Result<Reply, Failure> {
    let server = p.server(at);
    server.unnamed = 0;
    build::parse(&mut server.out, b"", statement.text.as_bytes(), &statement.oids);
    bind_execute(&mut server.out, &statement.tail, true);
    server.out.extend_from_slice(build::SYNC);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    gather(p, at).await?.ok().map_err(without_position)
}

/// The client's part of an INSERT that its shard runs: ON CONFLICT and RETURNING, with the parameters in them.
pub(super) struct Rest<'a> {
    pub(super) text: &'a str,
    pub(super) oids: &'a [u8],
    pub(super) client: &'a Tail<'a>,
    /// It has parameters.
    pub(super) parameters: bool,
}

pub(super) async fn insert(
    p: &mut Participants<'_>,
    at: usize,
    plan: &Written,
    columns: &[&Column],
    rows: &[&[Option<&[u8]>]],
    rest: Option<&Rest<'_>>,
) -> Result<Reply, Failure> {
    let arrays = images::columns(columns, rows);
    let client = rest.filter(|rest| rest.parameters);
    let before = client.map_or(0, |rest| rest.oids.len() / 4);
    let types: Vec<String> = columns.iter().map(|column| images::carrier(column)).collect();
    let values: Vec<String> = columns.iter().enumerate().map(|(n, c)| images::value(c, n)).collect();
    let cells: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
    let alias = plan
        .alias
        .as_ref()
        .filter(|_| rest.is_some())
        .map_or(String::new(), |alias| format!(" AS {}", super::shape::quote(alias)));
    let text = format!(
        "INSERT INTO {}{alias} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WITH ORDINALITY AS shard_v({}, shard_n) \
         ORDER BY shard_v.shard_n {}",
        full_name(plan),
        names(columns),
        values.join(", "),
        images::unnest(&types, before + 1),
        cells.join(", "),
        rest.map_or("", |rest| rest.text)
    );
    let results = rest.map_or(&[0, 0][..], |rest| rest.client.results);
    let tail = bind_tail(client.map(|rest| rest.client), &arrays, results).ok_or_else(too_wide)?;
    let oids = client.map_or_else(Vec::new, |rest| p.parameter_types(at, rest.oids));
    let statement = Statement { text, oids, tail };
    tell(p, at, &statement).await
}

/// `rows`: the columns of the primary key if they are found by it, then those to set.
pub(super) async fn update(
    p: &mut Participants<'_>,
    at: usize,
    plan: &Written,
    find: &Find<'_>,
    set: &[&Column],
    rows: &[&[Option<&[u8]>]],
) -> Result<(), Failure> {
    let keys = find.keys();
    let sets: Vec<String> = set
        .iter()
        .enumerate()
        .map(|(n, column)| format!("{} = {}", column.quoted(), images::value(column, keys.len() + n)))
        .collect();
    let columns: Vec<&Column> = keys.iter().chain(set).copied().collect();
    let (from, arrays) = source(find, &columns, rows);
    let text = format!(
        "UPDATE {} AS shard_t SET {} FROM {from} WHERE {}",
        full_name(plan),
        sets.join(", "),
        condition(find)
    );
    found_all(p, at, text, &arrays, rows.len()).await
}

pub(super) async fn delete(
    p: &mut Participants<'_>,
    at: usize,
    plan: &Written,
    find: &Find<'_>,
    rows: &[&[Option<&[u8]>]],
) -> Result<(), Failure> {
    let (from, arrays) = source(find, &find.keys(), rows);
    let text = format!("DELETE FROM {} AS shard_t USING {from} WHERE {}", full_name(plan), condition(find));
    let count = match find {
        Find::Address(addresses) => addresses.len(),
        Find::Key(_) => rows.len(),
    };
    found_all(p, at, text, &arrays, count).await
}

impl<'a> Find<'a> {
    fn keys(&self) -> Vec<&'a Column> {
        match self {
            Self::Address(_) => Vec::new(),
            Self::Key(keys) => keys.clone(),
        }
    }
}

/// The rows as a FROM item, and its parameters.
fn source(find: &Find<'_>, columns: &[&Column], rows: &[&[Option<&[u8]>]]) -> (String, Vec<Vec<u8>>) {
    let mut types: Vec<String> = columns.iter().map(|column| images::carrier(column)).collect();
    let mut cells: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
    let mut arrays = images::columns(columns, rows);
    if let Find::Address(addresses) = find {
        types.extend(["pg_catalog.tid".to_owned(), "pg_catalog.oid".to_owned()]);
        cells.extend(["shard_ctid".to_owned(), "shard_table".to_owned()]);
        arrays.extend(images::addresses(addresses));
    }
    (format!("{} AS shard_v({})", images::unnest(&types, 1), cells.join(", ")), arrays)
}

fn condition(find: &Find<'_>) -> String {
    match find {
        Find::Address(_) => {
            "shard_t.ctid = shard_v.shard_ctid AND shard_t.tableoid = shard_v.shard_table".to_owned()
        }
        Find::Key(keys) => {
            let equal =
                |(n, key): (usize, &&Column)| format!("shard_t.{} = {}", key.quoted(), images::value(key, n));
            keys.iter().enumerate().map(equal).collect::<Vec<_>>().join(" AND ")
        }
    }
}

/// The rows are locked, so all must be there.
async fn found_all(
    p: &mut Participants<'_>,
    at: usize,
    text: String,
    arrays: &[Vec<u8>],
    count: usize,
) -> Result<(), Failure> {
    let tail = bind_tail(None, arrays, &[0, 0]).ok_or_else(too_wide)?;
    let reply = tell(p, at, &Statement { text, oids: Vec::new(), tail }).await?;
    if reply.count() == count as u64 {
        return Ok(());
    }
    let message =
        format!("shard {} changed {} of {count} rows of this statement", p.shard_id(at), reply.count());
    let hint = "A policy hides some of them, or a reference table is not the same on every shard; nothing was changed.";
    Err(ProxyError::new("XX001", message).hint(hint).into())
}

fn too_wide() -> Failure {
    ProxyError::not_supported(
        "a write over several shards of so many columns and parameters",
        "Bind the key.",
    )
    .into()
}

/// The position is one in the text that the shard was given.
pub(super) fn without_position(failure: Failure) -> Failure {
    match failure {
        Failure::Server(message) => Failure::Server(exchange::change_fields(&message, |tag, text| {
            (tag != b'P').then(|| text.to_owned())
        })),
        ours => ours,
    }
}
