//! The verbs on moves: apply, watch, cutover, abort and the rest. Each writes down what the operator wants, then runs the
//! move, or watches the one who runs it.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use shard_config::{KeyHash, ShardId};

use crate::direct::{Db, Servers};
use crate::mover::job::{Job, Way};
use crate::mover::machine::{Phase, Wish};
use crate::mover::preflight::{self, Problem, human};
use crate::mover::attach::Attached;
use crate::mover::run::{End, Options, run};
use crate::mover::throttle::Throttle;
use crate::mover::{catalog, copy, digest, lost, tables, verify};
use crate::output::{Report, table};
use crate::plans::{Plan, scope_of};

/// Exit statuses beyond 0 to 3; `shardctl --help` lists all.
pub const STALE: u8 = 4;
pub const REFUSED: u8 = 5;
pub const DIFFERENT: u8 = 6;
pub const GIVEN_UP: u8 = 7;
pub const DETACHED: u8 = 130;

/// Bytes that the target may be behind when a cut-over is asked for.
pub const LAG_MOST: i64 = 64 << 20;

/// How a verb ended, for the shell.
pub type Ended = (Report, u8);

fn said(text: impl Into<String>, json: Value, code: u8) -> Ended {
    (Report { json, text: text.into() + "\n", well: code == 0 }, code)
}

/// Where to print while a move runs.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub json: bool,
}

pub async fn apply(
    servers: &Servers,
    plan: &Plan,
    options: Options,
    throttle: &Throttle,
    dry_run: bool,
    screen: Screen,
) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    plan.check(&catalog::map(&control).await?)?;
    catalog::install(&control).await?;
    if dry_run {
        return dry(servers, &control, plan).await;
    }
    anyhow::ensure!(
        plan.steps.len() <= 1 || options.auto,
        "the plan has {} steps: add --auto, or apply plans of one step",
        plan.steps.len()
    );
    let mut done = Vec::new();
    for step in &plan.steps {
        // For `serve`, should it take the move up.
        let detail = json!({ "throttle": throttle.json(), "auto": options.auto, "finish": options.finish });
        let epoch = i64::try_from(catalog::map(&control).await?.map.epoch())?;
        let job = Job::create(&control, &scope_of(step)?, step.source, step.target, epoch, &detail).await?;
        done.push(job.id);
        let (report, code) = drive(servers, job.id, options, screen).await?;
        if code != 0 || plan.steps.len() == 1 {
            return Ok((report, code));
        }
    }
    Ok(said(format!("{} moves are made: {done:?}", done.len()), json!({ "moves": done }), 0))
}

/// Every check, and nothing else.
async fn dry(servers: &Servers, control: &Db, plan: &Plan) -> anyhow::Result<Ended> {
    let map = catalog::map(control).await?;
    let mut found: Vec<Problem> = Vec::new();
    for step in &plan.steps {
        let scope = scope_of(step)?;
        let job = Job {
            id: 0,
            scope,
            source: step.source,
            target: step.target,
            phase: Phase::Preflight,
            planned_epoch: 0,
            detail: json!({}),
            created_at: chrono::Utc::now(),
            updated_at: chrono::Utc::now(),
        };
        found.extend(preflight::placement(&map, &job.scope, job.source, job.target));
        if found.is_empty() {
            let source = servers.primary(job.source, "shardctl").await?;
            let target = servers.primary(job.target, "shardctl").await?;
            found.extend(preflight::servers(servers, control, &source, &target, &job, &map).await?.0);
        }
    }
    Ok(refusal(&found).unwrap_or_else(|| {
        said("everything that was checked is well; nothing was changed", json!({ "ok": true }), 0)
    }))
}

fn refusal(problems: &[Problem]) -> Option<Ended> {
    if problems.is_empty() {
        return None;
    }
    let lines: Vec<_> = problems.iter().map(|p| format!("PROBLEM  {}: {}", p.what, p.remedy)).collect();
    let list: Vec<_> = problems.iter().map(|p| json!({ "what": p.what, "remedy": p.remedy })).collect();
    let text = format!("{}\nnothing was changed", lines.join("\n"));
    Some(said(text, json!({ "ok": false, "problems": list }), REFUSED))
}

/// Runs a move in the foreground and shows it; Ctrl-C detaches.
pub async fn drive(servers: &Servers, id: i64, options: Options, screen: Screen) -> anyhow::Result<Ended> {
    let ended = tokio::select! {
        ended = run(servers, id, options) => ended,
        error = look_on(servers, id, screen) => return Err(error),
        _ = tokio::signal::ctrl_c() => {
            let text = format!("detached. Move {id} stays as it is, but for a first copy under way, which begins anew; \
                                go on: shardctl resume {id}; undo: shardctl abort {id}");
            return Ok(said(text, json!({ "id": id, "detached": true }), DETACHED));
        }
    };
    let control = servers.control("shardctl").await?;
    let ended = match ended {
        // Somebody else runs it: look on until it is where this operator wants it.
        Err(error) if error.is::<Attached>() => {
            show(&control, id, screen, |job| {
                job.phase.is_over() || (job.phase.waits() && job.wish().is_none())
            })
            .await?;
            End::Waiting
        }
        other => other?,
    };
    let job = Job::load(&control, id).await?;
    Ok(summary(&job, ended))
}

/// Shows a move that another part of this program runs, which waits for a catalog that is away; so does this.
async fn look_on(servers: &Servers, id: i64, screen: Screen) -> anyhow::Error {
    loop {
        if let Ok(control) = servers.control("shardctl watch").await
            && let Err(error) = show(&control, id, screen, |_| false).await
            && !control.client.is_closed()
        {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn summary(job: &Job, ended: End) -> Ended {
    let id = job.id;
    match ended {
        End::Refused(problems) => refusal(&problems).unwrap_or_else(|| said("refused", job.json(), REFUSED)),
        End::Different(what) => {
            let text =
                format!("move {id} stopped: {what}\nlook: shardctl diff {id}; undo: shardctl abort {id}");
            said(text, job.json(), DIFFERENT)
        }
        End::GivenUp(why) => {
            let left = match job.phase {
                Phase::Window => format!(
                    "shard {} owns {} as before; next: shardctl finish {id}, or try again: shardctl rollback {id}",
                    job.target, job.scope
                ),
                _ => format!("everything is as before the cut-over; try again: shardctl cutover {id}"),
            };
            let text = format!("move {id}: {why}\n{left}");
            said(text, job.json(), GIVEN_UP)
        }
        End::Over | End::Waiting => {
            let next = match job.phase {
                Phase::Ready => {
                    format!("ready: both sides are equal. Next: shardctl cutover {id} | abort {id}")
                }
                Phase::Window => {
                    format!(
                        "shard {} owns {}. Next: shardctl finish {id} | rollback {id}",
                        job.target, job.scope
                    )
                }
                Phase::Done => format!("done: shard {} owns {}", job.target, job.scope),
                Phase::RolledBack => format!("rolled back: shard {} owns {}", job.source, job.scope),
                Phase::Aborted => "aborted: everything is as before".to_owned(),
                Phase::Refused => "refused: nothing was changed".to_owned(),
                other => other.name().to_owned(),
            };
            let code = if job.phase == Phase::Refused { REFUSED } else { 0 };
            said(format!("move {id} {next}"), job.json(), code)
        }
    }
}

/// Shows a move until `enough`.
async fn show(control: &Db, id: i64, screen: Screen, enough: impl Fn(&Job) -> bool) -> anyhow::Result<()> {
    let bar = (!screen.json && std::io::stderr().is_terminal()).then(|| {
        let style = ProgressStyle::with_template("{spinner} {bar:24} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(100).with_style(style)
    });
    let mut seen = chrono::Utc::now() - chrono::Duration::milliseconds(200);
    let mut last = Value::Null;
    loop {
        let job = Job::load(control, id).await?;
        for note in Job::notes(control, id, seen).await? {
            seen = note.at;
            let line = format!("{}  {:<14} {}", note.at.format("%H:%M:%S%.3f"), note.phase, note.text);
            match &bar {
                Some(bar) => bar.println(line),
                None if !screen.json => eprintln!("{line}"),
                None => {}
            }
        }
        let now = job.json();
        if screen.json && now != last {
            println!("{now}");
            last = now;
        }
        if let Some(bar) = &bar {
            let (percent, text) = progress(&job);
            bar.set_position(percent);
            bar.set_message(text);
            bar.tick();
        }
        if enough(&job) {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Per cent of the tables copied, and one line.
fn progress(job: &Job) -> (u64, String) {
    let shown = &job.detail["progress"];
    let count = |name: &str| shown[name].as_array().map_or(0, Vec::len);
    let tables = shown["tables"].as_u64().unwrap_or(0).max(1);
    let percent = match job.phase {
        Phase::Preflight | Phase::Announcing | Phase::Arming => 0,
        Phase::Copying => shown["percent"].as_u64().unwrap_or(0),
        _ => 100,
    };
    let mut text = format!("move {} {}", job.id, job.phase.name());
    if job.phase == Phase::Copying {
        let bytes = human(shown["bytes"].as_i64().unwrap_or(0));
        text += &format!(" {}/{tables} tables, {} rows, {bytes}", count("ready"), shown["rows"].as_u64().unwrap_or(0));
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

pub async fn watch(servers: &Servers, id: i64, screen: Screen) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl watch").await?;
    tokio::select! {
        shown = show(&control, id, screen, |job| job.phase.is_over()) => shown?,
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(summary(&Job::load(&control, id).await?, End::Waiting))
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
    job.phase
        .resumed()
        .granted(wish)
        .map_err(|instead| anyhow::anyhow!("move {id} is in phase {}: {instead}", job.phase.name()))?;
    if wish == Wish::Cutover {
        let source = servers.primary(job.source, "shardctl").await?;
        if let Some(lag) = copy::lag(&source, &job.publication(Way::Out)).await?
            && lag > lag_most
        {
            let text = format!(
                "the target is up to {} behind, limit {}: wait, or raise --max-lag; nothing was changed",
                human(lag),
                human(lag_most)
            );
            return Ok(said(text, json!({ "lag_bytes": lag, "limit": lag_most }), REFUSED));
        }
    }
    job.set(&control, json!({ "wish": wish.name(), "attempts": 0, "paused": false })).await?;
    job.note(&control, &format!("the operator asks for {}", wish.name())).await?;
    drive(servers, id, Options::default(), screen).await
}

/// One of the move's shards is gone: frees the other one.
pub async fn lost(servers: &Servers, id: i64, wish: Wish) -> anyhow::Result<Ended> {
    let (job, shard) = lost::free(servers, id, wish).await?;
    let text = format!(
        "move {id} keeps nothing on the other shard any more. It waits for shard {shard}, to delete there what it has of {}; \
         when it is back: shardctl resume {id}",
        job.scope
    );
    Ok(said(text, job.json(), 0))
}

pub async fn pause(servers: &Servers, id: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    anyhow::ensure!(!job.phase.is_over(), "move {id} is over");
    job.set(&control, json!({ "paused": true })).await?;
    job.note(&control, "paused by the operator").await?;
    let text = format!("move {id} begins nothing new; what is under way ends (of a copy: its piece). Go on: shardctl resume {id}");
    Ok(said(text, job.json(), 0))
}

pub async fn resume(servers: &Servers, id: i64, options: Options, screen: Screen) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    anyhow::ensure!(!job.phase.is_over(), "move {id} is over: {}", job.phase.name());
    job.set(&control, json!({ "paused": false })).await?;
    if options.auto {
        job.set(&control, json!({ "auto": true, "finish": options.finish })).await?;
    }
    drive(servers, id, options, screen).await
}

pub async fn throttle(servers: &Servers, id: i64, throttle: &Throttle) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let mut job = Job::load(&control, id).await?;
    job.set(&control, json!({ "throttle": throttle.json() })).await?;
    job.note(&control, &format!("throttle: {}", throttle.json())).await?;
    Ok(said(format!("move {id}: {}", throttle.json()), throttle.json(), 0))
}

pub async fn list(servers: &Servers) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let jobs = Job::list(&control, 50).await?;
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.to_string(),
                job.phase.name().to_owned() + if job.paused() { " (paused)" } else { "" },
                job.scope.to_string(),
                job.source.to_string(),
                job.target.to_string(),
                job.updated_at.format("%F %T").to_string(),
                job.text("error").unwrap_or("").to_owned(),
            ]
        })
        .collect();
    let header = ["move", "phase", "what", "source", "target", "last change", "last error"];
    let json = jobs.iter().map(Job::json).collect::<Vec<_>>();
    Ok((Report { json: json!(json), text: table(&header, &rows), well: true }, 0))
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

/// Compares both sides of a live move and repairs nothing.
pub async fn diff(servers: &Servers, id: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let job = Job::load(&control, id).await?;
    let way = match job.phase {
        Phase::CatchingUp | Phase::Verifying | Phase::Ready => Way::Out,
        Phase::Window => Way::Back,
        other => anyhow::bail!(
            "move {id} is in phase {}: both sides are complete from catching_up to window",
            other.name()
        ),
    };
    let mut giver = servers.primary(job.giver(way), "shardctl diff").await?;
    let mut taker = servers.primary(job.taker(way), "shardctl diff").await?;
    let map = catalog::map(&control).await?;
    let buckets = map.map.buckets();
    let tables = tables::sharded(&giver, &servers.config).await?;
    let (digests, mut unequal) = digest::digests(&mut giver, &mut taker, &job, &tables, buckets, None).await?;
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
    Ok(said(text, json, if well { 0 } else { DIFFERENT }))
}

/// Which buckets and tenants changed owner between two epochs.
pub async fn map_diff(servers: &Servers, from: i64, to: i64) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let (before, after) = (catalog::map_at(&control, from).await?, catalog::map_at(&control, to).await?);
    let mut changes: Vec<(String, ShardId, ShardId)> = Vec::new();
    let mut run: Option<(u16, u16, ShardId, ShardId)> = None;
    for (bucket, (old, new)) in before.map.owners().iter().zip(after.map.owners()).enumerate() {
        let bucket = bucket as u16;
        match &mut run {
            Some((_, last, a, b)) if *a == *old && *b == *new && *last + 1 == bucket => *last = bucket,
            _ if old != new => {
                changes.extend(run.take().map(|(a, b, old, new)| (format!("buckets {a}-{b}"), old, new)));
                run = Some((bucket, bucket, *old, *new));
            }
            _ => {}
        }
    }
    changes.extend(run.map(|(a, b, old, new)| (format!("buckets {a}-{b}"), old, new)));
    let mut hashes: Vec<KeyHash> =
        before.overrides.iter().chain(&after.overrides).map(|(hash, _)| *hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    for hash in hashes {
        let (old, new) = (before.owner_of_hash(hash), after.owner_of_hash(hash));
        if old != new {
            changes.push((format!("tenant hash {hash}"), old, new));
        }
    }
    let rows: Vec<_> =
        changes.iter().map(|(what, old, new)| vec![what.clone(), old.to_string(), new.to_string()]).collect();
    let json: Vec<_> =
        changes.iter().map(|(what, old, new)| json!({ "what": what, "from": old.0, "to": new.0 })).collect();
    Ok((Report { json: json!(json), text: table(&["what", "from shard", "to shard"], &rows), well: true }, 0))
}

/// The map's epochs, newest first.
pub async fn map_history(servers: &Servers) -> anyhow::Result<Ended> {
    let control = servers.control("shardctl").await?;
    let sql = "SELECT epoch, created_at, coalesce(reason, ''), id::text FROM shard_catalog.map ORDER BY epoch DESC LIMIT 100";
    let mut rows = Vec::new();
    let mut list = Vec::new();
    for row in control.rows(sql, &[]).await? {
        let at: chrono::DateTime<chrono::Utc> = row.try_get(1)?;
        let (epoch, reason, id): (i64, String, String) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
        list.push(json!({ "epoch": epoch, "at": at, "reason": reason, "id": id }));
        rows.push(vec![epoch.to_string(), at.format("%F %T").to_string(), reason]);
    }
    Ok((Report { json: json!(list), text: table(&["epoch", "since", "why"], &rows), well: true }, 0))
}

/// Reads a plan or says what is wrong with it.
pub fn read_plan(path: &std::path::Path) -> anyhow::Result<Plan> {
    Plan::read(path).context("the plan")
}
