use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

#[test]
fn begin_waits_for_the_first_statement() {
    let cluster = cluster();
    let key = cluster.key_on(1, 20_000);
    let mut raw = Raw::login();
    assert_eq!(raw.query("BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"), ["CBEGIN", "ZT"]);
    assert_eq!(raw.query("SET LOCAL work_mem = '9MB'"), ["CSET", "ZT"]);
    assert_eq!(raw.query("SAVEPOINT a"), ["CSAVEPOINT", "ZT"]);
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    assert_eq!(raw.value("SHOW transaction_isolation"), "serializable");
    assert_eq!(raw.value("SHOW work_mem"), "9MB");
    assert_eq!(raw.query("ROLLBACK TO a"), ["CROLLBACK", "ZT"]);
    assert_eq!(raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    assert_eq!(raw.value("SHOW work_mem"), "4MB");
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    for text in ["BEGIN", "START TRANSACTION"] {
        assert_eq!(raw.query(text), [format!("C{text}"), "ZT".to_owned()]);
        assert_eq!(raw.query("ROLLBACK"), ["CROLLBACK", "ZI"]);
    }
}

#[test]
fn a_failed_transaction_refuses_until_rollback() {
    let key = cluster().key_on(0, 21_000);
    for first in
        [format!("INSERT INTO t VALUES ({key}, 1, 'x')"), "SELECT 1 FROM t ORDER BY 1 FOR UPDATE".to_owned()]
    {
        let mut raw = Raw::login();
        raw.query("BEGIN");
        raw.query("SAVEPOINT s");
        raw.query(&first);
        assert_eq!(raw.query("SELECT 1/0").last().map(String::as_str), Some("ZE"));
        assert_eq!(raw.query(&format!("SELECT v FROM t WHERE k = {key}")), ["E25P02", "ZE"]);
        assert_eq!(Batch::default().parse("", "SELECT 1").sync().run(&mut raw), ["E25P02", "ZE"]);
        assert_eq!(raw.query("ROLLBACK TO s"), ["CROLLBACK", "ZT"]);
        assert_eq!(raw.value("SELECT 1"), "1");
        raw.query("SELECT 1/0");
        assert_eq!(raw.query("COMMIT"), ["CROLLBACK", "ZI"]);
        assert_eq!(raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
    }
}

/// A refusal of ours in an open transaction aborts what a server did in it.
#[test]
fn a_refusal_fails_the_servers_transaction() {
    let key = cluster().key_on(0, 22_000);
    let mut raw = Raw::login();
    raw.query("BEGIN");
    raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')"));
    assert_eq!(raw.query("SELECT 1 FROM t ORDER BY 1 FOR UPDATE"), ["E0A000", "ZE"]);
    assert_eq!(raw.query("COMMIT"), ["CROLLBACK", "ZI"]);
    assert_eq!(cluster().on_shard(0, &format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
}

#[test]
fn h21_set_is_taken_back_by_rollback() {
    let mut raw = Raw::login();
    let key = cluster().key_on(0, 23_000);
    raw.query("SET work_mem = '5MB'");
    for held in [true, false] {
        raw.query("BEGIN");
        if !held {
            raw.query(&format!("SELECT 1 FROM t WHERE k = {key}"));
        }
        assert_eq!(raw.query("SET work_mem = '6MB'"), ["CSET", "ZT"]);
        assert_eq!(raw.value("SHOW work_mem"), "6MB");
        raw.query("SAVEPOINT a");
        raw.query("SET work_mem = '8MB'");
        raw.query("ROLLBACK TO a");
        assert_eq!(raw.value("SHOW work_mem"), "6MB", "held: {held}");
        raw.query("ROLLBACK");
        for _ in 0..3 {
            assert_eq!(raw.value("SHOW work_mem"), "5MB", "held: {held}");
        }
    }
    raw.query("BEGIN");
    raw.query("SET work_mem = '6MB'");
    raw.query(&format!("SELECT 1 FROM t WHERE k = {key}"));
    raw.query("COMMIT");
    assert_eq!(raw.value("SHOW work_mem"), "6MB");
}

#[test]
fn transactions_by_the_extended_protocol() {
    let key = cluster().key_on(1, 24_000).to_string();
    let mut raw = Raw::login();
    // As pgjdbc: BEGIN in the same packet as the first statement.
    let answers = Batch::default()
        .parse("", "BEGIN")
        .bind("", &[])
        .execute()
        .parse("", "INSERT INTO t VALUES ($1, 1, 'x')")
        .bind("", &[&key])
        .describe(b'P', "")
        .execute()
        .sync()
        .run(&mut raw);
    assert_eq!(answers, ["1", "2", "CBEGIN", "1", "2", "n", "CINSERT 0 1", "ZT"]);
    let commit = |raw: &mut Raw| Batch::default().parse("", "COMMIT").bind("", &[]).execute().sync().run(raw);
    assert_eq!(commit(&mut raw), ["1", "2", "CCOMMIT", "ZI"]);
    assert_eq!(commit(&mut raw), ["1", "2", "CCOMMIT", "ZI"], "a warning and no error");
    assert_eq!(raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")), "1");
    let answers = Batch::default()
        .parse("", "BEGIN")
        .bind("", &[])
        .execute()
        .parse("", "SAVEPOINT s")
        .bind("", &[])
        .execute()
        .parse("", "SELECT 1/0")
        .bind("", &[])
        .execute()
        .sync()
        .run(&mut raw);
    assert_eq!(answers, ["1", "2", "CBEGIN", "1", "2", "CSAVEPOINT", "1", "E22012", "ZE"]);
    let back = Batch::default().parse("", "ROLLBACK TO s").bind("", &[]).execute().sync().run(&mut raw);
    assert_eq!(back, ["1", "2", "CROLLBACK", "ZT"]);
    assert_eq!(commit(&mut raw), ["1", "2", "CCOMMIT", "ZI"]);
}

#[test]
fn two_shards_in_one_transaction_commit_together_or_not_at_all() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 25_000), cluster.key_on(1, 25_000));
    let mut raw = Raw::login();
    raw.query("BEGIN");
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({a}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    let second = raw.query(&format!("INSERT INTO t VALUES ({b}, 1, 'y')"));
    let end = raw.query("COMMIT");
    let count = |shard, key| cluster.on_shard(shard, &format!("SELECT count(*) FROM t WHERE k = {key}"));
    if second[0].starts_with('E') {
        assert_eq!((end[0].as_str(), second[0].as_str()), ("CROLLBACK", "E0A000"));
        assert_eq!((count(0, a), count(1, b)), ("0".into(), "0".into()));
    } else {
        assert_eq!(end, ["CCOMMIT", "ZI"]);
        assert_eq!((count(0, a), count(1, b)), ("1".into(), "1".into()));
    }
    assert_eq!(raw.value("SELECT 1"), "1");
}

#[test]
fn a_client_that_leaves_in_a_transaction_leaves_nothing() {
    let cluster = cluster();
    let key = cluster.key_on(0, 26_000);
    for _ in 0..6 {
        let mut raw = Raw::login();
        raw.query("BEGIN");
        assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    }
    assert_eq!(Raw::login().value(&format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
}
