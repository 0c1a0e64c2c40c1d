//! Reading payments.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::reads::{DbError, Lease};
use crate::domain::ids::{PaymentId, TenantId};
use crate::domain::payment::PaymentStatus;

#[derive(Debug)]
pub struct PaymentRow {
    pub payment_id: Uuid,
    pub created_at: DateTime<Utc>,
    pub reference: Option<String>,
    pub debit: Uuid,
    pub credit: Uuid,
    pub amount_minor: i64,
    pub currency: String,
    pub status: String,
    pub decline_code: Option<String>,
    pub payment_type: Option<String>,
    pub description: Option<String>,
    pub metadata: Option<Value>,
}

pub(super) const COLUMNS: &str = "payment_id, created_at, reference, debit_account_id, credit_account_id, amount_minor, currency, \
    status, decline_code, payment_type, description, metadata";

/// From the columns of [`COLUMNS`], of which the first is number `first`.
pub(super) fn payment(row: &Row, first: usize) -> Result<PaymentRow, DbError> {
    Ok(PaymentRow {
        payment_id: row.try_get(first)?,
        created_at: row.try_get(first + 1)?,
        reference: row.try_get(first + 2)?,
        debit: row.try_get(first + 3)?,
        credit: row.try_get(first + 4)?,
        amount_minor: row.try_get(first + 5)?,
        currency: row.try_get(first + 6)?,
        status: row.try_get(first + 7)?,
        decline_code: row.try_get(first + 8)?,
        payment_type: row.try_get(first + 9)?,
        description: row.try_get(first + 10)?,
        metadata: row.try_get(first + 11)?,
    })
}

/// The id's own millisecond prunes to one partition.
pub async fn get(db: &mut Lease, tenant: TenantId, id: PaymentId) -> Result<Option<PaymentRow>, DbError> {
    let Some(created_at) = id.created_at() else { return Ok(None) };
    let sql = format!(
        "SELECT {COLUMNS} FROM payments WHERE tenant_id = $1 AND created_at = $2 AND payment_id = $3"
    );
    db.query_opt(&sql, &[&tenant.0, &created_at, &id.0])
        .await?
        .as_ref()
        .map(|row| payment(row, 0))
        .transpose()
}

/// What a list of payments can be narrowed by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub status: Option<String>,
    pub from: Option<DateTime<Utc>>,
    pub to: Option<DateTime<Utc>>,
}

/// Of all accounts ([`super::account_payments`] has those of one), newest first, before the position `(created_at, payment_id)`.
pub async fn list(
    db: &mut Lease,
    tenant: TenantId,
    filter: &Filter,
    before: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<PaymentRow>, DbError> {
    let mut sql = format!("SELECT {COLUMNS} FROM payments WHERE tenant_id = $1");
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&tenant.0];
    let mut add = |condition: &str, values: &[&'_ (dyn ToSql + Sync)], params: &mut usize| {
        let mut text = condition.to_owned();
        for _ in values {
            *params += 1;
            text = text.replacen('?', &format!("${params}"), 1);
        }
        sql.push_str(" AND ");
        sql.push_str(&text);
    };
    let mut n = 1;
    if let Some((at, id)) = &before {
        add("(created_at, payment_id) < (?, ?)", &[at, id], &mut n);
        params.extend([at as &(dyn ToSql + Sync), id]);
    }
    if let Some(from) = &filter.from {
        add("created_at >= ?", &[from], &mut n);
        params.push(from);
    }
    if let Some(to) = &filter.to {
        add("created_at < ?", &[to], &mut n);
        params.push(to);
    }
    if let Some(status) = &filter.status {
        // Those that did not succeed have an index of their own, which this comparison is of; most payments succeed, and
        // for those the primary key has few rows to pass by.
        if status != PaymentStatus::Succeeded.as_str() {
            add("status <> 'succeeded'", &[], &mut n);
        }
        add("status = ?", &[status], &mut n);
        params.push(status);
    }
    sql.push_str(&format!(" ORDER BY created_at DESC, payment_id DESC LIMIT ${}", n + 1));
    params.push(&limit);
    db.query(&sql, &params).await?.iter().map(|row| payment(row, 0)).collect()
}
