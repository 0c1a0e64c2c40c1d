//! One thread that serves clients: everything its sessions share. Nothing here is locked, because nothing here
//! leaves the thread; other threads talk to a worker through its mailbox.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use shard_config::ShardId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::auth::client_side::SaltedKeys;
use crate::auth::users::{UserEntry, Users};
use crate::control;
use crate::limits;
use crate::peers::Key;
use crate::pool::pool::PoolStatus;
use crate::pool::{Pool, PoolLimits, Role};
use crate::progress::{Changing, Progress};
use crate::route::Router;
use crate::sequences::Blocks;
use crate::session::client::{Activity, ClientInfo, ClientStatus, WorkerStats};
use crate::session::prepared::Registry;
use crate::session::settings::SettingsTable;
use crate::session::{cancel, startup};
use crate::shared::{Endpoint, Shared, State};

/// What other threads ask of a worker.
#[derive(Debug)]
pub enum Mail {
    Client(std::net::TcpStream),
    /// The key names this worker.
    Cancel {
        key: Key,
        from_peer: bool,
    },
    /// The client's transaction is given up: `server` (address and process id) gets a signal while the sender that is
    /// answered lives.
    Deadlock {
        client: u32,
        server: (std::net::SocketAddr, i32),
        held: oneshot::Sender<oneshot::Sender<()>>,
    },
    Clients(oneshot::Sender<Vec<ClientStatus>>),
    Pools(oneshot::Sender<Vec<PoolStatus>>),
    /// New users and limits were published.
    Reload(Arc<Users>),
    /// Finish what is running, take nothing new.
    Drain,
}

/// Handles of all workers, held by everybody who talks to them.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    pub mail: mpsc::Sender<Mail>,
    pub stats: Arc<WorkerStats>,
    pub progress: Arc<Progress>,
}

/// The pools and settings of one role.
pub struct UserSpace {
    pub user: Arc<UserEntry>,
    pub settings: RefCell<SettingsTable>,
    shards: RefCell<Vec<ShardPools>>,
    /// What servers report (ParameterStatus messages) under a set of settings, by its id.
    pub reported: RefCell<FxHashMap<u64, Rc<[u8]>>>,
}

#[derive(Clone)]
struct ShardPools {
    primary: Option<Rc<Pool>>,
    /// Of the default shard: connections on which queries over several shards are answered. They are not taken from
    /// `primary`, of which such a query needs one as well: many at once would wait for each other's second one.
    scratch: Option<Rc<Pool>>,
    replicas: Vec<(u16, Rc<Pool>)>,
}

pub struct Worker {
    pub id: u8,
    shared: Arc<Shared>,
    generation: Cell<u64>,
    state: RefCell<Arc<State>>,
    pub control: control::Handle,
    pub workers: RefCell<Vec<WorkerHandle>>,
    pub users: RefCell<Arc<Users>>,
    spaces: RefCell<HashMap<String, Rc<UserSpace>>>,
    keys: Rc<RefCell<SaltedKeys>>,
    pub router: RefCell<Router>,
    pub registry: RefCell<Registry>,
    pub sequences: RefCell<Blocks>,
    pub clients: RefCell<FxHashMap<u32, Rc<ClientInfo>>>,
    next_client: Cell<u32>,
    pub stats: Arc<WorkerStats>,
    pub progress: Arc<Progress>,
    pub(crate) changing: RefCell<Changing>,
    /// One read buffer and one output buffer for all sessions: an idle client owns neither.
    read_buffer: Cell<Vec<u8>>,
    spare: Cell<Vec<u8>>,
    /// Updated at every maintenance round: good enough for idle times.
    pub now: Cell<Instant>,
    pub draining: Cell<bool>,
    /// Cancel requests on their way to the other proxies.
    pub asking_peers: Cell<usize>,
}

impl Worker {
    pub fn new(
        id: u8,
        shared: Arc<Shared>,
        users: Arc<Users>,
        control: control::Handle,
        stats: Arc<WorkerStats>,
        progress: Arc<Progress>,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            generation: Cell::new(shared.generation()),
            state: RefCell::new(shared.load()),
            shared,
            control,
            workers: RefCell::default(),
            users: RefCell::new(users),
            spaces: RefCell::default(),
            keys: Rc::default(),
            router: RefCell::new(Router::new(limits::ROUTE_CACHE)),
            registry: RefCell::default(),
            sequences: RefCell::default(),
            clients: RefCell::default(),
            next_client: Cell::new(1),
            stats,
            progress,
            changing: RefCell::default(),
            read_buffer: Cell::new(vec![0; limits::READ_BUFFER]),
            spare: Cell::default(),
            now: Cell::new(Instant::now()),
            draining: Cell::new(false),
            asking_peers: Cell::new(0),
        })
    }

    pub fn admin_context(&self) -> crate::admin::Context {
        crate::admin::Context {
            shared: self.shared.clone(),
            control: self.control.clone(),
            workers: self.workers.borrow().clone(),
        }
    }

    /// Serves until drained and empty.
    pub async fn run(self: Rc<Self>, mut mailbox: mpsc::Receiver<Mail>) {
        let mut tick = tokio::time::interval(limits::MAINTENANCE);
        let mut deadline = None;
        let mut changes = self.shared.changes();
        loop {
            let undrained = self.note_progress();
            tokio::select! {
                mail = mailbox.recv() => match mail {
                    Some(mail) => self.receive(mail),
                    None => return,
                },
                _ = tick.tick() => self.maintain(),
                // The state is followed below. (Its sender lives as long as `shared`.)
                _ = changes.changed() => {}
                () = tokio::time::sleep(limits::DRAIN_LOOK), if undrained => {}
            }
            if self.draining.get() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits::DRAIN);
                if self.clients.borrow().is_empty() || Instant::now() > deadline {
                    return;
                }
            }
        }
    }

    fn receive(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Client(stream) => match TcpStream::from_std(stream) {
                Ok(stream) => {
                    tokio::task::spawn_local(startup::serve(self.clone(), stream));
                }
                Err(error) => tracing::warn!(%error, "cannot serve a client"),
            },
            Mail::Cancel { key, from_peer } => cancel::take(self, key, from_peer),
            Mail::Deadlock { client, server, held } => cancel::deadlock(self, client, server, held),
            Mail::Clients(answer) => {
                let list = self.clients.borrow().values().map(|info| ClientStatus::from(&**info)).collect();
                let _ = answer.send(list);
            }
            Mail::Pools(answer) => {
                let _ = answer.send(self.pools().iter().map(|pool| pool.status()).collect());
            }
            Mail::Reload(users) => {
                *self.users.borrow_mut() = users;
                self.spaces.borrow_mut().retain(|name, space| {
                    let users = self.users.borrow();
                    let kept =
                        users.get(name).is_some_and(|u| u.password.expose() == space.user.password.expose());
                    if !kept {
                        space.pools().iter().for_each(|pool| pool.retire());
                    }
                    kept
                });
            }
            Mail::Drain => {
                self.draining.set(true);
                self.clients.borrow().values().for_each(|info| info.wake());
            }
        }
    }

    /// The state by which the statement at hand was routed: `state` would follow a newer one.
    #[inline]
    pub fn current(&self) -> std::cell::Ref<'_, Arc<State>> {
        self.state.borrow()
    }

    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.changes()
    }

    #[inline]
    pub fn gate(&self) -> &crate::motion::Gate {
        &self.shared.gate
    }

    /// The newest state. A statement holds what it got from routing to its end.
    #[inline]
    pub fn state(&self) -> std::cell::Ref<'_, Arc<State>> {
        if self.shared.generation() != self.generation.get() {
            self.follow();
        }
        self.state.borrow()
    }

    pub fn sequence_resets(&self) -> u64 {
        self.shared.sequence_resets()
    }

    pub fn reset_sequences(&self) {
        self.shared.reset_sequences();
    }

    fn follow(&self) {
        self.generation.set(self.shared.generation());
        *self.state.borrow_mut() = self.shared.load();
        for space in self.spaces.borrow().values() {
            self.fill(space);
        }
    }

    /// Pools for the servers of the newest state. Pools of servers that lost their role are retired: writes go
    /// only to what the state calls the primary (H5).
    fn fill(&self, space: &UserSpace) {
        let state = self.state.borrow().clone();
        let old = space.pools();
        let pool = |shard: usize, id: ShardId, role: Role, endpoint: &Endpoint, limits: PoolLimits| {
            let same = |pool: &&Rc<Pool>| {
                pool.shard == shard
                    && pool.role == role
                    && pool.address == endpoint.address
                    && pool.limits == limits
            };
            old.iter().find(same).cloned().unwrap_or_else(|| {
                let settings = space.settings.borrow().none();
                let login =
                    (space.user.name.as_str(), &space.user.password, state.config.proxy.database.as_str());
                Pool::new(
                    shard,
                    id.0,
                    role,
                    endpoint.address,
                    login,
                    limits.clone(),
                    self.keys.clone(),
                    settings,
                )
            })
        };
        let shards: Vec<ShardPools> = state
            .shards
            .iter()
            .enumerate()
            .map(|(position, shard)| ShardPools {
                primary: shard.primary.as_ref().map(|e| {
                    pool(position, shard.id, Role::Primary, e, pool_limits(&state, Role::Primary, 1))
                }),
                scratch: shard
                    .primary
                    .as_ref()
                    .filter(|_| shard.id == state.config.proxy.default_shard)
                    .map(|e| pool(position, shard.id, Role::Primary, e, scratch_limits(&state))),
                replicas: shard
                    .replicas
                    .iter()
                    .map(|e| {
                        let limits = pool_limits(&state, Role::Replica, shard.replicas.len());
                        (e.slot, pool(position, shard.id, Role::Replica, e, limits))
                    })
                    .collect(),
            })
            .collect();
        *space.shards.borrow_mut() = shards;
        let kept = space.pools();
        for pool in old.iter().filter(|old| !kept.iter().any(|new| Rc::ptr_eq(old, new))) {
            pool.retire();
        }
    }

    pub fn space(&self, name: &str) -> Option<Rc<UserSpace>> {
        let _ = self.state();
        if let Some(space) = self.spaces.borrow().get(name) {
            return Some(space.clone());
        }
        let user = self.users.borrow().get(name)?.clone();
        let number = self.spaces.borrow().len() as u32 + rand::random::<u16>() as u32 * 4096;
        let settings = RefCell::new(SettingsTable::new(name, number));
        let space =
            Rc::new(UserSpace { user, settings, shards: RefCell::default(), reported: RefCell::default() });
        self.fill(&space);
        self.spaces.borrow_mut().insert(name.to_owned(), space.clone());
        Some(space)
    }

    fn pools(&self) -> Vec<Rc<Pool>> {
        self.spaces.borrow().values().flat_map(|space| space.pools()).collect()
    }

    /// An id whose high byte names this worker and which no client has.
    pub fn new_client_id(&self) -> u32 {
        loop {
            let next = self.next_client.get();
            self.next_client.set(if next >= 0x00ff_ffff { 1 } else { next + 1 });
            let id = u32::from(self.id) << 24 | next;
            if !self.clients.borrow().contains_key(&id) {
                return id;
            }
        }
    }

    /// The shared read buffer. Whoever takes it puts it back before anything else runs.
    #[inline]
    pub fn take_read_buffer(&self) -> Vec<u8> {
        let buffer = self.read_buffer.take();
        if buffer.is_empty() { vec![0; limits::READ_BUFFER] } else { buffer }
    }

    #[inline]
    pub fn put_read_buffer(&self, buffer: Vec<u8>) {
        self.read_buffer.set(buffer);
    }

    #[inline]
    pub fn take_spare(&self) -> Vec<u8> {
        self.spare.take()
    }

    #[inline]
    pub fn put_spare(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= limits::SPARE_BUFFER {
            buffer.clear();
            self.spare.set(buffer);
        }
    }

    fn maintain(&self) {
        let now = Instant::now();
        self.now.set(now);
        let leak = self.state().config.pool.leak_detection_s;
        for pool in self.pools() {
            pool.maintain(now);
        }
        for info in self.clients.borrow().values() {
            let idle = now.saturating_duration_since(info.since.get());
            match info.activity.get() {
                Activity::IdleInTransaction
                    if leak > 0 && idle.as_secs() >= leak && !info.leak_warned.get() =>
                {
                    info.leak_warned.set(true);
                    self.stats.leaks.add(1);
                    tracing::warn!(
                        client = %info.address, user = info.user, idle_s = idle.as_secs(),
                        application = %info.application_name.borrow(),
                        "client sits idle in a transaction and keeps a server connection",
                    );
                }
                Activity::Active | Activity::IdleInTransaction if !info.serving.borrow().is_empty() => {
                    // A paused server never answers and never closes: after a failover its clients must not wait
                    // for TCP to notice. One that answers in time is let answer.
                    let gone = |key: &Rc<crate::pool::server::ServerKey>| !self.is_current(key.address);
                    let give_up = idle > limits::RETIRED_GRACE && info.serving.borrow().iter().any(gone);
                    info.give_up_retired.set(give_up);
                    if give_up {
                        info.wake();
                    }
                }
                _ => {}
            }
        }
    }

    fn is_current(&self, address: std::net::SocketAddr) -> bool {
        self.state.borrow().shards.iter().any(|shard| {
            shard.primary.iter().chain(&shard.replicas).any(|endpoint| endpoint.address == address)
        })
    }
}

impl UserSpace {
    #[inline]
    pub fn primary(&self, shard: usize) -> Option<Rc<Pool>> {
        self.shards.borrow().get(shard)?.primary.clone()
    }

    pub fn scratch(&self, shard: usize) -> Option<Rc<Pool>> {
        self.shards.borrow().get(shard)?.scratch.clone()
    }

    /// The replica pool of this server slot.
    pub fn replica(&self, shard: usize, slot: u16) -> Option<Rc<Pool>> {
        let shards = self.shards.borrow();
        shards.get(shard)?.replicas.iter().find(|(known, _)| *known == slot).map(|(_, pool)| pool.clone())
    }

    fn pools(&self) -> Vec<Rc<Pool>> {
        let shards = self.shards.borrow();
        shards
            .iter()
            .flat_map(|s| s.primary.iter().chain(&s.scratch).chain(s.replicas.iter().map(|(_, pool)| pool)))
            .cloned()
            .collect()
    }
}

/// A quarter of what the primary's pool may have, beside it.
fn scratch_limits(state: &State) -> PoolLimits {
    let primary = pool_limits(state, Role::Primary, 1);
    PoolLimits { max: primary.max.div_ceil(limits::SCRATCH_SHARE), min: 0, scratch: true, ..primary }
}

/// The configured limits are those of the whole proxy; each worker gets its share, each replica its own.
fn pool_limits(state: &State, role: Role, servers: usize) -> PoolLimits {
    let pool = &state.config.pool;
    let share = (usize::from(state.config.proxy.workers) * servers.max(1)).max(1);
    let (max, min) = match role {
        Role::Primary => (pool.primary_max, pool.primary_min),
        Role::Replica => (pool.replica_max, pool.replica_min),
    };
    PoolLimits {
        max: (max as usize).div_ceil(share).max(1),
        min: (min as usize / share).min(max as usize),
        scratch: false,
        connect_timeout: Duration::from_millis(pool.connect_timeout_ms),
        idle_timeout: Duration::from_secs(pool.idle_timeout_s),
        max_lifetime: Duration::from_secs(pool.max_lifetime_s),
        validation_timeout: Duration::from_millis(pool.validation_timeout_ms),
        test_query: pool.test_query.clone(),
    }
}
