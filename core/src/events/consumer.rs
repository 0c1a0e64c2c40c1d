//! What the consumers share: settings, batches and offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

/// A client that has not closed by then is left to its thread.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Lets go of a consumer, or whatever else has one, on a thread of its own. Its `drop` waits for the broker to answer that it leaves
/// its group: while Kafka is away that would keep a thread of the runtime, and with it payments, from all else.
pub async fn close<T: Send + 'static>(client: T) {
    let (done, closed) = tokio::sync::oneshot::channel();
    let closing = std::thread::Builder::new().name("kafka-close".into()).spawn(move || {
        drop(client);
        // Nobody waits any more if it took too long.
        let _ = done.send(());
    });
    match closing {
        Ok(_) if tokio::time::timeout(CLOSE_LIMIT, closed).await.is_err() => {
            tracing::warn!("a Kafka client does not close within {CLOSE_LIMIT:?}");
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "no thread to close a Kafka client on"),
    }
}

/// R14's settings; the group's own name and how much a fetch waits for are the caller's.
pub fn settings(brokers: &str, group: &str, fetch_min_bytes: u32, fetch_wait: Duration) -> ClientConfig {
    let mut c = ClientConfig::new();
    c.set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("client.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("session.timeout.ms", "30000")
        .set("heartbeat.interval.ms", "10000")
        .set("fetch.min.bytes", fetch_min_bytes.to_string())
        .set("fetch.wait.max.ms", fetch_wait.as_millis().to_string())
        // Bounds what waits in librdkafka; its defaults would hold 64 MiB.
        .set("queued.min.messages", "10000")
        .set("queued.max.messages.kbytes", "16384")
        .set("reconnect.backoff.max.ms", "1000")
        // A consumer that retries a batch for a shard that is away must not be thrown out of its group meanwhile.
        .set("max.poll.interval.ms", "300000")
        .set_log_level(RDKafkaLogLevel::Error);
    c
}

/// A header's value as text.
pub fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let found = message.headers()?.iter().find(|h| h.key == name)?;
    std::str::from_utf8(found.value?).ok()
}

/// The offsets to commit once everything of a batch has its outcome.
#[derive(Default, Debug)]
pub struct Offsets(BTreeMap<i32, i64>);

impl Offsets {
    fn note(&mut self, partition: i32, offset: i64) {
        let next = self.0.entry(partition).or_insert(0);
        *next = (*next).max(offset + 1);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Next offset per partition.
    pub fn of(next: BTreeMap<i32, i64>) -> Offsets {
        Offsets(next)
    }

    /// Committed without waiting: a commit that is lost is a batch seen twice.
    pub fn commit<C: ConsumerContext + 'static>(
        &self,
        consumer: &StreamConsumer<C>,
        topic: &str,
        mode: CommitMode,
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in &self.0 {
            list.add_partition_offset(topic, *partition, Offset::Offset(*next))?;
        }
        consumer.commit(&list, mode)
    }
}

/// Waits for a message, then lets others gather for `gather`, and parses up to `max` of them in place. Cancel-safe if
/// `gather` is zero; otherwise only before the first message, and the caller cancels it only together with the consumer.
pub async fn batch<T, C: ConsumerContext + 'static>(
    consumer: &StreamConsumer<C>,
    max: usize,
    gather: Duration,
    mut parse: impl FnMut(&BorrowedMessage<'_>) -> T,
) -> Result<(Vec<T>, Offsets), KafkaError> {
    let mut parsed = Vec::new();
    let mut offsets = Offsets::default();
    let mut take = |message: BorrowedMessage<'_>, parsed: &mut Vec<T>| {
        offsets.note(message.partition(), message.offset());
        parsed.push(parse(&message));
    };
    take(consumer.recv().await?, &mut parsed);
    if !gather.is_zero() {
        tokio::time::sleep(gather).await;
    }
    while parsed.len() < max {
        match consumer.recv().now_or_never() {
            Some(Ok(message)) => take(message, &mut parsed),
            // An error now would come again; what was read comes first.
            Some(Err(_)) | None => break,
        }
    }
    Ok((parsed, offsets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    struct Slow(Duration);

    impl Drop for Slow {
        fn drop(&mut self) {
            std::thread::sleep(self.0);
        }
    }

    /// On a runtime of one thread, as a core has.
    #[tokio::test]
    async fn a_client_that_is_slow_to_close_keeps_nobody() {
        let begun = Instant::now();
        let others = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            begun.elapsed()
        };
        let long = Duration::from_millis(700);
        let ((), at) = tokio::join!(close(Slow(long)), others);
        assert!(at < long / 2 && begun.elapsed() >= long, "{at:?}");
    }
}
