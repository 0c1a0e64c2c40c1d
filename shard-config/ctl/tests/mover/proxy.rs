//! The part that a proxy plays in a move: it follows the catalog, holds, acknowledges and drains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use shard_config::ShardId;
use shardctl::direct::{Db, Servers};
use shardctl::mover::catalog::{self, Motion, StoredMap};
use shardctl::mover::scope::{Scope, hash_of_key};
use tokio::sync::watch;
use uuid::Uuid;

use crate::bed::BUCKETS;

struct State {
    version: i64,
    map: StoredMap,
    motions: Vec<Motion>,
    /// Statements under way by the version that they were routed by.
    running: BTreeMap<i64, usize>,
}

pub struct Proxy {
    servers: Servers,
    state: Mutex<State>,
    changed: watch::Sender<i64>,
    /// Idle sessions by shard.
    pool: Mutex<BTreeMap<ShardId, Vec<Db>>>,
    pub held: std::sync::atomic::AtomicU64,
    pub refused: std::sync::atomic::AtomicU64,
}

impl Proxy {
    pub async fn start(servers: &Servers) -> Arc<Self> {
        let control = servers.control("test proxy").await.unwrap();
        let (version, map, motions) = read(&control).await;
        let state = State { version, map, motions, running: BTreeMap::new() };
        let proxy = Arc::new(Self {
            servers: servers.clone(),
            state: Mutex::new(state),
            changed: watch::channel(version).0,
            pool: Mutex::default(),
            held: Default::default(),
            refused: Default::default(),
        });
        let follower = Arc::downgrade(&proxy);
        let id = Uuid::new_v4().to_string();
        let register = "INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, shards) \
                        VALUES ($1, 'p1', '', '7', clock_timestamp() + interval '5 s', $2, $2, 1, $3)";
        let shards: Vec<i32> = servers.shards().iter().map(|shard| i32::from(shard.0)).collect();
        control.execute(register, &[&id, &version, &shards]).await.unwrap();
        tokio::spawn(async move {
            loop {
                let Some(proxy) = follower.upgrade() else { break };
                let (version, map, motions) = read(&control).await;
                let drained = {
                    let mut state = proxy.state.lock().unwrap();
                    if version != state.version {
                        (state.version, state.map, state.motions) = (version, map, motions);
                    }
                    state.running.retain(|_, n| *n > 0);
                    state.running.keys().next().copied().unwrap_or(version).min(version)
                };
                proxy.changed.send_replace(version);
                drop(proxy);
                let sql = "UPDATE shard_catalog.proxy SET lease_until = clock_timestamp() + interval '5 s', version = $2, drained = $3 WHERE id = $1";
                control.execute(sql, &[&id, &version, &drained]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            control.execute("DELETE FROM shard_catalog.proxy WHERE id = $1", &[&id]).await.unwrap();
        });
        proxy
    }

    /// Waits while the tenant is held; then the shard, and the version to end with.
    async fn route(&self, tenant: &Uuid) -> (ShardId, i64) {
        let hash = hash(tenant);
        let key = Scope::new(&[], &[hash]).unwrap();
        let mut changed = self.changed.subscribe();
        loop {
            {
                let mut state = self.state.lock().unwrap();
                let held =
                    state.motions.iter().any(|m| m.stage == "holding" && m.scope.intersects(&key, BUCKETS));
                if !held {
                    let version = state.version;
                    *state.running.entry(version).or_default() += 1;
                    return (state.map.owner_of_hash(hash), version);
                }
            }
            self.held.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let _ = tokio::time::timeout(Duration::from_millis(10), changed.changed()).await;
        }
    }

    fn ended(&self, version: i64) {
        if let Some(n) = self.state.lock().unwrap().running.get_mut(&version) {
            *n -= 1;
        }
    }

    /// One payment, made once however often it is tried.
    pub async fn post(&self, tenant: Uuid, account: i32) {
        let id = Uuid::new_v4();
        loop {
            let (shard, version) = self.route(&tenant).await;
            let pooled = self.pool.lock().unwrap().get_mut(&shard).and_then(Vec::pop);
            let db = match pooled {
                Some(db) => db,
                None => self.servers.primary(shard, "test proxy server").await.unwrap(),
            };
            let posted = async {
                db.run("BEGIN").await?;
                let update =
                    "UPDATE public.accounts SET balance = balance + 1 WHERE tenant_id = $1 AND id = $2";
                let rows = db.execute(update, &[&tenant, &account]).await?;
                anyhow::ensure!(rows == 1, "the account is not on shard {shard}");
                let insert =
                    "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, $2, $3, 1)";
                db.execute(insert, &[&tenant, &id, &account]).await?;
                db.run("COMMIT").await
            };
            let outcome = posted.await;
            if outcome.is_err() {
                db.run("ROLLBACK").await.unwrap();
            }
            self.ended(version);
            self.pool.lock().unwrap().entry(shard).or_default().push(db);
            match outcome {
                Ok(()) => return,
                Err(error) if format!("{error:#}").contains("40001") => {
                    self.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("a payment failed: {error:#}"),
            }
        }
    }
}

pub fn hash(tenant: &Uuid) -> shard_config::KeyHash {
    hash_of_key(shard_config::KeyType::Uuid, &tenant.to_string()).unwrap()
}

async fn read(control: &Db) -> (i64, StoredMap, Vec<Motion>) {
    control.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
    let version = control.value("SELECT version FROM shard_catalog.control", &[]).await.unwrap();
    let map = catalog::map(control).await.unwrap();
    let motions = catalog::motions(control).await.unwrap();
    control.run("COMMIT").await.unwrap();
    (version, map, motions)
}
