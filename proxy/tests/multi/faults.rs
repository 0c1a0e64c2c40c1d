//! Servers and proxies die in the middle of a commit over several shards (H4, H16).
//!
//! The first participant's COMMIT is held up by a deferred trigger that waits for an advisory lock of the test: at
//! that moment the others are prepared and nothing is decided.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::cluster::Cluster;
use crate::proxy::{Proxy, World, code, key};

pub async fn world(name: &str) -> World {
    let world = World::start(name).await;
    // On the first shard only, behind the proxy's back: it is a fault, not a schema.
    let hold = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON shard_catalog.decision DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION hold();";
    world.cluster.primaries[0].client("postgres").await.batch_execute(hold).await.unwrap();
    world
}

/// Takes the lock, starts an INSERT over shards 1, 2 and 3, and returns when its COMMIT waits.
pub async fn commit_waits(world: &World) -> (Client, JoinHandle<Result<(), tokio_postgres::Error>>) {
    let holder = world.cluster.primaries[0].client("postgres").await;
    holder.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
    let client = world.proxy.client().await;
    let text = format!("INSERT INTO t VALUES ({}, 1), ({}, 1), ({}, 1)", key(1), key(2), key(3));
    let writing = tokio::spawn(async move { client.simple_query(&text).await.map(drop) });
    world.eventually("SELECT count(*) FROM pg_prepared_xacts", &[0, 1, 1, 0]).await;
    world
        .eventually_first(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted",
            1,
        )
        .await;
    (holder, writing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h4_a_participant_dies_after_it_prepared() {
    let world = world("multi-part").await;
    let (holder, writing) = commit_waits(&world).await;
    world.cluster.primaries[1].kill();
    holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.cluster.primaries[1].start();
    writing.await.unwrap().unwrap();
    world.settled().await;
    assert_eq!(world.counts().await, [1, 1, 1, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h16_the_proxy_dies_before_the_commit_point() {
    let mut world = world("multi-before").await;
    let (holder, writing) = commit_waits(&world).await;
    world.proxy.kill();
    assert!(writing.await.unwrap().is_err());
    // The coordinator's backend is told to stop before it has committed.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    holder.query_one(end, &[]).await.unwrap();
    holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    world.proxy = Proxy::start(&world.cluster);
    world.settled().await;
    assert_eq!(world.counts().await, [0; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h16_the_proxy_dies_at_the_commit_point() {
    let mut world = world("multi-after").await;
    let (holder, writing) = commit_waits(&world).await;
    world.proxy.kill();
    assert!(writing.await.unwrap().is_err());
    // The backend does not notice and commits: the decision row is there.
    holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    world.proxy = Proxy::start(&world.cluster);
    world.settled().await;
    assert_eq!(world.counts().await, [1, 1, 1, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h16_the_first_participant_dies_before_it_committed() {
    let world = world("multi-first").await;
    let (_holder, writing) = commit_waits(&world).await;
    world.cluster.primaries[0].kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.cluster.primaries[0].start();
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(code(&error).as_str(), "40000" | "08007"), "{error:?}");
    world.settled().await;
    assert_eq!(world.counts().await, [0; 4], "never committed, so nowhere");
}

/// Whichever step the dead proxy had reached. The survivor is never restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h16_a_second_proxy_finishes_the_orphans_of_a_dead_one_within_five_seconds() {
    let world = World::start("multi-orphans").await;
    let faults = world.cluster.directory.join("faults");
    std::fs::create_dir(&faults).unwrap();
    for (step, rows) in
        [("between-prepares", 0), ("before-commit", 0), ("after-commit", 1), ("between-commits", 1)]
    {
        let mut doomed = Proxy::start_with_faults(&world.cluster, &faults);
        let client = doomed.client().await;
        std::fs::write(faults.join(step), "").unwrap();
        let text = format!("INSERT INTO t VALUES ({}, 1), ({}, 1), ({}, 1)", key(1), key(2), key(3));
        let writing = tokio::spawn(async move { client.simple_query(&text).await.map(drop) });
        let reached = faults.join(format!("{step}.reached"));
        let deadline = Instant::now() + Duration::from_secs(20);
        let prepared =
            async || world.each("SELECT count(*) FROM pg_prepared_xacts").await.iter().sum::<i64>();
        while !reached.exists() || prepared().await == 0 {
            assert!(Instant::now() < deadline, "{step} is not reached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        doomed.kill();
        let dead = Instant::now();
        assert!(writing.await.unwrap().is_err());
        std::fs::remove_file(&reached).unwrap();
        world.settled().await;
        assert!(dead.elapsed() < Duration::from_secs(5), "{step}: {:?}", dead.elapsed());
        assert_eq!(world.counts().await, [rows, rows, rows, 0], "{step}");
        world.empty().await;
    }
}

/// Drivers take the answer to a COMMIT for a commit whatever its tag says: a loss that was not told yet is an error there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h21_a_commit_after_an_untold_loss_is_an_error() {
    let world = World::start("multi-untold").await;
    let client = world.proxy.client().await;
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    for (keys, told) in [(&[1, 2][..], "08006"), (&[2], "08006"), (&[2, 3, 4], "08006")] {
        client.batch_execute("BEGIN").await.unwrap();
        for shard in keys {
            let insert = format!("INSERT INTO t VALUES ({}, 1)", key(*shard));
            client.batch_execute(&insert).await.unwrap();
        }
        let ended = world.cluster.primaries[1].client("postgres").await.query_one(end, &[]).await.unwrap();
        assert_eq!(ended.get::<_, i64>(0), 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let error = client.batch_execute("COMMIT").await.unwrap_err();
        assert_eq!(code(&error), told, "{keys:?}");
        // The transaction is over, as after any COMMIT that failed.
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute(&format!("INSERT INTO t VALUES ({}, 1)", key(2))).await.unwrap();
        world.cluster.primaries[1].client("postgres").await.query_one(end, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(world.counts().await, [0; 4], "{keys:?}");
    }
}

/// H5: the primary hangs and its standby takes over. A commit over both shards that waits for it ends, and an open
/// transaction writes nothing to it when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h5_a_hung_primary_is_replaced_under_open_transactions() {
    let cluster = Cluster::start("multi-hung", 2, true);
    let proxy = Proxy::start(&cluster);
    let create = "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, PRIMARY KEY (k, id))";
    proxy.client().await.batch_execute(create).await.unwrap();
    let (first, second) = (key(1), key(4)); // Of four shards, and so also the ends of two.
    let insert = async |client: &Client, key: i64, id: i32| {
        client.simple_query(&format!("INSERT INTO t VALUES ({key}, {id})")).await.map(drop)
    };
    let (committing, open) = (proxy.client().await, proxy.client().await);
    for (client, id) in [(&committing, 1), (&open, 2)] {
        client.batch_execute("BEGIN").await.unwrap();
        insert(client, first, id).await.unwrap();
    }
    insert(&committing, second, 1).await.unwrap();
    cluster.primaries[0].signal("STOP");
    let committed = tokio::spawn(async move { committing.batch_execute("COMMIT").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.replicas[0].promote();
    let outcome = tokio::time::timeout(Duration::from_secs(30), committed).await;
    let error = outcome.expect("the wait ends").unwrap().unwrap_err();
    assert!(matches!(code(&error).as_str(), "08006" | "08007" | "40000"), "{error:?}");
    let fresh = proxy.client().await;
    insert(&fresh, first, 3).await.unwrap();
    cluster.primaries[0].signal("CONT");
    let error = insert(&open, first, 4).await.unwrap_err();
    assert!(matches!(code(&error).as_str(), "57P03" | "25P02" | "08006" | "08007"), "{error:?}");
    open.batch_execute("COMMIT").await.unwrap();
    for (server, expected) in
        [(&cluster.primaries[0], 0), (&cluster.primaries[1], 0), (&cluster.replicas[0], 1)]
    {
        let rows = server.client("postgres").await.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
        assert_eq!(rows.get::<_, i64>(0), expected);
    }
}
