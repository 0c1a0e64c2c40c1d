//! What routing costs a statement: `cargo run --release -p shard-proxy --example route_bench [-- --json]`.
//!
//! Each figure is the CPU time of what a session calls of `route` for one statement: hot, called again and again, and
//! with the processor's caches taken away before each call, which is worse than it gets beside other work.
//! `cargo compare -- proxy` runs this in its own profile and holds it against the bars.

use std::hint::black_box;
use std::time::Instant;

use serde_json::json;
use shard_config::{KeyType, ShardId, ShardMap, hash_of_uuid};
use shard_proxy::catalog::{Catalog, Column, Table, TableKind};
use shard_proxy::route::{NoParams, ParamValue, Params, RouteContext, Router, SearchPath, resolve};

fn column(name: &str, type_oid: u32) -> Column {
    Column {
        name: name.to_owned(),
        type_oid,
        not_null: true,
        has_default: false,
        volatile_default: false,
        draws: false,
        draw: None,
        generated: false,
    }
}

fn catalog() -> Catalog {
    let mut catalog = Catalog { version: 1, ..Catalog::default() };
    let mut add = |name: &str, key_type: KeyType, columns: Vec<Column>| {
        let table = Table {
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind: TableKind::Sharded { key_index: 0, key_type },
            columns,
            view_definition: None,
            opaque_trigger: None,
            opaque_policy: None,
            drift: None,
        };
        catalog.tables.insert(("public".to_owned(), name.to_owned()), table);
    };
    add("pgbench_accounts", KeyType::Int4, ["aid", "bid", "abalance"].map(|n| column(n, 23)).to_vec());
    let accounts = ["tenant_id", "account_id", "owner_id"].map(|n| column(n, 2950)).to_vec();
    add("accounts", KeyType::Uuid, accounts.clone());
    add("payments", KeyType::Uuid, accounts);
    catalog
}

struct Bound([u8; 16]);

impl Params for Bound {
    fn get(&self, _: u16) -> ParamValue<'_> {
        ParamValue::Binary(&self.0)
    }

    fn type_oid(&self, _: u16) -> u32 {
        2950
    }

    fn client_encoding_is_utf8(&self) -> bool {
        true
    }
}

/// Larger than the caches that a core has for itself.
const SWEEP: usize = 8 << 20;

struct Measured {
    name: &'static str,
    hot_ns: f64,
    cold_ns: f64,
}

/// Hot: the best of several rounds, as other programs share the machine. Cold: the median of single calls.
fn measure(name: &'static str, mut run: impl FnMut(u64)) -> Measured {
    const TURNS: u64 = 100_000;
    let hot_ns = (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..TURNS).for_each(&mut run);
            start.elapsed().as_nanos() as f64 / TURNS as f64
        })
        .fold(f64::MAX, f64::min);
    let mut memory = vec![1u8; SWEEP];
    let mut single: Vec<u128> = (0..1001)
        .map(|turn| {
            for line in memory.chunks_exact_mut(64) {
                line[0] = line[0].wrapping_add(1);
            }
            black_box(&mut memory);
            let start = Instant::now();
            run(turn);
            start.elapsed().as_nanos()
        })
        .collect();
    single.sort_unstable();
    Measured { name, hot_ns, cold_ns: single[single.len() / 2] as f64 }
}

/// Spread over all buckets, as random UUIDs are.
fn tenant(n: u64) -> u128 {
    u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// Four shards each: a bucket for each; 4,096 of which no two neighbours are together; these and as many tenants, none of
/// them a measured one, that live elsewhere.
fn maps() -> [(&'static str, ShardMap); 3] {
    let shards = [1, 2, 3, 4].map(ShardId);
    let ranges: Vec<_> = (0..4096u16).map(|n| (n, n, shards[usize::from(n) % 4])).collect();
    let scattered = ShardMap::from_ranges(1, 4096, &ranges).expect("a map");
    let elsewhere: Vec<_> = (0..4096)
        .map(|n| (hash_of_uuid(&tenant(n + 1_000_000).to_be_bytes()), shards[n as usize % 4]))
        .collect();
    let pinned = scattered.clone().with_overrides(&elsewhere).expect("overrides");
    [
        ("prepared, map of 4 buckets", ShardMap::even(&shards, 4)),
        ("prepared, map of 4096 ranges", scattered),
        ("prepared, map of 4096 ranges and 4096 tenants", pinned),
    ]
}

fn main() {
    let catalog = catalog();
    let search_path = SearchPath::parse("\"$user\", public", "app");
    let context = RouteContext {
        catalog: &catalog,
        search_path: &search_path,
        user: "app",
        standard_conforming_strings: true,
        client_encoding_is_utf8: true,
        session_has_temp: false,
    };
    let map = ShardMap::even(&[ShardId(1), ShardId(2), ShardId(3), ShardId(4)], 4096);
    let mut router = Router::new(4096);
    let simple = |router: &mut Router, sql: &str| {
        let routed = router.simple(&context, sql.as_bytes());
        for statement in &routed.statements {
            let text = &sql.as_bytes()[statement.text.clone()];
            let params = NoParams { client_encoding_is_utf8: true };
            let _ = black_box(resolve(&statement.plan, &statement.literals, text, &params, &map));
        }
    };
    let mut all = Vec::new();
    let select: Vec<String> =
        (0..1024).map(|i| format!("SELECT abalance FROM pgbench_accounts WHERE aid = {};", i * 97)).collect();
    all.push(measure("simple", |i| simple(&mut router, &select[i as usize % 1024])));
    let update: Vec<String> = (0..1024)
        .map(|i| format!("UPDATE accounts SET account_id = '550e8400-e29b-41d4-a716-4466554{i:05}' WHERE tenant_id = '550e8400-e29b-41d4-a716-4466554{i:05}' AND owner_id IS NOT NULL"))
        .collect();
    all.push(measure("simple, two uuid constants", |i| simple(&mut router, &update[i as usize % 1024])));
    all.push(measure("simple, BEGIN", |_| simple(&mut router, "BEGIN")));
    let join = "SELECT a.account_id, p.owner_id FROM accounts a LEFT JOIN payments p ON p.tenant_id = a.tenant_id AND p.account_id = a.account_id WHERE a.tenant_id = $1 AND a.account_id = $2 ORDER BY 1 LIMIT 10";
    let prepared = router.parse(&context, join.as_bytes()).expect("routable");
    let bound = Bound([7; 16]);
    all.push(measure("extended", |_| {
        let _ = black_box(router.parse(&context, black_box(join.as_bytes())));
        let _ =
            black_box(resolve(&prepared.plan, &prepared.literals, join.as_bytes(), black_box(&bound), &map));
    }));
    all.push(measure("prepared", |_| {
        let _ =
            black_box(resolve(&prepared.plan, &prepared.literals, join.as_bytes(), black_box(&bound), &map));
    }));
    // The same statement for a thousand tenants, by maps of more and more parts: what a map costs a query.
    let tenants: Vec<Bound> = (0..1024u64).map(|n| Bound(tenant(n).to_be_bytes())).collect();
    for (name, map) in maps() {
        all.push(measure(name, |i| {
            let tenant = black_box(&tenants[i as usize % tenants.len()]);
            let _ = black_box(resolve(&prepared.plan, &prepared.literals, join.as_bytes(), tenant, &map));
        }));
    }
    let mut cold = Router::new(8);
    let mut version = catalog.clone();
    all.push(measure("unseen", |i| {
        version.version = i + 2;
        let context = RouteContext { catalog: &version, ..context };
        let _ = black_box(cold.parse(&context, join.as_bytes()));
    }));
    if std::env::args().any(|argument| argument == "--json") {
        let figures: Vec<_> = all
            .iter()
            .map(|m| json!({"name": m.name, "hot_ns": m.hot_ns.round(), "cold_ns": m.cold_ns}))
            .collect();
        println!("{}", json!(figures));
        return;
    }
    println!("{:>8} {:>8}", "hot ns", "cold ns");
    for m in all {
        println!("{:8.0} {:8.0}  {}", m.hot_ns, m.cold_ns, m.name);
    }
}
