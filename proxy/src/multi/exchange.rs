//! Asking one server, or several at once, and collecting what they say.

use super::Failure;
use super::limits::RETURNING;
use crate::error::ProxyError;
use crate::session::multi_hook::{Message, Participants};
use crate::wire::{build, read};

/// A server's answer up to ReadyForQuery.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// RowDescription or NoData.
    pub(super) description: Option<Message>,
    /// ParameterDescription.
    pub(super) parameters: Option<Message>,
    pub(super) rows: Vec<Message>,
    pub(super) tag: Option<String>,
    pub(super) error: Option<Message>,
    pub(super) notices: Vec<Message>,
}

impl Reply {
    /// The reply, or the error in it.
    pub(super) fn ok(self) -> Result<Self, Failure> {
        match self.error {
            Some(error) => Err(Failure::Server(error)),
            None => Ok(self),
        }
    }

    /// The first column of the first row.
    pub(super) fn value(&self) -> Option<String> {
        let mut reader = read::body(self.rows.first()?);
        reader.u16()?;
        let length = reader.i32()?;
        let bytes = reader.bytes(usize::try_from(length).ok()?)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// n of "INSERT 0 n", "UPDATE n", "COPY n".
    pub(super) fn count(&self) -> u64 {
        self.tag.as_deref().and_then(|t| t.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    }
}

/// The values of a DataRow. `None`: it is broken.
pub(super) fn fields(row: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let mut reader = read::body(row);
    let count = reader.u16()?;
    let mut fields = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = reader.i32()?;
        fields.push(match usize::try_from(length) {
            Ok(length) => Some(reader.bytes(length)?),
            Err(_) => None,
        });
    }
    Some(fields)
}

/// Before the commit point a lost server has only one meaning.
pub(super) fn lost(p: &mut Participants<'_>, at: usize) -> ProxyError {
    p.discard(at);
    p.transaction_is_lost();
    ProxyError::participant_lost(p.server(at).pool.shard_id)
}

pub(super) async fn send(p: &mut Participants<'_>, at: usize, sql: &[u8]) -> Result<(), ProxyError> {
    build::query(&mut p.server(at).out, sql);
    p.server(at).unnamed = 0; // A simple query drops the unnamed statement.
    p.flush(at).await.map_err(|_| lost(p, at))
}

pub(super) async fn ask(p: &mut Participants<'_>, at: usize, sql: &str) -> Result<Reply, ProxyError> {
    send(p, at, sql.as_bytes()).await?;
    gather(p, at).await
}

/// Reads up to ReadyForQuery. The rows of one answer are bounded; what is more is an error of ours.
pub(super) async fn gather(p: &mut Participants<'_>, at: usize) -> Result<Reply, ProxyError> {
    let mut reply = Reply::default();
    let mut bytes = 0;
    loop {
        let message = p.receive(at).await.map_err(|_| lost(p, at))?;
        match message[0] {
            b'Z' => break,
            b'E' if reply.error.is_none() => reply.error = Some(message),
            b'N' if reply.notices.len() < 100 => reply.notices.push(message),
            b'T' | b'n' => reply.description = Some(message),
            b't' => reply.parameters = Some(message),
            b'D' => {
                bytes += message.len();
                if bytes <= RETURNING {
                    reply.rows.push(message);
                }
            }
            b'C' => {
                let tag = read::body(&message).cstr().unwrap_or_default();
                reply.tag = Some(String::from_utf8_lossy(tag).into_owned());
            }
            b'S' => p.parameter_status(at, &message),
            _ => {}
        }
    }
    if bytes > RETURNING {
        return Err(ProxyError::new(
            "54000",
            format!("the rows that this statement returns exceed {RETURNING} bytes"),
        )
        .hint("Return fewer rows, or run the statement once for each key."));
    }
    Ok(reply)
}

/// Sends to all, then collects from all: the shards work at the same time. All answers are read, whatever they say,
/// so that every server is ready for what follows.
pub(super) async fn ask_all(
    p: &mut Participants<'_>,
    questions: &[(usize, String)],
) -> Vec<(usize, Result<Reply, ProxyError>)> {
    let sent = send_all(p, questions).await;
    gather_all(p, sent).await
}

pub(super) type Sent = Vec<(usize, Result<(), ProxyError>)>;

pub(super) async fn send_all(p: &mut Participants<'_>, questions: &[(usize, String)]) -> Sent {
    let mut sent = Vec::new();
    for (at, sql) in questions {
        sent.push((*at, send(p, *at, sql.as_bytes()).await));
    }
    sent
}

pub(super) async fn gather_all(
    p: &mut Participants<'_>,
    sent: Sent,
) -> Vec<(usize, Result<Reply, ProxyError>)> {
    let mut replies = Vec::new();
    for (at, sent) in sent {
        replies.push((
            at,
            match sent {
                Ok(()) => gather(p, at).await,
                Err(error) => Err(error),
            },
        ));
    }
    replies
}

pub(super) async fn say_tag(p: &mut Participants<'_>, tag: &str) {
    let mut bytes = Vec::new();
    build::command_complete(&mut bytes, tag);
    p.reply(&bytes).await;
}

/// An ErrorResponse with some fields changed: `None` from `change` drops a field.
pub(super) fn change_fields(message: &[u8], change: impl Fn(u8, &str) -> Option<String>) -> Message {
    let mut out = Vec::with_capacity(message.len());
    let start = build::begin(&mut out, message.first().copied().unwrap_or(b'E'));
    let mut reader = read::body(message);
    while let Some(tag) = reader.u8().filter(|tag| *tag != 0) {
        let Some(text) = reader.cstr() else { break };
        if let Some(text) = change(tag, &String::from_utf8_lossy(text)) {
            out.push(tag);
            build::cstr(&mut out, text.as_bytes());
        }
    }
    out.push(0);
    build::end(&mut out, start);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_an_error_are_changed_and_dropped() {
        let mut message = Vec::new();
        let start = build::begin(&mut message, b'E');
        for (tag, text) in [(b'S', "ERROR"), (b'C', "23505"), (b'P', "17")] {
            message.push(tag);
            build::cstr(&mut message, text.as_bytes());
        }
        message.push(0);
        build::end(&mut message, start);
        let changed = change_fields(&message, |tag, text| match tag {
            b'P' => None,
            b'C' => Some(text.replace("23505", "XX000")),
            _ => Some(text.to_owned()),
        });
        assert_eq!(read::error_field(&changed, b'C'), Some(&b"XX000"[..]));
        assert_eq!(read::error_field(&changed, b'P'), None);
        assert_eq!(read::error_field(&changed, b'S'), Some(&b"ERROR"[..]));
        assert_eq!(
            usize::try_from(i32::from_be_bytes([changed[1], changed[2], changed[3], changed[4]])),
            Ok(changed.len() - 1)
        );
    }

    #[test]
    fn counts_of_tags() {
        let count = |tag: &str| Reply { tag: Some(tag.into()), ..Reply::default() }.count();
        assert_eq!(
            (count("INSERT 0 7"), count("UPDATE 3"), count("COPY 12"), count("CREATE TABLE")),
            (7, 3, 12, 0)
        );
    }
}
