//! The producer. One for all relays of an instance: librdkafka sends a request for each partition, so the events of four
//! shards in one producer cost the broker a quarter of the requests that four producers would.
//!
//! A producer is used until the first failure and then replaced whole. Its idempotence ends with its session (H34), so a
//! failed message could otherwise be sent again after its successors; [`Publisher::replace`] purges everything that the
//! old one still holds, which fails the batches of all relays, and each starts again at its first unmarked row. Before
//! it purges, the old one is closed to all relays: what one of them handed over after the purge would be transmitted
//! although its predecessors were purged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, NoCustomPartitioner, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use tokio::sync::Notify;

use super::event::Scratch;

#[derive(Clone, Debug)]
pub struct PublisherConfig {
    pub brokers: String,
    pub topic: String,
    /// CloudEvents source.
    pub source: String,
    pub profile: Profile,
}

/// How much may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// acks=all, idempotent, in order.
    Durable,
    /// The source system's settings (R13): acks=1, no idempotence, no retries, linger 50 ms, 20 in flight. A broker that
    /// fails over may lose acknowledged events and reorder others.
    FastUnsafe,
}

impl PublisherConfig {
    pub fn new(brokers: &str) -> PublisherConfig {
        PublisherConfig {
            brokers: brokers.to_owned(),
            topic: crate::events::PAYMENT_TOPIC.to_owned(),
            source: "/payment-core".to_owned(),
            profile: Profile::Durable,
        }
    }

    /// The producer's settings; public so that a test can hold them against what R13 and H34 ask.
    pub fn settings(&self) -> ClientConfig {
        let mut c = ClientConfig::new();
        c.set("bootstrap.servers", &self.brokers)
            .set("client.id", "payment-core-relay")
            .set("compression.type", "lz4")
            .set("batch.size", "131072")
            .set("batch.num.messages", "10000")
            // 256 MiB at most in librdkafka; a relay has one batch under way, so it never comes near.
            .set("queue.buffering.max.kbytes", "262144")
            .set("queue.buffering.max.messages", "100000")
            // librdkafka never gives a message up by time: then it could leave a hole in an account's sequence.
            .set("message.timeout.ms", "0")
            // As the Java client places keys, so that other producers and stream processors agree with us.
            .set("partitioner", "murmur2_random")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true");
        match self.profile {
            Profile::Durable => c
                .set("acks", "all")
                .set("enable.idempotence", "true")
                .set("enable.gapless.guarantee", "true")
                .set("max.in.flight.requests.per.connection", "5")
                // R13 has 5 to 50. Enough for the relays of several shards to fill one batch.
                .set("linger.ms", "10"),
            Profile::FastUnsafe => c
                .set("acks", "1")
                .set("enable.idempotence", "false")
                .set("retries", "0")
                .set("max.in.flight.requests.per.connection", "20")
                .set("linger.ms", "50"),
        };
        c
    }
}

/// Events handed over together and waited for together.
pub struct Batch {
    /// Not yet reported, plus one while events are still added.
    open: AtomicUsize,
    failed: AtomicBool,
    reason: Mutex<Option<String>>,
    done: Notify,
}

impl Batch {
    pub fn new() -> Arc<Batch> {
        Arc::new(Batch {
            open: AtomicUsize::new(1),
            failed: AtomicBool::new(false),
            reason: Mutex::new(None),
            done: Notify::new(),
        })
    }

    fn report(&self, outcome: Result<(), String>) {
        if let Err(reason) = outcome {
            self.reason.lock().get_or_insert(reason);
            self.failed.store(true, Ordering::Release);
            // Waiting for the rest would be waiting for what is going to be purged.
            self.done.notify_one();
        }
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// No more events follow.
    pub fn seal(&self) {
        self.report(Ok(()));
    }

    /// Waits until all are acknowledged or one has failed. Cancel-safe.
    pub async fn acknowledged(&self) -> Result<(), String> {
        loop {
            let woken = self.done.notified();
            if self.failed.load(Ordering::Acquire) {
                return Err(self.reason.lock().clone().unwrap_or_default());
            }
            if self.open.load(Ordering::Acquire) == 0 {
                return Ok(());
            }
            woken.await;
        }
    }
}

/// Passes delivery reports to their batch.
pub struct Reports;

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka");
    }
    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = Arc<Batch>;
    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        batch.report(match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.to_string()),
        });
    }
}

/// One producer's life.
pub struct Session {
    number: u64,
    topic: String,
    producer: ThreadedProducer<Reports>,
    /// Set before the producer is purged. Held for reading while an event is handed over, so that every event is either
    /// there to be purged or refused.
    given_up: RwLock<bool>,
}

impl Session {
    /// Hands one event over; its batch gets the outcome. `Err` if it was not taken: nothing after it may be sent.
    pub fn send(&self, scratch: &Scratch, batch: &Arc<Batch>) -> Result<(), SendError> {
        let mut headers = OwnedHeaders::new_with_capacity(super::event::Headers::NAMES.len());
        for (key, value) in scratch.headers.iter() {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let given_up = self.given_up.read();
        if *given_up {
            return Err(SendError::GivenUp);
        }
        batch.open.fetch_add(1, Ordering::AcqRel);
        let record = BaseRecord::with_opaque_to(&self.topic, batch.clone())
            .key(scratch.key.as_str())
            .payload(scratch.value.as_str())
            .headers(headers);
        self.producer.send(record).map_err(|(error, _)| {
            batch.open.fetch_sub(1, Ordering::AcqRel);
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
                other => SendError::Refused(other),
            }
        })
    }

    /// Takes nothing more and forgets what it holds.
    fn give_up(&self) {
        *self.given_up.write() = true;
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Another relay has given the producer up: this one's events were purged with it.
    #[error("the producer was given up")]
    GivenUp,
    /// Try the same event again a little later.
    #[error("the producer's queue is full")]
    QueueFull,
    #[error(transparent)]
    Refused(KafkaError),
}

pub struct Publisher {
    config: PublisherConfig,
    current: Mutex<Option<Arc<Session>>>,
    next: AtomicUsize,
}

impl Publisher {
    pub fn new(config: PublisherConfig) -> Result<Publisher, KafkaError> {
        let publisher = Publisher { config, current: Mutex::new(None), next: AtomicUsize::new(1) };
        publisher.session()?;
        Ok(publisher)
    }

    pub fn source(&self) -> &str {
        &self.config.source
    }

    pub fn topic(&self) -> &str {
        &self.config.topic
    }

    /// The producer in use; a new one after [`Publisher::replace`].
    pub fn session(&self) -> Result<Arc<Session>, KafkaError> {
        let mut current = self.current.lock();
        if let Some(session) = &*current {
            return Ok(session.clone());
        }
        let producer = self.config.settings().create_with_context(Reports)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let session = Arc::new(Session {
            number,
            topic: self.config.topic.clone(),
            producer,
            given_up: RwLock::new(false),
        });
        *current = Some(session.clone());
        Ok(session)
    }

    /// Gives `failed` up, with everything that it still holds, if nobody has yet.
    pub fn replace(&self, failed: &Arc<Session>) {
        let mut current = self.current.lock();
        if let Some(session) = current.take_if(|session| session.number == failed.number) {
            drop(current);
            session.give_up();
            tokio::task::spawn_blocking(move || close(session));
        }
    }

    /// Closes the producer. What it still holds is purged: its rows are unmarked and will be sent by the next relay.
    pub async fn close(&self) {
        let session = self.current.lock().take();
        if let Some(session) = session {
            session.give_up();
            let _ = tokio::task::spawn_blocking(move || close(session)).await;
        }
    }
}

/// Dropping a producer joins threads, so it must be the last holder and on a thread that may block. The relays let go of
/// a purged producer as soon as they see their batch fail.
fn close(mut session: Arc<Session>) {
    for _ in 0..500 {
        match Arc::try_unwrap(session) {
            Ok(last) => return drop(last),
            Err(shared) => session = shared,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h34_producer_settings_cannot_lose_or_reorder() {
        let settings = PublisherConfig::new("127.0.0.1:1").settings();
        for (key, expected) in [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("enable.gapless.guarantee", "true"),
            ("message.timeout.ms", "0"),
            ("compression.type", "lz4"),
            ("batch.size", "131072"),
            ("partitioner", "murmur2_random"),
        ] {
            assert_eq!(settings.get(key), Some(expected), "{key}");
        }
        // librdkafka checks the combination and the names when the client is made.
        for profile in [Profile::Durable, Profile::FastUnsafe] {
            let config = PublisherConfig { profile, ..PublisherConfig::new("127.0.0.1:1") };
            Publisher::new(config).expect("librdkafka takes the settings");
        }
    }

    #[tokio::test]
    async fn a_batch_is_done_when_sealed_and_reported_and_failed_at_the_first_failure() {
        let batch = Batch::new();
        batch.open.fetch_add(2, Ordering::AcqRel);
        batch.report(Ok(()));
        batch.seal();
        assert!(tokio::time::timeout(Duration::from_millis(20), batch.acknowledged()).await.is_err());
        batch.report(Ok(()));
        assert_eq!(batch.acknowledged().await, Ok(()));

        let batch = Batch::new();
        batch.open.fetch_add(2, Ordering::AcqRel);
        batch.report(Err("no".into()));
        assert_eq!(batch.acknowledged().await, Err("no".into()));
    }
}
