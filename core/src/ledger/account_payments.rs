//! The payments of one account, newest first, without reading those of the tenant's other accounts.
//!
//! A payment that succeeded has an entry, and entries are indexed by their account's version; one that did not succeed is
//! in a small index of its own. So there are two streams, each paged by its own position: succeeded ones in the order in
//! which they were posted to the account, the others by their ids. They are merged by time. Payments that were posted at
//! the same moment may therefore stand in another order than their ids, but each is on exactly one page.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::payments::{COLUMNS, Filter, PaymentRow, payment};
use super::reads::{DbError, Lease};
use crate::domain::ids::{AccountId, PaymentId, TenantId};
use crate::domain::payment::PaymentStatus;

/// Where a page ended. Members have short names: they travel in cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The account's version at the last payment that succeeded.
    v: i64,
    /// The last one that did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    u: Option<Uuid>,
}

impl Position {
    pub const START: Self = Self { v: i64::MAX, u: None };
}

/// A row and, if the payment succeeded, the account's version at it.
type Found = (Option<i64>, PaymentRow);

/// The last millisecond of the year 9999, the last that a query can name.
const END_OF_TIME_MS: i64 = 253_402_300_799_999;

/// A statement and its parameters.
struct Query<'a> {
    sql: String,
    params: Vec<&'a (dyn ToSql + Sync)>,
}

impl<'a> Query<'a> {
    fn add(&mut self, value: &'a (dyn ToSql + Sync)) -> usize {
        self.params.push(value);
        self.params.len()
    }

    fn or(&mut self, select: &str) {
        if !self.sql.is_empty() {
            self.sql.push_str(" UNION ALL ");
        }
        self.sql.push_str(select);
    }
}

/// What the statement is told.
struct Wanted<'a> {
    tenant: Uuid,
    account: Uuid,
    status: Option<&'a str>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    version: i64,
    unsettled: (DateTime<Utc>, Uuid),
    limit: i64,
}

/// One statement, so that both streams are of one moment and of one server: a payment that is posted between two
/// statements could be passed by and never be on any page.
fn statement<'a>(wanted: &'a Wanted<'a>) -> Query<'a> {
    let columns: Vec<String> = COLUMNS.split(", ").map(|column| format!("p.{column}")).collect();
    let columns = columns.join(", ");
    let mut query = Query {
        sql: String::new(),
        params: vec![&wanted.tenant, &wanted.account, &wanted.limit, &wanted.from, &wanted.to],
    };
    let succeeded = PaymentStatus::Succeeded.as_str();
    if wanted.status.is_none_or(|status| status == succeeded) {
        let version = query.add(&wanted.version);
        for side in ["debit", "credit"] {
            query.or(&format!(
                "(SELECT e.{side}_version, {columns} FROM entries e JOIN payments p ON p.tenant_id = e.tenant_id \
                 AND p.created_at = e.created_at AND p.payment_id = e.payment_id \
                 WHERE e.tenant_id = $1 AND e.{side}_account_id = $2 AND e.{side}_version < ${version} \
                 AND e.created_at >= $4 AND e.created_at < $5 ORDER BY e.{side}_version DESC LIMIT $3)"
            ));
        }
    }
    if wanted.status.is_none_or(|status| status != succeeded) {
        let (at, id) = (query.add(&wanted.unsettled.0), query.add(&wanted.unsettled.1));
        let status = wanted.status.as_ref().map(|status| query.add(status));
        let status = status.map_or_else(String::new, |n| format!("AND p.status = ${n} "));
        for side in ["debit", "credit"] {
            // The comparison with 'succeeded' is what the index is of; a parameter would not imply it.
            query.or(&format!(
                "(SELECT NULL::bigint, {columns} FROM payments p WHERE p.tenant_id = $1 AND p.{side}_account_id = $2 \
                 AND p.status <> 'succeeded' {status}AND (p.created_at, p.payment_id) < (${at}, ${id}) \
                 AND p.created_at >= $4 AND p.created_at < $5 \
                 ORDER BY p.created_at DESC, p.payment_id DESC LIMIT $3)"
            ));
        }
    }
    query
}

/// The page after `after`, and where it ended when there is more.
pub async fn list(
    db: &mut Lease,
    tenant: TenantId,
    account: AccountId,
    filter: &Filter,
    after: Position,
    limit: i64,
) -> Result<(Vec<PaymentRow>, Option<Position>), DbError> {
    let to = filter.to.or(DateTime::from_timestamp_millis(END_OF_TIME_MS)).unwrap_or_default();
    let unsettled = after.u.and_then(|id| Some((PaymentId(id).created_at()?, id)));
    let wanted = Wanted {
        tenant: tenant.0,
        account: account.0,
        status: filter.status.as_deref(),
        from: filter.from.unwrap_or(DateTime::<Utc>::UNIX_EPOCH),
        to,
        version: after.v,
        unsettled: unsettled.unwrap_or((to, Uuid::nil())),
        limit: limit + 1,
    };
    let query = statement(&wanted);
    let rows = db.query(&query.sql, &query.params).await?;
    let found = rows.iter().map(|row| Ok((row.try_get(0)?, payment(row, 1)?)));
    Ok(merge(found.collect::<Result<_, DbError>>()?, after, usize::try_from(limit).unwrap_or(0)))
}

/// The first `limit` rows of both streams together. Each stream holds `limit + 1` of its rows if it has so many.
fn merge(found: Vec<Found>, after: Position, limit: usize) -> (Vec<PaymentRow>, Option<Position>) {
    let more = found.len() > limit;
    let (mut succeeded, mut unsettled): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|(v, _)| v.is_some());
    // The next row of each stream is its last element.
    succeeded.sort_unstable_by_key(|(version, _)| *version);
    unsettled.sort_unstable_by_key(|(_, row)| (row.created_at, row.payment_id));
    let key = |found: Option<&Found>| found.map(|(_, row)| (row.created_at, row.payment_id));
    let (mut page, mut end) = (Vec::with_capacity(limit.min(succeeded.len() + unsettled.len())), after);
    while page.len() < limit {
        let next =
            if key(succeeded.last()) > key(unsettled.last()) { succeeded.pop() } else { unsettled.pop() };
        match next {
            None => break,
            Some((Some(version), row)) => {
                end.v = version;
                page.push(row);
            }
            Some((None, row)) => {
                end.u = Some(row.payment_id);
                page.push(row);
            }
        }
    }
    (page, more.then_some(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ms: i64, version: Option<i64>) -> Found {
        let row = PaymentRow {
            payment_id: Uuid::from_u128(ms as u128),
            created_at: DateTime::from_timestamp_millis(ms).unwrap(),
            reference: None,
            debit: Uuid::nil(),
            credit: Uuid::nil(),
            amount_minor: 1,
            currency: "USD".into(),
            status: String::new(),
            decline_code: None,
            payment_type: None,
            description: None,
            metadata: None,
        };
        (version, row)
    }

    /// Version 3 was posted after version 2, but its id is older: the stream's own order holds.
    #[test]
    fn two_streams_are_merged_by_time_and_each_keeps_its_order() {
        let found =
            || vec![row(30, Some(2)), row(20, Some(3)), row(50, Some(4)), row(40, None), row(10, None)];
        let ids = |page: &[PaymentRow]| {
            page.iter().map(|row| row.created_at.timestamp_millis()).collect::<Vec<_>>()
        };
        let (page, end) = merge(found(), Position::START, 5);
        assert_eq!((ids(&page), end), (vec![50, 40, 20, 30, 10], None));
        let (page, end) = merge(found(), Position::START, 3);
        assert_eq!(
            (ids(&page), end),
            (vec![50, 40, 20], Some(Position { v: 3, u: Some(Uuid::from_u128(40)) }))
        );
        assert!(merge(Vec::new(), Position::START, 3).0.is_empty());
    }
}
