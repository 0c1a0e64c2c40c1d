//! Rows of the TPC tables: few, but such that every query of TPC-H finds some.

use std::fmt::Write as _;

use crate::catalog::key;
use crate::random::Random;
use crate::schema::Rows;

pub(crate) const TABLES: [&str; 21] = [
    "tpch.region",
    "tpch.nation",
    "tpch.part",
    "tpch.supplier",
    "tpch.partsupp",
    "tpch.customer",
    "tpch.orders",
    "tpch.lineitem",
    "tpcc.item",
    "tpcc.warehouse",
    "tpcc.district",
    "tpcc.customer",
    "tpcc.history",
    "tpcc.orders",
    "tpcc.new_order",
    "tpcc.order_line",
    "tpcc.stock",
    "tpcb.branches",
    "tpcb.tellers",
    "tpcb.accounts",
    "tpcb.history",
];
const TENANTS: usize = 12;
const NATIONS: [(&str, usize); 25] = [
    ("ALGERIA", 0),
    ("ARGENTINA", 1),
    ("BRAZIL", 1),
    ("CANADA", 1),
    ("EGYPT", 4),
    ("ETHIOPIA", 0),
    ("FRANCE", 3),
    ("GERMANY", 3),
    ("INDIA", 2),
    ("INDONESIA", 2),
    ("IRAN", 4),
    ("IRAQ", 4),
    ("JAPAN", 2),
    ("JORDAN", 4),
    ("KENYA", 0),
    ("MOROCCO", 0),
    ("MOZAMBIQUE", 0),
    ("PERU", 1),
    ("CHINA", 2),
    ("ROMANIA", 3),
    ("SAUDI ARABIA", 4),
    ("VIETNAM", 2),
    ("RUSSIA", 3),
    ("UNITED KINGDOM", 3),
    ("UNITED STATES", 1),
];
/// Nations that customers and suppliers are of: few, so that they meet.
const BUSY: [usize; 6] = [2, 6, 7, 8, 20, 24];

pub(crate) fn rows() -> Vec<Rows> {
    let mut random = Random::new(22);
    let mut all: Vec<Rows> = Vec::new();
    let mut add = |table: &'static str, text: String| all.push(Rows { table, columns: "", text });
    let mut lines = |count: usize, line: &mut dyn FnMut(usize, &mut Random) -> String| {
        (1..=count).map(|n| line(n, &mut random) + "\n").collect::<String>()
    };
    let regions = ["AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST"];
    add("tpch.region", lines(5, &mut |n, _| format!("{}\t{}\tabout it", n - 1, regions[n - 1])));
    add(
        "tpch.nation",
        lines(25, &mut |n, _| format!("{}\t{}\t{}\tabout it", n - 1, NATIONS[n - 1].0, NATIONS[n - 1].1)),
    );
    add(
        "tpch.part",
        lines(60, &mut |n, r| {
            let name = format!(
                "{} {}",
                r.of(&["forest", "green", "almond", "ivory"]),
                r.of(&["lace", "puff", "green"])
            );
            let kind = format!(
                "{} {} {}",
                r.of(&["ECONOMY", "PROMO", "MEDIUM"]),
                r.of(&["ANODIZED", "POLISHED"]),
                r.of(&["STEEL", "BRASS"])
            );
            let container = format!("{} {}", r.of(&["SM", "MED", "LG"]), r.of(&["CASE", "BOX", "PKG"]));
            format!(
                "{n}\t{name}\tManufacturer#{}\tBrand#{}{}\t{kind}\t{}\t{container}\t{}.00\tpart",
                n % 5,
                1 + n % 3,
                1 + r.below(3),
                1 + r.below(8),
                900 + n
            )
        }),
    );
    add(
        "tpch.supplier",
        lines(20, &mut |n, r| {
            let nation = BUSY[r.below(6)];
            let comment = if n % 7 == 0 { "Customer was full of Complaints" } else { "quiet" };
            format!(
                "{n}\tSupplier#{n:09}\taddress {n}\t{nation}\t{}-100-200\t{}.{:02}\t{comment}",
                nation + 10,
                r.below(9000) as i64 - 900,
                r.below(100)
            )
        }),
    );
    add(
        "tpch.partsupp",
        lines(240, &mut |n, r| {
            let (part, supplier) = (1 + (n - 1) / 4, 1 + ((n - 1) / 4 * 3 + (n - 1) % 4 * 5) % 20);
            format!("{part}\t{supplier}\t{}\t{}.{:02}\tps", 1 + r.below(900), 1 + r.below(999), r.below(100))
        }),
    );
    let mut customers = String::new();
    let mut orders = String::new();
    let mut lineitems = String::new();
    for customer in 1..=90 {
        let r = &mut random;
        let (tenant, nation) = (key(1 + customer % TENANTS), BUSY[r.below(6)]);
        let segment = *["BUILDING", "AUTOMOBILE", "MACHINERY"].get(r.below(3)).unwrap_or(&"BUILDING");
        let _ = writeln!(
            customers,
            "{tenant}\t{customer}\tCustomer#{customer:09}\taddress\t{nation}\t{}-555-000\t{}.{:02}\t{segment}\tcomment",
            nation + 10,
            r.below(9000) as i64 - 900,
            r.below(100)
        );
        for n in 0..if customer % 3 == 0 { 0 } else { 2 + r.below(8) } {
            let order = customer * 20 + n;
            let day = format!("199{}-{:02}-{:02}", 2 + r.below(7), 1 + r.below(8), 1 + r.below(28));
            let (priority, comment) = (r.below(5), ["special packages requests", "ordinary"][r.below(2)]);
            let priorities = ["1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW"];
            let _ = writeln!(
                orders,
                "{tenant}\t{order}\t{customer}\t{}\t{}.{:02}\t{day}\t{}\tClerk#{}\t0\t{comment}",
                ["F", "O", "P"][r.below(3)],
                1000 + r.below(400_000),
                r.below(100),
                priorities[priority],
                r.below(9)
            );
            for line in 1..=1 + r.below(5) {
                let part = 1 + r.below(60);
                let supplier = 1 + ((part - 1) * 3 + r.below(4) * 5) % 20;
                let (quantity, year, month) = (1 + r.below(50), &day[..4], 1 + r.below(10));
                let (ship, receipt) = (
                    format!("{year}-{month:02}-{:02}", 1 + r.below(28)),
                    format!("{year}-{:02}-{:02}", month + 1 + r.below(2), 1 + r.below(28)),
                );
                let commit = format!("{year}-{:02}-{:02}", 1 + r.below(12), 1 + r.below(28));
                let (flag, status) = (["A", "N", "R"][r.below(3)], ["F", "O"][r.below(2)]);
                let instruct = ["DELIVER IN PERSON", "COLLECT COD", "NONE"][r.below(3)];
                let mode = ["AIR", "AIR REG", "MAIL", "SHIP", "TRUCK"][r.below(5)];
                let _ = writeln!(
                    lineitems,
                    "{tenant}\t{order}\t{part}\t{supplier}\t{line}\t{quantity}\t{}.{:02}\t0.{:02}\t0.0{}\t{flag}\t{status}\t{ship}\t{commit}\t{receipt}\t{instruct}\t{mode}\tline",
                    quantity * (900 + part),
                    r.below(100),
                    r.below(11),
                    r.below(9)
                );
            }
        }
    }
    let mut add = |table: &'static str, text: String| all.push(Rows { table, columns: "", text });
    add("tpch.customer", customers);
    add("tpch.orders", orders);
    add("tpch.lineitem", lineitems);
    transactional(&mut random, &mut add);
    all
}

fn transactional(random: &mut Random, add: &mut dyn FnMut(&'static str, String)) {
    let mut texts: [String; 11] = Default::default();
    let [
        items,
        warehouses,
        districts,
        customers,
        orders,
        new_orders,
        lines,
        stock,
        branches,
        tellers,
        accounts,
    ] = &mut texts;
    for item in 1..=30 {
        let _ = writeln!(
            items,
            "{item}\t{}\titem {item}\t{}.{:02}\tdata",
            item % 7,
            1 + random.below(99),
            random.below(100)
        );
    }
    for w in 1..=5 {
        let k = key(w);
        let _ = writeln!(warehouses, "{k}\t{w}\tw{w}\t0.{:04}\t30000.00", random.below(2000));
        let _ = writeln!(branches, "{k}\t{w}\t0");
        for item in 1..=30 {
            let _ = writeln!(stock, "{k}\t{item}\t{}\tdist {item}\t0\t0\t0\tdata", 10 + random.below(90));
        }
        for d in 1..=2 {
            let _ = writeln!(districts, "{k}\t{d}\td{d}\t0.{:04}\t30000.00\t6", random.below(2000));
            let _ = writeln!(tellers, "{k}\t{d}\t0");
            for c in 1..=6 {
                let last = random.of(&["BARBAR", "OUGHT", "ABLE"]);
                let _ = writeln!(
                    customers,
                    "{k}\t{d}\t{c}\tfirst{}\t{last}\t{}\t0.{:04}\t-10.00\t10.00\t1\t0\tdata",
                    random.below(9),
                    ["GC", "BC"][random.below(2)],
                    random.below(5000)
                );
                let _ = writeln!(accounts, "{k}\t{}\t0", d * 10 + c);
            }
            for o in 1..=5 {
                let count = 2 + random.below(3);
                let carrier = if o > 3 { "\\N".to_owned() } else { "4".to_owned() };
                let _ = writeln!(
                    orders,
                    "{k}\t{d}\t{o}\t{}\t2026-01-0{o} 10:00:00\t{carrier}\t{count}\t1",
                    1 + random.below(6)
                );
                if o > 3 {
                    let _ = writeln!(new_orders, "{k}\t{d}\t{o}");
                }
                for n in 1..=count {
                    let _ = writeln!(
                        lines,
                        "{k}\t{d}\t{o}\t{n}\t{}\t{w}\t\\N\t5\t{}.50\tdist",
                        1 + random.below(30),
                        1 + random.below(500)
                    );
                }
            }
        }
    }
    let names = [
        "tpcc.item",
        "tpcc.warehouse",
        "tpcc.district",
        "tpcc.customer",
        "tpcc.orders",
        "tpcc.new_order",
        "tpcc.order_line",
        "tpcc.stock",
        "tpcb.branches",
        "tpcb.tellers",
        "tpcb.accounts",
    ];
    for (table, text) in names.into_iter().zip(texts) {
        add(table, text);
    }
}
