//! FETCH, MOVE and CLOSE of a cursor over several shards: said to the server that has its rows.

use super::Failure;
use super::exchange;
use super::gather::give_back;
use super::last::{Say, relay};
use super::prepared::formats;
use super::statement::compose;
use crate::error::ProxyError;
use crate::route::plan::Effect;
use crate::session::multi_hook::{Gathered, Message, MultiStatement, Name, Participants, Protocol, Running};

/// Returns the CommandComplete that is due.
pub(super) async fn run(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<Vec<u8>, Failure> {
    let Effect::Cursor(Some(cursor)) = &statement.routed.plan.effect else {
        return Err(ProxyError::internal("a cursor without a name").into());
    };
    let name = Name::Cursor(cursor.clone());
    let Some((Running::Gathered(gathered), depth)) = p.take_running(&name) else {
        return Err(ProxyError::new("34000", format!("cursor \"{cursor}\" does not exist")).into());
    };
    let Gathered { server, plan, described: columns } = gathered;
    let at = p.add_server(server);
    let described = match &statement.protocol {
        Protocol::Simple => true,
        Protocol::Extended { describe, .. } => *describe,
    };
    let extended = matches!(statement.protocol, Protocol::Extended { .. });
    compose(p, at, statement, statement.text(), None);
    let result = match p.flush(at).await {
        Ok(()) => {
            let mut say = |message: Message| match message[0] {
                b'T' if described => Say::Now(match &columns {
                    Some(columns) => with_formats_of(columns, message),
                    None => message,
                }),
                b'n' if described && extended => Say::Now(message),
                b'D' | b'N' => Say::Now(message),
                b'C' => Say::Last(Vec::new(), message),
                _ => Say::Nothing,
            };
            relay(p, at, &mut say).await
        }
        Err(_) => Err(exchange::lost(p, at).into()),
    };
    let closed = result.as_ref().map_or(true, |complete| complete.get(5..10) == Some(b"CLOSE"));
    if closed {
        // After an error the cursor could not be used either.
        give_back(p, at).await;
    } else {
        let server = p.take_server(at);
        p.keep_again(name, Running::Gathered(Gathered { server, plan, described: columns }), depth);
    }
    result
}

/// The cursor's columns as its query was described, in the formats that this FETCH (or a BINARY cursor) gives them.
fn with_formats_of(columns: &[u8], told: Message) -> Message {
    let (Some(ours), Some(theirs)) = (formats(columns), formats(&told)) else { return told };
    if ours.len() != theirs.len() {
        return told;
    }
    let mut out = columns.to_vec();
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        out[ours].copy_from_slice(&told[theirs]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build;

    #[test]
    fn columns_of_the_query_in_the_formats_of_the_fetch() {
        let described = |table: u8, format: u8| {
            let mut out = Vec::new();
            build::row_description(&mut out, &[("a", build::TEXT), ("bc", build::INT4)]);
            let places = formats(&out).unwrap_or_default();
            for place in &places {
                out[place.end - 1] = format;
                out[place.start - 13] = table;
            }
            (out, places.len())
        };
        let ((query, count), (fetch, _)) = (described(7, 0), described(9, 1));
        assert_eq!(count, 2);
        assert_eq!(with_formats_of(&query, fetch), described(7, 1).0);
        // Of another shape: it is not this cursor's.
        let mut one = Vec::new();
        build::row_description(&mut one, &[("a", build::TEXT)]);
        assert_eq!(with_formats_of(&query, one.clone()), one);
    }
}
