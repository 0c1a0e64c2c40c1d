//! Every tenant lives on one shard, with all its rows.
use super::report::{CheckReport, Invariant};
use super::shards::Session;
use anyhow::Result;
use std::collections::HashMap;
use uuid::Uuid;

/// Which shard has a tenant's `tenants` row.
pub type Homes = HashMap<Uuid, u16>;

pub async fn check(sessions: &[Session], report: &mut CheckReport) -> Result<Homes> {
    let mut once = Invariant::new("tenant_on_one_shard", "tenants whose rows are all on one shard");
    let mut known =
        Invariant::new("rows_have_tenant", "(table, tenant) pairs whose tenant exists on that shard");
    let mut homes = Homes::new();
    let mut seen: HashMap<Uuid, u16> = HashMap::new();
    for session in sessions {
        let tenants: Vec<Uuid> = session
            .client
            .query("SELECT tenant_id FROM tenants", &[])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect();
        for tenant in tenants {
            homes.entry(tenant).or_insert(session.shard);
        }
        for table in sharded_tables(session).await? {
            for row in session.client.query(&format!("SELECT DISTINCT tenant_id FROM {table}"), &[]).await? {
                let tenant: Uuid = row.get(0);
                known.expect(homes.get(&tenant) == Some(&session.shard), || {
                    format!(
                        "{table} on shard {} has rows of tenant {tenant}, which is not there",
                        session.shard
                    )
                });
                match seen.insert(tenant, session.shard) {
                    None => once.examined += 1,
                    Some(other) if other != session.shard => once.violation(|| {
                        format!(
                            "tenant {tenant} has rows on shard {other} and in {table} on shard {}",
                            session.shard
                        )
                    }),
                    Some(_) => {}
                }
            }
        }
    }
    report.push(once);
    report.push(known);
    Ok(homes)
}

/// Every ordinary or partitioned table with a tenant_id, whatever later migrations add.
async fn sharded_tables(session: &Session) -> Result<Vec<String>> {
    let rows = session
        .client
        .query(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
              WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition \
                AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY 1",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
