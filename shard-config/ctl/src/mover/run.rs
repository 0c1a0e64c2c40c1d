//! The runner: does the step of the phase that is written down, and writes down the next one.
//!
//! One runner a move, by a session lock in the catalog. Whoever gets it first ends every session that an earlier runner of
//! the move left on any server, so a process that was stopped and wakes up cannot act on what it believed.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use shard_config::ShardId;

use super::attach::{Attached, attach, end_others};
use super::catalog::{self, StoredMap};
use super::disk;
use super::job::{Job, Way};
use super::machine::{Event, Phase, Wish};
use super::preflight::{Problem, placement, told};
use super::tables::{Table, sharded};
use super::transfer::Transfer;
use super::verify::Suspects;
use crate::direct::{Db, Servers};

/// Between two looks at a phase that waits.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AT_COPY: Duration = Duration::from_millis(150);
/// Pauses after a step that failed: doubled up to the most.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(15);
/// A cut-over that failed so often is given up until it is asked for again.
const ATTEMPTS_MOST: i64 = 20;

/// What ended a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The move is over; the job's phase says how.
    Over,
    /// It waits for the operator, who was not to be waited for.
    Waiting,
    /// Both sides differ; the text says where.
    Different(String),
    /// The cut-over, or the roll-back, is given up for now. Everything is as before it.
    GivenUp(String),
    /// The preflight found reasons not to begin; nothing was changed.
    Refused(Vec<Problem>),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Cut over as soon as both sides are equal.
    pub auto: bool,
    /// Close the window as soon as it is open.
    pub finish: bool,
    /// Stay while the move waits for the operator, and take `auto` and `finish` from its record, too.
    pub stay: bool,
}

/// Fails a step in a way that no repetition mends.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl std::fmt::Display for Hopeless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// Both sides differ.
#[derive(Debug)]
pub struct Different(pub String);

impl std::fmt::Display for Different {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Different {}

/// How a step ended. `Ok(None)`: it goes on, look again soon.
pub(super) type Step = anyhow::Result<Option<Event>>;

/// `Db::identity` of the source and of the target.
pub(super) type Identities = (Option<(i64, i32)>, Option<(i64, i32)>);

pub(super) struct Runner<'a> {
    pub(super) servers: &'a Servers,
    pub(super) control: Db,
    pub(super) source: Db,
    pub(super) target: Db,
    pub(super) job: Job,
    pub(super) map: StoredMap,
    /// Digests were equal but for `suspects`. Not written down: a new runner compares again.
    pub(super) compared: bool,
    pub(super) suspects: Suspects,
    /// The servers that were compared: another primary may lack what the one before it had applied.
    pub(super) compared_on: Identities,
    /// The server where this runner has made guards and publication, until the copy begins.
    pub(super) armed_on: Option<(i64, i32)>,
    /// The first copy, while it is under way.
    pub(super) transfer: Option<Transfer>,
    pub(super) shown: Instant,
    /// Among the moves that copy at the same time, of both shards.
    pub(super) places: Option<[i32; 2]>,
    /// When everything that has to hold before a move begins was last looked at.
    pub(super) checked: Option<Instant>,
    /// Since when something is in the way of its beginning.
    unfit: Option<Instant>,
    /// The version that proxies were last told just to see whether it drains.
    pub(super) probed: Option<i64>,
    pub(super) disks: disk::Watch,
    problems: Vec<Problem>,
    backoff: Duration,
}

/// Runs the move until it is over or waits. A server that cannot be reached is waited for.
pub async fn run(servers: &Servers, id: i64, options: Options) -> anyhow::Result<End> {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let mut runner = match attach(servers, id).await {
            Ok(runner) => runner,
            Err(error) if error.is::<Attached>() || backoff >= BACKOFF_MOST => return Err(error),
            Err(_) => {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MOST);
                continue;
            }
        };
        backoff = BACKOFF_FIRST;
        match runner.drive(options).await {
            // The lock went with the connection: from the start.
            Err(_) if runner.control.client.is_closed() => {}
            ended => return ended,
        }
    }
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        servers: &'a Servers,
        control: Db,
        source: Db,
        target: Db,
        job: Job,
        map: StoredMap,
    ) -> Self {
        Self {
            servers,
            control,
            source,
            target,
            job,
            map,
            compared: false,
            suspects: Suspects::new(),
            compared_on: (None, None),
            armed_on: None,
            transfer: None,
            shown: Instant::now(),
            places: None,
            checked: None,
            unfit: None,
            probed: None,
            disks: disk::Watch::default(),
            problems: Vec::new(),
            backoff: BACKOFF_FIRST,
        }
    }
}

impl Runner<'_> {
    /// See `end_others`. The taker is left out while it has nothing to undo: it may be what does not answer.
    pub(super) async fn end_strays(&self, way: Way) -> anyhow::Result<()> {
        let mut sessions = vec![&self.control, self.side(self.job.giver(way))];
        if super::fence::has_opened(&self.job) {
            sessions.push(self.side(self.job.taker(way)));
        }
        end_others(&sessions, &self.job.session_name()).await
    }

    async fn drive(&mut self, options: Options) -> anyhow::Result<End> {
        let resumed = self.job.phase.resumed();
        if resumed != self.job.phase {
            let text = format!("taken up again; what {} left is undone", self.job.phase.name());
            self.job.go(&self.control, resumed, &text).await?;
        }
        loop {
            self.job.refresh(&self.control).await?;
            if self.job.phase.is_over() {
                return Ok(match self.problems.is_empty() {
                    true => End::Over,
                    false => End::Refused(std::mem::take(&mut self.problems)),
                });
            }
            if self.obey(options).await? {
                continue;
            }
            let phase = self.job.phase;
            // What rests keeps WAL, too.
            let done = match self.look_at_disks().await {
                Ok(()) if self.rests().await? => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Ok(()) => self.step_watched(phase).await,
                Err(error) => Err(error),
            };
            if let Some(end) = self.note(phase, done).await? {
                self.leave_slot().await?;
                return Ok(end);
            }
            // A lock that waits for old snapshots is not left to itself.
            let idle = phase.waits() && self.job.wish().is_none() && self.job.text("old_snapshots").is_none();
            // Nor is a window that is to be closed once the pause ends.
            let idle = idle && !(self.job.paused() && self.wanted(options).1);
            if self.job.phase == phase && idle && !options.stay {
                self.leave_slot().await?;
                return Ok(End::Waiting);
            }
        }
    }

    /// Whether nothing is done just now: the operator has paused it, or it waits in line.
    async fn rests(&mut self) -> anyhow::Result<bool> {
        if !self.job.paused() || !self.job.phase.may_pause() {
            return Ok(!self.has_place().await?);
        }
        // Nobody reads it meanwhile. A server that is away ends no pause: it is asked again.
        if matches!(self.job.phase, Phase::Verifying | Phase::BackVerifying) && self.leave().await.is_err() {
            self.reconnect().await?;
        }
        Ok(true)
    }

    async fn leave_slot(&mut self) -> anyhow::Result<()> {
        if self.job.phase.is_over() {
            return Ok(());
        }
        if let Err(error) = self.leave().await {
            self.job.note(&self.control, &format!("left, with a slot that keeps WAL: {error:#}")).await?;
        }
        Ok(())
    }

    /// Nobody looks after the move for a while. What changes is collected by the slot of the comparison, which would keep WAL
    /// for nobody: the next runner compares all of it anyway.
    async fn leave(&mut self) -> anyhow::Result<()> {
        let (way, giver) = match self.job.phase {
            Phase::Ready | Phase::Verifying => (Way::Out, &self.source),
            _ => (Way::Back, &self.target),
        };
        self.compared = false;
        super::copy::drop_slot(giver, &self.job.verify_slot(way)).await
    }

    /// Whether it cuts over, and closes the window, by itself.
    fn wanted(&self, options: Options) -> (bool, bool) {
        let wanted = |told: bool, flag: &str| match told {
            // What was taken back meanwhile (abort, rollback, a cut-over step by step) is not done by who was told so before.
            true if self.job.detail[flag] != json!(false) => true,
            // Who stays does what was wanted of the move, whoever wrote it down.
            _ => options.stay && self.job.flag(flag),
        };
        (wanted(options.auto, "auto"), wanted(options.finish, "finish"))
    }

    /// Follows the operator's wish; true when the phase has changed.
    async fn obey(&mut self, options: Options) -> anyhow::Result<bool> {
        let (auto, finish) = self.wanted(options);
        let wish = match (self.job.wish(), self.job.phase) {
            (Some(wish), _) => wish,
            (None, Phase::Ready) if auto => {
                self.job.set(&self.control, json!({ "wish": Wish::Cutover.name() })).await?;
                Wish::Cutover
            }
            // What is paused does not begin to delete.
            (None, Phase::Window) if finish && !self.job.paused() => Wish::Finish,
            _ => return Ok(false),
        };
        if wish == Wish::Cutover && self.job.phase == Phase::Ready {
            // Steps of `ready` first: nothing is fenced before it is known who is in the way.
            return Ok(false);
        }
        match self.job.phase.granted(wish) {
            Ok(None) => Ok(false),
            Ok(Some(next)) => {
                let why = format!("{} was asked for", wish.name());
                let changed = self.job.go(&self.control, next, &why).await?;
                // A roll-back is kept until it has flipped back: an attempt that fails is made again.
                if wish != Wish::Rollback {
                    self.forget_wish().await?;
                }
                Ok(changed)
            }
            Err(instead) => {
                self.job.note(&self.control, &format!("{} is not possible: {instead}", wish.name())).await?;
                self.forget_wish().await?;
                Ok(false)
            }
        }
    }

    pub(super) async fn forget_wish(&mut self) -> anyhow::Result<()> {
        self.job.set(&self.control, json!({ "wish": null })).await
    }

    /// Writes down how a step ended.
    async fn note(
        &mut self,
        phase: Phase,
        done: anyhow::Result<Option<Event>>,
    ) -> anyhow::Result<Option<End>> {
        let (event, why) = match done {
            Ok(None) => {
                // A copy that has begun has not come far: what cuts it short comes later, each time.
                if phase != Phase::Copying {
                    self.backoff = BACKOFF_FIRST;
                }
                match &self.transfer {
                    Some(transfer) => transfer.rest(LOOK_AT_COPY).await,
                    None => tokio::time::sleep(LOOK).await,
                }
                return Ok(None);
            }
            Ok(Some(event)) => (event, String::new()),
            Err(error) if error.is::<Hopeless>() => (Event::Hopeless, format!("{error:#}")),
            Err(error) if error.is::<Different>() => (Event::Different, format!("{error:#}")),
            Err(error) => (Event::Failed, format!("{error:#}")),
        };
        if event == Event::Flipped {
            // The flip has written the phase itself.
            self.job.refresh(&self.control).await?;
            if self.job.wish() == Some(Wish::Abort) {
                let text = "abort was asked for when the target owned the rows already: roll back instead";
                self.job.note(&self.control, text).await?;
            }
            self.map = catalog::map(&self.control).await?;
            self.suspects.clear();
            self.compared = false;
            self.job.set(&self.control, json!({ "wish": null, "error": null, "attempts": 0 })).await?;
            return Ok(None);
        }
        let next = phase.after(event);
        if !why.is_empty() {
            self.job.set(&self.control, json!({ "error": why, "error_at": chrono::Utc::now() })).await?;
        } else if self.job.text("error").is_some() {
            self.job.set(&self.control, json!({ "error": null })).await?;
        }
        if next != phase && next == self.job.phase {
            // A fence that has undone itself has said so, and why.
        } else if next != phase {
            let text = if why.is_empty() { format!("{} is done", phase.name()) } else { why.clone() };
            self.job.go(&self.control, next, &text).await?;
        } else if event == Event::Failed {
            self.job.note(&self.control, &format!("will be tried again: {why}")).await?;
        }
        if phase.gives_up(event) {
            self.forget_wish().await?;
            return Ok(Some(End::GivenUp(why)));
        }
        match event {
            Event::Different if next == phase => return Ok(Some(End::Different(why))),
            Event::Failed | Event::Hopeless | Event::Different => {
                if matches!(phase, Phase::Fencing | Phase::BackFencing) {
                    return Ok(None);
                }
                tokio::time::sleep(self.backoff).await;
                self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
                self.reconnect().await?;
            }
            _ => self.backoff = BACKOFF_FIRST,
        }
        if matches!(phase, Phase::Releasing | Phase::BackReleasing) && event == Event::Finished {
            return self.after_release().await;
        }
        Ok(None)
    }

    /// Rests between attempts, and gives up after too many.
    async fn after_release(&mut self) -> anyhow::Result<Option<End>> {
        let attempts = self.job.number("attempts").unwrap_or(0);
        if attempts >= ATTEMPTS_MOST {
            self.forget_wish().await?;
            self.job.set(&self.control, json!({ "attempts": 0 })).await?;
            let last = self.job.text("missed").unwrap_or_default().to_owned();
            return Ok(Some(End::GivenUp(format!("{attempts} attempts failed; the last one: {last}"))));
        }
        let rest = Duration::from_millis(500 * (1 << attempts.clamp(0, 5)));
        tokio::time::sleep(rest.min(BACKOFF_MOST)).await;
        Ok(None)
    }

    /// A failed statement may have left its session in the middle of something; a primary may be another server now.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        let name = self.job.session_name();
        if let Ok(db) = self.servers.primary(self.job.source, &name).await {
            self.source = db;
        }
        if let Ok(db) = self.servers.primary(self.job.target, &name).await {
            self.target = db;
        }
        if self.compared_on != (self.source.identity, self.target.identity) {
            self.compared = false;
        }
        Ok(())
    }

    pub(super) async fn step(&mut self, phase: Phase) -> anyhow::Result<Option<Event>> {
        match phase {
            Phase::Preflight => self.preflight().await,
            Phase::Announcing => self.announce().await,
            Phase::Arming => self.arm().await,
            Phase::Copying => self.copy().await,
            Phase::CatchingUp => self.catch_up().await,
            Phase::Verifying | Phase::BackVerifying => self.verify().await,
            Phase::Ready => self.keep_ready().await,
            Phase::Fencing | Phase::BackFencing => self.fence().await,
            Phase::Releasing | Phase::BackReleasing => self.release().await,
            Phase::Reversing => self.reverse().await,
            Phase::Window => self.keep_window().await,
            Phase::Returning => self.give_back().await,
            Phase::Closing => self.close().await,
            Phase::Aborting => self.take_down_all().await,
            Phase::Emptying | Phase::Clearing => self.clean(self.job.target).await,
            Phase::Cleaning => self.clean(self.job.source).await,
            Phase::Done | Phase::RolledBack | Phase::Aborted | Phase::Refused => Ok(None),
        }
    }

    async fn preflight(&mut self) -> anyhow::Result<Option<Event>> {
        // Nothing is begun on servers that cannot even be asked.
        let problems = self.look_at_all().await.map_err(|error| Hopeless(format!("{error:#}")))?;
        if problems.is_empty() {
            let mut notes = super::warnings::all(&self.job, &self.source, &self.target).await?;
            let (source, target) = (&self.source, &self.target);
            notes.extend(super::objects::of_both(self.servers, &self.job, source, target).await?);
            for text in notes {
                self.job.note(&self.control, &text).await?;
            }
            return Ok(Some(Event::Finished));
        }
        let text = told(&problems);
        self.problems = problems;
        Err(Hopeless(text).into())
    }

    /// Everything that has to hold before a move begins, as it is now; what does not.
    async fn look_at_all(&mut self) -> anyhow::Result<Vec<Problem>> {
        let mut problems = placement(&self.map, &self.job.scope, self.job.source, self.job.target);
        if problems.is_empty() {
            let (servers, control) = (self.servers, &self.control);
            let (source, target) = (&self.source, &self.target);
            let found =
                super::preflight::servers(servers, control, source, target, &self.job, &self.map).await?;
            problems = found.0;
            let total: i64 = found.1.iter().map(|table| table.bytes).sum();
            self.job.set(&self.control, json!({ "source_bytes": total, "tables": found.1.len() })).await?;
        }
        self.checked = Some(Instant::now());
        Ok(problems)
    }

    /// Once more, when what was seen may not be true any more and nothing has been copied yet. Who owns what decides at once; what
    /// else is in the way (slots and workers that another move has, its fence) may pass, and has so long to do so.
    pub(super) async fn check_again(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.map = catalog::map(&self.control).await?;
        let moved = placement(&self.map, &self.job.scope, self.job.source, self.job.target);
        if !moved.is_empty() {
            return Err(Hopeless(told(&moved)).into());
        }
        let problems = self.look_at_all().await?;
        if problems.is_empty() {
            self.unfit = None;
            return Ok(());
        }
        let unfit = *self.unfit.get_or_insert_with(Instant::now);
        anyhow::ensure!(unfit.elapsed() >= patience, "it cannot begin yet: {}", told(&problems));
        Err(Hopeless(told(&problems)).into())
    }

    pub(super) fn buckets(&self) -> u16 {
        self.map.map.buckets()
    }

    pub(super) async fn tables(&self) -> anyhow::Result<Vec<Table>> {
        sharded(&self.source, &self.servers.config).await.context("the sharded tables of the source")
    }

    /// The shard that is not `shard`'s side of the move.
    pub(super) fn side(&self, shard: ShardId) -> &Db {
        if shard == self.job.source { &self.source } else { &self.target }
    }
}
