//! Types of one name that are not alike on both shards: a value that the target does not take stops a copy, and one that only the
//! target takes stops the way back.

use shardctl::mover::run::{End, Options};
use shardctl::mover::scope::Scope;

use crate::bed::Bed;
use crate::refusals::untouched;

/// A table for each way to differ, with the type directly or deep inside, and one whose types stay alike.
const ALIKE: &str = "
    CREATE TYPE public.mood AS ENUM ('sad', 'glad');
    CREATE TYPE public.deep AS ENUM ('one', 'two');
    CREATE DOMAIN public.deeper AS public.deep;
    CREATE TYPE public.pair AS (n int, d public.deeper);
    CREATE DOMAIN public.cents AS bigint CHECK (VALUE >= 0);
    CREATE DOMAIN public.rate AS int DEFAULT 1;
    CREATE DOMAIN public.code AS text;
    CREATE TYPE public.place AS (street text);
    CREATE TYPE public.kept AS ENUM ('a', 'b');
    CREATE DOMAIN public.kept_domain AS numeric(9, 2) DEFAULT 0 CHECK (VALUE IN (0, 1));
    CREATE TYPE public.kept_pair AS (k public.kept[], d public.kept_domain);
    CREATE TYPE public.kept_range AS RANGE (subtype = public.kept);
    CREATE TABLE public.has_label (tenant_id uuid PRIMARY KEY, m public.mood);
    CREATE TABLE public.has_deep (tenant_id uuid PRIMARY KEY, p public.pair[]);
    CREATE TABLE public.has_check (tenant_id uuid PRIMARY KEY, c public.cents) PARTITION BY HASH (tenant_id);
    CREATE TABLE public.has_check_0 PARTITION OF public.has_check FOR VALUES WITH (MODULUS 1, REMAINDER 0);
    CREATE TABLE public.has_default (tenant_id uuid PRIMARY KEY, r public.rate);
    CREATE TABLE public.has_null (tenant_id uuid PRIMARY KEY, c public.code);
    CREATE TABLE public.has_attribute (tenant_id uuid PRIMARY KEY, p public.place);
    CREATE TABLE public.has_range (tenant_id uuid PRIMARY KEY, s public.span);
    CREATE TABLE public.has_collation (tenant_id uuid PRIMARY KEY, c text COLLATE public.rules);
    CREATE TABLE public.has_kept (tenant_id uuid PRIMARY KEY, k public.kept_pair[], r public.kept_range, d public.kept_domain);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_differ_are_refused_however_deep_they_are() {
    let bed = Bed::start(2).await;
    for (shard, locale) in [(1, "C"), (2, "POSIX")] {
        let db = bed.shard(shard).await;
        db.run(&format!(
            "CREATE TYPE public.span AS RANGE (subtype = text, collation = pg_catalog.\"{locale}\")"
        ))
        .await
        .unwrap();
        db.run(&format!("CREATE COLLATION public.rules (provider = libc, locale = '{locale}')"))
            .await
            .unwrap();
        db.run(ALIKE).await.unwrap();
    }
    let two = bed.shard(2).await;
    for statement in [
        "ALTER TYPE public.mood ADD VALUE 'angry'",
        "ALTER TYPE public.deep ADD VALUE 'half' BEFORE 'one'",
        "ALTER DOMAIN public.cents ADD CONSTRAINT few CHECK (VALUE < 100)",
        "ALTER DOMAIN public.rate SET DEFAULT 7",
        "ALTER DOMAIN public.code SET NOT NULL",
        "ALTER TYPE public.place ADD ATTRIBUTE zip text",
    ] {
        two.run(statement).await.unwrap();
    }
    let job = bed.plan(&Scope::of_range(0, 15), 1, 2).await;
    let End::Refused(problems) = bed.run(job.id, Options::default()).await else {
        panic!("not refused\n{}", bed.story(job.id).await)
    };
    let mut found: Vec<_> = problems
        .iter()
        .map(|problem| problem.what.replace(" is not defined alike on shards 1 and 2", "").replace('"', ""))
        .collect();
    found.sort();
    let mut wanted = [
        "public.has_label: only on shard 2: type public.mood: label 'angry' after 'glad'",
        "public.has_deep: only on shard 1: type public.deep: label 'one' first; only on shard 2: type public.deep: label 'half' \
         first, type public.deep: label 'one' after 'half'",
        "public.has_check: only on shard 2: type public.cents: CHECKVALUE<100",
        "public.has_default: only on shard 1: type public.rate: domain over integer default 1; only on shard 2: type public.rate: \
         domain over integer default 7",
        "public.has_null: only on shard 1: type public.code: domain over text; only on shard 2: type public.code: domain over text \
         not null",
        "public.has_attribute: only on shard 2: type public.place: attribute 2 is zip text",
        "public.has_range: only on shard 1: type public.span: range of text by text_ops collate C; only on shard 2: type \
         public.span: range of text by text_ops collate POSIX",
        "public.has_collation: only on shard 1: collation public.rules: libc C; only on shard 2: collation \
         public.rules: libc POSIX",
    ];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    untouched(&bed).await;
}
