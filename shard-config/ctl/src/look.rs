//! What an operator sees of moves: how far they are, what they wait for, whether anybody runs them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use shard_config::ShardId;
use tokio::sync::watch;

use crate::aim::{self, Aim};
use crate::direct::{Db, Servers};
use crate::flow::{self, Broken};
use crate::mover::attach::RUN_CLASS;
use crate::mover::job::Job;
use crate::mover::machine::Phase;
use crate::mover::part;
use crate::mover::preflight::human;
use crate::moves::{Ended, summary};
use crate::output::{Report, table};

const LOOK: Duration = Duration::from_millis(300);
/// Between two lines where there is no terminal to draw on.
const LINE: Duration = Duration::from_secs(10);
/// Between two looks at who runs the move.
const RUNNER: Duration = Duration::from_secs(2);
/// Before the servers of a move are asked for the first time, and from then on.
const ASK_FIRST: Duration = Duration::from_secs(2);
const ASK: Duration = Duration::from_secs(5);
/// For a shard's answer, where moves are only listed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where to print while a move runs.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub json: bool,
    /// One line that is drawn again and again, where there is a terminal.
    pub bar: bool,
}

/// Moves that some shardctl runs now: it has a session that holds the move's lock.
pub async fn attended(control: &Db) -> anyhow::Result<BTreeSet<i64>> {
    let sql = "SELECT l.objid::int8 FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.classid::int8 = $1 AND l.granted";
    let rows = control.rows(sql, &[&i64::from(RUN_CLASS)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The words for a move that would go on if somebody ran it.
fn orphaned(job: &Job, attended: bool) -> Option<String> {
    let alone = !attended && !aim::is_idle(job, aim::stored(job));
    alone.then(|| format!("no shardctl runs it: shardctl resume {}", job.id))
}

/// The words for a move whose rows do not flow. `alone`: nobody runs it, and nobody was to.
fn told(job: &Job, broken: &Broken, alone: bool) -> String {
    match broken {
        Broken::Stopped(text) if alone => format!(
            "{text}; no shardctl runs it: mend what that log says, then shardctl resume {} begins it again",
            job.id
        ),
        Broken::Stopped(text) | Broken::Gone(text) => text.clone(),
    }
}

/// What of the move's servers does not answer or does not flow, and what can be done about it.
async fn away(servers: &Servers, id: i64) -> anyhow::Result<Option<String>> {
    let control = servers.control("shardctl watch").await?;
    let job = Job::load(&control, id).await?;
    if job.phase.is_over() {
        return Ok(None);
    }
    let (source, target) = tokio::join!(
        servers.primary(job.source, "shardctl watch"),
        servers.primary(job.target, "shardctl watch")
    );
    if let (Ok(source), Ok(target)) = (&source, &target) {
        let broken = flow::broken(&job, source, target).await?;
        let alone = aim::is_idle(&job, aim::stored(&job)) && !attended(&control).await?.contains(&id);
        // What is taken down on purpose belongs to another phase by now.
        let same = Job::load(&control, id).await?.phase == job.phase;
        return Ok(broken.filter(|_| same).map(|broken| told(&job, &broken, alone)));
    }
    let lost = [(job.source, source.err()), (job.target, target.err())];
    Ok(lost.into_iter().find_map(|(shard, error)| {
        error.map(|error| format!("shard {shard} does not answer ({error:#}): {}", way_out(&job, shard)))
    }))
}

/// See `mover::lost`.
pub(crate) fn way_out(job: &Job, lost: ShardId) -> String {
    let phase = job.phase.resumed();
    let command = match (phase.target_owns(), lost == job.target) {
        (false, true) => format!("shardctl abort {} --target-lost", job.id),
        (true, false) => format!("shardctl finish {} --source-lost", job.id),
        _ => return format!("the move waits for it; {} has its rows there", job.scope),
    };
    format!(
        "the move waits for it. If it is gone for good, or for long: {command}, once no shardctl runs the move"
    )
}

/// Asks the servers of a move again and again, and tells which one does not answer.
pub async fn probe(servers: &Servers, id: i64, tell: watch::Sender<Option<String>>) -> Infallible {
    tokio::time::sleep(ASK_FIRST).await;
    loop {
        // Without the catalog nothing can be shown anyway, and `look_on` says so.
        if let Ok(found) = away(servers, id).await {
            tell.send_if_modified(|known| {
                let changed = *known != found;
                *known = found;
                changed
            });
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Shows a move that another part of this program runs, which waits for a catalog that is away; so does this.
pub async fn look_on(
    servers: &Servers,
    id: i64,
    screen: Screen,
    away: &watch::Receiver<Option<String>>,
) -> anyhow::Error {
    let mut said = false;
    loop {
        match servers.control("shardctl watch").await {
            Ok(control) => {
                said = false;
                if let Err(error) = show(&control, id, screen, away, true, |_| false).await
                    && !control.client.is_closed()
                {
                    return error;
                }
            }
            Err(error) if !said => {
                eprintln!("{error:#}; it is asked again");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Shows a move until `enough`. `ours`: this program runs it, or tries to.
async fn show(
    control: &Db,
    id: i64,
    screen: Screen,
    away: &watch::Receiver<Option<String>>,
    ours: bool,
    enough: impl Fn(&Job) -> bool,
) -> anyhow::Result<()> {
    let bar = (!screen.json && screen.bar && std::io::stderr().is_terminal()).then(|| ProgressBar::new(100));
    let mut seen = chrono::Utc::now() - chrono::Duration::milliseconds(200);
    let mut last = Value::Null;
    let mut line: Option<(Instant, String, Vec<String>)> = None;
    let mut runner: Option<(Instant, bool)> = None;
    loop {
        let job = Job::load(control, id).await?;
        for note in Job::notes(control, id, seen).await? {
            seen = note.at;
            let text = format!("{}  {:<14} {}", note.at.format("%H:%M:%S%.3f"), note.phase, note.text);
            match &bar {
                Some(bar) => bar.println(text),
                None if !screen.json => eprintln!("{text}"),
                None => {}
            }
        }
        if !ours && runner.is_none_or(|(at, _)| at.elapsed() >= RUNNER) {
            runner = Some((Instant::now(), attended(control).await?.contains(&id)));
        }
        let alone = runner.and_then(|(_, attended)| orphaned(&job, attended));
        let away = away.borrow().clone();
        if screen.json {
            let mut now = job.json();
            now["orphaned"] = json!(alone);
            now["away"] = json!(away);
            if now != last {
                println!("{now}");
                last = now;
            }
        } else {
            let (percent, mut text) = progress(&job);
            // What an operator has to do something about is said at once.
            let alarms: Vec<String> = [alone, away].into_iter().flatten().collect();
            for more in &alarms {
                text += &format!("; {more}");
            }
            if let Some(bar) = &bar {
                bar.set_style(style(percent.is_some()));
                bar.set_position(percent.unwrap_or(0));
                bar.set_message(text);
                bar.tick();
            } else if line.as_ref().is_none_or(|(at, before, heard)| {
                *before != text && (at.elapsed() >= LINE || *heard != alarms)
            }) {
                eprintln!("{}  {text}", chrono::Utc::now().format("%H:%M:%S%.3f"));
                line = Some((Instant::now(), text, alarms));
            }
        }
        if enough(&job) {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A bar only where it means something: most phases have nothing to count.
fn style(bar: bool) -> ProgressStyle {
    let template = if bar { "{spinner} {bar:24} {msg}" } else { "{spinner} {msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Per cent of what the phase has to go through, if it goes through tables, and one line.
fn progress(job: &Job) -> (Option<u64>, String) {
    let (percent, done) = match job.phase {
        Phase::Copying => copied(&job.detail["progress"]),
        _ => part::of(job).map_or((None, String::new()), |(percent, done)| (Some(percent), done)),
    };
    let mut text = format!("move {} {}", job.id, job.phase.name());
    if !done.is_empty() {
        text += &format!(" {done}");
    }
    for (name, label) in [("throttled", "waits: "), ("waits_for", ""), ("lag", ""), ("error", "last error: ")]
    {
        if let Some(reason) = job.text(name) {
            text += &format!("; {label}{reason}");
        }
    }
    if job.paused() {
        text += "; PAUSED";
    }
    (percent, text)
}

/// Of the tables' bytes.
fn copied(shown: &Value) -> (Option<u64>, String) {
    let count = |name: &str| shown[name].as_array().map_or(0, Vec::len);
    let number = |name: &str| shown[name].as_u64().unwrap_or(0);
    let (percent, tables) = (number("percent"), number("tables").max(1));
    let bytes = human(shown["bytes"].as_i64().unwrap_or(0));
    let text = format!("{percent} %, {}/{tables} tables, {} rows, {bytes}", count("ready"), number("rows"));
    (Some(percent), text)
}

pub async fn watch(servers: &Servers, id: i64, screen: Screen) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl watch").await?;
    let job = Job::load(&control, id).await?;
    let aim = Aim::of(&job, aim::stored(&job));
    let (tell, away) = watch::channel(None);
    tokio::select! {
        shown = show(&control, id, screen, &away, false, |job| job.phase.is_over()) => shown?,
        never = probe(servers, id, tell) => match never {},
        _ = tokio::signal::ctrl_c() => {
            let job = Job::load(&control, id).await?;
            return Ok((Report { json: job.json(), text: progress(&job).1 + "\n", well: true }, 0));
        }
    }
    summary(servers, &control, &Job::load(&control, id).await?, aim).await
}

/// Moves that are not over whose servers do not answer, or whose rows do not flow. A shard is asked once.
async fn troubles(servers: &Servers, jobs: &[Job], attended: &BTreeSet<i64>) -> BTreeMap<i64, String> {
    let open = || jobs.iter().filter(|job| !job.phase.is_over());
    let shards: BTreeSet<ShardId> = open().flat_map(|job| [job.source, job.target]).collect();
    let asked = join_all(shards.into_iter().map(|shard| async move {
        let asked = tokio::time::timeout(PATIENCE, servers.primary(shard, "shardctl")).await;
        let asked = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")));
        (shard, asked.map_err(|error| format!("shard {shard} does not answer ({error:#})")))
    }));
    let asked: BTreeMap<ShardId, Result<Db, String>> = asked.await.into_iter().collect();
    let mut found = BTreeMap::new();
    for job in open() {
        let alone = aim::is_idle(job, aim::stored(job)) && !attended.contains(&job.id);
        let (Some(source), Some(target)) = (asked.get(&job.source), asked.get(&job.target)) else { continue };
        let trouble = match (source, target) {
            (Ok(source), Ok(target)) => match flow::broken(job, source, target).await {
                Ok(broken) => broken.map(|broken| told(job, &broken, alone)),
                Err(error) => Some(format!("{error:#}")),
            },
            (Err(error), _) | (_, Err(error)) => Some(error.clone()),
        };
        found.extend(trouble.map(|text| (job.id, text)));
    }
    found
}

pub async fn list(servers: &Servers) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let jobs = Job::list(&control, 50).await?;
    let attended = attended(&control).await?;
    let troubles = troubles(servers, &jobs, &attended).await;
    let mut rows = Vec::new();
    let mut list = Vec::new();
    let mut alone = String::new();
    for job in &jobs {
        let orphaned = orphaned(job, attended.contains(&job.id));
        rows.push(vec![
            job.id.to_string(),
            job.phase.name().to_owned()
                + if job.paused() { " (paused)" } else { "" }
                + if orphaned.is_some() { " (nobody runs it)" } else { "" },
            job.scope.to_string(),
            job.source.to_string(),
            job.target.to_string(),
            job.updated_at.format("%F %T").to_string(),
            job.text("error").unwrap_or("").to_owned(),
        ]);
        if let Some(text) = &orphaned {
            alone += &format!("move {}: {text}\n", job.id);
        }
        if let Some(text) = troubles.get(&job.id) {
            alone += &format!("move {}: {text}\n", job.id);
        }
        let mut json = job.json();
        json["orphaned"] = json!(orphaned);
        json["away"] = json!(troubles.get(&job.id));
        list.push(json);
    }
    let header = ["move", "phase", "what", "source", "target", "last change", "last error"];
    Ok((Report { json: json!(list), text: table(&header, &rows) + &alone, well: true }, 0))
}

pub async fn history(servers: &Servers, id: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let job = Job::load(&control, id).await?;
    let notes = Job::notes(&control, id, chrono::DateTime::UNIX_EPOCH).await?;
    let mut text = format!("move {id}: {} from shard {} to shard {}\n", job.scope, job.source, job.target);
    for note in &notes {
        text += &format!("{}  {:<14} {}\n", note.at.format("%F %T%.3f"), note.phase, note.text);
    }
    let events: Vec<_> =
        notes.iter().map(|n| json!({ "at": n.at, "phase": n.phase, "text": n.text })).collect();
    Ok((Report { json: json!({ "move": job.json(), "events": events }), text, well: true }, 0))
}

#[cfg(test)]
mod tests {
    use crate::mover::scope::Scope;

    use super::*;

    #[test]
    fn the_percentage_is_of_the_phase_that_is_shown() {
        let shown = |phase: Phase, detail: Value| {
            let now = chrono::Utc::now();
            let (percent, text) = progress(&Job {
                id: 7,
                scope: Scope::of_range(0, 3),
                source: ShardId(1),
                target: ShardId(2),
                phase,
                planned_epoch: 1,
                detail,
                created_at: now,
                updated_at: now,
            });
            (percent, text.strip_prefix("move 7 ").unwrap_or(&text).to_owned())
        };
        let copied = json!({ "percent": 40, "tables": 5, "ready": ["a", "b"], "rows": 9, "bytes": 2048 });
        let part = |phase: &str, pages: u64, of: u64, rows: u64| json!({ "progress": copied, "part": { "phase": phase, "pages": pages, "of": of, "rows": rows } });
        for (phase, detail, percent, text) in [
            (Phase::Preflight, json!({}), None, "preflight"),
            (Phase::Copying, json!({}), Some(0), "copying 0 %, 0/1 tables, 0 rows, 0 B"),
            (Phase::Copying, part("copying", 1, 2, 3), Some(40), "copying 40 %, 2/5 tables, 9 rows, 2.0 KiB"),
            (Phase::CatchingUp, part("copying", 1, 2, 3), None, "catching_up"),
            (Phase::Verifying, part("verifying", 30, 120, 0), Some(25), "verifying 25 %, 30 of 120 pages"),
            (Phase::Ready, part("verifying", 120, 120, 0), None, "ready"),
            (Phase::Cleaning, part("verifying", 120, 120, 0), None, "cleaning"),
            (Phase::Cleaning, part("cleaning", 9, 10, 5), Some(90), "cleaning 90 %, 9 of 10 pages, 5 rows"),
            (Phase::Emptying, part("emptying", 12, 10, 0), Some(100), "emptying 100 %, 10 of 10 pages"),
            (Phase::Clearing, part("clearing", 0, 0, 0), Some(100), "clearing 100 %, 0 of 0 pages"),
            (Phase::Done, part("cleaning", 10, 10, 5), None, "done"),
        ] {
            assert_eq!(shown(phase, detail), (percent, text.to_owned()), "{phase:?}");
        }
    }
}
