//! What is planned, by what, how much of it at the same time, and whether the proxies know the servers for it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shard_config::ShardId;
use shardctl::exit;
use shardctl::mover::catalog;
use shardctl::serve::serve;
use uuid::Uuid;

use crate::bed::{BUCKETS, Bed, bucket, tenant};
use crate::commands::{Tool, ended};

async fn until(bed: &Bed, sql: &str) {
    let begun = Instant::now();
    while !bed.control.holds(sql, &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Moves in this phase.
fn count(phase: &str, n: usize) -> String {
    format!("SELECT count(*) = {n} FROM shard_catalog.move WHERE phase = '{phase}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_set_of_buckets_moves_several_steps_at_a_time_within_the_limit_of_all() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("set.json");
    let said = tool.run(&format!("plan move --buckets 9,40-43,0-3 --to 3 --save {plan}"));
    said.check(0, "buckets 0-3, bucket 9");
    said.check(0, "buckets 40-43");

    // Both have a part in shard 3, which may have one.
    bed.control.run("SELECT shard_catalog.moves_at_once(1)").await.unwrap();
    let child = tool.start(&format!("apply {plan} --auto --finish --concurrent 2 --bytes-per-second 10"));
    until(&bed, &count("copying", 1)).await;
    let waits = "SELECT count(*) = 1 FROM shard_catalog.moves \
                 WHERE phase = 'announcing' AND waits_for LIKE '1 other moves from or to shard 3 copy%'";
    until(&bed, waits).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(bed.control.holds(&count("copying", 1), &[]).await.unwrap(), "two at once");
    let motions = "SELECT count(*) = 1 FROM shard_catalog.motion";
    assert!(bed.control.holds(motions, &[]).await.unwrap(), "who waits has changed nothing");

    bed.control.run("SELECT shard_catalog.moves_at_once(2)").await.unwrap();
    until(&bed, &count("copying", 2)).await;
    until(&bed, "SELECT bool_and(detail ->> 'waits_for' IS NULL) FROM shard_catalog.move").await;
    bed.control.run("SELECT shard_catalog.unthrottle(id) FROM shard_catalog.move").await.unwrap();
    ended(child).check(0, "2 moves are made: [1, 2]");
    let map = catalog::map(&bed.control).await.unwrap();
    let of_three = (0..BUCKETS).filter(|n| map.map.owners()[usize::from(*n)] == ShardId(3));
    assert_eq!(of_three.collect::<Vec<_>>(), [0, 1, 2, 3, 9, 40, 41, 42, 43]);
    bed.check_rows(0).await;
    bed.check_clean().await;

    // Of more open moves than a proxy can follow none is begun.
    let sql = "INSERT INTO shard_catalog.motion (move_id, scope, source, target, stage) \
               SELECT n, jsonb_build_object('hashes', jsonb_build_array(n * 64 + 63)), 2, 3, 'flipped' FROM generate_series(1001, 1064) n";
    bed.control.run(sql).await.unwrap();
    tool.run(&format!("plan move --buckets 20 --to 3 --save {plan}")).check(0, "bucket 20");
    tool.run(&format!("apply {plan}")).check(exit::FAILED, "64 moves are open, and no more may be");
    bed.control.run("DELETE FROM shard_catalog.motion").await.unwrap();
    bed.check_clean().await;
    let wrong = bed.control.run("SELECT shard_catalog.moves_at_once(0)").await.unwrap_err();
    assert!(format!("{wrong:#}").contains("check constraint"), "{wrong:#}");
}

/// Entries of these tenants, one each every few milliseconds, until it is dropped.
struct Writer(Arc<AtomicBool>);

impl Writer {
    async fn start(bed: &Bed, shard: u16, tenants: Vec<Uuid>) -> Self {
        let client = bed.direct(shard).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                for tenant in &tenants {
                    let sql = "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, gen_random_uuid(), 1, 0)";
                    client.execute(sql, &[tenant]).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self(stop)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_is_what_is_written_now() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    tool.run("plan rebalance --by load --seconds 1").check(exit::REFUSED, "no row was written within 1 s");
    let said = tool.run("plan rebalance --weight 2=3");
    said.check(0, "These weights hold for this plan only");
    said.check(0, "shard 2 has 3 instead of 1");
    assert!(!tool.run("plan rebalance").text.contains("These weights"), "those of the file");

    // Two busy tenants in two buckets of shard 1.
    let first = tenant(0);
    let all: Vec<Uuid> = (0..200).map(tenant).filter(|tenant| bucket(tenant) < 32).collect();
    let first = if bucket(&first) < 32 { first } else { all[0] };
    let second = *all.iter().find(|other| bucket(other) != bucket(&first)).unwrap();
    let writer = Writer::start(&bed, 1, vec![first, second]).await;
    let said = tool.run("--json plan rebalance --by load --seconds 2");
    assert_eq!(said.status, 0, "{}", said.text);
    let plan: Value = serde_json::from_str(&said.text).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{plan}");
    assert_eq!((&steps[0]["source"], &steps[0]["target"]), (&json!(1), &json!(2)), "{plan}");
    let ranges = steps[0]["scope"]["ranges"].as_array().unwrap();
    let busy = [bucket(&first), bucket(&second)].map(|n| json!([n, n]));
    let moved: Vec<_> = ranges.iter().filter(|range| busy.contains(range)).collect();
    assert_eq!(moved.len(), 1, "one of two busy buckets: {plan}");
    let note = plan["notes"][0].as_str().unwrap();
    assert!(note.starts_with("rows written a second, counted for 2 s: shard 1 "), "{note}");

    let said = tool.run("--json tenants --by rate --seconds 2 --top 2");
    let list: Value = serde_json::from_str(&said.text).unwrap();
    for one in list.as_array().unwrap() {
        let rate = one["rows_per_second"].as_f64().unwrap();
        assert!(rate > 5.0 && rate < 200.0, "{list}");
        assert!([first, second].map(|tenant| json!(tenant.to_string())).contains(&one["tenant"]), "{list}");
    }
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    drop(writer);
    let said = tool.run("tenants --seconds 1 --top 200");
    said.check(0, "rows/s");
    assert_eq!(said.text.lines().count(), 201, "those that write nothing, too: {}", said.text);
    assert!(!tool.run("tenants --top 3").text.contains("rows/s"), "it was not counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_names_any_set_of_buckets() {
    let bed = Bed::start(3).await;
    let servers = bed.servers.clone();
    let served = tokio::spawn(async move {
        serve(|| Ok(servers.clone()), |line| println!("serve: {line}")).await.unwrap();
    });
    let answer = async |goal: &str, state: &str| {
        let id: i64 = bed.control.value(&format!("SELECT shard_catalog.{goal}"), &[]).await.unwrap();
        until(&bed, &format!("SELECT state = '{state}' FROM shard_catalog.requests WHERE id = {id}")).await;
        let sql = "SELECT answer FROM shard_catalog.requests WHERE id = $1";
        bed.control.value::<Value>(sql, &[&id]).await.unwrap()
    };
    let plan = answer("move_buckets('0-3,9', 3, dry_run => true)", "done").await;
    assert_eq!(plan["steps"][0]["scope"], json!({ "ranges": [[0, 3], [9, 9]] }), "{plan}");
    let wrong = answer("move_buckets('0-3,x', 3)", "failed").await;
    assert!(wrong["error"].as_str().unwrap().contains("write FROM-TO"), "{wrong}");
    let wrong = answer("rebalance('load')", "failed").await;
    assert!(wrong["error"].as_str().unwrap().contains("dry_run => true"), "{wrong}");
    served.abort();
}

/// The proxy itself, built beside this program.
pub struct Running(Child);

impl Running {
    pub fn start(file: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_shardctl")).with_file_name("shard-proxy");
        assert!(program.exists(), "{} is missing: cargo build --workspace", program.display());
        let log = std::fs::File::create(file.with_extension("log")).unwrap();
        let child = Command::new(program).arg("--config").arg(file).stdin(Stdio::null()).stderr(log).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What only the last of two proxies knows of keeps shard 3 in the first, too. Returns the other proxy, which has a file without
/// it, and now nothing that keeps it.
async fn taken_out_by_all_or_none(bed: &Bed, tool: &Tool, with: &impl Fn(&[u16]) -> String) -> Running {
    let (listen, own) = (free_port(), tool.directory.join("own2.toml"));
    let with = |shards: &[u16]| {
        let text = with(shards);
        let (head, rest) = text.split_once("[key]").unwrap();
        let database = head.split_once("database").unwrap().1.replace("/state\"", "/state2\"");
        format!(
            "[proxy]\nname = \"p2\"\nlisten = \"127.0.0.1:{listen}\"\nhttp = \"127.0.0.1:{}\"\ndatabase{database}[key]{rest}",
            free_port()
        )
    };
    std::fs::create_dir_all(tool.directory.join("state2")).unwrap();
    let three = with(&[1, 2, 3]);
    std::fs::write(&own, &three).unwrap();
    let proxy = Running::start(&own);
    let all = "SELECT count(*) = 2 AND bool_and(shards = '{1,2,3}' AND version > 0) FROM shard_catalog.proxy";
    until(bed, all).await;
    let (head, shards) = three.split_once("[[shard]]\nid = 3").unwrap();
    assert!(!shards.contains("[["), "the last one");
    std::fs::write(&own, head).unwrap();

    let url = format!("postgresql://app:x@127.0.0.1:{listen}/postgres");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    for sql in ["SET shard.target = '3'", "CREATE TEMP TABLE own (v int)"] {
        client.batch_execute(sql).await.unwrap();
    }
    for command in ["reload --dry-run", "reload"] {
        let said = tool.run(command);
        said.check(exit::REFUSED, "of p2 (user app) is pinned to a server of it");
        said.check(exit::REFUSED, "nothing was reloaded");
    }
    drop(client);
    connection.await.unwrap().unwrap();

    let direct = bed.direct(3).await;
    let gid = "shardproxy:postgres:lost:00000000000000aa:77:900";
    direct
        .batch_execute(&format!("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'"))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(3200)).await;
    tool.run("reload")
        .check(exit::REFUSED, "1 transactions over several shards are prepared there and not finished");
    direct.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
    assert!(bed.control.holds(all, &[]).await.unwrap(), "nobody was told");

    // What can be seen at the one that refuses only: the others are named, and what is not to be done meanwhile.
    std::fs::write(&own, head.to_owned() + "[key]\n").unwrap();
    let said = tool.run("reload");
    said.check(exit::FAILED, "p2: the configuration was not changed");
    said.check(exit::FAILED, "p1 did read the file before: until all have, write to no reference table");
    std::fs::write(&own, head).unwrap();
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_are_compared_with_the_file_and_reloaded() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let directory = &tool.directory;
    let own = directory.join("own.toml");
    let state = directory.join("state");
    let (listen, http) = (free_port(), free_port());
    let head = format!(
        "[proxy]\nname = \"p1\"\nlisten = \"127.0.0.1:{listen}\"\nhttp = \"127.0.0.1:{http}\"\ndatabase = \"postgres\"\nstate_dir = \"{}\"\n\
         [key]\nbuckets = {BUCKETS}\n[pool]\nprimary_min = 0\nreplica_min = 0\n[control]\nuser = \"postgres\"\npassword = \"x\"\n\
         [[user]]\nname = \"app\"\npassword = \"x\"\nadmin = true\n",
        state.display()
    );
    let with = |shards: &[u16]| {
        let block = |n: &u16| {
            let port = bed.pg[usize::from(*n) - 1].port();
            format!("[[shard]]\nid = {n}\nprimary = \"127.0.0.1:{port}\"\n")
        };
        head.clone() + &shards.iter().map(block).collect::<String>()
    };
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(&own, with(&[1, 2])).unwrap();
    let file = |shards: &[u16]| std::fs::write(directory.join("proxy.toml"), with(shards)).unwrap();

    tool.run("servers").check(exit::USAGE, "[[user]] with admin = true");
    file(&[1, 2]);
    tool.run("servers").check(0, "no proxy has a lease");
    tool.run("reload").check(exit::REFUSED, "nobody to reload");
    let _proxy = Running::start(&own);
    until(&bed, "SELECT count(*) = 1 FROM shard_catalog.proxy WHERE version > 0 AND shards = '{1,2}'").await;
    tool.run("servers").check(0, "every proxy serves what the file says");

    file(&[1, 2, 3]);
    let said = tool.run("servers");
    said.check(0, "p1: reload: shard 3 is added");
    said.check(0, "Next: shardctl reload");
    // It reads its own file, which does not say so yet.
    tool.run("reload").check(exit::FAILED, "p1 has read its file and serves other servers");
    std::fs::write(&own, with(&[1, 2, 3]) + "[key]\n").unwrap();
    tool.run("reload").check(exit::FAILED, "p1: the configuration was not changed");
    std::fs::write(&own, with(&[1, 2, 3])).unwrap();
    tool.run("reload --dry-run").check(0, "to read its file again: p1; nothing was reloaded");
    tokio::time::sleep(Duration::from_millis(500)).await;
    until(&bed, "SELECT bool_and(shards = '{1,2}') FROM shard_catalog.proxy").await;
    tool.run("reload").check(0, "every proxy has read its file again and serves what it says");
    until(&bed, "SELECT bool_and(shards = '{1,2,3}') FROM shard_catalog.proxy").await;

    // A shard goes when it owns nothing.
    file(&[1, 3]);
    tool.run("servers").check(exit::FAILED, "p1: PROBLEM: shard 2 is not in the file and owns 32 buckets");
    let said = tool.run("reload");
    said.check(exit::REFUSED, "plan drain 2");
    said.check(exit::REFUSED, "nothing was reloaded");
    file(&[1, 2]);
    tool.run("servers").check(0, "p1: reload: shard 3 owns nothing and is taken out");
    tool.run("reload").check(exit::FAILED, "p1 has read its file and serves other servers");
    std::fs::write(&own, with(&[1, 2])).unwrap();
    let second = taken_out_by_all_or_none(&bed, &tool, &with).await;
    tool.run("reload").check(0, "every proxy has read its file again and serves what it says");
    until(&bed, "SELECT bool_and(shards = '{1,2}') FROM shard_catalog.proxy").await;
    tool.run("servers").check(0, "every proxy serves what the file says");
    drop(second);
    until(&bed, "SELECT count(*) = 1 FROM shard_catalog.proxy WHERE lease_until > clock_timestamp()").await;
    // Back in the file of --config, it is news to the proxy, and nothing may be moved to it.
    file(&[1, 2, 3]);
    tool.run("servers").check(0, "p1: reload: shard 3 is added");
    let plan = tool.file("back.json");
    tool.run(&format!("plan move --buckets 0-3 --to 3 --save {plan}")).check(0, "Next");
    tool.run(&format!("apply {plan} --dry-run")).check(exit::REFUSED, "does not know shard 3");
}
