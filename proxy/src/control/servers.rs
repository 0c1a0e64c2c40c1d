//! The addresses of every shard and the control plane's own connections to them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use shard_config::{Config, HostPort, ShardId};
use tokio_postgres::NoTls;

use super::limits::{CONTROL_POOL, PROBE_CONNECT, PROBE_QUERY, SERVERS_PER_SHARD_MAX};

#[derive(Debug)]
pub struct Servers {
    /// By position, as in `State::shards`.
    pub shards: Vec<ShardAddresses>,
}

#[derive(Debug)]
pub struct ShardAddresses {
    pub id: ShardId,
    /// By slot: the configured primary, then the configured replicas.
    pub servers: Vec<Server>,
}

pub struct Server {
    pub address: SocketAddr,
    /// For one connection of its own: the prober's.
    pub connect: tokio_postgres::Config,
    pool: Pool,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Servers {
    /// Resolves every name once: an address that moves is a change of the configuration.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let shard = |servers: &shard_config::ShardServers| {
            let addresses = std::iter::once(&servers.primary).chain(&servers.replicas);
            let servers_of: Vec<Server> =
                addresses.map(|a| Server::new(config, a)).collect::<Result<_, _>>()?;
            anyhow::ensure!(
                servers_of.len() <= SERVERS_PER_SHARD_MAX,
                "shard {} has more than {SERVERS_PER_SHARD_MAX} servers",
                servers.id
            );
            Ok(ShardAddresses { id: servers.id, servers: servers_of })
        };
        Ok(Self { shards: config.shards.iter().map(shard).collect::<Result<_, anyhow::Error>>()? })
    }

    pub fn server(&self, shard: usize, slot: u16) -> &Server {
        &self.shards[shard].servers[slot as usize]
    }
}

impl Server {
    fn new(config: &Config, place: &HostPort) -> anyhow::Result<Self> {
        let address = (place.host.as_str(), place.port)
            .to_socket_addrs()
            .with_context(|| format!("the address of {place}"))?
            .next()
            .with_context(|| format!("{place} has no address"))?;
        let mut connect = tokio_postgres::Config::new();
        connect
            .hostaddr(address.ip())
            .port(address.port())
            .user(&config.control.user)
            .password(config.control.password.expose())
            .dbname(&config.proxy.database)
            .application_name(format!("shard-proxy {} control", config.proxy.name))
            .connect_timeout(PROBE_CONNECT)
            .tcp_user_timeout(PROBE_QUERY)
            .keepalives_idle(Duration::from_secs(10));
        let manager = Manager::from_config(
            connect.clone(),
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONTROL_POOL)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(PROBE_QUERY))
            .create_timeout(Some(PROBE_CONNECT))
            .recycle_timeout(Some(PROBE_QUERY))
            .build()
            .context("the control pool")?;
        Ok(Self { address, connect, pool })
    }

    pub async fn client(&self) -> anyhow::Result<Object> {
        self.pool.get().await.with_context(|| format!("control connection to {}", self.address))
    }
}
