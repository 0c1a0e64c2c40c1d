//! Statements that are sent before the ones in front of them were answered, and transactions that end otherwise than their
//! client says: what has each touched that moves?

use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::time::timeout;

use crate::copies::Raw;
use crate::motion_snapshots::executed;
use crate::motion_waits::{held, update};
use crate::mover::{Mover, buckets_of};
use crate::proxy::{World, code, keys};

const SHORT: Duration = Duration::from_millis(300);

/// One client's messages: one Query each, or one batch of the extended protocol.
enum Sent {
    Queries(Vec<String>),
    Flushed(Vec<String>),
    Synced(Vec<String>),
}

impl Sent {
    async fn run(&self, raw: &mut Raw) {
        let batch = |statements: &[String]| {
            let mut out = bytes::BytesMut::new();
            for sql in statements {
                out.unsplit(executed(sql));
            }
            out
        };
        match self {
            Sent::Queries(messages) => {
                for message in messages {
                    let answers = raw.query(message).await;
                    assert!(!answers.iter().any(|answer| answer.starts_with('E')), "{message}: {answers:?}");
                }
            }
            Sent::Flushed(statements) => {
                let mut out = batch(statements);
                frontend::flush(&mut out);
                raw.start(&out).await;
                assert_eq!(raw.answers(statements.len()).await.len(), statements.len(), "{statements:?}");
            }
            Sent::Synced(statements) => {
                let mut out = batch(statements);
                frontend::sync(&mut out);
                raw.start(&out).await;
                assert_eq!(raw.answers(1).await.len(), statements.len() + 1, "{statements:?}");
            }
        }
    }
}

/// The mover's copy of the row on the target.
async fn copy_to_third(world: &World, key: i64) {
    let target = world.cluster.primaries[2].client("postgres").await;
    target.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
}

fn texts(statements: &[&str]) -> Vec<String> {
    statements.iter().map(|sql| (*sql).to_owned()).collect()
}

/// All that is sent is admitted before the end in front of it is answered; and what is over then is only what is in front.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_what_is_behind_the_end_of_a_transaction_is_waited_for() {
    let world = World::start("behind").await;
    let mover = Mover::new(&world).await;
    let of_one = keys(1, 2);
    let (moving, staying) = (of_one[0], of_one[1]);
    let client = world.proxy.client().await;
    for key in [moving, staying] {
        client.batch_execute(&format!("INSERT INTO t VALUES ({key}, 1, 'a')")).await.unwrap();
    }
    let version = mover.begin(1, &buckets_of(&[moving]), 1, 3).await;
    mover.drained(version).await;
    let locking = |key: i64| format!("SELECT * FROM t WHERE k = {key} FOR UPDATE");
    let (k, other) = (locking(moving), locking(staying));
    let (k, other) = (k.as_str(), other.as_str());
    let queries = |messages: &[String]| Sent::Queries(messages.to_vec());
    let waited_for = [
        queries(&["BEGIN".into(), other.into(), format!("COMMIT; BEGIN; {k}")]),
        queries(&["BEGIN".into(), other.into(), format!("COMMIT AND CHAIN; {k}")]),
        queries(&[format!("BEGIN; {other}; COMMIT; BEGIN; {k}")]),
        queries(&[format!("BEGIN; {k}; COMMIT; BEGIN; {k}; SELECT 1")]),
        queries(&[format!("ROLLBACK; BEGIN; {k}")]),
        queries(&["BEGIN".into(), other.into(), format!("ROLLBACK; BEGIN; SAVEPOINT a; {k}; {other}")]),
        Sent::Flushed(texts(&["BEGIN", other, "COMMIT", k])),
        Sent::Flushed(texts(&[other, "COMMIT", k])),
        Sent::Synced(texts(&["BEGIN", other, "COMMIT AND CHAIN", k])),
        Sent::Synced(texts(&["BEGIN", other, "ROLLBACK", "BEGIN", k])),
    ];
    let passed_over = [
        queries(&[format!("BEGIN; {k}; COMMIT; BEGIN; {other}")]),
        queries(&["BEGIN".into(), k.into(), format!("COMMIT AND CHAIN; {other}")]),
        Sent::Flushed(texts(&["BEGIN", k, "COMMIT", other])),
        Sent::Synced(texts(&["BEGIN", k, "COMMIT", "BEGIN", other])),
    ];
    let mut wrong = Vec::new();
    for (number, sent) in waited_for.iter().chain(&passed_over).enumerate() {
        let mut raw = Raw::connect(world.proxy.port).await;
        sent.run(&mut raw).await;
        let version = mover.stage(1, "copying").await;
        mover.wait("version", version, 1).await;
        tokio::time::sleep(SHORT).await;
        let waits = mover.least("drained", 1).await < version;
        if waits != (number < waited_for.len()) {
            wrong.push(number);
        }
        drop(raw);
        mover.drained(version).await;
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// What was read for a change is not changed where it is no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_a_row_that_was_locked_behind_a_commit_is_not_overwritten() {
    let (world, mut mover, (moving, staying, _)) = held("behind-lost").await;
    let version = mover.stage(1, "copying").await;
    mover.drained(version).await;
    let mut raw = Raw::connect(world.proxy.port).await;
    let read = format!("SELECT * FROM t WHERE k = {moving} FOR UPDATE");
    assert_eq!(raw.query("BEGIN").await, ["CBEGIN", "ZT"]);
    assert_eq!(raw.query(&update(staying)).await, ["CUPDATE 1", "ZT"]);
    let answers = raw.query(&format!("COMMIT; BEGIN; {read}")).await;
    assert_eq!(answers, ["CCOMMIT", "CBEGIN", "CSELECT 1", "ZT"]);
    // Whoever flips now does not wait for it.
    copy_to_third(&world, moving).await;
    let version = mover.flip(1, &buckets_of(&[moving]), 1, 3, "flipped").await;
    mover.wait("version", version, 1).await;
    assert_eq!(raw.query(&update(moving)).await, ["E40001", "ZE"]);
}

/// A statement for two shards whose keys are on one when it may go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_statement_waits_until_its_keys_are_together() {
    let (world, mut mover, (moving, ..)) = held("together").await;
    let there = keys(3, 1)[0];
    let owner = world.cluster.primaries[2].client("postgres").await;
    owner
        .batch_execute(&format!("INSERT INTO t VALUES ({moving}, 1, 'a'), ({there}, 1, 'a')"))
        .await
        .unwrap();
    let statements = [
        ("SELECT k FROM t WHERE k IN ($1, $2) AND id = 1 ORDER BY k", 2),
        ("UPDATE t SET note = 'b' WHERE k IN ($1, $2) AND id = 1 RETURNING k", 2),
        ("INSERT INTO t VALUES ($1, 2, 'c'), ($2, 2, 'c') RETURNING k", 2),
        ("DELETE FROM t WHERE k = $1 AND id = 7 OR k = $2 AND id = 7 RETURNING k", 0),
    ];
    let waiting = statements.map(|(sql, rows)| {
        let url = world.proxy.url();
        tokio::spawn(async move {
            let client = crate::cluster::connect(&url).await;
            let found = timeout(Duration::from_secs(4), client.query(sql, &[&moving, &there])).await;
            let found = found.expect("it waits on").map_err(|error| code(&error));
            // What comes behind is another transaction.
            client.batch_execute("SELECT 1").await.unwrap();
            (sql, found.map(|found| found.len()), rows)
        })
    });
    tokio::time::sleep(SHORT).await;
    assert_eq!(mover.least("held", 1).await, 4);
    let version = mover.flip(1, &buckets_of(&[moving]), 1, 3, "flipped").await;
    mover.wait("version", version, 1).await;
    for answer in waiting {
        let (sql, found, rows) = answer.await.unwrap();
        assert_eq!(found, Ok(rows), "{sql}");
    }
    let written = "SELECT count(*) FROM t WHERE note = 'b' AND id = 1 OR note = 'c'";
    assert_eq!(world.each(written).await, [0, 0, 4, 0]);
}

/// A transaction whose server is gone holds nothing, whenever its client says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_has_lost_its_server_is_not_waited_for() {
    let (world, mover, (moving, ..)) = held("behind-gone").await;
    let version = mover.stage(1, "copying").await;
    mover.drained(version).await;
    let client = world.proxy.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(&update(moving)).await.unwrap();
    let version = mover.stage(1, "copying").await;
    mover.wait("version", version, 1).await;
    tokio::time::sleep(SHORT).await;
    assert!(mover.least("drained", 1).await < version, "it is open");
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle in transaction'";
    let ended: i64 = mover.catalog.query_one(end, &[]).await.unwrap().get(0);
    assert_eq!(ended, 1);
    mover.drained(version).await;
    let refused = client.batch_execute(&update(moving)).await.unwrap_err();
    assert!(code(&refused).starts_with("08"), "{refused:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute(&update(moving)).await.unwrap();
}

/// How long one statement has waited is not another one's affair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_waits_its_own_time() {
    let (world, mut mover, (moving, ..)) = held("own-time").await;
    copy_to_third(&world, moving).await;
    let client = world.proxy.client().await;
    client.batch_execute("BEGIN").await.unwrap();
    let (token, sql) = (client.cancel_token(), update(moving));
    let (cancelled, _) = tokio::join!(client.execute(&sql, &[]), async {
        tokio::time::sleep(SHORT).await;
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    });
    assert_eq!(code(&cancelled.unwrap_err()), "57014");
    client.batch_execute("ROLLBACK").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    client.batch_execute("BEGIN").await.unwrap();
    let (answer, ()) = tokio::join!(client.execute(&sql, &[]), async {
        tokio::time::sleep(SHORT).await;
        let version = mover.flip(1, &buckets_of(&[moving]), 1, 3, "flipped").await;
        mover.wait("version", version, 1).await;
    });
    assert_eq!(answer.unwrap(), 1);
    client.batch_execute("COMMIT").await.unwrap();
}
