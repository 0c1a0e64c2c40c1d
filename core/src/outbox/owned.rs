//! Which rows on a shard are the shard's. While buckets move, rows of them are on two shards; only the one that owns them
//! publishes and removes them (H12).

use shard_config::KeyType;
use tokio_postgres::{Client, Error};

/// A condition on the rows of `alias`, to be ANDed to others: empty where nothing ever moves, on a plain PostgreSQL.
///
/// The shard's own list is read in the very statement that claims, so there is no moment between asking and taking. It
/// has no row while nothing moves.
pub(super) async fn condition(client: &Client, alias: &str) -> Result<String, Error> {
    let known = "SELECT to_regprocedure('shard_catalog.not_owned()') IS NOT NULL";
    if !client.query_one(known, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(String::new());
    }
    let hash = KeyType::Uuid.sql_hash(&format!("{alias}.tenant_id"));
    Ok(format!(
        " AND NOT EXISTS (SELECT FROM shard_catalog.not_owned() n WHERE ({hash} & n.mask) BETWEEN n.low AND n.high)"
    ))
}
