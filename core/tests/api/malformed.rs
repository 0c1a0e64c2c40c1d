//! Everything that can be wrong with a request gets its own answer, and nothing is stored.

use serde_json::json;

use crate::bed::{Bed, payment, raw, unique};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn payments_that_make_no_sense() {
    let bed = Bed::new().await;
    let (debit, credit) = bed.accounts().await;
    let good = payment(&debit, &credit, "1.00");
    let with = |member: &str, value: serde_json::Value| {
        let mut body = good.clone();
        body[member] = value;
        body.to_string()
    };
    let without = |member: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(member);
        body.to_string()
    };
    let cases = [
        ("not JSON", "{".into(), 400, "malformed_json"),
        ("garbage", "\u{1}\u{2}".into(), 400, "malformed_json"),
        ("trailing text", format!("{good} x"), 400, "malformed_json"),
        ("an array", "[]".into(), 400, "invalid_body"),
        ("null", "null".into(), 400, "invalid_body"),
        ("an unknown member", with("amonut", json!("1")), 400, "invalid_body"),
        ("a member twice", good.to_string().replacen('{', "{\"currency\":\"USD\",", 1), 400, "invalid_body"),
        ("no amount", without("amount"), 400, "invalid_body"),
        ("a number as amount", with("amount", json!(1.5)), 400, "invalid_body"),
        ("metadata that is not strings", with("metadata", json!({"a": 1})), 400, "invalid_body"),
        ("zero", with("amount", json!("0.00")), 422, "amount_not_positive"),
        ("negative", with("amount", json!("-1.00")), 422, "amount_not_positive"),
        ("too precise", with("amount", json!("1.001")), 422, "amount_too_precise"),
        ("overflow of the limit", with("amount", json!("10000000000000.00")), 422, "amount_too_large"),
        ("overflow of 64 bits", with("amount", json!("92233720368547758.08")), 422, "amount_too_large"),
        (
            "overflow of 96 bits",
            with("amount", json!("79228162514264337593543950336")),
            422,
            "amount_too_large",
        ),
        ("exponent", with("amount", json!("1e3")), 422, "invalid_amount"),
        ("comma", with("amount", json!("1,00")), 422, "invalid_amount"),
        ("empty amount", with("amount", json!("")), 422, "invalid_amount"),
        ("NaN", with("amount", json!("NaN")), 422, "invalid_amount"),
        ("unknown currency", with("currency", json!("ZZZ")), 422, "unknown_currency"),
        ("lower-case currency", with("currency", json!("usd")), 422, "unknown_currency"),
        ("another currency", with("currency", json!("EUR")), 422, "currency_mismatch"),
        ("no UUID", with("debit_account_id", json!("me")), 422, "invalid_account_id"),
        ("to itself", with("credit_account_id", json!(debit)), 422, "same_account"),
        (
            "an unknown account",
            with("credit_account_id", json!(uuid::Uuid::now_v7())),
            404,
            "unknown_account",
        ),
        ("an unknown type", with("payment_type", json!("gift")), 422, "unknown_payment_type"),
        ("a long reference", with("reference", json!("x".repeat(101))), 422, "invalid_text"),
        ("an empty reference", with("reference", json!("")), 422, "invalid_text"),
        ("NUL", with("reference", json!("a\u{0}b")), 422, "invalid_text"),
        ("NUL in metadata", with("metadata", json!({"a": "\u{0}"})), 422, "invalid_text"),
        ("a long description", with("description", json!("ü".repeat(501))), 422, "invalid_text"),
    ];
    for (what, body, status, code) in cases {
        let reply = bed.call("POST", "/v1/payments", &[("idempotency-key", &unique())], &body).await;
        assert_eq!(reply.problem(), (status, code.to_owned()), "{what}: {body}");
    }
    let reply = bed.pay(&unique(), &json!({ "x": 1 })).await;
    assert!(reply.text("detail").contains("line 1 column"), "{reply:?}");
    for table in ["payments", "entries", "idempotency_keys", "outbox"] {
        assert_eq!(bed.count(table, "true").await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_make_no_sense() {
    let bed = Bed::new().await;
    let (debit, credit) = bed.accounts().await;
    let body = payment(&debit, &credit, "1.00").to_string();
    let long = "k".repeat(256);
    let check =
        async |what: &str, key: &str, headers: &[(&str, &str)], body: &str, status: u16, code: &str| {
            let reply = bed.as_key(key, "POST", "/v1/payments", headers, body).await;
            assert_eq!(reply.problem(), (status, code.to_owned()), "{what}");
            reply
        };
    let key = bed.key.as_str();
    let id = ("idempotency-key", "k1");
    check("no key", key, &[JSON], &body, 400, "missing_idempotency_key").await;
    check("an empty key", key, &[("idempotency-key", "")], &body, 400, "invalid_idempotency_key").await;
    check("a long key", key, &[("idempotency-key", &long)], &body, 400, "invalid_idempotency_key").await;
    check("two keys", key, &[id, id], &body, 400, "invalid_idempotency_key").await;
    check("an open quote", key, &[("idempotency-key", "\"k")], &body, 400, "invalid_idempotency_key").await;
    check("text", key, &[id, ("content-type", "text/plain")], &body, 415, "unsupported_media_type").await;
    check("no media type", key, &[id, ("content-type", "")], &body, 415, "unsupported_media_type").await;
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(70_000));
    check("a large body", key, &[id], &large, 413, "body_too_large").await;
    check("no API key", "", &[id], &body, 401, "unauthenticated").await;
    check("no such API key", &format!("{}x", &key[..key.len() - 1]), &[id], &body, 401, "unauthenticated")
        .await;
    check("a key of nobody", "pk_x_y", &[id], &body, 401, "unauthenticated").await;
    // The first fault in the documented order wins.
    check("all at once", "", &[("content-type", "text/plain")], "{", 401, "unauthenticated").await;
    check("all but one", key, &[("content-type", "text/plain")], "{", 400, "missing_idempotency_key").await;

    let reply = bed.as_key("wrong", "POST", "/v1/tenants", &[], "{}").await;
    assert_eq!(reply.problem(), (403, "forbidden".into()));
    assert_eq!(bed.get("/v1/nothing").await.problem(), (404, "not_found".into()));
    assert_eq!(
        bed.call("DELETE", "/v1/payments", &[], "").await.problem(),
        (405, "method_not_allowed".into())
    );
    let reply = bed.call("GET", "/healthz", &[("x-request-id", "mine-1")], "").await;
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("mine-1")));
    assert_eq!(bed.count("payments", "true").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_http() {
    let bed = Bed::new().await;
    assert_eq!(raw(bed.address, b"\x16\x03\x01\x02\x00\r\n\r\n").await.status, 400);
    let many = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert_eq!(raw(bed.address, many.as_bytes()).await.status, 431);
    // A chunked body without a length is bounded as well.
    let mut chunked = format!(
        "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nidempotency-key: c\r\n\
         content-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        bed.key
    );
    for _ in 0..20 {
        chunked.push_str(&format!("2000\r\n{}\r\n", " ".repeat(0x2000)));
    }
    chunked.push_str("0\r\n\r\n");
    assert_eq!(raw(bed.address, chunked.as_bytes()).await.problem(), (413, "body_too_large".into()));
    assert_eq!(bed.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_resources_that_make_no_sense() {
    let bed = Bed::new().await;
    let account = |n: &str| json!({ "account_number": n, "currency": "USD" });
    let mut settlement = account("s");
    settlement["type"] = json!("settlement");
    settlement["overdraft_limit"] = json!("1.00");
    let mut precise = account("p");
    precise["overdraft_limit"] = json!("0.001");
    let mut kind = account("k");
    kind["type"] = json!("vault");
    let mut currency = account("c");
    currency["currency"] = json!("GBX");
    let rule = |kind: &str| json!({ "rule_type": kind });
    let cases = [
        ("/v1/accounts", account(&"9".repeat(51)), 422, "invalid_text"),
        ("/v1/accounts", settlement, 422, "invalid_value"),
        ("/v1/accounts", precise, 422, "amount_too_precise"),
        ("/v1/accounts", kind, 422, "invalid_value"),
        ("/v1/accounts", currency, 422, "unknown_currency"),
        ("/v1/accounts/batch", json!({ "accounts": [] }), 422, "too_many_items"),
        ("/v1/payments/batch", json!({ "payments": [] }), 422, "too_many_items"),
        ("/v1/fraud-rules", rule("magic"), 422, "invalid_value"),
        ("/v1/fraud-rules", rule("max_amount"), 422, "unknown_currency"),
        ("/v1/fraud-rules", rule("velocity_count"), 422, "invalid_value"),
        ("/v1/payment-types", json!({ "code": "a b", "name": "x" }), 422, "invalid_text"),
        (
            "/v1/payment-types",
            json!({ "code": "a", "name": "x", "min_amount_minor": 5, "max_amount_minor": 4 }),
            422,
            "invalid_value",
        ),
        ("/v1/api-keys", json!({ "scopes": ["everything"] }), 422, "invalid_value"),
    ];
    for (path, body, status, code) in cases {
        let reply = bed.call("POST", path, &[], &body.to_string()).await;
        assert_eq!(reply.problem(), (status, code.to_owned()), "{path}: {body}");
    }
    for (path, code) in [
        ("/v1/payments?limit=0", "invalid_query"),
        ("/v1/payments?limit=101", "invalid_query"),
        ("/v1/payments?status=maybe", "invalid_query"),
        ("/v1/payments?colour=red", "invalid_query"),
        ("/v1/payments?from=yesterday", "invalid_query"),
        ("/v1/payments?cursor=AAAA", "invalid_cursor"),
        ("/v1/accounts?cursor=%21", "invalid_cursor"),
    ] {
        assert_eq!(bed.get(path).await.problem(), (400, code.to_owned()), "{path}");
    }
    let put = bed.call("PUT", "/v1/tenant-config/limits", &[], "[1]").await;
    assert_eq!(put.problem(), (400, "invalid_body".into()));
    let put = bed.call("PUT", "/v1/tenant-config/limits", &[], r#"{"a":"\u0000"}"#).await;
    assert_eq!(put.problem(), (400, "invalid_body".into()));
}

/// What never reaches a handler is answered in the same form as what does.
#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_do_not_exist_are_problems() {
    let bed = Bed::new().await;
    for (method, path) in [
        ("GET", "/v1/accounts/%FF"),
        ("GET", "/v1/accounts/%FF/balance"),
        ("GET", "/v1/accounts/%FF/statement"),
        ("PATCH", "/v1/accounts/%FF"),
        ("GET", "/v1/payments/%C3%28"),
        ("GET", "/v1/payment-types/%FF"),
        ("PUT", "/v1/payment-types/%FF"),
        ("GET", "/v1/tenant-config/%FF"),
        ("PUT", "/v1/tenant-config/%FF"),
        ("GET", "/v1/fraud-rules/%FF"),
        ("PUT", "/v1/fraud-rules/%FF"),
        ("DELETE", "/v1/fraud-rules/%FF"),
        ("DELETE", "/v1/api-keys/%FF"),
        ("GET", "/"),
        ("GET", "/v1"),
        ("POST", "/v1/payment"),
        ("GET", "/v1/accounts/"),
        ("GET", "/%FF"),
    ] {
        let reply = bed.call(method, path, &[], "{}").await;
        assert_eq!(reply.problem(), (404, "not_found".into()), "{method} {path}");
    }
    for method in ["GET", "PATCH"] {
        let reply = bed.as_key(crate::bed::ADMIN, method, "/v1/tenants/%FF", &[], "{}").await;
        assert_eq!(reply.problem(), (404, "not_found".into()), "{method}");
    }
    for (method, path, allowed) in [
        ("DELETE", "/v1/payments", &["GET", "HEAD", "POST"][..]),
        ("OPTIONS", "/v1/payments", &["GET", "HEAD", "POST"]),
        ("POST", "/v1/accounts/x/balance", &["GET", "HEAD"]),
        ("GET", "/v1/payments/batch", &["POST"]),
        ("POST", "/healthz", &["GET", "HEAD"]),
    ] {
        let reply = bed.call(method, path, &[], "{}").await;
        assert_eq!(reply.problem(), (405, "method_not_allowed".into()), "{method} {path}");
        let mut allow: Vec<&str> =
            reply.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow, allowed, "{method} {path}");
    }
    for path in ["/v1/payments?limit=1&limit=2", "/v1/accounts?colour=red", "/v1/payments?limit=%FF"] {
        assert_eq!(bed.get(path).await.problem(), (400, "invalid_query".into()), "{path}");
    }
}
