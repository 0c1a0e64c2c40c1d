//! What Prometheus reads: names in base units, `_total` for counters, no label of a tenant.
//!
//! Workers count in plain cells of their own (`WorkerStats`); each of those counters becomes one family here, so a
//! new counter needs no second list. Gauges have the one table `Gauges`.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

/// A gauge's identity; the order of this enum is that of `GAUGES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauges {
    BuildInfo,
    MapEpoch,
    CatalogVersion,
    TablesDrifted,
    ClientConnections,
    ServerConnections,
    PoolWaiting,
    PoolLimit,
    BackendUp,
    Timeline,
    PreparedTransactions,
    CatalogSeen,
    LeaseValid,
    Motions,
    Holding,
}

/// (name, help)
pub const GAUGES: [(&str, &str); 15] = [
    ("shardproxy_build_info", "Version of the proxy, always 1."),
    ("shardproxy_map_epoch", "Epoch of the shard map in use."),
    ("shardproxy_catalog_version", "Changes of the schema seen since the start."),
    ("shardproxy_tables_drifted", "Tables that shards define differently and that are refused."),
    ("shardproxy_client_connections", "Client connections by state."),
    ("shardproxy_server_connections", "Server connections by shard, role, user and state."),
    ("shardproxy_pool_waiting", "Statements that wait for a server connection."),
    ("shardproxy_pool_limit", "Most server connections of a pool."),
    ("shardproxy_backend_up", "1 while the server answers and is used in its role."),
    ("shardproxy_shard_timeline", "Timeline of the shard's primary."),
    (
        "shardproxy_prepared_transactions",
        "Transactions over several shards that are prepared on a shard now.",
    ),
    ("shardproxy_catalog_seen", "Version of map and moves that is served."),
    ("shardproxy_lease_valid", "1 while this proxy's lease in the catalog runs."),
    ("shardproxy_motions", "Moves under way by stage."),
    ("shardproxy_holding", "Statements that wait because their buckets move."),
];

/// Collects samples and prints them in the text format of Prometheus.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<MetricFamily>,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    pub fn gauge(&mut self, gauge: Gauges, labels: Labels<'_>, value: f64) {
        let (name, help) = GAUGES[gauge as usize];
        let mut sample = Gauge::default();
        sample.set_value(value);
        self.metric(name, help, MetricType::GAUGE, labels).set_gauge(sample);
    }

    /// A worker's counter: `pool_waits` becomes `shardproxy_pool_waits_total`.
    pub fn counter(&mut self, name: &str, labels: Labels<'_>, value: u64) {
        let mut sample = Counter::default();
        sample.set_value(value as f64);
        let help = format!("{} since the start.", name.replace('_', " "));
        self.metric(&format!("shardproxy_{name}_total"), &help, MetricType::COUNTER, labels)
            .set_counter(sample);
    }

    fn metric(&mut self, name: &str, help: &str, kind: MetricType, labels: Labels<'_>) -> &mut Metric {
        let index = self.families.iter().position(|f| f.name() == name).unwrap_or_else(|| {
            let mut new = MetricFamily::default();
            new.set_name(name.to_owned());
            new.set_help(help.to_owned());
            new.set_field_type(kind);
            self.families.push(new);
            self.families.len() - 1
        });
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let metrics = self.families[index].mut_metric();
        metrics.push(Metric::from_label(labels.iter().map(pair).collect()));
        let last = metrics.len() - 1;
        &mut metrics[last]
    }

    /// With the process's own metrics (CPU, memory, descriptors) behind ours.
    pub fn print(mut self) -> Result<String, prometheus::Error> {
        self.families.extend(prometheus::gather());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.families, &mut text)?;
        String::from_utf8(text).map_err(|e| prometheus::Error::Msg(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.counter("pool_waits", &[("worker", "0")], 7);
        page.counter("pool_waits", &[("worker", "1")], 8);
        page.gauge(Gauges::MapEpoch, &[], 3.0);
        let text = page.print().expect("prints");
        assert!(text.contains("# TYPE shardproxy_pool_waits_total counter"));
        assert!(text.contains("shardproxy_pool_waits_total{worker=\"1\"} 8"));
        assert!(text.contains("shardproxy_map_epoch 3"));
        assert_eq!(text.matches("# TYPE shardproxy_pool_waits_total").count(), 1);
    }

    #[test]
    fn gauges_are_listed_in_the_order_of_the_enum() {
        assert_eq!(GAUGES[Gauges::PreparedTransactions as usize].0, "shardproxy_prepared_transactions");
        assert_eq!(GAUGES[Gauges::Holding as usize].0, "shardproxy_holding");
        assert_eq!(GAUGES[Gauges::PoolLimit as usize].0, "shardproxy_pool_limit");
    }
}
