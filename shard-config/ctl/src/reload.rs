//! `servers` and `reload`: what every running proxy serves beside what the configuration file says, and the one made the other.
//! Each proxy has a file of its own, so what is compared afterwards is what they serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use shard_config::{ShardId, User};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::connect::{ask, cell, describe};
use crate::direct::{Db, Servers};
use crate::exit::{self, Failure};
use crate::mover::catalog;
use crate::moves::Ended;
use crate::output::{Report, table};
use crate::served::{Change, Holds, LEAVING, Listed, Served, changes, renamed};

mod holds;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// A reload reads the catalogs of new shards and compares reference tables.
const RELOAD: Duration = Duration::from_secs(180);
/// From a reload on until every worker has ended what began before it.
const FOLLOW: Duration = Duration::from_secs(30);

/// A proxy with a lease.
struct Proxy {
    name: String,
    address: SocketAddr,
}

/// What one proxy serves, or why that is not known.
struct View {
    proxy: Proxy,
    served: anyhow::Result<Vec<Served>>,
}

/// `servers`: changes nothing.
pub async fn servers(servers: &Servers) -> anyhow::Result<Ended> {
    let state = State::read(servers).await?;
    Ok((state.report(), if state.is_well() { 0 } else { exit::FAILED }))
}

/// `reload`: every proxy is told to read its file again. Returns when all serve what the file of --config says. `dry_run`: nobody
/// is told anything.
pub async fn reload(servers: &Servers, dry_run: bool) -> anyhow::Result<Ended> {
    let state = State::read(servers).await?;
    if state.views.is_empty() {
        return Err(Failure::refused("no proxy has a lease in the catalog: there is nobody to reload").into());
    }
    let cannot = state.views.iter().any(|view| state.changes(view).iter().any(|one| !one.is_possible()));
    if cannot || state.views.iter().any(|view| view.served.is_err()) {
        let mut report = state.report();
        report.text += "nothing was reloaded\n";
        return Ok((report, exit::REFUSED));
    }
    if dry_run {
        let mut report = state.report();
        let names: Vec<_> = state.views.iter().map(|view| view.proxy.name.as_str()).collect();
        report.text += &format!(
            "each would be told, until one cannot, to read its file again: {}; nothing was reloaded\n",
            names.join(", ")
        );
        (report.json["dry_run"], report.json["would_reload"]) = (json!(true), json!(names));
        return Ok((report, 0));
    }
    let user = console_user(servers)?;
    let (mut failed, mut told) = (Vec::new(), Vec::new());
    for view in &state.views {
        // One after the other: a file that one cannot take is not tried on all at once.
        if let Err(error) = tell(&view.proxy, user).await {
            failed.push(format!("{}: {error:#}", view.proxy.name));
            failed.extend(halfway(&told));
            break;
        }
        told.push(view.proxy.name.as_str());
    }
    let after = State::read(servers).await?;
    let mut report = after.report();
    if failed.is_empty() {
        let differs = after.views.iter().filter(|view| !after.changes(view).is_empty());
        failed.extend(differs.map(|view| {
            format!(
                "{} has read its file and serves other servers than the file of --config says: its own says something else",
                view.proxy.name
            )
        }));
    }
    if failed.is_empty() {
        failed.extend(follow(servers, user).await?);
    }
    report.well = failed.is_empty() && after.is_well();
    for text in &failed {
        report.text += &format!("PROBLEM  {text}\n");
    }
    report.json["problems"] = json!(failed);
    if report.well {
        report.text += "every proxy has read its file again and serves what it says\n";
    }
    let status = if report.well { 0 } else { exit::FAILED };
    Ok((report, status))
}

/// What follows from a reload that only these proxies have made.
fn halfway(told: &[&str]) -> Option<String> {
    (!told.is_empty()).then(|| {
        format!(
            "{} did read the file before: until all have, write to no reference table and change no schema; end what keeps the \
             other proxy from it (a client that is named, on that proxy), and run shardctl reload again",
            told.join(", ")
        )
    })
}

/// The file and all proxies at one moment.
struct State {
    file: Vec<Listed>,
    views: Vec<View>,
    holds: BTreeMap<ShardId, Holds>,
}

impl State {
    async fn read(servers: &Servers) -> anyhow::Result<Self> {
        let control = servers.control("shardctl servers").await?;
        let mut file = Listed::all(&servers.config);
        for listed in &mut file {
            let place = (listed.place.host.as_str(), listed.place.port);
            // Which name it is, is said with the server.
            listed.address = tokio::net::lookup_host(place).await.ok().and_then(|mut found| found.next());
        }
        let user = console_user(servers)?;
        let mut views = Vec::new();
        for proxy in proxies(&control).await? {
            let served = served(&proxy, user).await;
            views.push(View { proxy, served });
        }
        let map = catalog::map(&control).await?;
        let shards = views.iter().flat_map(|view| view.served.iter().flatten()).map(|one| one.shard);
        let mut holds = BTreeMap::new();
        for shard in shards.collect::<BTreeSet<_>>() {
            let mut held = holds::held(&control, &map, shard).await?;
            if !servers.has(shard) {
                held.others = holds::others(servers, user, &views, shard).await;
            }
            holds.insert(shard, held);
        }
        Ok(Self { file, views, holds })
    }

    fn changes(&self, view: &View) -> Vec<Change> {
        let holds = |shard| self.holds.get(&shard).cloned().unwrap_or_default();
        view.served.as_ref().map_or_else(|_| Vec::new(), |served| changes(&self.file, served, holds))
    }

    /// Every proxy answers, and what is to be done can be done.
    fn is_well(&self) -> bool {
        self.views
            .iter()
            .all(|view| view.served.is_ok() && self.changes(view).iter().all(Change::is_possible))
    }

    fn report(&self) -> Report {
        let all = || self.views.iter().flat_map(|view| view.served.iter().flatten());
        let mut rows = Vec::new();
        let mut list = Vec::new();
        let mut row = |shard: ShardId, server: String, file: &str, address: Option<SocketAddr>| {
            let is = |one: &&Served| one.shard == shard && Some(one.address) == address;
            let role = all().find(is).map_or("-", |one| one.role.as_str());
            let by = self.views.iter().filter(|view| view.served.iter().flatten().any(|one| is(&one)));
            let by: Vec<_> = by.map(|view| view.proxy.name.clone()).collect();
            list.push(
                json!({ "shard": shard.0, "server": server, "file": file, "role": role, "served_by": by }),
            );
            let by = if by.is_empty() { "-".to_owned() } else { by.join(", ") };
            rows.push(vec![shard.to_string(), server, file.to_owned(), role.to_owned(), by]);
        };
        for listed in &self.file {
            let file = if listed.primary { "primary" } else { "replica" };
            row(listed.shard, listed.place.to_string(), file, listed.address);
        }
        let in_file =
            |one: &Served| self.file.iter().any(|l| l.shard == one.shard && l.address == Some(one.address));
        let mut others: Vec<_> =
            all().filter(|one| !in_file(one)).map(|one| (one.shard, one.address)).collect();
        others.sort_unstable();
        others.dedup();
        for (shard, address) in others {
            row(shard, address.to_string(), "-", Some(address));
        }
        let mut text = table(&["shard", "server", "file", "is", "served by"], &rows);
        let mut proxies = Vec::new();
        for view in &self.views {
            let (name, found) = (&view.proxy.name, self.changes(view));
            for change in &found {
                let word = if change.is_possible() { "reload" } else { "PROBLEM" };
                text += &format!("{name}: {word}: {}\n", change.text());
            }
            let error = view.served.as_ref().err().map(|error| format!("{error:#}"));
            if let Some(error) = &error {
                text += &format!("{name}: PROBLEM: {error}\n");
            }
            let found: Vec<_> =
                found.iter().map(|c| json!({ "what": c.text(), "possible": c.is_possible() })).collect();
            proxies.push(
                json!({ "name": name, "address": view.proxy.address, "changes": found, "error": error }),
            );
        }
        let notes: Vec<_> = self.views.first().into_iter().flat_map(|view| view.served.iter()).collect();
        let notes: Vec<_> = notes.into_iter().flat_map(|served| renamed(&self.file, served)).collect();
        for note in &notes {
            text += &format!("{note}\n");
        }
        text += match () {
            () if self.views.is_empty() => "no proxy has a lease in the catalog\n",
            () if !self.is_well() => "",
            () if self.views.iter().any(|view| !self.changes(view).is_empty()) => "Next: shardctl reload\n",
            () => "every proxy serves what the file says\n",
        };
        Report {
            json: json!({ "servers": list, "proxies": proxies, "notes": notes }),
            text,
            well: self.is_well(),
        }
    }
}

/// Every proxy that runs, and where it listens. One that listens everywhere is where its sessions with the catalog come from.
async fn proxies(control: &Db) -> anyhow::Result<Vec<Proxy>> {
    let sql = "SELECT name, address, (SELECT host(a.client_addr) FROM pg_stat_activity a \
                 WHERE a.application_name = left(format('shard-proxy %s control', p.name), 63) AND a.client_addr IS NOT NULL LIMIT 1) \
               FROM shard_catalog.proxy p WHERE lease_until > clock_timestamp() ORDER BY name, id";
    let mut found = Vec::new();
    for row in control.rows(sql, &[]).await? {
        let (name, text): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let mut address: SocketAddr =
            text.parse().with_context(|| format!("proxy {name} says that it listens at \"{text}\""))?;
        if address.ip().is_unspecified() {
            let from: Option<String> = row.try_get(2)?;
            let from = from.and_then(|from| from.parse::<IpAddr>().ok());
            address.set_ip(from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
        found.push(Proxy { name, address });
    }
    Ok(found)
}

fn console_user(servers: &Servers) -> Result<&User, Failure> {
    let found = servers.config.users.iter().find(|user| user.admin);
    found.ok_or_else(|| {
        Failure::usage("the console of a proxy opens for a [[user]] with admin = true, and the file of --config has none")
    })
}

async fn console(proxy: &Proxy, user: &User) -> anyhow::Result<Client> {
    let mut settings = tokio_postgres::Config::new();
    settings
        .hostaddr(proxy.address.ip())
        .port(proxy.address.port())
        .user(&user.name)
        .password(user.password.expose())
        .dbname("admin")
        .application_name("shardctl")
        .connect_timeout(CONNECT);
    let (address, connected) = (proxy.address, tokio::time::timeout(CONNECT, settings.connect(NoTls)).await);
    let (client, connection) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => anyhow::bail!("its console at {address}: {}", describe(&error)),
        Err(_) => anyhow::bail!("its console at {address}: no answer within {CONNECT:?}"),
    };
    tokio::spawn(connection);
    Ok(client)
}

async fn served(proxy: &Proxy, user: &User) -> anyhow::Result<Vec<Served>> {
    let client = console(proxy, user).await?;
    let rows = ask(&client, "SHOW SHARDS", ANSWER).await.context("SHOW SHARDS")?;
    let server = |row: &SimpleQueryRow| {
        let cell = |name: &str| cell(row, name);
        Ok(Served {
            shard: ShardId(cell("shard").parse().context("SHOW SHARDS: shard")?),
            address: cell("address").parse().context("SHOW SHARDS: address")?,
            role: cell("role"),
            reason: cell("reason"),
        })
    };
    rows.iter().map(server).collect()
}

/// Reads its file again. The error is what the proxy says of the file.
async fn tell(proxy: &Proxy, user: &User) -> anyhow::Result<()> {
    let client = console(proxy, user).await?;
    match tokio::time::timeout(RELOAD, client.simple_query("RELOAD")).await {
        Ok(Ok(messages)) => {
            let done =
                messages.iter().any(|message| matches!(message, SimpleQueryMessage::CommandComplete(_)));
            anyhow::ensure!(done, "RELOAD was not answered");
            Ok(())
        }
        Ok(Err(error)) => {
            let detail = error.as_db_error().and_then(|db| db.detail()).map(|text| format!(": {text}"));
            anyhow::bail!("{}{}", describe(&error), detail.unwrap_or_default())
        }
        Err(_) => anyhow::bail!("RELOAD: no answer within {RELOAD:?}"),
    }
}

/// Waits until nothing runs any more that began before a proxy knew all shards of the file, or where one was that it has not any
/// more; else who is waited for.
async fn follow(servers: &Servers, user: &User) -> anyhow::Result<Vec<String>> {
    let control = servers.control("shardctl reload").await?;
    let mut wanted: Vec<i32> = servers.shards().iter().map(|shard| i32::from(shard.0)).collect();
    wanted.sort_unstable();
    let begun = Instant::now();
    loop {
        let mut late: Vec<String> = catalog::proxies(&control)
            .await?
            .into_iter()
            .filter(|proxy| proxy.leased)
            .filter_map(|proxy| {
                let mut knows = proxy.shards?;
                knows.sort_unstable();
                let text =
                    || format!("{} serves shards {knows:?} and not {wanted:?}; {}", proxy.name, proxy.note);
                (knows != wanted).then(text)
            })
            .collect();
        if late.is_empty() {
            late = leaving(&control, user).await?;
        }
        if late.is_empty() || begun.elapsed() >= FOLLOW {
            return Ok(late);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Proxies in which something is still under way on a shard that they have taken out.
async fn leaving(control: &Db, user: &User) -> anyhow::Result<Vec<String>> {
    let mut late = Vec::new();
    for proxy in proxies(control).await? {
        let shards = served(&proxy, user).await.with_context(|| proxy.name.clone())?;
        let left: BTreeMap<_, _> =
            shards.iter().filter(|one| one.role == LEAVING).map(|one| (one.shard, &one.reason)).collect();
        late.extend(left.iter().map(|(shard, reason)| {
            let what = match reason.as_str() {
                "" => "what began there before has not ended: SHOW CLIENTS on its console",
                reason => reason,
            };
            format!("{} has taken out shard {shard}; {what}", proxy.name)
        }));
    }
    Ok(late)
}
