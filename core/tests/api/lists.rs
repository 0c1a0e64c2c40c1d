//! Lists, statements, and whose they are.

use serde_json::{Value, json};

use crate::bed::{Bed, payment};

/// All pages of a list, and how many there were.
async fn pages(bed: &Bed, path: &str) -> (Vec<Value>, usize) {
    let (mut rows, mut count, mut cursor) = (Vec::new(), 0, None::<String>);
    loop {
        // The filters are only in the first request; the cursor carries them.
        let path = match &cursor {
            None => path.to_owned(),
            Some(cursor) => format!("{}?limit=7&cursor={cursor}", path.split('?').next().unwrap()),
        };
        let page = bed.get(&path).await.json();
        rows.extend(page["data"].as_array().or(page["entries"].as_array()).unwrap().iter().cloned());
        count += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return (rows, count),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_row_once() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    for i in 0..21 {
        assert_eq!(bed.pay(&format!("in{i}"), &payment(&settlement, &wallet, "1.00")).await.status, 201);
        if i % 3 == 0 {
            assert_eq!(
                bed.pay(&format!("out{i}"), &payment(&wallet, &settlement, "1000.00")).await.status,
                402
            );
        }
    }
    let (all, count) = pages(&bed, "/v1/payments?limit=7").await;
    let mut ids: Vec<_> = all.iter().map(|p| p["payment_id"].as_str().unwrap().to_owned()).collect();
    assert!(ids.windows(2).all(|w| w[0] > w[1]), "newest first");
    ids.dedup();
    assert_eq!((ids.len(), count), (28, 4));
    let (declined, _) = pages(&bed, "/v1/payments?limit=7&status=declined").await;
    assert_eq!(declined.len(), 7);
    assert!(declined.iter().all(|p| p["status"] == "declined"));
    let (succeeded, _) =
        pages(&bed, &format!("/v1/payments?limit=7&status=succeeded&account_id={wallet}")).await;
    assert_eq!(succeeded.len(), 21);
    // A cursor with other filters than its own is refused.
    let page = bed.get("/v1/payments?limit=7&status=declined").await.json();
    let next = bed.get("/v1/payments?limit=2&status=declined").await.json()["next_cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(page["next_cursor"].is_null());
    let mixed = bed.get(&format!("/v1/payments?status=succeeded&cursor={next}")).await;
    assert_eq!(mixed.problem(), (400, "invalid_cursor".into()));
    let wrong_list = bed.get(&format!("/v1/accounts?cursor={next}")).await;
    assert_eq!(wrong_list.problem(), (400, "invalid_cursor".into()));

    let (accounts, _) = pages(&bed, "/v1/accounts?limit=1").await;
    assert_eq!(accounts.len(), 2);
    let none = bed.get("/v1/payments?to=2020-01-01T00:00:00Z").await.json();
    assert_eq!(none["data"], json!([]));
}

/// Every payment of an account is on one page, whatever it is narrowed by, although two streams are merged.
#[tokio::test(flavor = "multi_thread")]
async fn the_payments_of_an_account_are_paged_by_its_own_rows() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let (_, other) = bed.accounts().await;
    let mut made = Vec::new();
    for i in 0..24 {
        let (debit, credit, amount, status) = match i % 4 {
            0 => (&settlement, &wallet, "2.00", 201),
            1 => (&wallet, &settlement, "1.00", 201),
            2 => (&wallet, &settlement, "1000.00", 402),
            _ => (&other, &wallet, "1.00", 402),
        };
        let reply = bed.pay(&format!("p{i}"), &payment(debit, credit, amount)).await;
        assert_eq!(reply.status, status, "{reply:?}");
        made.push(reply.text("payment_id"));
        // A payment between other accounts is on none of these pages.
        assert_eq!(bed.pay(&format!("o{i}"), &payment(&settlement, &other, "0.01")).await.status, 201);
    }
    made.reverse();
    let ids = |rows: &[Value]| {
        rows.iter().map(|p| p["payment_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let narrowed = |status: &'static str| {
        let keep = move |(i, _): &(usize, &String)| (i % 4 >= 2) == (status == "succeeded");
        made.iter().enumerate().filter(keep).map(|(_, id)| id.clone()).collect::<Vec<_>>()
    };
    let path = format!("/v1/payments?limit=7&account_id={wallet}");
    let (all, count) = pages(&bed, &path).await;
    assert_eq!((ids(&all), count), (made.clone(), 4));
    for status in ["succeeded", "declined"] {
        let (some, count) = pages(&bed, &format!("{path}&status={status}")).await;
        assert_eq!((ids(&some), count), (narrowed(status), 2), "{status}");
        assert!(some.iter().all(|p| p["status"] == status));
    }
    // A period, from its first moment and before its last.
    let at = |i: usize| all[i]["created_at"].as_str().unwrap();
    let (from, to) = (at(15), at(5));
    let (some, _) = pages(&bed, &format!("{path}&from={from}&to={to}")).await;
    let inside = all.iter().filter(|p| (from..to).contains(&p["created_at"].as_str().unwrap())).cloned();
    assert_eq!(ids(&some), ids(&inside.collect::<Vec<_>>()));
    // Rows that come meanwhile move nothing.
    let first = bed.get(&path).await.json();
    assert_eq!(bed.pay("late", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    assert_eq!(bed.pay("later", &payment(&wallet, &settlement, "1000.00")).await.status, 402);
    let next = first["next_cursor"].as_str().unwrap();
    let second = bed.get(&format!("/v1/payments?limit=7&cursor={next}")).await.json();
    assert_eq!(ids(second["data"].as_array().unwrap()), made[7..14]);
    // The position of one kind of list is none of the other.
    let general = bed.get("/v1/payments?limit=1").await.json()["next_cursor"].as_str().unwrap().to_owned();
    let mixed = bed.get(&format!("{path}&cursor={general}")).await;
    assert_eq!(mixed.problem(), (400, "invalid_cursor".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_adds_up() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    for i in 0..10 {
        let (debit, credit, amount) =
            if i % 2 == 0 { (&settlement, &wallet, "10.00") } else { (&wallet, &settlement, "3.50") };
        assert_eq!(bed.pay(&format!("s{i}"), &payment(debit, credit, amount)).await.status, 201);
    }
    let (entries, count) = pages(&bed, &format!("/v1/accounts/{wallet}/statement?limit=7")).await;
    assert_eq!((entries.len(), count), (10, 2));
    let mut balance = 0i64;
    for (i, entry) in entries.iter().enumerate() {
        balance += if entry["direction"] == "credit" { 1000 } else { -350 };
        assert_eq!(entry["version"], i as u64 + 1);
        assert_eq!(entry["balance_after"], format!("{}.{:02}", balance / 100, balance % 100));
    }
    let page = bed.get(&format!("/v1/accounts/{wallet}/statement?limit=3")).await.json();
    assert_eq!((&page["opening_balance"], &page["closing_balance"]), (&json!("0.00"), &json!("16.50")));
    let stored = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!((&stored["posted"], &stored["version"]), (&json!("32.50"), &json!(10)));
    let empty = bed.get(&format!("/v1/accounts/{wallet}/statement?to=2020-01-01T00:00:00Z")).await.json();
    assert_eq!(empty["entries"], json!([]));
    // Another account's cursor is of no use.
    let next = page["next_cursor"].as_str().unwrap();
    let other = bed.get(&format!("/v1/accounts/{settlement}/statement?cursor={next}")).await;
    assert_eq!(other.problem(), (400, "invalid_cursor".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_tenant_is_there() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let paid = bed.pay("mine", &payment(&settlement, &wallet, "5.00")).await.text("payment_id");
    let rule = json!({ "rule_type": "max_amount", "currency": "USD", "amount": "10.00" }).to_string();
    let rule = bed.call("POST", "/v1/fraud-rules", &[], &rule).await.text("rule_id");
    let key = bed.get("/v1/api-keys").await.json()["data"][0]["key_id"].as_str().unwrap().to_owned();
    bed.call("PUT", "/v1/tenant-config/secret", &[], "{\"a\":1}").await;

    let (_, foreign) = bed.new_tenant("Foreign").await;
    for (method, path, body) in [
        ("GET", format!("/v1/payments/{paid}"), String::new()),
        ("GET", format!("/v1/accounts/{wallet}"), String::new()),
        ("GET", format!("/v1/accounts/{wallet}/balance"), String::new()),
        ("GET", format!("/v1/accounts/{wallet}/statement"), String::new()),
        ("PATCH", format!("/v1/accounts/{wallet}"), json!({ "status": "FROZEN" }).to_string()),
        ("GET", format!("/v1/fraud-rules/{rule}"), String::new()),
        ("DELETE", format!("/v1/fraud-rules/{rule}"), String::new()),
        ("DELETE", format!("/v1/api-keys/{key}"), String::new()),
        ("GET", "/v1/tenant-config/secret".into(), String::new()),
    ] {
        let reply = bed.as_key(&foreign, method, &path, &[], &body).await;
        assert_eq!(reply.problem(), (404, "not_found".into()), "{method} {path}");
    }
    // Neither as debit nor as credit, alone or with an account of one's own.
    let own = bed.account(&foreign, "own", "settlement").await;
    for (debit, credit) in [(&settlement, &wallet), (&own, &wallet), (&wallet, &own)] {
        let body = payment(debit, credit, "1.00").to_string();
        let reply = bed.as_key(&foreign, "POST", "/v1/payments", &[("idempotency-key", "f")], &body).await;
        assert_eq!(reply.problem(), (404, "unknown_account".into()));
    }
    // The same key is another key.
    let body = payment(&own, &bed.account(&foreign, "own2", "wallet").await, "1.00").to_string();
    let reply = bed.as_key(&foreign, "POST", "/v1/payments", &[("idempotency-key", "mine")], &body).await;
    assert_eq!((reply.status, reply.header("idempotent-replayed")), (201, None));
    let list = bed.as_key(&foreign, "GET", "/v1/payments", &[], "").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(bed.get(&format!("/v1/accounts/{wallet}")).await.json()["status"], "ACTIVE");
}
