//! What waits while buckets are handed over, for how long, and what need not.

use std::time::{Duration, Instant};

use shard_config::Scope;
use tokio::time::timeout;

use crate::copies::Raw;
use crate::mover::{Mover, buckets_of, hash};
use crate::proxy::{World, code, keys};

const SHORT: Duration = Duration::from_millis(400);

/// What moves, what stays on its shard, and what is on another one.
pub type Keys = (i64, i64, i64);

/// As when the mover was killed right behind its fence.
pub async fn held(name: &str) -> (World, Mover, Keys) {
    let world = World::start(name).await;
    let mover = Mover::new(&world).await;
    let (of_one, other) = (keys(1, 2), keys(2, 1)[0]);
    let (moving, staying) = (of_one[0], of_one[1]);
    let client = world.proxy.client().await;
    for key in [moving, staying, other] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    let version = mover.begin(1, &buckets_of(&[moving]), 1, 3).await;
    mover.drained(version).await;
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    (world, mover, (moving, staying, other))
}

pub fn update(key: i64) -> String {
    format!("UPDATE t SET note = 'b' WHERE k = {key}")
}

/// Whoever is gone holds nothing up: not the row that it has locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_does_not_wait_for_a_client_that_is_gone() {
    let (world, mover, (moving, ..)) = held("waits-gone").await;
    let messages = [update(moving), format!("SELECT 1; {}", update(moving)), "UPDATE t SET id = id".into()];
    let mut took = Vec::new();
    // Each locks a row of its own.
    for (message, staying) in messages.into_iter().zip(keys(1, 4).into_iter().skip(1)) {
        let client = world.proxy.client().await;
        client.batch_execute(&format!("INSERT INTO t VALUES ({staying}, 2, 'a')")).await.unwrap();
        let mut gone = Raw::connect(world.proxy.port).await;
        assert_eq!(gone.query("BEGIN").await, ["CBEGIN", "ZT"]);
        let lock = format!("{} AND id = 2", update(staying));
        assert_eq!(gone.query(&lock).await, ["CUPDATE 1", "ZT"]);
        gone.ask(&message).await;
        tokio::time::sleep(SHORT).await;
        drop(gone);
        let begun = Instant::now();
        let answer = timeout(Duration::from_secs(8), client.batch_execute(&lock)).await;
        took.push((message, answer.is_ok(), begun.elapsed()));
    }
    assert!(took.iter().all(|(_, ok, took)| *ok && *took < Duration::from_secs(2)), "{took:?}");
    assert_eq!(holding(&mover).await, 0, "they are gone");
}

/// Statements in front of the one that waits change nothing of how long it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_waits_as_long_as_one_statement_does() {
    let (world, mover, (moving, staying, other)) = held("waits-message").await;
    let messages = [
        format!("SELECT 1; {}", update(moving)),
        format!("SELECT count(*) FROM t WHERE k = {staying}; {}; SELECT 1", update(moving)),
        format!("{}; {}", update(other), update(moving)),
    ];
    let waiting = messages.map(async |message| {
        let client = world.proxy.client().await;
        let begun = Instant::now();
        let answer = timeout(Duration::from_secs(8), client.batch_execute(&message)).await;
        let answer = answer.map_or_else(|_| "it waits on".to_owned(), |answer| code(&answer.unwrap_err()));
        (message, answer, begun.elapsed() >= Duration::from_secs(5))
    });
    let answers = futures_util::future::join_all(waiting).await;
    assert!(answers.iter().all(|(_, code, late)| code == "57P03" && *late), "{answers:?}");
    assert_eq!(holding(&mover).await, 0, "nobody waits any more");
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note = 'b'").await, [0; 4]);
}

/// What is about no row goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_does_not_wait_for_a_move() {
    let (world, ..) = held("waits-not").await;
    let client = world.proxy.client().await;
    let mut answers = Vec::new();
    for sql in
        ["VACUUM t", "ANALYZE t", "REINDEX TABLE t", "COMMENT ON TABLE t IS 'x'", "GRANT SELECT ON t TO app"]
    {
        answers.push((sql, client.batch_execute(sql).await.map_err(|error| code(&error))));
    }
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
}

/// Statements that wait now, as the proxy says.
async fn holding(mover: &Mover) -> i64 {
    tokio::time::sleep(SHORT).await;
    mover.least("held", 1).await
}

/// A tenant that lives on a third shard has no rows that move with its bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_on_a_third_shard_neither_waits_for_its_bucket_nor_holds_it_up() {
    let world = World::start("apart").await;
    let mut mover = Mover::new(&world).await;
    let tenant = keys(1, 1)[0];
    let bucket = hash(tenant).bucket(4096);
    let neighbour = (tenant + 1..).find(|key| hash(*key).bucket(4096) == bucket).unwrap();
    let alone = Scope::new(&[], &[hash(tenant)]).unwrap();
    let version = mover.flip(1, &alone, 1, 4, "flipped").await;
    mover.drained(version).await;
    let client = world.proxy.client().await;
    for key in [tenant, neighbour] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    assert_eq!(world.counts().await, [1, 0, 0, 1]);

    let open = world.proxy.client().await;
    open.batch_execute("BEGIN").await.unwrap();
    open.batch_execute(&format!("UPDATE t SET note = 'b' WHERE k = {tenant}")).await.unwrap();
    let scope = buckets_of(&[tenant]);
    let version = mover.begin(2, &scope, 1, 3).await;
    mover.drained(version).await;
    let version = mover.stage(2, "holding").await;
    mover.drained(version).await;
    let begun = Instant::now();
    let insert = format!("INSERT INTO t VALUES ({tenant}, 2, 'c')");
    timeout(Duration::from_secs(4), client.batch_execute(&insert))
        .await
        .expect("it waits for a move of others")
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let waits = world.proxy.client().await;
    let held = tokio::spawn(async move {
        waits.batch_execute(&format!("INSERT INTO t VALUES ({neighbour}, 2, 'c')")).await
    });
    tokio::time::sleep(SHORT).await;
    assert!(!held.is_finished(), "its neighbour moves");
    let version = mover.flip(2, &scope, 1, 3, "flipped").await;
    mover.drained(version).await;
    held.await.unwrap().unwrap();
    open.batch_execute(&format!("INSERT INTO t VALUES ({tenant}, 3, 'd')")).await.unwrap();
    open.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.counts().await, [1, 0, 1, 3]);
}
