//! Reading a topic independently of the core's own consumers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

/// One message as stored.
#[derive(Debug, Clone)]
pub struct Stored {
    pub key: String,
    pub value: String,
    pub headers: HashMap<String, String>,
}

impl Stored {
    pub fn seq(&self) -> i64 {
        self.headers["ce_sequence"].parse().unwrap()
    }
}

/// Everything that is in the 12 partitions now, each in its stored order. Blocks.
pub fn read_all(brokers: &str, topic: &str) -> Vec<Stored> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "independent-reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut left = HashMap::new();
    let mut list = TopicPartitionList::new();
    for partition in 0..12 {
        let (low, high) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap();
        if high > low {
            left.insert(partition, high);
            list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&list).unwrap();
    let mut stored = Vec::new();
    let began = Instant::now();
    while !left.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "the topic could not be read to its end");
        let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
        let message = message.unwrap();
        if message.offset() + 1 >= left.get(&message.partition()).copied().unwrap_or(0) {
            left.remove(&message.partition());
        }
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        let headers = message
            .headers()
            .map(|headers| headers.iter().map(|h| (h.key.to_owned(), text(h.value))).collect());
        stored.push(Stored {
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers.unwrap_or_default(),
        });
    }
    stored
}

/// The contract of the outbox: in each account, first occurrences are 1, 2, 3, ... and repetitions are the same event.
/// Returns (distinct, repeated).
pub fn check_order(stored: &[Stored]) -> (usize, usize) {
    let mut next: HashMap<&str, i64> = HashMap::new();
    let mut ids: HashMap<(&str, i64), &str> = HashMap::new();
    let mut repeated = 0;
    for message in stored {
        let (key, seq, id) = (message.key.as_str(), message.seq(), message.headers["ce_id"].as_str());
        match ids.get(&(key, seq)) {
            Some(first) => {
                assert_eq!(*first, id, "event {seq} of {key} has two ids");
                repeated += 1;
            }
            None => {
                let expected = next.entry(key).or_insert(1);
                assert_eq!(seq, *expected, "account {key}: event {seq} came when {expected} was next");
                *expected += 1;
                ids.insert((key, seq), id);
            }
        }
    }
    (ids.len(), repeated)
}
