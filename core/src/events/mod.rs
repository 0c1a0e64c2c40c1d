//! Kafka besides the relay: topics, payment requests, notifications.
//!
//! - [`topics`]: makes the topics and refuses ones with another number of partitions.
//! - [`consumer`]: what both consumers do: settings, batches, offsets.
//! - [`command`]: payment requests from a topic, posted by the same lanes as those from HTTP. `line` (PURE) keeps those of
//!   a shard that is away from holding up others, `processor` reads the topic.
//! - [`notify`]: payment events to a sink, each acted on once. [`seen`]: the ids already acted on.
//!
//! Invariants: an offset is committed only after the outcome of its message is durable (in the ledger, in the dead letter
//! topic, or with the sink), so a message may be seen twice and is never lost; every buffer is bounded; a message that can
//! never be executed goes to the dead letter topic and holds nobody up.

pub mod command;
pub mod consumer;
mod line;
pub mod notify;
mod processor;
pub mod seen;
pub mod topics;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

/// What became of payments: one event a stored payment.
pub const PAYMENT_TOPIC: &str = "payments.payment.v1";
/// Payment requests, executed as if they had come by HTTP.
pub const COMMAND_TOPIC: &str = "payments.command.v1";
/// Messages of [`COMMAND_TOPIC`] that can never be executed, with the reason in the header `error_code`.
pub const COMMAND_DLQ_TOPIC: &str = "payments.command.v1.dlq";
/// Partitions of every topic. Fixed: another number would place keys anew and break the order per account (H34).
pub const PARTITIONS: i32 = 12;

#[derive(Clone, Debug)]
pub struct EventsConfig {
    pub brokers: String,
    /// Consumer group of the payment requests (R14).
    pub command_group: String,
    pub notification_group: String,
    pub command_topic: String,
    pub dlq_topic: String,
    pub payment_topic: String,
    /// For sinks that want the inbox table.
    pub database: tokio_postgres::Config,
    /// Messages handled together (R14: max.poll 2000). Commands: at most a quarter of a lane's queue.
    pub batch: usize,
    pub command_batch: usize,
    /// Commands of one shard that wait in memory while it is away, by number and by bytes; then the partitions that bring
    /// more of them are not read.
    pub line_commands: usize,
    pub line_bytes: usize,
    /// A command that the program or the schema refuses for this long is a dead letter: time for an operator to repair it.
    pub broken_patience: Duration,
}

impl EventsConfig {
    pub fn new(database: tokio_postgres::Config, brokers: &str) -> EventsConfig {
        EventsConfig {
            brokers: brokers.to_owned(),
            command_group: "payment-processor".to_owned(),
            notification_group: "payment-notifier".to_owned(),
            command_topic: COMMAND_TOPIC.to_owned(),
            dlq_topic: COMMAND_DLQ_TOPIC.to_owned(),
            payment_topic: PAYMENT_TOPIC.to_owned(),
            database,
            batch: 2_000,
            command_batch: 1_000,
            line_commands: 20_000,
            line_bytes: 32 * 1024 * 1024,
            broken_patience: Duration::from_secs(600),
        }
    }
}

/// The running consumers; [`Events::stop`] ends them.
pub struct Events {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Events {
    /// Starts the consumers; Kafka need not be there yet.
    pub fn start(
        config: EventsConfig,
        poster: Arc<dyn command::Poster>,
        sink: Arc<dyn notify::Sink>,
        metrics: Arc<Metrics>,
    ) -> Events {
        let (stop, stopped) = watch::channel(false);
        let commands = processor::Worker::new(config.clone(), poster, metrics.clone());
        let notifications = notify::Worker::new(config, sink, metrics);
        let tasks =
            vec![tokio::spawn(commands.run(stopped.clone())), tokio::spawn(notifications.run(stopped))];
        Events { stop, tasks }
    }

    /// Waits for the batches under way. Messages without an outcome are delivered again, here or elsewhere.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
