//! The hard fence, without any proxy's manners.

use std::time::Duration;

use shard_config::ShardId;
use shardctl::mover::job::Way;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;
use shardctl::mover::{fence, tables};
use tokio_postgres::error::SqlState;

use crate::bed::{BUCKETS, Bed, bucket, tenant};

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map(SqlState::code).unwrap_or_default().to_owned()
}

/// A writer of each isolation level that began before the fence (with a snapshot, as a proxy that was stopped in the middle
/// of a transaction would have it) writes after it, and one that begins after it; the mover is dead meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_no_isolation_level_writes_behind_the_fence() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let outside = (0..200).map(tenant).find(|t| bucket(t) >= 32).unwrap();
    let source = bed.direct(1).await;
    source
        .execute("INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 99)", &[&outside])
        .await
        .expect("rows of other buckets are written as ever");

    let mut older = Vec::new();
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let client = bed.direct(1).await;
        client
            .batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM public.accounts"))
            .await
            .unwrap();
        older.push((level, client));
    }
    // The mover fences and dies.
    let mut job = bed.load(job.id).await;
    job.go(&bed.control, Phase::Fencing, "a test").await.unwrap();
    {
        let locker = bed.shard(1).await;
        fence::lock(&locker, &job, 1, Duration::from_millis(200)).await.unwrap();
        fence::shut(&bed.shard(1).await, &job, Way::Out, BUCKETS).await.unwrap();
    }
    let insert = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
    for (level, client) in &older {
        let refused = client.execute(insert, &[&inside]).await.expect_err(level);
        assert_eq!(code(&refused), "40001", "{level}: {refused:?}");
        client.batch_execute("ROLLBACK").await.unwrap();
        for statement in [
            "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 78)",
            "UPDATE public.accounts SET balance = 1 WHERE tenant_id = $1",
            "DELETE FROM public.entries WHERE tenant_id = $1",
        ] {
            client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.unwrap();
            let refused = client.execute(statement, &[&inside]).await.expect_err(level);
            assert_eq!(code(&refused), "40001", "{level}: {statement}: {refused:?}");
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        // A row that would come into the scope from outside.
        let into = "UPDATE public.accounts SET tenant_id = $1 WHERE tenant_id = $2 AND id = 99";
        assert_eq!(code(&client.execute(into, &[&inside, &outside]).await.expect_err(level)), "40001");
        client
            .execute("UPDATE public.accounts SET balance = 5 WHERE tenant_id = $1 AND id = 99", &[&outside])
            .await
            .unwrap();
    }
    assert!(
        fence::unlock_when_safe(&bed.shard(1).await, ShardId(1), &bed.control, &job).await.unwrap().is_ok(),
        "every snapshot is younger"
    );
    // Without the lock the row alone refuses.
    assert_eq!(code(&source.execute(insert, &[&inside]).await.unwrap_err()), "40001");

    // One command, and everybody goes on.
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    source
        .execute("DELETE FROM public.accounts WHERE tenant_id = $1 AND id = 99", &[&outside])
        .await
        .unwrap();
    source.execute(insert, &[&inside]).await.expect("the source takes writes again");
    source.execute("DELETE FROM public.accounts WHERE tenant_id = $1 AND id = 77", &[&inside]).await.unwrap();
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A guard runs as a superuser, whoever writes: it must not meet a name of his.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h10_a_guard_meets_no_name_of_its_caller() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let client = bed.direct(1).await;
    let caller: String = client.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
    // The guard has a row to look at.
    let prepared = format!(
        "CREATE SCHEMA mine AUTHORIZATION {caller}; INSERT INTO shard_catalog.fence (move_id, scope, mask) VALUES (99, '{{}}', 0)"
    );
    bed.shard(1).await.run(&prepared).await.unwrap();
    let names = "CREATE FUNCTION mine.met(bigint, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'met: %', current_user; END $$;
        CREATE FUNCTION mine.met(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'met: %', current_user; END $$;
        CREATE FUNCTION mine.pg_try_advisory_xact_lock_shared(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'met'; END $$;
        CREATE FUNCTION mine.pg_replication_origin_session_is_setup() RETURNS bool LANGUAGE sql AS 'SELECT true';
        CREATE FUNCTION mine.pg_trigger_depth() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'met'; END $$;
        CREATE OPERATOR mine.= (leftarg = bigint, rightarg = int, function = mine.met);
        CREATE OPERATOR mine.= (leftarg = text, rightarg = text, function = mine.met);
        CREATE DOMAIN mine.int4 AS text CHECK (false); CREATE DOMAIN mine.bool AS text CHECK (false);
        CREATE TABLE mine.fence (move_id bigint); CREATE TEMP TABLE fence (move_id bigint);
        SET search_path = mine, pg_temp, public, pg_catalog";
    client.batch_execute(names).await.unwrap();
    let insert = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
    client.execute(insert, &[&inside]).await.expect("there is no fence");
    client
        .execute(
            "DELETE FROM public.accounts WHERE tenant_id = $1 AND id OPERATOR(pg_catalog.=) 77",
            &[&inside],
        )
        .await
        .unwrap();
    bed.load(job.id).await.go(&bed.control, Phase::Fencing, "a test").await.unwrap();
    let job = bed.load(job.id).await;
    fence::lock(&bed.shard(1).await, &job, 1, Duration::from_millis(200)).await.unwrap();
    fence::shut(&bed.shard(1).await, &job, Way::Out, BUCKETS).await.unwrap();
    let refused = client.execute(insert, &[&inside]).await.expect_err("behind the fence");
    assert_eq!(code(&refused), "40001", "{refused:?}");
}

/// An old snapshot keeps the lock, whoever asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_the_lock_stays_while_a_snapshot_is_older_than_the_fence() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let old = bed.direct(1).await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.accounts")
        .await
        .unwrap();
    let job = bed.load(job.id).await;
    let giver = bed.shard(1).await;
    fence::lock(&bed.shard(1).await, &job, 1, Duration::from_millis(200)).await.unwrap();
    fence::shut(&giver, &job, Way::Out, BUCKETS).await.unwrap();
    let kept = fence::unlock_when_safe(&giver, ShardId(1), &bed.control, &job).await.unwrap().unwrap_err();
    assert!(kept.contains("app"), "{kept}");
    old.batch_execute("COMMIT").await.unwrap();
    assert!(fence::unlock_when_safe(&giver, ShardId(1), &bed.control, &job).await.unwrap().is_ok());
    fence::release(&bed.control, &giver, Some(&bed.shard(2).await), &job, Way::Out, BUCKETS).await.unwrap();
}

/// H1: a writer that saw no fence, and then waited for the lock, looks again when it has it. (By then it may be too late to
/// wait: as when somebody ends the prepared transaction by hand.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_who_waited_for_the_lock_looks_at_the_fence_again() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let job = bed.load(job.id).await;
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let giver = bed.shard(1).await;
    fence::lock(&bed.shard(1).await, &job, 1, Duration::from_millis(200)).await.unwrap();
    let writer = bed.direct(1).await;
    let insert = tokio::spawn(async move {
        let sql = "INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 77)";
        writer.execute(sql, &[&inside]).await
    });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)";
    while !giver.holds(waits, &[]).await.unwrap() {
        assert!(!insert.is_finished(), "the writer does not wait for the lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fence::shut(&giver, &job, Way::Out, BUCKETS).await.unwrap();
    fence::unlock(&giver, &job).await.unwrap();
    let refused = insert.await.unwrap().expect_err("it has the lock, and the row is there");
    assert_eq!(code(&refused), "40001", "{refused:?}");
    bed.ask(job.id, Wish::Abort).await;
    fence::release(&bed.control, &giver, Some(&bed.shard(2).await), &job, Way::Out, BUCKETS).await.unwrap();
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// H14: nobody sees what a prepared transaction is about to do; it is waited for like an open one, and its rows move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h14_a_prepared_transaction_is_waited_for_and_its_row_moves() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    bed.until(job.id, Phase::Ready).await;
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let client = bed.direct(1).await;
    client.batch_execute("BEGIN").await.unwrap();
    let update = "UPDATE public.accounts SET note = '\"prepared\"' WHERE tenant_id = $1";
    assert_eq!(client.execute(update, &[&inside]).await.unwrap(), 3);
    client.batch_execute("PREPARE TRANSACTION 'of the application'").await.unwrap();
    bed.ask(job.id, Wish::Cutover).await;
    let begun = std::time::Instant::now();
    loop {
        let now = bed.load(job.id).await;
        if now.text("waits_for").is_some_and(|text| text.contains("a prepared transaction")) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let job = bed.load(job.id).await;
    assert_eq!((job.phase, job.number("fences")), (Phase::Ready, None), "{}", bed.story(job.id).await);
    client.batch_execute("COMMIT PREPARED 'of the application'").await.unwrap();
    bed.until(job.id, Phase::Window).await;
    let moved = "SELECT count(*) FROM public.accounts WHERE tenant_id = $1 AND note = '\"prepared\"'";
    assert_eq!(bed.shard(2).await.value::<i64>(moved, &[&inside]).await.unwrap(), 3);
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A writer that does not end keeps the fence away, and nobody waits behind the attempt for longer than it may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h14_an_open_transaction_is_waited_for_without_holding_anybody() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let idle = bed.direct(1).await;
    idle.batch_execute("BEGIN").await.unwrap();
    idle.execute("UPDATE public.accounts SET balance = balance WHERE tenant_id = $1", &[&inside])
        .await
        .unwrap();
    let job = bed.load(job.id).await;
    // The lock by itself: refused in time, and nothing of it stays.
    let begun = std::time::Instant::now();
    let refused = fence::lock(&bed.shard(1).await, &job, 1, Duration::from_millis(400)).await.unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_millis(400) && format!("{refused}").contains("did not end"),
        "{refused}"
    );
    // The runner does not even begin.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let runner = bed.spawn(job.id, Options { auto: true, finish: true, stay: false });
    // And says whom it waits for, with the slot of its comparison or with the cut-over.
    let begun = std::time::Instant::now();
    while !bed.story(job.id).await.contains("pid") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(matches!(bed.load(job.id).await.phase, Phase::Verifying | Phase::Ready));
    assert_eq!(bed.load(job.id).await.number("fences"), None, "nobody was held");
    idle.batch_execute("COMMIT").await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h3_truncate_and_ddl_are_refused_while_rows_move() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    for shard in [1, 2] {
        let db = bed.shard(shard).await;
        for statement in [
            "TRUNCATE public.entries",
            "TRUNCATE public.entries_old",
            "TRUNCATE public.accounts CASCADE",
            "ALTER TABLE public.accounts ADD COLUMN more int",
            "CREATE TABLE public.late (tenant_id uuid PRIMARY KEY)",
            "CREATE TABLE public.entries_later PARTITION OF public.entries DEFAULT",
            "ALTER TABLE public.entries DETACH PARTITION public.entries_old",
            "DROP TABLE public.entries_old",
        ] {
            let refused = db.client.batch_execute(statement).await.expect_err(statement);
            assert_eq!(code(&refused), "55006", "shard {shard}: {statement}: {refused:?}");
        }
        db.run("CREATE TABLE public.other (id int); TRUNCATE public.plain; DROP TABLE public.other; CREATE TEMP TABLE t (tenant_id uuid)")
            .await
            .expect("what has no rows in motion is as ever");
    }
    // Without the guards (taken off by hand) it would be published without the row filter, and empty the other shard's table.
    for shard in [1, 2] {
        let sql = "SELECT count(*), count(*) FILTER (WHERE pubtruncate) FROM pg_publication";
        let row = bed.shard(shard).await.one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 0), "the publication of shard {shard}");
    }
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.shard(1).await.run("ALTER TABLE public.accounts ADD COLUMN more int").await.unwrap();
    bed.check_clean().await;
}

/// H13: a row that differs on the target stops the move, whatever the digests took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h13_a_difference_is_found_before_the_flip() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let target = bed.shard(2).await;
    let tables = tables::sharded(&target, &bed.servers.config).await.unwrap();
    assert_eq!(tables.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["accounts", "entries"]);
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    // As a bug of the copy would leave it.
    target
        .run("SELECT pg_replication_origin_create('bug'); SELECT pg_replication_origin_session_setup('bug')")
        .await
        .unwrap();
    target
        .execute("UPDATE public.accounts SET balance = 7 WHERE tenant_id = $1 AND id = 2", &[&inside])
        .await
        .unwrap();
    target
        .run("SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('bug')")
        .await
        .unwrap();
    let End::Different(what) = bed.run(job.id, Options { auto: true, finish: true, stay: false }).await
    else {
        panic!("the difference was not found\n{}", bed.story(job.id).await)
    };
    assert!(what.contains("public.accounts") && what.contains(&inside.to_string()), "{what}");
    assert_eq!(shardctl::mover::catalog::map(&bed.control).await.unwrap().map.epoch(), 1);
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
    assert!(bed.servers.has(ShardId(1)));
}
