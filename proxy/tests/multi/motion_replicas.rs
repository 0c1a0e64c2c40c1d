//! Replicas of a bucket's new owner may lack what was copied to it (H8).

use std::time::{Duration, Instant};

use shard_config::ShardId;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::Cluster;
use crate::mover::{Mover, buckets_of};
use crate::proxy::{Proxy, code, keys};

/// The port of the server that answers, and how many rows it finds; or the SQLSTATE.
async fn read(client: &Client, key: i64) -> Result<(u16, i64), String> {
    let sql = format!("SELECT inet_server_port(), n FROM (SELECT count(*) AS n FROM t WHERE k = {key}) c");
    let answer = client.simple_query(&sql).await.map_err(|error| code(&error))?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?)),
        _ => None,
    });
    Ok(row.expect("a row"))
}

async fn until(client: &Client, key: i64, expected: (u16, i64)) {
    let begun = Instant::now();
    loop {
        let found = read(client, key).await;
        if found == Ok(expected) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_a_replica_shows_no_moved_bucket_before_it_has_replayed_the_flip() {
    let cluster = Cluster::start("motion-replicas", 2, true);
    let proxy = Proxy::start(&cluster);
    let mut mover = Mover::of(&cluster, &[ShardId(1), ShardId(2)]).await;
    // Of four shards the third begins where of two the second does.
    let (moving, there) = (keys(1, 1)[0], keys(3, 1)[0]);
    let (target, replica) = (&cluster.primaries[1], &cluster.replicas[1]);
    let client = proxy.client().await;
    let table = "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id))";
    client.batch_execute(table).await.unwrap();
    for key in [moving, there] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    let stale = proxy.client().await;
    stale.batch_execute("SET shard.read = 'replica'").await.unwrap();
    until(&client, there, (replica.port, 1)).await;
    until(&stale, there, (replica.port, 1)).await;
    let (open, open_stale) = (proxy.client().await, proxy.client().await);
    open_stale.batch_execute("SET shard.read = 'replica'").await.unwrap();
    for client in [&open, &open_stale] {
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(read(client, there).await, Ok((replica.port, 1)), "it begins on the replica");
    }

    let paused = replica.client("postgres").await;
    paused.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let scope = buckets_of(&[moving]);
    let version = mover.begin(1, &scope, 1, 2).await;
    mover.drained(version).await;
    let copy = format!("INSERT INTO t VALUES ({moving}, 1, 'a')");
    target.client("postgres").await.batch_execute(&copy).await.unwrap();
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let version = mover.flip(1, &scope, 1, 2, "flipped").await;
    mover.drained(version).await;
    assert_eq!(read(&paused, moving).await, Ok((replica.port, 0)), "the replica lacks it");

    let of_primary = Ok((target.port, 1));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(read(&client, moving).await, of_primary, "what the replica has proved is before the flip");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read(&client, there).await, Ok((replica.port, 1)), "what was there is read there");
    let alone = read(&stale, moving).await;
    stale.batch_execute("BEGIN READ ONLY").await.unwrap();
    let in_a_block = (read(&stale, there).await, read(&stale, moving).await);
    stale.batch_execute("COMMIT").await.unwrap();
    assert_eq!(
        (alone, in_a_block),
        (of_primary.clone(), (of_primary.clone(), of_primary.clone())),
        "who is content with old rows asks for rows"
    );
    let mut found = Vec::new();
    for client in [&open, &open_stale] {
        assert_eq!(read(client, there).await, Ok((replica.port, 1)));
        found.push(read(client, moving).await);
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(read(client, moving).await, of_primary);
    }
    let ended = Err("40001".to_owned());
    assert_eq!(found, [ended.clone(), ended], "the replica that they have begun on lacks it");

    paused.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    for client in [&client, &stale, &open, &open_stale] {
        until(client, moving, (replica.port, 1)).await;
    }
}
