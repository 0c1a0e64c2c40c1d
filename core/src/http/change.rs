//! Changes of rows that are cached. A handler is dropped when its client goes, perhaps after the statement was sent and
//! before the caches were told; so such a change runs in a task of its own, to its end.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::cache::Cache;
use crate::cache::values::{Key, Value};
use crate::domain::code::Code;
use crate::error::Problem;
use crate::ledger::reads::DbError;
use crate::limits;

/// Runs `work` to its end, whether its client waits or not. How many run at a time is bounded, and [`finish`] waits for
/// them.
pub(super) async fn to_its_end<T: Send + 'static>(
    app: &Arc<App>,
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let failed = |what: &str| {
        tracing::error!(what, "a change did not run to its end");
        Problem::of(Code::OutcomeUnknown)
    };
    let pass = app.changes.clone().acquire_owned().await.map_err(|_| Problem::of(Code::ShuttingDown))?;
    let task = tokio::spawn(async move {
        let done = work.await;
        drop(pass);
        done
    });
    task.await.unwrap_or_else(|error| Err(failed(&error.to_string())))
}

/// Begins no more and waits for those under way: their statements are bounded.
pub async fn finish(app: &App) {
    let all = app.changes.acquire_many(limits::CHANGES_MAX);
    if tokio::time::timeout(Duration::from_millis(2 * limits::STATEMENT_TIMEOUT_MS), all).await.is_err() {
        tracing::warn!("changes of cached rows were still under way at the end of draining");
    }
    app.changes.close();
}

/// Tells the cache of a change that was sent. One of unknown outcome may be made later, so the row is evicted again (H33).
pub(super) fn evict<K: Key, V: Value, T>(
    cache: &Cache<K, V>,
    key: &K,
    version: Option<i64>,
    changed: &Result<T, DbError>,
) {
    match changed {
        Err(DbError::OutcomeUnknown(_)) => cache.doubt(key),
        _ => cache.evict(key, version),
    }
}
