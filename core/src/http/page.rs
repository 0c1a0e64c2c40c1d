//! Keyset pages. A cursor is opaque and carries the filters of its list, so that page two is a page of the same list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::domain::code::Code;
use crate::error::Problem;
use crate::limits;

/// How many rows a page has.
pub fn limit(given: Option<&str>) -> Result<i64, Problem> {
    match given {
        None => Ok(limits::PAGE_DEFAULT),
        Some(text) => match text.parse() {
            Ok(n) if (1..=limits::PAGE_MAX).contains(&n) => Ok(n),
            _ => Err(Problem::new(Code::InvalidQuery, format!("limit: expected 1 to {}", limits::PAGE_MAX))),
        },
    }
}

pub fn time(name: &str, given: Option<&str>) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(text) = given else { return Ok(None) };
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) if (1970..=9999).contains(&chrono::Datelike::year(&time)) => {
            Ok(Some(time.with_timezone(&Utc)))
        }
        _ => Err(Problem::new(
            Code::InvalidQuery,
            format!(
                "{name}: expected a time of RFC 3339, such as 2026-01-31T00:00:00Z (a '+' in a query is written %2B)"
            ),
        )),
    }
}

/// A cursor of the list `list`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<F, P> {
    l: String,
    f: F,
    p: P,
}

pub fn encode<F: Serialize, P: Serialize>(list: &str, filter: F, position: P) -> String {
    let envelope = Envelope { l: list.to_owned(), f: filter, p: position };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&envelope).unwrap_or_default())
}

/// The position, if the cursor is of this list with these filters. `given`: the filters of the query; a query that
/// repeats none of them gets those of the cursor.
pub fn decode<F, P>(list: &str, given: F, cursor: &str) -> Result<(F, P), Problem>
where
    F: DeserializeOwned + PartialEq + Default,
    P: DeserializeOwned,
{
    let invalid = || Problem::of(Code::InvalidCursor);
    if cursor.len() > limits::CURSOR_MAX {
        return Err(invalid());
    }
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| invalid())?;
    let envelope: Envelope<F, P> = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if envelope.l != list {
        return Err(invalid());
    }
    if given != F::default() && given != envelope.f {
        return Err(Problem::new(Code::InvalidCursor, "the cursor was made with other filters"));
    }
    Ok((envelope.f, envelope.p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_of_one_list_with_its_filters() {
        let cursor = encode("payments", Some("declined".to_owned()), (5, "x".to_owned()));
        let back: (Option<String>, (i32, String)) = decode("payments", None, &cursor).unwrap();
        assert_eq!(back, (Some("declined".to_owned()), (5, "x".to_owned())));
        let same = decode::<Option<String>, (i32, String)>("payments", Some("declined".into()), &cursor);
        assert!(same.is_ok());
        for (list, filter, text) in [
            ("accounts", None, cursor.clone()),
            ("payments", Some("succeeded".to_owned()), cursor.clone()),
            ("payments", None, "garbage!".to_owned()),
            ("payments", None, cursor[1..].to_owned()),
            ("payments", None, "A".repeat(limits::CURSOR_MAX + 1)),
        ] {
            let refused =
                decode::<Option<String>, (i32, String)>(list, filter, &text).err().map(|p| p.code());
            assert_eq!(refused, Some(Code::InvalidCursor), "{text}");
        }
    }

    #[test]
    fn limits_and_times() {
        assert_eq!(limit(None).unwrap(), limits::PAGE_DEFAULT);
        assert_eq!(limit(Some("100")).unwrap(), 100);
        for bad in ["0", "101", "-1", "x", "", "1.5"] {
            assert!(limit(Some(bad)).is_err(), "{bad}");
        }
        assert!(time("from", Some("2026-01-31T00:00:00+02:00")).unwrap().is_some());
        for bad in ["", "2026-01-31", "now", "+262142-01-01T00:00:00Z"] {
            assert!(time("from", Some(bad)).is_err(), "{bad}");
        }
    }
}
