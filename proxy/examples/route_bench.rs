//! Nanoseconds a statement: `cargo run --release -p shard-proxy --example route_bench`.

use std::hint::black_box;
use std::time::Instant;

use shard_config::{KeyType, ShardId, ShardMap};
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

/// Best of several rounds, as other programs share the machine.
fn measure(name: &str, mut run: impl FnMut(u64)) {
    const TURNS: u64 = 100_000;
    let best = (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..TURNS).for_each(&mut run);
            start.elapsed().as_nanos() as f64 / TURNS as f64
        })
        .fold(f64::MAX, f64::min);
    println!("{best:8.0} ns  {name}");
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
            black_box(resolve(
                &statement.plan,
                &statement.literals,
                text,
                &NoParams { client_encoding_is_utf8: true },
                &map,
            ));
        }
    };
    let texts: Vec<String> =
        (0..1024).map(|i| format!("SELECT abalance FROM pgbench_accounts WHERE aid = {};", i * 97)).collect();
    measure("simple: pgbench -S, other constant each time", |i| {
        simple(&mut router, &texts[i as usize % 1024])
    });
    let texts: Vec<String> = (0..1024)
        .map(|i| format!("UPDATE accounts SET account_id = '550e8400-e29b-41d4-a716-4466554{i:05}' WHERE tenant_id = '550e8400-e29b-41d4-a716-4466554{i:05}' AND owner_id IS NOT NULL"))
        .collect();
    measure("simple: UPDATE with two uuid constants", |i| simple(&mut router, &texts[i as usize % 1024]));
    measure("simple: BEGIN", |_| simple(&mut router, "BEGIN"));
    let join = "SELECT a.account_id, p.owner_id FROM accounts a LEFT JOIN payments p ON p.tenant_id = a.tenant_id AND p.account_id = a.account_id WHERE a.tenant_id = $1 AND a.account_id = $2 ORDER BY 1 LIMIT 10";
    measure("parse: a join of 200 bytes seen before", |_| {
        black_box(router.parse(&context, black_box(join.as_bytes())).is_ok());
    });
    let prepared = router.parse(&context, join.as_bytes()).expect("routable");
    let bound = Bound([7; 16]);
    measure("resolve: a prepared statement, binary uuid", |_| {
        black_box(resolve(&prepared.plan, &prepared.literals, join.as_bytes(), black_box(&bound), &map));
    });
    let mut cold = Router::new(8);
    let mut version = catalog.clone();
    measure("analysis of the join, nothing cached", |i| {
        version.version = i + 2;
        let context = RouteContext { catalog: &version, ..context };
        black_box(cold.parse(&context, join.as_bytes()).is_ok());
    });
}
