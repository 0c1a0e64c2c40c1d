//! What a transaction block keeps: changed definitions, cursors, portals, settings held for a server.

use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

fn run(batch: Batch, sql: &str) -> Batch {
    batch.parse("", sql).bind("", &[]).execute()
}

/// H39: the catalog shows the table as it was before; the key would be looked for in the wrong column.
#[test]
fn h39_a_table_changed_in_the_open_transaction_is_not_routed_by_its_old_definition() {
    let cluster = cluster();
    let (key, other) = (cluster.key_on(1, 86_000), cluster.key_on(0, 86_500));
    let mut raw = Raw::login();
    assert_eq!(raw.query("CREATE TABLE turned (k bigint PRIMARY KEY, n bigint)"), ["CCREATE TABLE", "ZI"]);
    let changes = ["DROP TABLE turned", "CREATE TABLE turned (n bigint, k bigint PRIMARY KEY)"];
    let insert = format!("INSERT INTO turned VALUES ({other}, {key})");
    let count = |shard: usize| cluster.on_shard(shard, "SELECT count(*) FROM turned");
    raw.query("BEGIN");
    for sql in changes {
        assert_eq!(raw.query(sql).last().map(String::as_str), Some("ZT"), "{sql}");
    }
    let answers = run(Batch::default(), &insert).sync().run(&mut raw);
    assert_eq!(answers[answers.len() - 2..], ["E0A000", "ZE"]);
    assert_eq!(raw.query("ROLLBACK"), ["CROLLBACK", "ZI"]);
    let whole = raw.query(&format!("{}; {}; {insert}", changes[0], changes[1]));
    assert_eq!(whole[whole.len() - 2..], ["E0A000", "ZI"]);
    // What the definitions have nothing to do with goes on.
    raw.query("BEGIN");
    for sql in changes {
        raw.query(sql);
    }
    raw.query("CREATE INDEX turned_t ON t (id)");
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    assert_eq!(raw.query(&insert), ["CINSERT 0 1", "ZI"]);
    assert_eq!([count(0), count(1)], ["0", "1"]);
    // What a definition changes is not always told by its text.
    raw.query("BEGIN");
    assert_eq!(raw.query("DROP TABLE turned CASCADE"), ["CDROP TABLE", "ZT"]);
    assert_eq!(raw.query("SELECT count(*) FROM plain").last().map(String::as_str), Some("ZT"));
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 2, 'x')")), ["E0A000", "ZE"]);
    raw.query("ROLLBACK");
    raw.query("DROP TABLE turned");
    raw.query("DROP INDEX turned_t");
}

#[test]
fn a_cursor_is_found_on_the_shard_that_has_it() {
    let cluster = cluster();
    let (first, second) = (cluster.key_on(0, 87_000), cluster.key_on(1, 87_000));
    let mut raw = Raw::login();
    for id in 1..=3 {
        raw.query(&format!("INSERT INTO t VALUES ({second}, {id}, 'x')"));
    }
    let declare =
        |name: &str| format!("DECLARE {name} CURSOR FOR SELECT id FROM t WHERE k = {second} ORDER BY id");
    raw.query("BEGIN");
    assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({first}, 1, 'x')")), ["CINSERT 0 1", "ZT"]);
    assert_eq!(raw.query(&declare("c")), ["CDECLARE CURSOR", "ZT"]);
    assert_eq!(raw.value("FETCH 1 FROM c"), "1");
    assert_eq!(raw.query("MOVE 1 FROM c"), ["CMOVE 1", "ZT"]);
    assert_eq!(raw.query("SELECT 8; FETCH 1 FROM c").iter().filter(|a| a.starts_with('D')).count(), 2);
    assert_eq!(raw.query("CLOSE c"), ["CCLOSE CURSOR", "ZT"]);
    let answers = run(run(Batch::default(), &declare("d")), "FETCH 1 FROM d").sync().run(&mut raw);
    assert_eq!(answers[answers.len() - 3..], ["D1", "CFETCH 1", "ZT"]);
    assert_eq!(raw.query("CLOSE ALL"), ["CCLOSE CURSOR ALL", "ZT"]);
    assert_eq!(raw.query("FETCH 1 FROM d"), ["E34000", "ZE"]);
    raw.query("ROLLBACK");
}

/// H21: BEGIN and SET are answered before a server has seen them; what it says of them is told with the next statement.
#[test]
fn h21_a_setting_that_the_server_refuses_fails_the_transaction() {
    let key = cluster().key_on(0, 88_000);
    let select = format!("SELECT v FROM t WHERE k = {key}");
    let mut raw = Raw::login();
    for extended in [false, true] {
        raw.query("BEGIN");
        raw.query("SAVEPOINT s");
        assert_eq!(raw.query("SET statement_timeout = 'abc'"), ["CSET", "ZT"]);
        let answers =
            if extended { run(Batch::default(), &select).sync().run(&mut raw) } else { raw.query(&select) };
        let errors: Vec<_> = answers.iter().filter(|a| a.starts_with('E')).collect();
        assert_eq!(errors, ["E22023"], "{answers:?}");
        assert_eq!(answers.last().map(String::as_str), Some("ZE"));
        assert_eq!(raw.query(&select), ["E25P02", "ZE"]);
        assert_eq!(raw.query("ROLLBACK TO s"), ["CROLLBACK", "ZT"]);
        assert_eq!(raw.query(&select), ["T", "CSELECT 0", "ZT"]);
        assert_eq!(raw.query("COMMIT"), ["CCOMMIT", "ZI"]);
    }
}

#[test]
fn portals_are_bounded_in_number_and_bytes() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 89_000).to_string(), cluster.key_on(1, 89_000).to_string());
    let mut raw = Raw::login();
    let long = "x".repeat(shard_proxy::limits::CLIENT_BYTES / 3);
    let mut batch = Batch::default().parse("", "INSERT INTO t VALUES ($1, 1, $3), ($2, 1, $3)");
    for name in ["p", "q", "r"] {
        batch = batch.bind_portal(name, "", &[&a, &b, &long]);
    }
    let answers = batch.sync().run(&mut raw);
    assert_eq!(answers, ["1", "2", "2", "E54000", "ZI"]);
    let mut batch = Batch::default().parse("", "SHOW shard.epoch");
    for number in 0..=shard_proxy::limits::CLIENT_STATEMENTS {
        batch = batch.bind_portal(&format!("p{number}"), "", &[]);
    }
    let answers = batch.sync().run(&mut raw);
    assert_eq!(answers.iter().filter(|a| *a == "2").count(), shard_proxy::limits::CLIENT_STATEMENTS);
    assert_eq!(answers[answers.len() - 2..], ["E54000", "ZI"]);
    assert_eq!(raw.value("SELECT 6"), "6");
}

#[test]
fn what_another_client_drew_from_a_sequence_is_not_told() {
    let mut raw = Raw::login();
    raw.query("CREATE SEQUENCE drawn");
    for sql in ["SELECT currval('drawn')", "SELECT lastval()", "SELECT nextval('drawn'), currval('drawn')"] {
        assert_eq!(raw.query(sql), ["E0A000", "ZI"], "{sql}");
        let answers = run(Batch::default(), sql).sync().run(&mut raw);
        assert_eq!(answers[answers.len() - 2..], ["E0A000", "ZI"], "{sql}");
    }
    raw.query("BEGIN");
    let drawn = raw.value("SELECT nextval('drawn')");
    assert_eq!(raw.value("SELECT currval('drawn')"), drawn);
    raw.query("COMMIT");
    raw.query("DROP SEQUENCE drawn");
}
