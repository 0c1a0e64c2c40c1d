//! The ways to post a payment.
use super::bed::{Bed, Target};
use crate::servers::peers::{self, SHARDS};
use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// One transaction a payment, as a JPA application writes it.
    RowByRow,
    /// `post_payments` with so many payments.
    SetBased(usize),
}

impl Variant {
    pub const ALL: [Variant; 5] = [
        Variant::RowByRow,
        Variant::SetBased(1),
        Variant::SetBased(32),
        Variant::SetBased(128),
        Variant::SetBased(512),
    ];

    /// A pool of an application, or one lane a shard.
    fn connections(self) -> usize {
        match self {
            Variant::RowByRow => 32,
            Variant::SetBased(1) => 32,
            Variant::SetBased(_) => SHARDS as usize,
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Variant::RowByRow => f.write_str("row by row, 10 statements"),
            Variant::SetBased(batch) => write!(f, "set-based, batch {batch}"),
        }
    }
}

const ROW_BY_ROW: [&str; 9] = [
    "SELECT status FROM tenants WHERE tenant_id = $1",
    "INSERT INTO idempotency_keys (tenant_id, key, request_hash, payment_id, created_at, expires_at) \
     VALUES ($1, $2, $3, $4, now(), now() + interval '7 days')",
    "SELECT posted_minor, version, event_seq FROM accounts WHERE tenant_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
    "SELECT rule_id FROM fraud_rules WHERE tenant_id = $1 AND is_active",
    "INSERT INTO payments (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, amount_minor, currency, \
     status) VALUES ($1, $2, uuid_v7_time($2), $3, $4, $5, 'USD', 'succeeded')",
    "INSERT INTO entries (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, amount_minor, currency, \
     debit_posted_after, debit_version, credit_posted_after, credit_version) \
     VALUES ($1, $2, uuid_v7_time($2), $3, $4, $5, 'USD', $6, $7, $8, $9)",
    "UPDATE accounts SET posted_minor = $3, version = $4, event_seq = event_seq + 1, updated_at = now() \
     WHERE tenant_id = $1 AND account_id = $2",
    "UPDATE accounts SET posted_minor = $3, version = $4, updated_at = now() WHERE tenant_id = $1 AND account_id = $2",
    "INSERT INTO outbox (tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id, \
     amount_minor, currency, status, occurred_at) \
     VALUES ($1, $2, $3, $4, 'payments.payment.succeeded', $4, $5, $6, 'USD', 'succeeded', now())",
];
const SET_BASED: &str =
    "SELECT outcome, status FROM post_payments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

pub struct Connection {
    client: Client,
    statements: Vec<Statement>,
    /// The tenants that this connection pays for: all of one shard, as in a lane of the core.
    tenants: Vec<usize>,
}

pub async fn connect(bed: &Bed, target: Target, variant: Variant) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for number in 0..variant.connections() {
        let client = first_answer(bed.port(target)).await?;
        let texts: &[&str] = if variant == Variant::RowByRow { &ROW_BY_ROW } else { &[SET_BASED] };
        let mut statements = Vec::new();
        for text in texts {
            statements.push(client.prepare(text).await.with_context(|| format!("prepare {text}"))?);
        }
        let shard = (number % SHARDS as usize) as u16;
        let tenants: Vec<usize> = (0..bed.tenants.len()).filter(|t| bed.tenants[*t].shard == shard).collect();
        ensure!(!tenants.is_empty(), "no tenant on shard {}: use more --tenants", shard + 1);
        connections.push(Connection { client, statements, tenants });
    }
    Ok(connections)
}

/// A proxy that has just started may still be looking for its shards.
async fn first_answer(port: u16) -> Result<Client> {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let tried = async {
            let client = peers::app(port).await?;
            client.query("SELECT tenant_id FROM tenants WHERE tenant_id = $1", &[&Uuid::nil()]).await?;
            Ok::<_, anyhow::Error>(client)
        };
        match tried.await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Payments posted by all connections together.
pub async fn post(bed: &Bed, connections: Vec<Connection>, variant: Variant, seconds: u32) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let work = connections.into_iter().map(|mut connection| async move {
        let mut random = SmallRng::from_os_rng();
        let mut posted = 0u64;
        while Instant::now() < end {
            posted += match variant {
                Variant::RowByRow => row_by_row(bed, &mut connection, &mut random).await?,
                Variant::SetBased(batch) => set_based(bed, &connection, &mut random, batch).await?,
            };
        }
        Ok::<_, anyhow::Error>(posted)
    });
    Ok(try_join_all(work).await?.into_iter().sum())
}

struct Payment {
    tenant: Uuid,
    debit: Uuid,
    credit: Uuid,
    amount: i64,
}

fn payment(bed: &Bed, connection: &Connection, random: &mut SmallRng) -> Payment {
    let tenant = &bed.tenants[connection.tenants[random.random_range(0..connection.tenants.len())]];
    let debit = random.random_range(0..tenant.accounts.len());
    let credit = (debit + 1 + random.random_range(0..tenant.accounts.len() - 1)) % tenant.accounts.len();
    Payment {
        tenant: tenant.id,
        debit: tenant.accounts[debit],
        credit: tenant.accounts[credit],
        amount: random.random_range(1..100),
    }
}

async fn row_by_row(bed: &Bed, connection: &mut Connection, random: &mut SmallRng) -> Result<u64> {
    let p = payment(bed, connection, random);
    let s = connection.statements.clone();
    let id = Uuid::now_v7();
    let transaction = connection.client.transaction().await?;
    transaction.query_one(&s[0], &[&p.tenant]).await?;
    transaction.execute(&s[1], &[&p.tenant, &id.to_string(), &[7u8; 16].as_slice(), &id]).await?;
    // In id order, as an application has to, or two payments in opposite directions deadlock.
    let first_is_debit = p.debit < p.credit;
    let (first, second) = if first_is_debit { (p.debit, p.credit) } else { (p.credit, p.debit) };
    let first = transaction.query_one(&s[2], &[&p.tenant, &first]).await?;
    let second = transaction.query_one(&s[2], &[&p.tenant, &second]).await?;
    let (debit, credit) = if first_is_debit { (first, second) } else { (second, first) };
    let (debit_posted, debit_version, sequence): (i64, i64, i64) = (debit.get(0), debit.get(1), debit.get(2));
    let (credit_posted, credit_version): (i64, i64) = (credit.get(0), credit.get(1));
    transaction.query(&s[3], &[&p.tenant]).await?;
    transaction.execute(&s[4], &[&p.tenant, &id, &p.debit, &p.credit, &p.amount]).await?;
    let (debit_after, debit_version) = (debit_posted - p.amount, debit_version + 1);
    let (credit_after, credit_version) = (credit_posted + p.amount, credit_version + 1);
    transaction
        .execute(
            &s[5],
            &[
                &p.tenant,
                &id,
                &p.debit,
                &p.credit,
                &p.amount,
                &debit_after,
                &debit_version,
                &credit_after,
                &credit_version,
            ],
        )
        .await?;
    transaction.execute(&s[6], &[&p.tenant, &p.debit, &debit_after, &debit_version]).await?;
    transaction.execute(&s[7], &[&p.tenant, &p.credit, &credit_after, &credit_version]).await?;
    transaction.execute(&s[8], &[&p.tenant, &p.debit, &(sequence + 1), &id, &p.credit, &p.amount]).await?;
    transaction.commit().await?;
    Ok(1)
}

async fn set_based(bed: &Bed, connection: &Connection, random: &mut SmallRng, batch: usize) -> Result<u64> {
    let payments: Vec<Payment> = (0..batch).map(|_| payment(bed, connection, random)).collect();
    let column = |of: fn(&Payment) -> Uuid| payments.iter().map(of).collect::<Vec<Uuid>>();
    let ids: Vec<Uuid> = payments.iter().map(|_| Uuid::now_v7()).collect();
    let keys: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let hashes = vec![[7u8; 16].to_vec(); batch];
    let amounts: Vec<i64> = payments.iter().map(|p| p.amount).collect();
    let none: Vec<Option<String>> = vec![None; batch];
    let rows = connection
        .client
        .query(
            &connection.statements[0],
            &[
                &column(|p| p.tenant),
                &ids,
                &keys,
                &hashes,
                &column(|p| p.debit),
                &column(|p| p.credit),
                &amounts,
                &vec!["USD"; batch],
                &none,
                &none,
                &none,
                &none,
            ],
        )
        .await?;
    let created = rows.iter().filter(|row| row.get::<_, &str>(0) == "created").count();
    ensure!(created == batch, "{created} of {batch} payments were created");
    Ok(created as u64)
}
