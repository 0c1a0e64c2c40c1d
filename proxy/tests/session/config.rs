//! `SELECT set_config(...)` is a SET that is answered with a row.

use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

/// As frameworks do for row level security: the tenant, bound, before the first statement that needs a shard.
#[test]
fn h21_set_config_is_answered_with_a_row_and_reaches_every_server() {
    let cluster = cluster();
    let (a, b) = (cluster.key_on(0, 90_000), cluster.key_on(1, 90_000));
    let mut raw = Raw::login();
    let insert =
        |key: i64, id: i32| format!("INSERT INTO t VALUES ({key}, {id}, current_setting('app.tenant'))");
    let stored = |raw: &mut Raw, key: i64, id: i32| {
        raw.value(&format!("SELECT v FROM t WHERE k = {key} AND id = {id}"))
    };
    let bound = |raw: &mut Raw, value: &str| {
        let batch =
            Batch::default().parse("", "SELECT set_config('app.tenant', $1, true)").bind("", &[value]);
        batch.describe(b'P', "").execute().sync().run(raw)
    };
    raw.query("BEGIN");
    assert_eq!(raw.query("SELECT set_config('app.tenant', 'x, y', true)"), ["T", "Dx, y", "CSELECT 1", "ZT"]);
    assert_eq!(raw.query(&insert(a, 1)), ["CINSERT 0 1", "ZT"]);
    assert_eq!(stored(&mut raw, a, 1), "x, y");
    raw.query("ROLLBACK");
    for _ in 0..2 {
        raw.query("BEGIN");
        assert_eq!(bound(&mut raw, "one"), ["1", "2", "T", "Done", "CSELECT 1", "ZT"], "no shard has joined");
        assert_eq!(raw.query(&insert(a, 2)), ["CINSERT 0 1", "ZT"]);
        assert_eq!(stored(&mut raw, a, 2), "one");
        assert_eq!(
            bound(&mut raw, "two"),
            ["1", "2", "T", "Dtwo", "CSELECT 1", "ZT"],
            "one shard has joined"
        );
        assert_eq!(raw.query(&insert(b, 2)), ["CINSERT 0 1", "ZT"]);
        assert_eq!(stored(&mut raw, b, 2), "two");
        assert_eq!(
            bound(&mut raw, "three"),
            ["1", "2", "T", "Dthree", "CSELECT 1", "ZT"],
            "both have joined"
        );
        for key in [a, b] {
            assert_eq!(raw.query(&insert(key, 3)), ["CINSERT 0 1", "ZT"]);
            assert_eq!(stored(&mut raw, key, 3), "three");
        }
        assert_eq!(
            raw.query("SELECT set_config('app.tenant', 'four', true)"),
            ["T", "Dfour", "CSELECT 1", "ZT"]
        );
        raw.query("ROLLBACK");
    }
    assert_eq!(raw.value("SELECT coalesce(current_setting('app.tenant', true), '')"), "");
    // The server says what it makes of a setting of its own.
    raw.query("BEGIN");
    assert_eq!(raw.value("SELECT set_config('work_mem', '65536', true)"), "64MB");
    raw.query("COMMIT");
    let described =
        Batch::default().parse("s", "SELECT set_config('app.tenant', $1, false)").describe(b'S', "s").sync();
    assert_eq!(described.run(&mut raw), ["1", "t", "T", "ZI"]);
    assert_eq!(
        Batch::default().bind("s", &["kept"]).execute().sync().run(&mut raw),
        ["2", "Dkept", "CSELECT 1", "ZI"]
    );
    for shard in [1, 2] {
        raw.query(&format!("SET shard.target = '{shard}'"));
        assert_eq!(raw.value("SHOW app.tenant"), "kept");
    }
    assert_eq!(raw.query("SELECT set_config('shard.target', '', false)"), ["T", "D", "CSELECT 1", "ZI"]);
    assert_eq!(raw.value("SHOW shard.target"), "");
}

/// The value is a list of schemas, not the name of one.
#[test]
fn h25_a_search_path_by_set_config_is_replayed_as_it_was_said() {
    let cluster = cluster();
    let key = cluster.key_on(1, 91_000);
    let mut raw = Raw::login();
    assert_eq!(raw.value("SELECT set_config('search_path', 'a, b', false)"), "a, b");
    for shard in [1, 2, 1, 2] {
        raw.query(&format!("SET shard.target = '{shard}'"));
        assert_eq!(raw.value("SHOW search_path"), "a, b");
    }
    raw.query("SET shard.target = ''");
    assert_eq!(raw.query(&format!("INSERT INTO same VALUES ({key}, 'x')")), ["CINSERT 0 1", "ZI"]);
    assert_eq!(cluster.on_shard(1, &format!("SELECT count(*) FROM a.same WHERE k = {key}")), "1");
}

/// Drivers keep what ParameterStatus tells them (pgjdbc: TimeZone, DateStyle) and read values by it.
#[test]
fn a_reset_that_no_server_runs_is_reported_too() {
    let mut raw = Raw::login_with(196_608, &[("TimeZone", "Asia/Tokyo")]).unwrap();
    let reported = |raw: &mut Raw, sql: &str| {
        let mut message = b"Q".to_vec();
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        raw.send(&message);
        let (mut told, mut done) = (Vec::new(), String::new());
        loop {
            match raw.message().unwrap() {
                (b'S', body) => {
                    let text = String::from_utf8_lossy(&body).trim_end_matches('\0').replace('\0', "=");
                    told.push(text);
                }
                (b'C', body) => done = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned(),
                (b'Z', _) => return (told, done),
                (tag, _) => assert_ne!(tag, b'E', "{sql}"),
            }
        }
    };
    let told = |raw: &mut Raw, sql: &str| reported(raw, sql).0;
    let tokyo = ["TimeZone=Asia/Tokyo"];
    // The server says what it had before, when it is given the session's settings.
    let set = told(&mut raw, "SET TimeZone = 'Europe/Rome'");
    assert_eq!(set.last().map(String::as_str), Some("TimeZone=Europe/Rome"));
    assert_eq!(reported(&mut raw, "RESET TimeZone"), (vec![tokyo[0].to_owned()], "RESET".to_owned()));
    told(&mut raw, "SET TimeZone = 'Europe/Rome'");
    let (back, tag) = reported(&mut raw, "SET TimeZone TO DEFAULT");
    assert_eq!((back.as_slice(), tag.as_str()), (&[tokyo[0].to_owned()][..], "SET"));
    told(&mut raw, "SET TimeZone = 'Europe/Rome'");
    assert_eq!(told(&mut raw, "RESET ALL"), tokyo);
    told(&mut raw, "SET TimeZone = 'Europe/Rome'");
    assert_eq!(told(&mut raw, "DISCARD ALL"), tokyo);
    assert_eq!(told(&mut raw, "RESET ALL"), [""; 0], "nothing has changed");
    assert_eq!(raw.value("SHOW TimeZone"), "Asia/Tokyo");
}
