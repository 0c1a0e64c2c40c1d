//! Rows that must exist together, joined on the shard that has them.
use super::due;
use super::report::{CheckReport, Invariant};
use super::shards::Session;
use anyhow::{Context, Result};

struct Rule {
    name: &'static str,
    claim: &'static str,
    /// How many things are examined.
    examined: &'static str,
    /// One text column: what is wrong with one thing. `{young}` and `{accounts}` stand for what [`due`] says.
    broken: &'static str,
}

/// Idempotency keys live for seven days; payments near that age may have lost theirs.
const RULES: &[Rule] = &[
    Rule {
        name: "payment_once",
        claim: "payments, each id once",
        examined: "SELECT count(*) FROM payments",
        broken: "SELECT format('tenant %s payment %s is stored %s times', tenant_id, payment_id, count(*))
                   FROM payments GROUP BY tenant_id, payment_id HAVING count(*) > 1",
    },
    Rule {
        name: "payments_entries",
        claim: "succeeded payments with exactly one equal entry, and no entry without one",
        examined: "SELECT count(*) FROM payments WHERE status = 'succeeded'",
        broken: "SELECT CASE WHEN e.payment_id IS NULL THEN format('tenant %s payment %s succeeded without an entry', p.tenant_id, p.payment_id)
                             WHEN p.payment_id IS NULL THEN format('tenant %s payment %s has an entry but is not succeeded', e.tenant_id, e.payment_id)
                             ELSE format('tenant %s payment %s and its entry differ', p.tenant_id, p.payment_id) END
                   FROM (SELECT * FROM payments WHERE status = 'succeeded') p
                   FULL JOIN entries e ON e.tenant_id = p.tenant_id AND e.payment_id = p.payment_id
                  WHERE p.payment_id IS NULL OR e.payment_id IS NULL
                     OR (p.debit_account_id, p.credit_account_id, p.amount_minor, p.currency, p.created_at)
                        IS DISTINCT FROM (e.debit_account_id, e.credit_account_id, e.amount_minor, e.currency, e.created_at)
                 UNION ALL
                 SELECT format('tenant %s payment %s has %s entries', tenant_id, payment_id, count(*))
                   FROM entries GROUP BY tenant_id, payment_id HAVING count(*) > 1",
    },
    Rule {
        name: "payments_outbox",
        claim: "payments with exactly one equal outbox row while it is kept, and no outbox row without one",
        examined: "SELECT count(*) FROM outbox",
        broken: "SELECT CASE WHEN o.payment_id IS NULL THEN format('tenant %s payment %s has no outbox row', p.tenant_id, p.payment_id)
                             WHEN p.payment_id IS NULL THEN format('tenant %s event %s is of a payment %s that does not exist', o.tenant_id, o.event_id, o.payment_id)
                             ELSE format('tenant %s payment %s and its outbox row differ', p.tenant_id, p.payment_id) END
                   FROM (SELECT * FROM payments WHERE status IN ('succeeded', 'declined')) p
                   FULL JOIN (SELECT * FROM outbox WHERE event_type LIKE 'payments.payment.%') o
                     ON o.tenant_id = p.tenant_id AND o.payment_id = p.payment_id
                  WHERE p.payment_id IS NULL OR (o.payment_id IS NULL AND p.created_at > {young})
                     OR (o.payment_id IS NOT NULL AND
                        (p.debit_account_id, p.credit_account_id, p.amount_minor, p.currency, p.status::text, 'payments.payment.' || p.status)
                        IS DISTINCT FROM (o.account_id, o.credit_account_id, o.amount_minor, o.currency, o.status::text, o.event_type::text))
                 UNION ALL
                 SELECT format('tenant %s payment %s has %s outbox rows', tenant_id, payment_id, count(*))
                   FROM outbox WHERE event_type LIKE 'payments.payment.%'
                  GROUP BY tenant_id, payment_id HAVING count(*) > 1
                 UNION ALL
                 SELECT format('event id %s is used %s times', event_id, count(*)) FROM outbox GROUP BY event_id HAVING count(*) > 1",
    },
    Rule {
        name: "event_sequences",
        claim: "accounts whose events are numbered up to their event_seq without gaps, from 1 or the first that is kept",
        examined: "SELECT count(*) FROM accounts",
        broken: "SELECT format('tenant %s account %s: event_seq %s, outbox has %s rows from %s to %s, due from %s',
                               coalesce(a.tenant_id, o.tenant_id), coalesce(a.account_id, o.account_id), a.event_seq, count(o.event_seq),
                               min(o.event_seq), max(o.event_seq), a.due)
                   FROM ({accounts}) a
                   FULL JOIN outbox o ON o.tenant_id = a.tenant_id AND o.account_id = a.account_id
                  GROUP BY a.tenant_id, a.account_id, o.tenant_id, o.account_id, a.event_seq, a.due
                 HAVING a.account_id IS NULL OR a.event_seq + 1 - a.due <> count(*) FILTER (WHERE o.event_seq >= a.due)
                     OR min(o.event_seq) < 1 OR max(o.event_seq) > a.event_seq",
    },
    Rule {
        name: "idempotency_keys",
        claim: "idempotency keys naming an existing payment, one key a payment, one payment a key",
        examined: "SELECT count(*) FROM idempotency_keys",
        broken: "SELECT CASE WHEN p.payment_id IS NULL THEN format('tenant %s key %s names payment %s, which does not exist', k.tenant_id, k.key, k.payment_id)
                             ELSE format('tenant %s payment %s has no idempotency key', p.tenant_id, p.payment_id) END
                   FROM (SELECT * FROM idempotency_keys WHERE payment_id IS NOT NULL) k
                   FULL JOIN payments p ON p.tenant_id = k.tenant_id AND p.payment_id = k.payment_id
                  WHERE p.payment_id IS NULL OR (k.key IS NULL AND p.created_at > {young})
                 UNION ALL
                 SELECT format('tenant %s payment %s has %s keys', tenant_id, payment_id, count(*))
                   FROM idempotency_keys WHERE payment_id IS NOT NULL GROUP BY tenant_id, payment_id HAVING count(*) > 1
                 UNION ALL
                 SELECT format('tenant %s key %s is stored %s times', tenant_id, key, count(*))
                   FROM idempotency_keys GROUP BY tenant_id, key HAVING count(*) > 1",
    },
];

pub async fn check(sessions: &[Session], report: &mut CheckReport) -> Result<()> {
    let accounts = due::accounts();
    for rule in RULES {
        let sql = rule.broken.replace("{young}", due::YOUNG).replace("{accounts}", &accounts);
        let mut invariant = Invariant::new(rule.name, rule.claim);
        for session in sessions {
            let examined: i64 = session.client.query_one(rule.examined, &[]).await?.get(0);
            invariant.examined += u64::try_from(examined).unwrap_or(0);
            let broken = broken(session, &sql).await.with_context(|| rule.name)?;
            for (index, example) in broken.examples.iter().enumerate() {
                invariant.violation(|| format!("shard {}: {example}", session.shard));
                if index + 1 == broken.examples.len() {
                    invariant.violations += broken.count.saturating_sub(broken.examples.len() as u64);
                }
            }
        }
        report.push(invariant);
    }
    Ok(())
}

pub struct Broken {
    pub count: u64,
    pub examples: Vec<String>,
}

/// All broken things are counted; a handful come over the wire.
pub async fn broken(session: &Session, query: &str) -> Result<Broken> {
    let sql = format!("SELECT what, count(*) OVER () FROM ({query}) AS broken (what) LIMIT 10");
    let rows = session.client.query(&sql, &[]).await?;
    let count = rows.first().map_or(0, |row| row.get::<_, i64>(1));
    Ok(Broken {
        count: u64::try_from(count).unwrap_or(0),
        examples: rows.iter().map(|row| row.get(0)).collect(),
    })
}
