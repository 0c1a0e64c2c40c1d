//! Every stable code a client can see, with its HTTP status. One table: problem bodies, the OpenAPI document and the
//! texts that PostgreSQL returns are all checked against it.

macro_rules! codes {
    ($($name:ident $text:literal $status:literal $retryable:literal $title:literal;)+) => {
        /// A stable reason, the same identifier in SQL, JSON, metrics and logs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($name),+ }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text),+ }
            }

            /// HTTP status of an answer with this code.
            pub const fn status(self) -> u16 {
                match self { $(Code::$name => $status),+ }
            }

            /// Whether sending the very same request again (same Idempotency-Key) can succeed.
            pub const fn retryable(self) -> bool {
                match self { $(Code::$name => $retryable),+ }
            }

            pub const fn title(self) -> &'static str {
                match self { $(Code::$name => $title),+ }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$name),)+ _ => None }
            }
        }
    };
}

codes! {
    // The request cannot be read.
    MalformedJson "malformed_json" 400 false "The body is not valid JSON";
    InvalidBody "invalid_body" 400 false "The body does not have the expected shape";
    InvalidQuery "invalid_query" 400 false "A query parameter is not valid";
    InvalidCursor "invalid_cursor" 400 false "The cursor was not made by this list";
    MissingIdempotencyKey "missing_idempotency_key" 400 false "The Idempotency-Key header is required";
    InvalidIdempotencyKey "invalid_idempotency_key" 400 false "The Idempotency-Key is not valid";
    Unauthenticated "unauthenticated" 401 false "A valid API key is required";
    Forbidden "forbidden" 403 false "The API key does not allow this";
    NotFound "not_found" 404 false "There is no such resource";
    MethodNotAllowed "method_not_allowed" 405 false "The resource does not have this method";
    RequestTimeout "request_timeout" 408 true "The request did not arrive in time";
    BodyTooLarge "body_too_large" 413 false "The body is too large";
    UnsupportedMediaType "unsupported_media_type" 415 false "The body must be application/json";
    // The request can be read and makes no sense.
    InvalidAmount "invalid_amount" 422 false "The amount is not a decimal number";
    AmountNotPositive "amount_not_positive" 422 false "The amount must be more than zero";
    AmountTooPrecise "amount_too_precise" 422 false "The amount has more decimal digits than the currency";
    AmountTooLarge "amount_too_large" 422 false "The amount is too large";
    UnknownCurrency "unknown_currency" 422 false "The currency is not an active ISO 4217 code";
    InvalidAccountId "invalid_account_id" 422 false "The account id is not a UUID";
    SameAccount "same_account" 422 false "The debit and the credit account are the same";
    InvalidText "invalid_text" 422 false "A text is empty, too long or has characters that cannot be stored";
    InvalidValue "invalid_value" 422 false "A value is not one of those allowed";
    TooManyItems "too_many_items" 422 false "The batch has no items or too many";
    CurrencyMismatch "currency_mismatch" 422 false "The account has another currency";
    UnknownPaymentType "unknown_payment_type" 422 false "The tenant has no such payment type";
    PaymentTypeInactive "payment_type_inactive" 422 false "The payment type is not active";
    AmountOutOfRange "amount_out_of_range" 422 false "The payment type does not allow this amount";
    IdempotencyKeyReused "idempotency_key_reused" 422 false "The Idempotency-Key was used with another request";
    Unprocessable "unprocessable" 422 false "The database refused the values";
    UnknownAccount "unknown_account" 404 false "There is no such account";
    UnknownTenant "unknown_tenant" 404 false "There is no such tenant";
    TenantSuspended "tenant_suspended" 403 false "The tenant is suspended";
    // The request makes sense and the ledger says no. The payment is stored as declined.
    InsufficientFunds "insufficient_funds" 402 false "The debit account has not enough funds";
    AccountNotActive "account_not_active" 402 false "An account is frozen or closed";
    LimitExceeded "limit_exceeded" 402 false "A limit of the tenant does not allow this amount";
    VelocityExceeded "velocity_exceeded" 402 false "Too many payments of this account in a time window";
    // The state is in the way.
    IdempotencyKeyInFlight "idempotency_key_in_flight" 409 true "A request with this Idempotency-Key is being processed";
    DuplicateOfRejected "duplicate_of_rejected" 409 true "Another request with this Idempotency-Key was just rejected";
    AlreadyExists "already_exists" 409 false "There is such a resource already";
    StateConflict "state_conflict" 409 false "The resource's state does not allow this";
    PreconditionFailed "precondition_failed" 412 false "The resource was changed meanwhile";
    // The service is in the way.
    QueueFull "queue_full" 429 true "Too many payments are waiting";
    Internal "internal_error" 500 false "The service failed";
    Overloaded "overloaded" 503 true "The service is busy; nothing was done";
    ShardUnavailable "shard_unavailable" 503 true "The tenant's shard is not available; nothing was done";
    OutcomeUnknown "outcome_unknown" 503 true "The outcome is not known yet; ask again with the same Idempotency-Key";
    ShuttingDown "shutting_down" 503 true "This instance is shutting down; nothing was done";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_and_read_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn only_conditions_that_pass_are_retryable() {
        for code in Code::ALL {
            let passes = matches!(code.status(), 408 | 409 | 429 | 503);
            assert!(!code.retryable() || passes, "{}", code.as_str());
            assert!(code.retryable() || !matches!(code.status(), 408 | 429 | 503), "{}", code.as_str());
        }
    }
}
