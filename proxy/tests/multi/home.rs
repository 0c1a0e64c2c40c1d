//! The catalog moves to another shard (H6), as `shardctl catalog --to` moves it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::mover::{Mover, buckets_of};
use crate::proxy::{Proxy, World, keys};

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Everything of the catalog on `from`, as text that `to` takes; it points back to shard `back` until that lets go.
async fn copy(from: &Client, to: &Client, back: i32) {
    to.batch_execute(
        "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM shard_catalog.map; DELETE FROM shard_catalog.proxy",
    )
    .await
    .unwrap();
    for (table, columns) in [
        ("map", "epoch, buckets, ranges, created_at, overrides, id, reason"),
        (
            "proxy",
            "id, name, address, backend_tag, lease_until + interval '1 s' lease_until, 0 version, 0 drained, epoch, held, note, shards",
        ),
    ] {
        let read = format!(
            "SELECT coalesce(json_agg(t), '[]')::text FROM (SELECT {columns} FROM shard_catalog.{table}) t"
        );
        let rows: String = from.query_one(&read, &[]).await.unwrap().get(0);
        let write = format!(
            "INSERT INTO shard_catalog.{table} SELECT * FROM json_populate_recordset(NULL::shard_catalog.{table}, $1::text::json)"
        );
        to.execute(&write, &[&rows]).await.unwrap();
    }
    let (version, generation) = {
        let row = from.query_one("SELECT version, generation FROM shard_catalog.control", &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    to.execute(
        "UPDATE shard_catalog.control SET version = $1, generation = $2, moved_to = $3, moved_generation = $4",
        &[&(version + 1), &(generation + 1), &back, &generation],
    )
    .await
    .unwrap();
    to.batch_execute("COMMIT").await.unwrap();
}

async fn let_go(from: &Client, to: i32) {
    from.batch_execute(&format!(
        "BEGIN; UPDATE shard_catalog.control SET moved_to = {to}, moved_generation = generation + 1; \
         SELECT pg_notify('shard_catalog', ''); COMMIT"
    ))
    .await
    .unwrap();
}

async fn leased(catalog: &Client, expected: i64) {
    let sql =
        "SELECT count(*) FROM shard_catalog.proxy WHERE lease_until > clock_timestamp() AND version > 0";
    let begun = Instant::now();
    while number(catalog, sql).await != expected {
        assert!(begun.elapsed() < Duration::from_secs(10), "{expected} proxies follow the catalog");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_proxies_follow_the_catalog_to_another_shard() {
    let world = World::start("home").await;
    let mut second = Proxy::start(&world.cluster);
    second.client().await;
    let mut mover = Mover::new(&world).await;
    let moving = keys(1, 1)[0];
    let insert = format!("INSERT INTO t VALUES ({moving}, 1, 'a')");
    world.proxy.client().await.batch_execute(&insert).await.unwrap();
    leased(&mover.catalog, 2).await;
    let to = world.cluster.primaries[2].client("postgres").await;

    // A copy is not followed before the old one lets go.
    copy(&mover.catalog, &to, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(number(&to, "SELECT count(*) FROM shard_catalog.proxy WHERE version > 0").await, 0);
    let old = std::mem::replace(&mut mover.catalog, to);
    let_go(&old, 3).await;
    leased(&mover.catalog, 2).await;
    // Who has come first has ended the pointer back, and nobody writes to the old one.
    assert_eq!(
        number(&mover.catalog, "SELECT count(*) FROM shard_catalog.control WHERE moved_to IS NOT NULL").await,
        0
    );
    for sql in [
        "DELETE FROM shard_catalog.proxy",
        "INSERT INTO shard_catalog.map (epoch, buckets, ranges) VALUES (9, 4096, '[]')",
    ] {
        let error = old.batch_execute(sql).await.unwrap_err();
        assert!(
            error.as_db_error().unwrap().message().contains("the shard catalog is on shard 3 now"),
            "{error}"
        );
    }

    // A move by the new one, while the old one's server is away; a proxy that begins meanwhile remembers where to look.
    second.kill();
    world.cluster.primaries[0].signal("STOP");
    let scope = buckets_of(&[keys(2, 1)[0]]);
    let version = mover.begin(1, &scope, 2, 4).await;
    mover.wait("drained", version, 1).await;
    let version = mover.flip(1, &scope, 2, 4, "flipped").await;
    mover.wait("drained", version, 1).await;
    world.cluster.primaries[0].signal("CONT");
    let third = Proxy::start(&world.cluster);
    let epoch = number(&third.client().await, "SHOW shard.epoch").await;
    assert_eq!(epoch, 2, "one that knows nothing is led there from the default shard");
    let client = world.proxy.client().await;
    assert_eq!(number(&client, &format!("SELECT count(*) FROM t WHERE k = {moving}")).await, 1);
    let version = mover.end(1).await;
    mover.wait("drained", version, 2).await;

    // And back again.
    copy(&mover.catalog, &old, 3).await;
    let_go(&mover.catalog, 1).await;
    leased(&old, 2).await;
    let version = Mover { catalog: old, ..mover }.begin(2, &scope, 4, 2).await;
    let back = world.cluster.primaries[0].client("postgres").await;
    let sql = format!("SELECT count(*) FROM shard_catalog.proxy WHERE drained >= {version}");
    let begun = Instant::now();
    while number(&back, &sql).await != 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "both follow it here again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The default shard's server was made anew: it keeps nothing, and no first map is written while another shard keeps one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_no_first_map_beside_another() {
    let world = World::start("first-map").await;
    let mut mover = Mover::new(&world).await;
    let to = world.cluster.primaries[1].client("postgres").await;
    leased(&mover.catalog, 1).await;
    copy(&mover.catalog, &to, 1).await;
    let old = std::mem::replace(&mut mover.catalog, to);
    let_go(&old, 2).await;
    leased(&mover.catalog, 1).await;
    let scope = buckets_of(&[keys(2, 1)[0]]);
    let version = mover.begin(1, &scope, 2, 4).await;
    mover.wait("drained", version, 1).await;
    mover.flip(1, &scope, 2, 4, "flipped").await;
    old.batch_execute("SET session_replication_role = replica; DELETE FROM shard_catalog.map; DELETE FROM shard_catalog.proxy; \
                       UPDATE shard_catalog.control SET version = 1, generation = 1, moved_to = NULL, moved_generation = NULL")
        .await
        .unwrap();
    let fresh = Proxy::start(&world.cluster);
    assert_eq!(number(&fresh.client().await, "SHOW shard.epoch").await, 2);
    assert_eq!(number(&old, "SELECT count(*) FROM shard_catalog.map").await, 0);
}
