//! A client that hangs up in the middle of a statement: nothing runs on in its name, and what is decided is done.

use std::time::{Duration, Instant};

use postgres_protocol::message::frontend;

use crate::cluster::Server;
use crate::copies::Raw;
use crate::proxy::{World, key};

/// Of the clients' user: statements that run, and transactions that are open.
const BUSY: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'";

const TERMINATE: &[u8] = b"X\0\0\0\x04";

async fn busy(shards: &[Server]) -> Vec<i64> {
    let mut values = Vec::new();
    for shard in shards {
        values.push(shard.client("postgres").await.query_one(BUSY, &[]).await.unwrap().get(0));
    }
    values
}

/// Hangs up when servers work for it, and waits for the end on all of them.
async fn left_alone(world: &World, raw: Raw, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    // The statement itself, and not what comes before it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    while busy(&world.cluster.primaries).await == [0; 4] {
        assert!(Instant::now() < deadline, "{what} does not run");
    }
    drop(raw);
    let since = Instant::now();
    while busy(&world.cluster.primaries).await != [0; 4] {
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "{what}: {:?} run on",
            busy(&world.cluster.primaries).await
        );
    }
}

/// Holds up every statement about `t`, on these shards.
async fn locked(world: &World, shards: &[usize]) -> Vec<tokio_postgres::Client> {
    let mut holders = Vec::new();
    for shard in shards {
        let holder = world.cluster.primaries[*shard].client("postgres").await;
        holder.batch_execute("BEGIN; LOCK t").await.unwrap();
        holders.push(holder);
    }
    holders
}

fn extended(sql: &str, behind: &[&str]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    frontend::parse("", sql, [], &mut out).unwrap();
    let none = |_: &str, _: &mut bytes::BytesMut| Ok(postgres_protocol::IsNull::Yes);
    assert!(frontend::bind("", "", [], std::iter::empty::<&str>(), none, [], &mut out).is_ok());
    frontend::execute("", 0, &mut out).unwrap();
    frontend::sync(&mut out);
    for sql in behind {
        frontend::query(sql, &mut out).unwrap();
    }
    out.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_leaves_nothing_running() {
    let world = World::start("multi-hang-up").await;
    let start = async |sql: &str| {
        let mut raw = Raw::connect(world.proxy.port).await;
        raw.ask(sql).await;
        raw
    };
    let mut raw = Raw::connect(world.proxy.port).await;
    for shard in 1..=4 {
        raw.query(&format!("INSERT INTO t VALUES ({}, {shard}, 'old')", key(shard))).await;
    }
    let (join, sleep) =
        ("SELECT a.k, b.k FROM t a JOIN t b ON a.id = b.id", "SELECT k, pg_sleep(600) FROM t");

    // Who sends and does not wait is not one who hangs up: with one server at a time it is all done.
    let mut sent = bytes::BytesMut::new();
    frontend::query("SELECT pg_sleep(0.5)", &mut sent).unwrap();
    frontend::query(&format!("INSERT INTO t VALUES ({}, 50, 'old')", key(1)), &mut sent).unwrap();
    frontend::terminate(&mut sent);
    let mut forgetful = Raw::connect(world.proxy.port).await;
    forgetful.start(&sent).await;
    drop(forgetful);
    world.eventually("SELECT count(*) FROM t WHERE id = 50", &[1, 0, 0, 0]).await;
    assert_eq!(raw.query("DELETE FROM t WHERE id = 50").await, ["CDELETE 1", "ZI"]);

    // Reads of one shard, of each, and of all together, whose rows come from one after the other.
    for (shards, sql) in [
        (&[1][..], format!("SELECT * FROM t WHERE k = {}", key(2))),
        (&[0, 1, 2, 3], "SELECT * FROM t".to_owned()),
        (&[3], join.to_owned()),
    ] {
        let holders = locked(&world, shards).await;
        left_alone(&world, start(&sql).await, &sql).await;
        drop(holders);
    }
    // Drivers say that they leave, and then close: the one may arrive long before the other.
    let holders = locked(&world, &[1]).await;
    let mut polite = start(&format!("SELECT * FROM t WHERE k = {}", key(2))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    polite.start(TERMINATE).await;
    left_alone(&world, polite, "what waits behind Terminate").await;
    drop(holders);
    // One that says so ahead has all of its answer.
    for sql in ["SELECT pg_sleep(0.5)", "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"] {
        let mut reads = start(sql).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        reads.start(TERMINATE).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer = reads.answers(1).await;
        assert!(
            answer.len() == 2 && answer[0].starts_with("CSELECT ") && answer[1] == "ZI",
            "{sql}: {answer:?}"
        );
    }
    // In a block, where it is no commit that a server is busy with.
    let mut one = Raw::connect(world.proxy.port).await;
    assert_eq!(one.query("BEGIN").await, ["CBEGIN", "ZT"]);
    one.ask(&format!("{sleep} WHERE k = {}", key(2))).await;
    left_alone(&world, one, "a block").await;
    left_alone(&world, start(sleep).await, sleep).await;
    // What was sent ahead is not done either.
    let mut ahead = Raw::connect(world.proxy.port).await;
    ahead.start(&extended(sleep, &["DELETE FROM t"])).await;
    left_alone(&world, ahead, "a batch").await;
    // With rows of a cursor kept, in a block that has written.
    let mut block = Raw::connect(world.proxy.port).await;
    assert_eq!(block.query("BEGIN").await, ["CBEGIN", "ZT"]);
    assert_eq!(block.query("UPDATE t SET note = 'new'").await, ["CUPDATE 4", "ZT"]);
    assert_eq!(
        block.query("DECLARE c CURSOR FOR SELECT count(*), pg_sleep(600) FROM t GROUP BY id % 2").await,
        ["CDECLARE CURSOR", "ZT"]
    );
    block.ask("FETCH c").await;
    left_alone(&world, block, "FETCH").await;

    // A write waits for a lock on the third shard; the first two have done their parts.
    let locked = world.cluster.primaries[2].client("postgres").await;
    locked.batch_execute("BEGIN; LOCK t IN SHARE MODE").await.unwrap();
    let mut writes = Raw::connect(world.proxy.port).await;
    writes.ask("UPDATE t SET note = 'new'").await;
    world
        .eventually(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in%'",
            &[1, 1, 0, 1],
        )
        .await;
    drop(writes);
    let since = Instant::now();
    while busy(&world.cluster.primaries).await != [0; 4] {
        assert!(since.elapsed() < Duration::from_secs(2), "the write runs on");
    }
    locked.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note = 'old'").await, [1; 4]);
    // Its connections were not given to anybody else half way.
    assert_eq!(raw.query("UPDATE t SET note = 'done'").await, ["CUPDATE 4", "ZI"]);
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note = 'done'").await, [1; 4]);
}

/// What waits for its COMMIT on the first shard is prepared on the others: it is finished there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h16_a_client_that_hangs_up_takes_no_decision_back() {
    let world = crate::faults::world("multi-hang-up-commit").await;
    let (holder, writing) = crate::faults::commit_waits(&world).await;
    // The client and its connection are gone with its task.
    writing.abort();
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.eventually("SELECT count(*) FROM pg_prepared_xacts", &[0, 1, 1, 0]).await;
    holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    world.settled().await;
    assert_eq!(world.counts().await, [1, 1, 1, 0]);
}
