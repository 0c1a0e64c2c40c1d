//! Memory of a client that does nothing: connected, authenticated, one query made.
use super::bed::{Bed, Peer};
use crate::measure::wal::connect;
use crate::output::rounded;
use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::time::Duration;
use tokio_postgres::Client;

/// HAProxy opens a backend for each client: more would only measure PostgreSQL.
const MAX_HAPROXY_CLIENTS: u32 = 300;
const PAGE_KIB: f64 = 4.0;
const SETTLE: Duration = Duration::from_millis(1500);

#[derive(Serialize, Clone, Debug)]
pub struct Idle {
    #[serde(serialize_with = "super::report::display")]
    pub peer: Peer,
    pub clients: u32,
    /// Growth of the process a client: resident pages, and proportional share.
    pub rss_kib: f64,
    pub pss_kib: f64,
    /// Kernel memory of all TCP sockets of the machine, both ends of each connection, from /proc/net/sockstat.
    pub kernel_socket_kib: f64,
}

struct Memory {
    rss: f64,
    pss: f64,
    sockets: f64,
}

fn field(text: &str, label: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(label))?.split_ascii_whitespace().next()?.parse().ok()
}

fn memory(pid: u32) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
    let sockets = std::fs::read_to_string("/proc/net/sockstat").context("sockstat")?;
    let pages = sockets
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .and_then(|line| line.rsplit_once("mem ")?.1.trim().parse::<f64>().ok())
        .unwrap_or(0.0);
    Ok(Memory {
        rss: field(&rollup, "Rss:").context("no Rss")?,
        pss: field(&rollup, "Pss:").context("no Pss")?,
        sockets: pages * PAGE_KIB,
    })
}

async fn client(url: &str, key: u32) -> Result<Client> {
    let client = connect(url).await?;
    client.simple_query(&format!("SELECT abalance FROM pgbench_accounts WHERE aid = {key}")).await?;
    Ok(client)
}

async fn clients(url: &str, count: u32, rows: u32) -> Result<Vec<Client>> {
    stream::iter((0..count).map(|number| client(url, 1 + number * 7919 % rows)))
        .buffer_unordered(16)
        .try_collect()
        .await
}

pub async fn measure(bed: &Bed, peer: Peer, wanted: u32) -> Result<Idle> {
    let server = bed.server(peer).context("a direct connection has no proxy to measure")?;
    let count = if peer == Peer::Haproxy { wanted.min(MAX_HAPROXY_CLIENTS) } else { wanted };
    let url = bed.url(peer);
    // Server connections, caches and what the first clients cost once are not a price of each client.
    drop(clients(&url, 64.min(count), bed.rows).await?);
    tokio::time::sleep(SETTLE).await;
    let before = memory(server.pid())?;
    let open = clients(&url, count, bed.rows).await?;
    tokio::time::sleep(SETTLE).await;
    let after = memory(server.pid())?;
    let each = |before: f64, after: f64| rounded((after - before) / f64::from(count));
    let idle = Idle {
        peer,
        clients: count,
        rss_kib: each(before.rss, after.rss),
        pss_kib: each(before.pss, after.pss),
        kernel_socket_kib: each(before.sockets, after.sockets),
    };
    drop(open);
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(idle)
}
