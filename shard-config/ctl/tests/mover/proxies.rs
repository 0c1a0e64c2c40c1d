//! Proxies that do not hear what is said: the mover ends their sessions (H8).

use tokio_postgres::{Client, NoTls};

use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;
use crate::commands::ended;
use crate::places::Places;

/// By the tags of their sessions: obeys; has lost its lease; has a lease, and stays behind after the announcement; has been
/// away for so long that its row is gone.
const OBEYS: i64 = 4001;
const SILENT: i64 = 4002;
const BEHIND: i64 = 4003;
const FORGOTTEN: i64 = 4004;

async fn register(bed: &Bed) {
    let sql = format!(
        "INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, shards) VALUES \
         ('a', 'obeys', '', '{OBEYS}', clock_timestamp() + interval '10 minutes', 1000000, 1000000, 1, '{{1,2}}'), \
         ('b', 'silent', '', '{SILENT}', clock_timestamp() - interval '1 second', 1000000, 1000000, 1, '{{1,2}}'), \
         ('c', 'behind', '', '{BEHIND}', clock_timestamp() + interval '10 minutes', 2, 1000000, 1, '{{1,2}}')"
    );
    bed.control.run(&sql).await.unwrap();
}

/// An idle session that a proxy has on a server, marked as they are.
async fn session(port: u16, tag: i64) -> Client {
    let url = format!("postgresql://app@127.0.0.1:{port}/postgres");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("SELECT pg_advisory_lock(1936224868, {tag})")).await.unwrap();
    client
}

async fn sessions(ports: &[u16], tag: i64) -> Vec<Client> {
    let mut all = Vec::new();
    for &port in ports {
        all.push(session(port, tag).await);
    }
    all
}

#[track_caller]
fn assert_alive(all: &[Client], alive: bool, who: &str) {
    let found: Vec<_> = all.iter().map(|client| !client.is_closed()).collect();
    assert!(found.iter().all(|one| *one == alive), "{who}: alive {found:?}");
}

/// Before rows are on two shards: who does not know it must not read both. Twice: a proxy without a lease may have come back
/// to a shard that did not yet say so itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_sessions_of_proxies_that_were_not_told_end_before_rows_are_copied() {
    let bed = Bed::start(2).await;
    register(&bed).await;
    let ports = [bed.pg[0].port(), bed.pg[1].port()];
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let places = Places::new(&bed);
    places.stop_at("announcing");
    places.stop_at("arming");
    let runner = places.start(&format!("resume {}", job.id));
    places.reached("announcing").await;
    let obeys = sessions(&ports, OBEYS).await;
    let silent = sessions(&ports, SILENT).await;
    let forgotten = sessions(&ports, FORGOTTEN).await;
    places.go_on("announcing");
    places.reached("arming").await;
    assert_alive(&silent, false, "announced, without a lease");
    assert_alive(&forgotten, false, "announced, without a row");
    assert_alive(&obeys, true, "announced, and told");
    let silent = sessions(&ports, SILENT).await;
    places.go_on("arming");
    let said = tokio::task::spawn_blocking(|| ended(runner)).await.unwrap();
    said.check(0, "ready");
    assert_alive(&silent, false, "armed, without a lease");
    assert_alive(&obeys, true, "armed, and told");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_clean().await;
}

/// After the flip: who does not know the new map reads the old owner, or its replica, and would go on doing so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_sessions_of_proxies_that_do_not_know_the_flip_end_on_the_old_owner() {
    let mut bed = Bed::start(2).await;
    let standby = bed.standby_of(1);
    register(&bed).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let runner = bed.spawn(job.id, Options { stay: true, ..Options::default() });
    bed.until(job.id, Phase::Ready).await;
    let ports = [bed.pg[0].port(), standby.port()];
    let obeys = sessions(&ports, OBEYS).await;
    let silent = sessions(&ports, SILENT).await;
    let behind = sessions(&ports, BEHIND).await;
    bed.ask(job.id, Wish::Cutover).await;
    bed.until(job.id, Phase::Window).await;
    assert_alive(&silent, false, "flipped, without a lease");
    assert_alive(&behind, false, "flipped, and not taken up");
    assert_alive(&obeys, true, "flipped, and taken up");

    // Nothing is deleted under who came back meanwhile.
    let source = [bed.pg[0].port()];
    let silent = sessions(&source, SILENT).await;
    bed.ask(job.id, Wish::Finish).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    assert_alive(&silent, false, "cleaned, without a lease");
    assert_alive(&obeys, true, "cleaned, and taken up");
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// The same for the target, when its rows go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_sessions_of_proxies_that_do_not_know_a_roll_back_end_on_the_target() {
    let mut bed = Bed::start(2).await;
    let standby = bed.standby_of(2);
    register(&bed).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options { auto: true, ..Options::default() }).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    // Of the replica: what is deleted later is looked for on the primary only.
    let ports = [standby.port()];
    let (obeys, silent) = (sessions(&ports, OBEYS).await, sessions(&ports, SILENT).await);
    bed.ask(job.id, Wish::Rollback).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::RolledBack, "{}", bed.story(job.id).await);
    assert_alive(&silent, false, "rolled back, without a lease");
    assert_alive(&obeys, true, "rolled back, and taken up");
    bed.check_rows(0).await;
    bed.check_clean().await;
}
