//! The suite's own schema and rows: the same statements to both sides.

use anyhow::{Result, bail};
use std::fmt::Write as _;

use crate::answer::{Event, Types};
use crate::catalog::{TENANTS, key};
use crate::client::{Address, Client};
use crate::random::Random;
use crate::tpc;

pub(crate) const SCHEMA: &str = "oracle";
/// Their schemas are named in the statements.
const OTHER_SCHEMAS: [&str; 3] = ["tpch", "tpcc", "tpcb"];
const DEFINITIONS: [&str; 2] = [include_str!("../schema.sql"), include_str!("../tpc.sql")];

/// Parents before children.
pub(crate) const TABLES: [&str; 11] = [
    "countries",
    "products",
    "settings",
    "numbers",
    "customers",
    "orders",
    "items",
    "events",
    "typed",
    "filled",
    "\"Odd Names\"",
];
/// Tables that have the same rows on every shard.
pub(crate) const REFERENCE: [&str; 8] = [
    "countries",
    "products",
    "tpch.region",
    "tpch.nation",
    "tpch.part",
    "tpch.supplier",
    "tpch.partsupp",
    "tpcc.item",
];
/// Customers of each tenant: skewed, and some have none.
const CUSTOMERS: [u32; TENANTS] = [18, 9, 1, 3, 6, 2, 12, 4, 1, 5, 3, 8, 2, 7, 0, 0];

pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("search_path", "oracle, public"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("client_encoding", "UTF8"),
];

pub(crate) fn connect(address: &Address) -> Result<Client> {
    Client::connect(address, &SETTINGS)
}

/// Runs what must work.
pub(crate) fn run(client: &mut Client, sql: &str, copy: Option<&str>) -> Result<Vec<Event>> {
    let events = client.simple(sql, copy)?;
    for event in &events {
        if let Event::Error(error) = event {
            let short: String = sql.chars().take(300).collect();
            bail!("{short}\n{error:?}");
        }
    }
    Ok(events)
}

pub(crate) fn create(client: &mut Client) -> Result<()> {
    for schema in OTHER_SCHEMAS.iter().chain([&SCHEMA]) {
        run(client, &format!("DROP SCHEMA IF EXISTS {schema} CASCADE"), None)?;
        run(client, &format!("CREATE SCHEMA {schema}"), None)?;
    }
    for statement in DEFINITIONS.iter().flat_map(|text| text.split(";\n")) {
        if statement.lines().any(|line| !line.trim().is_empty() && !line.starts_with("--")) {
            run(client, statement, None)?;
        }
    }
    Ok(())
}

/// The rows of a table as COPY reads them.
pub(crate) struct Rows {
    pub table: &'static str,
    pub columns: &'static str,
    pub text: String,
}

/// Gives these tables, and those that refer to them, the rows they began with.
pub(crate) fn restore(client: &mut Client, rows: &[Rows], tables: &[String]) -> Result<()> {
    let mut wanted: Vec<&str> = tables.iter().map(String::as_str).collect();
    if wanted.contains(&"orders") || wanted.contains(&"items") {
        wanted.extend(["orders", "items"]);
    }
    run(client, "BEGIN", None)?;
    for table in TABLES.iter().chain(&tpc::TABLES).rev().filter(|table| wanted.contains(table)) {
        run(client, &format!("DELETE FROM {table}"), None)?;
    }
    for rows in rows.iter().filter(|rows| wanted.contains(&rows.table)) {
        let columns = rows.columns;
        run(client, &format!("COPY {} {columns} FROM STDIN", rows.table), Some(&rows.text))?;
    }
    if wanted.contains(&"nothing") {
        run(client, "DELETE FROM nothing", None)?;
    }
    run(client, "COMMIT", None)?;
    Ok(())
}

/// Names of the user-defined types as a client of this server finds them.
pub(crate) fn types(client: &mut Client) -> Result<Types> {
    let sql = "SELECT t.oid, n.nspname || '.' || t.typname FROM pg_catalog.pg_type t
        JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.oid >= 16384";
    let mut types = Types::new();
    for event in run(client, sql, None)? {
        let Event::Row(values) = event else { continue };
        let text = |at: usize| {
            values
                .get(at)
                .and_then(|v| v.as_deref())
                .map(|v| String::from_utf8_lossy(v).into_owned())
                .unwrap_or_default()
        };
        types.insert(text(0).parse()?, text(1));
    }
    Ok(types)
}

/// Every row of the suite. The same ones at every run: differences must repeat.
pub(crate) fn rows() -> Vec<Rows> {
    let mut random = Random::new(20_261_125);
    let mut all = fixed();
    let mut tables: [String; 6] = Default::default();
    for tenant in 1..=TENANTS {
        tenant_rows(tenant, &mut random, &mut tables);
    }
    let [customers, orders, items, events, typed, filled] = tables;
    let names = ["customers", "orders", "items", "events", "typed", "filled"];
    for (table, text) in names.into_iter().zip([customers, orders, items, events, typed, filled]) {
        let columns = if table == "filled" { "(tenant_id, id, a, b)" } else { "" };
        all.push(Rows { table, columns, text });
    }
    all.extend(tpc::rows());
    let mut odd = String::new();
    for tenant in 1..=6 {
        let k = key(tenant);
        let _ = writeln!(odd, "{k}\t{tenant}\tword {}\tü{}\t{}", tenant % 3, tenant % 2, tenant * 10);
    }
    all.push(Rows { table: "\"Odd Names\"", columns: "", text: odd });
    all
}

fn fixed() -> Vec<Rows> {
    let countries = "DE\tGermany\tEurope\t0.19\nFR\tFrance\tEurope\t0.20\nUS\tUnited States\tAmericas\t\\N\nBR\tBrazil\tAmericas\t0.17\nJP\tJapan\tAsia\t0.10\nIN\tIndia\tAsia\t0.18\nKE\tKenya\tAfrica\t0.16\nXX\tNowhere\t\\N\t\\N\n";
    let mut products = String::new();
    for (id, name, category) in [
        (1, "anvil", "tools"),
        (2, "bolt", "tools"),
        (3, "candle", "home"),
        (4, "desk", "home"),
        (5, "easel", "art"),
        (6, "file", "tools"),
        (7, "glue", "art"),
        (8, "hammer", "tools"),
        (9, "ink", "art"),
        (10, "jar", "home"),
        (11, "Kettle", "home"),
        (12, "ladder", "\\N"),
    ] {
        let attributes = if id % 4 == 0 {
            "\\N".to_owned()
        } else {
            format!("{{\"weight\": {}, \"colors\": [\"c{}\", \"c{}\"]}}", id * 3, id % 3, id % 2)
        };
        let _ = writeln!(products, "{id}\t{name}\t{category}\t{}.50\t{attributes}", id * id);
    }
    let settings = "alpha\tone\t1\nbeta\ttwo\t2\ngamma\t\\N\t3\ndelta\tfour\t\\N\n";
    let numbers = "1\tone\n2\ttwo\n3\tthree\n4\tfour\n5\tfive\n6\tsix\n7\tseven\n8\t\\N\n9\tnine\n10\tten\n";
    vec![
        Rows { table: "countries", columns: "", text: countries.to_owned() },
        Rows { table: "products", columns: "", text: products },
        Rows { table: "settings", columns: "", text: settings.to_owned() },
        Rows { table: "numbers", columns: "", text: numbers.to_owned() },
    ]
}

fn tenant_rows(tenant: usize, random: &mut Random, tables: &mut [String; 6]) {
    const NAMES: [&str; 12] =
        ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "bob", "Ähren", "de Luca", "O'Hara", "Zoë"];
    const STATUS: [&str; 4] = ["new", "paid", "sent", "closed"];
    const COUNTRIES: [&str; 8] = ["DE", "FR", "US", "BR", "JP", "IN", "XX", "\\N"];
    let k = key(tenant);
    let [customers, orders, items, events, typed, filled] = tables;
    let mut order = 0;
    for id in 1..=CUSTOMERS[tenant - 1] {
        let name = NAMES[random.below(NAMES.len())];
        let code = or_null(
            format!("{}{}", ["a", "B", "b", "Z", "_", "é"][random.below(6)], random.below(5)),
            random,
            15,
        );
        let email = or_null(
            format!(
                "{}@example.{}",
                name.to_lowercase().replace(['\'', ' '], ""),
                ["com", "org"][random.below(2)]
            ),
            random,
            20,
        );
        let balance =
            or_null(format!("{}.{:02}", random.below(2000) as i64 - 500, random.below(4) * 25), random, 10);
        let score = or_null(format!("{}", random.below(40) as f64 / 4.0), random, 15);
        let active = or_null(["t", "f"][random.below(2)].to_owned(), random, 10);
        let born = or_null(
            format!("19{:02}-{:02}-{:02}", 50 + random.below(50), 1 + random.below(12), 1 + random.below(28)),
            random,
            20,
        );
        let created = format!(
            "202{}-{:02}-{:02} {:02}:30:00+00",
            4 + random.below(3),
            1 + random.below(12),
            1 + random.below(28),
            random.below(24)
        );
        let tags = or_null(
            ["{}", "{vip}", "{vip,new}", "{old}", "{new,\"two words\",NULL}"][random.below(5)].to_owned(),
            random,
            20,
        );
        let doc = or_null(
            format!(
                "{{\"level\": {}, \"city\": \"{}\", \"flags\": [{}, true], \"nested\": {{\"x\": {}}}}}",
                random.below(4),
                ["Rome", "Oslo", "Lima"][random.below(3)],
                random.below(3),
                random.below(9)
            ),
            random,
            20,
        );
        let photo =
            or_null(format!("\\\\x{:02x}00ff{:02x}", random.below(256), random.below(256)), random, 50);
        let _ = writeln!(
            customers,
            "{k}\t{id}\t{name}\t{code}\t{email}\t{balance}\t{score}\t{active}\t{born}\t{created}\t{tags}\t{doc}\t{photo}"
        );
        for _ in 0..random.below(4) {
            order += 1;
            let customer = or_null(id.to_string(), random, 8);
            let total = or_null(format!("{}.{:02}", random.below(300), random.below(100)), random, 10);
            let placed = format!(
                "2026-{:02}-{:02} {:02}:{:02}:00",
                1 + random.below(9),
                1 + random.below(28),
                random.below(24),
                random.below(60)
            );
            let (status, country) = (STATUS[random.below(4)], COUNTRIES[random.below(8)]);
            let note = or_null(
                ["urgent", "call back, please", "", "tab\\there", "back\\\\slash", "ürgent"][random.below(6)]
                    .to_owned(),
                random,
                40,
            );
            let _ =
                writeln!(orders, "{k}\t{order}\t{customer}\t{status}\t{total}\t{placed}\t{country}\t{note}");
            for line in 1..=random.below(4) {
                let product = 1 + random.below(12);
                let discount = or_null(format!("0.{:02}", random.below(50)), random, 50);
                let _ = writeln!(
                    items,
                    "{k}\t{order}\t{line}\t{product}\t{}\t{}.{:02}\t{discount}",
                    1 + random.below(9),
                    1 + random.below(90),
                    random.below(100)
                );
            }
        }
        for _ in 0..random.below(3) {
            let year = 2024 + random.below(4);
            let at = format!(
                "{year}-{:02}-{:02} 0{}:00:00+00",
                1 + random.below(12),
                1 + random.below(28),
                random.below(10)
            );
            let kind = or_null(["login", "logout", "click"][random.below(3)].to_owned(), random, 10);
            let line = format!("{k}\t{at}\t{kind}\t{}\t{{\"n\": {}}}\n", random.below(20), random.below(5));
            events.push_str(&line);
            // Tables without a key have rows that are twice there.
            if random.percent(15) {
                events.push_str(&line);
            }
        }
        if id <= 3 {
            let mood = ["sad", "ok", "happy", "\\N"][random.below(4)];
            let n = random.below(6);
            let _ = writeln!(
                typed,
                "{k}\t{id}\t{mood}\t{}\t({n},\"p {n}\")\t[{n},{})\t{n} days 0{n}:30:00\t0{n}:15:00\t0{n}:15:00+02\t10.0.{n}.1/24\t08:00:2b:01:02:0{n}\t({n},{id})\t{}\t01{n_b}1\t1{n_b}1\t{n}.50\t'word{n}' 'fat':{id}\t{{{n},{id},NULL}}\t{{ok,sad}}\t{n}\t{n}.5\t{{\"a\":{n}}}\tx\tname{n}",
                n + 1,
                n + 3,
                key(n),
                n_b = n % 2
            );
            let a = if id == 3 { "\\N".to_owned() } else { (id * 5).to_string() };
            let _ = writeln!(filled, "{k}\t{id}\t{a}\tb{n}");
        }
    }
}

fn or_null(value: String, random: &mut Random, chance: usize) -> String {
    if random.percent(chance) { "\\N".to_owned() } else { value }
}
