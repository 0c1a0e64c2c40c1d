//! `shardctl serve`: does what is asked for by SQL (`shard-config/sql/verbs.sql`), and goes on with every move whose
//! runner is gone. Nothing is known here that the catalog does not say, so it may be ended and started at any time, and
//! several may run: a move has one runner, and a request is taken once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use crate::aim::Aim;
use crate::asked::{Asked, Request};
use crate::direct::{Db, Servers};
use crate::home;
use crate::look::attended;
use crate::mover::attach::Attached;
use crate::mover::catalog;
use crate::mover::job::Job;
use crate::mover::preflight;
use crate::mover::run::{End, Options, run};
use crate::mover::scope::Scope;
use crate::moves::{missed, stopped};
use crate::plans::{self, scope_of};

/// Between two looks at the catalog.
const LOOK: Duration = Duration::from_millis(500);
/// A move whose runner failed is not taken up again before.
const REST: Duration = Duration::from_secs(5);
/// Lines that wait to be said.
const LINES: usize = 16;
/// The session lock of who serves a request, beside the moves' own.
const REQUEST_CLASS: i32 = crate::mover::job::LOCK_CLASS + 2;

/// Serves until it is ended. `servers` reads the configuration, for whatever begins anew: shards may have been added since. `say`
/// gets a line for a person.
pub async fn serve(
    servers: impl Fn() -> anyhow::Result<Servers>,
    say: impl Fn(String),
) -> anyhow::Result<()> {
    let mut moves: BTreeMap<i64, JoinHandle<()>> = BTreeMap::new();
    let mut requests: BTreeMap<i64, JoinHandle<()>> = BTreeMap::new();
    let (tell, mut told) = tokio::sync::mpsc::channel::<String>(LINES);
    let mut control: Option<Db> = None;
    let mut failing = false;
    loop {
        let looked = async {
            let gone = match control.as_ref().filter(|db| !db.client.is_closed()) {
                Some(db) => home::has_left(db).await?,
                None => true,
            };
            if gone {
                let db = servers()?.control("shardctl serve").await?;
                catalog::install(&db).await?;
                control = Some(db);
            }
            let db = control.as_ref().context("no session")?;
            moves.retain(|_, task| !task.is_finished());
            requests.retain(|_, task| !task.is_finished());
            for id in orphans(db).await? {
                if let Entry::Vacant(place) = moves.entry(id) {
                    let (servers, tell) = (servers()?, tell.clone());
                    place.insert(tokio::spawn(async move { go_on(&servers, id, &tell).await }));
                }
            }
            for request in open_requests(db).await? {
                if let Entry::Vacant(place) = requests.entry(request.id) {
                    let (servers, tell) = (servers()?, tell.clone());
                    place.insert(tokio::spawn(async move { answer(&servers, request, &tell).await }));
                }
            }
            anyhow::Ok(())
        };
        match looked.await {
            Ok(()) => failing = false,
            Err(error) => {
                control = None;
                if !failing {
                    say(format!(
                        "the configuration or the catalog cannot be read, it is tried again: {error:#}"
                    ));
                }
                failing = true;
            }
        }
        tokio::select! {
            line = told.recv() => if let Some(line) = line { say(line) },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Moves that nobody runs. One that waits for an operator has a runner, too: slots are read, and what changes is compared.
async fn orphans(db: &Db) -> anyhow::Result<Vec<i64>> {
    let attended = attended(db).await?;
    let sql = "SELECT id FROM shard_catalog.move WHERE phase NOT IN ('done', 'rolled_back', 'aborted', 'refused') \
               AND NOT coalesce((detail ->> 'paused')::boolean, false) AND id <> ALL ($1) ORDER BY id";
    let rows = db.rows(sql, &[&attended.into_iter().collect::<Vec<i64>>()]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Requests that nobody has taken, or whose server has died over them.
async fn open_requests(db: &Db) -> anyhow::Result<Vec<Request>> {
    let sql = "SELECT id, goal FROM shard_catalog.request r WHERE state IN ('asked', 'running') \
               AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid::int8 = $1 \
                    AND l.objid::int8 = r.id AND l.granted) ORDER BY id";
    let rows = db.rows(sql, &[&i64::from(REQUEST_CLASS)]).await?;
    rows.iter().map(|row| Ok(Request { id: row.try_get(0)?, goal: row.try_get(1)? })).collect()
}

async fn go_on(servers: &Servers, id: i64, tell: &Sender<String>) {
    let line = match run(servers, id, Options { stay: true, ..Options::default() }).await {
        // Somebody was faster.
        Err(error) if error.is::<Attached>() => return,
        Err(error) => format!("move {id}: {error:#}"),
        Ok(end) => {
            let text = told(servers, id, &end).await;
            // Nobody would look at it before it is begun again, and each time clients notice.
            match end {
                End::Different(_) | End::GivenUp(_) => match pause(servers, id).await {
                    Ok(()) => text + "; paused until an operator resumes it, or asks for something else",
                    Err(error) => format!("{text}; it cannot be paused: {error:#}"),
                },
                End::Over | End::Waiting | End::Refused(_) => text,
            }
        }
    };
    // Nobody listens any more when the process ends.
    _ = tell.send(line).await;
    tokio::time::sleep(REST).await;
}

/// How a runner ended, in one line.
async fn told(servers: &Servers, id: i64, end: &End) -> String {
    if let End::Refused(problems) = end {
        return format!("move {id} was refused: {}", preflight::told(problems));
    }
    let job = async { Job::load(&servers.control("shardctl serve").await?, id).await };
    match job.await {
        Ok(job) => {
            let (report, _) = stopped(servers, &job, end.clone()).await;
            report.text.trim_end().replace('\n', "; ")
        }
        Err(error) => format!("move {id}: {end:?}; what it is now cannot be read: {error:#}"),
    }
}

async fn pause(servers: &Servers, id: i64) -> anyhow::Result<()> {
    let control = servers.control("shardctl serve").await?;
    let mut job = Job::load(&control, id).await?;
    job.set(&control, json!({ "paused": true })).await?;
    job.note(&control, "paused: an operator has to look").await
}

async fn answer(servers: &Servers, request: Request, tell: &Sender<String>) {
    let id = request.id;
    let line = match fulfil(servers, &request).await {
        Ok(None) => return,
        Ok(Some(answer)) => format!("request {id}: {answer}"),
        Err(error) => format!("request {id} cannot go on, it is tried again: {error:#}"),
    };
    _ = tell.send(line).await;
    tokio::time::sleep(REST).await;
}

/// `None`: another process has the request.
async fn fulfil(servers: &Servers, request: &Request) -> anyhow::Result<Option<Value>> {
    let control = servers.control("shardctl serve").await?;
    let key = i32::try_from(request.id)?;
    if !control.holds("SELECT pg_try_advisory_lock($1, $2)", &[&REQUEST_CLASS, &key]).await? {
        return Ok(None);
    }
    let taken =
        "UPDATE shard_catalog.request SET state = 'running' WHERE id = $1 AND state IN ('asked', 'running')";
    if control.execute(taken, &[&request.id]).await? == 0 {
        return Ok(None);
    }
    let wanted = match request.wanted(servers) {
        Ok(Asked::Moves(wanted)) => wanted,
        Ok(Asked::Look(look)) => {
            return match look.answer(servers).await {
                Ok((answer, well)) => {
                    end(&control, request, if well { "done" } else { "failed" }, answer).await
                }
                Err(error) => failed(&control, request, &error).await,
            };
        }
        Err(error) => return failed(&control, request, &error).await,
    };
    if wanted.dry_run {
        let plan = plans::make(servers, &control, &wanted.goal, &wanted.weights, None).await;
        return match plan {
            Ok(plan) => end(&control, request, "done", plan.json()?).await,
            Err(error) => failed(&control, request, &error).await,
        };
    }
    // One step after the other, each planned from the map as it is then: what a process that died has left over is what
    // a new plan says. Without `auto` there is one step, as an operator decides in between.
    loop {
        if !made_for(&control, request, true).await?.is_empty() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let made = made_for(&control, request, false).await?;
        if let Some(bad) = ended_badly(&control, &made).await? {
            return end(&control, request, "failed", json!({ "moves": made, "error": bad })).await;
        }
        let plan = match plans::make(servers, &control, &wanted.goal, &wanted.weights, None).await {
            Ok(plan) => plan,
            Err(error) => {
                let answer = json!({ "moves": made, "error": format!("{error:#}") });
                return end(&control, request, "failed", answer).await;
            }
        };
        let several = plan.steps.len() > 1 && !wanted.options.auto;
        if several {
            let text =
                format!("the plan has {} steps: ask with auto => true, or for one step", plan.steps.len());
            return end(&control, request, "failed", json!({ "error": text })).await;
        }
        let Some(step) = plan.steps.first() else {
            return end(&control, request, "done", json!({ "moves": made })).await;
        };
        // A move that is written down is begun whenever its shards answer, and then nobody may think of it any more.
        let shards = plan.steps.iter().flat_map(|step| [step.source, step.target]);
        let away = preflight::unreachable(servers, shards).await;
        let away: Vec<_> =
            away.iter().map(|problem| format!("{}: {}", problem.what, problem.remedy)).collect();
        if !away.is_empty() && made.is_empty() {
            return end(&control, request, "failed", json!({ "error": away.join("; ") })).await;
        }
        anyhow::ensure!(away.is_empty(), "{}", away.join("; "));
        let detail =
            json!({ "request": request.id, "auto": wanted.options.auto, "finish": wanted.options.finish });
        let scope: Scope = scope_of(step)?;
        let job =
            Job::create(&control, &scope, step.source, step.target, i64::try_from(plan.epoch)?, &detail)
                .await?;
        if !wanted.options.auto {
            return end(&control, request, "done", json!({ "moves": [job.id] })).await;
        }
    }
}

/// Moves of this request; `open`: those that are still on their way to where it wants them.
async fn made_for(control: &Db, request: &Request, open: bool) -> anyhow::Result<Vec<i64>> {
    let sql = "SELECT id FROM shard_catalog.move WHERE (detail ->> 'request')::int8 = $1 AND (NOT $2 OR NOT ( \
               phase IN ('done', 'rolled_back', 'aborted', 'refused') \
               OR phase = 'window' AND NOT (detail ->> 'finish')::boolean AND detail ->> 'wish' IS NULL)) ORDER BY id";
    let rows = control.rows(sql, &[&request.id, &open]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Why the request cannot be fulfilled: a move of it is over, and not where it was wanted.
async fn ended_badly(control: &Db, made: &[i64]) -> anyhow::Result<Option<String>> {
    for id in made {
        let job = Job::load(control, *id).await?;
        let ended = job.phase.is_over();
        if ended && !Aim::Window.is_met(job.phase) {
            let why = missed(control, &job).await?;
            return Ok(Some(format!("move {id} is {}: {why}", job.phase.name())));
        }
    }
    Ok(None)
}

async fn failed(control: &Db, request: &Request, error: &anyhow::Error) -> anyhow::Result<Option<Value>> {
    end(control, request, "failed", json!({ "error": format!("{error:#}") })).await
}

async fn end(control: &Db, request: &Request, state: &str, answer: Value) -> anyhow::Result<Option<Value>> {
    let sql = "UPDATE shard_catalog.request SET state = $2, answer = $3, ended_at = clock_timestamp() WHERE id = $1";
    control.execute(sql, &[&request.id, &state, &answer]).await?;
    Ok(Some(answer))
}
