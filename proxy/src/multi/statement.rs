//! One statement on all shards.

use super::exchange::{self, Reply, ask};
use super::{
    Failure, apply, commit, copy, copy_out, current, cursors, explain, gather, last, portals, scatter,
    split_insert,
};
use shard_config::ShardId;

use crate::error::ProxyError;
use crate::route::Resolved;
use crate::route::plan::{Access, Around, Broadcast, Effect, How, Refusal};
use crate::session::multi_hook::{MultiStatement, Participants, Protocol};
use crate::session::prepared::{says_it_exists, tag_of_execute};
use crate::wire::{build, read};

/// Runs it, and outside of any transaction commits it before its last reply.
pub(super) async fn run(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<(), Failure> {
    let alone = !p.in_block() && matches!(statement.protocol, Protocol::Simple);
    // Several statements in one message are a block, too (BeginImplicitTransactionBlock in
    // src/backend/access/transam/xact.c): they do not come here.
    let verb = match statement.routed.plan.effect {
        Effect::NeedsBlock(verb) => Some(verb),
        _ => (statement.routed.plan.around == Around::Cursor).then_some("DECLARE CURSOR"),
    };
    if let Some(verb) = verb.filter(|_| !p.in_block()) {
        let message = format!("{verb} can only be used in transaction blocks");
        return Err(ProxyError::new("25P01", message).into());
    }
    if let Resolved::All(Broadcast::DdlAutocommit) = statement.resolved {
        // Half done on one shard it is worse than done, so nobody's leaving stops it.
        p.go_on_without_client(true);
        let result = one_by_one(p, statement).await;
        p.go_on_without_client(false);
        return result;
    }
    if let Resolved::SplitInsert(rows) = &statement.resolved
        && p.indices().is_empty()
        && !p.in_block()
        && (alone || p.sync_follows())
        && split_insert::is_for_one(rows)
    {
        return split_insert::alone(p, statement, rows).await;
    }
    let complete = execute(p, statement).await?;
    // What only read has no transaction left to end.
    if alone && !p.indices().is_empty() {
        commit::commit(p).await?;
    }
    p.reply(&complete).await;
    Ok(())
}

/// Runs it within the transaction; returns the CommandComplete that is due.
pub(super) async fn execute(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
) -> Result<Vec<u8>, Failure> {
    // Servers that are in an implicit transaction must not commit by the Syncs that follow.
    commit::settle(p).await?;
    if last::limit(statement) > 0 {
        p.may_keep()?;
    }
    let complete = match &statement.resolved {
        Resolved::All(kind) => everywhere_alike(p, statement, *kind).await,
        Resolved::SplitInsert(rows) => split_insert::run(p, statement, rows).await,
        Resolved::CopyIn(copy) => copy::run(p, statement, copy).await,
        Resolved::Scatter { how, shards } => scattered(p, statement, *how, shards.as_deref()).await,
        Resolved::Cursor => cursors::run(p, statement).await,
        Resolved::Drawn => current::run(p, statement).await,
        _ => Err(ProxyError::internal("a statement for one shard was sent to several").into()),
    }?;
    Ok(portals::ended(p, statement, complete))
}

async fn scattered(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    how: How,
    shards: Option<&[ShardId]>,
) -> Result<Vec<u8>, Failure> {
    let mut places = Vec::new();
    match shards {
        None => places.extend(p.members()),
        Some(shards) => {
            for shard in shards {
                places.push(p.position(*shard).ok_or_else(|| {
                    ProxyError::no_primary(shard.0, "the map names it but the configuration does not")
                })?);
            }
        }
    }
    // In one order, wherever locks are taken.
    places.sort_unstable();
    let around = statement.routed.plan.around;
    if let Around::Explain { analyze: false, text } = around {
        return explain::plan(p, statement, &places, how, text).await;
    }
    let writes = statement.routed.plan.access == Access::Write;
    let (how, texts) = match how {
        How::Each => match Texts::of(p, statement, &places) {
            Ok(texts) => (How::Each, texts),
            // What no shard can leave out is left out of what is brought together, or of the copies.
            Err(refusal) => (instead(&refusal, around, writes)?, Texts::default()),
        },
        how => (how, Texts::default()),
    };
    let done = match (how, around) {
        (How::Gather, _) => gather::run(p, statement, &places).await,
        (How::Apply, _) => apply::run(p, statement, &places).await,
        (How::Each, Around::Explain { text, .. }) => explain::each(p, statement, &places, text, &texts).await,
        (How::Each, Around::CopyOut { header }) => copy_out::run(p, statement, &places, header, &texts).await,
        (How::Each, _) if writes => scatter::write(p, statement, &places, &texts).await,
        (How::Each, _) if last::goes_on(statement) => portals::open(p, statement, &places, &texts).await,
        (How::Each, _) => scatter::read(p, statement, &places, &texts).await,
    };
    // A position in a text that the client does not know tells it nothing.
    match done {
        Err(Failure::Server(message)) if !texts.0.is_empty() => {
            Err(Failure::Server(super::pour::without_position(&message)))
        }
        done => done,
    }
}

/// What shards run in the place of the statement's own text, while rows are on their way (H30).
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<(usize, String)>);

impl Texts {
    fn of(p: &Participants<'_>, statement: &MultiStatement, shards: &[usize]) -> Result<Self, Refusal> {
        let mut texts = Vec::new();
        for shard in shards {
            if let Some(text) = p.hidden_text(*shard, statement.text(), false)? {
                texts.push((*shard, text));
            }
        }
        Ok(Self(texts))
    }

    pub(super) fn on<'t>(&'t self, shard: usize, statement: &'t MultiStatement) -> &'t [u8] {
        let own = self.0.iter().find(|(of, _)| *of == shard);
        own.map_or_else(|| statement.text(), |(_, text)| text.as_bytes())
    }
}

/// How a statement is answered that the shards cannot each answer for the rows that they own.
fn instead(refusal: &Refusal, around: Around, writes: bool) -> Result<How, Failure> {
    match around {
        Around::Nothing | Around::CopyOut { .. } | Around::Cursor if !writes => Ok(How::Gather),
        Around::Nothing => Ok(How::Apply),
        _ => Err(ProxyError::from(refusal).into()),
    }
}

/// Composes the statement for one server: `text` in place of its own, `oids` in place of the declared types.
pub(super) fn compose(
    p: &mut Participants<'_>,
    at: usize,
    statement: &MultiStatement,
    text: &[u8],
    oids: Option<&[u8]>,
) {
    p.server(at).unnamed = 0;
    match &statement.protocol {
        Protocol::Simple => build::query(&mut p.server(at).out, text),
        Protocol::Extended { entry, bind, describe, .. } => {
            let oids = p.parameter_types(at, oids.unwrap_or(&entry.oids));
            let server = p.server(at);
            build::parse(&mut server.out, b"", text, &oids);
            let tail = read::bind(bind).map_or(&[0; 6][..], |b| b.tail);
            commit::bind_execute(&mut server.out, tail, *describe);
            server.out.extend_from_slice(build::SYNC);
        }
    }
}

/// Says a reply's rows, described as the protocol wants it, as many as Execute asks for.
pub(super) async fn say_rows(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    description: Option<&Vec<u8>>,
    rows: &[Vec<u8>],
) {
    let describe = match &statement.protocol {
        Protocol::Simple => description.is_some_and(|d| d[0] == b'T'),
        Protocol::Extended { describe, .. } => *describe,
    };
    if let Some(description) = description.filter(|_| describe) {
        p.reply(description).await;
    }
    let asked = usize::try_from(last::limit(statement)).unwrap_or(0);
    let now = if asked > 0 { asked.min(rows.len()) } else { rows.len() };
    for row in &rows[..now] {
        p.reply(row).await;
    }
    if asked > 0 && now == asked {
        portals::hold(p, statement, rows[now..].to_vec());
    }
}

pub(super) async fn run_on(
    p: &mut Participants<'_>,
    at: usize,
    statement: &MultiStatement,
) -> Result<Reply, Failure> {
    run_text(p, at, statement, statement.text()).await
}

pub(super) async fn run_text(
    p: &mut Participants<'_>,
    at: usize,
    statement: &MultiStatement,
    text: &[u8],
) -> Result<Reply, Failure> {
    compose(p, at, statement, text, None);
    p.flush(at).await.map_err(|_| exchange::lost(p, at))?;
    exchange::gather(p, at).await?.ok()
}

/// Copies of a reference table that are not alike. Whoever writes all of a table beside others who add rows to it meets their rows on
/// some shards only, as they may commit between two of them; what is there stays alike.
pub(super) fn disagree(how: &str) -> Failure {
    ProxyError::new("XX001", format!("the shards disagree on a reference table{how}"))
        .hint(
            "Nothing was changed. Somebody else may have written the table at the same moment: try again. If it \
             stays so, compare the table's rows on the shards.",
        )
        .into()
}

/// DDL and writes to reference tables: one shard after the other in order of their ids, so that the first shard's
/// locks keep a second one of us waiting there, before either holds anything the other needs (H22).
async fn everywhere_alike(
    p: &mut Participants<'_>,
    statement: &MultiStatement,
    kind: Broadcast,
) -> Result<Vec<u8>, Failure> {
    let mut first: Option<Reply> = None;
    for shard in p.members() {
        let at = p.enlist(shard, true).await?;
        p.mark_write(shard, None);
        let reply = run_on(p, at, statement).await?;
        match &first {
            None => first = Some(reply),
            Some(first) if kind == Broadcast::ReferenceWrite && first.tag != reply.tag => {
                let (ours, theirs) = (first.tag.as_deref(), reply.tag.as_deref());
                let (ours, theirs) = (ours.unwrap_or("nothing"), theirs.unwrap_or("nothing"));
                return Err(disagree(&format!(
                    ": {ours} on the first, {theirs} on shard {}",
                    p.shard_id(at)
                )));
            }
            Some(_) => {}
        }
    }
    if kind == Broadcast::Ddl {
        p.set_schema_changed(&statement.routed.plan);
    }
    let reply = first.ok_or_else(|| ProxyError::internal("a cluster without shards"))?;
    for notice in &reply.notices {
        p.reply(notice).await;
    }
    say_rows(p, statement, reply.description.as_ref(), &reply.rows).await;
    let tag = reply.tag.as_deref().unwrap_or_default();
    let exists = reply.notices.iter().any(|notice| says_it_exists(notice));
    let text = String::from_utf8_lossy(statement.text());
    let mut complete = Vec::new();
    build::command_complete(&mut complete, tag_of_execute(&text, tag.as_bytes(), exists).unwrap_or(tag));
    Ok(complete)
}

/// DDL that cannot be in a transaction (CREATE INDEX CONCURRENTLY, VACUUM): not atomic, and says how far it came.
async fn one_by_one(p: &mut Participants<'_>, statement: &MultiStatement) -> Result<(), Failure> {
    if p.in_block() || !p.indices().is_empty() {
        let verb = String::from_utf8_lossy(statement.text())
            .split_whitespace()
            .next()
            .unwrap_or("this")
            .to_uppercase();
        return Err(ProxyError::new("25001", format!("{verb} cannot run inside a transaction block")).into());
    }
    let mut done: Vec<String> = Vec::new();
    let mut complete = Vec::new();
    let mut result = Ok(());
    let members = p.members();
    for (n, &shard) in members.iter().enumerate() {
        let one = async {
            let at = p.enlist(shard, false).await?;
            p.mark_write(shard, None);
            let reply = run_on(p, at, statement).await?;
            if n == 0 {
                for notice in &reply.notices {
                    p.reply(notice).await;
                }
                say_rows(p, statement, reply.description.as_ref(), &reply.rows).await;
                build::command_complete(&mut complete, reply.tag.as_deref().unwrap_or_default());
            }
            Ok::<_, Failure>(())
        };
        match one.await {
            Ok(()) => done.push(p.shard_id_at(shard).to_string()),
            Err(failure) => {
                let left: Vec<_> = members[n + 1..].iter().map(|s| p.shard_id_at(*s).to_string()).collect();
                let detail = format!(
                    "Done on shards: {}. Failed on shard {}. Not tried on: {}.",
                    list(&done),
                    p.shard_id_at(shard),
                    list(&left)
                );
                result = Err(explain(failure, &detail));
                break;
            }
        }
        p.finish(true); // Each is a transaction of its own.
    }
    p.finish(result.is_ok());
    p.reset_sequences();
    p.control().refresh().await;
    result?;
    p.reply(&complete).await;
    Ok(())
}

fn list(shards: &[String]) -> String {
    if shards.is_empty() { "none".to_owned() } else { shards.join(", ") }
}

fn explain(failure: Failure, detail: &str) -> Failure {
    let hint = "Repair the shard that failed, then run the statement again; use IF NOT EXISTS or IF EXISTS where it is done.";
    match failure {
        Failure::Ours(error) => Failure::Ours(error.detail(detail).hint(hint)),
        Failure::Server(message) => {
            let field = |tag| {
                String::from_utf8_lossy(read::error_field(&message, tag).unwrap_or_default()).into_owned()
            };
            let (old_detail, code) = (field(b'D'), field(b'C'));
            let text = format!("{} {old_detail}", detail).trim().to_owned();
            let mut changed = exchange::change_fields(&message, |tag, text| {
                (tag != b'D' && tag != b'H').then(|| text.to_owned())
            });
            changed.pop();
            for (tag, text) in [(b'D', text.as_str()), (b'H', hint)] {
                changed.push(tag);
                build::cstr(&mut changed, text.as_bytes());
            }
            changed.push(0);
            build::end(&mut changed, 1);
            tracing::warn!(code, detail, "DDL outside of a transaction was not completed on all shards");
            Failure::Server(changed)
        }
    }
}

/// SAVEPOINT and its kin, SET LOCAL, SET TRANSACTION: said to every participant.
pub(super) async fn everywhere(p: &mut Participants<'_>, sql: &str, answer: &[u8]) -> Result<(), Failure> {
    commit::settle(p).await?;
    let mut result = Ok(());
    for at in p.indices() {
        let reply = ask(p, at, sql).await;
        if result.is_ok() {
            result = match reply {
                Ok(reply) => reply.ok().map(drop),
                Err(error) => Err(error.into()),
            };
        }
    }
    result?;
    p.reply(answer).await;
    Ok(())
}
