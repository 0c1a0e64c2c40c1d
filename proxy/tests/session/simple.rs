use crate::cluster::{cluster, psql_command};
use crate::raw::Raw;
use shard_proxy::wire::build;

#[test]
fn rows_are_found_on_their_shard() {
    let cluster = cluster();
    let mut raw = Raw::login();
    for shard in [0, 1] {
        let key = cluster.key_on(shard, 1000);
        assert_eq!(raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'here')")), ["CINSERT 0 1", "ZI"]);
        assert_eq!(raw.value(&format!("SELECT v FROM t WHERE k = {key}")), "here");
        assert_eq!(cluster.on_shard(shard, &format!("SELECT count(*) FROM t WHERE k = {key}")), "1");
        assert_eq!(cluster.on_shard(1 - shard, &format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
    }
}

#[test]
fn a_servers_error_arrives_untouched() {
    let mut raw = Raw::login();
    let key = cluster().key_on(0, 2000);
    raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'a')"));
    let mut out = Vec::new();
    build::query(&mut out, format!("INSERT INTO t VALUES ({key}, 1, 'b')").as_bytes());
    raw.send(&out);
    let (tag, body) = raw.message().expect("an error");
    let field = |tag| crate::raw::field(&body, tag);
    assert_eq!((tag, field(b'C').as_str()), (b'E', "23505"));
    assert_eq!(
        (field(b'n').as_str(), field(b't').as_str(), field(b'R').as_str()),
        ("t_pkey", "t", "_bt_check_unique")
    );
    assert!(field(b'D').contains("already exists"));
    assert_eq!(raw.answers(1), ["ZI"]);
}

#[test]
fn empty_and_several_statements() {
    let mut raw = Raw::login();
    assert_eq!(raw.query(" ; -- nothing"), ["I", "ZI"]);
    assert_eq!(raw.query("SELECT 1; SELECT 2"), ["T", "D1", "CSELECT 1", "T", "D2", "CSELECT 1", "ZI"]);
    let key = cluster().key_on(1, 3000);
    let text = format!("BEGIN; INSERT INTO t VALUES ({key}, 1, 'x'); SAVEPOINT a; SELECT 5");
    assert_eq!(raw.query(&text).last().map(String::as_str), Some("ZT"));
    assert_eq!(raw.query("ROLLBACK"), ["CROLLBACK", "ZI"]);
    assert_eq!(raw.value(&format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
}

/// H20: one message with several statements is one transaction, also over two shards.
#[test]
fn h20_several_statements_are_one_transaction() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 4000), cluster.key_on(1, 4000));
    let mut raw = Raw::login();
    let text = format!(
        "INSERT INTO t VALUES ({a}, 1, 'x'); INSERT INTO t VALUES ({b}, 1, 'y'); INSERT INTO t VALUES ({b}, 1, 'again')"
    );
    let answers = raw.query(&text);
    assert!(answers.iter().any(|a| a.starts_with('E')), "{answers:?}");
    assert_eq!(answers.last().map(String::as_str), Some("ZI"));
    for (shard, key) in [(0, a), (1, b)] {
        assert_eq!(cluster.on_shard(shard, &format!("SELECT count(*) FROM t WHERE k = {key}")), "0");
    }
}

#[test]
fn settings_follow_the_client_to_every_server() {
    let mut one = Raw::login();
    let mut two = Raw::login();
    one.query("SET search_path = pg_catalog");
    one.query("SET TimeZone TO 'Asia/Tokyo'");
    two.query("SET work_mem = '7MB'");
    for _ in 0..6 {
        for shard in ["1", "2"] {
            one.query(&format!("SET shard.target = {shard}"));
            two.query(&format!("SET shard.target = {shard}"));
            assert_eq!(
                one.value("SELECT current_setting('TimeZone') || current_setting('search_path')"),
                "Asia/Tokyopg_catalog"
            );
            assert_eq!(one.value("SHOW work_mem"), "4MB");
            assert_eq!(two.value("SHOW work_mem"), "7MB");
            assert_eq!(two.value("SHOW search_path"), "\"$user\", public");
        }
    }
    assert_eq!(one.query("SET nonsense_setting = 1")[0], "E42704");
    assert_eq!(one.query("RESET TimeZone"), ["CRESET", "ZI"]);
    assert_ne!(one.value("SHOW TimeZone"), "Asia/Tokyo");
    one.query("DISCARD ALL");
    assert_eq!(one.value("SHOW search_path"), "\"$user\", public");
    assert_eq!(one.value("SHOW shard.target"), "");
    assert_eq!(one.query("SET shard.target = 9")[0], "E22023");
}

#[test]
fn copy_both_ways_on_one_shard() {
    let mut raw = Raw::login();
    raw.query("DELETE FROM plain");
    let mut out = Vec::new();
    build::query(&mut out, b"COPY plain FROM STDIN");
    for row in 0..2000 {
        let start = build::begin(&mut out, b'd');
        out.extend_from_slice(format!("{row}\ttext {row}\n").as_bytes());
        build::end(&mut out, start);
    }
    out.extend_from_slice(b"c\0\0\0\x04");
    raw.send(&out);
    assert_eq!(raw.answers(1), ["G", "CCOPY 2000", "ZI"]);
    let answers = raw.query("COPY plain TO STDOUT");
    assert_eq!(answers.iter().filter(|a| *a == "d").count(), 2000);
    assert_eq!(answers[answers.len() - 2..], ["CCOPY 2000", "ZI"]);
    // An error ends it; what the client had sent behind it is ignored.
    let mut out = Vec::new();
    build::query(&mut out, b"COPY plain FROM STDIN");
    for _ in 0..2 {
        let start = build::begin(&mut out, b'd');
        out.extend_from_slice(b"not a number\n");
        build::end(&mut out, start);
    }
    out.extend_from_slice(b"c\0\0\0\x04");
    raw.send(&out);
    assert_eq!(raw.answers(1), ["G", "E22P02", "ZI"]);
    assert_eq!(raw.value("SELECT 7"), "7");
    let mut out = Vec::new();
    build::query(&mut out, b"COPY plain FROM STDIN");
    let start = build::begin(&mut out, b'f');
    out.extend_from_slice(b"no more\0");
    build::end(&mut out, start);
    raw.send(&out);
    assert_eq!(raw.answers(1), ["G", "E57014", "ZI"]);
}

#[test]
fn the_function_call_protocol_is_refused() {
    let mut raw = Raw::login();
    raw.send(b"F\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0");
    assert_eq!(raw.answers(1), ["E0A000", "ZI"]);
}

#[test]
fn a_temporary_table_pins_the_session() {
    let mut raw = Raw::login_with(0x0003_0000, &[("application_name", "pinned-test")]).expect("logged in");
    raw.query("CREATE TEMP TABLE mine (a int)");
    raw.query("INSERT INTO mine VALUES (5)");
    let key = cluster().key_on(1, 9000);
    assert_eq!(
        raw.query(&format!("INSERT INTO t VALUES ({key}, 1, 'x')")),
        ["CINSERT 0 1", "ZI"],
        "other shards go on"
    );
    assert_eq!(raw.value("SELECT a FROM mine"), "5");
    let clients = crate::cluster::psql(cluster().proxy_port, "app", "admin", &["SHOW CLIENTS"]);
    let line = clients.lines().find(|l| l.contains("pinned-test")).map(str::to_owned);
    assert!(line.as_ref().is_some_and(|l| l.contains("temp")), "{line:?}");
    let mut other = Raw::login();
    assert_eq!(other.query("SELECT a FROM mine")[0], "E42P01");
    raw.query("DISCARD ALL");
    assert_eq!(raw.query("SELECT a FROM mine")[0], "E42P01");
}

#[test]
fn psql_sees_one_database() {
    let cluster = cluster();
    let run = |args: &[&str]| {
        let mut command = psql_command(cluster.proxy_port, "app", "db");
        let output = command.args(args).output().expect("psql");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&["-c", "\\dt"]).contains("plain"));
    assert!(run(&["-c", "\\d t"]).contains("bigint"));
    assert!(run(&["-c", "\\conninfo"]).contains("db"));
    assert!(run(&["-c", "SHOW shard.map"]).starts_with("0|2047|1|"));
    assert!(run(&["-c", "EXPLAIN ROUTE SELECT * FROM t WHERE k = 5"]).contains("bucket"));
}

#[tokio::test]
async fn the_console_opens_for_its_users_only() {
    let login = |user: &str| {
        let port = cluster().proxy_port;
        format!("host=127.0.0.1 port={port} user={user} password={user} dbname=admin")
    };
    let refused = tokio_postgres::connect(&login("busy"), tokio_postgres::NoTls).await;
    let code = refused.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
    assert_eq!(code.as_deref(), Some("42501"));
    assert!(tokio_postgres::connect(&login("app"), tokio_postgres::NoTls).await.is_ok());
}
