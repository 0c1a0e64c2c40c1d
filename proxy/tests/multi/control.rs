//! The control plane against real servers: freshness, promotion, the returned old primary, a foreign DDL.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shard_config::{Bucket, Config};
use shard_proxy::control::Control;
use shard_proxy::shared::{Shared, State};

use crate::cluster::Cluster;

async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_h7_h39_the_control_plane_follows_the_servers() {
    let cluster = Cluster::start("control", 2, true);
    let config = Arc::new(Config::parse(&cluster.configuration(1, 2, "")).unwrap());
    let state = State {
        config: config.clone(),
        map: Arc::new(config.initial_map()),
        catalog: Arc::default(),
        following: Default::default(),
        shards: vec![],
        lineup: 0,
    };
    let shared = Arc::new(Shared::new(state));
    let control = Control::start(config, &cluster.directory.join("none.toml"), shared.clone()).unwrap();
    let handle = control.handle.clone();
    handle.ready().await;
    let primary = |shard: usize| shared.load().shards[shard].primary.clone();

    // H39: DDL behind the proxy's back, by a role without any right on shard_catalog.
    let sql = "CREATE TABLE t (tenant_id uuid PRIMARY KEY, v int)";
    for server in &cluster.primaries {
        server.client("app").await.batch_execute(sql).await.unwrap();
    }
    handle.refresh().await;
    let name = ("public".to_owned(), "t".to_owned());
    assert!(shared.load().catalog.tables.get(&name).is_some_and(|t| t.drift.is_none()));
    cluster.primaries[1].client("app").await.batch_execute("ALTER TABLE t ADD extra int").await.unwrap();
    let drifted = || shared.load().catalog.tables.get(&name).is_some_and(|t| t.drift.is_some());
    until("the drift is seen by polling", Duration::from_secs(10), drifted).await;

    // H7: replay paused; only the written bucket is held back.
    let (written, other) = (Bucket::new(5, 4096), Bucket::new(6, 4096));
    let fresh = |bucket| handle.freshness.replica_ok(0, bucket, 1);
    until("the replica is fresh", Duration::from_secs(20), || fresh(written)).await;
    let replica = cluster.replicas[0].client("postgres").await;
    replica.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let mark = handle.freshness.begin_write(0, written);
    cluster.primaries[0]
        .client("app")
        .await
        .batch_execute("INSERT INTO t VALUES (gen_random_uuid())")
        .await
        .unwrap();
    handle.freshness.end_write(mark);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!fresh(written) && fresh(other));
    }
    replica.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    until("the replica has caught up", Duration::from_secs(10), || fresh(written)).await;

    // H5: killed, replaced, returned.
    cluster.primaries[0].kill();
    until("the death is seen", Duration::from_secs(3), || primary(0).is_none()).await;
    assert!(primary(1).is_some(), "the other shard is served");
    cluster.replicas[0].promote();
    let promoted =
        || primary(0).is_some_and(|p| p.address.port() == cluster.replicas[0].port && p.timeline == 2);
    until("the promotion is followed", Duration::from_secs(10), promoted).await;
    assert!(!fresh(other), "nothing sampled on the old timeline counts");
    cluster.primaries[0].start();
    let rejected = || handle.world.status().iter().any(|s| s.role == "old_timeline");
    until("the old primary is recognised", Duration::from_secs(20), rejected).await;
    assert!(promoted());
    control.stop();
}

/// What a write may call besides triggers, read from a real catalog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h9_what_defaults_constraints_and_policies_call_is_read() {
    let cluster = Cluster::start("opaque", 1, false);
    let config = Arc::new(Config::parse(&cluster.configuration(1, 2, "")).unwrap());
    let state = State {
        config: config.clone(),
        map: Arc::new(config.initial_map()),
        catalog: Arc::default(),
        following: Default::default(),
        shards: vec![],
        lineup: 0,
    };
    let shared = Arc::new(Shared::new(state));
    let control = Control::start(config, &cluster.directory.join("none.toml"), shared.clone()).unwrap();
    control.handle.ready().await;
    let schema = "
        CREATE FUNCTION reads() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
        CREATE FUNCTION pure(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
        CREATE FUNCTION same(int, int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT $1 = $2';
        CREATE OPERATOR === (FUNCTION = same, LEFTARG = int, RIGHTARG = int);
        CREATE DOMAIN guarded AS int CHECK (VALUE <> reads());
        CREATE TABLE other (id int);
        CREATE TABLE fine (tenant_id uuid, a int DEFAULT pure(1), b uuid DEFAULT gen_random_uuid(), c serial,
            CHECK (pure(a) > 0), s int GENERATED ALWAYS AS (pure(a)) STORED);
        ALTER TABLE fine ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON fine USING (a > 0 AND tenant_id::text <> 'SELECT {SUBLINK }');
        CREATE TABLE defaulted (tenant_id uuid, a int DEFAULT reads());
        CREATE TABLE checked (tenant_id uuid, a int CHECK (a > reads()));
        CREATE TABLE compared (tenant_id uuid, a int CHECK (a === 1));
        CREATE TABLE domained (tenant_id uuid, a guarded);
        CREATE TABLE asking (tenant_id uuid, a int);
        ALTER TABLE asking ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON asking USING (a > reads());
        CREATE TABLE looking (tenant_id uuid, a int);
        ALTER TABLE looking ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON looking USING (a IN (SELECT id FROM other));
        CREATE TABLE asleep (tenant_id uuid, a int);
        CREATE POLICY p ON asleep USING (a IN (SELECT id FROM other));
        CREATE TABLE ruled (tenant_id uuid);
        CREATE RULE r AS ON DELETE TO ruled DO ALSO NOTIFY gone;
        CREATE TABLE unruled (tenant_id uuid);
        CREATE RULE r AS ON DELETE TO unruled DO ALSO NOTIFY gone;
        DROP RULE r ON unruled";
    cluster.primaries[0].client("app").await.batch_execute(schema).await.unwrap();
    control.handle.refresh().await;
    let catalog = shared.load().catalog.clone();
    for (name, writes, reads) in [
        ("fine", false, false),
        ("asleep", false, false),
        ("defaulted", true, false),
        ("checked", true, false),
        ("compared", true, false),
        ("domained", true, false),
        ("asking", true, true),
        ("looking", true, true),
        ("ruled", true, false),
        ("unruled", false, false),
    ] {
        let table = &catalog.tables[&("public".to_owned(), name.to_owned())];
        let found = (table.opaque_trigger.is_some(), table.opaque_policy.is_some());
        assert_eq!(found, (writes, reads), "{name}: {:?}, {:?}", table.opaque_trigger, table.opaque_policy);
    }
    control.stop();
}

/// H39: whoever changes a shard's schema, all proxies are told at once: the shard does it for DDL around the proxies,
/// and the proxy for DDL on all shards, which is prepared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h39_schema_changes_are_notified() {
    let cluster = Cluster::start("notified", 2, false);
    let proxy = crate::proxy::Proxy::start(&cluster);
    let client = proxy.client().await;
    let url = cluster.primaries[1].url("app");
    let (listener, mut connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let (heard, mut notified) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(_) = message {
                heard.send(()).unwrap();
            }
        }
    });
    listener.batch_execute("LISTEN shard_catalog").await.unwrap();
    let mut told = async |what: &str| {
        let one = tokio::time::timeout(Duration::from_secs(60), notified.recv()).await;
        one.unwrap_or_else(|_| panic!("not told of {what}")).unwrap();
        while notified.try_recv().is_ok() {}
    };
    cluster.primaries[1].client("app").await.batch_execute("CREATE TABLE around (k int8)").await.unwrap();
    told("DDL on the shard").await;
    client.batch_execute("CREATE TABLE through (k int8 PRIMARY KEY)").await.unwrap();
    told("DDL through a proxy").await;
    drop(listener);
}
