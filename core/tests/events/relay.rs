//! The relay: H12 (order and completeness) and H34 (what survives kills, pauses and a broker that is away).

use std::collections::{BTreeSet, HashSet};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use payment_core::batch::signal::CommitSignal;
use payment_core::events::topics;
use payment_core::metrics::Metrics;
use payment_core::outbox::claim::{Claims, Cursor};
use payment_core::outbox::event::{Event, Scratch};
use payment_core::outbox::lease::Lease;
use payment_core::outbox::publisher::{Batch, Publisher, PublisherConfig, SendError};
use payment_core::outbox::{Outbox, OutboxConfig};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::kafka::{check_order, read_all};
use crate::servers::{Database, Kafka, Servers, connect, signal};

fn config(database: &str, brokers: &str, topic: &str, instance: &str) -> OutboxConfig {
    let mut config = OutboxConfig::new(database.parse().unwrap(), brokers, instance);
    config.publisher.topic = topic.to_owned();
    config.lease_ttl = Duration::from_millis(1_500);
    // Some tests keep a statement waiting.
    config.statement_timeout = Duration::from_secs(30);
    config
}

fn start(config: OutboxConfig) -> (Outbox, Arc<CommitSignal>, Arc<Metrics>) {
    let signal = Arc::new(CommitSignal::default());
    let metrics = Arc::new(Metrics::new("test").unwrap());
    (Outbox::start(config, signal.clone(), metrics.clone()).unwrap(), signal, metrics)
}

fn topic(name: &str) -> String {
    format!("{name}-{}", Uuid::new_v4().simple())
}

/// Account n, in the order of claims.
fn account(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Adds events `from..=to` of an account, as a posting would.
async fn post(client: &Client, account: Uuid, from: i64, to: i64) {
    client
        .execute(
            "INSERT INTO outbox (tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id,
                                 amount_minor, currency, status, occurred_at)
             SELECT $1, $2, s, gen_random_uuid(), 'payments.payment.succeeded', gen_random_uuid(), $1, 100 + s, 'USD',
                    'succeeded', clock_timestamp()
               FROM generate_series($3::int8, $4::int8) s ORDER BY s DESC",
            &[&Uuid::nil(), &account, &from, &to],
        )
        .await
        .unwrap();
}

async fn unpublished(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM outbox WHERE published_at IS NULL", &[]).await.unwrap().get(0)
}

async fn published(client: &Client, account: Uuid) -> i64 {
    let sql = "SELECT count(*) FROM outbox WHERE account_id = $1 AND published_at IS NOT NULL";
    client.query_one(sql, &[&account]).await.unwrap().get(0)
}

async fn until(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < limit, "waited {limit:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all is published, then holds the topic against the table.
async fn check_complete(database: &Database, brokers: &str, topic: &str) -> (usize, usize) {
    until("everything published", Duration::from_secs(60), async || unpublished(&database.client).await == 0)
        .await;
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let stored = tokio::task::spawn_blocking(move || read_all(&brokers, &topic)).await.unwrap();
    let (distinct, repeated) = check_order(&stored);
    let in_kafka: HashSet<&str> = stored.iter().map(|m| m.headers["ce_id"].as_str()).collect();
    let rows = database.client.query("SELECT event_id::text FROM outbox", &[]).await.unwrap();
    assert_eq!(in_kafka.len(), rows.len(), "events in Kafka and rows of the outbox");
    for row in &rows {
        assert!(in_kafka.contains(row.get::<_, &str>(0)), "{} is not in Kafka", row.get::<_, &str>(0));
    }
    (distinct, repeated)
}

/// A posting that commits late, rows stored in the wrong physical order, and a wake-up by the commit signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h12_outbox_order_survives_late_commits() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let topic = topic("late");
    let mut late = connect(&database.url).await;
    let transaction = late.transaction().await.unwrap();
    // Lower account ids, older rows and an older transaction than what commits before it.
    post(transaction.client(), account(1), 1, 3).await;
    for n in 2..6 {
        post(&database.client, account(n), 1, 50).await;
    }
    let (outbox, signal, _) = start(config(&database.url, &servers.kafka.brokers(), &topic, "a"));
    until("the early commits", Duration::from_secs(20), async || unpublished(&database.client).await == 0)
        .await;
    assert_eq!(published(&database.client, account(1)).await, 0);
    transaction.commit().await.unwrap();
    post(&database.client, account(1), 4, 6).await;
    signal.committed(1);
    let (distinct, repeated) = check_complete(&database, &servers.kafka.brokers(), &topic).await;
    assert_eq!((distinct, repeated), (4 * 50 + 6, 0));
    outbox.stop().await;
}

/// An account with a backlog of many claims does not keep the others waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h12_outbox_order_and_no_account_starves() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let topic = topic("hot");
    post(&database.client, account(1), 1, 4_000).await;
    for n in 2..8 {
        post(&database.client, account(n), 1, 30).await;
    }
    let mut config = config(&database.url, &servers.kafka.brokers(), &topic, "a");
    config.batch = 20;
    let (outbox, _, _) = start(config);
    until("the account after the hot one", Duration::from_secs(20), async || {
        published(&database.client, account(7)).await == 30
    })
    .await;
    let hot = published(&database.client, account(1)).await;
    assert!(hot < 3_000, "the others waited for {hot} events of the hot account");
    let (distinct, repeated) = check_complete(&database, &servers.kafka.brokers(), &topic).await;
    assert_eq!((distinct, repeated), (4_000 + 6 * 30, 0));
    outbox.stop().await;
}

/// What is stored has the producer's settings: lz4, a producer id (idempotence), murmur2 placement, CloudEvents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_batches_are_lz4_and_idempotent() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let topic = topic("lz4");
    post(&database.client, account(1), 1, 200).await;
    let (outbox, _, metrics) = start(config(&database.url, &servers.kafka.brokers(), &topic, "a"));
    check_complete(&database, &servers.kafka.brokers(), &topic).await;
    outbox.stop().await;
    // org.apache.kafka.common.record.DefaultRecordBatch: attributes at 21 (low three bits: 3 = lz4), producer id at 43.
    let mut batches = 0;
    for partition in 0..12 {
        let log = servers.kafka.data.join(format!("{topic}-{partition}/00000000000000000000.log"));
        let bytes = std::fs::read(&log).unwrap();
        if bytes.len() > 61 {
            batches += 1;
            assert_eq!(u16::from_be_bytes([bytes[21], bytes[22]]) & 7, 3, "lz4");
            assert!(i64::from_be_bytes(bytes[43..51].try_into().unwrap()) >= 0, "a producer id");
        }
    }
    assert_eq!(batches, 1, "one account, one partition");
    let stored = read_all(&servers.kafka.brokers(), &topic);
    let value: serde_json::Value = serde_json::from_str(&stored[0].value).unwrap();
    assert_eq!((value["amount"].as_str(), value["sequence"].as_i64()), (Some("1.01"), Some(1)));
    assert_eq!(stored[0].headers["ce_id"], value["event_id"].as_str().unwrap());
    let text = metrics.render().unwrap();
    assert!(text.contains(&format!("paycore_outbox_published_total{{topic=\"{topic}\"}} 200")), "{text}");
}

/// A relay in a process of its own, which the tests below kill and pause.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn relay_process() {
    let [database, brokers, topic] =
        ["RELAY_DATABASE", "RELAY_BROKERS", "RELAY_TOPIC"].map(|name| std::env::var(name).expect(name));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let _running = start(config(&database, &brokers, &topic, "process"));
        // Until it is killed, or its parent is gone.
        tokio::time::sleep(Duration::from_secs(120)).await;
    });
}

struct RelayProcess(Child);

impl RelayProcess {
    fn start(database: &str, brokers: &str, topic: &str) -> RelayProcess {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "relay::relay_process"])
            .env("RELAY_DATABASE", database)
            .env("RELAY_BROKERS", brokers)
            .env("RELAY_TOPIC", topic)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        RelayProcess(child)
    }

    fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// kill -9 after the events are in Kafka and before they are marked; the successor repeats them and goes on in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_relay_restart_keeps_order() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let (brokers, topic) = (servers.kafka.brokers(), topic("killed"));
    topics::ensure(&brokers, &[&topic]).await.unwrap();
    for n in 1..5 {
        post(&database.client, account(n), 1, 100).await;
    }
    // Marking waits for these locks; claiming does not.
    let mut holder = connect(&database.url).await;
    let locks = holder.transaction().await.unwrap();
    locks.batch_execute("SELECT 1 FROM outbox FOR UPDATE").await.unwrap();
    let first = RelayProcess::start(&database.url, &brokers, &topic);
    until("the events of the first relay", Duration::from_secs(30), async || {
        let (brokers, topic) = (brokers.clone(), topic.clone());
        tokio::task::spawn_blocking(move || read_all(&brokers, &topic).len()).await.unwrap() == 400
    })
    .await;
    drop(first);
    // Its statement would still run once the locks are gone: a server notices a client's death when it answers.
    let waiting = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let ended: i64 = database.client.query_one(waiting, &[]).await.unwrap().get(0);
    assert_eq!(ended, 1, "the first relay was marking");
    locks.rollback().await.unwrap();
    assert_eq!(unpublished(&database.client).await, 400, "killed before marking");
    post(&database.client, account(2), 101, 150).await;
    let _second = RelayProcess::start(&database.url, &brokers, &topic);
    let (distinct, repeated) = check_complete(&database, &brokers, &topic).await;
    assert_eq!((distinct, repeated), (450, 400), "what was not marked is repeated, once");
}

/// Relays are stopped (SIGSTOP) in the middle of their work for longer than the lease, others take over, the stopped ones
/// go on with what they held; meanwhile events keep coming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_paused_relays_keep_order() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let (brokers, topic) = (servers.kafka.brokers(), topic("paused"));
    topics::ensure(&brokers, &[&topic]).await.unwrap();
    let writer = connect(&database.url).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut seq = 1;
        while !*stopped.borrow() {
            for n in 1..9 {
                post(&writer, account(n), seq, seq + 19).await;
            }
            seq += 20;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    });
    let relays = [1, 2].map(|_| RelayProcess::start(&database.url, &brokers, &topic));
    let epoch = async || -> i64 {
        let row = database.client.query_opt("SELECT epoch FROM relay_leases", &[]).await.unwrap();
        row.map_or(0, |r| r.get(0))
    };
    until("the first relay", Duration::from_secs(20), async || epoch().await >= 1).await;
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(300 + 37 * round)).await;
        let before = epoch().await;
        // Whichever holds the lease: stop each in turn until the epoch moves.
        for relay in &relays {
            relay.signal("STOP");
            tokio::time::sleep(Duration::from_millis(2_300)).await;
            let moved = epoch().await > before;
            relay.signal("CONT");
            if moved {
                break;
            }
        }
        assert!(epoch().await > before, "nobody took over");
    }
    stop.send_replace(true);
    writing.await.unwrap();
    let (distinct, _) = check_complete(&database, &brokers, &topic).await;
    assert!(distinct > 5_000, "{distinct} events are too few to show anything");
    let stored = read_all(&brokers, &topic);
    let epochs: BTreeSet<&str> = stored.iter().map(|m| m.headers["ce_relayepoch"].as_str()).collect();
    assert!(epochs.len() >= 4, "relays of {epochs:?} published");
}

/// The epoch fences: a relay whose lease another one has taken cannot mark, whatever it believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_a_lapsed_lease_cannot_mark() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    post(&database.client, account(1), 1, 3).await;
    let (one, two) = (connect(&database.url).await, connect(&database.url).await);
    let ttl = Duration::from_millis(300);
    let mut old = Lease::acquire(&one, 1, "one", ttl).await.unwrap().expect("free");
    assert!(Lease::acquire(&two, 1, "two", ttl).await.unwrap().is_none(), "held");
    assert!(old.renew(&one).await.unwrap() && old.is_valid());
    tokio::time::sleep(ttl * 2).await;
    assert!(!old.is_valid());
    let new = Lease::acquire(&two, 1, "two", ttl).await.unwrap().expect("lapsed");
    assert_eq!(new.epoch, old.epoch + 1);
    assert!(!old.renew(&one).await.unwrap(), "a lost lease cannot be renewed");
    let claims = Claims::prepare(&one, 10).await.unwrap();
    let events = claims.next(&one, Cursor::START).await.unwrap();
    assert_eq!(events.iter().map(|e| e.event_seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(!claims.mark(&one, &old, &events).await.unwrap());
    assert_eq!(unpublished(&database.client).await, 3);
    let claims = Claims::prepare(&two, 10).await.unwrap();
    assert!(claims.mark(&two, &new, &events).await.unwrap());
    assert_eq!(unpublished(&database.client).await, 0);
}

/// One relay gives the shared producer up while another is handing events over to it: what the second hands over later
/// must not be transmitted, because what it handed over before was purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_a_producer_given_up_by_one_relay_takes_nothing_from_another() {
    let servers = Servers::get();
    let (brokers, topic) = (servers.kafka.brokers(), topic("shared"));
    topics::ensure(&brokers, &[&topic]).await.unwrap();
    let publisher =
        Publisher::new(PublisherConfig { topic: topic.clone(), ..PublisherConfig::new(&brokers) }).unwrap();
    let event = |seq: i64| Event {
        tenant_id: Uuid::nil(),
        account_id: account(1),
        event_seq: seq,
        event_id: Uuid::from_u128(seq as u128),
        event_type: "payments.payment.succeeded".into(),
        payment_id: Uuid::nil(),
        credit_account_id: Uuid::nil(),
        amount_minor: 1,
        currency: "USD".into(),
        status: "succeeded".into(),
        code: None,
        occurred_at: Default::default(),
    };
    let mut scratch = Scratch::default();
    let (failing, sending) = (publisher.session().unwrap(), publisher.session().unwrap());
    let batch = Batch::new();
    let mut send = |session: &payment_core::outbox::publisher::Session, seq: i64, batch: &Arc<Batch>| {
        event(seq).write(&mut scratch, "test", 1);
        session.send(&scratch, batch)
    };
    for seq in 1..=5 {
        send(&sending, seq, &batch).unwrap();
    }
    publisher.replace(&failing);
    let late = Batch::new();
    for seq in 6..=10 {
        let refused = send(&sending, seq, &late);
        assert!(matches!(refused, Err(SendError::GivenUp)), "event {seq}: {refused:?}");
    }
    drop((failing, sending));
    // Its next session starts at the first row that is not marked.
    let (session, again) = (publisher.session().unwrap(), Batch::new());
    for seq in 1..=10 {
        send(&session, seq, &again).unwrap();
    }
    again.seal();
    again.acknowledged().await.unwrap();
    drop(session);
    publisher.close().await;
    let stored = tokio::task::spawn_blocking(move || read_all(&brokers, &topic)).await.unwrap();
    assert_eq!(check_order(&stored).0, 10);
}

/// Kafka is killed under load and comes back: rows wait in the table, nothing is lost or reordered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_kafka_down_then_back_keeps_order() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let mut kafka = Kafka::start();
    let topic = topic("away");
    let mut config = config(&database.url, &kafka.brokers(), &topic, "a");
    // Short, so that the producer is given up and made anew while the broker is away.
    config.stalled = Duration::from_millis(1_500);
    let (outbox, _, metrics) = start(config);
    post(&database.client, account(1), 1, 500).await;
    until("the first events", Duration::from_secs(20), async || unpublished(&database.client).await == 0)
        .await;
    kafka.kill();
    for n in 1..9 {
        post(&database.client, account(n), if n == 1 { 501 } else { 1 }, 1_000).await;
    }
    until("a producer given up", Duration::from_secs(20), async || {
        metrics.outbox_errors.with_label_values(&["stalled"]).get() >= 2
    })
    .await;
    assert_eq!(unpublished(&database.client).await, 500 + 7 * 1_000);
    kafka.restart();
    let (distinct, _) = check_complete(&database, &kafka.brokers(), &topic).await;
    assert_eq!(distinct, 8_000);
    outbox.stop().await;
}

/// A topic with another number of partitions would place keys anew: nothing is sent to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h34_a_topic_with_other_partitions_is_refused() {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let (brokers, topic) = (servers.kafka.brokers(), topic("three"));
    let admin: AdminClient<_> =
        rdkafka::config::ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let three = NewTopic::new(&topic, 3, TopicReplication::Fixed(1));
    admin.create_topics([&three], &AdminOptions::new()).await.unwrap();
    let refused = topics::ensure(&brokers, &[&topic]).await.unwrap_err();
    assert!(refused.to_string().contains("3 partitions"), "{refused}");
    post(&database.client, account(1), 1, 5).await;
    let (outbox, _, _) = start(config(&database.url, &brokers, &topic, "a"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(unpublished(&database.client).await, 5);
    outbox.stop().await;
}

/// A shard that is frozen answers nothing and keeps its connections: the relay gives its session up and can be stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_shard_does_not_hold_up_the_end() {
    let servers = Servers::get();
    let database = Database::new(&servers.postgres).await;
    let topic = topic("frozen");
    post(&database.client, account(1), 1, 3).await;
    let mut config = config(&database.url, &servers.kafka.brokers(), &topic, "a");
    config.statement_timeout = Duration::from_millis(500);
    let (outbox, _, metrics) = start(config);
    until("the first events", Duration::from_secs(30), async || unpublished(&database.client).await == 0)
        .await;
    // No statement on the table ends any more, as far as the relay can see.
    let mut holder = connect(&database.url).await;
    let frozen = holder.transaction().await.unwrap();
    frozen.batch_execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    until("giving the session up", Duration::from_secs(30), async || {
        metrics.outbox_errors.with_label_values(&["claim"]).get() > 0
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), outbox.stop()).await.expect("the outbox stops");
    frozen.rollback().await.unwrap();
}
