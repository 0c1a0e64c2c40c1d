//! Names are read by the router as the server reads them. `a.same` is sharded, `b.same` is plain: on the first shard.

use crate::cluster::cluster;
use crate::raw::{Batch, Raw};

fn run(batch: Batch, sql: &str) -> Batch {
    batch.parse("", sql).bind("", &[]).execute()
}

fn insert(key: i64) -> String {
    format!("INSERT INTO same VALUES ({key}, 'x')")
}

/// Rows with this key: of `a` on both shards, then of `b` on both.
fn found(key: i64) -> [String; 4] {
    let count =
        |shard, table: &str| cluster().on_shard(shard, &format!("SELECT count(*) FROM {table} = {key}"));
    [
        count(0, "a.same WHERE k"),
        count(1, "a.same WHERE k"),
        count(0, "b.same WHERE id"),
        count(1, "b.same WHERE id"),
    ]
}

const IN_A: [&str; 4] = ["0", "1", "0", "0"];
const IN_B: [&str; 4] = ["0", "0", "1", "0"];

#[test]
fn h25_set_local_search_path_decides_names() {
    let mut from = 83_000;
    let mut next = || {
        from = cluster().key_on(1, from + 1);
        from
    };
    // Held until a shard is known, and run by a server that is in the transaction already; by both protocols.
    for (enlisted, extended) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut raw = Raw::login();
        raw.query("SET search_path = a");
        let say = |raw: &mut Raw, sql: &str| {
            let answers = if extended { run(Batch::default(), sql).sync().run(raw) } else { raw.query(sql) };
            assert!(!answers.iter().any(|a| a.starts_with('E')), "{sql}: {answers:?}");
        };
        let [inside, undone, after, kept] = [next(), next(), next(), next()];
        say(&mut raw, "BEGIN");
        if enlisted {
            say(&mut raw, &format!("SELECT v FROM public.t WHERE k = {inside}"));
        }
        say(&mut raw, "SAVEPOINT s");
        say(&mut raw, "SET LOCAL search_path = b");
        say(&mut raw, &insert(inside));
        say(&mut raw, "SAVEPOINT n");
        say(&mut raw, "SET LOCAL search_path = a");
        say(&mut raw, "ROLLBACK TO n");
        say(&mut raw, &insert(kept));
        say(&mut raw, "COMMIT");
        assert_eq!(found(inside), IN_B, "enlisted {enlisted}, extended {extended}");
        assert_eq!(found(kept), IN_B, "enlisted {enlisted}, extended {extended}");
        say(&mut raw, &insert(after));
        assert_eq!(found(after), IN_A);
        say(&mut raw, "BEGIN");
        if enlisted {
            say(&mut raw, &format!("SELECT v FROM public.t WHERE k = {inside}"));
        }
        say(&mut raw, "SAVEPOINT s");
        say(&mut raw, "SET LOCAL search_path = b");
        say(&mut raw, "ROLLBACK TO s");
        say(&mut raw, &insert(undone));
        say(&mut raw, "COMMIT");
        assert_eq!(found(undone), IN_A, "enlisted {enlisted}, extended {extended}");
    }
}

#[test]
fn h25_a_set_decides_names_behind_it_in_the_same_message() {
    let mut from = 84_000;
    let mut next = || {
        from = cluster().key_on(1, from + 1);
        from
    };
    let mut raw = Raw::login();
    raw.query("SET search_path = a");
    let key = next();
    assert_eq!(raw.query(&format!("SET search_path = b; {}", insert(key))), ["CSET", "CINSERT 0 1", "ZI"]);
    assert_eq!(found(key), IN_B);
    assert_eq!(raw.value("SHOW search_path"), "b");
    // What takes it back within the message is refused rather than guessed.
    let text = format!("BEGIN; SET search_path = a; ROLLBACK; {}", insert(next()));
    assert_eq!(raw.query(&text), ["E0A000", "ZI"]);
    // A pipeline.
    let (key, second) = (next(), next());
    let batch = run(run(Batch::default(), "SET search_path = a"), &insert(key));
    let answers = run(run(batch, "SET search_path = b"), &insert(second)).sync().run(&mut raw);
    assert_eq!(answers.last().map(String::as_str), Some("ZI"), "{answers:?}");
    assert!(!answers.iter().any(|a| a.starts_with('E')), "{answers:?}");
    assert_eq!((found(key), found(second)), (IN_A.map(str::to_owned), IN_B.map(str::to_owned)));
    // SET LOCAL ends with COMMIT, also in the middle of a batch.
    raw.query("SET search_path = a");
    let (key, second) = (next(), next());
    let mut batch = Batch::default();
    for sql in ["BEGIN", "SET LOCAL search_path = b", &insert(key), "COMMIT", &insert(second)] {
        batch = run(batch, sql);
    }
    let answers = batch.sync().run(&mut raw);
    assert!(!answers.iter().any(|a| a.starts_with('E')), "{answers:?}");
    assert_eq!((found(key), found(second)), (IN_B.map(str::to_owned), IN_A.map(str::to_owned)));
}

#[test]
fn h39_the_schema_named_user_follows_the_role() {
    let cluster = cluster();
    for shard in [0, 1] {
        cluster.on_shard(shard, "GRANT solo TO app");
    }
    let mut raw = Raw::login();
    for sql in [
        "CREATE SCHEMA solo",
        "CREATE TABLE solo.by_role (id bigint PRIMARY KEY)",
        "CREATE TABLE public.by_role (k bigint PRIMARY KEY)",
        "GRANT ALL ON SCHEMA solo TO solo",
        "GRANT ALL ON solo.by_role, public.by_role TO solo",
    ] {
        assert_eq!(raw.query(sql).last().map(String::as_str), Some("ZI"), "{sql}");
    }
    let (first, second) = (cluster.key_on(1, 85_000), cluster.key_on(1, 85_500));
    let insert = |key: i64| format!("INSERT INTO by_role VALUES ({key})");
    let count = |shard, table: &str| cluster.on_shard(shard, &format!("SELECT count(*) FROM {table}"));
    assert_eq!(raw.query("SET ROLE solo"), ["CSET", "ZI"]);
    assert_eq!(raw.query(&insert(first)), ["CINSERT 0 1", "ZI"]);
    assert_eq!([count(0, "solo.by_role"), count(1, "solo.by_role")], ["1", "0"], "plain: the first shard");
    assert_eq!(raw.query("RESET ALL"), ["CRESET", "ZI"]);
    assert_eq!(raw.value("SELECT current_user"), "solo", "RESET ALL leaves the role");
    assert_eq!(raw.query("RESET ROLE"), ["CRESET", "ZI"]);
    assert_eq!(raw.query(&insert(second)), ["CINSERT 0 1", "ZI"]);
    assert_eq!([count(0, "public.by_role"), count(1, "public.by_role")], ["0", "1"], "sharded");
    for sql in ["ALTER ROLE app SET search_path = b", "ALTER ROLE ALL SET search_path = b"] {
        assert_eq!(raw.query(sql), ["E0A000", "ZI"], "{sql}");
    }
    raw.query("DROP SCHEMA solo CASCADE");
    raw.query("DROP TABLE public.by_role");
}
