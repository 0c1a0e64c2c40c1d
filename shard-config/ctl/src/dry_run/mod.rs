//! `--dry-run` of the verbs on one move: whether a verb would be granted, what stands in its way now, and what it would do.
//!
//! Nothing is written on any server. The check is the verb's own, and so is the exit status, as far as it can be known
//! beforehand: what would only be waited for is no refusal.

mod course;

use serde_json::{Value, json};
use shard_config::ShardId;

use crate::aim::{Aim, stored};
use crate::direct::{Db, Servers};
use crate::exit;
use crate::flow::{self, Broken};
use crate::look::{attended, way_out};
use crate::mover::catalog::{self, StoredMap};
use crate::mover::job::{Job, Way};
use crate::mover::machine::Wish;
use crate::mover::run::Options;
use crate::mover::{clean, fence, lost, obstacles, preflight};
use crate::moves::{Answer, Ended, answer, said, still_on, too_far};

const NAME: &str = "shardctl --dry-run";

/// What was found out for one verb.
#[derive(Default)]
struct Seen {
    /// The verb would be refused, for this reason.
    refused: Option<String>,
    in_the_way: Vec<String>,
    would: Vec<String>,
    /// Rows that would be deleted: the shard, and about how many of each table.
    rows: Option<(ShardId, Vec<(String, i64)>)>,
    /// What the move keeps on each shard, and would be taken down.
    taken_down: Vec<(ShardId, Vec<String>)>,
    /// With which the verb would end.
    status: u8,
}

impl Seen {
    fn refused(status: u8, why: impl Into<String>) -> Self {
        Self { refused: Some(why.into()), status, ..Self::default() }
    }

    /// Something with which the verb would not come to its end.
    fn fails(&mut self, status: u8, why: String) {
        self.in_the_way.push(why);
        if self.status == 0 {
            self.status = status;
        }
    }

    fn ended(mut self, job: &Job, verb: &str) -> Ended {
        for (shard, things) in &self.taken_down {
            self.would.push(format!("of shard {shard} is taken down: {}", things.join(", ")));
        }
        let total: Option<i64> = self.rows.as_ref().map(|(_, rows)| rows.iter().map(|(_, n)| n).sum());
        if let (Some((shard, rows)), Some(total)) = (&self.rows, total) {
            let each: Vec<_> = rows.iter().map(|(table, n)| format!("{table} {n}")).collect();
            self.would.push(format!(
                "about {total} rows of {} are deleted from shard {shard}, in small transactions ({})",
                job.scope,
                each.join(", ")
            ));
        }
        let Job { id, scope, source, target, phase, .. } = job;
        let verdict = match (&self.refused, self.status) {
            (Some(why), _) => format!("would be refused: {why}"),
            (None, 0) => "would be granted".to_owned(),
            (None, status) => format!("would be granted, and end with status {status} as things are"),
        };
        let mut text = format!(
            "{verb} of move {id} ({scope}, shard {source} to {target}, phase {}) {verdict}\n",
            phase.name()
        );
        for what in &self.in_the_way {
            text += &format!("  in the way now: {what}\n");
        }
        for what in &self.would {
            text += &format!("  it would: {what}\n");
        }
        let rows = self.rows.as_ref().map(|(shard, rows)| {
            let tables: serde_json::Map<String, Value> =
                rows.iter().map(|(table, n)| (table.clone(), json!(n))).collect();
            json!({ "shard": shard.0, "about": total, "tables": tables })
        });
        let down: Vec<_> =
            self.taken_down.iter().map(|(shard, what)| json!({ "shard": shard.0, "what": what })).collect();
        let json = json!({
            "dry_run": true, "id": id, "verb": verb, "phase": phase.name(), "granted": self.refused.is_none(), "why": self.refused,
            "in_the_way": self.in_the_way, "would": self.would, "rows_deleted": rows, "taken_down": down, "status": self.status,
        });
        said(text + "nothing was changed", json, self.status)
    }
}

/// The move's two servers, as far as they answer.
struct Sides {
    source: Option<Db>,
    target: Option<Db>,
}

impl Sides {
    async fn ask(servers: &Servers, job: &Job, seen: &mut Seen) -> Self {
        let (source, target) =
            tokio::join!(servers.primary(job.source, NAME), servers.primary(job.target, NAME));
        let mut side = |shard, asked: anyhow::Result<Db>| match asked {
            Ok(db) => Some(db),
            Err(error) => {
                let text = format!("shard {shard} does not answer ({error:#}): {}", way_out(job, shard));
                seen.fails(exit::FAILED, text);
                None
            }
        };
        Self { source: side(job.source, source), target: side(job.target, target) }
    }

    fn of(&self, job: &Job, shard: ShardId) -> Option<&Db> {
        if shard == job.source { self.source.as_ref() } else { self.target.as_ref() }
    }

    fn both(&self) -> Option<(&Db, &Db)> {
        Some((self.source.as_ref()?, self.target.as_ref()?))
    }
}

/// Of cutover, abort, rollback and finish.
pub async fn wish(servers: &Servers, id: i64, wish: Wish, lag_most: i64) -> anyhow::Result<Ended> {
    let control = servers.control(NAME).await?;
    let job = Job::load(&control, id).await?;
    let next = match answer(&job, wish) {
        Err(refused) => {
            return Ok(Seen::refused(refused.status, refused.to_string()).ended(&job, wish.name()));
        }
        Ok(Answer::Over(text)) => {
            let seen = Seen { would: vec![format!("change nothing: {text}")], ..Seen::default() };
            return Ok(seen.ended(&job, wish.name()));
        }
        Ok(Answer::Granted(next)) => next,
    };
    let mut seen = Seen::default();
    let map = catalog::map(&control).await?;
    unwritable(&control, &mut seen).await?;
    // Of a move that has not begun nothing is on its servers, which are not asked by the verb, either.
    if !moves_nothing(&job, wish) {
        let sides = Sides::ask(servers, &job, &mut seen).await;
        sides_of(&sides, &job, &map, &mut seen).await?;
        match wish {
            Wish::Cutover | Wish::Rollback => fenced(&sides, &job, wish, lag_most, &mut seen).await?,
            Wish::Abort | Wish::Finish => {}
        }
        late(&control, &mut seen).await?;
        held(&sides, &job, &mut seen).await?;
        if wish != Wish::Cutover {
            seen.taken_down = kept(&sides, &job).await?;
        }
        if let Some(shard) = course::loser(&job, wish)
            && let Some(db) = sides.of(&job, shard)
        {
            // Before a flip back has come about, what the target has is no copy yet.
            let owner = if shard == job.source { job.target } else { job.source };
            if map.owner_of(&job.scope) != Some(shard)
                && let Err(error) = map.only_copies(&job.scope, shard, owner)
            {
                seen.fails(exit::FAILED, format!("{error:#}"));
            }
            seen.rows = Some((shard, clean::about(db, &job, &servers.config, map.map.buckets()).await?));
        }
    }
    seen.would.extend(course::steps(&job, wish, next, map.map.epoch()));
    Ok(seen.ended(&job, wish.name()))
}

fn moves_nothing(job: &Job, wish: Wish) -> bool {
    use crate::mover::machine::Phase;
    (wish, job.phase) == (Wish::Abort, Phase::Preflight)
}

/// Of resume.
pub async fn resume(servers: &Servers, id: i64, options: Options) -> anyhow::Result<Ended> {
    let control = servers.control(NAME).await?;
    let job = Job::load(&control, id).await?;
    if let Err(refused) = still_on(&job) {
        return Ok(Seen::refused(refused.status, refused.to_string()).ended(&job, "resume"));
    }
    let mut seen = Seen::default();
    unwritable(&control, &mut seen).await?;
    let map = catalog::map(&control).await?;
    let sides = Sides::ask(servers, &job, &mut seen).await;
    sides_of(&sides, &job, &map, &mut seen).await?;
    if let Some((source, target)) = sides.both() {
        match flow::broken(&job, source, target).await? {
            // Before the cut-over it is undone; later the window stays as it is.
            Some(Broken::Gone(text)) if !job.phase.target_owns() => seen.fails(exit::FAILED, text),
            Some(broken) => seen.in_the_way.push(broken.text().to_owned()),
            None => {}
        }
    }
    let options = if options.auto { options } else { stored(&job) };
    let runs = attended(&control).await?.contains(&id);
    seen.would = course::resumed(&job, Aim::of(&job, options), runs);
    Ok(seen.ended(&job, "resume"))
}

/// Of `abort --target-lost` and `finish --source-lost`.
pub async fn lost(servers: &Servers, id: i64, wish: Wish, never_returns: bool) -> anyhow::Result<Ended> {
    let control = servers.control(NAME).await?;
    let job = Job::load(&control, id).await?;
    let checked = async {
        let (kept, gone, _) = lost::decide(&job, wish)?;
        lost::is_gone(servers, id, gone, wish).await?;
        anyhow::ensure!(
            !attended(&control).await?.contains(&id),
            "move {id} has a runner already: shardctl watch {id}"
        );
        anyhow::Ok((kept, gone))
    };
    let (kept_on, gone) = match checked.await {
        Ok(found) => found,
        Err(error) => return Ok(Seen::refused(exit::FAILED, format!("{error:#}")).ended(&job, wish.name())),
    };
    let mut seen = Seen::default();
    unwritable(&control, &mut seen).await?;
    match servers.primary(kept_on, NAME).await {
        Ok(db) => seen.taken_down = vec![(kept_on, clean::kept(&db, &job).await?)],
        Err(error) => seen.fails(exit::FAILED, format!("shard {kept_on} does not answer ({error:#})")),
    }
    let hidden = match never_returns {
        true => format!(
            "end the move for good. What shard {gone} has of {} is hidden no more: it must never be started again with it",
            job.scope
        ),
        false => format!(
            "what shard {gone} has of {} stays hidden, and is deleted by shardctl resume {id} when it is back",
            job.scope
        ),
    };
    seen.would = vec![format!("shard {kept_on} goes on owning {}", job.scope), hidden];
    Ok(seen.ended(&job, wish.name()))
}

/// Every verb writes into the catalog first of all.
async fn unwritable(control: &Db, seen: &mut Seen) -> anyhow::Result<()> {
    for problem in preflight::unwritable(control).await? {
        seen.fails(exit::FAILED, format!("{}: {}", problem.what, problem.remedy));
    }
    Ok(())
}

/// What keeps a runner from taking the move up, on either shard.
async fn sides_of(sides: &Sides, job: &Job, map: &StoredMap, seen: &mut Seen) -> anyhow::Result<()> {
    for shard in [job.source, job.target] {
        let Some(db) = sides.of(job, shard) else { continue };
        if let Some(why) = preflight::commits_wait(db).await? {
            seen.in_the_way.push(format!("shard {shard}: {why}"));
        }
        if catalog::known_epoch(db).await? > i64::try_from(map.map.epoch())? {
            let text = format!(
                "shard {shard} knows of a later epoch of the map than the catalog: shardctl repair --dry-run shows what is missing"
            );
            seen.fails(exit::FAILED, text);
        }
    }
    Ok(())
}

/// What a cut-over, there or back, is refused for or waits for.
async fn fenced(sides: &Sides, job: &Job, wish: Wish, lag_most: i64, seen: &mut Seen) -> anyhow::Result<()> {
    if wish == Wish::Cutover
        && let Some(source) = &sides.source
        && let Some((_, text)) = too_far(source, job, lag_most).await?
    {
        (seen.refused, seen.status) = (Some(text), exit::REFUSED);
    }
    let way = if wish == Wish::Cutover { Way::Out } else { Way::Back };
    if let Some(giver) = sides.of(job, job.giver(way))
        && let Some(who) = fence::in_the_way(giver, job).await?
    {
        seen.in_the_way.push(format!("a transaction that wrote rows of the scope: {who}"));
    }
    for shard in [job.source, job.target] {
        if let Some(db) = sides.of(job, shard)
            && let Some(who) = preflight::replicated_into(db).await?
        {
            seen.in_the_way.push(format!(
                "shard {shard} receives rows by subscription {who}, which the fence lets through: disable it"
            ));
        }
    }
    let Some((source, target)) = sides.both() else { return Ok(()) };
    match flow::broken(job, source, target).await? {
        Some(Broken::Gone(text)) => {
            // A move without a way there is undone; one without a way back stays in its window.
            seen.fails(if wish == Wish::Cutover { exit::FAILED } else { exit::GIVEN_UP }, text);
        }
        Some(Broken::Stopped(text)) => seen.in_the_way.push(text),
        None => {}
    }
    if wish == Wish::Cutover
        && let Some(slot) = obstacles::far_slot(source, target, job).await?
    {
        seen.in_the_way.push(slot);
    }
    seen.would.push(
        "wait for transactions that only read these rows through a proxy; they cannot be seen from here"
            .to_owned(),
    );
    Ok(())
}

/// Proxies that have not drained the version that is out.
async fn late(control: &Db, seen: &mut Seen) -> anyhow::Result<()> {
    let version: i64 = control.value("SELECT version FROM shard_catalog.control", &[]).await?;
    seen.in_the_way.extend(catalog::late(control, version).await?.iter().map(|proxy| proxy.awaited(version)));
    Ok(())
}

/// The lock of the last cut-over, which is let go of when nobody is left who cannot see its fence.
async fn held(sides: &Sides, job: &Job, seen: &mut Seen) -> anyhow::Result<()> {
    let Some(source) = sides.source.as_ref().filter(|_| job.phase.target_owns()) else { return Ok(()) };
    let sql = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE starts_with(gid, $1) AND database = current_database())";
    if source.holds(sql, &[&job.gid_prefix()]).await? {
        let who = job.text("old_snapshots").unwrap_or("whoever runs the move looks whose");
        seen.in_the_way.push(format!(
            "the fence's lock on shard {} waits for the end of snapshots from before the cut-over: {who}",
            job.source
        ));
    }
    Ok(())
}

async fn kept(sides: &Sides, job: &Job) -> anyhow::Result<Vec<(ShardId, Vec<String>)>> {
    let mut all = Vec::new();
    for shard in [job.source, job.target] {
        let Some(db) = sides.of(job, shard) else { continue };
        let things = clean::kept(db, job).await?;
        if !things.is_empty() {
            all.push((shard, things));
        }
    }
    Ok(all)
}
