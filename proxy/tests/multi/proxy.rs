//! The proxy's own binary as a child process, and a keyed table to write to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shard_config::{KeyType, ShardId, ShardMap};
use tokio_postgres::Client;

use crate::cluster::{Cluster, connect, take_port};

pub struct Proxy {
    child: Child,
    pub port: u16,
}

/// Tables by the column `k`; `rates` is a reference table. Each INSERT draws its own numbers, as with one PostgreSQL.
pub const CONFIGURATION: &str = "[key]\ncolumn = \"k\"\ntype = \"int8\"\n[sequences]\nblock = 1\n\
     [[table]]\nname = \"public.rates\"\nkind = \"reference\"\n";

impl Proxy {
    pub fn start(cluster: &Cluster) -> Self {
        let (port, http) = (take_port(), take_port());
        Self::run(cluster, (port, http), &cluster.configuration(port, http, CONFIGURATION))
    }

    /// Its transactions can be stopped by files in this directory: see `shard_proxy::twophase::fault`.
    pub fn start_with_faults(cluster: &Cluster, directory: &Path) -> Self {
        let (port, http) = (take_port(), take_port());
        let configuration = cluster.configuration(port, http, CONFIGURATION);
        Self::spawn(cluster, (port, http), &configuration, Some(directory))
    }

    /// With this configuration, which names these ports.
    pub fn run(cluster: &Cluster, ports: (u16, u16), configuration: &str) -> Self {
        Self::spawn(cluster, ports, configuration, None)
    }

    fn spawn(cluster: &Cluster, (port, _): (u16, u16), configuration: &str, faults: Option<&Path>) -> Self {
        let path = cluster.directory.join(format!("proxy-{port}.toml"));
        std::fs::write(&path, configuration).unwrap();
        let log = std::fs::File::create(cluster.directory.join(format!("proxy-{port}.log"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_shard-proxy"))
            .arg("--config")
            .arg(&path)
            .envs(faults.map(|directory| ("SHARD_PROXY_FAULT_DIR", directory)))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, port }
    }

    pub fn url(&self) -> String {
        format!("postgresql://app:app@127.0.0.1:{}/payments", self.port)
    }

    pub async fn client(&self) -> Client {
        connect(&self.url()).await
    }

    /// Bytes of memory that it has.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// STOP and CONT.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // One that is stopped would not hear of its end. (It may have ended.)
        let _ =
            Command::new("kill").args(["-CONT", &self.child.id().to_string()]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running cluster of four shards with the tables of these tests.
pub struct World {
    pub proxy: Proxy,
    pub cluster: Cluster,
}

impl World {
    pub async fn start(name: &str) -> Self {
        let cluster = Cluster::start(name, 4, false);
        let proxy = Proxy::start(&cluster);
        let client = proxy.client().await;
        client
            .batch_execute(
                "CREATE TABLE t (k int8 NOT NULL, id int NOT NULL, note text, PRIMARY KEY (k, id))",
            )
            .await
            .unwrap();
        client.batch_execute("CREATE TABLE rates (code text PRIMARY KEY, rate int NOT NULL)").await.unwrap();
        Self { proxy, cluster }
    }

    /// Rows of `t` on each shard, asked of the shards themselves.
    pub async fn counts(&self) -> Vec<i64> {
        self.each("SELECT count(*) FROM t").await
    }

    pub async fn each(&self, sql: &str) -> Vec<i64> {
        let mut values = Vec::new();
        for shard in &self.cluster.primaries {
            values.push(shard.client("postgres").await.query_one(sql, &[]).await.unwrap().get(0));
        }
        values
    }

    /// Removes all rows of `t`, on the shards themselves.
    pub async fn empty(&self) {
        for shard in &self.cluster.primaries {
            shard.client("postgres").await.batch_execute("DELETE FROM t").await.unwrap();
        }
    }

    /// Waits until no shard has a prepared transaction.
    pub async fn settled(&self) {
        self.eventually("SELECT count(*) FROM pg_prepared_xacts", &[0; 4]).await;
    }

    /// The same of the first shard only.
    pub async fn eventually_first(&self, sql: &str, expected: i64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let client = self.cluster.primaries[0].client("postgres").await;
        while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) != expected {
            assert!(Instant::now() < deadline, "{sql}: not {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn eventually(&self, sql: &str, expected: &[i64]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let values = self.each(sql).await;
            if values == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {values:?}, expected {expected:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// `count` keys of the shard with this number (from 1).
pub fn keys(shard: u16, count: usize) -> Vec<i64> {
    let map = ShardMap::even(&[ShardId(1), ShardId(2), ShardId(3), ShardId(4)], 4096);
    let on = |key: &i64| {
        let bucket = KeyType::Int8.bucket_of_text_value(key.to_string().as_bytes(), 4096).unwrap();
        map.shard_of(bucket) == ShardId(shard)
    };
    (0..).filter(on).take(count).collect()
}

pub fn key(shard: u16) -> i64 {
    keys(shard, 1)[0]
}

pub fn code(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| format!("{error:?}"), |e| e.code().code().to_owned())
}
