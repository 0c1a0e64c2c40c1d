//! What happens within the pause: the runner is stopped there, and something is done to its rows.

use std::time::{Duration, Instant};

use shardctl::exit;
use shardctl::mover::catalog;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::ended;
use crate::places::{Places, unhurried};
use crate::verifying::wide_table;

/// Waits until `sql` holds on a shard.
async fn until(bed: &Bed, shard: u16, sql: &str, what: &str) {
    let (db, begun) = (bed.shard(shard).await, Instant::now());
    while !db.holds(sql, &[]).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// H1: the lock comes before the mark. A writer that is under way when everybody is held is waited for, and what it wrote
/// is behind no mark: it is on the target before that owns it, however long that takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_a_writer_that_is_under_way_is_waited_for_and_its_row_moves() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    unhurried(&bed, job.id).await;
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let places = Places::new(&bed);
    places.stop_at("fencing-held");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-held").await;
    let writer = bed.direct(1).await;
    writer.batch_execute("BEGIN").await.unwrap();
    let update = "UPDATE public.accounts SET note = '\"late\"' WHERE tenant_id = $1";
    assert_eq!(writer.execute(update, &[&inside]).await.unwrap(), 3);
    // The target does not come to it for a while.
    let apply = bed.shard(2).await;
    apply.run("BEGIN; LOCK TABLE public.accounts IN EXCLUSIVE MODE").await.unwrap();
    places.go_on("fencing-held");
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted)";
    until(&bed, 1, waits, "nobody waits for the writer").await;
    writer.batch_execute("COMMIT").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    apply.run("COMMIT").await.unwrap();
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    assert_eq!(said.status, 0, "{}\n{}", said.text, bed.story(job.id).await);
    let now = bed.load(job.id).await;
    let first = &now.detail["pauses"][0];
    assert!(now.phase == Phase::Window && first["flipped"] == true, "{}", bed.story(job.id).await);
    let moved = "SELECT count(*) FROM public.accounts WHERE tenant_id = $1 AND note = '\"late\"'";
    assert_eq!(bed.shard(2).await.value::<i64>(moved, &[&inside]).await.unwrap(), 3);
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// H13: a row changes after the last comparison and differs on the target: the comparison within the pause finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h13_a_row_that_comes_to_differ_within_the_pause_is_not_given_away() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    unhurried(&bed, job.id).await;
    let inside = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let places = Places::new(&bed);
    places.stop_at("fencing-held");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-held").await;
    let source = bed.direct(1).await;
    let update =
        format!("UPDATE public.accounts SET note = '\"new\"' WHERE tenant_id = '{inside}' AND id = 2");
    source.batch_execute(&update).await.unwrap();
    until(
        &bed,
        2,
        "SELECT EXISTS (SELECT FROM public.accounts WHERE note = '\"new\"')",
        "the target has not got it",
    )
    .await;
    // As a bug of the replication would leave it.
    let damage = update.replace("new", "damaged");
    bed.shard(2)
        .await
        .run(&format!("SELECT pg_replication_origin_create('bug'), pg_replication_origin_session_setup('bug'); {damage}; \
                       SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('bug')"))
        .await
        .unwrap();
    places.go_on("fencing-held");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    let found = format!("not cut over: rows differ: public.accounts: ({inside}, ");
    assert!(story.contains(&found), "{story}");
    said.check(exit::DIFFERENT, "public.accounts");
    assert_eq!(catalog::map(&bed.control).await.unwrap().map.epoch(), 1);
    source.batch_execute(&update.replace("new", "newer")).await.expect("the source takes writes again");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// H13: more rows change after the last comparison than fit into the pause: the attempt is given up in time, and the next
/// one, for which they were compared, cuts over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h13_more_rows_than_fit_into_the_pause_are_not_compared_in_it() {
    const ROWS: i64 = 6000;
    let bed = Bed::start(2).await;
    wide_table(&bed, ROWS).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let places = Places::new(&bed);
    places.stop_at("fencing-compared");
    let runner = places.start(&format!("resume {} --auto", job.id));
    places.reached("fencing-compared").await;
    let changed = bed.shard(1).await.execute("UPDATE public.many SET n = 1", &[]).await.unwrap();
    assert_eq!(i64::try_from(changed).unwrap(), ROWS);
    until(&bed, 2, "SELECT bool_and(n = 1) FROM public.many", "the target has not got them").await;
    places.go_on("fencing-compared");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let (now, story) = (bed.load(job.id).await, bed.story(job.id).await);
    assert_eq!((said.status, now.phase), (0, Phase::Window), "{}\n{story}", said.text);
    let first = &now.detail["pauses"][0];
    let why = first["why"].as_str().unwrap();
    assert!(first["flipped"] == false && why.contains("more than 5000 rows changed"), "{why}");
    let pause = first["ms"].as_i64().unwrap();
    assert!(pause <= 500, "{pause} ms: {why}");
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    assert_eq!(bed.shard(2).await.value::<i64>("SELECT sum(n) FROM public.many", &[]).await.unwrap(), ROWS);
    bed.check_clean().await;
}
