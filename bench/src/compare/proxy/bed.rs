//! The servers of the comparison.
use super::ProxyArgs;
use crate::servers::peers::{self, BUCKETS, DATABASE, HASH_SEED, PASSWORD, SHARDS, USER};
use crate::servers::postgres::Postgres;
use crate::servers::{Directory, Server, free_ports, program};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use futures_util::{SinkExt, TryStreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tokio_postgres::Client;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    Direct,
    Haproxy,
    Pgbouncer,
    ShardProxy,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Peer::Direct => "direct",
            Peer::Haproxy => "haproxy",
            Peer::Pgbouncer => "pgbouncer",
            Peer::ShardProxy => "shard-proxy",
        })
    }
}

/// Dropped from the top: the proxies end before the servers behind them, the directory last.
pub struct Bed {
    proxies: Vec<(Peer, Server)>,
    pub single: Postgres,
    pub shards: Vec<Postgres>,
    pub script: PathBuf,
    pub rows: u32,
    pub proxy_binary: PathBuf,
    /// Of our proxy's metrics.
    pub proxy_http: u16,
    pub directory: Directory,
}

impl Bed {
    pub async fn start(args: &ProxyArgs) -> Result<Bed> {
        // Thousands of clients here and in the proxies, which inherit the limit.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
        let proxy_binary = if args.peers.contains(&Peer::ShardProxy) {
            peers::shard_proxy_binary(args.proxy_binary.as_ref())?
        } else {
            PathBuf::new()
        };
        let ports = free_ports(9, args.port_base)?;
        let directory = Directory::new("compare")?;
        let path = directory.path();
        // The plain server also holds HAProxy's clients, one backend each.
        let single = Postgres::start(
            path,
            "single",
            ports[0],
            &[("shared_buffers", "128MB"), ("max_connections", "400")],
        )?;
        let mut shards = Vec::new();
        for shard in 0..SHARDS {
            let settings = [("max_prepared_transactions", "20"), ("wal_level", "logical")];
            shards.push(Postgres::start(
                path,
                &format!("shard{}", shard + 1),
                ports[1 + shard as usize],
                &settings,
            )?);
        }
        for server in std::iter::once(&single).chain(&shards) {
            peers::prepare(server).await?;
        }
        load(&single, &shards, args.scale).await?;
        let script = path.join("select.sql");
        let rows = args.scale * 100_000;
        // \gset fails the client unless exactly one row comes back: a query sent to the wrong shard is an error.
        std::fs::write(
            &script,
            format!(
                "\\set aid random(1, {rows})\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid \\gset\n"
            ),
        )?;
        let shard_ports: Vec<u16> = shards.iter().map(|shard| shard.server.port).collect();
        let mut proxies = Vec::new();
        for &peer in &args.peers {
            let server = match peer {
                Peer::Direct => continue,
                Peer::Haproxy => peers::haproxy(path, ports[5], single.server.port)?,
                Peer::Pgbouncer => peers::pgbouncer(path, ports[6], single.server.port)?,
                Peer::ShardProxy => peers::shard_proxy(
                    &proxy_binary,
                    path,
                    (ports[7], ports[8]),
                    &shard_ports,
                    peers::PGBENCH_TABLE,
                )?,
            };
            proxies.push((peer, server));
        }
        let bed =
            Bed { proxies, single, shards, script, rows, proxy_binary, proxy_http: ports[8], directory };
        for &peer in &args.peers {
            bed.answers(peer)
                .await
                .with_context(|| format!("{peer} (log in {})", bed.directory.path().display()))?;
        }
        Ok(bed)
    }

    pub fn port(&self, peer: Peer) -> u16 {
        self.server(peer).map_or(self.single.server.port, |server| server.port)
    }

    pub fn server(&self, peer: Peer) -> Option<&Server> {
        self.proxies.iter().find(|(p, _)| *p == peer).map(|(_, server)| server)
    }

    /// Processes of the PostgreSQL servers behind a peer.
    pub fn postgres_pids(&self, peer: Peer) -> Vec<u32> {
        if peer == Peer::ShardProxy {
            self.shards.iter().map(|shard| shard.server.pid()).collect()
        } else {
            vec![self.single.server.pid()]
        }
    }

    pub fn url(&self, peer: Peer) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", self.port(peer))
    }

    /// A thousand keys spread over all shards come back, each once, from simple and extended queries.
    async fn answers(&self, peer: Peer) -> Result<()> {
        let mut last = None;
        for _ in 0..100 {
            match crate::measure::wal::connect(&self.url(peer)).await {
                Ok(client) => match self.keys_answer(&client).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let text = self.server(peer).map(|server| self.directory.path().join(format!("{}.log", server.name)));
        let log = text.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(10).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        match last {
            Some(error) => Err(error.context(format!("does not answer; its log ends:\n{tail}"))),
            None => Ok(()),
        }
    }

    async fn keys_answer(&self, client: &Client) -> Result<()> {
        for key in (1..=self.rows).step_by((self.rows / 200).max(1) as usize) {
            let sql = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {key}");
            let simple = client.simple_query(&sql).await?;
            let rows =
                simple.iter().filter(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(_))).count();
            let extended = client.query(&sql, &[]).await?.len();
            if (rows, extended) != (1, 1) {
                bail!(
                    "key {key} has {rows} rows by simple and {extended} by extended protocol, one expected"
                );
            }
        }
        Ok(())
    }
}

/// pgbench's table on the plain server, and each row on the shard that owns its bucket.
async fn load(single: &Postgres, shards: &[Postgres], scale: u32) -> Result<()> {
    let port = single.server.port.to_string();
    let made = Command::new(program("pgbench", "postgresql-contrib")?)
        .env("PGPASSWORD", PASSWORD)
        .args(["-i", "-q", "-s", &scale.to_string(), "-h", "127.0.0.1", "-p", &port, "-U", USER, DATABASE])
        .output()
        .context("cannot run pgbench")?;
    if !made.status.success() {
        bail!("pgbench -i failed: {}", String::from_utf8_lossy(&made.stderr));
    }
    let source = peers::app(single.server.port).await?;
    let quarter = BUCKETS / SHARDS;
    for (number, shard) in shards.iter().enumerate() {
        let target = peers::app(shard.server.port).await?;
        target
            .batch_execute("CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int, abalance int, filler char(84)) WITH (fillfactor = 100)")
            .await?;
        let low = number as u16 * quarter;
        let rows = source
            .copy_out(&format!(
                "COPY (SELECT * FROM pgbench_accounts \
                  WHERE hashint8extended(aid, {HASH_SEED}) & {} BETWEEN {low} AND {}) TO STDOUT",
                BUCKETS - 1,
                low + quarter - 1
            ))
            .await?;
        let mut rows = std::pin::pin!(rows);
        let sink = target.copy_in("COPY pgbench_accounts FROM STDIN").await?;
        let mut sink = std::pin::pin!(sink);
        while let Some(chunk) = rows.try_next().await? {
            sink.send(chunk).await?;
        }
        sink.finish().await?;
        target.batch_execute("ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)").await?;
        target.batch_execute("VACUUM ANALYZE pgbench_accounts").await?;
    }
    Ok(())
}
