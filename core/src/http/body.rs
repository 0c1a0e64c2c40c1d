//! Request bodies: media type, size, time, JSON.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use crate::domain::code::Code;
use crate::error::Problem;
use crate::idempotency::key;
use crate::limits;

/// Reads a body of at most `most` bytes that says that it is JSON.
pub async fn read(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Problem> {
    if !is_json(headers) {
        return Err(Problem::of(Code::UnsupportedMediaType));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > most) {
        return Err(too_large(most));
    }
    let read = axum::body::to_bytes(body, most);
    match tokio::time::timeout(Duration::from_secs(limits::BODY_TIMEOUT_S), read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.source().is_some_and(|e| e.is::<http_body_util::LengthLimitError>()) => {
            Err(too_large(most))
        }
        // The client went away or broke the framing; it will hardly read this.
        Ok(Err(_)) => Err(Problem::new(Code::MalformedJson, "the body ended early")),
        Err(_) => Err(Problem::of(Code::RequestTimeout)),
    }
}

fn too_large(most: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("at most {most} bytes"))
}

/// `application/json` and `application/<anything>+json`, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    let Ok(text) = value.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let Some((kind, sub)) = essence.split_once('/') else { return false };
    kind.eq_ignore_ascii_case("application")
        && (sub.eq_ignore_ascii_case("json")
            || sub.len() > 5 && sub[sub.len() - 5..].eq_ignore_ascii_case("+json"))
}

/// Parses, and says where it went wrong.
pub fn parse<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = if error.is_data() { Code::InvalidBody } else { Code::MalformedJson };
        // serde_json's message ends with its position: "... at line 1 column 17".
        Problem::new(code, error.to_string())
    })
}

pub async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, most: usize) -> Result<T, Problem> {
    parse(&read(headers, body, most).await?)
}

/// The Idempotency-Key header, if there is one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::new(Code::InvalidIdempotencyKey, "there is more than one Idempotency-Key"));
    }
    key::parse(value.as_bytes()).map(Some).map_err(bad_key)
}

pub fn required_idempotency_key(headers: &HeaderMap) -> Result<String, Problem> {
    idempotency_key(headers)?.ok_or_else(|| Problem::of(Code::MissingIdempotencyKey))
}

pub fn bad_key(error: key::KeyError) -> Problem {
    let detail = match error {
        key::KeyError::Empty => "the Idempotency-Key is empty".to_owned(),
        key::KeyError::TooLong => {
            format!("the Idempotency-Key is longer than {} characters", limits::IDEMPOTENCY_KEY_MAX)
        }
        key::KeyError::Malformed => {
            "the Idempotency-Key must be printable ASCII, bare or in quotes".to_owned()
        }
    };
    Problem::new(Code::InvalidIdempotencyKey, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        let check = |value: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(is_json(&headers), expected, "{value}");
        };
        check("application/json", true);
        check("Application/JSON; charset=utf-8", true);
        check("application/vnd.api+json", true);
        check("text/json", false);
        check("application/xml", false);
        check("json", false);
        check("application/+json", false);
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn positions_are_told() {
        let problem = parse::<crate::domain::request::TenantBody>(b"{\"name\": oops}").unwrap_err();
        assert_eq!(problem.code(), Code::MalformedJson);
        let text = String::from_utf8(problem.render(Some("r"))).unwrap();
        assert!(text.contains("line 1 column 10") && text.contains("\"request_id\":\"r\""), "{text}");
        let problem = parse::<crate::domain::request::TenantBody>(b"{\"name\":\"a\",\"nam\":1}").unwrap_err();
        assert_eq!(problem.code(), Code::InvalidBody);
    }
}
