//! A checker that never says no proves nothing: each way to corrupt a ledger must be found, by the right invariant.
mod support;

use support::{Copy, Ledger};

type AckMutation = (&'static str, fn(&mut String), &'static str);
type TopicMutation = (&'static str, Box<dyn Fn(&mut Copy)>, &'static [&'static str]);

/// The corruption, what to do on the first shard, and the invariants that must break (others may break too).
const ROWS: &[(&str, &str, &[&str])] = &[
    (
        "a balance is changed",
        "UPDATE accounts SET posted_minor = posted_minor + 1 WHERE account_number = 'A1'",
        &["balance_is_fold", "debits_equal_credits"],
    ),
    (
        "two balances are changed against each other",
        "UPDATE accounts SET posted_minor = posted_minor + CASE account_number WHEN 'A1' THEN 1 ELSE -1 END \
       WHERE account_number IN ('A1', 'A2')",
        &["balance_is_fold"],
    ),
    (
        "a version is skipped",
        "UPDATE entries SET debit_version = debit_version + 100 WHERE debit_version = 2",
        &["versions_gapless"],
    ),
    (
        "an account's version is ahead",
        "UPDATE accounts SET version = version + 1 WHERE account_number = 'A1'",
        &["versions_gapless"],
    ),
    (
        "a running balance is wrong",
        "UPDATE entries SET credit_posted_after = credit_posted_after + 1 WHERE credit_version = 3",
        &["running_balances"],
    ),
    (
        "a balance is below its limit",
        "UPDATE accounts SET min_balance_minor = 0 WHERE type = 'settlement'",
        &["above_limit"],
    ),
    (
        "a balance was below its limit for a moment",
        "UPDATE entries SET debit_posted_after = -5 WHERE debit_version = 2 AND debit_account_id IN \
       (SELECT account_id FROM accounts WHERE account_number = 'A1'); \
      UPDATE entries SET amount_minor = amount_minor + 5000 WHERE debit_version = 2 AND debit_account_id IN \
       (SELECT account_id FROM accounts WHERE account_number = 'A1')",
        &["above_limit", "running_balances", "payments_entries"],
    ),
    (
        "an entry is lost",
        "DELETE FROM entries WHERE debit_version = 2",
        &["payments_entries", "versions_gapless", "balance_is_fold"],
    ),
    (
        "an entry is doubled",
        "INSERT INTO entries SELECT tenant_id, payment_id, created_at + interval '1 ms', debit_account_id, credit_account_id, \
       amount_minor, currency, debit_posted_after, debit_version, credit_posted_after, credit_version \
       FROM entries WHERE debit_version = 2",
        &["payments_entries", "versions_gapless"],
    ),
    (
        "an entry has another amount than its payment",
        "UPDATE payments SET amount_minor = amount_minor + 1 WHERE status = 'succeeded'",
        &["payments_entries", "payments_outbox"],
    ),
    (
        "a declined payment has an entry",
        "UPDATE payments SET status = 'declined' WHERE status = 'succeeded'",
        &["payments_entries", "payments_outbox", "acknowledged_present"],
    ),
    (
        "an entry is in another currency than its account",
        "UPDATE accounts SET currency = 'EUR' WHERE account_number = 'A2'",
        &["entry_accounts"],
    ),
    (
        "an entry names an account that does not exist",
        "DELETE FROM accounts WHERE account_number = 'A3'",
        &["entry_accounts", "event_sequences"],
    ),
    (
        "a payment is stored twice",
        "INSERT INTO payments SELECT tenant_id, payment_id, created_at + interval '1 ms', reference, debit_account_id, \
       credit_account_id, amount_minor, currency, status FROM payments",
        &["payment_once"],
    ),
    (
        "a payment is posted twice under one key",
        "INSERT INTO payments SELECT tenant_id, gen_random_uuid(), created_at, reference, debit_account_id, \
       credit_account_id, amount_minor, currency, 'declined' FROM payments WHERE reference = 'key-4'",
        &["acknowledged_once", "idempotency_keys", "payments_outbox"],
    ),
    (
        "a payment is lost with all its traces but the acknowledgement",
        "DELETE FROM idempotency_keys WHERE key = 'key-15'; DELETE FROM payments WHERE reference = 'key-15'; \
      DELETE FROM outbox WHERE status = 'declined'; UPDATE accounts a SET event_seq = (SELECT count(*) FROM outbox o \
      WHERE o.tenant_id = a.tenant_id AND o.account_id = a.account_id)",
        &["acknowledged_present"],
    ),
    (
        "an outbox row is lost",
        "DELETE FROM outbox WHERE event_seq = 2",
        &["payments_outbox", "event_sequences"],
    ),
    (
        "an event is announced twice",
        "INSERT INTO outbox SELECT tenant_id, account_id, event_seq + 100, gen_random_uuid(), event_type, payment_id, \
       credit_account_id, amount_minor, currency, status, code, occurred_at, now() FROM outbox WHERE event_seq = 1",
        &["payments_outbox", "event_sequences"],
    ),
    (
        "an account's event counter is ahead",
        "UPDATE accounts SET event_seq = event_seq + 1 WHERE account_number = 'A1'",
        &["event_sequences"],
    ),
    (
        "an event is not published",
        "UPDATE outbox SET published_at = NULL WHERE event_seq = 1",
        &["outbox_drained"],
    ),
    (
        "a key is lost",
        "DELETE FROM idempotency_keys WHERE key = 'key-5'",
        &["idempotency_keys", "acknowledged_present"],
    ),
    (
        "a key names a payment that does not exist",
        "UPDATE idempotency_keys SET payment_id = gen_random_uuid() WHERE key = 'key-5'",
        &["idempotency_keys", "acknowledged_present"],
    ),
    (
        "a row belongs to an unknown tenant",
        "INSERT INTO inbox (tenant_id, consumer, event_id) VALUES (gen_random_uuid(), 'c', gen_random_uuid())",
        &["rows_have_tenant"],
    ),
    (
        "synchronous_commit is off for the database",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
        &["durable_settings"],
    ),
];

fn assert_broken(what: &str, report: &bench::check::report::CheckReport, expected: &[&str]) {
    for name in expected {
        let invariant = report.find(name).unwrap_or_else(|| panic!("{what}: no invariant {name}"));
        assert!(invariant.violations > 0, "{what}: {name} holds; broken are {:#?}", report.broken());
        assert!(!invariant.examples.is_empty(), "{what}: {name} gives no example");
    }
}

#[tokio::test]
async fn every_corruption_of_the_shards_is_found() {
    let mut ledger = Ledger::new().await.unwrap();
    let clean = ledger.copy().await.unwrap();
    let report = ledger.check(clean, true).await.unwrap();
    assert_eq!(report.broken(), Vec::<String>::new());
    for invariant in &report.invariants {
        let nothing_to_see = matches!(invariant.name, "duplicates_equal");
        assert!(invariant.examined > 0 || nothing_to_see, "{} examined nothing", invariant.name);
    }
    for (what, sql, expected) in ROWS {
        let copy = ledger.copy().await.unwrap();
        copy.shards[0]
            .batch_execute(&format!("SET session_replication_role = replica; {sql}"))
            .await
            .unwrap();
        let report = ledger.check(copy, false).await.unwrap();
        assert_broken(what, &report, expected);
    }
    // The same tenant on both shards.
    let copy = ledger.copy().await.unwrap();
    let tenant: uuid::Uuid =
        copy.shards[0].query_one("SELECT tenant_id FROM tenants LIMIT 1", &[]).await.unwrap().get(0);
    copy.shards[1]
        .execute("INSERT INTO tenants (tenant_id, name) VALUES ($1, 'T')", &[&tenant])
        .await
        .unwrap();
    assert_broken(
        "tenant on both shards",
        &ledger.check(copy, false).await.unwrap(),
        &["tenant_on_one_shard"],
    );
}

#[tokio::test]
async fn every_corruption_of_the_acknowledgements_is_found() {
    let mut ledger = Ledger::new().await.unwrap();
    let mutations: [AckMutation; 4] = [
        (
            "a promise that was not kept",
            |acks| {
                let tenant = acks[..36].to_owned();
                acks.push_str(&format!("{tenant} lost 00000000-0000-7000-8000-000000000001 succeeded\n"));
            },
            "acknowledged_present",
        ),
        ("another status", |acks| *acks = acks.replacen("declined", "succeeded", 1), "acknowledged_present"),
        ("an unknown tenant", |acks| acks.replace_range(..8, "ffffffff"), "acknowledged_present"),
        (
            "two payments for one key",
            |acks| {
                let lines: Vec<String> = acks.lines().take(2).map(str::to_owned).collect();
                let second = lines[1].split(' ').nth(2).unwrap().to_owned();
                let first = lines[0].split(' ').nth(2).unwrap();
                acks.push_str(&lines[0].replace(first, &second));
                acks.push('\n');
            },
            "acknowledged_once",
        ),
    ];
    for (what, corrupt, expected) in mutations {
        let mut copy = ledger.copy().await.unwrap();
        corrupt(&mut copy.acks);
        assert_broken(what, &ledger.check(copy, false).await.unwrap(), &[expected]);
    }
    let mut copy = ledger.copy().await.unwrap();
    copy.acks.truncate(copy.acks.len() - 5);
    assert!(ledger.check(copy, false).await.unwrap().ok(), "a torn last line is not an acknowledgement");
    let mut copy = ledger.copy().await.unwrap();
    copy.acks.clear();
    let refused = ledger.check(copy, false).await.map(|report| report.ok());
    assert!(refused.is_err(), "no acknowledgements where some were expected: {refused:?}");
}

/// The order of first occurrences, as H34 asks; exact duplicates are part of at-least-once delivery.
#[tokio::test]
async fn h34_every_corruption_of_the_topic_is_found() {
    let mut ledger = Ledger::new().await.unwrap();
    // Three events of one account, of which the second is at `at`.
    let at = ledger.events.iter().position(|event| event.sequence == 2).unwrap();
    let mutations: Vec<TopicMutation> = vec![
        ("an event is lost", Box::new(move |c| drop(c.events.remove(at))), &["outbox_equals_kafka"]),
        ("two events are swapped", Box::new(move |c| c.events.swap(at, at + 1)), &["kafka_order"]),
        (
            "an event is of no payment",
            Box::new(move |c| {
                let mut event = c.events[at].clone();
                event.account = uuid::Uuid::now_v7().to_string();
                event.sequence = 1;
                c.events.push(event);
            }),
            &["outbox_equals_kafka"],
        ),
        (
            "a sequence is repeated by another event",
            Box::new(move |c| {
                let mut event = c.events[at].clone();
                event.id = uuid::Uuid::now_v7();
                c.events.push(event);
            }),
            &["duplicates_equal"],
        ),
        (
            "an event says another outcome",
            Box::new(move |c| {
                c.events[at].kind = "payments.payment.declined".into();
                c.events[at].status = "declined".into();
            }),
            &["outbox_equals_kafka"],
        ),
        (
            "type and status of an event differ",
            Box::new(move |c| c.events[at].status = "declined".into()),
            &["kafka_messages"],
        ),
        (
            "an event is of another amount",
            Box::new(move |c| {
                c.events[at].amount_minor += 100;
                c.events[at].amount =
                    format!("{}.{:02}", c.events[at].amount_minor / 100, c.events[at].amount_minor % 100);
            }),
            &["outbox_equals_kafka"],
        ),
        (
            "the two amounts of an event differ",
            Box::new(move |c| c.events[at].amount = "9999.99".into()),
            &["kafka_messages"],
        ),
        (
            "an event is in another currency",
            Box::new(move |c| c.events[at].currency = "EUR".into()),
            &["outbox_equals_kafka"],
        ),
        (
            "an event credits another account",
            Box::new(move |c| c.events[at].credit = uuid::Uuid::now_v7()),
            &["outbox_equals_kafka"],
        ),
        (
            "an event gives another reason",
            Box::new(move |c| c.events[at].code = Some("account_closed".into())),
            &["outbox_equals_kafka"],
        ),
        (
            "an event is repeated with another amount",
            Box::new(move |c| {
                let mut event = c.events[at].clone();
                (event.amount, event.amount_minor) = ("0.01".into(), 1);
                c.events.push(event);
            }),
            &["duplicates_equal"],
        ),
        (
            "an account is in two partitions",
            Box::new(move |c| c.events[at].partition = (c.events[at].partition + 1) % 3),
            &["kafka_partition"],
        ),
        ("a header is wrong", Box::new(move |c| c.events[at].specversion = "0.3"), &["kafka_messages"]),
        (
            "the key is not an account",
            Box::new(move |c| c.events[at].account = "x".into()),
            &["kafka_messages", "outbox_equals_kafka"],
        ),
    ];
    for (what, corrupt, expected) in mutations {
        let mut copy = ledger.copy().await.unwrap();
        corrupt(&mut copy);
        assert_broken(what, &ledger.check(copy, true).await.unwrap(), expected);
    }
    let mut copy = ledger.copy().await.unwrap();
    let repeated = copy.events[at].clone();
    copy.events.push(repeated);
    let report = ledger.check(copy, true).await.unwrap();
    assert!(report.ok(), "an exact duplicate is allowed: {:#?}", report.broken());
    assert_eq!(report.find("duplicates_equal").unwrap().examined, 1);
}

/// The first shard as it is after the retention: its payments up to the event with number `last` of each account are
/// eight days old.
async fn age(copy: &Copy, last: i64) {
    // The tables are one default partition each, and ids are compared with created_at nowhere.
    let sql = format!(
        "SET session_replication_role = replica;
         CREATE TEMP TABLE aged AS SELECT payment_id FROM outbox WHERE event_seq <= {last};
         UPDATE payments SET created_at = created_at - interval '8 days' WHERE payment_id IN (SELECT payment_id FROM aged);
         UPDATE entries SET created_at = created_at - interval '8 days' WHERE payment_id IN (SELECT payment_id FROM aged);
         UPDATE outbox SET occurred_at = occurred_at - interval '8 days', published_at = published_at - interval '8 days'
          WHERE payment_id IN (SELECT payment_id FROM aged)"
    );
    copy.shards[0].batch_execute(&sql).await.unwrap();
}

/// What the retention removes is not missed, on either side; what it may not have removed yet is.
#[tokio::test]
async fn h36_only_events_beyond_their_retention_may_be_gone() {
    let mut ledger = Ledger::new().await.unwrap();
    let first: Vec<uuid::Uuid> = {
        let copy = ledger.copy().await.unwrap();
        let rows = copy.shards[0].query("SELECT account_id FROM accounts", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let of_first = |event: &support::Event| first.iter().any(|account| account.to_string() == event.account);
    let gone = "DELETE FROM outbox WHERE event_seq <= 2";
    // (what, rows deleted, the messages of the first shard that are kept)
    let right: [(&str, &str, fn(i64) -> bool); 5] = [
        ("nothing is removed yet", "", |_| true),
        ("both sides removed all", gone, |sequence| sequence > 2),
        ("Kafka still has what the outbox has not", gone, |_| true),
        ("the outbox still has what Kafka has not", "", |sequence| sequence > 2),
        ("the sweeper is on its way", "DELETE FROM outbox WHERE event_seq = 2", |sequence| sequence > 1),
    ];
    for (what, sql, kept) in right {
        let mut copy = ledger.copy().await.unwrap();
        age(&copy, 2).await;
        copy.shards[0].batch_execute(sql).await.unwrap();
        copy.events.retain(|event| !of_first(event) || kept(event.sequence));
        let report = ledger.check(copy, true).await.unwrap();
        assert_eq!(report.broken(), Vec::<String>::new(), "{what}");
    }
    let mut copy = ledger.copy().await.unwrap();
    age(&copy, 1_000).await;
    copy.shards[0].batch_execute("DELETE FROM outbox").await.unwrap();
    copy.events.retain(|event| !of_first(event));
    assert_eq!(ledger.check(copy, true).await.unwrap().broken(), Vec::<String>::new(), "an idle shard");

    for (what, sql, expected) in [
        ("the first event that is due", "DELETE FROM outbox WHERE event_seq = 3", &["payments_outbox"][..]),
        (
            "an event between those that are due",
            "DELETE FROM outbox WHERE event_seq = 4",
            &["payments_outbox", "event_sequences"],
        ),
        (
            "the first event that is due, and its payment",
            "DELETE FROM payments p USING outbox o WHERE o.payment_id = p.payment_id AND o.event_seq = 3; \
             DELETE FROM outbox WHERE event_seq = 3",
            &["event_sequences"],
        ),
        (
            "an old row differs",
            "UPDATE outbox SET amount_minor = amount_minor + 1 WHERE event_seq = 1",
            &["payments_outbox"],
        ),
    ] {
        let copy = ledger.copy().await.unwrap();
        age(&copy, 2).await;
        copy.shards[0].batch_execute(sql).await.unwrap();
        assert_broken(what, &ledger.check(copy, false).await.unwrap(), expected);
    }
    for (what, lost) in [("the first message that is due", 3), ("a message between those that are due", 4)] {
        let mut copy = ledger.copy().await.unwrap();
        age(&copy, 2).await;
        copy.shards[0].batch_execute(gone).await.unwrap();
        copy.events.retain(|event| !of_first(event) || event.sequence > 2 && event.sequence != lost);
        assert_broken(
            what,
            &ledger.check(copy, true).await.unwrap(),
            &["outbox_equals_kafka", "kafka_order"],
        );
    }
}

#[tokio::test]
async fn h36_a_cluster_without_fsync_is_found() {
    let mut ledger = Ledger::new().await.unwrap();
    let copy = ledger.copy().await.unwrap();
    let admin = &copy.shards[0];
    admin.batch_execute("ALTER SYSTEM SET fsync = off").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_broken(
        "fsync off",
        &ledger.check(copy, false).await.unwrap(),
        &["durable_settings", "wal_sync_grows"],
    );
}

/// The stand-in for a standby receives and syncs the WAL like one.
#[tokio::test]
async fn h36_commits_that_wait_for_no_standby_are_found() {
    let mut ledger = Ledger::new().await.unwrap();
    let mut copy = ledger.copy().await.unwrap();
    copy.asynchronous = false;
    let report = ledger.check(copy, false).await.unwrap();
    assert_broken("nobody to wait for", &report, &["standby_synchronous"]);

    let mut copy = ledger.copy().await.unwrap();
    copy.asynchronous = false;
    let standby = ledger.standby().unwrap();
    let admin = &copy.shards[0];
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (replica)'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let report = ledger.check(copy, false).await.unwrap();
    assert_eq!(report.broken(), Vec::<String>::new());
    assert_eq!(report.find("standby_synchronous").unwrap().examined, 2);

    let mut copy = ledger.copy().await.unwrap();
    copy.asynchronous = false;
    let local = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = local', current_database()); END $$";
    copy.shards[0].batch_execute(local).await.unwrap();
    assert_broken("local commits", &ledger.check(copy, false).await.unwrap(), &["durable_settings"]);

    // Without it no commit returns. One shard is enough to wait for.
    let mut copy = ledger.copy().await.unwrap();
    copy.asynchronous = false;
    copy.stack.shards.truncate(1);
    drop(standby);
    let report = ledger.check(copy, false).await.unwrap();
    assert_broken("the standby is gone", &report, &["standby_synchronous", "wal_sync_grows"]);
}
