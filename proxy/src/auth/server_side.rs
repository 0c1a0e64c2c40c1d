//! Our side of SCRAM when a client logs in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth, ScramServerAuthWaitingForClientFinal};

use crate::error::ProxyError;
use crate::wire::read::Reader;

pub const MECHANISM: &str = "SCRAM-SHA-256";

pub struct Exchange(ScramServerAuthWaitingForClientFinal);

/// SASLInitialResponse -> server-first-message. `body` is the isolated body of the `p` message.
pub fn first(body: &[u8], secret: ScramSecret) -> Result<(String, Exchange), ProxyError> {
    let mut reader = Reader::new(body);
    let malformed = || ProxyError::protocol("malformed SASL initial response");
    let mechanism = reader.cstr().ok_or_else(malformed)?;
    if mechanism != MECHANISM.as_bytes() {
        return Err(ProxyError::protocol("client selected an invalid SASL authentication mechanism"));
    }
    let length = reader.i32().ok_or_else(malformed)?;
    let length = usize::try_from(length).map_err(|_| malformed())?;
    let data = reader.bytes(length).ok_or_else(malformed)?;
    if !reader.is_empty() {
        return Err(malformed());
    }
    // The decoder is not ours and the bytes are a stranger's: a panic in it must not take the worker down.
    let answer = catch_unwind(AssertUnwindSafe(|| {
        ScramServerAuth::new().on_client_first_message_with_secret(data, secret)
    }));
    match answer {
        Ok(Ok((text, waiting))) => Ok((text, Exchange(waiting))),
        _ => Err(ProxyError::protocol("malformed SCRAM message")),
    }
}

impl Exchange {
    /// SASLResponse -> server-final-message, or why the client is not let in.
    pub fn finish(&self, body: &[u8], user: &str) -> Result<String, ProxyError> {
        match catch_unwind(AssertUnwindSafe(|| self.0.on_client_final_message(body))) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(_)) => {
                Err(ProxyError::new("28P01", format!("password authentication failed for user \"{user}\""))
                    .fatal())
            }
            Err(_) => Err(ProxyError::protocol("malformed SCRAM message")),
        }
    }
}
