//! The shard map, read from the proxy as a hint for grouping.

use rustc_hash::FxHashMap;
use shard_config::{BUCKETS_DEFAULT, KeyHash, ShardId, ShardMap, hash_of_uuid};
use std::sync::Arc;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::lanes::Lane;
use crate::domain::ids::TenantId;
use crate::ledger::connect::Link;

/// Which lane a tenant's payments join.
pub struct Routing {
    pub map: ShardMap,
    /// Whether the map is the proxy's. Otherwise the database is one PostgreSQL, and the lanes only divide the work.
    pub sharded: bool,
    pub lanes: FxHashMap<ShardId, Arc<Lane>>,
    /// By bucket, so that the hot path is one hash and one index.
    by_bucket: Box<[Arc<Lane>]>,
}

impl Routing {
    /// `lanes` has one for every shard of `map`.
    pub fn new(map: ShardMap, sharded: bool, lanes: FxHashMap<ShardId, Arc<Lane>>) -> Self {
        let by_bucket = map.owners().iter().map(|shard| lanes[shard].clone()).collect();
        Self { map, sharded, lanes, by_bucket }
    }

    pub fn lane_of(&self, tenant: TenantId) -> &Arc<Lane> {
        let hash = hash_of_uuid(tenant.0.as_bytes());
        if !self.map.overrides().is_empty()
            && let Some(lane) = self.lanes.get(&self.map.shard_of_hash(hash))
        {
            return lane;
        }
        let bucket = hash.bucket(self.map.buckets());
        &self.by_bucket[usize::from(bucket.get())]
    }

    pub fn is_for(&self, map: &ShardMap, sharded: bool) -> bool {
        self.sharded == sharded
            && self.map.epoch() == map.epoch()
            && self.map.owners() == map.owners()
            && self.map.overrides() == map.overrides()
    }
}

/// The lanes of a database without a map: `lanes` groups of buckets.
pub fn without_map(lanes: u16) -> ShardMap {
    let groups: Vec<_> = (1..=lanes.max(1)).map(ShardId).collect();
    ShardMap::even(&groups, BUCKETS_DEFAULT)
}

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("the shard map could not be read: {0}")]
    Database(#[from] tokio_postgres::Error),
    #[error("the shard map does not make sense: {0}")]
    Nonsense(String),
}

/// `None`: the server knows no shard map, so it is a PostgreSQL.
pub async fn read(link: &Link) -> Result<Option<ShardMap>, MapError> {
    let messages = match link.client.simple_query("SHOW shard.map").await {
        Ok(messages) => messages,
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let mut ranges = Vec::new();
    let mut overrides = Vec::new();
    let mut epoch = 0;
    for row in rows {
        let field = |name: &str| -> Result<u64, MapError> {
            let text = row.try_get(name)?.unwrap_or_default();
            text.parse().map_err(|_| MapError::Nonsense(format!("{name} is {text:?}")))
        };
        let small = |value: u64| {
            u16::try_from(value).map_err(|_| MapError::Nonsense(format!("{value} is too large")))
        };
        ranges.push((
            small(field("bucket_from")?)?,
            small(field("bucket_to")?)?,
            ShardId(small(field("shard")?)?),
        ));
        epoch = field("epoch")?;
        // Single tenants that live elsewhere than their bucket: `[[hash, shard], ...]`. A proxy of before has no such column.
        let single = row.columns().iter().position(|column| column.name() == "overrides");
        let single = single.and_then(|at| row.get(at)).filter(|text| !text.is_empty()).unwrap_or("[]");
        let single: Vec<(i64, u16)> = serde_json::from_str(single)
            .map_err(|_| MapError::Nonsense(format!("overrides is {single:?}")))?;
        overrides.extend(single.into_iter().map(|(hash, shard)| (KeyHash::new(hash), ShardId(shard))));
    }
    let buckets = ranges.iter().map(|(_, to, _)| to + 1).max().unwrap_or(0);
    ShardMap::from_ranges(epoch, buckets, &ranges)
        .and_then(|map| map.with_overrides(&overrides))
        .map(Some)
        .map_err(|e| MapError::Nonsense(format!("{e:?}")))
}
