//! Accounts, balances and statements.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::reads::{DbError, Lease};
use crate::cache::values::{CachedAccount, CachedBalance};
use crate::domain::account::NewAccount;
use crate::domain::ids::{AccountId, TenantId};
use crate::domain::request::AccountChange;

const COLUMNS: &str = "account_id, account_number, currency, type, status, min_balance_minor, created_at";

fn account(row: &Row) -> Result<CachedAccount, DbError> {
    Ok(CachedAccount {
        account_id: row.try_get(0)?,
        account_number: row.try_get(1)?,
        currency: row.try_get(2)?,
        account_type: row.try_get(3)?,
        status: row.try_get(4)?,
        min_balance_minor: row.try_get(5)?,
        created_at_us: row.try_get::<_, DateTime<Utc>>(6)?.timestamp_micros(),
    })
}

/// `None` for each account whose number is taken.
pub async fn insert(
    db: &mut Lease,
    tenant: TenantId,
    accounts: &[NewAccount],
    now: DateTime<Utc>,
) -> Result<Vec<Option<CachedAccount>>, DbError> {
    let sql = format!(
        "INSERT INTO accounts (tenant_id, account_id, account_number, currency, type, min_balance_minor, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT (tenant_id, account_number) DO NOTHING RETURNING {COLUMNS}"
    );
    let values: Vec<_> = accounts
        .iter()
        .map(|a| {
            (
                crate::clock::new_id::<AccountId>().0,
                a.number.as_str(),
                a.currency.code(),
                a.kind.as_str(),
                a.min_balance().map(|m| m.get()),
            )
        })
        .collect();
    let rows: Vec<Vec<&(dyn ToSql + Sync)>> = values
        .iter()
        .map(|(id, number, currency, kind, min)| -> Vec<&(dyn ToSql + Sync)> {
            vec![&tenant.0, id, number, currency, kind, min, &now]
        })
        .collect();
    let answers = db.query_each(&sql, &rows).await?;
    answers.iter().map(|rows| rows.first().map(account).transpose()).collect()
}

pub async fn get(db: &mut Lease, tenant: TenantId, id: AccountId) -> Result<Option<CachedAccount>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM accounts WHERE tenant_id = $1 AND account_id = $2");
    db.query_opt(&sql, &[&tenant.0, &id.0]).await?.as_ref().map(account).transpose()
}

/// In id order, which is the order of creation.
pub async fn list(
    db: &mut Lease,
    tenant: TenantId,
    after: Uuid,
    status: Option<&str>,
    limit: i64,
) -> Result<Vec<CachedAccount>, DbError> {
    let rows = match status {
        None => {
            let sql = format!(
                "SELECT {COLUMNS} FROM accounts WHERE tenant_id = $1 AND account_id > $2 ORDER BY account_id LIMIT $3"
            );
            db.query(&sql, &[&tenant.0, &after, &limit]).await?
        }
        Some(status) => {
            let sql = format!(
                "SELECT {COLUMNS} FROM accounts WHERE tenant_id = $1 AND account_id > $2 AND status = $3 \
                 ORDER BY account_id LIMIT $4"
            );
            db.query(&sql, &[&tenant.0, &after, &status, &limit]).await?
        }
    };
    rows.iter().map(account).collect()
}

/// Applies a change unless the account is closed. A lower overdraft limit than is used stops further debits; it does not
/// undo past ones.
pub async fn update(
    db: &mut Lease,
    tenant: TenantId,
    id: AccountId,
    change: &AccountChange,
    now: DateTime<Utc>,
) -> Result<Option<CachedAccount>, DbError> {
    let sql = format!(
        "UPDATE accounts SET status = coalesce($3, status), min_balance_minor = coalesce($4, min_balance_minor), \
         updated_at = $5 WHERE tenant_id = $1 AND account_id = $2 \
         AND (status <> 'CLOSED' OR coalesce($3, status) = 'CLOSED') RETURNING {COLUMNS}"
    );
    let status = change.status.map(|s| s.as_str());
    let min = change.overdraft_limit.and_then(|l| l.checked_neg()).map(|m| m.get());
    db.change_opt(&sql, &[&tenant.0, &id.0, &status, &min, &now]).await?.as_ref().map(account).transpose()
}

pub async fn balance(
    db: &mut Lease,
    tenant: TenantId,
    id: AccountId,
) -> Result<Option<CachedBalance>, DbError> {
    let row = db
        .query_opt(
            "SELECT posted_minor, held_minor, min_balance_minor, currency, version FROM accounts \
             WHERE tenant_id = $1 AND account_id = $2",
            &[&tenant.0, &id.0],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(CachedBalance {
        posted_minor: row.try_get(0)?,
        held_minor: row.try_get(1)?,
        min_balance_minor: row.try_get(2)?,
        currency: row.try_get(3)?,
        version: row.try_get(4)?,
    }))
}

/// One leg of a posting, as the account sees it.
#[derive(Debug)]
pub struct EntryRow {
    pub version: i64,
    /// Negative: the account was debited.
    pub amount_minor: i64,
    pub posted_after_minor: i64,
    pub payment_id: Uuid,
    pub counterparty: Uuid,
    pub created_at: DateTime<Utc>,
}

/// Entries with `after < version`, in order. The two legs are two index scans, merged here: as one statement over the
/// view account_entries PostgreSQL would sort.
pub async fn statement(
    db: &mut Lease,
    tenant: TenantId,
    id: AccountId,
    after: i64,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<EntryRow>, DbError> {
    const DEBITS: &str = "SELECT debit_version, -amount_minor, debit_posted_after, payment_id, credit_account_id, created_at \
        FROM entries WHERE tenant_id = $1 AND debit_account_id = $2 AND debit_version > $3 \
        AND created_at >= $4 AND created_at < $5 ORDER BY debit_version LIMIT $6";
    const CREDITS: &str = "SELECT credit_version, amount_minor, credit_posted_after, payment_id, debit_account_id, created_at \
        FROM entries WHERE tenant_id = $1 AND credit_account_id = $2 AND credit_version > $3 \
        AND created_at >= $4 AND created_at < $5 ORDER BY credit_version LIMIT $6";
    let mut entries = Vec::new();
    for sql in [DEBITS, CREDITS] {
        for row in db.query(sql, &[&tenant.0, &id.0, &after, &from, &to, &limit]).await? {
            entries.push(EntryRow {
                version: row.try_get(0)?,
                amount_minor: row.try_get(1)?,
                posted_after_minor: row.try_get(2)?,
                payment_id: row.try_get(3)?,
                counterparty: row.try_get(4)?,
                created_at: row.try_get(5)?,
            });
        }
    }
    entries.sort_unstable_by_key(|e| e.version);
    entries.truncate(usize::try_from(limit).unwrap_or(0));
    Ok(entries)
}
