//! Schemas of the shards beside each other, for `doctor`.

use std::collections::BTreeMap;

use shard_config::ShardId;
use tokio_postgres::Client;

use crate::connect::{ANSWER_TIMEOUT, ask, cell};
use crate::doctor::Findings;
use crate::mover::definition::{Parts, difference, parts_sql};

/// Everything that routing and moves rely on, by relation. Unlike a move, routing takes columns by their order.
pub(crate) async fn schema(client: &Client) -> anyhow::Result<BTreeMap<String, Parts>> {
    const RELATIONS: &str = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shard_catalog')
          AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't'";
    let parts = parts_sql(&format!("SELECT c.oid::regclass::text, c.oid, ''::text FROM {RELATIONS}"));
    let sql = format!(
        "{parts} UNION ALL SELECT c.oid::regclass::text, 'columns in the order ' || coalesce((
             SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '') FROM {RELATIONS}"
    );
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    // To compile so long a statement takes seconds, and to run it milliseconds.
    ask(client, "SET jit = off", ANSWER_TIMEOUT).await?;
    for row in ask(client, &sql, ANSWER_TIMEOUT).await? {
        found.entry(cell(&row, "name")).or_default().insert(cell(&row, "part"));
    }
    Ok(found)
}

const DIFFERS: &str = "make both alike by hand: SET shard.target = 'N' sends what follows to shard N only";
/// `migrate` knows no other tables.
const LACKS: &str = "of the payment schema, run shardctl migrate; otherwise create it there, or drop it where it is: \
                     SET shard.target = 'N' sends what follows to shard N only";

pub(crate) fn drift(schemas: &BTreeMap<ShardId, BTreeMap<String, Parts>>, findings: &mut Findings) {
    let Some((first, wanted)) = schemas.iter().next() else { return };
    let before = findings.all.len();
    for (shard, schema) in schemas.iter().skip(1) {
        let mut tables: Vec<_> = wanted.keys().chain(schema.keys()).collect();
        tables.sort();
        tables.dedup();
        for table in tables {
            let (how, remedy) = match (wanted.get(table), schema.get(table)) {
                (Some(ours), Some(theirs)) => match difference((*first, ours), (*shard, theirs)) {
                    Some(what) => {
                        let how = format!("{table} differs between shard {first} and shard {shard} ({what})");
                        (how, DIFFERS)
                    }
                    None => continue,
                },
                (Some(_), None) => (format!("{table} is on shard {first} and not on shard {shard}"), LACKS),
                _ => (format!("{table} is on shard {shard} and not on shard {first}"), LACKS),
            };
            findings.problem(how, remedy);
        }
    }
    if findings.all.len() == before {
        findings
            .well("schema", format!("{} tables and views, equal on {} shards", wanted.len(), schemas.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_named_by_table_and_shard() {
        let table = |name: &str, part: &str| (name.to_owned(), Parts::from([part.to_owned()]));
        let schemas = BTreeMap::from([
            (ShardId(1), BTreeMap::from([table("a", "r id uuid"), table("b", "r id uuid")])),
            (ShardId(2), BTreeMap::from([table("a", "r id text"), table("c", "r id uuid")])),
        ]);
        let mut findings = Findings::default();
        drift(&schemas, &mut findings);
        let problems: Vec<_> = findings.all.iter().map(|(check, _)| check.as_str()).collect();
        assert_eq!(
            problems,
            [
                "a differs between shard 1 and shard 2 (only on shard 1: r id uuid; only on shard 2: r id text)",
                "b is on shard 1 and not on shard 2",
                "c is on shard 2 and not on shard 1"
            ]
        );
        assert!(findings.all.iter().all(|(_, outcome)| outcome.is_err()));
    }
}
