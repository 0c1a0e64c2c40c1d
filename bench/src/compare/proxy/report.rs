//! Medians, and the bars that they are held against.
use super::bed::{Bed, Peer};
use super::idle::Idle;
use super::pgbench::Run;
use super::routing::Routing;
use super::{Protocol, ProxyArgs};
use crate::output::{Table, median, optional, rounded, thousands};
use serde::{Serialize, Serializer};
use std::fmt::Write as _;

/// CPU microseconds of user code a query, total against the best peer of that protocol, KiB an idle client.
const MAX_USER_US: f64 = 6.0;
const GOAL_USER_US: f64 = 3.0;
const MAX_TOTAL_RATIO: f64 = 1.2;
const MAX_IDLE_KIB: f64 = 12.0;
/// CPU microseconds that routing adds to a statement seen before; analyses of one shape, whatever its constants.
const MAX_ROUTING_US: f64 = 2.0;
const REPEATED: [&str; 3] = ["simple", "extended", "prepared"];
/// A map of 4,096 buckets costs a query nothing, whoever owns them; nanoseconds more than with a bucket a shard,
/// of which a clock and another layout of the code take some. As many single tenants are looked for by halves.
const SMALL_MAP: &str = "prepared, map of 4 buckets";
const LARGER_MAPS: [(&str, f64); 2] =
    [("prepared, map of 4096 ranges", 10.0), ("prepared, map of 4096 ranges and 4096 tenants", 60.0)];
const BAR_CLIENTS: u32 = 16;

pub struct Cell {
    pub peer: Peer,
    pub mode: Protocol,
    pub clients: u32,
    pub runs: Vec<Run>,
}

pub fn display<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[derive(Serialize, Clone, Debug)]
pub struct Figures {
    #[serde(serialize_with = "display")]
    pub peer: Peer,
    #[serde(serialize_with = "display")]
    pub mode: Protocol,
    pub clients: u32,
    pub per_second: f64,
    pub latency_ms: f64,
    pub user_us: f64,
    pub system_us: f64,
    pub total_us: f64,
    /// Smallest and largest total of the rounds.
    pub total_us_spread: (f64, f64),
    pub postgres_us: f64,
    /// Total against PgBouncer's, in prepared mode against HAProxy's.
    pub total_ratio: Option<f64>,
    pub runs: Vec<Run>,
}

#[derive(Serialize, Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub bar: f64,
    pub ok: bool,
}

#[derive(Serialize, Clone, Debug)]
pub struct ProxyReport {
    pub cells: Vec<Figures>,
    pub idle: Vec<Idle>,
    pub routing: Option<Routing>,
    pub bars: Vec<Bar>,
    pub rounds: u32,
    pub seconds: u32,
    pub shards: u16,
    pub rows: u32,
    pub proxy_binary: String,
    pub load_average: Option<f64>,
}

fn middle(runs: &[Run], value: fn(&Run) -> f64) -> f64 {
    rounded(median(&mut runs.iter().map(value).collect::<Vec<f64>>()).unwrap_or(f64::NAN))
}

fn total(run: &Run) -> f64 {
    run.user_us + run.system_us
}

/// Whom our total is measured against.
fn measure_of(mode: Protocol) -> Peer {
    if mode == Protocol::Prepared { Peer::Haproxy } else { Peer::Pgbouncer }
}

impl ProxyReport {
    pub fn new(
        args: &ProxyArgs,
        bed: &Bed,
        cells: &[Cell],
        (idle, routing): (Vec<Idle>, Option<Routing>),
        load_average: Option<f64>,
    ) -> ProxyReport {
        let mut figures: Vec<Figures> = cells
            .iter()
            .map(|cell| {
                let totals = || cell.runs.iter().map(total);
                Figures {
                    peer: cell.peer,
                    mode: cell.mode,
                    clients: cell.clients,
                    per_second: middle(&cell.runs, |run| run.per_second),
                    latency_ms: middle(&cell.runs, |run| run.latency_ms),
                    user_us: middle(&cell.runs, |run| run.user_us),
                    system_us: middle(&cell.runs, |run| run.system_us),
                    total_us: middle(&cell.runs, total),
                    total_us_spread: (
                        rounded(totals().fold(f64::INFINITY, f64::min)),
                        rounded(totals().fold(0.0, f64::max)),
                    ),
                    postgres_us: middle(&cell.runs, |run| run.postgres_us),
                    total_ratio: None,
                    runs: cell.runs.clone(),
                }
            })
            .collect();
        for index in 0..figures.len() {
            let (mode, clients, own) = (figures[index].mode, figures[index].clients, figures[index].total_us);
            let base =
                figures.iter().find(|f| f.peer == measure_of(mode) && f.mode == mode && f.clients == clients);
            let ratio = base.filter(|base| base.total_us > 0.0).map(|base| rounded(own / base.total_us));
            figures[index].total_ratio = ratio.filter(|_| figures[index].peer != Peer::Direct);
        }
        let mut bars = bars(&figures, &idle);
        bars.extend(routing.iter().flat_map(routing_bars));
        ProxyReport {
            cells: figures,
            idle,
            routing,
            bars,
            rounds: args.rounds,
            seconds: args.seconds,
            shards: crate::servers::peers::SHARDS,
            rows: bed.rows,
            proxy_binary: bed.proxy_binary.display().to_string(),
            load_average,
        }
    }

    /// True without our proxy among the peers: then there is nothing to hold against a bar.
    pub fn passed(&self) -> bool {
        self.bars.iter().all(|bar| bar.ok)
    }

    pub fn human(&self) -> String {
        let mut text = format!(
            "\npgbench select-by-key, {} rows, {} round(s) of {} s, medians; load average {}\n{}\n",
            thousands(self.rows.into()),
            self.rounds,
            self.seconds,
            optional(self.load_average, 1),
            self.proxy_binary
        );
        let mut groups: Vec<(Protocol, u32)> = self.cells.iter().map(|f| (f.mode, f.clients)).collect();
        groups.sort();
        groups.dedup();
        for (mode, clients) in groups {
            let _ = writeln!(text, "\n{mode}, {clients} client(s)");
            let mut table = Table::new(&[
                "",
                "queries/s",
                "latency ms",
                "user us",
                "system us",
                "CPU us/query",
                "spread",
                "ratio",
                "postgres us",
            ]);
            for f in self.cells.iter().filter(|f| f.mode == mode && f.clients == clients) {
                let own = |value: String| if f.peer == Peer::Direct { "-".to_owned() } else { value };
                table.row(vec![
                    f.peer.to_string(),
                    thousands(f.per_second as u64),
                    format!("{:.2}", f.latency_ms),
                    own(format!("{:.1}", f.user_us)),
                    own(format!("{:.1}", f.system_us)),
                    own(format!("{:.1}", f.total_us)),
                    own(format!("{:.0}-{:.0}", f.total_us_spread.0, f.total_us_spread.1)),
                    optional(f.total_ratio, 2),
                    format!("{:.1}", f.postgres_us),
                ]);
            }
            text.push_str(&table.render());
        }
        if !self.idle.is_empty() {
            text.push_str("\nmemory of an idle client (authenticated, one query made)\n");
            let mut table = Table::new(&["", "clients", "RSS KiB", "PSS KiB", "kernel sockets KiB"]);
            for idle in &self.idle {
                table.row(vec![
                    idle.peer.to_string(),
                    thousands(idle.clients.into()),
                    format!("{:.1}", idle.rss_kib),
                    format!("{:.1}", idle.pss_kib),
                    format!("{:.1}", idle.kernel_socket_kib),
                ]);
            }
            text.push_str(&table.render());
        }
        if let Some(routing) = &self.routing {
            text.push_str("\nrouting alone, CPU us a statement\n");
            let mut table = Table::new(&["", "hot", "cold caches"]);
            for call in &routing.calls {
                table.row(vec![
                    call.name.clone(),
                    format!("{:.3}", call.hot_us),
                    format!("{:.3}", call.cold_us),
                ]);
            }
            text.push_str(&table.render());
        }
        if !self.bars.is_empty() {
            text.push_str("\nbars\n");
            for bar in &self.bars {
                let verdict = if bar.ok { "ok    " } else { "MISSED" };
                let _ = writeln!(text, "  {verdict}  {}: {:.2} (bar {:.1})", bar.name, bar.value, bar.bar);
            }
        }
        text
    }
}

fn bars(figures: &[Figures], idle: &[Idle]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let ours = |f: &&Figures| f.peer == Peer::ShardProxy && f.clients == BAR_CLIENTS;
    for f in figures.iter().filter(ours) {
        let goal = if f.user_us <= GOAL_USER_US { " (the goal of 3 too)" } else { "" };
        bars.push(Bar {
            name: format!("{} {} clients: user us a query{goal}", f.mode, f.clients),
            value: f.user_us,
            bar: MAX_USER_US,
            ok: f.user_us <= MAX_USER_US,
        });
        if let Some(ratio) = f.total_ratio {
            bars.push(Bar {
                name: format!("{} {} clients: CPU against {}", f.mode, f.clients, measure_of(f.mode)),
                value: ratio,
                bar: MAX_TOTAL_RATIO,
                ok: ratio <= MAX_TOTAL_RATIO,
            });
        }
    }
    for idle in idle.iter().filter(|idle| idle.peer == Peer::ShardProxy) {
        bars.push(Bar {
            name: format!("KiB an idle client ({} clients, RSS)", idle.clients),
            value: idle.rss_kib,
            bar: MAX_IDLE_KIB,
            ok: idle.rss_kib <= MAX_IDLE_KIB,
        });
    }
    bars
}

fn routing_bars(routing: &Routing) -> Vec<Bar> {
    let bar = |name: String, value: f64, bar: f64| Bar { name, value, bar, ok: value <= bar };
    let repeated = routing.calls.iter().filter(|call| REPEATED.contains(&call.name.as_str()));
    let mut bars: Vec<Bar> = repeated
        .map(|call| {
            bar(format!("routing a {} statement: us, cold caches", call.name), call.cold_us, MAX_ROUTING_US)
        })
        .collect();
    let counts = [
        (format!("{} constants, simple: analyses", thousands(routing.literals)), routing.literals_analysed),
        (
            format!("{} constants, extended: analyses", thousands(routing.literals)),
            routing.extended_literals_analysed,
        ),
        (format!("one text of {} clients: analyses", routing.clients), routing.clients_analysed),
    ];
    bars.extend(counts.map(|(name, count)| bar(name, count as f64, 1.0)));
    // What was not measured is not a number, and so no bar holds.
    let hot_ns = |name: &str| {
        let found = routing.calls.iter().find(|call| call.name == name);
        found.map_or(f64::NAN, |call| call.hot_us * 1000.0)
    };
    bars.extend(LARGER_MAPS.map(|(name, most)| {
        bar(format!("{name}: ns more than with 4 buckets"), hot_ns(name) - hot_ns(SMALL_MAP), most)
    }));
    bars
}
