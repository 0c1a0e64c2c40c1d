//! The mover's part, played by the tests: rows of the catalog, written as it would write them.

use std::time::{Duration, Instant};

use shard_config::{KeyHash, KeyType, Scope, ShardId, ShardMap};
use tokio_postgres::Client;

use crate::cluster::Cluster;
use crate::proxy::World;

pub const SHARDS: [ShardId; 4] = [ShardId(1), ShardId(2), ShardId(3), ShardId(4)];

pub fn hash(key: i64) -> KeyHash {
    KeyType::Int8.hash_of_text_value(key.to_string().as_bytes()).unwrap()
}

/// The buckets of these keys.
pub fn buckets_of(keys: &[i64]) -> Scope {
    let ranges: Vec<(u16, u16)> =
        keys.iter().map(|key| hash(*key).bucket(4096).get()).map(|bucket| (bucket, bucket)).collect();
    Scope::new(&ranges, &[]).unwrap()
}

pub struct Mover {
    pub catalog: Client,
    pub map: ShardMap,
    /// Those that may own something.
    pub shards: Vec<ShardId>,
}

impl Mover {
    pub async fn new(world: &World) -> Self {
        Self::of(&world.cluster, &SHARDS).await
    }

    /// Of a cluster in which these shards own everything.
    pub async fn of(cluster: &Cluster, owners: &[ShardId]) -> Self {
        let catalog = cluster.primaries[0].client("postgres").await;
        let shards = (1..=cluster.primaries.len() as u16).map(ShardId).collect();
        Self { catalog, map: ShardMap::even(owners, 4096), shards }
    }

    /// One transaction; returns its version.
    pub async fn change(&self, sql: &str) -> i64 {
        let answer =
            self.catalog.simple_query(&format!("BEGIN; {sql}; SELECT shard_catalog.bump(); COMMIT")).await;
        let rows = answer.unwrap();
        let version = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(|text| text.parse().unwrap()),
            _ => None,
        });
        version.unwrap()
    }

    pub async fn begin(&self, id: i64, scope: &Scope, source: u16, target: u16) -> i64 {
        self.change(&format!(
            "INSERT INTO shard_catalog.motion (move_id, scope, source, target, stage) VALUES ({id}, '{}', {source}, {target}, 'copying')",
            scope.json()
        ))
        .await
    }

    pub async fn stage(&self, id: i64, stage: &str) -> i64 {
        self.change(&format!("UPDATE shard_catalog.motion SET stage = '{stage}' WHERE move_id = {id}")).await
    }

    /// The next epoch, and the stage, in one transaction.
    pub async fn flip(&mut self, id: i64, scope: &Scope, from: u16, to: u16, stage: &str) -> i64 {
        let epoch = self.map.epoch();
        self.map = self.map.apply_scope(epoch, scope, ShardId(from), ShardId(to), &self.shards).unwrap();
        let ranges: Vec<(u16, u16, u16)> = self.map.ranges().iter().map(|(a, b, s)| (*a, *b, s.0)).collect();
        let overrides: Vec<(i64, u16)> = self.map.overrides().iter().map(|(h, s)| (h.get(), s.0)).collect();
        self.change(&format!(
            "INSERT INTO shard_catalog.map (epoch, buckets, ranges, overrides) VALUES ({}, 4096, '{}', '{}');
             UPDATE shard_catalog.motion SET stage = '{stage}' WHERE move_id = {id}",
            self.map.epoch(),
            serde_json::to_string(&ranges).unwrap(),
            serde_json::to_string(&overrides).unwrap(),
        ))
        .await
    }

    pub async fn end(&self, id: i64) -> i64 {
        self.change(&format!("DELETE FROM shard_catalog.motion WHERE move_id = {id}")).await
    }

    /// Smallest `column` of all leased proxies, of which there are `proxies`.
    pub async fn least(&self, column: &str, proxies: i64) -> i64 {
        let sql = format!(
            "SELECT count(*), coalesce(min({column}), 0)::int8 FROM shard_catalog.proxy WHERE lease_until > clock_timestamp()"
        );
        let row = self.catalog.query_one(&sql, &[]).await.unwrap();
        if row.get::<_, i64>(0) == proxies { row.get(1) } else { -1 }
    }

    pub async fn wait(&self, column: &str, version: i64, proxies: i64) -> Duration {
        let begun = Instant::now();
        while self.least(column, proxies).await < version {
            let notes = "SELECT coalesce(string_agg(name || ' ' || version || ' ' || drained || ' ' || coalesce(note, ''), '; '), '') FROM shard_catalog.proxy";
            if begun.elapsed() > Duration::from_secs(10) {
                let notes: String = self.catalog.query_one(notes, &[]).await.unwrap().get(0);
                panic!("{column} is not {version}: {notes}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        begun.elapsed()
    }

    pub async fn drained(&self, version: i64) -> Duration {
        self.wait("drained", version, 1).await
    }
}
