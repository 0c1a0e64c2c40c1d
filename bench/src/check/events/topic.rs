//! The whole topic, read once from the beginning by a consumer of our own.
use super::super::report::Invariant;
use super::Content;
use anyhow::{Context, Result, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};
use uuid::Uuid;

const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a message for so long before the end of every partition, reading has failed.
const STALLED: Duration = Duration::from_secs(30);
/// Duplicates remembered to be compared with the outbox.
const MAX_DUPLICATES: usize = 2_000_000;

#[derive(Default)]
pub struct KafkaAccount {
    /// The sequence after the last first occurrence.
    pub next: u64,
    pub events: u64,
    pub digest: u64,
    pub partition: i32,
    pub matched: bool,
}

pub struct Topic {
    pub accounts: HashMap<Uuid, KafkaAccount>,
    /// Ids and digests of repetitions that differ from each other.
    pub duplicates: HashMap<(Uuid, u64), Vec<(Uuid, u64)>>,
    /// Repetitions beyond what is remembered.
    pub forgotten: u64,
    /// Messages of events that the outbox need not have any more.
    pub old: u64,
    pub messages: u64,
    pub events: u64,
    pub repeated: u64,
    pub order: Invariant,
    pub shape: Invariant,
    pub one_partition: Invariant,
    exponents: HashMap<String, usize>,
    /// The first sequence that both sides must have, where it is not 1.
    starts: HashMap<Uuid, u64>,
}

/// A message's parts that the contract fixes.
struct Event {
    account: Uuid,
    sequence: u64,
    id: Uuid,
    digest: u64,
}

/// The value's documented fields; others may be added.
#[derive(Deserialize)]
struct Value<'b> {
    event_id: Uuid,
    payment_id: Uuid,
    tenant_id: Uuid,
    debit_account_id: Uuid,
    credit_account_id: Uuid,
    #[serde(borrow)]
    amount: Cow<'b, str>,
    amount_minor: i64,
    #[serde(borrow)]
    currency: Cow<'b, str>,
    #[serde(borrow)]
    status: Cow<'b, str>,
    code: Option<String>,
    sequence: u64,
}

/// `exponents`: digits after the point of each currency. `starts`: the first sequence to compare, where it is not 1.
pub fn read(
    brokers: &str,
    name: &str,
    exponents: HashMap<String, usize>,
    starts: HashMap<Uuid, u64>,
) -> Result<Topic> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench-check")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("fetch.message.max.bytes", "4194304")
        .set("queued.max.messages.kbytes", "32768")
        .create()
        .context("cannot make a Kafka consumer")?;
    let metadata = consumer
        .fetch_metadata(Some(name), METADATA_TIMEOUT)
        .with_context(|| format!("no metadata of topic {name} from {brokers}"))?;
    let partitions: BTreeSet<i32> = metadata
        .topics()
        .iter()
        .filter(|topic| topic.name() == name && topic.error().is_none())
        .flat_map(|topic| topic.partitions().iter().map(|partition| partition.id()))
        .collect();
    if partitions.is_empty() {
        bail!("topic {name} does not exist on {brokers}");
    }
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(name, *partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let mut topic = Topic::new(exponents, starts);
    let mut open = partitions;
    let mut progress = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                topic.message(&message);
                progress = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
                progress = Instant::now();
            }
            // Transport errors are retried by the library; only silence ends the wait.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownTopicOrPartition))) => {
                bail!("topic {name} went away while it was read")
            }
            Some(Err(_)) | None => {
                if progress.elapsed() > STALLED {
                    bail!(
                        "Kafka sent nothing for {STALLED:?}; {} partition(s) of {name} not read to the end",
                        open.len()
                    );
                }
            }
        }
    }
    Ok(topic)
}

impl Topic {
    fn new(exponents: HashMap<String, usize>, starts: HashMap<Uuid, u64>) -> Topic {
        Topic {
            accounts: HashMap::new(),
            exponents,
            starts,
            duplicates: HashMap::new(),
            forgotten: 0,
            old: 0,
            messages: 0,
            events: 0,
            repeated: 0,
            order: Invariant::new(
                "kafka_order",
                "events whose first occurrence follows its account's previous one without a gap",
            ),
            shape: Invariant::new(
                "kafka_messages",
                "messages with the documented key, CloudEvents headers and a value that agrees",
            ),
            one_partition: Invariant::new("kafka_partition", "accounts with all events in one partition"),
        }
    }

    /// The first sequence of an account that both sides must have.
    pub fn start(&self, account: Uuid) -> u64 {
        self.starts.get(&account).copied().unwrap_or(1)
    }

    fn message(&mut self, message: &BorrowedMessage<'_>) {
        self.messages += 1;
        let partition = message.partition();
        let event = match parse(message, &self.exponents) {
            Ok(event) => event,
            Err(problem) => {
                return self.shape.expect(false, || {
                    format!("partition {partition} offset {}: {problem}", message.offset())
                });
            }
        };
        self.shape.examined += 1;
        self.event(&event, partition, message.offset());
    }

    fn event(&mut self, event: &Event, partition: i32, offset: i64) {
        let start = self.start(event.account);
        let examined = &mut self.one_partition.examined;
        let account = self.accounts.entry(event.account).or_insert_with(|| {
            *examined += 1;
            KafkaAccount { next: start, partition, ..KafkaAccount::default() }
        });
        if account.partition != partition {
            let first = account.partition;
            self.one_partition
                .violation(|| format!("account {}: partitions {first} and {partition}", event.account));
        }
        if event.sequence < start {
            self.old += 1;
            return;
        }
        if event.sequence < account.next {
            self.repeated += 1;
            if self.duplicates.len() < MAX_DUPLICATES {
                let seen = self.duplicates.entry((event.account, event.sequence)).or_default();
                if !seen.contains(&(event.id, event.digest)) {
                    seen.push((event.id, event.digest));
                }
            } else {
                self.forgotten += 1;
            }
            return;
        }
        self.events += 1;
        let expected = account.next;
        self.order.expect(event.sequence == expected, || {
            format!(
                "account {} partition {partition} offset {offset}: sequence {} where {expected} was next",
                event.account, event.sequence
            )
        });
        account.next = event.sequence + 1;
        account.events += 1;
        account.digest = account.digest.wrapping_add(event.digest);
    }
}

/// A decimal number as minor units, exactly: as many digits after the point as the currency has, no more, no fewer.
fn minor(text: &str, exponent: usize) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = match exponent {
        0 => (digits, ""),
        _ => digits.split_once('.')?,
    };
    let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() != exponent || !numeric(whole) || !numeric(fraction) {
        return None;
    }
    format!("{}{whole}{fraction}", &text[..text.len() - digits.len()]).parse().ok()
}

fn parse(message: &BorrowedMessage<'_>, exponents: &HashMap<String, usize>) -> Result<Event, String> {
    fn text(bytes: Option<&[u8]>) -> Option<&str> {
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok())
    }
    let key = text(message.key()).ok_or("no key")?;
    let headers = message.headers().ok_or("no headers")?;
    let header = |name: &str| {
        let found = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
        text(found).ok_or_else(|| format!("no header {name}"))
    };
    let id = |name: &str, value: &str| {
        Uuid::parse_str(value).map_err(|_| format!("{name} is not a uuid: {value}"))
    };
    if header("ce_specversion")? != "1.0" {
        return Err("ce_specversion is not 1.0".into());
    }
    header("ce_source")?;
    header("ce_time")?;
    let kind = header("ce_type")?;
    let expected_status = match kind {
        "payments.payment.succeeded" => "succeeded",
        "payments.payment.declined" => "declined",
        other => return Err(format!("unknown ce_type {other}")),
    };
    let account = id("key", key)?;
    let tenant = id("ce_tenantid", header("ce_tenantid")?)?;
    let event = id("ce_id", header("ce_id")?)?;
    let payment = id("ce_subject", header("ce_subject")?)?;
    let sequence: u64 =
        header("ce_sequence")?.parse().map_err(|_| "ce_sequence is not a number".to_owned())?;
    let payload = message.payload().ok_or("no value")?;
    let value: Value<'_> =
        serde_json::from_slice(payload).map_err(|error| format!("value is not as documented: {error}"))?;
    for (name, inside, outside) in [
        ("event_id", value.event_id, event),
        ("payment_id", value.payment_id, payment),
        ("tenant_id", value.tenant_id, tenant),
        ("debit_account_id", value.debit_account_id, account),
    ] {
        if inside != outside {
            return Err(format!("value has {name} {inside}, key or headers say {outside}"));
        }
    }
    if value.sequence != sequence {
        return Err(format!("value has sequence {}, ce_sequence is {sequence}", value.sequence));
    }
    if value.status != expected_status {
        return Err(format!("value has status {}, ce_type is {kind}", value.status));
    }
    let exponent = *exponents
        .get(value.currency.as_ref())
        .ok_or_else(|| format!("no shard knows the currency {}", value.currency))?;
    if minor(&value.amount, exponent) != Some(value.amount_minor) {
        return Err(format!(
            "value has amount {} {} and amount_minor {}",
            value.amount, value.currency, value.amount_minor
        ));
    }
    let content = Content {
        tenant,
        account,
        sequence,
        event,
        payment,
        kind,
        status: &value.status,
        credit_account: value.credit_account_id,
        amount_minor: value.amount_minor,
        currency: &value.currency,
        code: value.code.as_deref(),
    };
    Ok(Event { account, sequence, id: event, digest: content.digest() })
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn amounts_are_read_exactly_or_not_at_all() {
        for (text, exponent, expected) in [
            ("12.05", 2, Some(1205)),
            ("0.05", 2, Some(5)),
            ("-0.05", 2, Some(-5)),
            ("100", 0, Some(100)),
            ("1.234", 3, Some(1234)),
            ("92233720368547758.07", 2, Some(i64::MAX)),
            ("92233720368547758.08", 2, None),
            ("12.5", 2, None),
            ("12", 2, None),
            ("12.050", 2, None),
            ("1.0", 0, None),
            (".05", 2, None),
            ("1.+5", 2, None),
            ("--1.00", 2, None),
            ("1e2", 0, None),
            ("", 0, None),
        ] {
            assert_eq!(minor(text, exponent), expected, "{text} with {exponent} digits");
        }
    }
}
