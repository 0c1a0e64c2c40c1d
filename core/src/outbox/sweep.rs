//! Removes what a shard need not keep any longer: published rows after their retention (until then events can be compared
//! with the ledger and sent again should a broker lose them, H36), expired idempotency keys, use of rules whose window has
//! ended, and old notes of what consumers have done.

use std::time::Duration;

use tokio_postgres::{Client, Error};

/// Rows of one statement: its locks and its WAL stay small beside the payments'.
const CHUNK: i64 = 1_000;
/// Statements of one run, so that the relay gets back to publishing.
const CHUNKS: usize = 20;

/// Rows that occurred and were published long ago. The BRIN index on `occurred_at` makes the look-up cheap: rows are
/// stored nearly in that order.
const PUBLISHED: &str = "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox \
    WHERE occurred_at < clock_timestamp() - $1 * interval '1 second' \
    AND published_at < clock_timestamp() - $1 * interval '1 second' LIMIT $2))";

/// Keys that expired `$1` seconds ago, by BRIN on `expires_at`.
const KEYS: &str = "DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency_keys \
    WHERE expires_at < clock_timestamp() - $1 * interval '1 second' LIMIT $2)) \
    AND expires_at < clock_timestamp() - $1 * interval '1 second'";

/// Use of windows that ended `$1` seconds ago, and of rules that are gone. A row is locked before it is judged: a payment
/// may be starting the next window in it.
const USAGE: &str = "DELETE FROM rule_usage WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM rule_usage u \
    LEFT JOIN fraud_rules f ON f.tenant_id = u.tenant_id AND f.rule_id = u.rule_id \
    WHERE u.window_start < clock_timestamp() - ($1::float8 + CASE WHEN f.rule_id IS NULL THEN 0 \
        WHEN f.rule_type = 'daily_amount' THEN 86400 ELSE coalesce(f.window_seconds, 86400) END) * interval '1 second' \
    LIMIT $2 FOR UPDATE OF u SKIP LOCKED))";

const INBOX: &str = "DELETE FROM inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM inbox \
    WHERE processed_at < clock_timestamp() - $1 * interval '1 second' LIMIT $2))";

/// A replica's clock, a paused backend: nothing is removed at the very moment at which it expires.
const GRACE: Duration = Duration::from_secs(60);

/// Deletes outbox rows that were published more than `retention` ago, and expired idempotency keys. How many of the first.
pub(super) async fn some(client: &Client, retention: Duration) -> Result<u64, Error> {
    // The relay's session forbids bitmap scans, the only way to use BRIN.
    client.batch_execute("SET enable_bitmapscan = on").await?;
    let deleted = chunks(client, PUBLISHED, retention).await?;
    chunks(client, KEYS, GRACE).await?;
    client.batch_execute("SET enable_bitmapscan = off").await?;
    Ok(deleted)
}

/// The tables without an index on time; reading them whole is for a longer beat. An event may come again as long as Kafka
/// keeps it, which is no longer than the outbox does.
pub(super) async fn rare(client: &Client, retention: Duration) -> Result<(), Error> {
    chunks(client, USAGE, GRACE).await?;
    chunks(client, INBOX, retention * 2).await?;
    Ok(())
}

/// Up to [`CHUNK`] x [`CHUNKS`] rows.
async fn chunks(client: &Client, delete: &str, age: Duration) -> Result<u64, Error> {
    let delete = client.prepare(delete).await?;
    let mut deleted = 0;
    for _ in 0..CHUNKS {
        let some = client.execute(&delete, &[&age.as_secs_f64(), &CHUNK]).await?;
        deleted += some;
        if some < CHUNK as u64 {
            break;
        }
    }
    Ok(deleted)
}
