//! What a server carries from one client to the next: nothing.

use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

const DEFAULT: &str = "\"$user\", public";

/// A role of its own has pools of its own, of 4 connections a shard: as many transactions see them all.
fn solo() -> Raw {
    Raw::login_with(0x0003_0000, &[("user", "solo")]).expect("logged in")
}

/// Tests of the one pool take turns.
static POOL: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn assert_all_servers_are_clean(key: i64, after: &str) {
    let mut clients: Vec<Raw> = (0..4).map(|_| solo()).collect();
    for raw in &mut clients {
        raw.query("BEGIN");
        assert_eq!(
            raw.query(&format!("SELECT v FROM public.t WHERE k = {key} AND id = -1"))[1],
            "CSELECT 0",
            "{after}"
        );
        assert_eq!(raw.value("SHOW search_path"), DEFAULT, "{after}");
        assert_eq!(raw.value("SHOW role"), "none", "{after}");
        raw.query("ROLLBACK");
        raw.query("BEGIN");
        raw.query(&format!("SELECT v FROM public.t WHERE k = {key} AND id = -1"));
    }
}

#[test]
fn h21_settings_mixed_with_the_end_of_a_transaction_reach_nobody_else() {
    let _turn = turn();
    let key = cluster().key_on(0, 70_000);
    let insert = format!("INSERT INTO public.t VALUES ({key}, 1, 'x') ON CONFLICT DO NOTHING");
    // The statements, and the search_path that PostgreSQL has then.
    let cases: [(&[&str], &str); 8] = [
        (&["BEGIN", "SET search_path = a", &insert, "COMMIT AND CHAIN", "ROLLBACK"], "a"),
        (&["BEGIN", &insert, "SET search_path = a", "ROLLBACK AND CHAIN", "COMMIT"], DEFAULT),
        (&["BEGIN", &insert, "SET search_path = a", "COMMIT; BEGIN", "ROLLBACK"], "a"),
        (&["BEGIN", &insert, "ROLLBACK; SET search_path = a"], "a"),
        (&["BEGIN", &insert, "SET search_path = a", "SELECT 1/0", "COMMIT AND CHAIN", "COMMIT"], DEFAULT),
        (&["BEGIN", &insert, "SET search_path = a; SELECT 1/0", "ROLLBACK"], DEFAULT),
        (&["BEGIN", "SET search_path = a", &insert, "ROLLBACK AND CHAIN", &insert, "COMMIT"], DEFAULT),
        (&["BEGIN", &insert, "SET role = solo; ROLLBACK; BEGIN", &insert, "COMMIT"], DEFAULT),
    ];
    for (statements, expected) in cases {
        let mut raw = solo();
        let last = statements.iter().map(|sql| raw.query(sql)).last().expect("some");
        assert_eq!(last.last().map(String::as_str), Some("ZI"), "{statements:?}");
        assert_eq!(raw.value("SHOW search_path"), expected, "{statements:?}");
        assert_eq!(raw.query(&format!("SELECT v FROM public.t WHERE k = {key} AND id = -1"))[1], "CSELECT 0");
        assert_eq!(raw.value("SHOW search_path"), expected, "{statements:?}");
        drop(raw);
        assert_all_servers_are_clean(key, &format!("{statements:?}"));
    }
}

#[test]
fn h21_a_failed_batch_takes_its_settings_back() {
    let _turn = turn();
    let key = cluster().key_on(0, 71_000);
    let mut raw = solo();
    let answers = Batch::default()
        .parse("", "SET search_path = a")
        .bind("", &[])
        .execute()
        .parse("", "SELECT 1/0")
        .bind("", &[])
        .execute()
        .sync()
        .run(&mut raw);
    assert_eq!(answers.last().map(String::as_str), Some("ZI"));
    assert!(answers.contains(&"CSET".to_owned()) && answers.contains(&"E22012".to_owned()), "{answers:?}");
    assert_eq!(raw.value("SHOW search_path"), DEFAULT);
    drop(raw);
    assert_all_servers_are_clean(key, "a failed batch");

    // One setting more than the session may have: the server that took it is not given to anybody else.
    let mut raw = solo();
    for number in 0..100 {
        assert_eq!(raw.query(&format!("SET app.n{number} = '1'")), ["CSET", "ZI"]);
    }
    raw.query("SET search_path = a");
    drop(raw);
    assert_all_servers_are_clean(key, "too many settings");
}

/// H38: the pinned server stays, the other one goes back; a cancel reaches the one that stayed.
#[test]
fn h38_a_cancel_after_a_pin_reaches_no_other_client() {
    let _turn = turn();
    let cluster = cluster();
    for shard in [0, 1] {
        let key = cluster.key_on(shard, 72_000);
        let mut pinned = solo();
        pinned.query("BEGIN");
        pinned.query(&format!("UPDATE t SET v = 'y' WHERE k = {key} AND id = -1"));
        assert_eq!(pinned.query("LISTEN x"), ["CLISTEN", "ZT"]);
        assert_eq!(pinned.query("COMMIT"), ["CCOMMIT", "ZI"]);
        // Every other connection of both shards is busy for somebody else.
        let mut others: Vec<Raw> = (0..7).map(|_| solo()).collect();
        let mut asked = Vec::new();
        for (n, raw) in others.iter_mut().enumerate() {
            let target = if n < 3 { 1 } else { 2 };
            assert_eq!(raw.query(&format!("SET shard.target = '{target}'")), ["CSET", "ZI"]);
            let mut query = Vec::new();
            shard_proxy::wire::build::query(&mut query, b"SELECT pg_sleep(0.6)");
            raw.send(&query);
            asked.push(n);
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        Raw::cancel(pinned.id, &pinned.secret);
        for raw in &mut others {
            assert_eq!(raw.answers(1), ["T", "D", "CSELECT 1", "ZI"], "pinned by way of shard {shard}");
        }
    }
}

/// Two tables of one name: with one search_path the statement is keyed, with the other the table is plain.
#[test]
fn a_named_statement_follows_search_path_to_another_route() {
    let cluster = cluster();
    let key = cluster.key_on(1, 73_000);
    let text = key.to_string();
    let mut raw = Raw::login();
    raw.query("SET search_path = a");
    let insert = Batch::default()
        .parse("ins", "INSERT INTO same VALUES ($1, 'x')")
        .bind("ins", &[&text])
        .execute()
        .sync();
    assert_eq!(insert.run(&mut raw), ["1", "2", "CINSERT 0 1", "ZI"]);
    raw.query("SET search_path = b");
    let again = |raw: &mut Raw| Batch::default().bind("ins", &[&text]).execute().sync().run(raw);
    assert_eq!(again(&mut raw), ["2", "CINSERT 0 1", "ZI"]);
    let count = |shard, which| cluster.on_shard(shard, &format!("SELECT count(*) FROM {which} = {key}"));
    assert_eq!([count(0, "a.same WHERE k"), count(1, "a.same WHERE k")], ["0", "1"]);
    assert_eq!(
        [count(0, "b.same WHERE id"), count(1, "b.same WHERE id")],
        ["1", "0"],
        "plain tables are on the first shard"
    );
    raw.query("SET search_path = a");
    assert_eq!(again(&mut raw), ["2", "E23505", "ZI"]);
}
