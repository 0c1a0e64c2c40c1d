//! The command consumer and the notifier.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use payment_core::batch::{Answer, NotPosted};
use payment_core::domain::code::Code;
use payment_core::domain::ids::TenantId;
use payment_core::domain::payment::{NewPayment, PaymentStatus, Verdict};
use payment_core::events::command::Poster;
use payment_core::events::notify::{Notification, Sink};
use payment_core::events::{Events, EventsConfig};
use payment_core::metrics::Metrics;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::kafka::read_all;
use crate::servers::{Database, Servers};

/// Stands in for the lanes: refuses each key a given number of times, then stores it.
#[derive(Default)]
struct Ledger {
    refusals: Mutex<HashMap<String, (usize, NotPosted)>>,
    stored: Mutex<Vec<(Uuid, String)>>,
    /// Tenants whose shard is away.
    away: Mutex<HashSet<Uuid>>,
    /// Tenants of shard 1; the others are on shard 0.
    placed: Mutex<HashSet<Uuid>>,
}

impl Poster for Ledger {
    fn submit(&self, payment: NewPayment, _: Instant) -> Result<oneshot::Receiver<Answer>, NotPosted> {
        if self.away.lock().contains(&payment.tenant.0) {
            return Err(NotPosted::ShardUnavailable);
        }
        if let Some((left, refusal)) = self.refusals.lock().get_mut(&payment.key)
            && *left > 0
        {
            *left -= 1;
            return Err(*refusal);
        }
        let (reply, receiver) = oneshot::channel();
        let answer = if payment.key == "rejected" {
            Ok(Verdict::Rejected(Code::UnknownAccount))
        } else {
            self.stored.lock().push((payment.details.debit.0, payment.key));
            Ok(Verdict::Stored {
                payment_id: payment.candidate,
                status: PaymentStatus::Succeeded,
                code: None,
                replayed: false,
                versions: None,
            })
        };
        let _ = reply.send(answer);
        Ok(receiver)
    }

    fn shard(&self, tenant: TenantId) -> u16 {
        u16::from(self.placed.lock().contains(&tenant.0))
    }
}

/// Fails the first delivery, then keeps what it gets.
struct Told {
    inbox: bool,
    failures: Mutex<usize>,
    got: Mutex<Vec<Uuid>>,
}

impl Told {
    fn new(inbox: bool, failures: usize) -> Arc<Told> {
        Arc::new(Told { inbox, failures: Mutex::new(failures), got: Mutex::default() })
    }
}

impl Sink for Told {
    fn needs_inbox(&self) -> bool {
        self.inbox
    }
    fn deliver<'a>(
        &'a self,
        notifications: &'a [Notification],
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        let mut failures = self.failures.lock();
        let outcome = if *failures > 0 {
            *failures -= 1;
            Err("not now".to_owned())
        } else {
            self.got.lock().extend(notifications.iter().map(|n| n.event_id));
            Ok(())
        };
        Box::pin(std::future::ready(outcome))
    }
}

fn config(database: &Database, brokers: &str) -> EventsConfig {
    let run = Uuid::new_v4().simple().to_string();
    let mut config = EventsConfig::new(database.url.parse().unwrap(), brokers);
    for name in [
        &mut config.command_topic,
        &mut config.dlq_topic,
        &mut config.payment_topic,
        &mut config.command_group,
        &mut config.notification_group,
    ] {
        name.push_str(&run);
    }
    config
}

fn producer(brokers: &str) -> FutureProducer {
    ClientConfig::new().set("bootstrap.servers", brokers).set("enable.idempotence", "true").create().unwrap()
}

async fn send(producer: &FutureProducer, topic: &str, key: &str, body: &str, headers: &[(&str, &str)]) {
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
    let record = FutureRecord::to(topic).key(key).payload(body).headers(headers);
    producer.send(record, Duration::from_secs(10)).await.unwrap();
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_keep_their_order_and_are_committed_after_their_outcome() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let brokers = servers.kafka.brokers();
    let config = config(&database, &brokers);
    payment_core::events::topics::ensure(&brokers, &[&config.command_topic, &config.dlq_topic])
        .await
        .unwrap();
    let tenant = Uuid::now_v7().to_string();
    let accounts: Vec<String> = (0..4).map(|_| Uuid::now_v7().to_string()).collect();
    let producer = producer(&brokers);
    let body = |key: &str, debit: &str| {
        format!(
            r#"{{"idempotency_key":"{key}","debit_account_id":"{debit}","credit_account_id":"{tenant}","amount":"1.00","currency":"USD"}}"#
        )
    };
    let topic = &config.command_topic;
    let named = [("ce_tenantid", tenant.as_str())];
    for n in 0..40 {
        let account = &accounts[n % 4];
        send(&producer, topic, account, &body(&format!("k{n}"), account), &named).await;
    }
    send(&producer, topic, &accounts[0], "not json", &named).await;
    send(&producer, topic, &accounts[0], &body("no tenant", &accounts[0]), &[]).await;
    send(&producer, topic, &accounts[1], &body("rejected", &accounts[1]), &named).await;

    let ledger = Arc::new(Ledger::default());
    // The shard of k4 and its account is away for a while; k8, k12, ... of the same account must not overtake.
    ledger.refusals.lock().insert("k4".into(), (3, NotPosted::ShardUnavailable));
    ledger.refusals.lock().insert("k13".into(), (1, NotPosted::QueueFull));
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let events = Events::start(config.clone(), ledger.clone(), Told::new(false, 0), metrics.clone());
    until("all commands", || ledger.stored.lock().len() == 40).await;
    until("the dead letters", || {
        metrics.commands.with_label_values(&["poison"]).get() == 2
            && metrics.commands.with_label_values(&["rejected"]).get() == 1
    })
    .await;
    for (n, account) in accounts.iter().enumerate() {
        let account: Uuid = account.parse().unwrap();
        let order: Vec<String> =
            ledger.stored.lock().iter().filter(|(a, _)| *a == account).map(|(_, key)| key.clone()).collect();
        let expected: Vec<String> = (0..10).map(|i| format!("k{}", n + 4 * i)).collect();
        assert_eq!(order, expected, "account {n}");
    }
    let (dlq, from) = (config.dlq_topic.clone(), brokers.clone());
    let dead = tokio::task::spawn_blocking(move || read_all(&from, &dlq)).await.unwrap();
    let mut reasons: Vec<&str> = dead.iter().map(|m| m.headers["error_code"].as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["invalid_body", "unknown_account", "unknown_tenant"]);
    assert!(dead.iter().any(|m| m.value == "not json"), "a dead letter is the message as it came");
    events.stop().await;

    // Offsets were committed: another instance of the group sees only what comes now.
    send(&producer, topic, &accounts[0], &body("new", &accounts[0]), &named).await;
    let second = Arc::new(Ledger::default());
    let events = Events::start(config, second.clone(), Told::new(false, 0), metrics);
    until("the new command", || !second.stored.lock().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(second.stored.lock().iter().map(|(_, k)| k.as_str()).collect::<Vec<_>>(), ["new"]);
    events.stop().await;
}

fn command(key: &str, debit: Uuid) -> String {
    let credit = Uuid::now_v7();
    format!(
        r#"{{"idempotency_key":"{key}","debit_account_id":"{debit}","credit_account_id":"{credit}","amount":"1.00","currency":"USD"}}"#
    )
}

/// All in one partition: commands of a shard that is away neither hold up the others nor get lost, and they are not read
/// without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h32_commands_of_a_shard_that_is_away_hold_up_no_others() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let brokers = servers.kafka.brokers();
    let mut config = config(&database, &brokers);
    config.line_commands = 6;
    payment_core::events::topics::ensure(&brokers, &[&config.command_topic, &config.dlq_topic])
        .await
        .unwrap();
    let producer = producer(&brokers);
    let (dead, alive) = (Uuid::now_v7(), Uuid::now_v7());
    let give = async |tenant: Uuid, key: String| {
        let named = tenant.to_string();
        send(&producer, &config.command_topic, "one", &command(&key, tenant), &[("ce_tenantid", &named)])
            .await;
    };
    let ledger = Arc::new(Ledger::default());
    ledger.away.lock().insert(dead);
    ledger.placed.lock().insert(dead);
    let stored = |ledger: &Ledger, tenant: Uuid| -> Vec<String> {
        // A delivery that is repeated is the same payment.
        let mut seen = HashSet::new();
        let stored = ledger.stored.lock();
        let first = stored.iter().filter(|(debit, key)| *debit == tenant && seen.insert(key.clone()));
        first.map(|(_, key)| key.clone()).collect()
    };
    let keys = |name: &str, n: usize| (0..n).map(|n| format!("{name}{n}")).collect::<Vec<_>>();
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let events = Events::start(config.clone(), ledger.clone(), Told::new(false, 0), metrics.clone());
    for n in 0..4 {
        give(dead, format!("d{n}")).await;
        give(alive, format!("a{n}")).await;
        // One by one, so that the second is read after the first was refused.
        until("a command of the other shard", || stored(&ledger, alive).len() == n + 1).await;
    }
    assert!(metrics.command_retries.get() > 0 && stored(&ledger, dead).is_empty());
    // Another instance takes over: what has no outcome was not committed.
    events.stop().await;
    let second = Arc::new(Ledger::default());
    second.away.lock().insert(dead);
    second.placed.lock().insert(dead);
    let events = Events::start(config.clone(), second.clone(), Told::new(false, 0), metrics.clone());
    // More than may wait, and the shard comes back.
    for n in 4..20 {
        give(dead, format!("d{n}")).await;
    }
    let tries = metrics.command_retries.get();
    until("tries of the second instance", || metrics.command_retries.get() > tries + 6).await;
    second.away.lock().clear();
    until("all commands", || stored(&second, dead).len() >= 20).await;
    assert_eq!(stored(&second, dead), keys("d", 20), "in the order of the topic");
    give(alive, "a4".into()).await;
    until("the partition to be read on", || stored(&second, alive).contains(&"a4".to_owned())).await;
    events.stop().await;
}

/// What can never be executed ends in the dead letter topic: commands older than their keys are remembered for, and those
/// that the program or the schema refuses for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h32_commands_that_are_too_old_or_broken_are_dead_letters() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let brokers = servers.kafka.brokers();
    let mut config = config(&database, &brokers);
    config.broken_patience = Duration::from_millis(200);
    // Not as the core makes it, so that a message may carry an old time.
    payment_core::events::topics::ensure(&brokers, &[&config.command_topic, &config.dlq_topic])
        .await
        .unwrap();
    let producer = producer(&brokers);
    let tenant = Uuid::now_v7();
    let named = tenant.to_string();
    let topic = &config.command_topic;
    let keep = payment_core::limits::COMMAND_RETENTION;
    for (key, age) in [("old", keep + Duration::from_secs(60)), ("young", keep - Duration::from_secs(3600))] {
        let body = command(key, tenant);
        let headers = OwnedHeaders::new().insert(Header { key: "ce_tenantid", value: Some(&named) });
        let sent_at = chrono::Utc::now() - age;
        let record = FutureRecord::to(topic)
            .key("k")
            .payload(&body)
            .headers(headers)
            .timestamp(sent_at.timestamp_millis());
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
    send(&producer, topic, "k", &command("broken", Uuid::now_v7()), &[("ce_tenantid", &named)]).await;
    let ledger = Arc::new(Ledger::default());
    ledger.refusals.lock().insert("broken".into(), (usize::MAX, NotPosted::Broken));
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let events = Events::start(config.clone(), ledger.clone(), Told::new(false, 0), metrics.clone());
    let count = |result: &str| metrics.commands.with_label_values(&[result]).get();
    until("the outcomes", || (count("done"), count("expired"), count("broken")) == (1, 1, 1)).await;
    assert_eq!(ledger.stored.lock().iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>(), ["young"]);
    events.stop().await;
    let dlq = config.dlq_topic.clone();
    let dead = tokio::task::spawn_blocking(move || read_all(&brokers, &dlq)).await.unwrap();
    let mut reasons: Vec<&str> = dead.iter().map(|m| m.headers["error_code"].as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["internal_error", "request_timeout"]);
}

/// The broker forgets a command before the shards forget its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h32_the_command_topic_is_kept_for_less_than_a_key() {
    use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
    let servers = Servers::get();
    let brokers = servers.kafka.brokers();
    let topic = format!("kept-{}", Uuid::new_v4().simple());
    let keep = payment_core::limits::COMMAND_RETENTION;
    payment_core::events::topics::ensure_kept(&brokers, &[&topic], Some(keep)).await.unwrap();
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let found =
        admin.describe_configs(&[ResourceSpecifier::Topic(&topic)], &AdminOptions::new()).await.unwrap();
    let settings = found.into_iter().next().unwrap().unwrap();
    let setting = |name: &str| settings.get(name).and_then(|entry| entry.value.clone()).unwrap();
    assert_eq!(setting("retention.ms"), keep.as_millis().to_string());
    assert_eq!(setting("message.timestamp.type"), "LogAppendTime");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_is_acted_on_once() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let brokers = servers.kafka.brokers();
    let config = config(&database, &brokers);
    payment_core::events::topics::ensure(&brokers, &[&config.payment_topic]).await.unwrap();
    let producer = producer(&brokers);
    let tenants = [Uuid::now_v7().to_string(), Uuid::now_v7().to_string()];
    let ids: Vec<Uuid> = (0..120).map(|_| Uuid::now_v7()).collect();
    let tell = async |n: usize| {
        let (id, tenant) = (ids[n].to_string(), &tenants[n % 2]);
        let headers = [
            ("ce_id", id.as_str()),
            ("ce_tenantid", tenant),
            ("ce_subject", &id),
            ("ce_type", "payments.payment.succeeded"),
        ];
        send(&producer, &config.payment_topic, &id, "{}", &headers).await;
    };
    for n in 0..120 {
        tell(n).await;
        if n % 3 == 0 {
            tell(n).await;
        }
    }
    send(&producer, &config.payment_topic, "k", "{}", &[("ce_type", "something.else")]).await;
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let told = Told::new(true, 1);
    let events = Events::start(config.clone(), Arc::new(Ledger::default()), told.clone(), metrics.clone());
    until("the notifications", || told.got.lock().len() >= 120).await;
    until("the repetitions", || metrics.notifications.with_label_values(&["duplicate"]).get() == 40).await;
    events.stop().await;
    let mut got = told.got.lock().clone();
    got.sort_unstable();
    let mut expected = ids.clone();
    expected.sort_unstable();
    assert_eq!(got, expected, "each once, although the first delivery failed");
    assert_eq!(metrics.notifications.with_label_values(&["poison"]).get(), 1);
    let noted: i64 = database.client.query_one("SELECT count(*) FROM inbox", &[]).await.unwrap().get(0);
    assert_eq!(noted, 120);

    // Another group's first run reads all again: memory knows nothing, the inbox does.
    let again = Told::new(true, 0);
    let fresh = EventsConfig { notification_group: format!("{}-again", config.notification_group), ..config };
    let metrics = Arc::new(Metrics::new("test").unwrap());
    let events = Events::start(fresh, Arc::new(Ledger::default()), again.clone(), metrics.clone());
    until("the repetitions", || metrics.notifications.with_label_values(&["duplicate"]).get() == 160).await;
    events.stop().await;
    assert!(again.got.lock().is_empty());
}
