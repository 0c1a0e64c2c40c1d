//! `bench compare memory`: what a query over all rows of four shards costs the proxy in memory.
//!
//! The shards hold one sharded table and nobody else's load. Each query is read to its last row, by a client that
//! reads as fast as it can or by one that stops now and then; the peak is the kernel's own high-water mark, reset before
//! each query, so nothing between two samples is missed.

use crate::measure::wal::connect;
use crate::output::{Table, rounded, thousands};
use crate::servers::peers::{self, BUCKETS, DATABASE, HASH_SEED, PASSWORD, SHARDS, USER};
use crate::servers::postgres::Postgres;
use crate::servers::{Directory, free_ports};
use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::TryStreamExt;
use serde::Serialize;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio_postgres::SimpleQueryMessage;

#[derive(Args, Clone, Debug)]
pub struct MemoryArgs {
    /// One JSON object on standard output instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Rows of the table, over all shards.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub rows: u64,
    /// The proxy to measure instead of this workspace's.
    #[arg(long)]
    pub proxy_binary: Option<PathBuf>,
    /// Lowest port to try; free ports otherwise.
    #[arg(long)]
    pub port_base: Option<u16>,
}

/// Growth that one query may cost.
const BAR_MIB: f64 = 64.0;
/// Keys of the table; each has as many rows as the others.
const KEYS: u64 = 1000;
/// A slow client stops so often, for so long.
const STOPS: u64 = 10;
const STOP: Duration = Duration::from_secs(2);

const CREATE: &str =
    "CREATE UNLOGGED TABLE entries (k int8 NOT NULL, id int8 NOT NULL, amount int8 NOT NULL, note text)";
const TABLE: &str =
    "[[table]]\nname = \"public.entries\"\nkind = \"sharded\"\nkey = \"k\"\ntype = \"int8\"\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Every row of the table.
    All,
    /// One row a key.
    Keys,
    /// One row for every row that a key has.
    Ids,
    One,
}

struct Query {
    name: &'static str,
    sql: &'static str,
    answer: Answer,
    slow: bool,
    extended: bool,
}

const QUERIES: [Query; 8] = [
    Query {
        name: "all rows, simple",
        sql: "SELECT * FROM entries",
        answer: Answer::All,
        slow: false,
        extended: false,
    },
    Query {
        name: "all rows, extended",
        sql: "SELECT * FROM entries",
        answer: Answer::All,
        slow: false,
        extended: true,
    },
    Query {
        name: "all rows, slow client",
        sql: "SELECT * FROM entries",
        answer: Answer::All,
        slow: true,
        extended: false,
    },
    Query {
        name: "ORDER BY",
        sql: "SELECT * FROM entries ORDER BY amount, id, k",
        answer: Answer::All,
        slow: false,
        extended: true,
    },
    Query {
        name: "ORDER BY, slow client",
        sql: "SELECT * FROM entries ORDER BY amount, id, k",
        answer: Answer::All,
        slow: true,
        extended: false,
    },
    Query {
        name: "one group a key",
        sql: "SELECT k, count(*), sum(amount), max(note) FROM entries GROUP BY k ORDER BY 3, 1",
        answer: Answer::Keys,
        slow: false,
        extended: true,
    },
    Query {
        name: "groups over all shards",
        sql: "SELECT id, count(*), avg(amount) FROM entries GROUP BY id",
        answer: Answer::Ids,
        slow: false,
        extended: true,
    },
    Query {
        name: "count of all",
        sql: "SELECT count(*), sum(amount), min(note), count(DISTINCT amount) FROM entries",
        answer: Answer::One,
        slow: false,
        extended: true,
    },
];

#[derive(Serialize, Clone, Debug)]
pub struct Figures {
    pub query: &'static str,
    pub sql: &'static str,
    pub rows: u64,
    pub seconds: f64,
    pub resident_before_mib: f64,
    pub peak_mib: f64,
    pub growth_mib: f64,
    pub ok: bool,
}

#[derive(Serialize, Clone, Debug)]
struct MemoryReport {
    rows: u64,
    shards: u16,
    bar_mib: f64,
    queries: Vec<Figures>,
    proxy_binary: String,
}

pub async fn run(args: MemoryArgs) -> Result<bool> {
    let binary = peers::shard_proxy_binary(args.proxy_binary.as_ref())?;
    let ports = free_ports(usize::from(SHARDS) + 2, args.port_base)?;
    let directory = Directory::new("memory")?;
    let path = directory.path();
    let each = args.rows.div_ceil(KEYS);
    let mut shards = Vec::new();
    for shard in 0..SHARDS {
        // Rows that are read once need no disk.
        let settings = [
            ("max_prepared_transactions", "20"),
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("max_wal_size", "4GB"),
        ];
        let server =
            Postgres::start(path, &format!("shard{}", shard + 1), ports[usize::from(shard)], &settings)?;
        peers::prepare(&server).await?;
        let low = shard * (BUCKETS / SHARDS);
        let client = peers::app(server.server.port).await?;
        client.batch_execute(CREATE).await?;
        let fill = format!(
            "INSERT INTO entries SELECT k, id, (k * 7919 + id * 104729) % 1000003, 'note of entry ' || id
             FROM generate_series(1, {KEYS}) k, generate_series(1, {each}) id
             WHERE hashint8extended(k, {HASH_SEED}) & {} BETWEEN {low} AND {}",
            BUCKETS - 1,
            low + BUCKETS / SHARDS - 1
        );
        client.batch_execute(&fill).await?;
        client.batch_execute("ANALYZE entries").await?;
        shards.push(server);
    }
    let shard_ports: Vec<u16> = shards.iter().map(|shard| shard.server.port).collect();
    let proxy_ports = (ports[usize::from(SHARDS)], ports[usize::from(SHARDS) + 1]);
    let proxy = peers::shard_proxy(&binary, path, proxy_ports, &shard_ports, TABLE)?;
    let url = format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", proxy.port);
    // What the first query costs once (connections, caches) is not the price of rows.
    connect(&url)
        .await?
        .simple_query("SELECT count(*), max(note) FROM entries WHERE id < 10 ORDER BY 1")
        .await?;
    let mut queries = Vec::new();
    for query in &QUERIES {
        let figures = measure(query, &url, proxy.pid(), each).await.with_context(|| query.name)?;
        if !args.json {
            eprintln!("{}: {:.0} s, {:.1} MiB more", figures.query, figures.seconds, figures.growth_mib);
        }
        queries.push(figures);
    }
    let ok = queries.iter().all(|figures| figures.ok);
    let report = MemoryReport {
        rows: each * KEYS,
        shards: SHARDS,
        bar_mib: BAR_MIB,
        queries,
        proxy_binary: binary.display().to_string(),
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{}", human(&report)),
    }
    Ok(ok)
}

fn human(report: &MemoryReport) -> String {
    let mut table = Table::new(&["query", "rows", "seconds", "before MiB", "peak MiB", "growth MiB"]);
    for one in &report.queries {
        table.row(vec![
            one.query.to_owned(),
            thousands(one.rows),
            format!("{:.1}", one.seconds),
            format!("{:.1}", one.resident_before_mib),
            format!("{:.1}", one.peak_mib),
            format!("{:.1}{}", one.growth_mib, if one.ok { "" } else { " MISSED" }),
        ]);
    }
    format!(
        "\nthe proxy's resident memory, {} rows on {} shards; a query may cost {} MiB\n\n{}",
        thousands(report.rows),
        report.shards,
        report.bar_mib,
        table.render()
    )
}

async fn measure(query: &Query, url: &str, pid: u32, each: u64) -> Result<Figures> {
    let expected = match query.answer {
        Answer::All => KEYS * each,
        Answer::Keys => KEYS,
        Answer::Ids => each,
        Answer::One => 1,
    };
    let client = connect(url).await?;
    // 5: the high-water mark becomes what is resident now.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the proxy's high-water mark")?;
    let before = status(pid, "VmRSS:")?;
    let begun = Instant::now();
    let mut rows = 0;
    let every = (expected / STOPS).max(1);
    let pause = async |rows: u64| {
        if query.slow && rows % every == 1 {
            tokio::time::sleep(STOP).await;
        }
    };
    if query.extended {
        let answer = client
            .query_raw(query.sql, std::iter::empty::<&(dyn tokio_postgres::types::ToSql + Sync)>())
            .await?;
        let mut answer = pin!(answer);
        while answer.try_next().await?.is_some() {
            rows += 1;
            pause(rows).await;
        }
    } else {
        let answer = client.simple_query_raw(query.sql).await?;
        let mut answer = pin!(answer);
        while let Some(message) = answer.try_next().await? {
            if let SimpleQueryMessage::Row(_) = message {
                rows += 1;
                pause(rows).await;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let peak = status(pid, "VmHWM:")?;
    if rows != expected {
        bail!("{rows} rows, {expected} expected");
    }
    let growth = (peak - before).max(0.0);
    Ok(Figures {
        query: query.name,
        sql: query.sql,
        rows,
        seconds: rounded(seconds),
        resident_before_mib: rounded(before),
        peak_mib: rounded(peak),
        growth_mib: rounded(growth),
        ok: growth < BAR_MIB,
    })
}

/// MiB of a line such as `VmHWM:     5812 kB`.
fn status(pid: u32, label: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy has ended")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(label)?.split_ascii_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {label}"))? / 1024.0)
}
