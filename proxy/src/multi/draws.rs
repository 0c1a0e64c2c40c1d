//! Numbers of sequences for rows of an INSERT, drawn on the default shard for all shards (H26), mostly ahead of their use.

use super::Failure;
use super::exchange::{self, Reply};
use crate::error::ProxyError;
use crate::route::plan::Draws;
use crate::session::multi_hook::Participants;

/// For each row what its drawn columns get, as SQL behind its other values.
pub(super) async fn draw(
    p: &mut Participants<'_>,
    draws: &Draws,
    count: usize,
) -> Result<Vec<String>, Failure> {
    let list = draws.values.join(", ");
    let block = p.sequence_block();
    if block > 1 {
        // What the session's own connection knows of currval() is not what it was given.
        p.drew_elsewhere();
    }
    let mut drawn = p.take_drawn(&list, count);
    let missing = count - drawn.len();
    if missing == 0 {
        p.drew(draws, &drawn);
        return Ok(drawn);
    }
    let ahead = if block > 1 { missing.max(block) } else { missing };
    let before = p.before_drawing();
    let (mut more, error) = ask(p, &list, ahead).await?;
    if let Some(error) = error.filter(|_| more.len() < missing) {
        p.may_have_drawn();
        return Err(error);
    }
    drawn.extend(more.drain(..missing));
    p.put_drawn(&list, more, before);
    p.drew(draws, &drawn);
    Ok(drawn)
}

/// Without a block it is asked within the transaction, so that currval() knows; else on a connection that is in no
/// transaction, as drawing is not undone by any.
///
/// With an error (the sequence is at its end) comes what was drawn before it.
async fn ask(
    p: &mut Participants<'_>,
    list: &str,
    count: usize,
) -> Result<(Vec<String>, Option<Failure>), Failure> {
    let sql = format!("SELECT {list} FROM pg_catalog.generate_series(1, {count})");
    let reply: Reply = if p.in_block() && p.sequence_block() <= 1 {
        let at = p.enlist(p.default_shard(), true).await?;
        exchange::ask(p, at, &sql).await?
    } else {
        let at = p.scratch().await?;
        let reply = exchange::ask(p, at, &sql).await;
        p.give_back(at);
        reply?
    };
    let broken = || ProxyError::internal("a drawn value could not be read");
    let mut drawn = Vec::with_capacity(count);
    for row in &reply.rows {
        let mut text = String::new();
        for value in exchange::fields(row).ok_or_else(broken)? {
            text.push_str(", ");
            text.push_str(&String::from_utf8_lossy(value.ok_or_else(broken)?));
        }
        drawn.push(text);
    }
    match reply.error {
        None if drawn.len() < count => Err(broken().into()),
        error => Ok((drawn, error.map(Failure::Server))),
    }
}
