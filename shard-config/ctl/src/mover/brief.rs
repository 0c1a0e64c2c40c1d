//! Definitions on tables that the application uses: asked for briefly, again and again, so that nobody who comes later waits long
//! behind them.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use crate::direct::{Db, is_code};

/// Longest wait for a lock on a table of the application, and so the longest that its statements wait for us.
const LOCK_WAIT: Duration = Duration::from_millis(100);
/// Between two attempts.
const REST: Duration = Duration::from_millis(150);
/// A table that is never free for a moment in all this time has a transaction that sits on it; the operator is told.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs DDL in one transaction that waits for locks only briefly, until it has been free once.
pub(super) async fn briefly(db: &Db, sql: &str, patience: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let wait = LOCK_WAIT.as_millis();
        // An autovacuum gives way to who waits, once they have looked for a deadlock.
        let limits = format!("SET LOCAL lock_timeout = {wait}; SET LOCAL deadlock_timeout = {}", wait / 5);
        let done = db.run(&format!("BEGIN; {limits}; {sql} COMMIT")).await;
        let Err(error) = done else { return Ok(()) };
        // Ends the transaction that failed; also when the connection is gone, which the next attempt says.
        let _ = db.run("ROLLBACK").await;
        let busy = is_code(&error, &SqlState::LOCK_NOT_AVAILABLE)
            || is_code(&error, &SqlState::T_R_DEADLOCK_DETECTED);
        if !busy || begun.elapsed() >= patience {
            return Err(error);
        }
        tokio::time::sleep(REST).await;
    }
}
