//! PURE. An outbox row as a Kafka message: CloudEvents 1.0 in binary mode, the value as JSON.

use std::fmt::Write;

use chrono::{DateTime, Datelike, Timelike, Utc};
use uuid::Uuid;

use crate::domain::currency::Currency;
use crate::domain::money::Minor;

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub tenant_id: Uuid,
    /// The debit account: the Kafka key.
    pub account_id: Uuid,
    /// 1, 2, 3, ... of the account.
    pub event_seq: i64,
    pub event_id: Uuid,
    pub event_type: String,
    pub payment_id: Uuid,
    pub credit_account_id: Uuid,
    pub amount_minor: i64,
    pub currency: String,
    pub status: String,
    pub code: Option<String>,
    pub occurred_at: DateTime<Utc>,
}

/// Buffers that one relay uses for every event.
#[derive(Default)]
pub struct Scratch {
    pub key: String,
    pub value: String,
    pub headers: Headers,
}

/// The attributes, in the order of [`Headers::NAMES`].
#[derive(Default)]
pub struct Headers {
    values: [String; Headers::NAMES.len()],
}

impl Headers {
    pub const NAMES: [&'static str; 10] = [
        "ce_specversion",
        "ce_id",
        "ce_type",
        "ce_source",
        "ce_time",
        "ce_subject",
        "ce_tenantid",
        "ce_sequence",
        "ce_relayepoch",
        "content-type",
    ];

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        Headers::NAMES.iter().copied().zip(self.values.iter().map(String::as_str))
    }
}

fn put_uuid(out: &mut String, id: Uuid) {
    out.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
}

/// RFC 3339 in UTC with microseconds. chrono's own formatter interprets a pattern and costs more than the whole rest.
fn put_time(out: &mut String, at: DateTime<Utc>) {
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond() / 1_000 % 1_000_000
    );
}

/// A JSON string. The texts here are codes of ours, but nothing is taken on trust.
fn put_text(out: &mut String, text: &str) {
    out.push('"');
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push_str(text);
    } else {
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if (c as u32) < 0x20 => {
                    let _ = write!(out, "\\u{:04x}", c as u32);
                }
                c => out.push(c),
            }
        }
    }
    out.push('"');
}

impl Event {
    /// Writes key, value and headers into `scratch`. `source` names the system; `epoch` is the relay's.
    pub fn write(&self, scratch: &mut Scratch, source: &str, epoch: i64) {
        let Scratch { key, value: out, headers } = scratch;
        key.clear();
        put_uuid(key, self.account_id);

        out.clear();
        out.push_str("{\"event_id\":\"");
        put_uuid(out, self.event_id);
        out.push_str("\",\"payment_id\":\"");
        put_uuid(out, self.payment_id);
        out.push_str("\",\"tenant_id\":\"");
        put_uuid(out, self.tenant_id);
        out.push_str("\",\"debit_account_id\":\"");
        put_uuid(out, self.account_id);
        out.push_str("\",\"credit_account_id\":\"");
        put_uuid(out, self.credit_account_id);
        out.push('"');
        let currency = self.currency.trim_end();
        // A currency that this build does not know (added by a later one) still has its exact minor units.
        if let Some(known) = Currency::parse(currency) {
            let _ = write!(out, ",\"amount\":\"{}\"", Minor::new(self.amount_minor).display(known));
        }
        let _ = write!(out, ",\"amount_minor\":{},\"currency\":", self.amount_minor);
        put_text(out, currency);
        out.push_str(",\"status\":");
        put_text(out, &self.status);
        if let Some(code) = &self.code {
            out.push_str(",\"code\":");
            put_text(out, code);
        }
        let _ = write!(out, ",\"sequence\":{},\"occurred_at\":\"", self.event_seq);
        put_time(out, self.occurred_at);
        out.push_str("\"}");

        headers.values.iter_mut().for_each(String::clear);
        let [version, id, kind, from, time, subject, tenant, sequence, relay, content] = &mut headers.values;
        version.push_str("1.0");
        put_uuid(id, self.event_id);
        kind.push_str(&self.event_type);
        from.push_str(source);
        put_time(time, self.occurred_at);
        put_uuid(subject, self.payment_id);
        put_uuid(tenant, self.tenant_id);
        let _ = write!(sequence, "{}", self.event_seq);
        let _ = write!(relay, "{epoch}");
        content.push_str("application/json");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            tenant_id: Uuid::from_u128(1),
            account_id: Uuid::from_u128(2),
            event_seq: 7,
            event_id: Uuid::from_u128(3),
            event_type: "payments.payment.declined".into(),
            payment_id: Uuid::from_u128(4),
            credit_account_id: Uuid::from_u128(5),
            amount_minor: 1_205,
            currency: "USD".into(),
            status: "declined".into(),
            code: Some("insufficient_funds".into()),
            occurred_at: DateTime::from_timestamp_micros(1_700_000_000_000_042).unwrap_or_default(),
        }
    }

    #[test]
    fn a_row_becomes_key_headers_and_json() {
        let mut scratch = Scratch::default();
        // Twice: the buffers of the first must not shine through.
        for _ in 0..2 {
            event().write(&mut scratch, "/payment-core", 9);
        }
        assert_eq!(scratch.key, "00000000-0000-0000-0000-000000000002");
        assert_eq!(
            scratch.value,
            concat!(
                r#"{"event_id":"00000000-0000-0000-0000-000000000003","payment_id":"00000000-0000-0000-0000-000000000004","#,
                r#""tenant_id":"00000000-0000-0000-0000-000000000001","debit_account_id":"00000000-0000-0000-0000-000000000002","#,
                r#""credit_account_id":"00000000-0000-0000-0000-000000000005","amount":"12.05","amount_minor":1205,"currency":"USD","#,
                r#""status":"declined","code":"insufficient_funds","sequence":7,"occurred_at":"2023-11-14T22:13:20.000042Z"}"#
            )
        );
        let headers: Vec<(&str, &str)> = scratch.headers.iter().collect();
        assert_eq!(headers[0], ("ce_specversion", "1.0"));
        assert_eq!(headers[1], ("ce_id", "00000000-0000-0000-0000-000000000003"));
        assert_eq!(headers[2], ("ce_type", "payments.payment.declined"));
        assert_eq!(headers[3], ("ce_source", "/payment-core"));
        assert_eq!(headers[4], ("ce_time", "2023-11-14T22:13:20.000042Z"));
        assert_eq!(headers[5], ("ce_subject", "00000000-0000-0000-0000-000000000004"));
        assert_eq!(headers[6], ("ce_tenantid", "00000000-0000-0000-0000-000000000001"));
        assert_eq!(headers[7], ("ce_sequence", "7"));
        assert_eq!(headers[8], ("ce_relayepoch", "9"));
    }

    fn check_amount(minor: i64, currency: &str, expected: Option<&str>) {
        let mut scratch = Scratch::default();
        Event { amount_minor: minor, currency: currency.into(), ..event() }.write(&mut scratch, "s", 1);
        let json: serde_json::Value = serde_json::from_str(&scratch.value).expect("valid JSON");
        assert_eq!(json.get("amount").and_then(|a| a.as_str()), expected, "{minor} {currency}");
        assert_eq!(json["amount_minor"].as_i64(), Some(minor));
    }

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        check_amount(100, "JPY", Some("100"));
        check_amount(1_234, "KWD", Some("1.234"));
        check_amount(5, "USD", Some("0.05"));
        check_amount(5, "X\"Y", None);
    }

    #[test]
    fn any_text_is_valid_json() {
        let mut scratch = Scratch::default();
        Event { code: Some("a\"b\\c\n\u{1}ü".into()), ..event() }.write(&mut scratch, "s", 1);
        let json: serde_json::Value = serde_json::from_str(&scratch.value).expect("valid JSON");
        assert_eq!(json["code"], "a\"b\\c\n\u{1}ü");
    }
}
