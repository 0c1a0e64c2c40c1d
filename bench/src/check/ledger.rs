//! Entries folded into balances, account by account, in one ordered stream a shard.
use super::Options;
use super::report::{CheckReport, Invariant};
use super::shards::Session;
use anyhow::Result;
use futures_util::TryStreamExt;
use std::collections::BTreeMap;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Each account's own row first (kind 0), then its legs (kind 1) by version. One stream, because two streams of one
/// snapshot would have to be buffered against each other.
const LEGS: &str = "
SELECT tenant_id, account_id, 0 AS kind, version, posted_minor AS amount, min_balance_minor AS extra, held_minor,
       currency::text
  FROM accounts
UNION ALL
SELECT tenant_id, debit_account_id, 1, debit_version, -amount_minor, debit_posted_after, NULL, currency::text FROM entries
UNION ALL
SELECT tenant_id, credit_account_id, 1, credit_version, amount_minor, credit_posted_after, NULL, currency::text FROM entries
ORDER BY 1, 2, 3, 4";

struct Account {
    tenant: Uuid,
    id: Uuid,
    /// False when entries name an account that has no row.
    exists: bool,
    currency: String,
    posted: i64,
    held: i64,
    min_balance: Option<i64>,
    version: i64,
    legs: i64,
    running: i128,
}

/// Minor units of one currency of one tenant.
#[derive(Default)]
struct Totals {
    debits: i128,
    credits: i128,
    posted: i128,
}

struct Fold<'a> {
    options: &'a Options,
    sums: Invariant,
    balances: Invariant,
    versions: Invariant,
    running: Invariant,
    limits: Invariant,
    currencies: Invariant,
    account: Option<Account>,
    tenant: Option<(Uuid, BTreeMap<String, Totals>)>,
}

pub async fn check(sessions: &[Session], options: &Options, report: &mut CheckReport) -> Result<()> {
    let mut fold = Fold {
        options,
        sums: Invariant::new(
            "debits_equal_credits",
            "(tenant, currency) pairs with equal debits and credits, balances summing to 0",
        ),
        balances: Invariant::new("balance_is_fold", "accounts whose balance is the sum of their entries"),
        versions: Invariant::new(
            "versions_gapless",
            "accounts whose entries have versions 1..n and whose version is n",
        ),
        running: Invariant::new("running_balances", "legs whose recorded balance is the sum up to them"),
        limits: Invariant::new(
            "above_limit",
            "balances not below the account's limit (now and after each debit)",
        ),
        currencies: Invariant::new(
            "entry_accounts",
            "legs whose account exists in the tenant with the entry's currency",
        ),
        account: None,
        tenant: None,
    };
    for session in sessions {
        let none: [&(dyn ToSql + Sync); 0] = [];
        let rows = session.client.query_raw(LEGS, none).await?;
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = rows.try_next().await? {
            fold.row(&row)?;
        }
        fold.end_of_tenant();
    }
    for invariant in [fold.sums, fold.balances, fold.versions, fold.running, fold.limits, fold.currencies] {
        report.push(invariant);
    }
    Ok(())
}

impl Fold<'_> {
    fn row(&mut self, row: &Row) -> Result<()> {
        let (tenant, id): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        if self.tenant.as_ref().is_none_or(|(current, _)| *current != tenant) {
            self.end_of_tenant();
            self.tenant = Some((tenant, BTreeMap::new()));
        }
        let own_row = row.try_get::<_, i32>(2)? == 0;
        if self.account.as_ref().is_none_or(|account| account.id != id) {
            self.end_of_account();
            self.account = Some(Account {
                tenant,
                id,
                exists: own_row,
                currency: row.try_get(7)?,
                posted: 0,
                held: 0,
                min_balance: None,
                version: 0,
                legs: 0,
                running: 0,
            });
        }
        let (Some(account), Some((_, totals))) = (self.account.as_mut(), self.tenant.as_mut()) else {
            return Ok(());
        };
        let (version, amount): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        if own_row {
            account.version = version;
            account.posted = amount;
            account.min_balance = row.try_get(5)?;
            account.held = row.try_get::<_, Option<i64>>(6)?.unwrap_or(0);
            return Ok(());
        }
        account.legs += 1;
        account.running += i128::from(amount);
        let name = || format!("tenant {tenant} account {id} version {version}");
        // A hole is reported once: from there on the numbers are compared with the version before.
        if version != account.legs {
            let expected = account.legs;
            self.versions.violation(|| format!("{}: expected version {expected}", name()));
            account.legs = version;
        }
        let recorded: i64 = row.try_get(5)?;
        let running = account.running;
        self.running.expect(i128::from(recorded) == running, || {
            format!("{}: recorded {recorded}, entries sum to {running}", name())
        });
        let currency: &str = row.try_get(7)?;
        self.currencies.expect(account.exists && currency == account.currency, || {
            format!(
                "{} is in {currency}, the account {}",
                name(),
                if account.exists { &account.currency } else { "does not exist" }
            )
        });
        if let (Some(limit), true, false) = (account.min_balance, amount < 0, self.options.limits_changed) {
            self.limits.expect(running >= i128::from(limit), || {
                format!("{}: {running} after it, limit {limit}", name())
            });
        }
        if !totals.contains_key(currency) {
            totals.insert(currency.to_owned(), Totals::default());
        }
        if let Some(totals) = totals.get_mut(currency) {
            if amount < 0 {
                totals.debits -= i128::from(amount);
            } else {
                totals.credits += i128::from(amount);
            }
        }
        Ok(())
    }

    fn end_of_account(&mut self) {
        let Some(account) = self.account.take() else { return };
        if !account.exists {
            return; // already counted by `entry_accounts`
        }
        let name = || format!("tenant {} account {}", account.tenant, account.id);
        self.balances.expect(i128::from(account.posted) == account.running, || {
            format!("{}: balance {}, entries sum to {}", name(), account.posted, account.running)
        });
        self.versions.expect(account.version == account.legs, || {
            format!("{}: version {}, {} entries", name(), account.version, account.legs)
        });
        if let Some(limit) = account.min_balance {
            let available = i128::from(account.posted) - i128::from(account.held);
            self.limits.expect(available >= i128::from(limit), || {
                format!("{}: posted {} held {}, limit {limit}", name(), account.posted, account.held)
            });
        }
        if let Some((_, totals)) = self.tenant.as_mut() {
            totals.entry(account.currency).or_default().posted += i128::from(account.posted);
        }
    }

    fn end_of_tenant(&mut self) {
        self.end_of_account();
        let Some((tenant, totals)) = self.tenant.take() else { return };
        for (currency, t) in totals {
            self.sums.expect(t.debits == t.credits && t.posted == 0, || {
                format!(
                    "tenant {tenant} {currency}: debits {}, credits {}, balances sum to {}",
                    t.debits, t.credits, t.posted
                )
            });
        }
    }
}
