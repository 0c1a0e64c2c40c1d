//! Asks a live PostgreSQL whether the router's proofs hold.
//!
//! `cargo run --release -p shard-proxy --example route_oracle -- postgresql://... SEED COUNT` (a scratch database:
//! schemas `oracle_*` are dropped and made). Random statements that the router binds to some keys are run over all
//! rows and over only the rows of those keys, as if the shard held nothing else. The answers must be equal.

mod generator;

use std::collections::BTreeSet;

use generator::{Generator, Random};
use shard_config::KeyType;
use shard_proxy::catalog::{Catalog, Column, Function, FunctionRoute, Table, TableKind, Volatility};
use shard_proxy::route::plan::{KeyPlace, Route};
use shard_proxy::route::{Literals, RouteContext, Router, SearchPath};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const KEYS: std::ops::RangeInclusive<i64> = 1..=3;
const VIEW: &str = "SELECT a.k, b.x FROM SCHEMA.t a LEFT JOIN SCHEMA.t2 b ON b.k = a.k UNION ALL SELECT t2.k, t2.x FROM SCHEMA.t2";

fn catalog() -> Catalog {
    let mut catalog = Catalog { version: 1, ..Catalog::default() };
    let column = |name: &str, type_oid| Column {
        name: name.to_owned(),
        type_oid,
        not_null: name == "k",
        has_default: false,
        volatile_default: false,
        draws: false,
        draw: None,
        generated: false,
    };
    let sharded = TableKind::Sharded { key_index: 0, key_type: KeyType::Int8 };
    for (name, kind) in [("t", sharded.clone()), ("t2", sharded), ("tv", TableKind::View)] {
        let table = Table {
            schema: "public".to_owned(),
            name: name.to_owned(),
            view_definition: (kind == TableKind::View).then(|| VIEW.replace("SCHEMA", "public")),
            kind,
            columns: vec![column("k", 20), column("x", 23)],
            opaque_trigger: None,
            opaque_policy: None,
            drift: None,
        };
        catalog.tables.insert(("public".to_owned(), name.to_owned()), table);
    }
    for (name, arguments) in [("count", 0), ("count", 1), ("max", 1), ("min", 1), ("rank", 0)] {
        let function = Function {
            volatility: Volatility::Immutable,
            arguments: Some(arguments),
            defaults: 0,
            aggregate: name != "rank",
            route: FunctionRoute::Local,
        };
        catalog.functions.entry(("pg_catalog".to_owned(), name.to_owned())).or_default().push(function);
    }
    catalog
}

/// The key values that a place may stand for; `None` for parameters, which generated statements do not have.
fn keys_of(place: &KeyPlace, literals: &Literals, sql: &str, keys: &mut BTreeSet<i64>) -> Option<()> {
    match place {
        KeyPlace::Literal(n) => {
            let source = std::str::from_utf8(literals.get(usize::from(*n))?.source(sql.as_bytes())).ok()?;
            keys.insert(source.parse().ok()?);
            Some(())
        }
        KeyPlace::OneOf(all) => all.iter().try_for_each(|place| keys_of(place, literals, sql, keys)),
        KeyPlace::Null => Some(()),
        _ => None,
    }
}

fn schema_of(keys: &BTreeSet<i64>) -> String {
    keys.iter().fold("oracle_".to_owned(), |name, key| name + &key.to_string())
}

/// Every subset of the keys has a schema with just their rows.
async fn fill(client: &Client, random: &mut Random) -> Result<(), tokio_postgres::Error> {
    let mut rows = Vec::new();
    for table in ["t", "t2"] {
        for key in KEYS {
            for _ in 0..=random.below(3) {
                rows.push((table, key, ["0", "1", "1", "2", "NULL"][random.below(5)]));
            }
        }
    }
    for subset in 0..8u32 {
        let keys: BTreeSet<i64> = KEYS.filter(|key| subset >> (key - 1) & 1 == 1).collect();
        let schema = schema_of(&keys);
        let mut script = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema};");
        for table in ["t", "t2"] {
            script += &format!("CREATE TABLE {schema}.{table} (k int8 NOT NULL, x int4);");
        }
        for (table, key, x) in rows.iter().filter(|(_, key, _)| keys.contains(key)) {
            script += &format!("INSERT INTO {schema}.{table} VALUES ({key}, {x});");
        }
        script += &format!("CREATE VIEW {schema}.tv AS {};", VIEW.replace("SCHEMA", &schema));
        client.batch_execute(&script).await?;
    }
    Ok(())
}

/// The rows a statement returns, and those that it leaves for `keys`, sorted; or its SQLSTATE.
async fn answer(client: &Client, schema: &str, sql: &str, keys: &BTreeSet<i64>) -> Vec<String> {
    let list = keys.iter().map(i64::to_string).chain(["0".to_owned()]).collect::<Vec<_>>().join(", ");
    let after =
        format!("SELECT 't', * FROM t WHERE k IN ({list}); SELECT 't2', * FROM t2 WHERE k IN ({list})");
    let setup = format!("BEGIN; SET LOCAL search_path = {schema}; SET LOCAL statement_timeout = '3s'");
    let mut rows = Vec::new();
    for script in [setup, sql.to_owned(), after] {
        match client.simple_query(&script).await {
            Ok(messages) => rows.extend(messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect::<Vec<_>>().join(","))
                }
                _ => None,
            })),
            Err(error) => {
                rows = vec![error.code().map_or("error", |code| code.code()).to_owned()];
                break;
            }
        }
    }
    let _ = client.batch_execute("ROLLBACK").await;
    rows.sort();
    rows
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, seed, count] = arguments.as_slice() else {
        anyhow::bail!("usage: route_oracle URL SEED COUNT")
    };
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let mut random = Random::new(seed.parse()?);
    fill(&client, &mut random).await?;
    let catalog = catalog();
    let search_path = SearchPath::parse("public", "oracle");
    let context = RouteContext {
        catalog: &catalog,
        search_path: &search_path,
        user: "oracle",
        standard_conforming_strings: true,
        client_encoding_is_utf8: true,
        session_has_temp: false,
    };
    let all: BTreeSet<i64> = KEYS.collect();
    let mut router = Router::new(64);
    let mut generator = Generator::new(random);
    let (mut equal, mut different, mut refused, mut failed) = (0u32, 0u32, 0u32, 0u32);
    let count: u32 = count.parse()?;
    while equal + different < count {
        let sql = generator.statement();
        let routed = router.simple(&context, sql.as_bytes());
        let Some(statement) = routed.statements.first() else { continue };
        let Route::Key(places) = &statement.plan.route else {
            refused += u32::from(matches!(statement.plan.route, Route::Refuse(_)));
            continue;
        };
        let mut keys = BTreeSet::new();
        if places.iter().any(|key| keys_of(&key.place, &statement.literals, &sql, &mut keys).is_none()) {
            continue;
        }
        keys.retain(|key| KEYS.contains(key));
        let whole = answer(&client, &schema_of(&all), &sql, &keys).await;
        let part = answer(&client, &schema_of(&keys), &sql, &keys).await;
        failed += u32::from(whole.len() == 1 && whole[0].len() == 5);
        if whole == part {
            equal += 1;
        } else {
            different += 1;
            println!("{sql}\n  bound to {keys:?}\n  all rows:   {whole:?}\n  their rows: {part:?}");
        }
    }
    println!("equal {equal}, different {different}, errors on both sides {failed}, refused {refused}");
    anyhow::ensure!(different == 0, "the router's proof does not hold");
    Ok(())
}
