//! Idempotency-Key: its form, the fingerprint that tells a retry from another request, and the keys in flight here.
//!
//! What makes a key work lives in the ledger: the posting statement claims it in the payment's own transaction. The set
//! of keys in flight only answers early (409) what the claim would answer late; nothing depends on it.

pub mod fingerprint;
pub mod inflight;
pub mod key;

use crate::domain::ids::{PaymentId, TenantId};
use crate::domain::metadata;
use crate::domain::payment::{NewPayment, PaymentDetails};

/// A validated payment under a checked key, ready for a lane: HTTP requests, batch items and commands all come this way,
/// so that one key means one payment whichever door it came through.
pub fn payment(tenant: TenantId, key: String, details: PaymentDetails) -> NewPayment {
    let metadata_json = details.metadata.as_ref().map(metadata::to_json);
    let fingerprint = fingerprint::of_payment(&details, metadata_json.as_deref());
    NewPayment {
        tenant,
        candidate: crate::clock::new_id::<PaymentId>(),
        key,
        fingerprint,
        details,
        metadata_json,
    }
}
