//! The end of a transaction with several participants (DESIGN section 6, H4, H16, H18, H19).
//!
//! Who wrote is asked of the shards: a SELECT may call a function that writes. With at most one writer, plain
//! COMMITs are atomic, the readers' first, because a reader's can fail (SERIALIZABLE) and the writer's then must not
//! have happened. With several: two phases, see `twophase`.

use tokio::time::timeout;

use super::Failure;
use super::exchange::{self, ask, ask_all, gather, send};
use super::limits::{RESOLVE, RESOLVE_PAUSE};
use crate::error::{ProxyError, Retry};
use crate::session::multi_hook::{Message, Participants};
use crate::twophase::fault::{Step, reach};
use crate::twophase::{Gid, Outcome};
use crate::wire::{build, read};

const WHO_WROTE: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text";
/// Fails in any transaction block, and so aborts it.
const FAIL: &str = "ROLLBACK TO SAVEPOINT shard_proxy_abort";

/// Commits on all participants, or on none.
pub(super) async fn commit(p: &mut Participants<'_>) -> Result<(), Failure> {
    // A client that hangs up now has said COMMIT, or its statement is done: a decision is carried out.
    p.go_on_without_client(true);
    let result = commit_all(p).await;
    p.go_on_without_client(false);
    if result.is_err() {
        rollback_rest(p).await;
    }
    let committed = result.is_ok();
    p.finish(committed);
    if committed && p.take_schema_changed() {
        // The next statement of this client must see the new schema (H39), and a sequence may begin anew.
        p.reset_sequences();
        p.control().refresh().await;
    }
    result
}

/// Rolls back on all participants. What cannot be reached rolls back by itself.
pub(super) async fn rollback(p: &mut Participants<'_>) {
    rollback_rest(p).await;
    p.take_schema_changed();
    p.finish(false);
}

async fn rollback_rest(p: &mut Participants<'_>) {
    let _ = settle(p).await;
    for at in p.indices() {
        if !p.server(at).dirty && p.server(at).status != b'I' {
            let _ = ask(p, at, "ROLLBACK").await;
        }
    }
}

/// After an error within a transaction block: every participant refuses everything but ROLLBACK, as one server
/// would (H21).
pub(super) async fn fail_all(p: &mut Participants<'_>) {
    let _ = settle(p).await;
    for at in p.indices() {
        if !p.server(at).dirty && p.server(at).status == b'T' {
            let _ = ask(p, at, FAIL).await;
        }
    }
    p.transaction_failed();
}

/// Ends the extended batch on every participant without ending its transaction, so that it can be spoken to by
/// simple queries. A participant that is still in an implicit transaction gets a BEGIN first: that turns the
/// implicit transaction, with all that was done in it, into a block (`BeginTransactionBlock` in
/// src/backend/access/transam/xact.c), which is what PREPARE TRANSACTION wants (H20).
pub(super) async fn settle(p: &mut Participants<'_>) -> Result<(), ProxyError> {
    let implicit = !p.in_block();
    let mut result = Ok(());
    for at in p.indices() {
        let server = p.server(at);
        if server.dirty || !(server.unsynced || (implicit && server.status == b'I')) {
            continue;
        }
        if implicit && server.status == b'I' {
            server.unnamed = 0;
            build::parse(&mut server.out, b"", b"BEGIN", b"");
            bind_execute(&mut server.out, &[0; 6], false);
        }
        server.out.extend_from_slice(build::SYNC);
        let settled = match p.flush(at).await {
            Ok(()) => gather(p, at).await.map(drop),
            Err(_) => Err(exchange::lost(p, at)),
        };
        result = result.and(settled);
    }
    result
}

/// Bind of the unnamed statement to the unnamed portal, and Execute without a limit.
pub(super) fn bind_execute(out: &mut Vec<u8>, tail: &[u8], describe: bool) {
    let start = build::begin(out, b'B');
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(tail);
    build::end(out, start);
    if describe {
        build::named(out, b'D', b'P', b"");
    }
    let start = build::begin(out, b'E');
    out.extend_from_slice(&[0; 5]);
    build::end(out, start);
}

async fn commit_all(p: &mut Participants<'_>) -> Result<(), Failure> {
    if let Some(shard) = p.untold_loss() {
        return Err(ProxyError::participant_lost(shard).into());
    }
    settle(p).await?;
    let all = p.indices();
    for at in &all {
        if p.server(*at).dirty || p.server(*at).status != b'T' || p.is_demoted(*at) {
            // Also a participant whose implicit transaction has failed and rolled back.
            return Err(ProxyError::new("40000", "a participant of the transaction has rolled back").into());
        }
    }
    if let [one] = all.as_slice() {
        // Whether it has written or not, nobody else has.
        return commit_one(p, *one).await;
    }
    let questions: Vec<_> = all.iter().map(|at| (*at, WHO_WROTE.to_owned())).collect();
    let mut writers: Vec<(usize, u64)> = Vec::new();
    let mut readers = Vec::new();
    for (at, reply) in ask_all(p, &questions).await {
        match reply?.ok()?.value().and_then(|xid| xid.parse().ok()) {
            Some(xid) => writers.push((at, xid)),
            None => readers.push(at),
        }
    }
    for at in readers {
        ask(p, at, "COMMIT").await?.ok()?;
    }
    match writers.as_slice() {
        [] => Ok(()),
        [(one, _)] => commit_one(p, *one).await,
        _ => two_phases(p, writers).await,
    }
}

async fn commit_one(p: &mut Participants<'_>, at: usize) -> Result<(), Failure> {
    let shard = p.server(at).pool.shard_id;
    let reply = match send(p, at, b"COMMIT").await {
        Ok(()) => gather(p, at).await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(reply) => reply.ok().map(drop),
        Err(_) => {
            p.abandon_marks(at);
            Err(ProxyError::outcome_unknown(shard).into())
        }
    }
}

async fn two_phases(p: &mut Participants<'_>, mut writers: Vec<(usize, u64)>) -> Result<(), Failure> {
    // A pinned server may hold what cannot be prepared (temporary tables, LISTEN), so it decides (H18); else the
    // lowest shard.
    writers.sort_by_key(|(at, _)| (!p.is_pinned(*at), p.server(*at).shard));
    let (first, xid) = writers[0];
    let others: Vec<usize> = writers[1..].iter().map(|(at, _)| *at).collect();
    let gid = p.new_gid(first, xid);
    let shards: Vec<_> = others.iter().map(|at| p.shard_id(*at)).collect();

    let list = shards.iter().map(|shard| shard.to_string()).collect::<Vec<_>>().join(",");
    let mut questions = vec![(first, format!("SELECT shard_catalog.decide('{gid}', '{{{list}}}')"))];
    for at in &others {
        questions.push((*at, format!("SELECT shard_catalog.apply('{gid}'); PREPARE TRANSACTION '{gid}'")));
    }
    let mut failure = None;
    let mut prepared = Vec::new();
    let mut in_doubt = false;
    reach(Step::BeforePrepare, &gid, &shards).await;
    for (at, reply) in ask_all_stopping(p, &questions, 2, Step::BetweenPrepares, (&gid, &shards)).await {
        match reply {
            Ok(reply) => match reply.ok() {
                // PREPARE TRANSACTION in a failed transaction is a ROLLBACK, and says so.
                Ok(reply) if at != first && reply.tag.as_deref() != Some("PREPARE TRANSACTION") => {
                    failure.get_or_insert(ProxyError::new("40000", "a participant has rolled back").into());
                }
                Ok(_) if at != first => prepared.push(at),
                Ok(_) => {}
                Err(error) => drop(failure.get_or_insert(error)),
            },
            Err(error) => {
                in_doubt |= at != first;
                failure.get_or_insert(error.into());
            }
        }
    }
    if let Some(failure) = failure {
        abort_prepared(p, first, &gid, &prepared).await;
        if in_doubt {
            // A server was lost after PREPARE was sent. The first participant has not committed and will not.
            resolve_later(p, gid, shards);
        }
        return Err(failure);
    }

    reach(Step::BeforeCommit, &gid, &shards).await;
    // The commit point.
    let reply = match send(p, first, b"COMMIT").await {
        Ok(()) => {
            reach(Step::AtCommit, &gid, &shards).await;
            gather(p, first).await
        }
        Err(error) => Err(error),
    };
    match reply {
        Ok(reply) if reply.tag.as_deref() == Some("COMMIT") => {}
        Ok(reply) => {
            // Deferred constraints, SERIALIZABLE: it has rolled back.
            abort_prepared(p, first, &gid, &prepared).await;
            let error = reply.error.map(Failure::Server);
            return Err(
                error.unwrap_or_else(|| ProxyError::new("40000", "the transaction has rolled back").into())
            );
        }
        Err(_) => return resolve_now(p, first, gid, shards).await,
    }

    reach(Step::AfterCommit, &gid, &shards).await;
    let questions: Vec<_> = prepared.iter().map(|at| (*at, format!("COMMIT PREPARED '{gid}'"))).collect();
    let mut unfinished = Vec::new();
    for (at, reply) in ask_all_stopping(p, &questions, 1, Step::BetweenCommits, (&gid, &shards)).await {
        let done = match &reply {
            Ok(reply) => reply.error.as_ref().is_none_or(|e| is_missing(e)),
            Err(_) => false,
        };
        if !done {
            unfinished.push(p.shard_id(at));
        }
    }
    if !unfinished.is_empty() {
        // Decided and durable; only somebody has to carry it out. Reads right behind this COMMIT would miss it, so
        // the client is answered when it is done, or told (H19).
        let (_, waiting) = resolve_patiently(p, &gid, unfinished).await;
        abandon_prepared(p, &gid, &waiting);
        for shard in waiting {
            let mut bytes = Vec::new();
            let text = format!(
                "the transaction is committed; its part on shard {shard} becomes visible when that shard is back"
            );
            build::warning(&mut bytes, "01000", &text);
            p.reply(&bytes).await;
        }
    }
    reach(Step::BeforeAnswer, &gid, &shards).await;
    Ok(())
}

/// `ask_all` with a fault point behind the first `head` questions, if there are more.
async fn ask_all_stopping(
    p: &mut Participants<'_>,
    questions: &[(usize, String)],
    head: usize,
    step: Step,
    (gid, others): (&Gid, &[shard_config::ShardId]),
) -> Vec<(usize, Result<exchange::Reply, ProxyError>)> {
    let (head, tail) = questions.split_at(head.min(questions.len()));
    let mut sent = exchange::send_all(p, head).await;
    if !tail.is_empty() {
        reach(step, gid, others).await;
        sent.extend(exchange::send_all(p, tail).await);
    }
    exchange::gather_all(p, sent).await
}

/// Recovery was faster.
fn is_missing(error: &Message) -> bool {
    read::error_field(error, b'C') == Some(b"42704")
}

async fn abort_prepared(p: &mut Participants<'_>, first: usize, gid: &Gid, prepared: &[usize]) {
    // First the one that could decide to commit.
    if !p.server(first).dirty && p.server(first).status != b'I' {
        let _ = ask(p, first, "ROLLBACK").await;
    }
    let questions: Vec<_> = prepared.iter().map(|at| (*at, format!("ROLLBACK PREPARED '{gid}'"))).collect();
    let mut left = Vec::new();
    for (at, reply) in ask_all(p, &questions).await {
        if !matches!(&reply, Ok(reply) if reply.error.is_none()) {
            left.push(p.shard_id(at));
        }
    }
    if !left.is_empty() {
        resolve_later(p, gid.clone(), left);
    }
}

/// The marks of participants that are finished end with the transaction; the others' prepared transactions will be
/// committed when nobody here looks any more, so their marks stay until then (H7).
fn abandon_prepared(p: &mut Participants<'_>, gid: &Gid, waiting: &[shard_config::ShardId]) {
    for at in p.indices() {
        if waiting.contains(&p.shard_id(at)) {
            p.abandon_prepared(at, gid);
        }
    }
}

fn resolve_later(p: &mut Participants<'_>, gid: Gid, shards: Vec<shard_config::ShardId>) {
    let control = p.control();
    tokio::task::spawn_local(async move { timeout(RESOLVE, control.resolve(gid, shards)).await });
}

/// Asks until everything is finished, for as long as a client can be kept waiting: a server that restarts is back
/// within that time.
async fn resolve_patiently(
    p: &mut Participants<'_>,
    gid: &Gid,
    shards: Vec<shard_config::ShardId>,
) -> (Outcome, Vec<shard_config::ShardId>) {
    let control = p.control();
    let deadline = tokio::time::Instant::now() + RESOLVE;
    let mut last = (Outcome::Unknown, shards.clone());
    while tokio::time::Instant::now() < deadline {
        match timeout(RESOLVE, control.resolve(gid.clone(), shards.clone())).await {
            Ok((outcome, waiting)) if outcome != Outcome::Unknown && waiting.is_empty() => {
                return (outcome, waiting);
            }
            Ok(resolved) => last = resolved,
            Err(_) => break,
        }
        tokio::time::sleep(RESOLVE_PAUSE).await;
    }
    last
}

/// COMMIT was sent to the first participant and its answer will never come: the shards know.
async fn resolve_now(
    p: &mut Participants<'_>,
    first: usize,
    gid: Gid,
    shards: Vec<shard_config::ShardId>,
) -> Result<(), Failure> {
    let shard = p.server(first).pool.shard_id;
    let (outcome, waiting) = resolve_patiently(p, &gid, shards).await;
    p.abandon_marks(first);
    abandon_prepared(p, &gid, &waiting);
    match outcome {
        Outcome::Committed => {
            if let Some(shard) = waiting.first() {
                let mut bytes = Vec::new();
                build::warning(
                    &mut bytes,
                    "01000",
                    &format!("the transaction is committed; shard {shard} will follow"),
                );
                p.reply(&bytes).await;
            }
            Ok(())
        }
        Outcome::Aborted => Err(ProxyError::new(
            "40000",
            format!(
                "connection to shard {shard} was lost at COMMIT: the transaction is rolled back on all shards"
            ),
        )
        .hint("Run the transaction again.")
        .retry(Retry::Safe)
        .into()),
        Outcome::Unknown => Err(ProxyError::outcome_unknown(shard).into()),
    }
}
