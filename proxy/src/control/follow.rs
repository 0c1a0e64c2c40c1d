//! Follows the catalog: map and motions in one snapshot, by notification and by polling; keeps this proxy's lease; says what
//! its workers serve by, and what has ended.
//!
//! A proxy that joins, or whose lease has run out, first writes its row, so that everybody waits for it, and then reads: so
//! it misses nothing that was changed without it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use parking_lot::Mutex;
use shard_config::ShardId;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use super::accept::Snapshot;
use super::home::{self, VERSION};
use super::limits::{FOLLOW_LOOK, FOLLOW_POLL, FOLLOW_STEP, FOLLOW_TIDY};
use super::memory::{StoredMap, StoredMotion};
use super::roles::Placed;
use super::servers::Servers;
use super::world::World;
use crate::motion::boottime_ms;
use crate::motion::lease::RENEW;
use crate::shared::Shared;
use crate::worker::WorkerHandle;

/// A lease must not wait for a standby that is gone: it would be given up and tried again, and leave a backend waiting each
/// time. Whoever relies on leases waits for one to run out after a promotion of the default shard.
const LISTEN: &str = "SET synchronous_commit = local; LISTEN shard_catalog";

/// One statement is one snapshot.
const SNAPSHOT: &str = "
SELECT c.version, m.epoch, m.buckets, m.ranges::text, m.overrides::text, m.id::text,
    (SELECT coalesce(json_agg(json_build_object('move_id', o.move_id, 'scope', o.scope, 'source', o.source,
        'target', o.target, 'stage', o.stage) ORDER BY o.move_id), '[]')::text FROM shard_catalog.motion o)
FROM shard_catalog.control c, LATERAL (SELECT * FROM shard_catalog.map ORDER BY epoch DESC LIMIT 1) m";

const FIRST_MAP: &str = "
INSERT INTO shard_catalog.map (epoch, buckets, ranges, overrides, id, reason)
SELECT $1, $2, $3::text::jsonb, $4::text::jsonb, coalesce($5::text::uuid, gen_random_uuid()), 'the first map' WHERE NOT EXISTS (SELECT FROM shard_catalog.map) ON CONFLICT DO NOTHING";

/// `make_interval` and not a text: the lease is five seconds, here and in `motion::lease`.
const RENEWAL: &str = "
INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, held, note, shards)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => 5), $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, version = excluded.version, drained = excluded.drained,
    epoch = excluded.epoch, held = excluded.held, note = excluded.note, shards = excluded.shards";

const TIDY: &str =
    "DELETE FROM shard_catalog.proxy WHERE lease_until < clock_timestamp() - interval '1 minute'";
const LEAVE: &str = "DELETE FROM shard_catalog.proxy WHERE id = $1";

/// What the row in `shard_catalog.proxy` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    version: u64,
    drained: u64,
    epoch: u64,
    held: u64,
    note: Option<String>,
    /// Their numbers.
    shards: Vec<i32>,
}

#[derive(Debug)]
pub(super) struct Follower {
    pub(super) servers: Arc<Servers>,
    pub(super) world: Arc<World>,
    pub(super) shared: Arc<Shared>,
    /// Random for each start: a lease is a process's, not a name's.
    pub(super) id: Arc<str>,
    pub(super) workers: Arc<OnceLock<Vec<WorkerHandle>>>,
    pub(super) known: watch::Sender<bool>,
    pub(super) nudge: Arc<Notify>,
    /// Why the catalog is not followed, as it was last logged.
    pub(super) complaint: Mutex<String>,
}

struct Session {
    client: Client,
    version: Statement,
    snapshot: Statement,
    renewal: Statement,
    said: Said,
    renewed: Instant,
    looked: Instant,
    tidied: Option<Instant>,
}

impl Follower {
    /// For ever.
    pub(super) async fn run(self) {
        loop {
            let why = match self.home() {
                Some((position, primary)) => match self.session(position, primary).await {
                    Ok(()) => String::new(),
                    Err(error) => format!("{error:#}"),
                },
                None => {
                    self.shared.gate.tried(boottime_ms());
                    format!("shard {}, which keeps the catalog, has no primary", self.world.home().shard)
                }
            };
            self.complain(why);
            sleep(FOLLOW_POLL).await;
        }
    }

    fn complain(&self, why: String) {
        let mut complaint = self.complaint.lock();
        if !why.is_empty() && why != *complaint {
            tracing::warn!(%why, "the catalog cannot be followed; the last map is served");
            *complaint = why;
        }
    }

    /// The position and the primary of the catalog's shard.
    fn home(&self) -> Option<(usize, Placed)> {
        let position = self.servers.position(ShardId(self.world.home().shard))?;
        Some((position, self.world.primary(position)?))
    }

    /// Until the connection is lost, or the catalog is elsewhere.
    async fn session(&self, position: usize, primary: Placed) -> anyhow::Result<()> {
        let server = self.servers.server(position, primary.slot);
        let (client, mut connection) = self.step(server.connect.connect(NoTls)).await?;
        let heard = Notify::new();
        let listening = async {
            while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(_) = message? {
                    heard.notify_one();
                }
            }
            anyhow::Ok(())
        };
        let following = async {
            let prepare = async {
                client.batch_execute(LISTEN).await?;
                anyhow::Ok((
                    client.prepare(VERSION).await?,
                    client.prepare(SNAPSHOT).await?,
                    client.prepare(RENEWAL).await?,
                ))
            };
            let (version, snapshot, renewal) = self.step(prepare).await?;
            let row = self.step(client.query_one(&version, &[])).await?;
            if self.has_moved(&row)? {
                return Ok(());
            }
            self.step(self.world.home().settle(&client, &row)).await?;
            if self.world.remembers_nothing()
                && let Some(home) = home::later(&self.servers, &self.world, position, row.try_get(3)?).await
            {
                return self.world.go_home(home);
            }
            let (said, now) = (Said::default(), Instant::now());
            let mut session =
                Session { client, version, snapshot, renewal, said, renewed: now, looked: now, tidied: None };
            let mut look = true;
            loop {
                self.round(&mut session, look).await?;
                self.complaint.lock().clear();
                if self.home() != Some((position, primary)) {
                    return Ok(());
                }
                // While something is to be acknowledged the workers are looked at often, and the catalog as often as ever.
                let pause = if self.is_settled(&session.said) { FOLLOW_POLL } else { FOLLOW_LOOK };
                look = tokio::select! {
                    () = heard.notified() => true,
                    () = sleep(pause) => session.looked.elapsed() >= FOLLOW_POLL,
                };
            }
        };
        tokio::select! {
            ended = listening => ended.context("the connection"),
            ended = following => ended,
        }
    }

    /// Nothing is left to be acknowledged.
    fn is_settled(&self, said: &Said) -> bool {
        let state = self.shared.load();
        said.drained >= state.following.version && state.following.motions.is_none()
    }

    /// Whether the answer to `VERSION` says so; it is gone after then.
    fn has_moved(&self, row: &tokio_postgres::Row) -> anyhow::Result<bool> {
        let next = self.world.home().after(row)?;
        next.map_or(Ok(false), |next| self.world.go_home(next).map(|()| true))
    }

    async fn round(&self, session: &mut Session, look: bool) -> anyhow::Result<()> {
        // A lease counts from before all that is believed because of it: the process may be stopped in between.
        let began = boottime_ms();
        let joins = !self.shared.gate.is_leased(began) || session.said == Said::default();
        if joins {
            // Nothing is acknowledged before it was read again.
            let note = Some(self.complaint.lock().clone()).filter(|why| !why.is_empty());
            self.say(session, Said { version: 0, drained: 0, note, ..self.progress() }).await?;
            self.read(session).await?;
            // A session that was only opened anew is no gap: nobody has gone on without this proxy.
            match self.shared.gate.is_leased(began) {
                true => self.shared.gate.renewed(began),
                false => self.shared.gate.joined(began),
            }
            if !*self.known.borrow() {
                self.known.send_replace(true);
                self.nudge.notify_one();
            }
        } else if look {
            session.looked = Instant::now();
            let row = self.step(session.client.query_one(&session.version, &[])).await?;
            if self.has_moved(&row)? {
                return Ok(());
            }
            if row.try_get::<_, i64>(0)? as u64 != self.shared.load().following.version {
                self.read(session).await?;
            }
        }
        let progress = self.progress();
        let told = |said: &Said| (said.version, said.drained, said.shards.clone());
        let important = told(&progress) != told(&session.said);
        let due = if progress == session.said { RENEW } else { FOLLOW_POLL };
        if important || session.renewed.elapsed() >= due {
            self.say(session, progress).await?;
            self.shared.gate.renewed(began);
        }
        if session.tidied.is_none_or(|at| at.elapsed() >= FOLLOW_TIDY) {
            self.step(session.client.execute(TIDY, &[])).await?;
            session.tidied = Some(Instant::now());
        }
        Ok(())
    }

    async fn read(&self, session: &mut Session) -> anyhow::Result<()> {
        let snapshot = match self.step(snapshot(&session.client, &session.snapshot)).await? {
            Some(snapshot) => snapshot,
            None => {
                let here = self.home().context("the catalog's shard has no primary any more")?.0;
                if let Some(home) = home::elsewhere(&self.servers, &self.world, here).await? {
                    self.world.go_home(home)?;
                    anyhow::bail!("shard {} keeps the shard map", home.shard);
                }
                // Of a catalog that was lost whole: what was served last, under its own id.
                let ours = StoredMap::from_map(&self.world.map());
                let id = self.shared.load().following.map_id.clone();
                let (ranges, overrides) =
                    (serde_json::to_string(&ours.ranges)?, serde_json::to_string(&ours.overrides)?);
                let (epoch, buckets) = (ours.epoch as i64, i32::from(ours.buckets));
                let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                    [&epoch, &buckets, &ranges, &overrides, &id.as_deref()];
                self.step(session.client.execute(FIRST_MAP, &values)).await?;
                let again = self.step(snapshot(&session.client, &session.snapshot)).await?;
                again.context("the map that was just stored is missing")?
            }
        };
        // What was read and is not accepted leaves the last map in force.
        let began = boottime_ms();
        self.world.follow(snapshot).inspect_err(|_| self.shared.gate.tried(began))
    }

    /// One question. What has failed was tried, as of the moment at which it began.
    async fn step<T, E: Into<anyhow::Error>>(
        &self,
        question: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let began = boottime_ms();
        let answer = match timeout(FOLLOW_STEP, question).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(anyhow::anyhow!("no answer")),
        };
        answer.inspect_err(|_| self.shared.gate.tried(began))
    }

    async fn say(&self, session: &mut Session, said: Said) -> anyhow::Result<()> {
        let config = self.world.config();
        let tag = crate::pool::backend_tag().to_string();
        let address = config.proxy.listen.to_string();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [
            &&*self.id,
            &config.proxy.name,
            &address,
            &tag,
            &(said.version as i64),
            &(said.drained as i64),
            &(said.epoch as i64),
            &i32::try_from(said.held).unwrap_or(i32::MAX),
            &said.note,
            &said.shards,
        ];
        self.step(session.client.execute(&session.renewal, &values)).await?;
        (session.said, session.renewed) = (said, Instant::now());
        Ok(())
    }

    /// Of all workers together. Before there are any, nothing is served.
    fn progress(&self) -> Said {
        let state = self.shared.load();
        let (version, epoch) = (state.following.version, state.map.epoch());
        let mut lineup = state.lineup;
        let mut said = Said { version, drained: version, epoch, ..Said::default() };
        for worker in self.workers.get().map_or(&[][..], Vec::as_slice) {
            let progress = &worker.progress;
            said.version = said.version.min(progress.serving.load(Ordering::Acquire));
            said.drained = said.drained.min(progress.drained.load(Ordering::Acquire));
            lineup = lineup.min(progress.lineup.load(Ordering::Acquire));
            said.held += progress.holding.load(Ordering::Relaxed);
            if said.note.is_none() {
                said.note.clone_from(&progress.waits_for.lock());
            }
        }
        self.world.lineup_ended(lineup);
        // Of one that has left nobody is told any more from that moment on: it misses what is written to all shards.
        let known = state.shards.iter().filter(|shard| shard.is_member() && shard.since <= lineup);
        said.shards = known.map(|shard| i32::from(shard.id.0)).collect();
        // Of a write whose client or server was lost nobody knows whether it is over.
        let motions = state.following.motions.as_deref();
        for motion in motions.map_or(&[][..], |motions| motions.list()) {
            for shard in [motion.source, motion.target] {
                let position = self.servers.position(shard);
                let doubts = position.map_or_else(Vec::new, |at| self.world.freshness.doubts(at));
                let concerned = doubts.iter().any(|bucket| {
                    bucket.is_none_or(|bucket| motion.scope.may_contain_bucket(bucket, state.map.buckets()))
                });
                if concerned {
                    said.drained = said.drained.min(version.saturating_sub(1));
                    said.note = Some(format!("a write of unknown outcome on shard {shard}"));
                }
            }
        }
        said
    }
}

async fn snapshot(client: &Client, statement: &Statement) -> anyhow::Result<Option<Snapshot>> {
    let Some(row) = client.query_opt(statement, &[]).await? else { return Ok(None) };
    let map = StoredMap {
        epoch: row.try_get::<_, i64>(1)? as u64,
        buckets: u16::try_from(row.try_get::<_, i32>(2)?)?,
        ranges: serde_json::from_str(row.try_get(3)?).context("shard_catalog.map.ranges")?,
        overrides: serde_json::from_str(row.try_get(4)?).context("shard_catalog.map.overrides")?,
        id: Some(row.try_get(5)?),
    };
    let motions: Vec<StoredMotion> = serde_json::from_str(row.try_get(6)?).context("shard_catalog.motion")?;
    Ok(Some(Snapshot { version: row.try_get::<_, i64>(0)? as u64, map, motions }))
}

/// A proxy as `SHOW PROXIES` prints it.
#[derive(Debug, Clone)]
pub struct ProxyStatus {
    pub id: String,
    pub name: String,
    pub address: String,
    /// Seconds; below zero it has run out.
    pub lease_s: f64,
    pub version: i64,
    pub drained: i64,
    pub epoch: i64,
    pub held: i32,
    pub note: Option<String>,
    /// The numbers of those that it knows; `None`: it is too old to say so.
    pub shards: Option<Vec<i32>>,
}

const PROXIES: &str = "
SELECT id, name, address, extract(epoch FROM lease_until - clock_timestamp())::float8, version, drained, epoch, held, note, shards
FROM shard_catalog.proxy ORDER BY name, id";

pub(super) async fn home_client(
    servers: &Servers,
    world: &World,
) -> anyhow::Result<deadpool_postgres::Object> {
    let position =
        servers.position(ShardId(world.home().shard)).context("the catalog's shard is not known")?;
    let primary = world.primary(position).context("the catalog's shard has no primary")?;
    servers.server(position, primary.slot).client().await
}

pub(super) async fn proxies(servers: &Servers, world: &World) -> anyhow::Result<Vec<ProxyStatus>> {
    let ask = async {
        let rows = home_client(servers, world).await?.query(PROXIES, &[]).await?;
        let status = |row: tokio_postgres::Row| {
            Ok(ProxyStatus {
                id: row.try_get(0)?,
                name: row.try_get(1)?,
                address: row.try_get(2)?,
                lease_s: row.try_get(3)?,
                version: row.try_get(4)?,
                drained: row.try_get(5)?,
                epoch: row.try_get(6)?,
                held: row.try_get(7)?,
                note: row.try_get(8)?,
                shards: row.try_get(9)?,
            })
        };
        rows.into_iter().map(status).collect()
    };
    timeout(FOLLOW_STEP, ask).await.context("no answer")?
}

/// At a graceful stop, when no worker serves anybody any more: nobody need wait for the lease to run out.
pub(super) async fn leave(servers: &Servers, world: &World, id: &str) {
    let leaving = async {
        home_client(servers, world).await?.execute(LEAVE, &[&id]).await?;
        anyhow::Ok(())
    };
    match timeout(FOLLOW_STEP, leaving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(?error, "the lease runs out by itself"),
        Err(_) => tracing::debug!("the lease runs out by itself: no answer"),
    }
}
