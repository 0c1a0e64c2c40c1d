//! `doctor` itself, through a proxy: how each shard stands for moves, whatever is to be moved.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{BUCKETS, Bed};
use crate::commands::{Said, Tool, ended};
use crate::planning::{Running, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_what_each_shard_has_for_moves_and_names_what_it_lacks() {
    let bed = Bed::start(2).await;
    let tool = Tool::new(&bed);
    let (listen, http) = (free_port(), free_port());
    let mut text = format!(
        "[proxy]\nname = \"p1\"\nlisten = \"127.0.0.1:{listen}\"\nhttp = \"127.0.0.1:{http}\"\ndatabase = \"postgres\"\nstate_dir = \"{}\"\n\
         [key]\nbuckets = {BUCKETS}\n[pool]\nprimary_min = 0\nreplica_min = 0\n[control]\nuser = \"postgres\"\npassword = \"x\"\n\
         [[user]]\nname = \"app\"\npassword = \"x\"\n",
        tool.file("state")
    );
    for (n, one) in bed.pg.iter().enumerate() {
        text += &format!("[[shard]]\nid = {}\nprimary = \"127.0.0.1:{}\"\n", n + 1, one.port());
    }
    std::fs::create_dir_all(tool.file("state")).unwrap();
    std::fs::write(tool.file("proxy.toml"), text).unwrap();
    let _proxy = Running::start(&tool.directory.join("proxy.toml"));
    let begun = Instant::now();
    let serves = "SELECT count(*) = 1 FROM shard_catalog.proxy WHERE version > 0 AND shards = '{1,2}'";
    while !bed.control.holds(serves, &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the proxy does not begin");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let doctor = |more: &str| -> Said {
        let words = format!("--url postgresql://app:x@127.0.0.1:{listen}/postgres doctor{more}");
        // A figure of a disk that no test can fill.
        let mut command = tool.command(&words);
        command.env("SHARDCTL_FAULT_DIR", &tool.directory).stdin(Stdio::null());
        ended(command.spawn().unwrap())
    };
    let has =
        |said: &Said, line: &str| assert!(said.text.contains(line), "not \"{line}\" but: {}", said.text);

    let said = doctor("");
    for shard in [1, 2] {
        has(
            &said,
            &format!("ok       shard {shard}: moving buckets: settings, rights and tables allow it\n"),
        );
        has(
            &said,
            &format!(
                "ok       shard {shard}: free for moves: 10 of 10 replication slots, 10 of 10 WAL senders, 10 of 10 workers of \
                 subscriptions; "
            ),
        );
    }
    has(&said, " where its data is, of which ");
    assert!(!said.text.contains("note "), "{}", said.text);

    let (one, two) = (bed.shard(1).await, bed.shard(2).await);
    for db in [&one, &two] {
        db.run(
            "CREATE DOMAIN public.lo AS oid; CREATE TABLE public.docs (tenant_id uuid PRIMARY KEY, body public.lo); \
             CREATE TABLE public.bills (tenant_id uuid, id bigserial, PRIMARY KEY (tenant_id, id))",
        )
        .await
        .unwrap();
    }
    two.run("SELECT nextval('public.bills_id_seq')").await.unwrap();
    let slots = "SELECT pg_create_physical_replication_slot('other_' || n) FROM generate_series(1, 9) n";
    two.rows(slots, &[]).await.unwrap();
    for statement in [
        "CREATE SUBSCRIPTION legacy CONNECTION 'host=127.0.0.1 port=1' PUBLICATION legacy WITH (connect = false)",
        "ALTER SUBSCRIPTION legacy ENABLE",
    ] {
        two.run(statement).await.unwrap();
    }
    std::fs::write(tool.file("free-2"), "1000").unwrap();
    let said = doctor("");
    for line in [
        "shard 2: free for moves: 1 of 10 replication slots",
        "PROBLEM  shard 2: moving buckets: 1 free of max_replication_slots, 2 are needed: raise max_replication_slots",
        "PROBLEM  shard 2: moving buckets: shard 2 receives rows by subscription legacy",
        "PROBLEM  shard 2: moving buckets: 1000 B are free where its data is, and ",
        "PROBLEM  shards 1, 2: moving buckets: column body of public.docs is of type public.lo: the large objects",
        "note     shard 2: moving buckets: sequence public.bills_id_seq (column id of public.bills) stands at 1 on shard 2",
    ] {
        has(&said, line);
    }
    let json: Value = serde_json::from_str(&doctor(" --json").text).unwrap();
    assert_eq!(json["notes"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["ok"], false);
}
