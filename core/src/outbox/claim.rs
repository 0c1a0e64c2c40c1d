//! Which rows come next, and marking them published.

use tokio_postgres::{Client, Error, Statement};
use uuid::Uuid;

use super::event::Event;
use super::lease::Lease;
use super::owned;

/// Where the next claim starts. Claims go round over the accounts, so that an account with more events than a claim
/// holds cannot keep the others waiting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cursor {
    account: Uuid,
    seq: i64,
}

impl Cursor {
    /// Before the first account. A new session starts here, so at the first unmarked row of every account.
    pub const START: Cursor = Cursor { account: Uuid::nil(), seq: i64::MIN };

    /// After a claim of `rows`, of which at most `limit` could come.
    pub fn after(self, rows: &[Event], limit: usize) -> Cursor {
        match (rows.first(), rows.last()) {
            (Some(first), Some(last)) if rows.len() >= limit => Cursor {
                account: last.account_id,
                // One account filled the claim: the others first. Otherwise it goes on in the middle of the account.
                seq: if first.account_id == last.account_id { i64::MAX } else { last.event_seq },
            },
            _ => Cursor::START,
        }
    }
}

/// The prepared statements of one session.
pub struct Claims {
    claim: Statement,
    mark: Statement,
    pending: Statement,
}

impl Claims {
    /// Prepares on a session whose planner is told to use the index: the statistics of a table in which nearly every
    /// row is published, or of one just made, mislead it into reading the table.
    pub async fn prepare(client: &Client, limit: usize) -> Result<Claims, Error> {
        for setting in ["enable_seqscan", "enable_bitmapscan", "enable_sort", "jit"] {
            client.batch_execute(&format!("SET {setting} = off")).await?;
        }
        // Lost marks are rows published twice, which consumers must bear anyway; a flush and a wait for the standby
        // for every batch is what they would cost otherwise.
        client.batch_execute("SET synchronous_commit = off").await?;
        let owned = owned::condition(client, "o").await?;
        // The partial index on unpublished rows gives this order.
        let claim = format!(
            "SELECT tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id, amount_minor, \
             currency, status, code, occurred_at FROM outbox o \
             WHERE published_at IS NULL AND (account_id, event_seq) > ($1, $2){owned} \
             ORDER BY account_id, event_seq LIMIT {limit}"
        );
        // `published_at IS NULL` keeps the first mark's time when a row was published twice. Rows that have moved on
        // since they were claimed are marked by their new owner, which publishes them once more.
        let mark = format!(
            "UPDATE outbox o SET published_at = clock_timestamp() \
             FROM unnest($1::uuid[], $2::uuid[], $3::int8[]) AS d (tenant_id, account_id, event_seq) \
             WHERE o.tenant_id = d.tenant_id AND o.account_id = d.account_id AND o.event_seq = d.event_seq \
             AND o.published_at IS NULL \
             AND EXISTS (SELECT 1 FROM relay_leases l WHERE l.shard_id = $4 AND l.owner = $5 AND l.epoch = $6){owned}"
        );
        let pending = format!(
            "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(occurred_at)), 0)::float8 \
             FROM (SELECT occurred_at FROM outbox o WHERE published_at IS NULL{owned} LIMIT 50000) AS waiting"
        );
        Ok(Claims {
            claim: client.prepare(&claim).await?,
            mark: client.prepare(&mark).await?,
            pending: client.prepare(&pending).await?,
        })
    }

    /// Unpublished rows after `cursor`, by account and within it by sequence.
    pub async fn next(&self, client: &Client, cursor: Cursor) -> Result<Vec<Event>, Error> {
        let rows = client.query(&self.claim, &[&cursor.account, &cursor.seq]).await?;
        rows.iter()
            .map(|row| {
                Ok(Event {
                    tenant_id: row.try_get(0)?,
                    account_id: row.try_get(1)?,
                    event_seq: row.try_get(2)?,
                    event_id: row.try_get(3)?,
                    event_type: row.try_get(4)?,
                    payment_id: row.try_get(5)?,
                    credit_account_id: row.try_get(6)?,
                    amount_minor: row.try_get(7)?,
                    currency: row.try_get(8)?,
                    status: row.try_get(9)?,
                    code: row.try_get(10)?,
                    occurred_at: row.try_get(11)?,
                })
            })
            .collect()
    }

    /// Marks `events` if `lease` still stands. False: it does not, or another relay has marked them all.
    pub async fn mark(&self, client: &Client, lease: &Lease, events: &[Event]) -> Result<bool, Error> {
        let tenants: Vec<Uuid> = events.iter().map(|e| e.tenant_id).collect();
        let accounts: Vec<Uuid> = events.iter().map(|e| e.account_id).collect();
        let seqs: Vec<i64> = events.iter().map(|e| e.event_seq).collect();
        let marked = client
            .execute(&self.mark, &[&tenants, &accounts, &seqs, &lease.shard, &lease.owner, &lease.epoch])
            .await?;
        Ok(marked > 0)
    }

    /// How many rows wait (50,000 are counted at most) and the age of the oldest of those in seconds.
    pub async fn pending(&self, client: &Client) -> Result<(i64, f64), Error> {
        let row = client.query_one(&self.pending, &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(account: u128, seq: i64) -> Event {
        Event {
            tenant_id: Uuid::nil(),
            account_id: Uuid::from_u128(account),
            event_seq: seq,
            event_id: Uuid::nil(),
            event_type: String::new(),
            payment_id: Uuid::nil(),
            credit_account_id: Uuid::nil(),
            amount_minor: 1,
            currency: String::new(),
            status: String::new(),
            code: None,
            occurred_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn claims_go_round() {
        let full = [event(1, 1), event(2, 5)];
        let next = Cursor::START.after(&full, 2);
        assert_eq!(next, Cursor { account: Uuid::from_u128(2), seq: 5 }, "goes on inside the account");
        let hot = [event(2, 6), event(2, 7)];
        assert_eq!(next.after(&hot, 2).seq, i64::MAX, "an account that fills a claim waits for the others");
        assert_eq!(next.after(&hot[..1], 2), Cursor::START, "a claim that is not full has reached the end");
        assert_eq!(next.after(&[], 2), Cursor::START);
    }
}
