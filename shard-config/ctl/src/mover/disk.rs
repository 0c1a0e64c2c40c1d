//! Room on the disks of a move's shards. A move ends before a disk is full, never the shard (H27): the copy fills the target, and
//! a slot that nobody reads keeps WAL on its server.
//!
//! Whoever runs the move looks every ten seconds, between two steps and beside one that takes longer; never beside a fence, whose
//! time is the clients'. Before the flip such a move has no hope, like one that lost its slot: the source has every row. After it the
//! rows stay where they are, and the way back goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use shard_config::ShardId;
use tokio_postgres::error::SqlState;

use super::copy;
use super::fault;
use super::job::{Job, Way};
use super::machine::Phase;
use super::room::{Disk, Disks, Look, Shortage};
use super::run::{Hopeless, Runner, Step};
use crate::direct::{Db, Servers, is_code, is_for_good};

/// A look takes no longer, and a server that hangs is not asked again sooner: a move waits for this.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Why there is no way back any more, in the move's detail.
const DROPPED: &str = "way_back_dropped";
const NAME: &str = "shardctl";

/// The disks of a shard's server, as its machine says; `None` when that has no `df`.
pub async fn of(db: &Db, shard: ShardId) -> anyhow::Result<Option<Disks>> {
    // Never committed: a commit would wait for a standby that may be away.
    let sql = "BEGIN; CREATE TEMP TABLE shard_move_df (line text); COPY pg_temp.shard_move_df FROM PROGRAM 'df -Pk . pg_wal/.' \
               WITH (FORMAT csv, DELIMITER E'\\x01')";
    let asked = async {
        db.run(sql).await?;
        db.rows("SELECT line FROM pg_temp.shard_move_df", &[]).await
    };
    let asked = asked.await;
    db.run("ROLLBACK").await?;
    let rows = match asked {
        // There is no such program.
        Err(error) if is_code(&error, &SqlState::EXTERNAL_ROUTINE_EXCEPTION) => return Ok(None),
        rows => rows?,
    };
    let lines = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let found: Vec<Disk> = lines.iter().filter_map(|line| read(line)).collect();
    let &[mut data, mut wal] = found.as_slice() else { return Ok(None) };
    if let Some(free) = fault::figure(&format!("free-{shard}")) {
        (data.free, wal.free) = (free, free);
    }
    Ok(Some(Disks { data, wal }))
}

/// A line of `df -Pk`. PURE. Names of devices and of places may have spaces in them, so it goes by the column of per cents.
fn read(line: &str) -> Option<Disk> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let per_cent = fields.iter().position(|field| {
        field.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    })?;
    let kilobytes = |before: usize| fields.get(per_cent.checked_sub(before)?)?.parse::<i64>().ok();
    Some(Disk { free: kilobytes(1)? * 1024, size: kilobytes(3)? * 1024 })
}

/// What was found, or why it cannot be.
type Found = anyhow::Result<Result<Look, &'static str>>;

/// A look with a session of its own, which goes with it.
async fn look_within(open: impl Future<Output = anyhow::Result<Db>>, shard: ShardId, job: &Job) -> Found {
    let asked = async { look(&open.await?, shard, job).await };
    let asked = tokio::time::timeout(LOOK_LIMIT, asked).await;
    asked.unwrap_or_else(|_| {
        Err(anyhow::anyhow!("shard {shard} does not say what is free within {LOOK_LIMIT:?}"))
    })
}

async fn look(db: &Db, shard: ShardId, job: &Job) -> Found {
    let disks = match of(db, shard).await {
        Ok(Some(disks)) => disks,
        Ok(None) => return Ok(Err("its machine has no df")),
        // It had no room for the question.
        Err(error) if is_code(&error, &SqlState::DISK_FULL) => Disks { data: Disk::FULL, wal: Disk::FULL },
        Err(error) if is_for_good(&error) => return Ok(Err("the role of [control] may not run df there")),
        Err(error) => return Err(error),
    };
    let slots: Vec<String> =
        [Way::Out, Way::Back].iter().flat_map(|way| [job.publication(*way), job.verify_slot(*way)]).collect();
    let sql = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::int8, \
                      coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)), 0)::int8 \
               FROM pg_replication_slots WHERE slot_name::text = ANY ($1) AND restart_lsn IS NOT NULL";
    let row = db.one(sql, &[&slots]).await?;
    Ok(Ok(Look { shard, short: disks.short(), kept: row.try_get(0)?, unread: row.try_get(1)? }))
}

/// Phases in which rows or WAL gather.
const fn is_watched(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Copying
            | Phase::CatchingUp
            | Phase::Verifying
            | Phase::Ready
            | Phase::Reversing
            | Phase::Window
            | Phase::BackVerifying
    )
}

/// Looks as long as a step takes that uses the move's sessions; why it is to end.
async fn beside(servers: &Servers, job: &Job, watch: &mut Watch) -> String {
    loop {
        tokio::time::sleep(watch.shortage.pause()).await;
        let mut looks = Vec::new();
        for shard in [job.source, job.target] {
            if !watch.is_due(shard) {
                continue;
            }
            // The step waits for none of this, so a standby that hangs may take its time.
            let found = match servers.primary(shard, NAME).await {
                Ok(db) => look_within(async { Ok(db) }, shard, job).await,
                Err(error) => Err(error),
            };
            if found.is_err() {
                watch.wait(shard, AFTER_FAILURE);
            }
            // What does not answer is the step's matter, and what cannot be asked has been said between steps.
            looks.extend(found.ok().and_then(Result::ok));
        }
        let why = watch.shortage.seen(job.phase, job.target, &looks);
        looks.iter().for_each(|look| watch.wait(look.shard, watch.shortage.pause()));
        if let Some(why) = why {
            return why;
        }
    }
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Watch {
    /// When a shard is looked at next.
    due: BTreeMap<ShardId, Instant>,
    shortage: Shortage,
    /// Of whom it has been said that he cannot be asked.
    unknown: Vec<ShardId>,
    /// It has been said that the way back, which was given up, cannot be taken down.
    stuck: bool,
}

impl Watch {
    fn is_due(&self, shard: ShardId) -> bool {
        self.due.get(&shard).is_none_or(|at| *at <= Instant::now())
    }

    fn wait(&mut self, shard: ShardId, pause: Duration) {
        self.due.insert(shard, Instant::now() + pause);
    }
}

impl Runner<'_> {
    /// Looks, if it is time to, and ends what must not go on.
    pub(super) async fn look_at_disks(&mut self) -> anyhow::Result<()> {
        let (source, target) = (self.job.source, self.job.target);
        if !is_watched(self.job.phase) {
            return Ok(());
        }
        if self.dropped().is_some() {
            return if self.disks.is_due(source) { self.give_up_way_back().await } else { Ok(()) };
        }
        let (of_source, of_target) = tokio::join!(self.look_if_due(source), self.look_if_due(target));
        let mut looks = Vec::new();
        for (shard, found) in [(source, of_source), (target, of_target)] {
            match found {
                None => {}
                Some(Ok(Ok(found))) => looks.push(found),
                Some(Ok(Err(why))) => {
                    self.disks.wait(shard, AFTER_FAILURE);
                    if self.disks.unknown.contains(&shard) {
                        continue;
                    }
                    self.disks.unknown.push(shard);
                    let text = format!(
                        "how much is free on the disk of shard {shard} cannot be asked ({why}): nothing ends the move before it is full"
                    );
                    self.job.note(&self.control, &text).await?;
                }
                // A server that does not answer is the step's matter, and the other one may be short because of that.
                Some(Err(_)) => self.disks.wait(shard, AFTER_FAILURE),
            }
        }
        let why = self.disks.shortage.seen(self.job.phase, target, &looks);
        let pause = self.disks.shortage.pause();
        looks.iter().for_each(|look| self.disks.wait(look.shard, pause));
        match why {
            Some(why) => self.end_for_room(why).await,
            None => Ok(()),
        }
    }

    async fn look_if_due(&self, shard: ShardId) -> Option<Found> {
        if !self.disks.is_due(shard) {
            return None;
        }
        // Where the move's session is: servers of the shard that hang are not asked for it.
        Some(look_within(self.servers.beside(self.side(shard), NAME), shard, &self.job).await)
    }

    /// The step of the phase, with looks beside it if it takes long.
    pub(super) async fn step_watched(&mut self, phase: Phase) -> Step {
        if !is_watched(phase) || self.dropped().is_some() {
            return self.step(phase).await;
        }
        let (servers, job, mut watch) = (self.servers, self.job.clone(), std::mem::take(&mut self.disks));
        let ended = tokio::select! {
            biased;
            done = self.step(phase) => Err(done),
            why = beside(servers, &job, &mut watch) => Ok(why),
        };
        self.disks = watch;
        let why = match ended {
            Err(done) => return done,
            Ok(why) => why,
        };
        // The step was broken off, as if its runner had died: what it knew is not known, and its sessions may be anywhere.
        self.compared = false;
        self.reconnect().await?;
        self.end_for_room(why).await.map(|()| None)
    }

    async fn end_for_room(&mut self, why: String) -> anyhow::Result<()> {
        if !self.job.phase.target_owns() {
            return Err(Hopeless(why).into());
        }
        self.job.note(&self.control, &format!("there is no way back any more: {why}")).await?;
        self.job.set(&self.control, json!({ DROPPED: why })).await?;
        self.give_up_way_back().await
    }

    /// Why the way back was given up, if it was.
    pub(super) fn dropped(&self) -> Option<&str> {
        dropped(&self.job)
    }

    /// Takes down the way back, which is nobody's any more. The step of the phase waits for none of it: the source may be away for
    /// long, and is asked again later.
    async fn give_up_way_back(&mut self) -> anyhow::Result<()> {
        let taken = copy::take_down(&self.target, &self.source, &self.job, Way::Back).await;
        let Err(error) = taken else {
            self.disks.wait(self.job.source, self.disks.shortage.pause());
            return Ok(());
        };
        self.drop_slots(&[Way::Back]).await;
        self.disks.wait(self.job.source, AFTER_FAILURE);
        if !std::mem::replace(&mut self.disks.stuck, true) {
            let text = format!("the way back is not taken down yet, which is tried once a minute: {error:#}");
            self.job.note(&self.control, &text).await?;
        }
        self.reconnect().await
    }

    /// After an error of taking down: the taker may be away for long, and with it what else is to go. What keeps WAL on a giver that
    /// answers goes all the same, each by itself. What cannot go now is no error beside the one before: all of it is tried again.
    pub(super) async fn drop_slots(&self, ways: &[Way]) {
        for way in ways {
            let giver = self.side(self.job.giver(*way));
            for slot in [self.job.publication(*way), self.job.verify_slot(*way)] {
                _ = copy::drop_slot(giver, &slot).await;
            }
        }
    }
}

/// Why the move's way back was given up, if it was.
pub fn dropped(job: &Job) -> Option<&str> {
    job.text(DROPPED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mover::scope::Scope;

    #[test]
    fn a_line_of_df_is_read() {
        let check = |line: &str, expected: Option<(i64, i64)>| {
            let disk = expected.map(|(free, size)| Disk { free: free * 1024, size: size * 1024 });
            assert_eq!(read(line), disk, "{line}");
        };
        check("Filesystem     1024-blocks     Used Available Capacity Mounted on", None);
        check("/dev/vda         263174212 44040192  50331648      47% /", Some((50_331_648, 263_174_212)));
        check("//host/my share 1000 400 600 40% /mnt/my disk", Some((600, 1000)));
        check("none - - - - /", None);
        check("5% 5%", None);
    }

    /// A move waits for a server that hangs no longer than that, and not again for a while; for each shard by itself.
    #[tokio::test]
    async fn a_server_that_hangs_holds_up_a_move_for_seconds_only() {
        let now = chrono::Utc::now();
        let job = Job {
            id: 1,
            scope: Scope::of_range(0, 1),
            source: ShardId(1),
            target: ShardId(2),
            phase: Phase::Ready,
            planned_epoch: 1,
            detail: json!({}),
            created_at: now,
            updated_at: now,
        };
        let looked = look_within(std::future::pending(), job.source, &job);
        let looked = tokio::time::timeout(LOOK_LIMIT * 2, looked).await.unwrap();
        assert_eq!(looked.unwrap_err().to_string(), "shard 1 does not say what is free within 5s");
        let mut watch = Watch::default();
        assert!(watch.is_due(job.source));
        watch.wait(job.source, AFTER_FAILURE);
        watch.wait(job.target, Duration::ZERO);
        assert!(!watch.is_due(job.source) && watch.is_due(job.target));
    }

    /// Clients wait for a fence, and for nothing beside it.
    #[test]
    fn nobody_looks_while_a_fence_is_on() {
        for phase in [Phase::Fencing, Phase::Releasing, Phase::BackFencing, Phase::BackReleasing] {
            assert!(!is_watched(phase), "{phase:?}");
        }
        assert!(is_watched(Phase::Ready) && is_watched(Phase::Window));
    }
}
