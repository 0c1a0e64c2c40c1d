//! A proxy whose lease has run out neither asks nor answers for what moves (H8).

use std::time::{Duration, Instant};

use crate::mover::{Mover, buckets_of};
use crate::proxy::{World, code, keys};

async fn count(client: &tokio_postgres::Client, key: i64) -> Result<i64, String> {
    // The simple protocol: a statement that is prepared is checked by any shard first.
    let sql = format!("SELECT count(*) FROM t WHERE k = {key}");
    let answer = client.simple_query(&sql).await.map_err(|error| code(&error))?;
    let row = answer.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap().parse().unwrap())
}

/// The catalog does not answer for longer than a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_without_a_lease_what_moves_is_not_answered() {
    let world = World::start("lease").await;
    let mover = Mover::new(&world).await;
    let (moving, staying) = (keys(2, 1)[0], keys(4, 1)[0]);
    let client = world.proxy.client().await;
    for key in [moving, staying] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    let version = mover.begin(1, &buckets_of(&[moving]), 2, 3).await;
    mover.drained(version).await;
    assert_eq!(count(&client, moving).await, Ok(1));
    let in_flight = world.proxy.client().await;
    let sql = format!("SELECT count(*) FROM t WHERE k = {moving} AND pg_sleep(8) IS NOT NULL");
    let in_flight = tokio::spawn(async move { in_flight.simple_query(&sql).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.cluster.primaries[0].signal("STOP");
    let stopped = Instant::now();
    // As long as the lease runs, nobody has gone on without this proxy.
    assert_eq!(count(&client, moving).await, Ok(1));
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert_eq!(count(&client, staying).await, Ok(1), "what does not move is served with the last map");
    assert_eq!(count(&client, moving).await, Err("57P03".to_owned()));
    let answer = in_flight.await.unwrap();
    assert!(stopped.elapsed() > Duration::from_secs(7));
    let error = code(&answer.expect_err("the answer came without a lease and was passed on"));
    assert!(["08006", "08007"].contains(&error.as_str()), "{error}");
    world.cluster.primaries[0].signal("CONT");
    let back = Instant::now();
    while count(&client, moving).await != Ok(1) {
        assert!(back.elapsed() < Duration::from_secs(20), "it is served again");
    }
}

/// The process is stopped before it hears of a move, and goes on when the move is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_a_proxy_that_was_stopped_looks_before_it_goes_on() {
    let world = World::start("stopped").await;
    let mut mover = Mover::new(&world).await;
    let moving = keys(2, 1)[0];
    let clients = [world.proxy.client().await, world.proxy.client().await, world.proxy.client().await];
    clients[0].batch_execute(&format!("INSERT INTO t VALUES ({moving}, 1, 'a')")).await.unwrap();
    let reads = format!("SELECT count(*) FROM t WHERE k = {moving}");
    let prepared = clients[1].prepare(&reads).await.unwrap();
    assert_eq!(clients[1].query_one(&prepared, &[]).await.unwrap().get::<_, i64>(0), 1);
    clients[2].batch_execute("BEGIN").await.unwrap();
    assert_eq!(count(&clients[2], moving).await, Ok(1));

    let tag: String =
        mover.catalog.query_one("SELECT backend_tag FROM shard_catalog.proxy", &[]).await.unwrap().get(0);
    world.proxy.signal("STOP");
    let begun = Instant::now();
    while mover.least("version", 0).await != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "its lease runs out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let scope = buckets_of(&[moving]);
    mover.begin(1, &scope, 2, 3).await;
    let (source, target) = (
        world.cluster.primaries[1].client("postgres").await,
        world.cluster.primaries[2].client("postgres").await,
    );
    target
        .batch_execute(&format!("INSERT INTO t VALUES ({moving}, 1, 'a'), ({moving}, 2, 'b')"))
        .await
        .unwrap();
    let ended =
        "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM shard_catalog.backends_of($1) pid) x";
    let ended: i64 = source.query_one(ended, &[&tag]).await.unwrap().get(0);
    assert!(ended >= 1, "its backends are found");
    mover.flip(1, &scope, 2, 3, "flipped").await;
    source.batch_execute(&format!("DELETE FROM t WHERE k = {moving}")).await.unwrap();
    mover.end(1).await;
    world.proxy.signal("CONT");

    // The source has none of the rows, and is not asked for them. (A connection that was ended is an error once.)
    assert_ne!(
        count(&clients[2], moving).await,
        Ok(0),
        "a transaction that had read them goes on without them"
    );
    for attempt in 0.. {
        match clients[1].query_one(&prepared, &[]).await.map(|row| row.get::<_, i64>(0)) {
            Ok(rows) => {
                assert_eq!(rows, 2, "an answer of the old owner");
                break;
            }
            Err(error) => assert!(attempt < 20, "{error:?}"),
        }
    }
    for attempt in 0.. {
        match clients[0].batch_execute(&format!("INSERT INTO t VALUES ({moving}, 3, 'c')")).await {
            Ok(()) => break,
            Err(error) => assert!(attempt < 20, "{error:?}"),
        }
    }
    assert_eq!(world.each(&reads).await, [0, 0, 3, 0]);
}

/// A statement over several shards is judged once. This one goes on for longer than a lease, and a whole move passes meanwhile:
/// nothing on its shards is left that would keep its rows out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_a_copy_that_outlives_its_lease_begins_on_no_other_shard() {
    use futures_util::SinkExt;
    let world = World::start("outlived").await;
    let mut mover = Mover::new(&world).await;
    let (of_three, staying) = (keys(3, 2), keys(2, 1)[0]);
    let renewal = world.cluster.primaries[0].client("postgres").await;
    let fourth = world.cluster.primaries[3].client("postgres").await;
    for (id, moving, is_back) in [(1, of_three[0], true), (2, of_three[1], false)] {
        let client = world.proxy.client().await;
        let sink = client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        let mut send = async |key: i64| {
            sink.send(format!("{key}\t1\ta\n").into()).await.unwrap();
            sink.flush().await.unwrap();
        };
        send(staying).await;
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND query LIKE 'COPY%' AND state <> 'idle'";
        world.eventually(busy, &[1, 1, 0, 0]).await;
        renewal.batch_execute("BEGIN; LOCK shard_catalog.proxy IN EXCLUSIVE MODE").await.unwrap();
        let begun = Instant::now();
        while mover.least("version", 0).await != 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "its lease runs out");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let scope = buckets_of(&[moving]);
        mover.begin(id, &scope, 3, 4).await;
        mover.flip(id, &scope, 3, 4, "flipped").await;
        let version = mover.end(id).await;
        if is_back {
            // With another lease than that under which it was judged.
            renewal.batch_execute("ROLLBACK").await.unwrap();
            mover.wait("version", version, 1).await;
        } else {
            // Without one, and a shard knows more than the proxy does.
            let owned = "INSERT INTO shard_catalog.ownership (move_id, epoch, epoch_id, scope, owner, flipped) \
                         VALUES (7, 99, gen_random_uuid(), '{\"ranges\": [[0, 1]]}', 3, true)";
            fourth.batch_execute(owned).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        send(moving).await;
        let answer = sink.finish().await.map_err(|error| code(&error));
        assert_eq!((answer, world.counts().await), (Err("40001".to_owned()), vec![0; 4]), "{is_back}");
        if !is_back {
            fourth.batch_execute("DELETE FROM shard_catalog.ownership").await.unwrap();
            renewal.batch_execute("ROLLBACK").await.unwrap();
            mover.wait("version", version, 1).await;
        }
    }
    // The next one knows better.
    let insert = format!("INSERT INTO t VALUES ({}, 1, 'a'), ({staying}, 1, 'a')", of_three[1]);
    world.proxy.client().await.batch_execute(&insert).await.unwrap();
    assert_eq!(world.counts().await, [0, 1, 0, 1]);
}

/// The catalog is silent for longer than a lease, and another shard has given rows away meanwhile, or taken some in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_what_a_shard_itself_knows_of_moves_is_believed() {
    let world = World::start("knows").await;
    let key = keys(4, 1)[0];
    let client = world.proxy.client().await;
    client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    let shard = world.cluster.primaries[1].client("postgres").await;
    world.cluster.primaries[0].signal("STOP");
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert_eq!(count(&client, key).await, Ok(1), "nobody knows of a move: the last map is served");
    let fence =
        "INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES (7, '{\"ranges\": [[0, 1]]}', 4095)";
    let owned = "INSERT INTO shard_catalog.ownership (move_id, epoch, epoch_id, scope, owner, flipped) \
                 VALUES (7, 99, gen_random_uuid(), '{\"ranges\": [[0, 1]]}', 3, true)";
    for (comes, goes) in
        [(fence, "DELETE FROM shard_catalog.fence"), (owned, "DELETE FROM shard_catalog.ownership")]
    {
        shard.batch_execute(comes).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(count(&client, key).await, Err("57P03".to_owned()), "{comes}");
        shard.batch_execute(goes).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(count(&client, key).await, Ok(1), "{goes}");
    }
    shard.batch_execute(owned).await.unwrap();
    world.cluster.primaries[0].signal("CONT");
    let back = Instant::now();
    while count(&client, key).await != Ok(1) {
        assert!(back.elapsed() < Duration::from_secs(20), "the catalog was read");
    }
}
