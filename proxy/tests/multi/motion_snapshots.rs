//! REPEATABLE READ and SERIALIZABLE while buckets move: a snapshot sees the rows of its own time, and of the shards of its own
//! time, or its transaction ends (H30).

use postgres_protocol::message::frontend;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::copies::Raw;
use crate::mover::{Mover, buckets_of};
use crate::proxy::{World, code, keys};

/// Takes a snapshot and touches no bucket.
pub const NO_BUCKET: &str = "SELECT inet_server_port() FROM (SELECT count(*) FROM rates) c";

/// The first value, or the SQLSTATE. By the simple protocol: what is prepared is checked by a server first.
async fn value(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(answer) => {
            let value = answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            value.unwrap_or_default().to_owned()
        }
        Err(error) => code(&error),
    }
}

/// One whose statements about no bucket run on this shard (from 1).
async fn client_of(world: &World, shard: usize) -> Client {
    let port = world.cluster.primaries[shard - 1].port.to_string();
    for _ in 0..100 {
        let client = world.proxy.client().await;
        if value(&client, NO_BUCKET).await == port {
            return client;
        }
    }
    panic!("nobody is served by shard {shard}");
}

/// READ COMMITTED, and three that keep their snapshots.
const LEVELS: [&str; 4] = [
    "BEGIN",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "SET default_transaction_isolation = 'repeatable read'; BEGIN",
];

/// An open transaction of each level, with a snapshot on this shard and nothing else.
async fn opened(world: &World, shard: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for begin in LEVELS {
        let client = client_of(world, shard).await;
        for sql in begin.split(';') {
            client.batch_execute(sql).await.unwrap();
        }
        assert_eq!(value(&client, NO_BUCKET).await, world.cluster.primaries[shard - 1].port.to_string());
        clients.push(client);
    }
    clients
}

/// What each is answered; their transactions are over then.
async fn answers(clients: &[Client], sql: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for client in clients {
        answers.push(value(client, sql).await);
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(value(client, sql).await, "1", "the next one");
    }
    answers
}

fn ended() -> Vec<String> {
    ["1", "40001", "40001", "40001"].map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h30_a_snapshot_that_touched_no_bucket_is_not_taken_across_a_flip() {
    let world = World::start("snapshot-flip").await;
    let mut mover = Mover::new(&world).await;
    let moving = keys(1, 1)[0];
    let scope = buckets_of(&[moving]);
    let read = format!("SELECT count(*) FROM t WHERE k = {moving}");
    let row = format!("INSERT INTO t VALUES ({moving}, 1, 'a')");
    world.proxy.client().await.batch_execute(&row).await.unwrap();
    // Their snapshots on the target are older than the copy.
    let before = opened(&world, 3).await;
    let batch = flushed(&world).await;
    let version = mover.begin(1, &scope, 1, 3).await;
    mover.drained(version).await;
    world.cluster.primaries[2].client("postgres").await.batch_execute(&row).await.unwrap();
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let version = mover.flip(1, &scope, 1, 3, "flipped").await;
    mover.drained(version).await;
    let found = (answers(&before, &read).await, batch_goes_on(batch, &read).await);
    assert_eq!(found, (ended(), vec!["E40001".to_owned(), "ZI".to_owned()]), "rows that are missing");
}

/// A batch without its Sync, of a session whose transactions are REPEATABLE READ.
async fn flushed(world: &World) -> Raw {
    let mut raw = Raw::connect(world.proxy.port).await;
    assert_eq!(raw.query("SET default_transaction_isolation = 'repeatable read'").await, ["CSET", "ZI"]);
    let mut out = executed(NO_BUCKET);
    out.unsplit(executed(NO_BUCKET));
    frontend::flush(&mut out);
    raw.start(&out).await;
    assert_eq!(raw.answers(2).await, ["CSELECT 1", "CSELECT 1"]);
    raw
}

pub fn executed(sql: &str) -> bytes::BytesMut {
    let mut out = bytes::BytesMut::new();
    frontend::parse("", sql, [], &mut out).unwrap();
    let none = |_: &str, _: &mut bytes::BytesMut| Ok(postgres_protocol::IsNull::Yes);
    assert!(frontend::bind("", "", [], std::iter::empty::<&str>(), none, [], &mut out).is_ok());
    frontend::execute("", 0, &mut out).unwrap();
    out
}

async fn batch_goes_on(mut raw: Raw, sql: &str) -> Vec<String> {
    let mut out = executed(sql);
    frontend::sync(&mut out);
    raw.start(&out).await;
    raw.answers(1).await
}

/// Rows that are deleted at the end of a move are in older snapshots, and nothing says any more that they are not to be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h30_a_snapshot_is_not_taken_across_the_end_of_a_move() {
    let world = World::start("snapshot-end").await;
    let mut mover = Mover::new(&world).await;
    let moving = keys(1, 1)[0];
    let scope = buckets_of(&[moving]);
    let (scattered, by_key) =
        ("SELECT count(*) FROM t", format!("SELECT count(*) FROM t WHERE k = {moving}"));
    let (source, target) = (
        world.cluster.primaries[0].client("postgres").await,
        world.cluster.primaries[2].client("postgres").await,
    );
    let row = format!("INSERT INTO t VALUES ({moving}, 1, 'a')");
    let delete = format!("DELETE FROM t WHERE k = {moving}");
    world.proxy.client().await.batch_execute(&row).await.unwrap();

    // Given up: copies on the target are deleted.
    let version = mover.begin(1, &scope, 1, 3).await;
    mover.drained(version).await;
    target.batch_execute(&row).await.unwrap();
    let with_copies = opened(&world, 3).await;
    target.batch_execute(&delete).await.unwrap();
    let version = mover.end(1).await;
    mover.drained(version).await;
    let given_up = answers(&with_copies, scattered).await;

    // Finished: what was left on the source is deleted.
    let version = mover.begin(2, &scope, 1, 3).await;
    mover.drained(version).await;
    target.batch_execute(&row).await.unwrap();
    let version = mover.flip(2, &scope, 1, 3, "flipped").await;
    mover.drained(version).await;
    let in_window = opened(&world, 1).await;
    let by_its_key = opened(&world, 1).await;
    let rolled_back = opened(&world, 1).await;
    for client in &rolled_back {
        client.batch_execute("SAVEPOINT a").await.unwrap();
        assert_eq!(value(client, scattered).await, "1", "what is left over is hidden");
        client.batch_execute("ROLLBACK TO a").await.unwrap();
    }
    source.batch_execute(&delete).await.unwrap();
    let version = mover.end(2).await;
    mover.drained(version).await;
    assert_eq!(answers(&by_its_key, &by_key).await, ["1"; 4], "its owner has it, then and now");
    let finished = [answers(&in_window, scattered).await, answers(&rolled_back, scattered).await];
    assert_eq!((given_up, finished), (ended(), [ended(), ended()]), "rows that are seen twice");
}
