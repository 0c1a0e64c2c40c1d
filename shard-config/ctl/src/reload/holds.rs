//! What keeps a shard that is not in the file any more: what it owns, which moves need it, who is pinned to it, and what is
//! prepared there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Context;
use shard_config::{HostPort, ShardId, User};
use tokio_postgres::SimpleQueryRow;

use super::{ANSWER, Proxy, View, console};
use crate::connect::{ask, cell};
use crate::direct::{Db, Servers};
use crate::mover::catalog::StoredMap;
use crate::served::{Holds, LEAVING};

/// Those that are older than any live coordinator would leave them, as the proxies take it.
const IN_DOUBT: &str = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() \
    AND gid LIKE 'shardproxy:%' AND prepared < clock_timestamp() - make_interval(secs => $1)";
const IN_DOUBT_S: f64 = 3.0;

/// What keeps the shard from going.
pub(super) async fn held(control: &Db, map: &StoredMap, shard: ShardId) -> anyhow::Result<Holds> {
    let sql = "SELECT id FROM shard_catalog.move WHERE phase NOT IN ('done', 'rolled_back', 'aborted', 'refused') \
               AND $1 IN (source, target) ORDER BY id";
    let rows = control.rows(sql, &[&i32::from(shard.0)]).await?;
    Ok(Holds {
        buckets: map.map.count(shard),
        tenants: map.overrides.iter().filter(|(_, owner)| *owner == shard).count(),
        moves: rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
        others: Vec::new(),
    })
}

/// What the shard itself and the clients of all proxies keep there. A proxy asks only itself, and then others have gone on.
pub(super) async fn others(servers: &Servers, user: &User, views: &[View], shard: ShardId) -> Vec<String> {
    let mut found = Vec::new();
    let serving =
        |view: &&View| view.served.iter().flatten().any(|one| one.shard == shard && one.role != LEAVING);
    let serving: Vec<_> = views.iter().filter(serving).collect();
    for view in &serving {
        let of_shard = view.served.iter().flatten().filter(|one| one.shard == shard);
        let addresses: Vec<_> = of_shard.map(|one| one.address).collect();
        match pinned(&view.proxy, user, &addresses).await {
            Ok(clients) => found.extend(clients),
            Err(error) => {
                found.push(format!("{} cannot be asked for its clients ({error:#})", view.proxy.name))
            }
        }
    }
    let served = serving.iter().flat_map(|view| view.served.iter().flatten());
    let Some(primary) = served.into_iter().find(|one| one.shard == shard && one.role == "primary") else {
        if !serving.is_empty() {
            found.push("it has no primary that could be asked for prepared transactions".to_owned());
        }
        return found;
    };
    // The file of --config does not have it any more.
    let place = HostPort { host: primary.address.ip().to_string(), port: primary.address.port() };
    let asked = async {
        servers.open(shard, &place, "shardctl reload").await?.value::<i64>(IN_DOUBT, &[&IN_DOUBT_S]).await
    };
    match asked.await {
        Ok(0) => {}
        Ok(n) => found.push(format!(
            "{n} transactions over several shards are prepared there and not finished (SELECT gid FROM pg_prepared_xacts)"
        )),
        Err(error) => found.push(format!("it cannot be asked for prepared transactions ({error:#})")),
    }
    found
}

/// Clients of a proxy that are pinned to one of these servers.
async fn pinned(proxy: &Proxy, user: &User, addresses: &[SocketAddr]) -> anyhow::Result<Vec<String>> {
    let client = console(proxy, user).await?;
    let uses = ask(&client, "SHOW SERVERS", ANSWER).await.context("SHOW SERVERS")?;
    let there = |row: &&SimpleQueryRow| {
        let address = format!("{}:{}", cell(row, "addr"), cell(row, "port"));
        address.parse().is_ok_and(|address: SocketAddr| addresses.contains(&address))
    };
    let links: BTreeSet<_> = uses.iter().filter(there).map(|row| cell(row, "link")).collect();
    let clients = ask(&client, "SHOW CLIENTS", ANSWER).await.context("SHOW CLIENTS")?;
    let kept =
        clients.iter().filter(|row| !cell(row, "pinned").is_empty() && links.contains(&cell(row, "ptr")));
    let text = |row: &SimpleQueryRow| {
        let (id, user, pinned) = (cell(row, "ptr"), cell(row, "user"), cell(row, "pinned"));
        format!("client {id} of {} (user {user}) is pinned to a server of it ({pinned})", proxy.name)
    };
    Ok(kept.map(text).collect())
}
