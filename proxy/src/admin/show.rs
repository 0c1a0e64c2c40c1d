//! The answers of the commands.

use std::time::{Duration, Instant, SystemTime};

use shard_config::{Config, ReadPolicy};

use super::{COMMANDS, Context, Table, workers};
use crate::catalog::TableKind;
use crate::pool::pool::PoolStatus;
use crate::pool::server::Role;
use crate::route::plan::Refusal;
use crate::session::client::{Activity, ClientStatus};

type Row = Vec<Option<String>>;

pub(super) async fn run(name: &'static str, context: &Context) -> Result<Table, Refusal> {
    let all = &context.workers;
    let rows = match name {
        "show help" => COMMANDS.iter().map(|c| vec![some(c.name.to_uppercase()), some(c.help)]).collect(),
        "show version" => vec![vec![some(format!("shard-proxy {}", env!("CARGO_PKG_VERSION")))]],
        "show pools" => pools(context, &workers::pools(all).await),
        "show clients" => workers::clients(all).await.iter().map(|c| client(context, c)).collect(),
        "show servers" => servers(context, &workers::clients(all).await, &workers::pools(all).await),
        "show stats" => stats(context),
        "show databases" => databases(context, &workers::pools(all).await),
        "show lists" => lists(context, &workers::clients(all).await, &workers::pools(all).await),
        "show config" => settings(&context.shared.load().config),
        "show shards" => shards(context),
        "show map" => map(context),
        "show moves" => moves(context),
        "show proxies" => proxies(context).await?,
        "show tables" => tables(context),
        "show counters" => {
            workers::counters(all).iter().map(|(name, value)| vec![some(name), some(value)]).collect()
        }
        "show refusals" => {
            let counters = workers::counters(all);
            let kinds = counters.iter().filter(|(name, _)| REFUSALS.contains(name));
            kinds.map(|(name, value)| vec![some(name), some(value)]).collect()
        }
        "reload" => {
            let why = |error| {
                let hint = "Correct the file and RELOAD again; the proxy goes on with the old one.";
                Refusal::new("F0000", "the configuration was not changed", hint).detail(format!("{error:#}"))
            };
            context.control.reload().await.map_err(why)?;
            Vec::new()
        }
        other => {
            debug_assert!(false, "a command without an answer: {other}");
            Vec::new()
        }
    };
    let columns = COMMANDS.iter().find(|c| c.name == name).map(|c| c.columns.to_vec()).unwrap_or_default();
    debug_assert!(rows.iter().all(|row: &Row| row.len() == columns.len()), "{name}");
    Ok(Table { columns, rows, tag: if name == "reload" { "RELOAD" } else { "SHOW" } })
}

/// The counters that SHOW REFUSALS picks.
const REFUSALS: [&str; 5] = ["refusals", "logins_refused", "server_errors", "pool_timeouts", "servers_lost"];

fn some(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

fn zeros<const N: usize>() -> [Option<String>; N] {
    std::array::from_fn(|_| some(0))
}

/// A pool's name where PgBouncer has a database's.
fn pool_name(database: &str, shard: u16, role: &str) -> String {
    match role {
        "primary" => format!("{database}/{shard}"),
        role => format!("{database}/{shard}/{role}"),
    }
}

fn pools(context: &Context, pools: &[PoolStatus]) -> Vec<Row> {
    let database = context.shared.load().config.proxy.database.clone();
    let row = |pool: &PoolStatus| {
        let mut row: Row = vec![some(pool_name(&database, pool.shard_id, role(pool.role))), some(&pool.user)];
        row.extend([some(pool.used), some(pool.waiting)]);
        row.extend(zeros::<2>());
        row.push(some(pool.used));
        row.extend(zeros::<2>());
        row.push(some(pool.idle));
        row.extend(zeros::<2>());
        row.push(some(pool.connecting));
        row.extend([some(0), some(0), some("transaction")]);
        row
    };
    pools.iter().map(row).collect()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    }
}

fn client(context: &Context, client: &ClientStatus) -> Row {
    let database = context.shared.load().config.proxy.database.clone();
    let waiting =
        if client.activity == Activity::WaitingForServer { client.since.elapsed() } else { Duration::ZERO };
    let link = client.servers.first().map(|(_, pid)| pid.to_string());
    vec![
        some("C"),
        some(&client.user),
        some(database),
        some(client.activity.name()),
        some(client.address.ip()),
        some(client.address.port()),
        None,
        None,
        some(timestamp(ago(client.connected))),
        some(timestamp(ago(client.since))),
        some(waiting.as_secs()),
        some(waiting.subsec_micros()),
        some(0),
        some(format!("{:x}", client.id)),
        link,
        some(client.id),
        some(""),
        some(&client.application_name),
        some(0),
        client.pinned.map(str::to_owned),
    ]
}

/// Those in use are known by the clients they serve; the idle ones by their number.
fn servers(context: &Context, clients: &[ClientStatus], pools: &[PoolStatus]) -> Vec<Row> {
    let database = context.shared.load().config.proxy.database.clone();
    let row = |pool: &PoolStatus, state: &str, pid: Option<i32>, link: Option<u32>| {
        vec![
            some("S"),
            some(&pool.user),
            some(pool_name(&database, pool.shard_id, role(pool.role))),
            some(state),
            some(pool.address.ip()),
            some(pool.address.port()),
            None,
            None,
            None,
            None,
            some(0),
            some(0),
            some(0),
            None,
            link.map(|id| format!("{id:x}")),
            pid.map(|p| p.to_string()),
            some(""),
            some(""),
            some(0),
            None,
        ]
    };
    let mut rows = Vec::new();
    for pool in pools {
        let uses = clients
            .iter()
            .filter(|c| c.user == pool.user)
            .flat_map(|c| c.servers.iter().map(move |s| (c.id, s)));
        for (client, (_, pid)) in uses.filter(|(_, (address, _))| *address == pool.address) {
            rows.push(row(pool, "active", Some(*pid), Some(client)));
        }
        rows.extend((0..pool.idle).map(|_| row(pool, "idle", None, None)));
    }
    rows
}

fn stats(context: &Context) -> Vec<Row> {
    let counters = workers::counters(&context.workers);
    let value = |name: &str| counters.iter().find(|(known, _)| *known == name).map_or(0, |(_, value)| *value);
    let seconds = context.control.uptime().as_secs().max(1);
    let (transactions, statements) = (value("transactions"), value("statements"));
    let mut row: Row =
        vec![some(&context.shared.load().config.proxy.database), some(transactions), some(statements)];
    row.extend(zeros::<5>());
    row.extend([some(transactions / seconds), some(statements / seconds)]);
    row.extend(zeros::<5>());
    vec![row]
}

fn databases(context: &Context, pools: &[PoolStatus]) -> Vec<Row> {
    let config = context.shared.load().config.clone();
    let row = |server: crate::control::ServerStatus| {
        let (role, max, min) = match server.role {
            "primary" => ("primary", config.pool.primary_max, config.pool.primary_min),
            _ => ("replica", config.pool.replica_max, config.pool.replica_min),
        };
        let open: usize = pools.iter().filter(|p| p.address == server.address).map(|p| p.used + p.idle).sum();
        let used = matches!(server.role, "primary" | "replica");
        vec![
            some(pool_name(&config.proxy.database, server.shard.0, role)),
            some(server.address.ip()),
            some(server.address.port()),
            some(&config.proxy.database),
            None,
            some(max),
            some(min),
            some(0),
            some("transaction"),
            some(max),
            some(open),
            some(0),
            some(u8::from(!used)),
        ]
    };
    context.control.world.status().into_iter().map(row).collect()
}

fn lists(context: &Context, clients: &[ClientStatus], pools: &[PoolStatus]) -> Vec<Row> {
    let state = context.shared.load();
    let idle_clients = clients.iter().filter(|c| c.activity == Activity::Idle).count();
    let items: [(&str, usize); 12] = [
        ("databases", state.members().count()),
        ("users", state.config.users.len()),
        ("pools", pools.len()),
        ("free_clients", idle_clients),
        ("used_clients", clients.len() - idle_clients),
        ("login_clients", 0),
        ("free_servers", pools.iter().map(|p| p.idle).sum()),
        ("used_servers", pools.iter().map(|p| p.used).sum()),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    items.iter().map(|(name, count)| vec![some(name), some(count)]).collect()
}

/// From the configuration's own table of settings; secrets print as stars.
fn settings(config: &Config) -> Vec<Row> {
    let reads = match config.reads.policy {
        ReadPolicy::Fresh => "fresh",
        ReadPolicy::Primary => "primary",
        ReadPolicy::OptIn => "opt_in",
    };
    let value = |name: &str| {
        let (proxy, pool) = (&config.proxy, &config.pool);
        Some(match name {
            "name" => proxy.name.clone(),
            "listen" => proxy.listen.to_string(),
            "http" => proxy.http.to_string(),
            "database" => proxy.database.clone(),
            "workers" => proxy.workers.to_string(),
            "state_dir" => proxy.state_dir.clone(),
            "peers" => {
                let peers: Vec<String> = proxy.peers.iter().map(ToString::to_string).collect();
                peers.join(", ")
            }
            "max_clients" => proxy.max_clients.to_string(),
            "default_shard" => proxy.default_shard.to_string(),
            "column" => config.key.column.clone(),
            "type" => config.key.key_type.name().to_owned(),
            "buckets" => config.key.buckets.to_string(),
            "primary_max" => pool.primary_max.to_string(),
            "primary_min" => pool.primary_min.to_string(),
            "replica_max" => pool.replica_max.to_string(),
            "replica_min" => pool.replica_min.to_string(),
            "connect_timeout_ms" => pool.connect_timeout_ms.to_string(),
            "idle_timeout_s" => pool.idle_timeout_s.to_string(),
            "max_lifetime_s" => pool.max_lifetime_s.to_string(),
            "validation_timeout_ms" => pool.validation_timeout_ms.to_string(),
            "leak_detection_s" => pool.leak_detection_s.to_string(),
            "test_query" => pool.test_query.clone(),
            "policy" => reads.to_owned(),
            "block" => config.sequences.block.to_string(),
            "poll_ms" => config.reads.poll_ms.to_string(),
            "user" => config.control.user.clone(),
            "password" => "***".to_owned(),
            _ => return None,
        })
    };
    let mut rows = Vec::new();
    for section in shard_config::config::SECTIONS.iter().filter(|s| !s.header.starts_with("[[")) {
        let name = section.header.trim_matches(['[', ']']);
        for setting in section.settings {
            if let Some(value) = value(setting.name) {
                let changeable =
                    if crate::control::reload::is_changeable(name, setting.name) { "yes" } else { "no" };
                rows.push(vec![
                    some(format!("{name}.{}", setting.name)),
                    some(value),
                    some(setting.default.trim_matches('"')),
                    some(changeable),
                ]);
            }
        }
    }
    rows
}

fn shards(context: &Context) -> Vec<Row> {
    let map = context.shared.load().map.clone();
    let row = |server: crate::control::ServerStatus| {
        vec![
            some(server.shard),
            some(server.address),
            some(server.role),
            server.timeline.and_then(some),
            some(map.count(server.shard)),
            server.reason,
        ]
    };
    context.control.world.status().into_iter().map(row).collect()
}

fn map(context: &Context) -> Vec<Row> {
    let map = context.shared.load().map.clone();
    let row = |(from, to, shard)| {
        let overrides = crate::session::overrides(&map, from..=to);
        vec![some(from), some(to), some(shard), some(map.epoch()), some(overrides)]
    };
    map.ranges().into_iter().map(row).collect()
}

fn moves(context: &Context) -> Vec<Row> {
    let following = context.shared.load().following.clone();
    let row = |motion: &crate::motion::Motion| {
        vec![
            some(motion.move_id),
            some(&motion.scope),
            some(motion.source),
            some(motion.target),
            some(motion.stage.name()),
            some(motion.since),
            some(following.version),
        ]
    };
    following.motions.as_deref().map_or(&[][..], |motions| motions.list()).iter().map(row).collect()
}

/// As the catalog has them.
async fn proxies(context: &Context) -> Result<Vec<Row>, Refusal> {
    let why = |error| {
        let hint = "The catalog is on the default shard's primary; SHOW SHARDS tells why it is not used.";
        Refusal::new("57P03", "the catalog cannot be asked", hint).detail(format!("{error:#}"))
    };
    let list = context.control.proxies().await.map_err(why)?;
    Ok(list
        .into_iter()
        .map(|proxy| {
            vec![
                some(proxy.name),
                some(&proxy.id),
                some(proxy.address),
                some(format!("{:.1}", proxy.lease_s)),
                some(proxy.version),
                some(proxy.drained),
                some(proxy.epoch),
                some(proxy.held),
                some(if *proxy.id == *context.control.id() { "yes" } else { "no" }),
                proxy.note,
                proxy
                    .shards
                    .map(|shards| shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            ]
        })
        .collect())
}

fn tables(context: &Context) -> Vec<Row> {
    let catalog = context.shared.load().catalog.clone();
    let mut tables: Vec<_> = catalog.tables.values().filter(|t| t.kind != TableKind::System).collect();
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    let row = |table: &&crate::catalog::Table| {
        let (kind, key) = match table.kind {
            TableKind::Sharded { key_index, .. } => {
                ("sharded", table.columns.get(key_index).map(|c| c.name.clone()))
            }
            TableKind::Reference => ("reference", None),
            TableKind::Plain => ("plain", None),
            TableKind::View => ("view", None),
            TableKind::System => ("system", None),
        };
        let trouble = table.drift.clone().or(table.opaque_trigger.clone());
        vec![some(&table.schema), some(&table.name), some(kind), key, trouble]
    };
    tables.iter().map(row).collect()
}

fn ago(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}

/// UTC, as PgBouncer prints times.
fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        let at = |s| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_827_696), "2000-02-29 12:34:56 UTC");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59 UTC");
    }

    #[test]
    fn every_setting_is_shown() {
        let text = "[[user]]\nname=\"a\"\npassword=\"secret\"\n[[shard]]\nid=1\nprimary=\"127.0.0.1:1\"\n[control]\npassword=\"hidden\"";
        let rows = settings(&Config::parse(text).expect("valid"));
        let documented: usize = shard_config::config::SECTIONS
            .iter()
            .filter(|s| !s.header.starts_with("[["))
            .map(|s| s.settings.len())
            .sum();
        assert_eq!(rows.len(), documented, "a setting is missing in SHOW CONFIG");
        assert!(!format!("{rows:?}").contains("hidden"));
    }
}
