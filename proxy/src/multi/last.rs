//! The last query of a gathering, on the server that has all its rows: its answer goes to the client.

use super::Failure;
use super::exchange;
use super::pour::without_position;
use super::scatter::client_gone;
use crate::error::ProxyError;
use crate::route::plan::{Around, Effect};
use crate::session::multi_hook::{Gathered, Message, MultiStatement, Name, Participants, Protocol, Running};
use crate::wire::build;

pub(super) struct Answer {
    /// CommandComplete, or PortalSuspended.
    pub(super) complete: Vec<u8>,
    /// The connection is kept, and no participant any more.
    pub(super) kept: bool,
}

/// May there be rows left when the statement has been answered?
pub(super) fn goes_on(statement: &MultiStatement) -> bool {
    statement.routed.plan.around == Around::Cursor || limit(statement) > 0
}

/// Rows that Execute asks for; 0 for all.
pub(super) fn limit(statement: &MultiStatement) -> i32 {
    match &statement.protocol {
        Protocol::Extended { max_rows, .. } if statement.routed.plan.around == Around::Nothing => {
            (*max_rows).max(0)
        }
        _ => 0,
    }
}

/// `described`: the client's own query as one server describes it.
pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    scratch: usize,
    text: &str,
    described: Option<Message>,
    oids: &[u8],
) -> Result<Answer, Failure> {
    let around = statement.routed.plan.around;
    let (_, tail) = super::gather::protocol(statement);
    let server = p.server(scratch);
    server.unnamed = 0;
    build::parse(&mut server.out, b"", text.as_bytes(), oids);
    super::pour::bind(&mut server.out, b"", tail);
    if around != Around::Nothing {
        build::named(&mut server.out, b'D', b'P', b"");
    }
    execute(&mut server.out, b"", limit(statement));
    server.out.extend_from_slice(build::SYNC);
    p.flush(scratch).await.map_err(|_| exchange::lost(p, scratch))?;
    let (described_first, no_data) = match &statement.protocol {
        Protocol::Simple => (true, false),
        Protocol::Extended { describe, .. } => (*describe, *describe),
    };
    // Said with the first row, or at the end: an error comes without it, as from one server.
    let mut first = described.clone().filter(|_| described_first && around == Around::Nothing);
    let mut heading = match around {
        Around::Explain { text: true, .. } => {
            Some(super::explain::line("The shards' rows were brought to one server; what it did with them:"))
        }
        _ => None,
    };
    let mut say = |message: Message| match message[0] {
        b'T' if described_first => Say::Now(message),
        b'n' if no_data => Say::Now(message),
        b'D' | b'C' | b's' => {
            let mut before = first.take().unwrap_or_default();
            before.extend(heading.take().unwrap_or_default());
            if message[0] != b'D' {
                return Say::Last(before, message);
            }
            if before.is_empty() {
                return Say::Now(message);
            }
            before.extend_from_slice(&message);
            Say::Now(before)
        }
        b'H' | b'd' | b'c' | b'N' => Say::Now(message),
        _ => Say::Nothing,
    };
    let complete = relay(p, scratch, &mut say).await?;
    let name = match (&statement.routed.plan.effect, &statement.protocol) {
        (Effect::Declare(name), _) if around == Around::Cursor => Name::Cursor(name.clone()),
        (_, Protocol::Extended { portal, .. }) if complete.first() == Some(&b's') => {
            p.suspend_portal(portal);
            Name::Portal(portal.clone())
        }
        _ => return Ok(Answer { complete, kept: false }),
    };
    let server = p.take_server(scratch);
    let described = described.filter(|_| around == Around::Cursor);
    p.keep(name, Running::Gathered(Gathered { server, plan: statement.routed.plan.clone(), described }));
    Ok(Answer { complete, kept: true })
}

pub(super) fn execute(out: &mut Vec<u8>, portal: &[u8], max_rows: i32) {
    let start = build::begin(out, b'E');
    build::cstr(out, portal);
    out.extend_from_slice(&max_rows.to_be_bytes());
    build::end(out, start);
}

/// What becomes of a server's message.
pub(super) enum Say {
    Now(Vec<u8>),
    /// Says the first, and keeps the second to be said when all is done.
    Last(Vec<u8>, Message),
    Nothing,
}

/// Passes an answer on up to ReadyForQuery; returns its last message.
pub(super) async fn relay(
    p: &mut Participants<'_>,
    at: usize,
    say: &mut dyn FnMut(Message) -> Say,
) -> Result<Vec<u8>, Failure> {
    let mut complete = None;
    let mut failure = None;
    loop {
        let message = p.receive(at).await.map_err(|_| exchange::lost(p, at))?;
        match message[0] {
            b'Z' => break,
            b'E' => {
                failure.get_or_insert(Failure::Server(without_position(&message)));
            }
            b'S' => p.parameter_status(at, &message),
            _ if failure.is_some() => {}
            _ => {
                let due = match say(message) {
                    Say::Now(bytes) => bytes,
                    Say::Last(bytes, message) => {
                        complete = Some(message);
                        bytes
                    }
                    Say::Nothing => continue,
                };
                if !due.is_empty() && !p.reply(&due).await {
                    p.discard(at);
                    return Err(client_gone());
                }
            }
        }
    }
    match (failure, complete) {
        (Some(failure), _) => Err(failure),
        (None, Some(complete)) => Ok(complete),
        (None, None) => Err(ProxyError::internal("a query ended without saying so").into()),
    }
}
