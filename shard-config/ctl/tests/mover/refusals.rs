//! Wrong use is refused before anything is changed, and says what to do.

use shard_config::{HostPort, ShardId};
use shardctl::direct::Servers;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;
use shardctl::mover::standing;

use crate::bed::{Bed, bucket, tenant};

pub async fn refused(bed: &Bed, scope: &Scope, source: u16, target: u16, what: &str) {
    let job = bed.plan(scope, source, target).await;
    let End::Refused(problems) = bed.run(job.id, Options::default()).await else {
        panic!("not refused: {what}\n{}", bed.story(job.id).await)
    };
    let all: Vec<_> = problems.iter().map(|p| format!("{} -> {}", p.what, p.remedy)).collect();
    assert!(all.iter().any(|problem| problem.contains(what)), "{what}: {all:#?}");
    assert!(problems.iter().all(|problem| !problem.remedy.is_empty()));
    assert_eq!(bed.load(job.id).await.phase, Phase::Refused);
}

pub async fn untouched(bed: &Bed) {
    for shard in [1, 2] {
        let sql = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zzz%') + (SELECT count(*) FROM pg_replication_slots) \
                   + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_subscription)";
        assert_eq!(bed.shard(shard).await.value::<i64>(sql, &[]).await.unwrap(), 0);
    }
    assert_eq!(bed.control.value::<i64>("SELECT count(*) FROM shard_catalog.motion", &[]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_is_refused_before_anything_happens() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 15);
    refused(&bed, &Scope::of_range(60, 64), 2, 1, "there is no bucket 64").await;
    refused(&bed, &Scope::of_range(30, 33), 1, 2, "bucket 32 is on shard 2").await;

    let two = bed.shard(2).await;
    two.run("ALTER TABLE public.accounts ADD COLUMN more int").await.unwrap();
    refused(&bed, &scope, 1, 2, "\"public\".\"accounts\" is not defined alike").await;
    two.run("ALTER TABLE public.accounts DROP COLUMN more").await.unwrap();

    // What it applies passes the guards, and so the fence.
    for statement in [
        "CREATE SUBSCRIPTION legacy CONNECTION 'host=127.0.0.1 port=1' PUBLICATION legacy WITH (connect = false)",
        "ALTER SUBSCRIPTION legacy ENABLE",
    ] {
        two.run(statement).await.unwrap();
    }
    refused(&bed, &scope, 1, 2, "shard 2 receives rows by subscription legacy").await;
    for statement in [
        "ALTER SUBSCRIPTION legacy DISABLE",
        "ALTER SUBSCRIPTION legacy SET (slot_name = NONE)",
        "DROP SUBSCRIPTION legacy",
    ] {
        two.run(statement).await.unwrap();
    }

    let one = bed.shard(1).await;
    for db in [&one, &two] {
        db.run("CREATE TABLE public.bad (tenant_id uuid, id int PRIMARY KEY); CREATE UNLOGGED TABLE public.worse (tenant_id uuid PRIMARY KEY)")
            .await
            .unwrap();
    }
    refused(&bed, &scope, 1, 2, "the primary key of public.bad does not contain tenant_id").await;
    refused(&bed, &scope, 1, 2, "public.worse is UNLOGGED").await;
    for db in [&one, &two] {
        db.run("DROP TABLE public.bad, public.worse").await.unwrap();
    }

    // Keys by which replication cannot tell rows, or not those of one tenant.
    for (key, what) in [
        ("PRIMARY KEY (tenant_id, id) DEFERRABLE", "the primary key of public.bad (bad_pkey) is DEFERRABLE"),
        ("PRIMARY KEY (id) INCLUDE (tenant_id)", "the primary key of public.bad does not contain tenant_id"),
    ] {
        for db in [&one, &two] {
            db.run(&format!("CREATE TABLE public.bad (tenant_id uuid, id int, {key})")).await.unwrap();
        }
        refused(&bed, &scope, 1, 2, what).await;
        for db in [&one, &two] {
            db.run("DROP TABLE public.bad").await.unwrap();
        }
    }

    // What a proxy may serve by the key, and cannot be moved, is not left behind in silence.
    for (makes, undoes, what) in [
        (
            "CREATE DOMAIN public.tid AS uuid; CREATE TABLE public.odd (tenant_id public.tid PRIMARY KEY)",
            "DROP TABLE public.odd; DROP DOMAIN public.tid",
            "public.odd seems to be placed by the sharding key",
        ),
        (
            "CREATE MATERIALIZED VIEW public.seen AS SELECT tenant_id FROM public.accounts",
            "DROP MATERIALIZED VIEW public.seen",
            "public.seen seems to be placed by the sharding key",
        ),
        (
            "ALTER TABLE public.entries_old SET UNLOGGED",
            "ALTER TABLE public.entries_old SET LOGGED",
            "public.entries_old is UNLOGGED",
        ),
        (
            "ALTER TABLE public.entries_new REPLICA IDENTITY NOTHING",
            "ALTER TABLE public.entries_new REPLICA IDENTITY DEFAULT",
            "public.entries_new does not have its primary key as replica identity",
        ),
        (
            "ALTER TABLE public.accounts ENABLE ALWAYS TRIGGER touch",
            "ALTER TABLE public.accounts ENABLE TRIGGER touch",
            "fired by replicated rows, too: touch",
        ),
        // A large object is not in the row that names it.
        (
            "CREATE DOMAIN public.lo AS oid; CREATE TABLE public.docs (tenant_id uuid PRIMARY KEY, body public.lo)",
            "DROP TABLE public.docs; DROP DOMAIN public.lo",
            "column body of public.docs is of type public.lo: the large objects that it names would stay behind -> keep them in the rows",
        ),
        (
            "CREATE DOMAIN public.lo AS oid; CREATE DOMAIN public.scan AS public.lo; \
             CREATE TABLE public.docs (tenant_id uuid PRIMARY KEY, more text, pages public.scan[])",
            "DROP TABLE public.docs; DROP DOMAIN public.scan; DROP DOMAIN public.lo",
            "column pages of public.docs is of type public.scan[]: the large objects",
        ),
        (
            "CREATE TABLE public.docs (tenant_id uuid PRIMARY KEY, body oid); SELECT lo_create(4711)",
            "DROP TABLE public.docs; SELECT lo_unlink(4711)",
            "column body of public.docs is of type oid, and the server has large objects: those that it names would stay behind",
        ),
    ] {
        for db in [&one, &two] {
            db.run(makes).await.unwrap();
        }
        refused(&bed, &scope, 1, 2, what).await;
        for db in [&one, &two] {
            db.run(undoes).await.unwrap();
        }
    }

    let inside = (0..200).map(tenant).find(|t| bucket(t) < 16).unwrap();
    two.execute("INSERT INTO public.accounts (tenant_id, id) VALUES ($1, 1)", &[&inside]).await.unwrap();
    refused(&bed, &scope, 1, 2, "shard 2 has rows of buckets 0-15 in public.accounts already").await;
    two.execute("DELETE FROM public.accounts WHERE tenant_id = $1", &[&inside]).await.unwrap();

    let mut config = bed.servers.config.clone();
    config.shards[1].primary = HostPort { host: "127.0.0.1".into(), port: 1 };
    let elsewhere = Servers::new(config);
    let job = bed.plan(&scope, 1, 2).await;
    let error = elsewhere.primary(ShardId(2), "test").await.unwrap_err();
    assert!(format!("{error:#}").contains("no primary of shard 2 can be reached"), "{error:#}");
    let error = bed.servers.primary(ShardId(7), "test").await.unwrap_err();
    assert!(format!("{error:#}").contains("add [[shard]] with id = 7"), "{error:#}");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    untouched(&bed).await;
}

/// Each is on the target only: rows would be other ones there, or the application would find them in another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_not_defined_alike_is_refused_and_the_difference_said() {
    let bed = Bed::start(2).await;
    let scope = Scope::of_range(0, 15);
    let two = bed.shard(2).await;
    for db in [&bed.shard(1).await, &two] {
        db.run(
            "CREATE ROLE other; CREATE TABLE public.made (tenant_id uuid, id int, code text, kind varchar(3),
                 twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (tenant_id, id))",
        )
        .await
        .unwrap();
    }
    for (makes, undoes, what) in [
        (
            "ALTER TABLE public.made DROP twice, ADD twice int GENERATED ALWAYS AS (id * 3) STORED",
            "ALTER TABLE public.made DROP twice, ADD twice int GENERATED ALWAYS AS (id * 2) STORED",
            "only on shard 1: column twice integer generated as (id * 2); only on shard 2: column twice integer generated as (id * 3)",
        ),
        (
            "ALTER TABLE public.made ALTER code SET DEFAULT 'a b'",
            "ALTER TABLE public.made ALTER code DROP DEFAULT",
            "only on shard 2: column code text default 'a b'::text",
        ),
        (
            "ALTER TABLE public.made ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE public.made DISABLE ROW LEVEL SECURITY",
            "only on shard 2: row-level security ->",
        ),
        (
            "ALTER TABLE public.made FORCE ROW LEVEL SECURITY",
            "ALTER TABLE public.made NO FORCE ROW LEVEL SECURITY",
            "only on shard 2: row-level security (forced) (disabled) ->",
        ),
        (
            "CREATE POLICY mine ON public.made FOR SELECT TO app, other USING (id > 3)",
            "DROP POLICY mine ON public.made",
            "only on shard 2: policy mine for select to app, other using (id > 3) ->",
        ),
        (
            "CREATE UNIQUE INDEX made_code ON public.made (code) WHERE id > 3",
            "DROP INDEX public.made_code",
            "only on shard 2: unique index by btree (code) WHERE (id > 3) ->",
        ),
        (
            "CREATE RULE quiet AS ON DELETE TO public.made DO INSTEAD NOTHING",
            "DROP RULE quiet ON public.made",
            "only on shard 2: CREATE RULE quiet AS ON DELETE TO public.made DO INSTEAD NOTHING; ->",
        ),
        (
            "ALTER TABLE public.accounts OWNER TO other",
            "ALTER TABLE public.accounts OWNER TO postgres",
            "only on shard 2: grant DELETE to other",
        ),
        (
            "GRANT SELECT (code) ON public.made TO app",
            "REVOKE SELECT (code) ON public.made FROM app",
            "grant SELECT (code) to app",
        ),
        (
            "REVOKE INSERT ON public.entries FROM app",
            "GRANT INSERT ON public.entries TO app",
            "\"public\".\"entries\" is not defined alike on shards 1 and 2: only on shard 1: grant INSERT to app ->",
        ),
        (
            "CREATE UNIQUE INDEX new_id ON public.entries_new (id)",
            "DROP INDEX public.new_id",
            "2: partition FOR VALUES FROM ('2020-01-01 00:00:00+00') TO (MAXVALUE): unique index by btree (id) ->",
        ),
        (
            "ALTER TABLE public.entries_old REPLICA IDENTITY FULL",
            "ALTER TABLE public.entries_old REPLICA IDENTITY DEFAULT",
            "replica identity full ->",
        ),
        (
            "CREATE MATERIALIZED VIEW public.seen AS SELECT tenant_id FROM public.accounts",
            "DROP MATERIALIZED VIEW public.seen",
            "on shard 2 only: public.seen seems to be placed by the sharding key",
        ),
        (
            "ALTER TABLE public.made RENAME TO gone",
            "ALTER TABLE public.gone RENAME TO made",
            "\"public\".\"made\" is on shard 1 and not on shard 2",
        ),
    ] {
        two.run(makes).await.unwrap();
        refused(&bed, &scope, 1, 2, what).await;
        two.run(undoes).await.unwrap();
    }
    // What a dump that is restored prints in another way is no difference.
    let list = "CHECK (kind IN ('a', 'b'))";
    bed.shard(1).await.run(&format!("ALTER TABLE public.made ADD CONSTRAINT k {list}")).await.unwrap();
    let printed = "CHECK (kind::text = ANY (ARRAY['a'::text, 'b'::text]))";
    two.run(&format!("ALTER TABLE public.made ADD CONSTRAINT k {printed}")).await.unwrap();
    untouched(&bed).await;
    let job = bed.plan(&scope, 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting, "{}", bed.story(job.id).await);
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_move_of_a_bucket_in_motion_is_refused() {
    let bed = Bed::start(3).await;
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting);
    refused(&bed, &Scope::of_range(15, 16), 1, 3, &format!("move {} has buckets 0-15 under way", job.id))
        .await;
    // Another bucket of the same shards may go at the same time.
    let other = bed.plan(&Scope::of_range(16, 20), 1, 3).await;
    assert_eq!(bed.run(other.id, Options { auto: true, finish: true, stay: false }).await, End::Over);
    assert_eq!(bed.load(other.id).await.phase, Phase::Done, "{}", bed.story(other.id).await);
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
    bed.check_rows(0).await;
    bed.check_clean().await;
}

/// A shard that was just added: every live proxy must know it before it gets its first bucket, and then it must have the rows
/// that every shard has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_moves_to_a_shard_that_a_proxy_does_not_know_or_that_lacks_reference_rows() {
    let mut bed = Bed::start(3).await;
    let with_reference = "[[user]]\nname = \"a\"\npassword = \"b\"\n[[shard]]\nid = 1\nprimary = \"h:1\"\n\
                          [[table]]\nname = \"public.plain\"\nkind = \"reference\"\n\
                          [[table]]\nname = \"public.later\"\nkind = \"reference\"\n";
    bed.servers.config.tables = shard_config::Config::parse(with_reference).unwrap().tables;
    let (one, three) = (bed.shard(1).await, bed.shard(3).await);
    one.run("INSERT INTO public.plain VALUES (1), (2)").await.unwrap();
    three.run("INSERT INTO public.plain VALUES (1)").await.unwrap();
    let scope = Scope::of_range(0, 15);
    bed.control
        .run("INSERT INTO shard_catalog.proxy (id, name, address, backend_tag, lease_until, version, drained, epoch, shards) \
              VALUES ('a', 'late', '10.0.0.1:7', '8', clock_timestamp() + interval '10 minutes', 1000, 1000, 1, '{1,2}'), \
                     ('b', 'older', '10.0.0.2:7', '9', clock_timestamp() + interval '10 minutes', 1000, 1000, 1, NULL), \
                     ('c', 'gone', '10.0.0.3:7', '10', clock_timestamp() - interval '1 second', 1000, 1000, 1, '{1,2}')")
        .await
        .unwrap();
    refused(&bed, &scope, 1, 3, "proxy late (10.0.0.1:7) does not know shard 3 -> add [[shard]] id = 3")
        .await;
    refused(&bed, &scope, 1, 3, "proxy older (10.0.0.2:7) does not say which shards it knows").await;
    bed.control.run("UPDATE shard_catalog.proxy SET shards = '{1,2,3}'").await.unwrap();
    refused(&bed, &scope, 1, 3, "the reference table public.plain has other rows on shard 3 than on shard 1")
        .await;
    three.run("INSERT INTO public.plain VALUES (2)").await.unwrap();
    // A writer keeps the two from being compared, but not for long.
    let writer = bed.shard(1).await;
    writer.run("BEGIN; INSERT INTO public.plain VALUES (3)").await.unwrap();
    refused(&bed, &scope, 1, 3, "plain cannot be compared: somebody keeps it locked on shard 1").await;
    writer.run("ROLLBACK").await.unwrap();
    bed.control.run("DELETE FROM shard_catalog.proxy").await.unwrap();
    untouched(&bed).await;
    let job = bed.plan(&scope, 1, 3).await;
    let all = Options { auto: true, finish: true, stay: false };
    assert_eq!(bed.run(job.id, all).await, End::Over, "{}", bed.story(job.id).await);
    assert_eq!(bed.load(job.id).await.phase, Phase::Done, "{}", bed.story(job.id).await);
}

/// Numbers that shards give by themselves are no reason not to move, and the operator must know of them. Those that the proxy draws
/// are in nobody's way; nor is a column of `oid` on a server without large objects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_that_shards_draw_from_themselves_are_noted() {
    let bed = Bed::start(2).await;
    let (one, two) = (bed.shard(1).await, bed.shard(2).await);
    for db in [&one, &two] {
        db.run(
            "CREATE SEQUENCE public.odd; CREATE TABLE public.bills (tenant_id uuid, id bigserial, n int GENERATED ALWAYS AS IDENTITY,
                 code text DEFAULT 'B-' || nextval('public.odd'), file oid, PRIMARY KEY (tenant_id, id))",
        )
        .await
        .unwrap();
    }
    // On the default shard it is the proxy, for all of them; on another one it is not.
    one.run("SELECT nextval('public.bills_id_seq'), nextval('public.bills_n_seq')").await.unwrap();
    two.run("SELECT nextval('public.bills_id_seq'), nextval('public.bills_id_seq')").await.unwrap();
    let notes = |shard: u16| {
        let servers = &bed.servers;
        async move { standing::shard(servers, ShardId(shard)).await.unwrap().notes }
    };
    let (on_one, on_two) = (notes(1).await, notes(2).await);
    let begins = |note: &str, wanted: &str| assert!(note.starts_with(wanted), "not \"{wanted}\" but: {note}");
    assert_eq!((on_one.len(), on_two.len()), (1, 2), "{on_one:#?} {on_two:#?}");
    begins(
        &on_one[0],
        "sequence public.odd (column code of public.bills) is drawn from by shard 1 for itself",
    );
    begins(&on_two[0], "sequence public.bills_id_seq (column id of public.bills) stands at 2 on shard 2");
    begins(
        &on_two[1],
        "sequence public.odd (column code of public.bills) is drawn from by shard 2 for itself",
    );
    assert!(on_two[0].contains(
        "There is no duplicate key only if the sequence of each shard stands behind the highest number"
    ));

    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Waiting, "{}", bed.story(job.id).await);
    let story = bed.story(job.id).await;
    assert!(on_one.iter().chain(&on_two).all(|note| story.contains(note.as_str())), "{story}");
    bed.ask(job.id, Wish::Abort).await;
    assert_eq!(bed.run(job.id, Options::default()).await, End::Over);
}
