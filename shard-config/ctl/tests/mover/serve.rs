//! The verbs as SQL functions, and who does what they ask for.

use std::time::{Duration, Instant};

use serde_json::Value;
use shardctl::mover::catalog;
use shardctl::mover::machine::Phase;
use shardctl::serve::serve;
use tokio::task::JoinHandle;

use crate::bed::{Bed, tenant};
use crate::proxy::{Proxy, hash};

fn server(bed: &Bed) -> JoinHandle<()> {
    let servers = bed.servers.clone();
    tokio::spawn(async move {
        serve(|| Ok(servers.clone()), |line| println!("serve: {line}")).await.unwrap();
    })
}

async fn until(bed: &Bed, sql: &str, wanted: &str) {
    let begun = Instant::now();
    loop {
        let is: Option<String> = bed.control.value(sql, &[]).await.unwrap();
        if is.as_deref() == Some(wanted) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{sql}: {is:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sql_asks_for_is_done_by_whoever_serves() {
    let bed = Bed::start(3).await;
    catalog::install(&bed.control).await.unwrap();
    let _proxy = Proxy::start(&bed.servers).await;
    let ask = async |sql: &str| bed.control.value::<i64>(sql, &[]).await.unwrap();

    // Nobody serves yet: it waits.
    let request = ask("SELECT shard_catalog.move_buckets(0, 7, 3)").await;
    let first = server(&bed);
    until(&bed, "SELECT max(state) FROM shard_catalog.requests", "done").await;
    until(&bed, "SELECT max(phase) FROM shard_catalog.moves", "ready").await;
    let answer: Value = bed
        .control
        .value("SELECT answer FROM shard_catalog.requests WHERE id = $1", &[&request])
        .await
        .unwrap();
    let id = answer["moves"][0].as_i64().unwrap();
    let said: String = bed.control.value("SELECT shard_catalog.pause($1)", &[&id]).await.unwrap();
    assert_eq!(said, format!("move {id} in phase ready: paused"));

    // Who serves dies, another goes on.
    first.abort();
    _ = first.await;
    bed.control.value::<String>("SELECT shard_catalog.cutover($1)", &[&id]).await.unwrap();
    let second = server(&bed);
    until(&bed, "SELECT max(phase) FROM shard_catalog.moves", "window").await;
    bed.control.value::<String>("SELECT shard_catalog.finish($1)", &[&id]).await.unwrap();
    until(&bed, "SELECT max(phase) FROM shard_catalog.moves", "done").await;

    ask("SELECT shard_catalog.drain(1, finish => true)").await;
    until(&bed, "SELECT state FROM shard_catalog.requests ORDER BY id DESC LIMIT 1", "done").await;
    assert!(catalog::map(&bed.control).await.unwrap().map.owners().iter().all(|owner| owner.0 != 1));
    // Several steps, one after the other, by themselves.
    let request = ask("SELECT shard_catalog.rebalance(finish => true)").await;
    until(&bed, "SELECT state FROM shard_catalog.requests ORDER BY id DESC LIMIT 1", "done").await;
    let sql = "SELECT count(*) FROM shard_catalog.move WHERE detail ->> 'request' = $1 AND phase = 'done'";
    let made: i64 = bed.control.value(sql, &[&request.to_string()]).await.unwrap();
    assert!(made >= 2, "{made} moves");
    assert!(catalog::map(&bed.control).await.unwrap().map.owners().iter().any(|owner| owner.0 == 1));
    bed.check_rows(0).await;
    bed.check_clean().await;

    // What cannot be is said, and changes nothing.
    for goal in ["move_buckets(0, 7, 9)", "drain(9)"] {
        ask(&format!("SELECT shard_catalog.{goal}")).await;
        until(&bed, "SELECT state FROM shard_catalog.requests ORDER BY id DESC LIMIT 1", "failed").await;
        let error: String = bed
            .control
            .value("SELECT answer ->> 'error' FROM shard_catalog.requests ORDER BY id DESC LIMIT 1", &[])
            .await
            .unwrap();
        assert!(error.contains("no shard 9"), "{goal}: {error}");
    }
    ask("SELECT shard_catalog.rebalance(dry_run => true)").await;
    until(&bed, "SELECT state FROM shard_catalog.requests ORDER BY id DESC LIMIT 1", "done").await;
    assert_eq!(bed.load(id).await.phase, Phase::Done);
    for (sql, text) in [
        ("SELECT shard_catalog.finish(1)", "is over"),
        ("SELECT shard_catalog.finish(99)", "no move 99"),
        ("SELECT shard_catalog.move_buckets(0, 7, 3, finish => true)", "finish needs auto"),
        ("SET ROLE app; SELECT shard_catalog.drain(2)", "permission denied"),
        ("SET ROLE app; SELECT shard_catalog.map_diff(1, 2)", "permission denied"),
        ("SET ROLE app; SELECT shard_catalog.history(1)", "permission denied"),
    ] {
        let error = bed.control.run(sql).await.unwrap_err();
        assert!(format!("{error:#}").contains(text), "{sql}: {error:#}");
    }
    second.abort();
}

/// The other verbs on one move, and a tenant: each as `shardctl` does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_and_a_way_back_are_asked_for_by_sql() {
    let bed = Bed::start(3).await;
    let _proxy = Proxy::start(&bed.servers).await;
    let one = tenant(7);
    let home = catalog::map(&bed.control).await.unwrap().owner_of_hash(hash(&one));
    let tell =
        async |sql: String| bed.control.value::<String>(&format!("SELECT shard_catalog.{sql}"), &[]).await;
    let phase = "SELECT (SELECT phase FROM shard_catalog.moves ORDER BY id DESC LIMIT 1)";
    let owner = async || catalog::map(&bed.control).await.unwrap().owner_of_hash(hash(&one));
    let serving = server(&bed);

    let sql = "SELECT shard_catalog.isolate($1, 3, auto => true)";
    bed.control.value::<i64>(sql, &[&one.to_string()]).await.unwrap();
    until(&bed, phase, "window").await;
    assert_eq!(owner().await.0, 3);
    assert_eq!(tell("roll_back(1)".into()).await.unwrap(), "move 1 in phase window: rollback was asked for");
    until(&bed, phase, "rolled_back").await;
    assert_eq!(owner().await, home);

    bed.control.value::<i64>("SELECT shard_catalog.move_buckets(0, 7, 3)", &[]).await.unwrap();
    until(&bed, phase, "ready").await;
    assert_eq!(tell("abort(2)".into()).await.unwrap(), "move 2 in phase ready: abort was asked for");
    until(&bed, phase, "aborted").await;

    bed.control.value::<i64>("SELECT shard_catalog.move_buckets(0, 7, 3)", &[]).await.unwrap();
    until(&bed, phase, "ready").await;
    serving.abort();
    _ = serving.await;
    // Its runner is still there, and looks no more.
    tell("pause(3)".into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // As it was when it was last looked at.
    let far = "UPDATE shard_catalog.move SET detail = detail || '{\"lag_bytes\": 100000000}' WHERE id = 3";
    bed.control.run(far).await.unwrap();
    for (sql, limit) in [("cutover(3)", "64 MB"), ("cutover(3, max_lag => 99999999)", "95 MB")] {
        let error = format!("{:#}", tell(sql.into()).await.unwrap_err());
        let said = format!("the target of move 3 is up to 95 MB behind, limit {limit}; nothing was changed");
        assert!(error.contains(&said) && error.contains("55000"), "{error}");
    }
    assert_eq!(bed.load(3).await.wish(), None);
    let sql = "cutover(3, max_lag => 100000000)";
    assert_eq!(
        tell(sql.into()).await.unwrap(),
        "move 3 in phase ready: cutover was asked for; the pause ends with it"
    );
    // Nobody takes up what is paused; what was asked for is not forgotten.
    assert_eq!(tell("pause(3)".into()).await.unwrap(), "move 3 in phase ready: paused");
    let serving = server(&bed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bed.load(3).await.phase, Phase::Ready);
    assert_eq!(tell("resume(3)".into()).await.unwrap(), "move 3 in phase ready: resumed");
    until(&bed, phase, "window").await;
    tell("finish(3)".into()).await.unwrap();
    until(&bed, phase, "done").await;
    for verb in ["cutover", "abort", "roll_back", "resume"] {
        let error = format!("{:#}", tell(format!("{verb}(3)")).await.unwrap_err());
        assert!(error.contains("move 3 is over: done"), "{verb}: {error}");
    }
    serving.abort();
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// It is not begun hours later, when the shard is back and nobody thinks of it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_an_unreachable_shard_fails_and_leaves_no_move() {
    let bed = Bed::start(3).await;
    let serving = server(&bed);
    bed.pg[2].crash();
    bed.control.value::<i64>("SELECT shard_catalog.move_buckets(0, 7, 3, auto => true)", &[]).await.unwrap();
    until(&bed, "SELECT max(state) FROM shard_catalog.requests", "failed").await;
    let sql = "SELECT answer ->> 'error' FROM shard_catalog.requests";
    let error: String = bed.control.value(sql, &[]).await.unwrap();
    assert!(error.contains("no primary of shard 3 can be reached") && error.contains("start it"), "{error}");
    assert_eq!(bed.control.value::<i64>("SELECT count(*) FROM shard_catalog.move", &[]).await.unwrap(), 0);
    bed.pg[2].resume();
    serving.abort();
}

/// What only looks, and the histories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_are_asked_for_by_sql() {
    let bed = Bed::start(3).await;
    let _proxy = Proxy::start(&bed.servers).await;
    let serving = server(&bed);
    let answer = async |sql: &str, state: &str| {
        let sql = format!("SELECT shard_catalog.{sql}");
        let id: i64 = bed.control.value(&sql, &[]).await.unwrap();
        until(&bed, &format!("SELECT state FROM shard_catalog.request WHERE id = {id}"), state).await;
        let answer = "SELECT answer FROM shard_catalog.requests WHERE id = $1";
        bed.control.value::<Value>(answer, &[&id]).await.unwrap()
    };
    let phase = "SELECT (SELECT phase FROM shard_catalog.moves ORDER BY id DESC LIMIT 1)";
    bed.control.value::<i64>("SELECT shard_catalog.move_buckets('0-3,8', 3)", &[]).await.unwrap();
    until(&bed, phase, "ready").await;

    let equal = answer("diff(1)", "done").await;
    assert_eq!((&equal["status"], &equal["report"]["equal"]), (&0.into(), &true.into()), "{equal}");
    let largest = answer("tenants(2)", "done").await;
    assert_eq!(largest["report"].as_array().unwrap().len(), 2, "{largest}");
    let rates = answer("tenants(1, 'rate', 1)", "done").await;
    assert!(rates["report"][0]["rows_per_second"].is_number(), "{rates}");
    for (goal, text) in [
        ("diff(9)", "there is no move 9"),
        // These proxies have nobody who may ask them.
        ("servers()", "admin = true"),
        ("reload()", "admin = true"),
        ("tenants(1, 'beauty')", "size or rate"),
        ("tenants(1, 'rate', 0)", "from 1 to 3600"),
    ] {
        let error = answer(goal, "failed").await["error"].to_string();
        assert!(error.contains(text), "{goal}: {error}");
    }

    bed.control.value::<String>("SELECT shard_catalog.cutover(1)", &[]).await.unwrap();
    until(&bed, phase, "window").await;
    let one = tenant(7);
    let home = catalog::map(&bed.control).await.unwrap().owner_of_hash(hash(&one));
    let other = if home.0 == 2 { 1 } else { 2 };
    let isolate = "SELECT shard_catalog.isolate($1, $2, auto => true)";
    let asked = bed.control.value::<i64>(isolate, &[&one.to_string(), &other]).await.unwrap();
    until(&bed, &format!("SELECT state FROM shard_catalog.request WHERE id = {asked}"), "done").await;
    let changed = async |before: i64, after: i64| -> Vec<(String, i32, i32)> {
        let sql = "SELECT what, from_shard, to_shard FROM shard_catalog.map_diff($1, $2)";
        let rows = bed.control.rows(sql, &[&before, &after]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let buckets = |from, to| vec![("buckets 0-3".to_owned(), from, to), ("buckets 8-8".to_owned(), from, to)];
    assert_eq!(changed(1, 2).await, buckets(1, 3));
    assert_eq!(changed(2, 1).await, buckets(3, 1));
    assert_eq!(changed(3, 3).await, []);
    let tenant = (format!("tenant hash {}", hash(&one).get()), i32::from(home.0), other);
    assert_eq!(changed(2, 3).await, [tenant]);
    let error = bed.control.run("SELECT * FROM shard_catalog.map_diff(1, 9)").await.unwrap_err();
    assert!(format!("{error:#}").contains("no epoch 9"), "{error:#}");
    let story: Vec<String> = bed
        .control
        .rows("SELECT phase FROM shard_catalog.history(1)", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(story.first().is_some_and(|phase| phase == "preflight"), "{story:?}");
    assert!(story.contains(&"fencing".to_owned()), "{story:?}");
    serving.abort();
}
