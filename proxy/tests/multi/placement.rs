//! Definitions and statements that would find rows where they are not, or other rows than one database finds; and what a
//! COPY that is dealt out says of its errors. Against one PostgreSQL where the answer is to be the same.

use bytes::Bytes;
use tokio_postgres::Client;

use crate::cluster::{Cluster, take_port};
use crate::proxy::{CONFIGURATION, Proxy, World, code, key, keys};

async fn answer(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "ok".to_owned(),
        Err(error) => code(&error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_looked_for_where_they_are() {
    let world = World::start("placement").await;
    let client = world.proxy.client().await;
    for shard in 1..=4 {
        client.execute("INSERT INTO t VALUES ($1, 1, 'n')", &[&key(shard)]).await.unwrap();
    }
    client.batch_execute("CREATE TABLE plain (id int, other int8)").await.unwrap();
    client.batch_execute("INSERT INTO plain VALUES (1, 5)").await.unwrap();
    for sql in [
        "ALTER TABLE plain RENAME COLUMN other TO k",
        "ALTER TABLE plain RENAME TO rates",
        "ALTER TABLE rates RENAME TO prices",
        "CREATE TABLE child (k int8) INHERITS (plain)",
        "ALTER TABLE t INHERIT plain",
        "CREATE SCHEMA a CREATE TABLE x (k int8, id int PRIMARY KEY)",
        // Every shard has a row there.
        "DELETE FROM t WHERE ctid = '(0,1)'",
        "SELECT * FROM t JOIN rates ON rate = id WHERE k = 5 FOR UPDATE",
    ] {
        assert_eq!(answer(&client, sql).await, "0A000", "{sql}");
    }
    assert_eq!(world.counts().await, [1; 4]);
    assert_eq!(answer(&client, "ALTER TABLE plain RENAME COLUMN other TO kk").await, "ok");

    h22_copies_of_a_row_stay_alike(&world, &client).await;
    a_cursor_has_one_name(&client).await;
    h11_the_configuration_vouches(&world).await;
}

/// The same rows in another order on each shard.
async fn h22_copies_of_a_row_stay_alike(world: &World, client: &Client) {
    client.batch_execute("INSERT INTO rates VALUES ('a', 1), ('b', 2), ('c', 3)").await.unwrap();
    for (n, shard) in world.cluster.primaries.iter().enumerate() {
        let direct = shard.client("postgres").await;
        for code in ["a", "b", "c"].iter().cycle().skip(n).take(2) {
            direct
                .batch_execute(&format!("UPDATE rates SET rate = rate WHERE code = '{code}'"))
                .await
                .unwrap();
        }
    }
    for sql in [
        "UPDATE rates SET rate = o.rate FROM (SELECT rate FROM rates) o WHERE code = 'a'",
        "INSERT INTO rates SELECT 'd', rate FROM rates ON CONFLICT DO NOTHING",
        "UPDATE rates SET rate = (SELECT (array_agg(rate))[1] FROM rates) WHERE code = 'b'",
        "INSERT INTO rates SELECT DISTINCT ON (length(code)) code || 'x', rate FROM rates",
        "INSERT INTO rates SELECT code || 'n', row_number() OVER () FROM rates WHERE length(code) = 1",
    ] {
        client.batch_execute(sql).await.unwrap();
        let digest = "SELECT ('x' || substr(md5(string_agg(code || rate, ',' ORDER BY code)), 1, 15))::bit(60)::int8 FROM rates";
        let digests = world.each(digest).await;
        assert!(digests.iter().all(|one| *one == digests[0]), "{sql}: {digests:?}");
    }
}

async fn a_cursor_has_one_name(client: &Client) {
    let (one, two) = (key(1), key(2));
    let of = |k: i64| format!("DECLARE c CURSOR FOR SELECT * FROM t WHERE k = {k}");
    let all = "DECLARE c CURSOR FOR SELECT * FROM t ORDER BY k".to_owned();
    for (first, second) in
        [(of(one), of(two)), (of(one), all.clone()), (all.clone(), of(one)), (all.clone(), all.clone())]
    {
        client.batch_execute("BEGIN").await.unwrap();
        assert_eq!(answer(client, &first).await, "ok", "{first}");
        assert_eq!(answer(client, "CLOSE c").await, "ok");
        assert_eq!(answer(client, &second).await, "ok", "{first}; CLOSE c; {second}");
        assert_eq!(answer(client, "SAVEPOINT s").await, "ok");
        assert_eq!(answer(client, &first).await, "42P03", "{second}; {first}");
        assert_eq!(answer(client, "ROLLBACK TO s").await, "ok");
        assert_eq!(answer(client, "FETCH 1 FROM c").await, "ok");
        assert_eq!(answer(client, "ROLLBACK").await, "ok");
    }
    client.batch_execute("BEGIN; SAVEPOINT s").await.unwrap();
    assert_eq!(answer(client, &of(one)).await, "ok");
    assert_eq!(answer(client, "ROLLBACK TO s").await, "ok");
    assert_eq!(answer(client, &of(two)).await, "ok", "the other one went with its savepoint");
    client.batch_execute("ROLLBACK").await.unwrap();
}

async fn h11_the_configuration_vouches(world: &World) {
    let ports = (take_port(), take_port());
    let vouched =
        "[[table]]\nname = \"public.made\"\nkind = \"sharded\"\nunique_by_construction = [\"id\"]\n";
    let text = format!("{CONFIGURATION}{vouched}");
    let proxy = Proxy::run(&world.cluster, ports, &world.cluster.configuration(ports.0, ports.1, &text));
    let client = proxy.client().await;
    assert_eq!(answer(&client, "CREATE TABLE unmade (k int8, id int PRIMARY KEY)").await, "0A000");
    assert_eq!(
        answer(&client, "CREATE TABLE made (k int8 NOT NULL, id serial PRIMARY KEY, note text)").await,
        "ok"
    );
    assert_eq!(answer(&client, "CREATE UNIQUE INDEX ON made (note)").await, "0A000");
    let all: Vec<i64> = (1..=4).map(key).collect();
    let rows: Vec<String> = all.iter().map(|k| format!("({k}, 'n')")).collect();
    client.batch_execute(&format!("INSERT INTO made (k, note) VALUES {}", rows.join(", "))).await.unwrap();
    let again = format!(
        "INSERT INTO made (k, id, note) VALUES ({}, 1, 'again') ON CONFLICT (id) DO UPDATE SET note = 'x'",
        all[0]
    );
    client.batch_execute(&again).await.unwrap();
    assert_eq!(client.query("SELECT id FROM made WHERE note = 'x'", &[]).await.unwrap().len(), 1);
}

async fn copied(client: &Client, sql: &str, data: &[u8]) -> String {
    use futures_util::SinkExt;
    let result = async {
        let sink = client.copy_in::<_, Bytes>(sql).await?;
        let mut sink = std::pin::pin!(sink);
        for chunk in data.chunks(777) {
            sink.send(Bytes::copy_from_slice(chunk)).await?;
        }
        sink.finish().await
    };
    match result.await {
        Ok(rows) => format!("COPY {rows}"),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
            format!("{} {} | {}", error.code().code(), error.message(), error.where_().unwrap_or_default())
        }
    }
}

fn binary(rows: &[(Option<i64>, &[u8], &str)]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for (k, id, note) in rows {
        out.extend_from_slice(&3i16.to_be_bytes());
        match k {
            Some(k) => {
                out.extend_from_slice(&8i32.to_be_bytes());
                out.extend_from_slice(&k.to_be_bytes());
            }
            None => out.extend_from_slice(&(-1i32).to_be_bytes()),
        }
        for value in [*id, note.as_bytes()] {
            out.extend_from_slice(&(value.len() as i32).to_be_bytes());
            out.extend_from_slice(value);
        }
    }
    out.extend_from_slice(&(-1i16).to_be_bytes());
    out
}

/// Rows with line ends in them, spread over the shards, and one that is wrong: error, message and line are those of one
/// server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_says_what_one_server_says_of_its_errors() {
    let world = World::start("copy-errors").await;
    let single = Cluster::start("copy-errors-one", 1, false);
    let one = single.primaries[0].client("app").await;
    one.batch_execute("CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id))")
        .await
        .unwrap();
    let four = world.proxy.client().await;
    let all: Vec<i64> = (0..12).map(|n| keys(n % 4 + 1, 3)[n as usize / 4]).collect();
    let lines = |row: &dyn Fn(i64) -> String, bad: &str, at: usize, end: &str| -> Vec<u8> {
        let mut rows: Vec<String> = all.iter().map(|k| row(*k)).collect();
        rows.insert(at, bad.to_owned());
        rows.iter().map(|row| format!("{row}{end}")).collect::<String>().into_bytes()
    };
    let mut cases: Vec<(&str, Vec<u8>)> = Vec::new();
    for at in [0, 1, 6, 12] {
        let text = |k: i64| format!("{k}\t1\ta\\\nb");
        for bad in [
            "7\tx\tn",
            "zz\t1\tn",
            "\\N\t1\tn",
            "7",
            "7\t1\tn\textra",
            "7\t\\N\tn",
            "",
            "99999999999999999999\t1\tn",
        ] {
            cases.push(("COPY t FROM STDIN", lines(&text, bad, at, "\n")));
        }
        cases.push(("COPY t FROM STDIN", lines(&|k| format!("{k}\t1\ta"), "7\tx\tn", at, "\r\n")));
        let csv = |k: i64| format!("{k},1,\"a\nb\n\nc\"");
        for bad in ["7,x,n", "zz,1,n", ",1,n", "7", "7,1,n,extra", "7,,n", "7,1,\"open"] {
            cases.push(("COPY t FROM STDIN (FORMAT csv)", lines(&csv, bad, at, "\n")));
            let with_header = [b"k,\"i\nd\",note\n".to_vec(), lines(&csv, bad, at, "\n")].concat();
            cases.push(("COPY t FROM STDIN (FORMAT csv, HEADER)", with_header));
        }
        let windows = |k: i64| format!("{k},1,\"a\r\nb\"");
        cases.push(("COPY t FROM STDIN (FORMAT csv)", lines(&windows, "7,x,n", at, "\r\n")));
        let number = 1i32.to_be_bytes();
        for bad in [(Some(7), &b"\0\0\x01"[..], "short"), (None, &number[..], "null")] {
            let mut rows: Vec<(Option<i64>, &[u8], &str)> =
                all.iter().map(|k| (Some(*k), &number[..], "n")).collect();
            rows.insert(at, bad);
            cases.push(("COPY t FROM STDIN (FORMAT binary)", binary(&rows)));
        }
    }
    // A key that is there already, met when rows are stored.
    let twice = format!("{0}\t1\tn\n{1}\t1\tn\n{1}\t1\tn\n{0}\t2\tn\n", all[0], all[1]);
    cases.push(("COPY t FROM STDIN", twice.into_bytes()));
    let mut different = Vec::new();
    for (sql, data) in &cases {
        let (expected, found) = (copied(&one, sql, data).await, copied(&four, sql, data).await);
        if expected != found {
            let shown = String::from_utf8_lossy(&data[..data.len().min(300)]).into_owned();
            different.push(format!("{sql}\n{shown}\n  one:  {expected}\n  four: {found}"));
        }
        assert!(!expected.starts_with("COPY"), "{sql}: {data:?}");
    }
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), cases.len(), different.join("\n"));
    assert_eq!(world.counts().await, [0; 4]);
    world.settled().await;
}
