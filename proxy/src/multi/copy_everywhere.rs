//! COPY ... FROM STDIN of a reference table: the client's stream goes to every shard as it is, in one transaction.
//!
//! No row is read here, so any format and encoding will do. All streams run at the same time, because the rows cannot
//! be asked for twice; so, unlike with the other reference writes, the first shard's row locks would not keep a
//! second writer waiting there (H22). A lock on the first shard's table does, which every reference write asks first.

use std::sync::Arc;

use super::Failure;
use super::copy::{self, Copy};
use super::exchange::ask;
use super::statement::disagree;
use crate::route::plan::CopyIn;
use crate::session::multi_hook::{Message, MultiStatement, Participants};
use crate::wire::build;

pub(super) async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    copied: &Arc<CopyIn>,
) -> Result<Vec<u8>, Failure> {
    let first = p.enlist(0, true).await?;
    let (schema, table) = (quoted(&copied.table.0), quoted(&copied.table.1));
    // Conflicts with the lock that any writer takes and with itself, and not with readers.
    ask(p, first, &format!("LOCK TABLE {schema}.{table} IN SHARE ROW EXCLUSIVE MODE")).await?.ok()?;
    let mut copies = Copy::new(statement, &copied.table.1, false);
    match stream(p, &mut copies).await {
        Ok(()) => end(p, &mut copies).await,
        Err(failure) => {
            copies.give_up(p, "COPY failed on another shard").await;
            Err(failure)
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn stream(p: &mut Participants<'_>, copies: &mut Copy<'_>) -> Result<(), Failure> {
    let mut begin = Message::new();
    for shard in p.members() {
        begin = copies.open(p, shard).await?;
    }
    copies.begin(p, &begin).await?;
    while let Some(data) = copy::next(p).await? {
        for index in 0..copies.count() {
            copies.queue(index, &data[5..]);
            copies.send(p, index).await?;
        }
    }
    Ok(())
}

/// The stream is over on all shards; every one must have taken the same number of rows.
async fn end(p: &mut Participants<'_>, copies: &mut Copy<'_>) -> Result<Vec<u8>, Failure> {
    let mut tag: Option<String> = None;
    for (at, reply) in copies.finish(p).await? {
        let theirs = reply.tag.unwrap_or_default();
        let ours = tag.get_or_insert_with(|| theirs.clone());
        if *ours != theirs {
            return Err(disagree(&format!(": {ours} on the first, {theirs} on shard {}", p.shard_id(at))));
        }
    }
    let mut complete = Vec::new();
    build::command_complete(&mut complete, &tag.unwrap_or_else(|| "COPY 0".to_owned()));
    Ok(complete)
}
