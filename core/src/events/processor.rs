//! Reads the command topic and gets every command an outcome.
//!
//! Each shard's commands wait in a [`line`](super::line) of their own, so that a shard that is away holds up nobody
//! else's tenants until its line is full; then the partitions that bring more of its commands are not read until it is
//! back. The consumer is polled all the time, whatever waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rustc_hash::FxHashSet;
use tokio::sync::watch;

use super::command::{Command, Outcome, Poster, Unfit, judge};
use super::consumer::{Offsets, batch, close, settings};
use super::line::{Bounds, Lines, Ticket, UNFIT, Waiting};
use super::{EventsConfig, topics};
use crate::domain::code::Code;
use crate::domain::ids::{AccountId, TenantId};
use crate::limits;
use crate::metrics::Metrics;

/// How long one try of a command may take.
const TRY: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// Counts the rebalances: what was read before one may have been given to another instance, or is read again.
#[derive(Default)]
pub(super) struct Rebalances(AtomicU64);

impl ClientContext for Rebalances {}

impl ConsumerContext for Rebalances {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

type Commands = StreamConsumer<Rebalances>;

/// A try of some commands of one line.
struct Tried {
    shard: u16,
    generation: u64,
    done: Vec<Ticket>,
    again: Vec<Command>,
}

/// What the consumer leaves to the thread that closes it.
struct Clients {
    consumer: Commands,
    dead_letters: Option<FutureProducer>,
    /// The asynchronous commit of these may still be under way; a second is harmless, a lost one repeats a batch.
    last: Offsets,
    topic: String,
}

impl Drop for Clients {
    fn drop(&mut self) {
        if !self.last.is_empty()
            && let Err(error) = self.last.commit(&self.consumer, &self.topic, CommitMode::Sync)
        {
            tracing::warn!(%error, "the last offsets are not committed: their commands are read again");
        }
        // Before the consumer: nothing is tried any more.
        self.dead_letters.take();
    }
}

pub(super) struct Worker {
    config: EventsConfig,
    poster: Arc<dyn Poster>,
    metrics: Arc<Metrics>,
}

impl Worker {
    pub(super) fn new(config: EventsConfig, poster: Arc<dyn Poster>, metrics: Arc<Metrics>) -> Worker {
        Worker { config, poster, metrics }
    }

    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        let ready = async {
            let brokers = &self.config.brokers;
            topics::ensure_patiently(brokers, &[&self.config.dlq_topic], None).await;
            topics::ensure_patiently(brokers, &[&self.config.command_topic], Some(limits::COMMAND_RETENTION))
                .await;
        };
        tokio::select! {
            () = ready => {}
            _ = stopped.wait_for(|s| *s) => return,
        }
        let mut pause = BACKOFF_FIRST;
        while !*stopped.borrow() {
            let began = Instant::now();
            if let Err(error) = self.consume(&mut stopped).await {
                self.metrics.consumer_errors.with_label_values(&[&self.config.command_topic]).inc();
                tracing::warn!(error, "the command consumer starts over");
                if began.elapsed() > Duration::from_secs(60) {
                    pause = BACKOFF_FIRST;
                }
                let _ = tokio::time::timeout(pause, stopped.wait_for(|s| *s)).await;
                pause = (pause * 2).min(BACKOFF_MOST * 4);
            }
        }
    }

    fn lines(&self) -> Lines<Command> {
        Lines::new(Bounds {
            commands: self.config.line_commands,
            bytes: self.config.line_bytes,
            pause_first: BACKOFF_FIRST,
            pause_longest: BACKOFF_MOST,
        })
    }

    async fn consume(&self, stopped: &mut watch::Receiver<bool>) -> Result<(), String> {
        let say = |e: rdkafka::error::KafkaError| e.to_string();
        let config = &self.config;
        let consumer: Commands =
            settings(&config.brokers, &config.command_group, 4_096, Duration::from_millis(50))
                .create_with_context(Rebalances::default())
                .map_err(say)?;
        let dead_letters = ClientConfig::new()
            .set("bootstrap.servers", &config.brokers)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", "30000")
            .create::<FutureProducer>();
        let done = match &dead_letters {
            Ok(dead_letters) => self.follow(&consumer, dead_letters, stopped).await,
            Err(error) => Err(error.to_string()),
        };
        let topic = config.command_topic.clone();
        let (last, done) = match done {
            Ok(last) => (last, Ok(())),
            Err(error) => (BTreeMap::new(), Err(error)),
        };
        let clients = Clients { consumer, dead_letters: dead_letters.ok(), last: Offsets::of(last), topic };
        close(clients).await;
        done
    }

    /// Until it is to stop: what is to be committed then.
    async fn follow(
        &self,
        consumer: &Commands,
        dead_letters: &FutureProducer,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<BTreeMap<i32, i64>, String> {
        let say = |e: rdkafka::error::KafkaError| e.to_string();
        let config = &self.config;
        consumer.subscribe(&[&config.command_topic]).map_err(say)?;
        let context = consumer.context().clone();
        let mut generation = 0;
        let mut lines = self.lines();
        let mut tries = FuturesUnordered::new();
        let mut paused: BTreeSet<i32> = BTreeSet::new();
        let mut committed = BTreeMap::new();
        loop {
            while let Some((shard, commands)) = lines.start(Instant::now(), config.command_batch) {
                tries.push(self.execute(shard, generation, commands, dead_letters));
            }
            // With nothing that rests, a read or the end of a try is what comes next.
            let rest = lines.next_start().unwrap_or_else(|| Instant::now() + BACKOFF_MOST);
            let mut read = Vec::new();
            tokio::select! {
                messages = batch(consumer, config.command_batch, Duration::ZERO, |m| {
                    (context.0.load(Ordering::Acquire), Command::read(m))
                }) => read = messages.map_err(say)?.0,
                Some(tried) = tries.next() => {
                    let Tried { shard, generation: of, done, again } = tried?;
                    if of == generation {
                        lines.finish(shard, Instant::now(), &done, again);
                    }
                }
                () = tokio::time::sleep_until(rest.into()) => {}
                _ = stopped.wait_for(|s| *s) => break,
            }
            let current = context.0.load(Ordering::Acquire);
            if current != generation {
                // What waits is delivered again, here or elsewhere.
                generation = current;
                lines = self.lines();
                committed.clear();
                resume(consumer, &config.command_topic, std::mem::take(&mut paused));
            }
            let mut full = BTreeSet::new();
            for (of, command) in read {
                let ticket = command.ticket();
                let shard = ticket.tenant.map_or(UNFIT, |tenant| self.poster.shard(tenant));
                if of == generation && lines.add(shard, command) {
                    full.insert(ticket.partition);
                }
            }
            if !full.is_empty() {
                consumer.pause(&partitions(&config.command_topic, &full)).map_err(say)?;
                paused.append(&mut full);
            }
            let again: BTreeSet<i32> = lines.resumable().into_iter().filter(|p| paused.remove(p)).collect();
            resume(consumer, &config.command_topic, again);
            let upto = lines.committable();
            if upto != committed {
                Offsets::of(upto.clone())
                    .commit(consumer, &config.command_topic, CommitMode::Async)
                    .map_err(say)?;
                committed = upto;
            }
        }
        Ok(committed)
    }

    /// Tries each command once. Those that will never have another outcome go to the dead letter topic.
    async fn execute(
        &self,
        shard: u16,
        generation: u64,
        mut commands: Vec<Command>,
        dead_letters: &FutureProducer,
    ) -> Result<Tried, String> {
        let now = Instant::now();
        let outcomes = self.try_all(&commands).await;
        let mut tried = Tried { shard, generation, done: Vec::new(), again: Vec::new() };
        for (command, outcome) in commands.iter_mut().zip(&outcomes) {
            if matches!(outcome, Outcome::Broken) {
                command.broken_since.get_or_insert(now);
            }
        }
        for (command, outcome) in commands.into_iter().zip(outcomes) {
            let (result, why) = match outcome {
                Outcome::Done => ("done", None),
                Outcome::Never(why) if command.payment.is_err() => ("poison", Some(why)),
                Outcome::Never(why) => ("rejected", Some(why)),
                Outcome::Expired => {
                    let detail = format!(
                        "older than {} s; if it was tried, its key tells",
                        limits::COMMAND_RETENTION.as_secs()
                    );
                    ("expired", Some(Unfit { code: Code::RequestTimeout, detail }))
                }
                Outcome::Broken
                    if command.broken_since.is_some_and(|at| at.elapsed() >= self.config.broken_patience) =>
                {
                    let detail = "the program or the schema refuses it again and again".to_owned();
                    ("broken", Some(Unfit { code: Code::Internal, detail }))
                }
                Outcome::Again | Outcome::Broken => {
                    tried.again.push(command);
                    continue;
                }
            };
            if let Some(why) = why {
                bury(dead_letters, &self.config.dlq_topic, &command, &why).await?;
            }
            self.metrics.commands.with_label_values(&[result]).inc();
            tried.done.push(command.ticket());
        }
        self.metrics.command_retries.inc_by(tried.again.len() as u64);
        Ok(tried)
    }

    async fn try_all(&self, commands: &[Command]) -> Vec<Outcome> {
        let deadline = Instant::now() + TRY;
        let now = crate::clock::now();
        let mut held: FxHashSet<(TenantId, AccountId)> = FxHashSet::default();
        let waits = commands.iter().map(|command| {
            let submitted = match &command.payment {
                Err(unfit) => Err(Outcome::Never(unfit.clone())),
                Ok(_) if command.is_expired(now) => Err(Outcome::Expired),
                Ok(payment) => {
                    let account = (payment.tenant, payment.details.debit);
                    if held.contains(&account) {
                        Err(Outcome::Again)
                    } else {
                        self.poster.submit(payment.clone(), deadline).map_err(|refused| {
                            let outcome = judge(Err(refused));
                            if matches!(outcome, Outcome::Again | Outcome::Broken) {
                                held.insert(account);
                            }
                            outcome
                        })
                    }
                }
            };
            async move {
                match submitted {
                    Err(outcome) => outcome,
                    Ok(receiver) => match tokio::time::timeout_at((deadline + TRY).into(), receiver).await {
                        Ok(Ok(answer)) => judge(answer),
                        Ok(Err(_)) | Err(_) => Outcome::Again,
                    },
                }
            }
        });
        // Submitting happens here, in order, before anything is awaited.
        let waits: Vec<_> = waits.collect();
        join_all(waits).await
    }
}

fn partitions(topic: &str, numbers: &BTreeSet<i32>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for number in numbers {
        list.add_partition(topic, *number);
    }
    list
}

/// One that is not this instance's any more cannot be resumed, and need not.
fn resume(consumer: &Commands, topic: &str, numbers: BTreeSet<i32>) {
    if numbers.is_empty() {
        return;
    }
    if let Err(error) = consumer.resume(&partitions(topic, &numbers)) {
        tracing::info!(%error, ?numbers, "partitions were not resumed");
    }
}

/// Sends a command to the dead letter topic, as it came, with the reason.
async fn bury(producer: &FutureProducer, topic: &str, command: &Command, why: &Unfit) -> Result<(), String> {
    let mut headers = OwnedHeaders::new()
        .insert(Header { key: "error_code", value: Some(why.code.as_str()) })
        .insert(Header { key: "error_detail", value: Some(&why.detail) });
    if let Some(tenant) = &command.tenant {
        headers = headers.insert(Header { key: "ce_tenantid", value: Some(tenant) });
    }
    let record = FutureRecord::to(topic).key(&command.key).payload(&command.body).headers(headers);
    let sent = producer.send(record, Duration::from_secs(10)).await;
    sent.map(|_| ()).map_err(|(error, _)| format!("the dead letter topic did not take a message: {error}"))
}
