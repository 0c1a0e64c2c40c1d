//! One task a shard, for the relays and for the sweepers.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::OutboxConfig;
use crate::batch::map;
use crate::ledger::connect;

/// Follows the list of shards and keeps the task that `start` makes for each, until stopped; then waits for all of them.
pub(super) async fn follow<F, T>(config: &OutboxConfig, mut stopped: watch::Receiver<bool>, mut start: F)
where
    F: FnMut(Option<u16>, watch::Receiver<bool>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut stops: HashMap<Option<u16>, watch::Sender<bool>> = HashMap::new();
    while !*stopped.borrow() {
        let mut pause = config.shards_every;
        match shards(config).await {
            Ok(shards) => {
                stops.retain(|shard, stop| {
                    let stays = shards.contains(shard);
                    if !stays {
                        stop.send_replace(true);
                    }
                    stays
                });
                for shard in shards {
                    stops.entry(shard).or_insert_with(|| {
                        let (stop, stopped) = watch::channel(false);
                        tasks.spawn(start(shard, stopped));
                        stop
                    });
                }
            }
            Err(error) => {
                tracing::debug!(error, "the list of shards is not readable yet");
                if stops.is_empty() {
                    pause = Duration::from_millis(500);
                }
            }
        }
        let _ = tokio::time::timeout(pause, stopped.wait_for(|s| *s)).await;
        while tasks.try_join_next().is_some() {}
    }
    for stop in stops.values() {
        stop.send_replace(true);
    }
    while tasks.join_next().await.is_some() {}
}

/// The shards behind the proxy; of a plain PostgreSQL, itself.
async fn shards(config: &OutboxConfig) -> Result<Vec<Option<u16>>, String> {
    let read = async {
        let link = connect::open(&config.database).await.map_err(|e| e.to_string())?;
        map::read(&link).await.map_err(|e| e.to_string())
    };
    let map = tokio::time::timeout(Duration::from_secs(5), read).await.map_err(|e| e.to_string())??;
    Ok(map.map_or(vec![None], |map| map.shards().into_iter().map(|shard| Some(shard.0)).collect()))
}

/// Opens a session on one shard's primary.
pub(super) async fn open(
    config: &OutboxConfig,
    shard: Option<u16>,
    purpose: &str,
) -> Result<connect::Link, connect::OpenError> {
    let mut settings = config.database.clone();
    if let Some(shard) = shard {
        settings.options(format!("-c shard.target={shard} -c shard.read=primary"));
    }
    settings.application_name(format!("{}/{purpose}", config.instance));
    connect::open(&settings).await
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatementError {
    /// The server may be frozen: it says nothing, and its connection stays. The session is of no use any more.
    #[error("no answer within {0:?}")]
    Overdue(Duration),
    // The driver's own text of a server's error is "db error"; what happened is in its source.
    #[error("{}", .0.as_db_error().map_or(.0.to_string(), ToString::to_string))]
    Database(#[from] tokio_postgres::Error),
}

/// Whoever gets [`StatementError::Overdue`] gives its session up.
pub(super) async fn in_time<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StatementError> {
    match tokio::time::timeout(limit, statement).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(StatementError::Overdue(limit)),
    }
}
