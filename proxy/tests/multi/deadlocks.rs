//! Transactions that wait for each other over several shards, where no server sees the whole cycle.

use std::time::Duration;

use tokio_postgres::Client;

use crate::proxy::{Proxy, World, code, key};

/// Longer than any of this takes, and shorter than for ever.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_over_shards_are_ended() {
    let world = World::start("multi-deadlock").await;
    let client = world.proxy.client().await;
    for shard in 1..=4 {
        client.execute("INSERT INTO t VALUES ($1, 1, 'start')", &[&key(shard)]).await.unwrap();
    }
    one_of_two_transactions_gives_way(&world.proxy, &world.proxy, &world).await;
    a_statement_on_all_shards_may_be_the_one_that_waits(&world).await;
    a_cycle_through_a_client_of_one_server(&world).await;
    an_error_on_one_shard_frees_the_rows_of_the_others(&world).await;
    a_cycle_on_one_shard_through_two_connections_of_one_client(&world).await;
    // The control plane of a second proxy knows nothing of the first one's clients but what that one writes down.
    let other = Proxy::start(&world.cluster);
    one_of_two_transactions_gives_way(&world.proxy, &other, &world).await;
    one_of_two_transactions_gives_way(&other, &world.proxy, &world).await;
    world.settled().await;
}

async fn set(client: &Client, shard: u16, note: &str) -> Result<u64, tokio_postgres::Error> {
    client.execute("UPDATE t SET note = $2 WHERE k = $1 AND id = 1", &[&key(shard), &note]).await
}

async fn begin(proxy: &Proxy) -> Client {
    let client = proxy.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    client
}

/// `first` and `second` are the answers to the statements that closed the circle; returns whether the first failed.
fn one_deadlock(
    first: &Result<u64, tokio_postgres::Error>,
    second: &Result<u64, tokio_postgres::Error>,
) -> bool {
    assert!(first.is_err() != second.is_err(), "one of them goes on: {first:?} {second:?}");
    let error = first.as_ref().err().or(second.as_ref().err()).unwrap();
    assert_eq!(code(error), "40P01", "{error:?}");
    assert_eq!(error.as_db_error().unwrap().message(), "deadlock detected");
    assert!(error.as_db_error().unwrap().detail().is_some_and(|d| d.contains("several shards")));
    first.is_err()
}

async fn one_of_two_transactions_gives_way(one: &Proxy, other: &Proxy, world: &World) {
    let (a, b) = (begin(one).await, begin(other).await);
    set(&a, 1, "a").await.unwrap();
    set(&b, 2, "b").await.unwrap();
    let both = async { tokio::join!(set(&a, 2, "a"), set(&b, 1, "b")) };
    let (first, second) = tokio::time::timeout(LIMIT, both).await.expect("nobody waits for ever");
    let (winner, loser, note) = if one_deadlock(&first, &second) { (&b, &a, "b") } else { (&a, &b, "a") };
    assert_eq!(code(&set(loser, 1, "late").await.unwrap_err()), "25P02");
    winner.batch_execute("COMMIT").await.unwrap();
    loser.batch_execute("ROLLBACK").await.unwrap();
    let notes = format!("SELECT count(*) FROM t WHERE k IN ({}, {}) AND note = '{note}'", key(1), key(2));
    assert_eq!(world.each(&notes).await, [1, 1, 0, 0], "all of the winner's and nothing of the loser's");
    // The loser is an ordinary session again: what is cancelled now is no deadlock.
    loser.batch_execute("SET statement_timeout = 50").await.unwrap();
    let sleep = loser.execute("SELECT pg_sleep(5) FROM t WHERE k = $1", &[&key(3)]).await.unwrap_err();
    assert_eq!(code(&sleep), "57014");
}

async fn a_statement_on_all_shards_may_be_the_one_that_waits(world: &World) {
    let (a, b) = (begin(&world.proxy).await, begin(&world.proxy).await);
    set(&a, 4, "a").await.unwrap();
    set(&b, 3, "b").await.unwrap();
    let all = async { a.batch_execute("UPDATE t SET note = 'all'").await.map(|()| 4) };
    // Has the rows of the other shards before it waits for that of shard 3.
    let late = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        set(&b, 4, "b").await
    };
    let both = async { tokio::join!(all, late) };
    let (first, second) = tokio::time::timeout(LIMIT, both).await.expect("nobody waits for ever");
    let winner = if one_deadlock(&first, &second) { &b } else { &a };
    winner.batch_execute("COMMIT").await.unwrap();
}

async fn a_cycle_through_a_client_of_one_server(world: &World) {
    let (a, b) = (begin(&world.proxy).await, begin(&world.proxy).await);
    let direct = world.cluster.primaries[1].client("app").await;
    let lock = format!("SELECT FROM t WHERE k = {} FOR UPDATE", key(2));
    set(&a, 1, "a").await.unwrap();
    b.batch_execute("SAVEPOINT s").await.unwrap();
    direct.batch_execute("BEGIN").await.unwrap();
    direct.batch_execute(&lock).await.unwrap();
    // `direct` waits for b on shard 2, b for a on shard 1, a for `direct` on shard 2.
    b.execute("INSERT INTO t VALUES ($1, 2, 'b')", &[&key(2)]).await.unwrap();
    let same = format!("INSERT INTO t VALUES ({}, 2, 'direct')", key(2));
    let waits = async {
        let result = direct.batch_execute(&same).await;
        direct.batch_execute("ROLLBACK").await.unwrap();
        result
    };
    let all = async { tokio::join!(set(&b, 1, "b"), set(&a, 2, "a"), waits) };
    let (first, second, inserted) = tokio::time::timeout(LIMIT, all).await.expect("nobody waits for ever");
    if one_deadlock(&first, &second) {
        assert!(inserted.is_ok(), "b's row is gone: {inserted:?}");
        b.batch_execute("ROLLBACK TO s").await.unwrap();
        b.batch_execute("ROLLBACK").await.unwrap();
        a.batch_execute("COMMIT").await.unwrap();
    } else {
        a.batch_execute("ROLLBACK").await.unwrap();
        b.batch_execute("COMMIT").await.unwrap();
        assert!(inserted.is_err(), "b's row is there");
    }
    let rows = format!("DELETE FROM t WHERE k = {} AND id = 2", key(2));
    world.proxy.client().await.batch_execute(&rows).await.unwrap();
}

/// What keeps the rows of a cursor has locked its table on the default shard, and the transaction itself has not.
async fn a_cycle_on_one_shard_through_two_connections_of_one_client(world: &World) {
    let a = begin(&world.proxy).await;
    let cursor = format!(
        "DECLARE c CURSOR FOR SELECT k, id FROM t WHERE k IN ({}, {}) ORDER BY id, k",
        key(2),
        key(3)
    );
    a.batch_execute(&cursor).await.unwrap();
    let direct = world.cluster.primaries[0].client("app").await;
    direct.batch_execute("BEGIN").await.unwrap();
    // `direct` waits for the cursor, and a for `direct`.
    let late = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        set(&a, 1, "a").await
    };
    let both = async { tokio::join!(direct.batch_execute("LOCK TABLE t"), late) };
    let (locked, updated) = tokio::time::timeout(LIMIT, both).await.expect("nobody waits for ever");
    assert!(locked.is_ok(), "{locked:?}");
    assert_eq!(code(&updated.unwrap_err()), "40P01");
    direct.batch_execute("ROLLBACK").await.unwrap();
    a.batch_execute("ROLLBACK").await.unwrap();
}

async fn an_error_on_one_shard_frees_the_rows_of_the_others(world: &World) {
    let (a, b) = (begin(&world.proxy).await, world.proxy.client().await);
    set(&a, 1, "a").await.unwrap();
    let error = a.execute("UPDATE t SET id = id / 0 WHERE k = $1", &[&key(2)]).await.unwrap_err();
    assert_eq!(code(&error), "22012");
    // As with one server, whose transaction has released its locks although its client has not said ROLLBACK.
    let update = tokio::time::timeout(LIMIT, set(&b, 1, "b")).await.expect("the row is free");
    assert_eq!(update.unwrap(), 1);
    assert_eq!(code(&set(&a, 1, "late").await.unwrap_err()), "25P02");
    a.batch_execute("ROLLBACK").await.unwrap();
    let note = b.query_one("SELECT note FROM t WHERE k = $1", &[&key(1)]).await.unwrap();
    assert_eq!(note.get::<_, String>(0), "b");
}
