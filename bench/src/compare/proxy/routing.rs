//! What routing itself adds to a statement: CPU time of the calls, and how often the grammar is asked.
use super::bed::{Bed, Peer};
use crate::measure::wal::connect;
use crate::output::rounded;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Constants of one shape.
const LITERALS: u64 = 10_000;

#[derive(Deserialize, Clone, Debug)]
struct Call {
    name: String,
    hot_ns: f64,
    cold_ns: f64,
}

#[derive(Serialize, Clone, Debug)]
pub struct RoutingCall {
    pub name: String,
    /// Called again and again.
    pub hot_us: f64,
    /// With the processor's caches taken away before each call.
    pub cold_us: f64,
}

#[derive(Serialize, Clone, Debug)]
pub struct Routing {
    pub calls: Vec<RoutingCall>,
    pub literals: u64,
    /// Statements that the proxy gave to the grammar meanwhile, by its own counter: simple and extended protocol.
    pub literals_analysed: u64,
    pub extended_literals_analysed: u64,
    /// The same text prepared by so many clients.
    pub clients: u64,
    pub clients_analysed: u64,
}

/// In the proxy of the bed, which has seen none of these statements.
pub async fn measure(bed: &Bed) -> Result<Routing> {
    let client = connect(&bed.url(Peer::ShardProxy)).await?;
    let http = bed.proxy_http;
    let before = analysed(http)?;
    for n in 0..LITERALS {
        client
            .simple_query(&format!(
                "SELECT bid, abalance FROM pgbench_accounts WHERE aid = {n} AND bid < {n}"
            ))
            .await?;
    }
    let simple = analysed(http)?;
    for n in 0..LITERALS {
        client
            .query(&format!("SELECT bid, filler FROM pgbench_accounts WHERE aid = {n} AND bid < {n}"), &[])
            .await?;
    }
    let extended = analysed(http)?;
    const CLIENTS: u64 = 50;
    for n in 0..CLIENTS as i32 {
        let other = connect(&bed.url(Peer::ShardProxy)).await?;
        other.query("SELECT abalance + 1 FROM pgbench_accounts WHERE aid = $1", &[&n]).await?;
    }
    let clients = analysed(http)?;
    Ok(Routing {
        calls: calls(bed)?,
        literals: LITERALS,
        literals_analysed: simple - before,
        extended_literals_analysed: extended - simple,
        clients: CLIENTS,
        clients_analysed: clients - extended,
    })
}

/// The example that calls what a session calls, built as the measured proxy is.
fn calls(bed: &Bed) -> Result<Vec<RoutingCall>> {
    let output = Command::new(example(&bed.proxy_binary)?).arg("--json").output().context("route_bench")?;
    if !output.status.success() {
        bail!("route_bench failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let calls: Vec<Call> = serde_json::from_slice(&output.stdout).context("route_bench --json")?;
    let call = |c: Call| RoutingCall {
        name: c.name,
        hot_us: rounded(c.hot_ns / 1000.0),
        cold_us: rounded(c.cold_ns / 1000.0),
    };
    Ok(calls.into_iter().map(call).collect())
}

fn example(proxy: &std::path::Path) -> Result<PathBuf> {
    if let Some(workspace) = std::env::var_os("STACK_WORKSPACE") {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--profile", "perf", "-p", "shard-proxy", "--example", "route_bench"])
            .current_dir(workspace)
            .status()
            .context("cannot run cargo")?;
        anyhow::ensure!(built.success(), "route_bench cannot be built");
    }
    let beside = proxy.with_file_name("examples").join("route_bench");
    anyhow::ensure!(beside.is_file(), "{} is not built", beside.display());
    Ok(beside)
}

/// Sum of the workers' counters.
fn analysed(http: u16) -> Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", http)).context("the proxy's metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: proxy\r\n\r\n")?;
    let mut text = String::new();
    stream.take(4 << 20).read_to_string(&mut text)?;
    let lines = text.lines().filter(|line| line.starts_with("shardproxy_statements_analysed_total"));
    let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    anyhow::ensure!(!values.is_empty(), "the proxy does not count what it analyses");
    Ok(values.iter().sum::<f64>() as u64)
}
