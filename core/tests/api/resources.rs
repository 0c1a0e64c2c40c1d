//! Accounts, keys, settings, rules, the OpenAPI document.

use std::time::{Duration, Instant};

use payment_core::http::routes::OPERATIONS;
use serde_json::json;

use crate::bed::{ADMIN, Bed, payment};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_from_opening_to_closing() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let path = format!("/v1/accounts/{wallet}");
    assert_eq!(bed.pay("1", &payment(&settlement, &wallet, "5.00")).await.status, 201);
    let patch = async |body: serde_json::Value| bed.call("PATCH", &path, &[], &body.to_string()).await;
    let limited = patch(json!({ "overdraft_limit": "2.00" })).await;
    assert_eq!(limited.json()["overdraft_limit"], "2.00");
    assert_eq!(bed.pay("2", &payment(&wallet, &settlement, "7.00")).await.status, 201);
    assert_eq!(
        bed.pay("3", &payment(&wallet, &settlement, "0.01")).await.problem(),
        (402, "insufficient_funds".into())
    );
    let balance = bed.get(&format!("{path}/balance")).await.json();
    assert_eq!((&balance["posted"], &balance["available"]), (&json!("-2.00"), &json!("0.00")));

    // A frozen account declines at once, whatever caches hold.
    assert_eq!(bed.get(&path).await.json()["status"], "ACTIVE");
    assert_eq!(patch(json!({ "status": "FROZEN" })).await.json()["status"], "FROZEN");
    assert_eq!(bed.get(&path).await.json()["status"], "FROZEN");
    assert_eq!(
        bed.pay("4", &payment(&settlement, &wallet, "1.00")).await.problem(),
        (402, "account_not_active".into())
    );
    assert_eq!(patch(json!({ "status": "CLOSED" })).await.status, 200);
    assert_eq!(patch(json!({ "status": "ACTIVE" })).await.problem(), (409, "state_conflict".into()));
    assert_eq!(patch(json!({ "status": "OPEN" })).await.problem(), (422, "invalid_value".into()));
    let unlimited =
        bed.call("PATCH", &format!("/v1/accounts/{settlement}"), &[], r#"{"overdraft_limit":"1.00"}"#).await;
    assert_eq!(unlimited.problem(), (422, "invalid_value".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_hands_on_no_more_than_it_may() {
    let bed = Bed::new().await;
    let made = bed.call("POST", "/v1/api-keys", &[], r#"{"scopes":["keys:write","payments:read"]}"#).await;
    let key = made.text("api_key");
    let make = |scopes: &'static str| {
        let (bed, key) = (&bed, &key);
        async move { bed.as_key(key, "POST", "/v1/api-keys", &[], &format!(r#"{{"scopes":{scopes}}}"#)).await }
    };
    for more in ["[]", r#"["payments:write"]"#, r#"["payments:read","accounts:read"]"#] {
        assert_eq!(make(more).await.problem(), (403, "forbidden".into()), "{more}");
    }
    assert_eq!(
        bed.as_key(&key, "POST", "/v1/api-keys", &[], "{}").await.problem(),
        (403, "forbidden".into())
    );
    assert_eq!(make(r#"["payments:read"]"#).await.status, 201);
    // A key without scopes may do everything, so it may hand on everything.
    assert_eq!(bed.call("POST", "/v1/api-keys", &[], "{}").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_scopes_and_end() {
    let (bed, other) = (Bed::new().await, Bed::new().await);
    let made = bed.call("POST", "/v1/api-keys", &[], r#"{"scopes":["payments:read"]}"#).await;
    assert_eq!(made.status, 201, "{made:?}");
    let (id, key) = (made.text("key_id"), made.text("api_key"));
    assert!(key.starts_with(&made.text("prefix")));
    assert_eq!(bed.as_key(&key, "GET", "/v1/payments", &[], "").await.status, 200);
    assert_eq!(bed.as_key(&key, "GET", "/v1/accounts", &[], "").await.problem(), (403, "forbidden".into()));
    let post = bed.as_key(&key, "POST", "/v1/payments", &[("idempotency-key", "k")], "{}").await;
    assert_eq!(post.problem(), (403, "forbidden".into()));
    let listed = bed.get("/v1/api-keys").await;
    assert_eq!(listed.json()["data"].as_array().unwrap().len(), 2);
    assert!(!listed.body.contains(&key), "a secret is shown once");
    // Another instance knows the key, and forgets it within the stated time.
    assert_eq!(other.as_key(&key, "GET", "/v1/payments", &[], "").await.status, 200);
    let revoked = Instant::now();
    assert_eq!(bed.call("DELETE", &format!("/v1/api-keys/{id}"), &[], "").await.status, 204);
    assert_eq!(
        bed.as_key(&key, "GET", "/v1/payments", &[], "").await.problem(),
        (401, "unauthenticated".into())
    );
    while other.as_key(&key, "GET", "/v1/payments", &[], "").await.status != 401 {
        let limit = Duration::from_secs(payment_core::limits::API_KEY_REVOCATION_S + 1);
        assert!(revoked.elapsed() < limit, "revocation takes longer than stated");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let sql = bed.sql().await;
    let plain: i64 = sql
        .query_one(
            "SELECT count(*) FROM api_keys WHERE position($1 IN encode(key_hash, 'escape')) > 0",
            &[&key],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(plain, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_reads_and_does_not_pay() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    assert_eq!(bed.pay("1", &body).await.status, 201);
    // In SQL, so that the key cache of this instance does not know: the posting itself must see it.
    bed.sql()
        .await
        .batch_execute(&format!("UPDATE tenants SET status = 'SUSPENDED' WHERE tenant_id = '{}'", bed.tenant))
        .await
        .unwrap();
    assert_eq!(bed.pay("2", &body).await.problem(), (403, "tenant_suspended".into()));
    let path = format!("/v1/tenants/{}", bed.tenant);
    let patch = async |status: &str| {
        let body = json!({ "status": status }).to_string();
        bed.as_key(ADMIN, "PATCH", &path, &[], &body).await
    };
    assert_eq!(patch("SUSPENDED").await.json()["status"], "SUSPENDED");
    assert_eq!(bed.get("/v1/payments").await.status, 200);
    assert_eq!(patch("ACTIVE").await.status, 200);
    assert_eq!(bed.pay("2", &body).await.status, 201);
    assert_eq!(patch("CLOSED").await.status, 200);
    assert_eq!(bed.get("/v1/payments").await.problem(), (401, "unauthenticated".into()));
    assert_eq!(bed.as_key(ADMIN, "GET", &path, &[], "").await.json()["status"], "CLOSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_by_version() {
    let bed = Bed::new().await;
    let path = "/v1/tenant-config/limits";
    assert_eq!(bed.get(path).await.problem(), (404, "not_found".into()));
    let put = async |headers: &[(&str, &str)], body: &str| bed.call("PUT", path, headers, body).await;
    let first = put(&[("if-none-match", "*")], r#"{"max":1}"#).await;
    assert_eq!((first.status, first.header("etag")), (200, Some("\"1\"")), "{first:?}");
    assert_eq!(put(&[("if-none-match", "*")], "{}").await.problem(), (412, "precondition_failed".into()));
    let second = put(&[("if-match", "\"1\"")], r#"{"max":2}"#).await;
    assert_eq!((second.status, second.header("etag")), (200, Some("\"2\"")));
    assert_eq!(
        put(&[("if-match", "\"1\"")], r#"{"max":3}"#).await.problem(),
        (412, "precondition_failed".into())
    );
    let read = bed.get(path).await;
    assert_eq!((&read.json()["config"]["max"], read.header("etag")), (&json!(2), Some("\"2\"")));
    assert_eq!(put(&[], r#"{"max":4}"#).await.header("etag"), Some("\"3\""));
    assert_eq!(bed.get(path).await.json()["config"]["max"], 4);

    let types = json!({ "code": "card", "name": "Card", "min_amount_minor": 100, "max_amount_minor": 500 });
    assert_eq!(bed.call("POST", "/v1/payment-types", &[], &types.to_string()).await.status, 201);
    let again = bed.call("POST", "/v1/payment-types", &[], &types.to_string()).await;
    assert_eq!(again.problem(), (409, "already_exists".into()));
    let (settlement, wallet) = bed.accounts().await;
    let pay = async |key: &str, amount: &str| {
        let mut body = payment(&settlement, &wallet, amount);
        body["payment_type"] = json!("card");
        bed.pay(key, &body).await
    };
    assert_eq!(pay("1", "1.00").await.status, 201);
    assert_eq!(pay("2", "5.01").await.problem(), (422, "amount_out_of_range".into()));
    // A type that was read (and cached) as active stops being one with the next posting.
    assert_eq!(bed.get("/v1/payment-types/card").await.json()["is_active"], true);
    let off = json!({ "code": "card", "name": "Card", "is_active": false }).to_string();
    assert_eq!(bed.call("PUT", "/v1/payment-types/card", &[("if-match", "\"9\"")], &off).await.status, 412);
    assert_eq!(bed.call("PUT", "/v1/payment-types/card", &[("if-match", "\"1\"")], &off).await.status, 200);
    assert_eq!(pay("3", "1.00").await.problem(), (422, "payment_type_inactive".into()));
    assert_eq!(bed.get("/v1/payment-types/card").await.json()["is_active"], false);
    assert_eq!(bed.get("/v1/payment-types").await.json()["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn h33_rules_hold_from_their_commit_on() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let pay = async |key: &str, amount: &str| bed.pay(key, &payment(&settlement, &wallet, amount)).await;
    assert_eq!(bed.get("/v1/fraud-rules").await.json()["data"], json!([]));
    let rule = json!({ "rule_type": "max_amount", "currency": "USD", "amount": "10.00" });
    let made = bed.call("POST", "/v1/fraud-rules", &[("idempotency-key", "r")], &rule.to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    let again = bed.call("POST", "/v1/fraud-rules", &[("idempotency-key", "r")], &rule.to_string()).await;
    assert_eq!(again.body, made.body);
    assert_eq!(pay("1", "10.01").await.problem(), (402, "limit_exceeded".into()));
    assert_eq!(pay("2", "10.00").await.status, 201);
    let test = async |amount: &str| {
        let body = json!({ "amount": amount, "currency": "USD" }).to_string();
        bed.call("POST", "/v1/fraud-rules/test", &[], &body).await.json()["allowed"].clone()
    };
    assert_eq!((test("10.01").await, test("10.00").await), (json!(false), json!(true)));
    // The rule is cached now; changed behind the cache's back it holds all the same.
    let path = format!("/v1/fraud-rules/{}", made.text("rule_id"));
    assert_eq!(bed.get(&path).await.json()["amount"], "10.00");
    bed.sql()
        .await
        .batch_execute(&format!(
            "UPDATE fraud_rules SET amount_minor = 500 WHERE tenant_id = '{}'",
            bed.tenant
        ))
        .await
        .unwrap();
    assert_eq!(pay("3", "5.01").await.problem(), (402, "limit_exceeded".into()));
    let mut looser = rule.clone();
    looser["amount"] = json!("20.00");
    let put = bed.call("PUT", &path, &[("if-match", "\"1\"")], &looser.to_string()).await;
    assert_eq!((put.status, put.header("etag")), (200, Some("\"2\"")), "{put:?}");
    assert_eq!(bed.call("PUT", &path, &[("if-match", "\"1\"")], &rule.to_string()).await.status, 412);
    assert_eq!(pay("4", "20.00").await.status, 201);
    assert_eq!(bed.call("DELETE", &path, &[], "").await.status, 204);
    assert_eq!(bed.get(&path).await.status, 404);
    assert_eq!(pay("5", "100.00").await.status, 201);

    let velocity = json!({ "rule_type": "velocity_count", "max_count": 2, "window_seconds": 31622400 });
    assert_eq!(bed.call("POST", "/v1/fraud-rules", &[], &velocity.to_string()).await.status, 201);
    assert_eq!((pay("6", "1.00").await.status, pay("7", "1.00").await.status), (201, 201));
    assert_eq!(pay("8", "1.00").await.problem(), (402, "velocity_exceeded".into()));
}

/// The document and the router say the same: every operation exists, and no path has another method.
#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_is_the_router() {
    let bed = Bed::new().await;
    let document = bed.as_key("", "GET", "/openapi.json", &[], "").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let described: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
    assert_eq!(described, OPERATIONS.len());
    for (path, item) in paths {
        let concrete = path.replace("{id}", "x").replace("{code}", "x").replace("{type}", "x");
        for method in ["get", "post", "put", "patch", "delete"] {
            let reply = bed.as_key("", &method.to_uppercase(), &concrete, &[], "").await;
            let expected = item.get(method).is_some();
            assert_eq!(reply.status != 405, expected, "{method} {path}: {reply:?}");
            assert!(!reply.body.contains("there is no such path"), "{method} {path}");
        }
    }
}
