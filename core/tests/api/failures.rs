//! Answers that are lost, batches that are poisoned, a database that is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::{Bed, new_postgres, payment};

#[tokio::test(flavor = "multi_thread")]
async fn h32_a_reply_lost_after_commit_is_one_payment() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    bed.wire.lose_answers(2);
    let reply = bed.pay("k1", &payment(&settlement, &wallet, "2.00")).await;
    assert!(bed.wire.lost_all(), "the answers were lost");
    // For this client it is new, although the core had to ask twice more.
    assert_eq!((reply.status, reply.header("idempotent-replayed")), (201, None), "{reply:?}");
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 1);
    assert_eq!(bed.metric("paycore_post_unknown_total").await, 1.0);
    let balance = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!(balance["posted"], "3.00");
    // A decline whose answer was lost, too.
    bed.wire.lose_answers(1);
    let reply = bed.pay("k2", &payment(&wallet, &settlement, "50.00")).await;
    assert!(bed.wire.lost_all());
    assert_eq!(reply.problem(), (402, "insufficient_funds".into()));
    assert_eq!((reply.header("idempotent-replayed"), bed.count("payments", "true").await), (None, 3));
}

/// The old backend still runs and has claimed the key, uncommitted: a read would say "absent". Claiming the key again
/// waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn h32_an_unknown_outcome_waits_for_the_old_backend() {
    let bed = Arc::new(Bed::new().await);
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    let lock = bed.lock(&wallet).await;
    bed.wire.cut_after_sending(1);
    let paying = {
        let (bed, body) = (bed.clone(), payment(&settlement, &wallet, "2.00"));
        tokio::spawn(async move { bed.pay("k1", &body).await })
    };
    // One backend waits for the account, its successor for the key.
    bed.until_blocked(2).await;
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 0);
    lock.batch_execute("COMMIT").await.unwrap();
    let reply = paying.await.unwrap();
    assert_eq!((reply.status, reply.header("idempotent-replayed")), (201, None), "{reply:?}");
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 1);
    assert_eq!(bed.count("entries", "amount_minor = 200").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn h32_what_cannot_be_resolved_is_called_unknown() {
    let bed = Bed::with(&["--retry-budget-ms", "400", "--post-timeout-ms", "150"]).await;
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    let lock = bed.lock(&wallet).await;
    let body = payment(&settlement, &wallet, "2.00");
    let reply = bed.pay("k1", &body).await;
    assert_eq!(reply.problem(), (503, "outcome_unknown".into()));
    assert_eq!((reply.header("retry-after"), &reply.json()["retryable"]), (Some("1"), &json!(true)));
    lock.batch_execute("COMMIT").await.unwrap();
    // The same key tells.
    let started = Instant::now();
    let mut again = bed.pay("k1", &body).await;
    while again.status != 201 && started.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        again = bed.pay("k1", &body).await;
    }
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 1);
}

/// A refusal of a later try does not tell what the first one did.
#[tokio::test(flavor = "multi_thread")]
async fn h32_a_refusal_after_an_unknown_outcome_is_unknown() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    assert_eq!(bed.pay("warm", &body).await.status, 201);
    let sql = bed.sql().await;
    sql.batch_execute(&format!("INSERT INTO gone VALUES ('{}', '22023')", bed.tenant)).await.unwrap();
    assert_eq!(bed.pay("k1", &body).await.problem(), (422, "unprocessable".into()));
    bed.wire.cut_after_sending(1);
    assert_eq!(bed.pay("k2", &body).await.problem(), (503, "outcome_unknown".into()));
    assert!(bed.wire.lost_all());
    sql.batch_execute(&format!("DELETE FROM gone WHERE tenant_id = '{}'", bed.tenant)).await.unwrap();
    assert_eq!(bed.pay("k2", &body).await.status, 201);
    assert_eq!(bed.count("payments", "true").await, 2);
}

/// A rejection keeps no key: the try whose answer was lost could still arrive and pay.
#[tokio::test(flavor = "multi_thread")]
async fn h32_a_rejection_after_an_unknown_outcome_is_unknown() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    let body = payment(&settlement, &uuid::Uuid::now_v7().to_string(), "1.00");
    bed.wire.cut_after_sending(1);
    assert_eq!(bed.pay("k1", &body).await.problem(), (503, "outcome_unknown".into()));
    assert!(bed.wire.lost_all());
    assert_eq!(
        bed.pay("k1", &body).await.problem(),
        (404, "unknown_account".into()),
        "a request of its own is known"
    );
}

/// How often a cached balance was dropped because of what this instance did.
async fn balances_evicted(bed: &Bed) -> u64 {
    let text = bed.as_key("", "GET", "/metrics", &[], "").await.body;
    let name = "paycore_cache_evictions_total{cache=\"account-balance\",cause=\"changed\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

/// A payment that may be made after its answer was given up must not leave the old balances in the caches.
#[tokio::test(flavor = "multi_thread")]
async fn h33_an_unknown_outcome_evicts_both_balances_now_and_again_later() {
    let bed = Bed::with(&["--retry-budget-ms", "400", "--post-timeout-ms", "150"]).await;
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    let read = async || {
        let started = Instant::now();
        for account in [&settlement, &wallet] {
            // The breaker may be open after what the lane went through.
            while bed.get(&format!("/v1/accounts/{account}/balance")).await.status != 200 {
                assert!(started.elapsed() < Duration::from_secs(60), "the balance cannot be read");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    read().await;
    let lock = bed.lock(&wallet).await;
    let before = balances_evicted(&bed).await;
    assert_eq!(
        bed.pay("k1", &payment(&settlement, &wallet, "2.00")).await.problem(),
        (503, "outcome_unknown".into())
    );
    assert_eq!(balances_evicted(&bed).await, before + 2);
    // Filled again with what is there before the payment is made.
    read().await;
    lock.batch_execute("COMMIT").await.unwrap();
    let started = Instant::now();
    while balances_evicted(&bed).await < before + 4 {
        assert!(started.elapsed() < Duration::from_secs(120), "the balances stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whoever made the payment may have died before it told the caches.
#[tokio::test(flavor = "multi_thread")]
async fn h33_a_replayed_payment_evicts_both_balances() {
    let (bed, other) = (Bed::new().await, Bed::new().await);
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    for account in [&settlement, &wallet] {
        assert_eq!(bed.get(&format!("/v1/accounts/{account}/balance")).await.status, 200);
    }
    let headers = [("idempotency-key", "k1")];
    let made = other.as_key(&bed.key, "POST", "/v1/payments", &headers, &body.to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    let before = balances_evicted(&bed).await;
    assert_eq!(bed.pay("k1", &body).await.header("idempotent-replayed"), Some("true"));
    assert_eq!(balances_evicted(&bed).await, before + 2);
}

/// The synchronous standby is missing: nobody may be told of a payment that only the primary has.
#[tokio::test(flavor = "multi_thread")]
async fn h5_a_replayed_payment_waits_for_the_standby() {
    let settings = ["--retry-budget-ms", "400", "--post-timeout-ms", "150"];
    let bed = Bed::on(Arc::new(new_postgres("on").await), &settings, &[]).await;
    let (settlement, wallet) = bed.accounts().await;
    assert_eq!(bed.pay("warm", &payment(&settlement, &wallet, "1.00")).await.status, 201);
    let account = json!({ "account_number": "again", "currency": "USD", "type": "wallet" }).to_string();
    let open = || bed.call("POST", "/v1/accounts", &[("idempotency-key", "a1")], &account);
    assert_eq!(open().await.status, 201);
    let sql = bed.sql().await;
    let standbys = async |change: &str, expected: &str| {
        sql.batch_execute(change).await.unwrap();
        sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let fresh = async || -> String {
            bed.sql().await.query_one("SHOW synchronous_standby_names", &[]).await.unwrap().get(0)
        };
        while fresh().await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The checkpointer tells those that wait; it may hear of the change after a new session does.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    standbys("ALTER SYSTEM SET synchronous_standby_names = 'ghost'", "ghost").await;

    let body = payment(&settlement, &wallet, "2.00");
    assert_eq!(bed.pay("k1", &body).await.problem(), (503, "outcome_unknown".into()));
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 0, "giving up has shown the payment");
    // Somebody else cuts the wait short: the payment is there to be read, on one server only.
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert!(!sql.query(cancel, &[]).await.unwrap().is_empty(), "the posting waits for the standby");
    let started = Instant::now();
    while bed.count("payments", "amount_minor = 200").await == 0 {
        assert!(started.elapsed() < Duration::from_secs(5), "the payment does not appear");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The breaker is due to let one try. One after the other, because a try makes everybody else wait for its result.
    tokio::time::sleep(Duration::from_millis(payment_core::limits::BREAKER_OPEN_MS + 200)).await;
    assert_eq!(open().await.problem(), (503, "outcome_unknown".into()));
    assert_eq!(bed.pay("k1", &body).await.problem(), (503, "outcome_unknown".into()));

    standbys("ALTER SYSTEM RESET synchronous_standby_names", "").await;
    let started = Instant::now();
    let mut again = bed.pay("k1", &body).await;
    while again.status != 201 && started.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        again = bed.pay("k1", &body).await;
    }
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(bed.count("payments", "amount_minor = 200").await, 1);
    let reopened = open().await;
    assert_eq!(
        (reopened.status, reopened.header("idempotent-replayed")),
        (201, Some("true")),
        "{reopened:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h38_a_poisoned_batch_costs_only_the_poisoner() {
    let bed = Bed::new().await;
    let (settlement, wallet) = bed.accounts().await;
    let items: Vec<_> = (0..100)
        .map(|i| {
            let mut item = payment(&settlement, &wallet, "1.00");
            item["idempotency_key"] = json!(format!("p{i}"));
            if i == 37 {
                item["reference"] = json!("poison");
            }
            item
        })
        .collect();
    let reply = bed.call("POST", "/v1/payments/batch", &[], &json!({ "payments": items }).to_string()).await;
    for (i, result) in reply.json()["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["status"], if i == 37 { 422 } else { 201 }, "{i}: {result}");
    }
    assert_eq!(reply.json()["results"][37]["problem"]["code"], "unprocessable");
    assert!(bed.metric("paycore_batch_bisections_total").await >= 1.0);
    assert_eq!(bed.count("payments", "true").await, 99);
    let balance = bed.get(&format!("/v1/accounts/{wallet}/balance")).await.json();
    assert_eq!((&balance["posted"], &balance["version"]), (&json!("99.00"), &json!(99)));
}

/// A tenant that poisons again and again no longer shares batches with others.
#[tokio::test(flavor = "multi_thread")]
async fn h38_repeated_poisoners_go_to_a_solo_lane() {
    let bed = Arc::new(Bed::new().await);
    let (settlement, wallet) = bed.accounts().await;
    let (_, poisoner) = bed.new_tenant("Poisoner").await;
    let theirs =
        (bed.account(&poisoner, "S", "settlement").await, bed.account(&poisoner, "W", "wallet").await);
    let mut poison = payment(&theirs.0, &theirs.1, "1.00");
    poison["reference"] = json!("poison");
    let poison = poison.to_string();
    for _ in 0..3 {
        let reply = bed.as_key(&poisoner, "POST", "/v1/payments", &[("idempotency-key", "p")], &poison).await;
        assert_eq!(reply.problem(), (422, "unprocessable".into()));
    }
    // While the lane is busy, good and poisoned payments gather; they must not be one batch.
    let lock = bed.lock(&wallet).await;
    let pay = |key: String| {
        let (bed, body) = (bed.clone(), payment(&settlement, &wallet, "1.00"));
        tokio::spawn(async move { bed.pay(&key, &body).await.status })
    };
    let mut good = vec![pay("first".into())];
    bed.until_blocked(1).await;
    good.extend((0..5).map(|i| pay(format!("g{i}"))));
    let bad = {
        let (bed, poisoner) = (bed.clone(), poisoner.clone());
        tokio::spawn(async move {
            bed.as_key(&poisoner, "POST", "/v1/payments", &[("idempotency-key", "p")], &poison).await.status
        })
    };
    // The poisoner is answered while the others' lane is still blocked: it has a lane of its own.
    assert_eq!(bad.await.unwrap(), 422);
    lock.batch_execute("COMMIT").await.unwrap();
    for good in good {
        assert_eq!(good.await.unwrap(), 201);
    }
    assert_eq!(bed.metric("paycore_batch_bisections_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_is_refused_fast_and_comes_back() {
    let bed = Bed::with(&["--retry-budget-ms", "1500", "--database-connect-timeout-ms", "300"]).await;
    let (settlement, wallet) = bed.accounts().await;
    let body = payment(&settlement, &wallet, "1.00");
    assert_eq!(bed.pay("warm", &body).await.status, 201);
    bed.wire.set_down(true);
    // Until the lane's connection has ended: a payment sent on it now would be of unknown outcome.
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The tenant's key is in the cache, so this reaches the lane and is known not to be applied.
    let first = bed.pay("k1", &body).await;
    assert_eq!(first.problem(), (503, "shard_unavailable".into()));
    assert!(first.header("retry-after").is_some());
    assert_eq!(bed.as_key("", "GET", "/readyz", &[], "").await.status, 503);
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let reply = bed.pay("k2", &body).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "an open breaker answers at once, not after {fastest:?}");
    bed.wire.set_down(false);
    let started = Instant::now();
    while bed.pay("k1", &body).await.status != 201 {
        assert!(started.elapsed() < Duration::from_secs(10), "the lane comes back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(bed.count("payments", "true").await, 2);
    assert_eq!(bed.as_key("", "GET", "/readyz", &[], "").await.status, 200);
}
