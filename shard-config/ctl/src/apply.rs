//! A plan that is carried out, step by step, or only checked. What it would meet is said before anything is written down: a move
//! that is in the catalog is begun by whoever takes up moves, also hours later.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use shard_config::plan::Step;

use crate::abreast::several;
use crate::aim::Aim;
use crate::direct::{Db, Servers};
use crate::exit::Failure;
use crate::look::Screen;
use crate::mover::catalog::{self, StoredMap};
use crate::mover::job::Job;
use crate::mover::machine::Phase;
use crate::mover::objects;
use crate::mover::preflight::{self, Problem};
use crate::mover::run::Options;
use crate::moves::{Ended, drive, refusal, said, words};
use crate::plans::{Plan, scope_of};

/// `limits`: of the copy, by name. `file`: where the plan was read. `at_once`: steps at the same time.
pub async fn apply(
    servers: &Servers,
    file: &Path,
    options: Options,
    limits: &Value,
    at_once: usize,
    dry_run: bool,
    screen: Screen,
) -> anyhow::Result<Ended> {
    let plan = Plan::read(file).context("the plan")?;
    let control = servers.control("shardctl").await?;
    plan.check(&catalog::map(&control).await?)?;
    if let Some(refused) = refusal(&preflight::unwritable(&control).await?) {
        return Ok(refused);
    }
    catalog::install(&control).await?;
    if dry_run {
        return dry(servers, &control, &plan).await;
    }
    if plan.steps.len() > 1 && !options.auto {
        let text = format!("the plan has {} steps: add --auto, or apply plans of one step", plan.steps.len());
        return Err(Failure::usage(text).into());
    }
    if at_once > 1 && plan.steps.len() > 1 {
        return Ok(several(servers, &control, &plan.steps, (options, limits), at_once, screen).await);
    }
    let mut done = Vec::new();
    for step in &plan.steps {
        // Of all that is left: a plan that cannot be ended is not gone on with.
        let shards = plan.steps[done.len()..].iter().flat_map(|step| [step.source, step.target]);
        let (id, ended) = match refusal(&preflight::unreachable(servers, shards).await) {
            Some(refused) => (None, Ok(refused)),
            None => {
                let job = create(&control, step, options, limits).await?;
                (Some(job.id), drive(servers, job.id, options, Aim::of(&job, options), screen).await)
            }
        };
        if plan.steps.len() == 1 {
            return ended;
        }
        match ended {
            Ok((_, 0)) => done.extend(id),
            Ok((mut report, status)) => {
                report.text += &rest(servers, &plan, &done, id, file, options).await;
                report.json["made"] = json!(done);
                report.json["steps_left"] = json!(left(&plan, &done, id));
                return Ok((report, status));
            }
            Err(error) => {
                let rest = rest(servers, &plan, &done, id, file, options).await;
                return Err(error.context(rest.trim_end().to_owned()));
            }
        }
    }
    Ok(said(made(&done, options), json!({ "moves": done }), 0))
}

pub(crate) async fn create(
    control: &Db,
    step: &Step,
    options: Options,
    limits: &Value,
) -> anyhow::Result<Job> {
    // For whoever takes the move up.
    let detail = json!({ "throttle": limits, "auto": options.auto, "finish": options.finish });
    let epoch = i64::try_from(catalog::map(control).await?.map.epoch())?;
    Job::create(control, &scope_of(step)?, step.source, step.target, epoch, &detail).await
}

/// What is said of a plan that came about.
pub(crate) fn made(done: &[i64], options: Options) -> String {
    let text = format!("{} moves are made: {done:?}", done.len());
    if options.finish || done.is_empty() {
        return text;
    }
    let commands: Vec<_> = done.iter().map(|id| format!("shardctl finish {id}")).collect();
    format!(
        "{text}\ntheir windows are open: each target keeps WAL for the way back, and the source its rows, until {}",
        commands.join("; ")
    )
}

/// Steps that were not begun. `id`: the move of the one that did not come about, if that was.
fn left(plan: &Plan, done: &[i64], id: Option<i64>) -> usize {
    plan.steps.len() - done.len() - usize::from(id.is_some())
}

/// What of a plan is left after a step that did not come about, and how to go on. `done`: the moves before it.
async fn rest(
    servers: &Servers,
    plan: &Plan,
    done: &[i64],
    id: Option<i64>,
    file: &Path,
    options: Options,
) -> String {
    // A plan is for one map, and a move that came about has made another one.
    let state = async {
        let control = servers.control("shardctl").await?;
        let over = match id {
            Some(id) => Job::load(&control, id).await?.phase.is_over(),
            None => true,
        };
        anyhow::Ok((over, plan.check(&catalog::map(&control).await?).is_ok()))
    };
    let next = match (state.await, id) {
        (Ok((true, true)), _) => {
            format!("the map is as it was: shardctl apply {}{}", file.display(), words(options))
        }
        // Also when nobody can say what the map is: a new plan is right whatever it is.
        (Ok((false, _)) | Err(_), Some(id)) => {
            format!("when move {id} is over: plan again, and apply the new plan")
        }
        _ => "the map has changed: plan again, and apply the new plan".to_owned(),
    };
    let (all, n) = (plan.steps.len(), done.len() + 1);
    let left = left(plan, done, id);
    format!(
        "that was step {n} of {all}; moves that are made: {done:?}; steps not begun: {left}\ngo on: {next}\n"
    )
}

/// Every check of every step, and nothing else.
async fn dry(servers: &Servers, control: &Db, plan: &Plan) -> anyhow::Result<Ended> {
    let map = catalog::map(control).await?;
    let mut found: Vec<Problem> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    for step in &plan.steps {
        for problem in problems(servers, control, &map, step, &mut notes).await? {
            // What is wrong with a shard is wrong for each step that it has a part in.
            if !found.contains(&problem) {
                found.push(problem);
            }
        }
    }
    notes.sort();
    notes.dedup();
    let told: String = notes.iter().map(|note| format!("note     {note}\n")).collect();
    let (mut report, status) = refusal(&found).unwrap_or_else(|| {
        said("everything that was checked is well; nothing was changed", json!({ "ok": true }), 0)
    });
    report.text = told + &report.text;
    report.json["notes"] = json!(notes);
    Ok((report, status))
}

/// Why this step cannot be made as things are. `notes`: what is no reason, and must be known.
async fn problems(
    servers: &Servers,
    control: &Db,
    map: &StoredMap,
    step: &Step,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Problem>> {
    let now = chrono::Utc::now();
    let job = Job {
        id: 0,
        scope: scope_of(step)?,
        source: step.source,
        target: step.target,
        phase: Phase::Preflight,
        planned_epoch: 0,
        detail: json!({}),
        created_at: now,
        updated_at: now,
    };
    let mut found = preflight::placement(map, &job.scope, job.source, job.target);
    if found.is_empty() {
        found = preflight::unreachable(servers, [job.source, job.target]).await;
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let source = servers.primary(job.source, "shardctl").await?;
    let target = servers.primary(job.target, "shardctl").await?;
    notes.extend(objects::of_both(servers, &job, &source, &target).await?);
    let checked = preflight::servers(servers, control, &source, &target, &job, map).await;
    Ok(checked.map_or_else(
        // Those of other steps are to be heard, too.
        |error| {
            let what = format!("{} could not be checked: {error:#}", job.scope);
            vec![Problem { what, remedy: "mend what the server says, then check again".to_owned() }]
        },
        |(problems, _)| problems,
    ))
}
