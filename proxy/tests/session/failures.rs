use std::time::{Duration, Instant};

use crate::cluster::{cluster, http};
use crate::raw::{Batch, Raw, field};
use shard_proxy::wire::build;

fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    build::query(&mut out, sql.as_bytes());
    out
}

#[test]
fn h38_cancel_reaches_only_its_own_statement() {
    let cluster = cluster();
    let mut raw = Raw::login();
    raw.query("SET shard.target = 1");
    raw.send(&query("SELECT pg_sleep(10)"));
    std::thread::sleep(Duration::from_millis(200));
    let mut wrong = raw.secret.clone();
    wrong[0] ^= 1;
    Raw::cancel(raw.id, &wrong);
    let started = Instant::now();
    Raw::cancel(raw.id, &raw.secret);
    assert_eq!(raw.answers(1).iter().find(|a| a.starts_with('E')).map(String::as_str), Some("E57014"));
    assert!(started.elapsed() < Duration::from_secs(5));
    // Late: the client is idle and others use the servers.
    let (id, secret) = (raw.id, raw.secret.clone());
    let others: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(|| {
                let mut other = Raw::login();
                other.query("SET shard.target = 1");
                for _ in 0..30 {
                    assert_eq!(other.query("SELECT pg_sleep(0.01)").last().map(String::as_str), Some("ZI"));
                    assert_eq!(other.value("SELECT 6"), "6");
                }
            })
        })
        .collect();
    for _ in 0..100 {
        // Between short statements of its own, so that cancels also race with the server's way back to the pool.
        raw.send(&query("SELECT 1"));
        Raw::cancel(id, &secret);
        let answers = raw.answers(1);
        assert!(
            answers == ["T", "D1", "CSELECT 1", "ZI"] || answers.iter().any(|a| a == "E57014"),
            "{answers:?}"
        );
    }
    for other in others {
        other.join().expect("nobody else's statement was cancelled");
    }
    assert!(cluster.counter("cancels") > 0);
}

/// H38: a half-read result or an unfinished COPY never reaches the pool.
#[test]
fn h38_a_vanished_client_leaves_no_half_read_server() {
    for n in 0..6 {
        let mut raw = Raw::login();
        raw.query("SET shard.target = 2");
        match n % 3 {
            0 => raw.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")),
            1 => raw.send(&query("COPY plain FROM STDIN")),
            _ => raw.send(
                &Batch::default()
                    .parse("", "SELECT generate_series(1, 100000)")
                    .bind("", &[])
                    .execute()
                    .flush()
                    .0,
            ),
        }
        assert!(raw.message().is_some());
    }
    for _ in 0..20 {
        let mut raw = Raw::login();
        raw.query("SET shard.target = 2");
        assert_eq!(raw.query("SELECT 11"), ["T", "D11", "CSELECT 1", "ZI"]);
    }
}

#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let mut raw = Raw::login();
    raw.query("SET shard.target = 2");
    let before = cluster().proxy_rss_kib();
    raw.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 300000)"));
    std::thread::sleep(Duration::from_millis(1500));
    let grown = cluster().proxy_rss_kib().saturating_sub(before);
    assert!(grown < 20 << 10, "{grown} KiB for 300 MB that nobody reads");
    let rows = raw.answers(1).iter().filter(|a| a.starts_with('D')).count();
    assert_eq!(rows, 300_000, "and nothing is lost");
}

#[test]
fn a_lost_server_is_told_with_what_it_means() {
    let cluster = cluster();
    let key = cluster.key_on(1, 30_000);
    let kill = |pid: &str| cluster.on_shard(1, &format!("SELECT pg_terminate_backend({pid}, 5000)"));
    // In a transaction: outcome unknown, and only ROLLBACK helps.
    let mut raw = Raw::login();
    raw.query("BEGIN");
    let pid = raw.value(&format!("SELECT pg_backend_pid(), count(*) FROM t WHERE k = {key}"));
    raw.send(&query(&format!("SELECT pg_sleep(10), count(*) FROM t WHERE k = {key}")));
    std::thread::sleep(Duration::from_millis(200));
    kill(&pid);
    let answers = raw.answers(1);
    assert!(answers.contains(&"E08007".to_owned()), "{answers:?}");
    assert_eq!(answers.last().map(String::as_str), Some("ZE"));
    assert_eq!(raw.query(&format!("SELECT v FROM t WHERE k = {key}")), ["E25P02", "ZE"]);
    assert_eq!(raw.query("ROLLBACK"), ["CROLLBACK", "ZI"]);
    assert_eq!(raw.value("SELECT 1"), "1");
    // Idle in a transaction: the next statement is told, as one that may be tried again with all of its transaction.
    for batch in [false, true] {
        let select = format!("SELECT v FROM t WHERE k = {key}");
        raw.query("BEGIN");
        let pid = raw.value(&format!("SELECT pg_backend_pid(), count(*) FROM t WHERE k = {key}"));
        kill(&pid);
        std::thread::sleep(Duration::from_millis(200));
        let told = match batch {
            true => Batch::default().parse("", &select).bind("", &[]).execute().sync().run(&mut raw),
            false => raw.query(&select),
        };
        assert_eq!(told, ["E08006", "ZE"]);
        assert_eq!(raw.query(&select), ["E25P02", "ZE"]);
        assert_eq!(raw.query("COMMIT"), ["CROLLBACK", "ZI"]);
    }
    // An idle connection of the pool that died is noticed before it is used.
    cluster.on_shard(1, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle'");
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..4 {
        assert_eq!(raw.query(&format!("SELECT count(*) FROM t WHERE k = {key}"))[1], "D0");
    }
}

#[test]
fn a_full_pool_answers_in_time() {
    let busy = || Raw::login_with(0x0003_0000, &[("user", "busy")]).expect("logged in");
    let mut holders: Vec<Raw> = (0..4).map(|_| busy()).collect();
    for raw in &mut holders {
        raw.query("SET shard.target = 2");
        raw.query("BEGIN");
        assert_eq!(raw.value("SELECT 1"), "1");
    }
    let mut late = busy();
    late.query("SET shard.target = 2");
    let started = Instant::now();
    late.send(&query("SELECT 1"));
    let (tag, body) = late.message().expect("an answer");
    assert_eq!(
        (tag, field(&body, b'C').as_str(), field(&body, b'R').as_str()),
        (b'E', "53300", "shard_proxy")
    );
    assert!(started.elapsed() < Duration::from_secs(3) && started.elapsed() > Duration::from_millis(900));
    assert_eq!(late.answers(1), ["ZI"]);
    // The extended protocol is told, too, and the other shard is not concerned.
    assert_eq!(
        Batch::default()
            .parse("", "SELECT 2")
            .bind("", &[])
            .execute()
            .sync()
            .run(&mut late)
            .last()
            .map(String::as_str),
        Some("ZI")
    );
    late.query("SET shard.target = 1");
    assert_eq!(late.value("SELECT 1"), "1");
    // First come, first served once one is free.
    late.query("SET shard.target = 2");
    late.send(&query("SELECT 5"));
    std::thread::sleep(Duration::from_millis(200));
    holders[0].query("ROLLBACK");
    assert_eq!(late.answers(1), ["T", "D5", "CSELECT 1", "ZI"]);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(cluster().counter("leaks") >= 3, "clients idle in a transaction were noticed");
}

#[test]
fn reads_go_to_a_replica_and_see_their_own_writes() {
    let cluster = cluster();
    let key = cluster.key_on(0, 31_000);
    let mut raw = Raw::login();
    for n in 0..30 {
        raw.query(&format!("INSERT INTO t VALUES ({key}, {n}, 'x')"));
        assert_eq!(raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")), (n + 1).to_string());
    }
    let served_by_replica = |raw: &mut Raw| {
        let before = cluster.counter("replica_reads");
        raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}"));
        cluster.counter("replica_reads") > before
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !served_by_replica(&mut raw) {
        assert!(Instant::now() < deadline, "the replica is never used");
        std::thread::sleep(Duration::from_millis(20));
    }
    raw.query("SET shard.read = 'replica'");
    assert!(served_by_replica(&mut raw));
}

/// A function that was declared IMMUTABLE and writes: the replica says 25006 and the primary runs it.
#[test]
fn a_replicas_read_only_error_is_retried_on_the_primary() {
    let cluster = cluster();
    let key = cluster.key_on(0, 32_000);
    let mut raw = Raw::login();
    raw.query("SET shard.read = 'replica'");
    let before = cluster.counter("replica_retries");
    assert_eq!(raw.query(&format!("SELECT sly({key})")), ["T", "D1", "CSELECT 1", "ZI"]);
    let keyed = cluster.key_on(0, key + 1).to_string();
    for _ in 0..2 {
        // The first time the primary has to check the statement anyway.
        let answers =
            Batch::default().parse("", "SELECT sly($1)").bind("", &[&keyed]).execute().sync().run(&mut raw);
        assert_eq!(answers, ["1", "2", "D1", "CSELECT 1", "ZI"]);
    }
    assert!(cluster.counter("replica_retries") >= before + 2);
}

#[test]
fn metrics_are_served() {
    let page = http(cluster().http_port, "/metrics").expect("the page");
    assert!(page.contains("shardproxy_"), "{page}");
}
