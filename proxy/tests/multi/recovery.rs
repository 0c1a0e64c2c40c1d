//! What recovery answers while a decision is not on the standby, and what a prepared transaction means for replicas.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shard_config::{Bucket, Config, ShardId};
use shard_proxy::control::{Control, Handle};
use shard_proxy::shared::{Shared, State};
use shard_proxy::twophase::{Gid, Outcome};
use tokio_postgres::Client;

use crate::cluster::{Cluster, Server};

/// A control plane without any session, over two shards with a replica each.
async fn control(cluster: &Cluster) -> Control {
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
    let control = Control::start(config, &cluster.directory.join("none.toml"), shared).unwrap();
    control.handle.ready().await;
    for server in &cluster.primaries {
        server.client("app").await.batch_execute("CREATE TABLE part (v int)").await.unwrap();
    }
    control
}

/// Asks until the answer is this one.
async fn until(server: &Server, sql: &str, expected: i64) {
    let client = server.client("postgres").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}: {found}, expected {expected}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count(server: &Server, sql: &str) -> i64 {
    server.client("postgres").await.query_one(sql, &[]).await.unwrap().get(0)
}

/// Writes on both shards, as a coordinator does: the second is prepared, the first has decided and not committed.
async fn decided(cluster: &Cluster) -> (Gid, Client) {
    let first = cluster.primaries[0].client("app").await;
    first.batch_execute("BEGIN; INSERT INTO part VALUES (1)").await.unwrap();
    let xid = first.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get::<_, String>(0);
    let gid = Gid::new("payments", "gone", 1, ShardId(1), xid.parse().unwrap());
    first.batch_execute(&format!("SELECT shard_catalog.decide('{gid}', '{{2}}')")).await.unwrap();
    let second = cluster.primaries[1].client("app").await;
    let prepare = format!(
        "BEGIN; INSERT INTO part VALUES (1); SELECT shard_catalog.apply('{gid}'); PREPARE TRANSACTION '{gid}'"
    );
    second.batch_execute(&prepare).await.unwrap();
    (gid, first)
}

async fn resolve(handle: &Handle, gid: &Gid) -> (Outcome, Vec<ShardId>) {
    handle.resolve(gid.clone(), vec![ShardId(2)]).await
}

const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'app'";
const PREPARED: &str = "SELECT count(*) FROM pg_prepared_xacts";
const ROWS: &str = "SELECT count(*) FROM part";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_a_commit_that_only_the_primary_has_is_not_carried_out() {
    let cluster = Cluster::start("multi-syncrep", 2, true);
    let control = control(&cluster).await;
    let first = &cluster.primaries[0];
    let (gid, coordinator) = decided(&cluster).await;
    let admin = first.client("postgres").await;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until(first, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", 1).await;
    cluster.replicas[0].signal("STOP");
    let committing = tokio::spawn(async move { coordinator.batch_execute("COMMIT").await });
    until(first, WAITS, 1).await;

    // The backend is in the way, and waits for the standby: it is left alone.
    assert_eq!(resolve(&control.handle, &gid).await, (Outcome::Unknown, vec![ShardId(2)]));
    assert_eq!(count(first, WAITS).await, 1, "the wait goes on");
    assert_eq!(count(first, ROWS).await, 0, "and nobody sees the commit");

    // Somebody ends the wait: now the decision can be read, and a promotion would still lose it.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE wait_event = 'SyncRep' AND usename = 'app'";
    assert_eq!(count(first, end).await, 1);
    let _ = committing.await.unwrap();
    until(first, ROWS, 1).await;
    for _ in 0..2 {
        assert_eq!(resolve(&control.handle, &gid).await, (Outcome::Unknown, vec![ShardId(2)]));
    }
    assert_eq!(count(&cluster.primaries[1], PREPARED).await, 1);
    let own = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(count(first, own).await, 1, "one wait a shard, however often it is asked");

    cluster.replicas[0].signal("CONT");
    until(&cluster.primaries[1], PREPARED, 0).await;
    assert_eq!(resolve(&control.handle, &gid).await, (Outcome::Committed, vec![]));
    assert_eq!(count(&cluster.primaries[1], ROWS).await, 1);
    control.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h7_a_prepared_write_keeps_its_bucket_on_the_primary() {
    let cluster = Cluster::start("multi-prepared", 2, true);
    let control = control(&cluster).await;
    let freshness = &control.handle.freshness;
    let bucket = Bucket::new(4000, 4096);
    let mark = freshness.begin_write(1, bucket);
    let second = cluster.primaries[1].client("app").await;
    let pid: i32 = second.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    second.batch_execute("BEGIN; INSERT INTO part VALUES (1); PREPARE TRANSACTION 'left'").await.unwrap();
    freshness.abandon_prepared(mark, pid, "left".into());
    drop(second);
    // The backend is seen to be gone; its transaction is not.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !freshness.abandoned(1).0.is_empty() {
        assert!(Instant::now() < deadline, "the backend's end is not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while !freshness.replica_ok(1, Bucket::new(4001, 4096), 1) {
        assert!(Instant::now() < deadline, "the replica is never fresh");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!freshness.replica_ok(1, bucket, 1), "a commit by somebody else may come any time");

    cluster.primaries[1].client("app").await.batch_execute("COMMIT PREPARED 'left'").await.unwrap();
    while !freshness.replica_ok(1, bucket, 1) {
        assert!(Instant::now() < deadline, "the mark never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    control.stop();
}
