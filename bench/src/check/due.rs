//! From where on an account's events must be there.
//!
//! The sweeper of `core` deletes outbox rows, and Kafka its messages, seven days after they were published. What a
//! payment's event left behind is therefore demanded only while the payment is younger than that, by a margin. An
//! account's payments before the margin may have lost any of their events: rows are deleted in the order in which they
//! are stored, which is not that of the sequence.
use super::shards::Session;
use anyhow::{Context, Result};
use std::collections::HashMap;
use uuid::Uuid;

/// The retention of seven days less a day.
pub const YOUNG: &str = "now() - interval '6 days'";

/// (tenant_id, account_id, event_seq, due): every event from number `due` on must be there.
///
/// `due` is the lowest number of a young payment's event, but no more than one above the number of old payments: each
/// numbered one event, so a higher number means that events of young payments are lost with their payments.
pub fn accounts() -> String {
    format!(
        "SELECT a.tenant_id, a.account_id, a.event_seq,
                least(coalesce(y.low, a.event_seq + 1), coalesce(old.n, 0) + 1) AS due
           FROM accounts a
           LEFT JOIN (SELECT tenant_id, debit_account_id AS account_id, count(*) AS n
                        FROM payments WHERE created_at <= {YOUNG} AND status IN ('succeeded', 'declined')
                       GROUP BY 1, 2) old USING (tenant_id, account_id)
           LEFT JOIN (SELECT o.tenant_id, o.account_id, min(o.event_seq) AS low
                        FROM outbox o JOIN payments p ON p.tenant_id = o.tenant_id AND p.payment_id = o.payment_id
                       WHERE p.created_at > {YOUNG} GROUP BY 1, 2) y USING (tenant_id, account_id)"
    )
}

/// The first number that is due, of accounts where that is not 1.
pub async fn starts(sessions: &[Session]) -> Result<HashMap<Uuid, u64>> {
    let sql = format!("SELECT account_id, due FROM ({}) AS accounts WHERE due > 1", accounts());
    let mut starts = HashMap::new();
    for session in sessions {
        for row in session.client.query(&sql, &[]).await.context("which events are due")? {
            starts.insert(row.try_get(0)?, u64::try_from(row.try_get::<_, i64>(1)?)?);
        }
    }
    Ok(starts)
}
