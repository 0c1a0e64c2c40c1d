//! The servers, their tables, and what must be true of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use shard_config::{Config, ShardId};
use shardctl::direct::{Db, Servers};
use shardctl::mover::catalog;
use shardctl::mover::job::Job;
use shardctl::mover::machine::{Phase, Wish};
use shardctl::mover::run::{End, Options, run};
use shardctl::mover::scope::Scope;
use testpg::TempPostgres;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::proxy::Proxy;

pub const BUCKETS: u16 = 64;
const TENANTS: u128 = 200;

pub struct Bed {
    pub pg: Vec<TempPostgres>,
    pub servers: Servers,
    pub control: Db,
}

/// Everything that the mover must take along: a foreign key, partitions, a trigger of the application, types whose texts
/// need care, and a table with updates of single rows.
const SCHEMA: &str = "
    CREATE TABLE public.accounts (tenant_id uuid NOT NULL, id int NOT NULL, balance bigint NOT NULL DEFAULT 0,
        code char(5) NOT NULL DEFAULT 'ab', note jsonb, touched timestamptz, PRIMARY KEY (tenant_id, code, id));
    CREATE TABLE public.entries (tenant_id uuid NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), id uuid NOT NULL,
        code char(5) NOT NULL DEFAULT 'ab', account int NOT NULL, amount bigint NOT NULL, PRIMARY KEY (tenant_id, at, id),
        FOREIGN KEY (tenant_id, code, account) REFERENCES public.accounts (tenant_id, code, id)) PARTITION BY RANGE (at);
    CREATE TABLE public.entries_old PARTITION OF public.entries FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
    CREATE TABLE public.entries_new PARTITION OF public.entries FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
    CREATE TABLE public.plain (id int PRIMARY KEY);
    CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := clock_timestamp(); RETURN NEW; END $$;
    CREATE TRIGGER touch BEFORE UPDATE ON public.accounts FOR EACH ROW EXECUTE FUNCTION public.touch();
    CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app;";

pub fn tenant(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub fn bucket(tenant: &Uuid) -> u16 {
    shard_config::bucket_of_uuid(tenant.as_bytes(), BUCKETS).get()
}

fn servers(pg: &[TempPostgres], replica: Option<(u16, u16)>) -> Servers {
    let mut text = format!(
        "[proxy]\ndatabase = \"postgres\"\n[key]\nbuckets = {BUCKETS}\n[control]\nuser = \"postgres\"\npassword = \"x\"\n"
    );
    for (id, one) in (1..).zip(pg) {
        text += &format!("[[shard]]\nid = {id}\nprimary = \"127.0.0.1:{}\"\n", one.port());
        if let Some((_, port)) = replica.filter(|(shard, _)| *shard == id) {
            text += &format!("replicas = [\"127.0.0.1:{port}\"]\n");
        }
    }
    Servers::new(Config::parse(&text).unwrap())
}

impl Bed {
    /// Shards 1 and 2 own half of the buckets each; others own none.
    pub async fn start(shards: usize) -> Self {
        let starting: Vec<_> = (0..shards)
            .map(|_| {
                tokio::task::spawn_blocking(|| {
                    TempPostgres::start(&[
                        "wal_level = logical",
                        "max_worker_processes = 20",
                        "max_logical_replication_workers = 10",
                        "wal_retrieve_retry_interval = 100ms",
                        "autovacuum = off",
                    ])
                })
            })
            .collect();
        let mut pg = Vec::new();
        for one in starting {
            pg.push(one.await.unwrap());
        }
        let servers = servers(&pg, None);
        for shard in servers.shards() {
            let db = servers.primary(shard, "test").await.unwrap();
            db.run(SCHEMA).await.unwrap();
            shardctl::mover::arm::install(&db).await.unwrap();
        }
        let control = servers.control("test").await.unwrap();
        catalog::install(&control).await.unwrap();
        let last = BUCKETS - 1;
        control
            .run(&format!("INSERT INTO shard_catalog.map (epoch, buckets, ranges) VALUES (1, {BUCKETS}, '[[0,31,1],[32,{last},2]]')"))
            .await
            .unwrap();
        let bed = Self { pg, servers, control };
        bed.fill().await;
        bed
    }

    /// Gives a shard a standby, which is its replica in the configuration.
    pub fn standby_of(&mut self, shard: u16) -> TempPostgres {
        let standby = self.pg[usize::from(shard) - 1].standby();
        self.servers = servers(&self.pg, Some((shard, standby.port())));
        standby
    }

    async fn fill(&self) {
        let one = self.shard(1).await;
        let two = self.shard(2).await;
        for n in 0..TENANTS {
            let tenant = tenant(n);
            let db = if bucket(&tenant) < 32 { &one } else { &two };
            db.execute(
                "INSERT INTO public.accounts (tenant_id, id, note) SELECT $1, n, jsonb_build_object('n', n, 'a', 1.50) FROM generate_series(1, 3) n",
                &[&tenant],
            )
            .await
            .unwrap();
            db.execute(
                "INSERT INTO public.entries (tenant_id, at, id, account, amount) \
                 SELECT $1, CASE WHEN n < 5 THEN timestamptz '2019-05-05' ELSE clock_timestamp() END, gen_random_uuid(), 1 + n % 3, 0 \
                 FROM generate_series(1, 10) n",
                &[&tenant],
            )
            .await
            .unwrap();
        }
    }

    pub async fn shard(&self, n: u16) -> Db {
        self.servers.primary(ShardId(n), "test").await.unwrap()
    }

    /// As an application that knows the shard's address would connect.
    pub async fn direct(&self, n: u16) -> tokio_postgres::Client {
        let url = format!("postgresql://app@127.0.0.1:{}/postgres", self.pg[usize::from(n) - 1].port());
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub async fn plan(&self, scope: &Scope, source: u16, target: u16) -> Job {
        let epoch = i64::try_from(catalog::map(&self.control).await.unwrap().map.epoch()).unwrap();
        Job::create(&self.control, scope, ShardId(source), ShardId(target), epoch, &json!({})).await.unwrap()
    }

    pub async fn load(&self, id: i64) -> Job {
        Job::load(&self.control, id).await.unwrap()
    }

    pub async fn ask(&self, id: i64, wish: Wish) {
        self.load(id).await.set(&self.control, json!({ "wish": wish.name() })).await.unwrap();
    }

    pub async fn run(&self, id: i64, options: Options) -> End {
        let ended = tokio::time::timeout(Duration::from_secs(60), run(&self.servers, id, options)).await;
        match ended {
            Ok(Ok(end)) => end,
            other => panic!("move {id}: {other:?}\n{}", self.story(id).await),
        }
    }

    /// Runs in the background, as the process of another operator.
    pub fn spawn(&self, id: i64, options: Options) -> JoinHandle<anyhow::Result<End>> {
        let servers = self.servers.clone();
        tokio::spawn(async move { run(&servers, id, options).await })
    }

    pub async fn story(&self, id: i64) -> String {
        let notes = Job::notes(&self.control, id, chrono::DateTime::UNIX_EPOCH).await.unwrap();
        let lines: Vec<_> = notes.iter().map(|n| format!("{} {} {}", n.at, n.phase, n.text)).collect();
        format!("{}\n{}", lines.join("\n"), self.load(id).await.detail)
    }

    /// Waits until the move is in `phase`; that it has passed through it unseen is an error.
    pub async fn until(&self, id: i64, phase: Phase) {
        let begun = Instant::now();
        loop {
            let now = self.load(id).await.phase;
            if now == phase {
                return;
            }
            assert!(
                !now.is_over() && begun.elapsed() < Duration::from_secs(60),
                "waited for {phase:?}, and it is {now:?}\n{}",
                self.story(id).await
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Rows by table and whether they belong to `scope`.
    pub async fn rows(&self, shard: u16, scope: &Scope) -> BTreeMap<&'static str, (i64, i64)> {
        let db = self.shard(shard).await;
        let mut rows = BTreeMap::new();
        for table in ["accounts", "entries"] {
            let inside = format!("({})", scope.sql("tenant_id", shard_config::KeyType::Uuid, BUCKETS));
            let sql = format!(
                "SELECT count(*) FILTER (WHERE {inside}), count(*) FILTER (WHERE NOT {inside}) FROM public.{table}"
            );
            let row = db.one(&sql, &[]).await.unwrap();
            rows.insert(table, (row.get(0), row.get(1)));
        }
        rows
    }

    /// Nothing of a move is left on any server.
    pub async fn check_clean(&self) {
        for shard in self.servers.shards() {
            let db = self.servers.primary(shard, "test").await.unwrap();
            let sql = "SELECT concat_ws(', ',
                (SELECT string_agg('slot ' || slot_name, ', ') FROM pg_replication_slots),
                (SELECT string_agg('subscription ' || subname, ', ') FROM pg_subscription),
                (SELECT string_agg('publication ' || pubname, ', ') FROM pg_publication),
                (SELECT string_agg('trigger ' || tgname || ' on ' || tgrelid::regclass::text, ', ') FROM pg_trigger WHERE tgname LIKE 'zzz%'),
                (SELECT string_agg('prepared ' || gid, ', ') FROM pg_prepared_xacts),
                (SELECT string_agg('origin ' || roname, ', ') FROM pg_replication_origin),
                (SELECT string_agg('fence ' || move_id, ', ') FROM shard_catalog.fence),
                (SELECT string_agg('mark ' || id, ', ') FROM shard_catalog.mark),
                (SELECT string_agg('guarded ' || relation::regclass::text, ', ') FROM shard_catalog.guarded))";
            let left: String = db.value(sql, &[]).await.unwrap();
            assert_eq!(left, "", "left on shard {shard}");
        }
        assert_eq!(
            self.control.value::<i64>("SELECT count(*) FROM shard_catalog.motion", &[]).await.unwrap(),
            0
        );
    }

    /// Every row is on the shard that the map names, and every tenant's entries add up to its balances.
    pub async fn check_rows(&self, posted: u64) {
        let map = catalog::map(&self.control).await.unwrap();
        let mut total = 0;
        let mut accounts = 0;
        for shard in self.servers.shards() {
            let db = self.servers.primary(shard, "test").await.unwrap();
            for table in ["accounts", "entries"] {
                let sql = format!(
                    "SELECT DISTINCT tenant_id, uuid_hash_extended(tenant_id, {}) FROM public.{table}",
                    shard_config::HASH_SEED
                );
                for row in db.rows(&sql, &[]).await.unwrap() {
                    let owner = map.owner_of_hash(shard_config::KeyHash::new(row.get(1)));
                    assert_eq!(
                        owner,
                        shard,
                        "{table} of tenant {} is on shard {shard}",
                        row.get::<_, Uuid>(0)
                    );
                }
            }
            let sql = "SELECT coalesce((SELECT sum(balance) FROM public.accounts), 0)::int8, \
                       coalesce((SELECT sum(amount) FROM public.entries), 0)::int8, (SELECT count(*) FROM public.accounts)";
            let row = db.one(sql, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "balances and entries of shard {shard}");
            total += row.get::<_, i64>(0);
            accounts += row.get::<_, i64>(2);
        }
        assert_eq!(accounts, TENANTS as i64 * 3, "no account is lost or doubled");
        assert_eq!(total, posted as i64, "what was acknowledged is there once");
    }
}

/// Clients that post through the proxy until they are stopped.
pub struct Writers {
    stop: Arc<AtomicBool>,
    posted: Arc<AtomicU64>,
    pub longest_ms: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    pub fn start(proxy: &Arc<Proxy>, clients: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let posted = Arc::new(AtomicU64::new(0));
        let longest_ms = Arc::new(AtomicU64::new(0));
        let tasks = (0..clients)
            .map(|client| {
                let (proxy, stop, posted, longest) =
                    (proxy.clone(), stop.clone(), posted.clone(), longest_ms.clone());
                tokio::spawn(async move {
                    let mut n = client * 7919;
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let tenant = tenant(u128::from(n) % TENANTS);
                        let begun = Instant::now();
                        proxy.post(tenant, 1 + (n % 3) as i32).await;
                        posted.fetch_add(1, Ordering::Relaxed);
                        longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                })
            })
            .collect();
        Self { stop, posted, longest_ms, tasks }
    }

    /// How many postings were acknowledged by now.
    pub fn posted(&self) -> u64 {
        self.posted.load(Ordering::Relaxed)
    }

    /// How many postings were acknowledged.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.posted.load(Ordering::Relaxed)
    }
}
