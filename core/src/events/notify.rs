//! Payment events to whoever tells payers. The sink of this release writes to the log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use rustc_hash::FxHashSet;
use tokio::sync::watch;
use uuid::Uuid;

use super::consumer::{batch, close, header, settings};
use super::seen::{Inbox, Recent};
use super::{EventsConfig, topics};
use crate::ledger::connect::{self, Link};
use crate::metrics::Metrics;

/// Ids remembered in memory, for each instance: repetitions by a relay that started again come within a batch or two.
const REMEMBERED: usize = 50_000;
/// Messages gather for this long: confirmations are not urgent, and waking up is what a consumer's CPU goes to.
const GATHER: Duration = Duration::from_millis(100);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// The consumer's name in the inbox.
const CONSUMER: &str = "payment-notifier";

/// One payment to tell about.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    pub event_id: Uuid,
    pub tenant_id: Uuid,
    pub payment_id: Uuid,
    pub succeeded: bool,
}

/// Where notifications go.
pub trait Sink: Send + Sync + 'static {
    /// True if acting twice on one event does harm. Then every event costs the inbox table a read and a row, and is acted
    /// on twice only if the process dies between acting and noting; otherwise memory alone remembers.
    fn needs_inbox(&self) -> bool;

    /// Acts on all, or fails and gets all of them again.
    fn deliver<'a>(
        &'a self,
        notifications: &'a [Notification],
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
}

/// Writes a line for every notification, at level debug, and one for every batch at level info.
pub struct LogSink;

impl Sink for LogSink {
    fn needs_inbox(&self) -> bool {
        false
    }

    fn deliver<'a>(
        &'a self,
        notifications: &'a [Notification],
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        let declined = notifications.iter().filter(|n| !n.succeeded).count();
        tracing::info!(target: "paycore::notification", payments = notifications.len(), declined, "confirmed");
        for n in notifications {
            tracing::debug!(
                target: "paycore::notification",
                tenant = %n.tenant_id,
                payment = %n.payment_id,
                succeeded = n.succeeded,
                "payment confirmation"
            );
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

/// PURE. The headers say it all; the value is not parsed.
pub fn parse<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Option<Notification> {
    let id = |name| header(name).and_then(|text| Uuid::try_parse(text).ok());
    Some(Notification {
        event_id: id("ce_id")?,
        tenant_id: id("ce_tenantid")?,
        payment_id: id("ce_subject")?,
        succeeded: match header("ce_type")? {
            "payments.payment.succeeded" => true,
            "payments.payment.declined" => false,
            _ => return None,
        },
    })
}

pub(super) struct Worker {
    config: EventsConfig,
    sink: Arc<dyn Sink>,
    metrics: Arc<Metrics>,
}

impl Worker {
    pub(super) fn new(config: EventsConfig, sink: Arc<dyn Sink>, metrics: Arc<Metrics>) -> Worker {
        Worker { config, sink, metrics }
    }

    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        let topics = [self.config.payment_topic.as_str()];
        tokio::select! {
            () = topics::ensure_patiently(&self.config.brokers, &topics, None) => {}
            _ = stopped.wait_for(|s| *s) => return,
        }
        let mut recent = Recent::new(REMEMBERED);
        let mut pause = BACKOFF_FIRST;
        while !*stopped.borrow() {
            let began = Instant::now();
            if let Err(error) = self.consume(&mut recent, &mut stopped).await {
                self.metrics.consumer_errors.with_label_values(&[&self.config.payment_topic]).inc();
                tracing::warn!(error, "the notifier starts over");
                if began.elapsed() > Duration::from_secs(60) {
                    pause = BACKOFF_FIRST;
                }
                let _ = tokio::time::timeout(pause, stopped.wait_for(|s| *s)).await;
                pause = (pause * 2).min(BACKOFF_MOST);
            }
        }
    }

    async fn consume(&self, recent: &mut Recent, stopped: &mut watch::Receiver<bool>) -> Result<(), String> {
        let say = |e: rdkafka::error::KafkaError| e.to_string();
        let config = &self.config;
        // Large fetches, seldom: this group reads everything, and nobody waits for it.
        let settings =
            settings(&config.brokers, &config.notification_group, 256 * 1024, Duration::from_millis(250));
        let consumer: StreamConsumer = settings.create().map_err(say)?;
        let done = self.follow(&consumer, recent, stopped).await;
        close(consumer).await;
        done
    }

    async fn follow(
        &self,
        consumer: &StreamConsumer,
        recent: &mut Recent,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        let say = |e: rdkafka::error::KafkaError| e.to_string();
        let config = &self.config;
        consumer.subscribe(&[&config.payment_topic]).map_err(say)?;
        let inbox = if self.sink.needs_inbox() { Some(self.open_inbox().await?) } else { None };
        let mut gather = GATHER;
        loop {
            let read = |message: &BorrowedMessage<'_>| parse(|name| header(message, name));
            let (events, offsets) = tokio::select! {
                batch = batch(consumer, config.batch, gather, read) => batch.map_err(say)?,
                _ = stopped.wait_for(|s| *s) => return Ok(()),
            };
            // A full batch: there is a backlog.
            gather = if events.len() < config.batch { GATHER } else { Duration::ZERO };
            self.act(events, recent, inbox.as_ref()).await?;
            offsets.commit(consumer, &config.payment_topic, CommitMode::Async).map_err(say)?;
        }
    }

    async fn open_inbox(&self) -> Result<(Link, Inbox), String> {
        let mut database = self.config.database.clone();
        // A replica may not know yet what was noted.
        database.options("-c shard.read=primary").application_name("payment-notifier");
        let link = connect::open(&database).await.map_err(|e| e.to_string())?;
        let inbox = Inbox::prepare(&link.client, CONSUMER).await.map_err(|e| e.to_string())?;
        Ok((link, inbox))
    }

    async fn act(
        &self,
        events: Vec<Option<Notification>>,
        recent: &mut Recent,
        inbox: Option<&(Link, Inbox)>,
    ) -> Result<(), String> {
        let total = events.len();
        let mut here: FxHashSet<Uuid> = FxHashSet::default();
        let known: Vec<Notification> = events.into_iter().flatten().collect();
        let poison = total - known.len();
        let mut fresh: Vec<Notification> =
            known.into_iter().filter(|n| !recent.contains(&n.event_id) && here.insert(n.event_id)).collect();
        let ids = |list: &[Notification]| list.iter().map(|n| (n.tenant_id, n.event_id)).collect::<Vec<_>>();
        if let Some((link, inbox)) = inbox {
            let done = inbox.find(&link.client, &ids(&fresh)).await.map_err(|e| e.to_string())?;
            fresh.retain(|n| !done.contains(&n.event_id));
        }
        if !fresh.is_empty() {
            self.sink.deliver(&fresh).await?;
            if let Some((link, inbox)) = inbox {
                inbox.note(&link.client, &ids(&fresh)).await.map_err(|e| e.to_string())?;
            }
            fresh.iter().for_each(|n| recent.insert(n.event_id));
        }
        let count =
            |result: &str, n: usize| self.metrics.notifications.with_label_values(&[result]).inc_by(n as u64);
        count("delivered", fresh.len());
        count("duplicate", total - poison - fresh.len());
        // What is not a payment event is of a later version and not for this one.
        count("poison", poison);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_from_its_headers() {
        let id = "017f22e2-79b0-7cc3-98c4-dc0c0c073901";
        let with = |kind: &'static str| {
            parse(move |name| match name {
                "ce_type" => Some(kind),
                "ce_id" | "ce_tenantid" | "ce_subject" => Some(id),
                _ => None,
            })
        };
        assert_eq!(with("payments.payment.declined").map(|n| n.succeeded), Some(false));
        assert_eq!(with("payments.payment.succeeded").map(|n| n.succeeded), Some(true));
        assert_eq!(with("payments.account.opened"), None);
        assert_eq!(parse(|_| None), None);
    }
}
