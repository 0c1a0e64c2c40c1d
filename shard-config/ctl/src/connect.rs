//! The proxy, and one shard through it.

use std::time::Duration;

use anyhow::Context;
use shard_config::{ConnectionUrl, KeyHash, ShardId, ShardMap};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::Unreachable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No answer from a shard for so long is a problem to report, not to wait for. `doctor --sweep` reads tables and
/// is allowed more.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Who only wants to know whether a server is there waits so long. The proxy keeps a statement longer than this when it sees no
/// primary, or may not tell whose the buckets are.
pub const FIRST_ANSWER: Duration = Duration::from_secs(4);

pub struct Proxy {
    url: ConnectionUrl,
}

impl Proxy {
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { url: url.parse().context("--url")? })
    }

    /// With the password, for other crates that connect themselves.
    pub fn expose_url(&self) -> String {
        self.url.expose_libpq()
    }

    pub async fn connect(&self) -> anyhow::Result<Client> {
        self.open(None).await
    }

    /// A session whose every statement goes to one shard's primary.
    pub async fn shard(&self, shard: ShardId) -> anyhow::Result<Client> {
        self.open(Some(shard)).await
    }

    /// The same, when the primary has answered just now.
    pub async fn answering(&self, shard: ShardId) -> anyhow::Result<Client> {
        soon(async {
            let client = self.shard(shard).await?;
            match client.simple_query("SELECT 1").await {
                Ok(_) => Ok(client),
                // Of `shard.target`, which the proxy takes for the number of one of its shards.
                Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
                    anyhow::bail!("the proxy does not serve it (shardctl servers tells what it does)")
                }
                Err(error) => anyhow::bail!("{}", describe(&error)),
            }
        })
        .await
    }

    async fn open(&self, shard: Option<ShardId>) -> anyhow::Result<Client> {
        let mut config: tokio_postgres::Config = self.url.expose_libpq().parse().context("--url")?;
        config.connect_timeout(CONNECT_TIMEOUT).application_name("shardctl");
        if let Some(shard) = shard {
            config.options(format!("-c shard.target={shard}"));
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(Unreachable(format!("{}: {}", self.url, describe(&error))).into()),
            Err(_) => {
                return Err(Unreachable(format!("{}: no answer within {CONNECT_TIMEOUT:?}", self.url)).into());
            }
        };
        // Ends when the client is dropped; a loss is reported by the statement that was waiting.
        tokio::spawn(connection);
        Ok(client)
    }

    /// The map that the proxy follows.
    pub async fn map(&self) -> anyhow::Result<ShardMap> {
        let client = self.connect().await?;
        let asked = tokio::time::timeout(FIRST_ANSWER, client.simple_query("SHOW shard.map"));
        let rows = match asked.await {
            Err(_) => {
                return Err(Unreachable(format!("{}: no answer within {FIRST_ANSWER:?}", self.url)).into());
            }
            Ok(Ok(messages)) => rows(messages),
            // What PostgreSQL says of a setting it does not know.
            Ok(Err(error)) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                return Err(
                    Unreachable(format!("{}: this is a PostgreSQL, not a shard-proxy", self.url)).into()
                );
            }
            Ok(Err(error)) => anyhow::bail!("SHOW shard.map: {}", describe(&error)),
        };
        let mut epoch = 0;
        let mut ranges = Vec::new();
        let mut pinned = Vec::new();
        for row in &rows {
            epoch = number(row, "epoch")?;
            let shard = ShardId(number(row, "shard")?);
            ranges.push((number(row, "bucket_from")?, number(row, "bucket_to")?, shard));
            pinned.extend(overrides(&cell(row, "overrides"))?);
        }
        let buckets = ranges.iter().map(|&(_, to, _): &(u16, u16, ShardId)| to).max().map_or(0, |to| to + 1);
        let map = ShardMap::from_ranges(epoch, buckets, &ranges).context("SHOW shard.map")?;
        map.with_overrides(&pinned).context("SHOW shard.map")
    }
}

/// `[[hash, shard], ...]`, or nothing.
fn overrides(text: &str) -> anyhow::Result<Vec<(KeyHash, ShardId)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<(i64, u16)> =
        serde_json::from_str(text).with_context(|| format!("SHOW shard.map: overrides is \"{text}\""))?;
    Ok(list.into_iter().map(|(hash, shard)| (KeyHash::new(hash), ShardId(shard))).collect())
}

/// What must be known within seconds.
pub async fn soon<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(FIRST_ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => anyhow::bail!("no answer within {FIRST_ANSWER:?}"),
    }
}

/// The rows of one simple query that must be answered in time.
pub async fn ask(client: &Client, sql: &str, within: Duration) -> anyhow::Result<Vec<SimpleQueryRow>> {
    match tokio::time::timeout(within, client.simple_query(sql)).await {
        Ok(Ok(messages)) => Ok(rows(messages)),
        Ok(Err(error)) => anyhow::bail!("{}", describe(&error)),
        Err(_) => anyhow::bail!("no answer within {within:?}"),
    }
}

fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A cell as text; "" for NULL or a column that is not there.
pub fn cell(row: &SimpleQueryRow, column: &str) -> String {
    row.try_get(column).ok().flatten().unwrap_or_default().to_owned()
}

fn number<N: std::str::FromStr>(row: &SimpleQueryRow, column: &str) -> anyhow::Result<N> {
    let text = cell(row, column);
    text.parse().ok().with_context(|| format!("SHOW shard.map: {column} is \"{text}\""))
}

/// The server's own words, with its hint, rather than the driver's "db error".
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        None => std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
        Some(db) => {
            let hint = db.hint().map(|hint| format!(". {hint}")).unwrap_or_default();
            format!("{} ({}){hint}", db.message(), db.code().code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_read_as_the_proxy_says_them() {
        assert_eq!(overrides("").unwrap(), []);
        let pinned = [(KeyHash::new(-3), ShardId(2)), (KeyHash::new(i64::MAX), ShardId(1))];
        assert_eq!(overrides("[[-3,2],[9223372036854775807,1]]").unwrap(), pinned);
        assert!(overrides("[1,2]").is_err());
    }
}
