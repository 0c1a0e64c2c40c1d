//! The verbs on one move: cutover, abort, diff and the rest. Each writes down what the operator wants, then runs the move, or
//! watches the one who runs it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::aim::{self, Aim, is_idle, stored};
use crate::direct::{Db, Servers};
use crate::exit::{self, Failure};
use crate::flow::{self, Broken};
use crate::look::{Screen, attended, look_on, probe};
use crate::mover::attach::Attached;
pub use crate::mover::copy::LAG_MOST;
use crate::mover::job::{Job, Way};
use crate::mover::machine::{Phase, Wish};
use crate::mover::preflight::{Problem, human};
use crate::mover::run::{End, Options, run};
use crate::mover::{catalog, copy, digest, lost, tables, verify};
use crate::output::Report;

/// How a verb ended, for the shell.
pub type Ended = (Report, u8);

pub(crate) fn said(text: impl Into<String>, json: Value, code: u8) -> Ended {
    (Report { json, text: text.into() + "\n", well: code == 0 }, code)
}

/// For the shell, unless there is none.
pub(crate) fn refusal(problems: &[Problem]) -> Option<Ended> {
    if problems.is_empty() {
        return None;
    }
    let lines: Vec<_> = problems.iter().map(|p| format!("PROBLEM  {}: {}", p.what, p.remedy)).collect();
    let list: Vec<_> = problems.iter().map(|p| json!({ "what": p.what, "remedy": p.remedy })).collect();
    let text = format!("{}\nnothing was changed", lines.join("\n"));
    Some(said(text, json!({ "ok": false, "problems": list }), exit::REFUSED))
}

/// Runs a move in the foreground and shows it, until it is where it is wanted or nobody goes on; Ctrl-C detaches.
pub async fn drive(
    servers: &Servers,
    id: i64,
    options: Options,
    aim: Aim,
    screen: Screen,
) -> anyhow::Result<Ended> {
    let (tell, away) = watch::channel(None);
    let ended = tokio::select! {
        ended = run_on(servers, id, options) => ended,
        error = look_on(servers, id, screen, &away) => return Err(error),
        never = probe(servers, id, tell) => match never {},
        _ = tokio::signal::ctrl_c() => {
            let text = format!("detached. Move {id} stays as it is, but for a first copy under way, which begins anew; \
                                go on: shardctl resume {id}{}; undo: shardctl abort {id}", words(options));
            return Ok(said(text, json!({ "id": id, "detached": true }), exit::DETACHED));
        }
    };
    let ended = match (ended, away.borrow().clone()) {
        (Err(error), Some(away)) => return Err(error.context(away)),
        (ended, _) => ended?,
    };
    let control = servers.control("shardctl").await?;
    let job = Job::load(&control, id).await?;
    match ended {
        End::Over | End::Waiting => summary(servers, &control, &job, aim).await,
        other => Ok(stopped(servers, &job, other).await),
    }
}

/// Runs the move, or waits while somebody else does.
async fn run_on(servers: &Servers, id: i64, options: Options) -> anyhow::Result<End> {
    loop {
        match run(servers, id, options).await {
            Err(error) if error.is::<Attached>() => {}
            ended => return ended,
        }
        let control = servers.control("shardctl").await?;
        loop {
            let job = Job::load(&control, id).await?;
            if is_idle(&job, options) || job.paused() {
                return Ok(End::Waiting);
            }
            if !attended(&control).await?.contains(&id) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// As they are to be typed.
pub(crate) fn words(options: Options) -> &'static str {
    match (options.auto, options.finish) {
        (true, true) => " --auto --finish",
        (true, false) => " --auto",
        (false, _) => "",
    }
}

/// What a runner says that did not come to the end.
pub(crate) async fn stopped(servers: &Servers, job: &Job, ended: End) -> Ended {
    let id = job.id;
    match ended {
        End::Refused(problems) => {
            refusal(&problems).unwrap_or_else(|| said("refused", last(job), exit::REFUSED))
        }
        End::Different(what) => {
            let text =
                format!("move {id} stopped: {what}\nlook: shardctl diff {id}; undo: shardctl abort {id}");
            said(text, last(job), exit::DIFFERENT)
        }
        End::GivenUp(why) => {
            said(format!("move {id}: {why}\n{}", remains(servers, job).await), last(job), exit::GIVEN_UP)
        }
        End::Over | End::Waiting => said(format!("move {id} {}", state(job)), last(job), 0),
    }
}

/// The last value of a verb that has shown the move while it ran has the same keys as those before it.
fn last(job: &Job) -> Value {
    let mut json = job.json();
    (json["orphaned"], json["away"]) = (Value::Null, Value::Null);
    json
}

/// After a cut-over or a roll-back that was given up.
async fn remains(servers: &Servers, job: &Job) -> String {
    let id = job.id;
    match job.phase {
        Phase::Window => {
            let next = match flow::of_job(servers, job).await {
                Ok(Some(Broken::Gone(why))) => why,
                Ok(Some(Broken::Stopped(why))) => {
                    format!(
                        "{why}; mend what that log says, then try again: shardctl rollback {id}; or shardctl finish {id}"
                    )
                }
                Ok(None) => format!("next: shardctl finish {id}, or try again: shardctl rollback {id}"),
                Err(error) => {
                    format!("next: shardctl finish {id}, or try again: shardctl rollback {id} ({error:#})")
                }
            };
            format!("shard {} owns {} as before; {next}", job.target, job.scope)
        }
        _ => format!("everything is as before the cut-over; try again: shardctl cutover {id}"),
    }
}

pub(crate) fn state(job: &Job) -> String {
    let id = job.id;
    match job.phase {
        Phase::Ready => format!("ready: both sides are equal. Next: shardctl cutover {id} | abort {id}"),
        Phase::Window => {
            format!("shard {} owns {}. Next: shardctl finish {id} | rollback {id}", job.target, job.scope)
        }
        Phase::Done => format!("done: shard {} owns {}", job.target, job.scope),
        Phase::RolledBack => format!("rolled back: shard {} owns {}", job.source, job.scope),
        Phase::Aborted => "aborted: everything is as before".to_owned(),
        Phase::Refused => "refused: nothing was changed".to_owned(),
        other if job.paused() => format!("is paused in phase {}. Go on: shardctl resume {id}", other.name()),
        other => other.name().to_owned(),
    }
}

/// Where the move is, and why it is not where it is wanted.
pub(crate) async fn summary(servers: &Servers, control: &Db, job: &Job, aim: Aim) -> anyhow::Result<Ended> {
    let id = job.id;
    let status = aim.status(job.phase);
    if status == 0 {
        return Ok(said(format!("move {id} {}", state(job)), last(job), 0));
    }
    let why = missed(control, job).await?;
    let text = match status {
        exit::GIVEN_UP => format!("move {id}: {why}\n{}", remains(servers, job).await),
        _ => format!("move {id} {}\nthat is not what was asked for: {why}", state(job)),
    };
    let mut json = last(job);
    json["why"] = json!(why);
    Ok(said(text, json, status))
}

/// Why the move has come to its phase: what was noted when it took its turn there, or the last error.
pub(crate) async fn missed(control: &Db, job: &Job) -> anyhow::Result<String> {
    if !job.phase.is_over()
        && let Some(error) = job.text("error").or(job.text("missed"))
    {
        return Ok(error.to_owned());
    }
    let sql = "SELECT text FROM shard_catalog.move_event WHERE move_id = $1 AND phase = ANY ($2) ORDER BY phase <> $3, id LIMIT 1";
    let turn = aim::turn(job.phase).name();
    let found = control.first(sql, &[&job.id, &vec![turn, job.phase.name()], &turn]).await?;
    found.map_or_else(|| Ok(format!("it is {}", job.phase.name())), |row| Ok(row.try_get(0)?))
}

/// What is said to a wish before anything is written.
pub(crate) enum Answer {
    /// The move is over, as it was wanted.
    Over(String),
    /// As `Phase::granted` says.
    Granted(Option<Phase>),
}

pub(crate) fn answer(job: &Job, wish: Wish) -> Result<Answer, Failure> {
    let id = job.id;
    if job.phase.is_over() {
        let text = format!("move {id} is over: {}", state(job));
        return match Aim::from(wish).is_met(job.phase) && wish != Wish::Cutover {
            true => Ok(Answer::Over(text)),
            false => Err(Failure::refused(text)),
        };
    }
    let granted = job.phase.resumed().granted(wish);
    let refused =
        |instead| Failure::refused(format!("move {id} is in phase {}: {instead}", job.phase.name()));
    granted.map(Answer::Granted).map_err(refused)
}

/// The lag with which a cut-over is refused when it is asked for, and the words for it.
pub(crate) async fn too_far(source: &Db, job: &Job, most: i64) -> anyhow::Result<Option<(i64, String)>> {
    let lag = copy::lag(source, &job.publication(Way::Out)).await?.filter(|lag| *lag > most);
    Ok(lag.map(|lag| {
        let text = format!(
            "the target is up to {} behind, limit {}: wait, or raise --max-lag",
            human(lag),
            human(most)
        );
        (lag, text)
    }))
}

/// Writes down a wish, and sees to it.
pub async fn wish(
    servers: &Servers,
    id: i64,
    wish: Wish,
    lag_most: i64,
    screen: Screen,
) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    let aim = Aim::from(wish);
    if let Answer::Over(text) = answer(&job, wish)? {
        return Ok(said(text, job.json(), 0));
    }
    if wish == Wish::Cutover {
        let source = servers.primary(job.source, "shardctl").await?;
        if let Some((lag, text)) = too_far(&source, &job, lag_most).await? {
            let json = json!({ "lag_bytes": lag, "limit": lag_most });
            return Ok(said(format!("{text}; nothing was changed"), json, exit::REFUSED));
        }
    }
    // Nothing has been begun, on servers that may not even answer; a runner that looks at them finds the move ended.
    if (wish, job.phase) == (Wish::Abort, Phase::Preflight)
        && job.go(&control, Phase::Refused, "abort was asked for").await?
    {
        return summary(servers, &control, &job, aim).await;
    }
    let pause = if job.paused() { "; the pause ends with it" } else { "" };
    // What stopped the flow so often before may have been mended.
    let mut asked = json!({ "wish": wish.name(), "attempts": 0, "stops": 0, "paused": false });
    if wish == Wish::Cutover {
        asked["max_lag"] = json!(lag_most);
    }
    if wish != Wish::Finish {
        // Step by step from here on: what was said when it began is not done to a move that is to be undone, and not by a
        // later `resume` to one that the operator has taken up again. Nor by who has begun it and still runs it.
        (asked["auto"], asked["finish"]) = (json!(false), json!(false));
    }
    job.set(&control, asked).await?;
    let text = format!("the operator asks for {}{pause}", wish.name());
    job.note(&control, &text).await?;
    if !pause.is_empty() && !screen.json {
        eprintln!("move {id} was paused: {text}");
    }
    drive(servers, id, Options::default(), aim, screen).await
}

/// One of the move's shards is gone: frees the other one, and ends the move if it is gone for good.
pub async fn lost(servers: &Servers, id: i64, wish: Wish, never_returns: bool) -> anyhow::Result<Ended> {
    if never_returns {
        let (job, shard) = lost::end(servers, id, wish).await?;
        let text = format!(
            "move {id} is over: {}. Shard {shard} must never be started again with what it had: nothing hides its rows of {} any more",
            state(&job),
            job.scope
        );
        return Ok(said(text, job.json(), 0));
    }
    let (job, shard) = lost::free(servers, id, wish).await?;
    let text = format!(
        "move {id} keeps nothing on the other shard any more. It waits for shard {shard}, to delete there what it has of {}; \
         when it is back: shardctl resume {id}; if it never is: the same again with --never-returns",
        job.scope
    );
    Ok(said(text, job.json(), 0))
}

pub(crate) fn still_on(job: &Job) -> Result<(), Failure> {
    match job.phase.is_over() {
        true => Err(Failure::refused(format!("move {} is over: {}", job.id, state(job)))),
        false => Ok(()),
    }
}

pub async fn pause(servers: &Servers, id: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    still_on(&job)?;
    job.set(&control, json!({ "paused": true })).await?;
    job.note(&control, "paused by the operator").await?;
    let text = format!(
        "move {id} begins nothing new; what is under way ends (of a copy: its piece). Go on: shardctl resume {id}"
    );
    Ok(said(text, job.json(), 0))
}

pub async fn resume(servers: &Servers, id: i64, options: Options, screen: Screen) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    still_on(&job)?;
    job.set(&control, json!({ "paused": false, "stops": 0 })).await?;
    if options.auto {
        job.set(&control, json!({ "auto": true, "finish": options.finish })).await?;
    }
    let options = stored(&job);
    drive(servers, id, options, Aim::of(&job, options), screen).await
}

/// Sets the limits that are named, null for none; others stay. Without a name it only says what is set.
pub async fn throttle(servers: &Servers, id: i64, named: &Value) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    if named.as_object().is_some_and(|named| !named.is_empty()) {
        still_on(&job)?;
        // An older shardctl may have made the function, which knew no single limits.
        catalog::install(&control).await?;
        let sql = "SELECT shard_catalog.tell($1, $2, $3)";
        let text = format!("throttle: {}", limits(named));
        control.rows(sql, &[&id, &json!({ "throttle": named }), &text]).await?;
        job.refresh(&control).await?;
    }
    let set = &job.detail["throttle"];
    Ok(said(format!("move {id}: {}", limits(set)), json!({ "id": id, "throttle": set }), 0))
}

fn limits(set: &Value) -> String {
    let one = |(name, value): (&String, &Value)| match value {
        Value::Null => format!("{name} none"),
        value => format!("{name} {value}"),
    };
    let all: Vec<_> = set.as_object().into_iter().flatten().map(one).collect();
    if all.is_empty() { "no limits".to_owned() } else { all.join(", ") }
}

/// Compares both sides of a live move and repairs nothing.
pub async fn diff(servers: &Servers, id: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let job = Job::load(&control, id).await?;
    let way = match job.phase {
        Phase::CatchingUp | Phase::Verifying | Phase::Ready => Way::Out,
        Phase::Window => Way::Back,
        other => {
            let text = format!(
                "move {id} is in phase {}: both sides are complete from catching_up to window",
                other.name()
            );
            return Err(Failure::refused(text).into());
        }
    };
    let mut giver = servers.primary(job.giver(way), "shardctl diff").await?;
    let mut taker = servers.primary(job.taker(way), "shardctl diff").await?;
    let (source, target) = if way == Way::Out { (&giver, &taker) } else { (&taker, &giver) };
    if let Some(broken) = flow::broken(&job, source, target).await? {
        // The taker would be waited for in vain, and differ.
        return Err(Failure::refused(format!("move {id} cannot be compared: {}", broken.text())).into());
    }
    let map = catalog::map(&control).await?;
    let buckets = map.map.buckets();
    let tables = tables::sharded(&giver, &servers.config).await?;
    let (digests, mut unequal) =
        digest::digests(&mut giver, &mut taker, &job, &tables, buckets, None).await?;
    // Rows that change all the time differ in most moments; a difference that stays is one.
    for _ in 0..5 {
        if unequal.is_empty() {
            break;
        }
        let n = copy::mark(&giver, &job, way).await?;
        copy::caught_up(&taker, &job, way, n, Duration::from_secs(30)).await?;
        unequal = verify::compare(&giver, &taker, &job, &tables, buckets, &unequal).await?;
    }
    let rows: i64 = digests.iter().map(|digest| digest.rows).sum();
    let well = unequal.is_empty();
    let text = match well {
        true => format!("move {id}: {rows} rows in {} tables are equal on both shards", digests.len()),
        false => format!("move {id}: rows differ: {}", verify::show(&unequal)),
    };
    let json = json!({ "rows": rows, "equal": well, "different": verify::count(&unequal), "where": verify::show(&unequal) });
    Ok(said(text, json, if well { 0 } else { exit::DIFFERENT }))
}
