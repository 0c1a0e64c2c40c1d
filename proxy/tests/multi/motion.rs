//! Statements and transactions while buckets move: who waits, who goes on, who is told to begin again (H2, H8, H30).

use std::time::{Duration, Instant};

use shard_config::Scope;
use tokio_postgres::Client;

use crate::cluster::connect;
use crate::mover::{Mover, buckets_of, hash};
use crate::proxy::{Proxy, World, code, keys};

const SHORT: Duration = Duration::from_millis(400);

/// The number of rows with this key, and on which shards they are.
async fn places(world: &World, key: i64) -> Vec<i64> {
    world.each(&format!("SELECT count(*) FROM t WHERE k = {key}")).await
}

/// Runs by itself; the answer comes when it comes.
fn spawn(url: String, sql: String) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    tokio::spawn(async move { connect(&url).await.batch_execute(&sql).await })
}

async fn one(client: &Client, sql: &str) -> String {
    match client.query_one(sql, &[]).await {
        Ok(row) => row.get::<_, i64>(0).to_string(),
        Err(error) => code(&error),
    }
}

async fn begin(client: &Client, how: &str, sql: &str) {
    client.batch_execute(how).await.unwrap();
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_wait_and_follow_the_flip() {
    let world = World::start("motion").await;
    let mut mover = Mover::new(&world).await;
    let of_one = keys(1, 3);
    let (moving, staying) = (of_one[0], of_one[1]);
    let scope = buckets_of(&[moving]);
    let client = world.proxy.client().await;
    client
        .batch_execute(&format!("INSERT INTO t VALUES ({moving}, 1, 'a'), ({staying}, 1, 'b')"))
        .await
        .unwrap();
    let version = mover.begin(1, &scope, 1, 3).await;
    mover.drained(version).await;

    // Held, and given back to the source.
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let insert = |id: i64| format!("INSERT INTO t VALUES ({moving}, {id}, 'held')");
    let held = spawn(world.proxy.url(), insert(2));
    let counted = spawn(world.proxy.url(), "SELECT count(*) FROM t".to_owned());
    let batch = spawn(world.proxy.url(), format!("SELECT 1; {}; SELECT 2", insert(3)));
    tokio::time::sleep(SHORT).await;
    assert!(!held.is_finished() && !counted.is_finished() && !batch.is_finished(), "all wait");
    assert_eq!(
        one(&client, &format!("SELECT count(*) FROM t WHERE k = {staying}")).await,
        "1",
        "others do not"
    );
    assert_eq!(one(&client, "SELECT count(*) FROM rates").await, "0");
    assert_eq!(mover.least("held", 1).await, 3);
    mover.stage(1, "copying").await;
    for task in [held, counted, batch] {
        task.await.unwrap().unwrap();
    }
    assert_eq!(places(&world, moving).await, [3, 0, 0, 0]);

    // Held, and sent to the new owner.
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let extended = connect(&world.proxy.url()).await;
    let prepared =
        extended.prepare(&format!("INSERT INTO t VALUES ({moving}, $1, 'flipped')")).await.unwrap();
    let held = spawn(world.proxy.url(), insert(4));
    let by_extended = tokio::spawn(async move { extended.execute(&prepared, &[&5i32]).await });
    tokio::time::sleep(SHORT).await;
    assert!(!held.is_finished() && !by_extended.is_finished());
    let version = mover.flip(1, &scope, 1, 3, "flipped").await;
    held.await.unwrap().unwrap();
    by_extended.await.unwrap().unwrap();
    assert_eq!(places(&world, moving).await, [3, 0, 2, 0]);
    mover.drained(version).await;
    assert_eq!(client.simple_query("SHOW shard.epoch").await.unwrap().len(), 3);

    // A statement that waits can be cancelled, and one that waits too long is told why.
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let waiting = connect(&world.proxy.url()).await;
    let token = waiting.cancel_token();
    let cancelled = tokio::spawn(async move { waiting.batch_execute("SELECT count(*) FROM t").await });
    tokio::time::sleep(SHORT).await;
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert_eq!(code(&cancelled.await.unwrap().unwrap_err()), "57014");
    let begun = Instant::now();
    let late = client.batch_execute("SELECT count(*) FROM t").await.unwrap_err();
    assert_eq!(code(&late), "57P03");
    assert!(late.as_db_error().unwrap().hint().unwrap().contains("not sent"), "{late:?}");
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(one(&client, "SELECT count(*) FROM rates").await, "0", "the session lives");
    let version = mover.stage(1, "flipped").await;
    mover.drained(version).await;

    definitions_wait_for_the_end(&world, &client).await;
    let version = mover.end(1).await;
    mover.drained(version).await;
    client.batch_execute("TRUNCATE t").await.unwrap();
    client.batch_execute("ALTER TABLE t ADD more int").await.unwrap();
}

async fn definitions_wait_for_the_end(world: &World, client: &Client) {
    for sql in [
        "TRUNCATE t",
        "ALTER TABLE t ADD more int",
        "CREATE TABLE newer (k int8 PRIMARY KEY)",
        "CREATE INDEX later ON t (note)",
        "DROP TABLE t CASCADE",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(code(&error), "55006", "{sql}: {error:?}");
        assert!(error.as_db_error().unwrap().hint().unwrap().contains("move 1"), "{sql}: {error:?}");
    }
    for sql in [
        "TRUNCATE rates",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "ANALYZE t",
        "COMMENT ON TABLE t IS 'x'",
    ] {
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert_eq!(world.each("SELECT count(*) FROM pg_class WHERE relname = 'newer'").await, [0; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_who_has_touched_the_scope_is_waited_for() {
    let world = World::start("touched").await;
    let mut mover = Mover::new(&world).await;
    let of_one = keys(1, 3);
    let (moving, staying) = (of_one[0], of_one[1]);
    let other = keys(2, 1)[0];
    let scope = buckets_of(&[moving]);
    let client = world.proxy.client().await;
    for key in [moving, staying, other] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    let read = format!("SELECT count(*) FROM t WHERE k = {moving}");
    let (reader, locker, bystander, strict) = (
        world.proxy.client().await,
        world.proxy.client().await,
        world.proxy.client().await,
        world.proxy.client().await,
    );

    // Before the move is known at all: everybody who may have touched it is waited for.
    begin(&reader, "BEGIN", &read).await;
    begin(&bystander, "BEGIN", &format!("SELECT count(*) FROM t WHERE k = {staying}")).await;
    let version = mover.begin(7, &scope, 1, 3).await;
    mover.wait("version", version, 1).await;
    tokio::time::sleep(SHORT).await;
    assert!(mover.least("drained", 1).await < version, "a reader is in the way");
    let note: Option<String> =
        mover.catalog.query_one("SELECT note FROM shard_catalog.proxy", &[]).await.unwrap().get(0);
    assert!(note.as_deref().unwrap_or_default().contains("which touched what move 7 moves"), "{note:?}");
    reader.batch_execute("COMMIT").await.unwrap();
    mover.drained(version).await;
    bystander.batch_execute("COMMIT").await.unwrap();

    // A row lock, and a statement over all shards, are waited for; they may go on while others are held.
    begin(&locker, "BEGIN", &format!("SELECT * FROM t WHERE k = {moving} FOR UPDATE")).await;
    begin(&reader, "BEGIN", "SELECT count(*) FROM t").await;
    begin(&bystander, "BEGIN", &format!("UPDATE t SET note = 'x' WHERE k = {staying}")).await;
    begin(&strict, "BEGIN ISOLATION LEVEL REPEATABLE READ", &format!("SELECT * FROM t WHERE k = {other}"))
        .await;
    let version = mover.stage(7, "holding").await;
    mover.wait("version", version, 1).await;
    tokio::time::sleep(SHORT).await;
    assert!(mover.least("drained", 1).await < version);
    locker.batch_execute(&format!("UPDATE t SET note = 'locked' WHERE k = {moving}")).await.unwrap();
    locker.batch_execute("COMMIT").await.unwrap();
    assert!(mover.least("drained", 1).await < version, "the other one is still there");
    assert_eq!(one(&reader, &read).await, "1", "what has touched it goes on");
    reader.batch_execute("COMMIT").await.unwrap();
    mover.drained(version).await;

    // The flip: whoever touched it before, and was not waited for, is never taken to the target.
    mover.stage(7, "copying").await;
    begin(&locker, "BEGIN", &format!("SELECT * FROM t WHERE k = {moving} FOR UPDATE")).await;
    let moved = format!("INSERT INTO t VALUES ({moving}, 1, 'target')");
    world.cluster.primaries[2].client("postgres").await.batch_execute(&moved).await.unwrap();
    let version = mover.flip(7, &scope, 1, 3, "flipped").await;
    mover.wait("version", version, 1).await;
    assert!(mover.least("drained", 1).await < version);
    let error =
        locker.batch_execute(&format!("UPDATE t SET note = 'lost' WHERE k = {moving}")).await.unwrap_err();
    assert_eq!(code(&error), "40001", "{error:?}");
    locker.batch_execute("ROLLBACK").await.unwrap();
    mover.drained(version).await;
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note = 'lost'").await, [0; 4]);

    // READ COMMITTED follows the map; REPEATABLE READ has one epoch for its life (H30).
    assert_eq!(one(&bystander, &read).await, "1");
    bystander.batch_execute(&format!("UPDATE t SET note = 'both' WHERE k = {moving}")).await.unwrap();
    bystander.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note IN ('x', 'both')").await, [1, 0, 1, 0]);
    assert_eq!(one(&strict, &format!("SELECT count(*) FROM t WHERE k = {staying}")).await, "1");
    assert_eq!(one(&strict, &read).await, "40001");
    strict.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(one(&strict, &read).await, "1");
    let version = mover.end(7).await;
    mover.drained(version).await;

    // A transaction that saw nothing of the move at all, but was begun under an older map.
    let scope = buckets_of(&[staying]);
    begin(&strict, "BEGIN ISOLATION LEVEL SERIALIZABLE", &format!("SELECT * FROM t WHERE k = {other}")).await;
    begin(&reader, "BEGIN", &format!("SELECT count(*) FROM t WHERE k = {staying}")).await;
    let version = mover.flip(8, &scope, 1, 4, "flipped").await;
    mover.wait("version", version, 1).await;
    let read = format!("SELECT count(*) FROM t WHERE k = {staying}");
    assert_eq!([one(&strict, &read).await, one(&reader, &read).await], ["40001", "40001"]);
}

/// Two proxies serve every change within 250 ms, and say so only when they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_follow() {
    let world = World::start("follow").await;
    let second = Proxy::start(&world.cluster);
    let clients = [world.proxy.client().await, second.client().await];
    let mut mover = Mover::new(&world).await;
    let moving = keys(1, 1)[0];
    let scope = buckets_of(&[moving]);
    let first = mover.begin(1, &scope, 1, 3).await;
    mover.wait("drained", first, 2).await;
    let mut times = Vec::new();
    for n in 0..10 {
        let (from, to, stage) = if n % 2 == 0 { (1, 3, "flipped") } else { (3, 1, "copying") };
        let version = mover.flip(1, &scope, from, to, stage).await;
        times.push(mover.wait("version", version, 2).await.as_millis());
        for client in &clients {
            let epoch = one(client, "SHOW shard.epoch").await;
            assert_eq!(epoch, mover.map.epoch().to_string(), "acknowledged and not served");
        }
        mover.wait("drained", version, 2).await;
    }
    println!("two proxies acknowledged in {times:?} ms");
    assert!(times.iter().all(|time| *time <= 250), "{times:?}");
    // Another map of the same epoch is an alarm: it is neither followed nor acknowledged (H6).
    let epoch = mover.map.epoch();
    let version = mover
        .change(&format!("UPDATE shard_catalog.map SET id = gen_random_uuid() WHERE epoch = {epoch}"))
        .await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(mover.least("version", 2).await < version);
    assert_eq!(
        one(&clients[0], &format!("SELECT count(*) FROM t WHERE k = {moving}")).await,
        "0",
        "the old one is served"
    );
    drop(second);
}

/// A single tenant away from its bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overrides_route_and_scatter() {
    let world = World::start("overrides").await;
    let mut mover = Mover::new(&world).await;
    let tenant = keys(1, 1)[0];
    // Another key of its bucket stays.
    let bucket = hash(tenant).bucket(4096);
    let neighbour = (tenant + 1..).find(|key| hash(*key).bucket(4096) == bucket).unwrap();
    let scope = Scope::new(&[], &[hash(tenant)]).unwrap();
    let client = world.proxy.client().await;
    client
        .batch_execute(&format!("INSERT INTO t VALUES ({tenant}, 1, 'a'), ({neighbour}, 1, 'b')"))
        .await
        .unwrap();
    let version = mover.begin(1, &scope, 1, 4).await;
    mover.drained(version).await;
    let copy = format!("INSERT INTO t VALUES ({tenant}, 1, 'a')");
    world.cluster.primaries[3].client("postgres").await.batch_execute(&copy).await.unwrap();
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "2");
    let version = mover.flip(1, &scope, 1, 4, "flipped").await;
    mover.drained(version).await;
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "2");
    client
        .batch_execute(&format!("UPDATE t SET note = 'moved' WHERE k IN ({tenant}, {neighbour})"))
        .await
        .unwrap();
    assert_eq!(world.each("SELECT count(*) FROM t WHERE note = 'moved'").await, [1, 0, 0, 1]);
    world.cluster.primaries[0]
        .client("postgres")
        .await
        .batch_execute(&format!("DELETE FROM t WHERE k = {tenant}"))
        .await
        .unwrap();
    let version = mover.end(1).await;
    mover.drained(version).await;
    client
        .batch_execute(&format!("INSERT INTO t VALUES ({tenant}, 2, 'c'), ({neighbour}, 2, 'd')"))
        .await
        .unwrap();
    assert_eq!([places(&world, tenant).await, places(&world, neighbour).await], [[0, 0, 0, 2], [2, 0, 0, 0]]);
    let map = client.simple_query("SHOW shard.map").await.unwrap();
    let text = format!("{map:?}");
    assert!(text.contains(&format!("[[{},4]]", hash(tenant))), "{text}");
}
