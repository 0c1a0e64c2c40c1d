//! What a server must be, have and let be for a move: each thing that it lacks is a refusal of its own.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shard_config::{Config, ShardId};
use shardctl::direct::Servers;
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;
use shardctl::mover::standing;
use testpg::TempPostgres;

use crate::bed::Bed;
use crate::refusals::{refused, untouched};

/// More than any disk has that runs this.
const HUGE: u64 = 8 << 40;

/// Changes a setting that takes effect at once, and waits until new sessions have it.
async fn set(bed: &Bed, shard: u16, name: &str, value: Option<&str>) {
    let words = value.map_or(format!("RESET {name}"), |value| format!("SET {name} = {value}"));
    bed.shard(shard).await.run(&format!("ALTER SYSTEM {words}")).await.unwrap();
    bed.shard(shard).await.rows("SELECT pg_reload_conf()", &[]).await.unwrap();
    let begun = Instant::now();
    loop {
        let now: String = bed.shard(shard).await.value("SELECT current_setting($1)", &[&name]).await.unwrap();
        if now.is_empty() == value.is_none() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{name} is {now} on shard {shard}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The file of a table, which a test may make as long as it likes: there are no bytes in it.
async fn file_of(bed: &Bed, shard: u16, table: &str) -> PathBuf {
    let sql = "SELECT current_setting('data_directory') || '/' || pg_relation_filepath($1::text::regclass)";
    bed.shard(shard).await.value::<String>(sql, &[&table]).await.unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_lacks_is_refused_and_said() {
    let mut bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let (one, two) = (bed.shard(1).await, bed.shard(2).await);

    set(&bed, 2, "synchronous_standby_names", Some("'*'")).await;
    refused(&bed, &scope, 1, 2, "shard 2: synchronous_standby_names is * -> name the standbys").await;
    set(&bed, 2, "synchronous_standby_names", None).await;

    // Its rows would stay behind, and refer to what has left.
    let child = "CREATE TABLE public.child (id int PRIMARY KEY, t uuid, c char(5), a int, \
                 CONSTRAINT of_account FOREIGN KEY (t, c, a) REFERENCES public.accounts)";
    one.run(child).await.unwrap();
    refused(&bed, &scope, 1, 2, "child, which is not sharded, refers to public.accounts (of_account)").await;
    one.run("DROP TABLE public.child").await.unwrap();

    for (shard, db) in [(1, &one), (2, &two)] {
        let all = "SELECT pg_create_physical_replication_slot('other_' || n) FROM generate_series(1, 9) n";
        db.rows(all, &[]).await.unwrap();
        refused(
            &bed,
            &scope,
            1,
            2,
            &format!(
                "shard {shard}: 1 free of max_replication_slots, 2 are needed -> raise max_replication_slots"
            ),
        )
        .await;
        let none = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        db.rows(none, &[]).await.unwrap();
    }

    // Nobody is about to end it, and a slot waits for its end.
    one.run("BEGIN; INSERT INTO public.plain VALUES (1); PREPARE TRANSACTION 'orphan'").await.unwrap();
    bed.servers.in_doubt = Duration::ZERO;
    refused(&bed, &scope, 1, 2, "shard 1: in doubt for over 0ns: orphan -> a running proxy finishes its own")
        .await;
    bed.servers.in_doubt = Duration::from_secs(60);
    let problems = standing::shard(&bed.servers, ShardId(1)).await.unwrap().problems;
    assert!(problems.is_empty(), "it is younger than a minute: {problems:?}");
    one.run("ROLLBACK PREPARED 'orphan'").await.unwrap();
    two.run("BEGIN; INSERT INTO public.plain VALUES (1); PREPARE TRANSACTION 'shard_move:77:1'")
        .await
        .unwrap();
    refused(&bed, &scope, 1, 2, "shard 2: the fence of move 77 waits for the end of older transactions")
        .await;
    two.run("ROLLBACK PREPARED 'shard_move:77:1'").await.unwrap();

    // Twice its rows on the target, and their WAL on the source.
    for db in [&one, &two] {
        db.run("CREATE TABLE public.huge (tenant_id uuid, PRIMARY KEY (tenant_id))").await.unwrap();
    }
    let file = OpenOptions::new().write(true).open(file_of(&bed, 1, "public.huge").await).unwrap();
    file.set_len(HUGE).unwrap();
    refused(&bed, &scope, 1, 2, "free, the move wants 16.0 TiB -> make room, or move fewer buckets").await;
    refused(&bed, &Scope::of_range(0, 15), 1, 2, "free, the move wants 4.0 TiB -> make room").await;
    file.set_len(0).unwrap();

    two.run("ALTER SYSTEM SET max_wal_senders = 0").await.unwrap();
    two.run("ALTER SYSTEM SET max_logical_replication_workers = 0").await.unwrap();
    bed.pg[1].crash();
    bed.pg[1].resume();
    for setting in ["max_wal_senders", "max_logical_replication_workers (and max_worker_processes)"] {
        refused(&bed, &scope, 1, 2, &format!("shard 2: 0 free of {setting}, 1 are needed")).await;
    }
    bed.shard(2).await.run("ALTER SYSTEM RESET ALL").await.unwrap();
    bed.pg[1].crash();
    bed.pg[1].resume();

    untouched(&bed).await;
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting, "{}", bed.story(job.id).await);
}

/// As `doctor` asks a shard, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_other_settings_and_a_role_without_rights_are_named() {
    let starting = tokio::task::spawn_blocking(|| {
        TempPostgres::start(&["wal_level = replica", "max_prepared_transactions = 0"])
    });
    let pg = starting.await.unwrap();
    let servers = |user: &str| {
        let text = format!(
            "[proxy]\ndatabase = \"postgres\"\n[control]\nuser = \"{user}\"\npassword = \"x\"\n\
             [[shard]]\nid = 1\nprimary = \"127.0.0.1:{}\"\n",
            pg.port()
        );
        Servers::new(Config::parse(&text).unwrap())
    };
    let make = servers("postgres").primary(ShardId(1), "test").await.unwrap();
    make.run("CREATE ROLE weak LOGIN").await.unwrap();
    let said = async |user: &str| {
        let problems = standing::shard(&servers(user), ShardId(1)).await.unwrap().problems;
        problems.iter().map(|p| format!("{} -> {}", p.what, p.remedy)).collect::<Vec<_>>()
    };
    let of_server = [
        "shard 1: wal_level is replica -> set wal_level = logical and restart the server",
        "shard 1: max_prepared_transactions is 0 -> the fence is a prepared transaction: set it to at least the number of \
         clients and restart the server",
    ];
    assert_eq!(said("postgres").await, of_server);
    let weak = said("weak").await;
    assert!(weak[0].starts_with("shard 1: role weak is no superuser -> "), "{weak:?}");
    assert_eq!(weak[1..], of_server);
}
