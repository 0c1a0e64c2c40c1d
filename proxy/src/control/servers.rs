//! The addresses of every shard and the control plane's own connections to them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use shard_config::{Config, HostPort, ShardId, ShardServers};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::limits::{
    CONTROL_POOL, JOIN_STEP, PROBE_CONNECT, PROBE_QUERY, SERVERS_PER_SHARD_MAX, SHARDS_ADDED_MAX,
};
use crate::grow::Grow;

#[derive(Debug)]
pub struct Servers {
    /// By position, as in `State::shards`.
    pub shards: Grow<ShardAddresses>,
}

#[derive(Debug)]
pub struct ShardAddresses {
    pub id: ShardId,
    /// By slot: the configured primary, then the configured replicas, then what was added since.
    pub servers: Grow<Server>,
}

pub struct Server {
    pub address: SocketAddr,
    /// For one connection of its own: the prober's.
    pub connect: tokio_postgres::Config,
    /// As it was configured.
    place: HostPort,
    pool: Pool,
    /// False once a reload has taken it out of the configuration.
    wanted: watch::Sender<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Servers {
    /// Resolves every name once: an address that moves is a change of the configuration.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let shards = Grow::with_capacity(config.shards.len() + SHARDS_ADDED_MAX);
        for shard in &config.shards {
            let found = addresses(shard).map(|place| anyhow::Ok((place, address_of(place)?)));
            let found = found.collect::<anyhow::Result<Vec<_>>>()?;
            shards.push(ShardAddresses::new(config, shard, &found)?).ok().context("room for the shards")?;
        }
        Ok(Self { shards })
    }

    /// The last one: a number that was taken out and has come back has a place of its own for each time.
    pub fn position(&self, shard: ShardId) -> Option<usize> {
        let of_shard = self.shards.iter().enumerate().filter(|(_, known)| known.id == shard);
        of_shard.last().map(|(position, _)| position)
    }

    pub fn server(&self, shard: usize, slot: u16) -> &Server {
        &self.shards[shard].servers[slot as usize]
    }
}

impl ShardAddresses {
    fn new(config: &Config, shard: &ShardServers, found: &[(&HostPort, SocketAddr)]) -> anyhow::Result<Self> {
        let (id, servers) = (shard.id, Grow::with_capacity(SERVERS_PER_SHARD_MAX));
        for (place, address) in found {
            let full = |_| anyhow::anyhow!("shard {id} has more than {SERVERS_PER_SHARD_MAX} servers");
            servers.push(Server::new(config, place, *address)?).map_err(full)?;
        }
        Ok(Self { id, servers })
    }

    /// Of a shard that a reload adds.
    pub(super) async fn look_up(config: &Config, shard: &ShardServers) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for place in addresses(shard) {
            found.push((place, look_up(place).await?));
        }
        Self::new(config, shard, &found)
    }

    /// The slot of a server that was configured under this address, now or before.
    pub(super) fn slot_of(&self, place: &HostPort) -> Option<u16> {
        self.servers.iter().position(|server| server.place == *place).map(|slot| slot as u16)
    }
}

/// Every address of a shard, its configured primary first.
pub(super) fn addresses(shard: &ShardServers) -> impl Iterator<Item = &HostPort> {
    std::iter::once(&shard.primary).chain(&shard.replicas)
}

/// Blocks while it asks: only before there is anything else to do.
fn address_of(place: &HostPort) -> anyhow::Result<SocketAddr> {
    let found = (place.host.as_str(), place.port).to_socket_addrs();
    let mut found = found.with_context(|| format!("the address of {place}"))?;
    found.next().with_context(|| format!("{place} has no address"))
}

/// The same, while the proxy runs.
async fn look_up(place: &HostPort) -> anyhow::Result<SocketAddr> {
    let asked = timeout(JOIN_STEP, lookup_host((place.host.as_str(), place.port))).await;
    let found = asked.with_context(|| format!("the address of {place}: no answer"))?;
    let mut found = found.with_context(|| format!("the address of {place}"))?;
    found.next().with_context(|| format!("{place} has no address"))
}

impl Server {
    /// Of a server that a reload adds.
    pub(super) async fn look_up(config: &Config, place: &HostPort) -> anyhow::Result<Self> {
        Self::new(config, place, look_up(place).await?)
    }

    fn new(config: &Config, place: &HostPort, address: SocketAddr) -> anyhow::Result<Self> {
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
        Ok(Self { address, connect, place: place.clone(), pool, wanted: watch::Sender::new(true) })
    }

    pub fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    pub(super) fn want(&self, wanted: bool) {
        self.wanted.send_replace(wanted);
    }

    /// Of a shard that has left: nothing connects to it any more, and what is idle closes.
    pub(super) fn close(&self) {
        self.want(false);
        self.pool.close();
    }

    /// Returns when it is in the configuration, or is not any more.
    pub(super) async fn wanted(&self, is: bool) {
        // The sender is `self`, so the wait does not fail.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted == is).await;
    }

    pub async fn client(&self) -> anyhow::Result<Object> {
        self.pool.get().await.with_context(|| format!("control connection to {}", self.address))
    }
}
