//! Sends one batch of payments as one statement.

use std::time::Duration;

use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::connect::{self, Link, OpenError};
use super::outcome::{self, Failure};
use crate::domain::code::Code;
use crate::domain::ids::PaymentId;
use crate::domain::payment::{NewPayment, PaymentStatus, Verdict};

/// `created_at` is inside the id, and balances are read elsewhere, so neither is fetched.
const POST: &str = "SELECT ord, outcome, payment_id, status, code, debit_version, credit_version \
    FROM post_payments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/// A connection of its own for one batch in flight, with the statement prepared.
pub struct Poster {
    link: Link,
    statement: Statement,
}

/// A failure, with the SQLSTATE if there was one.
#[derive(Debug)]
pub struct PostError {
    pub failure: Failure,
    pub state: Option<String>,
    pub detail: String,
}

impl PostError {
    pub fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self { failure, state: None, detail: detail.into() }
    }
}

impl From<tokio_postgres::Error> for PostError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self {
            failure: outcome::of_error(&error),
            state: error.code().map(|c| c.code().to_owned()),
            detail: error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned()),
        }
    }
}

impl Poster {
    /// Whatever goes wrong here, no payment was sent.
    pub async fn open(settings: &tokio_postgres::Config) -> Result<Self, PostError> {
        let not_sent = |error: OpenError| PostError::new(Failure::NotApplied, error.to_string());
        let link = connect::open(settings).await.map_err(not_sent)?;
        let patience = settings.get_connect_timeout().copied().unwrap_or(Duration::from_secs(3));
        let prepared = tokio::time::timeout(patience, link.client.prepare(POST))
            .await
            .map_err(|_| PostError::new(Failure::NotApplied, "preparing took too long"))?;
        let statement = prepared.map_err(|error| {
            let error = PostError::from(error);
            match error.failure {
                Failure::Broken => error,
                _ => PostError { failure: Failure::NotApplied, ..error },
            }
        })?;
        Ok(Self { link, statement })
    }

    pub fn is_closed(&self) -> bool {
        self.link.client.is_closed()
    }

    /// One verdict a payment, in order. Never cancelled: a cancel request would end the server's wait for its
    /// synchronous standby, and show a payment that only one server has.
    pub async fn post<'a, I>(&self, payments: I) -> Result<Vec<Verdict>, PostError>
    where
        I: ExactSizeIterator<Item = &'a NewPayment> + Clone,
    {
        let n = payments.len();
        let arrays = Arrays::of(payments.clone());
        let rows = self.link.client.query(&self.statement, &arrays.parameters()).await?;
        if rows.len() != n {
            // Never seen; if it happens the statement has committed, so the outcome is open, not failed.
            return Err(PostError::new(Failure::Unknown, format!("{} rows for {n} payments", rows.len())));
        }
        let mut candidates = payments;
        let mut verdicts = Vec::with_capacity(n);
        for (i, row) in rows.iter().enumerate() {
            let candidate = candidates.next().map(|p| p.candidate);
            match read(row, i, candidate) {
                Ok(verdict) => verdicts.push(verdict),
                Err(why) => return Err(PostError::new(Failure::Unknown, why)),
            }
        }
        Ok(verdicts)
    }
}

/// The batch as columns.
struct Arrays<'a> {
    tenants: Vec<Uuid>,
    candidates: Vec<Uuid>,
    keys: Vec<&'a str>,
    hashes: Vec<&'a [u8]>,
    debits: Vec<Uuid>,
    credits: Vec<Uuid>,
    amounts: Vec<i64>,
    currencies: Vec<&'static str>,
    types: Vec<Option<&'a str>>,
    references: Vec<Option<&'a str>>,
    descriptions: Vec<Option<&'a str>>,
    metadata: Vec<Option<&'a str>>,
}

impl<'a> Arrays<'a> {
    fn of(payments: impl ExactSizeIterator<Item = &'a NewPayment>) -> Self {
        let n = payments.len();
        let mut this = Self {
            tenants: Vec::with_capacity(n),
            candidates: Vec::with_capacity(n),
            keys: Vec::with_capacity(n),
            hashes: Vec::with_capacity(n),
            debits: Vec::with_capacity(n),
            credits: Vec::with_capacity(n),
            amounts: Vec::with_capacity(n),
            currencies: Vec::with_capacity(n),
            types: Vec::with_capacity(n),
            references: Vec::with_capacity(n),
            descriptions: Vec::with_capacity(n),
            metadata: Vec::with_capacity(n),
        };
        for p in payments {
            this.tenants.push(p.tenant.0);
            this.candidates.push(p.candidate.0);
            this.keys.push(&p.key);
            this.hashes.push(&p.fingerprint);
            this.debits.push(p.details.debit.0);
            this.credits.push(p.details.credit.0);
            this.amounts.push(p.details.amount.get());
            this.currencies.push(p.details.currency.code());
            this.types.push(p.details.payment_type.as_deref());
            this.references.push(p.details.reference.as_deref());
            this.descriptions.push(p.details.description.as_deref());
            this.metadata.push(p.metadata_json.as_deref());
        }
        this
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 12] {
        [
            &self.tenants,
            &self.candidates,
            &self.keys,
            &self.hashes,
            &self.debits,
            &self.credits,
            &self.amounts,
            &self.currencies,
            &self.types,
            &self.references,
            &self.descriptions,
            &self.metadata,
        ]
    }
}

fn read(row: &tokio_postgres::Row, index: usize, candidate: Option<PaymentId>) -> Result<Verdict, String> {
    let bad = |e: tokio_postgres::Error| e.to_string();
    let ord: i32 = row.try_get(0).map_err(bad)?;
    if usize::try_from(ord) != Ok(index + 1) {
        return Err(format!("row {index} has ord {ord}"));
    }
    let outcome: &str = row.try_get(1).map_err(bad)?;
    let payment_id: Uuid = row.try_get(2).map_err(bad)?;
    let status: Option<&str> = row.try_get(3).map_err(bad)?;
    let code: Option<&str> = row.try_get(4).map_err(bad)?;
    let versions: (Option<i64>, Option<i64>) = (row.try_get(5).map_err(bad)?, row.try_get(6).map_err(bad)?);
    verdict(outcome, PaymentId(payment_id), status, code, versions.0.zip(versions.1), candidate)
}

/// A payment that was "replayed" under our own candidate id was stored by an earlier try of this very posting, whose
/// answer was lost: for the client it is new.
fn verdict(
    outcome: &str,
    payment_id: PaymentId,
    status: Option<&str>,
    code: Option<&str>,
    versions: Option<(i64, i64)>,
    candidate: Option<PaymentId>,
) -> Result<Verdict, String> {
    let code = code.map(|text| Code::parse(text).ok_or_else(|| format!("unknown code {text:?}"))).transpose();
    match outcome {
        "created" | "replayed" => {
            let status = status
                .and_then(PaymentStatus::parse)
                .ok_or_else(|| format!("unknown payment status {status:?}"))?;
            let replayed = outcome == "replayed" && Some(payment_id) != candidate;
            Ok(Verdict::Stored { payment_id, status, code: code?, replayed, versions })
        }
        "mismatch" => Ok(Verdict::Mismatch),
        "rejected" => Ok(Verdict::Rejected(code?.unwrap_or(Code::Unprocessable))),
        other => Err(format!("unknown outcome {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h32_a_replay_of_our_own_candidate_is_new() {
        let (ours, theirs) = (crate::clock::new_id::<PaymentId>(), crate::clock::new_id::<PaymentId>());
        let replayed = |id| match verdict("replayed", id, Some("succeeded"), None, None, Some(ours)) {
            Ok(Verdict::Stored { replayed, .. }) => replayed,
            other => panic!("{other:?}"),
        };
        assert!(!replayed(ours));
        assert!(replayed(theirs));
    }

    #[test]
    fn what_the_schema_does_not_say_is_an_error() {
        let id = crate::clock::new_id::<PaymentId>();
        assert!(verdict("created", id, Some("half"), None, None, None).is_err());
        assert!(verdict("created", id, None, None, None, None).is_err());
        assert!(verdict("created", id, Some("declined"), Some("because"), None, None).is_err());
        assert!(verdict("perhaps", id, None, None, None, None).is_err());
    }
}
