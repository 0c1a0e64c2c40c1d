//! The control plane: one thread of its own that watches the shards and publishes what it learns through `Shared`.
//!
//! Rooms, in reading order: `servers` (addresses and control connections), `health` (one prober a server), `roles`
//! (PURE: who is the primary), `memory` (what survives a restart), `raw` -> `build` (PURE: the catalog for routing),
//! `schema` (DDL noticed, catalogs read again), `reload` (what a changed file may change) with `join` (a new shard is
//! looked at), `leave` (and how one goes) and `admit` (known, or left, from then on), `follow` with `accept` (the map, what moves, and this proxy's lease), `world`
//! (all of it becomes one `State`); `waits` (PURE) and `deadlock`.
//!
//! Invariants: nothing on the data path waits for this thread, except a session that asked for `refresh` after its own
//! DDL; a primary is published only after its timeline is on disk; the map's epoch never goes back.

mod accept;
mod admit;
mod build;
mod builtin;
pub mod deadlock;
mod follow;
mod health;
mod home;
mod join;
mod leave;
pub mod limits;
mod memory;
mod raw;
pub mod reload;
mod roles;
mod schema;
mod servers;
mod waits;
mod world;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use shard_config::{Config, ShardId};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use follow::ProxyStatus;
pub use servers::Servers;
pub use world::{ServerStatus, World};

use crate::auth::users::Users;
use crate::replica::Freshness;
use crate::shared::Shared;
use crate::twophase::{Gid, Outcome, Recovery, Resolve};
use crate::worker::{Mail, WorkerHandle};
use crate::{admin, http, listen};

/// What sessions, the admin console and the HTTP door hold of the control plane.
#[derive(Debug, Clone)]
pub struct Handle {
    pub world: Arc<World>,
    pub servers: Arc<Servers>,
    pub freshness: Arc<Freshness>,
    config_path: Arc<Path>,
    started: Instant,
    prepared: Arc<Mutex<Vec<(ShardId, u64)>>>,
    requests: mpsc::Sender<schema::Ask>,
    /// One reload at a time: each is a step from the configuration before it.
    reloading: Arc<tokio::sync::Mutex<()>>,
    resolves: mpsc::Sender<Resolve>,
    ready: watch::Receiver<bool>,
    /// Of this process's row in `shard_catalog.proxy`.
    id: Arc<str>,
    workers: Arc<OnceLock<Vec<WorkerHandle>>>,
}

/// The running thread. Dropping it does not stop it: call `stop`.
#[derive(Debug)]
pub struct Control {
    pub handle: Handle,
    door: mpsc::Sender<(std::net::TcpListener, admin::Context)>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Returns when the published state shows every DDL that was committed before the call (H39).
    pub async fn refresh(&self) {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(schema::Ask::Refresh(answer)).await.is_ok() {
            let _ = answered.await; // An error means that the proxy is shutting down.
        }
    }

    /// Returns when a catalog and a map are known: before that no statement can be routed. Waits for ever when no
    /// shard can be reached.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Reads the configuration file again and publishes it; returns when the catalog follows its tables and functions, and
    /// the workers were told its users. The error says what is wrong with the file, or with a new shard; then nothing has
    /// changed.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let _alone = self.reloading.lock().await;
        let (config, changes) = reload::read(&self.config_path, &self.world.config())?;
        let config = Arc::new(config);
        listen::raise_open_files(&config);
        self.nobody_is_pinned_to(&changes.left).await?;
        if changes.is_empty() {
            self.world.set_config(config.clone());
        } else {
            let (answer, answered) = oneshot::channel();
            let join = join::Join { config: config.clone(), changes, handle: self.clone(), answer };
            self.requests.send(schema::Ask::Join(join)).await.context("the proxy is shutting down")?;
            answered.await.context("the proxy is shutting down")??;
        }
        self.refresh().await;
        // Beside: a verifier takes a while to make, and this may be a thread that serves clients.
        let users = tokio::task::spawn_blocking(move || Users::new(&config)).await.context("the users")?;
        let users = Arc::new(users);
        for worker in self.workers.get().map_or(&[][..], Vec::as_slice) {
            let _ = worker.mail.send(Mail::Reload(users.clone())).await; // One that is gone has no clients.
        }
        Ok(())
    }

    /// A coordinator cannot tell what became of its transaction, or cannot finish it: finds out or decides, and
    /// finishes it. Returns the outcome, and the participants that are not finished yet.
    pub async fn resolve(&self, gid: Gid, participants: Vec<ShardId>) -> (Outcome, Vec<ShardId>) {
        let (answer, answered) = oneshot::channel();
        let unknown = (Outcome::Unknown, participants.clone());
        match self.resolves.send(Resolve { gid, participants, answer }).await {
            Ok(()) => answered.await.unwrap_or(unknown),
            Err(_) => unknown,
        }
    }

    /// Of this process's row in the catalog.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Every proxy that the catalog knows.
    pub async fn proxies(&self) -> anyhow::Result<Vec<ProxyStatus>> {
        follow::proxies(&self.servers, &self.world).await
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Transactions over several shards that were prepared on each shard when recovery last looked.
    pub fn prepared(&self) -> Vec<(ShardId, u64)> {
        self.prepared.lock().clone()
    }

    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
}

impl Control {
    /// Starts the thread. Fails when the configuration's addresses cannot be resolved or `state_dir` cannot be used.
    pub fn start(config: Arc<Config>, config_path: &Path, shared: Arc<Shared>) -> anyhow::Result<Self> {
        let servers = Arc::new(Servers::new(&config)?);
        let memory = memory::MemoryFile::open(Path::new(&config.proxy.state_dir))?;
        let map_remembered = memory.get().map.is_some();
        let freshness = Arc::new(Freshness::new(servers.shards.len(), config.key.buckets));
        let world =
            Arc::new(World::new(config.clone(), shared.clone(), servers.clone(), freshness.clone(), memory));
        let (requests, queue) = mpsc::channel(limits::CONTROL_QUEUE);
        let (ready_tx, ready) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let (door, doors) = mpsc::channel(1);
        let (arrive, arrivals) = mpsc::channel(limits::CONTROL_QUEUE);
        let (resolves, resolve_queue) = mpsc::channel(limits::CONTROL_QUEUE);
        let prepared = Arc::default();
        let recovery = Recovery::new(servers.clone(), world.clone(), Arc::clone(&prepared));
        let nudge = Arc::new(Notify::new());
        let (known, map_known) = watch::channel(false);
        let id: Arc<str> = format!("{:016x}", rand::random::<u64>()).into();
        let workers = Arc::new(OnceLock::new());
        let follower = follow::Follower {
            servers: servers.clone(),
            world: world.clone(),
            shared,
            id: id.clone(),
            workers: workers.clone(),
            known,
            nudge: nudge.clone(),
            complaint: Mutex::default(),
        };
        let handle = Handle {
            world: world.clone(),
            servers: servers.clone(),
            freshness,
            config_path: config_path.into(),
            started: Instant::now(),
            prepared,
            requests,
            reloading: Arc::default(),
            resolves,
            ready,
            id,
            workers,
        };

        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("control runtime")?;
        let schema = schema::SchemaWatch::new(servers, world, arrive, map_known, map_remembered);
        let inner = handle.clone();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                runtime.block_on(run(
                    config,
                    inner,
                    Tasks {
                        schema,
                        queue,
                        arrivals,
                        nudge,
                        follower,
                        recovery,
                        resolve_queue,
                        doors,
                        ready: ready_tx,
                    },
                    stopped,
                ))
            })
            .context("control thread")?;
        Ok(Self { handle, door, stop, thread })
    }

    /// Starts answering HTTP, once there are workers to ask. Fails when the address is taken.
    pub fn open_door(&self, shared: Arc<Shared>, workers: Vec<WorkerHandle>) -> anyhow::Result<()> {
        let address = shared.load().config.proxy.http;
        let listener =
            std::net::TcpListener::bind(address).with_context(|| format!("[proxy] http = \"{address}\""))?;
        listener.set_nonblocking(true)?;
        if self.handle.workers.set(workers.clone()).is_err() {
            anyhow::bail!("the door is open already");
        }
        let context = admin::Context { shared, control: self.handle.clone(), workers };
        self.door.try_send((listener, context)).context("the door is open already")
    }

    /// Blocks until the thread has ended.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the control thread had panicked");
        }
    }
}

/// What the thread starts with.
struct Tasks {
    schema: schema::SchemaWatch,
    queue: mpsc::Receiver<schema::Ask>,
    /// Servers to watch beside those that were there at the start.
    arrivals: mpsc::Receiver<(usize, u16)>,
    nudge: Arc<Notify>,
    follower: follow::Follower,
    recovery: Recovery,
    resolve_queue: mpsc::Receiver<Resolve>,
    doors: mpsc::Receiver<(std::net::TcpListener, admin::Context)>,
    ready: watch::Sender<bool>,
}

async fn run(config: Arc<Config>, handle: Handle, start: Tasks, mut stopped: watch::Receiver<bool>) {
    let Tasks { schema, queue, mut arrivals, nudge, follower, recovery, resolve_queue, mut doors, ready } =
        start;
    let poll = Duration::from_millis(config.reads.poll_ms);
    let (reports_tx, mut reports) = mpsc::channel(limits::CONTROL_QUEUE);
    let mut tasks = JoinSet::new();
    let prober = |shard: usize, slot: u16| {
        let (servers, freshness) = (handle.servers.clone(), handle.freshness.clone());
        let (reports, nudge, shared) = (reports_tx.clone(), nudge.clone(), handle.world.shared.clone());
        health::watch(servers, freshness, shard, slot, poll, reports, nudge, shared)
    };
    for (shard, addresses) in handle.servers.shards.iter().enumerate() {
        for slot in 0..addresses.servers.len() as u16 {
            tasks.spawn(prober(shard, slot));
        }
    }
    tasks.spawn(schema.run(queue, nudge.clone(), ready));
    tasks.spawn(recovery.run(resolve_queue));
    tasks.spawn(follower.run());
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            report = reports.recv() => match report {
                Some(report) => if handle.world.report(report) { nudge.notify_one() },
                None => break,
            },
            Some((shard, slot)) = arrivals.recv() => {
                tasks.spawn(prober(shard, slot));
            }
            Some((listener, context)) = doors.recv() => match TcpListener::from_std(listener) {
                Ok(listener) => {
                    tasks.spawn(deadlock::watch(context.clone()));
                    tasks.spawn(http::serve(listener, context));
                }
                Err(error) => tracing::error!(%error, "no HTTP door"),
            },
            Some(Err(error)) = tasks.join_next() => {
                // Without a prober a dead server would be used for ever: better to die visibly.
                tracing::error!(?error, "a control task panicked");
                std::process::abort();
            }
        }
    }
    tasks.shutdown().await;
    follow::leave(&handle.servers, &handle.world, &handle.id).await;
}
