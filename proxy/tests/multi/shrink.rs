//! Shards that a reload takes out, while clients go on.

use std::time::{Duration, Instant};

use shard_config::{Scope, ShardId};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::{Cluster, connect};
use crate::grow::{TABLES, Told, count, shard_block, until_known};
use crate::motion_snapshots::NO_BUCKET;
use crate::mover::{Mover, SHARDS, hash};
use crate::proxy::{World, code, keys};

/// Those of shard 3, as the proxy deals them out at first.
fn of_three() -> Scope {
    Scope::new(&[(2048, 3071)], &[]).unwrap()
}

/// Without rows.
async fn drain(mover: &mut Mover, id: i64, scope: &Scope, from: u16, to: u16) {
    for stage in ["copying", "holding"] {
        let version = match stage {
            "copying" => mover.begin(id, scope, from, to).await,
            stage => mover.stage(id, stage).await,
        };
        mover.drained(version).await;
    }
    let version = mover.flip(id, scope, from, to, "flipped").await;
    mover.drained(version).await;
    let version = mover.end(id).await;
    mover.drained(version).await;
}

async fn roles(told: &Told, shard: &str) -> Vec<String> {
    let servers = told.servers().await;
    servers.into_iter().filter(|(id, _)| id == shard).map(|(_, role)| role).collect()
}

async fn until_gone(told: &Told, shard: &str) {
    let begun = Instant::now();
    while !roles(told, shard).await.is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "shard {shard} is still there: {:?}",
            told.servers().await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a client does all the time: writes by key, reads over all shards, writes for all shards. Until it is told to stop; then
/// so many rounds.
async fn busy(url: String, mut stop: tokio::sync::watch::Receiver<bool>) -> usize {
    let client = connect(&url).await;
    let write = client.prepare("INSERT INTO t VALUES ($1, $2, 'busy')").await.unwrap();
    let all = client.prepare("SELECT count(*) FROM t WHERE note = 'busy'").await.unwrap();
    let rates = client.prepare("INSERT INTO rates VALUES ($1, 0)").await.unwrap();
    let places = [keys(1, 1)[0], keys(2, 1)[0], keys(4, 1)[0]];
    let mut rounds = 0;
    while !*stop.borrow_and_update() {
        let id = 1000 + rounds as i32;
        client.execute(&write, &[&places[rounds % 3], &id]).await.unwrap();
        let seen: i64 = client.query_one(&all, &[]).await.unwrap().get(0);
        assert_eq!(seen, rounds as i64 + 1);
        client.execute(&rates, &[&format!("busy {rounds}")]).await.unwrap();
        rounds += 1;
    }
    rounds
}

/// One message each: settings of the proxy's own are not said together with other statements.
async fn say(client: &Client, statements: &[&str]) {
    for sql in statements {
        client.batch_execute(sql).await.unwrap();
    }
}

async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.simple_query(sql).await.unwrap();
    let cells = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    rows.iter().filter_map(cells).collect()
}

/// In the middle of the others, so that positions are not numbers any more. The server comes back with a number above theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_owns_nothing_is_taken_out_and_comes_back() {
    let cluster = Cluster::start("shrink", 4, false);
    let block = shard_block(&cluster, 3);
    let (told, proxy, all) = Told::start(&cluster, |all| all).await;
    let without = all.replace(&block, "");
    let world = World { proxy, cluster };
    let mut mover = Mover::new(&world).await;
    let server = &world.cluster.primaries[2];
    let third = server.client("postgres").await;
    let client = world.proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("INSERT INTO rates VALUES ('a', 1)").await.unwrap();
    let of_two = keys(2, 3);

    drain(&mut mover, 1, &of_three(), 3, 4).await;
    let write = client.prepare("INSERT INTO t VALUES ($1, $2, 'own')").await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let busy = tokio::spawn(busy(world.proxy.url(), stopped));
    // A transaction that has written there, and one that looks at it alone.
    let open = world.proxy.client().await;
    open.batch_execute("BEGIN; INSERT INTO rates VALUES ('open', 1)").await.unwrap();
    let aimed = world.proxy.client().await;
    say(&aimed, &["SET shard.target = '3'", "BEGIN", "SELECT FROM rates"]).await;

    // So young that its coordinator may be about to finish it.
    let gid = "shardproxy:payments:lost:00000000000000aa:77:900";
    third
        .batch_execute(&format!("BEGIN; INSERT INTO rates VALUES ('x', 1); PREPARE TRANSACTION '{gid}'"))
        .await
        .unwrap();
    told.reload(&without).await.unwrap();
    // From this moment on nothing begins there, and nobody may move anything to it.
    assert_eq!(roles(&told, "3").await, ["leaving"]);
    until_known(&mover, &[1, 2, 4]).await;
    client.batch_execute("INSERT INTO rates VALUES ('later', 1)").await.unwrap();
    assert_eq!(count(&third, "SELECT count(*) FROM rates WHERE code = 'later'").await, 0);
    assert_eq!(count(&client, "SELECT count(*) FROM rates WHERE code = 'later'").await, 1);
    client.batch_execute("BEGIN").await.unwrap();
    client.execute(&write, &[&of_two[0], &1i32]).await.unwrap();
    let error = world.proxy.client().await.batch_execute("SET shard.target = '3'").await.unwrap_err();
    assert_eq!(code(&error), "22023");
    let error = told.reload(&all.replace(&block, &block.replace("id = 3", "id = 5"))).await.unwrap_err();
    assert!(error.contains("other_shard"), "{error}");

    // What began before goes on, there, too.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(count(&open, "SELECT count(*) FROM rates WHERE code IN ('later', 'open')").await, 2);
    open.batch_execute("INSERT INTO rates VALUES ('open, later', 1); COMMIT").await.unwrap();
    assert_eq!(count(&third, "SELECT count(*) FROM rates WHERE code LIKE 'open%'").await, 1);
    assert_eq!(count(&aimed, "SELECT count(*) FROM t").await, 0);
    assert_eq!(roles(&told, "3").await, ["leaving"], "a transaction is there");
    aimed.batch_execute("COMMIT").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(roles(&told, "3").await, ["leaving"], "it could not be finished any more");
    third.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
    until_gone(&told, "3").await;
    let error = aimed.batch_execute("SELECT FROM t").await.unwrap_err();
    assert_eq!(code(&error), "55000");
    say(&aimed, &["SET shard.target = ''", "SELECT FROM t"]).await;

    // It is left alone: no session of a client's, of a prober's, of recovery's.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let begun = Instant::now();
    while count(&third, sessions).await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "somebody is connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pools = texts(&told.console, "SHOW POOLS").await;
    assert!(!pools.is_empty() && !pools.iter().any(|pool| pool.ends_with("/3")), "{pools:?}");
    server.signal("STOP");
    let begun = Instant::now();
    client.batch_execute("COMMIT; CREATE TABLE u (k int8 PRIMARY KEY)").await.unwrap();
    client
        .batch_execute("INSERT INTO rates VALUES ('stopped', 1); UPDATE rates SET rate = rate + 1 WHERE code NOT LIKE 'busy%'")
        .await
        .unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    client.execute(&write, &[&of_two[1], &1i32]).await.unwrap();
    client.execute(&write, &[&keys(3, 1)[0], &1i32]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM t WHERE note = 'own'").await, 3);
    assert_eq!(
        count(&client, "SELECT count(*) FROM rates WHERE rate = 2 AND code NOT LIKE 'busy%'").await,
        5
    );
    let fresh = world.proxy.client().await;
    say(&fresh, &["SET search_path TO public", "SELECT 1"]).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    stop.send_replace(true);
    let rounds = busy.await.unwrap();
    assert!(rounds > 20, "{rounds} rounds");
    server.signal("CONT");

    // It comes back as any other does.
    let back = without.clone() + &shard_block(&world.cluster, 3).replace("id = 3", "id = 5");
    let error = told.reload(&all).await.unwrap_err();
    assert!(error.contains("shard 3 would come before shard 4"), "{error}");
    let error = told.reload(&back).await.unwrap_err();
    assert!(error.contains("public.u: it does not exist on shard 5"), "{error}");
    third.batch_execute("SET ROLE app; CREATE TABLE u (k int8 PRIMARY KEY); RESET ROLE").await.unwrap();
    let error = told.reload(&back).await.unwrap_err();
    assert!(error.contains("rows of reference tables"), "{error}");
    let rows = client.query("SELECT code, rate FROM rates", &[]).await.unwrap();
    third.batch_execute("TRUNCATE rates").await.unwrap();
    for row in rows {
        let (name, rate): (&str, i32) = (row.get(0), row.get(1));
        third.execute("INSERT INTO rates VALUES ($1, $2)", &[&name, &rate]).await.unwrap();
    }
    // Also under the number that it had, which this proxy has a position of already.
    for _ in 0..2 {
        told.reload(&back).await.unwrap();
        until_known(&mover, &[1, 2, 4, 5]).await;
        told.reload(&without).await.unwrap();
        until_known(&mover, &[1, 2, 4]).await;
        until_gone(&told, "5").await;
    }
    told.reload(&back).await.unwrap();
    until_known(&mover, &[1, 2, 4, 5]).await;
    client.batch_execute("INSERT INTO rates VALUES ('back', 1)").await.unwrap();
    assert_eq!(count(&third, "SELECT count(*) FROM rates WHERE code = 'back'").await, 1);
    mover.shards.push(ShardId(5));
    let moving = crate::mover::buckets_of(&keys(1, 5)[4..]);
    drain(&mut mover, 2, &moving, 1, 5).await;
    client.execute(&write, &[&keys(1, 5)[4], &1i32]).await.unwrap();
    assert_eq!(count(&third, "SELECT count(*) FROM t").await, 1);
    assert_eq!(count(&client, "SELECT count(*) FROM t WHERE note = 'own'").await, 4);
}

/// Whatever keeps a shard is said with what to do, and the proxy goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_needed_is_not_taken_out() {
    let cluster = Cluster::start("shrink-needed", 4, false);
    let blocks: Vec<String> = (1..=4).map(|shard| shard_block(&cluster, shard)).collect();
    let by_two = |all: String| all.replace("[proxy]\n", "[proxy]\ndefault_shard = 2\n");
    let (told, proxy, all) = Told::start(&cluster, by_two).await;
    let (all, without) = (by_two(all.clone()), |shard: usize| by_two(all.replace(&blocks[shard - 1], "")));
    let world = World { proxy, cluster };
    let mut mover = Mover::of(&world.cluster, &SHARDS).await;
    mover.catalog = world.cluster.primaries[1].client("postgres").await;
    let client = world.proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    let third = world.cluster.primaries[2].client("postgres").await;
    let refused = async |shard: usize, why: &str| {
        let error = told.reload(&without(shard)).await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(told.servers().await.len(), 4);
    };

    refused(2, "default_shard: there is no shard 2").await;
    refused(3, "shard 3 is missing and owns 1024 buckets: put it back into the file, and first: shardctl plan drain 3").await;
    let pinned = world.proxy.client().await;
    say(&pinned, &["SET shard.target = '3'", "CREATE TEMP TABLE own (v int)", "SET shard.target = ''"]).await;

    drain(&mut mover, 1, &of_three(), 3, 4).await;
    refused(3, "is pinned to a server of it").await;
    drop(pinned);
    let tenant = Scope::new(&[], &[hash(keys(4, 1)[0])]).unwrap();
    drain(&mut mover, 2, &tenant, 4, 3).await;
    refused(3, "owns 1 single tenants").await;
    drain(&mut mover, 3, &tenant, 3, 4).await;
    let version = mover.begin(4, &tenant, 4, 3).await;
    mover.drained(version).await;
    refused(3, "move 4 is from or to it").await;
    let version = mover.end(4).await;
    mover.drained(version).await;
    // One that is not copying yet, or not cleaned up: the proxies are told of neither.
    let planned = "INSERT INTO shard_catalog.move (scope, source, target, phase, planned_epoch) VALUES ('{}', 1, 3, 'planned', 1)";
    mover.catalog.batch_execute(planned).await.unwrap();
    refused(3, "moves [1] from or to it are not over").await;
    mover.catalog.batch_execute("UPDATE shard_catalog.move SET phase = 'done'").await.unwrap();
    // Nobody can be asked what is to become of it.
    let gid = "shardproxy:payments:lost:00000000000000aa:77:900";
    third
        .batch_execute(&format!("BEGIN; INSERT INTO rates VALUES ('x', 1); PREPARE TRANSACTION '{gid}'"))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(3200)).await;
    refused(3, "1 transactions over several shards are prepared there and not finished").await;
    third.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
    // The lowest one, although it is not the default shard.
    drain(&mut mover, 5, &Scope::new(&[(0, 1023)], &[]).unwrap(), 1, 4).await;
    refused(1, "has the lowest number").await;
    // Without an answer nobody knows what is prepared there.
    world.cluster.primaries[2].stop("immediate");
    refused(3, "cannot be asked for prepared transactions").await;
    world.cluster.primaries[2].start();
    let begun = Instant::now();
    while let Err(error) = told.reload(&without(3)).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until_gone(&told, "3").await;

    // The catalog names it again, as of a mover that does not ask: nothing of that is followed.
    let version = mover.begin(6, &tenant, 4, 3).await;
    let note = "SELECT coalesce(min(note), '') FROM shard_catalog.proxy";
    let begun = Instant::now();
    loop {
        let said: String = mover.catalog.query_one(note, &[]).await.unwrap().get(0);
        if said.contains("shard 3") && said.contains("RELOAD") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{said:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mover.least("drained", 1).await < version);
    assert!(told.reload(&all).await.unwrap_err().contains("would come before shard 4"));
}

/// What a transaction has locked and seen is where it is, though its shard owns nothing: the one of the lowest number, which here
/// is the default shard, too. Then the highest one goes, late, as its server is down, and another server comes for its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_shard_is_drained_and_the_last_one_replaced() {
    let cluster = Cluster::start("shrink-replaced", 4, false);
    let blocks: Vec<String> = (1..=4).map(|shard| shard_block(&cluster, shard)).collect();
    let (told, proxy, all) = Told::start(&cluster, |all| all.replace(&blocks[3], "")).await;
    let all = all.replace(&blocks[3], "");
    let world = World { proxy, cluster };
    let mut mover = Mover::of(&world.cluster, &SHARDS[..3]).await;
    let client = world.proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("INSERT INTO rates VALUES ('a', 1)").await.unwrap();
    for (id, shard) in [(1, 1), (2, 3)] {
        let ranges = mover.map.ranges();
        let of_shard: Vec<_> = ranges.iter().filter(|r| r.2 == ShardId(shard)).map(|r| (r.0, r.1)).collect();
        drain(&mut mover, id, &Scope::new(&of_shard, &[]).unwrap(), shard, 2).await;
    }

    let first = i32::from(world.cluster.primaries[0].port);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = world.proxy.client().await;
        let port = async || -> i32 { client.query_one(NO_BUCKET, &[]).await.unwrap().get(0) };
        assert_ne!(port().await, first, "outside of a transaction, one that owns something");
        client.batch_execute("BEGIN; SELECT FROM rates WHERE code = 'a' FOR UPDATE").await.unwrap();
        assert_eq!(port().await, first, "what it has locked");
        client.batch_execute("COMMIT").await.unwrap();
        clients.push(client);
    }

    // Of a shard that is gone for this proxy another one may need decisions; of all others they are dropped.
    let (of_gone, of_first) = ("shardproxy:payments:old:00000000000000aa:1:700", "other");
    let decided = format!(
        "INSERT INTO shard_catalog.decision VALUES ('{of_gone}', '700', 'commit', '{{3}}', now() - interval '1 hour')"
    );
    mover.catalog.batch_execute(&decided).await.unwrap();
    let aimed = world.proxy.client().await;
    say(&aimed, &["SET shard.target = '3'", "BEGIN", "SELECT FROM rates"]).await;
    told.reload(&all.replace(&blocks[2], "")).await.unwrap();
    assert_eq!(roles(&told, "3").await, ["leaving"]);
    let reason = async || {
        let rows = told.console.simple_query("SHOW SHARDS").await.unwrap();
        let reason = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) if row.get(2) == Some("leaving") => {
                row.get("reason").map(str::to_owned)
            }
            _ => None,
        };
        rows.iter().find_map(reason).unwrap_or_default()
    };
    assert_eq!(reason().await, "");
    world.cluster.primaries[2].stop("immediate");
    let begun = Instant::now();
    while !reason().await.contains("start it, or restart the proxies") {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", reason().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(aimed);
    world.cluster.primaries[2].start();
    until_gone(&told, "3").await;

    let carried_out = format!(
        "INSERT INTO shard_catalog.applied VALUES ('{of_first}', 'app');
         INSERT INTO shard_catalog.decision VALUES ('{of_first}', '701', 'commit', '{{1}}', now() - interval '1 hour')"
    );
    mover.catalog.batch_execute(&carried_out).await.unwrap();
    let new = world.cluster.primaries[3].client("postgres").await;
    let begun = Instant::now();
    let left = "SELECT count(*) FROM shard_catalog.decision";
    while count(&mover.catalog, &format!("{left} WHERE gid = '{of_first}'")).await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not dropped");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count(&mover.catalog, &format!("{left} WHERE gid = '{of_gone}'")).await, 1);

    let same = format!("SET ROLE app; {TABLES}; INSERT INTO rates VALUES ('a', 1)");
    new.batch_execute(&same).await.unwrap();
    let replaced = blocks[3].replace("id = 4", "id = 3");
    told.reload(&(all.replace(&blocks[2], "") + &replaced)).await.unwrap();
    until_known(&mover, &[1, 2, 3]).await;
    client.batch_execute("INSERT INTO rates VALUES ('new', 1)").await.unwrap();
    assert_eq!(count(&new, "SELECT count(*) FROM rates").await, 2);
}
