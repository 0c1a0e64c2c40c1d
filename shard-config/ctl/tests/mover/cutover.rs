//! H1 in whole cut-overs: clients that know the shards' addresses, and have no manners, write all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use crate::bed::{Bed, bucket, tenant};

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
const ROWS: &str = "SELECT count(*) FROM public.entries WHERE tenant_id = $1";
const LOCKS: &str = "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'shard_move:%'";

/// One posting: both of its rows are there once it is acknowledged, or none.
async fn post(client: &Client, level: &str, tenant: Uuid) -> Result<(), Error> {
    let update = "UPDATE public.accounts SET balance = balance + 1 WHERE tenant_id = $1 AND id = 1";
    let insert =
        "INSERT INTO public.entries (tenant_id, id, account, amount) VALUES ($1, gen_random_uuid(), 1, 1)";
    client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.unwrap();
    let posted = async {
        client.execute(update, &[&tenant]).await?;
        client.execute(insert, &[&tenant]).await?;
        client.batch_execute("COMMIT").await
    };
    let posted = posted.await;
    if posted.is_err() {
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    posted
}

/// By the guard: with the code at which clients try again, which may have other reasons.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, who: &str) {
    let error = answer.expect_err(who);
    let said = error.as_db_error().unwrap_or_else(|| panic!("{who}: {error:?}"));
    assert_eq!(said.code().code(), "40001", "{who}: {said}");
    assert!(said.message().contains("does not take writes of these rows"), "{who}: {said}");
}

/// A shard takes no writes of the tenant's rows from anybody: clients at any level, and who has triggers switched off.
async fn takes_nothing(bed: &Bed, shard: u16, tenant: Uuid) {
    for level in LEVELS {
        refused(post(&bed.direct(shard).await, level, tenant).await, &format!("shard {shard}, {level}"));
    }
    let replica = bed.shard(shard).await;
    replica.run("SET session_replication_role = replica").await.unwrap();
    refused(post(&replica.client, LEVELS[0], tenant).await, &format!("shard {shard}, a replica role"));
}

/// Clients of one shard, one of each level, that post until they are stopped.
struct Direct {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(u64, u64)>>,
}

impl Direct {
    async fn start(bed: &Bed, shard: u16, tenants: &[Uuid]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for (level, &tenant) in LEVELS.into_iter().zip(tenants) {
            let (client, stop) = (bed.direct(shard).await, stop.clone());
            tasks.push(tokio::spawn(async move {
                let (mut acknowledged, mut refusals) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    match post(&client, level, tenant).await {
                        Ok(()) => acknowledged += 1,
                        no => {
                            refused(no, level);
                            refusals += 1;
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (acknowledged, refusals)
            }));
        }
        Self { stop, tasks }
    }

    /// How many postings were acknowledged. Each client must have met the fence.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        for (task, level) in self.tasks.into_iter().zip(LEVELS) {
            let (acknowledged, refusals) = task.await.unwrap();
            assert!(acknowledged > 10 && refusals > 0, "{level}: {acknowledged}, {refusals} refused");
            all += acknowledged;
        }
        all
    }
}

/// A transaction with a snapshot from before the fence.
async fn old(bed: &Bed, shard: u16, level: &str) -> Client {
    let client = bed.direct(shard).await;
    client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT FROM public.plain")).await.unwrap();
    client
}

async fn rows(client: &Client, tenant: Uuid) -> i64 {
    client.query_one(ROWS, &[&tenant]).await.unwrap().get(0)
}

fn inside() -> Vec<Uuid> {
    (0..200).map(tenant).filter(|t| bucket(t) < 32).take(4).collect()
}

/// The source is not written any more from the fence on, by whoever began before it or after it, with or without the lock;
/// the target is not written before. What was acknowledged is there once. A reader with an old snapshot, to whom no guard
/// speaks, keeps what it sees: the rows are not deleted before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_direct_writers_lose_nothing_in_a_cut_over() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    bed.until(job.id, Phase::Ready).await;
    let tenants = inside();
    let (quiet, written) = tenants.split_first().unwrap();
    takes_nothing(&bed, 2, *quiet).await;

    let writers = Direct::start(&bed, 1, written).await;
    let mut olds = Vec::new();
    for level in LEVELS {
        olds.push((level, old(&bed, 1, level).await));
    }
    // A lock of a row is no write: nobody waits for it, and what comes after it is refused (H2).
    let lock = "SELECT FROM public.accounts WHERE tenant_id = $1 FOR UPDATE";
    olds[0].1.execute(lock, &[quiet]).await.unwrap();
    let reader = old(&bed, 1, "REPEATABLE READ").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = rows(&reader, written[0]).await;
    bed.ask(job.id, Wish::Cutover).await;
    bed.until(job.id, Phase::Window).await;

    let source = bed.shard(1).await;
    assert_eq!(source.value::<i64>(LOCKS, &[]).await.unwrap(), 1, "the lock is kept from old snapshots");
    let update = "UPDATE public.accounts SET balance = balance + 1 WHERE tenant_id = $1";
    for (level, client) in olds {
        refused(client.execute(update, &[quiet]).await, &format!("old, {level}"));
    }
    takes_nothing(&bed, 1, *quiet).await;
    post(&bed.direct(2).await, LEVELS[0], *quiet).await.expect("the target owns the rows");
    let posted = writers.stop().await + 1;

    bed.ask(job.id, Wish::Finish).await;
    bed.until(job.id, Phase::Cleaning).await;
    // Longer than short statements are waited for on the spot.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Cleaning, "{}", bed.story(job.id).await);
    assert_eq!(rows(&reader, written[0]).await, seen);
    assert!(rows(&bed.direct(1).await, written[0]).await > seen, "they are there for everybody");
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done);
    bed.check_rows(posted).await;
    bed.check_clean().await;
}

/// In the window nobody holds the lock any more, and the row alone keeps writers away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_the_source_takes_nothing_while_the_window_is_open() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options { auto: true, ..Options::default() }).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    assert_eq!(bed.shard(1).await.value::<i64>(LOCKS, &[]).await.unwrap(), 0);
    let quiet = inside()[0];
    takes_nothing(&bed, 1, quiet).await;
    post(&bed.direct(2).await, LEVELS[2], quiet).await.expect("the target owns the rows");
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(1).await;
    bed.check_clean().await;
}

/// The same on the way back, where the shard that the move called its target gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_direct_writers_lose_nothing_in_a_roll_back() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    assert_eq!(bed.run(job.id, Options { auto: true, ..Options::default() }).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    let tenants = inside();
    let (quiet, written) = tenants.split_first().unwrap();
    let writers = Direct::start(&bed, 2, written).await;
    let mut olds = Vec::new();
    for level in LEVELS {
        olds.push((level, old(&bed, 2, level).await));
    }
    // Copies are not deleted, and the guards stay, as long as it is there.
    let reader = old(&bed, 2, "REPEATABLE READ").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    bed.ask(job.id, Wish::Rollback).await;
    let runner = bed.spawn(job.id, Options::default());
    bed.until(job.id, Phase::Emptying).await;
    let update = "UPDATE public.accounts SET balance = balance + 1 WHERE tenant_id = $1";
    for (level, client) in olds {
        refused(client.execute(update, &[quiet]).await, &format!("old, {level}"));
    }
    takes_nothing(&bed, 2, *quiet).await;
    post(&bed.direct(1).await, LEVELS[1], *quiet).await.expect("the source owns the rows again");
    let posted = writers.stop().await + 1;
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack);
    bed.check_rows(posted).await;
    bed.check_clean().await;
}
