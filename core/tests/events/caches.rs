//! The caches against real Redis servers (H33).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use payment_core::cache::values::{CachedAccount, CachedPaymentType};
use payment_core::cache::{CacheConfig, Caches, LoadError};
use payment_core::metrics::Metrics;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::servers::{Database, Redis, Servers, answers, free_port, wait_for};

fn redis_cli(port: u16, args: &[&str]) -> String {
    let output =
        std::process::Command::new("redis-cli").args(["-p", &port.to_string()]).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

async fn instance(name: &str, redis_url: &str) -> Arc<Caches> {
    instance_with(CacheConfig {
        instance: name.into(),
        redis_url: redis_url.into(),
        ..CacheConfig::default()
    })
    .await
}

async fn instance_with(config: CacheConfig) -> Arc<Caches> {
    let config = CacheConfig { l1_blind_age: Duration::from_millis(200), pool_min_idle: 1, ..config };
    let caches = Arc::new(Caches::start(config, Arc::new(Metrics::new("test").unwrap())).unwrap());
    connected(&caches).await;
    caches
}

async fn connected(caches: &Caches) {
    until("the subscription", || caches.is_connected()).await;
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(15), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn account(status: &str) -> CachedAccount {
    CachedAccount {
        account_id: Uuid::nil(),
        account_number: "A-1".into(),
        currency: "USD".into(),
        account_type: "wallet".into(),
        status: status.into(),
        min_balance_minor: Some(0),
        created_at_us: 0,
    }
}

fn payment_type(version: i64) -> CachedPaymentType {
    CachedPaymentType {
        payment_type_id: Uuid::nil(),
        code: "transfer".into(),
        name: format!("v{version}"),
        is_active: true,
        min_amount_minor: None,
        max_amount_minor: None,
        version,
    }
}

/// What `caches` says about the account when the database says `database`.
async fn status(caches: &Caches, key: &(Uuid, Uuid), database: &str) -> String {
    let found = caches.accounts.get(key, || async { Ok(Some(account(database))) }).await.unwrap();
    found.unwrap().status.clone()
}

async fn version(caches: &Caches, key: &(Uuid, String), database: i64) -> i64 {
    let found = caches.payment_types.get(key, || async { Ok(Some(payment_type(database))) }).await.unwrap();
    found.unwrap().version
}

/// Starts a read whose loader answers only when told to.
fn paused_read(
    caches: &Arc<Caches>,
    key: (Uuid, Uuid),
    old: &'static str,
) -> (oneshot::Receiver<()>, oneshot::Sender<()>, tokio::task::JoinHandle<String>) {
    let (reading, has_read) = oneshot::channel();
    let (go_on, gate) = oneshot::channel();
    let caches = caches.clone();
    let task = tokio::spawn(async move {
        let loader = || async {
            reading.send(()).unwrap();
            gate.await.unwrap();
            Ok(Some(account(old)))
        };
        caches.accounts.get(&key, loader).await.unwrap().unwrap().status.clone()
    });
    (has_read, go_on, task)
}

/// A reader has read the old row and sleeps; a writer commits and evicts; the reader wakes and fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h33_a_reader_paused_between_read_and_fill_leaves_nothing_stale() {
    let redis = Redis::start(&[]);
    let (a, b) = (instance("a", &redis.url()).await, instance("b", &redis.url()).await);
    for (reader, writer) in [(&a, &a), (&b, &a)] {
        let key = (Uuid::new_v4(), Uuid::new_v4());
        let (has_read, go_on, task) = paused_read(reader, key, "ACTIVE");
        has_read.await.unwrap();
        writer.accounts.evict(&key, None);
        assert!(writer.settle(Duration::from_secs(5)).await);
        // A third party that reads meanwhile gets the new row, and may fill it.
        assert_eq!(status(writer, &key, "FROZEN").await, "FROZEN");
        go_on.send(()).unwrap();
        task.await.unwrap();
        for caches in [&a, &b] {
            assert_eq!(status(caches, &key, "FROZEN").await, "FROZEN", "the reader's old row was kept");
        }
    }
    a.stop().await;
    b.stop().await;
}

/// The same with row versions, where an eviction leaves a tombstone: also a reader that starts after the eviction, but
/// reads a replica that lags behind, cannot fill what it got.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h33_a_fill_from_a_lagging_replica_is_refused() {
    let redis = Redis::start(&[]);
    let (a, b) = (instance("a", &redis.url()).await, instance("b", &redis.url()).await);
    let key = (Uuid::new_v4(), "transfer".to_owned());
    assert_eq!(version(&a, &key, 1).await, 1);
    assert_eq!(version(&b, &key, 99).await, 1, "from the second level, not from the database");
    a.payment_types.evict(&key, Some(2));
    assert!(a.settle(Duration::from_secs(5)).await);
    assert_eq!(version(&a, &key, 1).await, 1, "what the lagging replica said");
    assert_eq!(version(&a, &key, 2).await, 2, "it was handed out once and not kept");
    // Nor in the second level.
    let c = instance("c", &redis.url()).await;
    assert_eq!(version(&c, &key, 2).await, 2);
    let d = instance("d", &redis.url()).await;
    assert_eq!(version(&d, &key, 99).await, 2, "the new version may be filled");
    for caches in [a, b, c, d] {
        caches.stop().await;
    }
}

/// A change by one instance reaches the others' own level; a change that happens while nobody hears it does too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h33_lost_messages_do_not_leave_stale_entries() {
    let mut redis = Redis::start(&[]);
    let (a, b) = (instance("a", &redis.url()).await, instance("b", &redis.url()).await);
    let key = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(status(&b, &key, "ACTIVE").await, "ACTIVE");
    a.accounts.evict(&key, None);
    let began = Instant::now();
    while status(&b, &key, "FROZEN").await != "FROZEN" {
        assert!(began.elapsed() < Duration::from_secs(2), "the eviction did not reach the other instance");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // The subscriptions break, and a change is told while this instance does not listen.
    let kill = redis_cli(redis.port, &["client", "kill", "type", "pubsub"]);
    assert_eq!(kill.trim(), "2", "both subscriptions");
    until("noticing", || !b.is_connected()).await;
    redis_cli(redis.port, &["flushall"]);
    connected(&b).await;
    assert_eq!(status(&b, &key, "THAWED").await, "THAWED", "flushed when subscribed again");

    redis.kill();
    until("noticing", || !a.is_connected() && !b.is_connected()).await;
    a.accounts.evict(&key, None);
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(
        status(&b, &key, "CLOSED").await,
        "CLOSED",
        "nobody tells, so an entry is used for a moment only"
    );
    redis.restart();
    connected(&a).await;
    connected(&b).await;
    assert!(a.settle(Duration::from_secs(5)).await);
    assert_eq!(status(&b, &key, "REOPENED").await, "REOPENED", "told after all");
    a.stop().await;
    b.stop().await;
}

/// Redis hangs (SIGSTOP): reads cost a time-out a few times, then nothing; a change made meanwhile is told when it wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_hanging_is_slow_once_and_never_wrong() {
    let redis = Redis::start(&[]);
    let (a, b) = (instance("a", &redis.url()).await, instance("b", &redis.url()).await);
    let old = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(status(&b, &old, "ACTIVE").await, "ACTIVE");
    redis.signal("STOP");
    let began = Instant::now();
    for _ in 0..500 {
        let key = (Uuid::new_v4(), Uuid::new_v4());
        assert_eq!(status(&a, &key, "ACTIVE").await, "ACTIVE");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "500 reads took {took:?}");
    a.accounts.evict(&old, None);
    assert!(!a.settle(Duration::from_millis(100)).await);
    assert_eq!(status(&a, &old, "FROZEN").await, "FROZEN");
    until("noticing", || !a.is_connected()).await;
    redis.signal("CONT");
    connected(&a).await;
    assert!(a.settle(Duration::from_secs(5)).await);
    // A fresh instance has no level of its own: what it gets is the second level's.
    let c = instance("c", &redis.url()).await;
    assert_eq!(status(&c, &old, "FROZEN").await, "FROZEN", "the change made while Redis hung was lost");
    for caches in [a, b, c] {
        caches.stop().await;
    }
}

/// An instance that dies cannot tell its last changes; its next start makes everything older invisible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instances_changes_are_not_lost() {
    let redis = Redis::start(&[]);
    let key = (Uuid::new_v4(), Uuid::new_v4());
    let first = instance("core1", &redis.url()).await;
    assert_eq!(status(&first, &key, "ACTIVE").await, "ACTIVE");
    // No stop(): a process that is killed. Another instance that stops in order changes nothing.
    let orderly = instance("core2", &redis.url()).await;
    orderly.stop().await;
    let orderly = instance("core2", &redis.url()).await;
    assert_eq!(status(&orderly, &key, "FROZEN").await, "ACTIVE", "still cached");
    let second = instance("core1", &redis.url()).await;
    assert_eq!(status(&second, &key, "FROZEN").await, "FROZEN");
    until("the others to hear it", || orderly.is_connected()).await;
    let began = Instant::now();
    while status(&orderly, &key, "FROZEN").await != "FROZEN" {
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "the new generation did not reach the other instance"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for caches in [first, orderly, second] {
        caches.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reads_share_a_load_and_survive_their_leader() {
    let redis = Redis::start(&[]);
    let caches = instance("a", &redis.url()).await;
    let key = (Uuid::new_v4(), Uuid::new_v4());
    let loads = Arc::new(AtomicUsize::new(0));
    let read = |pause: u64| {
        let (caches, loads) = (caches.clone(), loads.clone());
        tokio::spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok(Some(account("ACTIVE")))
            };
            caches.accounts.get(&key, load).await.unwrap().unwrap().status.clone()
        })
    };
    let leader = read(60_000);
    until("the leader", || loads.load(Ordering::SeqCst) == 1).await;
    let others: Vec<_> = (0..100).map(|_| read(50)).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    leader.abort();
    for other in others {
        assert_eq!(other.await.unwrap(), "ACTIVE");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2, "the leader's, and one for the hundred others");

    // A failed load fails all who waited for it, without a load each.
    let failing = AtomicUsize::new(0);
    let other = (Uuid::new_v4(), Uuid::new_v4());
    let attempts = (0..50).map(|_| {
        caches.accounts.get(&other, || async {
            failing.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(LoadError::from(std::io::Error::other("gone")))
        })
    });
    let outcomes = futures_util::future::join_all(attempts).await;
    assert!(outcomes.iter().all(|o| o.as_ref().is_err_and(|e| e.get::<std::io::Error>().is_some())));
    assert_eq!(failing.load(Ordering::SeqCst), 1);
    // And a missing row is not remembered.
    let asked = AtomicI64::new(0);
    for _ in 0..2 {
        let none = caches
            .accounts
            .get(&other, || async {
                asked.fetch_add(1, Ordering::SeqCst);
                Ok(None)
            })
            .await;
        assert!(none.unwrap().is_none());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    caches.stop().await;
}

/// Warming reads many rows at once; a row that changes meanwhile must not be put in as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h33_warming_leaves_nothing_stale() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let tenant = Uuid::new_v4();
    let rows = format!(
        "INSERT INTO tenants (tenant_id, name) VALUES ('{tenant}', 't');
         INSERT INTO payment_types (tenant_id, payment_type_id, code, name) VALUES ('{tenant}', gen_random_uuid(), 'transfer', 'v1');
         INSERT INTO tenant_config (tenant_id, config_type, config) VALUES ('{tenant}', 'limits', '{{}}');
         INSERT INTO fraud_rules (tenant_id, rule_id, rule_type, amount_minor) SELECT '{tenant}', gen_random_uuid(), 'max_amount', n FROM generate_series(1, 3) n"
    );
    database.client.batch_execute(&rows).await.unwrap();
    let redis = Redis::start(&[]);
    let caches = instance("a", &redis.url()).await;
    assert_eq!(caches.warm(&database.client).await.unwrap(), 3);
    let key = (tenant, "transfer".to_owned());
    assert_eq!(version(&caches, &key, 99).await, 1, "warm");
    let rules = caches.fraud_rules.get(&tenant, || async { Ok(None) }).await.unwrap().unwrap();
    assert_eq!(rules.rules.len(), 3);

    let ticket = caches.payment_types.ticket();
    caches.payment_types.evict(&key, Some(2));
    assert!(!caches.payment_types.warm(ticket, key.clone(), payment_type(1)), "read before the change");
    assert_eq!(version(&caches, &key, 2).await, 2);
    caches.stop().await;
}

/// R11: three masters with slots, MOVED and publish/subscribe across nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_cluster_serves_as_second_level() {
    // The cluster bus takes the port 10000 above.
    let low = || std::iter::repeat_with(free_port).find(|p| *p < 50_000).unwrap();
    let nodes: Vec<Redis> = (0..3)
        .map(|_| {
            let bus = low();
            Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()])
        })
        .collect();
    let mut create = std::process::Command::new("redis-cli");
    create.args(["--cluster", "create"]);
    create.args(nodes.iter().map(|n| format!("127.0.0.1:{}", n.port))).args(["--cluster-yes"]);
    assert!(
        create.stdout(std::process::Stdio::null()).status().is_ok_and(|s| s.success()),
        "redis-cli --cluster create"
    );
    for node in &nodes {
        wait_for("the cluster", Duration::from_secs(20), || {
            answers(node.port)?;
            let out = std::process::Command::new("redis-cli")
                .args(["-p", &node.port.to_string(), "cluster", "info"])
                .output();
            String::from_utf8(out.ok()?.stdout).ok()?.contains("cluster_state:ok").then_some(())
        });
    }
    let config = |name: &str, first: usize| CacheConfig {
        instance: name.into(),
        redis_url: format!("{},{}", nodes[first].url(), nodes[(first + 1) % 3].url()),
        redis_cluster: true,
        ..CacheConfig::default()
    };
    let (a, b) = (instance_with(config("a", 0)).await, instance_with(config("b", 1)).await);
    let keys: Vec<(Uuid, Uuid)> = (0..50).map(|_| (Uuid::new_v4(), Uuid::new_v4())).collect();
    for key in &keys {
        assert_eq!(status(&a, key, "ACTIVE").await, "ACTIVE");
        assert_eq!(status(&b, key, "-").await, "ACTIVE", "from the cluster");
    }
    keys.iter().for_each(|key| a.accounts.evict(key, None));
    assert!(a.settle(Duration::from_secs(5)).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    for key in &keys {
        assert_eq!(status(&b, key, "FROZEN").await, "FROZEN");
    }
    a.stop().await;
    b.stop().await;
}
