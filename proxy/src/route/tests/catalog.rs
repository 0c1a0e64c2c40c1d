//! The schema that the tests route against.

use shard_config::KeyType;

use crate::catalog::{Catalog, Column, Declared, Function, FunctionRoute, Table, TableKind, Volatility};

/// `name:type` a column; types by the short names of `oid`.
fn columns(list: &str) -> Vec<Column> {
    list.split_whitespace()
        .map(|item| {
            let (name, kind) = item.split_once(':').expect("name:type");
            let volatile = kind.ends_with('!');
            Column {
                name: name.replace('~', " "),
                type_oid: oid(kind.trim_end_matches('!')),
                not_null: true,
                has_default: volatile,
                volatile_default: volatile,
                draws: false,
                draw: None,
                generated: false,
            }
        })
        .collect()
}

fn oid(kind: &str) -> u32 {
    match kind {
        "uuid" => 2950,
        "int8" => 20,
        "int4" => 23,
        "text" => 25,
        "char" => 1042,
        "varchar" => 1043,
        "ts" => 1184,
        "jsonb" => 3802,
        "numeric" => 1700,
        other => panic!("type {other}"),
    }
}

fn table(name: &str, kind: TableKind, list: &str) -> Table {
    let (schema, name) = name.split_once('.').expect("schema.name");
    Table {
        schema: schema.replace('~', " "),
        name: name.replace('~', " "),
        kind,
        columns: columns(list),
        view_definition: None,
        opaque_trigger: None,
        opaque_policy: None,
        drift: None,
    }
}

fn by(key_type: KeyType) -> TableKind {
    TableKind::Sharded { key_index: 0, key_type }
}

fn view(name: &str, list: &str, definition: &str) -> Table {
    Table { view_definition: Some(definition.to_owned()), ..table(name, TableKind::View, list) }
}

pub(crate) fn test_catalog() -> Catalog {
    let mut catalog = Catalog {
        version: 7,
        key_column: Some(("tenant_id".to_owned(), KeyType::Uuid)),
        ..Catalog::default()
    };
    let tables = [
        table(
            "public.accounts",
            by(KeyType::Uuid),
            "tenant_id:uuid account_id:uuid account_number:text currency:text type:text status:text posted_minor:int8 version:int8",
        ),
        table(
            "public.payments",
            by(KeyType::Uuid),
            "tenant_id:uuid payment_id:uuid created_at:ts debit_account_id:uuid credit_account_id:uuid amount_minor:int8 currency:text status:text",
        ),
        table(
            "public.entries",
            by(KeyType::Uuid),
            "tenant_id:uuid payment_id:uuid created_at:ts debit_account_id:uuid credit_account_id:uuid amount_minor:int8",
        ),
        view(
            "public.account_entries",
            "tenant_id:uuid account_id:uuid payment_id:uuid amount_minor:int8",
            "SELECT entries.tenant_id, entries.debit_account_id AS account_id, entries.payment_id, - entries.amount_minor AS amount_minor FROM public.entries UNION ALL SELECT entries.tenant_id, entries.credit_account_id, entries.payment_id, entries.amount_minor FROM public.entries;",
        ),
        view(
            "public.tenant_totals",
            "tenant_id:uuid total:numeric",
            "SELECT payments.tenant_id, sum(payments.amount_minor) AS total FROM public.payments GROUP BY payments.tenant_id;",
        ),
        view(
            "public.latest_payment",
            "tenant_id:uuid payment_id:uuid",
            "SELECT payments.tenant_id, payments.payment_id FROM public.payments ORDER BY payments.created_at DESC LIMIT 1;",
        ),
        view(
            "public.rates",
            "code:text name:text",
            "SELECT currencies.code, currencies.name FROM public.currencies;",
        ),
        view("public.audited", "n:int8", "SELECT public.audit_all() AS n;"),
        table(
            "public.customer",
            by(KeyType::Uuid),
            "tenant_id:uuid id:int8 name:text email:text manager_id:int8",
        ),
        table(
            "public.orders",
            by(KeyType::Uuid),
            "tenant_id:uuid id:int8 customer_id:int8 status:text total:numeric version:int4",
        ),
        table(
            "public.order_item",
            by(KeyType::Uuid),
            "tenant_id:uuid id:int8 order_id:int8 product_id:int8 quantity:int4",
        ),
        table("public.product", by(KeyType::Uuid), "tenant_id:uuid id:int8 name:text price:numeric"),
        table("public.currencies", TableKind::Reference, "code:text exponent:int4 name:text"),
        table("public.holidays", TableKind::Reference, "id:int8! day:ts name:text"),
        table("public.settings", TableKind::Plain, "name:text value:text"),
        table("public.relay_leases", TableKind::Plain, "shard_id:int4 owner:text epoch:int8 expires_at:ts"),
        table("public.pgbench_accounts", by(KeyType::Int4), "aid:int4 bid:int4 abalance:int4 filler:char"),
        table("public.pgbench_branches", TableKind::Reference, "bid:int4 bbalance:int4 filler:char"),
        table("public.t", by(KeyType::Int8), "k:int8 x:int4 v:text"),
        table("public.t2", by(KeyType::Int8), "k:int8 x:int4 v:text"),
        table("public.t4", by(KeyType::Int4), "k:int4 x:int4 f:numeric"),
        table("public.docs", by(KeyType::Text), "k:text body:text code:varchar padded:char"),
        table("public.padded", by(KeyType::Text), "k:char body:text"),
        table("Odd~Schema.Odd~Table", by(KeyType::Uuid), "Tenant~ID:uuid Value:text"),
        table("app.accounts_of_app", by(KeyType::Uuid), "tenant_id:uuid id:int8"),
        table("other.settings", by(KeyType::Uuid), "tenant_id:uuid value:text"),
    ];
    for table in tables {
        catalog.tables.insert((table.schema.clone(), table.name.clone()), table);
    }
    let mut drifted = table("public.drifted", by(KeyType::Uuid), "tenant_id:uuid x:int4");
    drifted.drift = Some("shard 3 has no column x".to_owned());
    let mut triggered = table("public.triggered", by(KeyType::Uuid), "tenant_id:uuid x:int4");
    triggered.opaque_trigger = Some("public.write_audit".to_owned());
    let mut generated = table("public.computed", by(KeyType::Uuid), "sum:int8 tenant_id:uuid x:int4");
    generated.kind = TableKind::Sharded { key_index: 1, key_type: KeyType::Uuid };
    generated.columns[0].generated = true;
    let mut guarded = table("public.guarded", by(KeyType::Uuid), "tenant_id:uuid x:int4");
    guarded.opaque_policy = Some("policy p".to_owned());
    for table in [drifted, triggered, generated, guarded] {
        catalog.tables.insert((table.schema.clone(), table.name.clone()), table);
    }
    catalog.declared.insert(("public".to_owned(), "countries".to_owned()), Declared::Reference);
    catalog.declared.insert(
        ("public".to_owned(), "by_region".to_owned()),
        Declared::Sharded { column: "region".to_owned(), key_type: KeyType::Text },
    );
    let entries = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
    catalog
        .unique_by_construction
        .insert(("public".to_owned(), "vouched".to_owned()), entries(&["id", "code, day", "by_name"]));
    catalog.unique_by_construction.insert(("public".to_owned(), "orders".to_owned()), entries(&["id"]));
    functions(&mut catalog);
    catalog
}

/// The tables that the catalogue of tests/oracle is about, for fuzzing; types as far as routing tells them apart.
#[cfg(any(test, fuzzing))]
pub(crate) fn oracle_tables(catalog: &mut Catalog) {
    let texts = [
        include_str!("../../../../tests/oracle/schema.sql"),
        include_str!("../../../../tests/oracle/tpc.sql"),
    ];
    for statement in texts.iter().flat_map(|text| text.split(";\n")) {
        let statement =
            statement.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join(" ");
        let Some((name, body)) =
            statement.trim().strip_prefix("CREATE TABLE ").and_then(|rest| rest.split_once(" ("))
        else {
            continue;
        };
        // Partitions, and a name in quotes.
        if name.contains(' ') {
            continue;
        }
        let name = if name.contains('.') { name.to_owned() } else { format!("oracle.{name}") };
        let mut list = Vec::new();
        for part in body.split(", ") {
            let mut words = part.split_whitespace();
            // Not PRIMARY KEY (...), and not the inside of numeric(12, 2).
            let column = words.next().filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
            let (Some(column), Some(kind)) = (column, words.next()) else { continue };
            let known = match kind.split('(').next().unwrap_or_default() {
                "int" => "int4",
                "bigint" => "int8",
                "timestamptz" => "ts",
                kind @ ("uuid" | "jsonb" | "numeric" | "char" | "varchar") => kind,
                _ => "text",
            };
            list.push(format!("{column}:{known}"));
        }
        let kind = match list.first() {
            Some(first) if first == "tenant_id:uuid" => by(KeyType::Uuid),
            _ if name.starts_with("oracle.settings") || name.starts_with("oracle.numbers") => {
                TableKind::Plain
            }
            _ => TableKind::Reference,
        };
        let table = table(&name, kind, &list.join(" "));
        catalog.tables.insert((table.schema.clone(), table.name.clone()), table);
    }
    assert!(catalog.tables.contains_key(&("tpch".to_owned(), "lineitem".to_owned())));
    assert!(catalog.tables.contains_key(&("oracle".to_owned(), "customers".to_owned())));
}

/// `prokind` 'a' of PostgreSQL 15, without the ordered-set ones.
fn is_aggregate(name: &str) -> bool {
    let plain = [
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "stddev",
        "variance",
        "var_pop",
        "var_samp",
        "stddev_pop",
        "stddev_samp",
        "bool_and",
        "bool_or",
        "every",
        "bit_and",
        "bit_or",
        "bit_xor",
        "string_agg",
        "array_agg",
        "json_agg",
        "jsonb_agg",
        "json_object_agg",
        "jsonb_object_agg",
        "xmlagg",
        "range_agg",
        "range_intersect_agg",
        "corr",
        "mode",
        "percentile_cont",
        "percentile_disc",
    ];
    plain.contains(&name)
}

/// `functions.txt` is `pg_proc` of PostgreSQL 15 without the functions that only the server calls:
/// name, volatility, number of arguments (`*`: variadic), number of defaults.
fn functions(catalog: &mut Catalog) {
    let mut add = |schema: &str, name: &str, volatility, arguments, defaults, route| {
        let list = catalog.functions.entry((schema.to_owned(), name.to_owned())).or_default();
        let aggregate = schema == "pg_catalog" && is_aggregate(name);
        list.push(Function { volatility, arguments, defaults, aggregate, route });
    };
    for line in include_str!("functions.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let volatility = match fields[1] {
            "i" => Volatility::Immutable,
            "s" => Volatility::Stable,
            _ => Volatility::Volatile,
        };
        add(
            "pg_catalog",
            fields[0],
            volatility,
            fields[2].parse().ok(),
            fields[3].parse().unwrap_or(0),
            FunctionRoute::Local,
        );
    }
    add("information_schema", "_pg_expandarray", Volatility::Immutable, Some(1), 0, FunctionRoute::Local);
    add("public", "row_audit", Volatility::Stable, Some(1), 0, FunctionRoute::Opaque);
    let keyed = |array| FunctionRoute::Keyed { argument: 0, array, key_type: KeyType::Uuid };
    add("public", "post_payments", Volatility::Volatile, Some(3), 0, keyed(true));
    add("public", "balance_of", Volatility::Stable, Some(2), 0, keyed(false));
    add("public", "close_month", Volatility::Volatile, Some(2), 1, keyed(false));
    add("public", "audit_all", Volatility::Stable, Some(0), 0, FunctionRoute::Opaque);
    add("public", "fee", Volatility::Immutable, Some(1), 0, FunctionRoute::Local);
    add("public", "log_local", Volatility::Volatile, Some(1), 0, FunctionRoute::Local);
    add("public", "next_number", Volatility::Volatile, Some(0), 0, FunctionRoute::DefaultShard);
}
