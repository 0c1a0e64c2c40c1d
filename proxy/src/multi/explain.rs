//! EXPLAIN of a query over several shards: the plan of one of them, or with ANALYZE what each of them did.

use super::Failure;
use super::statement::{Texts, run_text, say_rows};
use crate::route::plan::How;
use crate::session::multi_hook::{Message, MultiStatement, Participants};
use crate::wire::build;

/// Without ANALYZE. In formats that are not lines of text, the plan stands alone.
pub(super) async fn plan(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    how: How,
    in_text: bool,
) -> Result<Vec<u8>, Failure> {
    let names: Vec<String> = shards.iter().map(|shard| p.shard_id_at(*shard).to_string()).collect();
    let shard = match how {
        How::Each => shards.first().copied().unwrap_or(0),
        // Plain tables have rows there only.
        How::Gather | How::Apply => p.default_shard(),
    };
    let what = match how {
        How::Each => "each for its own rows",
        How::Gather => "gathered; EXPLAIN ROUTE says how",
        How::Apply => "done to copies of the rows first",
    };
    let heading = format!("Shards {}: {what}. Plan of shard {}:", names.join(", "), p.shard_id_at(shard));
    run(p, statement, &[(shard, heading)], in_text, &Texts::default()).await
}

/// With ANALYZE: every shard runs it.
pub(super) async fn each(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[usize],
    in_text: bool,
    texts: &Texts,
) -> Result<Vec<u8>, Failure> {
    let all: Vec<(usize, String)> =
        shards.iter().map(|shard| (*shard, format!("Shard {}:", p.shard_id_at(*shard)))).collect();
    run(p, statement, &all, in_text, texts).await
}

async fn run(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    shards: &[(usize, String)],
    in_text: bool,
    texts: &Texts,
) -> Result<Vec<u8>, Failure> {
    let alone = !p.in_block() && p.indices().is_empty();
    let mut description = None;
    let mut rows = Vec::new();
    let mut result = Ok(());
    for (shard, heading) in shards {
        let one = async {
            let at = p.enlist(*shard, !alone).await?;
            run_text(p, at, statement, texts.on(*shard, statement)).await
        };
        match one.await {
            Ok(reply) => {
                description = description.or(reply.description);
                if in_text {
                    rows.push(line(heading));
                }
                rows.extend(reply.rows);
            }
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    if alone {
        p.release_readers();
    }
    result?;
    say_rows(p, statement, description.as_ref(), &rows).await;
    let mut complete = Vec::new();
    build::command_complete(&mut complete, "EXPLAIN");
    Ok(complete)
}

/// A row of one text, which is the same in text and in binary.
pub(super) fn line(text: &str) -> Message {
    let mut row = Vec::new();
    build::data_row(&mut row, &[text]);
    row
}
