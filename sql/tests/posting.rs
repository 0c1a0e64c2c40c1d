//! `post_payments` against a real PostgreSQL.

use sql_assets::{Options, apply};
use testpg::TempPostgres;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// What one input row of a batch says.
#[derive(Clone)]
struct Payment {
    id: Uuid,
    key: String,
    hash: u8,
    debit: Uuid,
    credit: Uuid,
    amount: i64,
    currency: &'static str,
    kind: Option<&'static str>,
}

fn pay(key: &str, debit: Uuid, credit: Uuid, amount: i64) -> Payment {
    Payment {
        id: Uuid::now_v7(),
        key: key.into(),
        hash: 1,
        debit,
        credit,
        amount,
        currency: "USD",
        kind: None,
    }
}

/// One answer row, the parts that tests look at.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Outcome {
    outcome: String,
    id: Uuid,
    status: Option<String>,
    code: Option<String>,
}

struct Ledger {
    client: Client,
    tenant: Uuid,
    settlement: Uuid,
    wallets: Vec<Uuid>,
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

/// A tenant with an unlimited settlement account and four wallets, of which only the first has money: 10.00.
async fn ledger(url: &str) -> Ledger {
    let client = connect(url).await;
    let tenant = Uuid::now_v7();
    client
        .execute("INSERT INTO tenants (tenant_id, name) VALUES ($1, 'test')", &[&tenant])
        .await
        .expect("tenant");
    let ids: Vec<Uuid> = (0..5).map(|_| Uuid::now_v7()).collect();
    for (index, id) in ids.iter().enumerate() {
        let (kind, limit) = if index == 0 { ("settlement", None) } else { ("wallet", Some(0_i64)) };
        let sql = "INSERT INTO accounts (tenant_id, account_id, account_number, currency, type, min_balance_minor) \
                   VALUES ($1, $2, $3, 'USD', $4, $5)";
        client.execute(sql, &[&tenant, id, &format!("A{index}"), &kind, &limit]).await.expect("account");
    }
    let ledger = Ledger { client, tenant, settlement: ids[0], wallets: ids[1..].to_vec() };
    let funded = post(&ledger.client, tenant, &[pay("fund", ids[0], ids[1], 1000)]).await;
    assert_eq!(funded[0].outcome, "created");
    ledger
}

async fn post(client: &Client, tenant: Uuid, batch: &[Payment]) -> Vec<Outcome> {
    try_post(client, tenant, batch).await.expect("post")
}

async fn try_post(
    client: &Client,
    tenant: Uuid,
    batch: &[Payment],
) -> Result<Vec<Outcome>, tokio_postgres::Error> {
    let none: Vec<Option<String>> = vec![None; batch.len()];
    let rows = client
        .query(
            "SELECT outcome, payment_id, status, code FROM post_payments($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)",
            &[
                &vec![tenant; batch.len()],
                &batch.iter().map(|p| p.id).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.key.clone()).collect::<Vec<_>>(),
                &batch.iter().map(|p| vec![p.hash; 16]).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.debit).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.credit).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.amount).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.currency).collect::<Vec<_>>(),
                &batch.iter().map(|p| p.kind).collect::<Vec<_>>(),
                &none,
                &none,
                &none,
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Outcome { outcome: row.get(0), id: row.get(1), status: row.get(2), code: row.get(3) })
        .collect())
}

async fn balance(ledger: &Ledger, account: Uuid) -> i64 {
    let sql = "SELECT posted_minor FROM accounts WHERE tenant_id = $1 AND account_id = $2";
    ledger.client.query_one(sql, &[&ledger.tenant, &account]).await.expect("balance").get(0)
}

/// Every account equals the fold of its entries, without a gap; events are gapless; payments match outbox rows.
async fn assert_invariants(client: &Client) {
    let broken = "
        SELECT 'balance', a.account_id::text FROM accounts a
          LEFT JOIN LATERAL (SELECT coalesce(sum(e.amount_minor), 0) AS folded, count(*) AS n, max(e.version) AS last
                               FROM account_entries e
                              WHERE e.tenant_id = a.tenant_id AND e.account_id = a.account_id) f ON true
         WHERE a.posted_minor <> f.folded OR a.version <> f.n OR a.version <> coalesce(f.last, 0)
        UNION ALL
        SELECT 'limit', account_id::text FROM accounts WHERE posted_minor - held_minor < min_balance_minor
        UNION ALL
        SELECT 'outbox', a.account_id::text FROM accounts a
          LEFT JOIN LATERAL (SELECT count(*) AS n, max(o.event_seq) AS last FROM outbox o
                              WHERE o.tenant_id = a.tenant_id AND o.account_id = a.account_id) o ON true
         WHERE a.event_seq <> o.n OR a.event_seq <> coalesce(o.last, 0)
        UNION ALL
        SELECT 'payment', p.payment_id::text FROM payments p
          FULL JOIN outbox o ON o.tenant_id = p.tenant_id AND o.payment_id = p.payment_id
         WHERE p.payment_id IS NULL OR o.payment_id IS NULL OR p.status <> o.status";
    let rows = client.query(broken, &[]).await.expect("invariants");
    let found: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(found.is_empty(), "broken: {found:?}");
}

/// One server for the file: tests use tenants of their own.
async fn server() -> (TempPostgres, String) {
    let postgres = TempPostgres::start(&[]);
    let url = postgres.url("postgres");
    let report = apply(&url, &Options::default()).await.expect("apply");
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    (postgres, url)
}

#[tokio::test]
async fn migrations_run_twice_and_refuse_a_changed_file() {
    let (_postgres, url) = server().await;
    let again = apply(&url, &Options::default()).await.expect("apply again");
    assert!(again.applied.is_empty(), "{:?}", again.applied);
    let client = connect(&url).await;
    client
        .execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 2", &[])
        .await
        .expect("tamper");
    let refused = apply(&url, &Options::default()).await.expect("report");
    assert!(refused.failed[0].contains("another content"), "{:?}", refused.failed);
    // Retirement detaches and keeps the rows.
    client
        .execute(
            "UPDATE schema_migrations SET checksum = $1 WHERE version = 2",
            &[&sql_assets::migrations::MIGRATIONS[1].checksum()],
        )
        .await
        .expect("restore");
    let old = "CREATE TABLE payments_2020_01 PARTITION OF payments \
               FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-02-01 00:00:00+00')";
    client.batch_execute(old).await.expect("old partition");
    let retired =
        apply(&url, &Options { retain_months: Some(12), ..Options::default() }).await.expect("retire");
    assert_eq!(retired.applied, ["the database: detached payments_2020_01"]);
    let kept = client.query_one("SELECT count(*) FROM payments_2020_01", &[]).await.expect("still there");
    assert_eq!(kept.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn each_request_gets_its_outcome() {
    let (_postgres, url) = server().await;
    let l = ledger(&url).await;
    let (a, b, c) = (l.wallets[0], l.wallets[1], l.wallets[2]);

    // Decisions are made in the caller's order: b can pay only after it was paid.
    let first = [pay("1", a, b, 400), pay("2", b, c, 300), pay("3", c, a, 9999)];
    let got = post(&l.client, l.tenant, &first).await;
    assert_eq!(got.iter().map(|o| o.outcome.as_str()).collect::<Vec<_>>(), ["created"; 3]);
    assert_eq!(got[1].status.as_deref(), Some("succeeded"));
    assert_eq!(
        (got[2].status.as_deref(), got[2].code.as_deref()),
        (Some("declined"), Some("insufficient_funds"))
    );
    assert_eq!((balance(&l, a).await, balance(&l, b).await, balance(&l, c).await), (600, 100, 300));

    // The same keys again, with new candidate ids: the first outcomes, nothing moves.
    let retry: Vec<Payment> = first.iter().map(|p| Payment { id: Uuid::now_v7(), ..p.clone() }).collect();
    let replayed = post(&l.client, l.tenant, &retry).await;
    for (old, new) in got.iter().zip(&replayed) {
        assert_eq!(new.outcome, "replayed");
        assert_eq!((new.id, &new.status, &new.code), (old.id, &old.status, &old.code));
    }
    assert_eq!(balance(&l, a).await, 600);

    // Another request under a used key.
    let other = Payment { hash: 2, ..pay("1", a, b, 1) };
    assert_eq!(post(&l.client, l.tenant, &[other]).await[0].outcome, "mismatch");

    // The same key twice in one batch acts once.
    let twice = post(&l.client, l.tenant, &[pay("4", a, b, 1), pay("4", a, b, 1), pay("5", a, b, 1)]).await;
    assert_eq!(
        twice.iter().map(|o| o.outcome.as_str()).collect::<Vec<_>>(),
        ["created", "replayed", "created"]
    );
    assert_eq!(twice[0].id, twice[1].id);
    assert_eq!(balance(&l, a).await, 598);

    // Rejected requests leave no trace, and the key may be used again.
    let unknown = Uuid::now_v7();
    let wrong = [
        pay("6", a, unknown, 1),
        pay("7", a, a, 1),
        Payment { currency: "EUR", ..pay("8", a, b, 1) },
        Payment { kind: Some("none"), ..pay("9", a, b, 1) },
        pay("10", a, b, 0),
    ];
    let codes: Vec<_> =
        post(&l.client, l.tenant, &wrong).await.into_iter().map(|o| (o.outcome, o.code)).collect();
    let expected =
        ["unknown_account", "same_account", "currency_mismatch", "unknown_payment_type", "invalid_amount"];
    for ((outcome, code), want) in codes.iter().zip(expected) {
        assert_eq!((outcome.as_str(), code.as_deref()), ("rejected", Some(want)));
    }
    assert_eq!(post(&l.client, l.tenant, &[pay("6", a, b, 1)]).await[0].outcome, "created");

    // A frozen account and a suspended tenant are seen at posting, whatever a cache says.
    let freeze = "UPDATE accounts SET status = 'FROZEN' WHERE tenant_id = $1 AND account_id = $2";
    l.client.execute(freeze, &[&l.tenant, &c]).await.expect("freeze");
    let frozen = post(&l.client, l.tenant, &[pay("11", a, c, 1)]).await;
    assert_eq!(frozen[0].code.as_deref(), Some("account_not_active"));
    l.client
        .execute("UPDATE tenants SET status = 'SUSPENDED' WHERE tenant_id = $1", &[&l.tenant])
        .await
        .expect("s");
    let suspended = post(&l.client, l.tenant, &[pay("12", a, b, 1)]).await;
    assert_eq!(suspended[0].code.as_deref(), Some("tenant_suspended"));
    assert_invariants(&l.client).await;
}

#[tokio::test]
async fn rules_are_applied_under_the_account_lock() {
    let (_postgres, url) = server().await;
    let l = ledger(&url).await;
    let (a, b, bank) = (l.wallets[0], l.wallets[1], l.settlement);
    let add = "INSERT INTO fraud_rules (tenant_id, rule_id, rule_type, amount_minor, window_seconds, max_count) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let none: Option<i64> = None;
    let no: Option<i32> = None;
    l.client
        .execute(add, &[&l.tenant, &Uuid::now_v7(), &"max_amount", &Some(500_i64), &no, &no])
        .await
        .expect("r");
    l.client
        .execute(add, &[&l.tenant, &Uuid::now_v7(), &"daily_amount", &Some(700_i64), &no, &no])
        .await
        .expect("r");
    let velocity = Uuid::now_v7();
    l.client
        .execute(add, &[&l.tenant, &velocity, &"velocity_count", &none, &Some(86_400), &Some(3)])
        .await
        .expect("rule");
    let batch = [
        pay("1", a, b, 501), // over one payment's maximum
        pay("2", a, b, 500),
        pay("3", a, b, 201), // 701 that day
        pay("4", a, b, 100),
        pay("5", a, b, 50),
        pay("6", a, b, 1),    // the fourth success
        pay("7", bank, b, 1), // another account has its own count
    ];
    let got = post(&l.client, l.tenant, &batch).await;
    let codes: Vec<Option<&str>> = got.iter().map(|o| o.code.as_deref()).collect();
    assert_eq!(
        codes,
        [Some("limit_exceeded"), None, Some("limit_exceeded"), None, None, Some("velocity_exceeded"), None]
    );
    assert_eq!(balance(&l, a).await, 350);
    // A deactivated rule no longer counts.
    l.client
        .execute("UPDATE fraud_rules SET is_active = false WHERE rule_id = $1", &[&velocity])
        .await
        .expect("off");
    assert_eq!(post(&l.client, l.tenant, &[pay("8", a, b, 1)]).await[0].code, None);
    assert_invariants(&l.client).await;
}

/// Writers that post to the same accounts, in opposite orders and with the same keys, neither deadlock nor double.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_share_accounts_and_keys() {
    let (_postgres, url) = server().await;
    let l = ledger(&url).await;
    let mut tasks = Vec::new();
    for worker in 0..4_usize {
        let (url, tenant, wallets, bank) = (url.clone(), l.tenant, l.wallets.clone(), l.settlement);
        tasks.push(tokio::spawn(async move {
            let client = connect(&url).await;
            let mut created = 0;
            for round in 0..30 {
                let mut batch: Vec<Payment> = (0..16)
                    .map(|i| {
                        let from = if i % 5 == 0 { bank } else { wallets[(i + worker) % 4] };
                        pay(&format!("shared-{round}-{i}"), from, wallets[(i + worker + 1) % 4], 7)
                    })
                    .collect();
                if worker % 2 == 1 {
                    batch.reverse();
                }
                // Two workers send the same request per key; the other two another one.
                for p in &mut batch {
                    p.hash = (worker / 2) as u8;
                }
                let got = try_post(&client, tenant, &batch).await.expect("no deadlock");
                created += got.iter().filter(|o| o.outcome == "created").count();
            }
            created
        }));
    }
    let mut created = 0;
    for task in tasks {
        created += task.await.expect("worker");
    }
    assert_eq!(created, 30 * 16, "each key was used exactly once");
    assert_invariants(&l.client).await;
}

#[tokio::test]
async fn unequal_arrays_are_refused() {
    let (_postgres, url) = server().await;
    let client = connect(&url).await;
    let ids = vec![Uuid::now_v7()];
    let sql = "SELECT * FROM post_payments($1,$1,'{}','{}',$1,$1,'{}','{}','{}','{}','{}','{}')";
    let error = client.query(sql, &[&ids]).await.expect_err("refused");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("22023"));
}
