//! The outbox and Kafka hold the same events.
//!
//! An event is (account, sequence). [`topic`] reads the whole topic once and keeps, per account, how far its
//! sequence has come and a digest of the first occurrences: memory grows with accounts and with duplicates, not with
//! events. Then the outbox is streamed in the same order, and per account both sides must have the same sequence and
//! digest. Duplicates are allowed (delivery is at least once), but a repeated sequence must repeat the same event.
pub mod topic;

use super::due;
use super::report::{CheckReport, Invariant};
use super::shards::Session;
use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio_postgres::types::ToSql;
use topic::Topic;
use uuid::Uuid;

const OUTBOX: &str = "
SELECT tenant_id, account_id, event_seq, event_id, payment_id, event_type, status, credit_account_id, amount_minor,
       currency, code
  FROM outbox WHERE published_at IS NOT NULL ORDER BY account_id, event_seq";

/// What both sides say of an event, to the last cent.
#[derive(Hash)]
pub struct Content<'a> {
    pub tenant: Uuid,
    pub account: Uuid,
    pub sequence: u64,
    pub event: Uuid,
    pub payment: Uuid,
    pub kind: &'a str,
    pub status: &'a str,
    pub credit_account: Uuid,
    pub amount_minor: i64,
    pub currency: &'a str,
    pub code: Option<&'a str>,
}

impl Content<'_> {
    /// Sums of digests compare sets; the gapless sequence makes the sets ordered.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Digits after the point of every currency that a shard knows.
async fn exponents(sessions: &[Session]) -> Result<HashMap<String, usize>> {
    let mut exponents = HashMap::new();
    for session in sessions {
        for row in session.client.query("SELECT code, exponent FROM currencies", &[]).await? {
            let (code, exponent): (String, i16) = (row.try_get(0)?, row.try_get(1)?);
            let exponent = usize::try_from(exponent).context("a currency's exponent")?;
            let known = exponents.insert(code.trim_end().to_owned(), exponent);
            if known.is_some_and(|known| known != exponent) {
                anyhow::bail!("shards disagree about the digits of {code}");
            }
        }
    }
    Ok(exponents)
}

#[derive(Default)]
struct OutboxAccount {
    id: Uuid,
    tenant: Uuid,
    events: u64,
    digest: u64,
}

struct Comparison {
    topic: Topic,
    same: Invariant,
    duplicates: Invariant,
    events: u64,
}

pub async fn check(sessions: &[Session], brokers: &str, name: &str, report: &mut CheckReport) -> Result<()> {
    let (brokers, name, exponents) = (brokers.to_owned(), name.to_owned(), exponents(sessions).await?);
    let starts = due::starts(sessions).await?;
    let topic = tokio::task::spawn_blocking(move || topic::read(&brokers, &name, exponents, starts))
        .await
        .context("reading Kafka")??;
    let mut comparison = Comparison {
        topic,
        same: Invariant::new(
            "outbox_equals_kafka",
            "accounts whose events in Kafka are exactly their outbox rows",
        ),
        duplicates: Invariant::new("duplicates_equal", "repeated events that repeat the same content"),
        events: 0,
    };
    for session in sessions {
        let none: [&(dyn ToSql + Sync); 0] = [];
        let rows = session.client.query_raw(OUTBOX, none).await?;
        let mut rows = std::pin::pin!(rows);
        let mut current = OutboxAccount::default();
        while let Some(row) = rows.try_next().await? {
            let (tenant, account): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            if account != current.id {
                comparison.account(&std::mem::take(&mut current));
                current = OutboxAccount { id: account, tenant, ..OutboxAccount::default() };
            }
            let sequence = u64::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0);
            let event: Uuid = row.try_get(3)?;
            if sequence < comparison.topic.start(account) {
                continue;
            }
            current.events += 1;
            comparison.events += 1;
            let currency: &str = row.try_get(9)?;
            let content = Content {
                tenant,
                account,
                sequence,
                event,
                payment: row.try_get(4)?,
                kind: row.try_get(5)?,
                status: row.try_get(6)?,
                credit_account: row.try_get(7)?,
                amount_minor: row.try_get(8)?,
                currency: currency.trim_end(),
                code: row.try_get(10)?,
            };
            let digest = content.digest();
            current.digest = current.digest.wrapping_add(digest);
            if let Some(repeated) = comparison.topic.duplicates.remove(&(account, sequence)) {
                comparison.duplicates.expect(repeated.iter().all(|one| *one == (event, digest)), || {
                    let ids: Vec<Uuid> = repeated.iter().map(|(id, _)| *id).collect();
                    format!("account {account} sequence {sequence}: outbox has {event}, Kafka repeats it as {ids:?} or with other content")
                });
            }
        }
        comparison.account(&current);
    }
    let Comparison { topic, mut same, mut duplicates, events } = comparison;
    for (account, state) in topic.accounts.iter().filter(|(_, state)| state.events > 0) {
        same.expect(state.matched, || {
            format!("account {account}: {} events in Kafka, none in the outbox", state.events)
        });
    }
    for (account, sequence) in topic.duplicates.keys() {
        duplicates.expect(false, || {
            format!("account {account} sequence {sequence} is repeated in Kafka and not in the outbox")
        });
    }
    report.note(format!(
        "Kafka: {} messages, {} events after dropping {} repeated; outbox: {events} published",
        topic.messages, topic.events, topic.repeated
    ));
    if topic.old > 0 {
        report.note(format!("{} messages are older than what both sides must have kept", topic.old));
    }
    if topic.forgotten > 0 {
        report.note(format!("{} repeated events were too many to be compared", topic.forgotten));
    }
    report.push(same);
    report.push(topic.order);
    report.push(topic.shape);
    report.push(topic.one_partition);
    report.push(duplicates);
    Ok(())
}

impl Comparison {
    fn account(&mut self, outbox: &OutboxAccount) {
        if outbox.events == 0 {
            return;
        }
        let (id, tenant) = (outbox.id, outbox.tenant);
        match self.topic.accounts.get_mut(&id) {
            None => self.same.expect(false, || {
                format!("tenant {tenant} account {id}: {} published events, none in Kafka", outbox.events)
            }),
            Some(kafka) => {
                kafka.matched = kafka.events == outbox.events && kafka.digest == outbox.digest;
                if !kafka.matched {
                    let events = kafka.events;
                    // Counted here with both numbers, so not again as an account of Kafka only.
                    kafka.matched = true;
                    self.same.violation(|| {
                        format!("tenant {tenant} account {id}: {} published events, {events} in Kafka, or of other content", outbox.events)
                    });
                }
            }
        }
    }
}
