//! Every metric of the core, from one table: the field, its type, its name, its help text and its labels. Names follow
//! Prometheus (base units, `_total`), and no label holds a tenant: tenants are counted in SQL.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds, from 0.25 ms to 10 s: below the fastest HTTP answer and above the request time-out.
const SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Payments in a batch.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Makes one kind of metric, so that the table below needs no knowledge of how.
trait Make: Collector + Clone + Sized + 'static {
    const KIND: &'static str;
    fn make(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! make {
    ($($type:ident $kind:literal |$name:ident, $help:ident, $labels:ident, $buckets:ident| $build:expr;)*) => {$(
        impl Make for $type {
            const KIND: &'static str = $kind;
            #[allow(unused_variables)]
            fn make($name: &str, $help: &str, $labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> { $build }
        }
    )*};
}

make! {
    IntCounter "counter" |name, help, labels, buckets| IntCounter::new(name, help);
    IntCounterVec "counter" |name, help, labels, buckets| IntCounterVec::new(Opts::new(name, help), labels);
    IntGauge "gauge" |name, help, labels, buckets| IntGauge::new(name, help);
    IntGaugeVec "gauge" |name, help, labels, buckets| IntGaugeVec::new(Opts::new(name, help), labels);
    Gauge "gauge" |name, help, labels, buckets| Gauge::new(name, help);
    GaugeVec "gauge" |name, help, labels, buckets| GaugeVec::new(Opts::new(name, help), labels);
    Histogram "histogram" |name, help, labels, buckets|
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()));
    HistogramVec "histogram" |name, help, labels, buckets|
        HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels);
}

/// One line of the reference.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($field:ident: $type:ident = $name:literal, $help:literal, [$($label:literal),*] $(, $buckets:ident)?;)*) => {
        /// Handles of every metric. A hot path takes its child of a vector once and keeps it.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)*
        }

        /// What the reference and the dashboards' tests list.
        pub const TABLE: &[Described] = &[
            $(Described { name: $name, kind: <$type as Make>::KIND, help: $help, labels: &[$($label),*] },)*
        ];

        impl Metrics {
            fn build(registry: Registry) -> prometheus::Result<Metrics> {
                Ok(Metrics {
                    $($field: {
                        #[allow(unused_mut, unused_assignments)]
                        let mut buckets: &[f64] = &[];
                        $(buckets = $buckets;)?
                        let made = <$type as Make>::make($name, $help, &[$($label),*], buckets)?;
                        registry.register(Box::new(made.clone()))?;
                        made
                    },)*
                    registry,
                })
            }
        }
    };
}

metrics! {
    build_info: IntGaugeVec = "paycore_build_info", "Always 1; the labels say what runs.", ["version", "instance"];

    http_requests: IntCounterVec = "paycore_http_requests_total", "HTTP requests answered.", ["route", "code"];
    http_request_duration: HistogramVec = "paycore_http_request_duration_seconds", "From the request's headers read to the answer handed to the socket.", ["route"], SECONDS;
    http_connections: IntGauge = "paycore_http_connections", "Open client connections.", [];

    payments: IntCounterVec = "paycore_payments_total", "Payments answered, by their outcome.", ["status"];
    payments_active: IntGauge = "paycore_payments_active", "Payments accepted by a lane and not answered yet.", [];
    idempotency: IntCounterVec = "paycore_idempotency_total", "What became of idempotency keys: created, replayed, mismatch, in_flight.", ["outcome"];
    batch_transfers: Histogram = "paycore_batch_transfers", "Payments in one posting statement.", [], SIZES;
    batch_wait: Histogram = "paycore_batch_wait_seconds", "From joining a lane to being sent.", [], SECONDS;
    batch_queue_transfers: IntGaugeVec = "paycore_batch_queue_transfers", "Payments waiting in a lane.", ["shard"];
    batch_queue_limit: IntGauge = "paycore_batch_queue_limit", "Payments that may wait in one lane.", [];
    batch_bisections: IntCounter = "paycore_batch_bisections_total", "Batches split because one payment poisoned them.", [];
    post_duration: HistogramVec = "paycore_post_duration_seconds", "One posting statement, from sent to its rows read.", ["shard"], SECONDS;
    post_retries: IntCounterVec = "paycore_post_retries_total", "Posting statements sent again.", ["reason"];
    post_unknown: IntCounter = "paycore_post_unknown_total", "Postings whose outcome was unknown and had to be resolved by their keys.", [];
    post_timeouts: IntCounter = "paycore_post_timeouts_total", "Posting statements given up after their time-out.", [];
    breaker_open: IntGaugeVec = "paycore_breaker_open", "1 while a shard's circuit breaker refuses.", ["shard"];
    db_connections: IntGaugeVec = "paycore_db_connections", "Database connections of the pools.", ["pool", "state"];
    db_errors: IntCounterVec = "paycore_db_errors_total", "Database errors by SQLSTATE class.", ["class"];

    cache_requests: IntCounterVec = "paycore_cache_requests_total", "Cache reads: l1_hit, l2_hit, miss, coalesced (joined a load under way).", ["cache", "result"];
    cache_evictions: IntCounterVec = "paycore_cache_evictions_total", "In-process entries dropped: changed (here), remote (another instance), flush.", ["cache", "cause"];
    cache_entries: IntGaugeVec = "paycore_cache_entries", "Entries of the in-process level.", ["cache"];
    cache_redis_up: IntGauge = "paycore_cache_redis_up", "1 while the second level answers.", [];
    cache_redis_errors: IntCounterVec = "paycore_cache_redis_errors_total", "Failed operations on the second level.", ["operation"];
    cache_evictions_pending: IntGauge = "paycore_cache_evictions_pending", "Evictions not yet told to Redis.", [];

    outbox_pending_events: IntGaugeVec = "paycore_outbox_pending_events", "Unpublished events of a shard, counted by its relay, at most 50,000.", ["shard"];
    outbox_oldest_event_age: GaugeVec = "paycore_outbox_oldest_event_age_seconds", "Age of the oldest of those events.", ["shard"];
    outbox_published: IntCounterVec = "paycore_outbox_published_total", "Events acknowledged by Kafka and marked.", ["topic"];
    partition_days_ahead: GaugeVec = "paycore_partition_days_ahead", "Days for which a shard has partitions for payments, seen by its sweeper.", ["shard"];
    outbox_errors: IntCounterVec = "paycore_outbox_errors_total", "Failures of the relay: lease, claim, produce, stalled, mark, sweep, partitions.", ["reason"];
    outbox_leases: IntGauge = "paycore_outbox_leases", "Shards whose outbox this instance publishes.", [];
    outbox_batch_events: Histogram = "paycore_outbox_batch_events", "Events of one relay batch.", [], SIZES;
    outbox_deleted: IntCounter = "paycore_outbox_deleted_total", "Published rows removed after their retention.", [];

    commands: IntCounterVec = "paycore_commands_total", "Commands of the request topic: done, rejected, poison, expired, broken.", ["result"];
    command_retries: IntCounter = "paycore_command_retries_total", "Commands tried again because their shard did not answer.", [];
    notifications: IntCounterVec = "paycore_notifications_total", "Payment events seen by the notifier: delivered, duplicate, poison.", ["result"];
    consumer_errors: IntCounterVec = "paycore_consumer_errors_total", "Errors of a Kafka consumer.", ["topic"];
}

impl Metrics {
    /// A registry of its own with the process metrics (CPU, memory, descriptors, threads), so that two instances in
    /// one test process do not share counters. Fails only if two table entries have one name.
    pub fn new(instance: &str) -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Metrics::build(registry)?;
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), instance]).set(1);
        Ok(metrics)
    }

    /// The text exposition format.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_and_render() {
        let metrics = Metrics::new("test").expect("two metrics have one name");
        for entry in TABLE {
            assert!(entry.name.starts_with("paycore_"), "{}", entry.name);
            assert_eq!(entry.kind == "counter", entry.name.ends_with("_total"), "{}", entry.name);
            assert!(entry.help.ends_with('.'), "{}", entry.name);
            assert!(!entry.labels.contains(&"tenant"), "{}", entry.name);
        }
        metrics.payments.with_label_values(&["succeeded"]).inc();
        let text = metrics.render().expect("renders");
        assert!(text.contains("paycore_payments_total{status=\"succeeded\"} 1"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
