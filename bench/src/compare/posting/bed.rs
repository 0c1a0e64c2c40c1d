//! The servers of the comparison, with the payment model and the same accounts on both sides.
use super::PostingArgs;
use crate::servers::peers::{self, BUCKETS, DATABASE, HASH_SEED, SHARDS};
use crate::servers::postgres::Postgres;
use crate::servers::{Directory, Server, free_ports};
use crate::stack::Shard;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub struct Tenant {
    pub id: Uuid,
    /// Where the bucket function puts it.
    pub shard: u16,
    pub accounts: Vec<Uuid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Direct,
    Proxy,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Target::Direct => "direct, 1 PostgreSQL",
            Target::Proxy => "shard-proxy, 4 shards",
        }
    }
}

/// Dropped from the top: the proxy ends before the servers behind it, the directory last.
pub struct Bed {
    proxy: Option<Server>,
    single: Postgres,
    shards: Vec<Postgres>,
    pub tenants: Vec<Tenant>,
    pub directory: Directory,
}

/// As the stack runs its shards, without a standby.
const SETTINGS: [(&str, &str); 4] = [
    ("wal_level", "logical"),
    ("max_prepared_transactions", "50"),
    ("max_wal_size", "4GB"),
    ("shared_buffers", "256MB"),
];

fn migrations() -> Result<Vec<PathBuf>> {
    let workspace = std::env::var_os("STACK_WORKSPACE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from);
    let directory = workspace.join("sql/migrations");
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    Ok(files)
}

async fn migrate(server: &Postgres) -> Result<()> {
    peers::prepare(server).await?;
    let client = peers::app(server.server.port).await?;
    for file in migrations()? {
        let text = std::fs::read_to_string(&file)?;
        client.batch_execute(&text).await.with_context(|| file.display().to_string())?;
    }
    // One partition is enough for a minute's measurement.
    client
        .batch_execute(
            "CREATE TABLE payments_rest PARTITION OF payments DEFAULT; CREATE TABLE entries_rest PARTITION OF entries DEFAULT",
        )
        .await?;
    Ok(())
}

impl Bed {
    pub async fn start(args: &PostingArgs) -> Result<Bed> {
        let ports = free_ports(7, args.port_base)?;
        let directory = Directory::new("posting")?;
        let path = directory.path();
        let single = Postgres::start(path, "single", ports[0], &SETTINGS)?;
        migrate(&single).await?;
        let mut shards = Vec::new();
        if !args.direct_only {
            for shard in 1..=SHARDS {
                let server =
                    Postgres::start(path, &format!("shard{shard}"), ports[shard as usize], &SETTINGS)?;
                migrate(&server).await?;
                shards.push(server);
            }
        }
        let mut bed = Bed { proxy: None, single, shards, tenants: Vec::new(), directory };
        bed.fill(args).await?;
        if !args.direct_only {
            let binary = peers::shard_proxy_binary(args.proxy_binary.as_ref())?;
            let behind: Vec<u16> = bed.shards.iter().map(|shard| shard.server.port).collect();
            let proxy = peers::shard_proxy(
                &binary,
                bed.directory.path(),
                (ports[5], ports[6]),
                &behind,
                peers::POSTING_FUNCTION,
            )?;
            bed.proxy = Some(proxy);
        }
        Ok(bed)
    }

    /// Straight into the shard that the bucket function names: the measured routing is not used to prepare itself.
    async fn fill(&mut self, args: &PostingArgs) -> Result<()> {
        let single = peers::app(self.single.server.port).await?;
        let mut targets = Vec::new();
        for shard in &self.shards {
            targets.push(peers::app(shard.server.port).await?);
        }
        for _ in 0..args.tenants {
            let id = Uuid::now_v7();
            let accounts: Vec<Uuid> = (0..args.accounts).map(|_| Uuid::now_v7()).collect();
            let sql = format!("SELECT (uuid_hash_extended($1, {HASH_SEED}) & {})::int4", BUCKETS - 1);
            let bucket: i32 = single.query_one(&sql, &[&id]).await?.get(0);
            let shard = bucket as u16 / (BUCKETS / SHARDS);
            for client in std::iter::once(&single).chain(targets.get(shard as usize)) {
                client
                    .execute("INSERT INTO tenants (tenant_id, name) VALUES ($1, 'posting')", &[&id])
                    .await?;
                client
                    .execute(
                        "INSERT INTO accounts (tenant_id, account_id, account_number, currency, posted_minor) \
                         SELECT $1, a, o::text, 'USD', 1000000000 FROM unnest($2::uuid[]) WITH ORDINALITY AS u (a, o)",
                        &[&id, &accounts],
                    )
                    .await?;
            }
            self.tenants.push(Tenant { id, shard, accounts });
        }
        Ok(())
    }

    pub fn targets(&self) -> Vec<Target> {
        if self.proxy.is_some() { vec![Target::Direct, Target::Proxy] } else { vec![Target::Direct] }
    }

    pub fn port(&self, target: Target) -> u16 {
        match (&self.proxy, target) {
            (Some(proxy), Target::Proxy) => proxy.port,
            _ => self.single.server.port,
        }
    }

    pub fn proxy_pid(&self, target: Target) -> Option<u32> {
        self.proxy.as_ref().filter(|_| target == Target::Proxy).map(Server::pid)
    }

    pub fn servers(&self, target: Target) -> Vec<&Postgres> {
        match target {
            Target::Direct => vec![&self.single],
            Target::Proxy => self.shards.iter().collect(),
        }
    }

    pub fn shards_of(&self, target: Target) -> Vec<Shard> {
        self.servers(target)
            .iter()
            .map(|server| Shard { id: 1, primary: server.url(DATABASE), replica: None })
            .collect()
    }
}
