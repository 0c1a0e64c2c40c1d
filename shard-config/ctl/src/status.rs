//! `status`: one line a shard, within seconds whatever a shard does.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use futures_util::future::join_all;
use serde_json::{Value, json};
use shard_config::{Config, ShardId, ShardMap};
use tokio_postgres::Client;

use crate::connect::{FIRST_ANSWER, Proxy, ask, cell, soon};
use crate::direct::Servers;
use crate::mover::preflight::human;
use crate::output::{Report, table};

/// Walsenders `r` of standbys, rather than those of moves and of other subscriptions, which stream from logical slots, or
/// are being told what to do. Roles without pg_monitor do not see the state.
pub(crate) const STANDBYS: &str = "pg_catalog.pg_stat_replication r
        WHERE coalesce(r.state, 'streaming') IN ('streaming', 'catchup') AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

/// What a shard's primary says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figures {
    version: String,
    pub(crate) in_recovery: bool,
    bytes: i64,
    connections: i64,
    pub(crate) replicas: i64,
    /// `None`: the role may not see it.
    synchronous: Option<i64>,
    pub(crate) prepared: i64,
}

impl Figures {
    pub(crate) async fn of(client: &Client) -> anyhow::Result<Self> {
        let sql = format!(
            "SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS in_recovery,
                pg_database_size(current_database()) AS bytes,
                (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections,
                (SELECT count(*) FROM {STANDBYS}) AS replicas,
                (SELECT CASE WHEN bool_or(r.sync_state IS NULL) THEN NULL
                    ELSE count(*) FILTER (WHERE r.sync_state IN ('sync', 'quorum')) END FROM {STANDBYS}) AS synchronous,
                (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared"
        );
        let rows = ask(client, &sql, FIRST_ANSWER).await?;
        let row = rows.first().context("no row")?;
        let number = |column: &str| {
            let text = cell(row, column);
            text.parse::<i64>().with_context(|| format!("{column} is \"{text}\""))
        };
        Ok(Self {
            version: cell(row, "version"),
            in_recovery: cell(row, "in_recovery") == "t",
            bytes: number("bytes")?,
            connections: number("connections")?,
            replicas: number("replicas")?,
            synchronous: match cell(row, "synchronous").is_empty() {
                true => None,
                false => Some(number("synchronous")?),
            },
            prepared: number("prepared")?,
        })
    }

    fn json(&self) -> Value {
        json!({
            "version": self.version, "in_recovery": self.in_recovery, "bytes": self.bytes,
            "connections": self.connections, "replicas": self.replicas, "synchronous": self.synchronous,
            "prepared": self.prepared,
        })
    }

    fn cells(&self) -> [String; 5] {
        let [connections, replicas, prepared] =
            [self.connections, self.replicas, self.prepared].map(|n| n.to_string());
        [self.version.clone(), human(self.bytes), connections, replicas, prepared]
    }
}

/// Those of the map, and those of the file, which have no bucket before the first move to them and after they were drained.
pub(crate) fn shards(map: &ShardMap, config: Option<&Config>) -> BTreeSet<ShardId> {
    let listed = config.iter().flat_map(|config| &config.shards).map(|shard| shard.id);
    map.shards().into_iter().chain(listed).collect()
}

/// How one shard was found.
struct Found {
    shard: ShardId,
    buckets: u16,
    figures: Option<Figures>,
    /// What is wrong.
    error: Option<String>,
}

impl Found {
    /// `direct`: the server's own answer, when it was asked past the proxy. PURE.
    fn new(
        shard: ShardId,
        buckets: u16,
        through: anyhow::Result<Figures>,
        direct: Option<anyhow::Result<Figures>>,
    ) -> Self {
        let (figures, error) = match (through, direct) {
            // With the role of the file, which sees more.
            (Ok(_), Some(Ok(figures))) | (Ok(figures), _) => (Some(figures), None),
            (Err(error), None) => (None, Some(format!("DOWN: {error:#}"))),
            (Err(_), Some(Err(error))) => (None, Some(format!("DOWN: {error:#}"))),
            (Err(error), Some(Ok(figures))) => (Some(figures), Some(format!("NOT BY THE PROXY: {error:#}"))),
        };
        let recovers = figures.as_ref().is_some_and(|figures| figures.in_recovery);
        let error = error.or_else(|| recovers.then(|| "in recovery".to_owned()));
        Self { shard, buckets, figures, error }
    }

    fn row(&self) -> Vec<String> {
        let state = self.error.clone().unwrap_or_else(|| "up".to_owned());
        let mut row = vec![self.shard.to_string(), state, self.buckets.to_string()];
        row.extend(self.figures.iter().flat_map(Figures::cells));
        row
    }

    fn json(&self) -> Value {
        let mut json = json!({"shard": self.shard.0, "up": self.figures.is_some(), "buckets": self.buckets});
        if let Some(figures) = &self.figures {
            json["server"] = figures.json();
        }
        if let Some(error) = &self.error {
            json["error"] = json!(error);
        }
        json
    }
}

pub async fn status(proxy: &Proxy, config: Option<&Path>) -> anyhow::Result<Report> {
    // The shards are what is asked for: without a file that can be read, those that the proxy tells of are shown.
    let (servers, unread) = match config.map(Servers::read) {
        None => (None, None),
        Some(Ok(servers)) => (Some(servers), None),
        Some(Err(error)) => (None, Some(format!("{error:#}"))),
    };
    let map = proxy.map().await?;
    let all = shards(&map, servers.as_ref().map(|servers| &servers.config));
    // All at once: each may take seconds to say nothing. The proxy keeps statements for a shard without a primary, and with the
    // catalog's shard gone those for every shard, so the servers are asked themselves, too.
    let found = join_all(all.into_iter().map(async |shard| {
        let direct = async {
            match &servers {
                Some(servers) => Some(of_server(servers, shard).await),
                None => None,
            }
        };
        let (through, direct) = tokio::join!(of_shard(proxy, shard), direct);
        Found::new(shard, map.count(shard), through, direct)
    }))
    .await;
    Ok(report(map.epoch(), &found, unread))
}

fn report(epoch: u64, found: &[Found], unread: Option<String>) -> Report {
    let header = ["shard", "state", "buckets", "version", "size", "connections", "replicas", "prepared"];
    let rows: Vec<_> = found.iter().map(Found::row).collect();
    let mut text = format!("epoch {epoch}\n{}", table(&header, &rows));
    let shards: Vec<_> = found.iter().map(Found::json).collect();
    let mut json = json!({"epoch": epoch, "shards": shards});
    let well = unread.is_none() && found.iter().all(|found| found.error.is_none());
    if let Some(error) = unread {
        text += &format!("PROBLEM  {error}; shards without buckets are not shown\n");
        json["config_error"] = json!(error);
    }
    Report { json, text, well }
}

async fn of_shard(proxy: &Proxy, shard: ShardId) -> anyhow::Result<Figures> {
    Figures::of(&proxy.answering(shard).await?).await
}

async fn of_server(servers: &Servers, shard: ShardId) -> anyhow::Result<Figures> {
    Figures::of(&soon(servers.primary(shard, "shardctl status")).await?.client).await
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn figures() -> Figures {
        Figures {
            version: "15.3".into(),
            in_recovery: false,
            bytes: 2048,
            connections: 3,
            replicas: 1,
            synchronous: Some(1),
            prepared: 0,
        }
    }

    #[test]
    fn shards_of_the_file_are_there_without_a_bucket() {
        let text = "[[shard]]\nid = 1\nprimary = \"h:1\"\n[[shard]]\nid = 5\nprimary = \"h:2\"\n";
        let config = Config::parse(text).unwrap();
        let map = ShardMap::even(&[ShardId(1), ShardId(2)], 16);
        assert_eq!(shards(&map, Some(&config)), BTreeSet::from([1, 2, 5].map(ShardId)));
        assert_eq!(shards(&map, None), BTreeSet::from([1, 2].map(ShardId)));
    }

    /// A server that takes connections and says nothing.
    #[tokio::test]
    async fn a_shard_that_says_nothing_is_given_up_within_seconds() {
        let silent = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [primary, replica] = silent.each_ref().map(|one| one.local_addr().unwrap());
        let text = format!("[[shard]]\nid = 1\nprimary = \"{primary}\"\nreplicas = [\"{replica}\"]\n");
        let servers = Servers::new(Config::parse(&text).unwrap());
        let proxy = Proxy::new(&format!("postgresql://app:app@{primary}/payments")).unwrap();
        let begun = std::time::Instant::now();
        let (through, direct) = tokio::join!(of_shard(&proxy, ShardId(1)), of_server(&servers, ShardId(1)));
        let took = begun.elapsed();
        let texts = [through, direct].map(|answer| format!("{:#}", answer.unwrap_err()));
        assert_eq!(texts, ["no answer within 4s", "no answer within 4s"]);
        assert!(took < FIRST_ANSWER + std::time::Duration::from_millis(800), "{took:?}");
    }

    #[test]
    fn a_server_is_told_from_the_way_to_it() {
        let one = |through, direct| Found::new(ShardId(1), 8, through, direct);
        let late = || anyhow!("no answer within 4s");
        let all = [
            one(Ok(figures()), None),
            one(Err(late()), None),
            one(Err(late()), Some(Err(anyhow!("no primary of shard 1 can be reached: refused")))),
            one(Err(late()), Some(Ok(figures()))),
            one(Ok(Figures { in_recovery: true, ..figures() }), None),
        ];
        let states: Vec<_> = all.iter().map(|found| found.row().swap_remove(1)).collect();
        assert_eq!(
            states,
            [
                "up",
                "DOWN: no answer within 4s",
                "DOWN: no primary of shard 1 can be reached: refused",
                "NOT BY THE PROXY: no answer within 4s",
                "in recovery"
            ]
        );
        let seen = one(Ok(Figures { synchronous: None, ..figures() }), Some(Ok(figures())));
        assert_eq!((seen.figures, seen.error), (Some(figures()), None));
        let shown = report(7, &all[..1], None);
        assert!(shown.well);
        let server = json!({"version": "15.3", "in_recovery": false, "bytes": 2048, "connections": 3, "replicas": 1,
            "synchronous": 1, "prepared": 0});
        assert_eq!(
            shown.json,
            json!({"epoch": 7, "shards": [{"shard": 1, "up": true, "buckets": 8, "server": server}]})
        );
        assert!(all[1..].iter().all(|found| !report(7, std::slice::from_ref(found), None).well));
        assert!(!report(7, &all[..1], Some("no such file".into())).well);
    }
}
