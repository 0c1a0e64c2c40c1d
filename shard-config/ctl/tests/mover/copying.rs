//! The first copy: what cuts it short, what holds it, and what its rows consist of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use shardctl::mover::job::{Job, Way};
use shardctl::mover::machine::Phase;
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::{BUCKETS, Bed, Writers, bucket, tenant};
use crate::proxy::Proxy;

const ALL: Options = Options { auto: true, finish: true, stay: false };

async fn until(bed: &Bed, id: i64, what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}\n{}", bed.story(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rows of the scope on a shard, in all tables.
async fn inside(bed: &Bed, shard: u16, scope: &Scope) -> i64 {
    bed.rows(shard, scope).await.values().map(|(inside, _)| inside).sum()
}

/// So many entries more that no table is copied in one piece.
async fn fill(bed: &Bed) {
    let sql = "INSERT INTO public.entries (tenant_id, at, id, account, amount)
               SELECT tenant_id, clock_timestamp() - n * interval '1 ms', gen_random_uuid(), 1, 0
               FROM (SELECT DISTINCT tenant_id FROM public.accounts) a, generate_series(1, 200) n";
    bed.shard(1).await.run(sql).await.unwrap();
}

/// Every entry of the scope on a shard, as one number.
async fn digest(bed: &Bed, shard: u16, scope: &Scope) -> String {
    let inside = scope.sql("tenant_id", shard_config::KeyType::Uuid, BUCKETS);
    let sql = format!(
        "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(e::text, 0)), 0) FROM public.entries e WHERE {inside}"
    );
    bed.shard(shard).await.value(&sql, &[]).await.unwrap()
}

/// One piece of the copy, of a table of many, is committed, and the next one waits for hours.
async fn cut_short(bed: &Bed, id: i64, scope: &Scope) -> tokio::task::JoinHandle<anyhow::Result<End>> {
    fill(bed).await;
    bed.load(id).await.set(&bed.control, json!({ "throttle": { "bytes_per_second": 10 } })).await.unwrap();
    let runner = bed.spawn(id, ALL);
    until(bed, id, "nothing was copied", async || inside(bed, 2, scope).await > 0).await;
    runner
}

/// Such a copy, under writes.
struct Short {
    bed: Bed,
    scope: Scope,
    // Its writers write through it.
    _proxy: Arc<Proxy>,
    writers: Writers,
    id: i64,
    runner: tokio::task::JoinHandle<anyhow::Result<End>>,
}

impl Short {
    async fn start() -> Self {
        let bed = Bed::start(2).await;
        let scope = Scope::of_range(0, 31);
        let proxy = Proxy::start(&bed.servers).await;
        let writers = Writers::start(&proxy, 3);
        let id = bed.plan(&scope, 1, 2).await.id;
        let runner = cut_short(&bed, id, &scope).await;
        Self { bed, scope, _proxy: proxy, writers, id, runner }
    }

    async fn stop(&mut self) {
        self.runner.abort();
        let _ = (&mut self.runner).await;
    }

    /// A runner of its own goes on, without the limit.
    async fn go_on(&mut self) {
        self.no_limit().await;
        self.runner = self.bed.spawn(self.id, ALL);
    }

    async fn no_limit(&self) {
        self.bed.load(self.id).await.set(&self.bed.control, json!({ "throttle": null })).await.unwrap();
    }

    /// It is done, from a new beginning. What was there of the first one is not counted on.
    async fn ends_anew(self) -> (Bed, String) {
        let ended = self.runner.await.unwrap();
        let (bed, posted) = (self.bed, self.writers.stop().await);
        let story = bed.story(self.id).await;
        assert_eq!(ended.unwrap(), End::Over, "{story}");
        assert_eq!(bed.load(self.id).await.phase, Phase::Done, "{story}");
        assert!(story.contains("copying begins anew"), "{story}");
        bed.check_rows(posted).await;
        bed.check_clean().await;
        (bed, story)
    }
}

/// What a dead runner has copied came from a snapshot that is gone, and rows change meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_cut_short_begins_anew() {
    let mut short = Short::start().await;
    let (bed, id, scope) = (&short.bed, short.id, short.scope.clone());
    until(bed, id, "no reason", async || {
        bed.load(id).await.text("throttled").is_some_and(|reason| reason.contains("10 B/s"))
    })
    .await;
    let running: i64 = bed.load(id).await.detail["progress"]["rows"].as_i64().unwrap_or(0);
    assert!(running > 0 && running < 2000, "{running} rows, of one table that has many more");
    short.stop().await;
    let (all, copied) = (inside(&short.bed, 1, &scope).await, inside(&short.bed, 2, &scope).await);
    assert!(copied > 0 && copied < all, "{copied} of {all} rows");
    // Rows that were copied are changed before the next snapshot, and gone from it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let gone = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    let source = short.bed.shard(1).await;
    // Nor is what it has published, whoever has changed it.
    let publication = Job::publication_of(id, Way::Out);
    source.run(&format!("ALTER PUBLICATION {publication} DROP TABLE public.entries")).await.unwrap();
    source.execute("DELETE FROM public.entries WHERE tenant_id = $1 AND amount = 0", &[&gone]).await.unwrap();
    short.go_on().await;
    let (bed, _) = short.ends_anew().await;
    let left = "SELECT count(*) FROM public.entries WHERE tenant_id = $1 AND amount = 0";
    assert_eq!(bed.shard(2).await.value::<i64>(left, &[&gone]).await.unwrap(), 0);
}

/// The sessions that copy give way to the application's, on either server; those that decide do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_copies_gives_way() {
    let bed = Bed::start(2).await;
    let id = bed.plan(&Scope::of_range(0, 31), 1, 2).await.id;
    let runner = cut_short(&bed, id, &Scope::of_range(0, 31)).await;
    for shard in [1, 2] {
        let sql = "SELECT array_agg(pid ORDER BY backend_start DESC) FROM pg_stat_activity \
                   WHERE application_name = $1 AND backend_type = 'client backend'";
        let name = bed.load(id).await.session_name();
        let pids: Vec<i32> = bed.shard(shard).await.value(sql, &[&name]).await.unwrap();
        let niceness = |pid: &i32| -> i64 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // Field 19 of proc(5), counted from the end of the name.
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        let nice = pids.iter().map(niceness).collect::<Vec<_>>();
        assert_eq!(nice.iter().filter(|n| **n == 5).count(), 1, "shard {shard}: {nice:?}");
        assert!(nice.contains(&0), "shard {shard}: {nice:?}");
    }
    runner.abort();
}

/// That every row is there holds of one server, since its last failover, and of one place in the source's changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_that_all_is_copied_is_not_believed_of_another_server_or_slot() {
    let mut short = Short::start().await;
    short.stop().await;
    let (bed, id) = (&short.bed, short.id);
    let (system, timeline) = bed.shard(2).await.identity.unwrap();
    let slot = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_type = 'logical'";
    let at: String = bed.shard(1).await.value(slot, &[]).await.unwrap();
    let other = json!({ "copied_to": format!("{system}:{}", timeline + 1), "slot_at": at });
    bed.load(id).await.set(&bed.control, other).await.unwrap();
    short.go_on().await;
    let (_, story) = short.ends_anew().await;
    assert!(!story.contains("somebody else"), "{story}");

    let mut short = Short::start().await;
    short.stop().await;
    let (bed, id) = (&short.bed, short.id);
    let (system, timeline) = bed.shard(2).await.identity.unwrap();
    // The slot has been read since.
    let early = json!({ "copied_to": format!("{system}:{timeline}"), "slot_at": "0/1" });
    bed.load(id).await.set(&bed.control, early).await.unwrap();
    short.go_on().await;
    let (_, story) = short.ends_anew().await;
    assert!(story.contains("somebody else has read the replication slot"), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_in_the_middle_of_a_copy_leaves_nothing() {
    let Short { bed, scope, _proxy, writers, id, runner } = Short::start().await;
    bed.ask(id, shardctl::mover::machine::Wish::Abort).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(id).await.phase, Phase::Aborted, "{}", bed.story(id).await);
    assert_eq!(inside(&bed, 2, &scope).await, 0);
    bed.check_rows(writers.stop().await).await;
    bed.check_clean().await;
}

/// A session of the copy that ends is a server that may have lost commits: the runner begins anew by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_drops_a_session_is_copied_to_anew() {
    let short = Short::start().await;
    // The one that writes, between two pieces.
    let name = format!("shardctl move {}", short.id);
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1 AND query = 'COMMIT'";
    assert_eq!(short.bed.shard(2).await.value::<i64>(end, &[&name]).await.unwrap(), 1);
    short.no_limit().await;
    short.ends_anew().await;
}

/// Without the session that holds it the snapshot is gone, which is no fault of the rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_lost_is_made_anew() {
    let short = Short::start().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%SELECT pg_export_snapshot()' AND state LIKE 'idle in%'";
    assert_eq!(short.bed.shard(1).await.value::<i64>(end, &[]).await.unwrap(), 1);
    short.no_limit().await;
    short.ends_anew().await;
}

/// Many pieces, partitions and tables at a time: every row once, as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pieces_are_one_copy() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    for _ in 0..4 {
        fill(&bed).await;
    }
    let before = digest(&bed, 1, &scope).await;
    let job = bed.plan(&scope, 1, 2).await;
    bed.load(job.id)
        .await
        .set(&bed.control, json!({ "throttle": { "parallel": 100, "bytes_per_second": 1 << 20 } }))
        .await
        .unwrap();
    let auto = Options { auto: true, finish: false, stay: false };
    assert_eq!(bed.run(job.id, auto).await, End::Waiting);
    assert_eq!(bed.load(job.id).await.phase, Phase::Window, "{}", bed.story(job.id).await);
    assert_eq!(digest(&bed, 2, &scope).await, before);
    let pieces = bed.load(job.id).await.detail["progress"]["pieces"].as_i64().unwrap();
    // One table has many pages, and the others a piece together.
    assert!(pieces >= 7, "{pieces} pieces");
    bed.ask(job.id, shardctl::mover::machine::Wish::Rollback).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    assert_eq!(digest(&bed, 1, &scope).await, before);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// What the target will not take is not tried for ever: a copy would be made and deleted again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_the_target_refuses_undo_the_move() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let (one, two) = (bed.shard(1).await, bed.shard(2).await);
    let (moving, staying) = (
        (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap(),
        (0..200).map(tenant).find(|t| bucket(t) > 31).unwrap(),
    );
    for (db, tenant) in [(&one, &moving), (&two, &staying)] {
        let sql = "INSERT INTO public.accounts (tenant_id, id, code, note) VALUES ($1, 9, 'uniq', '1')";
        db.execute(sql, &[tenant]).await.unwrap();
    }
    let job = bed.plan(&scope, 1, 2).await;
    let held = json!({ "throttle": { "latency_ms": -1 } });
    bed.load(job.id).await.set(&bed.control, held).await.unwrap();
    let runner = bed.spawn(job.id, ALL);
    until(&bed, job.id, "it is not held", async || bed.load(job.id).await.text("throttled").is_some()).await;
    // Unique over tenants on one shard only, past all that keeps tables as they are, and somebody has the value there already.
    let index =
        "SET shard_catalog.mover = on; CREATE UNIQUE INDEX ON public.accounts (note) WHERE code = 'uniq'";
    two.run(index).await.unwrap();
    bed.load(job.id).await.set(&bed.control, json!({ "throttle": null })).await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Aborted, "{story}");
    assert!(story.contains("the copy cannot be made") && story.contains("duplicate key"), "{story}");
    assert!(!story.contains("copying begins anew"), "{story}");
    assert_eq!(inside(&bed, 2, &scope).await, 0);
    bed.check_clean().await;
}

/// A table that is written anew has its rows elsewhere: pages that were read say nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_rewritten_is_copied_anew() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    let job = bed.plan(&scope, 1, 2).await;
    let runner = cut_short(&bed, job.id, &scope).await;
    let before = digest(&bed, 1, &scope).await;
    // Nothing of the copy is in its way.
    let source = bed.shard(1).await;
    source.run("SET lock_timeout = '2s'").await.unwrap();
    source.run("VACUUM FULL public.entries").await.unwrap();
    bed.load(job.id).await.set(&bed.control, json!({ "throttle": null })).await.unwrap();
    assert_eq!(runner.await.unwrap().unwrap(), End::Over, "{}", bed.story(job.id).await);
    let story = bed.story(job.id).await;
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{story}");
    assert!(story.contains("was rewritten meanwhile"), "{story}");
    assert_eq!(digest(&bed, 2, &scope).await, before);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Limits hold a copy that is under way, with the reason, and may be mended; so may a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_a_copy_under_way() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 31);
    for _ in 0..2 {
        fill(&bed).await;
    }
    let job = bed.plan(&scope, 1, 2).await;
    let runner = cut_short(&bed, job.id, &scope).await;
    let all = inside(&bed, 1, &scope).await;
    let set =
        async |limits: serde_json::Value| bed.load(job.id).await.set(&bed.control, limits).await.unwrap();
    let stands = async || {
        // What had begun is over by then.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let before = inside(&bed, 2, &scope).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(inside(&bed, 2, &scope).await, before, "{}", bed.story(job.id).await);
        assert!(before < inside(&bed, 1, &scope).await, "nothing was left to be copied");
    };
    // In one, so that the limit of bytes is not what holds it.
    set(json!({ "throttle": null, "paused": true })).await;
    stands().await;
    // No answer takes less than no time.
    set(json!({ "throttle": { "latency_ms": -1, "parallel": 3 }, "paused": false })).await;
    until(&bed, job.id, "no reason", async || {
        bed.load(job.id).await.text("throttled").is_some_and(|reason| reason.contains("limit -1 ms"))
    })
    .await;
    stands().await;
    set(json!({ "throttle": null })).await;
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
    assert_eq!(inside(&bed, 2, &scope).await, all);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Few pages may have much beside them: the limit of bytes holds in the middle of a piece, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_piece_of_wide_rows_keeps_to_the_limit() {
    let bed = Bed::start(2).await;
    for shard in [1, 2] {
        let sql = "CREATE TABLE public.wide (tenant_id uuid, id int, doc bytea, PRIMARY KEY (tenant_id, id));
                   ALTER TABLE public.wide ALTER doc SET STORAGE EXTERNAL";
        bed.shard(shard).await.run(sql).await.unwrap();
    }
    let moving = (0..200).map(tenant).find(|t| bucket(t) < 32).unwrap();
    // 24 MiB, in one page.
    let sql = "INSERT INTO public.wide SELECT $1, n, convert_to(repeat('x', 1 << 20), 'UTF8') FROM generate_series(1, 24) n";
    bed.shard(1).await.execute(sql, &[&moving]).await.unwrap();
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    bed.load(job.id)
        .await
        .set(&bed.control, json!({ "throttle": { "bytes_per_second": 8 << 20 } }))
        .await
        .unwrap();
    let runner = bed.spawn(job.id, ALL);
    let target = bed.shard(2).await;
    let under_way = "SELECT EXISTS (SELECT FROM pg_stat_progress_copy WHERE relid = 'public.wide'::regclass)";
    until(&bed, job.id, "nothing was copied", async || target.holds(under_way, &[]).await.unwrap()).await;
    let begun = Instant::now();
    until(&bed, job.id, "it does not end", async || !target.holds(under_way, &[]).await.unwrap()).await;
    // Of three seconds, as much as it may have been seen late.
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(runner.await.unwrap().unwrap(), End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
    let bytes = "SELECT sum(length(doc))::int8 FROM public.wide WHERE tenant_id = $1";
    assert_eq!(target.value::<i64>(bytes, &[&moving]).await.unwrap(), 24 << 20);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// No slot begins before the transactions under way have ended. It is said whose they are, and what waited for them is gone
/// with the attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_transaction_is_named_and_nothing_waits_on_for_it() {
    let bed = Bed::start(2).await;
    let job = bed.plan(&Scope::of_range(0, 31), 1, 2).await;
    let idle = bed.direct(1).await;
    idle.batch_execute("BEGIN; INSERT INTO public.plain VALUES (1)").await.unwrap();
    let pid: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let runner = bed.spawn(job.id, ALL);
    until(&bed, job.id, "nobody is named", async || {
        bed.load(job.id).await.text("error").is_some_and(|error| error.contains(&format!("pid {pid}")))
    })
    .await;
    runner.abort();
    let _ = runner.await;
    // Its last attempt was either told to end, or has just begun.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    let source = bed.shard(1).await;
    assert!(source.value::<i64>(waiting, &[]).await.unwrap() <= 1, "each attempt has left one");
    assert_eq!(bed.load(job.id).await.phase, Phase::Copying);
    idle.batch_execute("COMMIT").await.unwrap();
    assert_eq!(bed.run(job.id, ALL).await, End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// Values whose binary form has numbers of objects in it, which are others on another server; names that need quotes.
const ODD: &str = r#"
    CREATE TYPE public.mood AS ENUM ('sad', 'ok "then"');
    CREATE TYPE public.pair AS (a public.mood, b int);
    CREATE TABLE public."Odd, one" (tenant_id uuid NOT NULL, "the id" bigint GENERATED ALWAYS AS IDENTITY, mood public.mood,
        moods public.mood[], pair public.pair, class regclass, raw bytea, number numeric, twice bigint GENERATED ALWAYS AS ("the id" * 2) STORED,
        PRIMARY KEY (tenant_id, "the id"));
    CREATE TABLE public.even (tenant_id uuid NOT NULL, id int, raw bytea, number numeric, at timestamptz, name name, "char" "char",
        span tstzrange, many int[], doc jsonb, real real, text text, PRIMARY KEY (tenant_id, id));"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_it_was() {
    let bed = Bed::start(2).await;
    // From here on objects have other numbers on shard 2.
    bed.shard(2)
        .await
        .run("CREATE TYPE public.other AS ENUM ('x'); CREATE TABLE public.more (id int PRIMARY KEY)")
        .await
        .unwrap();
    for shard in [1, 2] {
        bed.shard(shard).await.run(ODD).await.unwrap();
    }
    let source = bed.shard(1).await;
    source.run("CREATE TABLE public.more (id int PRIMARY KEY)").await.unwrap();
    let scope = Scope::of_range(0, 31);
    for tenant in (0..200).map(tenant).filter(|tenant| bucket(tenant) < 32) {
        source
            .execute(
                r#"INSERT INTO public."Odd, one" (tenant_id, mood, moods, pair, class, raw, number)
                   SELECT $1, 'ok "then"', ARRAY['sad', NULL, 'ok "then"']::public.mood[], ROW('sad', n)::public.pair, 'public.more'::regclass,
                          decode(repeat('5c00ff', n), 'hex'), CASE n WHEN 1 THEN 'NaN' ELSE 1.500 END FROM generate_series(1, 3) n"#,
                &[&tenant],
            )
            .await
            .unwrap();
        source
            .execute(
                "INSERT INTO public.even SELECT $1, n, '\\x5c00ff', 0.10000, 'infinity', 'n\\', 'x', '[2020-01-01,)', '{{1,NULL}}', '{\"a\": 1.50}', \
                 'NaN', E'a\\tb\\n\\\\N' FROM generate_series(1, 3) n",
                &[&tenant],
            )
            .await
            .unwrap();
    }
    let texts = async |shard: u16| {
        let mut texts = Vec::new();
        for table in [r#"public."Odd, one""#, "public.even"] {
            let inside = scope.sql("tenant_id", shard_config::KeyType::Uuid, BUCKETS);
            let sql = format!(
                "SELECT coalesce(string_agg(t::text, '|' ORDER BY t::text COLLATE \"C\"), '') FROM {table} t WHERE {inside}"
            );
            texts.push(bed.shard(shard).await.value::<String>(&sql, &[]).await.unwrap());
        }
        texts
    };
    let before = texts(1).await;
    assert!(before.iter().all(|text| text.len() > 1000));
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, ALL).await, End::Over);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
    assert_eq!(texts(2).await, before);
    let as_text = &bed.load(job.id).await.detail["progress"]["as_text"];
    assert_eq!(*as_text, json!(["public.Odd, one"]), "in binary form only what means the same everywhere");
    bed.check_rows(0).await;
    bed.check_clean().await;
}
