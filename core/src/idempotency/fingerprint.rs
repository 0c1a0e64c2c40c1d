//! What a request asks for, in 16 bytes: the first half of a SHA-256 over method, path and the parsed values. Values and
//! not bytes, because a retry may be serialised anew with other spaces, member order or "10.5" for "10.50".

use sha2::{Digest, Sha256};

use crate::domain::account::NewAccount;
use crate::domain::payment::PaymentDetails;
use crate::domain::request::AccountBody;

pub type Fingerprint = [u8; 16];

/// Every field goes in with its length, so that no two lists of fields have the same bytes.
struct Canonical(Sha256);

impl Canonical {
    fn new(method_and_path: &str) -> Self {
        let mut this = Self(Sha256::new());
        this.text(method_and_path);
        this
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Absent and empty differ.
    fn optional(&mut self, text: Option<&str>) {
        match text {
            None => self.0.update([0]),
            Some(text) => {
                self.0.update([1]);
                self.text(text);
            }
        }
    }

    fn finish(self) -> Fingerprint {
        let digest = self.0.finalize();
        let mut out = [0; 16];
        out.copy_from_slice(&digest[..16]);
        out
    }
}

/// A payment, however it came: single, in a batch, or as a command. The key means the same in all three.
pub fn of_payment(details: &PaymentDetails, metadata_json: Option<&str>) -> Fingerprint {
    let mut canonical = Canonical::new("POST /v1/payments");
    canonical.bytes(details.debit.0.as_bytes());
    canonical.bytes(details.credit.0.as_bytes());
    canonical.bytes(&details.amount.get().to_be_bytes());
    canonical.text(details.currency.code());
    canonical.optional(details.payment_type.as_deref());
    canonical.optional(details.reference.as_deref());
    canonical.optional(details.description.as_deref());
    canonical.optional(metadata_json);
    canonical.finish()
}

/// Accounts in the request's order. Those that are not valid count, too: their answers are part of the request's answer.
pub fn of_accounts<'a>(
    path: &str,
    items: impl IntoIterator<Item = Result<&'a NewAccount, &'a AccountBody>>,
) -> Fingerprint {
    let mut canonical = Canonical::new(path);
    for item in items {
        match item {
            Ok(account) => {
                canonical.text("valid");
                canonical.text(&account.number);
                canonical.text(account.currency.code());
                canonical.text(account.kind.as_str());
                canonical.bytes(&account.overdraft_limit.get().to_be_bytes());
            }
            Err(body) => {
                canonical.text("not valid");
                canonical.text(&body.account_number);
                canonical.text(&body.currency);
                canonical.optional(body.kind.as_deref());
                canonical.optional(body.overdraft_limit.as_deref());
            }
        }
    }
    canonical.finish()
}

/// For the small resources: method and path, then the fields in a fixed order.
pub fn of_fields(method_and_path: &str, fields: &[Option<&str>]) -> Fingerprint {
    let mut canonical = Canonical::new(method_and_path);
    for field in fields {
        canonical.optional(*field);
    }
    canonical.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::request::PaymentBody;
    use crate::domain::validate::Faults;

    fn fingerprint(json: &str) -> Fingerprint {
        let body: PaymentBody<'_> = serde_json::from_str(json).unwrap();
        let details = body.validate(Faults::default()).unwrap();
        let metadata = details.metadata.as_ref().map(crate::domain::metadata::to_json);
        of_payment(&details, metadata.as_deref())
    }

    const BASE: &str = r#"{"debit_account_id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","credit_account_id":"017f22e2-79b0-7cc3-98c4-dc0c0c073990","amount":"10.50","currency":"USD","metadata":{"a":"1","b":"2"}}"#;

    #[test]
    fn another_spelling_is_the_same_request() {
        let respelt = r#" { "metadata" : {"b":"2","a":"\u0031"}, "currency":"USD", "amount":"10.5",
            "credit_account_id":"017F22E279B07CC398C4DC0C0C073990", "debit_account_id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f" }"#;
        assert_eq!(fingerprint(BASE), fingerprint(respelt));
    }

    #[test]
    fn accounts_that_are_not_valid_count_in_their_place() {
        let body = |number: &str, currency: &str| AccountBody {
            account_number: number.into(),
            currency: currency.into(),
            kind: None,
            overdraft_limit: None,
        };
        let valid = body("A", "USD").validate(Faults::default()).unwrap();
        let (bad, worse) = (body("B", "XX"), body("B", "YY"));
        let of = |items: &[Result<&NewAccount, &AccountBody>]| of_accounts("p", items.iter().copied());
        let base = of(&[Ok(&valid), Err(&bad)]);
        assert_eq!(base, of(&[Ok(&valid), Err(&bad.clone())]));
        for other in [of(&[Ok(&valid)]), of(&[Err(&bad), Ok(&valid)]), of(&[Ok(&valid), Err(&worse)])] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn every_value_counts() {
        for (from, to) in [
            ("10.50", "10.51"),
            ("USD", "EUR"),
            ("07398f", "07398e"),
            ("073990", "073991"),
            ("\"a\":\"1\"", "\"a\":\"2\""),
            ("\"currency\"", "\"reference\":\"r\",\"currency\""),
            ("\"currency\"", "\"description\":\"r\",\"currency\""),
            ("\"currency\"", "\"payment_type\":\"r\",\"currency\""),
        ] {
            assert_ne!(fingerprint(BASE), fingerprint(&BASE.replace(from, to)), "{from} -> {to}");
        }
        // The same text in another member is another request.
        let reference = fingerprint(&BASE.replace("\"currency\"", "\"reference\":\"r\",\"currency\""));
        let description = fingerprint(&BASE.replace("\"currency\"", "\"description\":\"r\",\"currency\""));
        assert_ne!(reference, description);
    }
}
