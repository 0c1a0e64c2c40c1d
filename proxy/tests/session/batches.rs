//! Where a transaction ends within an extended batch, and which server a portal is on.

use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

/// A statement without parameters: Parse, Bind, Execute.
fn run(batch: Batch, sql: &str) -> Batch {
    batch.parse("", sql).bind("", &[]).execute()
}

/// H20: what follows COMMIT before Sync is a transaction of its own, on whichever shard, and is committed by Sync.
#[test]
fn h20_a_write_behind_commit_in_one_batch_is_kept() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 80_000), cluster.key_on(1, 80_000));
    let insert = |key: i64, id: i32| format!("INSERT INTO t VALUES ({key}, {id}, 'x')");
    let count =
        |shard: usize, key: i64| cluster.on_shard(shard, &format!("SELECT count(*) FROM t WHERE k = {key}"));
    for (id, end) in [(1, "COMMIT"), (2, "ROLLBACK")] {
        let mut raw = Raw::login();
        let mut batch = Batch::default();
        for sql in ["BEGIN", &insert(a, id), end, &insert(b, id)] {
            batch = run(batch, sql);
        }
        let answers = batch.sync().run(&mut raw);
        assert_eq!(answers.iter().filter(|a| *a == "CINSERT 0 1").count(), 2, "{answers:?}");
        assert_eq!(answers.last().map(String::as_str), Some("ZI"), "{answers:?}");
        drop(raw);
        assert_eq!([count(0, a), count(1, b)], ["1".to_owned(), id.to_string()], "{end}");
    }
    // The same with another block behind it, and with an error, which takes back nothing but its own transaction.
    let mut raw = Raw::login();
    let mut batch = Batch::default();
    for sql in
        ["BEGIN", &insert(a, 3), "COMMIT", "BEGIN", &insert(b, 3), "COMMIT", &insert(b, 4), "SELECT 1/0"]
    {
        batch = run(batch, sql);
    }
    let answers = batch.sync().run(&mut raw);
    assert_eq!(answers[answers.len() - 2..], ["E22012", "ZI"]);
    assert_eq!([count(0, a), count(1, b)], ["2", "3"]);
    assert_eq!(raw.value("SELECT 5"), "5");
}

/// In a block that may write, nothing is read on a replica, where the write that follows would look for its portal.
#[test]
fn a_block_that_may_write_stays_on_the_primary() {
    let key = cluster().key_on(0, 81_000);
    let text = key.to_string();
    let mut raw = Raw::login();
    raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'old')"));
    // The replica has it, too.
    let fresh = format!("SELECT count(*) FROM t WHERE k = {key}");
    raw.query("SET shard.read = 'replica'");
    while raw.value(&fresh) == "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(raw.query("BEGIN"), ["CBEGIN", "ZT"]);
    let read = Batch::default()
        .parse("", "SELECT v FROM t WHERE k = $1")
        .bind("", &[&text])
        .execute()
        .sync()
        .run(&mut raw);
    assert_eq!(read, ["1", "2", "Dold", "CSELECT 1", "ZT"]);
    let update = "UPDATE t SET v = 'new' WHERE k = $1";
    let written = Batch::default().parse("", update).bind("", &[&text]).execute().sync().run(&mut raw);
    assert_eq!(written, ["1", "2", "CUPDATE 1", "ZT"]);
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    assert_eq!(cluster().on_shard(0, &format!("SELECT v FROM t WHERE k = {key}")), "new");
}

/// A session keeps one server: what another one would have to keep is refused before it is sent.
#[test]
fn h38_a_second_server_is_not_pinned() {
    let mut raw = Raw::login();
    assert_eq!(raw.query("SET shard.target = '2'"), ["CSET", "ZI"]);
    assert_eq!(raw.query("CREATE TEMP TABLE mine (a int)"), ["CCREATE TABLE", "ZI"]);
    assert_eq!(raw.query("SET shard.target = ''"), ["CSET", "ZI"]);
    // These live on the default shard, the first.
    for sql in ["SELECT pg_advisory_lock(8101)", "LISTEN pinned_twice"] {
        assert_eq!(raw.query(sql), ["E0A000", "ZI"], "{sql}");
        let answers = run(Batch::default(), sql).sync().run(&mut raw);
        assert!(answers.ends_with(&["E0A000".to_owned(), "ZI".to_owned()]), "{answers:?}");
        assert_eq!(raw.query(&format!("SELECT 1; {sql}")).last().map(String::as_str), Some("ZI"));
    }
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 8101";
    assert_eq!(cluster().on_shard(0, held), "0");
    // What the pinned server itself can keep is fine, also within a transaction that began on another shard.
    let key = cluster().key_on(0, 82_000);
    raw.query("BEGIN");
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    assert_eq!(raw.query("CREATE TEMP TABLE more (a int)"), ["CCREATE TABLE", "ZT"]);
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    assert_eq!(raw.value("SELECT count(*) FROM more"), "0");
}
