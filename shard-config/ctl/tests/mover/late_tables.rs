//! Tables that change while rows move: one that becomes sharded late, definitions by whom the guards do not see, and a foreign
//! key that acts on rows.

use std::time::Duration;

use shard_config::Config;
use shardctl::direct::Servers;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options, run};
use shardctl::mover::scope::Scope;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::bed::{Bed, bucket, tenant};
use crate::commands::ended;
use crate::places::Places;

const ALL: Options = Options { auto: true, finish: true, stay: false };
const LATE: &str = "CREATE TABLE public.late (tenant_id uuid, id int, PRIMARY KEY (tenant_id, id))";
const COUNT: &str = "SELECT count(*) FROM public.late";

fn inside() -> Uuid {
    (0..200).map(tenant).find(|t| bucket(t) <= 15).unwrap()
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// As a configuration that says of public.late what it is.
fn declared(bed: &Bed, kind: &str) -> Servers {
    let rule = format!(
        "[proxy]\ndatabase = \"postgres\"\n[[table]]\nname = \"public.late\"\nkind = \"{kind}\"\n\
                        [[shard]]\nid = 1\nprimary = \"127.0.0.1:1\"\n"
    );
    let mut servers = bed.servers.clone();
    servers.config.tables = Config::parse(&rule).unwrap().tables;
    servers
}

/// On both shards, with a row on the first one.
async fn late_table(bed: &Bed) {
    for shard in [1, 2] {
        bed.shard(shard).await.run(LATE).await.unwrap();
    }
    bed.shard(1).await.execute("INSERT INTO public.late VALUES ($1, 1)", &[&inside()]).await.unwrap();
}

async fn late_rows(bed: &Bed) -> (i64, i64) {
    (bed.shard(1).await.value(COUNT, &[]).await.unwrap(), bed.shard(2).await.value(COUNT, &[]).await.unwrap())
}

/// A migration that creates a table and fills it for a while, in one transaction: the move waits for it and takes its rows along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_is_under_way_is_waited_for() {
    let bed = Bed::start(2).await;
    let open = [bed.shard(1).await, bed.shard(2).await];
    for db in &open {
        db.run(&format!("BEGIN; {LATE}")).await.unwrap();
    }
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, ALL);
    bed.until(job.id, Phase::Arming).await;
    let begun = std::time::Instant::now();
    while !bed
        .story(job.id)
        .await
        .contains("a transaction that changes definitions does not end; it waits for pid")
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", bed.story(job.id).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(bed.load(job.id).await.phase, Phase::Arming, "{}", bed.story(job.id).await);
    open[0].execute("INSERT INTO public.late VALUES ($1, 1)", &[&inside()]).await.unwrap();
    for db in &open {
        db.run("COMMIT").await.unwrap();
    }
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
    assert_eq!(late_rows(&bed).await, (0, 1));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Nothing guarded yet when the table was made, so the move has not heard of it: its slot waits for that transaction, and then it
/// is seen that its rows are in no copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_found_when_the_slot_begins_ends_the_move() {
    let bed = Bed::start(2).await;
    let open = [bed.shard(1).await, bed.shard(2).await];
    for db in &open {
        // As before the first move of all.
        db.run(&format!("BEGIN; SET LOCAL shard_catalog.mover = on; {LATE}")).await.unwrap();
    }
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, ALL);
    bed.until(job.id, Phase::Copying).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    open[0].execute("INSERT INTO public.late VALUES ($1, 1)", &[&inside()]).await.unwrap();
    for db in &open {
        db.run("COMMIT").await.unwrap();
    }
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert!(story.contains("public.late has become a sharded table"), "{story}");
    assert!(!story.contains("rows copied"), "{story}");
    assert_eq!(late_rows(&bed).await, (1, 0));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// It was an ordinary table when the move began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_published_ends_the_move() {
    let bed = Bed::start(2).await;
    late_table(&bed).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let places = Places::new(&bed);
    places.stop_at("arming");
    let runner = places.start(&format!("resume {}", job.id));
    places.reached("arming").await;
    let past = "SET shard_catalog.mover = on; ALTER TABLE public.late SET UNLOGGED";
    bed.shard(1).await.run(past).await.unwrap();
    places.go_on("arming");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{} {story}", said.text);
    assert!(story.contains("the tables cannot be published"), "{story}");
    assert_eq!(late_rows(&bed).await, (1, 0));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A superuser makes a table past the guards while the move is ready: it is seen before anybody is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_comes_when_the_move_is_ready_is_not_given_away() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    bed.until(job.id, Phase::Ready).await;
    for shard in [1, 2] {
        let db = bed.shard(shard).await;
        db.run(&format!("SET shard_catalog.mover = on; {LATE}")).await.unwrap();
    }
    bed.shard(1).await.execute("INSERT INTO public.late VALUES ($1, 1)", &[&inside()]).await.unwrap();
    bed.ask(job.id, Wish::Cutover).await;
    bed.until(job.id, Phase::Aborted).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    let (now, story) = (bed.load(job.id).await, bed.story(job.id).await);
    assert_eq!(now.phase, Phase::Aborted, "{story}");
    assert!(now.detail["pauses"].is_null(), "nobody was held: {story}");
    assert_eq!(late_rows(&bed).await, (1, 0));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Somebody declares a table sharded when the move is ready: no copy has its rows, so there is no cut-over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_becomes_sharded_during_a_move_is_not_given_away() {
    let bed = Bed::start(2).await;
    late_table(&bed).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(run(&declared(&bed, "plain"), job.id, Options::default()).await.unwrap(), End::Waiting);
    assert_eq!(run(&declared(&bed, "sharded"), job.id, ALL).await.unwrap(), End::Over);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert!(story.contains("public.late has become a sharded table since the move began"), "{story}");
    assert_eq!(late_rows(&bed).await, (1, 0));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The same when it has cut over: the row was never moved, so it is not deleted, and somebody is told. It does not go back either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_becomes_sharded_in_the_window_keeps_its_rows() {
    let bed = Bed::start(2).await;
    late_table(&bed).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let auto = Options { auto: true, ..Options::default() };
    assert_eq!(run(&declared(&bed, "plain"), job.id, auto).await.unwrap(), End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    let sharded = declared(&bed, "sharded");
    bed.ask(job.id, Wish::Rollback).await;
    let back = run(&sharded, job.id, Options::default()).await.unwrap();
    assert!(matches!(&back, End::GivenUp(why) if why.contains("public.late has become")), "{back:?}");
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(run(&sharded, job.id, Options::default()).await.unwrap(), End::Over);
    let story = bed.story(job.id).await;
    assert!(story.contains("rows of public.late were never moved, and are on shard 1 still"), "{story}");
    assert_eq!(late_rows(&bed).await, (1, 0));
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A snapshot that is older than the guards does not see them. It is found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h3_a_definition_by_an_older_snapshot_is_refused() {
    let bed = Bed::start(2).await;
    let mut old: Vec<Client> = Vec::new();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        for _ in 0..3 {
            let db = bed.shard(1).await;
            db.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1")).await.unwrap();
            old.push(db.client);
        }
    }
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let statements =
        [LATE, "ALTER TABLE public.accounts ADD COLUMN more int", "DROP TABLE public.entries_old"];
    for (client, statement) in old.iter().zip(statements.iter().cycle()) {
        let refused = client.batch_execute(statement).await.expect_err(statement);
        assert_eq!(code(&refused), "40001", "{statement}: {refused:?}");
        client.batch_execute("ROLLBACK").await.unwrap();
        // Who tries again is told the reason.
        let refused = client.batch_execute(statement).await.expect_err(statement);
        assert_eq!(code(&refused), "55006", "{statement}: {refused:?}");
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TABLE public.other (id int); CREATE TEMP TABLE t (id int); ROLLBACK")
            .await
            .expect("what has no rows in motion is as ever");
    }
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A change of a reference row comes to copies by a foreign key that acts on it. That does not pass by trying again, so it has
/// another code, and names the move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_key_that_acts_on_copies_names_the_move() {
    let bed = Bed::start(2).await;
    for shard in [1, 2] {
        bed.shard(shard)
            .await
            .run("CREATE TABLE public.kinds (id int PRIMARY KEY); INSERT INTO public.kinds SELECT generate_series(1, 4); \
                  CREATE TABLE public.tagged (tenant_id uuid, id int, gone int REFERENCES public.kinds ON DELETE CASCADE, \
                  changed int REFERENCES public.kinds ON UPDATE CASCADE, PRIMARY KEY (tenant_id, id))")
            .await
            .unwrap();
    }
    bed.shard(1).await.execute("INSERT INTO public.tagged VALUES ($1, 1, 1, 2)", &[&inside()]).await.unwrap();
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    let copies = bed.shard(2).await;
    let watch = format!("shardctl watch {}", job.id);
    for statement in ["DELETE FROM public.kinds WHERE id = 1", "UPDATE public.kinds SET id = 12 WHERE id = 2"]
    {
        let refused = copies.client.batch_execute(statement).await.expect_err(statement);
        let said = refused.as_db_error().unwrap();
        assert_eq!(said.code().code(), "55006", "{statement}: {said:?}");
        assert!(said.hint().is_some_and(|hint| hint.contains(&watch)), "{said:?}");
    }
    // Who writes the rows themselves is to try again, where they are.
    let refused = copies.client.batch_execute("DELETE FROM public.tagged").await.expect_err("a copy");
    assert_eq!(code(&refused), "40001", "{refused:?}");
    copies.run("DELETE FROM public.kinds WHERE id = 3").await.expect("nothing refers to it");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    copies.run("DELETE FROM public.kinds WHERE id = 1").await.unwrap();
    bed.check_rows(0).await;
    bed.check_clean().await;
}
