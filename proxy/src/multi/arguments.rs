//! The values of EXECUTE's arguments, as PostgreSQL turns them into the parameters' types.

use std::rc::Rc;

use super::exchange::{self, ask, change_fields, gather};
use super::prepared::{describe, moved, note_shape, parameter_oids, split_list};
use super::{Failure, commit, last, pour};
use crate::error::ProxyError;
use crate::session::multi_hook::Participants;
use crate::session::prepared::Entry;
use crate::wire::{build, read};

/// What they are called on a server, for the time of one message.
const ARGUMENTS: &str = "shard_proxy_arguments";

type Values = Vec<Option<Vec<u8>>>;

/// The arguments' values, as text that the parameters' types read.
pub(super) async fn evaluate(
    p: &mut Participants<'_>,
    at: usize,
    name: &str,
    entry: &Rc<Entry>,
    arguments: &str,
) -> Result<Values, Failure> {
    let types = match p.parameter_type_names(name, entry) {
        Some(names) => names,
        None => {
            let names = type_names(p, at, entry).await?;
            p.remember_parameter_types(name, entry, &names);
            names
        }
    };
    if types.is_empty() {
        // PostgreSQL does not look at them then (ExecuteQuery in src/backend/commands/prepare.c).
        return Ok(Vec::new());
    }
    let given =
        if arguments.trim().is_empty() { 0 } else { split_list(arguments, p.standard_strings()).len() };
    if given != types.len() {
        // As PostgreSQL says it (EvaluateParams in src/backend/commands/prepare.c).
        return Err(ProxyError::new(
            "42601",
            format!("wrong number of parameters for prepared statement \"{name}\""),
        )
        .detail(format!("Expected {} parameters but got {given}.", types.len()))
        .into());
    }
    if types.iter().any(|name| matches!(name.as_str(), "pg_catalog.record" | "pg_catalog._record")) {
        return Err(ProxyError::not_supported(
            "EXECUTE with an argument of type record",
            "Prepare the statement for a composite type that has a name.",
        )
        .into());
    }
    // One that an error has left behind in this transaction has another name.
    let own = format!("{ARGUMENTS}_{:08x}", rand::random::<u32>());
    let head = format!("EXECUTE {own} (");
    let begun = p.server(at).status == b'T';
    let server = p.server(at);
    server.unnamed = 0;
    evaluation(&mut server.out, &own, &types, &format!("{head}{arguments}\n)"), begun);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    let reply = gather(p, at).await?;
    if let Some(error) = reply.error {
        if p.server(at).status == b'I' {
            ask(p, at, &format!("DEALLOCATE {own}")).await?.ok()?;
        } else {
            // It cannot be taken back now, and must not meet the next client.
            p.server(at).unknown_state = true;
        }
        // Positions are counted within the arguments; the client has not sent what stands before them here.
        let before = head.chars().count();
        let renamed = change_fields(&error, |_, text| Some(text.replace(&own, name)));
        return Err(moved(Failure::Server(renamed), |position| position.checked_sub(before)));
    }
    let row = reply.rows.last().filter(|_| reply.rows.len() == ROWS);
    let row = row.ok_or_else(|| ProxyError::internal("arguments without a row"))?;
    let mut reader = read::body(row);
    let count = reader.u16().unwrap_or(0);
    let mut values = Vec::new();
    for _ in 0..count {
        let length = reader.i32().unwrap_or(-1);
        values.push(match usize::try_from(length) {
            Ok(length) => Some(reader.bytes(length).unwrap_or_default().to_vec()),
            Err(_) => None,
        });
    }
    Ok(values)
}

/// What a server says of [`evaluation`]: the values twice, and the settings between them.
const ROWS: usize = 3;

/// Messages that have a server say the values of arguments, as text that every server reads alike, whatever styles the
/// client has chosen: how values are written is changed when they are known, and before they are written. A portal has
/// all its rows when it gives the first one (PortalRun in src/backend/tcop/pquery.c), so the second one is written anew.
/// `begun`: there is a transaction block, which must not keep the settings.
fn evaluation(out: &mut Vec<u8>, own: &str, types: &[String], execute: &str, begun: bool) {
    let say = |out: &mut Vec<u8>, text: &str| {
        build::parse(out, b"", text.as_bytes(), b"");
        commit::bind_execute(out, &[0; 6], false);
    };
    let outputs: Vec<String> = (1..=types.len()).map(|n| format!("${n}")).collect();
    say(
        out,
        &format!(
            "PREPARE {own} ({}) AS SELECT {} FROM pg_catalog.generate_series(1, 2)",
            types.join(", "),
            outputs.join(", ")
        ),
    );
    build::parse(out, b"", execute.as_bytes(), b"");
    pour::bind(out, own.as_bytes(), &[0; 6]);
    last::execute(out, own.as_bytes(), 1);
    if begun {
        say(out, &format!("SAVEPOINT {own}"));
    }
    say(
        out,
        "SELECT pg_catalog.set_config('DateStyle', 'ISO', true), pg_catalog.set_config('IntervalStyle', 'postgres', true), \
         pg_catalog.set_config('extra_float_digits', '3', true), pg_catalog.set_config('bytea_output', 'hex', true)",
    );
    last::execute(out, own.as_bytes(), 0);
    build::named(out, b'C', b'P', own.as_bytes());
    if begun {
        say(out, &format!("ROLLBACK TO SAVEPOINT {own}"));
        say(out, &format!("RELEASE SAVEPOINT {own}"));
    }
    say(out, &format!("DEALLOCATE {own}"));
    out.extend_from_slice(build::SYNC);
}

/// The types of the statement's parameters, with their schemas, fit for PREPARE.
async fn type_names(p: &mut Participants<'_>, at: usize, entry: &Rc<Entry>) -> Result<Rc<[String]>, Failure> {
    let described = describe(p, at, &entry.sql, &entry.oids).await?;
    note_shape(entry, &described);
    let oids = p.parameter_types(at, &parameter_oids(&described));
    if oids.is_empty() {
        return Ok(Rc::from([]));
    }
    let list: Vec<String> =
        oids.chunks_exact(4).map(|o| u32::from_be_bytes([o[0], o[1], o[2], o[3]]).to_string()).collect();
    let sql = format!(
        "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) \
         FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY u (o, i) \
         JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) u.o \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace ORDER BY u.i",
        list.join(",")
    );
    let reply = ask(p, at, &sql).await?.ok()?;
    let names: Vec<String> = reply.rows.iter().filter_map(|row| first_text(row)).collect();
    if names.len() != list.len() {
        return Err(ProxyError::internal("a parameter's type was not found").into());
    }
    Ok(names.into())
}

fn first_text(row: &[u8]) -> Option<String> {
    let mut reader = read::body(row);
    reader.u16()?;
    let length = usize::try_from(reader.i32()?).ok()?;
    Some(String::from_utf8_lossy(reader.bytes(length)?).into_owned())
}
