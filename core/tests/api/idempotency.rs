//! The same key is the same payment.

use serde_json::json;

use crate::bed::{Bed, payment, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_returns_the_same_bytes() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let mut body = payment(&settlement, &wallet, "12.30");
    body["metadata"] = json!({ "b": "2", "a": "1" });
    body["reference"] = json!("order 7");
    let first = bed.pay("k1", &body).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, None), "{first:?}");
    assert_eq!(first.json()["amount"], "12.30");

    // Quoted, respelt, with other spaces.
    let respelt = body.to_string().replace("12.30", "12.3").replace(",\"", " ,\n \"");
    let again = bed.call("POST", "/v1/payments", &[("idempotency-key", "\"k1\"")], &respelt).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")), "{again:?}");
    assert_eq!(again.body, first.body);

    // Through the batch door, too.
    let mut item = body.clone();
    item["idempotency_key"] = json!("k1");
    let batch = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": [item] }).to_string()).await;
    let result = &batch.json()["results"][0];
    assert_eq!((&result["status"], &result["replayed"]), (&json!(201), &json!(true)), "{batch:?}");
    assert_eq!(result["payment"], first.json());

    let other = bed.pay("k1", &payment(&settlement, &wallet, "12.31")).await;
    assert_eq!(other.problem(), (422, "idempotency_key_reused".into()));

    // What was answered is what is stored.
    let stored = bed.get(&format!("/v1/payments/{}", first.text("payment_id"))).await;
    assert_eq!(stored.json(), first.json());
    assert_eq!(bed.count("payments", "true").await, 1);
    assert_eq!(bed.count("outbox", "true").await, 1);
    assert_eq!(bed.count("entries", "amount_minor = 1230").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decline_is_an_outcome_and_is_replayed() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&wallet, &settlement, "5.00");
    let first = bed.pay("d1", &body).await;
    assert_eq!(first.problem(), (402, "insufficient_funds".into()));
    // The wallet gets money; the declined payment stays declined.
    assert_eq!(bed.pay("fund", &payment(&settlement, &wallet, "100.00")).await.status, 201);
    let again = bed.pay("d1", &body).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (402, Some("true")));
    assert_eq!(again.body, first.body);
    let stored = bed.get(&format!("/v1/payments/{}", first.text("payment_id"))).await.json();
    assert_eq!(
        (&stored["status"], &stored["decline_code"]),
        (&json!("declined"), &json!("insufficient_funds"))
    );
    let balance = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!((&balance["posted"], &balance["available"]), (&json!("100.00"), &json!("100.00")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_request_leaves_its_key_free() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let nobody = uuid::Uuid::now_v7().to_string();
    assert_eq!(bed.pay("r1", &payment(&settlement, &nobody, "1.00")).await.status, 404);
    assert_eq!(bed.pay("r1", &payment(&settlement, &wallet, "1.00")).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_flight_is_refused_and_survives_its_client() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    let lock = bed.lock(&wallet).await;
    // The first client hangs up while its payment waits for the account.
    let request = format!(
        "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nidempotency-key: f1\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        bed.key,
        body.to_string().len()
    );
    let mut stream = tokio::net::TcpStream::connect(bed.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    bed.until_blocked(1).await;
    let second = bed.pay("f1", &body).await;
    assert_eq!(second.problem(), (409, "idempotency_key_in_flight".into()));
    drop(stream);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    lock.batch_execute("COMMIT").await.unwrap();
    // It was posted all the same, once.
    let mut third = bed.pay("f1", &body).await;
    while third.status == 409 {
        third = bed.pay("f1", &body).await;
    }
    assert_eq!((third.status, third.header("idempotent-replayed")), (201, Some("true")), "{third:?}");
    assert_eq!(bed.count("payments", "true").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_answer_in_order_and_by_item() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let item = |key: &str, debit: &str, credit: &str, amount: &str| {
        let mut body = payment(debit, credit, amount);
        body["idempotency_key"] = json!(key);
        body
    };
    let items = vec![
        item("b1", &settlement, &wallet, "10.00"),
        item("b2", &wallet, &settlement, "4.00"),
        item("b3", &wallet, &settlement, "7.00"),
        item("b4", &wallet, &settlement, "0.001"),
        item("b5", &wallet, &settlement, "6.00"),
        item("b1", &settlement, &wallet, "10.00"),
        item("", &settlement, &wallet, "10.00"),
    ];
    let reply = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": items }).to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let results = reply.json();
    let statuses: Vec<_> =
        results["results"].as_array().unwrap().iter().map(|r| r["status"].as_u64().unwrap()).collect();
    // In order: 10 in, 4 out, 7 is more than the 6 left, 6 is exactly that; the key b1 is taken; no key.
    assert_eq!(statuses, [201, 201, 402, 422, 201, 409, 400]);
    assert_eq!(results["results"][3]["problem"]["errors"][0]["pointer"], "/payments/3/amount");
    let balance = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!((&balance["posted"], &balance["version"]), (&json!("0.00"), &json!(3)));

    let many: Vec<_> = (0..1001).map(|i| item(&format!("m{i}"), &settlement, &wallet, "1.00")).collect();
    let reply = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": many }).to_string()).await;
    assert_eq!(reply.problem(), (422, "too_many_items".into()));
    let many: Vec<_> = (0..1000).map(|i| item(&format!("m{i}"), &settlement, &wallet, "0.01")).collect();
    let reply = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": many }).to_string()).await;
    assert!(reply.json()["results"].as_array().unwrap().iter().all(|r| r["status"] == 201), "{reply:?}");
    let balance = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!(balance["posted"], "10.00");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_opened_once_a_key() {
    let bed = Bed::new().await;
    let number = unique();
    let body = json!({ "account_number": number, "currency": "JPY", "overdraft_limit": "5" }).to_string();
    let key = [("idempotency-key", "a1")];
    let (first, second) = tokio::join!(
        bed.call("POST", "/v1/accounts", &key, &body),
        bed.call("POST", "/v1/accounts", &key, &body)
    );
    assert_eq!((first.status, second.status), (201, 201), "{first:?} {second:?}");
    assert_eq!(first.body, second.body);
    let replays = [&first, &second].iter().filter(|r| r.header("idempotent-replayed").is_some()).count();
    assert_eq!(replays, 1);
    let other = body.replace("\"5\"", "\"6\"");
    assert_eq!(
        bed.call("POST", "/v1/accounts", &key, &other).await.problem(),
        (422, "idempotency_key_reused".into())
    );
    // Without the key the number itself is unique.
    assert_eq!(bed.call("POST", "/v1/accounts", &[], &body).await.problem(), (409, "already_exists".into()));
    // A payment cannot take an account's key.
    let (settlement, wallet) = bed.accounts().await;
    let payment = bed.pay("a1", &payment(&settlement, &wallet, "1.00")).await;
    assert_eq!(payment.problem(), (422, "idempotency_key_reused".into()));

    let accounts = json!({ "accounts": [
        { "account_number": format!("{}a", number), "currency": "USD" },
        { "account_number": number, "currency": "USD" },
        { "account_number": "x", "currency": "usd" },
    ] });
    let key = [("idempotency-key", "a2")];
    let batch = bed.call("POST", "/v1/accounts/batch", &key, &accounts.to_string()).await;
    let statuses: Vec<_> =
        batch.json()["results"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!(statuses, [json!(201), json!(409), json!(422)], "{batch:?}");
    let again = bed.call("POST", "/v1/accounts/batch", &key, &accounts.to_string()).await;
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &batch.body));
}
