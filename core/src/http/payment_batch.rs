//! POST /v1/payments/batch: many payments in one request, each with its own key and its own outcome.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::auth::Caller;
use super::payments::{deadline, succeeded};
use super::{body, front};
use crate::app::App;
use crate::batch::lanes::Lanes;
use crate::domain::code::Code;
use crate::domain::ids::TenantId;
use crate::domain::payment::{NewPayment, PaymentDetails, Verdict};
use crate::domain::request::{BatchItem, PaymentBatchBody};
use crate::domain::validate::Faults;
use crate::error::Problem;
use crate::idempotency::{self, key};
use crate::limits;

/// What became of one item: refused before it was posted, or whatever the ledger said.
type ItemOutcome = Result<(PaymentDetails, Verdict), Problem>;

#[derive(Serialize)]
struct Results<'a> {
    results: Vec<ItemView<'a>>,
}

struct ItemView<'a>(&'a ItemOutcome);

impl Serialize for ItemView<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let judged =
            self.0.as_ref().map_err(Clone::clone).and_then(|(details, verdict)| succeeded(details, *verdict));
        let mut item = s.serialize_struct("item", 3)?;
        match judged {
            Ok((payment, replayed)) => {
                item.serialize_field("status", &201)?;
                if replayed {
                    item.serialize_field("replayed", &true)?;
                }
                item.serialize_field("payment", &payment)?;
            }
            Err(problem) => {
                item.serialize_field("status", &problem.code().status())?;
                if problem.is_replay() {
                    item.serialize_field("replayed", &true)?;
                }
                item.serialize_field("problem", &problem.value())?;
            }
        }
        item.end()
    }
}

pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    request_body: Body,
) -> Result<Response, Problem> {
    let tenant = caller.may("payments:write")?;
    let bytes = body::read(&headers, request_body, limits::BATCH_BODY_MAX).await?;
    let PaymentBatchBody { payments } = body::parse(&bytes)?;
    if payments.is_empty() || payments.len() > limits::BATCH_ITEMS_MAX {
        let detail = format!("/payments: expected 1 to {} items", limits::BATCH_ITEMS_MAX);
        return Err(Problem::new(Code::TooManyItems, detail));
    }
    let deadline = deadline(&app);
    // All are in the lane before any is waited for.
    let waiting: Vec<Result<_, Problem>> = payments
        .into_iter()
        .enumerate()
        .map(|(i, item)| {
            let payment = checked(tenant, i, item)?;
            let details = payment.details.clone();
            let receiver = app.lanes.submit(payment, deadline)?;
            Ok((details, receiver))
        })
        .collect();
    let mut outcomes: Vec<ItemOutcome> = Vec::with_capacity(waiting.len());
    for item in waiting {
        outcomes.push(match item {
            Ok((details, receiver)) => match Lanes::wait(receiver, deadline).await {
                Ok(verdict) => Ok((details, verdict)),
                Err(why) => Err(why.into()),
            },
            Err(problem) => Err(problem),
        });
    }
    let view = Results { results: outcomes.iter().map(ItemView).collect() };
    Ok(front::json(200, serde_json::to_vec(&view).map_err(|_| Problem::of(Code::Internal))?))
}

fn checked(tenant: TenantId, index: usize, item: BatchItem<'_>) -> Result<NewPayment, Problem> {
    let (key, body) = item.split();
    key::check(key.as_bytes()).map_err(body::bad_key)?;
    let faults = Faults::within(format!("/payments/{index}"));
    let details = body.validate(faults).map_err(Problem::faults)?;
    Ok(idempotency::payment(tenant, key.into_owned(), details))
}
