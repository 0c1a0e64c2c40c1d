//! The ids already acted on: a bounded set in memory, and the table `inbox` for sinks whose effects must not be repeated.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashSet;
use tokio_postgres::{Client, Error, Statement};
use uuid::Uuid;

/// The last `capacity` ids, the oldest forgotten first.
#[derive(Debug)]
pub struct Recent {
    capacity: usize,
    order: VecDeque<Uuid>,
    ids: FxHashSet<Uuid>,
}

impl Recent {
    pub fn new(capacity: usize) -> Recent {
        Recent { capacity, order: VecDeque::new(), ids: FxHashSet::default() }
    }

    pub fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains(id)
    }

    pub fn insert(&mut self, id: Uuid) {
        if self.ids.insert(id) {
            self.order.push_back(id);
            if self.order.len() > self.capacity
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }
}

/// Rows of one INSERT. Every row names the tenant, so that the statement is provably of one shard.
const ROWS: usize = 50;

/// The table `inbox` through one session. Rows are keyed by tenant, consumer and event.
pub struct Inbox {
    consumer: &'static str,
    find: Statement,
    note: Statement,
}

impl Inbox {
    pub async fn prepare(client: &Client, consumer: &'static str) -> Result<Inbox, Error> {
        let find = "SELECT event_id FROM inbox WHERE tenant_id = $1 AND consumer = $2 AND event_id = ANY ($3::uuid[])";
        let rows: Vec<String> = (0..ROWS).map(|n| format!("($1, $2, ${})", n + 3)).collect();
        let note = format!(
            "INSERT INTO inbox (tenant_id, consumer, event_id) VALUES {} ON CONFLICT DO NOTHING",
            rows.join(", ")
        );
        Ok(Inbox { consumer, find: client.prepare(find).await?, note: client.prepare(&note).await? })
    }

    /// Which of these (tenant, event) have been acted on.
    pub async fn find(&self, client: &Client, ids: &[(Uuid, Uuid)]) -> Result<FxHashSet<Uuid>, Error> {
        let mut found = FxHashSet::default();
        for (tenant, events) in by_tenant(ids) {
            for row in client.query(&self.find, &[&tenant, &self.consumer, &events]).await? {
                found.insert(row.try_get(0)?);
            }
        }
        Ok(found)
    }

    /// They have been acted on.
    pub async fn note(&self, client: &Client, ids: &[(Uuid, Uuid)]) -> Result<(), Error> {
        for (tenant, events) in by_tenant(ids) {
            for some in events.chunks(ROWS) {
                let mut params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
                    vec![&tenant, &self.consumer];
                // A short chunk repeats its last id: the conflict clause takes care, and one statement serves all sizes.
                params.extend(
                    (0..ROWS)
                        .map(|n| &some[n.min(some.len() - 1)] as &(dyn tokio_postgres::types::ToSql + Sync)),
                );
                client.execute(&self.note, &params).await?;
            }
        }
        Ok(())
    }
}

fn by_tenant(ids: &[(Uuid, Uuid)]) -> BTreeMap<Uuid, Vec<Uuid>> {
    let mut groups: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for (tenant, event) in ids {
        groups.entry(*tenant).or_default().push(*event);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let id = Uuid::from_u128;
        let mut recent = Recent::new(2);
        recent.insert(id(1));
        recent.insert(id(2));
        recent.insert(id(2));
        assert!(recent.contains(&id(1)), "a repeated id takes no place");
        recent.insert(id(3));
        assert!(!recent.contains(&id(1)) && recent.contains(&id(2)) && recent.contains(&id(3)));
        assert_eq!(recent.order.len(), recent.ids.len());
    }
}
