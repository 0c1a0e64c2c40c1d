//! Shards and servers that are added by a reload, while clients go on.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::cluster::{Cluster, connect, take_port};
use crate::mover::{Mover, buckets_of};
use crate::proxy::{CONFIGURATION, Proxy, World, keys};

pub const TABLES: &str = "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id));
    CREATE TABLE rates (code text PRIMARY KEY, rate int NOT NULL)";

/// A proxy's configuration, which the test changes, and its console.
pub struct Told {
    path: std::path::PathBuf,
    pub console: Client,
}

impl Told {
    pub async fn start(cluster: &Cluster, configuration: impl Fn(String) -> String) -> (Self, Proxy, String) {
        let (port, http) = (take_port(), take_port());
        let all = cluster.configuration(port, http, CONFIGURATION);
        let all = all.replace("name = \"postgres\"\n", "name = \"postgres\"\nadmin = true\n");
        let proxy = Proxy::run(cluster, (port, http), &configuration(all.clone()));
        let console = connect(&format!("postgresql://postgres:postgres@127.0.0.1:{port}/admin")).await;
        (Self { path: cluster.directory.join(format!("proxy-{port}.toml")), console }, proxy, all)
    }

    /// Why not.
    pub async fn reload(&self, configuration: &str) -> Result<(), String> {
        std::fs::write(&self.path, configuration).unwrap();
        let answer = self.console.simple_query("RELOAD").await;
        answer.map(drop).map_err(|error| error.as_db_error().unwrap().detail().unwrap_or_default().to_owned())
    }

    /// Of SHOW SHARDS: (shard, role) of each server.
    pub async fn servers(&self) -> Vec<(String, String)> {
        let rows = self.console.simple_query("SHOW SHARDS").await.unwrap();
        let server = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                Some((row.get("shard").unwrap().to_owned(), row.get("role").unwrap().to_owned()))
            }
            _ => None,
        };
        rows.iter().filter_map(server).collect()
    }

    async fn until(&self, role: &str, count: usize) {
        let begun = Instant::now();
        loop {
            let servers = self.servers().await;
            if servers.iter().filter(|(_, known)| known == role).count() == count {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "not {count} of {role}: {servers:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn shard_block(cluster: &Cluster, shard: usize) -> String {
    format!(
        "[[shard]]\nid = {shard}\nprimary = \"127.0.0.1:{}\"\nreplicas = []\n",
        cluster.primaries[shard - 1].port
    )
}

/// What the proxy's row in the catalog says.
pub async fn known(mover: &Mover) -> Vec<i32> {
    mover.catalog.query_one("SELECT shards FROM shard_catalog.proxy", &[]).await.unwrap().get(0)
}

pub async fn until_known(mover: &Mover, shards: &[i32]) {
    let begun = Instant::now();
    while known(mover).await != shards {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}, not {shards:?}", known(mover).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// A client keeps its connection, an open transaction and prepared statements through reloads that fail and one that adds a
/// shard; then rows are given to the shard, and the client reads and writes them there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_added_while_clients_go_on() {
    let cluster = Cluster::start("grow", 5, false);
    let block = shard_block(&cluster, 5);
    let (told, proxy, all) = Told::start(&cluster, |all| all.replace(&block, "")).await;
    assert!(all.contains(&block));
    let world = World { proxy, cluster };
    let mut mover = Mover::new(&world).await;
    let fifth = world.cluster.primaries[4].client("app").await;
    let (of_one, of_two) = (keys(1, 4), keys(2, 2));
    let moving = of_one[0];

    let client = world.proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("INSERT INTO rates VALUES ('a', 1)").await.unwrap();
    let write = client.prepare("INSERT INTO t VALUES ($1, $2, $3)").await.unwrap();
    let read = client.prepare("SELECT note FROM t WHERE k = $1 AND id = $2").await.unwrap();
    for key in [of_one[1], of_two[0]] {
        client.execute(&write, &[&key, &1i32, &"before"]).await.unwrap();
    }
    client.batch_execute("BEGIN").await.unwrap();
    client.execute(&write, &[&of_two[0], &2i32, &"open"]).await.unwrap();
    client.batch_execute("INSERT INTO rates VALUES ('open', 2)").await.unwrap();
    until_known(&mover, &[1, 2, 3, 4]).await;

    // Reloads that fail say why and change nothing.
    let free = take_port();
    let nobody = all.replace(&block, &format!("[[shard]]\nid = 5\nprimary = \"127.0.0.1:{free}\"\n"));
    let second = world.cluster.primaries[1].port;
    let third = world.cluster.primaries[2].port;
    let admin = world.cluster.primaries[4].client("postgres").await;
    for (configuration, before, why) in [
        (nobody.clone(), "", vec!["shard 5", "it has no primary", "Connection refused"]),
        (all.clone(), "", vec!["shard 5", "public.t: it does not exist on shard 5"]),
        (all.clone(), TABLES, vec!["rows of reference tables", "\"public\".\"rates\""]),
    ] {
        fifth.batch_execute(before).await.unwrap();
        let error = told.reload(&configuration).await.unwrap_err();
        assert!(why.iter().all(|part| error.contains(part)), "{error}: {why:?}");
        assert_eq!(told.servers().await.len(), 4);
    }
    fifth.batch_execute("INSERT INTO rates VALUES ('a', 1)").await.unwrap();
    admin.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    let error = told.reload(&all).await.unwrap_err();
    assert!(error.contains("user app cannot log in") && error.contains("password"), "{error}");
    admin.batch_execute("ALTER ROLE app PASSWORD 'app'").await.unwrap();
    let taken = all.replace(&block, &format!("[[shard]]\nid = 5\nprimary = \"localhost:{second}\"\n"));
    let error = told.reload(&taken).await.unwrap_err();
    assert!(error.contains("other_shard"), "{error}");
    let renamed = all.replace(&block, "").replace(
        &format!("id = 3\nprimary = \"127.0.0.1:{third}\""),
        &format!("id = 9\nprimary = \"127.0.0.1:{third}\""),
    );
    let error = told.reload(&renamed).await.unwrap_err();
    assert!(error.contains("shard 3 is missing and owns 1024 buckets"), "{error}");
    let defining = world.proxy.client().await;
    defining.batch_execute("BEGIN").await.unwrap();
    defining.batch_execute("CREATE TABLE v (k int8 PRIMARY KEY)").await.unwrap();
    let error = told.reload(&all).await.unwrap_err();
    assert!(error.contains("has changed the schema and is still open"), "{error}");
    defining.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(told.servers().await.len(), 4);
    assert_eq!(count(&client, "SELECT count(*) FROM t").await, 3, "the transaction goes on");
    assert_eq!(known(&mover).await, [1, 2, 3, 4]);

    // Known from one moment on, to all that begins then.
    told.reload(&all).await.unwrap();
    assert_eq!(told.servers().await.last(), Some(&("5".to_owned(), "primary".to_owned())));
    assert_eq!(count(&client, "SELECT count(*) FROM t").await, 3, "over five shards in the open transaction");
    client.execute(&write, &[&of_one[1], &2i32, &"open"]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(
        known(&mover).await,
        [1, 2, 3, 4],
        "a transaction that began before has written a reference row"
    );
    let other = world.proxy.client().await;
    client.batch_execute("COMMIT").await.unwrap();
    until_known(&mover, &[1, 2, 3, 4, 5]).await;
    assert_eq!(count(&other, "SELECT count(*) FROM rates").await, 2);
    assert_eq!(
        count(&fifth, "SELECT count(*) FROM rates").await,
        1,
        "what the mover asks for before it begins"
    );
    // More of them than shards, which they would take in turn.
    for _ in 0..10 {
        let fresh = world.proxy.client().await;
        assert_eq!(count(&fresh, "SELECT count(*) FROM rates").await, 2, "never read where nothing is owned");
    }
    fifth.batch_execute("INSERT INTO rates VALUES ('open', 2)").await.unwrap();

    // Definitions and rows for every shard go to it.
    other.batch_execute("CREATE TABLE u (k int8 PRIMARY KEY); ").await.unwrap();
    other.batch_execute("INSERT INTO rates VALUES ('c', 3); UPDATE rates SET rate = rate + 1").await.unwrap();
    assert_eq!(count(&fifth, "SELECT sum(rate) FROM rates").await, 9);
    assert_eq!(count(&fifth, "SELECT count(*) FROM u").await, 0);

    // Buckets without rows are given to it.
    let scope = buckets_of(&[moving]);
    let version = mover.begin(1, &scope, 1, 5).await;
    mover.drained(version).await;
    let version = mover.stage(1, "holding").await;
    mover.drained(version).await;
    let version = mover.flip(1, &scope, 1, 5, "flipped").await;
    mover.drained(version).await;
    let version = mover.end(1).await;
    mover.drained(version).await;

    // The client goes on with what it has prepared, there and over several shards.
    client.execute(&write, &[&moving, &1i32, &"moved"]).await.unwrap();
    let note: String = client.query_one(&read, &[&moving, &1i32]).await.unwrap().get(0);
    assert_eq!(note, "moved");
    client.batch_execute("BEGIN").await.unwrap();
    client.execute(&write, &[&moving, &2i32, &"two phases"]).await.unwrap();
    client.execute(&write, &[&of_two[1], &1i32, &"two phases"]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.counts().await, [2, 3, 0, 0, 2]);
    assert_eq!(count(&client, "SELECT count(*) FROM t").await, 7);
    assert_eq!(count(&other, &format!("SELECT count(*) FROM t WHERE k = {moving}")).await, 2);
    world.eventually("SELECT count(*) FROM pg_prepared_xacts", &[0; 5]).await;
    // A definition that is prepared on all five.
    other.batch_execute("ALTER TABLE t ADD COLUMN more int").await.unwrap();
    assert_eq!(world.each("SELECT count(more) FROM t").await, [0; 5]);
}

/// Whoever does not know a shard that the catalog gives something to follows nothing newer, and says so; when its configuration
/// names the shard, it goes on without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_with_an_unknown_shard_is_not_followed_until_it_is_known() {
    let cluster = Cluster::start("grow-late", 5, false);
    let block = shard_block(&cluster, 5);
    let (told, proxy, all) = Told::start(&cluster, |all| all.replace(&block, "")).await;
    let world = World { proxy, cluster };
    let mut mover = Mover::new(&world).await;
    let client = world.proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    world.cluster.primaries[4].client("app").await.batch_execute(TABLES).await.unwrap();
    let moving = keys(1, 1)[0];
    let insert = format!("INSERT INTO t VALUES ({moving}, 1, 'late')");

    // As of a mover that does not ask, or one that this proxy was not there for.
    let scope = buckets_of(&[moving]);
    let version = mover.flip(1, &scope, 1, 5, "flipped").await;
    let begun = Instant::now();
    let note = "SELECT coalesce(note, '') FROM shard_catalog.proxy";
    loop {
        let said: String = mover.catalog.query_one(note, &[]).await.unwrap().get(0);
        if said.contains("shard 5") && said.contains("RELOAD") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{said:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mover.least("drained", 1).await < version, "nothing newer is acknowledged");
    told.reload(&all).await.unwrap();
    mover.drained(version).await;
    client.batch_execute(&insert).await.unwrap();
    assert_eq!(world.counts().await, [0, 0, 0, 0, 1]);
}

/// Replicas come and go; the primary does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_added_and_taken_out() {
    let cluster = Cluster::start("grow-replica", 1, true);
    let (primary, replica) = (cluster.primaries[0].port, cluster.replicas[0].port);
    let both = format!("replicas = [\"127.0.0.1:{replica}\"]");
    let (told, proxy, all) = Told::start(&cluster, |all| all.replace(&both, "replicas = []")).await;
    let alone = all.replace(&both, "replicas = []");
    let client = proxy.client().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("SET shard.read = 'replica'").await.unwrap();
    assert_eq!(serving(&client).await, primary);
    for _ in 0..2 {
        told.reload(&all).await.unwrap();
        told.until("replica", 1).await;
        client.batch_execute("INSERT INTO t VALUES (1, 1, 'x')").await.unwrap();
        let begun = Instant::now();
        while serving(&client).await != replica {
            assert!(begun.elapsed() < Duration::from_secs(20), "the replica serves nobody");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        told.reload(&alone).await.unwrap();
        told.until("primary", 1).await;
        assert_eq!(told.servers().await, [("1".to_owned(), "primary".to_owned())]);
        let begun = Instant::now();
        while serving(&client).await != primary {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is served still");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.batch_execute("DELETE FROM t").await.unwrap();
    }
    told.reload(&all).await.unwrap();
    told.until("replica", 1).await;
    let swapped = all.replace(&both, "replicas = []").replace(
        &format!("primary = \"127.0.0.1:{primary}\""),
        &format!("primary = \"127.0.0.1:{replica}\""),
    );
    let error = told.reload(&swapped).await.unwrap_err();
    assert!(error.contains("is the primary of shard 1"), "{error}");
    assert_eq!(told.servers().await.len(), 2);
}

/// The port of the server that answers a read by key.
async fn serving(client: &Client) -> u16 {
    let sql = "SELECT inet_server_port() FROM (SELECT count(*) FROM t WHERE k = 1) c";
    let port: i32 = client.query_one(sql, &[]).await.unwrap().get(0);
    port as u16
}
