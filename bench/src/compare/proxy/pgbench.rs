//! One cell: pgbench for some seconds through one peer.
use super::Protocol;
use super::bed::{Bed, Peer};
use crate::measure::processes::{Cpu, trees};
use crate::servers::{peers, program};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::process::Command;

#[derive(Serialize, Clone, Debug)]
pub struct Run {
    pub queries: u64,
    pub per_second: f64,
    pub latency_ms: f64,
    /// Of the proxy's process, a query; zero for a direct connection.
    pub user_us: f64,
    pub system_us: f64,
    pub postgres_us: f64,
}

pub async fn run(bed: &Bed, peer: Peer, mode: Protocol, clients: u32, seconds: u32) -> Result<Run> {
    let mut command = Command::new(program("pgbench", "postgresql-contrib")?);
    command
        .env("PGPASSWORD", peers::PASSWORD)
        .args(["-n", "-h", "127.0.0.1", "-U", peers::USER, "-j", "1"])
        .args(["-p", &bed.port(peer).to_string(), "-M", &mode.to_string()])
        .args(["-c", &clients.to_string(), "-T", &seconds.to_string()])
        .arg("-f")
        .arg(&bed.script)
        .arg(peers::DATABASE);
    let proxy = bed.server(peer).map(|server| server.pid());
    let postgres = bed.postgres_pids(peer);
    let roots: Vec<u32> = proxy.iter().chain(&postgres).copied().collect();
    let (before, output, after) = tokio::task::spawn_blocking(move || {
        let before = trees(&roots);
        let output = command.output();
        (before, output, trees(&roots))
    })
    .await?;
    let output = output.context("cannot run pgbench")?;
    let (text, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() || problems.contains("error:") {
        bail!("pgbench through {peer}, {mode}, {clients} clients failed: {problems}");
    }
    let queries =
        number(&text, "number of transactions actually processed:").context("pgbench printed no count")?;
    if queries < 1.0 {
        bail!("pgbench through {peer}, {mode}, {clients} clients made no query: {problems}");
    }
    let spent = |pid: &u32| -> Cpu {
        let at = |sample: &std::collections::HashMap<u32, Cpu>| sample.get(pid).copied().unwrap_or_default();
        at(&after).since(at(&before))
    };
    let cpu = proxy.as_ref().map(spent).unwrap_or_default();
    let servers: u64 = postgres.iter().map(|pid| spent(pid).total_us()).sum();
    Ok(Run {
        queries: queries as u64,
        per_second: number(&text, "tps =").unwrap_or(queries / f64::from(seconds)),
        latency_ms: number(&text, "latency average =").unwrap_or(f64::NAN),
        user_us: cpu.user_us as f64 / queries,
        system_us: cpu.system_us as f64 / queries,
        postgres_us: servers as f64 / queries,
    })
}

/// The number after `label`, of a line such as "latency average = 0.123 ms".
fn number(text: &str, label: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.split_once(label)).map(|(_, rest)| rest.trim())?;
    rest.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn pgbench_15_output() {
        let text = "number of transactions actually processed: 123\nlatency average = 0.456 ms\ntps = 789.5 (without initial connection time)\n";
        assert_eq!(number(text, "number of transactions actually processed:"), Some(123.0));
        assert_eq!(number(text, "latency average ="), Some(0.456));
        assert_eq!(number(text, "tps ="), Some(789.5));
        assert_eq!(number("number of transactions actually processed: 77/100", "processed:"), Some(77.0));
    }
}
