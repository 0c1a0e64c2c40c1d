//! Payment requests from the command topic.
//!
//! A message is the body that an item of POST /v1/payments/batch has (its idempotency key inside), with the tenant in the
//! header `ce_tenantid` and, by convention, the debit account as key. Who may write to the topic is trusted to name the
//! tenant; Kafka's access lists decide that. The outcome comes on the payment topic, like that of any payment.
//!
//! A batch is handed to the lanes in the topic's order, so payments of one account are decided in that order. When a
//! payment could not be handed over, the later ones of its account in the batch wait with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rustc_hash::FxHashSet;
use tokio::sync::{oneshot, watch};

use super::consumer::{Offsets, batch, header, settings};
use super::{EventsConfig, topics};
use crate::batch::{Answer, NotPosted};
use crate::domain::ids::{AccountId, PaymentId, TenantId};
use crate::domain::payment::{NewPayment, Verdict};
use crate::domain::request::BatchItem;
use crate::domain::validate::Faults;
use crate::domain::{code::Code, metadata};
use crate::idempotency::{fingerprint, key};
use crate::metrics::Metrics;

/// How long one try of a command may take.
const TRY: Duration = Duration::from_secs(15);
/// How long a batch is retried before its consumer starts over from the committed offsets, well inside
/// `max.poll.interval.ms`.
const PATIENCE: Duration = Duration::from_secs(120);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// Where payments are posted: the lanes, or a test's stand-in.
pub trait Poster: Send + Sync + 'static {
    /// Hands a payment over, in the caller's order; the receiver gets the answer once it is durable.
    fn submit(&self, payment: NewPayment, deadline: Instant) -> Result<oneshot::Receiver<Answer>, NotPosted>;
}

impl Poster for crate::batch::lanes::Lanes {
    fn submit(&self, payment: NewPayment, deadline: Instant) -> Result<oneshot::Receiver<Answer>, NotPosted> {
        crate::batch::lanes::Lanes::submit(self, payment, deadline)
    }
}

/// A message that can never be executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfit {
    pub code: Code,
    pub detail: String,
}

impl Unfit {
    fn new(code: Code, detail: impl Into<String>) -> Unfit {
        Unfit { code, detail: detail.into() }
    }
}

/// PURE but for the new payment's id. `tenant` is the header's text.
pub fn parse(tenant: Option<&str>, body: &[u8]) -> Result<NewPayment, Unfit> {
    let tenant = tenant
        .and_then(TenantId::parse)
        .ok_or_else(|| Unfit::new(Code::UnknownTenant, "the header ce_tenantid must hold the tenant's id"))?;
    let item: BatchItem<'_> =
        serde_json::from_slice(body).map_err(|e| Unfit::new(Code::InvalidBody, e.to_string()))?;
    let (idempotency_key, body) = item.split();
    key::check(idempotency_key.as_bytes())
        .map_err(|_| Unfit::new(Code::InvalidIdempotencyKey, "idempotency_key is not a valid key"))?;
    let details = body.validate(Faults::default()).map_err(|faults| match faults.into_iter().next() {
        Some(first) => Unfit::new(first.code, format!("{} {}", first.pointer, first.detail)),
        None => Unfit::new(Code::InvalidBody, "not a payment"),
    })?;
    let metadata_json = details.metadata.as_ref().map(metadata::to_json);
    Ok(NewPayment {
        tenant,
        candidate: crate::clock::new_id::<PaymentId>(),
        key: idempotency_key.into_owned(),
        fingerprint: fingerprint::of_payment(&details, metadata_json.as_deref()),
        details,
        metadata_json,
    })
}

/// A message kept until its outcome is durable.
struct Command {
    key: Vec<u8>,
    body: Vec<u8>,
    tenant: Option<String>,
    payment: Result<NewPayment, Unfit>,
}

impl Command {
    fn read(message: &BorrowedMessage<'_>) -> Command {
        let body = message.payload().unwrap_or_default();
        let tenant = header(message, "ce_tenantid");
        Command {
            key: message.key().unwrap_or_default().to_vec(),
            body: body.to_vec(),
            tenant: tenant.map(str::to_owned),
            payment: parse(tenant, body),
        }
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
        let topics = [self.config.command_topic.as_str(), self.config.dlq_topic.as_str()];
        tokio::select! {
            () = topics::ensure_patiently(&self.config.brokers, &topics) => {}
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

    async fn consume(&self, stopped: &mut watch::Receiver<bool>) -> Result<(), String> {
        let say = |e: rdkafka::error::KafkaError| e.to_string();
        let config = &self.config;
        let consumer: StreamConsumer =
            settings(&config.brokers, &config.command_group, 4_096, Duration::from_millis(50)).create().map_err(say)?;
        consumer.subscribe(&[&config.command_topic]).map_err(say)?;
        let dead_letters: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &config.brokers)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", "30000")
            .create()
            .map_err(say)?;
        let mut last: Option<Offsets> = None;
        loop {
            let (commands, offsets) = tokio::select! {
                batch = batch(&consumer, config.command_batch, Duration::ZERO, Command::read) => batch.map_err(say)?,
                _ = stopped.wait_for(|s| *s) => break,
            };
            let done = self.execute(commands, &dead_letters);
            tokio::select! {
                done = done => done?,
                _ = stopped.wait_for(|s| *s) => break,
            }
            offsets.commit(&consumer, &config.command_topic, CommitMode::Async).map_err(say)?;
            last = Some(offsets);
        }
        if let Some(offsets) = last {
            // The asynchronous one may still be under way; a second is harmless, a lost one repeats a batch.
            let topic = config.command_topic.clone();
            let _ = tokio::task::spawn_blocking(move || offsets.commit(&consumer, &topic, CommitMode::Sync)).await;
        }
        Ok(())
    }

    /// Returns when every command has a durable outcome.
    async fn execute(&self, mut commands: Vec<Command>, dead_letters: &FutureProducer) -> Result<(), String> {
        let began = Instant::now();
        let mut pause = BACKOFF_FIRST;
        loop {
            let outcomes = self.try_all(&commands).await;
            let mut again = Vec::new();
            let mut dead = Vec::new();
            for (command, outcome) in commands.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Done => self.metrics.commands.with_label_values(&["done"]).inc(),
                    Outcome::Never(why) => dead.push((command, why)),
                    Outcome::Again => again.push(command),
                }
            }
            for (command, why) in &dead {
                let result = if command.payment.is_err() { "poison" } else { "rejected" };
                self.metrics.commands.with_label_values(&[result]).inc();
                bury(dead_letters, &self.config.dlq_topic, command, why).await?;
            }
            if again.is_empty() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{} commands could not be executed for {PATIENCE:?}", again.len()));
            }
            self.metrics.command_retries.inc_by(again.len() as u64);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MOST);
            commands = again;
        }
    }

    async fn try_all(&self, commands: &[Command]) -> Vec<Outcome> {
        let deadline = Instant::now() + TRY;
        let mut held: FxHashSet<(TenantId, AccountId)> = FxHashSet::default();
        let waits = commands.iter().map(|command| {
            let submitted = match &command.payment {
                Err(unfit) => Err(Outcome::Never(unfit.clone())),
                Ok(payment) => {
                    let account = (payment.tenant, payment.details.debit);
                    if held.contains(&account) {
                        Err(Outcome::Again)
                    } else {
                        self.poster.submit(payment.clone(), deadline).map_err(|refused| {
                            let outcome = judge(Err(refused));
                            if matches!(outcome, Outcome::Again) {
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

#[derive(Debug)]
enum Outcome {
    Done,
    Never(Unfit),
    Again,
}

fn judge(answer: Answer) -> Outcome {
    match answer {
        Ok(Verdict::Stored { .. }) => Outcome::Done,
        Ok(Verdict::Mismatch) => {
            Outcome::Never(Unfit::new(Code::IdempotencyKeyReused, "the key was used with another request"))
        }
        Ok(Verdict::Rejected(code)) => Outcome::Never(Unfit::new(code, "nothing was stored")),
        Err(NotPosted::Unprocessable) => Outcome::Never(Unfit::new(Code::Unprocessable, "the database refused it")),
        // Of what the database refuses, only values come as Unprocessable (see `outcome::is_about_values`). A program or
        // schema that is wrong is repaired, and then the command can be executed.
        Err(
            NotPosted::Broken
            | NotPosted::QueueFull
            | NotPosted::ShardUnavailable
            | NotPosted::Overloaded
            | NotPosted::OutcomeUnknown
            | NotPosted::InFlight
            | NotPosted::ShuttingDown,
        ) => Outcome::Again,
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

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c073901";
    const BODY: &str = r#"{"idempotency_key":"k1","debit_account_id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "credit_account_id":"017f22e2-79b0-7cc3-98c4-dc0c0c073990","amount":"10.50","currency":"USD"}"#;

    fn check(tenant: Option<&str>, body: &str, expected: Result<&str, Code>) {
        let found = parse(tenant, body.as_bytes());
        assert_eq!(found.as_ref().map(|p| p.key.as_str()).map_err(|e| e.code), expected, "{body}");
    }

    #[test]
    fn what_is_a_command() {
        check(Some(TENANT), BODY, Ok("k1"));
        check(None, BODY, Err(Code::UnknownTenant));
        check(Some("x"), BODY, Err(Code::UnknownTenant));
        check(Some(TENANT), "{", Err(Code::InvalidBody));
        check(Some(TENANT), &BODY.replace("10.50", "10.501"), Err(Code::AmountTooPrecise));
        check(Some(TENANT), &BODY.replace("k1", ""), Err(Code::InvalidIdempotencyKey));
    }

    #[test]
    fn only_refused_values_are_dead_letters() {
        assert!(matches!(judge(Err(NotPosted::Unprocessable)), Outcome::Never(_)));
        for passing in [NotPosted::Broken, NotPosted::ShardUnavailable, NotPosted::OutcomeUnknown] {
            assert!(matches!(judge(Err(passing)), Outcome::Again), "{passing:?}");
        }
    }

    #[test]
    fn the_key_means_the_same_as_by_http() {
        let command = parse(Some(TENANT), BODY.as_bytes()).expect("a command");
        let body = BODY.replace(r#""idempotency_key":"k1","#, "");
        let http: crate::domain::request::PaymentBody<'_> = serde_json::from_str(&body).expect("a body");
        let details = http.validate(Faults::default()).expect("valid");
        assert_eq!(command.fingerprint, fingerprint::of_payment(&details, None));
    }
}
