//! Payment requests from the command topic.
//!
//! A message is the body that an item of POST /v1/payments/batch has (its idempotency key inside), with the tenant in the
//! header `ce_tenantid` and, by convention, the debit account as key. Who may write to the topic is trusted to name the
//! tenant; Kafka's access lists decide that. The outcome comes on the payment topic, like that of any payment.
//!
//! Commands are handed to the lanes in the topic's order, so payments of one account are decided in that order. When a
//! payment could not be handed over, the later ones of its account wait with it.
//!
//! A command is executed while its key is remembered for longer than it may still be delivered (H32): past
//! [`limits::COMMAND_RETENTION`] it is a dead letter.

use std::time::Instant;

use chrono::{DateTime, Utc};
use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::oneshot;

use super::consumer::header;
use super::line::{Ticket, Waiting};
use crate::batch::{Answer, NotPosted};
use crate::domain::ids::{PaymentId, TenantId};
use crate::domain::payment::{NewPayment, Verdict};
use crate::domain::request::BatchItem;
use crate::domain::validate::Faults;
use crate::domain::{code::Code, metadata};
use crate::idempotency::{fingerprint, key};
use crate::limits;

/// Where payments are posted: the lanes, or a test's stand-in.
pub trait Poster: Send + Sync + 'static {
    /// Hands a payment over, in the caller's order; the receiver gets the answer once it is durable.
    fn submit(&self, payment: NewPayment, deadline: Instant) -> Result<oneshot::Receiver<Answer>, NotPosted>;

    /// Where the tenant's payments go: what is away with one shard must not hold up the others.
    fn shard(&self, tenant: TenantId) -> u16;
}

impl Poster for crate::batch::lanes::Lanes {
    fn submit(&self, payment: NewPayment, deadline: Instant) -> Result<oneshot::Receiver<Answer>, NotPosted> {
        crate::batch::lanes::Lanes::submit(self, payment, deadline)
    }

    fn shard(&self, tenant: TenantId) -> u16 {
        self.lane_of(tenant).shard.0
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
pub(super) struct Command {
    partition: i32,
    offset: i64,
    sent_at: Option<DateTime<Utc>>,
    pub(super) key: Vec<u8>,
    pub(super) body: Vec<u8>,
    pub(super) tenant: Option<String>,
    pub(super) payment: Result<NewPayment, Unfit>,
    /// Since when every try said that the program or the schema is wrong.
    pub(super) broken_since: Option<Instant>,
}

impl Command {
    pub(super) fn read(message: &BorrowedMessage<'_>) -> Command {
        let body = message.payload().unwrap_or_default();
        let tenant = header(message, "ce_tenantid");
        Command {
            partition: message.partition(),
            offset: message.offset(),
            sent_at: message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis),
            key: message.key().unwrap_or_default().to_vec(),
            body: body.to_vec(),
            tenant: tenant.map(str::to_owned),
            payment: parse(tenant, body),
            broken_since: None,
        }
    }

    /// Its key may be forgotten by now. The broker's clock is trusted to a few hours: see the assertion in `limits`.
    pub(super) fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.sent_at.is_some_and(|at| (now - at).to_std().is_ok_and(|age| age >= limits::COMMAND_RETENTION))
    }
}

impl Waiting for Command {
    fn ticket(&self) -> Ticket {
        Ticket {
            partition: self.partition,
            offset: self.offset,
            tenant: self.payment.as_ref().ok().map(|payment| payment.tenant),
            // Once as it came, and about as much parsed.
            bytes: 2 * self.body.len() + self.key.len() + size_of::<Command>(),
        }
    }
}

#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Never(Unfit),
    /// Not executed, because of its age.
    Expired,
    Again,
    /// The program or the schema is wrong: it is repaired, and then the command can be executed; or it is never.
    Broken,
}

pub(super) fn judge(answer: Answer) -> Outcome {
    match answer {
        Ok(Verdict::Stored { .. }) => Outcome::Done,
        Ok(Verdict::Mismatch) => {
            Outcome::Never(Unfit::new(Code::IdempotencyKeyReused, "the key was used with another request"))
        }
        Ok(Verdict::Rejected(code)) => Outcome::Never(Unfit::new(code, "nothing was stored")),
        Err(NotPosted::Unprocessable) => {
            Outcome::Never(Unfit::new(Code::Unprocessable, "the database refused it"))
        }
        // Of what the database refuses, only values come as Unprocessable (see `outcome::is_about_values`).
        Err(NotPosted::Broken) => Outcome::Broken,
        Err(
            NotPosted::QueueFull
            | NotPosted::ShardUnavailable
            | NotPosted::Overloaded
            | NotPosted::OutcomeUnknown
            | NotPosted::InFlight
            | NotPosted::ShuttingDown,
        ) => Outcome::Again,
    }
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
        assert!(matches!(judge(Err(NotPosted::Broken)), Outcome::Broken));
        for passing in [NotPosted::ShardUnavailable, NotPosted::OutcomeUnknown] {
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
